package conformance

var releaseCases = []Case{
	{
		Name: "contract/release",
		Rule: "Release ends the tenure for everybody at once: Get shows no record or a vacant one",
		Why:  "waiters need not wait for the duration to pass; and what is left behind piles up",
		Run: func(e *Env) {
			a, b := e.Store(), e.Open()
			rec := e.acquire(a, e.claim(e.Name(""), "alice"))
			e.release(a, rec)
			e.free(a, rec.Name)
			e.free(b, rec.Name)
		},
	},
	{
		Name: "contract/release-twice",
		Rule: "a second Release is ErrLost",
		Why:  "a caller that is told its tenure just ended, when it ended long ago, cannot know what happened in between",
		Run: func(e *Env) {
			a, b := e.Store(), e.Open()
			rec := e.acquire(a, e.claim(e.Name(""), "alice"))
			e.release(a, rec)
			e.releaseLost(a, rec, "who had released")
			e.releaseLost(b, rec, "who had released")
			e.free(b, rec.Name)
		},
	},
	{
		Name: "contract/release-forged",
		Rule: "Release needs both the holder and the token of the current tenure, and can never touch another's",
		Why:  "a release that asks for less frees a lease under a working holder",
		Run: func(e *Env) {
			a, b := e.Store(), e.Open()
			rec := e.acquire(a, e.claim(e.Name(""), "alice"))
			for _, f := range forgeries {
				forged := rec
				f.forge(&forged)
				e.releaseLost(b, forged, f.what)
			}
			e.undisturbed(a, rec, "refused Releases")
			e.renew(a, rec)
			never := rec
			never.Name = e.Name("-never")
			e.releaseLost(b, never, "of a name that nobody ever used")
			e.free(b, never.Name)
		},
	},
	{
		Name: "contract/release-stale",
		Rule: "a Release of a tenure that is over is harmless to the next one, also if that has the same holder",
		Why:  "it is the classic bug of lock libraries: a slow holder that lost its lease frees its successor's",
		Run: func(e *Env) {
			a, b := e.Store(), e.Open()
			first := e.acquire(a, e.claim(e.Name(""), "alice"))
			e.release(a, first)
			second := e.acquire(b, e.claim(first.Name, "bob"))
			e.releaseLost(a, first, "stale: bob has acquired since")
			e.undisturbed(b, second, "a stale Release")
			e.release(b, second)
			third := e.acquire(b, e.claim(first.Name, "alice"))
			e.releaseLost(a, first, "stale: the same holder has acquired again since")
			e.undisturbed(b, third, "a stale Release")
			e.renew(b, third)
		},
	},
	{
		Name: "contract/release-expired",
		Rule: "anybody can release an expired record that is still what Get showed",
		Why:  "leftovers of the dead can be cleared away, by those who looked",
		Run: func(e *Env) {
			a, b := e.Store(), e.Open()
			dead := e.acquire(a, e.shortClaim(e.Name(""), "alice"))
			expired := e.expire(b, dead)
			e.release(b, expired)
			e.free(a, dead.Name)
			e.releaseLost(b, expired, "whose record was released already")
			e.releaseLost(a, dead, "whose record was released already")
		},
	},
	{
		Name: "contract/release-expired-changed",
		Rule: "Release of a record that was Expired when it was read needs its Revision unchanged",
		Why:  "between looking and clearing away another may have acquired: what it holds now is not what was looked at",
		Run: func(e *Env) {
			a, b := e.Store(), e.Open()
			dead := e.acquire(a, e.shortClaim(e.Name(""), "alice"))
			expired := e.expire(b, dead)
			rec := e.acquire(a, e.claim(dead.Name, "alice"))
			e.releaseLost(b, expired, "expired when it was read, and acquired again since")
			e.undisturbed(a, rec, "a refused Release")

			// A tenure that is renewed after all, say over a store that moved.
			stale := rec
			stale.Expired, stale.Revision = true, "no-such-revision"
			e.releaseLost(b, stale, "read as expired at a Revision that is not the record's")
			e.undisturbed(a, rec, "a refused Release")
			e.renew(a, rec)
		},
	},
	{
		Name: "contract/release-own-expired",
		Rule: "Release of one's own expired tenure either ends it or is ErrLost, and revives nothing",
		Why:  "a holder that comes too late must not do harm",
		Run: func(e *Env) {
			a, b := e.Store(), e.Open()
			dead := e.acquire(a, e.shortClaim(e.Name(""), "alice"))
			e.expire(b, dead)
			if err := a.Release(e.ctx, dead); err != nil {
				e.lost(err, "Release of one's own expired tenure")
			} else {
				e.free(b, dead.Name)
			}
			e.acquire(b, e.claim(dead.Name, "bob"))
		},
	},
}
