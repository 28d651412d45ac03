package conformance

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/leasehold/leasehold/backend"
)

// oddSuffixes make names that some store, somewhere, has folded together,
// refused, taken apart or mistaken for its own.
var oddSuffixes = []string{
	"", "a", "A", "aa", "a-", "a.", "-a", "ab",
	// Case, beyond ASCII too.
	"name", "Name", "NAME", "\u00df", "ss", "SS", "\u0130", "i", "\u0131", "I",
	// Unicode: composed and decomposed, compatible, invisible, right to left, beyond the first plane.
	"\u00e9", "e\u0301", "\ufb01", "fi", "\u00c5", "\u212b", "a\u200bb", "a\ufeff", "\u05d0\u05d1", "\u202eabc", "\U0001f512", "\U0001f469\u200d\U0001f680",
	// Paths.
	"/", "//", "/a", "/a/", "/a//b", "/a/b", "/./a", "/../a", "/..", "/.", "/.hidden", "..", ".", "\\", "\\a", "a\\b", "C:", "~",
	// Escapes and names that look escaped.
	"a%2Fb", "a/b", "a%2fb", "a%252Fb", "%", "%%", "%2", "%zz", "%00", "a+b", "a b", "a%20b", "a_b", "a__b", "=2F", "&amp;", "\\u0061", "\\x61", "xn--", "!", "!a",
	// What key-value stores and globs read something into.
	"{a}", "{a}b", "{", "}", "{}", "[a]", "*", "?", "a*", "^a", "$", ":", "a:b", "::", ";", "'", "\"", "`", "|", "<", ">", "#", "@", "=", ",", "(", ")",
	// What a store may call its own files and keys.
	".lock", ".tmp", ".json", ":alive", "/alive", ".alive", ":token", "/token", ":fence", ":record", "-lock", ".lease", "~1",
	// Space and control characters.
	" ", "  ", " a", "a ", "a  b", "\t", "\n", "a\r\n", "\x01", "\x7f", "\u00a0", "\u2028",
	// The last code point, and the one keys are often ended with.
	"\U0010ffff", "\uffff",
}

