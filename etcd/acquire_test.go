package etcd

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/leasehold/leasehold/backend"
)

func over(c backend.Claim, rec backend.Record) backend.Claim {
	c.Over = rec.Revision
	return c
}

// tenures is how often an alive key was written.
func (f *fake) tenures() (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range f.history {
		if string(e.Kv.Key) == alive && !isDelete(e) {
			n++
		}
	}
	return n
}

// unknown fails the test unless err leaves the outcome of a write open.
func unknown(t *testing.T, what string, err error) {
	t.Helper()
	if err == nil || backend.Definite(err) {
		t.Errorf("%s: %v, want an error that leaves it open", what, err)
	}
}

// lasts fails the test unless the etcd lease that the alive key is bound to lasts
// for the record's duration since the call began.
func (f *fake) lasts(t *testing.T, rec backend.Record, began time.Time) {
	t.Helper()
	kv := f.now()[alive]
	if kv == nil {
		t.Fatal("there is no alive key")
	}
	if until := time.Now().Add(f.left(kv.Lease)); until.Before(began.Add(rec.Duration)) {
		t.Errorf("the etcd lease ends %v after the call began, before the %v that were granted", until.Sub(began), rec.Duration)
	}
}

// TestRequests counts what each call costs where nothing is in its way.
func TestRequests(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, f *fake) {
		a, b := f.store(), f.store()
		ctx := t.Context()
		sent := func(what, want string) {
			t.Helper()
			if got := f.requests(); got != want {
				t.Errorf("%s sends %q, want %q", what, got, want)
			}
		}
		rec := acquired(t, a, claim("alice", "a1"))
		sent("a free acquire", "Grant Txn")
		for range 2 {
			var err error
			if rec, err = a.Renew(ctx, rec); err != nil {
				t.Fatal(err)
			}
			sent("a renewal", "KeepAlive Range")
		}
		if seen, err := b.Get(ctx, "report"); err != nil || seen.Token != rec.Token {
			t.Errorf("%+v, %v", seen, err)
		}
		sent("a get", "Range TimeToLive")
		for _, want := range []string{"Grant Txn", "Range", "Range"} {
			if _, err := b.Acquire(ctx, claim("bob", "b1")); !errors.Is(err, backend.ErrHeld) {
				t.Error(err)
			}
			sent("a refused acquire", want)
		}
		if err := a.Release(ctx, rec); err != nil {
			t.Error(err)
		}
		sent("a release", "Txn") // its etcd lease is a spare now
		if _, err := b.Get(ctx, "report"); !errors.Is(err, backend.ErrNotFound) {
			t.Error(err)
		}
		sent("a get of nothing", "Range")
		rec = acquired(t, b, claim("bob", "b2"))
		sent("an acquire where it was held when last seen", "Range KeepAlive Txn")
		if err := b.Release(ctx, rec); err != nil {
			t.Error(err)
		}
		f.requests()
		rec = acquired(t, b, claim("bob", "b3"))
		sent("an acquire after one's own release", "KeepAlive Txn")
		if err := a.Release(ctx, rec); err != nil {
			t.Error(err)
		}
		sent("a release through another store", "Txn Revoke")
		rec = acquired(t, b, claim("bob", "b3"))
		f.requests()
		rec = acquired(t, b, over(claim("bob", "b4"), rec))
		sent("an acquire over", "Range Grant Txn")
		time.Sleep(11 * time.Second)
		if seen, err := a.Get(ctx, "report"); err != nil || !seen.Expired || seen.Remaining != 0 {
			t.Errorf("%+v, %v", seen, err)
		}
		sent("a get of what has expired", "Range")
		if f.lent() != 0 {
			t.Errorf("%d etcd leases are left", f.lent())
		}
	})
}

