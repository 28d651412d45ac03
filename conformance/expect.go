package conformance

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"time"

	"crypto/rand"

	"github.com/leasehold/leasehold/backend"
)

// This file holds the words in which the cases are written. Each is one step
// that must go well; where it does not, the case ends there.

// claim asks for a tenure that no case sees the end of.
func (e *Env) claim(name, holder string) backend.Claim {
	return backend.Claim{Name: name, Holder: holder, Attempt: rand.Text(), Duration: e.long()}
}

// shortClaim asks for a tenure that runs out soon.
func (e *Env) shortClaim(name, holder string) backend.Claim {
	c := e.claim(name, holder)
	c.Duration = e.duration
	return c
}

// over makes the record that was read the condition of a claim.
func over(c backend.Claim, rec backend.Record) backend.Claim {
	c.Over = rec.Revision
	return c
}

// acquire must be granted.
func (e *Env) acquire(s backend.Store, c backend.Claim) backend.Record {
	began := time.Now()
	rec, err := s.Acquire(e.ctx, c)
	if err != nil {
		e.Fatalf("Acquire by %q failed: %v", c.Holder, err)
	}
	switch took := time.Since(began); {
	case rec.Name != c.Name:
		e.Fatalf("Acquire of %q returned a record of %q", c.Name, rec.Name)
	case rec.Holder != c.Holder && c.Seal == nil:
		e.Fatalf("Acquire by %q returned a record with the holder %q", c.Holder, rec.Holder)
	case rec.Token == 0 || rec.Token > backend.MaxToken:
		e.Fatalf("Acquire granted the token %d, want one from 1 to %d", rec.Token, uint64(backend.MaxToken))
	case rec.Expired && took > notBefore(rec.Duration):
		e.latef("Acquire for %v took %v", rec.Duration, took)
	case rec.Expired:
		e.Fatalf("Acquire returned a record that is Expired already")
	case rec.Revision == "":
		e.Fatalf("Acquire returned a record without a Revision: nobody can claim over it")
	}
	return rec
}

// refused must be refused, with the record that is in the way, which it returns.
func (e *Env) refused(s backend.Store, c backend.Claim) backend.Record {
	rec, err := s.Acquire(e.ctx, c)
	if err == nil {
		e.Fatalf("Acquire by %q was granted (token %d), want a *HeldError", c.Holder, rec.Token)
	}
	var held *backend.HeldError
	if !errors.As(err, &held) || !errors.Is(err, backend.ErrHeld) {
		e.Fatalf("Acquire by %q failed with %q (%T), want a *HeldError", c.Holder, err, err)
	}
	if held.Record.Name != c.Name {
		e.Fatalf("the record in the *HeldError is of %q, want %q", held.Record.Name, c.Name)
	}
	return held.Record
}

// get must find a record.
func (e *Env) get(s backend.Store, name string) backend.Record {
	rec, err := s.Get(e.ctx, name)
	if err != nil {
		e.Fatalf("Get failed: %v", err)
	}
	if rec.Name != name {
		e.Fatalf("Get of %q returned a record of %q", name, rec.Name)
	}
	return rec
}

// find returns the record, or one with only the name where there is none.
func (e *Env) find(s backend.Store, name string) backend.Record {
	rec, err := s.Get(e.ctx, name)
	switch {
	case errors.Is(err, backend.ErrNotFound):
		return backend.Record{Name: name}
	case err != nil:
		e.Fatalf("Get failed: %v", err)
	}
	return rec
}

// free must find no record, or a vacant one.
func (e *Env) free(s backend.Store, name string) {
	if rec := e.find(s, name); !rec.Vacant() {
		e.Fatalf("lease %q is held by %q (token %d, expired %v), want no record or a vacant one", e.trace.short(name), rec.Holder, rec.Token, rec.Expired)
	}
}

// renew must succeed and keep the tenure.
func (e *Env) renew(s backend.Store, rec backend.Record) backend.Record {
	got, err := s.Renew(e.ctx, rec)
	if err != nil {
		e.Fatalf("Renew by %q failed: %v", rec.Holder, err)
	}
	if !got.SameTenure(rec) {
		e.Fatalf("Renew of %q with token %d returned the tenure of %q with token %d", rec.Holder, rec.Token, got.Holder, got.Token)
	}
	if got.Expired {
		e.Fatalf("Renew returned a record that is Expired")
	}
	return got
}

// release must succeed.
func (e *Env) release(s backend.Store, rec backend.Record) {
	if err := s.Release(e.ctx, rec); err != nil {
		e.Fatalf("Release by %q failed: %v", rec.Holder, err)
	}
}

// lost checks that a renewal or release of a tenure that is over said so.
func (e *Env) lost(err error, format string, args ...any) {
	if !errors.Is(err, backend.ErrLost) {
		e.Fatalf("%s: %s, want ErrLost", fmt.Sprintf(format, args...), said(err))
	}
}

// renewLost must find the tenure over.
func (e *Env) renewLost(s backend.Store, rec backend.Record, what string) {
	_, err := s.Renew(e.ctx, rec)
	e.lost(err, "Renew by %q, %s", rec.Holder, what)
}

// releaseLost must find the tenure over.
func (e *Env) releaseLost(s backend.Store, rec backend.Record, what string) {
	e.lost(s.Release(e.ctx, rec), "Release by %q, %s", rec.Holder, what)
}

