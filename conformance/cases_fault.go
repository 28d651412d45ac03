package conformance

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/lease"
)

var faultCases = []Case{
	{
		Name: "fault/failed-renewal",
		Rule: "one renewal that fails, or hangs, or whose reply is lost, costs nobody the lease",
		Why:  "stores restart, networks hiccup; a lease that ends with the first error ends daily",
		Run: func(e *Env) {
			faults := []struct {
				what  string
				fault Fault
			}{{"fails", Fail(nil)}, {"hangs", Hang()}, {"loses its reply", LoseReply(nil)}, {"hangs after it was applied", HangAfter()}}
			e.together(len(faults), func(i int) {
				f := NewFaults(e.Open())
				l := e.lease(f.Store(), e.Name(fmt.Sprintf("-%d", i))).acquires()
				token := l.Token()
				f.Next(VerbRenew, faults[i].fault)
				e.sleep(2 * l.Duration())
				got := l.Token()
				l.holds("after one renewal that " + faults[i].what)
				if got != token && got != 0 {
					e.Fatalf("after one renewal that %s the token is %d, want %d", faults[i].what, got, token)
				}
				if n := len(l.told(lease.EventRenewFailed)); n == 0 {
					e.Fatalf("one renewal that %s was not told", faults[i].what)
				}
				l.releases()
				l.endedOnce(1)
			})
		},
	},
	{
		Name: "fault/cut-off-errors",
		Rule: stopsFirst,
		Why:  stopsFirstWhy,
		Run: func(e *Env) {
			e.cutOff(func(f *Faults, _ *holding) { f.Every(Fail(nil)) })
		},
	},
	{
		Name: "fault/cut-off-hang",
		Rule: stopsFirst,
		Why:  stopsFirstWhy,
		Run: func(e *Env) {
			e.cutOff(func(f *Faults, _ *holding) { f.Every(Hang()) })
		},
	},
	{
		Name: "fault/cut-off-stall",
		Rule: stopsFirst,
		Why:  stopsFirstWhy,
		Run: func(e *Env) {
			e.cutOff(func(f *Faults, _ *holding) {
				gate, _ := e.gate()
				f.Every(Stall(gate))
			})
		},
	},
	{
		Name: "fault/cut-off-slow-replies",
		Rule: stopsFirst + "; also where the replies to its last calls were slow",
		Why:  "the store counts from when it granted, which is before the reply: who counts from the reply believes too long",
		Run: func(e *Env) {
			e.cutOff(func(f *Faults, l *holding) {
				f.Every(DelayReply(l.Duration()/8), VerbRenew)
				before := len(l.told(lease.EventRenewed))
				e.within(l.Duration()+e.cfg.patience, "a renewal whose reply is slow", func() bool {
					l.holds("while replies are slow")
					return len(l.told(lease.EventRenewed)) > before
				})
				f.Every(Fail(nil))
			})
		},
	},
	{
		Name: "fault/cut-off-slow-clock",
		Rule: stopsFirst + "; also one whose clock runs nearly a hundredth slow, and without a grace",
		Why:  "two clocks are never alike: the margin is there for that, and the grace for the work",
		Run: func(e *Env) {
			e.cutOff(func(f *Faults, _ *holding) { f.Every(Fail(nil)) }, lease.WithClock(slowClock{lease.SystemClock}), lease.WithGrace(0))
		},
	},
	{
		Name: "fault/cut-off-replies",
		Rule: "a holder none of whose replies arrive stops at its deadline, though its renewals arrive; when it is silent, another is let in",
		Why:  "it cannot know that its renewals are good",
		Run: func(e *Env) {
			e.cutOff(func(f *Faults, l *holding) {
				f.Every(LoseReply(nil))
				e.within(l.Duration()+e.cfg.patience, "the context of the tenure ends", func() bool { return l.Context().Err() != nil })
			})
		},
	},
	{
		Name: "fault/clock-jump",
		Rule: "a holder whose clock has jumped ahead, as after a suspend, does not believe in its tenure any more, before any timer has fired",
		Why:  "while the machine slept another was let in",
		Run: func(e *Env) {
			clock := &jumpingClock{Clock: lease.SystemClock}
			l := e.lease(e.Store(), e.Name(""), lease.WithClock(clock)).acquires()
			ctx := l.Context()
			clock.offset.Store(int64(2 * l.Duration()))
			if l.Held() {
				e.Fatalf("Held is true though twice the duration has passed")
			}
			l.ends(ctx, l.Duration()+e.cfg.patience, lease.ErrExpired)
			l.acquires()
		},
	},
	{
		Name: "fault/acquire-reply-lost",
		Rule: "an acquire whose reply is lost either succeeds, with a token of its own, or leaves the lease to others; it is never adopted from a read",
		Why:  "nobody knows when the lost grant was made, so nobody knows its deadline",
		Run: func(e *Env) {
			for i, fault := range []Fault{LoseReply(nil), HangAfter()} {
				f := NewFaults(e.Open())
				l := e.lease(f.Store(), e.Name(fmt.Sprintf("-%d", i)))
				granted := make(chan backend.Record, 1)
				f.Next(VerbAcquire, tap(granted, fault))
				err := l.Acquire(e.ctx)
				lost := <-granted
				if lost.Token == 0 {
					e.Fatalf("the acquire whose reply was to be lost was not granted")
				}
				if err == nil {
					l.holds("after an Acquire whose first reply was lost")
					e.rises(lost, l.Record(), "an acquire whose reply was lost")
					if got := e.get(e.Store(), l.Name()); got.Token != l.Token() {
						e.Fatalf("the store shows the token %d, the Lease %d", got.Token, l.Token())
					}
					continue
				}
				e.acquisition(err, "Acquire", "")
				if l.Held() || l.Context().Err() == nil {
					e.Fatalf("Acquire failed (%v), but Held is %v and the context %v", err, l.Held(), context.Cause(l.Context()))
				}
				e.rises(lost, e.succeed(e.Store(), l.Name(), l.Duration()), "an acquire whose reply was lost")
			}
		},
	},
	{
		Name: "fault/acquire-late",
		Rule: "an acquire that arrives after its caller has given up makes nobody a holder unawares; the Lease's next acquire makes it good, with a new token",
		Why:  "absence proves nothing while a write may be under way",
		Run: func(e *Env) {
			f := NewFaults(e.Open())
			l := e.lease(f.Store(), e.Name(""), e.forLong())
			gate, open := e.gate()
			answers := make(chan backend.Record, 1)
			f.Next(VerbAcquire, tap(answers, Late(gate, nil)))
			err := l.Acquire(e.ctx)
			token := l.Token()
			open()
			landed := <-answers
			if err == nil {
				// It was sent again, as an attempt of its own or as the same.
				if got := e.get(e.Store(), l.Name()); got.Token != token {
					e.Fatalf("a late copy of the acquire took the token from %d to %d", token, got.Token)
				}
				l.holds("after a late copy of its acquire")
				return
			}
			if l.Held() || l.Token() != 0 || l.Context().Err() == nil {
				e.Fatalf("a late acquire has made the Lease a holder, though it was told that it failed")
			}
			l.acquires()
			e.rises(landed, l.Record(), "a late acquire")
		},
	},
	{
		Name: "fault/renew-reply-lost",
		Rule: "renewals whose replies are lost keep the tenure: its token stays, and the next reply that arrives extends it",
		Why:  "the record has changed under the holder, by its own hand: a compare-and-swap with the old Revision would take that for a loss",
		Run: func(e *Env) {
			f := NewFaults(e.Open())
			l := e.lease(f.Store(), e.Name("")).acquires()
			token := l.Token()
			for i := range 3 {
				f.Next(VerbRenew, LoseReply(nil))
				e.within(l.Duration()+e.cfg.patience, "a renewal fails whose reply is lost", func() bool {
					l.holds("before a renewal whose reply is lost")
					return len(l.told(lease.EventRenewFailed)) > i
				})
				before := len(l.told(lease.EventRenewed))
				e.within(l.Duration()+e.cfg.patience, "a renewal succeeds after one whose reply was lost", func() bool {
					l.holds("after a renewal whose reply was lost")
					return len(l.told(lease.EventRenewed)) > before
				})
			}
			if l.Token() != token {
				e.Fatalf("the token went from %d to %d", token, l.Token())
			}
			l.releases()
			l.endedOnce(1)
		},
	},
	{
		Name: "fault/release-reply-lost",
		Rule: "a release whose reply is lost has ended the tenure here, and has freed the lease",
		Why:  "the holder has stopped; whatever it is told, it must not go on, nor keep the others out",
		Run: func(e *Env) {
			for i, fault := range []Fault{LoseReply(nil), HangAfter()} {
				f := NewFaults(e.Open())
				l := e.lease(f.Store(), e.Name(fmt.Sprintf("-%d", i))).acquires()
				ctx := l.Context()
				f.Next(VerbRelease, fault)
				if err := l.Release(e.ctx); err != nil {
					e.relinquishment(err, "")
				}
				l.ends(ctx, 0, lease.ErrReleased)
				e.free(e.Store(), l.Name())
				l.endedOnce(1)
			}
		},
	},
	{
		Name: "fault/release-hangs",
		Rule: "Lease.Release ends the tenure before it tells the store, and returns though the store does not answer; the record ends by itself",
		Why:  "a program must be able to end while its store is down, and nobody may be let in while it still works",
		Run: func(e *Env) {
			e.needsSuccession()
			f := NewFaults(e.Open())
			l := e.lease(f.Store(), e.Name("")).acquires()
			ctx := l.Context()
			var early atomic.Bool
			f.Every(Hang())
			f.Every(func(c context.Context, call func(context.Context) (backend.Record, error)) (backend.Record, error) {
				if ctx.Err() == nil || l.Held() {
					early.Store(true)
				}
				return Hang()(c, call)
			}, VerbRelease)
			began := time.Now()
			e.relinquishment(l.Release(e.ctx), "")
			if took := time.Since(began); took > 3*l.Duration()+tardiness {
				e.latef("Release took %v while the store hung; the duration is %v", took, l.Duration())
			}
			if early.Load() {
				e.Fatalf("the store was told of the release before the context had ended")
			}
			l.ends(ctx, 0, lease.ErrReleased)
			if n := len(l.told(lease.EventReleaseFailed)); n != 1 {
				e.Fatalf("a release that failed was told %d times", n)
			}
			e.succeed(e.Store(), l.Name(), l.Duration())
		},
	},
	{
		Name: "fault/acquire-hangs",
		Rule: "Lease.Acquire and Await return when their context ends though the store does not answer, even to one that ignores contexts, and leave nothing behind",
		Why:  "a call that cannot be given up blocks its program as long as the store pleases",
		Run: func(e *Env) {
			for i := range 2 {
				f := NewFaults(e.Open())
				l := e.lease(f.Store(), e.Name(fmt.Sprintf("-%d", i)))
				gate, open := e.gate()
				f.Every([]Fault{Hang(), Stall(gate)}[i])
				for _, wait := range []func(context.Context) error{l.Acquire, l.Await} {
					ctx, cancel := context.WithTimeout(e.ctx, l.Duration()/5)
					began := time.Now()
					err := wait(ctx)
					cancel()
					e.acquisition(err, "Acquire or Await", "")
					if !errors.Is(err, context.DeadlineExceeded) {
						e.Fatalf("Acquire or Await failed with %v, want its context's error", err)
					}
					if took := time.Since(began); took > l.Duration()+tardiness {
						e.latef("Acquire or Await took %v, its context %v", took, l.Duration()/5)
					}
				}
				if l.Held() {
					e.Fatalf("Held is true")
				}
				f.Heal()
				open()
				if err := l.Close(); err != nil {
					e.Fatalf("Lease.Close failed: %v", err)
				}
			}
		},
	},
	{
		Name: "fault/store-down",
		Rule: "a store that fails is not a lease that is held: the error is the store's own, and names no other holder",
		Why:  "\"another holds it\" makes a program wait for ever that should raise an alarm",
		Run: func(e *Env) {
			f := NewFaults(e.Open())
			l := e.lease(f.Store(), e.Name(""), e.forLong())
			broken := errors.New("the store is down")
			f.Every(Fail(broken))
			err := l.Acquire(e.ctx)
			e.acquisition(err, "Acquire", "")
			if !errors.Is(err, broken) || errors.Is(err, backend.ErrHeld) {
				e.Fatalf("Acquire failed with %v, want the store's error", err)
			}
			if _, err := l.IsAcquired(e.ctx); !errors.Is(err, broken) {
				e.Fatalf("IsAcquired: %s, want the store's error", said(err))
			}
			if _, err := l.IsExpired(e.ctx); !errors.Is(err, broken) {
				e.Fatalf("IsExpired: %s, want the store's error", said(err))
			}
			e.relinquishment(l.Release(e.ctx), "")
			f.Heal()
			l.acquires()
		},
	},
}

