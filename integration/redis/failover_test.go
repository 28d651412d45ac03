package redis_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/integration/internal/scene"
	"github.com/leasehold/leasehold/integration/internal/servers"
	"github.com/leasehold/leasehold/integration/internal/wire"
	"github.com/leasehold/leasehold/lease"
	"github.com/leasehold/leasehold/redis"
)

// guarded is what a lease is for: it accepts no token that is smaller than one it
// has seen.
type guarded struct {
	mu   sync.Mutex
	last uint64
}

func (r *guarded) write(token uint64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if token < r.last {
		return fmt.Errorf("token %d is stale: %d was here", token, r.last)
	}
	r.last = token
	return nil
}

// moving is an address that clients follow.
type moving struct{ addr atomic.Pointer[string] }

func (m *moving) to(addr string) { m.addr.Store(&addr) }

// follow has a client connect to wherever the address is.
func (m *moving) follow(o *goredis.UniversalOptions) {
	o.Dialer = func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, *m.addr.Load())
	}
}

// flock is a primary with one replica, whose link goes over a wire.
type flock struct {
	*ground
	replica *goredis.Client
	link    *wire.Proxy
	at      *moving // the primary
}

func newFlock(t *testing.T) *flock {
	t.Helper()
	g := alone(t, servers.WithReplicas(1), servers.RedisAsProcesses())
	f := &flock{ground: g, replica: g.r.Node(1), link: g.proxy(0), at: new(moving)}
	f.at.to(g.r.Addrs()[0])
	servers.Must(t, g.r.Follow(t.Context(), 1, f.link.Addr()))
	return f
}

// open returns a store of somebody who follows the primary.
func (f *flock) open(opts ...redis.Option) *redis.Store {
	f.Helper()
	return f.openWith(opts, f.at.follow)
}

// cut has the replica miss what is to come.
func (f *flock) cut() {
	f.Helper()
	f.link.Cut()
}

// failOver kills the primary and makes one of the replica.
func (f *flock) failOver() {
	f.Helper()
	servers.Must(f, f.r.Stop(f.Context(), 0))
	servers.Must(f, f.r.Promote(f.Context(), 1))
	f.at.to(f.r.Addrs()[1])
}

// has tells whether the replica knows a tenure.
func (f *flock) has(name string) bool {
	f.Helper()
	n, err := f.replica.Exists(f.Context(), f.aliveKey(name)).Result()
	if err != nil {
		f.Fatal(err)
	}
	return n == 1
}

