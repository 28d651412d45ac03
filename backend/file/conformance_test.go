//go:build linux

package file_test

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/backend/file"
	"github.com/leasehold/leasehold/conformance"
)

func TestConformance(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "leases")
	conformance.Run(t, func(tb testing.TB) backend.Store {
		s, err := file.New(dir)
		if err != nil {
			tb.Fatal(err)
		}
		return s
	}, conformance.WithDuration(500*time.Millisecond)) // a disk that others use takes its time
}
