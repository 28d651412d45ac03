package conformance_test

import (
	"context"
	"errors"
	"reflect"
	"testing"
	"time"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/conformance"
	"github.com/leasehold/leasehold/conformance/internal/broken"
)

func claim(holder string) backend.Claim {
	return backend.Claim{Name: "n", Holder: holder, Attempt: holder, Duration: time.Minute}
}

// TestFaults puts each fault on an Acquire and looks at the answer and at what
// the store shows then.
func TestFaults(t *testing.T) {
	own := errors.New("own")
	gate := make(chan struct{})
	close(gate)
	for name, c := range map[string]struct {
		fault   conformance.Fault
		err     error
		applied bool
	}{
		"none":       {nil, nil, true},
		"Fail":       {conformance.Fail(nil), conformance.ErrInjected, false},
		"Fail own":   {conformance.Fail(own), own, false},
		"LoseReply":  {conformance.LoseReply(own), own, true},
		"Hang":       {conformance.Hang(), context.DeadlineExceeded, false},
		"HangAfter":  {conformance.HangAfter(), context.DeadlineExceeded, true},
		"Stall":      {conformance.Stall(gate), nil, true},
		"Delay":      {conformance.Delay(time.Millisecond), nil, true},
		"Delay long": {conformance.Delay(time.Hour), context.DeadlineExceeded, false},
		"DelayReply": {conformance.DelayReply(time.Hour), context.DeadlineExceeded, true},
	} {
		t.Run(name, func(t *testing.T) {
			store := broken.New(broken.Options{}).Open()
			faults := conformance.NewFaults(store)
			faults.Next(conformance.VerbAcquire, c.fault)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
			defer cancel()
			rec, err := faults.Store().Acquire(ctx, claim("alice"))
			if !errors.Is(err, c.err) || (err == nil) != (rec.Token != 0) {
				t.Errorf("got %v, token %d, want %v", err, rec.Token, c.err)
			}
			if _, err := store.Get(t.Context(), "n"); (err == nil) != c.applied {
				t.Errorf("applied: %v, want %v", err == nil, c.applied)
			}
			if n := faults.Calls(conformance.VerbAcquire); n != 1 {
				t.Errorf("%d calls were counted, want 1", n)
			}
		})
	}
}

func TestLate(t *testing.T) {
	store := broken.New(broken.Options{}).Open()
	faults := conformance.NewFaults(store)
	gate := make(chan struct{})
	faults.Next(conformance.VerbAcquire, conformance.Late(gate, nil))
	if _, err := faults.Store().Acquire(t.Context(), claim("alice")); !errors.Is(err, conformance.ErrInjected) {
		t.Fatal(err)
	}
	if _, err := store.Get(t.Context(), "n"); !errors.Is(err, backend.ErrNotFound) {
		t.Fatalf("it was applied at once: %v", err)
	}
	close(gate)
	for {
		if _, err := store.Get(t.Context(), "n"); err == nil {
			break
		}
		time.Sleep(time.Millisecond)
	}
}

func TestEveryAndHeal(t *testing.T) {
	faults := conformance.NewFaults(broken.New(broken.Options{}).Open())
	s := faults.Store()
	faults.Every(conformance.Fail(nil))
	faults.Next(conformance.VerbGet, nil) // passes, before those of Every
	if _, err := s.Get(t.Context(), "n"); !errors.Is(err, backend.ErrNotFound) {
		t.Error(err)
	}
	if _, err := s.Get(t.Context(), "n"); !errors.Is(err, conformance.ErrInjected) {
		t.Error(err)
	}
	for _, err := range backend.Watch(t.Context(), s, "n") {
		if !errors.Is(err, conformance.ErrInjected) {
			t.Error(err)
		}
	}
	for _, err := range backend.List(t.Context(), s, "n") {
		if !errors.Is(err, conformance.ErrInjected) {
			t.Error(err)
		}
	}
	faults.Heal()
	rec, err := s.Acquire(t.Context(), claim("alice"))
	if err != nil {
		t.Fatal(err)
	}
	for got, err := range backend.Watch(t.Context(), s, "n") {
		if err != nil || !reflect.DeepEqual(got.Token, rec.Token) {
			t.Error(got, err)
		}
		break
	}
}

// TestWrapperHasWhatTheStoreHas checks that a wrapper neither hides an optional
// method nor makes one up, and that wrapped stores can be compared.
func TestWrapperHasWhatTheStoreHas(t *testing.T) {
	for _, o := range []broken.Options{{}, {NoWatch: true}, {NoList: true}, {NoWatch: true, NoList: true}} {
		store := broken.New(o).Open()
		wrapped := conformance.NewFaults(conformance.NewFaults(store).Store()).Store()
		if _, ok := wrapped.(backend.Watcher); ok == o.NoWatch {
			t.Errorf("%+v: Watch is there: %v", o, ok)
		}
		if _, ok := wrapped.(backend.Lister); ok == o.NoList {
			t.Errorf("%+v: List is there: %v", o, ok)
		}
		if !reflect.TypeOf(wrapped).Comparable() || map[backend.Store]bool{wrapped: true}[store] {
			t.Errorf("%+v: the wrapper cannot be compared", o)
		}
	}
}
