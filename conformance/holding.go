package conformance

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/lease"
)

// This file holds the words in which the cases about package lease are written.

// holding is a Lease and what it told its observer.
type holding struct {
	*lease.Lease
	e *Env

	mu     sync.Mutex
	events []lease.Event
}

// lease makes a Lease that is closed after the case. Unless an option says
// otherwise, it lasts leaseDuration.
func (e *Env) lease(s backend.Store, name string, opts ...lease.Option) *holding {
	h := &holding{e: e}
	l, err := lease.New(s, name, append([]lease.Option{lease.WithDuration(e.leaseDuration()), lease.WithObserver(h.observe)}, opts...)...)
	if err != nil {
		e.Fatalf("lease.New failed: %v", err)
	}
	h.Lease = l
	e.defers(func() { _ = l.Close() })
	return h
}

// steady is a lease that is renewed often and lasts long, so that whatever ends
// it is not time.
func (e *Env) steady(s backend.Store, name string, opts ...lease.Option) *holding {
	return e.lease(s, name, append([]lease.Option{e.forLong(), lease.WithRenewInterval(e.leaseDuration() / 3)}, opts...)...)
}

// takeAway makes a claim over whatever the record is, as often as it is renewed
// in between.
func (e *Env) takeAway(s backend.Store, c backend.Claim) (rec backend.Record) {
	e.eventually("a claim over the record is granted", func() bool {
		var err error
		rec, err = s.Acquire(e.ctx, over(c, e.get(s, c.Name)))
		if err != nil && !errors.Is(err, backend.ErrHeld) {
			e.Fatalf("Acquire with Over failed: %v", err)
		}
		return err == nil
	})
	return rec
}

// leaseDuration is how long a lease lasts that a case lets run out, or sees
// renewed: somewhat more than the store needs, since a lease gives up a call
// after a quarter of it.
func (e *Env) leaseDuration() time.Duration {
	d, err := backend.CheckDuration(max(e.duration, 2*e.scale*e.cfg.duration), e.traits)
	if err != nil {
		e.Fatalf("the store's Traits allow no duration: %v", err)
	}
	return d
}

// forLong is for a lease that no case sees the end of.
func (e *Env) forLong() lease.Option { return lease.WithDuration(e.long()) }

func (h *holding) observe(ev lease.Event) {
	answer := ""
	if ev.Err != nil {
		answer = ev.Err.Error()
	}
	h.e.trace.note("lease of "+h.e.trace.short(string(h.Holder())), string(ev.Kind)+" "+answer)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.events = append(h.events, ev)
}

// told returns the events of a kind.
func (h *holding) told(kind lease.EventKind) (events []lease.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, ev := range h.events {
		if ev.Kind == kind {
			events = append(events, ev)
		}
	}
	return events
}

// acquires must succeed.
func (h *holding) acquires() *holding {
	switch err := h.Acquire(h.e.ctx); {
	case errors.Is(err, context.DeadlineExceeded):
		h.e.latef("Lease.Acquire failed: %v", err)
	case err != nil:
		h.e.Fatalf("Lease.Acquire failed: %v", err)
	}
	h.holds("after Acquire")
	return h
}

// holds checks what is true of a Lease during a tenure.
func (h *holding) holds(when string) {
	ctx := h.Context()
	switch cause, held, token := context.Cause(ctx), h.Held(), h.Token(); {
	case cause != nil && held:
		h.e.Fatalf("%s the context has ended (%v), but Held is true", when, cause)
	case errors.Is(cause, lease.ErrExpired), !held && cause == nil:
		h.e.latef("%s the tenure has run out: %v", when, cause)
	case cause != nil:
		h.e.Fatalf("%s the tenure is over: %v", when, cause)
	case token == 0 && ctx.Err() == nil:
		h.e.Fatalf("%s Token is 0", when)
	}
}

// releases must succeed.
func (h *holding) releases() {
	if err := h.Release(h.e.ctx); err != nil {
		h.e.Fatalf("Lease.Release failed: %v", err)
	}
}

// ends waits for the end of a tenure and checks that it has the cause, and that
// it is told: once, and to those who ask later.
func (h *holding) ends(ctx context.Context, within time.Duration, cause error) {
	e := h.e
	e.within(within, "the context of the tenure ends", func() bool { return ctx.Err() != nil })
	if got := context.Cause(ctx); !errors.Is(got, cause) {
		e.Fatalf("the cause of the end is %q, want %q", got, cause)
	}
	if h.Held() {
		e.Fatalf("Held is true after the context has ended")
	}
	if h.Token() != 0 || h.Deadline() != 0 || h.Remaining() != 0 || h.Record().Holder != "" {
		e.Fatalf("after the end of the tenure Token is %d, Deadline %v, Remaining %v, and Record names %q: want nothing", h.Token(), h.Deadline(), h.Remaining(), h.Record().Holder)
	}
	if late := h.Context(); late.Err() == nil || !errors.Is(context.Cause(late), cause) {
		e.Fatalf("whoever asks for the context after the end finds %v, want one that is done with %q", context.Cause(late), cause)
	}
	called := make(chan struct{})
	context.AfterFunc(ctx, func() { close(called) })
	e.eventually("who subscribes after the end is called", func() bool {
		select {
		case <-called:
			return true
		default:
			return false
		}
	})
	e.eventually("the end is told to the observer", func() bool { return len(h.told(lease.EventEnded)) > 0 })
	e.eventually("nothing is scheduled after the end", func() bool { return h.ScheduleID() == 0 })
}

