package embedded_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/leasehold/leasehold/etcd"
	"github.com/leasehold/leasehold/integration/embedded"
	"github.com/leasehold/leasehold/lease"
)

// TestLoginStorm: with a password every stream of renewals is a login, which takes
// etcd a tenth of a second. Leases that are all due at once must get through.
func TestLoginStorm(t *testing.T) {
	c := embedded.Start(t, 1)
	admin := c.Client(t)
	if _, err := admin.UserAdd(t.Context(), "root", "secret"); err != nil {
		t.Fatal(err)
	}
	if _, err := admin.UserGrantRole(t.Context(), "root", "root"); err != nil {
		t.Fatal(err)
	}
	if _, err := admin.AuthEnable(t.Context()); err != nil {
		t.Fatal(err)
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: c.Endpoints(), Username: "root", Password: "secret", Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	s := etcd.New(client, "/storm")
	defer s.Close()

	const leases, duration = 32, 5 * time.Second
	var renewed [leases]atomic.Int64
	var all sync.WaitGroup
	for i := range leases {
		l, err := lease.New(s, fmt.Sprint("lease-", i), lease.WithDuration(duration), lease.WithObserver(func(e lease.Event) {
			if e.Kind == lease.EventRenewed {
				renewed[i].Add(1)
			}
		}))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if err := l.Await(t.Context()); err != nil {
			t.Fatal(err)
		}
		all.Go(func() {
			tenure := l.Context()
			for renewed[i].Load() < 3 {
				select {
				case <-tenure.Done():
					t.Errorf("lease %d is lost: %v", i, context.Cause(tenure))
					return
				case <-time.After(20 * time.Millisecond):
				}
			}
		})
	}
	all.Wait()
}

// TestRemovedByHand: a record was deleted under a holder. Those who share the holder
// and try again and again must not keep the tenure alive that nobody has any more.
func TestRemovedByHand(t *testing.T) {
	client := embedded.Start(t, 1).Client(t)
	s := etcd.New(client, "/removed")
	defer s.Close()
	ls := make(map[string]*lease.Lease)
	for _, holder := range []string{"alice", "bob"} {
		l, err := lease.New(s, "job", lease.WithDuration(2*time.Second), lease.WithHolder(lease.Holder(holder)))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ls[holder] = l
	}
	if err := ls["alice"].Acquire(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Delete(t.Context(), "/removed/job"); err != nil {
		t.Fatal(err)
	}
	for began := time.Now(); time.Since(began) < 20*time.Second; {
		if ls["alice"].TryAcquire(t.Context()) || ls["bob"].TryAcquire(t.Context()) {
			return
		}
		time.Sleep(100 * time.Millisecond) // they poll
	}
	t.Error("nobody gets it, though it lasts for 2 s only")
}
