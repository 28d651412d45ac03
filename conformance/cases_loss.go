package conformance

import (
	"context"
	"errors"
	"time"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/lease"
)

var lossCases = []Case{
	{
		Name: "loss/taken",
		Rule: "a holder whose lease was taken away hears of it by its next renewal at the latest, once, with ErrTaken; so does who asks later",
		Why:  "a loss that is not told, or told to nobody, lets the old holder work beside the new one",
		Run: func(e *Env) {
			a, b := e.Store(), e.Open()
			l := e.steady(a, e.Name("")).acquires()
			ctx := l.Context()
			taken := e.takeAway(b, e.claim(l.Name(), "bob"))
			l.ends(ctx, e.leaseDuration()+e.cfg.patience, lease.ErrTaken)
			e.relinquishment(l.Release(e.ctx), "bob")
			e.acquisition(l.Acquire(e.ctx), "Acquire", "bob")
			e.sleep(e.leaseDuration())
			l.endedOnce(1)
			e.undisturbed(b, taken, "all that the old holder did")
		},
	},
	{
		Name: "loss/deleted",
		Rule: "a holder whose record was deleted hears of it by its next renewal at the latest, and does not bring the record back",
		Why:  "somebody has cleared it away, and the next may be let in any moment",
		Run: func(e *Env) {
			a, b := e.Store(), e.Open()
			l := e.steady(a, e.Name("")).acquires()
			ctx := l.Context()
			e.release(b, e.get(b, l.Name()))
			l.ends(ctx, e.leaseDuration()+e.cfg.patience, lease.ErrTaken)
			e.free(b, l.Name())
			e.sleep(e.leaseDuration())
			l.endedOnce(1)
			e.free(b, l.Name())
			l.releases() // nothing is there
		},
	},
	{
		Name: "loss/sealed",
		Rule: "a holder whose lease was moved to another store hears of it, and is not told that it released",
		Why:  "a holder that knows nothing of migrations must stop like any that lost its lease",
		Run: func(e *Env) {
			e.needs(Seals)
			a, b := e.Store(), e.Open()
			l := e.steady(a, e.Name("")).acquires()
			ctx := l.Context()
			rec := e.takeAway(b, e.sealClaim(l.Name(), backend.Seal{To: "there", Epoch: 1}))
			e.within(e.leaseDuration()+e.cfg.patience, "the context of the tenure ends", func() bool { return ctx.Err() != nil })
			if cause := context.Cause(ctx); errors.Is(cause, lease.ErrReleased) || l.Held() {
				e.Fatalf("the tenure ended with %q; Held is %v", cause, l.Held())
			}
			e.sleep(e.leaseDuration() / 2)
			l.endedOnce(1)
			e.undisturbed(b, rec, "all that the old holder did")
		},
	},
	{
		Name: "loss/released",
		Rule: "a release of one's own is no loss: the end has the cause ErrReleased, is told once, and nothing follows",
		Why:  "alarms that ring when all is well are switched off",
		Run: func(e *Env) {
			l := e.steady(e.Store(), e.Name("")).acquires()
			ctx := l.Context()
			e.eventually("a renewal", func() bool { return len(l.told(lease.EventRenewed)) > 0 })
			l.releases()
			l.ends(ctx, 0, lease.ErrReleased)
			e.eventually("the release is told", func() bool { return len(l.told(lease.EventReleased)) == 1 })
			l.mu.Lock()
			before := len(l.events)
			l.mu.Unlock()
			e.sleep(e.leaseDuration())
			l.mu.Lock()
			defer l.mu.Unlock()
			if len(l.events) != before {
				e.Fatalf("after the release was told there came: %v", l.events[before:])
			}
			for _, ev := range l.events {
				if ev.Kind == lease.EventEnded && !errors.Is(ev.Err, lease.ErrReleased) {
					e.Fatalf("the end was told with %q, want %q", ev.Err, lease.ErrReleased)
				}
			}
		},
	},
	{
		Name: "loss/observed",
		Rule: "a holder that watches its record hears at once that it was taken away, long before its next renewal",
		Why:  "it is why Run watches",
		Run: func(e *Env) {
			a, b := e.Store(), e.Open()
			if _, watches := a.(backend.Watcher); !watches {
				e.Skipf("the store has no Watch of its own, and Run does not poll")
			}
			f := NewFaults(a)
			l := e.lease(f.Store(), e.Name(""), e.forLong())
			var cause error
			err := l.Run(e.ctx, func(ctx context.Context) error {
				e.eventually("Run watches", func() bool { return f.Calls(VerbWatch) > 0 })
				e.sleep(20 * time.Millisecond) // so that it is a change that it sees
				e.takeAway(b, e.claim(l.Name(), "bob"))
				e.eventually("the context of the work ends", func() bool { return ctx.Err() != nil })
				cause = context.Cause(ctx)
				return nil
			})
			if !errors.Is(cause, lease.ErrTaken) || !errors.Is(err, lease.ErrTaken) {
				e.Fatalf("the work's context ended with %v and Run returned %v, want %q", cause, err, lease.ErrTaken)
			}
			l.endedOnce(1)
		},
	},
}