var nameCases = []Case{
	{
		Name: "names/distinct",
		Rule: "different names are different leases, case and every byte included, and each comes back as it was given",
		Why:  "two names that share a record are a deadlock between strangers, or a lease held by both",
		Run: func(e *Env) {
			a, b := e.Store(), e.Open()
			recs := make([]backend.Record, len(oddSuffixes))
			for i, suffix := range oddSuffixes {
				c := e.claim(e.Name(suffix), fmt.Sprintf("holder %d", i))
				rec, err := a.Acquire(e.ctx, c)
				var held *backend.HeldError
				if errors.As(err, &held) {
					e.Fatalf("Acquire of the name …%q was refused, held by %q: it shares a record with another name", suffix, held.Record.Holder)
				}
				if err != nil {
					e.Fatalf("Acquire of the name …%q failed: %v", suffix, err)
				}
				recs[i] = rec
			}
			for i, suffix := range oddSuffixes {
				got := e.get(b, e.Name(suffix))
				if got.Holder != fmt.Sprintf("holder %d", i) {
					e.Fatalf("the lease …%q is held by %q, want \"holder %d\"", suffix, got.Holder, i)
				}
				recs[i] = e.renew(b, recs[i])
			}
			// Release every other one; the rest must stay.
			for i := 0; i < len(recs); i += 2 {
				e.release(a, recs[i])
			}
			for i := 1; i < len(recs); i += 2 {
				e.undisturbed(b, recs[i], "releases of other names")
				e.release(a, recs[i])
			}
		},
	},
	{
		Name: "names/long",
		Rule: "a name may have 512 bytes, of which each counts; 513 are ErrInvalid",
		Why:  "names that are cut or hashed badly collide exactly where they are long and alike",
		Run: func(e *Env) {
			a, b := e.Store(), e.Open()
			fill := func(s, last string) string {
				base := e.Name("")
				n := backend.MaxNameLen - len(base) - len(last)
				return e.Name(strings.Repeat("x", n%len(s)) + strings.Repeat(s, n/len(s)) + last)
			}
			names := []string{
				fill("a", "1"), fill("a", "2"), fill("A", "1"), fill("€", "1"), fill("€", "2"), fill("%", "1"), fill("/", "1"), fill("🔒", "1"),
				e.Name(strings.Repeat("b", 200)), e.Name(strings.Repeat("b", 201)), e.Name(strings.Repeat("b/", 120)), e.Name(strings.Repeat("B/", 120)),
			}
			recs := make([]backend.Record, len(names))
			for i, name := range names {
				rec, err := a.Acquire(e.ctx, e.claim(name, fmt.Sprintf("holder %d", i)))
				if err != nil {
					e.Fatalf("Acquire of a name of %d bytes (…%q) failed: %v", len(name), name[len(name)-8:], err)
				}
				recs[i] = rec
			}
			for _, rec := range recs {
				e.undisturbed(b, rec, "acquires of other long names")
				e.release(b, rec)
			}
			e.refusesName(a, fill("a", "1")+"a")
		},
	},
	{
		Name: "names/invalid",
		Rule: "a name that is empty, has a NUL or is not UTF-8 is ErrInvalid for every call",
		Why:  "such names are mistakes; a store that takes some of them holds leases that cannot move",
		Run: func(e *Env) {
			for _, name := range []string{"", "\x00", e.prefix + "\x00", e.prefix + "\x00a", e.prefix + "\xff", e.prefix + "\xc3\x28", e.prefix + "\xed\xa0\x80"} {
				e.refusesName(e.Store(), name)
			}
		},
	},
	{
		Name: "names/list",
		Rule: "List yields the record of every name with the prefix, each once and under its own name, and no other",
		Why:  "operators clear away by prefix: one that catches a neighbour, or misses an escaped name, does harm",
		Run: func(e *Env) {
			a, b := e.Store(), e.Open()
			e.lists()
			want := make(map[string]backend.Record)
			for i, suffix := range oddSuffixes {
				rec := e.acquire(a, e.claim(e.Name(suffix), fmt.Sprintf("holder %d", i)))
				want[rec.Name] = rec
			}
			prefixes := []string{"", "a", "A", "/", "/a", "/a/", "a%", "a/", "%", "{", "*", ".", "..", "\u00e9", "e\u0301", "\U0001f512", " ", "no such name"}
			for _, p := range prefixes {
				prefix := e.prefix + p
				got := e.list(b, prefix)
				for name, rec := range want {
					r, listed := got[name]
					switch should := strings.HasPrefix(name, prefix); {
					case should && !listed:
						e.Fatalf("List of the prefix …%q does not yield …%q", p, name[len(e.prefix):])
					case !should && listed:
						e.Fatalf("List of the prefix …%q yields …%q", p, name[len(e.prefix):])
					case should:
						e.same(r, rec, fmt.Sprintf("List of the prefix …%q", p))
					}
					delete(got, name)
				}
				if len(got) > 0 {
					e.Fatalf("List of the prefix …%q yields names that nobody acquired: %+q", p, slices.Sorted(maps.Keys(got)))
				}
			}
			// Breaking off is allowed at any point.
			for range backend.List(e.ctx, b, e.prefix) {
				break
			}
		},
	},
	{
		Name: "names/list-declared",
		Rule: "a store that cannot list says so: it is declared with Without(List), and List yields ErrUnsupported",
		Why:  "an empty list and a list that cannot be had look the same to a script",
		Run: func(e *Env) {
			a := e.Store()
			rec := e.acquire(a, e.claim(e.Name(""), "alice"))
			var err error
			listed := false
			for r, yielded := range backend.List(e.ctx, a, e.prefix) {
				listed = listed || r.Name == rec.Name
				err = yielded
			}
			switch declared := e.cfg.lacks(List); {
			case declared && !errors.Is(err, backend.ErrUnsupported):
				e.Fatalf("the store is declared to lack List, but it was not refused: %s, want ErrUnsupported", said(err))
			case !declared && errors.Is(err, backend.ErrUnsupported):
				e.Fatalf("the store cannot list (%v): declare it with Without(List)", err)
			case !declared && (err != nil || !listed):
				e.Fatalf("List of the prefix does not yield the lease that is held: %s", said(err))
			}
		},
	},
	{
		Name: "names/list-cancelled",
		Rule: "List with a context that has ended yields an error, not a shorter list",
		Why:  "a list cut short without a word lets a sweep believe that it is done",
		Run: func(e *Env) {
			a := e.Store()
			e.lists()
			e.acquire(a, e.claim(e.Name(""), "alice"))
			ctx, cancel := context.WithCancel(e.ctx)
			cancel()
			var err error
			for _, yielded := range backend.List(ctx, a, e.prefix) {
				err = yielded
			}
			if err == nil {
				e.Fatalf("List with a cancelled context ended without an error")
			}
		},
	},
}

// lists skips the case where the store is declared not to list.
func (e *Env) lists() { e.needs(List) }

// list returns what List yields, by name.
func (e *Env) list(s backend.Store, prefix string) map[string]backend.Record {
	got := make(map[string]backend.Record)
	for rec, err := range backend.List(e.ctx, s, prefix) {
		if err != nil {
			e.Fatalf("List of the prefix %q failed: %v", e.trace.short(prefix), err)
		}
		if _, twice := got[rec.Name]; twice {
			e.Fatalf("List yields %q twice", rec.Name)
		}
		got[rec.Name] = rec
	}
	return got
}

// refusesName checks that every verb refuses a name.
func (e *Env) refusesName(s backend.Store, name string) {
	what := fmt.Sprintf("%+q", name)
	if len(name) > 64 {
		what = fmt.Sprintf("of %d bytes", len(name))
	}
	rec := backend.Record{Name: name, Holder: "alice", Token: 1, Attempt: "a", Duration: e.long(), Revision: "1"}
	for _, call := range e.calls(s, rec) {
		e.invalid(call.make(e.ctx), "%s of the name %s", call.verb, what)
	}
	e.invalid(firstError(backend.Watch(e.ctx, s, name)), "Watch of the name %s", what)
}
