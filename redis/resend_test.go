package redis

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/leasehold/leasehold/backend"
)

// The client sends again what was not answered, in silence. All these run with its own
// retries on.

// lostReplies has the first answers of a kind lost, with the connection, after what was
// asked for was done.
func lostReplies(what string, times int) func(r request, reply any) any {
	return func(r request, reply any) any {
		if r.what == what && r.n <= times {
			return drop{}
		}
		return nil
	}
}

// lostRequests has the first requests of a kind lost, with the connection, before
// anything was done.
func lostRequests(what string, times int) func(r request) any {
	return func(r request) any {
		if r.what == what && r.n <= times {
			return drop{}
		}
		return nil
	}
}

// TestResentAcquire: it is the same acquire, with an Attempt and without.
func TestResentAcquire(t *testing.T) {
	for _, attempt := range []string{"a1", ""} {
		for times := 1; times <= 3; times++ {
			for _, done := range []bool{true, false} {
				t.Run(fmt.Sprintf("attempt %q, %d times, done %v", attempt, times, done), func(t *testing.T) {
					inBubble(t, func(t *testing.T, f *fake) {
						s := f.store()
						if done {
							f.hooks(nil, lostReplies("acquire", times))
						} else {
							f.hooks(lostRequests("acquire", times), nil)
						}
						first := uint64(time.Now().UnixMicro())
						rec := acquired(t, s, claim("alice", attempt))
						if done && rec.Token != first {
							t.Errorf("token %d, want that of the first sending, %d", rec.Token, first)
						}
						if got := f.count("acquire"); got != times+1 {
							t.Errorf("sent %d times, want %d", got, times+1)
						}
						if row := f.now("report"); row.alive == nil || row.alive.until != time.Now().UnixMilli()+10_000 {
							t.Errorf("it does not last for all its duration: %+v", row.alive)
						}
						if _, err := s.Renew(t.Context(), rec); err != nil {
							t.Error(err)
						}
						// A claim of its own is another's, of the same holder too.
						_, err := s.Acquire(t.Context(), claim("alice", ""))
						refused(t, "without an attempt", err, backend.ErrHeld)
					})
				})
			}
		}
	}
}

// TestResentRenew: it is renewed, and not lost.
func TestResentRenew(t *testing.T) {
	for _, done := range []bool{true, false} {
		inBubble(t, func(t *testing.T, f *fake) {
			s := f.store()
			rec := acquired(t, s, claim("alice", "a1"))
			if done {
				f.hooks(nil, lostReplies("renew", 2))
			} else {
				f.hooks(lostRequests("renew", 2), nil)
			}
			time.Sleep(9 * time.Second)
			now, err := s.Renew(t.Context(), rec)
			if err != nil || !now.SameTenure(rec) {
				t.Errorf("%+v, %v", now, err)
			}
			if got := f.requests(); got != "renew renew renew" {
				t.Errorf("sent: %s", got)
			}
			time.Sleep(9 * time.Second)
			if rec, err := s.Get(t.Context(), "report"); err != nil || rec.Expired {
				t.Errorf("%+v, %v", rec, err)
			}
		})
	}
}

// TestResentRelease: it is released, and not lost.
func TestResentRelease(t *testing.T) {
	for _, done := range []bool{true, false} {
		for times := 1; times <= 3; times++ {
			for _, flushed := range []bool{false, true} {
				inBubble(t, func(t *testing.T, f *fake) {
					s := f.store()
					rec := acquired(t, s, claim("alice", "a1"))
					if done {
						f.hooks(nil, func(r request, reply any) any {
							if flushed { // the server restarts
								f.flush()
							}
							return lostReplies("release", times)(r, reply)
						})
					} else {
						f.hooks(lostRequests("release", times), nil)
					}
					if err := s.Release(t.Context(), rec); err != nil {
						t.Errorf("done %v, %d times, flushed %v: %v", done, times, flushed, err)
					}
					f.hooks(nil, nil)
					refused(t, "again", s.Release(t.Context(), rec), backend.ErrLost)
				})
			}
		}
	}
}

// TestResentReleaseTaken: whoever came in between keeps it; and whether it was released
// before is not known.
func TestResentReleaseTaken(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fake) {
		s, other := f.store(), f.store()
		rec := acquired(t, s, claim("alice", "a1"))
		var bob backend.Record
		f.hooks(nil, func(r request, reply any) any {
			if r.what == "release" && r.n == 1 {
				bob = acquired(t, other, claim("bob", "b1"))
				return drop{}
			}
			return nil
		})
		unknown(t, "released, then acquired by another", s.Release(t.Context(), rec))
		if got, err := s.Get(t.Context(), "report"); err != nil || !got.SameTenure(bob) {
			t.Errorf("bob's: %+v, %v", got, err)
		}
	})
}

