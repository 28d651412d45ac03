package memory_test

import (
	"testing"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/backend/memory"
	"github.com/leasehold/leasehold/conformance"
)

func TestConformance(t *testing.T) {
	s := memory.New()
	defer s.Close()
	conformance.Run(t, func(testing.TB) backend.Store { return s.Client() })
}
