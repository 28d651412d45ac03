package lease_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
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

// many acquires n leases that share one scheduler.
func many(t testing.TB, s backend.Store, svc lease.RenewalService, n int, opts ...lease.Option) []*lease.Lease {
	t.Helper()
	leases := make([]*lease.Lease, n)
	for i := range leases {
		o := append([]lease.Option{lease.WithDuration(duration), lease.WithRenewalService(svc)}, opts...)
		l, err := lease.New(s, fmt.Sprintf("lease-%d", i), o...)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Acquire(t.Context()); err != nil {
			t.Fatal(err)
		}
		leases[i] = l
	}
	t.Cleanup(func() {
		for _, l := range leases {
			l.Close()
		}
	})
	return leases
}

// hangFor hangs the renewals of some leases.
type hangFor struct {
	backend.Store
	hung func(name string) bool
}

func (s hangFor) Renew(ctx context.Context, rec backend.Record) (backend.Record, error) {
	if s.hung(rec.Name) {
		<-ctx.Done()
		return backend.Record{}, ctx.Err()
	}
	return s.Store.Renew(ctx, rec)
}

func TestHungCallsDelayNoOtherLease(t *testing.T) {
	bubble(t, func(t *testing.T) {
		// The store hangs for a third of the names, many more than the calls that
		// may be in flight at once.
		var n atomic.Int32
		hung := make(map[string]bool)
		for i := range 600 {
			hung[fmt.Sprintf("lease-%d", i*3)] = true
		}
		s := &hangFor{memory.New(), func(name string) bool { return hung[name] }}
		leases := many(t, s, lease.NewRenewalService(lease.RuntimeClock), 1800, lease.WithClock(lease.RuntimeClock), lease.WithObserver(func(e lease.Event) {
			if e.Kind == lease.EventRenewed && e.Remaining < 4*time.Second {
				t.Errorf("%s was renewed with only %v left", e.Name, e.Remaining)
			}
			if e.Kind == lease.EventRenewed {
				n.Add(1)
			}
		}))
		time.Sleep(time.Minute)
		for _, l := range leases {
			if l.Held() == hung[l.Name()] {
				t.Errorf("%s: held %v, hung %v", l.Name(), l.Held(), hung[l.Name()])
			}
		}
		t.Logf("%d renewals", n.Load())
	})
}

func TestCancelledScheduleDoesNotFire(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := faults()
		svc := lease.NewRenewalService(lease.RuntimeClock)
		l := many(t, f.Store(), svc, 1, lease.WithClock(lease.RuntimeClock))[0]
		id := l.ScheduleID()
		if !svc.IsScheduled(id) || svc.IsScheduled(0) || svc.IsScheduled(id+1) {
			t.Error("IsScheduled is wrong")
		}
		if !svc.Cancel(id) || svc.Cancel(id) || svc.IsScheduled(id) {
			t.Error("Cancel is wrong")
		}
		<-l.Context().Done()
		if n := f.Calls(conformance.VerbRenew); n != 0 {
			t.Errorf("%d renewals after Cancel", n)
		}

		// Nor does one that was in flight when it was cancelled come again.
		var cancelled, late atomic.Int32
		f = faults()
		two := many(t, f.Store(), svc, 2, lease.WithClock(lease.RuntimeClock), lease.WithObserver(func(e lease.Event) {
			if cancelled.Load() == 1 && e.Name == "lease-0" && (e.Kind == lease.EventRenewed || e.Kind == lease.EventRenewFailed) {
				late.Add(1)
			}
		}))
		f.Every(conformance.Hang(), conformance.VerbRenew)
		for f.Calls(conformance.VerbRenew) < 2 {
			time.Sleep(time.Second)
		}
		svc.Cancel(two[0].ScheduleID())
		cancelled.Store(1)
		f.Heal()
		<-two[0].Context().Done()
		if n := late.Load(); n > 1 || !two[1].Held() {
			t.Errorf("%d renewals ended after the schedule was cancelled, only one was in flight", n)
		}

		svc = lease.NewRenewalService(lease.RuntimeClock)
		many(t, memory.New(), svc, 3, lease.WithClock(lease.RuntimeClock))
		if got := svc.CancelAll(); len(got) != 3 {
			t.Errorf("CancelAll tells of %v", got)
		}
		if _, err := svc.Schedule(nil); !errors.Is(err, backend.ErrInvalid) {
			t.Errorf("scheduling nothing: %v", err)
		}
	})
}

