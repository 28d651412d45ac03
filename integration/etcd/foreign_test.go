package etcd_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/integration/internal/scene"
	"github.com/leasehold/leasehold/lease"
)

// harm is what a person does with etcdctl to the keys of a name that is held.
type harm struct {
	name string
	do   func(r *room)
	then aftermath
}

// aftermath is what keeps others out afterwards.
type aftermath int

const (
	free   aftermath = iota // nothing: two may believe to hold until the holder is told
	leased                  // the etcd lease, until it is over
	holder                  // the holder, until it lets go
)

func harms() []harm {
	return []harm{
		{"both keys deleted", func(r *room) { r.remove(r.recordKey("job"), clientv3.WithRange(r.aliveKey("job")+"\x00")) }, free},
		{"alive deleted", func(r *room) { r.remove(r.aliveKey("job")) }, free},
		{"etcd lease revoked", func(r *room) {
			_, id, _ := r.get(r.aliveKey("job"))
			r.revoke(id)
		}, free},
		{"record deleted", func(r *room) { r.remove(r.recordKey("job")) }, leased},
		{"record vacated", func(r *room) { r.put(r.recordKey("job"), `{"version":1}`) }, leased},
		{"record given to another", func(r *room) {
			value, _, _ := r.get(r.recordKey("job"))
			rec, err := r.open().Get(r.Context(), "job")
			if err != nil || !strings.Contains(value, rec.Holder) {
				r.Fatalf("%s does not name the holder, %+v, %v", value, rec, err)
			}
			r.put(r.recordKey("job"), strings.ReplaceAll(value, rec.Holder, "somebody else"))
		}, leased},
		{"alive written again, without the etcd lease", func(r *room) {
			value, _, _ := r.get(r.aliveKey("job"))
			r.put(r.aliveKey("job"), value)
		}, holder},
		{"alive written again, with the etcd lease", func(r *room) {
			value, _, _ := r.get(r.aliveKey("job"))
			if _, err := r.plain.Put(r.Context(), r.aliveKey("job"), value, clientv3.WithIgnoreLease()); err != nil {
				r.Fatal(err)
			}
		}, holder},
	}
}

// out checks that nobody else is let in.
func (r *room) out(waiter *scene.Tenure) {
	r.Helper()
	if _, err := r.open().Acquire(r.Context(), scene.Claim("job", "another", 2*time.Second)); !errors.Is(err, backend.ErrHeld) {
		r.Errorf("a newcomer: %v; want ErrHeld", err)
	}
	select {
	case <-waiter.Began:
		r.Error("the waiter is let in")
	default:
	}
}

// TestTakenAway: what somebody does to the keys under a live holder ends its
// tenure, the watch tells it at once, others get on, and no token is given twice.
func TestTakenAway(t *testing.T) {
	// Renewals are a minute apart, and so are the looks behind the watch: what is
	// told sooner was told by the watch.
	const duration = 3 * time.Minute
	for _, harm := range harms() {
		t.Run(harm.name, func(t *testing.T) {
			r := enter(t)
			w := new(tap)
			s := r.open(tapped(w))
			h := scene.Hold(r, scene.Lease(r, s, "job", duration))
			waiter := scene.Blocked(r, r.open(), "job", duration, h.Lease)
			scene.Eventually(r, "the holder watches", func() bool {
				watches := w.sent(watchCall)
				return len(watches) > 0 && !watches[0].done.IsZero()
			})
			_, id, _ := r.get(r.aliveKey("job"))
			began := time.Now()
			harm.do(r)
			scene.Await(r, "the holder is told", h.Ended)
			if !errors.Is(h.Cause, lease.ErrTaken) {
				t.Errorf("the tenure ended with %v; want ErrTaken", h.Cause)
			}
			t.Logf("told after %s", ms(h.Stopped.Sub(began)))
			if err := scene.Await(r, "Run returns", h.Result); !errors.Is(err, lease.ErrTaken) {
				t.Errorf("Run: %v; want ErrTaken", err)
			}
			if harm.then == leased {
				r.out(waiter)
				rec, err := s.Get(t.Context(), "job")
				if err != nil || rec.Holder != string(h.Holder()) || !rec.Live() || rec.Token != 0 {
					t.Errorf("what keeps others out is read as %+v, %v", rec, err)
				}
				r.revoke(id) // or wait for three minutes
			}
			scene.Await(r, "the waiter is granted the lease", waiter.Began)
			if harm.then != free {
				scene.Follows(r, waiter, h)
			} else if waiter.Grant.Token <= h.Grant.Token {
				t.Errorf("token %d follows %d", waiter.Grant.Token, h.Grant.Token)
			}
			r.fenced(s, h.Grant)
			again := scene.Run(r, h.Lease, waiter.Lease)
			waiter.Leave()
			if err := scene.Await(r, "Run returns", waiter.Result); err != nil {
				t.Errorf("the waiter's tenure: %v", err)
			}
			scene.Await(r, "the former holder is granted the lease again", again.Began)
			scene.Follows(r, again, waiter)
		})
	}
}

