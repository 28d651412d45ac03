package lease_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/backend/memory"
	"github.com/leasehold/leasehold/conformance"
	"github.com/leasehold/leasehold/lease"
)

// These tests run the whole of a Lease in a bubble with its own time, on the
// memory store behind injected faults.

const duration = 10 * time.Second

// newLease makes a Lease on the bubble's clock; it is closed with the test.
func newLease(t *testing.T, s backend.Store, opts ...lease.Option) *lease.Lease {
	t.Helper()
	opts = append([]lease.Option{lease.WithDuration(duration), lease.WithClock(lease.RuntimeClock)}, opts...)
	l, err := lease.New(s, "x", opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func faults() *conformance.Faults { return conformance.NewFaults(memory.New()) }

// bubble is a test in a bubble of its own; Leases made by newLease are closed
// before it ends.
func bubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, f)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func cause(l *lease.Lease) error {
	if l.Context().Err() == nil {
		return nil
	}
	return context.Cause(l.Context())
}

func TestRenewalKeepsTheLease(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := faults()
		l := newLease(t, f.Store())
		must(t, l.Acquire(t.Context()))
		token := l.Token()
		time.Sleep(time.Hour)
		if !l.Held() || cause(l) != nil || l.Token() != token {
			t.Errorf("after an hour: held %v, cause %v, token %d after %d", l.Held(), cause(l), l.Token(), token)
		}
		// A third of the duration, less up to a tenth.
		if n := f.Calls(conformance.VerbRenew); n < 1080 || n > 1200 {
			t.Errorf("%d renewals in an hour, want 1080 to 1200", n)
		}
		must(t, l.Release(t.Context()))
		n := f.Calls(conformance.VerbRenew)
		time.Sleep(time.Hour)
		if f.Calls(conformance.VerbRenew) != n {
			t.Error("renewals go on after the release")
		}
	})
}

func TestHungStore(t *testing.T) {
	// The store stops to answer, and ignores contexts on top of it. The context
	// must end at the stop, to the instant.
	for _, ignore := range []bool{false, true} {
		bubble(t, func(t *testing.T) {
			f := faults()
			l := newLease(t, f.Store(), lease.WithGrace(time.Second))
			start := time.Now()
			must(t, l.Acquire(t.Context()))
			release := make(chan struct{})
			if ignore {
				f.Every(conformance.Stall(release))
			} else {
				f.Every(conformance.Hang())
			}
			<-l.Context().Done()
			if got, want := time.Since(start), 8898*time.Millisecond; got != want {
				t.Errorf("the context ended after %v, want %v", got, want)
			}
			if l.Held() || !errors.Is(cause(l), lease.ErrExpired) || !errors.Is(cause(l), context.DeadlineExceeded) {
				t.Errorf("held %v, cause %v", l.Held(), cause(l))
			}
			if n := f.Calls(conformance.VerbRenew); n < 3 {
				t.Errorf("only %d renewals were tried", n)
			}
			// A release against a hung store comes back, and changes nothing.
			start = time.Now()
			var err *lease.RelinquishmentError
			if !errors.As(l.Release(t.Context()), &err) || time.Since(start) > duration {
				t.Errorf("release: %v after %v", err, time.Since(start))
			}
			f.Heal()
			close(release)
			must(t, l.Acquire(t.Context()))
		})
	}
}

func TestTheCauseIsTheRefusal(t *testing.T) {
	// Not that the very last calls, a millisecond before the stop, had no answer.
	bubble(t, func(t *testing.T) {
		f := faults()
		l := newLease(t, f.Store())
		must(t, l.Acquire(t.Context()))
		f.Every(conformance.Fail(backend.ErrDenied))
		time.Sleep(duration / 2)
		f.Every(conformance.Hang())
		<-l.Context().Done()
		if !errors.Is(cause(l), lease.ErrExpired) || !errors.Is(cause(l), backend.ErrDenied) {
			t.Errorf("the cause is %v, want one that says that renewals were denied", cause(l))
		}
	})
}

