//go:build unix

package redis_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/leasehold/leasehold/benchmarks/internal/measure"
)

// candidate is one of those that take turns.
type candidate struct {
	name string
	do   func(ctx context.Context) error
	conn connection
}

// takeTurns has all candidates do it a few times in each round, in an order drawn
// each time, and reports how long once took them. The first is what the others are
// compared with.
func takeTurns(b *testing.B, candidates ...candidate) {
	b.Helper()
	const (
		warm    = 10
		each    = 25   // in each round, of which the first is not counted: others were there before
		counted = 2000 // for allocations
	)
	rounds := 200
	if testing.Short() {
		rounds = 20
	}
	once := func(c candidate) time.Duration {
		start := time.Now()
		if err := c.do(b.Context()); err != nil {
			b.Fatalf("%s: %v", c.name, err)
		}
		return time.Since(start)
	}
	took := make([]measure.Times, len(candidates))
	for round := range warm + rounds {
		for _, i := range rand.Perm(len(candidates)) {
			once(candidates[i])
			for range each - 1 {
				if d := once(candidates[i]); round >= warm {
					took[i] = append(took[i], d)
				}
			}
		}
	}
	for i, c := range candidates {
		n, bytes := measure.Allocations(func() {
			for range counted {
				once(c)
			}
		})
		figures := []measure.Figure{
			measure.Of(mean(took[i]), "ns/op"),
			measure.Of(measure.US(took[i].Median()), "median_us"),
			measure.Of(measure.US(took[i].Quantile(0.99)), "p99_us"),
			measure.Of(measure.Ratio(took[i].Median(), took[0].Median()), "ratio_to_raw"),
			measure.Of(float64(n)/counted, "allocs/op"),
			measure.Of(float64(bytes)/counted, "B/op"),
		}
		if h, ok := c.conn.(hanger); ok {
			figures = append(figures, measure.Of(h.hangs(), "hangs"))
		}
		measure.Report(b, c.name, figures...)
	}
}

func mean(all measure.Times) float64 {
	var sum time.Duration
	for _, d := range all {
		sum += d
	}
	return float64(sum) / float64(len(all))
}

// BenchmarkAcquireRelease measures acquiring a free name and releasing it.
func BenchmarkAcquireRelease(b *testing.B) {
	p := newPlace(b)
	var candidates []candidate
	for _, k := range []kind{kindRaw, kindRaw, kindRedislock, kindRedsync, kindRueidislock, kindStore, kindStoreEndless, kindLeaseUnrenewed, kindLease} {
		name := k.name
		if len(candidates) == 1 {
			name += "-again"
		}
		verify(b, k, p)
		conn := k.connect(b, p)
		h := conn.holder(b, name)
		candidates = append(candidates, candidate{name, func(ctx context.Context) error {
			if err := h.acquire(ctx); err != nil {
				return err
			}
			return h.release(ctx)
		}, conn})
	}
	takeTurns(b, candidates...)
}

// BenchmarkRenew measures one renewal. rueidislock renews by itself, when it wants.
func BenchmarkRenew(b *testing.B) {
	p := newPlace(b)
	var candidates []candidate
	for _, k := range []kind{kindRaw, kindRaw, kindRedislock, kindRedsync, kindStore, kindStoreEndless, kindLeaseUnrenewed, kindLease} {
		name := k.name
		if len(candidates) == 1 {
			name += "-again"
		}
		conn := k.connect(b, p)
		h := conn.holder(b, name).(renewer)
		if err := h.acquire(b.Context()); err != nil {
			b.Fatal(err)
		}
		candidates = append(candidates, candidate{name, h.renew, conn})
	}
	takeTurns(b, candidates...)
}

