package conformance

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/leasehold/leasehold/backend"
)

var watchCases = []Case{
	{
		Name: "watch/present-state",
		Rule: "Watch yields the present state first: the record, or one with only its Name where there is none",
		Why:  "whoever reads first and watches then misses what happened in between",
		Run: func(e *Env) {
			a, b := e.Store(), e.Open()
			any := func(backend.Record) bool { return true }
			if got := e.watch(b, e.Name("-absent")).wait("the present state", any); !onlyName(got) || got.Name != e.Name("-absent") {
				e.Fatalf("the first record of a watch is %+v, want only the Name where there is no record", got)
			}
			c := e.claim(e.Name("-held"), "alice")
			c.Metadata = map[string]string{"pod": "web-1"}
			rec := e.acquire(a, c)
			e.same(e.watch(b, rec.Name).wait("the present state", any), rec, "the first record of a watch")
		},
	},
	{
		Name: "watch/changes",
		Rule: "Watch shows every change of hands that lasts: acquired, released, acquired by another, taken over",
		Why:  "waiters wake by it, holders hear of their loss by it",
		Run: func(e *Env) {
			a, b := e.Store(), e.Open()
			own, other := e.watch(a, e.Name("")), e.watch(b, e.Name(""))
			both := func(what string, ok func(backend.Record) bool) {
				other.wait(what+" (watched by another client)", ok)
				own.wait(what, ok)
			}
			both("that there is no record", vacant)
			first := e.acquire(a, e.claim(e.Name(""), "alice"))
			both("the holder", tenure(first))
			e.release(a, first)
			both("the release", vacant)
			second := e.acquire(a, e.claim(e.Name(""), "bob"))
			both("the next holder", tenure(second))
			third := e.acquire(a, over(e.claim(e.Name(""), "carol"), second))
			both("the one who took over", tenure(third))
			fourth := e.acquire(a, over(e.claim(e.Name(""), "carol"), third))
			both("the new tenure of the same holder", tenure(fourth))
		},
	},
	{
		Name: "watch/newest-never-missed",
		Rule: "states in between may be merged, but they come in order, and the last always comes",
		Why:  "a waiter that misses the last release waits for ever; one that is shown an old holder after a new one believes the wrong one",
		Run: func(e *Env) {
			a, b := e.Store(), e.Open()
			w := e.watch(b, e.Name(""))
			w.wait("that there is no record", vacant)
			for round := range 5 {
				var last backend.Record
				for range 6 {
					last = e.acquire(a, e.claim(e.Name(""), "alice"))
					e.release(a, last)
				}
				if round%2 == 0 {
					last = e.acquire(a, e.claim(e.Name(""), "bob"))
					w.wait("the last holder", tenure(last))
					e.release(a, last)
				} else {
					e.eventually("the watch shows the last release", func() bool {
						seen := w.records()
						return seen[len(seen)-1].Vacant()
					})
				}
			}
			newest := backend.Record{}
			for _, rec := range w.records() {
				if rec.Token < newest.Token && !rec.Vacant() {
					e.Fatalf("the watch shows the token %d after the token %d", rec.Token, newest.Token)
				}
				if !rec.Vacant() {
					newest = rec
				}
			}
		},
	},
	{
		Name: "watch/no-gap",
		Rule: "a change made while the first record is being looked at is not missed, and neither is the last of many made while the reader is busy",
		Why:  "subscribe before you read: between the two, the holder may have released for the last time",
		Run: func(e *Env) {
			a, b := e.Store(), e.Open()
			for i := range 4 {
				name := e.Name(fmt.Sprintf("-%d", i))
				ctx, cancel := context.WithTimeout(e.ctx, e.cfg.patience)
				first, done := true, false
				var last backend.Record
				for rec, err := range backend.Watch(ctx, b, name) {
					if err != nil {
						e.Fatalf("Watch failed: %v", err)
					}
					if first {
						first = false
						for range 1 + 10*i {
							last = e.acquire(a, e.claim(name, "alice"))
							e.release(a, last)
						}
						last = e.acquire(a, e.claim(name, "bob"))
					} else if done = rec.SameTenure(last); done {
						break
					}
				}
				cancel()
				if !done {
					e.latef("the watch does not show the last of the changes that were made while its first record was looked at")
				}
			}
		},
	},
	{
		Name: "watch/expiry",
		Rule: "Watch yields once more when Expired turns true",
		Why:  "a waiter should take over from the dead at once, and not by asking again and again",
		Run: func(e *Env) {
			e.needsExpiry()
			a, b := e.Store(), e.Open()
			w := e.watch(b, e.Name(""))
			first := time.Now()
			rec := e.acquire(a, e.shortClaim(e.Name(""), "alice"))
			began := time.Now()
			_, err := a.Renew(e.ctx, rec)
			e.stillMine(err, first, rec)
			// A store that is polled may show the holder only then.
			expired := w.wait("the expiry", func(r backend.Record) bool { return r.SameTenure(rec) && r.Expired })
			if passed := time.Since(began); passed < notBefore(rec.Duration) {
				e.Fatalf("the watch shows the tenure as Expired %v after its last renewal began; its duration is %v", passed, rec.Duration)
			}
			e.same(e.get(a, rec.Name), expired, "Get, after the watch showed the expiry,")
			taken := e.acquire(b, e.claim(rec.Name, "bob"))
			w.wait("the next holder", tenure(taken))
		},
	},
	{
		Name: "watch/renewals",
		Rule: "renewals, seen or not, neither end a watch nor hide a change, nor look like one",
		Why:  "most of what happens to a lease is renewal",
		Run: func(e *Env) {
			a, b := e.Store(), e.Open()
			w := e.watch(b, e.Name(""))
			rec := e.acquire(a, e.claim(e.Name(""), "alice"))
			w.wait("the holder", tenure(rec))
			for range 10 {
				rec = e.renew(a, rec)
				e.sleep(2 * time.Millisecond)
			}
			e.release(a, rec)
			w.wait("the release after many renewals", vacant)
			for _, r := range w.records() {
				if !r.Vacant() && (!r.SameTenure(rec) || r.Expired) {
					e.Fatalf("the watch shows %q, token %d, expired %v: there was only the tenure of %q, token %d", r.Holder, r.Token, r.Expired, rec.Holder, rec.Token)
				}
			}
		},
	},
	{
		Name: "watch/many",
		Rule: "many watches, of one name and of many, through one client and through several, all see what is theirs",
		Why:  "a thousand waiters share one connection",
		Run: func(e *Env) {
			a, b := e.Store(), e.Open()
			var shared, single []*watcher
			for i := range 12 {
				shared = append(shared, e.watch([]backend.Store{a, b}[i%2], e.Name("")))
				single = append(single, e.watch([]backend.Store{a, b}[i%2], e.Name(fmt.Sprintf("-%d", i))))
			}
			rec := e.acquire(a, e.claim(e.Name(""), "alice"))
			for i, w := range shared {
				w.wait("the holder", tenure(rec))
				if i%3 == 0 {
					w.cancel() // the others go on
				}
			}
			for i, w := range single {
				own := e.acquire(a, e.claim(e.Name(fmt.Sprintf("-%d", i)), "alice"))
				w.wait("the holder of its own name", tenure(own))
			}
			e.release(a, rec)
			for i, w := range shared {
				if i%3 != 0 {
					w.wait("the release", vacant)
				}
			}
			for i, w := range single {
				for _, r := range w.records() {
					if r.Name != e.Name(fmt.Sprintf("-%d", i)) {
						e.Fatalf("the watch of one name shows a record of %q", r.Name)
					}
				}
			}
		},
	},
	{
		Name: "watch/ends",
		Rule: "when its context ends, a watch just stops, without an error; breaking off ends it too; the client goes on",
		Why:  "a waiter that gives up is no failure, and must leave nothing running",
		Run: func(e *Env) {
			a := e.Store()
			rec := e.acquire(a, e.claim(e.Name(""), "alice"))
			for i := range 4 {
				w := e.watch(a, rec.Name)
				if i > 0 {
					w.wait("the present state", tenure(rec))
				}
				w.cancel()
				e.eventually("a watch ends after its context", func() bool {
					select {
					case <-w.ended:
						return true
					default:
						return false
					}
				})
				if w.err != nil {
					e.Fatalf("the watch ended with the error %q when its context ended", w.err)
				}
				for range backend.Watch(e.ctx, a, rec.Name) {
					break
				}
			}
			ended, cancel := context.WithCancel(e.ctx)
			cancel()
			if err := firstError(backend.Watch(ended, a, rec.Name)); err != nil {
				e.Fatalf("a watch with a cancelled context yields the error %q", err)
			}
			e.release(a, e.renew(a, rec))
		},
	},
	{
		Name: "watch/closed",
		Rule: "Close ends the watches of its client with an error, and no other",
		Why:  "a watch that goes silent looks like a lease that nobody touches",
		Run: func(e *Env) {
			a, b := e.Store(), e.Open()
			rec := e.acquire(a, e.claim(e.Name(""), "alice"))
			own, other := e.watch(b, rec.Name), e.watch(a, rec.Name)
			own.wait("the present state", tenure(rec))
			other.wait("the present state", tenure(rec))
			if err := b.Close(); err != nil {
				e.Fatalf("Close failed: %v", err)
			}
			e.eventually("a watch ends after the Close of its client", func() bool {
				select {
				case <-own.ended:
					return true
				default:
					return false
				}
			})
			if own.err == nil {
				e.Fatalf("the watch of a client that was closed ended without an error")
			}
			if errors.Is(own.err, backend.ErrHeld) || errors.Is(own.err, backend.ErrLost) || errors.Is(own.err, backend.ErrNotFound) {
				e.Fatalf("the watch of a client that was closed ended with %q, which says something about the lease", own.err)
			}
			e.release(a, rec)
			other.wait("the release", vacant)
		},
	},
	{
		Name: "watch/leaves-nothing",
		Rule: "a watch that was broken off or whose context ended, and a client that was closed, leave nothing running",
		Why:  "waiters come and go for months; a goroutine for each that has gone fills the process",
		Run: func(e *Env) {
			a := e.Store()
			rec := e.acquire(a, e.claim(e.Name(""), "alice"))
			before := e.running(e.pkg)
			b := e.Open()
			for range 5 {
				for range backend.Watch(e.ctx, b, rec.Name) {
					break
				}
				w := e.watch(b, rec.Name)
				w.wait("the present state", tenure(rec))
				w.cancel()
			}
			if err := b.Close(); err != nil {
				e.Fatalf("Close failed: %v", err)
			}
			e.eventually("what was begun has ended", func() bool { return e.running(e.pkg) <= before })
		},
	},
}
