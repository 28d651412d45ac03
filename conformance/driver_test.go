package conformance_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/conformance"
	"github.com/leasehold/leasehold/conformance/internal/broken"
)

// check runs one made-up case over a store that is right.
func check(t *testing.T, w *broken.World, run func(e *conformance.Env), opts ...conformance.Option) conformance.Result {
	t.Helper()
	one := conformance.Case{Name: "test/" + t.Name(), Rule: "the rule", Why: "the reason", Run: run}
	var got conformance.Result
	for r := range conformance.Check(t.Context(), func() (backend.Store, error) { return w.Open(), nil }, append(opts, conformance.WithCases(one))...) {
		got = r
	}
	return got
}

func TestFailureSaysWhere(t *testing.T) {
	r := check(t, broken.New(broken.Options{}), func(e *conformance.Env) {
		_, _ = e.Store().Get(e.Context(), e.Name("-a"))
		e.Fatalf("it went %s", "wrong")
	})
	for _, want := range []string{"what: it went wrong", "rule: the rule", "why:  the reason", "driver_test.go:", `client 1 Get(·-a) → error: no such lease`} {
		if !strings.Contains(r.String(), want) {
			t.Errorf("the failure does not say %q:\n%v", want, r)
		}
	}
}

func TestPanicIsAFailure(t *testing.T) {
	r := check(t, broken.New(broken.Options{}), func(*conformance.Env) { panic("oops") })
	if r.Err == nil || !strings.Contains(r.Err.Error(), "oops") || !strings.Contains(r.Err.Error(), "TestPanicIsAFailure") {
		t.Errorf("got %v", r)
	}
}

// TestHang checks the watchdog: a case that hangs fails, and shows where, also
// if it never ends.
func TestHang(t *testing.T) {
	never := make(chan struct{})
	defer close(never)
	for name, hang := range map[string]func(e *conformance.Env){
		"ends when told":     func(e *conformance.Env) { hangHere(e.Context().Done()) },
		"does not even then": func(*conformance.Env) { hangHere(never) },
	} {
		t.Run(name, func(t *testing.T) {
			r := check(t, broken.New(broken.Options{}), hang, conformance.WithTimeout(30*time.Millisecond), conformance.WithPatience(50*time.Millisecond))
			if r.Err == nil || !strings.Contains(r.Err.Error(), "hung") || !strings.Contains(r.String(), "hangHere") {
				t.Errorf("got %v", r)
			}
		})
	}
}

func hangHere(until <-chan struct{}) { <-until }

// TestSweep checks that nothing is left on a live server, whatever a case did
// and however it ended.
func TestSweep(t *testing.T) {
	w := broken.New(broken.Options{})
	r := check(t, w, func(e *conformance.Env) {
		acquire := func(suffix string, d time.Duration, seal *backend.Seal) {
			_, err := e.Store().Acquire(e.Context(), backend.Claim{Name: e.Name(suffix), Holder: "alice", Duration: d, Seal: seal})
			if err != nil {
				e.Fatalf("Acquire failed: %v", err)
			}
		}
		acquire("-live", time.Hour, nil)
		acquire("-dead", time.Millisecond, nil)
		acquire("-seal", backend.Forever, &backend.Seal{To: "there", Epoch: 1})
		e.Fatalf("deliberate")
	})
	if r.Err == nil || r.Err.Error() != "deliberate" {
		t.Fatalf("got %v", r)
	}
	for rec := range backend.List(t.Context(), w.Open(), "") {
		t.Errorf("%q was left, held by %q", rec.Name, rec.Holder)
	}
}

// TestNames checks that a case touches only names with the prefix.
func TestNames(t *testing.T) {
	var names []string
	check(t, broken.New(broken.Options{}), func(e *conformance.Env) {
		names = append(names, e.Name(""), e.Name("-x"))
	}, conformance.WithPrefix("scratch/"))
	for _, name := range names {
		if !strings.HasPrefix(name, "scratch/test.TestNames.") {
			t.Errorf("the name is %q", name)
		}
	}
}

func TestOpenFails(t *testing.T) {
	down := errors.New("the server is down")
	one := conformance.Cases()[0]
	for r := range conformance.Check(t.Context(), func() (backend.Store, error) { return nil, down }, conformance.WithCases(one)) {
		if r.Err == nil || !strings.Contains(r.Err.Error(), down.Error()) {
			t.Errorf("got %v", r)
		}
	}
}

// TestBreakOff stops in the middle: what is running ends, and nothing is left.
func TestBreakOff(t *testing.T) {
	w := broken.New(broken.Options{})
	n := 0
	for range conformance.Check(t.Context(), func() (backend.Store, error) { return w.Open(), nil }) {
		if n++; n == 5 {
			break
		}
	}
	for rec := range backend.List(context.Background(), w.Open(), "") {
		if !rec.Vacant() {
			t.Errorf("%q was left, held by %q", rec.Name, rec.Holder)
		}
	}
}

func TestSummary(t *testing.T) {
	var s conformance.Summary
	c := conformance.Case{Name: "group/name"}
	s.Add(conformance.Result{Case: c})
	s.Add(conformance.Result{Case: c, Err: errors.New("wrong")})
	s.Add(conformance.Result{Case: c, Skipped: "it cannot"})
	if got, want := s.String(), "1 passed, 1 failed, 1 skipped\n    group/name: skipped: it cannot"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
