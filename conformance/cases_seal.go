package conformance

import (
	"crypto/rand"
	"errors"
	"time"

	"github.com/leasehold/leasehold/backend"
)

// sealClaim asks for a seal.
func (e *Env) sealClaim(name string, seal backend.Seal) backend.Claim {
	return backend.Claim{Name: name, Holder: "moved to " + seal.To, Attempt: rand.Text(), Duration: backend.Forever, Seal: &seal}
}

// sealed checks that a record is the seal that was claimed.
func (e *Env) sealed(rec backend.Record, c backend.Claim, what string) {
	switch {
	case rec.Seal == nil || *rec.Seal != *c.Seal:
		e.Fatalf("%s shows the seal %+v, want %+v", what, rec.Seal, *c.Seal)
	case rec.Holder == "":
		e.Fatalf("%s shows a sealed record without a holder: a client that knows no seals takes it for free", what)
	case rec.Duration != backend.Forever:
		e.Fatalf("%s shows a sealed record that lasts %v, want Forever (%v)", what, rec.Duration, backend.Forever)
	case rec.Expired:
		e.Fatalf("%s shows a sealed record as Expired", what)
	}
}

var sealCases = []Case{
	{
		Name: "contract/seal",
		Rule: "a sealed record has a readable holder, lasts Forever, and refuses every Acquire without Over, whoever's",
		Why:  "the lease lives in another store now: whoever acquires it here holds it beside the holder there",
		Run: func(e *Env) {
			e.needs(Seals)
			a, b := e.Store(), e.Open()
			c := e.sealClaim(e.Name(""), backend.Seal{To: "etcd/team-a", Epoch: 3, Heir: "älice", HeirDuration: 15*time.Second + 1})
			rec := e.acquire(a, c)
			e.sealed(rec, c, "Acquire")
			e.sealed(e.get(b, rec.Name), c, "Get")
			e.same(e.get(b, rec.Name), rec, "Get")
			for _, holder := range []string{"bob", c.Holder, c.Seal.Heir} {
				found := e.refused(b, e.claim(rec.Name, holder))
				e.sealed(found, c, "the *HeldError")
			}
			if again := e.acquire(a, c); again.Token != rec.Token {
				e.Fatalf("the same attempt to seal again has the token %d, want %d", again.Token, rec.Token)
			}
			e.sealed(e.watch(b, rec.Name).wait("the seal", func(r backend.Record) bool { return r.Seal != nil }), c, "Watch")
		},
	},
	{
		Name: "contract/seal-over",
		Rule: "a live tenure is sealed, and a seal replaced, by Acquire with Over; each is one compare-and-swap that ends what was before",
		Why:  "it is the switch of a migration: were it two writes, somebody could acquire in between",
		Run: func(e *Env) {
			e.needs(Seals)
			a, b := e.Store(), e.Open()
			first := e.acquire(a, e.claim(e.Name(""), "alice"))
			c := e.sealClaim(first.Name, backend.Seal{To: "there", Epoch: 1, Heir: "alice", HeirDuration: e.long()})
			e.refused(b, c)
			e.undisturbed(a, first, "a refused seal")

			sealed := e.acquire(b, over(c, first))
			e.sealed(e.get(a, first.Name), c, "Get")
			e.rises(first, sealed, "sealing")
			e.renewLost(a, first, "whose record was sealed")
			e.releaseLost(a, first, "whose record was sealed")
			e.refused(a, over(e.claim(first.Name, "alice"), first))
			e.sealed(e.get(a, first.Name), c, "Get")

			back := e.acquire(a, over(e.claim(first.Name, "alice"), sealed))
			e.rises(sealed, back, "replacing the seal")
			if got := e.get(b, first.Name); got.Seal != nil {
				e.Fatalf("the record shows the seal %+v after it was replaced", got.Seal)
			}
			e.renew(a, back)
			e.refused(b, over(c, sealed))
			e.renew(a, back)
		},
	},
	{
		Name: "contract/seal-forever",
		Rule: "a sealed record never expires, whatever duration the tenure before it had",
		Why:  "a seal that goes away lets a client that knows nothing of the move acquire here what is held there",
		Run: func(e *Env) {
			e.needs(Seals)
			a, b := e.Store(), e.Open()
			live := e.acquire(a, e.shortClaim(e.Name("-live"), "alice"))
			sealed := e.acquire(a, over(e.sealClaim(live.Name, backend.Seal{To: "there", Epoch: 1}), live))
			fresh := e.acquire(a, e.sealClaim(e.Name("-free"), backend.Seal{To: "there"}))
			e.sleep(2*e.duration + e.duration/2 + min(e.traits.ExpirySlack, e.cfg.maxWait))
			for _, rec := range []backend.Record{sealed, fresh} {
				e.same(e.get(b, rec.Name), rec, "after the duration has passed Get")
				e.refused(b, e.claim(rec.Name, "bob"))
			}
		},
	},
	{
		Name: "contract/seal-declared",
		Rule: "a store that is declared to lack Seals refuses them with ErrUnsupported",
		Why:  "a seal that is quietly dropped is an ordinary tenure, and the migration believes otherwise",
		Run: func(e *Env) {
			a := e.Store()
			c := e.sealClaim(e.Name(""), backend.Seal{To: "there", Epoch: 1})
			_, err := a.Acquire(e.ctx, c)
			switch declared := e.cfg.lacks(Seals); {
			case declared && !errors.Is(err, backend.ErrUnsupported):
				e.Fatalf("the store is declared to lack Seals, but a claim of one was not refused: %s, want ErrUnsupported", said(err))
			case !declared && errors.Is(err, backend.ErrUnsupported):
				e.Fatalf("the store refuses seals (%v): declare it with Without(Seals)", err)
			case declared:
				e.free(a, c.Name)
			}
		},
	},
}
