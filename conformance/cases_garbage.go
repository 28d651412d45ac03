package conformance

import (
	"fmt"

	"github.com/leasehold/leasehold/backend"
)

var garbageCases = []Case{
	{
		Name: "garbage/refused",
		Rule: "calls that are refused create no record: not for a name that is held, nor for one that nobody ever used",
		Why:  "names that are only asked about must not fill the store",
		Run: func(e *Env) {
			a, b := e.Store(), e.Open()
			held := e.acquire(a, e.claim(e.Name("-held"), "alice"))
			for i := range 5 {
				e.refused(b, e.claim(held.Name, fmt.Sprintf("holder %d", i)))
				stale := e.claim(held.Name, "bob")
				stale.Over = "no-such-revision"
				e.refused(b, stale)

				never := backend.Record{Name: e.Name(fmt.Sprintf("-never-%d", i)), Holder: "bob", Token: 7, Attempt: "x", Duration: e.long(), Revision: held.Revision}
				e.renewLost(b, never, "of a name that nobody ever used")
				e.releaseLost(b, never, "of a name that nobody ever used")
				e.refused(b, over(e.claim(never.Name, "bob"), held))
				e.find(b, never.Name)
				e.watch(b, never.Name).wait("that there is no record", vacant)
				e.free(a, never.Name)
			}
			e.undisturbed(a, held, "refused calls")
			e.release(a, held)
			e.nothingLeft()
		},
	},
	{
		Name: "garbage/released",
		Rule: "what was released is gone, however its tenure began and went on",
		Why:  "a store whose leases come and go for years must not grow",
		Run: func(e *Env) {
			a, b := e.Store(), e.Open()
			for i := range 10 {
				rec := e.acquire(a, e.claim(e.Name(fmt.Sprintf("-%d", i%3)), "alice"))
				rec = e.renew(a, rec)
				if i%2 == 1 {
					rec = e.acquire(b, over(e.claim(rec.Name, "bob"), rec))
				}
				e.release(b, rec)
				e.free(a, rec.Name)
			}
			e.nothingLeft()
		},
	},
	{
		Name: "garbage/expired",
		Rule: "an expired record that was acquired and released, or released as it is, is gone",
		Why:  "crashes must not leave more behind than a person would clear away",
		Run: func(e *Env) {
			e.needsExpiry()
			a, b := e.Store(), e.Open()
			one := e.acquire(a, e.shortClaim(e.Name("-1"), "alice"))
			two := e.acquire(a, e.shortClaim(e.Name("-2"), "alice"))
			e.expire(b, one)
			e.release(b, e.acquire(b, e.claim(one.Name, "bob")))
			e.release(b, e.expire(b, two))
			e.nothingLeft()
		},
	},
}

// nothingLeft checks that all names of the case are free.
func (e *Env) nothingLeft() {
	s := e.Store()
	e.mu.Lock()
	names := append([]string(nil), e.names...)
	e.mu.Unlock()
	for _, name := range names {
		e.free(s, name)
	}
	if e.cfg.lacks(List) {
		return
	}
	for name, rec := range e.list(s, e.prefix) {
		if !rec.Vacant() {
			e.Fatalf("List still yields %q, held by %q", e.trace.short(name), rec.Holder)
		}
	}
}