// invalid checks that a call was refused for its arguments.
func (e *Env) invalid(err error, format string, args ...any) {
	if !errors.Is(err, backend.ErrInvalid) {
		e.Fatalf("%s: %s, want ErrInvalid", fmt.Sprintf(format, args...), said(err))
	}
}

// undisturbed checks that rec is still what Get shows: held, and not written to.
func (e *Env) undisturbed(s backend.Store, rec backend.Record, after string) {
	e.same(e.get(s, rec.Name), rec, "after "+after+" Get")
}

// rises checks that a later tenure has a greater token.
func (e *Env) rises(earlier, later backend.Record, after string) {
	if later.Token <= earlier.Token {
		e.Fatalf("after %s the token is %d, want one greater than %d", after, later.Token, earlier.Token)
	}
}

// same checks that two records say the same. Wall-clock times may have been
// rounded by the store, and what is left of the tenure differs.
func (e *Env) same(got, want backend.Record, what string) {
	var diff []string
	differ := func(field string, got, want any) {
		diff = append(diff, fmt.Sprintf("%s is %v, want %v", field, got, want))
	}
	if got.Name != want.Name {
		differ("Name", got.Name, want.Name)
	}
	if got.Holder != want.Holder {
		differ("Holder", got.Holder, want.Holder)
	}
	if got.Token != want.Token {
		differ("Token", got.Token, want.Token)
	}
	if got.Attempt != want.Attempt {
		differ("Attempt", got.Attempt, want.Attempt)
	}
	if got.Duration != want.Duration {
		differ("Duration", got.Duration, want.Duration)
	}
	if d := got.AcquiredAt.Sub(want.AcquiredAt).Abs(); d > time.Second {
		differ("AcquiredAt", got.AcquiredAt, want.AcquiredAt)
	}
	if got.Transitions != want.Transitions {
		differ("Transitions", got.Transitions, want.Transitions)
	}
	if !maps.Equal(got.Metadata, want.Metadata) {
		differ("Metadata", got.Metadata, want.Metadata)
	}
	switch g, w := got.Seal, want.Seal; {
	case g == nil && w == nil:
	case g == nil || w == nil || *g != *w:
		differ("Seal", g, w)
	}
	if got.Expired != want.Expired {
		differ("Expired", got.Expired, want.Expired)
	}
	if got.Revision != want.Revision {
		differ("Revision", fmt.Sprintf("%q", got.Revision), fmt.Sprintf("%q", want.Revision))
	}
	if len(diff) > 0 {
		e.Fatalf("%s shows another record: %s", what, strings.Join(diff, "; "))
	}
}

// said puts an error, or that there was none, into words.
func said(err error) string {
	if err == nil {
		return "it succeeded"
	}
	return fmt.Sprintf("it failed with %q", err)
}

// expire lets rec's tenure run out and returns what Get shows then.
func (e *Env) expire(s backend.Store, rec backend.Record) (expired backend.Record) {
	e.needsExpiry()
	e.within(rec.Duration+e.traits.ExpirySlack+e.cfg.patience, "the store calls the tenure expired", func() bool {
		expired = e.get(s, rec.Name)
		return expired.Expired
	})
	return expired
}

// notBefore is the shortest time a duration may measure on another clock.
func notBefore(d time.Duration) time.Duration { return d - d/1000 }

// watcher is a watch whose records are looked at when the case is ready.
type watcher struct {
	e      *Env
	cancel context.CancelFunc
	ended  chan struct{}

	mu   sync.Mutex
	seen []backend.Record
	next int   // the first that wait has not looked at
	err  error // the final one
}

// watch starts a watch that ends after the case at the latest.
func (e *Env) watch(s backend.Store, name string) *watcher {
	ctx, cancel := context.WithCancel(e.ctx)
	w := &watcher{e: e, cancel: cancel, ended: make(chan struct{})}
	go func() {
		defer close(w.ended)
		for rec, err := range backend.Watch(ctx, s, name) {
			w.mu.Lock()
			if err != nil {
				w.err = err
				e.trace.note("watch of "+e.trace.short(name), "error: "+err.Error())
			} else {
				w.seen = append(w.seen, rec)
				e.trace.note("watch of "+e.trace.short(name), e.trace.record(rec))
			}
			w.mu.Unlock()
		}
	}()
	e.defers(func() {
		cancel()
		select {
		case <-w.ended:
		case <-time.After(e.cfg.patience):
			e.Logf("a watch did not end within %v of its context", e.cfg.patience)
		}
	})
	return w
}

// wait looks at what the watch yields, from where it last stopped, until a
// record is what the case waits for.
func (w *watcher) wait(what string, ok func(backend.Record) bool) (found backend.Record) {
	w.e.eventually("the watch shows "+what, func() bool {
		ended := false
		select {
		case <-w.ended:
			ended = true
		default:
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		for w.next < len(w.seen) {
			w.next++
			if found = w.seen[w.next-1]; ok(found) {
				return true
			}
		}
		if ended {
			w.e.Fatalf("the watch ended (%v) before it showed %s", w.err, what)
		}
		return false
	})
	return found
}

// records returns everything the watch has yielded.
func (w *watcher) records() []backend.Record {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]backend.Record(nil), w.seen...)
}

// tenure matches the records of rec's tenure.
func tenure(rec backend.Record) func(backend.Record) bool {
	return func(r backend.Record) bool { return r.SameTenure(rec) }
}

func vacant(r backend.Record) bool { return r.Vacant() }