// TestFailover: a failover that forgets a tenure lets a second holder in. It has a
// greater token, so what is guarded refuses the first, which is told by its next
// renewal or stops at its deadline.
func TestFailover(t *testing.T) {
	t.Parallel()
	const duration = 5 * time.Second
	lossy := func(t *testing.T) (*flock, *guarded, *scene.Tenure) {
		t.Helper()
		f, r := newFlock(t), new(guarded)
		kept := scene.Grant(f, f.open(), scene.Claim("kept", "a", time.Hour))
		scene.Eventually(f, "the replica has it", func() bool { return f.has("kept") })
		f.cut()
		h := scene.Hold(f, scene.Lease(f, f.open(), "job", duration))
		if f.has("job") {
			t.Fatal("the replica has missed nothing")
		}
		if err := r.write(h.Token()); err != nil {
			t.Error(err)
		}
		t.Cleanup(func() {
			// What it had not missed goes on.
			ctx, cancel := context.WithTimeout(context.Background(), scene.Patience)
			defer cancel()
			s := redis.New(client(f, f.r, f.at.follow), f.prefix)
			defer s.Close()
			if again, err := s.Renew(ctx, kept); err != nil || !again.SameTenure(kept) {
				f.Errorf("what the replica had is renewed as %+v, %v", again, err)
			}
		})
		return f, r, h
	}
	second := func(f *flock, r *guarded, h *scene.Tenure) *scene.Tenure {
		f.Helper()
		next := scene.Hold(f, scene.Lease(f, f.open(), "job", duration))
		if next.Grant.Token <= h.Grant.Token {
			f.Errorf("token %d follows %d", next.Grant.Token, h.Grant.Token)
		}
		if err := r.write(next.Token()); err != nil {
			f.Error(err)
		}
		if err := r.write(h.Grant.Token); err == nil {
			f.Error("the stale holder's token is accepted")
		}
		return next
	}
	t.Run("the holder follows", func(t *testing.T) {
		f, r, h := lossy(t)
		f.failOver()
		over := time.Now()
		next := second(f, r, h)
		scene.Await(f, "the stale holder is told", h.Ended)
		after := h.Stopped.Sub(over)
		t.Logf("told %s after the failover, %s after another was let in, with a duration of %s", round(after), round(h.Stopped.Sub(next.Granted)), duration)
		if !errors.Is(h.Cause, lease.ErrTaken) {
			t.Errorf("the tenure ended with %v; want ErrTaken", h.Cause)
		}
		if after > duration*2/3 {
			t.Errorf("told %v after the failover: the next renewal is due after a third of %v", after, duration)
		}
		if err := next.Renew(t.Context()); err != nil || !next.Alive() {
			t.Errorf("the second holder: %v", err)
		}
	})
	t.Run("the holder follows, and nobody else comes", func(t *testing.T) {
		f, _, h := lossy(t)
		f.failOver()
		over := time.Now()
		scene.Await(f, "the stale holder is told", h.Ended)
		if after := h.Stopped.Sub(over); after > duration*2/3 {
			t.Errorf("told %v after the failover: the next renewal is due after a third of %v", after, duration)
		}
		if !errors.Is(h.Cause, backend.ErrLost) {
			t.Errorf("the tenure ended with %v; want ErrLost", h.Cause)
		}
		if f.has("job") {
			t.Error("it was revived")
		}
	})
	t.Run("the holder stays behind", func(t *testing.T) {
		f, r := newFlock(t), new(guarded)
		behind := f.proxy(0)
		f.cut()
		began := time.Now()
		h := scene.Hold(f, scene.Lease(f, f.openWith(nil, via(behind)), "job", duration))
		if err := r.write(h.Token()); err != nil {
			t.Error(err)
		}
		if f.has("job") {
			t.Fatal("the replica has missed nothing")
		}
		behind.BlackHole()
		since := time.Now()
		f.failOver()
		second(f, r, h)
		scene.Await(f, "the stale holder stops", h.Ended)
		if !errors.Is(h.Cause, lease.ErrExpired) {
			t.Errorf("the tenure ended with %v; want ErrExpired", h.Cause)
		}
		if after := h.Stopped.Sub(since); after > duration {
			t.Errorf("it stopped %v after its link was cut, with a duration of %v", after, duration)
		}
		t.Logf("stopped %s after it was granted, with a duration of %s", round(h.Stopped.Sub(began)), duration)
	})
}

// TestFailoverBySentinel is TestFailover with clients that ask Sentinel.
func TestFailoverBySentinel(t *testing.T) {
	const duration = 4 * time.Second
	g := alone(t, servers.WithReplicas(1), servers.WithSentinel())
	var r guarded
	s := g.open()
	kept := scene.Grant(g, s, scene.Claim("kept", "a", time.Hour))
	h := scene.Hold(g, scene.Lease(g, s, "held", time.Minute))
	replica := g.r.Node(1)
	missing := func(name string) bool {
		n, err := replica.Exists(t.Context(), g.aliveKey(name)).Result()
		return err == nil && n == 0
	}
	scene.Eventually(g, "the replica has them", func() bool { return !missing("kept") && !missing("held") })
	// Sentinels see the replica and its primary, which see each other no more.
	g.do("acl", "setuser", "default", "-psync", "-sync")
	g.do("client", "kill", "type", "replica")
	stale := scene.Hold(g, scene.Lease(g, g.open(), "job", duration))
	if err := r.write(stale.Token()); err != nil {
		t.Error(err)
	}
	if !missing("job") {
		t.Fatal("the replica has missed nothing")
	}
	waiter := scene.Blocked(g, g.open(), "job", duration)
	servers.Must(t, g.r.Stop(t.Context(), 0))
	down := time.Now()
	scene.Eventually(g, "the replica is promoted", func() bool { i, err := g.r.Primary(t.Context()); return err == nil && i == 1 })
	promoted := time.Now()
	scene.AwaitFor(g, duration+scene.Patience, "the waiter is granted the lease", waiter.Began)
	if waiter.Grant.Token <= stale.Grant.Token {
		t.Errorf("token %d follows %d", waiter.Grant.Token, stale.Grant.Token)
	}
	if err := r.write(waiter.Token()); err != nil {
		t.Error(err)
	}
	if err := r.write(stale.Grant.Token); err == nil {
		t.Error("the stale holder's token is accepted")
	}
	scene.Await(g, "the stale holder stops", stale.Ended)
	if after := stale.Stopped.Sub(down); after > duration {
		t.Errorf("it stopped %v after the primary was killed, with a duration of %v", after, duration)
	}
	t.Logf("promoted %s after the primary was killed; granted %s after that; the stale holder stopped %s after the primary was killed: %v",
		round(promoted.Sub(down)), round(waiter.Granted.Sub(promoted)), round(stale.Stopped.Sub(down)), stale.Cause)
	// What the replica had goes on.
	scene.Eventually(g, "the clients have followed", func() bool { _, err := s.Get(t.Context(), "kept"); return err == nil })
	scene.Renew(g, s, kept)
	if err := h.Renew(t.Context()); err != nil || !h.Alive() {
		t.Errorf("a tenure that the replica had: %v", err)
	}
}

