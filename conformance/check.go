package conformance

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"
	"sync"
	"time"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/internal/wait"
)

// Result is how one case ended.
type Result struct {
	Case    Case
	Err     error         // nil if it passed or was skipped
	Skipped string        // why it could not be run; "" if it could
	Elapsed time.Duration // of all tries
	Tries   int           // more than 1 if this process was too busy to tell

	at    string // the line that failed
	calls string // the last ones, where it failed
	dump  string // goroutines, where it hung
}

// String says what happened and, of a failure, which rule was broken, why the
// rule exists, and what the case did.
func (r Result) String() string {
	switch {
	case r.Skipped != "":
		return fmt.Sprintf("%s: skipped: %s", r.Case.Name, r.Skipped)
	case r.Err == nil:
		return fmt.Sprintf("%s: passed in %v", r.Case.Name, r.Elapsed.Round(time.Millisecond))
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s (%s)\n", r.Case.Name, cmp.Or(r.at, "setup"))
	fmt.Fprintf(&b, "    what: %s\n", indent(r.Err.Error()))
	fmt.Fprintf(&b, "    rule: %s\n", indent(r.Case.Rule))
	fmt.Fprintf(&b, "    why:  %s\n", indent(r.Case.Why))
	if r.calls != "" {
		fmt.Fprintf(&b, "    calls:\n    %s\n", indent(r.calls))
	}
	if r.dump != "" {
		fmt.Fprintf(&b, "    goroutines of the case:\n    %s\n", indent(r.dump))
	}
	return b.String()
}

func indent(s string) string { return strings.ReplaceAll(strings.TrimRight(s, "\n"), "\n", "\n    ") }

// Summary counts results.
type Summary struct {
	Passed, Failed int
	Skipped        []Result
}

// Add counts one more.
func (s *Summary) Add(r Result) {
	switch {
	case r.Skipped != "":
		s.Skipped = append(s.Skipped, r)
	case r.Err != nil:
		s.Failed++
	default:
		s.Passed++
	}
}

// String is one line, and one for each case that was skipped.
func (s Summary) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d passed, %d failed, %d skipped", s.Passed, s.Failed, len(s.Skipped))
	for _, r := range s.Skipped {
		fmt.Fprintf(&b, "\n    %v", r)
	}
	return b.String()
}

// Check runs the cases against a store and yields each result as it comes. Every
// call of open gives another client of the same store; the suite closes it.
// Breaking off, or the end of ctx, stops what is running and waits for it.
func Check(ctx context.Context, open func() (backend.Store, error), opts ...Option) iter.Seq[Result] {
	return func(yield func(Result) bool) {
		cfg := newConfig(opts)
		cfg.open = open
		ctx, cancel := context.WithCancel(ctx)
		results := make(chan Result)
		go func() {
			defer close(results)
			cfg.each(func(c Case) {
				if ctx.Err() == nil {
					results <- cfg.check(ctx, c)
				}
			})
		}()
		defer func() {
			cancel()
			for range results { // wait for what is running
			}
		}()
		for r := range results {
			if !yield(r) {
				return
			}
		}
	}
}

// each calls f for every case, so many at a time as the configuration says.
func (c *config) each(f func(Case)) {
	var wg sync.WaitGroup
	free := make(chan struct{}, c.parallel)
	for _, one := range c.cases {
		free <- struct{}{}
		wg.Go(func() {
			defer func() { <-free }()
			f(one)
		})
	}
	wg.Wait()
}

// maxTries bounds how often a case is run again that was late on a busy machine;
// each time its durations are three times as long.
const maxTries = 3

// check runs one case, again if need be.
func (c *config) check(ctx context.Context, one Case) Result {
	began := time.Now()
	for try, scale := 1, time.Duration(1); ; try, scale = try+1, scale*3 {
		r, again := c.try(ctx, one, scale)
		r.Case, r.Tries, r.Elapsed = one, try, time.Since(began)
		if again && try < maxTries {
			c.logf("%s: run again: late while this process was not scheduled: %v", one.Name, r.Err)
			continue
		}
		if r.Skipped != "" && c.strict {
			r.Err, r.Skipped = errors.New("skipped, which Strict forbids: "+r.Skipped), ""
		}
		return r
	}
}

