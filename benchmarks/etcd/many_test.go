//go:build unix

package etcd_test

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/client/v3/concurrency"
	"golang.org/x/sync/errgroup"

	"github.com/leasehold/leasehold/benchmarks/internal/measure"
	"github.com/leasehold/leasehold/etcd"
	"github.com/leasehold/leasehold/lease"
)

// many holds a number of names in one process.
type many interface {
	acquire(ctx context.Context, i int) error // returns when it is held
	release(ctx context.Context, i int) error
	figures() []measure.Figure // of the time since reset
	reset()
}

// BenchmarkEtcdManyLeases holds ten thousand leases in one process, through one
// store, for a minute: by Acquire, by Run, which also watches each, and by
// concurrency's Mutex on as many sessions.
func BenchmarkEtcdManyLeases(b *testing.B) {
	number, window := 10_000, time.Minute
	if testing.Short() {
		number, window = 1000, 12*time.Second
	}
	p := newPlace(b)
	hold := func(name string, w *wire, m many) { measure.Report(b, name, holdMany(b, w, m, number, window)...) }
	for _, run := range []bool{false, true} {
		w, name := p.client(b), "acquire"
		if run {
			name = "run"
		}
		ls := newLeases(w, p.prefix+name, number, run)
		hold(name, w, ls)
		ls.close()
	}
	w := p.client(b)
	hold("sessions", w, &sessions{wire: w, prefix: p.prefix + "sessions-", held: make([]*session, number)})
}

func holdMany(b *testing.B, w *wire, m many, number int, window time.Duration) []measure.Figure {
	b.Helper()
	const (
		inFlight = 64 // of the first acquires, and of the releases
		settle   = leaseDuration
	)
	ctx := b.Context()
	each := func(do func(ctx context.Context, i int) error) time.Duration {
		start := time.Now()
		group, ctx := errgroup.WithContext(ctx)
		group.SetLimit(inFlight)
		for i := range number {
			group.Go(func() error { return do(ctx, i) })
		}
		if err := group.Wait(); err != nil {
			b.Fatal(err)
		}
		return time.Since(start)
	}
	before := measure.Memory()
	acquired := each(m.acquire)
	if err := measure.Sleep(ctx, settle); err != nil {
		b.Fatal(err)
	}
	memory := measure.Memory()
	m.reset()
	used, sent := measure.CPU(), w.requests.Load()
	serverUsed, _ := cluster.CPU()
	var goroutines []int
	start := time.Now()
	for time.Since(start) < window {
		if err := measure.Sleep(ctx, 100*time.Millisecond); err != nil {
			b.Fatal(err)
		}
		goroutines = append(goroutines, runtime.NumGoroutine())
	}
	took := time.Since(start).Seconds()
	slices.Sort(goroutines)
	figures := append(m.figures(),
		measure.Of((measure.CPU()-used).Seconds()/took, "cores"),
		measure.Of(float64(w.requests.Load()-sent)/took, "req_per_s"),
		measure.Of(goroutines[len(goroutines)/2], "median_goroutines"),
		measure.Of(goroutines[len(goroutines)-1], "most_goroutines"),
		measure.Of((float64(memory)-float64(before))/float64(number), "bytes_per_lease"),
		measure.Of(acquired.Seconds(), "acquire_all_s"),
	)
	if now, ok := cluster.CPU(); ok {
		figures = append(figures, measure.Of((now-serverUsed).Seconds()/took, "etcd_cores"))
	}
	return append(figures, measure.Of(each(m.release).Seconds(), "release_all_s"))
}

// leases are ours, of one store and one renewal service.
type leases struct {
	*wire
	store *etcd.Store
	run   bool
	held  []*lease.Lease
	stop  []context.CancelFunc // of Run
	ended []chan error

	ending  atomic.Bool
	lost    atomic.Int64
	failed  atomic.Int64 // renewals
	mu      sync.Mutex
	since   time.Time
	margins measure.Times // left at a renewal
	calls   measure.Times // what one took
}

