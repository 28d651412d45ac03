package conformance

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/leasehold/leasehold/lease"
)

var waitingCases = []Case{
	{
		Name: "waiting/release",
		Rule: "Lease.Await is let in when the holder releases, long before the tenure would have run out, and each waiter in its turn",
		Why:  "a hand-over should take as long as the news does",
		Run: func(e *Env) {
			holder := e.lease(e.Store(), e.Name(""), e.forLong()).acquires()
			waiters := []*holding{
				e.lease(e.Open(), e.Name(""), e.forLong()), e.lease(e.Open(), e.Name(""), e.forLong()), e.lease(e.Store(), e.Name(""), e.forLong()),
			}
			turns := make(chan *holding)
			for _, w := range waiters {
				e.waits(w, turns)
				e.eventually("a waiter is told who is in the way", func() bool { return len(w.told(lease.EventBlocked)) > 0 })
			}
			e.sleep(20 * time.Millisecond) // whatever they do next, they wait
			last := holder
			for range waiters {
				before := last.Record()
				last.releases()
				select {
				case last = <-turns:
					last.holds("after Await")
					e.rises(before, last.Record(), "a hand-over")
				case <-time.After(e.cfg.patience):
					e.latef("no waiter was let in within %v of the release", e.cfg.patience)
				}
			}
			last.releases()
			e.nothingLeft()
		},
	},
	{
		Name: "waiting/dead-holder",
		Rule: "Lease.Await is let in when a holder has gone silent: not before its Duration has passed since its last call began, and with a greater token",
		Why:  "before: two holders; never: an outage. Where the store judges expiry late or not at all, it is the waiter that must see the silence",
		Run: func(e *Env) {
			e.needsSuccession()
			a, b := e.Store(), e.Open()
			c := e.shortClaim(e.Name(""), "alice")
			began := time.Now()
			dead := e.acquire(a, c)
			l := e.lease(b, dead.Name, e.forLong())
			within := dead.Duration + dead.Duration/50 + min(e.traits.ExpirySlack, e.cfg.maxWait) + e.cfg.patience
			ctx, cancel := context.WithTimeout(e.ctx, within)
			defer cancel()
			if err := l.Await(ctx); err != nil {
				e.latef("Await was not let in within %v: %v", within, err)
			}
			if passed := time.Since(began); passed < notBefore(dead.Duration) {
				e.Fatalf("Await was let in %v after the holder's last call began; its duration is %v", passed, dead.Duration)
			}
			l.holds("after Await")
			e.rises(dead, l.Record(), "the end of a silent holder")
			e.renewLost(a, dead, "who was silent and was replaced")
			l.asks("after it was let in", true, false)
		},
	},
	{
		Name: "waiting/deleted",
		Rule: "Lease.Await is let in when the record is deleted, or replaced by another that is released",
		Why:  "records are changed by many hands; a waiter that misses one of them waits for ever",
		Run: func(e *Env) {
			a, b := e.Store(), e.Open()
			rec := e.acquire(a, e.claim(e.Name(""), "alice"))
			l := e.lease(b, rec.Name, e.forLong())
			turns := make(chan *holding, 1)
			e.waits(l, turns)
			e.eventually("the waiter is told who is in the way", func() bool { return len(l.told(lease.EventBlocked)) > 0 })
			next := e.acquire(a, over(e.claim(rec.Name, "carol"), rec))
			e.release(a, next)
			select {
			case <-turns:
				l.holds("after Await")
				e.rises(next, l.Record(), "a release by another than the one who was waited for")
			case <-time.After(e.cfg.patience):
				e.latef("the waiter was not let in within %v of the release", e.cfg.patience)
			}
		},
	},
	{
		Name: "waiting/cancelled",
		Rule: "an Await whose context ends returns at once with its cause, names who holds the lease, and leaves nothing behind: it does not acquire later",
		Why:  "who has given up waiting would hold without knowing, and keep the others out",
		Run: func(e *Env) {
			a, b := e.Store(), e.Open()
			holder := e.lease(a, e.Name(""), e.forLong()).acquires()
			l := e.lease(b, e.Name(""), e.forLong())
			other := string(holder.Holder())

			ctx, cancel := context.WithCancelCause(e.ctx)
			defer cancel(nil)
			returned := make(chan error, 1)
			go func() { returned <- l.Await(ctx) }()
			e.eventually("the waiter is told who is in the way", func() bool { return len(l.told(lease.EventBlocked)) > 0 })
			gaveUp := errors.New("gave up")
			cancel(gaveUp)
			select {
			case err := <-returned:
				e.acquisition(err, "Await", other)
				if !errors.Is(err, gaveUp) {
					e.Fatalf("Await failed with %q, want its context's cause, %q", err, gaveUp)
				}
			case <-time.After(e.cfg.patience):
				e.latef("Await did not return within %v of the end of its context", e.cfg.patience)
			}

			// One whose context ends just when the store has refused it.
			ctx, cancel = context.WithCancelCause(e.ctx)
			defer cancel(nil)
			hasty := e.lease(b, e.Name(""), e.forLong(), lease.WithObserver(func(lease.Event) { cancel(gaveUp) }))
			err := hasty.Await(ctx)
			e.acquisition(err, "Await", other)
			if !errors.Is(err, gaveUp) {
				e.Fatalf("Await, whose context ended while the store refused it, failed with %q, want its context's cause, %q", err, gaveUp)
			}

			brief, stop := context.WithTimeout(e.ctx, 20*time.Millisecond)
			defer stop()
			if err := l.Await(brief); !errors.Is(err, context.DeadlineExceeded) {
				e.Fatalf("Await with a timeout: %s, want context.DeadlineExceeded", said(err))
			}
			stop()
			if err := l.Await(brief); !errors.Is(err, context.DeadlineExceeded) {
				e.Fatalf("Await with a context that has ended: %s, want its error", said(err))
			}
			holder.releases()
			for range 10 {
				e.free(a, holder.Name())
				e.sleep(5 * time.Millisecond)
			}
			if l.Held() || l.Token() != 0 {
				e.Fatalf("who gave up waiting holds the lease")
			}
			e.nothingLeft()
		},
	},
	{
		Name: "waiting/many",
		Rule: "of many who wait for one lease and work under it, never do two work at once; their tokens rise; each gets its turn; nothing is left",
		Why:  "it is all of the lease at once, as it is used: a counter that is read and written back must come out exact",
		Run: func(e *Env) {
			stores := e.open(e.cfg.clients)
			const turns = 3
			var (
				mu      sync.Mutex // for the race detector: only one works at a time
				working string
				last    uint64
				done    int
			)
			e.together(len(stores), func(i int) {
				l := e.steady(stores[i], e.Name(""))
				for range turns {
					err := l.Run(e.ctx, func(ctx context.Context) error {
						mu.Lock()
						if working != "" {
							defer mu.Unlock()
							e.Fatalf("%q works with the token %d while %q does", l.Holder(), l.Token(), working)
						}
						if l.Token() <= last {
							defer mu.Unlock()
							e.Fatalf("the token %d comes after %d", l.Token(), last)
						}
						working, last = string(l.Holder()), l.Token()
						before := done
						mu.Unlock()
						e.sleep(2 * time.Millisecond)
						mu.Lock()
						defer mu.Unlock()
						working, done = "", before+1
						return nil
					})
					if err != nil {
						e.Fatalf("Lease.Run failed: %v", err)
					}
				}
			})
			if done != turns*len(stores) {
				e.Fatalf("a counter under the lease came to %d, want %d", done, turns*len(stores))
			}
			e.nothingLeft()
		},
	},
	{
		Name: "waiting/run",
		Rule: "Lease.Run calls the function while it holds, releases only after it has returned, also where its context ended before, and returns its error",
		Why:  "a lease that is released while the work goes on guards nothing",
		Run: func(e *Env) {
			a, b := e.Store(), e.Open()
			l := e.lease(a, e.Name(""), e.forLong())
			failed := errors.New("the work failed")
			ctx, cancel := context.WithCancel(e.ctx)
			defer cancel()
			err := l.Run(ctx, func(work context.Context) error {
				l.holds("while Run's function runs")
				e.refused(b, e.claim(l.Name(), "bob"))
				cancel()
				e.eventually("the context of the work ends with the caller's", func() bool { return work.Err() != nil })
				for range 5 { // the work takes its time to stop
					if rec := e.refused(b, e.claim(l.Name(), "bob")); rec.Holder != string(l.Holder()) {
						e.Fatalf("the lease was released before Run's function returned")
					}
					e.sleep(5 * time.Millisecond)
				}
				return failed
			})
			if !errors.Is(err, failed) {
				e.Fatalf("Lease.Run returned %v, want what its function returned", err)
			}
			if l.Held() {
				e.Fatalf("Held is true after Run")
			}
			e.free(b, l.Name())
			l.endedOnce(1)
		},
	},
	{
		Name: "waiting/run-panic",
		Rule: "Lease.Run releases also when its function panics",
		Why:  "a server that recovers goes on, and its lease would be renewed for ever",
		Run: func(e *Env) {
			l := e.lease(e.Store(), e.Name(""), e.forLong())
			func() {
				defer func() {
					if r := recover(); r != "deliberate" {
						e.Fatalf("the panic of Run's function came out as %v", r)
					}
				}()
				_ = l.Run(e.ctx, func(context.Context) error { panic("deliberate") })
			}()
			if l.Held() || l.Context().Err() == nil {
				e.Fatalf("the tenure goes on after the panic of Run's function")
			}
			e.free(e.Store(), l.Name())
		},
	},
	{
		Name: "waiting/run-lost",
		Rule: "the context of Run's function ends when the tenure is lost, with the cause, and Run's error tells of it although the function did not",
		Why:  "work that was done without the lease must not look like work well done",
		Run: func(e *Env) {
			a, b := e.Store(), e.Open()
			l := e.steady(a, e.Name(""))
			err := l.Run(e.ctx, func(work context.Context) error {
				e.takeAway(b, e.claim(l.Name(), "bob"))
				e.within(e.leaseDuration()+e.cfg.patience, "the context of the work ends", func() bool { return work.Err() != nil })
				if cause := context.Cause(work); !errors.Is(cause, lease.ErrTaken) {
					e.Fatalf("the context of the work ended with %q, want %q", cause, lease.ErrTaken)
				}
				return nil
			})
			if !errors.Is(err, lease.ErrTaken) {
				e.Fatalf("Lease.Run returned %v, want %q", err, lease.ErrTaken)
			}
			if got := e.get(b, l.Name()); got.Holder != "bob" {
				e.Fatalf("the lease that was taken away is held by %q, want \"bob\"", got.Holder)
			}
		},
	},
	{
		Name: "waiting/observe",
		Rule: "Lease.Observe yields the present state and every change of hands, to holders and to others",
		Why:  "it is how a program shows who leads",
		Run: func(e *Env) {
			a, b := e.Store(), e.Open()
			observer := e.lease(b, e.Name(""))
			ctx, cancel := context.WithTimeout(e.ctx, 2*e.cfg.patience)
			defer cancel()
			holder := e.lease(a, e.Name(""), e.forLong())
			step := 0
			for rec, err := range observer.Observe(ctx) {
				if err != nil {
					e.Fatalf("Observe failed: %v", err)
				}
				switch {
				case step == 0 && rec.Vacant():
					holder.acquires()
					step++
				case step == 1 && rec.Holder == string(holder.Holder()):
					holder.releases()
					step++
				case step == 2 && rec.Vacant():
					step++
				}
				if step == 3 {
					break
				}
			}
			if step != 3 {
				e.latef("Observe did not show %s", []string{"the present state", "the holder", "the release"}[step])
			}
		},
	},
	{
		Name: "waiting/cut-off",
		Rule: "an Await that the store fails goes on trying, and is let in when the store is back and the lease free",
		Why:  "waiters wait for days; a hiccup must not send them home, nor leave them deaf",
		Run: func(e *Env) {
			a := e.Store()
			holder := e.lease(a, e.Name(""), e.forLong()).acquires()
			f := NewFaults(e.Open())
			l := e.lease(f.Store(), e.Name(""), e.forLong())
			f.Every(Fail(nil))
			turns := make(chan *holding, 1)
			e.waits(l, turns)
			e.eventually("the waiter tries again", func() bool { return f.Calls(VerbAcquire) > 2 })
			holder.releases()
			f.Heal()
			select {
			case <-turns:
				l.holds("after Await")
			case <-time.After(e.cfg.patience):
				e.latef("the waiter was not let in within %v after the store was back", e.cfg.patience)
			}
		},
	},
	{
		Name: "waiting/names",
		Rule: "who waits for one lease is not let in by another's release, nor keeps another out",
		Why:  "names that share a wake-up are only slow; names that share more are wrong",
		Run: func(e *Env) {
			a, b := e.Store(), e.Open()
			busy := e.lease(a, e.Name("-busy"), e.forLong()).acquires()
			w := e.lease(b, busy.Name(), e.forLong())
			turns := make(chan *holding, 1)
			e.waits(w, turns)
			for i := range 3 {
				other := e.lease(b, e.Name(fmt.Sprintf("-busy%d", i)), e.forLong()).acquires()
				other.releases()
			}
			select {
			case <-turns:
				e.Fatalf("who waits for %q was let in by the release of another", "-busy")
			case <-time.After(20 * time.Millisecond):
			}
			busy.holds("while another waits")
			busy.releases()
			select {
			case <-turns:
			case <-time.After(e.cfg.patience):
				e.latef("the waiter was not let in within %v of the release", e.cfg.patience)
			}
		},
	},
	{
		Name: "waiting/leaves-nothing",
		Rule: "no goroutine or watch outlives the Await, Run or Observe that began it, nor anything the Lease",
		Why:  "a program that waits for a lease a thousand times must not end up with a thousand watches",
		Run: func(e *Env) {
			a, b := e.Store(), e.Open()
			const pkg = "github.com/leasehold/leasehold/lease"
			holder := e.lease(a, e.Name(""), e.forLong())
			l := e.lease(b, e.Name(""), e.forLong())
			for range 3 {
				holder.acquires()
				ctx, cancel := context.WithTimeout(e.ctx, 10*time.Millisecond)
				_ = l.Await(ctx)
				cancel()
				for range l.Observe(e.ctx) {
					break
				}
				turns := make(chan *holding, 1)
				blocked := len(l.told(lease.EventBlocked))
				e.waits(l, turns)
				e.eventually("the waiter is told who is in the way", func() bool { return len(l.told(lease.EventBlocked)) > blocked })
				e.sleep(5 * time.Millisecond) // it watches now, most likely
				holder.releases()
				select {
				case <-turns:
				case <-time.After(e.cfg.patience):
					e.latef("the waiter was not let in within %v of the release", e.cfg.patience)
				}
				l.releases()
				if err := l.Run(e.ctx, func(context.Context) error { return nil }); err != nil {
					e.Fatalf("Lease.Run failed: %v", err)
				}
				e.eventually("what was begun has ended", func() bool { return e.running(pkg) == 0 })
			}
			holder.acquires()
			if err := holder.Close(); err != nil {
				e.Fatalf("Lease.Close failed: %v", err)
			}
			e.eventually("what was begun has ended", func() bool { return e.running(pkg) == 0 })
		},
	},
}

// waits lets a Lease wait in the background; it sends the Lease when it is let
// in, and stops with the case.
func (e *Env) waits(h *holding, turns chan<- *holding) {
	ctx, cancel := context.WithCancel(e.ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := h.Await(ctx); err == nil {
			select {
			case turns <- h:
			case <-ctx.Done():
			}
		} else if ctx.Err() == nil {
			e.trace.note("await by "+string(h.Holder()), "error: "+err.Error())
		}
	}()
	e.defers(func() {
		cancel()
		<-ended
	})
}