// try runs one case once. again means that the outcome proves nothing.
func (c *config) try(ctx context.Context, one Case, scale time.Duration) (r Result, again bool) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	e := &Env{ctx: ctx, cancel: cancel, cfg: c, name: one.Name, prefix: c.prefix + strings.ReplaceAll(one.Name, "/", ".") + "." + random(6)}
	e.trace = newTrace(e.prefix)
	e.label = one.Name + "." + random(6) // what an earlier try left is not this one's
	busy := watchSchedule(ctx)

	ended := make(chan error, 1)
	timeout := make(chan time.Duration, 1)
	go labelled(c.run, e.label, func() {
		// A test's open may call FailNow, which ends this goroutine.
		var outcome error = failure{what: "the store could not be opened"}
		defer func() { ended <- outcome }()
		outcome = attempt(func() {
			e.begin(scale)
			timeout <- e.timeout()
			one.Run(e)
		})
		if ended := attempt(e.finish); outcome == nil {
			outcome = ended
		}
	})

	outcome, hung := c.await(ended, timeout)
	if hung {
		r.dump = strings.Join(goroutines(c.run, e.label), "\n\n")
		cancel(errors.New("it hung"))
		select {
		case <-ended:
			outcome = failure{what: "the case hung; it ended when its context was cancelled"}
		case <-time.After(c.patience):
			outcome = failure{what: "the case hung, and did not end when its context was cancelled"}
			c.logf("left behind: what %s had under names that begin with %q", one.Name, e.prefix)
		}
	}
	switch outcome := outcome.(type) {
	case nil:
		return r, false
	case skipped:
		r.Skipped = string(outcome)
		return r, false
	case failure:
		r.Err, r.at, r.calls = errors.New(outcome.what), outcome.at, e.trace.String()
		// Some cases notice that they were late only by what came of it.
		gap := busy.longest()
		return r, outcome.late && gap > e.duration/50 || gap > e.duration/2
	}
	return r, false
}

// begin opens the first client and fits the durations to the store.
func (e *Env) begin(scale time.Duration) {
	first := e.Open()
	e.traits, e.scale = first.Traits(), scale
	d, err := backend.CheckDuration(max(scale*e.cfg.duration, scale*e.traits.MinDuration), e.traits)
	if err != nil {
		e.Fatalf("the store's Traits allow no duration: %v", err)
	}
	e.duration = d
}

// timeout bounds a case: it lets a few tenures run out and a few things come
// late, but not everything.
func (e *Env) timeout() time.Duration {
	return cmp.Or(e.cfg.timeout, 3*e.cfg.patience+20*e.duration+4*min(e.traits.ExpirySlack, e.cfg.maxWait))
}

// await waits for the end of a case, as long as the case says it may take.
func (c *config) await(ended <-chan error, timeout <-chan time.Duration) (outcome error, hung bool) {
	limit := time.NewTimer(2 * c.patience)
	defer limit.Stop()
	for {
		select {
		case outcome := <-ended:
			return outcome, false
		case d := <-timeout:
			limit.Reset(d)
		case <-limit.C:
			return nil, true
		}
	}
}

// schedule measures whether this process gets to run.
type schedule struct {
	mu  sync.Mutex
	gap time.Duration
}

// watchSchedule looks at the clock every few milliseconds until ctx ends.
func watchSchedule(ctx context.Context) *schedule {
	s := &schedule{}
	go func() {
		const tick = 5 * time.Millisecond
		for last := time.Now(); wait.For(ctx, tick); {
			now := time.Now()
			s.mu.Lock()
			s.gap = max(s.gap, now.Sub(last)-tick)
			s.mu.Unlock()
			last = now
		}
	}()
	return s
}

// longest returns for how long this process did not get to run.
func (s *schedule) longest() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.gap
}