// TestTakenAwayUnwatched: where nobody watches, the next renewal tells.
func TestTakenAwayUnwatched(t *testing.T) {
	const duration = 6 * time.Second
	for _, harm := range harms() {
		t.Run(harm.name, func(t *testing.T) {
			r := enter(t)
			w := new(tap)
			s := r.open(tapped(w))
			l := scene.Lease(r, s, "job", duration)
			if err := l.Acquire(t.Context()); err != nil {
				t.Fatal(err)
			}
			tenure, rec := l.Context(), l.Record()
			waiter := scene.Blocked(r, r.open(), "job", duration, l)
			scene.Eventually(r, "the first renewal", func() bool { _, n := w.renewed(); return n > 0 })
			harm.do(r)
			done := time.Now()
			scene.Await(r, "the holder is told", tenure.Done())
			if err := context.Cause(tenure); !errors.Is(err, lease.ErrTaken) {
				t.Errorf("the tenure ended with %v; want ErrTaken", err)
			}
			if n := len(w.sent(watchCall)); n > 0 {
				t.Errorf("%d watches: this is to test what is without", n)
			}
			// One may have been under way.
			var since int
			for _, q := range w.sent(renewCall) {
				if q.sent.After(done) {
					since++
				}
			}
			if since > 2 {
				t.Errorf("it took %d renewals to notice", since)
			}
			if harm.then != free {
				r.out(waiter)
			}
			if harm.then == holder {
				// What it finds is its own to free, though not to renew.
				if err := l.Release(t.Context()); err != nil {
					t.Error(err)
				}
			}
			scene.Await(r, "the waiter is granted the lease", waiter.Began)
			if last, _ := w.renewed(); harm.then == leased && waiter.Granted.Before(last.Add(duration)) {
				t.Errorf("the waiter was let in %v after the last renewal was sent, before the etcd lease was over", waiter.Granted.Sub(last))
			}
			if len(waiter.Others) > 0 && harm.then != free {
				t.Errorf("two hold the lease: %q was granted it while %q held it", waiter.Holder(), waiter.Others)
			}
			if waiter.Grant.Token <= rec.Token {
				t.Errorf("token %d follows %d", waiter.Grant.Token, rec.Token)
			}
			r.fenced(s, rec)
		})
	}
}

// TestAliveForEver: an alive key that a person has taken from its etcd lease, of a
// holder that has died, is nobody's to take without force, and not for ever with.
func TestAliveForEver(t *testing.T) {
	r := enter(t)
	dead := scene.Grant(r, r.open(), scene.Claim("job", "dead", 2*time.Second))
	value, _, _ := r.get(r.aliveKey("job"))
	r.put(r.aliveKey("job"), value)
	s := r.open()
	scene.Pass(r, dead.Duration+2*time.Second) // the etcd lease is over
	_, err := s.Acquire(t.Context(), scene.Claim("job", "b", 2*time.Second))
	var held *backend.HeldError
	if !errors.As(err, &held) || held.Record.Holder != "dead" {
		t.Fatalf("without force: %v; want ErrHeld", err)
	}
	c := scene.Claim("job", "b", 2*time.Second)
	c.Over = held.Record.Revision
	rec := scene.Grant(r, s, c)
	if rec.Token <= held.Record.Token || held.Record.Token <= dead.Token {
		t.Errorf("the tokens are %d, %d when it was written again, %d", dead.Token, held.Record.Token, rec.Token)
	}
	if _, id, _ := r.get(r.aliveKey("job")); id == 0 {
		t.Error("what was taken by force has no etcd lease")
	}
	r.fenced(s, dead)
	scene.Release(r, s, rec)
}

