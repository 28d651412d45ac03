package conformance

import (
	"errors"
	"strings"
	"time"

	"github.com/leasehold/leasehold/backend"
)

var recordCases = []Case{
	{
		Name: "contract/get-absent",
		Rule: "Get of a name without a record is ErrNotFound, and creates none",
		Why:  "whoever asks must be able to tell a free lease from an unreachable store",
		Run: func(e *Env) {
			a := e.Store()
			name := e.Name("")
			for range 2 {
				if rec, err := a.Get(e.ctx, name); !errors.Is(err, backend.ErrNotFound) {
					e.Fatalf("Get of a name that nobody ever used: %s (%+v), want ErrNotFound", said(err), rec)
				}
			}
		},
	},
	{
		Name: "contract/get-expired",
		Rule: "an expired record stays visible, with Expired set, until somebody acquires or releases it",
		Why:  "who held the lease last and when it ended is what a person looks for after a crash; and Over needs its Revision",
		Run: func(e *Env) {
			a, b := e.Store(), e.Open()
			c := e.shortClaim(e.Name(""), "alice")
			c.Metadata = map[string]string{"pod": "web-1"}
			dead := e.acquire(a, c)
			expired := e.expire(b, dead)
			for range 3 {
				got := e.get(a, dead.Name)
				e.same(got, expired, "Get, once more,")
				if !got.SameTenure(dead) || got.Attempt != dead.Attempt || got.Metadata["pod"] != "web-1" {
					e.Fatalf("the expired record shows %q, token %d, attempt %q, metadata %v: not the tenure that ended", got.Holder, got.Token, got.Attempt, got.Metadata)
				}
				if got.Remaining != 0 {
					e.Fatalf("the expired record has %v remaining", got.Remaining)
				}
				e.sleep(20 * time.Millisecond)
			}
		},
	},
	{
		Name: "contract/metadata",
		Rule: "Metadata comes back as it was given, for the whole tenure, and is not there in the next one",
		Why:  "it tells others where the holder can be reached; what a predecessor said of itself would send them astray",
		Run: func(e *Env) {
			a, b := e.Store(), e.Open()
			c := e.claim(e.Name(""), "alice@web-1/4711/ähm \"quoted\" {%2F}")
			c.Metadata = map[string]string{
				"url": "https://example.org/a?b=c&d=%20", "empty": "", "Case": "1", "case": "2", "with space": "x\ny\tz",
				"näme 🔑": "wert 🔒", "a.b/c_d-e": "=:;,|", "long": strings.Repeat("x", 1000), "json": `{"a":[1,"\u0000"]}`,
			}
			rec := e.acquire(a, c)
			want := rec
			want.Metadata = c.Metadata
			e.same(rec, want, "Acquire")
			e.same(e.get(b, rec.Name), want, "Get")
			renewed := e.renew(b, rec)
			want = renewed
			want.Metadata = c.Metadata
			e.same(e.get(b, rec.Name), want, "after a renewal Get")

			next := e.acquire(b, over(e.claim(rec.Name, "bob"), renewed))
			if got := e.get(a, rec.Name); len(next.Metadata)+len(got.Metadata) != 0 {
				e.Fatalf("a tenure that was claimed without metadata shows %v", got.Metadata)
			}
		},
	},
	{
		Name: "contract/metadata-isolated",
		Rule: "what a caller does to a map or a Seal that it gave or was given changes no record",
		Why:  "a record shared between clients in one process could be changed without a write, and without a lock",
		Run: func(e *Env) {
			a, b := e.Store(), e.Open()
			c := e.claim(e.Name(""), "alice")
			c.Metadata = map[string]string{"pod": "web-1"}
			spoil := func(r backend.Record) {
				if r.Metadata != nil {
					r.Metadata["pod"] = "spoilt"
				}
				if r.Seal != nil {
					r.Seal.To = "spoilt"
				}
			}
			check := func(after string) {
				if got := e.get(b, c.Name).Metadata["pod"]; got != "web-1" {
					e.Fatalf("Get shows %q in the metadata after %s was changed, want %q", got, after, "web-1")
				}
			}
			rec := e.acquire(a, c)
			c.Metadata["pod"] = "spoilt"
			check("the claim")
			spoil(rec)
			check("the record that Acquire returned")
			spoil(e.get(a, c.Name))
			check("the record that Get returned")
			spoil(e.renew(a, rec))
			check("the record that Renew returned")
			spoil(e.refused(b, e.claim(c.Name, "bob")))
			check("the record in a *HeldError")
			w := e.watch(a, c.Name)
			spoil(w.wait("the holder", tenure(rec)))
			check("the record that Watch yielded")

			if e.cfg.lacks(Seals) {
				return
			}
			c = over(e.sealClaim(c.Name, backend.Seal{To: "there", Epoch: 1}), e.get(a, c.Name))
			sealed := e.acquire(a, c)
			c.Seal.To = "spoilt"
			spoil(sealed)
			spoil(e.get(a, c.Name))
			if got := e.get(b, c.Name).Seal; got == nil || got.To != "there" {
				e.Fatalf("Get shows the seal %+v after a copy of it was changed", got)
			}
		},
	},
	{
		Name: "contract/remaining",
		Rule: "Remaining is an upper bound of the time until expiry, and not far above it; 0 means not known",
		Why:  "waiters sleep that long: one that is too small makes them busy, or take a live holder for dead; one that is far too large leaves the lease unused",
		Run: func(e *Env) {
			a, b := e.Store(), e.Open()
			began := time.Now()
			rec := e.acquire(a, e.claim(e.Name(""), "alice"))
			check := func(r backend.Record, what string) {
				left := notBefore(rec.Duration - time.Since(began))
				most := rec.Duration + e.traits.ExpirySlack + e.traits.Granularity + time.Second
				switch {
				case r.Remaining < 0 || r.Remaining > most:
					e.Fatalf("%s shows %v remaining of %v, want 0 to %v", what, r.Remaining, rec.Duration, most)
				case r.Remaining > 0 && r.Remaining < left:
					e.Fatalf("%s shows %v remaining, but the store may not end the tenure for another %v", what, r.Remaining, left)
				}
			}
			check(rec, "Acquire")
			check(e.get(b, rec.Name), "Get")
			check(e.refused(b, e.claim(rec.Name, "bob")), "the *HeldError")
			e.sleep(50 * time.Millisecond)
			check(e.get(b, rec.Name), "Get")
			began = time.Now()
			check(e.renew(a, rec), "Renew")
			check(e.get(b, rec.Name), "Get")
		},
	},
	{
		Name: "contract/granted-duration",
		Rule: "the Duration granted is the one claimed, rounded up to Traits.Granularity, in every record of the tenure",
		Why:  "holders compute their deadline from it and observers how long to wait: one that is shorter than claimed ends early, one that is not what the store keeps ends wrong",
		Run: func(e *Env) {
			a, b := e.Store(), e.Open()
			g := max(e.traits.Granularity, 1)
			for i, extra := range []time.Duration{0, 1, g / 3, g - 1} {
				c := e.claim(e.Name(string(rune('1'+i))), "alice")
				c.Duration += extra
				want, err := backend.CheckDuration(c.Duration, e.traits)
				if err != nil {
					e.Fatalf("CheckDuration: %v", err)
				}
				rec := e.acquire(a, c)
				renewed := e.renew(a, rec)
				for i, r := range []backend.Record{rec, renewed, e.get(b, c.Name)} {
					if r.Duration != want {
						what := []string{"Acquire", "Renew", "Get"}[i]
						e.Fatalf("%s shows the duration %v for a claim of %v with a granularity of %v, want %v", what, r.Duration, c.Duration, e.traits.Granularity, want)
					}
				}
			}
		},
	},
}
