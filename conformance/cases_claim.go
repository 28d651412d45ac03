package conformance

import (
	"strings"
	"time"

	"github.com/leasehold/leasehold/backend"
)

// badClaims are wrong for every store.
var badClaims = []struct {
	what  string
	spoil func(*backend.Claim)
}{
	{"no holder", func(c *backend.Claim) { c.Holder = "" }},
	{"a holder that is not UTF-8", func(c *backend.Claim) { c.Holder = "al\xffice" }},
	{"a holder with a NUL", func(c *backend.Claim) { c.Holder = "al\x00ice" }},
	{"a holder that is too long", func(c *backend.Claim) { c.Holder = strings.Repeat("a", backend.MaxHolderLen+1) }},
	{"an attempt that is not UTF-8", func(c *backend.Claim) { c.Attempt = "\xc3\x28" }},
	{"an attempt that is too long", func(c *backend.Claim) { c.Attempt = strings.Repeat("a", backend.MaxHolderLen+1) }},
	{"a duration of 0", func(c *backend.Claim) { c.Duration = 0 }},
	{"a negative duration", func(c *backend.Claim) { c.Duration = -time.Second }},
	{"a duration above a year", func(c *backend.Claim) { c.Duration = backend.MaxDuration + 1 }},
	{"a duration of 100 years", func(c *backend.Claim) { c.Duration = 100 * backend.MaxDuration }},
	{"Forever without a seal", func(c *backend.Claim) { c.Duration = backend.Forever }},
	{"a metadata key that is empty", func(c *backend.Claim) { c.Metadata = map[string]string{"": "x"} }},
	{"a metadata key that is not UTF-8", func(c *backend.Claim) { c.Metadata = map[string]string{"\xff": "x"} }},
	{"a metadata value that is not UTF-8", func(c *backend.Claim) { c.Metadata = map[string]string{"x": "\xff"} }},
	{"metadata that is too long", func(c *backend.Claim) {
		c.Metadata = map[string]string{"x": strings.Repeat("y", backend.MaxMetadataLen)}
	}},
	{"a MinToken above which there is none", func(c *backend.Claim) { c.MinToken = backend.MaxToken }},
	{"a MinToken beyond all tokens", func(c *backend.Claim) { c.MinToken = 1<<64 - 1 }},
	{"a seal that does not last forever", func(c *backend.Claim) { c.Seal = &backend.Seal{To: "there", Epoch: 1} }},
	{"a seal whose label is not UTF-8", func(c *backend.Claim) {
		c.Seal, c.Duration = &backend.Seal{To: "\xff", Epoch: 1}, backend.Forever
	}},
}

var claimCases = []Case{
	{
		Name: "contract/claim-invalid",
		Rule: "a claim that can never be right is ErrInvalid, whether the name is free or held, and leaves nothing behind",
		Why:  "a mistake should be found where it is made: not by whoever reads the record, nor by a duration that is not the one asked for",
		Run: func(e *Env) {
			a := e.Store()
			name := e.Name("")
			held := e.acquire(a, e.claim(e.Name("-held"), "alice"))
			for _, bad := range badClaims {
				c := e.claim(name, "alice")
				bad.spoil(&c)
				if c.Seal != nil && e.cfg.lacks(Seals) || c.MinToken != 0 && e.cfg.lacks(MinToken) {
					continue
				}
				_, err := a.Acquire(e.ctx, c)
				e.invalid(err, "Acquire with %s", bad.what)
				e.free(a, name)
				c.Name, c.Over = held.Name, held.Revision
				_, err = a.Acquire(e.ctx, c)
				e.invalid(err, "Acquire with %s, over a held record,", bad.what)
			}
			e.undisturbed(a, held, "invalid claims")
		},
	},
	{
		Name: "contract/claim-limits",
		Rule: "a claim at the limits is granted: holder and attempt of 1024 bytes, metadata of 16 KiB, a duration of a year",
		Why:  "limits that differ from store to store make a lease that cannot move",
		Run: func(e *Env) {
			a, b := e.Store(), e.Open()
			c := e.claim(e.Name(""), strings.Repeat("ü", backend.MaxHolderLen/2))
			c.Attempt = strings.Repeat("a", backend.MaxHolderLen)
			c.Duration = backend.MaxDuration
			c.Metadata = map[string]string{"key": strings.Repeat("v", backend.MaxMetadataLen-3)}
			if _, err := backend.CheckDuration(c.Duration, e.traits); err != nil {
				e.Fatalf("the store's Traits allow no duration of a year: %v", err)
			}
			rec := e.acquire(a, c)
			e.same(e.get(b, c.Name), rec, "Get")
			if rec.Holder != c.Holder || rec.Attempt != c.Attempt || rec.Metadata["key"] != c.Metadata["key"] || rec.Duration < c.Duration {
				e.Fatalf("the record does not show what was claimed: holder %d bytes, attempt %d, metadata %d, duration %v", len(rec.Holder), len(rec.Attempt), len(rec.Metadata["key"]), rec.Duration)
			}
			e.renew(a, rec)
			e.release(a, rec)
		},
	},
	{
		Name: "contract/min-duration",
		Rule: "a duration below Traits.MinDuration is ErrInvalid, never silently raised; MinDuration itself is granted",
		Why:  "a holder whose duration was raised without a word is followed too late; users who ask for a second and get ten find out in production",
		Run: func(e *Env) {
			a := e.Store()
			if least := e.traits.MinDuration; least > 1 {
				for _, d := range []time.Duration{least - 1, 1} {
					c := e.claim(e.Name(""), "alice")
					c.Duration = d
					_, err := a.Acquire(e.ctx, c)
					e.invalid(err, "Acquire for %v, with a MinDuration of %v,", d, least)
					e.free(a, c.Name)
				}
			}
			c := e.claim(e.Name("-least"), "alice")
			c.Duration = max(a.Traits().MinDuration, 1)
			want, _ := backend.CheckDuration(c.Duration, a.Traits())
			rec, err := a.Acquire(e.ctx, c)
			if err != nil {
				e.Fatalf("Acquire for the shortest duration, %v, failed: %v", c.Duration, err)
			}
			if rec.Duration != want {
				e.Fatalf("Acquire for %v granted %v, want %v", c.Duration, rec.Duration, want)
			}
		},
	},
	{
		Name: "contract/min-token-limit",
		Rule: "no token is greater than 2⁵³ − 1: a claim that would need one fails and leaves nothing behind",
		Why:  "a token that JSON or a float64 rounds is equal to its neighbour, and fences nobody",
		Run: func(e *Env) {
			e.needs(MinToken)
			a := e.Store()
			probe := e.raised(e.Name("-probe"), 1<<16)
			if other := e.acquire(a, e.claim(e.Name("-other"), "alice")); other.Token > probe.Token {
				e.Skipf("the store counts the tokens of all names together: a claim near the greatest one would use them up for everybody")
			}
			c := e.claim(e.Name(""), "alice")
			c.MinToken = backend.MaxToken - 1
			rec, err := a.Acquire(e.ctx, c)
			switch {
			case err == nil && rec.Token != backend.MaxToken:
				e.Fatalf("Acquire with MinToken %d granted the token %d, want %d or an error", c.MinToken, rec.Token, uint64(backend.MaxToken))
			case err != nil:
				e.free(a, c.Name)
				return
			}
			e.release(a, rec)
			if rec, err := a.Acquire(e.ctx, e.claim(c.Name, "bob")); err == nil {
				e.Fatalf("after the greatest token there is, Acquire granted the token %d", rec.Token)
			}
			e.free(a, c.Name)
		},
	},
}
