package conformance

import "github.com/leasehold/leasehold/backend"

var renewCases = []Case{
	{
		Name: "contract/renew",
		Rule: "Renew keeps holder, token, attempt, acquire time and metadata, and returns what Get then shows",
		Why:  "a renewal is not a new tenure: a changed token would fence the holder's own writes",
		Run: func(e *Env) {
			a, b := e.Store(), e.Open()
			c := e.claim(e.Name(""), "alice")
			c.Metadata = map[string]string{"pod": "web-1"}
			rec := e.acquire(a, c)
			for range 3 {
				renewed := e.renew(a, rec)
				want := rec
				want.Revision = renewed.Revision // see contract/over-renewed
				e.same(renewed, want, "Renew")
				e.same(e.get(b, c.Name), want, "Get")
				rec = renewed
			}
		},
	},
	{
		Name: "contract/renew-any-record",
		Rule: "Renew and Release take any record of the tenure: an old one, one from Get, one from a watch, through any client",
		Why:  "the holder's copy is old whenever a reply was lost or somebody edited the record; that is no loss",
		Run: func(e *Env) {
			a, b := e.Store(), e.Open()
			first := e.acquire(a, e.claim(e.Name(""), "alice"))
			e.renew(a, first)
			e.renew(a, first)
			e.renew(b, first)
			e.renew(a, e.get(a, first.Name))
			e.renew(a, e.watch(b, first.Name).wait("the holder", tenure(first)))
			found := e.refused(b, e.claim(first.Name, "bob"))
			e.renew(a, found)
			e.release(a, first)
			e.free(b, first.Name)
		},
	},
	{
		Name: "contract/renew-expired",
		Rule: "a tenure that Get shows as Expired is not revived: Renew is ErrLost",
		Why:  "waiters have been told that the lease is free; one may be about to act on it",
		Run: func(e *Env) {
			a, b := e.Store(), e.Open()
			dead := e.acquire(a, e.shortClaim(e.Name(""), "alice"))
			expired := e.expire(b, dead)
			e.renewLost(a, dead, "whose tenure had expired")
			e.renewLost(a, expired, "whose tenure had expired")
			if got := e.find(b, dead.Name); got.Live() {
				e.Fatalf("the record is live again after the Renew that was refused: %q, token %d", got.Holder, got.Token)
			}
			e.acquire(b, e.claim(dead.Name, "bob"))
			e.renewLost(a, dead, "whose tenure had expired and was taken over")
		},
	},
	{
		Name: "contract/renew-released",
		Rule: "Renew of a released tenure is ErrLost, and brings nothing back",
		Why:  "a renewal that was under way when the holder released would block the lease for a whole duration",
		Run: func(e *Env) {
			a, b := e.Store(), e.Open()
			rec := e.acquire(a, e.claim(e.Name(""), "alice"))
			e.release(a, rec)
			e.renewLost(a, rec, "who had released")
			e.renewLost(b, rec, "who had released")
			e.free(b, rec.Name)
		},
	},
	{
		Name: "contract/renew-replaced",
		Rule: "Renew of a tenure that another has replaced is ErrLost, also if that other has the same holder, and leaves it alone",
		Why:  "a stale holder that renews another's tenure believes it holds the lease, and so does the other",
		Run: func(e *Env) {
			a, b := e.Store(), e.Open()
			first := e.acquire(a, e.claim(e.Name(""), "alice"))
			e.release(a, first)
			second := e.acquire(b, e.claim(first.Name, "bob"))
			e.renewLost(a, first, "who had released, and bob had acquired")
			e.undisturbed(b, second, "a refused Renew")
			e.release(b, second)
			third := e.acquire(b, e.claim(first.Name, "alice"))
			e.renewLost(a, first, "who had released, and acquired again elsewhere")
			e.undisturbed(b, third, "a refused Renew")
			e.renew(b, third)
		},
	},
	{
		Name: "contract/renew-forged",
		Rule: "Renew needs both the holder and the token of the current tenure",
		Why:  "either alone is easy to come by: a shared identity, an old token",
		Run: func(e *Env) {
			a, b := e.Store(), e.Open()
			rec := e.acquire(a, e.claim(e.Name(""), "alice"))
			for _, f := range forgeries {
				forged := rec
				f.forge(&forged)
				e.renewLost(b, forged, f.what)
			}
			e.undisturbed(a, rec, "refused Renews")
			never := rec
			never.Name = e.Name("-never")
			e.renewLost(b, never, "of a name that nobody ever used")
			e.free(b, never.Name)
		},
	},
}

// forgeries make a record one of another tenure.
var forgeries = []struct {
	what  string
	forge func(*backend.Record)
}{
	{"with another holder", func(r *backend.Record) { r.Holder = "mallory" }},
	{"with a smaller token", func(r *backend.Record) { r.Token-- }},
	{"with a greater token", func(r *backend.Record) { r.Token++ }},
	{"with no token", func(r *backend.Record) { r.Token = 0 }},
	{"with no holder", func(r *backend.Record) { r.Holder = "" }},
}
