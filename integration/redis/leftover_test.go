package redis_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/leasehold/leasehold/integration/internal/scene"
	"github.com/leasehold/leasehold/integration/internal/servers"
	"github.com/leasehold/leasehold/integration/internal/wire"
	"github.com/leasehold/leasehold/internal/wait"
	"github.com/leasehold/leasehold/lease"
	"github.com/leasehold/leasehold/redis"
)

// byItself is a ground on a server of its own, beside which no other test runs.
func byItself(t *testing.T, opts ...servers.RedisOption) *ground {
	t.Helper()
	return groundOn(t, mine(t, opts...))
}

// settles waits until a count is what it should be, and says what is if it never is.
func (g *ground) settles(d time.Duration, what string, want int, count func() int) {
	g.Helper()
	began := time.Now()
	last := -1
	for time.Since(began) < d {
		if last = count(); last <= want {
			g.Logf("%s: %d, %s after the end", what, last, round(time.Since(began)))
			return
		}
		scene.Pass(g, 20*time.Millisecond)
	}
	g.Errorf("%s: still %d after %v; want %d", what, last, d, want)
}

// stacks is what all goroutines are doing.
func stacks() string {
	var b strings.Builder
	_ = pprof.Lookup("goroutine").WriteTo(&b, 1)
	return b.String()
}

// busy is how many goroutines are in the code of Leasehold.
func busy() (n int) {
	for stack := range strings.SplitSeq(stacks(), "\n\n") {
		if strings.Contains(stack, "leasehold/leasehold/redis.") || strings.Contains(stack, "leasehold/leasehold/lease.") {
			alike, _, _ := strings.Cut(strings.TrimSpace(stack), " ")
			k, _ := strconv.Atoi(alike)
			n += k
		}
	}
	return n
}

// keys are all those of the ground.
func (g *ground) keys() []string {
	g.Helper()
	found, err := keys(g.Context(), g.r, g.prefix)
	if err != nil {
		g.Fatal(err)
	}
	return found
}

// channels is how many channels somebody listens to.
func (g *ground) channels() int {
	g.Helper()
	all, err := g.plain.PubSubShardChannels(g.Context(), "*").Result()
	if err != nil {
		g.Fatal(err)
	}
	return len(all)
}

// connections is how many listen or have listened.
func (g *ground) connections() int {
	g.Helper()
	list, _ := g.do("client", "list", "type", "pubsub").(string)
	return strings.Count(list, "id=")
}

// TestLeftovers: after thousands of tenures through wires that fail, nothing is
// left of them but last tokens, and of these nothing after the retention: no key, no
// subscription, no goroutine.
func TestLeftovers(t *testing.T) {
	const (
		cycles    = 2000
		workers   = 16
		names     = 200
		duration  = 2 * time.Second
		retention = 2 * time.Second
	)
	g := byItself(t)
	idle := runtime.NumGoroutine()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)

	var done, failed, faults atomic.Int64
	var mu sync.Mutex
	why := make(map[string]int)
	var wg, finish sync.WaitGroup
	var stores []*redis.Store
	var closers []func()
	began := time.Now()
	for i := range workers {
		p, err := wire.New(g.r.Addrs()[0])
		if err != nil {
			t.Fatal(err)
		}
		o := g.r.Options()
		via(p)(o)
		o.ReadTimeout = 300 * time.Millisecond
		o.ContextTimeoutEnabled = i%2 == 0
		c := goredis.NewUniversalClient(o)
		s := redis.New(c, g.prefix, redis.WithRetention(retention))
		stores = append(stores, s)
		closers = append(closers, func() { c.Close(); p.Close() })
		random := rand.New(rand.NewPCG(seed, uint64(i)))
		wg.Go(func() {
			for n := 0; done.Load() < cycles && t.Context().Err() == nil; n++ {
				// Some are alone with their names, some meet.
				name := fmt.Sprintf("job-%d-%d", i, random.IntN(names/workers))
				if random.IntN(4) == 0 {
					name = fmt.Sprintf("shared-%d", random.IntN(4))
				}
				l, err := lease.New(s, name, lease.WithDuration(duration))
				if err != nil {
					t.Error(err)
					return
				}
				ctx, cancel := context.WithTimeout(t.Context(), scene.Patience)
				if err = l.Await(ctx); err == nil {
					if err = l.Release(ctx); err == nil {
						done.Add(1)
					}
				}
				cancel()
				l.Close()
				if err != nil {
					failed.Add(1)
					mu.Lock()
					why[kind(err)]++
					mu.Unlock()
				}
			}
		})
		faulty := rand.New(rand.NewPCG(seed, uint64(workers+i)))
		finish.Go(func() {
			defer reset(p)
			for done.Load() < cycles && wait.For(t.Context(), time.Duration(200+faulty.IntN(600))*time.Millisecond) {
				faults.Add(1)
				switch faulty.IntN(3) {
				case 0:
					p.Cut()
				case 1:
					p.DropReplies()
				case 2:
					p.BlackHole()
				}
				wait.For(t.Context(), time.Duration(faulty.IntN(100))*time.Millisecond)
				reset(p)
			}
		})
	}
	finished := make(chan struct{})
	go func() {
		wg.Wait()
		finish.Wait()
		close(finished)
	}()
	scene.AwaitFor(t, 2*time.Minute, fmt.Sprintf("%d tenures", cycles), finished)
	ended := time.Now()
	t.Logf("%d tenures, %d failures, %d faults of the wire in %s", done.Load(), failed.Load(), faults.Load(), round(time.Since(began)))
	for k, n := range why {
		t.Logf("%6d: %s", n, k)
	}

	// Leases and watches are over, stores and clients are not.
	g.settles(scene.Patience, "channels", 0, g.channels)
	g.settles(scene.Patience, "connections that listen", 0, g.connections)
	g.settles(scene.Patience, "goroutines of Leasehold while clients are open", 0, busy)
	g.settles(duration+time.Second, "tenures", 0, func() (n int) {
		for _, key := range g.keys() {
			if strings.HasSuffix(key, ":alive") {
				n++
			}
		}
		return n
	})
	left := g.keys()
	for _, key := range left {
		if ttl := g.left(key); ttl < 0 || ttl > retention+duration {
			t.Errorf("%s is kept for %v: %v", key, ttl, g.do("hgetall", key))
		}
	}
	t.Logf("%d last tokens are left %s after the end", len(left), round(time.Since(ended)))
	g.settles(retention+duration+time.Second, "keys", 0, func() int { return len(g.keys()) })
	for _, s := range stores {
		s.Close()
	}
	for _, f := range closers {
		f()
	}
	g.settles(scene.Patience, "goroutines", idle, runtime.NumGoroutine)
	if t.Failed() {
		t.Log(stacks())
	}
}