func TestOneFailedRenewalIsSurvived(t *testing.T) {
	for _, fault := range []conformance.Fault{conformance.Fail(nil), conformance.LoseReply(nil), conformance.Hang(), conformance.HangAfter()} {
		bubble(t, func(t *testing.T) {
			f := faults()
			var mu sync.Mutex
			var kinds []lease.EventKind
			l := newLease(t, f.Store(), lease.WithObserver(func(e lease.Event) {
				mu.Lock()
				defer mu.Unlock()
				kinds = append(kinds, e.Kind)
			}))
			must(t, l.Acquire(t.Context()))
			ctx := l.Context()
			for range 10 {
				f.Next(conformance.VerbRenew, fault)
				time.Sleep(duration)
			}
			if ctx.Err() != nil || !l.Held() {
				t.Errorf("lost by single failures: %v", cause(l))
			}
			mu.Lock()
			defer mu.Unlock()
			if !slices.Contains(kinds, lease.EventRenewFailed) {
				t.Error("the failures were not told")
			}
		})
	}
}

func TestLossIsToldOnceAndLateSubscribersSeeIt(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := memory.New()
		var ended atomic.Int32
		l := newLease(t, s, lease.WithObserver(func(e lease.Event) {
			if e.Kind == lease.EventEnded {
				ended.Add(1)
			}
		}))
		must(t, l.Acquire(t.Context()))
		first := l.Context()
		rec, err := s.Get(t.Context(), "x")
		must(t, err)
		_, err = s.Acquire(t.Context(), backend.Claim{Name: "x", Holder: "thief", Attempt: "1", Duration: duration, Over: rec.Revision})
		must(t, err)
		time.Sleep(duration / 2)
		if !errors.Is(context.Cause(first), lease.ErrTaken) || !errors.Is(cause(l), lease.ErrTaken) || ended.Load() != 1 {
			t.Errorf("causes %v and %v, told %d times", context.Cause(first), cause(l), ended.Load())
		}
		if l.Token() != 0 || l.Deadline() != 0 || l.ScheduleID() != 0 || l.Record().Holder != "" {
			t.Errorf("after the loss: token %d, deadline %v, schedule %v", l.Token(), l.Deadline(), l.ScheduleID())
		}
		var rel *lease.RelinquishmentError
		if err := l.Release(t.Context()); err != nil && !errors.As(err, &rel) {
			t.Error(err)
		}
		if rec, _ := s.Get(t.Context(), "x"); rec.Holder != "thief" {
			t.Errorf("the release freed another's lease: %+v", rec)
		}
	})
}

func TestLossIsToldAtOnceWhileRunWatches(t *testing.T) {
	for _, what := range []string{"taken", "deleted"} {
		bubble(t, func(t *testing.T) {
			s := memory.New()
			l := newLease(t, s)
			err := l.Run(t.Context(), func(ctx context.Context) error {
				start := time.Now()
				rec, err := s.Get(ctx, "x")
				must(t, err)
				if what == "deleted" {
					must(t, s.Release(ctx, rec))
				} else {
					_, err = s.Acquire(ctx, backend.Claim{Name: "x", Holder: "thief", Duration: duration, Over: rec.Revision})
					must(t, err)
				}
				<-ctx.Done()
				if time.Since(start) > 10*time.Millisecond || !errors.Is(context.Cause(ctx), lease.ErrTaken) {
					t.Errorf("%s: told after %v: %v", what, time.Since(start), context.Cause(ctx))
				}
				return nil
			})
			if !errors.Is(err, lease.ErrTaken) {
				t.Errorf("%s: Run returns %v", what, err)
			}
		})
	}
}

func TestOwnReleaseIsSilent(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := faults()
		l := newLease(t, f.Store())
		must(t, l.Acquire(t.Context()))
		ctx := l.Context()
		// The store is told after the context has ended and the schedule is gone.
		f.Next(conformance.VerbRelease, func(c context.Context, call func(context.Context) (backend.Record, error)) (backend.Record, error) {
			if ctx.Err() == nil || l.Held() || l.ScheduleID() != 0 {
				t.Error("the store is told of the release before the holder")
			}
			return call(c)
		})
		must(t, l.Release(t.Context()))
		if context.Cause(ctx) != lease.ErrReleased {
			t.Errorf("cause %v", context.Cause(ctx))
		}
		must(t, l.Release(t.Context())) // there is none: nothing to do
		if _, err := f.Store().Get(t.Context(), "x"); !errors.Is(err, backend.ErrNotFound) {
			t.Errorf("the record is still there: %v", err)
		}
	})
}

func TestReleaseDoesNotWaitForAHungRenewal(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := faults()
		l := newLease(t, f.Store())
		must(t, l.Acquire(t.Context()))
		f.Next(conformance.VerbRenew, conformance.Hang())
		go l.Extend(t.Context())
		synctest.Wait()
		start := time.Now()
		must(t, l.Release(t.Context()))
		if d := time.Since(start); d != 0 {
			t.Errorf("the release took %v", d)
		}
	})
}

