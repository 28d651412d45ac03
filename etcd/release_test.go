package etcd

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/leasehold/leasehold/backend"
)

// TestReleaseUnderneath is what somebody can do to both keys, or to the record that
// is given, before a release.
func TestReleaseUnderneath(t *testing.T) {
	nothing := func(*testing.T, *fake, *backend.Record) {}
	for name, test := range map[string]struct {
		do   func(t *testing.T, f *fake, rec *backend.Record)
		sent string
		want error
	}{
		"nothing":            {nothing, "Txn", nil},
		"no revision":        {func(_ *testing.T, _ *fake, r *backend.Record) { r.Revision = "" }, "Range Txn", nil},
		"a foreign revision": {func(_ *testing.T, _ *fake, r *backend.Record) { r.Revision = "12345" }, "Range Txn", nil},
		"no attempt":         {func(_ *testing.T, _ *fake, r *backend.Record) { r.Attempt = "" }, "Txn Txn", nil},
		"a field added": {func(_ *testing.T, f *fake, _ *backend.Record) {
			f.set(key, strings.Replace(string(f.now()[key].Value), `{`, `{"colour":"red",`, 1), 0)
		}, "Txn Txn", nil},
		"expired": {func(*testing.T, *fake, *backend.Record) { time.Sleep(11 * time.Second) }, "Txn Txn", nil},
		"expired, as seen": {func(t *testing.T, f *fake, r *backend.Record) {
			time.Sleep(11 * time.Second)
			*r = must(t, f, "report")
		}, "Range Txn", nil},

		"another holder":        {func(_ *testing.T, _ *fake, r *backend.Record) { r.Holder = "bob" }, "Txn", backend.ErrLost},
		"another token":         {func(_ *testing.T, _ *fake, r *backend.Record) { r.Token++ }, "Txn", backend.ErrLost},
		"no token":              {func(_ *testing.T, _ *fake, r *backend.Record) { r.Token = 0 }, "Range", backend.ErrLost},
		"taken over":            {func(t *testing.T, f *fake, r *backend.Record) { acquired(t, f.store(), over(claim("bob", "b1"), *r)) }, "Txn", backend.ErrLost},
		"taken over by oneself": {func(t *testing.T, f *fake, r *backend.Record) { acquired(t, f.store(), over(claim("alice", "a2"), *r)) }, "Txn", backend.ErrLost},
		"taken over by the same attempt": {func(t *testing.T, f *fake, r *backend.Record) {
			acquired(t, f.store(), over(claim("bob", "b1"), *r))
			acquired(t, f.store(), over(claim("alice", "a1"), must(t, f, "report")))
		}, "Txn", backend.ErrLost},
		"record deleted": {func(_ *testing.T, f *fake, _ *backend.Record) { f.remove(key) }, "Txn", backend.ErrLost},
		"record of another": {func(_ *testing.T, f *fake, _ *backend.Record) {
			f.set(key, `{"version":1,"holder":"bob","attempt":"a1","duration":"10s"}`, 0)
		}, "Txn", backend.ErrLost},
		"alive of another": {func(t *testing.T, f *fake, r *backend.Record) {
			f.set(alive, `{"version":1,"holder":"bob","duration":"10s"}`, leaseOf(t, *r))
		}, "Txn", backend.ErrLost},
		"both deleted":      {func(_ *testing.T, f *fake, _ *backend.Record) { f.remove(key, alive) }, "Txn", backend.ErrLost},
		"record unreadable": {func(_ *testing.T, f *fake, _ *backend.Record) { f.set(key, "garbage", 0) }, "Txn", backend.ErrCorrupt},
		"alive unreadable":  {func(t *testing.T, f *fake, r *backend.Record) { f.set(alive, "garbage", leaseOf(t, *r)) }, "Txn", backend.ErrCorrupt},
		"expired, as seen, and edited since": {func(t *testing.T, f *fake, r *backend.Record) {
			time.Sleep(11 * time.Second)
			*r = must(t, f, "report")
			f.set(key, string(f.now()[key].Value)+" ", 0)
		}, "Range", backend.ErrLost},
		"expired, as seen, and acquired since": {func(t *testing.T, f *fake, r *backend.Record) {
			time.Sleep(11 * time.Second)
			*r = must(t, f, "report")
			acquired(t, f.store(), claim("bob", "b1"))
		}, "Range", backend.ErrLost},
		"expired, as somebody believes": {func(_ *testing.T, _ *fake, r *backend.Record) { r.Expired = true }, "Range", backend.ErrLost},
	} {
		for _, floor := range []uint64{0, 700} {
			t.Run(fmt.Sprintf("%s, floor %d", name, floor), func(t *testing.T) {
				inBubble(t, 1, func(t *testing.T, f *fake) {
					s := f.store()
					c := claim("alice", "a1")
					c.MinToken = floor
					rec := acquired(t, s, c)
					test.do(t, f, &rec)
					keys, lent := fmt.Sprint(f.now()), f.lent()
					f.requests()
					err := s.Release(t.Context(), rec)
					if !errors.Is(err, test.want) {
						t.Errorf("released: %v, want %v", err, test.want)
					}
					if got := f.requests(); floor == 0 && got != test.sent {
						t.Errorf("requests %q, want %q", got, test.sent)
					}
					if err != nil {
						if fmt.Sprint(f.now()) != keys || f.lent() != lent {
							t.Errorf("left are %v and %d etcd leases", f.now(), f.lent())
						}
						return
					}
					if f.lent() > 1 || f.now()[alive] != nil { // its own, as a spare
						t.Errorf("left are %v and %d etcd leases", f.now(), f.lent())
					}
					switch kv := f.now()[key]; {
					case floor == 0 && kv != nil, floor != 0 && kv == nil:
						t.Errorf("left is %v", kv)
					case floor != 0:
						seen := must(t, f, "report")
						if r, err := decodeRecord(kv.Value); err != nil || r.Floor != floor || !seen.Vacant() || seen.Expired {
							t.Errorf("left is %s, %v", kv.Value, err)
						}
					}
					if err := s.Release(t.Context(), rec); !errors.Is(err, backend.ErrLost) {
						t.Errorf("the second time: %v", err)
					}
					time.Sleep(11 * time.Second)
					if f.lent() != 0 {
						t.Errorf("%d etcd leases are left", f.lent())
					}
				})
			})
		}
	}
}