// kind is what an error is about, without what differs each time.
func kind(err error) string {
	var acquisition *lease.AcquisitionError
	var relinquishment *lease.RelinquishmentError
	switch {
	case errors.As(err, &acquisition):
		return acquisition.Op
	case errors.As(err, &relinquishment):
		return relinquishment.Op
	}
	return err.Error()
}

// TestRemainders: what outlives a tenure, by how it ended, and for how long.
func TestRemainders(t *testing.T) {
	const (
		retention = time.Second
		short     = 50 * time.Millisecond
		later     = 100 * time.Second // than the retention, at most, is what was released kept
		never     = -time.Millisecond
	)
	g := enter(t)
	s := g.openWith([]redis.Option{redis.WithRetention(retention)})
	for _, c := range []struct {
		name     string
		duration time.Duration
		floor    uint64
		release  bool
		kept     time.Duration // at most
	}{
		{"released", 3 * time.Second, 0, true, retention + 3*time.Second},
		{"released of a minute", time.Minute, 0, true, retention + later},
		{"released of an hour", time.Hour, 0, true, retention},
		{"expires", short, 0, false, retention + short},
		{"floor, released", time.Minute, 5, true, never},
		{"floor, expires", short, 5, false, never},
	} {
		claim := scene.Claim(c.name, "a", c.duration)
		claim.MinToken = c.floor
		rec := scene.Grant(g, s, claim)
		if c.release {
			scene.Release(g, s, scene.Renew(g, s, rec))
		}
		if ttl := g.left(g.recordKey(c.name)); c.kept == never && ttl != never || c.kept != never && (ttl <= 0 || ttl > c.kept) {
			t.Errorf("%s: kept for %v; want %v", c.name, ttl, c.kept)
		}
	}
	scene.EventuallyFor(g, retention+3*time.Second+scene.Patience, "last tokens are forgotten", func() bool {
		return !g.exists(g.recordKey("released")) && !g.exists(g.recordKey("released of an hour")) && !g.exists(g.recordKey("expires"))
	})
	for _, name := range []string{"floor, released", "floor, expires"} {
		if !g.exists(g.recordKey(name)) || g.exists(g.aliveKey(name)) {
			t.Errorf("%s: the floor is forgotten, or it is alive", name)
		}
	}
}

