package etcd

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/leasehold/leasehold/backend"
)

// TestRenewUnderneath is what somebody can do to both keys under a holder.
func TestRenewUnderneath(t *testing.T) {
	for name, test := range map[string]struct {
		do   func(t *testing.T, f *fake, rec backend.Record)
		want error
	}{
		"nothing":                {func(*testing.T, *fake, backend.Record) {}, nil},
		"both deleted":           {func(t *testing.T, f *fake, _ backend.Record) { f.remove(key, alive) }, backend.ErrLost},
		"alive deleted":          {func(t *testing.T, f *fake, _ backend.Record) { f.remove(alive) }, backend.ErrLost},
		"record deleted":         {func(t *testing.T, f *fake, _ backend.Record) { f.remove(key) }, backend.ErrLost},
		"the etcd lease revoked": {func(t *testing.T, f *fake, rec backend.Record) { f.revokes(leaseOf(t, rec)) }, backend.ErrLost},
		"the record of another": {func(t *testing.T, f *fake, _ backend.Record) {
			f.set(key, `{"version":1,"holder":"bob","attempt":"a1","duration":"10s"}`, 0)
		}, backend.ErrLost},
		"the record vacated": {func(t *testing.T, f *fake, _ backend.Record) { f.set(key, `{"version":1,"holder":""}`, 0) }, backend.ErrLost},
		"the record of a seal": {func(t *testing.T, f *fake, _ backend.Record) {
			f.set(key, `{"version":1,"holder":"m","duration":"forever","seal":{"to":"x","epoch":1}}`, 0)
		}, backend.ErrLost},
		"alive of another": {func(t *testing.T, f *fake, rec backend.Record) {
			f.set(alive, `{"version":1,"holder":"bob","duration":"10s"}`, leaseOf(t, rec))
		}, backend.ErrLost},
		"alive bound to another": {func(t *testing.T, f *fake, _ backend.Record) {
			f.set(alive, string(f.now()[alive].Value), f.lends(99, 3))
		}, backend.ErrLost},
		"alive bound to none": {func(t *testing.T, f *fake, _ backend.Record) { f.set(alive, string(f.now()[alive].Value), 0) }, backend.ErrLost},
		"record unreadable":   {func(t *testing.T, f *fake, _ backend.Record) { f.set(key, "garbage", 0) }, backend.ErrCorrupt},
		"record of a newer":   {func(t *testing.T, f *fake, _ backend.Record) { f.set(key, `{"version":2}`, 0) }, backend.ErrCorrupt},
		"alive unreadable":    {func(t *testing.T, f *fake, rec backend.Record) { f.set(alive, "garbage", leaseOf(t, rec)) }, backend.ErrCorrupt},
		"taken over":          {func(t *testing.T, f *fake, rec backend.Record) { acquired(t, f.store(), over(claim("bob", "b1"), rec)) }, backend.ErrLost},
		"taken over by oneself": {func(t *testing.T, f *fake, rec backend.Record) {
			acquired(t, f.store(), over(claim("alice", "a2"), rec))
		}, backend.ErrLost},
		"released, acquired anew": {func(t *testing.T, f *fake, rec backend.Record) {
			_ = f.store().Release(t.Context(), rec)
			acquired(t, f.store(), claim("alice", "a2"))
		}, backend.ErrLost},
		"expired": {func(*testing.T, *fake, backend.Record) { time.Sleep(11 * time.Second) }, backend.ErrLost},

		// An edit is no loss, whatever it does to what the record tells of its etcd lease.
		"a field added": {func(t *testing.T, f *fake, _ backend.Record) {
			f.set(key, strings.Replace(string(f.now()[key].Value), `{`, `{"colour":"red",`, 1), 0)
		}, nil},
		"the etcd lease edited out": {func(t *testing.T, f *fake, _ backend.Record) {
			f.set(key, `{"version":1,"holder":"alice","attempt":"a1","duration":"10s"}`, 0)
		}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, 1, func(t *testing.T, f *fake) {
				s := f.store()
				rec := acquired(t, s, claim("alice", "a1"))
				test.do(t, f, rec)
				keys, rev := fmt.Sprint(f.now()), f.revision()
				for range 2 {
					began := time.Now()
					now, err := s.Renew(t.Context(), rec)
					if !errors.Is(err, test.want) {
						t.Errorf("renewed: %+v, %v; want %v", now, err, test.want)
					}
					if err != nil {
						continue
					}
					f.lasts(t, now, began)
					if !now.SameTenure(rec) || now.Remaining != 10*time.Second {
						t.Errorf("renewed: %+v, was %+v", now, rec)
					}
					rec = now
					time.Sleep(6 * time.Second)
				}
				if test.want != nil && (f.revision() != rev || fmt.Sprint(f.now()) != keys) {
					t.Error("a renewal has written")
				}
			})
		})
	}
}

