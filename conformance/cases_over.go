package conformance

import (
	"time"

	"reflect"

	"github.com/leasehold/leasehold/backend"
)

var overCases = []Case{
	{
		Name: "contract/over-match",
		Rule: "Acquire with Over succeeds if the record is still at that Revision, even over another's live tenure, which is over then",
		Why:  "it is how a dead holder is replaced that only an observer knows to be dead, how force works, and how an acquire of unknown outcome is made good",
		Run: func(e *Env) {
			a, b := e.Store(), e.Open()
			first := e.acquire(a, e.claim(e.Name(""), "alice"))
			rec := e.acquire(b, over(e.claim(first.Name, "bob"), e.get(b, first.Name)))
			e.rises(first, rec, "Acquire with Over")
			if rec.Transitions <= first.Transitions {
				e.Fatalf("Transitions went from %d to %d though the holder changed", first.Transitions, rec.Transitions)
			}
			e.same(e.get(a, rec.Name), rec, "Get")
			e.renewLost(a, first, "who was replaced")
			e.releaseLost(a, first, "who was replaced")
			e.undisturbed(b, rec, "the replaced holder's Renew and Release")
			e.renew(b, rec)
		},
	},
	{
		Name: "contract/over-own",
		Rule: "Acquire with Over, over a tenure of one's own, begins a new tenure with a new token",
		Why:  "an acquire of unknown outcome is claimed anew, with a deadline that is known: the write that may still be under way must find its Revision gone",
		Run: func(e *Env) {
			a := e.Store()
			first := e.acquire(a, e.claim(e.Name(""), "alice"))
			second := e.acquire(a, over(e.claim(first.Name, "alice"), first))
			e.rises(first, second, "Acquire with Over")
			e.renewLost(a, first, "whose tenure was replaced by a new one of its own")
			e.releaseLost(a, first, "whose tenure was replaced by a new one of its own")
			e.undisturbed(a, second, "Renew and Release of the old tenure")
		},
	},
	{
		Name: "contract/over-stale",
		Rule: "Acquire with Over is refused, with the record found, if the record has another Revision by now, also if it is free or expired",
		Why:  "Over is the only condition: a compare-and-swap that swaps without comparing takes a lease from whoever came in between",
		Run: func(e *Env) {
			a, b := e.Store(), e.Open()
			first := e.acquire(a, e.claim(e.Name(""), "alice"))
			e.release(a, first)
			second := e.acquire(a, e.claim(first.Name, "alice"))
			e.same(e.refused(b, over(e.claim(first.Name, "bob"), first)), second, "the *HeldError")
			c := e.claim(first.Name, "bob")
			c.Over = "no-such-revision"
			e.same(e.refused(b, c), second, "the *HeldError")
			e.undisturbed(a, second, "refused Acquires")
			e.renew(a, second)
		},
	},
	{
		Name: "contract/over-stale-expired",
		Rule: "Acquire with a stale Over is refused also where the record has expired",
		Why:  "the record found is not the one the caller decided about",
		Run: func(e *Env) {
			a, b := e.Store(), e.Open()
			first := e.acquire(a, e.claim(e.Name(""), "alice"))
			e.release(a, first)
			dead := e.acquire(a, e.shortClaim(first.Name, "alice"))
			expired := e.expire(b, dead)
			e.same(e.refused(b, over(e.claim(first.Name, "bob"), first)), expired, "the *HeldError")
			rec := e.acquire(b, over(e.claim(first.Name, "bob"), expired))
			e.rises(dead, rec, "Acquire over the expired record")
		},
	},
	{
		Name: "contract/over-absent",
		Rule: "Acquire with Over is refused where there is no record, with a record that has only its Name, and creates none",
		Why:  "the tenure the caller decided about has ended: it must look again, and so must whoever waits for the answer",
		Run: func(e *Env) {
			a := e.Store()
			never := e.claim(e.Name("1"), "alice")
			never.Over = "no-such-revision"
			released := e.acquire(a, e.claim(e.Name("2"), "alice"))
			e.release(a, released)
			for _, c := range []backend.Claim{never, over(e.claim(released.Name, "bob"), released)} {
				before := e.find(a, c.Name)
				found := e.refused(a, c)
				if before.Revision == "" && !onlyName(found) {
					e.Fatalf("the record in the *HeldError is %+v, want only its Name", found)
				}
				if !found.Vacant() {
					e.Fatalf("the record in the *HeldError is held by %q, but nobody holds it", found.Holder)
				}
				e.free(a, c.Name)
			}
		},
	},
	{
		Name: "contract/over-vacant",
		Rule: "where a vacated record can be seen, Acquire with Over its Revision succeeds, and with a stale one is refused",
		Why:  "a vacated record is a record: it keeps the token floor, and a compare-and-swap must not lose it",
		Run: func(e *Env) {
			e.needs(MinToken)
			a := e.Store()
			first := e.raised(e.Name(""), 100)
			e.release(a, first)
			left := e.find(a, first.Name)
			e.refused(a, over(e.claim(first.Name, "bob"), first))
			if left.Revision == "" {
				return // nothing is left to be seen
			}
			e.rises(first, e.acquire(a, over(e.claim(first.Name, "bob"), left)), "Acquire over the vacated record")
		},
	},
	{
		Name: "contract/over-renewed",
		Rule: "every renewal changes the Revision and RenewedAt if Traits.RenewalsVisible, and none changes the Revision otherwise",
		Why:  "an observer may replace a holder whose record it has seen unchanged for a whole duration: a renewal it cannot see would cost a live holder its lease, and one it sees although the Traits deny it makes every Over fail",
		Run: func(e *Env) {
			a, b := e.Store(), e.Open()
			first := e.acquire(a, e.claim(e.Name(""), "alice"))
			last := first
			for range 3 {
				e.sleep(2 * time.Millisecond) // RenewedAt may be coarse
				rec := e.renew(a, last)
				seen := e.get(b, rec.Name)
				e.same(seen, rec, "Get")
				if changed := rec.Revision != last.Revision; changed != e.traits.RenewalsVisible {
					e.Fatalf("a renewal took the Revision from %q to %q; Traits.RenewalsVisible is %v", last.Revision, rec.Revision, e.traits.RenewalsVisible)
				}
				if e.traits.RenewalsVisible && rec.RenewedAt.Equal(last.RenewedAt) {
					e.Fatalf("a renewal left RenewedAt at %v", rec.RenewedAt)
				}
				last = rec
			}
			c := over(e.claim(first.Name, "bob"), first)
			if e.traits.RenewalsVisible {
				e.same(e.refused(b, c), last, "the *HeldError")
				e.renew(a, last)
				return
			}
			e.acquire(b, c)
			e.renewLost(a, last, "who was replaced")
		},
	},
	{
		Name: "contract/over-expired",
		Rule: "Acquire with Over the Revision that Get shows of an expired record succeeds; expiry changes no Revision where renewals do not",
		Why:  "it is how an observer takes over from a dead holder without overtaking another who did so just before",
		Run: func(e *Env) {
			a, b := e.Store(), e.Open()
			dead := e.acquire(a, e.shortClaim(e.Name(""), "alice"))
			expired := e.expire(b, dead)
			if !e.traits.RenewalsVisible && expired.Revision != dead.Revision {
				e.Fatalf("expiry took the Revision from %q to %q", dead.Revision, expired.Revision)
			}
			rec := e.acquire(b, over(e.claim(dead.Name, "bob"), expired))
			e.rises(dead, rec, "Acquire over the expired record")
			e.refused(a, over(e.claim(dead.Name, "carol"), expired))
			e.renew(b, rec)
		},
	},
}

// onlyName reports whether a record says nothing but its Name.
func onlyName(r backend.Record) bool {
	empty := len(r.Metadata) == 0
	r.Metadata = nil // an empty map would do
	return empty && reflect.DeepEqual(r, backend.Record{Name: r.Name})
}