// TestRefused: who is refused gets told by whom, and what was lent for it runs out.
func TestRefused(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, f *fake) {
		rec := acquired(t, f.store(), claim("alice", "a1"))
		_, err := f.store().Acquire(t.Context(), claim("bob", "b1"))
		var held *backend.HeldError
		if !errors.As(err, &held) || held.Record.Holder != "alice" || held.Record.Token != rec.Token || held.Record.Revision != rec.Revision {
			t.Errorf("refused with %+v, %v", held, err)
		}
		if f.lent() != 2 || f.tenures() != 1 {
			t.Errorf("%d etcd leases, %d tenures, want bob's spare and one tenure", f.lent(), f.tenures())
		}
		// The same holder with another attempt is refused like anybody.
		if _, err := f.store().Acquire(t.Context(), claim("alice", "a2")); !errors.Is(err, backend.ErrHeld) {
			t.Error(err)
		}
		// One without an attempt is never the same.
		c := claim("carol", "")
		c.Name = "other"
		acquired(t, f.store(), c)
		if _, err := f.store().Acquire(t.Context(), c); !errors.Is(err, backend.ErrHeld) {
			t.Error(err)
		}
		// And another holder's attempt is not mine.
		if _, err := f.store().Acquire(t.Context(), claim("bob", "a1")); !errors.Is(err, backend.ErrHeld) {
			t.Error(err)
		}
		time.Sleep(11 * time.Second)
		if f.lent() != 0 {
			t.Errorf("%d etcd leases are left", f.lent())
		}
	})
}

