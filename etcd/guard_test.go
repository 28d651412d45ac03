package etcd

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/leasehold/leasehold/backend"
)

// TestGuard: the condition holds for the tenure that is there, and for nothing else.
func TestGuard(t *testing.T) {
	for _, floor := range []uint64{0, 900} {
		t.Run(fmt.Sprint("floor ", floor), func(t *testing.T) {
			inBubble(t, 1, func(t *testing.T, f *fake) {
				s := f.store()
				c := claim("alice", "a1")
				c.MinToken = floor
				rec := acquired(t, s, c)
				holds := func(what string, rec backend.Record, want bool) {
					t.Helper()
					resp, err := s.client.Txn(clientv3.WithRequireLeader(t.Context())).If(s.Guard(rec)).Commit()
					if err != nil || resp.Succeeded != want {
						t.Errorf("%s: %v, %v; want %v", what, resp, err, want)
					}
				}
				edited := func(edit func(r *backend.Record)) backend.Record {
					r := rec
					edit(&r)
					return r
				}
				holds("the tenure", rec, true)
				holds("as Get shows it", must(t, f, "report"), true)
				renewed, err := s.Renew(t.Context(), rec)
				if err != nil {
					t.Fatal(err)
				}
				holds("renewed", renewed, true)
				never := map[string]backend.Record{
					"another token":            edited(func(r *backend.Record) { r.Token++ }),
					"no token":                 edited(func(r *backend.Record) { r.Token = 0 }),
					"a token that is too big":  edited(func(r *backend.Record) { r.Token = 1<<64 - 1 }),
					"no revision":              edited(func(r *backend.Record) { r.Revision = "" }),
					"a revision of a stranger": edited(func(r *backend.Record) { r.Revision = "12345" }),
					"another name":             edited(func(r *backend.Record) { r.Name = "other" }),
					"nothing":                  {Name: "report"},
					"a token of nothing":       edited(func(r *backend.Record) { r.Token = floor }),
				}
				for what, r := range never {
					holds(what, r, false)
				}
				f.set(key, string(f.now()[key].Value)+" ", 0)
				holds("the tenure, edited", rec, true)
				holds("as Get shows it, edited", must(t, f, "report"), true)
				second := acquired(t, f.store(), over(claim("bob", "b1"), must(t, f, "report")))
				holds("the tenure before", rec, false)
				holds("the tenure now", second, true)
				time.Sleep(11 * time.Second)
				expired := must(t, f, "report")
				if !expired.Expired {
					t.Fatal("it has not expired")
				}
				holds("an expired one", expired, false)
				holds("an expired one, as granted", second, false)
				f.remove(key)
				for what, r := range never {
					holds("no keys: "+what, r, false)
				}
			})
		})
	}
}

// TestGuardEditedFloor: the two keys can tell different floors, if somebody has
// edited the record. The token is the alive key's.
func TestGuardEditedFloor(t *testing.T) {
	for _, edit := range []string{`"floor":900`, `"floor":100`, `"floor":2000`} {
		t.Run(edit, func(t *testing.T) {
			inBubble(t, 1, func(t *testing.T, f *fake) {
				s := f.store()
				c := claim("alice", "a1")
				c.MinToken = 900
				acquired(t, s, c)
				f.set(key, strings.Replace(string(f.now()[key].Value), `"floor":900`, edit, 1), 0)
				rec := must(t, f, "report")
				resp, err := s.Guarded(t.Context(), rec, nil, clientv3.OpPut("/app/x", "1"))
				if err != nil || !resp.Succeeded {
					t.Errorf("%+v is fenced: %v", rec, err)
				}
			})
		})
	}
}

// TestGuardInvalid: a store that is none guards nothing, also where there is a key
// that it would name.
func TestGuardInvalid(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, f *fake) {
		s := New(f.client(), "\xff")
		f.set("report\x00", "x", 0)
		rec := backend.Record{Name: "report", Holder: "alice", Token: uint64(f.revision()), Revision: "2-ab-0"}
		resp, err := s.client.Txn(clientv3.WithRequireLeader(t.Context())).If(s.Guard(rec)).Commit()
		if err != nil || resp.Succeeded {
			t.Errorf("%v, %v", resp, err)
		}
		if _, err := s.Guarded(t.Context(), rec, nil); !errors.Is(err, backend.ErrInvalid) {
			t.Error(err)
		}
	})
}

func TestGuarded(t *testing.T) {
	for _, floor := range []uint64{0, 900} {
		t.Run(fmt.Sprint("floor ", floor), func(t *testing.T) {
			inBubble(t, 2, func(t *testing.T, f *fake) {
				s := f.store()
				c := claim("alice", "a1")
				c.MinToken = floor
				rec := acquired(t, s, c)
				const app = "/app/x"
				fresh := []clientv3.Cmp{clientv3.Compare(clientv3.Version(app), "=", 0)}
				f.requests()
				resp, err := s.Guarded(t.Context(), rec, fresh, clientv3.OpPut(app, "1"), clientv3.OpGet(app))
				if err != nil || !resp.Succeeded || len(resp.Responses) != 2 || string(f.now()[app].Value) != "1" {
					t.Errorf("%+v, %v", resp, err)
				}
				if got := f.requests(); got != "Txn" {
					t.Errorf("requests: %s", got)
				}
				// One's own condition does not hold.
				resp, err = s.Guarded(t.Context(), rec, fresh, clientv3.OpPut(app, "2"))
				if err != nil || resp.Succeeded || string(f.now()[app].Value) != "1" {
					t.Errorf("%+v, %v", resp, err)
				}
				// The answer is lost: it was done, and is not done again.
				f.hooks(nil, func(_ context.Context, c call, _ any) error {
					if c.what == "Txn" {
						return lost
					}
					return nil
				})
				resp, err = s.Guarded(t.Context(), rec, nil, clientv3.OpPut(app, "3"))
				unknown(t, "an answer that is lost", err)
				if kv := f.now()[app]; string(kv.Value) != "3" || kv.Version != 2 || resp != nil {
					t.Errorf("%v, %+v", kv, resp)
				}
				f.hooks(nil, nil)
				// The tenure is over: whatever the other conditions are.
				fenced := func(what string, rec backend.Record, says string) {
					t.Helper()
					for _, conditions := range [][]clientv3.Cmp{nil, fresh} {
						resp, err := s.Guarded(t.Context(), rec, conditions, clientv3.OpPut(app, "4"))
						if !errors.Is(err, backend.ErrLost) || resp != nil || !strings.Contains(fmt.Sprint(err), says) {
							t.Errorf("%s: %+v, %v; want ErrLost with %q", what, resp, err, says)
						}
					}
				}
				fenced("no tenure", backend.Record{Name: "report"}, "alice")
				second := acquired(t, f.store(), over(claim("bob", "b1"), rec))
				fenced("replaced", rec, `"bob"`)
				time.Sleep(11 * time.Second)
				fenced("expired", second, "is over")
				if err := f.store().Release(t.Context(), second); err != nil {
					t.Fatal(err)
				}
				fenced("released", second, "is over")
				f.set(key, "garbage", 0)
				fenced("unreadable", second, "is over")
				if kv := f.now()[app]; string(kv.Value) != "3" || kv.Version != 2 {
					t.Errorf("%v", kv)
				}
			})
		})
	}
}