const (
	stopsFirst    = "a holder that is cut off from the store stops before the store lets another in: Held is false and its context has ended"
	stopsFirstWhy = "this is mutual exclusion; a holder that counts from when the answer came, or checks only at its next renewal, works beside its successor"
)

// cutOff lets a holder lose touch with the store, waits for another to be let
// in, and looks at the holder in that moment.
func (e *Env) cutOff(cut func(f *Faults, l *holding), opts ...lease.Option) {
	e.needsSuccession()
	f := NewFaults(e.Open())
	l := e.lease(f.Store(), e.Name(""), opts...).acquires()
	ctx, before := l.Context(), l.Record()
	e.sleep(l.Duration() / 2) // a renewal or two
	l.holds("before it was cut off")
	cut(f, l)
	next := e.succeed(e.Store(), l.Name(), l.Duration())
	if l.Held() {
		e.Fatalf("another was let in (token %d) while the holder that was cut off still held, for another %v", next.Token, l.Remaining())
	}
	// Without a grace a timer is late by any delay, and only Held is in time: it
	// looks at the clock.
	if ctx.Err() == nil && len(opts) == 0 {
		e.latef("another was let in (token %d) before the context of the holder that was cut off had ended", next.Token)
	}
	e.rises(before, next, "the end of a holder that was cut off")
	l.ends(ctx, e.cfg.patience, lease.ErrExpired)
	l.endedOnce(1)
}

// tap sends on what a call was answered that a fault then loses.
func tap(answers chan<- backend.Record, fault Fault) Fault {
	return func(ctx context.Context, call func(context.Context) (backend.Record, error)) (backend.Record, error) {
		return fault(ctx, func(ctx context.Context) (backend.Record, error) {
			rec, err := call(ctx)
			answers <- rec
			return rec, err
		})
	}
}

// slowClock runs nine thousandths slow: more than any good clock, less than the
// hundredth that the deadline allows for.
type slowClock struct{ lease.Clock }

func (c slowClock) Now() time.Duration { return c.Clock.Now() / 1000 * 991 }

func (c slowClock) AfterFunc(d time.Duration, f func()) lease.Timer {
	return c.Clock.AfterFunc(d+d*9/1000, f)
}

// jumpingClock can jump ahead; its timers do not notice.
type jumpingClock struct {
	lease.Clock
	offset atomic.Int64
}

func (c *jumpingClock) Now() time.Duration { return c.Clock.Now() + time.Duration(c.offset.Load()) }
