package embedded_test

import (
	"testing"
	"time"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/conformance"
	"github.com/leasehold/leasehold/etcd"
	"github.com/leasehold/leasehold/integration/embedded"
)

// TestConformance holds the store to all promises, on servers that cost no time.
func TestConformance(t *testing.T) {
	c := embedded.Start(t, 1)
	conformance.Run(t, func(tb testing.TB) backend.Store {
		return etcd.New(c.Client(tb), "/conformance")
	}, conformance.WithDuration(3*time.Second))
}
