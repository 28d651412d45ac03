//go:build unix

package redis_test

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/rueidis/rueidislock"
	"golang.org/x/sync/errgroup"

	"github.com/leasehold/leasehold/benchmarks/internal/measure"
	"github.com/leasehold/leasehold/lease"
)

// many holds a number of names in one process.
type many interface {
	acquire(ctx context.Context, i int) error // returns when it is held
	release(ctx context.Context, i int) error
	figures() []measure.Figure // of the time since reset
	reset()
}

// BenchmarkManyLeases holds a hundred thousand leases in one process, through one
// store, for a minute; a tenth of that by Run, which also watches each; and as many
// of rueidislock's, which renews them every 7.5 s. LEASES says how many instead. With
// -short it is a hundredth of it, for 12 s.
func BenchmarkManyLeases(b *testing.B) {
	number, window := 100_000, time.Minute
	if text := os.Getenv("LEASES"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 10 {
			b.Fatalf("LEASES=%q is no number of leases", text)
		}
		number = n
	}
	if testing.Short() {
		number, window = max(number/100, 10), 12*time.Second
	}
	p := newPlace(b)
	for _, e := range []struct {
		name   string
		number int
		new    func(b *testing.B, number int) many
	}{
		{"acquire", number, func(b *testing.B, number int) many { return newLeases(b, p, "acquire-", number, false) }},
		{"run", number / 10, func(b *testing.B, number int) many { return newLeases(b, p, "run-", number, true) }},
		{"rueidislock", number, func(b *testing.B, number int) many { return newLocks(b, p, number) }},
	} {
		b.Run(e.name, func(b *testing.B) {
			figures := holdMany(b, p, e.new(b, e.number), e.number, window)
			b.ReportMetric(0, "ns/op")
			for _, f := range figures {
				b.ReportMetric(f.Value, f.Unit)
			}
		})
	}
}

func holdMany(b *testing.B, p place, m many, number int, window time.Duration) []measure.Figure {
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
	meter := p.client(b)
	before := measure.Memory()
	acquired := each(m.acquire)
	if err := measure.Sleep(ctx, settle); err != nil {
		b.Fatal(err)
	}
	memory := measure.Memory()
	at := p.spent(b, meter)
	m.reset()
	used := measure.CPU()
	var goroutines []int
	start := time.Now()
	for time.Since(start) < window {
		if err := measure.Sleep(ctx, 100*time.Millisecond); err != nil {
			b.Fatal(err)
		}
		goroutines = append(goroutines, runtime.NumGoroutine())
	}
	took, cpu, figures := time.Since(start).Seconds(), measure.CPU()-used, m.figures()
	did := p.spent(b, meter).since(at)
	slices.Sort(goroutines)
	return append(figures,
		measure.Of(number, "leases"),
		measure.Of(cpu.Seconds()/took, "cores"),
		measure.Of(did.cpu.Seconds()/took, "redis_cores"),
		measure.Of(did.scripts/took, "scripts_per_s"),
		measure.Of(goroutines[len(goroutines)/2], "median_goroutines"),
		measure.Of(goroutines[len(goroutines)-1], "most_goroutines"),
		measure.Of((float64(memory)-float64(before))/float64(number), "bytes_per_lease"),
		measure.Of(acquired.Seconds(), "acquire_all_s"),
		measure.Of(each(m.release).Seconds(), "release_all_s"),
	)
}

// leases are ours, of one store and one renewal service.
type leases struct {
	store *storeClient
	names string
	run   bool
	held  []*lease.Lease
	token []uint64
	stop  []context.CancelFunc // of Run
	ended []chan error

	ending atomic.Bool
	lost   atomic.Int64
	failed atomic.Int64 // renewals
	since  time.Time
	least  atomic.Int64 // that was left at a renewal
	calls  histogram    // what one took
}

func newLeases(b *testing.B, p place, names string, number int, run bool) *leases {
	b.Helper()
	ls := &leases{
		store: newStore(b, p), names: names, run: run, held: make([]*lease.Lease, number), token: make([]uint64, number),
		stop: make([]context.CancelFunc, number), ended: make([]chan error, number),
	}
	b.Cleanup(func() {
		for _, l := range ls.held {
			if l != nil {
				l.Close()
			}
		}
	})
	return ls
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
		ls.calls.add(e.Elapsed)
		for {
			least := ls.least.Load()
			if int64(e.Remaining) >= least || ls.least.CompareAndSwap(least, int64(e.Remaining)) {
				return
			}
		}
	}
}

