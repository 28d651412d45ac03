package memory

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/leasehold/leasehold/backend"
)

func claim(name, holder string) backend.Claim {
	return backend.Claim{Name: name, Holder: holder, Duration: 10 * time.Second}
}

func acquire(t testing.TB, s *Store, c backend.Claim) backend.Record {
	t.Helper()
	rec, err := s.Acquire(t.Context(), c)
	if err != nil {
		t.Fatalf("Acquire(%+v): %v", c, err)
	}
	return rec
}

func get(t testing.TB, s *Store, name string) backend.Record {
	t.Helper()
	rec, err := s.Get(t.Context(), name)
	if err != nil {
		t.Fatalf("Get(%q): %v", name, err)
	}
	return rec
}

func wantErr(t testing.TB, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: got %v, want %v", what, err, want)
	}
}

func TestTenureEndsExactlyAtItsDuration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New()
		rec := acquire(t, s, claim("a", "x"))
		if rec.Remaining != rec.Duration || rec.Duration != 10*time.Second {
			t.Errorf("granted %v with %v remaining", rec.Duration, rec.Remaining)
		}
		time.Sleep(10*time.Second - 1)
		if got := get(t, s, "a"); got.Expired || got.Remaining != 1 {
			t.Errorf("1 ns before the end: Expired %v, Remaining %v", got.Expired, got.Remaining)
		}
		_, err := s.Acquire(t.Context(), claim("a", "y"))
		wantErr(t, "Acquire 1 ns before the end", err, backend.ErrHeld)
		rec, err = s.Renew(t.Context(), rec)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		if got := get(t, s, "a"); !got.Expired || got.Remaining != 0 || got.Revision != rec.Revision {
			t.Errorf("at the end: %+v", got)
		}
		_, err = s.Renew(t.Context(), rec)
		wantErr(t, "Renew at the end", err, backend.ErrLost)
		next := acquire(t, s, claim("a", "y"))
		if next.Token <= rec.Token || next.Transitions != 1 {
			t.Errorf("after %+v came %+v", rec, next)
		}
		wantErr(t, "Release of the old tenure", s.Release(t.Context(), rec), backend.ErrLost)
	})
}

func TestSameAttemptIsTheSameTenureWhileItLasts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New()
		c := claim("a", "x")
		c.Attempt = "1"
		first := acquire(t, s, c)
		time.Sleep(6 * time.Second)
		again := acquire(t, s, c)
		if !again.SameTenure(first) || again.Remaining != c.Duration {
			t.Errorf("the same attempt got %+v after %+v", again, first)
		}
		other := c
		other.Attempt = "2"
		_, err := s.Acquire(t.Context(), other)
		wantErr(t, "another attempt of the same holder", err, backend.ErrHeld)
		other = c
		other.Holder = "y"
		_, err = s.Acquire(t.Context(), other)
		wantErr(t, "the same attempt of another holder", err, backend.ErrHeld)

		time.Sleep(10 * time.Second)
		if late := acquire(t, s, c); late.Token <= first.Token {
			t.Errorf("an expired tenure was revived by its attempt: %+v", late)
		}
		c.Name, c.Attempt = "b", ""
		acquire(t, s, c)
		_, err = s.Acquire(t.Context(), c)
		wantErr(t, "no attempt is never the same", err, backend.ErrHeld)
	})
}

func TestOverIsACompareAndSwap(t *testing.T) {
	s := New()
	over := claim("a", "y")
	over.Over = "1"
	_, err := s.Acquire(t.Context(), over)
	var held *backend.HeldError
	if !errors.As(err, &held) || held.Record.Name != "a" || held.Record.Holder != "" {
		t.Errorf("Over of an absent record: %v", err)
	}
	rec := acquire(t, s, claim("a", "x"))
	over.Over = rec.Revision
	renewed, err := s.Renew(t.Context(), rec)
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Acquire(t.Context(), over)
	wantErr(t, "Over of a revision before a renewal", err, backend.ErrHeld)
	over.Over = renewed.Revision
	if got := acquire(t, s, over); got.Holder != "y" || got.Token <= rec.Token {
		t.Errorf("Over got %+v", got)
	}
}