// TestRenewRecords: any record of the tenure will do, and no other.
func TestRenewRecords(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, f *fake) {
		s := f.store()
		rec := acquired(t, s, claim("alice", "a1"))
		for name, test := range map[string]struct {
			edit func(r *backend.Record)
			sent string
			want error
		}{
			"itself":              {func(*backend.Record) {}, "KeepAlive Range", nil},
			"no revision":         {func(r *backend.Record) { r.Revision = "" }, "Range KeepAlive Range", nil},
			"a store's of other":  {func(r *backend.Record) { r.Revision = "uid/12345" }, "Range KeepAlive Range", nil},
			"another etcd lease":  {func(r *backend.Record) { r.Revision = "7-cd-0" }, "KeepAlive Range KeepAlive Range", nil},
			"no metadata":         {func(r *backend.Record) { *r = backend.Record{Name: r.Name, Holder: r.Holder, Token: r.Token} }, "Range KeepAlive Range", nil},
			"another holder":      {func(r *backend.Record) { r.Holder = "bob" }, "KeepAlive Range", backend.ErrLost},
			"an older token":      {func(r *backend.Record) { r.Token-- }, "KeepAlive Range", backend.ErrLost},
			"a newer token":       {func(r *backend.Record) { r.Token++ }, "KeepAlive Range", backend.ErrLost},
			"no token":            {func(r *backend.Record) { r.Token = 0 }, "Range", backend.ErrLost},
			"nothing but a name":  {func(r *backend.Record) { *r = backend.Record{Name: r.Name} }, "Range", backend.ErrLost},
			"a name nobody holds": {func(r *backend.Record) { r.Name = "other" }, "KeepAlive Range", backend.ErrLost},
			"no name":             {func(r *backend.Record) { r.Name = "" }, "", backend.ErrInvalid},
		} {
			r := rec
			test.edit(&r)
			if _, err := s.Renew(t.Context(), rec); err != nil { // who was refused before is forgotten
				t.Error(err)
			}
			f.requests()
			now, err := s.Renew(t.Context(), r)
			if !errors.Is(err, test.want) {
				t.Errorf("%s: %+v, %v; want %v", name, now, err, test.want)
			}
			if err == nil && (!now.SameTenure(rec) || now.Revision != rec.Revision) {
				t.Errorf("%s: %+v, want %+v", name, now, rec)
			}
			if got := f.requests(); got != test.sent {
				t.Errorf("%s: requests %q, want %q", name, got, test.sent)
			}
		}
	})
}

// TestRenewLost: whoever goes on to renew a tenure that is over does not keep its
// etcd lease, and with it the name.
func TestRenewLost(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, f *fake) {
		s := f.store()
		rec := acquired(t, s, claim("alice", "a1"))
		f.remove("/t/report")
		for range 20 {
			if _, err := s.Renew(t.Context(), rec); !errors.Is(err, backend.ErrLost) {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
		}
		acquired(t, s, claim("bob", "b1"))
	})
}

// TestRenewBehind: where etcd contradicts itself the tenure may live or not. It is
// neither renewed nor lost.
func TestRenewBehind(t *testing.T) {
	inBubble(t, 2, func(t *testing.T, f *fake) {
		s := f.store()
		rec := acquired(t, s, claim("alice", "a1"))
		// A member that has not heard of the etcd lease.
		f.hooks(nil, func(_ context.Context, c call, resp any) error {
			if r, ok := resp.(*pb.LeaseKeepAliveResponse); ok && c.n == 1 {
				r.TTL = 0
			}
			return nil
		})
		_, err := s.Renew(t.Context(), rec)
		unknown(t, "an etcd lease that is there after all", err)
		if _, err := s.Renew(t.Context(), rec); err != nil {
			t.Errorf("a moment later: %v", err)
		}
		// One that has not heard of its end: it answers with the past.
		past := f.now()
		f.hooks(nil, func(_ context.Context, _ call, resp any) error {
			if r, ok := resp.(*pb.RangeResponse); ok {
				r.Kvs = []*mvccpb.KeyValue{past[key], past[alive]}
			}
			return nil
		})
		f.revokes(leaseOf(t, rec))
		_, err = s.Renew(t.Context(), rec)
		unknown(t, "a key that is not there any more", err)
		f.hooks(nil, nil)
		if _, err := s.Renew(t.Context(), rec); !errors.Is(err, backend.ErrLost) {
			t.Errorf("a moment later: %v", err)
		}
	})
}