func TestLostReplies(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := faults()
		l := newLease(t, f.Store())
		f.Next(conformance.VerbAcquire, conformance.LoseReply(nil))
		must(t, l.Acquire(t.Context())) // read back and claimed anew
		if n := f.Calls(conformance.VerbAcquire); n != 2 || l.Token() != 2 {
			t.Errorf("%d acquires, token %d; want 2, 2", n, l.Token())
		}
		f.Next(conformance.VerbRelease, conformance.LoseReply(nil))
		must(t, l.Release(t.Context())) // read back and found gone

		f.Next(conformance.VerbAcquire, conformance.LoseReply(nil))
		f.Next(conformance.VerbGet, conformance.Fail(nil))
		if err := l.Acquire(t.Context()); !errors.Is(err, conformance.ErrInjected) {
			t.Errorf("acquire: %v", err)
		}
		synctest.Wait()
		if rec, err := f.Store().Get(t.Context(), "x"); !errors.Is(err, backend.ErrNotFound) {
			t.Errorf("an acquire whose reply was lost is left behind: %+v, %v", rec, err)
		}
	})
}

func TestAcquireThatLandsLate(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := faults()
		l := newLease(t, f.Store())
		land := make(chan struct{})
		f.Next(conformance.VerbAcquire, conformance.Late(land, nil))
		if err := l.Acquire(t.Context()); !errors.Is(err, conformance.ErrInjected) || l.Held() {
			t.Errorf("acquire: %v, held %v", err, l.Held())
		}
		synctest.Wait()
		close(land)
		synctest.Wait()
		// It is mine, and nobody knows since when: it is claimed anew.
		must(t, l.Acquire(t.Context()))
		if l.Token() != 2 {
			t.Errorf("token %d, want 2", l.Token())
		}
	})
}

func TestCancelledAcquireLeavesNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := faults()
		l := newLease(t, f.Store())
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		f.Next(conformance.VerbAcquire, conformance.HangAfter())
		err := l.Acquire(ctx)
		var acq *lease.AcquisitionError
		if !errors.Is(err, context.DeadlineExceeded) || !errors.As(err, &acq) {
			t.Errorf("acquire: %v", err)
		}
		synctest.Wait()
		if rec, err := f.Store().Get(t.Context(), "x"); !errors.Is(err, backend.ErrNotFound) {
			t.Errorf("it is left behind: %+v, %v", rec, err)
		}
	})
}

func TestHolderStopsBeforeAnotherIsLetIn(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := memory.New()
		f := conformance.NewFaults(s)
		a, b := newLease(t, f.Store()), newLease(t, s)
		must(t, a.Acquire(t.Context()))
		f.Every(conformance.Hang())
		if err := b.Await(t.Context()); err != nil {
			t.Fatal(err)
		}
		if a.Held() || a.Context().Err() == nil || b.Token() <= 1 {
			t.Errorf("both hold it: %v, token %d", a.Held(), b.Token())
		}
	})
}

func TestSuspendedMachine(t *testing.T) {
	// The clock has moved on while no timer fired.
	bubble(t, func(t *testing.T) {
		c := &jumpingClock{Clock: lease.RuntimeClock}
		l := newLease(t, memory.New(), lease.WithClock(c))
		must(t, l.Acquire(t.Context()))
		c.jump.Store(int64(time.Hour))
		if l.Held() || l.Remaining() != 0 {
			t.Error("held an hour after the machine was suspended")
		}
		if err := l.Extend(t.Context()); !errors.Is(err, lease.ErrNotHeld) || !errors.Is(cause(l), lease.ErrExpired) {
			t.Errorf("extended after the stop: %v, cause %v", err, cause(l))
		}
	})
}

type jumpingClock struct {
	lease.Clock
	jump atomic.Int64
}

func (c *jumpingClock) Now() time.Duration { return c.Clock.Now() + time.Duration(c.jump.Load()) }

func TestMaxHold(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := memory.New()
		l := newLease(t, s, lease.WithMaxHold(time.Minute))
		start := time.Now()
		err := l.Run(t.Context(), func(ctx context.Context) error {
			<-ctx.Done()
			return context.Cause(ctx)
		})
		if d := time.Since(start); !errors.Is(err, lease.ErrMaxHold) || d != time.Minute {
			t.Errorf("Run returned after %v: %v", d, err)
		}
		if _, err := s.Get(t.Context(), "x"); !errors.Is(err, backend.ErrNotFound) {
			t.Errorf("not released: %v", err)
		}
	})
}

