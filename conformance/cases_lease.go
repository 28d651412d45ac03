package conformance

import (
	"context"
	"errors"
	"time"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/lease"
)

var leaseCases = []Case{
	{
		Name: "lease/acquire",
		Rule: "Lease.Acquire of a free lease begins a tenure: Held, Token, Context and Record say so, and the store shows the holder and its metadata",
		Why:  "what the Lease believes and what the store shows must be the same tenure",
		Run: func(e *Env) {
			a, b := e.Store(), e.Open()
			l := e.lease(a, e.Name(""), e.forLong(), lease.WithMetadata(map[string]string{"pod": "web-1"}))
			if l.Held() || l.Token() != 0 || !errors.Is(context.Cause(l.Context()), lease.ErrNotHeld) {
				e.Fatalf("before any Acquire Held is %v, Token %d, and the context's cause %v", l.Held(), l.Token(), context.Cause(l.Context()))
			}
			l.acquires()
			rec := e.get(b, l.Name())
			if rec.Holder != string(l.Holder()) || rec.Token != l.Token() || rec.Metadata["pod"] != "web-1" {
				e.Fatalf("the store shows the holder %q, token %d and metadata %v; the Lease is %q with the token %d", rec.Holder, rec.Token, rec.Metadata, l.Holder(), l.Token())
			}
			e.same(rec, l.Record(), "the store")
			if l.ScheduleID() == 0 || !l.RenewalService().IsScheduled(l.ScheduleID()) {
				e.Fatalf("no renewal is scheduled")
			}
			l.asks("during the tenure", true, false)
		},
	},
	{
		Name: "lease/acquire-held",
		Rule: "Lease.Acquire and Renew of another's lease fail at once with an *AcquisitionError that names the holder, and do not disturb it",
		Why:  "acquire never waits for the other holder; who it is, is what its caller prints",
		Run: func(e *Env) {
			a, b := e.Store(), e.Open()
			holder := e.lease(a, e.Name(""), e.forLong()).acquires()
			other := e.lease(b, e.Name(""), e.forLong())
			before := e.get(b, holder.Name())
			e.acquisition(other.Acquire(e.ctx), "Acquire", string(holder.Holder()))
			e.acquisition(other.Renew(e.ctx), "Renew", string(holder.Holder()))
			if other.TryAcquire(e.ctx) || other.TryRenew(e.ctx) || other.Held() || other.Token() != 0 {
				e.Fatalf("the other holds the lease too")
			}
			e.undisturbed(a, before, "refused acquires")
			holder.holds("after refused acquires by another")
			holder.asks("during the tenure", true, false)
			other.asks("during another's tenure", false, false)
			if n := len(other.told(lease.EventBlocked)); n == 0 {
				e.Fatalf("the observer was not told who is in the way")
			}
		},
	},
	{
		Name: "lease/acquire-mine",
		Rule: "Lease.Acquire, Renew and Extend during the tenure renew it: the same token, a later deadline, the same context",
		Why:  "a second tenure in the first one's place would fence its own writes",
		Run: func(e *Env) {
			l := e.lease(e.Store(), e.Name(""), e.forLong()).acquires()
			ctx, token := l.Context(), l.Token()
			for i, extend := range []func(context.Context) error{l.Acquire, l.Renew, l.Extend} {
				before := l.Deadline()
				e.sleep(2 * time.Millisecond)
				if err := extend(e.ctx); err != nil {
					e.Fatalf("during the tenure %s failed: %v", []string{"Acquire", "Renew", "Extend"}[i], err)
				}
				if l.Deadline() <= before {
					e.Fatalf("%s left the deadline at %v", []string{"Acquire", "Renew", "Extend"}[i], before)
				}
			}
			if err := l.Await(e.ctx); err != nil {
				e.Fatalf("Await by the holder failed: %v", err)
			}
			if l.Token() != token || l.Context() != ctx || ctx.Err() != nil {
				e.Fatalf("the tenure is another: token %d, want %d; the context %v", l.Token(), token, context.Cause(ctx))
			}
			if got := e.get(e.Store(), l.Name()); got.Token != token {
				e.Fatalf("the store shows the token %d, want %d", got.Token, token)
			}
		},
	},
	{
		Name: "lease/acquire-expired",
		Rule: "Lease.Acquire takes a lease whose holder has let it expire, with a greater token",
		Why:  "a dead holder must not keep the lease",
		Run: func(e *Env) {
			a, b := e.Store(), e.Open()
			dead := e.acquire(a, e.shortClaim(e.Name(""), "alice"))
			l := e.lease(b, dead.Name, e.forLong())
			expired := e.expire(b, dead)
			l.asks("after another's tenure has expired", false, true)
			l.acquires()
			e.rises(expired, l.Record(), "expiry")
			e.renewLost(a, dead, "whose tenure had expired and was taken over")
		},
	},
	{
		Name: "lease/renew-free",
		Rule: "Lease.Renew without a tenure acquires; Lease.Extend does not: it is ErrNotHeld and leaves no record",
		Why:  "a renewal service that begins tenures by itself holds what nobody asked for",
		Run: func(e *Env) {
			l := e.lease(e.Store(), e.Name(""), e.forLong())
			extend := func() {
				if err := l.Extend(e.ctx); !errors.Is(err, lease.ErrNotHeld) {
					e.Fatalf("Extend without a tenure: %s, want ErrNotHeld", said(err))
				}
				e.free(e.Store(), l.Name())
			}
			extend()
			if err := l.Renew(e.ctx); err != nil {
				e.Fatalf("Renew of a free lease failed: %v", err)
			}
			l.holds("after Renew of a free lease")
			l.releases()
			extend()
		},
	},
	{
		Name: "lease/renew-run-out",
		Rule: "Lease.Renew after the tenure has run out begins a new one, with a greater token and a new context; the old context stays ended",
		Why:  "in between somebody else may have acted: work that began under the old token must not go on under the new one unawares",
		Run: func(e *Env) {
			l := e.lease(e.Store(), e.Name(""), lease.WithoutRenewal()).acquires()
			old, before := l.Context(), l.Record()
			l.ends(old, l.Duration()+e.cfg.patience, lease.ErrExpired)
			if err := l.Renew(e.ctx); err != nil {
				e.Fatalf("Renew after the tenure had run out failed: %v", err)
			}
			l.holds("after Renew")
			e.rises(before, l.Record(), "the end of the tenure")
			if l.Context() == old || !errors.Is(context.Cause(old), lease.ErrExpired) {
				e.Fatalf("the old context is still the Lease's: %v", context.Cause(old))
			}
			l.endedOnce(1)
		},
	},
	{
		Name: "lease/release",
		Rule: "Lease.Release ends the tenure and frees the lease; a second one finds nothing and is nil; another can acquire at once",
		Why:  "releasing is said in a defer, often twice",
		Run: func(e *Env) {
			a, b := e.Store(), e.Open()
			l := e.lease(a, e.Name(""), e.forLong()).acquires()
			ctx := l.Context()
			l.releases()
			l.ends(ctx, 0, lease.ErrReleased)
			e.free(b, l.Name())
			l.asks("after Release", false, false)
			l.releases()
			if !l.TryRelease(e.ctx) {
				e.Fatalf("TryRelease of what is free is false")
			}
			next := e.lease(b, e.Name(""), e.forLong()).acquires()
			before := e.get(b, next.Name())
			e.relinquishment(l.Release(e.ctx), string(next.Holder()))
			if l.TryRelease(e.ctx) {
				e.Fatalf("TryRelease of another's live lease is true")
			}
			e.undisturbed(b, before, "another's Release")
			next.holds("after another's Release")
			l.endedOnce(1)
		},
	},
	{
		Name: "lease/release-others-expired",
		Rule: "Lease.Release also frees what another has let expire",
		Why:  "whoever clears up after a crash need not wait for the next to acquire",
		Run: func(e *Env) {
			a, b := e.Store(), e.Open()
			dead := e.acquire(a, e.shortClaim(e.Name(""), "alice"))
			l := e.lease(b, dead.Name, e.forLong())
			e.expire(b, dead)
			l.releases()
			e.free(a, dead.Name)
		},
	},
	{
		Name: "lease/sealed",
		Rule: "a sealed lease can be neither acquired nor released: the errors name where it has moved",
		Why:  "a client that knows nothing of a migration must stay out, and must not undo it",
		Run: func(e *Env) {
			e.needs(Seals)
			a, b := e.Store(), e.Open()
			c := e.sealClaim(e.Name(""), backend.Seal{To: "there", Epoch: 1})
			rec := e.acquire(a, c)
			l := e.lease(b, rec.Name)
			if err := l.Acquire(e.ctx); !errors.Is(err, backend.ErrHeld) {
				e.Fatalf("Acquire of a sealed lease: %s, want ErrHeld", said(err))
			}
			var failed *lease.RelinquishmentError
			if err := l.Release(e.ctx); !errors.As(err, &failed) {
				e.Fatalf("Release of a sealed lease: %s, want a *RelinquishmentError", said(err))
			}
			ctx, cancel := context.WithTimeout(e.ctx, 2*e.leaseDuration())
			defer cancel()
			if err := l.Await(ctx); err == nil {
				e.Fatalf("Await acquired a sealed lease")
			}
			l.asks("of a sealed lease", false, false)
			e.undisturbed(a, rec, "all that")
		},
	},
	{
		Name: "lease/questions",
		Rule: "IsAcquired and IsExpired ask the store: mine and not expired; expired, whoever's",
		Why:  "they are for those who come from outside; a Lease that answers from memory tells them what was",
		Run: func(e *Env) {
			a, b := e.Store(), e.Open()
			l := e.lease(a, e.Name(""), e.forLong())
			l.asks("of a free lease", false, false)
			l.acquires()
			l.asks("during the tenure", true, false)
			e.release(b, e.get(b, l.Name())) // somebody deletes the record
			l.asks("after the record was deleted", false, false)
			other := e.acquire(b, e.claim(l.Name(), "bob"))
			l.asks("during another's tenure", false, false)
			e.release(b, other)
			e.expire(b, e.acquire(b, e.shortClaim(l.Name(), "bob")))
			l.asks("after another's tenure has expired", false, true)
		},
	},
	{
		Name: "lease/renewed",
		Rule: "a Lease that is renewed in the background outlives its duration, with one token, whatever contenders and observers try",
		Why:  "a long job needs its lease as long as it lasts; renewals that another cannot see must not cost it",
		Run: func(e *Env) {
			a, b := e.Store(), e.Open()
			l := e.lease(a, e.Name("")).acquires()
			token := l.Token()
			waiter := e.lease(b, e.Name(""))
			ctx, cancel := context.WithTimeout(e.ctx, 4*l.Duration())
			defer cancel()
			e.together(2, func(i int) {
				if i == 0 {
					if err := waiter.Await(ctx); err == nil {
						l.holds("when a waiter was let in")
						e.Fatalf("a waiter was let in while the lease was held")
					}
					return
				}
				for ctx.Err() == nil {
					if rec, err := b.Acquire(e.ctx, e.claim(l.Name(), "contender")); err == nil {
						l.holds("when a contender was let in")
						e.Fatalf("a contender was granted the token %d while the lease was held", rec.Token)
					}
					e.sleep(l.Duration() / 20)
				}
			})
			l.holds("after several durations")
			if l.Token() != token {
				e.Fatalf("the token went from %d to %d", token, l.Token())
			}
			if n := len(l.told(lease.EventRenewed)); n < 4 {
				e.latef("there were %d renewals in four durations", n)
			}
		},
	},
	{
		Name: "lease/shared-holder",
		Rule: "Leases that share a holder share one tenure: each acquires it, and a release by one ends it for all",
		Why:  "the parts of one process act together; whoever of them goes on after the release acts alone",
		Run: func(e *Env) {
			a, b := e.Store(), e.Open()
			one := e.steady(a, e.Name(""), lease.WithHolder("shared")).acquires()
			two := e.steady(b, e.Name(""), lease.WithHolder("shared")).acquires()
			if one.Token() != two.Token() {
				e.Fatalf("two Leases with one holder have the tokens %d and %d", one.Token(), two.Token())
			}
			one.asks("during the shared tenure", true, false)
			two.asks("during the shared tenure", true, false)
			ctx := two.Context()
			one.releases()
			e.within(e.leaseDuration()+e.cfg.patience, "the tenure ends for the other Lease too", func() bool { return ctx.Err() != nil })
			if two.Held() {
				e.Fatalf("Held is true after the shared tenure was released")
			}
			e.free(a, one.Name())
		},
	},
	{
		Name: "lease/close",
		Rule: "Lease.Close ends the tenure, with ErrClosed, and leaves the record to expire; after it every call fails, and a second Close is nil",
		Why:  "who closes without releasing has not stopped working: another must not be let in before the duration is over",
		Run: func(e *Env) {
			a, b := e.Store(), e.Open()
			l := e.lease(a, e.Name(""), e.forLong()).acquires()
			rec := l.Record()
			ctx := l.Context()
			for range 2 {
				if err := l.Close(); err != nil {
					e.Fatalf("Lease.Close failed: %v", err)
				}
			}
			l.ends(ctx, 0, lease.ErrClosed)
			e.same(e.get(b, rec.Name), rec, "after Close Get")
			if err := l.Acquire(e.ctx); !errors.Is(err, lease.ErrClosed) {
				e.Fatalf("Acquire after Close: %s, want ErrClosed", said(err))
			}
			if err := l.Await(e.ctx); !errors.Is(err, lease.ErrClosed) {
				e.Fatalf("Await after Close: %s, want ErrClosed", said(err))
			}
			e.undisturbed(b, rec, "calls after Close")
			l.endedOnce(1)
		},
	},
	{
		Name: "lease/max-hold",
		Rule: "WithMaxHold ends a tenure however well it is renewed, with ErrMaxHold; what is left of it can be released",
		Why:  "a job that never ends must not keep the others out for ever",
		Run: func(e *Env) {
			d := e.leaseDuration()
			began := time.Now()
			l := e.steady(e.Store(), e.Name(""), lease.WithMaxHold(d)).acquires()
			ctx := l.Context()
			l.ends(ctx, d+e.cfg.patience, lease.ErrMaxHold)
			if held := time.Since(began); held < notBefore(d) {
				e.Fatalf("a tenure that may be held for %v ended after %v", d, held)
			}
			l.releases()
			e.free(e.Store(), l.Name())
			l.endedOnce(1)
		},
	},
	{
		Name: "lease/tenures",
		Rule: "a Lease can be acquired and released over and over: tokens rise, each context ends with its tenure, and each beginning and end is told once, in order",
		Why:  "observers count on it: metrics, and programs that start and stop something",
		Run: func(e *Env) {
			l := e.lease(e.Store(), e.Name(""), e.forLong())
			last := backend.Record{}
			const tenures = 8
			for range tenures {
				l.acquires()
				e.rises(last, l.Record(), "release")
				last = l.Record()
				ctx := l.Context()
				l.releases()
				if !errors.Is(context.Cause(ctx), lease.ErrReleased) {
					e.Fatalf("the context of a released tenure says %v", context.Cause(ctx))
				}
			}
			e.eventually("all is told", func() bool { return len(l.told(lease.EventReleased)) == tenures })
			l.endedOnce(tenures)
			l.mu.Lock()
			defer l.mu.Unlock()
			order := []lease.EventKind{lease.EventAcquired, lease.EventEnded, lease.EventReleased}
			for i, ev := range l.events {
				if ev.Kind != order[i%3] {
					e.Fatalf("event number %d is %q, want %q", i+1, ev.Kind, order[i%3])
				}
			}
		},
	},
}
