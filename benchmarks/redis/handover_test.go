//go:build unix

package redis_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/leasehold/leasehold/benchmarks/internal/measure"
)

// BenchmarkHandOver measures from just before the release is asked for until the one
// waiter, which has a client of its own, knows that it holds. The pairs take turns.
func BenchmarkHandOver(b *testing.B) {
	p, ctx := newPlace(b), b.Context()
	for _, e := range []struct {
		name      string
		min, max  time.Duration // since the waiter began to wait
		handOvers int
	}{
		{"begun-5ms-ago", 5 * time.Millisecond, 25 * time.Millisecond, 400},
		{"begun-150ms-ago", 150 * time.Millisecond, 200 * time.Millisecond, 100},
	} {
		if testing.Short() {
			e.handOvers /= 10
		}
		var pairs []*pair
		for _, k := range []kind{kindRueidislockLoop, kindRedislock, kindRedsync, kindLease} {
			pair := &pair{kind: k.name, every: 1}
			if k.name == kindRedsync.name {
				pair.every = 5 // it takes so long
			}
			for i := range pair.waiters {
				pair.waiters[i] = k.connect(b, p).holder(b, e.name+"-"+k.name).(waiter)
			}
			if err := pair.waiters[0].acquire(ctx); err != nil {
				b.Fatal(err)
			}
			pairs = append(pairs, pair)
		}
		for i := range e.handOvers {
			for _, j := range rand.Perm(len(pairs)) {
				if pair := pairs[j]; i%pair.every == 0 {
					if err := pair.handOver(ctx, e.min+rand.N(e.max-e.min)); err != nil {
						b.Fatalf("%s: %v", pair.kind, err)
					}
				}
			}
		}
		for _, pair := range pairs {
			if err := pair.waiters[0].release(ctx); err != nil {
				b.Fatalf("%s: %v", pair.kind, err)
			}
			figures := append(pair.took.Figures(), measure.Of(pair.hangs, "hangs"))
			if pair.kind == kindLease.name {
				figures = append(figures, measure.Of(measure.Ratio(pairs[0].took.Median(), pair.took.Median()), "times_faster_than_rueidislock"))
			}
			measure.Report(b, e.name+"/"+pair.kind, figures...)
		}
	}
}

// pair hands a name over to and fro.
type pair struct {
	kind    string
	every   int
	waiters [2]waiter // the first holds it
	took    measure.Times
	hangs   int
}

// handOver has the second wait for so long before the first releases.
func (p *pair) handOver(ctx context.Context, wait time.Duration) error {
	holder, next := p.waiters[0], p.waiters[1]
	type result struct {
		at  time.Time
		err error
	}
	holds := make(chan result, 1)
	waiting, giveUp := context.WithCancel(ctx)
	go func() {
		err := next.wait(waiting)
		holds <- result{time.Now(), err}
	}()
	if err := measure.Sleep(ctx, wait); err != nil {
		giveUp()
		return err
	}
	select {
	case r := <-holds:
		giveUp()
		return fmt.Errorf("it does not wait: %v", r.err)
	default:
	}
	start := time.Now()
	if err := holder.release(ctx); err != nil {
		giveUp()
		return err
	}
	p.waiters = [2]waiter{next, holder}
	watchdog := time.NewTimer(hangAfter)
	defer watchdog.Stop()
	select {
	case r := <-holds:
		if r.err != nil {
			giveUp()
			return r.err
		}
		p.took = append(p.took, r.at.Sub(start))
		// rueidislock holds for as long as the context lasts.
		context.AfterFunc(ctx, giveUp)
		return nil
	case <-watchdog.C:
	}
	// It is free, and the waiter does not notice.
	p.hangs++
	giveUp()
	if r := <-holds; r.err == nil {
		if err := next.release(ctx); err != nil {
			return errors.Join(errors.New("it was late"), err)
		}
	}
	return next.acquire(ctx)
}

// BenchmarkContention has many wait for one name, through one client or through 64.
// Each holds it once, for 2 ms. A round lasts until everyone has had it.
func BenchmarkContention(b *testing.B) {
	p := newPlace(b)
	for _, e := range []struct{ waiters, clients, rounds int }{{64, 1, 3}, {64, 64, 3}, {256, 1, 1}, {256, 64, 1}} {
		if testing.Short() {
			e.rounds = 1
		}
		kinds := []kind{kindRueidislock, kindRedislock, kindLease}
		crowds := make([]*crowd, len(kinds))
		for i, k := range kinds {
			crowds[i] = newCrowd(b, p, k, fmt.Sprintf("%d-waiters-%d-clients/%s", e.waiters, e.clients, k.name), e.waiters, e.clients)
		}
		for range e.rounds {
			for _, c := range crowds {
				c.round(b)
			}
		}
		for _, c := range crowds {
			measure.Report(b, c.name, c.figures()...)
		}
	}
}