// TestAcquireReplyLost: the Txn was applied, its answer has not come. Sent again, it
// finds its own attempt.
func TestAcquireReplyLost(t *testing.T) {
	for name, lose := range map[string]func(context.Context) error{
		"broken": func(context.Context) error { return lost },
		"silent": silent,
		"timed out, as a member says": func(context.Context) error {
			return rpctypes.ErrGRPCTimeout
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, 2, func(t *testing.T, f *fake) {
				s := f.store()
				f.hooks(nil, func(ctx context.Context, c call, _ any) error {
					if c.what == "Txn" && c.n == 1 {
						return lose(ctx)
					}
					return nil
				})
				began := time.Now()
				rec := acquired(t, s, claim("alice", "a1"))
				if got := f.requests(); got != "Grant Txn Txn KeepAlive Range" {
					t.Errorf("requests: %s", got)
				}
				if kv := f.now()[alive]; kv == nil || uint64(kv.ModRevision) != rec.Token || f.tenures() != 1 || rec.Transitions != 0 || f.lent() != 1 {
					t.Errorf("granted %+v, alive is %v, %d tenures, %d etcd leases", rec, kv, f.tenures(), f.lent())
				}
				f.lasts(t, rec, began)
				if _, err := s.Renew(t.Context(), rec); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// TestAcquireReplyLostNoAttempt: nothing tells it from another, so it is not sent
// again, and whether it was granted stays open. The etcd lease is left to run out.
func TestAcquireReplyLostNoAttempt(t *testing.T) {
	inBubble(t, 2, func(t *testing.T, f *fake) {
		s := f.store()
		f.hooks(nil, func(ctx context.Context, c call, _ any) error {
			if c.what == "Txn" && c.n == 1 {
				return lost
			}
			return nil
		})
		_, err := s.Acquire(t.Context(), claim("alice", ""))
		unknown(t, "a lost answer", err)
		if got := f.requests(); got != "Grant Txn" {
			t.Errorf("requests: %s", got)
		}
		f.hooks(nil, nil)
		if _, err := f.store().Acquire(t.Context(), claim("bob", "b1")); !errors.Is(err, backend.ErrHeld) {
			t.Errorf("it was granted, but bob gets %v", err)
		}
		time.Sleep(11 * time.Second)
		acquired(t, f.store(), claim("bob", "b2"))
	})
}

// TestAcquireLate: a Txn hangs at one member, is granted through another, and
// arrives in the end.
func TestAcquireLate(t *testing.T) {
	for _, released := range []bool{false, true} {
		for _, found := range []string{"nothing", "an expired record"} {
			t.Run(fmt.Sprintf("released=%v over %s", released, found), func(t *testing.T) {
				inBubble(t, 2, func(t *testing.T, f *fake) {
					s := f.store()
					if found != "nothing" {
						acquired(t, f.store(), claim("bob", "b1"))
						if _, err := s.Acquire(t.Context(), claim("alice", "a0")); err == nil {
							t.Fatal("granted") // it looks first from here on
						}
						time.Sleep(11 * time.Second)
					}
					arrive := make(chan struct{})
					f.hooks(func(ctx context.Context, c call) error {
						if c.what == "Txn" && c.n == 1 {
							<-arrive // whatever the client has decided
						}
						return nil
					}, nil)
					began := time.Now()
					rec := acquired(t, s, claim("alice", "a1"))
					f.lasts(t, rec, began)
					if released {
						if err := s.Release(t.Context(), rec); err != nil {
							t.Fatal(err)
						}
					}
					before := f.revision()
					close(arrive)
					synctest.Wait()
					if f.revision() != before {
						t.Errorf("the late one was applied: %v", f.now())
					}
					if _, err := s.Renew(t.Context(), rec); released != errors.Is(err, backend.ErrLost) || !released && err != nil {
						t.Error(err)
					}
					if released && len(f.now()) != 0 {
						t.Errorf("left: %v", f.now())
					}
				})
			})
		}
	}
}

// TestGrantReplyLost: the etcd lease was granted, the answer is lost. It is asked
// for again by its number, and is the one that is used.
func TestGrantReplyLost(t *testing.T) {
	for name, lose := range map[string]func(context.Context) error{
		"broken": func(context.Context) error { return lost },
		"silent": silent,
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, 2, func(t *testing.T, f *fake) {
				s := f.store()
				first := func(ctx context.Context, c call, _ any) error {
					if c.what == "Grant" && c.n == 1 {
						return lose(ctx)
					}
					return nil
				}
				f.hooks(nil, first)
				began := time.Now()
				rec := acquired(t, s, claim("alice", "a1"))
				if got := f.requests(); got != "Grant Grant KeepAlive Txn" || f.lent() != 1 {
					t.Errorf("requests: %s; %d etcd leases", got, f.lent())
				}
				f.lasts(t, rec, began)
				if err := f.store().Release(t.Context(), rec); err != nil || f.lent() != 0 {
					t.Errorf("%v, %d etcd leases are left", err, f.lent())
				}
				// Also a TTL that was raised is told by it.
				f.hooks(nil, first)
				f.least = 12
				if _, err := s.Acquire(t.Context(), claim("alice", "a2")); !errors.Is(err, backend.ErrInvalid) || f.lent() != 0 || f.tenures() != 1 {
					t.Errorf("a TTL of 12 s for 10 s: %v, %d etcd leases, %d tenures", err, f.lent(), f.tenures())
				}
			})
		})
	}
}

// TestTTL: what etcd makes of a duration is neither more nor less than was asked.
func TestTTL(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, f *fake) {
		s := f.store()
		c := claim("alice", "a1")
		c.Duration = 3 * time.Second
		f.least = 5
		if _, err := s.Acquire(t.Context(), c); !errors.Is(err, backend.ErrInvalid) || f.requests() != "Grant Revoke" || f.lent() != 0 {
			t.Errorf("a TTL that is raised: %v, %d etcd leases", err, f.lent())
		}
		if got := s.Traits().MinDuration; got != 5*time.Second {
			t.Errorf("the least duration is %v now", got)
		}
		if _, err := s.Acquire(t.Context(), c); !errors.Is(err, backend.ErrInvalid) || f.requests() != "" {
			t.Errorf("the second time: %v", err)
		}
		c.Duration = 4100 * time.Millisecond
		if _, err := s.Acquire(t.Context(), c); !errors.Is(err, backend.ErrInvalid) {
			t.Error(err)
		}
		f.requests()
		f.most = 7
		if _, err := s.Acquire(t.Context(), claim("alice", "a1")); !errors.Is(err, backend.ErrInvalid) || f.requests() != "Grant Revoke" || f.lent() != 0 {
			t.Errorf("a TTL that is cut: %v, %d etcd leases", err, f.lent())
		}
		if got := s.Traits().MinDuration; got != 5*time.Second {
			t.Errorf("a cut TTL teaches a least duration of %v", got)
		}
		c.Duration = 5500 * time.Millisecond
		if rec := acquired(t, s, c); rec.Duration != 6*time.Second || rec.Remaining != rec.Duration {
			t.Errorf("%v are granted for %v, %v remain", rec.Duration, c.Duration, rec.Remaining)
		}
		if f.lent() != 1 || f.tenures() != 1 {
			t.Errorf("%d etcd leases, %d tenures", f.lent(), f.tenures())
		}
	})
}