func TestReleaseOfAnExpiredRecordNeedsItsRevision(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New()
		rec := acquire(t, s, claim("a", "x"))
		renewed, err := s.Renew(t.Context(), rec)
		if err != nil {
			t.Fatal(err)
		}
		rec.Expired = true
		wantErr(t, "Release of a stale sighting", s.Release(t.Context(), rec), backend.ErrLost)
		time.Sleep(renewed.Duration)
		if err := s.Release(t.Context(), get(t, s, "a")); err != nil {
			t.Error(err)
		}
		_, err = s.Get(t.Context(), "a")
		wantErr(t, "Get after Release", err, backend.ErrNotFound)
	})
}

func release(t testing.TB, s *Store, rec backend.Record) {
	t.Helper()
	if err := s.Release(t.Context(), rec); err != nil {
		t.Fatalf("Release(%+v): %v", rec, err)
	}
}

// floored acquires with a MinToken.
func floored(t testing.TB, s *Store, c backend.Claim, floor uint64) backend.Record {
	t.Helper()
	c.MinToken = floor
	return acquire(t, s, c)
}

func TestTokenIsFloorPlusCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New()
		count := uint64(0)
		var rec backend.Record
		want := func(step string, got backend.Record, floor uint64) {
			t.Helper()
			if count++; got.Token != floor+count {
				t.Errorf("%s: token %d, want the floor %d and the count %d", step, got.Token, floor, count)
			}
			rec = got
		}
		over := func(c backend.Claim) backend.Claim {
			c.Over = rec.Revision
			return c
		}
		const floor = 1 << 40
		want("no MinToken", acquire(t, s, claim("a", "x")), 0)
		want("a MinToken, Over", floored(t, s, over(claim("a", "x")), 5), 5)
		want("a greater one, Over", floored(t, s, over(claim("a", "x")), floor), floor)
		renewed, err := s.Renew(t.Context(), rec)
		if err != nil {
			t.Fatal(err)
		}
		release(t, s, renewed)
		want("after release", acquire(t, s, claim("a", "y")), floor)
		time.Sleep(10 * time.Second)
		want("after expiry", acquire(t, s, claim("a", "z")), floor)
		release(t, s, get(t, s, "a"))
		want("a smaller MinToken", floored(t, s, claim("a", "x"), 3), floor)
		seal := backend.Claim{Name: "a", Holder: "moved", Duration: backend.Forever, Seal: &backend.Seal{To: "etcd", Epoch: 1}}
		want("sealed", acquire(t, s, over(seal)), floor)
		want("over the seal", acquire(t, s, over(claim("a", "x"))), floor)
		want("another name", acquire(t, s, claim("b", "x")), 0)
		release(t, s, rec)
		_, err = s.Get(t.Context(), "b")
		wantErr(t, "Get of what was released and has no floor", err, backend.ErrNotFound)
	})
}

// A claim near the greatest token there is uses up its own name, and nothing of
// the others.
func TestGreatestMinToken(t *testing.T) {
	s := New()
	rec := floored(t, s, claim("last", "x"), backend.MaxToken-1)
	if rec.Token != backend.MaxToken {
		t.Errorf("token %d", rec.Token)
	}
	release(t, s, rec)
	left := get(t, s, "last")
	for range 3 {
		_, err := s.Acquire(t.Context(), claim("last", "x"))
		wantErr(t, "a token above the greatest", err, backend.ErrInvalid)
	}
	if got := get(t, s, "last"); got.Revision != left.Revision {
		t.Errorf("a refused claim wrote %+v", got)
	}
	c := claim("new", "x")
	c.MinToken = backend.MaxToken - 1
	_, err := s.Acquire(t.Context(), c)
	wantErr(t, "a MinToken above which there is none", err, backend.ErrInvalid)
	_, err = s.Get(t.Context(), "new")
	wantErr(t, "Get of what was refused", err, backend.ErrNotFound)
	for i, name := range []string{"new", "other"} {
		if rec := acquire(t, s, claim(name, "x")); rec.Token != uint64(2+i) {
			t.Errorf("%s got token %d", name, rec.Token)
		}
	}
}