// crowd is many that wait for one name.
type crowd struct {
	name    string
	place   place
	meter   *goredis.Client
	first   holder
	waiters []waiter

	inside    atomic.Int32
	mu        sync.Mutex
	token     uint64
	turns     []time.Time // of this round
	took      []float64   // a turn, in ms, round by round
	between   measure.Times
	did       spent
	worked    time.Duration
	had, lack int // turns
}

func newCrowd(b *testing.B, p place, k kind, name string, n, clients int) *crowd {
	b.Helper()
	c := &crowd{name: name, place: p, meter: p.client(b), first: k.connect(b, p).holder(b, name)}
	conns := make([]connection, clients)
	for i := range conns {
		conns[i] = k.connect(b, p)
	}
	for i := range n {
		c.waiters = append(c.waiters, conns[i%clients].holder(b, name).(waiter))
	}
	return c
}

func (c *crowd) round(b *testing.B) {
	b.Helper()
	ctx, stop := context.WithCancel(b.Context())
	defer stop()
	if err := c.first.acquire(b.Context()); err != nil {
		b.Fatalf("%s: %v", c.name, err)
	}
	c.turns = nil
	entered, left := make(chan struct{}, len(c.waiters)), make(chan error, len(c.waiters))
	for _, w := range c.waiters {
		go func() { left <- c.turn(ctx, b, w, entered) }()
	}
	if err := measure.Sleep(ctx, 500*time.Millisecond); err != nil {
		b.Fatal(err)
	}
	before, used := c.place.spent(b, c.meter), measure.CPU()
	start := time.Now()
	if err := c.first.release(b.Context()); err != nil {
		b.Fatalf("%s: %v", c.name, err)
	}
	watchdog := time.NewTimer(hangAfter)
	defer watchdog.Stop()
	for n := 0; n < len(c.waiters); {
		select {
		case <-entered:
			watchdog.Reset(hangAfter)
		case err := <-left:
			if n++; err != nil {
				b.Errorf("%s: %v", c.name, err)
			}
		case <-watchdog.C: // nobody holds it, and those that wait do not notice
			c.lack += len(c.waiters) - n
			stop()
			for ; n < len(c.waiters); n++ {
				<-left
			}
		}
	}
	c.did = c.did.plus(c.place.spent(b, c.meter).since(before))
	c.worked += measure.CPU() - used
	c.had += len(c.turns)
	last := start
	for _, t := range c.turns {
		c.between = append(c.between, t.Sub(last))
		last = t
	}
	c.took = append(c.took, measure.MS(last.Sub(start))/float64(max(len(c.turns), 1)))
}

// turn waits for the name and holds it, once.
func (c *crowd) turn(ctx context.Context, b *testing.B, w waiter, entered chan<- struct{}) error {
	if err := w.wait(ctx); err != nil {
		if ctx.Err() != nil {
			return nil // it was given up
		}
		return err
	}
	if c.inside.Add(1) != 1 {
		return errors.New("two hold it at once")
	}
	c.mu.Lock()
	if l, ok := w.(*whole); ok {
		if l.token <= c.token {
			b.Errorf("%s: token %d after %d", c.name, l.token, c.token)
		}
		c.token = l.token
	}
	c.turns = append(c.turns, time.Now())
	c.mu.Unlock()
	entered <- struct{}{}
	time.Sleep(2 * time.Millisecond)
	c.inside.Add(-1)
	if err := w.release(b.Context()); err != nil && ctx.Err() == nil {
		return err
	}
	return nil
}

func (c *crowd) figures() []measure.Figure {
	slices.Sort(c.took)
	n := float64(max(c.had, 1))
	return []measure.Figure{
		measure.Of(c.took[len(c.took)/2], "ms_per_turn"),
		measure.Of(measure.MS(c.between.Median()), "median_ms"),
		measure.Of(measure.MS(c.between.Quantile(0.99)), "p99_ms"),
		measure.Of(measure.MS(c.between.Quantile(1)), "longest_ms"),
		measure.Of(c.did.scripts/n, "scripts_per_turn"),
		measure.Of(c.did.commands/n, "commands_per_turn"),
		measure.Of(measure.US(c.did.cpu)/n, "server_us_per_turn"),
		measure.Of(measure.US(c.worked)/n, "client_us_per_turn"),
		measure.Of(c.had, "turns"),
		measure.Of(c.lack, "hangs"),
	}
}