// TestAcquireLasts: however slow it was, what is granted lasts since the call began.
func TestAcquireLasts(t *testing.T) {
	slow := func(what string, n int) func(context.Context, call) error {
		return func(ctx context.Context, c call) error {
			if c.what == what && (n == 0 || c.n == n) {
				time.Sleep(3 * time.Second)
			}
			return nil
		}
	}
	for name, hooks := range map[string]struct {
		before func(context.Context, call) error
		after  func(context.Context, call, any) error
	}{
		"at once":    {},
		"slow grant": {before: slow("Grant", 0)},
		"slow answer to the grant": {after: func(ctx context.Context, c call, _ any) error {
			return slow("Grant", 0)(ctx, c)
		}},
		"slow Txn": {before: slow("Txn", 0)},
		"refused first": {before: func(ctx context.Context, c call) error {
			return slow("Txn", 2)(ctx, c)
		}},
		"grant lost": {after: func(ctx context.Context, c call, _ any) error {
			if c.what == "Grant" && c.n == 1 {
				return silent(ctx)
			}
			return nil
		}},
		"Txn lost": {after: func(ctx context.Context, c call, _ any) error {
			if c.what == "Txn" && c.n == 1 {
				return silent(ctx)
			}
			return nil
		}},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, 2, func(t *testing.T, f *fake) {
				if name == "refused first" {
					acquired(t, f.store(), claim("bob", "b1"))
					time.Sleep(11 * time.Second)
				}
				s := f.store()
				f.hooks(hooks.before, hooks.after)
				began := time.Now()
				rec := acquired(t, s, claim("alice", "a1"))
				f.lasts(t, rec, began)
				granted := f.tenures()
				// A second arrival of the attempt begins the time anew.
				f.hooks(nil, nil)
				time.Sleep(rec.Duration/2 - time.Since(began)/2)
				if f.now()[alive] == nil {
					t.Fatal("too late for the test")
				}
				for _, s := range []*Store{s, f.store()} {
					began = time.Now()
					second := acquired(t, s, claim("alice", "a1"))
					f.lasts(t, second, began)
					if second.Token != rec.Token || second.Revision != rec.Revision || second.Remaining != rec.Duration || f.tenures() != granted {
						t.Errorf("the same attempt gets %+v, not %+v; %d tenures", second, rec, f.tenures())
					}
					time.Sleep(time.Second)
				}
			})
		})
	}
}

// TestAcquireDefinite: a Txn that was refused for good was not applied, and leaves
// nothing.
func TestAcquireDefinite(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, f *fake) {
		f.hooks(func(_ context.Context, c call) error {
			if c.what == "Txn" {
				return rpctypes.ErrGRPCPermissionDenied
			}
			return nil
		}, nil)
		_, err := f.store().Acquire(t.Context(), claim("alice", "a1"))
		if !errors.Is(err, backend.ErrDenied) {
			t.Error(err)
		}
		if got := len(f.now()); got != 0 {
			t.Errorf("%d keys", got)
		}
	})
}

// TestAcquireDefiniteLeavesLittle: whoever may not write and tries again and again
// must not heap up etcd leases.
func TestAcquireDefiniteLeavesLittle(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, f *fake) {
		f.hooks(func(_ context.Context, c call) error {
			if c.what == "Txn" {
				return rpctypes.ErrGRPCPermissionDenied
			}
			return nil
		}, nil)
		s := f.store()
		for range 2 * mostSpares {
			if _, err := s.Acquire(t.Context(), claim("alice", "a1")); !errors.Is(err, backend.ErrDenied) {
				t.Error(err)
			}
		}
		if got := f.lent(); got > mostSpares {
			t.Errorf("%d etcd leases are left", got)
		}
		time.Sleep(11 * time.Second)
		if got := f.lent(); got != 0 {
			t.Errorf("%d etcd leases do not run out", got)
		}
	})
}

