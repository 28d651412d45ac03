package etcd_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"runtime"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/leasehold/leasehold/etcd"
	"github.com/leasehold/leasehold/integration/internal/scene"
	"github.com/leasehold/leasehold/integration/internal/servers"
	"github.com/leasehold/leasehold/integration/internal/wire"
	"github.com/leasehold/leasehold/internal/wait"
	"github.com/leasehold/leasehold/lease"
)

// alone is a room with an etcd of its own, beside which no other test runs.
func alone(t *testing.T) *room {
	t.Helper()
	if os.Getenv("LEASEHOLD_TEST_ETCD_ENDPOINTS") != "" {
		t.Skip("counts what is left in an etcd that nobody else uses, which a given one may not be")
	}
	return roomOn(t, servers.OwnEtcd(t))
}

// metrics reads what a member says of itself, summed over labels.
func (r *room) metrics() map[string]float64 {
	r.Helper()
	req, err := http.NewRequestWithContext(r.Context(), http.MethodGet, r.e.Endpoints()[0]+"/metrics", nil)
	if err != nil {
		r.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		r.Fatal(err)
	}
	defer resp.Body.Close()
	all := make(map[string]float64)
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		series, value, ok := strings.Cut(lines.Text(), " ")
		if !ok || strings.HasPrefix(series, "#") {
			continue
		}
		// Of requests only streams are told apart.
		name, labels, _ := strings.Cut(series, "{")
		if strings.HasPrefix(name, "grpc_server_") && !strings.Contains(labels, `grpc_type="bidi_stream"`) {
			continue
		}
		if v, err := strconv.ParseFloat(value, 64); err == nil {
			all[name] += v
		}
	}
	return all
}

// streams is how many streams clients have open, and how many watches run on them.
func (r *room) streams() (streams, watches int) {
	r.Helper()
	m := r.metrics()
	const watchers = "etcd_debugging_mvcc_watcher_total"
	for _, known := range []string{"grpc_server_started_total", "grpc_server_handled_total", watchers} {
		if _, ok := m[known]; !ok {
			r.Fatalf("this etcd does not tell %s", known)
		}
	}
	return int(m["grpc_server_started_total"] - m["grpc_server_handled_total"]), int(m[watchers])
}

func (r *room) etcdLeases() int {
	r.Helper()
	resp, err := r.plain.Leases(r.Context())
	if err != nil {
		r.Fatal(err)
	}
	return len(resp.Leases)
}

func (r *room) keys() int {
	r.Helper()
	resp, err := r.plain.Get(r.Context(), r.prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		r.Fatal(err)
	}
	return int(resp.Count)
}

// settles waits until a count is what it should be, and says what is if it never is.
func (r *room) settles(d time.Duration, what string, want int, count func() int) {
	r.Helper()
	began := time.Now()
	last := -1
	for time.Since(began) < d {
		if last = count(); last <= want {
			r.Logf("%s: %d, %s after the end", what, last, ms(time.Since(began)))
			return
		}
		scene.Pass(r, 20*time.Millisecond)
	}
	r.Errorf("%s: still %d after %v; want %d", what, last, d, want)
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
		if strings.Contains(stack, "leasehold/leasehold/etcd.") || strings.Contains(stack, "leasehold/leasehold/lease.") {
			alike, _, _ := strings.Cut(strings.TrimSpace(stack), " ")
			k, _ := strconv.Atoi(alike)
			n += k
		}
	}
	return n
}