func TestWithoutRenewal(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := faults()
		l := newLease(t, f.Store(), lease.WithoutRenewal())
		start := time.Now()
		must(t, l.Acquire(t.Context()))
		if l.ScheduleID() != 0 {
			t.Error("renewal is scheduled")
		}
		time.Sleep(5 * time.Second)
		must(t, l.Renew(t.Context()))
		<-l.Context().Done()
		if d := time.Since(start).Round(time.Second); d != 14*time.Second || f.Calls(conformance.VerbRenew) != 1 {
			t.Errorf("ended after %v and %d renewals", d, f.Calls(conformance.VerbRenew))
		}
	})
}

func TestAcquireAndRenewTellWhoHolds(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := memory.New()
		a, b := newLease(t, s), newLease(t, s)
		must(t, a.Acquire(t.Context()))
		for _, err := range []error{b.Acquire(t.Context()), b.Renew(t.Context())} {
			var acq *lease.AcquisitionError
			if !errors.As(err, &acq) || acq.Other != string(a.Holder()) || acq.Name != "x" || !errors.Is(err, backend.ErrHeld) {
				t.Errorf("%v", err)
			}
		}
		var rel *lease.RelinquishmentError
		if err := b.Release(t.Context()); !errors.As(err, &rel) || rel.Other != string(a.Holder()) {
			t.Errorf("%v", err)
		}
		if b.TryAcquire(t.Context()) || b.TryRenew(t.Context()) || b.TryRelease(t.Context()) || b.Held() {
			t.Error("a Try reports success")
		}
		if !a.TryRenew(t.Context()) || !a.TryAcquire(t.Context()) || !a.TryRelease(t.Context()) || !b.TryAcquire(t.Context()) {
			t.Error("a Try reports failure")
		}
		if err := a.Extend(t.Context()); !errors.Is(err, lease.ErrNotHeld) {
			t.Errorf("extended without a tenure: %v", err)
		}
	})
}

func TestQuestions(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := memory.New()
		a, b := newLease(t, s, lease.WithoutRenewal()), newLease(t, s)
		check := func(when string, l *lease.Lease, wantAcquired, wantExpired bool) {
			t.Helper()
			acquired, err := l.IsAcquired(t.Context())
			must(t, err)
			expired, err := l.IsExpired(t.Context())
			must(t, err)
			if acquired != wantAcquired || expired != wantExpired {
				t.Errorf("%s: acquired %v, expired %v; want %v, %v", when, acquired, expired, wantAcquired, wantExpired)
			}
		}
		check("absent", a, false, false)
		must(t, a.Acquire(t.Context()))
		check("mine", a, true, false)
		check("another's", b, false, false)
		time.Sleep(9900 * time.Millisecond) // past the deadline, which the store does not call expired yet
		check("mine, past the deadline", a, false, true)
		check("another's, past its deadline", b, false, false)
		time.Sleep(100 * time.Millisecond)
		check("mine, expired", a, false, true)
		check("another's, expired", b, false, true)
		must(t, b.Release(t.Context()))
		check("released", b, false, false)
	})
}

func TestSharedHolder(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := memory.New()
		a, b := newLease(t, s, lease.WithHolder("us")), newLease(t, s, lease.WithHolder("us"))
		elsewhere := newLease(t, conformance.NewFaults(s).Store(), lease.WithHolder("us")) // another client, as of another process
		for _, l := range []*lease.Lease{a, b, elsewhere} {
			must(t, l.Acquire(t.Context()))
			if l.Token() != a.Token() {
				t.Errorf("tokens %d and %d", a.Token(), l.Token())
			}
		}
		must(t, b.Release(t.Context()))
		if a.Held() || !errors.Is(cause(a), lease.ErrReleased) {
			t.Errorf("held after its twin released it: %v", cause(a))
		}
		time.Sleep(duration)
		if elsewhere.Held() || !errors.Is(cause(elsewhere), lease.ErrTaken) {
			t.Errorf("held after its twin elsewhere released it: %v", cause(elsewhere))
		}
	})
}