// TestSpares: one is used again where it fits, from the begin of its time, and once.
func TestSpares(t *testing.T) {
	inBubble(t, 2, func(t *testing.T, f *fake) {
		s := f.store()
		held := acquired(t, f.store(), claim("alice", "a1"))
		if _, err := s.Acquire(t.Context(), claim("bob", "b1")); !errors.Is(err, backend.ErrHeld) {
			t.Fatal(err)
		}
		if err := f.store().Release(t.Context(), held); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second)
		f.requests()
		began := time.Now()
		rec := acquired(t, s, claim("bob", "b2"))
		f.lasts(t, rec, began)
		if got := f.requests(); got != "Range KeepAlive Txn" {
			t.Errorf("requests: %s", got)
		}
		// It is bob's now, and nobody else's.
		c := claim("carol", "c1")
		c.Name = "other"
		held = acquired(t, f.store(), c)
		if _, err := s.Acquire(t.Context(), c); err != nil { // so that the name is noted
			t.Fatal(err)
		}
		if err := f.store().Release(t.Context(), held); err != nil {
			t.Fatal(err)
		}
		c.Attempt = "c2"
		if other := acquired(t, s, c); leaseOf(t, other) == leaseOf(t, rec) {
			t.Error("two tenures have one etcd lease")
		}
		// One of another duration does not fit, one that has run out is no obstacle.
		if _, err := s.Acquire(t.Context(), claim("dora", "d1")); !errors.Is(err, backend.ErrHeld) {
			t.Fatal(err)
		}
		if err := s.Release(t.Context(), rec); err != nil {
			t.Fatal(err)
		}
		s.note("report", false)
		d := claim("dora", "d2")
		d.Duration = 20 * time.Second
		began = time.Now()
		rec = acquired(t, s, d)
		f.lasts(t, rec, began)
		if err := s.Release(t.Context(), rec); err != nil {
			t.Fatal(err)
		}
		for i, after := range []time.Duration{9900 * time.Millisecond, 15 * time.Second} {
			time.Sleep(after)
			s.note("report", false)
			began = time.Now()
			rec = acquired(t, s, claim("dora", fmt.Sprint("d", 3+i)))
			f.lasts(t, rec, began)
			if err := s.Release(t.Context(), rec); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// TestSparesBounded: no more than some are kept, and those that have run out make
// room.
func TestSparesBounded(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, f *fake) {
		p := &f.store().spares
		for id := range clientv3.LeaseID(2 * mostSpares) {
			if got, want := p.put(id+1, 10*time.Second), id < mostSpares; got != want {
				t.Errorf("the %d. is kept: %v", id+1, got)
			}
		}
		time.Sleep(11 * time.Second)
		if !p.put(99, 10*time.Second) {
			t.Error("those that have run out leave no room")
		}
		if got := p.take(20 * time.Second); got != 0 {
			t.Errorf("%d has another duration", got)
		}
		if first, second := p.take(10*time.Second), p.take(10*time.Second); first != 99 || second != 0 {
			t.Errorf("taken: %d, %d", first, second)
		}
	})
}

// TestSpareLate: an attempt hangs at one member and is refused through another. What
// was lent for it must be of no use to it when it arrives in the end, and nobody may
// keep it alive till then.
func TestSpareLate(t *testing.T) {
	inBubble(t, 2, func(t *testing.T, f *fake) {
		s, other := f.store(), f.store()
		arrive := make(chan struct{})
		f.hooks(func(ctx context.Context, c call) error {
			switch {
			case c.what == "Txn" && c.n == 1:
				time.AfterFunc(time.Second, func() { acquired(t, other, claim("bob", "b1")) })
				<-arrive
			}
			return nil
		}, nil)
		if _, err := s.Acquire(t.Context(), claim("alice", "a1")); !errors.Is(err, backend.ErrHeld) {
			t.Fatal(err)
		}
		if err := other.Release(t.Context(), must(t, f, "report")); err != nil {
			t.Fatal(err)
		}
		// The next one of the same store wants another name, that it has seen held.
		c := claim("alice", "a2")
		c.Name = "second"
		s.note(c.Name, false)
		rec := acquired(t, s, c)
		close(arrive)
		synctest.Wait()
		for range 4 {
			time.Sleep(5 * time.Second)
			var err error
			if rec, err = s.Renew(t.Context(), rec); err != nil {
				t.Fatal(err)
			}
		}
		if kv := f.now()[alive]; kv != nil {
			t.Errorf("nobody has been granted %q, and it is held for as long as another name: %s", "report", kv.Value)
		}
	})
}

// TestUnknownThenDenied: what the second arrival is refused for says nothing about
// the first, which was applied.
func TestUnknownThenDenied(t *testing.T) {
	inBubble(t, 2, func(t *testing.T, f *fake) {
		f.hooks(func(_ context.Context, c call) error {
			if c.what == "Txn" && c.n > 1 {
				return rpctypes.ErrGRPCPermissionDenied
			}
			return nil
		}, func(_ context.Context, c call, _ any) error {
			if c.what == "Txn" && c.n == 1 {
				return lost
			}
			return nil
		})
		_, err := f.store().Acquire(t.Context(), claim("alice", "a1"))
		if f.now()[alive] == nil {
			t.Fatal("it was not granted")
		}
		unknown(t, "granted, and refused when it was sent again", err)
	})
}

// TestUnknownThenClosed: that the store was closed in between does not make a write
// that was sent undone.
func TestUnknownThenClosed(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, f *fake) {
		s := f.store()
		closing := func(_ context.Context, c call, _ any) error {
			if c.what == "Txn" {
				_ = s.Close()
				return lost
			}
			return nil
		}
		f.hooks(nil, closing)
		_, err := s.Acquire(t.Context(), claim("alice", ""))
		if f.now()[alive] == nil {
			t.Fatal("it was not granted")
		}
		unknown(t, "an acquire that was sent before Close", err)
		f.hooks(nil, nil)
		time.Sleep(11 * time.Second)
		s = f.store()
		rec := acquired(t, s, claim("alice", "a2"))
		f.hooks(nil, closing)
		err = s.Release(t.Context(), rec)
		if f.now()[alive] != nil {
			t.Fatal("it was not released")
		}
		unknown(t, "a release that was sent before Close", err)
	})
}

