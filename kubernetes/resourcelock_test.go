package kubernetes_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/backend/file"
	"github.com/leasehold/leasehold/backend/memory"
	"github.com/leasehold/leasehold/conformance"
	"github.com/leasehold/leasehold/kubernetes"
)

// An unchanged LeaderElector on a store of Leasehold, here in memory. What it
// guards asks for the token before each write, and sends it along.
func ExampleResourceLock() {
	store := memory.New()
	defer store.Close()
	lock := kubernetes.ResourceLock(store, "nightly-report", "host-1_5f3a")

	ctx, cancel := context.WithCancel(context.Background())
	written := make(chan struct{})
	leaderelection.RunOrDie(ctx, leaderelection.LeaderElectionConfig{
		Lock:            lock,
		LeaseDuration:   15 * time.Second,
		RenewDeadline:   10 * time.Second,
		RetryPeriod:     2 * time.Second,
		ReleaseOnCancel: true,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(context.Context) {
				if token := lock.(kubernetes.FencedLock).Token(); token != 0 {
					fmt.Println("writing with token", token)
				}
				close(written)
				cancel()
			},
			OnStoppedLeading: func() { <-written },
		},
	})
	fmt.Println("token after the end:", lock.(kubernetes.FencedLock).Token())
	// Output:
	// writing with token 1
	// token after the end: 0
}

const name = "the-lease"

// stores are the three ways in which a store may tell of renewal and expiry.
var stores = map[string]func() (open func() backend.Store){
	"shows renewals and judges expiry": func() func() backend.Store { // memory, file
		s := memory.New()
		return func() backend.Store { return s.Client() }
	},
	"shows renewals": neverExpires, // kubernetes
	"judges expiry": func() func() backend.Store { // etcd, redis
		s := memory.New()
		return func() backend.Store { return quiet{s.Client()} }
	},
}

func neverExpires() func() backend.Store {
	s := memory.New(memory.WithClock(stopped{}))
	return func() backend.Store { return s.Client() }
}

func inEachStore(t *testing.T, f func(t *testing.T, open func() backend.Store)) {
	for what, store := range stores {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { f(t, store()) })
		})
	}
}

// stopped is the clock of a store that calls nothing expired.
type stopped struct{}

func (stopped) Now() time.Duration                               { return 0 }
func (stopped) AfterFunc(d time.Duration, f func()) memory.Timer { return time.AfterFunc(d, f) }

// quiet hides renewals: the record is as it was when it was granted.
type quiet struct{ backend.Store }

func (s quiet) Traits() backend.Traits {
	t := s.Store.Traits()
	t.RenewalsVisible = false
	return t
}

func (quiet) hide(rec backend.Record, err error) (backend.Record, error) {
	rec.RenewedAt, rec.Revision = rec.AcquiredAt, "of token "+strconv.FormatUint(rec.Token, 10)
	return rec, err
}

func (s quiet) Get(ctx context.Context, name string) (backend.Record, error) {
	return s.hide(s.Store.Get(ctx, name))
}

func (s quiet) Renew(ctx context.Context, rec backend.Record) (backend.Record, error) {
	return s.hide(s.Store.Renew(ctx, rec))
}

func (s quiet) Acquire(ctx context.Context, claim backend.Claim) (backend.Record, error) {
	over := claim.Over
	for {
		if over != "" {
			rec, err := s.Store.Get(ctx, claim.Name)
			if shown, _ := s.hide(rec, nil); err != nil || shown.Revision != over {
				return backend.Record{}, &backend.HeldError{Record: shown}
			}
			claim.Over = rec.Revision
		}
		rec, err := s.Store.Acquire(ctx, claim)
		var held *backend.HeldError
		switch {
		case !errors.As(err, &held):
			return s.hide(rec, err)
		case over == "":
			held.Record, _ = s.hide(held.Record, nil)
			return rec, held
		}
	}
}

// viewed shows its records through a function.
type viewed struct {
	backend.Store
	view func(*backend.Record)
}

func (s viewed) Get(ctx context.Context, name string) (backend.Record, error) {
	rec, err := s.Store.Get(ctx, name)
	s.view(&rec)
	return rec, err
}

// edited is a store in which somebody edits the record between any two Gets.
type edited struct {
	backend.Store
	edits *int
}

func (s edited) Get(ctx context.Context, name string) (backend.Record, error) {
	rec, err := s.Store.Get(ctx, name)
	*s.edits++
	rec.Metadata = map[string]string{"label": strconv.Itoa(*s.edits)}
	rec.Duration = max(rec.Duration-time.Duration(*s.edits)*time.Second, time.Second) // shorter and shorter
	rec.Revision += fmt.Sprint(" edit ", *s.edits)
	return rec, err
}