// What an acquire of unknown outcome left may be another's by now, if that has
// the same holder.
func TestSettlingDoesNotFreeWhatATwinHasJoined(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := memory.New()
		f := conformance.NewFaults(s)
		a, b := newLease(t, f.Store(), lease.WithHolder("us")), newLease(t, s, lease.WithHolder("us"))
		f.Next(conformance.VerbAcquire, func(ctx context.Context, call func(context.Context) (backend.Record, error)) (backend.Record, error) {
			_, _ = call(ctx)
			must(t, b.Acquire(t.Context())) // before the reply is lost
			return backend.Record{}, conformance.ErrInjected
		})
		f.Next(conformance.VerbGet, conformance.Fail(nil))
		_ = a.Acquire(t.Context())
		time.Sleep(duration)
		if rec, err := s.Get(t.Context(), "x"); err != nil || !b.Held() || rec.Holder != "us" {
			t.Errorf("the twin's tenure was freed: %+v, %v", rec, err)
		}
	})
}

func TestObserversMayCallTheLease(t *testing.T) {
	for _, kind := range []lease.EventKind{lease.EventBlocked, lease.EventAcquired, lease.EventRenewed, lease.EventRenewFailed, lease.EventEnded, lease.EventReleased} {
		bubble(t, func(t *testing.T) {
			f := faults()
			other := newLease(t, f.Store())
			var l *lease.Lease
			called := false
			l = newLease(t, f.Store(), lease.WithObserver(func(e lease.Event) {
				if e.Kind == kind && !called {
					called = true
					_ = l.Renew(t.Context())
					_ = l.Release(t.Context())
				}
			}))
			must(t, other.Acquire(t.Context()))
			_ = l.Acquire(t.Context())
			must(t, other.Release(t.Context()))
			_ = l.Acquire(t.Context())
			f.Next(conformance.VerbRenew, nil, conformance.Fail(nil))
			_ = l.Renew(t.Context())
			_ = l.Renew(t.Context())
			_ = l.Release(t.Context())
			if !called {
				t.Errorf("%s was not told", kind)
			}
		})
	}
}

// The cause of a caller's context is often another lease's loss.
func TestCauseOfACallersContextIsNotTheStoresAnswer(t *testing.T) {
	thief := &backend.HeldError{Record: backend.Record{Name: "y", Holder: "thief", Token: 9}}
	for _, foreign := range []error{fmt.Errorf("%w: %w", lease.ErrTaken, backend.ErrLost), fmt.Errorf("%w: %w", lease.ErrTaken, thief)} {
		bubble(t, func(t *testing.T) {
			f := faults()
			l := newLease(t, f.Store())
			for _, verb := range []conformance.Verb{conformance.VerbAcquire, conformance.VerbRenew} {
				ctx, cancel := context.WithCancelCause(t.Context())
				f.Next(verb, func(ctx context.Context, call func(context.Context) (backend.Record, error)) (backend.Record, error) {
					_, _ = call(ctx)
					cancel(foreign)
					<-ctx.Done()
					return backend.Record{}, context.Cause(ctx) // as a store may put it
				})
				err := l.Renew(ctx)
				var acq *lease.AcquisitionError
				if !errors.Is(err, foreign) || !errors.As(err, &acq) || acq.Other != "" {
					t.Errorf("%s: %v", verb, err)
				}
				synctest.Wait()
				if verb == conformance.VerbAcquire {
					if rec, err := f.Store().Get(t.Context(), "x"); !errors.Is(err, backend.ErrNotFound) {
						t.Errorf("the acquire is left behind: %+v", rec)
					}
					must(t, l.Acquire(t.Context()))
				} else if !l.Held() {
					t.Errorf("another's loss ended the tenure: %v", cause(l))
				}
			}
		})
	}
}

func TestNothingBeginsAfterClose(t *testing.T) {
	for range 2000 {
		s := &signalling{Store: memory.New(), granted: make(chan struct{})}
		l, err := lease.New(s, "x")
		must(t, err)
		closed := make(chan struct{})
		go func() {
			defer close(closed)
			<-s.granted
			l.Close()
		}()
		_ = l.Acquire(context.Background())
		<-closed
		if l.Held() || l.ScheduleID() != 0 || l.Context().Err() == nil {
			t.Fatalf("held after Close: %v, schedule %v", l.Held(), l.ScheduleID())
		}
	}
}

// signalling tells when an acquire has been granted.
type signalling struct {
	backend.Store
	granted chan struct{}
}

func (s *signalling) Acquire(ctx context.Context, c backend.Claim) (backend.Record, error) {
	defer close(s.granted)
	return s.Store.Acquire(ctx, c)
}

