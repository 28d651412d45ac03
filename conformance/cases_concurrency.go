package conformance

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/leasehold/leasehold/backend"
)

var concurrencyCases = []Case{
	{
		Name: "concurrency/one-winner",
		Rule: "of any number of claimants at once one wins, and all others are told of that one",
		Why:  "a store that looks first and writes then lets two in, once in a thousand times, in production",
		Run: func(e *Env) {
			stores := e.open(e.cfg.clients)
			var last backend.Record
			for round := range 10 {
				won := e.race(stores, func(i int) backend.Claim {
					return e.claim(e.Name(""), fmt.Sprintf("holder %d", i))
				})
				e.rises(last, won, fmt.Sprintf("round %d", round))
				e.same(e.get(stores[round%len(stores)], won.Name), won, "Get")
				e.release(stores[0], won)
				last = won
			}
		},
	},
	{
		Name: "concurrency/one-winner-over",
		Rule: "of any number of claims over one Revision one wins",
		Why:  "all who watched a dead holder reach for its lease in the same moment",
		Run: func(e *Env) {
			stores := e.open(e.cfg.clients)
			last := e.acquire(stores[0], e.claim(e.Name(""), "alice"))
			for round := range 10 {
				won := e.race(stores, func(i int) backend.Claim {
					return over(e.claim(last.Name, fmt.Sprintf("holder %d", i)), last)
				})
				e.rises(last, won, fmt.Sprintf("round %d", round))
				e.renewLost(stores[0], last, "who was replaced")
				last = won
			}
		},
	},
	{
		Name: "concurrency/one-winner-expired",
		Rule: "of any number of claimants of an expired lease one wins",
		Why:  "all who waited for a dead holder wake in the same moment",
		Run: func(e *Env) {
			e.needsExpiry()
			stores := e.open(e.cfg.clients)
			var dead []backend.Record
			for i := range 8 {
				dead = append(dead, e.acquire(stores[0], e.shortClaim(e.Name(fmt.Sprintf("-%d", i)), "alice")))
			}
			for _, rec := range dead {
				e.expire(stores[0], rec)
				won := e.race(stores, func(i int) backend.Claim {
					return e.claim(rec.Name, fmt.Sprintf("holder %d", i))
				})
				e.rises(rec, won, "expiry")
			}
		},
	},
	{
		Name: "concurrency/one-attempt",
		Rule: "one Attempt that arrives many times at once is granted once: all get the same token",
		Why:  "retries of client libraries overlap",
		Run: func(e *Env) {
			stores := e.open(e.cfg.clients)
			c := e.claim(e.Name(""), "alice")
			recs := make([]backend.Record, len(stores))
			e.together(len(stores), func(i int) { recs[i] = e.acquire(stores[i], c) })
			for _, rec := range recs {
				if rec.Token != recs[0].Token {
					e.Fatalf("one attempt was granted the tokens %d and %d", recs[0].Token, rec.Token)
				}
			}
			e.renew(stores[0], recs[0])
		},
	},
	{
		Name: "concurrency/one-release",
		Rule: "of any number of Releases of one tenure one succeeds, and the others are ErrLost",
		Why:  "whoever is told that it ended the tenure may pass on what came with it, once",
		Run: func(e *Env) {
			stores := e.open(e.cfg.clients)
			for range 5 {
				rec := e.acquire(stores[0], e.claim(e.Name(""), "alice"))
				var released atomic.Int32
				e.together(len(stores), func(i int) {
					if err := stores[i].Release(e.ctx, rec); err == nil {
						released.Add(1)
					} else {
						e.lost(err, "one of many Releases")
					}
				})
				if n := released.Load(); n != 1 {
					e.Fatalf("%d of %d Releases of one tenure succeeded, want 1", n, len(stores))
				}
				e.free(stores[0], rec.Name)
			}
		},
	},
	{
		Name: "concurrency/hammer",
		Rule: "while many clients acquire, renew and release one name, never do two hold it, tokens rise from tenure to tenure, and no read is older than a grant before it",
		Why:  "it is what the lease is for, under the load that shows what single steps do not",
		Run: func(e *Env) {
			stores := e.open(e.cfg.clients)
			name := e.Name("")
			const turns = 10
			var (
				mu      sync.Mutex
				holder  string
				last    backend.Record
				granted atomic.Uint64 // the greatest token whose Acquire has returned
			)
			enter := func(rec backend.Record) {
				mu.Lock()
				defer mu.Unlock()
				if holder != "" {
					e.Fatalf("%q was granted the token %d while %q held the lease with the token %d", rec.Holder, rec.Token, holder, last.Token)
				}
				e.rises(last, rec, "the tenure before")
				holder, last = rec.Holder, rec
				granted.Store(rec.Token)
			}
			leave := func() {
				mu.Lock()
				defer mu.Unlock()
				holder = ""
			}
			e.together(len(stores), func(i int) {
				s := stores[i]
				for turn := 0; turn < turns; {
					before := granted.Load()
					if seen := e.find(s, name); !seen.Vacant() && seen.Token < before {
						e.Fatalf("Get shows the tenure with the token %d, but the token %d had been granted before it began", seen.Token, before)
					}
					rec, err := s.Acquire(e.ctx, e.claim(name, fmt.Sprintf("holder %d", i)))
					if err != nil {
						if !errors.Is(err, backend.ErrHeld) {
							e.Fatalf("Acquire failed: %v", err)
						}
						e.sleep(rand.N(3 * time.Millisecond))
						continue
					}
					enter(rec)
					e.sleep(rand.N(2 * time.Millisecond))
					rec = e.renew(s, rec)
					leave() // before the store is told: from then on another may hold it
					e.release(s, rec)
					turn++
				}
			})
			e.free(stores[0], name)
		},
	},
}

// open opens n clients.
func (e *Env) open(n int) []backend.Store {
	stores := []backend.Store{e.Store()}
	for len(stores) < n {
		stores = append(stores, e.Open())
	}
	return stores
}

// race lets all clients claim at once. Exactly one must be granted its claim, and
// the others must be told of it.
func (e *Env) race(stores []backend.Store, claim func(i int) backend.Claim) (won backend.Record) {
	type answer struct {
		rec backend.Record
		err error
	}
	answers := make([]answer, len(stores))
	e.together(len(stores), func(i int) {
		c := claim(i)
		answers[i].rec, answers[i].err = stores[i].Acquire(e.ctx, c)
	})
	winners := 0
	for _, a := range answers {
		if a.err == nil {
			won = a.rec
			winners++
		} else if !errors.Is(a.err, backend.ErrHeld) {
			e.Fatalf("Acquire failed: %v", a.err)
		}
	}
	if winners != 1 {
		e.Fatalf("%d of %d claimants were granted the lease, want 1", winners, len(stores))
	}
	for _, a := range answers {
		var held *backend.HeldError
		if errors.As(a.err, &held) && !held.Record.SameTenure(won) {
			e.Fatalf("a claimant was told that %q (token %d) is in the way, but %q (token %d) won", held.Record.Holder, held.Record.Token, won.Holder, won.Token)
		}
	}
	return won
}
