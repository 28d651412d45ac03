package conformance

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/leasehold/leasehold/backend"
)

// calls are the verbs, each made once on a name.
func (e *Env) calls(s backend.Store, rec backend.Record) []struct {
	verb string
	make func(ctx context.Context) error
} {
	return []struct {
		verb string
		make func(ctx context.Context) error
	}{
		{"Get", func(ctx context.Context) error { _, err := s.Get(ctx, rec.Name); return err }},
		{"Acquire", func(ctx context.Context) error { _, err := s.Acquire(ctx, e.claim(rec.Name, "bob")); return err }},
		{"Acquire with Over", func(ctx context.Context) error {
			_, err := s.Acquire(ctx, over(e.claim(rec.Name, "bob"), rec))
			return err
		}},
		{"Renew", func(ctx context.Context) error { _, err := s.Renew(ctx, rec); return err }},
		{"Release", func(ctx context.Context) error { return s.Release(ctx, rec) }},
	}
}

// firstError returns the first error that a sequence yields.
func firstError(seq func(yield func(backend.Record, error) bool)) (err error) {
	for _, err = range seq {
		break
	}
	return err
}

var clientCases = []Case{
	{
		Name: "contract/closed",
		Rule: "after Close every call is ErrInvalid, and a second Close is nil",
		Why:  "a client that goes on after Close, or blocks, keeps a process from ending",
		Run: func(e *Env) {
			a, b := e.Store(), e.Open()
			rec := e.acquire(a, e.claim(e.Name(""), "alice"))
			for i := range 2 {
				if err := b.Close(); err != nil {
					e.Fatalf("Close number %d failed: %v", i+1, err)
				}
			}
			for _, call := range e.calls(b, rec) {
				e.invalid(call.make(e.ctx), "%s after Close", call.verb)
			}
			e.invalid(firstError(backend.Watch(e.ctx, b, rec.Name)), "Watch after Close")
			if !e.cfg.lacks(List) {
				e.invalid(firstError(backend.List(e.ctx, b, rec.Name)), "List after Close")
			}
			b.Traits() // must not panic
			e.undisturbed(a, rec, "calls on a closed client")
		},
	},
	{
		Name: "contract/close-leaves-others",
		Rule: "Close touches no record and no other client of the same store",
		Why:  "one of many users of a connection ends; the tenures it began may be in other hands by now",
		Run: func(e *Env) {
			a, b := e.Store(), e.Open()
			mine := e.acquire(a, e.claim(e.Name("1"), "alice"))
			its := e.acquire(b, e.claim(e.Name("2"), "bob"))
			w := e.watch(a, mine.Name)
			w.wait("the holder", tenure(mine))
			if err := b.Close(); err != nil {
				e.Fatalf("Close failed: %v", err)
			}
			e.undisturbed(a, mine, "another client's Close")
			e.undisturbed(a, its, "its client's Close")
			e.renew(a, mine)
			e.renew(a, its)
			e.release(a, mine)
			w.wait("the release", vacant)
		},
	},
	{
		Name: "contract/cancelled",
		Rule: "a call whose context has ended returns at once, claims no success, and gives no reason it cannot know",
		Why:  "the caller's time is over; what it must not hear is that it holds the lease, nor that another does",
		Run: func(e *Env) {
			a, b := e.Store(), e.Open()
			ctx, cancel := context.WithCancel(e.ctx)
			cancel()
			for i, name := range []string{"Get", "Acquire", "Acquire with Over", "Renew", "Release"} {
				rec := e.acquire(b, e.claim(e.Name(fmt.Sprint(i)), "alice"))
				if name == "Acquire" {
					e.release(b, rec)
				}
				call := e.calls(a, rec)[i]
				began := time.Now()
				err := call.make(ctx)
				if took := time.Since(began); took > e.cfg.patience {
					e.latef("%s with a cancelled context took %v", name, took)
				}
				if err == nil {
					e.Fatalf("%s with a cancelled context: it succeeded, want an error", name)
				}
				if backend.Definite(err) {
					e.Fatalf("%s with a cancelled context: %s, want the context's error", name, said(err))
				}
			}
		},
	},
	{
		Name: "contract/cancelled-harmless",
		Rule: "a client one of whose calls was cut short by its context goes on working",
		Why:  "timeouts are daily bread; a connection or a lock left in the middle poisons the calls after it",
		Run: func(e *Env) {
			a := e.Store()
			rec := e.acquire(a, e.claim(e.Name(""), "alice"))
			for i := range 30 {
				ctx, cancel := context.WithTimeout(e.ctx, time.Duration(i)*20*time.Microsecond)
				_, renewed := a.Renew(ctx, rec)
				_, got := a.Get(ctx, rec.Name)
				_, refused := a.Acquire(ctx, e.claim(rec.Name, "bob"))
				cancel()
				if errors.Is(renewed, backend.ErrLost) || errors.Is(got, backend.ErrNotFound) || refused == nil {
					e.Fatalf("calls cut short by their context: Renew %v, Get %v, Acquire by another %v", renewed, got, refused)
				}
			}
			rec = e.renew(a, rec)
			e.undisturbed(a, rec, "calls cut short by their context")
			e.refused(a, e.claim(rec.Name, "bob"))
			e.release(a, rec)
			e.free(a, rec.Name)
		},
	},
	{
		Name: "contract/concurrent-use",
		Rule: "one client serves many goroutines at once, on one name and on many",
		Why:  "a process has one client and a thousand leases",
		Run: func(e *Env) {
			a := e.Store()
			shared := e.acquire(a, e.claim(e.Name("-shared"), "alice"))
			e.together(4*e.cfg.clients, func(i int) {
				rec := e.acquire(a, e.claim(e.Name(fmt.Sprintf("-%d", i)), "alice"))
				for range 3 {
					rec = e.renew(a, rec)
					e.undisturbed(a, rec, "a renewal")
					e.renew(a, shared)
					e.refused(a, e.claim(shared.Name, "bob"))
					e.get(a, shared.Name)
				}
				e.release(a, rec)
				e.free(a, rec.Name)
			})
			e.release(a, shared)
		},
	},
}