// TestWithReplicas: whoever wants replicas to have a tenure is granted none that
// they do not have, so a failover forgets none.
func TestWithReplicas(t *testing.T) {
	t.Parallel()
	const (
		duration = 3 * time.Second
		wait     = 300 * time.Millisecond
	)
	t.Run("cut", func(t *testing.T) {
		f := newFlock(t)
		s := f.open(redis.WithReplicas(1, wait))
		rec := scene.Grant(f, s, scene.Claim("before", "a", time.Minute))
		if !f.has("before") {
			t.Error("it was granted, and the replica does not have it")
		}
		rec = scene.Renew(f, s, rec)
		f.cut()
		// One is not to be had, two never were.
		for n, s := range map[int]*redis.Store{1: s, 2: f.open(redis.WithReplicas(2, wait))} {
			began := time.Now()
			_, err := s.Acquire(t.Context(), scene.Claim(fmt.Sprintf("cut-%d", n), "a", duration))
			unknown(t, "acquire", err)
			scene.Mentions(t, err, fmt.Sprintf("0 of %d replicas", n))
			if took := time.Since(began); took < wait || took > wait+2*time.Second {
				t.Errorf("it has waited for %v instead of %v", took, wait)
			}
			_, err = s.Renew(t.Context(), rec)
			unknown(t, "renew", err)
			scene.Mentions(t, err, fmt.Sprintf("0 of %d replicas", n))
		}
		// Many at a time, too: they share connections.
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				_, err := s.Acquire(t.Context(), scene.Claim(fmt.Sprintf("many-%d", i), "a", duration))
				unknown(t, "acquire, one of many", err)
				_, err = s.Renew(t.Context(), rec)
				unknown(t, "renew, one of many", err)
				// Who reads and releases waits for nobody.
				if _, err := s.Get(t.Context(), "before"); err != nil {
					t.Errorf("get: %v", err)
				}
			})
		}
		wg.Wait()
		scene.Release(f, s, rec)
		// A lease is not held either, and what it has left blocks nobody for long.
		l := scene.Lease(f, s, "lease", duration)
		asked := time.Now()
		if err := l.Acquire(t.Context()); err == nil || l.Held() {
			t.Errorf("it is held: %v, %v", err, l.Held())
		} else {
			t.Logf("acquire of a lease: %v, after %s", err, round(time.Since(asked)))
		}
		other := scene.Hold(f, scene.Lease(f, f.open(), "lease", duration))
		if after := other.Granted.Sub(asked); after > 3*duration {
			t.Errorf("free after %v", after)
		}
		f.link.Heal()
		scene.Eventually(f, "the replica is back", func() bool {
			_, err := s.Acquire(t.Context(), scene.Claim("after", "a", time.Minute))
			if err != nil && backend.Definite(err) && !errors.Is(err, backend.ErrHeld) {
				t.Fatal(err)
			}
			return err == nil || errors.Is(err, backend.ErrHeld)
		})
	})
	t.Run("nobody is let in beside the holder", func(t *testing.T) {
		f := newFlock(t)
		var renewals atomic.Int64
		h := scene.Hold(f, scene.Lease(f, f.open(redis.WithReplicas(1, wait)), "job", duration, lease.WithObserver(func(e lease.Event) {
			if e.Kind == lease.EventRenewed {
				renewals.Add(1)
			}
		})))
		scene.Eventually(f, "the holder renews", func() bool { return renewals.Load() > 0 })
		waiter := scene.Blocked(f, f.open(redis.WithReplicas(0, wait)), "job", duration, h.Lease)
		f.cut()
		cut := time.Now()
		// It renews at the primary, and is told that this is not enough.
		n := renewals.Load()
		scene.Await(f, "the holder's context ends", h.Ended)
		if late := renewals.Load() - n; late > 1 {
			t.Errorf("%d renewals succeeded without a replica", late)
		}
		f.failOver()
		scene.Await(f, "the waiter is granted the lease", waiter.Began)
		scene.Follows(f, waiter, h)
		t.Logf("stopped %s after the replica was cut off, passed over %s after it", round(h.Stopped.Sub(cut)), round(waiter.Granted.Sub(cut)))
	})
	t.Run("a cluster without replicas", func(t *testing.T) {
		t.Parallel()
		r := servers.SharedRedisCluster(t)
		if r.Nodes() > 3 {
			t.Skip("the cluster that is given may have replicas")
		}
		s := store(t, r, redis.WithReplicas(1, wait))
		var wg sync.WaitGroup
		for i := range 8 { // of several nodes
			wg.Go(func() {
				claim := scene.Claim(fmt.Sprintf("job-%d", i), "a", time.Minute)
				_, err := s.Acquire(t.Context(), claim)
				unknown(t, "acquire", err)
				scene.Mentions(t, err, "0 of 1 replicas")
				rec, err := s.Get(t.Context(), claim.Name)
				if err != nil || rec.Attempt != claim.Attempt {
					t.Errorf("what was written is %+v, %v", rec, err)
				}
				_, err = s.Renew(t.Context(), rec)
				unknown(t, "renew", err)
			})
		}
		wg.Wait()
	})
}

