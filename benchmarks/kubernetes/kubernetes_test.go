//go:build unix

package kubernetes_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/leasehold/leasehold/benchmarks/internal/measure"
	"github.com/leasehold/leasehold/kubernetes"
	"github.com/leasehold/leasehold/lease"
)

// BenchmarkKubernetesHandOver measures from the moment the leader is told to
// release until the one standby leads. Pairs of electors take so long that many
// run side by side; Leasehold's one pair hands over again and again meanwhile.
func BenchmarkKubernetesHandOver(b *testing.B) {
	const (
		pairs     = 24 // of electors
		each      = 2
		handOvers = 400 // of Leasehold
	)
	p := newPlace(b)
	group, ctx := errgroup.WithContext(b.Context())
	var mu sync.Mutex
	var electors, leases measure.Times
	for i := range pairs {
		group.Go(func() error {
			took, err := p.handOverTheirs(ctx, fmt.Sprintf("client-go-%d", i), each)
			mu.Lock()
			defer mu.Unlock()
			electors = append(electors, took...)
			return err
		})
	}
	group.Go(func() (err error) {
		leases, err = p.handOverOurs(ctx, "leasehold", handOvers)
		return err
	})
	if err := group.Wait(); err != nil {
		b.Fatal(err)
	}
	measure.Report(b, "client-go", electors.Figures()...)
	measure.Report(b, "leasehold", append(leases.Figures(), measure.Of(measure.Ratio(electors.Median(), leases.Median()), "times_faster"))...)
}

func (p place) handOverTheirs(ctx context.Context, name string, n int) (took measure.Times, err error) {
	leader, err := p.theirs(ctx, name, "0")
	if err != nil {
		return nil, err
	}
	defer func() { leader.close() }()
	if _, err := leader.lead(ctx); err != nil {
		return nil, err
	}
	for i := range n {
		standby, err := p.theirs(ctx, name, fmt.Sprint(i+1))
		if err != nil {
			return nil, err
		}
		last := leader
		leader = standby
		defer last.close()
		// At any point between two polls.
		if err := measure.Sleep(ctx, retryPeriod+rand.N(longestPoll)); err != nil {
			return nil, err
		}
		start := time.Now()
		last.stop()
		led, err := standby.lead(ctx)
		if err != nil {
			return nil, err
		}
		took = append(took, led.Sub(start))
	}
	return took, nil
}

