package etcd_test

import (
	"testing"
	"time"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/conformance"
	"github.com/leasehold/leasehold/etcd"
	"github.com/leasehold/leasehold/integration/internal/servers"
)

// TestConformance holds the store to all promises, on one member.
func TestConformance(t *testing.T) { conform(t, servers.SharedEtcd(t)) }

// TestConformanceCluster does on three, of which each client talks to all.
func TestConformanceCluster(t *testing.T) { conform(t, servers.SharedEtcdCluster(t)) }

func conform(t *testing.T, e *servers.Etcd) {
	// All clients must be of one store, whichever case opens them.
	under := store(t, e).Prefix()
	conformance.Run(t, func(tb testing.TB) backend.Store { return etcd.New(client(tb, e), under) }, conformance.WithDuration(3*time.Second))
}