// endedOnce checks, later, that no second end was told.
func (h *holding) endedOnce(tenures int) {
	if ended := h.told(lease.EventEnded); len(ended) != tenures {
		h.e.Fatalf("the end of a tenure was told %d times for %d tenures: %v", len(ended), tenures, ended)
	}
}

// acquisition checks that err is the failure of an Acquire, Renew or Await.
func (e *Env) acquisition(err error, op, other string) {
	var failed *lease.AcquisitionError
	switch {
	case err == nil:
		e.Fatalf("%s succeeded", op)
	case !errors.As(err, &failed):
		e.Fatalf("%s failed with a %T (%v), want an *AcquisitionError", op, err, err)
	case failed.Other != other || failed.Op == "" || failed.Name == "":
		e.Fatalf("the *AcquisitionError of %s says Op %q, Name %q, Other %q, want the Other %q", op, failed.Op, failed.Name, failed.Other, other)
	case other != "" && !errors.Is(err, backend.ErrHeld):
		e.Fatalf("the *AcquisitionError of %s does not wrap ErrHeld: %v", op, err)
	}
}

// relinquishment checks that err is the failure of a Release.
func (e *Env) relinquishment(err error, other string) {
	var failed *lease.RelinquishmentError
	switch {
	case err == nil:
		e.Fatalf("Lease.Release succeeded")
	case !errors.As(err, &failed):
		e.Fatalf("Lease.Release failed with a %T (%v), want a *RelinquishmentError", err, err)
	case failed.Other != other || failed.Op == "" || failed.Name == "":
		e.Fatalf("the *RelinquishmentError says Op %q, Name %q, Other %q, want the Other %q", failed.Op, failed.Name, failed.Other, other)
	}
}

// asks asks the store both questions.
func (h *holding) asks(when string, acquired, expired bool) {
	e := h.e
	gotAcquired, err := h.IsAcquired(e.ctx)
	if err != nil {
		e.Fatalf("%s IsAcquired failed: %v", when, err)
	}
	gotExpired, err := h.IsExpired(e.ctx)
	if err != nil {
		e.Fatalf("%s IsExpired failed: %v", when, err)
	}
	if gotAcquired != acquired || gotExpired != expired {
		e.Fatalf("%s IsAcquired is %v and IsExpired %v, want %v and %v", when, gotAcquired, gotExpired, acquired, expired)
	}
}

// succeed waits until another is granted the lease, by whichever way the store
// has for that, and returns its record.
func (e *Env) succeed(s backend.Store, name string, d time.Duration) (rec backend.Record) {
	within := d + d/50 + e.traits.ExpirySlack + e.cfg.patience
	if e.seesExpiry() {
		// The sharpest contender there is: it asks all the time.
		deadline := time.Now().Add(within)
		for {
			rec, err := s.Acquire(e.ctx, e.claim(name, "contender"))
			if err == nil {
				return rec
			}
			if !errors.Is(err, backend.ErrHeld) {
				e.Fatalf("Acquire failed: %v", err)
			}
			if time.Now().After(deadline) {
				e.latef("another is not granted the lease within %v", within)
			}
			e.sleep(min(d/200, time.Millisecond))
		}
	}
	e.needsSuccession()
	l := e.lease(s, name, lease.WithHolder("contender"), lease.WithDuration(d))
	ctx, cancel := context.WithTimeout(e.ctx, within)
	defer cancel()
	if err := l.Await(ctx); err != nil {
		e.latef("another is not granted the lease within %v: %v", within, err)
	}
	return l.Record()
}

// needsSuccession skips the case where nobody can follow a dead holder in the
// time this run has.
func (e *Env) needsSuccession() {
	if !e.traits.RenewalsVisible {
		e.needsExpiry()
	}
}

// gate returns a channel and what closes it, which happens after the case at
// the latest.
func (e *Env) gate() (gate chan struct{}, open func()) {
	gate = make(chan struct{})
	var once sync.Once
	open = func() { once.Do(func() { close(gate) }) }
	e.defers(open)
	return gate, open
}
