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
func (r *room) out(waiter *tenure) {
	r.Helper()
	if _, err := r.open().Acquire(r.Context(), claim("job", "another", 2*time.Second)); !errors.Is(err, backend.ErrHeld) {
		r.Errorf("a newcomer: %v; want ErrHeld", err)
	}
	select {
	case <-waiter.began:
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
			h := r.hold(r.lease(s, "job", duration))
			waiter := r.blocked(r.open(), "job", duration, h.Lease)
			r.eventually("the holder watches", func() bool {
				watches := w.sent(watchCall)
				return len(watches) > 0 && !watches[0].done.IsZero()
			})
			_, id, _ := r.get(r.aliveKey("job"))
			began := time.Now()
			harm.do(r)
			await(r, "the holder is told", h.ended)
			if !errors.Is(h.cause, lease.ErrTaken) {
				t.Errorf("the tenure ended with %v; want ErrTaken", h.cause)
			}
			t.Logf("told after %s", ms(h.stopped.Sub(began)))
			if err := await(r, "Run returns", h.result); !errors.Is(err, lease.ErrTaken) {
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
			await(r, "the waiter is granted the lease", waiter.began)
			if harm.then != free {
				r.follows(waiter, h)
			} else if waiter.token <= h.token {
				t.Errorf("token %d follows %d", waiter.token, h.token)
			}
			r.fenced(s, h.record)
			again := r.run(h.Lease, waiter.Lease)
			waiter.leave()
			if err := await(r, "Run returns", waiter.result); err != nil {
				t.Errorf("the waiter's tenure: %v", err)
			}
			await(r, "the former holder is granted the lease again", again.began)
			r.follows(again, waiter)
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
			l := r.lease(s, "job", duration)
			if err := l.Acquire(t.Context()); err != nil {
				t.Fatal(err)
			}
			tenure, rec := l.Context(), l.Record()
			waiter := r.blocked(r.open(), "job", duration, l)
			r.eventually("the first renewal", func() bool { _, n := w.renewed(); return n > 0 })
			harm.do(r)
			done := time.Now()
			await(r, "the holder is told", tenure.Done())
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
			await(r, "the waiter is granted the lease", waiter.began)
			if last, _ := w.renewed(); harm.then == leased && waiter.granted.Before(last.Add(duration)) {
				t.Errorf("the waiter was let in %v after the last renewal was sent, before the etcd lease was over", waiter.granted.Sub(last))
			}
			if len(waiter.others) > 0 && harm.then != free {
				t.Errorf("two hold the lease: %q was granted it while %q held it", waiter.Holder(), waiter.others)
			}
			if waiter.token <= rec.Token {
				t.Errorf("token %d follows %d", waiter.token, rec.Token)
			}
			r.fenced(s, rec)
		})
	}
}

// TestAliveForEver: an alive key that a person has taken from its etcd lease, of a
// holder that has died, is nobody's to take without force, and not for ever with.
func TestAliveForEver(t *testing.T) {
	r := enter(t)
	dead := r.grant(r.open(), claim("job", "dead", 2*time.Second))
	value, _, _ := r.get(r.aliveKey("job"))
	r.put(r.aliveKey("job"), value)
	s := r.open()
	r.pass(dead.Duration + 2*time.Second) // the etcd lease is over
	_, err := s.Acquire(t.Context(), claim("job", "b", 2*time.Second))
	var held *backend.HeldError
	if !errors.As(err, &held) || held.Record.Holder != "dead" {
		t.Fatalf("without force: %v; want ErrHeld", err)
	}
	c := claim("job", "b", 2*time.Second)
	c.Over = held.Record.Revision
	rec := r.grant(s, c)
	if rec.Token <= held.Record.Token || held.Record.Token <= dead.Token {
		t.Errorf("the tokens are %d, %d when it was written again, %d", dead.Token, held.Record.Token, rec.Token)
	}
	if _, id, _ := r.get(r.aliveKey("job")); id == 0 {
		t.Error("what was taken by force has no etcd lease")
	}
	r.fenced(s, dead)
	r.release(s, rec)
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
				h := r.hold(r.lease(s, "job", 4*time.Second))
				waiter := r.blocked(r.open(), "job", 4*time.Second, h.Lease)
				r.grant(r.open(), claim("other", "a", time.Minute))
				held := h.Lease.Record()
				r.put(where, garbage)

				// The waiter has nothing to wait for, the holder cannot renew any more.
				err := await(r, "the waiter is told", waiter.result)
				if !errors.Is(err, backend.ErrCorrupt) {
					t.Errorf("the waiter: %v; want ErrCorrupt", err)
				}
				r.mentions(err, quoted)
				await(r, "the holder's context ends", h.ended)
				if !errors.Is(h.cause, backend.ErrCorrupt) {
					t.Errorf("the holder: %v; want ErrCorrupt", h.cause)
				}
				r.mentions(h.cause, quoted)
				await(r, "Run returns", h.result)

				check := func(when string) {
					t.Helper()
					for who, s := range map[string]backend.Store{"the holder's client": s, "another": r.open()} {
						_, getting := s.Get(t.Context(), "job")
						_, acquiring := s.Acquire(t.Context(), claim("job", "b", 2*time.Second))
						_, renewing := s.Renew(t.Context(), held)
						old := claim("job", "b", 2*time.Second)
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
					r.eventually("the etcd lease runs out", func() bool { _, _, ok := r.get(r.aliveKey("job")); return !ok })
					check("when the etcd lease is over")
				}

				force := claim("job", "b", 5*time.Second)
				var corrupt *backend.CorruptError
				if _, err := r.open().Get(t.Context(), "job"); !errors.As(err, &corrupt) {
					t.Fatal(err)
				}
				force.Over = corrupt.Revision
				rec := r.grant(r.open(), force)
				if rec.Token <= h.token {
					t.Errorf("token %d follows %d", rec.Token, h.token)
				}
				if got, err := s.Get(t.Context(), "job"); err != nil || got.Holder != "b" || got.Token != rec.Token {
					t.Errorf("after it was forced: %+v, %v", got, err)
				}
				r.fenced(s, held)
				r.release(s, rec)
				if _, err := s.Get(t.Context(), "job"); !errors.Is(err, backend.ErrNotFound) {
					t.Errorf("after the release: %v; want ErrNotFound", err)
				}
			})
		}
	}
}