// TestCancelledWaiters: those who stop waiting leave nothing.
func TestCancelledWaiters(t *testing.T) {
	const waiters = 200
	g := byItself(t)
	h := scene.Hold(g, scene.Lease(g, g.open(), "job", 10*time.Second))
	scene.Eventually(g, "the holder listens", func() bool { return g.listeners("job") == 1 })
	var stores []*redis.Store
	for range 4 {
		s := g.open()
		scene.Get(g, s, "job")
		stores = append(stores, s)
	}
	_ = g.connections() // with the connection it needs
	idle := runtime.NumGoroutine()

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	results := make(chan error, waiters)
	var blocked atomic.Int64
	for i := range waiters {
		var once sync.Once
		l := scene.Lease(g, stores[i%len(stores)], "job", 10*time.Second, lease.WithObserver(func(e lease.Event) {
			if e.Kind == lease.EventBlocked {
				once.Do(func() { blocked.Add(1) })
			}
		}))
		go func() { results <- l.Await(ctx) }()
	}
	scene.Eventually(g, "all of them wait", func() bool { return blocked.Load() == waiters })
	scene.Eventually(g, "they listen", func() bool { return g.listeners("job") == 1+len(stores) })
	// All of a store share a connection.
	if n := g.connections(); n != 1+len(stores) {
		t.Errorf("%d connections listen for %d stores", n, 1+len(stores))
	}
	cancel()
	for range waiters {
		if err := scene.Await(g, "a cancelled waiter returns", results); !errors.Is(err, context.Canceled) {
			t.Errorf("a cancelled waiter: %v", err)
		}
	}
	g.settles(scene.Patience, "connections that listen", 1, g.connections)
	g.settles(scene.Patience, "subscriptions", 1, func() int { return g.listeners("job") })
	if k := g.keys(); len(k) != 2 {
		t.Errorf("there are the keys %q; want the holder's two", k)
	}
	// The clients may keep the connections that they needed, each with nothing to do.
	g.settles(scene.Patience, "goroutines", idle, runtime.NumGoroutine)
	if t.Failed() {
		t.Log(stacks())
	}
	if !h.Alive() {
		t.Errorf("the holder: %v", context.Cause(h.Context()))
	}
	// Nobody is let in who has gone.
	h.Leave()
	if err := scene.Await(g, "Run returns", h.Result); err != nil {
		t.Error(err)
	}
	if g.exists(g.aliveKey("job")) {
		t.Error("somebody who has gone was let in")
	}
	g.settles(scene.Patience, "channels after the release", 0, g.channels)
}

// TestCrowd: of many waiters each gets a turn, one at a time, and a release does
// not have all of them come running.
func TestCrowd(t *testing.T) {
	const (
		waiters  = 256
		clients  = 4
		duration = 20 * time.Second
	)
	g := byItself(t)
	var stores []*redis.Store
	for range clients {
		stores = append(stores, g.open())
	}
	h := scene.Hold(g, scene.Lease(g, g.open(), "job", duration))
	var told sync.WaitGroup
	results := make(chan error, waiters)
	var mu sync.Mutex
	inside, last, turns := h.Lease, h.Token(), 0
	for i := range waiters {
		told.Add(1)
		var once sync.Once
		l := scene.Lease(g, stores[i%clients], "job", duration, lease.WithObserver(func(e lease.Event) {
			if e.Kind == lease.EventBlocked {
				once.Do(told.Done)
			}
		}))
		go func() {
			err := l.Await(t.Context())
			if err == nil {
				mu.Lock()
				// By one clock: who holds it now holds it beside us.
				if inside.Held() && l.Held() {
					t.Errorf("%q and %q hold it at once", inside.Holder(), l.Holder())
				}
				if l.Token() <= last {
					t.Errorf("token %d follows %d", l.Token(), last)
				}
				inside, last = l, l.Token()
				turns++
				mu.Unlock()
				wait.For(t.Context(), time.Millisecond)
				err = l.Release(t.Context())
			}
			results <- err
		}()
	}
	all := make(chan struct{})
	go func() { told.Wait(); close(all) }()
	scene.Await(g, "all wait", all)
	scene.Eventually(g, "they listen", func() bool { return g.listeners("job") == 1+clients })
	g.do("config", "resetstat")
	began := time.Now()
	h.Leave()
	for range waiters {
		if err := scene.AwaitFor(g, 2*scene.Patience, "everybody gets a turn", results); err != nil {
			t.Error(err)
		}
	}
	took := time.Since(began)
	calls := g.calls()
	scripts := calls["evalsha"] + calls["eval"]
	t.Logf("%d turns within %s, %s each; %.1f scripts a turn, of which %.1f have tried to acquire in vain; all commands: %v",
		turns, round(took), (took / waiters).Round(10*time.Microsecond), float64(scripts)/waiters, float64(scripts-2*waiters)/waiters, calls)
	if turns != waiters {
		t.Errorf("%d turns of %d", turns, waiters)
	}
	// An acquire and a release each; of each client a few may look or try, not all.
	if limit := waiters * (2 + 8*clients); scripts > limit {
		t.Errorf("%d scripts for %d turns: they all come running", scripts, waiters)
	}
}

// calls is how often each command was called.
func (g *ground) calls() map[string]int {
	g.Helper()
	text, err := g.plain.Info(g.Context(), "commandstats").Result()
	if err != nil {
		g.Fatal(err)
	}
	calls := make(map[string]int)
	for line := range strings.Lines(text) {
		if name, ok := strings.CutPrefix(line, "cmdstat_"); ok {
			name, rest, _ := strings.Cut(name, ":calls=")
			n, _, _ := strings.Cut(rest, ",")
			calls[name], _ = strconv.Atoi(n)
		}
	}
	return calls
}
