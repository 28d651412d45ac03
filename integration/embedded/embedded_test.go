package embedded

import (
	"context"
	"fmt"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

func TestCluster(t *testing.T) {
	for _, members := range []int{1, 3} {
		t.Run(fmt.Sprint(members), func(t *testing.T) {
			start := time.Now()
			c := Start(t, members)
			t.Logf("ready after %v", time.Since(start))
			if len(c.Endpoints()) != members {
				t.Errorf("%d endpoints", len(c.Endpoints()))
			}
			client := c.Client(t)
			put(t, client, "1")
			get(t, client, "1")

			// This is what the short ticks are for.
			lease, err := client.Grant(t.Context(), 1)
			if err != nil || lease.TTL != 1 {
				t.Errorf("a lease of 1 s: %+v, %v", lease, err)
			}
			if members == 1 {
				return
			}

			old := leader(t, c, -1)
			start = time.Now()
			c.HardStop(old)
			leader(t, c, old)
			put(t, client, "2")
			t.Logf("a leader was stopped: written again after %v", time.Since(start))
			get(t, client, "2")
		})
	}
}

// leader waits for one that is not old.
func leader(t *testing.T, c *Cluster, old int) int {
	t.Helper()
	for deadline := time.Now().Add(readyTime); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if l := c.Leader(); l >= 0 && l != old {
			return l
		}
	}
	t.Fatalf("there is no leader but %d", old)
	return -1
}

// put tries until it is done: an attempt may meet a member that has just
// stopped, or wait for an answer that never comes.
func put(t *testing.T, client *clientv3.Client, value string) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(readyTime); time.Now().Before(deadline); {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		_, err = client.Put(ctx, "key", value)
		cancel()
		if err == nil {
			return
		}
	}
	t.Fatal(err)
}

func get(t *testing.T, client *clientv3.Client, want string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), readyTime)
	defer cancel()
	r, err := client.Get(ctx, "key")
	if err != nil || len(r.Kvs) != 1 || string(r.Kvs[0].Value) != want {
		t.Fatalf("got %v, %v, want %q", r, err, want)
	}
}