func newLeases(w *wire, prefix string, number int, run bool) *leases {
	return &leases{
		wire: w, store: etcd.New(w.Client, prefix), run: run,
		held: make([]*lease.Lease, number), stop: make([]context.CancelFunc, number), ended: make([]chan error, number),
	}
}

func (ls *leases) observe(e lease.Event) {
	switch e.Kind {
	case lease.EventEnded:
		if !ls.ending.Load() {
			ls.lost.Add(1)
		}
	case lease.EventRenewFailed:
		ls.failed.Add(1)
	case lease.EventRenewed:
		ls.mu.Lock()
		defer ls.mu.Unlock()
		ls.margins, ls.calls = append(ls.margins, e.Remaining), append(ls.calls, e.Elapsed)
	}
}

func (ls *leases) acquire(ctx context.Context, i int) (err error) {
	// The service is the one of the process.
	if ls.held[i], err = lease.New(ls.store, fmt.Sprint("name-", i), lease.WithDuration(leaseDuration), lease.WithObserver(ls.observe)); err != nil {
		return err
	}
	if !ls.run {
		return ls.held[i].Acquire(ctx)
	}
	var running context.Context
	running, ls.stop[i] = context.WithCancel(context.Background())
	began, ended := make(chan struct{}), make(chan error, 1)
	ls.ended[i] = ended
	go func() {
		ended <- ls.held[i].Run(running, func(ctx context.Context) error {
			close(began)
			<-ctx.Done()
			return nil
		})
	}()
	select {
	case <-began:
		return nil
	case err := <-ended:
		return fmt.Errorf("it did not run: %w", err)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (ls *leases) release(ctx context.Context, i int) error {
	ls.ending.Store(true)
	if ls.run {
		ls.stop[i]()
		return <-ls.ended[i]
	}
	return ls.held[i].Release(ctx)
}

func (ls *leases) close() {
	for _, l := range ls.held {
		l.Close()
	}
	ls.store.Close()
}

func (ls *leases) reset() {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	ls.since = time.Now()
	ls.margins, ls.calls = nil, nil
}

func (ls *leases) figures() []measure.Figure {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	return []measure.Figure{
		measure.Of(ls.lost.Load(), "lost"),
		measure.Of(ls.failed.Load(), "failed_renewals"),
		measure.Of(float64(len(ls.calls))/time.Since(ls.since).Seconds(), "renewals_per_s"),
		measure.Of(ls.margins.Quantile(0).Seconds(), "least_margin_s"),
		measure.Of(measure.MS(ls.calls.Median()), "median_renewal_ms"),
		measure.Of(measure.MS(ls.calls.Quantile(0.99)), "p99_renewal_ms"),
	}
}

// sessions are concurrency's, with a Mutex on each.
type sessions struct {
	*wire
	prefix string
	held   []*session
}

type session struct {
	*concurrency.Session
	mutex *concurrency.Mutex
}

func (ss *sessions) acquire(ctx context.Context, i int) error {
	s, err := concurrency.NewSession(ss.Client, concurrency.WithTTL(int(leaseSeconds)))
	if err != nil {
		return err
	}
	ss.held[i] = &session{s, concurrency.NewMutex(s, fmt.Sprint(ss.prefix, i))}
	return ss.held[i].mutex.Lock(ctx)
}

func (ss *sessions) release(ctx context.Context, i int) error {
	s := ss.held[i]
	select {
	case <-s.Done():
		return nil // lost
	default:
	}
	if err := s.mutex.Unlock(ctx); err != nil {
		return err
	}
	return s.Close()
}

func (ss *sessions) reset() {}

func (ss *sessions) figures() []measure.Figure {
	lost := 0
	for _, s := range ss.held {
		select {
		case <-s.Done():
			lost++
		default:
		}
	}
	return []measure.Figure{measure.Of(lost, "lost")}
}