func TestVacant(t *testing.T) {
	s := New()
	c := claim("a", "x")
	c.Attempt, c.Metadata = "1", map[string]string{"k": "v"}
	rec := floored(t, s, c, 1000)
	release(t, s, rec)
	left := get(t, s, "a")
	if want := (backend.Record{Name: "a", Revision: left.Revision}); fmt.Sprint(left) != fmt.Sprint(want) || left.Revision == "" || left.Revision == rec.Revision {
		t.Errorf("Release left %+v", left)
	}
	listed := 0
	for got, err := range s.List(t.Context(), "") {
		if listed++; err != nil || fmt.Sprint(got) != fmt.Sprint(left) {
			t.Errorf("List yields %+v, %v", got, err)
		}
	}
	if listed != 1 {
		t.Errorf("List yields %d records", listed)
	}
	_, err := s.Renew(t.Context(), rec)
	wantErr(t, "Renew of the old tenure", err, backend.ErrLost)
	wantErr(t, "Release of the old tenure", s.Release(t.Context(), rec), backend.ErrLost)
	_, err = s.Renew(t.Context(), left)
	wantErr(t, "Renew of nobody's", err, backend.ErrLost)
	wantErr(t, "Release of nobody's", s.Release(t.Context(), left), backend.ErrLost)

	over := claim("a", "y")
	over.Over = rec.Revision
	_, err = s.Acquire(t.Context(), over)
	var held *backend.HeldError
	if !errors.As(err, &held) || fmt.Sprint(held.Record) != fmt.Sprint(left) {
		t.Errorf("Over of the old tenure: %v", err)
	}
	over.Over = left.Revision
	next := acquire(t, s, over)
	if next.Token <= rec.Token || next.Transitions != 1 {
		t.Errorf("Over of the vacant record got %+v", next)
	}
	release(t, s, next)
	if again := get(t, s, "a"); again.Revision == left.Revision || again.Transitions != 1 {
		t.Errorf("vacant again: %+v after %+v", again, left)
	}
	_, err = s.Acquire(t.Context(), over)
	wantErr(t, "Over of the vacant record before", err, backend.ErrHeld)
	// The attempt of a tenure that is over means nothing any more.
	if got := acquire(t, s, c); got.Token <= next.Token || got.Transitions != 2 {
		t.Errorf("the same attempt again got %+v", got)
	}
}

func TestSealsLastForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New()
		seal := &backend.Seal{To: "etcd", Epoch: 1, Heir: "x", HeirDuration: time.Second}
		rec := acquire(t, s, backend.Claim{Name: "a", Holder: "moved", Duration: backend.Forever, Seal: seal})
		time.Sleep(100 * 366 * 24 * time.Hour)
		got := get(t, s, "a")
		if got.Expired || got.Holder != "moved" || got.Duration != backend.Forever || *got.Seal != *seal {
			t.Errorf("after a century: %+v", got)
		}
		_, err := s.Acquire(t.Context(), claim("a", "y"))
		wantErr(t, "Acquire of a seal", err, backend.ErrHeld)
		if again, err := s.Renew(t.Context(), rec); err != nil || again.Revision != rec.Revision {
			t.Errorf("Renew of a seal: %+v, %v", again, err)
		}
		if err := s.Release(t.Context(), rec); err != nil {
			t.Error(err)
		}
	})
}