// TestAcquireHangs: it returns within its context, or the store's timeout.
func TestAcquireHangs(t *testing.T) {
	for _, what := range []string{"Grant", "Txn"} {
		t.Run(what, func(t *testing.T) {
			inBubble(t, 2, func(t *testing.T, f *fake) {
				f.hooks(func(ctx context.Context, c call) error {
					if c.what == what {
						return silent(ctx)
					}
					return nil
				}, nil)
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
				defer cancel()
				began := time.Now()
				_, err := f.store().Acquire(ctx, claim("alice", "a1"))
				unknown(t, what+" that hangs", err)
				if took := time.Since(began); took > 2*time.Second {
					t.Errorf("it took %v", took)
				}
				began = time.Now()
				_, err = f.store(WithRequestTimeout(4*time.Second)).Acquire(t.Context(), claim("alice", "a1"))
				unknown(t, what+" that hangs", err)
				if took := time.Since(began); took > 4*time.Second {
					t.Errorf("it took %v", took)
				}
			})
		})
	}
}

// TestFloor: the tokens of a name rise above any MinToken, over all that ends a
// tenure.
func TestFloor(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, f *fake) {
		ctx := t.Context()
		last := uint64(1_000_000)
		granted := func(what string, c backend.Claim) backend.Record {
			t.Helper()
			rec := acquired(t, f.store(), c)
			if rec.Token <= last {
				t.Errorf("%s: token %d after %d", what, rec.Token, last)
			}
			last = rec.Token
			if seen, err := f.store().Get(ctx, "report"); err != nil || seen.Token != rec.Token || seen.Revision != rec.Revision {
				t.Errorf("%s: granted %+v, Get shows %+v, %v", what, rec, seen, err)
			}
			return rec
		}
		c := claim("alice", "a1")
		c.MinToken = last
		f.requests()
		rec := granted("at first", c)

		if err := f.store().Release(ctx, rec); err != nil {
			t.Fatal(err)
		}
		if seen, err := f.store().Get(ctx, "report"); err != nil || !seen.Vacant() || seen.Expired || seen.Transitions != rec.Transitions || f.now()[alive] != nil || f.lent() != 0 {
			t.Errorf("released: %+v, %v, keys %v, %d etcd leases", seen, err, f.now(), f.lent())
		}
		rec = granted("after a release", claim("bob", "b1"))
		if rec.Transitions != 1 {
			t.Errorf("transitions: %d", rec.Transitions)
		}
		time.Sleep(11 * time.Second)
		rec = granted("after expiry", claim("alice", "a2"))
		rec = granted("over a live one", over(claim("bob", "b2"), rec))
		c = over(claim("alice", "a3"), rec)
		c.MinToken = last + 5_000_000
		last = c.MinToken
		rec = granted("a greater floor", c)
		c = over(claim("alice", "a4"), rec)
		c.MinToken = 17
		rec = granted("a smaller floor", c)
		for _, k := range []string{key, alive} {
			if r, err := decodeTenure(f.now()[k].Value); err != nil || r.Floor < 6_000_000 {
				t.Errorf("%q holds %s, %v", k, f.now()[k].Value, err)
			}
		}
		// Somebody has put a greater one into the record.
		value := `{"version":1,"holder":"alice","attempt":"a4","duration":"10s","floor":90000000}`
		f.set(key, value, 0)
		seen, err := f.store().Get(ctx, "report")
		if err != nil || seen.Token != rec.Token {
			t.Errorf("the tenure has token %d, %v, not %d", seen.Token, err, rec.Token)
		}
		if err := f.store().Release(ctx, rec); err != nil {
			t.Fatal(err)
		}
		last = 90_000_000
		rec = granted("the greater of two floors", claim("carol", "c1"))
		// And the record is gone, with its floor.
		f.remove(key)
		rec = granted("the floor of alive alone", over(claim("carol", "c2"), must(t, f, "report")))
		_ = rec
	})
}

