package conformance

import (
	"errors"

	"github.com/leasehold/leasehold/backend"
)

// raised acquires name with a MinToken that is a little above the token it would
// have got. It is only a little, because a store may count the tokens of all
// names together, and there are only so many.
func (e *Env) raised(name string, by uint64) backend.Record {
	first := e.acquire(e.Store(), e.claim(name, "alice"))
	c := over(e.claim(name, "alice"), first)
	c.MinToken = first.Token + by
	return e.acquire(e.Store(), c)
}

var tokenCases = []Case{
	{
		Name: "tokens/release",
		Rule: "tokens rise over release and re-creation, whoever acquires",
		Why:  "a resource refuses a token smaller than one it has seen: a counter that starts again after a deletion locks the new holder out, or lets the old one in",
		Run: func(e *Env) {
			stores := []backend.Store{e.Store(), e.Open()}
			last := backend.Record{}
			for i := range 12 {
				rec := e.acquire(stores[i%2], e.claim(e.Name(""), []string{"alice", "bob", "bob"}[i%3]))
				e.rises(last, rec, "release")
				if got := e.get(stores[(i+1)%2], rec.Name); got.Token != rec.Token {
					e.Fatalf("Get shows the token %d, want %d as granted", got.Token, rec.Token)
				}
				e.release(stores[i%2], rec)
				last = rec
			}
		},
	},
	{
		Name: "tokens/expiry",
		Rule: "tokens rise over expiry, also if the expired record is released before the next tenure",
		Why:  "it is after an expiry that the old holder may still be running: this is what fencing is for",
		Run: func(e *Env) {
			a, b := e.Store(), e.Open()
			first := e.acquire(a, e.shortClaim(e.Name(""), "alice"))
			e.expire(b, first)
			second := e.acquire(b, e.shortClaim(first.Name, "bob"))
			e.rises(first, second, "expiry")
			e.release(a, e.expire(a, second))
			third := e.acquire(a, e.claim(first.Name, "alice"))
			e.rises(second, third, "expiry and release")
		},
	},
	{
		Name: "tokens/takeover",
		Rule: "tokens rise over every Acquire with Over, also over one's own tenure",
		Why:  "the one who was replaced does not know it yet",
		Run: func(e *Env) {
			stores := []backend.Store{e.Store(), e.Open()}
			last := e.acquire(stores[0], e.claim(e.Name(""), "alice"))
			for i := range 6 {
				rec := e.acquire(stores[i%2], over(e.claim(last.Name, []string{"bob", "bob", "alice"}[i%3]), last))
				e.rises(last, rec, "Acquire with Over")
				last = rec
			}
		},
	},
	{
		Name: "tokens/renewals",
		Rule: "a renewal uses up no order: the token of a tenure stays, and the next is greater however often it was renewed",
		Why:  "a token taken from a counter that renewals move, or from a revision that another name moves, may come out smaller",
		Run: func(e *Env) {
			a, b := e.Store(), e.Open()
			rec := e.acquire(a, e.claim(e.Name(""), "alice"))
			noise := e.acquire(b, e.claim(e.Name("-noise"), "bob"))
			for range 5 {
				rec = e.renew(a, rec)
				noise = e.renew(b, noise)
			}
			e.release(a, rec)
			e.rises(rec, e.acquire(b, e.claim(rec.Name, "bob")), "renewals and release")
		},
	},
	{
		Name: "tokens/min-token",
		Rule: "a token is greater than Claim.MinToken, and so is every later one of that name",
		Why:  "a lease that moved here from another store must go on where its tokens were, for good",
		Run: func(e *Env) {
			e.needs(MinToken)
			a, b := e.Store(), e.Open()
			before := e.acquire(a, e.claim(e.Name(""), "alice"))
			e.release(a, before)

			c := e.claim(before.Name, "alice")
			c.MinToken = before.Token + 1000
			high := e.acquire(a, c)
			if high.Token <= c.MinToken {
				e.Fatalf("Acquire with MinToken %d granted the token %d", c.MinToken, high.Token)
			}
			e.renew(a, high)
			e.release(a, high)
			last := high
			for range 3 {
				rec := e.acquire(b, e.claim(c.Name, "bob"))
				e.rises(last, rec, "release of a tenure above MinToken")
				e.release(b, rec)
				last = rec
			}

			c = e.claim(c.Name, "carol")
			c.MinToken = 1 // lower than what was granted: no way back
			rec := e.acquire(a, c)
			e.rises(last, rec, "release and a smaller MinToken")

			c = over(e.claim(c.Name, "dave"), rec)
			c.MinToken = rec.Token + 1000
			if got := e.acquire(b, c); got.Token <= c.MinToken {
				e.Fatalf("Acquire with Over and MinToken %d granted the token %d", c.MinToken, got.Token)
			}
		},
	},
	{
		Name: "tokens/min-token-expiry",
		Rule: "a token floor outlives the expiry and the release of the tenure that brought it",
		Why:  "the first holder after a move may die; the tokens of the store it came from are still out there",
		Run: func(e *Env) {
			e.needs(MinToken)
			a, b := e.Store(), e.Open()
			first := e.acquire(a, e.claim(e.Name(""), "alice"))
			c := over(e.shortClaim(first.Name, "alice"), first)
			c.MinToken = first.Token + 1000
			high := e.acquire(a, c)
			if high.Token <= c.MinToken {
				e.Fatalf("Acquire with MinToken %d granted the token %d", c.MinToken, high.Token)
			}
			expired := e.expire(b, high)
			taken := e.acquire(b, e.claim(c.Name, "bob"))
			e.rises(high, taken, "expiry")
			e.releaseLost(a, expired, "expired when it was read, and acquired since")
			e.release(b, taken)
			e.rises(taken, e.acquire(a, e.claim(c.Name, "alice")), "expiry and release")
		},
	},
	{
		Name: "tokens/min-token-declared",
		Rule: "a store that is declared to lack MinToken refuses it with ErrUnsupported",
		Why:  "a floor that is quietly ignored breaks the order of tokens when a lease moves",
		Run: func(e *Env) {
			a := e.Store()
			c := e.claim(e.Name(""), "alice")
			c.MinToken = 1
			_, err := a.Acquire(e.ctx, c)
			switch declared := e.cfg.lacks(MinToken); {
			case declared && !errors.Is(err, backend.ErrUnsupported):
				e.Fatalf("the store is declared to lack MinToken, but a claim with one was not refused: %s, want ErrUnsupported", said(err))
			case !declared && errors.Is(err, backend.ErrUnsupported):
				e.Fatalf("the store refuses MinToken (%v): declare it with Without(MinToken)", err)
			}
		},
	},
	{
		Name: "tokens/seal",
		Rule: "a seal has a token like any tenure: greater than the one before it, smaller than the next",
		Why:  "the floor rides in the seal when a lease moves",
		Run: func(e *Env) {
			e.needs(Seals)
			a := e.Store()
			first := e.acquire(a, e.claim(e.Name(""), "alice"))
			seal := over(e.sealClaim(first.Name, backend.Seal{To: "there", Epoch: 1}), first)
			if !e.cfg.lacks(MinToken) {
				seal.MinToken = first.Token + 1000
			}
			sealed := e.acquire(a, seal)
			e.rises(first, sealed, "sealing")
			if sealed.Token <= seal.MinToken {
				e.Fatalf("a seal with MinToken %d got the token %d", seal.MinToken, sealed.Token)
			}
			back := e.acquire(a, over(e.claim(first.Name, "alice"), sealed))
			e.rises(sealed, back, "replacing the seal")
			e.release(a, back)
			e.rises(back, e.acquire(a, e.claim(first.Name, "bob")), "release")
		},
	},
}