// TestClusterNode: when a primary of a cluster is killed, the names of the others
// go on, and its own can be had again when it is back, with greater tokens.
func TestClusterNode(t *testing.T) {
	const duration = 3 * time.Second
	// By default a cluster that misses a node serves no names at all.
	g := alone(t, servers.InCluster(), servers.WithRedisFlags("--cluster-require-full-coverage", "no"))
	s := g.open()
	home := make(map[string]int) // the node of each name
	last := make(map[string]backend.Record)
	c := client(g, g.r).(*goredis.ClusterClient)
	var held []*scene.Tenure
	for i := range 24 {
		name := fmt.Sprintf("job-%d", i)
		node, err := c.MasterForKey(t.Context(), g.recordKey(name))
		if err != nil {
			t.Fatal(err)
		}
		for k, addr := range g.r.Addrs() {
			if addr == node.Options().Addr {
				home[name] = k
			}
		}
		h := scene.Hold(g, scene.Lease(g, s, name, duration))
		held = append(held, h)
		last[name] = h.Grant
	}
	const victim = 1
	var theirs, others int
	for _, node := range home {
		if node == victim {
			theirs++
		} else {
			others++
		}
	}
	if theirs == 0 || others == 0 {
		t.Fatalf("the names are spread as %v", home)
	}
	waiters := make(map[int]*scene.Tenure) // one for each node
	for _, h := range held {
		if kind := home[h.Name()]; waiters[kind] == nil {
			waiters[kind] = scene.Blocked(g, g.open(), h.Name(), duration, h.Lease)
		}
	}
	servers.Must(t, g.r.Stop(t.Context(), victim))
	down := time.Now()
	for _, h := range held {
		if home[h.Name()] == victim {
			scene.Await(g, "a holder whose node is down stops", h.Ended)
			if after := h.Stopped.Sub(down); after > duration {
				t.Errorf("it stopped %v after its node was killed, with a duration of %v", after, duration)
			}
		}
	}
	scene.Pass(g, time.Until(down.Add(duration*3/2)))
	for _, h := range held {
		switch {
		case home[h.Name()] == victim:
			call, cancel := context.WithTimeout(t.Context(), time.Second)
			began := time.Now()
			_, err := s.Acquire(call, scene.Claim(h.Name(), "b", duration))
			cancel()
			unknown(t, "acquire of a name whose node is down", err)
			if took := time.Since(began); took > 3*time.Second {
				t.Errorf("it took %v with a context of a second", took)
			}
		case !h.Alive():
			t.Errorf("%q, whose node is up: %v", h.Name(), context.Cause(h.Context()))
		}
	}
	// Hands are changed, too, and others begin.
	for _, h := range held {
		if w := waiters[home[h.Name()]]; home[h.Name()] != victim && h.Name() == w.Name() {
			h.Leave()
			left := time.Now()
			scene.Await(g, "the waiter is granted the lease", w.Began)
			scene.Follows(g, w, h)
			t.Logf("granted %s after the holder left, with a node down", round(w.Granted.Sub(left)))
		}
	}
	servers.Must(t, g.r.Start(t.Context(), victim))
	servers.Must(t, g.r.Ready(t.Context()))
	up := time.Now()
	scene.AwaitFor(g, 2*scene.Patience, "who waits for a name of the node is granted it", waiters[victim].Began)
	t.Logf("granted %s after the node was back", round(waiters[victim].Granted.Sub(up)))
	for name, node := range home {
		if node != victim {
			continue
		}
		rec := waiters[victim].Grant
		if name != rec.Name {
			rec = scene.Grant(g, s, scene.Claim(name, "b", duration))
		}
		if rec.Token <= last[name].Token {
			t.Errorf("token %d follows %d", rec.Token, last[name].Token)
		}
	}
}