func TestAHungLookDoesNotBlindAWaiter(t *testing.T) {
	bubble(t, func(t *testing.T) {
		// A store that must be polled, and whose renewals do not show.
		f := faults()
		s := &polled{f.Store()}
		a, b := newLease(t, s), newLease(t, s)
		must(t, a.Acquire(t.Context()))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		f.Next(conformance.VerbGet, nil, conformance.Hang())
		go func() { done <- b.Await(ctx) }()
		time.Sleep(2 * time.Second)
		must(t, a.Release(t.Context()))
		start := time.Now()
		must(t, <-done)
		if d := time.Since(start); d > 10*time.Second {
			t.Errorf("it took %v to find the lease free", d)
		}
		must(t, b.Release(t.Context()))
		cancel()

		// Nor does one that ignores its context keep Await.
		must(t, a.Acquire(t.Context()))
		ctx, cancel = context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		until := make(chan struct{})
		f.Every(conformance.Stall(until), conformance.VerbGet)
		start = time.Now()
		if err := b.Await(ctx); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != time.Second {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
		close(until)
	})
}

type polled struct{ backend.Store }

func (s *polled) Traits() backend.Traits {
	t := s.Store.Traits()
	t.RenewalsVisible = false
	return t
}

func TestAwaitByTheHolder(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := faults()
		l := newLease(t, f.Store())
		must(t, l.Acquire(t.Context()))
		f.Every(conformance.Hang())
		start := time.Now()
		must(t, l.Await(t.Context()))
		if time.Since(start) != 0 {
			t.Errorf("it took %v", time.Since(start))
		}
	})
}

func TestAwaitIsWokenByRelease(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := faults()
		a, b := newLease(t, f.Store()), newLease(t, f.Store())
		must(t, a.Acquire(t.Context()))
		done := make(chan error)
		go func() { done <- b.Await(t.Context()) }()
		time.Sleep(time.Hour)
		before := f.Calls(conformance.VerbAcquire)
		start := time.Now()
		must(t, a.Release(t.Context()))
		must(t, <-done)
		if d := time.Since(start); d > maxHandOver {
			t.Errorf("taken after %v", d)
		}
		if n := f.Calls(conformance.VerbAcquire) - before; n != 1 {
			t.Errorf("%d acquires for one hand-over", n)
		}
		if before > 2 {
			t.Errorf("%d acquires while there was nothing to do for an hour", before)
		}
	})
}

const maxHandOver = 5 * time.Millisecond

func TestAwaitEndsWithItsContext(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := memory.New()
		a, b := newLease(t, s), newLease(t, s)
		must(t, a.Acquire(t.Context()))
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		start := time.Now()
		err := b.Await(ctx)
		var acq *lease.AcquisitionError
		if !errors.As(err, &acq) || acq.Other != string(a.Holder()) || !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != time.Minute {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
		must(t, a.Release(t.Context()))
		time.Sleep(time.Minute)
		if rec, err := s.Get(t.Context(), "x"); !errors.Is(err, backend.ErrNotFound) {
			t.Errorf("a waiter that gave up has taken it: %+v", rec)
		}
	})
}

func TestAwaitOutlivesAnOutage(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := faults()
		l := newLease(t, f.Store())
		f.Every(conformance.Fail(nil))
		f.Every(conformance.Hang(), conformance.VerbWatch)
		done := make(chan error)
		go func() { done <- l.Await(t.Context()) }()
		time.Sleep(10 * time.Minute)
		if n := f.Calls(conformance.VerbAcquire); n > 400 {
			t.Errorf("%d acquires in 10 minutes of outage", n)
		}
		f.Heal()
		start := time.Now()
		must(t, <-done)
		if d := time.Since(start); d > 10*time.Second {
			t.Errorf("acquired %v after the outage", d)
		}
		must(t, l.Release(t.Context()))
		f.Every(conformance.Fail(backend.ErrDenied))
		if err := l.Await(t.Context()); !errors.Is(err, backend.ErrDenied) {
			t.Errorf("waits although it is denied: %v", err)
		}
	})
}

func TestManyWaitersTakeTurnsWithoutAStampede(t *testing.T) {
	// Where hands change quickly, waiters also learn from turns they did not try for.
	t.Run("slowly", func(t *testing.T) { takeTurns(t, time.Second, 9) })
	t.Run("quickly", func(t *testing.T) { takeTurns(t, 20*time.Millisecond, 7) })
}