func (s edited) Acquire(ctx context.Context, claim backend.Claim) (backend.Record, error) {
	if claim.Over != "" {
		over, found := strings.CutSuffix(claim.Over, fmt.Sprint(" edit ", *s.edits))
		if !found {
			return backend.Record{}, &backend.HeldError{Record: backend.Record{Name: claim.Name, Holder: "edited"}}
		}
		claim.Over = over
	}
	return s.Store.Acquire(ctx, claim)
}

// slow lets time pass before and after each call.
type slow struct {
	backend.Store
	most time.Duration
}

func (s slow) wait() { time.Sleep(rand.N(s.most)) }

func (s slow) Get(ctx context.Context, name string) (backend.Record, error) {
	s.wait()
	defer s.wait()
	return s.Store.Get(ctx, name)
}

func (s slow) Renew(ctx context.Context, rec backend.Record) (backend.Record, error) {
	s.wait()
	defer s.wait()
	return s.Store.Renew(ctx, rec)
}

func (s slow) Acquire(ctx context.Context, claim backend.Claim) (backend.Record, error) {
	s.wait()
	defer s.wait()
	return s.Store.Acquire(ctx, claim)
}

// candidate is one elector and what it has told.
type candidate struct {
	id     string
	lock   kubernetes.FencedLock
	cancel context.CancelFunc
	done   chan struct{} // closed when Run has returned

	mu      sync.Mutex
	terms   int    // calls of OnStartedLeading
	stops   int    // of OnStoppedLeading
	token   uint64 // at the start of the last term
	started time.Time
}

var ordinary = leaderelection.LeaderElectionConfig{
	LeaseDuration: 15 * time.Second, RenewDeadline: 10 * time.Second, RetryPeriod: 2 * time.Second, ReleaseOnCancel: true,
}

// run starts an elector. leads is called in the place of OnStartedLeading.
func run(t *testing.T, lock resourcelock.Interface, config leaderelection.LeaderElectionConfig, leads func(c *candidate)) *candidate {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	c := &candidate{id: lock.Identity(), lock: lock.(kubernetes.FencedLock), cancel: cancel, done: make(chan struct{})}
	config.Lock = lock
	config.Callbacks = leaderelection.LeaderCallbacks{
		OnStartedLeading: func(context.Context) {
			c.mu.Lock()
			c.terms, c.token, c.started = c.terms+1, c.lock.Token(), time.Now()
			c.mu.Unlock()
			if leads != nil {
				leads(c)
			}
		},
		OnStoppedLeading: func() {
			c.mu.Lock()
			c.stops++
			c.mu.Unlock()
		},
	}
	le, err := leaderelection.NewLeaderElector(config)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(c.done)
		le.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-c.done
	})
	return c
}

func (c *candidate) state() (terms, stops int, token uint64, started time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.terms, c.stops, c.token, c.started
}

// next waits for an elector that leads.
func next[T any](t *testing.T, leading <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-leading:
	case <-time.After(50 * time.Second):
		t.Fatal("nobody leads")
	}
	return v
}

// force puts another holder in the place of whoever is there.
func force(t *testing.T, s backend.Store, holder string) backend.Record {
	t.Helper()
	rec := must(s.Get(t.Context(), name))(t)
	return must(s.Acquire(t.Context(), backend.Claim{Name: name, Holder: holder, Duration: 15 * time.Second, Over: rec.Revision}))(t)
}

func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func ler(holder string, seconds int) resourcelock.LeaderElectionRecord {
	return resourcelock.LeaderElectionRecord{HolderIdentity: holder, LeaseDurationSeconds: seconds}
}

