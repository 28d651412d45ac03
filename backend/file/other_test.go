//go:build !linux

package file

import (
	"errors"
	"testing"

	"github.com/leasehold/leasehold/backend"
)

func TestUnsupported(t *testing.T) {
	if s, err := New(t.TempDir()); s != nil || !errors.Is(err, backend.ErrUnsupported) {
		t.Errorf("New returns %v, %v", s, err)
	}
}