// TestResentRefused: a refusal after a resend says nothing of what was sent before.
func TestResentRefused(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fake) {
		s, other := f.store(), f.store()
		f.hooks(func(r request) any {
			if r.what == "acquire" && r.n == 1 {
				acquired(t, other, claim("bob", "b1"))
				return drop{}
			}
			return nil
		}, nil)
		_, err := s.Acquire(t.Context(), claim("alice", "a1"))
		if unknown(t, "refused after a resend", err); !strings.Contains(fmt.Sprint(err), `held by "bob"`) {
			t.Error(err)
		}
		// At once it is definite.
		_, err = s.Acquire(t.Context(), claim("alice", "a2"))
		refused(t, "refused at once", err, backend.ErrHeld)

		// One that could not be read, or has no more tokens.
		f.spoil("report", "it is no hash")
		f.hooks(lostRequests("acquire", 1), nil)
		_, err = s.Acquire(t.Context(), claim("alice", "a3"))
		unknown(t, "corrupt after a resend", err)
		_, err = s.Acquire(t.Context(), claim("alice", "a4"))
		refused(t, "corrupt at once", err, backend.ErrCorrupt)
		f.spoil("report", "")
		f.with(func() {
			f.rows["t:{report}"] = &row{fields: map[string]string{"token": strconv.FormatUint(backend.MaxToken, 10)}}
		})
		c := claim("alice", "a5")
		f.hooks(lostRequests("acquire", 1), nil)
		_, err = s.Acquire(t.Context(), c)
		unknown(t, "exhausted after a resend", err)
		_, err = s.Acquire(t.Context(), c)
		refused(t, "exhausted at once", err, backend.ErrInvalid)
	})
}

// TestResentError: an answer after a resend says nothing of what was sent before, if it
// was a write.
func TestResentError(t *testing.T) {
	for _, a := range answers {
		if a.class == nil {
			continue
		}
		inBubble(t, func(t *testing.T, f *fake) {
			s := f.store()
			rec := acquired(t, s, claim("alice", "a1"))
			for what, call := range verbs(rec) {
				f.hooks(func(r request) any {
					if r.n == 1 {
						return drop{}
					}
					return refusal(a.text)
				}, nil)
				err := call(t.Context(), s)
				if what == "get" {
					continue
				}
				if unknown(t, a.text+", "+what, err); !strings.Contains(fmt.Sprint(err), a.words) {
					t.Errorf("%s, %s: %v", a.text, what, err)
				}
			}
		})
	}
}

// TestNeverAnswered: the client gives up, and what was sent may have been done.
func TestNeverAnswered(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fake) {
		s := f.store()
		rec := acquired(t, s, claim("alice", "a1"))
		f.hooks(func(r request) any { return drop{} }, nil)
		for what, call := range verbs(rec) {
			if err := call(t.Context(), s); !strings.Contains(fmt.Sprint(err), "has closed the connection") {
				t.Errorf("%s: %v", what, err)
			} else {
				unknown(t, what, err)
			}
		}
	})
}

// TestResentTogether: of what went together and was answered in part, each has an
// answer that is true.
func TestResentTogether(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fake) {
		s := f.store()
		m := hold(t, s, 10)
		release := make(chan struct{})
		dropped := 0
		f.hooks(nil, func(r request, _ any) any {
			r.wait(release)
			if r.name() == "n7" && dropped < 2 {
				dropped++
				return drop{}
			}
			return nil
		})
		m.renew(t.Context(), 0, 2)
		time.Sleep(time.Millisecond)
		m.renew(t.Context(), 2, 8)
		for i := 8; i < 10; i++ {
			m.wg.Go(func() { m.errs[i] = s.Release(t.Context(), m.recs[i]) })
		}
		time.Sleep(time.Millisecond)
		close(release)
		m.wg.Wait()
		for i, err := range m.errs {
			if err != nil {
				t.Errorf("n%d: %v", i, err)
			}
		}
		if dropped != 2 {
			t.Errorf("%d connections were dropped", dropped)
		}
		for i := 8; i < 10; i++ {
			if row := f.now(fmt.Sprint("n", i)); row.alive != nil {
				t.Errorf("n%d is held", i)
			}
		}
	})
}

// TestMarked: the script is told how often it was sent, by the number that it gets.
func TestMarked(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fake) {
		s := f.store()
		rec := acquired(t, s, claim("alice", "a1"))
		var told []string
		f.hooks(func(r request) any {
			told = append(told, r.args[9])
			if r.n == 1 && r.what == "renew" {
				return drop{}
			}
			return nil
		}, nil)
		if _, err := s.Renew(t.Context(), rec); err != nil {
			t.Error(err)
		}
		f.flush()
		if _, err := s.Renew(t.Context(), rec); err != nil {
			t.Error(err)
		}
		if got := strings.Join(told, " "); got != "1 2 1 1" {
			t.Errorf("it was told %s, want 1 2, and 1 1 as NOSCRIPT does not count", got)
		}
	})
}

// TestResentGreeting: what was sent once may have been done, whatever the server answers
// when the client connects to send it again.
func TestResentGreeting(t *testing.T) {
	for what := range verbs(backend.Record{}) {
		inBubble(t, func(t *testing.T, f *fake) {
			s := f.storeOf(f.client(func(o *goredis.Options) { o.Password = "x" }))
			rec := acquired(t, s, claim("alice", "a1"))
			f.hooks(nil, func(r request, _ any) any {
				f.with(func() {
					f.greet = func([]string) any {
						return refusal("WRONGPASS invalid username-password pair or user is disabled.")
					}
				})
				return drop{}
			})
			if err := verbs(rec)[what](t.Context(), s); what != "get" {
				if unknown(t, what, err); !strings.Contains(fmt.Sprint(err), "does not accept the user name or the password") {
					t.Errorf("%s: %v", what, err)
				}
			}
		})
	}
}