func (p place) handOverOurs(ctx context.Context, name string, n int) (took measure.Times, err error) {
	var candidates [2]*ours
	for i := range candidates {
		if candidates[i], err = p.ours(name); err != nil {
			return nil, err
		}
		defer candidates[i].close()
	}
	if err := candidates[0].lease.Acquire(ctx); err != nil {
		return nil, err
	}
	for i := range n {
		leader, standby := candidates[i%2], candidates[(i+1)%2]
		watching := standby.rearm()
		led := make(chan result, 1)
		go func() {
			err := standby.lease.Await(ctx)
			led <- result{time.Now(), err}
		}()
		select {
		case <-watching:
		case r := <-led:
			return nil, fmt.Errorf("the standby does not wait: %v", r.err)
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		if err := measure.Sleep(ctx, 5*time.Millisecond+rand.N(20*time.Millisecond)); err != nil {
			return nil, err
		}
		start := time.Now()
		if err := leader.lease.Release(ctx); err != nil {
			return nil, err
		}
		r := <-led
		if r.err != nil {
			return nil, r.err
		}
		took = append(took, r.at.Sub(start))
	}
	return took, nil
}

type result struct {
	at  time.Time
	err error
}

// BenchmarkKubernetesTakeover measures from the last renewal of a leader that
// crashes, as its server acknowledged it, until the one standby leads.
func BenchmarkKubernetesTakeover(b *testing.B) {
	const pairs = 24 // of each kind
	p := newPlace(b)
	group, ctx := errgroup.WithContext(b.Context())
	var mu sync.Mutex
	var electors, leases measure.Times
	pair := func(kind string, all *measure.Times, one func(ctx context.Context, name string) (time.Duration, error)) {
		for i := range pairs {
			group.Go(func() error {
				took, err := one(ctx, fmt.Sprintf("%s-%d", kind, i))
				mu.Lock()
				defer mu.Unlock()
				*all = append(*all, took)
				return err
			})
		}
	}
	pair("client-go", &electors, p.takeOverTheirs)
	pair("leasehold", &leases, p.takeOverOurs)
	if err := group.Wait(); err != nil {
		b.Fatal(err)
	}
	figures := func(t measure.Times) []measure.Figure {
		return []measure.Figure{measure.Of(t.Median().Seconds(), "median_s"), measure.Of(t.Quantile(0).Seconds(), "min_s"), measure.Of(t.Quantile(1).Seconds(), "max_s"), measure.Of(float64(len(t)), "samples")}
	}
	measure.Report(b, "client-go", figures(electors)...)
	measure.Report(b, "leasehold", append(figures(leases), measure.Of(measure.Ratio(electors.Median(), leases.Median()), "times_faster"))...)
}

// untilCrash is how long a leader leads before it crashes: it has renewed by then,
// and may be at any point between two renewals.
func untilCrash() time.Duration { return leaseDuration/3 + rand.N(leaseDuration/3) }

func (p place) takeOverTheirs(ctx context.Context, name string) (time.Duration, error) {
	leader, err := p.theirs(ctx, name, "leader")
	if err != nil {
		return 0, err
	}
	defer leader.close()
	if _, err := leader.lead(ctx); err != nil {
		return 0, err
	}
	standby, err := p.theirs(ctx, name, "standby")
	if err != nil {
		return 0, err
	}
	defer standby.close()
	if err := measure.Sleep(ctx, untilCrash()); err != nil {
		return 0, err
	}
	leader.cut.Store(true)
	led, err := standby.lead(ctx)
	return led.Sub(leader.lastWrite()), err
}

func (p place) takeOverOurs(ctx context.Context, name string) (time.Duration, error) {
	var candidates [2]*ours
	for i := range candidates {
		var err error
		if candidates[i], err = p.ours(name); err != nil {
			return 0, err
		}
		defer candidates[i].close()
	}
	leader, standby := candidates[0], candidates[1]
	if err := leader.lease.Acquire(ctx); err != nil {
		return 0, err
	}
	crash := time.AfterFunc(untilCrash(), func() { leader.cut.Store(true) })
	defer crash.Stop()
	err := standby.lease.Await(ctx)
	return time.Since(leader.lastWrite()), err
}

// BenchmarkKubernetesRequests counts what one leader and nine idle candidates send,
// of both kinds in the same minute and a quarter. What it took to begin is counted
// apart.
func BenchmarkKubernetesRequests(b *testing.B) {
	const (
		candidates = 10
		settle     = 8 * time.Second
		window     = 75 * time.Second
	)
	p := newPlace(b)
	ctx, cancel := context.WithCancel(b.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	wires := make(map[string][]*wire) // the leader's is the first
	for i := range candidates {
		c, err := p.ours("leasehold")
		if err != nil {
			b.Fatal(err)
		}
		led := make(chan struct{})
		lead := sync.OnceFunc(func() { close(led) })
		running.Go(func() {
			defer c.close()
			defer lead() // nobody is to wait for it any more
			if err := c.lease.Run(ctx, func(ctx context.Context) error {
				lead()
				<-ctx.Done()
				return nil
			}); err != nil && ctx.Err() == nil {
				b.Error(err)
			}
		})
		e, err := p.theirs(ctx, "client-go", fmt.Sprint(i))
		if err != nil {
			b.Fatal(err)
		}
		running.Go(func() {
			<-e.done
			e.hangUp()
		})
		if i == 0 {
			<-led
			if _, err := e.lead(ctx); err != nil {
				b.Fatal(err)
			}
		}
		wires["leasehold"], wires["client-go"] = append(wires["leasehold"], c.wire), append(wires["client-go"], e.wire)
	}
	count := func() map[string][]int64 {
		counts := make(map[string][]int64)
		for kind, ws := range wires {
			for _, w := range ws {
				counts[kind] = append(counts[kind], w.requests.Load())
			}
		}
		return counts
	}
	if err := measure.Sleep(ctx, settle); err != nil {
		b.Fatal(err)
	}
	before, start := count(), time.Now()
	if err := measure.Sleep(ctx, window); err != nil {
		b.Fatal(err)
	}
	after, minutes := count(), time.Since(start).Minutes()

	total := make(map[string]float64)
	for _, kind := range []string{"client-go", "leasehold"} {
		perMin := make([]float64, candidates)
		for i := range perMin {
			perMin[i] = float64(after[kind][i]-before[kind][i]) / minutes
			total[kind] += perMin[i]
		}
		idle := perMin[1:]
		sum, begun := 0.0, 0.0
		for i, n := range idle {
			sum += n
			begun += float64(before[kind][i+1])
		}
		figures := []measure.Figure{
			measure.Of(perMin[0], "leader_req_per_min"),
			measure.Of(sum/float64(len(idle)), "candidate_req_per_min"),
			measure.Of(slices.Max(idle), "busiest_candidate_req_per_min"),
			measure.Of(total[kind], "all_req_per_min"),
			measure.Of(begun/float64(len(idle)), "candidate_req_until_settled"),
		}
		if kind == "leasehold" {
			figures = append(figures, measure.Of(total["client-go"]/total[kind], "times_fewer"))
		}
		measure.Report(b, kind, figures...)
	}
}

// BenchmarkKubernetesCycle counts the requests to acquire, renew once and release.
func BenchmarkKubernetesCycle(b *testing.B) {
	const cycles = 5
	p, ctx := newPlace(b), b.Context()
	c, err := p.ours("leasehold")
	if err != nil {
		b.Fatal(err)
	}
	defer c.close()
	var electors int64
	for i := range cycles {
		for _, step := range []func(context.Context) error{c.lease.Acquire, c.lease.Extend, c.lease.Release} {
			if err := step(ctx); err != nil {
				b.Fatal(err)
			}
		}
		e, err := p.theirs(ctx, "client-go", fmt.Sprint(i))
		if err != nil {
			b.Fatal(err)
		}
		// It renews at once.
		for e.writes.Load() < 2 {
			if err := measure.Sleep(ctx, time.Millisecond); err != nil {
				b.Fatal(err)
			}
		}
		e.close()
		electors += e.requests.Load()
	}
	perCycle := func(n int64) measure.Figure { return measure.Of(float64(n)/cycles, "req_per_cycle") }
	measure.Report(b, "client-go", perCycle(electors))
	measure.Report(b, "leasehold", perCycle(c.requests.Load()))
}

// BenchmarkKubernetesManyLeases holds a thousand leases in one process, through
// one store, for a minute: by Acquire, and by Run, which also watches each.
func BenchmarkKubernetesManyLeases(b *testing.B) {
	p := newPlace(b)
	measure.Report(b, "acquire", p.manyLeases(b, false)...)
	measure.Report(b, "run", p.manyLeases(b, true)...)
}

func (p place) manyLeases(b *testing.B, run bool) []measure.Figure {
	b.Helper()
	const (
		number   = 1000
		inFlight = 64 // of the first acquires; with Run all begin at once
		settle   = leaseDuration
		window   = time.Minute
	)
	mode := "acquire"
	if run {
		mode = "run"
	}
	w := newWire()
	store, err := kubernetes.New(w.through(p.cfg), p.namespace)
	if err != nil {
		b.Fatal(err)
	}
	defer store.Close()
	var losses atomic.Int64
	var ending atomic.Bool
	observe := lease.WithObserver(func(e lease.Event) {
		if e.Kind == lease.EventEnded && !ending.Load() {
			losses.Add(1)
		}
	})
	service := lease.NewRenewalService(nil)
	before := measure.Memory()
	leases := make([]*lease.Lease, number)
	for i := range leases {
		if leases[i], err = lease.New(store, fmt.Sprintf("%s-%d", mode, i), lease.WithDuration(leaseDuration), lease.WithRenewalService(service), observe); err != nil {
			b.Fatal(err)
		}
		defer leases[i].Close()
	}

	start := time.Now()
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	running, ctx := errgroup.WithContext(ctx)
	if run {
		var held sync.WaitGroup
		held.Add(number)
		for _, l := range leases {
			first := sync.OnceFunc(held.Done)
			running.Go(func() error {
				defer first()
				return l.Run(ctx, func(ctx context.Context) error {
					first()
					<-ctx.Done()
					return nil
				})
			})
		}
		held.Wait()
	} else {
		acquiring, ctx := errgroup.WithContext(ctx)
		acquiring.SetLimit(inFlight)
		for _, l := range leases {
			acquiring.Go(func() error { return l.Acquire(ctx) })
		}
		if err := acquiring.Wait(); err != nil {
			b.Fatal(err)
		}
	}
	acquired, first := time.Since(start), w.requests.Load()
	if err := measure.Sleep(ctx, settle); err != nil {
		b.Fatal(err)
	}

	memoryPerLease := (float64(measure.Memory()) - float64(before)) / number
	used, sent := measure.CPU(), w.requests.Load()
	var more []int
	for start = time.Now(); time.Since(start) < window; {
		if err := measure.Sleep(ctx, 100*time.Millisecond); err != nil {
			b.Fatal(err)
		}
		more = append(more, runtime.NumGoroutine())
	}
	took := time.Since(start).Seconds()
	slices.Sort(more)
	figures := []measure.Figure{
		measure.Of((measure.CPU()-used).Seconds()/took, "cores"),
		measure.Of(float64(w.requests.Load()-sent)/took, "req_per_s"),
		measure.Of(float64(losses.Load()), "lost"),
		measure.Of(float64(more[len(more)/2]), "median_goroutines"),
		measure.Of(float64(more[len(more)-1]), "most_goroutines"),
		measure.Of(memoryPerLease, "bytes_per_lease"),
		measure.Of(acquired.Seconds(), "acquire_all_s"),
		measure.Of(float64(first)/number, "req_per_acquire"),
	}
	ending.Store(true)
	cancel()
	if err := running.Wait(); err != nil {
		b.Error(err)
	}
	return figures
}
