// Package scene is what tests on real servers do with any store: verbs that must
// succeed, waiting that comes to an end, and errors that must tell something. A
// [Tenure] is a holder at work in the background, with what there is to check of it.
package scene

import (
	"context"
	"crypto/rand"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/lease"
)

// Patience is how long something may take that should happen at once, on a
// machine that is busy with other things.
const Patience = 30 * time.Second

// Slow tells whether the run may take long.
func Slow() bool { return os.Getenv("LEASEHOLD_SLOW") == "1" }

// Lease returns a Lease; it is closed after the test, before its store if that was
// opened before.
func Lease(t testing.TB, s backend.Store, name string, d time.Duration, opts ...lease.Option) *lease.Lease {
	t.Helper()
	l, err := lease.New(s, name, append([]lease.Option{lease.WithDuration(d)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// Claim is one of a new attempt.
func Claim(name, holder string, d time.Duration) backend.Claim {
	return backend.Claim{Name: name, Holder: holder, Attempt: rand.Text(), Duration: d}
}

// Grant acquires, which must succeed.
func Grant(t testing.TB, s backend.Store, c backend.Claim) backend.Record {
	t.Helper()
	rec, err := s.Acquire(t.Context(), c)
	if err != nil {
		t.Fatalf("%q is not granted to %q: %v", c.Name, c.Holder, err)
	}
	return rec
}

// Renew renews, which must succeed.
func Renew(t testing.TB, s backend.Store, rec backend.Record) backend.Record {
	t.Helper()
	again, err := s.Renew(t.Context(), rec)
	if err != nil {
		t.Fatalf("%q of %q is not renewed: %v", rec.Name, rec.Holder, err)
	}
	return again
}

// Release releases, which must succeed.
func Release(t testing.TB, s backend.Store, rec backend.Record) {
	t.Helper()
	if err := s.Release(t.Context(), rec); err != nil {
		t.Fatalf("%q of %q is not released: %v", rec.Name, rec.Holder, err)
	}
}

// Get returns the record of a name.
func Get(t testing.TB, s backend.Store, name string) backend.Record {
	t.Helper()
	rec, err := s.Get(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return rec
}

// Eventually waits until cond holds, which must be within [Patience].
func Eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	EventuallyFor(t, Patience, what, cond)
}

// EventuallyFor waits until cond holds, which must be within d.
func EventuallyFor(t testing.TB, d time.Duration, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(d)
	for pause := time.Millisecond; !cond(); pause = min(2*pause, 50*time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v", what, d)
		}
		time.Sleep(pause)
	}
}

// Await waits for a channel that is closed, or that something arrives on, which
// must be within [Patience].
func Await[T any](t testing.TB, what string, ch <-chan T) T {
	t.Helper()
	return AwaitFor(t, Patience, what, ch)
}

// AwaitFor is [Await] that waits for d at most.
func AwaitFor[T any](t testing.TB, d time.Duration, what string, ch <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-ch:
	case <-time.After(d):
		t.Fatalf("%s: not within %v", what, d)
	}
	return v
}

// Pass lets time pass that must pass.
func Pass(t testing.TB, d time.Duration) {
	t.Helper()
	select {
	case <-time.After(d):
	case <-t.Context().Done():
		t.Fatal(context.Cause(t.Context()))
	}
}

// Mentions fails unless err's text has all of the words.
func Mentions(t testing.TB, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Error("no error")
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("the error does not tell of %q: %v", w, err)
		}
	}
}