// TestReleaseReplyLost: it was done, and nobody knows. Sent again, it finds the tenure
// over, and must not say that it was lost. Where the first was not done, the second
// does it, by another member.
func TestReleaseReplyLost(t *testing.T) {
	for name, lose := range map[string]func(context.Context) error{
		"broken": func(context.Context) error { return lost },
		"silent": silent,
	} {
		for _, floor := range []uint64{0, 700} {
			for _, done := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s, floor %d, done %v", name, floor, done), func(t *testing.T) {
					inBubble(t, 2, func(t *testing.T, f *fake) {
						s := f.store()
						c := claim("alice", "a1")
						c.MinToken = floor
						rec := acquired(t, s, c)
						var sent atomic.Int64
						once := func(ctx context.Context, c call) error {
							if c.what != "Txn" || sent.Add(1) > 1 {
								return nil
							}
							return lose(ctx)
						}
						if done {
							f.hooks(nil, func(ctx context.Context, c call, _ any) error { return once(ctx, c) })
						} else {
							f.hooks(once, nil)
						}
						ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
						defer cancel()
						err := s.Release(ctx, rec)
						if done {
							unknown(t, "an answer that is lost", err)
						} else if err != nil {
							t.Error(err)
						}
						if got := strings.Count(f.requests(), "Txn"); got != 2 {
							t.Errorf("%d Txns", got)
						}
						if f.now()[alive] != nil {
							t.Error("it was not done")
						}
						if err := s.Release(t.Context(), rec); !errors.Is(err, backend.ErrLost) {
							t.Errorf("the second time: %v", err)
						}
					})
				})
			}
		}
	}
}

// TestReleaseRevoke: that the etcd lease could not be given back does not matter.
func TestReleaseRevoke(t *testing.T) {
	for name, fail := range map[string]func(context.Context) error{
		"broken": func(context.Context) error { return lost },
		"silent": silent,
		"denied": func(context.Context) error { return rpctypes.ErrGRPCPermissionDenied },
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, 2, func(t *testing.T, f *fake) {
				s := f.store()
				rec := acquired(t, s, claim("alice", "a1"))
				f.hooks(func(ctx context.Context, c call) error {
					if c.what == "Revoke" {
						return fail(ctx)
					}
					return nil
				}, nil)
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
				defer cancel()
				began := time.Now()
				if err := f.store().Release(ctx, rec); err != nil { // not the one that keeps it
					t.Error(err)
				}
				if took := time.Since(began); took >= 2*time.Second {
					t.Errorf("it took %v", took)
				}
				next := acquired(t, s, claim("bob", "b1"))
				time.Sleep(5 * time.Second)
				if _, err := s.Renew(t.Context(), next); err != nil {
					t.Error(err)
				}
				time.Sleep(6 * time.Second) // now the one that was left has ended
				if f.lent() != 1 {
					t.Errorf("%d etcd leases", f.lent())
				}
				if _, err := s.Renew(t.Context(), next); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// TestReleaseTransitions: a vacated record counts on.
func TestReleaseTransitions(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, f *fake) {
		s := f.store()
		c := claim("alice", "a")
		c.MinToken = 7
		for i, holder := range []string{"alice", "bob", "bob", "alice"} {
			c.Holder, c.Attempt = holder, fmt.Sprint(i)
			rec := acquired(t, s, c)
			if rec.Transitions != int64(i) { // vacant is a holder, too
				t.Errorf("%s has transitions %d, want %d", holder, rec.Transitions, i)
			}
			if err := s.Release(t.Context(), rec); err != nil {
				t.Fatal(err)
			}
			if seen := must(t, f, "report"); seen.Transitions != rec.Transitions {
				t.Errorf("vacated: %+v", seen)
			}
		}
	})
}

// TestClosed: every call says so, and sends nothing.
func TestClosed(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, f *fake) {
		s := f.store()
		rec := acquired(t, s, claim("alice", "a1"))
		f.requests()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		ctx := t.Context()
		_, get := s.Get(ctx, "report")
		_, acquire := s.Acquire(ctx, claim("alice", "a1"))
		_, renew := s.Renew(ctx, rec)
		_, guarded := s.Guarded(ctx, rec, nil)
		all := []error{get, acquire, renew, guarded, s.Release(ctx, rec)}
		for _, err := range s.List(ctx, "") {
			all = append(all, err)
		}
		for _, err := range s.Watch(ctx, "report") {
			all = append(all, err)
		}
		if len(all) != 7 {
			t.Errorf("%d errors", len(all))
		}
		for i, err := range all {
			if !errors.Is(err, backend.ErrInvalid) {
				t.Errorf("%d: %v", i, err)
			}
		}
		if got := f.requests(); got != "" {
			t.Errorf("requests: %s", got)
		}
		if err := s.Close(); err != nil {
			t.Errorf("the second time: %v", err)
		}
		// The client is the caller's.
		if _, err := New(s.client, "/t/").Get(ctx, "report"); err != nil {
			t.Error(err)
		}
	})
}