// TestRenewHangs: a member that does not answer takes no more than a part of the
// time, and the next attempt goes to another.
func TestRenewHangs(t *testing.T) {
	for _, what := range []string{"KeepAlive", "Range"} {
		for name, fail := range map[string]func(context.Context) error{
			"silent":    silent,
			"broken":    func(context.Context) error { return lost },
			"no leader": func(context.Context) error { return rpctypes.ErrGRPCNoLeader },
		} {
			t.Run(what+" "+name, func(t *testing.T) {
				inBubble(t, 3, func(t *testing.T, f *fake) {
					s := f.store()
					rec := acquired(t, s, claim("alice", "a1"))
					for range 4 { // whichever member is the next
						f.hooks(func(ctx context.Context, c call) error {
							if c.what == what && c.member == 0 {
								return fail(ctx)
							}
							return nil
						}, nil)
						ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
						began := time.Now()
						now, err := s.Renew(ctx, rec)
						if err != nil || !now.SameTenure(rec) {
							t.Errorf("renewed: %+v, %v after %v", now, err, time.Since(began))
						} else {
							f.lasts(t, now, began)
						}
						cancel()
					}
					// And if no member answers, the call ends with its context.
					f.hooks(func(ctx context.Context, c call) error {
						if c.what == what {
							return fail(ctx)
						}
						return nil
					}, nil)
					ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
					defer cancel()
					began := time.Now()
					_, err := s.Renew(ctx, rec)
					unknown(t, "nobody answers", err)
					if took := time.Since(began); took > 2*time.Second {
						t.Errorf("it took %v", took)
					}
					f.hooks(nil, nil)
				})
			})
		}
	}
}

// TestRenewSlow: however slow the answers are, a renewal lasts since it began.
func TestRenewSlow(t *testing.T) {
	for _, what := range []string{"KeepAlive", "Range"} {
		for _, after := range []bool{false, true} {
			t.Run(fmt.Sprint(what, " after ", after), func(t *testing.T) {
				inBubble(t, 1, func(t *testing.T, f *fake) {
					s := f.store()
					rec := acquired(t, s, claim("alice", "a1"))
					time.Sleep(3 * time.Second)
					slow := func(c call) error {
						if c.what == what {
							time.Sleep(3 * time.Second)
						}
						return nil
					}
					if after {
						f.hooks(nil, func(_ context.Context, c call, _ any) error { return slow(c) })
					} else {
						f.hooks(func(_ context.Context, c call) error { return slow(c) }, nil)
					}
					began := time.Now()
					now, err := s.Renew(t.Context(), rec)
					if err != nil {
						t.Fatal(err)
					}
					f.lasts(t, now, began)
				})
			})
		}
	}
}

// TestGet: what remains is an upper bound, and is not needed.
func TestGet(t *testing.T) {
	inBubble(t, 2, func(t *testing.T, f *fake) {
		s := f.store()
		acquired(t, s, claim("alice", "a1"))
		began := time.Now()
		for _, after := range []time.Duration{0, 1500 * time.Millisecond, 9900 * time.Millisecond} {
			time.Sleep(after - time.Since(began))
			rec := must(t, f, "report")
			left := 10*time.Second - after
			if rec.Remaining < left || rec.Remaining > left+time.Second {
				t.Errorf("after %v: %v remain", after, rec.Remaining)
			}
			if d := rec.RenewedAt.Sub(began); d < -time.Second || d > time.Second {
				t.Errorf("after %v: renewed at %v, was %v", after, rec.RenewedAt, began)
			}
		}
		for _, fail := range []func(context.Context) error{silent, func(context.Context) error { return rpctypes.ErrGRPCPermissionDenied }} {
			if _, err := s.Renew(t.Context(), must(t, f, "report")); err != nil {
				t.Fatal(err)
			}
			f.hooks(func(ctx context.Context, c call) error {
				if c.what == "TimeToLive" {
					return fail(ctx)
				}
				return nil
			}, nil)
			if rec := must(t, f, "report"); rec.Holder != "alice" || rec.Expired || rec.Remaining != 0 {
				t.Errorf("%+v", rec)
			}
			f.hooks(nil, nil)
		}
	})
}