func TestCallersShareNothingWithTheStore(t *testing.T) {
	s := New()
	c := claim("a", "x")
	c.Metadata = map[string]string{"k": "v"}
	granted := acquire(t, s, c)
	sealed := backend.Claim{Name: "b", Holder: "x", Duration: backend.Forever, Seal: &backend.Seal{Epoch: 7}}
	acquire(t, s, sealed)
	c.Metadata["k"], granted.Metadata["k"] = "changed", "changed"
	sealed.Seal.Epoch = 8
	get(t, s, "a").Metadata["k"] = "changed"
	get(t, s, "b").Seal.Epoch = 8
	for rec, err := range s.List(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		if rec.Seal != nil {
			rec.Seal.Epoch = 8
		} else {
			rec.Metadata["k"] = "changed"
		}
	}
	if got := get(t, s, "a").Metadata["k"]; got != "v" {
		t.Errorf("the metadata was changed from outside to %q", got)
	}
	if got := get(t, s, "b").Seal.Epoch; got != 7 {
		t.Errorf("the seal was changed from outside to %d", got)
	}
}

func TestOneOfManyClaimantsWins(t *testing.T) {
	s := New()
	var mu sync.Mutex
	var tokens []uint64
	for range 50 {
		var wg sync.WaitGroup
		won := make(chan backend.Record, 16)
		for i := range 16 {
			wg.Go(func() {
				rec, err := s.Client().Acquire(t.Context(), claim("a", fmt.Sprint(i)))
				if err == nil {
					won <- rec
				} else if !errors.Is(err, backend.ErrHeld) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if len(won) != 1 {
			t.Fatalf("%d claimants won", len(won))
		}
		rec := <-won
		mu.Lock()
		tokens = append(tokens, rec.Token)
		mu.Unlock()
		if err := s.Release(t.Context(), rec); err != nil {
			t.Fatal(err)
		}
	}
	if !slices.IsSorted(tokens) {
		t.Errorf("tokens fell: %v", tokens)
	}
}

func TestEndedContextDoesNothing(t *testing.T) {
	s := New()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := s.Acquire(ctx, claim("a", "x"))
	wantErr(t, "Acquire", err, context.Canceled)
	_, err = s.Get(t.Context(), "a")
	wantErr(t, "Get", err, backend.ErrNotFound)
	for range s.Watch(ctx, "a") {
		t.Error("a Watch whose context has ended yields")
	}
}

// watching runs s.Watch in its own goroutine. next waits until everybody is
// blocked and returns what was yielded since the last call.
func watching(t *testing.T, ctx context.Context, s backend.Watcher, name string) (next func() []string) {
	var mu sync.Mutex
	var seen []string
	add := func(text string) {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, text)
	}
	go func() {
		for rec, err := range s.Watch(ctx, name) {
			switch {
			case err != nil:
				add(err.Error())
			case rec.Expired:
				add(rec.Holder + " expired")
			default:
				add(rec.Holder)
			}
		}
		add("end")
	}()
	return func() []string {
		t.Helper()
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		s := seen
		seen = nil
		return s
	}
}

func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		s := New()
		next := watching(t, ctx, s.Client(), "a")
		want := func(step string, want ...string) {
			t.Helper()
			if got := next(); !slices.Equal(got, want) {
				t.Errorf("%s: the watch yielded %q, want %q", step, got, want)
			}
		}
		want("at first", "")
		rec := acquire(t, s, claim("a", "x"))
		want("acquired", "x")
		acquire(t, s, claim("b", "z"))
		want("another name")
		time.Sleep(5 * time.Second)
		if _, err := s.Renew(t.Context(), rec); err != nil {
			t.Fatal(err)
		}
		want("renewed", "x")
		time.Sleep(10*time.Second - 1)
		want("just before the end")
		time.Sleep(time.Nanosecond)
		want("at the end", "x expired")
		time.Sleep(time.Hour)
		want("long after")
		rec = acquire(t, s, claim("a", "y"))
		want("taken over", "y")
		if err := s.Release(t.Context(), rec); err != nil {
			t.Fatal(err)
		}
		want("released", "")
		cancel()
		want("the context ended", "end")
		if len(s.watchers) != 0 {
			t.Errorf("%d watched names are left", len(s.watchers))
		}
	})
}