func must(t *testing.T, f *fake, name string) backend.Record {
	t.Helper()
	rec, err := f.store().Get(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return rec
}

// TestFloorTooGreat: a token that could exceed the greatest is refused before
// anything is granted.
func TestFloorTooGreat(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, f *fake) {
		c := claim("alice", "a1")
		for _, c.MinToken = range []uint64{backend.MaxToken - 1, backend.MaxToken - 1<<32, backend.MaxToken, 1<<64 - 1} {
			if _, err := f.store().Acquire(t.Context(), c); !errors.Is(err, backend.ErrInvalid) {
				t.Errorf("MinToken %d: %v", c.MinToken, err)
			}
		}
		if got := f.requests(); got != "Range Range" {
			t.Errorf("requests: %s", got)
		}
		// The same with what etcd has counted, and with a floor that is found late.
		f.skip(1 << 40)
		c.MinToken = backend.MaxToken - 1<<39
		if _, err := f.store().Acquire(t.Context(), c); !errors.Is(err, backend.ErrInvalid) {
			t.Error(err)
		}
		f.set(key, fmt.Sprintf(`{"version":1,"holder":"","floor":%d}`, uint64(backend.MaxToken-5)), 0)
		f.requests()
		if _, err := f.store().Acquire(t.Context(), claim("alice", "a1")); !errors.Is(err, backend.ErrInvalid) || f.tenures() != 0 {
			t.Errorf("%v, %d tenures, requests: %s", err, f.tenures(), f.requests())
		}
		c.Name, c.MinToken = "other", backend.MaxToken-1<<42
		if rec := acquired(t, f.store(), c); rec.Token <= c.MinToken || rec.Token > backend.MaxToken {
			t.Errorf("token %d for MinToken %d", rec.Token, c.MinToken)
		}
	})
}

// TestOver: a compare-and-swap, and the error says what there is.
func TestOver(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, f *fake) {
		s := f.store()
		rec := acquired(t, s, claim("alice", "a1"))
		second := acquired(t, s, over(claim("bob", "b1"), rec))
		if second.Token <= rec.Token || second.Transitions != 1 {
			t.Errorf("%+v over %+v", second, rec)
		}
		_, err := s.Acquire(t.Context(), over(claim("carol", "c1"), rec))
		var held *backend.HeldError
		if !errors.As(err, &held) || held.Record.Holder != "bob" {
			t.Errorf("over what is not there any more: %v", err)
		}
		if err := s.Release(t.Context(), second); err != nil {
			t.Fatal(err)
		}
		_, err = s.Acquire(t.Context(), over(claim("carol", "c1"), second))
		if held = nil; !errors.As(err, &held) || held.Record.Name != "report" || held.Record.Revision != "" || held.Record.Holder != "" {
			t.Errorf("over nothing: %v", err)
		}
		// The replaced tenure's etcd lease runs out by itself, without harm.
		third := acquired(t, s, claim("dora", "d1"))
		for range 3 {
			time.Sleep(6 * time.Second)
			if third, err = s.Renew(t.Context(), third); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// TestOverCorrupt: what nobody can read is replaced only by whoever has seen it.
func TestOverCorrupt(t *testing.T) {
	for name, at := range map[string]string{"record": key, "alive": alive} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, 1, func(t *testing.T, f *fake) {
				s := f.store()
				if name == "alive" {
					acquired(t, s, claim("alice", "a1"))
				}
				f.set(at, "garbage", 0)
				_, err := s.Acquire(t.Context(), claim("bob", "b1"))
				var bad *backend.CorruptError
				if !errors.As(err, &bad) || bad.Revision == "" {
					t.Fatalf("%v", err)
				}
				if _, err := s.Acquire(t.Context(), claim("bob", "b2")); !errors.Is(err, backend.ErrCorrupt) {
					t.Error(err)
				}
				c := claim("bob", "b3")
				c.Over = "1-1-0"
				if _, err := s.Acquire(t.Context(), c); !errors.Is(err, backend.ErrCorrupt) {
					t.Error(err)
				}
				if string(f.now()[at].Value) != "garbage" {
					t.Error("it was overwritten")
				}
				c.Over = bad.Revision
				rec := acquired(t, s, c)
				if seen := must(t, f, "report"); !seen.SameTenure(rec) || seen.Expired {
					t.Errorf("%+v, want %+v", seen, rec)
				}
			})
		})
	}
}

