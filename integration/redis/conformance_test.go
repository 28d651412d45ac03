package redis_test

import (
	"testing"
	"time"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/conformance"
	"github.com/leasehold/leasehold/integration/internal/servers"
	"github.com/leasehold/leasehold/redis"
)

// TestConformance holds the store to all promises, on one server.
func TestConformance(t *testing.T) { conform(t, servers.SharedRedis(t)) }

// TestConformanceCluster does on a cluster of three.
func TestConformanceCluster(t *testing.T) { conform(t, servers.SharedRedisCluster(t)) }

func conform(t *testing.T, r *servers.Redis) {
	// All clients must be of one store, whichever case opens them.
	under := store(t, r).Prefix()
	conformance.Run(t, func(tb testing.TB) backend.Store { return redis.New(client(tb, r), under) }, conformance.WithDuration(time.Second))
}