// TestTokensRise: through release, expiry, force, all that is forgotten, restarts
// and failovers, each token is greater than the last.
func TestTokensRise(t *testing.T) {
	const duration = 100 * time.Millisecond
	f := newFlock(t)
	s := f.open()
	var last uint64
	grant := func(after string, c backend.Claim) backend.Record {
		t.Helper()
		rec := scene.Grant(f, s, c)
		if rec.Token <= last {
			t.Errorf("after %s token %d follows %d", after, rec.Token, last)
		}
		if now := scene.Get(f, s, c.Name); now.Token != rec.Token {
			t.Errorf("after %s token %d was granted, and there is %d", after, rec.Token, now.Token)
		}
		last = rec.Token
		return rec
	}
	claim := func(d time.Duration) backend.Claim { return scene.Claim("job", "a", d) }
	rec := grant("nothing", claim(time.Minute))
	scene.Release(f, s, rec)
	grant("a release", claim(duration))
	expires := func() {
		t.Helper()
		scene.Eventually(f, "it expires", func() bool { return !f.exists(f.aliveKey("job")) })
	}
	expires()
	rec = grant("expiry", claim(time.Minute))
	over := claim(duration)
	over.Over, over.Holder = rec.Revision, "b"
	grant("force", over)
	expires()
	// The record too is forgotten, as after the retention.
	f.do("del", f.recordKey("job"))
	grant("the retention", claim(time.Minute))
	f.do("flushall")
	grant("flushall", claim(time.Minute))
	servers.Must(t, f.r.Stop(t.Context(), 0))
	servers.Must(t, f.r.Start(t.Context(), 0))
	servers.Must(t, f.r.ReadyAt(t.Context(), 0))
	grant("a restart without persistence", claim(time.Minute))
	scene.Eventually(f, "the replica has it", func() bool { return f.has("job") })
	f.cut()
	f.do("del", f.aliveKey("job"))
	grant("what the replica missed", claim(time.Minute))
	f.failOver()
	// It knows the tenure before, which is in force there.
	found := scene.Get(f, s, "job")
	if !found.Live() || found.Token >= last {
		t.Errorf("after the failover there is %+v", found)
	}
	over = claim(time.Minute)
	over.Over, over.Holder = found.Revision, "c"
	rec = grant("a failover that has forgotten the last", over)
	scene.Release(f, s, rec)
	grant("another release", claim(time.Minute))
}