func TestCancelledScheduleDoesNotFireWhenItsTurnComes(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := faults()
		svc := lease.NewRenewalService(lease.RuntimeClock)
		l := newLease(t, f.Store(), lease.WithRenewalService(svc), lease.WithDuration(20*time.Second))
		must(t, l.Acquire(t.Context()))
		f.Next(conformance.VerbRenew, conformance.Delay(4*time.Second))
		time.Sleep(5 * time.Second)
		go l.Renew(t.Context()) // is under way when the scheduled one is due
		time.Sleep(3 * time.Second)
		if !svc.Cancel(l.ScheduleID()) || l.ScheduleID() != 0 {
			t.Errorf("cancelled, but the schedule is %v", l.ScheduleID())
		}
		<-l.Context().Done()
		if n := f.Calls(conformance.VerbRenew); n != 1 {
			t.Errorf("%d renewals, one of them after Cancel", n)
		}
	})
}

type labelled struct {
	*memory.Store
	labels []string
}

type decorated struct{ backend.Store }

func TestStoresThatCannotBeCompared(t *testing.T) {
	for _, s := range []backend.Store{labelled{memory.New(), nil}, decorated{labelled{memory.New(), nil}}} {
		l, err := lease.New(s, "x", lease.WithHolder("h"))
		must(t, err)
		must(t, l.Acquire(t.Context()))
		must(t, l.Release(t.Context()))
		must(t, l.Close())
	}
}

func TestRenewalDelay(t *testing.T) {
	svc := lease.NewRenewalService(nil)
	l, err := lease.New(memory.New(), "x", lease.WithDuration(9*time.Second))
	must(t, err)
	seen := make(map[time.Duration]bool)
	for range 100 {
		d := svc.RenewalDelay(l)
		if d > 3*time.Second || d < 2700*time.Millisecond {
			t.Errorf("delay %v, want 2.7s to 3s", d)
		}
		seen[d] = true
	}
	if len(seen) < 50 {
		t.Error("the delay is not jittered")
	}
}

// ownService renews in the way a third party would write it.
type ownService struct {
	lease.RenewalService
	mu    sync.Mutex
	stops map[lease.ScheduleID]context.CancelFunc
}

func (s *ownService) Schedule(l *lease.Lease) (lease.ScheduleID, error) {
	ctx, cancel := context.WithCancel(context.Background())
	s.mu.Lock()
	defer s.mu.Unlock()
	id := lease.ScheduleID(len(s.stops) + 1)
	s.stops[id] = cancel
	go func() {
		for ctx.Err() == nil {
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
				_ = l.Extend(ctx)
			}
		}
	}()
	return id, nil
}

func (s *ownService) Cancel(id lease.ScheduleID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stops[id]()
	return true
}

func TestThirdPartyRenewalService(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := faults()
		svc := &ownService{stops: make(map[lease.ScheduleID]context.CancelFunc)}
		l := newLease(t, f.Store(), lease.WithRenewalService(svc))
		must(t, l.Acquire(t.Context()))
		time.Sleep(time.Minute)
		if !l.Held() || f.Calls(conformance.VerbRenew) < 50 || l.RenewalService() != lease.RenewalService(svc) {
			t.Errorf("held %v after %d renewals", l.Held(), f.Calls(conformance.VerbRenew))
		}
		must(t, l.Release(t.Context()))
		synctest.Wait()
	})
}

func TestGoroutinesDoNotGrowWithLeases(t *testing.T) {
	before := runtime.NumGoroutine()
	leases := many(t, memory.New(), lease.NewRenewalService(nil), 10_000)
	// Some renewals and one timer may be under way.
	if n := runtime.NumGoroutine() - before; n > 200 {
		t.Errorf("%d goroutines for %d leases", n, len(leases))
	}
	for _, l := range leases {
		if !l.Held() {
			t.Fatalf("%s is lost: %v", l.Name(), cause(l))
		}
	}
}
