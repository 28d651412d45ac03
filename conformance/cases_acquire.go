package conformance

import (
	"errors"

	"github.com/leasehold/leasehold/backend"
)

var acquireCases = []Case{
	{
		Name: "contract/one-store",
		Rule: "every call of open gives another client of one and the same store",
		Why:  "clients of different stores never meet: everything else the suite says would be empty",
		Run: func(e *Env) {
			a, b := e.Store(), e.Open()
			rec := e.acquire(a, e.claim(e.Name(""), "alice"))
			found, err := b.Get(e.ctx, rec.Name)
			if err != nil || !found.SameTenure(rec) {
				e.Fatalf("a second client does not see the tenure that the first was granted (%v): does open make a new store each time?", err)
			}
		},
	},
	{
		Name: "contract/traits",
		Rule: "Traits have a name and no negative durations, and are the same for every client",
		Why:  "package lease fits its timing to them; users read the name in errors and logs",
		Run: func(e *Env) {
			t := e.traits
			if t.Name == "" {
				e.Fatalf("Traits.Name is empty")
			}
			if t.MinDuration < 0 || t.Granularity < 0 || t.ExpirySlack < 0 {
				e.Fatalf("Traits has a negative duration: %+v", t)
			}
			if o := e.Open().Traits(); o.Name != t.Name || o.Namespace != t.Namespace || o.RenewalsVisible != t.RenewalsVisible {
				e.Fatalf("another client has other Traits: %+v and %+v", t, o)
			}
		},
	},
	{
		Name: "contract/acquire-free",
		Rule: "Acquire succeeds if there is no record, and returns what Get then shows",
		Why:  "it is what a lease is for; and a record that differs from the stored one makes the next compare-and-swap fail",
		Run: func(e *Env) {
			a, b := e.Store(), e.Open()
			c := e.claim(e.Name(""), "alice")
			rec := e.acquire(a, c)
			if rec.Attempt != c.Attempt {
				e.Fatalf("the record shows the attempt %q, want %q: an acquire whose reply was lost could not be found again", rec.Attempt, c.Attempt)
			}
			if rec.AcquiredAt.IsZero() || rec.RenewedAt.IsZero() {
				e.Fatalf("AcquiredAt is %v and RenewedAt is %v, want wall-clock times", rec.AcquiredAt, rec.RenewedAt)
			}
			e.same(e.get(a, rec.Name), rec, "Get")
			e.same(e.get(b, rec.Name), rec, "Get by another client")
		},
	},
	{
		Name: "contract/acquire-held",
		Rule: "Acquire of a held name is refused with a *HeldError that carries the record found, and changes nothing",
		Why:  "two holders at a time is the one thing a lease must prevent; and who is in the way is what users ask first",
		Run: func(e *Env) {
			a, b := e.Store(), e.Open()
			c := e.claim(e.Name(""), "alice")
			c.Metadata = map[string]string{"pod": "web-1"}
			rec := e.acquire(a, c)
			e.same(e.refused(b, e.claim(rec.Name, "bob")), rec, "the *HeldError")
			e.undisturbed(a, rec, "a refused Acquire")
			e.renew(a, rec)
		},
	},
	{
		Name: "contract/acquire-released",
		Rule: "Acquire succeeds if the record is vacant or gone",
		Why:  "a released lease that stays taken is an outage",
		Run: func(e *Env) {
			a, b := e.Store(), e.Open()
			rec := e.acquire(a, e.claim(e.Name(""), "alice"))
			e.release(a, rec)
			e.acquire(b, e.claim(rec.Name, "bob"))
		},
	},
	{
		Name: "contract/acquire-vacant",
		Rule: "Acquire succeeds over a record that was vacated because it keeps a token floor",
		Why:  "a vacated record has no holder: taking it for a held one blocks the name for ever",
		Run: func(e *Env) {
			e.needs(MinToken)
			a, b := e.Store(), e.Open()
			rec := e.raised(e.Name(""), 100)
			e.release(a, rec)
			e.free(b, rec.Name)
			e.acquire(b, e.claim(rec.Name, "bob"))
		},
	},
	{
		Name: "contract/acquire-expired",
		Rule: "Acquire succeeds if the record is Expired, and the tenure before it is over",
		Why:  "a holder that died must not block the others; one that was only slow must hear that it lost",
		Run: func(e *Env) {
			a, b := e.Store(), e.Open()
			dead := e.acquire(a, e.shortClaim(e.Name(""), "alice"))
			e.expire(b, dead)
			rec := e.acquire(b, e.claim(dead.Name, "bob"))
			e.same(e.get(a, rec.Name), rec, "Get")
			e.renewLost(a, dead, "whose tenure had expired and was taken over")
			e.releaseLost(a, dead, "whose tenure had expired and was taken over")
			e.undisturbed(b, rec, "the dead holder's Renew and Release")
		},
	},
	{
		Name: "contract/acquire-same-attempt",
		Rule: "the same Attempt again, from any client, gets the same record while its tenure is the current one",
		Why:  "an acquire whose reply was lost is sent again: a refusal would make the holder wait for itself, a new token would fence its own writes",
		Run: func(e *Env) {
			a, b := e.Store(), e.Open()
			c := e.claim(e.Name(""), "alice")
			c.Metadata = map[string]string{"pod": "web-1"}
			rec := e.acquire(a, c)
			again := func(s backend.Store, what string) {
				got := e.acquire(s, c)
				want := rec
				if e.traits.RenewalsVisible {
					want.Revision = got.Revision // it starts the duration anew, so it may be a write
				}
				e.same(got, want, what)
				e.same(e.get(b, c.Name), got, "Get")
			}
			again(a, "the same attempt again")
			again(b, "the same attempt by another client")
			e.renew(a, rec)
			again(b, "the same attempt after a renewal")
			e.renew(b, rec)
		},
	},
	{
		Name: "contract/acquire-same-attempt-late",
		Rule: "an Attempt whose tenure was released or taken over is not granted that tenure again",
		Why:  "a delayed copy of an old request would bring an old token back to life",
		Run: func(e *Env) {
			a, b := e.Store(), e.Open()
			c := e.claim(e.Name(""), "alice")
			first := e.acquire(a, c)
			e.release(a, first)
			again := e.acquire(a, c)
			e.rises(first, again, "release and the same attempt")

			taken := e.acquire(b, over(e.claim(c.Name, "bob"), again))
			e.refused(a, c)
			e.undisturbed(b, taken, "a refused Acquire")
		},
	},
	{
		Name: "contract/acquire-same-attempt-expired",
		Rule: "the same Attempt after its tenure has expired is a new tenure, with a new token",
		Why:  "somebody else may be about to take an expired record: whoever gets it handed as a success acts without a lease",
		Run: func(e *Env) {
			a := e.Store()
			c := e.shortClaim(e.Name(""), "alice")
			first := e.acquire(a, c)
			e.expire(a, first)
			again, err := a.Acquire(e.ctx, c)
			if err != nil {
				e.Fatalf("Acquire of an expired record failed: %v", err)
			}
			e.rises(first, again, "expiry and the same attempt")
			e.renewLost(a, first, "whose tenure had expired")
		},
	},
	{
		Name: "contract/acquire-same-holder",
		Rule: "the same Holder with another Attempt is refused like anybody",
		Why:  "a process that restarted under its old name must not take over from itself while the old one may still be running",
		Run: func(e *Env) {
			a := e.Store()
			rec := e.acquire(a, e.claim(e.Name(""), "alice"))
			e.same(e.refused(a, e.claim(rec.Name, "alice")), rec, "the *HeldError")
			e.undisturbed(a, rec, "a refused Acquire")
		},
	},
	{
		Name: "contract/acquire-no-attempt",
		Rule: "the Attempt \"\" is never the same as another",
		Why:  "callers that do not name their attempts would all share one tenure",
		Run: func(e *Env) {
			a, b := e.Store(), e.Open()
			c := e.claim(e.Name(""), "alice")
			c.Attempt = ""
			rec := e.acquire(a, c)
			e.refused(a, c)
			c.Holder = "bob"
			e.refused(b, c)
			e.undisturbed(a, rec, "refused Acquires")
		},
	},
	{
		Name: "contract/errors",
		Rule: "ErrHeld, ErrLost, ErrNotFound and ErrInvalid come alone and are definite",
		Why:  "callers decide by errors.Is whether to wait, to stop or to give up: an error that is two things leads them astray",
		Run: func(e *Env) {
			a := e.Store()
			name := e.Name("")
			_, notFound := a.Get(e.ctx, name)
			rec := e.acquire(a, e.claim(name, "alice"))
			_, held := a.Acquire(e.ctx, e.claim(name, "bob"))
			_, invalid := a.Acquire(e.ctx, backend.Claim{Name: name})
			e.release(a, rec)
			lost := a.Release(e.ctx, rec)

			sentinels := []error{backend.ErrNotFound, backend.ErrHeld, backend.ErrLost, backend.ErrInvalid, backend.ErrDenied, backend.ErrUnsupported, backend.ErrCorrupt}
			for _, c := range []struct{ got, want error }{
				{notFound, backend.ErrNotFound}, {held, backend.ErrHeld}, {lost, backend.ErrLost}, {invalid, backend.ErrInvalid},
			} {
				for _, sentinel := range sentinels {
					if errors.Is(c.got, sentinel) != (sentinel == c.want) {
						e.Fatalf("errors.Is(%q, %q) is %v: want %q and nothing else", said(c.got), sentinel, errors.Is(c.got, sentinel), c.want)
					}
				}
			}
		},
	},
}
