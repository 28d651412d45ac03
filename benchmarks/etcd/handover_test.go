//go:build unix

package etcd_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/leasehold/leasehold/benchmarks/internal/measure"
)

// waiter waits for what another holds.
type waiter interface {
	holder
	wait(ctx context.Context) error
	rearm() <-chan struct{}
}

// BenchmarkEtcdHandOver measures from just before the release is asked for until
// the one waiter knows that it holds. A watch that begins at a revision that etcd
// has reached already is served from a loop, so it counts whether the waiter's has
// begun a moment before or long before, and what others write meanwhile. The pairs
// take turns.
func BenchmarkEtcdHandOver(b *testing.B) {
	p, writer := newPlace(b), newPlace(b)
	for _, e := range []struct {
		name      string
		min, max  time.Duration // since the waiter's watch began
		busy      bool          // another client writes all the time
		handOvers int
	}{
		{"begun-5ms-ago", 5 * time.Millisecond, 25 * time.Millisecond, false, 400},
		{"begun-5ms-ago-busy", 5 * time.Millisecond, 25 * time.Millisecond, true, 200},
		{"begun-150ms-ago", 150 * time.Millisecond, 200 * time.Millisecond, false, 200},
	} {
		ctx, cancel := context.WithCancel(b.Context())
		var writing sync.WaitGroup
		if e.busy {
			w := writer.client(b)
			writing.Go(func() {
				for measure.Sleep(ctx, time.Millisecond) == nil {
					if _, err := w.Put(ctx, writer.prefix+"key", e.name); err != nil && ctx.Err() == nil {
						b.Error(err)
						return
					}
				}
			})
		}
		pairs := [2]*pair{
			{waiters: [2]waiter{p.mutex(b, p.client(b), e.name+"-mutex"), p.mutex(b, p.client(b), e.name+"-mutex")}},
			{waiters: [2]waiter{p.whole(b, p.client(b), e.name), p.whole(b, p.client(b), e.name)}},
		}
		for _, pair := range pairs {
			if err := pair.waiters[0].acquire(ctx); err != nil {
				b.Fatal(err)
			}
		}
		for range e.handOvers {
			for _, pair := range pairs {
				if err := pair.handOver(ctx, e.min+rand.N(e.max-e.min)); err != nil {
					b.Fatal(err)
				}
			}
		}
		for _, pair := range pairs {
			if err := pair.waiters[0].release(ctx); err != nil {
				b.Fatal(err)
			}
		}
		cancel()
		writing.Wait()
		theirs, ours := pairs[0].took, pairs[1].took
		measure.Report(b, e.name+"/mutex", theirs.Figures()...)
		measure.Report(b, e.name+"/leasehold", append(ours.Figures(), measure.Of(measure.Ratio(theirs.Median(), ours.Median()), "times_faster"))...)
	}
}

// pair hands a name over to and fro.
type pair struct {
	waiters [2]waiter // the first holds it
	took    measure.Times
}

// handOver has the second wait for so long before the first releases.
func (p *pair) handOver(ctx context.Context, wait time.Duration) error {
	holder, next := p.waiters[0], p.waiters[1]
	type result struct {
		at  time.Time
		err error
	}
	watching := next.rearm()
	holds := make(chan result, 1)
	go func() {
		err := next.wait(ctx)
		holds <- result{time.Now(), err}
	}()
	select {
	case <-watching:
	case r := <-holds:
		return fmt.Errorf("it does not wait: %v", r.err)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if err := measure.Sleep(ctx, wait); err != nil {
		return err
	}
	start := time.Now()
	if err := holder.release(ctx); err != nil {
		return err
	}
	r := <-holds
	p.took = append(p.took, r.at.Sub(start))
	p.waiters = [2]waiter{next, holder}
	return r.err
}

// BenchmarkEtcdContention has many wait for one name, on one client, each of them
// with a store or a session of its own. Each holds it for 2 ms. It lasts until
// everyone has had a turn.
func BenchmarkEtcdContention(b *testing.B) {
	const times = 5 // of each, in turns
	p := newPlace(b)
	for _, n := range []int{64, 256} {
		kinds := []string{"mutex", "leasehold"}
		crowds := map[string]*crowd{"mutex": {}, "leasehold": {}}
		for i := range times {
			for _, kind := range kinds {
				p.contend(b, crowds[kind], kind, fmt.Sprintf("%s-%d-%d", kind, n, i), n)
			}
		}
		for _, kind := range kinds {
			c := crowds[kind]
			figures := []measure.Figure{
				measure.Of(measure.MS(c.turns.Median())/float64(n), "ms_per_hand-over"),
				measure.Of(measure.MS(c.turns.Quantile(1))/float64(n), "slowest_round_ms_per_hand-over"),
				measure.Of(c.entries/float64(times*n), "entries_per_acquire"),
				measure.Of(c.requests/float64(times*n), "requests_per_acquire"),
				measure.Of(measure.MS(c.between.Quantile(0.99)), "p99_between_turns_ms"),
				measure.Of(measure.MS(c.between.Quantile(1)), "longest_between_turns_ms"),
				measure.Of(c.turns.Quantile(1).Seconds(), "longest_wait_s"),
			}
			if kind == "leasehold" {
				figures = append(figures, measure.Of(measure.Ratio(c.turns.Median(), crowds["mutex"].turns.Median()), "ratio_to_mutex"))
			}
			measure.Report(b, fmt.Sprintf("%d/%s", n, kind), figures...)
		}
	}
}

// crowd is what was seen of some rounds.
type crowd struct {
	turns             measure.Times // until all have had one
	between           measure.Times // one turn and the next
	entries, requests float64
}

func (p place) contend(b *testing.B, c *crowd, kind, name string, n int) {
	b.Helper()
	const hold = 2 * time.Millisecond
	ctx, w, meter := b.Context(), p.client(b), p.client(b)
	waiters := make([]waiter, n+1)
	for i := range waiters {
		if waiters[i] = (&ownMutex{wire: w, prefix: p.prefix + name}); kind == "leasehold" {
			waiters[i] = p.whole(b, w, name)
		}
	}
	before, err := meter.entries(ctx)
	if err != nil {
		b.Fatal(err)
	}
	first := waiters[n]
	if err := first.acquire(ctx); err != nil {
		b.Fatal(err)
	}
	var mu sync.Mutex
	var turns []time.Time
	group, ctx := errgroup.WithContext(ctx)
	for _, h := range waiters[:n] {
		group.Go(func() error {
			if err := h.wait(ctx); err != nil {
				return err
			}
			mu.Lock()
			turns = append(turns, time.Now())
			mu.Unlock()
			if err := measure.Sleep(ctx, hold); err != nil {
				return err
			}
			return h.release(ctx)
		})
	}
	for int(w.watches.Load()) < n {
		if err := measure.Sleep(ctx, time.Millisecond); err != nil {
			b.Fatal(err)
		}
	}
	// Longer than etcd's loop takes for watches from the current revision on.
	if err := measure.Sleep(ctx, 300*time.Millisecond); err != nil {
		b.Fatal(err)
	}
	start := time.Now()
	if err := first.release(ctx); err != nil {
		b.Fatal(err)
	}
	if err := group.Wait(); err != nil {
		b.Fatal(err)
	}
	after, err := meter.entries(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	slices.SortFunc(turns, time.Time.Compare)
	c.turns = append(c.turns, turns[n-1].Sub(start))
	last := start
	for _, t := range turns {
		c.between = append(c.between, t.Sub(last))
		last = t
	}
	c.entries += float64(after - before)
	c.requests += float64(w.requests.Load())
}