// A consumer that takes its time still learns of the expiry when it comes back.
func TestWatchWithASlowConsumer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New()
		acquire(t, s, claim("a", "x"))
		start, n := time.Now(), 0
		for rec := range s.Watch(t.Context(), "a") {
			if n++; n == 1 {
				time.Sleep(8 * time.Second)
				continue
			}
			if took := time.Since(start); !rec.Expired || took != 10*time.Second {
				t.Errorf("after %v: %+v", took, rec)
			}
			break
		}
		if len(s.watchers) != 0 {
			t.Error("breaking off leaves a watcher")
		}
	})
}

func TestCloseEndsItsOwnWatchesOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		s, other := New(), (*Store)(nil)
		other = s.Client()
		mine, theirs := watching(t, ctx, s, "a"), watching(t, ctx, other, "a")
		mine()
		theirs()
		if err := errors.Join(s.Close(), s.Close()); err != nil {
			t.Error(err)
		}
		if got := mine(); len(got) != 2 || !strings.Contains(got[0], "closed") || got[1] != "end" {
			t.Errorf("the closed client's watch yielded %q", got)
		}
		acquire(t, other, claim("a", "x"))
		if got := theirs(); !slices.Equal(got, []string{"x"}) {
			t.Errorf("the other client's watch yielded %q", got)
		}
		_, err := s.Get(t.Context(), "a")
		wantErr(t, "Get of a closed store", err, backend.ErrInvalid)
		for _, err := range s.List(t.Context(), "") {
			wantErr(t, "List of a closed store", err, backend.ErrInvalid)
		}
	})
}

func TestURL(t *testing.T) {
	ctx := t.Context()
	open := func(url string) *Store {
		t.Helper()
		s, err := backend.Open(ctx, url)
		if err != nil {
			t.Fatal(err)
		}
		return s.(*Store)
	}
	private, a, b := open("memory:"), open("memory:x%20y"), open("memory:x%20y")
	rec := acquire(t, a, claim("n", "h"))
	if !get(t, b, "n").SameTenure(rec) {
		t.Error("two clients of memory:NAME see different stores")
	}
	_, err := private.Get(ctx, "n")
	wantErr(t, "memory: is private", err, backend.ErrNotFound)
	if got := a.Traits().Namespace; got != "x y" {
		t.Errorf("the namespace is %q", got)
	}
	a.Close()
	get(t, b, "n")
	c := b.Client()
	b.Close()
	get(t, c, "n")
	c.Close()
	d := open("memory:x%20y")
	defer d.Close()
	_, err = d.Get(ctx, "n")
	wantErr(t, "the data is gone with the last client", err, backend.ErrNotFound)
	again := acquire(t, d, claim("n", "h"))
	if again.Token <= rec.Token {
		t.Errorf("token %d after %d", again.Token, rec.Token)
	}

	// Of a lease with a floor, that is left.
	high := floored(t, d, claim("floored", "h"), 1<<40)
	d.Close()
	e := open("memory:x%20y")
	_, err = e.Get(ctx, "n")
	wantErr(t, "the data is gone with the last client, but for floors", err, backend.ErrNotFound)
	_, err = e.Renew(ctx, high)
	wantErr(t, "Renew of a tenure that is gone", err, backend.ErrLost)
	if next := acquire(t, e, claim("floored", "h")); next.Token != high.Token+1 {
		t.Errorf("token %d after %d", next.Token, high.Token)
	}
	e.Close()
	elsewhere := open("memory:z")
	defer elsewhere.Close()
	_, err = elsewhere.Get(ctx, "floored")
	wantErr(t, "floors of another store", err, backend.ErrNotFound)

	for _, url := range []string{"memory://host", "memory:/path", "memory:///x", "memory:x?y=z", "memory:x#y", "memory:%zz"} {
		if _, err := backend.Open(ctx, url); !errors.Is(err, backend.ErrInvalid) {
			t.Errorf("%s: %v", url, err)
		}
	}
}