// takeTurns has 100 waiters hold a lease for so long each. Every turn may take so
// many attempts.
func takeTurns(t *testing.T, hold time.Duration, most int) {
	bubble(t, func(t *testing.T) {
		f := faults()
		// Real stores take their time, in which all who were woken could ask.
		f.Every(conformance.Delay(time.Millisecond), conformance.VerbAcquire)
		const waiters = 100
		var inside, turns atomic.Int32
		var last uint64
		var wg sync.WaitGroup
		for range waiters {
			l := newLease(t, f.Store())
			wg.Go(func() {
				err := l.Run(t.Context(), func(context.Context) error {
					if inside.Add(1) != 1 {
						t.Error("two at once")
					}
					if tok := l.Token(); tok <= last {
						t.Errorf("token %d after %d", tok, last)
					} else {
						last = tok
					}
					time.Sleep(hold)
					turns.Add(1)
					inside.Add(-1)
					return nil
				})
				must(t, err)
			})
		}
		wg.Wait()
		n := f.Calls(conformance.VerbAcquire)
		t.Logf("%d acquires for %d turns of %d waiters", n, turns.Load(), waiters)
		if n > most*waiters {
			t.Errorf("%d acquires for %d turns", n, turns.Load())
		}
	})
}

// In real time, so that the goroutines really run at once.
func TestContention(t *testing.T) {
	s := memory.New()
	const goroutines, turns = 200, 5
	count := 0 // guarded by the lease alone: the race detector watches
	var last uint64
	var wg sync.WaitGroup
	for range goroutines {
		l, err := lease.New(s, "x")
		must(t, err)
		wg.Go(func() {
			defer l.Close()
			for range turns {
				if err := l.Run(t.Context(), func(context.Context) error {
					if token := l.Token(); token <= last {
						t.Errorf("token %d after %d", token, last)
					}
					last = l.Token()
					count++
					return nil
				}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if count != goroutines*turns {
		t.Errorf("counted %d turns of %d", count, goroutines*turns)
	}
}

func TestRunReturnsWhatHappened(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := faults()
		l := newLease(t, f.Store())
		oops := errors.New("oops")
		if err := l.Run(t.Context(), func(context.Context) error { return oops }); err != oops {
			t.Errorf("%v", err)
		}
		must(t, l.Run(t.Context(), func(context.Context) error { return nil }))

		f.Every(conformance.Fail(nil), conformance.VerbRelease)
		var rel *lease.RelinquishmentError
		if err := l.Run(t.Context(), func(context.Context) error { return nil }); !errors.As(err, &rel) {
			t.Errorf("the release failed, and Run returns %v", err)
		}
		f.Heal()

		ctx, cancel := context.WithCancel(t.Context())
		err := l.Run(ctx, func(ctx context.Context) error {
			cancel()
			<-ctx.Done()
			return context.Cause(ctx)
		})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
		if rec, err := f.Store().Get(t.Context(), "x"); !errors.Is(err, backend.ErrNotFound) {
			t.Errorf("not released after a cancelled Run: %+v", rec)
		}

		func() {
			defer func() {
				if recover() != "bang" {
					t.Error("the panic was swallowed")
				}
			}()
			_ = l.Run(t.Context(), func(context.Context) error { panic("bang") })
		}()
		if l.Held() {
			t.Error("held after a panic")
		}
		if rec, err := f.Store().Get(t.Context(), "x"); !errors.Is(err, backend.ErrNotFound) {
			t.Errorf("not released after a panic: %+v", rec)
		}
	})
}

func TestClose(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := faults()
		l := newLease(t, f.Store())
		if cause(l) != lease.ErrNotHeld {
			t.Errorf("before the first tenure: %v", cause(l))
		}
		must(t, l.Acquire(t.Context()))
		must(t, l.Close())
		must(t, l.Close())
		if l.Held() || cause(l) != lease.ErrClosed {
			t.Errorf("held %v, cause %v", l.Held(), cause(l))
		}
		if rec, err := f.Store().Get(t.Context(), "x"); err != nil || rec.Holder == "" {
			t.Errorf("Close has told the store: %+v, %v", rec, err)
		}
		for _, err := range []error{l.Acquire(t.Context()), l.Renew(t.Context()), l.Extend(t.Context()), l.Release(t.Context()), l.Await(t.Context())} {
			if !errors.Is(err, lease.ErrClosed) {
				t.Errorf("after Close: %v", err)
			}
		}
		if _, err := l.IsAcquired(t.Context()); !errors.Is(err, lease.ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	})
}

func TestEvents(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := memory.New()
		var l *lease.Lease
		var got []string
		l = newLease(t, s, lease.WithObserver(func(e lease.Event) {
			l.Held() // an observer may call the Lease
			l.Token()
			got = append(got, fmt.Sprintf("%s %d", e.Kind, e.Record.Token))
			if e.Name != "x" || e.Time.IsZero() {
				t.Errorf("%+v", e)
			}
			if e.Kind == lease.EventRenewed && e.Remaining <= 0 {
				t.Errorf("a renewal without a margin: %+v", e)
			}
		}))
		other := newLease(t, s)
		must(t, other.Acquire(t.Context()))
		l.TryAcquire(t.Context())
		must(t, other.Release(t.Context()))
		must(t, l.Acquire(t.Context()))
		must(t, l.Extend(t.Context()))
		must(t, l.Release(t.Context()))
		want := []string{"blocked 1", "acquired 2", "renewed 2", "ended 2", "released 2"}
		if !slices.Equal(got, want) {
			t.Errorf("told %q, want %q", got, want)
		}
	})
}