// TestSeal: it has no etcd lease, never ends, and may be replaced over its revision
// alone.
func TestSeal(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, f *fake) {
		s := f.store()
		c := claim("mover", "m1")
		c.Duration, c.Seal, c.MinToken = backend.Forever, &backend.Seal{To: "redis", Epoch: 1, Heir: "alice", HeirDuration: 10 * time.Second}, 500
		rec := acquired(t, s, c)
		if f.lent() != 0 || rec.Seal == nil || *rec.Seal != *c.Seal || rec.Duration != backend.Forever || rec.Token <= 500 || rec.Remaining != 0 {
			t.Errorf("%+v, %d etcd leases", rec, f.lent())
		}
		time.Sleep(100 * time.Hour)
		if seen := must(t, f, "report"); !seen.SameTenure(rec) || seen.Expired || seen.Seal == nil {
			t.Errorf("%+v", seen)
		}
		if again := acquired(t, s, c); again.Token != rec.Token || f.tenures() != 1 {
			t.Errorf("the same attempt gets %+v, not %+v", again, rec)
		}
		if _, err := s.Acquire(t.Context(), claim("bob", "b1")); !errors.Is(err, backend.ErrHeld) {
			t.Error(err)
		}
		f.requests()
		if again, err := s.Renew(t.Context(), rec); err != nil || !again.SameTenure(rec) || f.requests() != "Range" {
			t.Errorf("renewed: %+v, %v", again, err)
		}
		// One key is enough to keep others out.
		for _, k := range []string{key, alive} {
			kv := f.now()[k]
			f.remove(k)
			if _, err := f.store().Acquire(t.Context(), claim("bob", "b1")); !errors.Is(err, backend.ErrHeld) {
				t.Errorf("without %q: %v", k, err)
			}
			f.set(k, string(kv.Value), 0)
		}
		if rec := acquired(t, s, over(claim("bob", "b1"), must(t, f, "report"))); rec.Seal != nil || rec.Token <= 500 {
			t.Errorf("%+v", rec)
		}
	})
}

// TestEditedSeal: a foreign edit of the record is no loss, of a seal neither.
func TestEditedSeal(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, f *fake) {
		s := f.store()
		c := claim("mover", "m1")
		c.Duration, c.Seal = backend.Forever, &backend.Seal{To: "redis", Epoch: 1}
		rec := acquired(t, s, c)
		f.set(key, string(f.now()[key].Value)+" ", 0)
		if seen := must(t, f, "report"); seen.Token != rec.Token {
			t.Errorf("its token is %d now, was %d", seen.Token, rec.Token)
		}
		if _, err := s.Renew(t.Context(), rec); err != nil {
			t.Errorf("renewed: %v", err)
		}
	})
}

// TestEditedAndExpired: likewise of a tenure that has expired since.
func TestEditedAndExpired(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, f *fake) {
		s := f.store()
		rec := acquired(t, s, claim("alice", "a1"))
		f.set(key, string(f.now()[key].Value)+" ", 0)
		time.Sleep(11 * time.Second)
		if _, err := s.Renew(t.Context(), rec); !errors.Is(err, backend.ErrLost) {
			t.Errorf("renewed: %v", err)
		}
		if err := s.Release(t.Context(), rec); err != nil || len(f.now()) != 0 {
			t.Errorf("released: %v, keys %v", err, f.now())
		}
	})
}

// TestManyWrites: a claim that loses to others again and again gives up, and leaves
// nothing.
func TestManyWrites(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, f *fake) {
		f.hooks(func(_ context.Context, c call) error {
			if c.what == "Txn" {
				f.set(key, fmt.Sprintf(`{"version":1,"holder":"","floor":%d}`, c.n), 0)
			}
			return nil
		}, nil)
		_, err := f.store().Acquire(t.Context(), claim("alice", "a1"))
		if err == nil || f.tenures() != 0 || f.lent() > 1 {
			t.Errorf("%v, %d tenures, %d etcd leases", err, f.tenures(), f.lent())
		}
		n := 0
		f.mu.Lock()
		for _, c := range f.log {
			if c.what == "Txn" {
				n++
			}
		}
		f.mu.Unlock()
		if n != mostWrites {
			t.Errorf("%d Txns", n)
		}
	})
}