// look is what an elector does before it updates.
func look(t *testing.T, lock resourcelock.Interface) *resourcelock.LeaderElectionRecord {
	t.Helper()
	r, _, err := lock.Get(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func token(lock resourcelock.Interface) uint64 { return lock.(kubernetes.FencedLock).Token() }

// TestElection: of three electors one leads, for as long as it likes; a clean
// release lets in the next one as soon as that looks, with a greater token.
func TestElection(t *testing.T) {
	inEachStore(t, func(t *testing.T, open func() backend.Store) {
		leading := make(chan *candidate, 10)
		for i := range 3 {
			run(t, kubernetes.ResourceLock(open(), name, fmt.Sprint("candidate-", i)), ordinary, func(c *candidate) { leading <- c })
		}
		var last uint64
		for range 3 {
			begun := time.Now()
			c := next(t, leading)
			if waited := time.Since(begun); waited > 4500*time.Millisecond { // 2.2 retry periods
				t.Errorf("%s leads %v after the lease became free", c.id, waited)
			}
			if _, _, token, _ := c.state(); token <= last {
				t.Errorf("%s leads with token %d after %d", c.id, token, last)
			} else {
				last = token
			}
			time.Sleep(5 * time.Minute)
			if len(leading) > 0 {
				t.Fatalf("%s leads beside %s", (<-leading).id, c.id)
			}
			if got := c.lock.Token(); got != last {
				t.Errorf("the token of %s became %d, from %d", c.id, got, last)
			}
			if r := look(t, c.lock); r.HolderIdentity != c.id || r.LeaseDurationSeconds != 15 {
				t.Errorf("%+v, want %s for 15 s", r, c.id)
			}
			c.cancel()
			<-c.done
			if got := c.lock.Token(); got != 0 {
				t.Errorf("%s has given the lease back and still shows token %d", c.id, got)
			}
		}
	})
}

// TestTakeoverAfterCrash: a leader that can reach nothing any more is followed
// after its duration, never before, and shows no token by then, though its
// elector may not have ended its context yet.
func TestTakeoverAfterCrash(t *testing.T) {
	inEachStore(t, func(t *testing.T, open func() backend.Store) {
		var renewed atomic.Int64 // when the last renewal that succeeded was sent
		faults := conformance.NewFaults(open())
		faults.Every(func(ctx context.Context, call func(context.Context) (backend.Record, error)) (backend.Record, error) {
			renewed.Store(time.Now().UnixNano())
			return call(ctx)
		}, conformance.VerbRenew, conformance.VerbAcquire)
		a := run(t, kubernetes.ResourceLock(faults.Store(), name, "a"), ordinary, nil)
		synctest.Wait()
		leading := make(chan uint64, 1)
		b := run(t, kubernetes.ResourceLock(open(), name, "b"), ordinary, func(*candidate) { leading <- a.lock.Token() })
		time.Sleep(time.Minute + time.Millisecond)
		faults.Every(conformance.Hang())
		crashed := time.Unix(0, renewed.Load())
		if left := next(t, leading); left != 0 {
			t.Errorf("b leads, and a still shows token %d", left)
		}
		_, _, of, started := b.state()
		// At most it sees the last renewal a pause late, and its silence another one.
		if after := started.Sub(crashed); after < 15*time.Second || after > 15150*time.Millisecond+2*4500*time.Millisecond {
			t.Errorf("b leads %v after the last renewal of a", after)
		}
		if _, _, was, _ := a.state(); of <= was {
			t.Errorf("b leads with token %d after %d", of, was)
		}
		<-a.done
		if _, stops, _, _ := a.state(); stops != 1 {
			t.Error("a was not told")
		}
	})
}

// TestStaleReleaseErasesNobody: the release of a leader that has been replaced
// leaves the lease of its successor as it is.
func TestStaleReleaseErasesNobody(t *testing.T) {
	inEachStore(t, func(t *testing.T, open func() backend.Store) {
		s := open()
		a := kubernetes.ResourceLock(s, name, "a")
		if err := a.Create(t.Context(), ler("a", 15)); err != nil {
			t.Fatal(err)
		}
		force(t, s, "b")
		want := must(s.Get(t.Context(), name))(t)
		// It looks, and releases because it was the leader when it looked last.
		if r := look(t, a); r.HolderIdentity != "b" {
			t.Fatalf("%+v", r)
		}
		for range 2 {
			// A conflict would have it try again at once, for ten seconds.
			if err := a.Update(t.Context(), ler("", 1)); err != nil {
				t.Errorf("the release by a: %v", err)
			}
		}
		if got := must(s.Get(t.Context(), name))(t); got.Revision != want.Revision || got.Holder != "b" || got.Token != want.Token {
			t.Errorf("b held %+v, after the release of a it is %+v", want, got)
		}
	})
}

// TestStaleElectorErasesNobody is the same by an elector, which must not try
// again and again either.
func TestStaleElectorErasesNobody(t *testing.T) {
	inEachStore(t, func(t *testing.T, open func() backend.Store) {
		faults := conformance.NewFaults(open())
		a := run(t, kubernetes.ResourceLock(faults.Store(), name, "a"), ordinary, nil)
		time.Sleep(time.Minute + time.Second) // between two renewals
		want := force(t, open(), "b")
		before := faults.Calls(conformance.VerbGet)
		a.cancel()
		<-a.done
		if got := must(open().Get(t.Context(), name))(t); got.Holder != "b" || got.Token != want.Token {
			t.Errorf("b held %+v, after the release of a it is %+v", want, got)
		}
		if n := faults.Calls(conformance.VerbGet) - before; n > 2 {
			t.Errorf("the release looked %d times", n)
		}
	})
}

// TestLossIsTold: an elector whose lease was taken, and is free again, does not
// take it and go on: it stops first.
func TestLossIsTold(t *testing.T) {
	inEachStore(t, func(t *testing.T, open func() backend.Store) {
		s := open()
		lock := kubernetes.ResourceLock(s, name, "a")
		a := run(t, lock, ordinary, nil)
		time.Sleep(time.Minute + time.Second)
		if err := s.Release(t.Context(), force(t, s, "b")); err != nil { // b came and went
			t.Fatal(err)
		}
		lost := time.Now()
		time.Sleep(2 * time.Second)
		if got := a.lock.Token(); got != 0 {
			t.Errorf("2 s after the loss there still is token %d", got)
		}
		select {
		case <-a.done:
		case <-time.After(time.Minute):
			t.Fatal("the loss was never told")
		}
		if after := time.Since(lost); after > 13*time.Second {
			t.Errorf("told %v after the loss", after)
		}
		terms, stops, was, _ := a.state()
		if terms != 1 || stops != 1 {
			t.Errorf("%d starts and %d stops", terms, stops)
		}
		if rec, err := s.Get(t.Context(), name); !errors.Is(err, backend.ErrNotFound) {
			t.Errorf("a took the lease while it led: %+v, %v", rec, err)
		}
		// A new leadership is a new tenure.
		a = run(t, lock, ordinary, nil)
		time.Sleep(time.Second)
		if terms, _, token, _ := a.state(); terms != 1 || token <= was {
			t.Errorf("%d starts, with token %d after %d", terms, token, was)
		}
	})
}

// TestSameIdentity: a process that finds its own identity leads at once, with a
// tenure of its own; whoever had the old one loses it.
func TestSameIdentity(t *testing.T) {
	inEachStore(t, func(t *testing.T, open func() backend.Store) {
		old := kubernetes.ResourceLock(open(), name, "a")
		if err := old.Create(t.Context(), ler("a", 15)); err != nil {
			t.Fatal(err)
		}
		was := token(old)
		lock := kubernetes.ResourceLock(open(), name, "a")
		if seen := look(t, lock); seen.HolderIdentity == "a" || !strings.Contains(seen.HolderIdentity, "a") {
			t.Errorf("the other process shows as %q: an elector would take it for itself", seen.HolderIdentity)
		}
		a := run(t, lock, ordinary, nil)
		for range 20 { // it lives
			time.Sleep(5 * time.Second)
			if err := old.Update(t.Context(), ler("a", 15)); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(14900 * time.Millisecond) // and dies
		if terms, _, _, _ := a.state(); terms != 0 {
			t.Fatal("a process leads under an identity whose tenure is another's, and not over")
		}
		time.Sleep(time.Minute)
		if terms, stops, token, _ := a.state(); terms != 1 || stops != 0 || token <= was {
			t.Errorf("%d starts, %d stops, with token %d after %d", terms, stops, token, was)
		}
		err := old.Update(t.Context(), ler("a", 15))
		if !apierrors.IsConflict(err) || !errors.Is(err, backend.ErrLost) {
			t.Errorf("the old process renews: %v", err)
		}
		if got := token(old); got != 0 {
			t.Errorf("the old process still shows token %d", got)
		}
		time.Sleep(time.Minute)
		if _, stops, _, _ := a.state(); stops != 0 {
			t.Error("the new process stopped")
		}
	})
}

// TestVacatedRecord: a record without a holder is taken at once, and keeps its
// count and its floor.
func TestVacatedRecord(t *testing.T) {
	inEachStore(t, func(t *testing.T, open func() backend.Store) {
		s := open()
		rec := must(s.Acquire(t.Context(), backend.Claim{Name: name, Holder: "x", Duration: time.Minute, MinToken: 100}))(t)
		if err := s.Release(t.Context(), rec); err != nil {
			t.Fatal(err)
		}
		lock := kubernetes.ResourceLock(s, name, "a")
		before := look(t, lock)
		if before.HolderIdentity != "" {
			t.Errorf("%+v", before)
		}
		a := run(t, lock, ordinary, nil)
		synctest.Wait()
		if terms, _, token, _ := a.state(); terms != 1 || token <= 101 {
			t.Errorf("%d starts, with token %d", terms, token)
		}
		if after := look(t, lock); after.LeaderTransitions != before.LeaderTransitions+1 {
			t.Errorf("%d transitions, after %d", after.LeaderTransitions, before.LeaderTransitions)
		}
	})
}

// TestSealedRecord: a name that has moved away is held for ever, by nobody who
// could think it were himself.
func TestSealedRecord(t *testing.T) {
	for _, holder := range []string{"moved", "a"} {
		t.Run("sealed by "+holder, func(t *testing.T) {
			inEachStore(t, func(t *testing.T, open func() backend.Store) {
				s := open()
				must(s.Acquire(t.Context(), backend.Claim{Name: name, Holder: holder, Duration: backend.Forever, Seal: &backend.Seal{To: "etcd", Epoch: 1}}))(t)
				lock := kubernetes.ResourceLock(s, name, "a")
				if r := look(t, lock); r.HolderIdentity == "" || r.HolderIdentity == "a" || r.LeaseDurationSeconds != math.MaxInt32 {
					t.Errorf("%+v", r)
				}
				if err := lock.Update(t.Context(), ler("a", 15)); !apierrors.IsConflict(err) {
					t.Errorf("it was taken: %v", err)
				}
				a := run(t, lock, ordinary, nil)
				time.Sleep(10 * time.Hour)
				if terms, _, _, _ := a.state(); terms != 0 {
					t.Error("a leads")
				}
			})
		})
	}
}

// TestLiveLeaseIsNotStolen: with leases so short that client-go's LeaseLock,
// which compares whole seconds, has them stolen from live leaders.
func TestLiveLeaseIsNotStolen(t *testing.T) {
	inEachStore(t, func(t *testing.T, open func() backend.Store) {
		short := leaderelection.LeaderElectionConfig{LeaseDuration: time.Second, RenewDeadline: 900 * time.Millisecond, RetryPeriod: 400 * time.Millisecond}
		leading := make(chan string, 1000)
		for i := range 8 {
			run(t, kubernetes.ResourceLock(slow{open(), 20 * time.Millisecond}, name, fmt.Sprint("candidate-", i)), short, func(c *candidate) { leading <- c.id })
		}
		first := next(t, leading)
		time.Sleep(10 * time.Minute)
		if len(leading) > 0 {
			t.Errorf("%s had not failed, and then %s led; %d times in all", first, <-leading, len(leading)+2)
		}
	})
}

// TestLockCountsForItself: what the elector thinks of the time that has passed
// is not enough to take over another's lease.
func TestLockCountsForItself(t *testing.T) {
	const hold = 15 * time.Second
	begin := func(t *testing.T, s backend.Store, view func(*backend.Record)) (resourcelock.Interface, backend.Record) {
		rec := must(s.Acquire(t.Context(), backend.Claim{Name: name, Holder: "x", Duration: hold}))(t)
		if view == nil {
			view = func(*backend.Record) {}
		}
		lock := kubernetes.ResourceLock(viewed{s, view}, name, "a")
		look(t, lock)
		return lock, rec
	}
	try := func(t *testing.T, lock resourcelock.Interface) error {
		look(t, lock)
		return lock.Update(t.Context(), ler("a", 10))
	}
	refused := func(t *testing.T, lock resourcelock.Interface) {
		t.Helper()
		if err := try(t, lock); !apierrors.IsConflict(err) || !errors.Is(err, backend.ErrHeld) {
			t.Fatalf("not refused: %v", err)
		}
	}
	granted := func(t *testing.T, lock resourcelock.Interface) {
		t.Helper()
		if err := try(t, lock); err != nil || token(lock) == 0 {
			t.Fatalf("refused: %v", err)
		}
	}
	for what, f := range map[string]func(t *testing.T){
		"silence": func(t *testing.T) {
			lock, _ := begin(t, neverExpires()(), nil)
			if r := look(t, lock); r.LeaseDurationSeconds != 15 {
				t.Errorf("%+v", r)
			}
			time.Sleep(hold + hold/100 - 1)
			refused(t, lock)
			time.Sleep(time.Nanosecond)
			granted(t, lock)
		},
		"renewals within one second": func(t *testing.T) {
			s := neverExpires()()
			lock, rec := begin(t, s, nil)
			time.Sleep(500 * time.Millisecond)
			must(s.Renew(t.Context(), rec))(t)
			refused(t, lock) // and sees it
			time.Sleep(hold)
			refused(t, lock)
			time.Sleep(hold / 100)
			granted(t, lock)
		},
		"edits": func(t *testing.T) {
			lock, _ := begin(t, edited{neverExpires()(), new(int)}, nil)
			for range 14 {
				time.Sleep(time.Second)
				refused(t, lock)
			}
			time.Sleep(time.Second + hold/100)
			granted(t, lock)
		},
		"a part of a second": func(t *testing.T) { // is not cut off
			s := neverExpires()()
			must(s.Acquire(t.Context(), backend.Claim{Name: name, Holder: "x", Duration: 1500 * time.Millisecond}))(t)
			if r := look(t, kubernetes.ResourceLock(s, name, "a")); r.LeaseDurationSeconds != 2 {
				t.Errorf("%+v", r)
			}
		},
		"no duration": func(t *testing.T) { // then it is our own
			lock, _ := begin(t, neverExpires()(), func(r *backend.Record) { r.Duration = 0 })
			time.Sleep(10 * time.Second)
			refused(t, lock)
			time.Sleep(100 * time.Millisecond)
			granted(t, lock)
		},
		"no renewal time": func(t *testing.T) { // then any change of the record counts
			s := neverExpires()()
			lock, rec := begin(t, s, func(r *backend.Record) { r.RenewedAt = time.Time{} })
			time.Sleep(hold)
			must(s.Renew(t.Context(), rec))(t)
			time.Sleep(hold)
			refused(t, lock)
			time.Sleep(hold + hold/100)
			granted(t, lock)
		},
		"renewed after the look": func(t *testing.T) {
			s := neverExpires()()
			lock, rec := begin(t, s, nil)
			time.Sleep(2 * hold)
			look(t, lock)
			must(s.Renew(t.Context(), rec))(t)
			if err := lock.Update(t.Context(), ler("a", 10)); !apierrors.IsConflict(err) {
				t.Fatalf("not refused: %v", err)
			}
		},
		"renewals that do not show": func(t *testing.T) {
			s := quiet{memory.New()}
			lock, rec := begin(t, s, nil)
			for range 100 {
				time.Sleep(hold - 1)
				must(s.Renew(t.Context(), rec))(t)
				refused(t, lock)
			}
			time.Sleep(hold)
			granted(t, lock)
		},
		"a look counts once": func(t *testing.T) {
			lock, _ := begin(t, neverExpires()(), nil)
			time.Sleep(hold)
			refused(t, lock)
			time.Sleep(hold)
			if err := lock.Update(t.Context(), ler("a", 10)); !apierrors.IsConflict(err) || token(lock) != 0 {
				t.Fatalf("not refused: %v", err)
			}
		},
	} {
		t.Run(what, func(t *testing.T) { synctest.Test(t, f) })
	}
}

// TestRaw: what the elector compares changes with every renewal that shows, not
// with an edit, and always where renewals do not show.
func TestRaw(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		raw := func(lock resourcelock.Interface) string {
			_, b, err := lock.Get(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return string(b)
		}
		for what, tt := range map[string]struct {
			store backend.Store
			idle  bool // without any renewal it is news
		}{
			"visible": {store: memory.New()},
			"quiet":   {store: quiet{memory.New()}, idle: true},
		} {
			s := edited{tt.store, new(int)}
			rec := must(s.Acquire(t.Context(), backend.Claim{Name: name, Holder: "x", Duration: time.Second}))(t)
			lock := kubernetes.ResourceLock(s, name, "a")
			first := raw(lock)
			time.Sleep(time.Nanosecond)
			if second := raw(lock); (second != first) != tt.idle {
				t.Errorf("%s: nothing renewed: %s, then %s", what, first, second)
			}
			first = raw(lock)
			must(s.Renew(t.Context(), rec))(t)
			if second := raw(lock); second == first {
				t.Errorf("%s: renewed: %s", what, first)
			}
		}
	})
}

// TestLostReplies: a write that was applied without the elector's knowledge
// costs nobody more than the next try.
func TestLostReplies(t *testing.T) {
	inEachStore(t, func(t *testing.T, open func() backend.Store) {
		ctx, s := t.Context(), open()
		faults := conformance.NewFaults(open())
		lock := kubernetes.ResourceLock(faults.Store(), name, "a")

		faults.Next(conformance.VerbAcquire, conformance.LoseReply(nil), conformance.LoseReply(nil))
		for range 2 {
			if err := lock.Create(ctx, ler("a", 15)); err == nil || token(lock) != 0 {
				t.Errorf("%v, and token %d", err, token(lock))
			}
		}
		was := must(s.Get(ctx, name))(t).Token
		a := run(t, lock, ordinary, nil)
		time.Sleep(time.Second)
		terms, _, of, _ := a.state()
		if terms != 1 || of <= was {
			t.Errorf("%d starts, with token %d; the lost reply granted %d", terms, of, was)
		}

		faults.Next(conformance.VerbRenew, conformance.LoseReply(nil))
		time.Sleep(time.Minute)
		if terms, stops, _, _ := a.state(); terms != 1 || stops != 0 || a.lock.Token() != of {
			t.Errorf("a lost renewal: %d starts, %d stops, token %d after %d", terms, stops, a.lock.Token(), of)
		}

		// A renewal that was not applied at all is no loss either.
		faults.Next(conformance.VerbRenew, conformance.Fail(nil))
		time.Sleep(time.Minute)
		if terms, stops, _, _ := a.state(); terms != 1 || stops != 0 || a.lock.Token() != of {
			t.Errorf("a failed renewal: %d starts, %d stops, token %d after %d", terms, stops, a.lock.Token(), of)
		}

		faults.Next(conformance.VerbRelease, conformance.LoseReply(nil))
		a.cancel()
		<-a.done
		if rec, err := s.Get(ctx, name); !errors.Is(err, backend.ErrNotFound) {
			t.Errorf("%+v, %v", rec, err)
		}
	})
}

// TestLateRelease: what was released with an unknown outcome is not renewed but
// claimed anew, so that the release may still arrive.
func TestLateRelease(t *testing.T) {
	inEachStore(t, func(t *testing.T, open func() backend.Store) {
		ctx := t.Context()
		faults := conformance.NewFaults(open())
		lock := kubernetes.ResourceLock(faults.Store(), name, "a")
		if err := lock.Create(ctx, ler("a", 15)); err != nil {
			t.Fatal(err)
		}
		was, arrives := token(lock), make(chan struct{})
		faults.Next(conformance.VerbRelease, conformance.Late(arrives, nil))
		if err := lock.Update(ctx, ler("", 1)); !errors.Is(err, conformance.ErrInjected) || token(lock) != 0 {
			t.Errorf("%v, and token %d", err, token(lock))
		}
		look(t, lock)
		if err := lock.Update(ctx, ler("a", 15)); err != nil || token(lock) <= was {
			t.Errorf("%v, and token %d after %d", err, token(lock), was)
		}
		close(arrives)
		synctest.Wait()
		if err := lock.Update(ctx, ler("a", 15)); err != nil {
			t.Errorf("the old release ended the new tenure: %v", err)
		}
	})
}

// TestRecordDeletedUnderLeader: the lock of a leader renews, whatever method it
// is that the elector calls.
func TestRecordDeletedUnderLeader(t *testing.T) {
	inEachStore(t, func(t *testing.T, open func() backend.Store) {
		ctx, s := t.Context(), open()
		lock := kubernetes.ResourceLock(s, name, "a")
		if err := lock.Create(ctx, ler("a", 15)); err != nil {
			t.Fatal(err)
		}
		was := token(lock)
		if err := lock.Create(ctx, ler("a", 15)); err != nil || token(lock) != was {
			t.Errorf("%v, and token %d after %d", err, token(lock), was)
		}
		if err := s.Release(ctx, must(s.Get(ctx, name))(t)); err != nil {
			t.Fatal(err)
		}
		if _, _, err := lock.Get(ctx); !apierrors.IsNotFound(err) {
			t.Errorf("%v", err)
		}
		if err := lock.Create(ctx, ler("a", 15)); !errors.Is(err, backend.ErrLost) || token(lock) != 0 {
			t.Errorf("the loss was not told: %v, and token %d", err, token(lock))
		}
		if err := lock.Create(ctx, ler("a", 15)); err != nil || token(lock) <= was {
			t.Errorf("%v, and token %d after %d", err, token(lock), was)
		}
	})
}

// TestRefusals: each answer is the one that the elector, or a person, needs.
func TestRefusals(t *testing.T) {
	ctx := t.Context()
	store := memory.New()
	faults := conformance.NewFaults(store.Client())
	lock := kubernetes.ResourceLock(faults.Store(), name, "a")
	own := errors.New("own")
	for what, tt := range map[string]struct {
		call func() error
		want func(error) bool
		says string
	}{
		"nothing there":     {func() error { _, _, err := lock.Get(ctx); return err }, apierrors.IsNotFound, name},
		"nothing there, is": {func() error { _, _, err := lock.Get(ctx); return err }, is(backend.ErrNotFound), name},
		"a failed Get": {func() error {
			faults.Next(conformance.VerbGet, conformance.Fail(own))
			_, _, err := lock.Get(ctx)
			return err
		}, func(err error) bool { return err == own }, ""},
		"a failed Create": {func() error {
			faults.Next(conformance.VerbAcquire, conformance.Fail(own))
			return lock.Create(ctx, ler("a", 15))
		}, func(err error) bool { return err == own }, ""},
		"Update without Get": {func() error { return lock.Update(ctx, ler("a", 15)) }, apierrors.IsConflict, "no tenure"},
		"Create for another": {func() error { return lock.Create(ctx, ler("b", 15)) }, is(backend.ErrInvalid), `"b"`},
		"Create for nobody":  {func() error { return lock.Create(ctx, ler("", 15)) }, is(backend.ErrInvalid), "act for"},
		"Update for another": {func() error { return lock.Update(ctx, ler("b", 15)) }, is(backend.ErrInvalid), `"b"`},
		"half a second":      {func() error { return lock.Create(ctx, ler("a", 0)) }, is(backend.ErrInvalid), "must be positive"},
		"too short": {func() error {
			return kubernetes.ResourceLock(minimum{store}, name, "a").Create(ctx, ler("a", 1))
		}, is(backend.ErrInvalid), "at least 2s"},
		"too long": {func() error { return lock.Create(ctx, ler("a", math.MaxInt)) }, is(backend.ErrInvalid), "a year"},
		"held": {func() error {
			rec := must(store.Acquire(ctx, backend.Claim{Name: name, Holder: "x", Duration: time.Minute}))(t)
			defer store.Release(ctx, rec)
			return lock.Create(ctx, ler("a", 15))
		}, apierrors.IsAlreadyExists, `held by "x"`},
		"no time to wait": {func() error {
			ended, cancel := context.WithCancel(ctx)
			hung := make(chan struct{})
			faults.Next(conformance.VerbGet, func(ctx context.Context, call func(context.Context) (backend.Record, error)) (backend.Record, error) {
				close(hung)
				return conformance.Hang()(ctx, call)
			})
			done := make(chan struct{})
			other, end := context.WithCancel(ctx)
			go func() {
				defer close(done)
				_, _, _ = lock.Get(other)
			}()
			<-hung
			cancel()
			err := lock.Update(ended, ler("a", 15))
			_ = token(lock) // does not wait
			end()
			<-done
			return err
		}, is(context.Canceled), "not begun"},
	} {
		t.Run(what, func(t *testing.T) {
			err := tt.call()
			if err == nil || !tt.want(err) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%v", err)
			}
			if token(lock) != 0 {
				t.Errorf("token %d", token(lock))
			}
		})
	}
	if got := lock.Describe(); got != name {
		t.Errorf("Describe: %q", got)
	}
	shared := must(backend.Open(ctx, "memory:team-a"))(t)
	defer shared.Close()
	if got := kubernetes.ResourceLock(shared, name, "a").Describe(); got != "team-a/"+name {
		t.Errorf("Describe: %q", got)
	}
	if got := lock.Identity(); got != "a" {
		t.Errorf("Identity: %q", got)
	}
}

func is(target error) func(error) bool { return func(err error) bool { return errors.Is(err, target) } }

// minimum is a store that grants nothing below 2 s.
type minimum struct{ backend.Store }

func (s minimum) Traits() backend.Traits {
	t := s.Store.Traits()
	t.MinDuration = 2 * time.Second
	return t
}

func (s minimum) Acquire(ctx context.Context, claim backend.Claim) (backend.Record, error) {
	if _, err := backend.CheckClaim(claim, s.Traits()); err != nil {
		return backend.Record{}, err
	}
	return s.Store.Acquire(ctx, claim)
}

// TestTokenEndsInTime: the token is gone before the store may let another in,
// counted from when the renewal was sent.
func TestTokenEndsInTime(t *testing.T) {
	inEachStore(t, func(t *testing.T, open func() backend.Store) {
		ctx := t.Context()
		faults := conformance.NewFaults(open())
		lock := kubernetes.ResourceLock(faults.Store(), name, "a")
		if err := lock.Create(ctx, ler("a", 10)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(9 * time.Second)
		faults.Next(conformance.VerbRenew, conformance.DelayReply(4*time.Second))
		if err := lock.Update(ctx, ler("a", 10)); err != nil {
			t.Fatal(err)
		}
		const left = 10*time.Second - 4*time.Second - 100*time.Millisecond - 2*time.Millisecond
		time.Sleep(left - 1)
		if token(lock) == 0 {
			t.Error("the token is gone too early")
		}
		time.Sleep(time.Nanosecond)
		if token(lock) != 0 {
			t.Error("the token outlives the certain part of the tenure")
		}
	})
}

// TestConcurrentUse is for the race detector; one tenure comes out of it.
func TestConcurrentUse(t *testing.T) {
	ctx, s := t.Context(), memory.New()
	lock := kubernetes.ResourceLock(s, name, "a")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 100 {
				_, _, _ = lock.Get(ctx)
				_ = lock.Create(ctx, ler("a", 15))
				_ = lock.Update(ctx, ler("a", 15))
				_ = lock.Describe() + lock.Identity()
				_ = token(lock)
				lock.RecordEvent("stopped leading")
			}
		})
	}
	wg.Wait()
	if rec := must(s.Get(ctx, name))(t); rec.Token != 1 || token(lock) != 1 {
		t.Errorf("the store has token %d, the lock %d", rec.Token, token(lock))
	}
}

// TestFileStore: two electors in one folder, on the real clock.
func TestFileStore(t *testing.T) {
	dir := t.TempDir()
	brisk := leaderelection.LeaderElectionConfig{
		LeaseDuration: 60 * time.Second, RenewDeadline: 30 * time.Second, RetryPeriod: 20 * time.Millisecond, ReleaseOnCancel: true,
	}
	leading := make(chan *candidate, 10)
	for _, id := range []string{"a", "b"} {
		s := must(file.New(dir))(t)
		t.Cleanup(func() { _ = s.Close() }) // after the elector's
		run(t, kubernetes.ResourceLock(s, name, id), brisk, func(c *candidate) { leading <- c })
	}
	var last uint64
	for range 2 {
		c := next(t, leading) // no expiry could have helped
		if _, _, token, _ := c.state(); token <= last {
			t.Errorf("token %d after %d", token, last)
		} else {
			last = token
		}
		if r := look(t, c.lock); r.HolderIdentity != c.id {
			t.Errorf("%+v, want %s", r, c.id)
		}
		if len(leading) > 0 {
			t.Errorf("%s leads beside %s", (<-leading).id, c.id)
		}
		c.cancel()
		<-c.done
	}
}