// TestCorrupt: what nobody can read is told with its key, and overwritten by
// nobody who does not insist.
func TestCorrupt(t *testing.T) {
	for _, key := range []string{"record", "alive"} {
		for name, garbage := range map[string]string{
			"garbage":         "}{",
			"another type":    `["x"]`,
			"another program": `{"holder":"somebody else"}`,
			"a newer format":  `{"version":2,"holder":{"name":"a"}}`,
			"no duration":     `{"version":1,"holder":"a"}`,
		} {
			t.Run(key+", "+name, func(t *testing.T) {
				r := enter(t)
				s := r.open()
				where := r.recordKey("job")
				if key == "alive" {
					where = r.aliveKey("job")
				}
				quoted := strings.Trim(fmt.Sprintf("%q", where), `"`)
				h := scene.Hold(r, scene.Lease(r, s, "job", 4*time.Second))
				waiter := scene.Blocked(r, r.open(), "job", 4*time.Second, h.Lease)
				scene.Grant(r, r.open(), scene.Claim("other", "a", time.Minute))
				held := h.Lease.Record()
				r.put(where, garbage)

				// The waiter has nothing to wait for, the holder cannot renew any more.
				err := scene.Await(r, "the waiter is told", waiter.Result)
				if !errors.Is(err, backend.ErrCorrupt) {
					t.Errorf("the waiter: %v; want ErrCorrupt", err)
				}
				scene.Mentions(r, err, quoted)
				scene.Await(r, "the holder's context ends", h.Ended)
				if !errors.Is(h.Cause, backend.ErrCorrupt) {
					t.Errorf("the holder: %v; want ErrCorrupt", h.Cause)
				}
				scene.Mentions(r, h.Cause, quoted)
				scene.Await(r, "Run returns", h.Result)

				check := func(when string) {
					t.Helper()
					for who, s := range map[string]backend.Store{"the holder's client": s, "another": r.open()} {
						_, getting := s.Get(t.Context(), "job")
						_, acquiring := s.Acquire(t.Context(), scene.Claim("job", "b", 2*time.Second))
						_, renewing := s.Renew(t.Context(), held)
						old := scene.Claim("job", "b", 2*time.Second)
						old.Over = "1-1-0"
						_, forcing := s.Acquire(t.Context(), old)
						for call, err := range map[string]error{"get": getting, "acquire": acquiring, "renew": renewing, "release": s.Release(t.Context(), held), "acquire over another revision": forcing} {
							var corrupt *backend.CorruptError
							if !errors.As(err, &corrupt) {
								t.Errorf("%s, %s, %s: %v; want ErrCorrupt", when, who, call, err)
								continue
							}
							if corrupt.Name != "job" || !strings.Contains(corrupt.Where, quoted) || corrupt.Revision == "" {
								t.Errorf("%s, %s, %s: %+v does not say where", when, who, call, corrupt)
							}
						}
						listed := make(map[string]error)
						for rec, err := range backend.List(t.Context(), s, "") {
							listed[rec.Name] = err
						}
						if err, ok := listed["other"]; len(listed) != 2 || !ok || err != nil || !errors.Is(listed["job"], backend.ErrCorrupt) {
							t.Errorf("%s, %s: list: %v", when, who, listed)
						}
					}
					if value, _, _ := r.get(where); value != garbage {
						t.Errorf("%s: it was overwritten with %s", when, value)
					}
				}
				check("while the etcd lease lasts, or not")
				if key == "record" {
					scene.Eventually(r, "the etcd lease runs out", func() bool { _, _, ok := r.get(r.aliveKey("job")); return !ok })
					check("when the etcd lease is over")
				}

				force := scene.Claim("job", "b", 5*time.Second)
				var corrupt *backend.CorruptError
				if _, err := r.open().Get(t.Context(), "job"); !errors.As(err, &corrupt) {
					t.Fatal(err)
				}
				force.Over = corrupt.Revision
				rec := scene.Grant(r, r.open(), force)
				if rec.Token <= h.Grant.Token {
					t.Errorf("token %d follows %d", rec.Token, h.Grant.Token)
				}
				if got, err := s.Get(t.Context(), "job"); err != nil || got.Holder != "b" || got.Token != rec.Token {
					t.Errorf("after it was forced: %+v, %v", got, err)
				}
				r.fenced(s, held)
				scene.Release(r, s, rec)
				if _, err := s.Get(t.Context(), "job"); !errors.Is(err, backend.ErrNotFound) {
					t.Errorf("after the release: %v; want ErrNotFound", err)
				}
			})
		}
	}
}
