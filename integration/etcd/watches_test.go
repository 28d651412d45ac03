package etcd_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/etcd"
	"github.com/leasehold/leasehold/integration/internal/servers"
	"github.com/leasehold/leasehold/integration/internal/wire"
)

// TestManyWatches: they begin one after the other on a stream, a round trip each. None
// may take waiting for its turn for a stream that has died, and chase the others away.
func TestManyWatches(t *testing.T) {
	e := servers.SharedEtcd(t)
	p, err := wire.New(strings.TrimPrefix(e.Endpoints()[0], "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	p.Delay(10 * time.Millisecond)
	s := etcd.New(client(t, e, func(c *clientv3.Config) { c.Endpoints = []string{p.Addr()} }), prefix(t))
	defer s.Close()
	near := store(t, e)
	ctx, cancel := context.WithCancel(t.Context())
	const watches = 1000
	var first, second, all sync.WaitGroup
	first.Add(watches)
	second.Add(watches)
	for i := range watches {
		all.Go(func() {
			n := 0
			for _, err := range s.Watch(ctx, fmt.Sprint("job-", i)) {
				if err != nil {
					t.Error(err)
				}
				switch n++; n {
				case 1:
					first.Done()
				case 2:
					second.Done()
				case 3:
					t.Errorf("watch %d was told three times of one change", i)
				}
			}
		})
	}
	first.Wait()
	began := time.Now()
	for i := range watches {
		if _, err := near.Acquire(t.Context(), backend.Claim{Name: fmt.Sprint("job-", i), Holder: "alice", Attempt: fmt.Sprint(i), Duration: time.Minute}); err != nil {
			t.Fatal(err)
		}
	}
	second.Wait()
	t.Logf("%d changes were told within %v", watches, time.Since(began))
	cancel()
	all.Wait()
}