func (ls *leases) acquire(ctx context.Context, i int) (err error) {
	// The service is the one of the process.
	if ls.held[i], err = lease.New(ls.store.Store, ls.names+strconv.Itoa(i), lease.WithDuration(leaseDuration), lease.WithObserver(ls.observe)); err != nil {
		return err
	}
	if !ls.run {
		if err := ls.held[i].Acquire(ctx); err != nil {
			return err
		}
		ls.token[i] = ls.held[i].Token()
		return nil
	}
	var running context.Context
	running, ls.stop[i] = context.WithCancel(context.Background())
	began, ended := make(chan struct{}), make(chan error, 1)
	ls.ended[i] = ended
	go func() {
		ended <- ls.held[i].Run(running, func(ctx context.Context) error {
			ls.token[i] = ls.held[i].Token()
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

func (ls *leases) reset() {
	ls.since = time.Now()
	ls.least.Store(int64(leaseDuration))
	ls.calls.reset()
}

func (ls *leases) figures() []measure.Figure {
	lost := ls.lost.Load()
	for i, l := range ls.held {
		if !l.Held() || l.Token() != ls.token[i] {
			lost = max(lost, 1) // nobody was told
		}
	}
	return []measure.Figure{
		measure.Of(lost, "lost"),
		measure.Of(ls.failed.Load(), "failed_renewals"),
		measure.Of(float64(ls.calls.count())/time.Since(ls.since).Seconds(), "renewals_per_s"),
		measure.Of(time.Duration(ls.least.Load()).Seconds(), "least_margin_s"),
		measure.Of(measure.MS(ls.calls.quantile(0.5)), "median_renewal_ms"),
		measure.Of(measure.MS(ls.calls.quantile(0.99)), "p99_renewal_ms"),
	}
}

// histogram counts times, to an eighth, without keeping them: they are millions.
type histogram struct{ counts [512]atomic.Int64 }

func (h *histogram) add(d time.Duration) {
	n := max(uint64(d), 8)
	e := bits.Len64(n) - 4
	h.counts[e*8+int(n>>e)-8].Add(1)
}

func (h *histogram) reset() {
	for i := range h.counts {
		h.counts[i].Store(0)
	}
}

func (h *histogram) count() (n int64) {
	for i := range h.counts {
		n += h.counts[i].Load()
	}
	return n
}

// quantile returns what the given part of them did not exceed.
func (h *histogram) quantile(q float64) time.Duration {
	left := int64(q * float64(h.count()))
	for i := range h.counts {
		if left -= h.counts[i].Load(); left < 0 {
			return time.Duration(uint64(i%8+9) << (i / 8))
		}
	}
	return 0
}

// locks are rueidislock's.
type locks struct {
	locker rueidislock.Locker
	source context.Context
	held   []context.Context
	cancel []context.CancelFunc
	hung   atomic.Int64
}

func newLocks(b *testing.B, p place, number int) *locks {
	b.Helper()
	c := newRueidislock(b, p, rueidislock.LockerOption{KeyMajority: 1, NoLoopTracking: true})
	return &locks{locker: c.Locker, source: b.Context(), held: make([]context.Context, number), cancel: make([]context.CancelFunc, number)}
}

func (ls *locks) acquire(ctx context.Context, i int) (err error) {
	for {
		source, giveUp := context.WithCancel(ls.source)
		watchdog := time.AfterFunc(hangAfter, giveUp)
		ls.held[i], ls.cancel[i], err = ls.locker.WithContext(source, "name-"+strconv.Itoa(i))
		if watchdog.Stop() || err == nil || ctx.Err() != nil {
			context.AfterFunc(ls.source, giveUp)
			return err
		}
		ls.hung.Add(1)
	}
}

func (ls *locks) release(_ context.Context, i int) error {
	if ls.held[i].Err() == nil {
		ls.cancel[i]()
	}
	return nil
}

func (ls *locks) reset() {}

func (ls *locks) figures() []measure.Figure {
	lost := 0
	for _, ctx := range ls.held {
		if errors.Is(ctx.Err(), context.Canceled) {
			lost++
		}
	}
	return []measure.Figure{measure.Of(lost, "lost"), measure.Of(ls.hung.Load(), "hangs")}
}