func TestNewChecksItsOptions(t *testing.T) {
	s := memory.New()
	long := lease.WithHolder(lease.Holder(make([]byte, 2000)))
	for what, opts := range map[string][]lease.Option{
		"no duration":        {lease.WithDuration(0)},
		"negative duration":  {lease.WithDuration(-1)},
		"1ns":                {lease.WithDuration(1)},
		"3ms":                {lease.WithDuration(3 * time.Millisecond)},
		"a century":          {lease.WithDuration(100 * 365 * 24 * time.Hour)},
		"forever":            {lease.WithDuration(backend.Forever)},
		"grace too long":     {lease.WithGrace(lease.DefaultDuration)},
		"negative grace":     {lease.WithGrace(-1)},
		"interval too long":  {lease.WithRenewInterval(lease.DefaultDuration)},
		"interval and grace": {lease.WithRenewInterval(10 * time.Second), lease.WithGrace(5 * time.Second)},
		"no interval":        {lease.WithRenewInterval(0)},
		"interval without":   {lease.WithRenewInterval(time.Second), lease.WithoutRenewal()},
		"service without":    {lease.WithRenewalService(lease.DefaultRenewalService()), lease.WithoutRenewal()},
		"no max hold":        {lease.WithMaxHold(0)},
		"no clock":           {lease.WithClock(nil)},
		"no observer":        {lease.WithObserver(nil)},
		"empty holder":       {lease.WithHolder("")},
		"long holder":        {long},
		"metadata":           {lease.WithMetadata(map[string]string{"": "x"})},
	} {
		if _, err := lease.New(s, "x", opts...); !errors.Is(err, backend.ErrInvalid) {
			t.Errorf("%s: %v", what, err)
		} else {
			t.Log(err)
		}
	}
	for _, name := range []string{"", "a\x00b", "\xff", string(make([]byte, 513))} {
		if _, err := lease.New(s, name); !errors.Is(err, backend.ErrInvalid) {
			t.Errorf("name %.20q: %v", name, err)
		}
	}
	if _, err := lease.New(nil, "x"); !errors.Is(err, backend.ErrInvalid) {
		t.Errorf("no store: %v", err)
	}
}

func TestHolder(t *testing.T) {
	a, b := lease.NewHolder(), lease.NewHolder()
	who, host, pid, instance, ok := a.Parts()
	if a == b || !ok || who == "" || host == "" || pid == 0 || instance == "" {
		t.Errorf("%q, %q: %q %q %d %q %v", a, b, who, host, pid, instance, ok)
	}
	if p, again := lease.ProcessHolder(), lease.ProcessHolder(); p != again {
		t.Error("the process has two identities")
	}
	for _, h := range []lease.Holder{"", "pod-7", "a@b", "a@b/c/d", "a@b/1/", "a@b/1/c/d"} {
		if _, _, _, _, ok := h.Parts(); ok {
			t.Errorf("%q has parts", h)
		}
	}
}

// A store whose grants are never acknowledged: that its own attempts are in the way is
// no reason that anybody could do something about.
func TestAcquireNeverAcknowledged(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := faults()
		never := errors.New("no replica has it")
		f.Every(conformance.LoseReply(never), conformance.VerbAcquire)
		if err := newLease(t, f.Store()).Acquire(t.Context()); !errors.Is(err, never) || errors.Is(err, backend.ErrHeld) {
			t.Errorf("it says: %v; want %v", err, never)
		}
	})
}