// BenchmarkThroughput has 64 goroutines acquire and release, each a name of its own,
// through one client. The kinds take turns.
func BenchmarkThroughput(b *testing.B) {
	const (
		workers = 64
		lasting = 300 * time.Millisecond
	)
	rounds := 15
	if testing.Short() {
		rounds = 3
	}
	p := newPlace(b)
	type team struct {
		name    string
		conn    connection
		holders []holder
		each    measure.Times // of an operation, round by round
	}
	var teams []*team
	for _, k := range []kind{kindRaw, kindRaw, kindRedislock, kindRedsync, kindRueidislock, kindStore, kindStoreEndless, kindLeaseUnrenewed, kindLease} {
		c := &team{name: k.name, conn: k.connect(b, p)}
		if len(teams) == 1 {
			c.name += "-again"
		}
		for i := range workers {
			c.holders = append(c.holders, c.conn.holder(b, fmt.Sprint(c.name, "-", i)))
		}
		teams = append(teams, c)
	}
	run := func(c *team) time.Duration {
		var all sync.WaitGroup
		done := make([]int, workers)
		start := time.Now()
		for i, h := range c.holders {
			all.Go(func() {
				for time.Since(start) < lasting {
					if err := h.acquire(b.Context()); err != nil {
						b.Errorf("%s: %v", c.name, err)
						return
					}
					if err := h.release(b.Context()); err != nil {
						b.Errorf("%s: %v", c.name, err)
						return
					}
					done[i]++
				}
			})
		}
		all.Wait()
		took, n := time.Since(start), 0
		for _, d := range done {
			n += d
		}
		return took / time.Duration(max(n, 1))
	}
	for round := range 1 + rounds {
		for _, i := range rand.Perm(len(teams)) {
			c := teams[i]
			if each := run(c); round > 0 {
				c.each = append(c.each, each)
			}
			if b.Failed() {
				return
			}
		}
	}
	for _, c := range teams {
		ratios := make([]float64, len(c.each))
		for i := range c.each {
			ratios[i] = measure.Ratio(c.each[i], teams[0].each[i])
		}
		slices.Sort(ratios)
		figures := []measure.Figure{
			measure.Of(int64(c.each.Median()), "ns/op"),
			measure.Of(float64(time.Second)/float64(c.each.Median()), "ops_per_s"),
			measure.Of(ratios[len(ratios)/2], "ratio_to_raw"),
		}
		if h, ok := c.conn.(hanger); ok {
			figures = append(figures, measure.Of(h.hangs(), "hangs"))
		}
		measure.Report(b, c.name, figures...)
	}
}

// BenchmarkRoundTrips counts what one operation of each kind sends: how often the
// client has written, and which scripts and commands the server has run. Of the
// store it must be one script, sent at once.
func BenchmarkRoundTrips(b *testing.B) {
	const times = 100
	p, meter := newPlace(b), newPlace(b).client(b)
	p.wire = &wire{}
	ctx := b.Context()
	for _, k := range []kind{kindRaw, kindRedislock, kindRedsync, kindRueidislock, kindStore, kindLease} {
		h := k.connect(b, p).holder(b, "round-trips")
		for range 2 { // what only the first has to do
			if err := h.acquire(ctx); err != nil {
				b.Fatal(err)
			}
			if r, ok := h.(renewer); ok {
				if err := r.renew(ctx); err != nil {
					b.Fatal(err)
				}
			}
			if err := h.release(ctx); err != nil {
				b.Fatal(err)
			}
		}
		count := func(what string, before, f, after func(context.Context) error) {
			var sent int64
			var did spent
			for range times {
				if before != nil {
					if err := before(ctx); err != nil {
						b.Fatalf("%s, before %s: %v", k.name, what, err)
					}
				}
				at, writes := p.spent(b, meter), p.wire.writes.Load()
				if err := f(ctx); err != nil {
					b.Fatalf("%s, %s: %v", k.name, what, err)
				}
				sent += p.wire.writes.Load() - writes
				did = did.plus(p.spent(b, meter).since(at))
				if after != nil {
					if err := after(ctx); err != nil {
						b.Fatalf("%s, after %s: %v", k.name, what, err)
					}
				}
			}
			if _, ours := h.(*direct); ours && (sent != times || did.scripts != times) {
				b.Errorf("%s, %s: %d requests and %v scripts for %d operations", k.name, what, sent, did.scripts, times)
			}
			measure.Report(b, k.name+"/"+what,
				measure.Of(float64(sent)/times, "requests/op"),
				measure.Of(did.scripts/times, "scripts/op"),
				measure.Of(measure.US(did.inside)/times, "script_us/op"),
				measure.Of(did.commands/times, "commands/op"))
		}
		count("acquire", nil, h.acquire, h.release)
		if r, ok := h.(renewer); ok {
			if err := h.acquire(ctx); err != nil {
				b.Fatal(err)
			}
			count("renew", nil, r.renew, nil)
			if err := h.release(ctx); err != nil {
				b.Fatal(err)
			}
		}
		count("release", h.acquire, h.release, nil)
	}
}