func TestNothingIsLeftBehind(t *testing.T) {
	before := runtime.NumGoroutine()
	s := New()
	for i := range 100 {
		c := claim(fmt.Sprint("n", i), "x")
		rec := acquire(t, s, c)
		if _, err := s.Acquire(t.Context(), claim(c.Name, "loser")); !errors.Is(err, backend.ErrHeld) {
			t.Fatal(err)
		}
		for range s.Watch(t.Context(), c.Name) {
			break
		}
		if err := s.Release(t.Context(), rec); err != nil {
			t.Fatal(err)
		}
	}
	if len(s.records)+len(s.watchers) != 0 {
		t.Errorf("%d records and %d watched names are left", len(s.records), len(s.watchers))
	}
	if n := runtime.NumGoroutine(); n > before {
		t.Errorf("%d goroutines before, %d after", before, n)
	}
}

func TestList(t *testing.T) {
	s := New()
	for _, name := range []string{"a/1", "a/2", "b"} {
		acquire(t, s, claim(name, "x"))
	}
	var names []string
	for rec, err := range s.List(t.Context(), "a/") {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, rec.Name)
	}
	slices.Sort(names)
	if !slices.Equal(names, []string{"a/1", "a/2"}) {
		t.Errorf("listed %q", names)
	}
	// The caller may use the store meanwhile.
	for rec := range s.List(t.Context(), "") {
		if err := s.Release(t.Context(), rec); err != nil {
			t.Error(err)
		}
	}
	if len(s.records) != 0 {
		t.Errorf("%d records are left", len(s.records))
	}
}

func BenchmarkAcquireRelease(b *testing.B) {
	s, ctx := New(), context.Background()
	c := claim("bench", "holder")
	c.Attempt = "attempt"
	b.ReportAllocs()
	for b.Loop() {
		rec, err := s.Acquire(ctx, c)
		if err == nil {
			err = s.Release(ctx, rec)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRenew(b *testing.B) {
	s, ctx := New(), context.Background()
	rec := acquire(b, s, claim("bench", "holder"))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Renew(ctx, rec); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkWake measures from the call of Release to the arrival of the news at
// a watcher, among a thousand watchers of other names.
func BenchmarkWake(b *testing.B) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	s := New()
	for i := range 1000 {
		next, stop := iter.Pull2(s.Watch(ctx, fmt.Sprint("other", i)))
		defer stop()
		next()
	}
	free, held := make(chan time.Time, 1), make(chan struct{})
	go func() {
		for rec := range s.Watch(ctx, "bench") {
			if rec.Vacant() {
				free <- time.Now()
			} else {
				held <- struct{}{}
			}
		}
	}()
	<-free
	var took []time.Duration
	for b.Loop() {
		rec, err := s.Acquire(ctx, claim("bench", "holder"))
		if err != nil {
			b.Fatal(err)
		}
		<-held
		start := time.Now()
		if err := s.Release(ctx, rec); err != nil {
			b.Fatal(err)
		}
		took = append(took, (<-free).Sub(start))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2]), "ns-median")
	b.ReportMetric(float64(took[len(took)*99/100]), "ns-p99")
}

// A waiter that saw the lease free and was refused, by a holder that has gone
// again, must be woken: it will not see that holder. So it is whether or not
// Release leaves a record.
func TestWatchTellsOfAbsenceAgain(t *testing.T) {
	for _, floor := range []uint64{0, 1000} {
		s := New()
		if floor != 0 {
			release(t, s, floored(t, s, claim("a", "x"), floor))
		}
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		seen := 0
		for rec, err := range s.Watch(ctx, "a") {
			if err != nil || !rec.Vacant() || rec.Expired || (rec.Revision != "") != (floor != 0) {
				t.Fatalf("%+v, %v", rec, err)
			}
			if seen++; seen == 3 {
				break
			}
			release(t, s, acquire(t, s, claim("a", "x")))
		}
		if seen != 3 {
			t.Errorf("told %d times, with MinToken %d", seen, floor)
		}
	}
}