// TestLeftovers: after thousands of tenures through wires that fail, nothing is
// left of them: no key, no etcd lease, no stream, no goroutine.
func TestLeftovers(t *testing.T) {
	const (
		cycles   = 10_000
		workers  = 16
		duration = 3 * time.Second
	)
	r := alone(t)
	if n := r.etcdLeases(); n != 0 {
		t.Fatalf("a new etcd has %d leases", n)
	}
	openStreams, _ := r.streams()
	idle := runtime.NumGoroutine()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)

	var done, failed, faults atomic.Int64
	var mu sync.Mutex
	why := make(map[string]int)
	var wg, finish sync.WaitGroup
	var stores []*etcd.Store
	var closers []func()
	began := time.Now()
	for i := range workers {
		p, err := wire.New(strings.TrimPrefix(r.e.Endpoints()[0], "http://"))
		if err != nil {
			t.Fatal(err)
		}
		cfg := r.e.Config()
		attentive(&cfg)
		via(p)(&cfg)
		c, err := clientv3.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		s := etcd.New(c, r.prefix)
		stores = append(stores, s)
		closers = append(closers, func() { c.Close(); p.Close() })
		// For some names there are two, which wait for each other.
		name := i
		if i >= workers-4 {
			name -= i % 2
		}
		l := scene.Lease(r, s, fmt.Sprintf("job-%d", name), duration)
		random := rand.New(rand.NewPCG(seed, uint64(i)))
		wg.Go(func() {
			for n := 0; done.Load() < cycles && t.Context().Err() == nil; n++ {
				ctx, cancel := context.WithTimeout(t.Context(), scene.Patience)
				err := l.Await(ctx)
				if err == nil {
					if lost := l.Release(ctx); lost == nil {
						done.Add(1)
					} else {
						err = lost
					}
				}
				cancel()
				if err != nil {
					failed.Add(1)
					mu.Lock()
					why[kind(err)]++
					mu.Unlock()
				}
			}
			l.Close()
		})
		finish.Go(func() {
			defer reset(p)
			for done.Load() < cycles && wait.For(t.Context(), time.Duration(500+random.IntN(1500))*time.Millisecond) {
				faults.Add(1)
				switch random.IntN(3) {
				case 0:
					p.Cut()
				case 1:
					p.DropReplies()
				case 2:
					p.BlackHole()
				}
				wait.For(t.Context(), time.Duration(random.IntN(100))*time.Millisecond)
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
	scene.AwaitFor(r, 4*time.Minute, fmt.Sprintf("%d tenures", cycles), finished)
	t.Logf("%d tenures, %d failures, %d faults of the wire in %s", done.Load(), failed.Load(), faults.Load(), ms(time.Since(began)))
	for k, n := range why {
		t.Logf("%6d: %s", n, k)
	}

	// Leases and watches are over, the clients are not.
	r.settles(scene.Patience, "goroutines of Leasehold while clients are open", 0, busy)
	r.settles(duration+5*time.Second, "etcd leases", 0, r.etcdLeases) // some are kept for as long as they last
	for _, s := range stores {
		s.Close()
	}
	// The record of a grant that nobody was told of stays for people to see, expired.
	var left []string
	for rec, err := range etcd.New(r.plain, r.prefix).List(t.Context(), "") {
		if err != nil || rec.Live() {
			t.Errorf("it is left: %+v, %v", rec, err)
		}
		left = append(left, rec.Name)
	}
	t.Logf("%d expired records are left: %q", len(left), left)
	r.settles(scene.Patience, "watches while clients are open", 0, func() int { _, n := r.streams(); return n })
	// Of a watch that was given up before it had begun etcd's client keeps the stream.
	// There is one at most: the next watch of the store is put on it.
	r.settles(scene.Patience, "streams while clients are open", openStreams+len(stores), func() int { n, _ := r.streams(); return n })
	for _, f := range closers {
		f()
	}
	http.DefaultClient.CloseIdleConnections()
	r.settles(scene.Patience, "goroutines", idle, runtime.NumGoroutine)
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

// TestCancelledWaiters: those who stop waiting leave nothing.
func TestCancelledWaiters(t *testing.T) {
	const waiters = 200
	r := alone(t)
	// It renews often, so that the stream it does that on is kept.
	h := scene.Hold(r, scene.Lease(r, r.open(), "job", 10*time.Second, lease.WithRenewInterval(time.Second)))
	scene.Eventually(r, "the holder watches, and renews", func() bool { streams, watches := r.streams(); return watches == 1 && streams == 2 })
	var stores []*etcd.Store
	for range 4 {
		s := r.open()
		if _, err := s.Get(t.Context(), "job"); err != nil {
			t.Fatal(err)
		}
		stores = append(stores, s)
	}
	openStreams, _ := r.streams()
	idle := runtime.NumGoroutine()

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	results := make(chan error, waiters)
	for i := range waiters {
		l := scene.Lease(r, stores[i%len(stores)], "job", 10*time.Second)
		go func() { results <- l.Await(ctx) }()
	}
	scene.Eventually(r, "all of them watch", func() bool { _, n := r.streams(); return n > waiters })
	cancel()
	for range waiters {
		if err := scene.Await(r, "a cancelled waiter returns", results); !errors.Is(err, context.Canceled) {
			t.Errorf("a cancelled waiter: %v", err)
		}
	}
	r.settles(scene.Patience, "watches", 1, func() int { _, n := r.streams(); return n })
	r.settles(scene.Patience, "streams", openStreams+len(stores), func() int { n, _ := r.streams(); return n })
	r.settles(scene.Patience, "etcd leases", 1, r.etcdLeases)
	if n := r.keys(); n != 2 {
		t.Errorf("there are %d keys; want the holder's two", n)
	}
	http.DefaultClient.CloseIdleConnections()
	r.settles(scene.Patience, "goroutines", idle, runtime.NumGoroutine)
	if t.Failed() {
		t.Log(stacks())
	}
	if !h.Alive() {
		t.Errorf("the holder: %v", context.Cause(h.Context()))
	}
	// Nobody is let in who has gone.
	h.Leave()
	if err := scene.Await(r, "Run returns", h.Result); err != nil {
		t.Error(err)
	}
	r.settles(scene.Patience, "keys after the release", 0, r.keys)
	r.settles(scene.Patience, "etcd leases after the release", 0, r.etcdLeases)
}

// TestCrowd: of many waiters each gets a turn, one at a time.
func TestCrowd(t *testing.T) {
	const (
		waiters  = 64
		duration = 10 * time.Second
	)
	r := enter(t)
	h := scene.Hold(r, scene.Lease(r, r.open(), "job", duration))
	var x exclusion
	x.enter(h.Lease)
	var told sync.WaitGroup
	results := make(chan error, waiters)
	for range waiters {
		told.Add(1)
		var once sync.Once
		l := scene.Lease(r, r.open(), "job", duration, lease.WithObserver(func(e lease.Event) {
			if e.Kind == lease.EventBlocked {
				once.Do(told.Done)
			}
		}))
		go func() {
			err := l.Await(t.Context())
			if err == nil {
				if !x.enter(l) {
					err = fmt.Errorf("granted and lost: %w", context.Cause(l.Context()))
				}
				wait.For(t.Context(), 2*time.Millisecond)
				x.leave(l)
				err = errors.Join(err, l.Release(t.Context()))
			}
			results <- err
		}()
	}
	all := make(chan struct{})
	go func() { told.Wait(); close(all) }()
	scene.Await(r, "all wait", all)
	began := time.Now()
	x.leave(h.Lease)
	h.Leave()
	for range waiters {
		if err := scene.AwaitFor(r, 2*scene.Patience, "everybody gets a turn", results); err != nil {
			t.Error(err)
		}
	}
	t.Logf("%d turns within %s", waiters, ms(time.Since(began)))
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, w := range x.wrong {
		t.Error(w)
	}
	if len(x.begun) != waiters+1 {
		t.Errorf("%d tenures of %d", len(x.begun), waiters+1)
	}
}
