package redis_test

import (
	"context"
	"flag"
	"strings"
	"testing"

	goredis "github.com/redis/go-redis/v9"

	"github.com/leasehold/leasehold/integration/internal/servers"
	"github.com/leasehold/leasehold/redis"
)

func TestMain(m *testing.M) {
	flag.Set("test.parallel", "8") // most tests wait most of the time; -parallel still counts
	servers.Main(m)
}

// client returns a new client of r, closed after the test. edit may change how it
// is made.
func client(tb testing.TB, r *servers.Redis, edit ...func(*goredis.UniversalOptions)) goredis.UniversalClient {
	tb.Helper()
	o := r.Options()
	for _, f := range edit {
		f(o)
	}
	c := goredis.NewUniversalClient(o)
	tb.Cleanup(func() { c.Close() })
	return c
}

// store returns a store with a client of its own under a prefix that is the test's
// own, and whose keys are deleted after it.
func store(tb testing.TB, r *servers.Redis, opts ...redis.Option) *redis.Store {
	tb.Helper()
	c := client(tb, r)
	s := redis.New(c, prefix(tb), opts...)
	tb.Cleanup(func() {
		s.Close()
		wipe(r, s.Prefix())
	})
	return s
}

// prefix is of this test alone.
func prefix(tb testing.TB) string {
	return "leasehold-test:" + strings.NewReplacer("/", "-", " ", "-", "*", "-").Replace(tb.Name()) + ":"
}

// keys returns all keys that begin with prefix, of all servers.
func keys(ctx context.Context, r *servers.Redis, prefix string) (found []string, err error) {
	for i := range r.Nodes() {
		n := r.Node(i)
		for it := n.Scan(ctx, 0, prefix+"*", 1000).Iterator(); ; {
			if !it.Next(ctx) {
				if it.Err() != nil {
					return nil, it.Err()
				}
				break
			}
			found = append(found, it.Val())
		}
	}
	return found, nil
}

// wipe deletes all keys that begin with prefix.
func wipe(r *servers.Redis, prefix string) {
	ctx := context.Background()
	for i := range r.Nodes() {
		n := r.Node(i)
		for it := n.Scan(ctx, 0, prefix+"*", 1000).Iterator(); it.Next(ctx); {
			_ = n.Del(ctx, it.Val()).Err()
		}
	}
}
