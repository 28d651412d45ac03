package kubernetes_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/integration/internal/scene"
	"github.com/leasehold/leasehold/kubernetes"
	"github.com/leasehold/leasehold/lease"
)

// foreignHolder is what another program writes that knows nothing of Leasehold.
func foreignHolder(holder string, seconds int32) coordinationv1.LeaseSpec {
	now := metav1.NewMicroTime(time.Now())
	return coordinationv1.LeaseSpec{HolderIdentity: &holder, LeaseDurationSeconds: &seconds, AcquireTime: &now, RenewTime: &now, LeaseTransitions: ptr[int32](7)}
}

// again creates an object as a backup tool does: with everything but what the
// server gives.
func (r *room) again(l *coordinationv1.Lease) *coordinationv1.Lease {
	r.Helper()
	l = l.DeepCopy()
	l.UID, l.ResourceVersion, l.ManagedFields, l.CreationTimestamp = "", "", nil, metav1.Time{}
	after, err := r.leases.Create(r.Context(), l, metav1.CreateOptions{})
	if err != nil {
		r.Fatal(err)
	}
	return after
}

// TestTakenAway: what somebody else does to the object under a live holder ends
// its tenure, and no token is ever given twice.
func TestTakenAway(t *testing.T) {
	// Renewals are far apart, so that what is told soon was told by the watch.
	const duration = 3 * time.Minute
	for name, harm := range map[string]struct {
		do   func(r *room)
		free bool // the lease can be had at once
		mine bool // or perhaps, since the object still names the holder, who may free what is its own
	}{
		"deleted": {func(r *room) { r.remove("job") }, true, false},
		"vacated": {func(r *room) {
			r.edit("job", func(l *coordinationv1.Lease) {
				l.Spec.HolderIdentity, l.Spec.LeaseDurationSeconds, l.Spec.AcquireTime, l.Spec.RenewTime = nil, nil, nil, nil
			})
		}, true, false},
		"overwritten": {func(r *room) {
			r.edit("job", func(l *coordinationv1.Lease) {
				spec := foreignHolder("somebody else", 1)
				spec.LeaseTransitions = ptr(*l.Spec.LeaseTransitions + 1)
				l.Spec = spec
			})
		}, false, false},
		"overwritten, transitions kept": {func(r *room) {
			r.edit("job", func(l *coordinationv1.Lease) { l.Spec.HolderIdentity = ptr("somebody else") })
		}, false, false},
		"deleted and restored": {func(r *room) {
			backup := r.object("job")
			r.remove("job")
			r.again(backup)
		}, false, true},
		"deleted and created by another": {func(r *room) {
			r.remove("job")
			r.create("job", foreignHolder("somebody else", 1))
		}, false, false},
	} {
		for _, renewed := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, renewed %v", name, renewed), func(t *testing.T) {
				r := enter(t)
				cfg, sends := wrap(r.config())
				s := r.open(cfg)
				h := scene.Hold(r, scene.Lease(r, s, "job", duration))
				if renewed { // the token is annotated then
					if err := h.Renew(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
				// It is an event that must tell: not the look at the beginning of the watch,
				// and not that after a second, in case the watch does not begin.
				scene.Eventually(r, "the holder watches", func() bool {
					for _, q := range sends.sent(http.MethodGet) {
						if q.watch && q.code == http.StatusOK {
							return true
						}
					}
					return false
				})
				scene.Pass(r, 1500*time.Millisecond)
				began := time.Now()
				harm.do(r)
				scene.Await(r, "the holder is told", h.Ended)
				if !errors.Is(h.Cause, lease.ErrTaken) {
					t.Errorf("the tenure ended with %v; want ErrTaken", h.Cause)
				}
				t.Logf("told after %v", h.Stopped.Sub(began).Round(time.Millisecond))
				err := scene.Await(r, "Run returns", h.Result)
				if !errors.Is(err, lease.ErrTaken) {
					t.Errorf("Run: %v; want ErrTaken", err)
				}
				_, err = s.Get(t.Context(), "job")
				if harm.free || harm.mine && errors.Is(err, backend.ErrNotFound) {
					rec := scene.Grant(r, s, scene.Claim("job", "next", time.Second))
					if rec.Token <= h.Grant.Token {
						t.Errorf("token %d follows %d", rec.Token, h.Grant.Token)
					}
					return
				}
				// The release after the loss has left alone what is not its own.
				if l := r.object("job"); value(l.Spec.HolderIdentity) == "" {
					t.Errorf("who lost the lease has freed it: %v", l.Spec)
				}
				rec := scene.Get(r, s, "job")
				if rec.Token != 0 && rec.Token <= h.Grant.Token {
					t.Errorf("the record has the token %d after %d", rec.Token, h.Grant.Token)
				}
				c := scene.Claim("job", "next", time.Second)
				c.Over = rec.Revision
				if next := scene.Grant(r, s, c); next.Token <= max(h.Grant.Token, rec.Token) {
					t.Errorf("token %d follows %d and %d", next.Token, h.Grant.Token, rec.Token)
				}
			})
		}
	}
}

// TestTakenAwayUnwatched: without the right to watch, the next renewal tells.
func TestTakenAwayUnwatched(t *testing.T) {
	for name, harm := range map[string]func(r *room){
		"deleted": func(r *room) { r.remove("job") },
		"overwritten": func(r *room) {
			r.edit("job", func(l *coordinationv1.Lease) { l.Spec = foreignHolder("somebody else", 60) })
		},
		"restored": func(r *room) {
			backup := r.object("job")
			r.remove("job")
			r.again(backup)
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := enter(t)
			r.may("holder", []string{"get", "create", "update"})
			cfg, w := wrap(r.k.Config("holder"))
			s := r.open(cfg, kubernetes.WithPollInterval(time.Hour), kubernetes.WithLogger(new(journal).logger()))
			h := scene.Hold(r, scene.Lease(r, s, "job", 6*time.Second))
			scene.Eventually(r, "the first renewal", func() bool { _, n := w.renewed(); return n > 1 })
			harm(r)
			done := time.Now()
			scene.Await(r, "the holder is told", h.Ended)
			if !errors.Is(h.Cause, lease.ErrTaken) {
				t.Errorf("the tenure ended with %v; want ErrTaken", h.Cause)
			}
			puts := w.sent("PUT")
			if last := puts[len(puts)-1]; last.sent.Before(done) || last.code != 409 {
				t.Errorf("the loss was not found by a renewal: %+v", last)
			}
		})
	}
}

// TestCorrupt: what nobody can read is told with its place, and overwritten by
// nobody who does not insist.
func TestCorrupt(t *testing.T) {
	for name, garbage := range map[string]string{
		"garbage":        "}{",
		"another type":   `["x"]`,
		"a newer format": `{"format":2,"holder":"a","transitions":0}`,
		"no token":       `{"format":1,"holder":"a","transitions":0,"uid":"1"}`,
		"a great token":  `{"format":1,"holder":"a","transitions":0,"uid":"1","token":9007199254740992}`,
	} {
		t.Run(name, func(t *testing.T) {
			r := enter(t)
			s := r.store()
			refused := make(chan error, 100)
			h := scene.Hold(r, scene.Lease(r, s, "job", 6*time.Second, lease.WithObserver(func(e lease.Event) {
				if errors.Is(e.Err, backend.ErrCorrupt) {
					select {
					case refused <- e.Err:
					default:
					}
				}
			})))
			if err := h.Renew(t.Context()); err != nil {
				t.Fatal(err)
			}
			r.create("other", foreignHolder("somebody else", 60))
			held := h.Record()
			r.edit("job", func(l *coordinationv1.Lease) { l.Annotations[tenureAnnotation] = garbage })
			// It cannot be renewed any more, says why, and ends.
			scene.Await(r, "the holder is told", refused)
			scene.Await(r, "the holder's context ends", h.Ended)
			scene.Await(r, "Run returns", h.Result)
			before := r.object("job")

			for who, s := range map[string]*kubernetes.Store{"the holder's client": s, "another": r.store()} {
				_, getting := s.Get(t.Context(), "job")
				_, acquiring := s.Acquire(t.Context(), scene.Claim("job", "b", time.Second))
				_, renewing := s.Renew(t.Context(), held)
				wrong := scene.Claim("job", "b", time.Second)
				wrong.Over = held.Revision
				_, forcing := s.Acquire(t.Context(), wrong)
				for call, err := range map[string]error{"get": getting, "acquire": acquiring, "renew": renewing, "release": s.Release(t.Context(), held), "acquire over an old revision": forcing} {
					var corrupt *backend.CorruptError
					if !errors.As(err, &corrupt) {
						t.Errorf("%s, %s: %v; want ErrCorrupt", who, call, err)
						continue
					}
					if corrupt.Name != "job" || !strings.Contains(corrupt.Where, r.namespace+"/job") || corrupt.Revision == "" {
						t.Errorf("%s, %s: %+v does not say where", who, call, corrupt)
					}
					scene.Mentions(r, err, r.namespace+"/job", tenureAnnotation)
				}
				listed := make(map[string]error)
				for rec, err := range backend.List(t.Context(), s, "") {
					listed[rec.Name] = err
				}
				if err, ok := listed["other"]; len(listed) != 2 || !ok || err != nil || !errors.Is(listed["job"], backend.ErrCorrupt) {
					t.Errorf("%s: list: %v", who, listed)
				}
			}
			ctx, cancel := context.WithTimeout(t.Context(), scene.Patience)
			defer cancel()
			if err := scene.Lease(r, s, "job", time.Second).Await(ctx); !errors.Is(err, backend.ErrCorrupt) {
				t.Errorf("await: %v; want ErrCorrupt", err)
			}
			if after := r.object("job"); after.ResourceVersion != before.ResourceVersion {
				t.Errorf("the object was touched: %v", after)
			}

			var corrupt *backend.CorruptError
			_, err := r.store().Get(t.Context(), "job")
			if !errors.As(err, &corrupt) {
				t.Fatal(err)
			}
			force := scene.Claim("job", "b", time.Second)
			force.Over = corrupt.Revision
			rec := scene.Grant(r, r.store(), force)
			if rec.Token <= h.Grant.Token {
				t.Errorf("token %d follows %d", rec.Token, h.Grant.Token)
			}
			if got := scene.Get(r, s, "job"); got.Holder != "b" || got.Token != rec.Token {
				t.Errorf("after it was forced: %+v", got)
			}
		})
	}
}

// TestTokensRise over everything that happens to an object, and what others read
// of them.
func TestTokensRise(t *testing.T) {
	r := enter(t)
	s := r.store()
	var last uint64
	check := func(what string, rec backend.Record) {
		t.Helper()
		if rec.Token <= last {
			t.Errorf("%s: token %d follows %d", what, rec.Token, last)
		}
		last = rec.Token
		for range 2 {
			if again := scene.Renew(r, s, rec); again.Token != rec.Token {
				t.Errorf("%s: a renewal changed the token from %d to %d", what, rec.Token, again.Token)
			}
			if got := scene.Get(r, r.store(), "job"); got.Token != rec.Token {
				t.Errorf("%s: another client reads the token %d; it is %d", what, got.Token, rec.Token)
			}
		}
	}
	take := func() backend.Record { return scene.Grant(r, s, scene.Claim("job", "a", 10*time.Second)) }
	check("the first", take())
	r.remove("job")
	check("after a deletion", take())
	scene.Release(r, s, scene.Get(r, s, "job"))
	check("after a release", take())
	r.remove("job")
	r.create("job", coordinationv1.LeaseSpec{})
	check("after another program's re-creation", take())
	r.edit("job", func(l *coordinationv1.Lease) { l.Spec.HolderIdentity = nil })
	check("after another program vacated it", take())
	backup := r.object("job")
	r.remove("job")
	r.again(backup)
	rec := scene.Get(r, s, "job")
	if rec.Token != 0 {
		t.Errorf("a restored tenure, whose holder nobody has asked, has the token %d", rec.Token)
	}
	c := scene.Claim("job", "a", 10*time.Second)
	c.Over = rec.Revision
	check("after a backup was restored", scene.Grant(r, s, c))
}

// TestPendingToken: the token of a new object is known to its creator alone until
// the first renewal. Whoever else looks, and whatever is edited, never sees less,
// and the next tenure has more.
func TestPendingToken(t *testing.T) {
	r := enter(t)
	creator, other := r.store(), r.store()
	c := scene.Claim("job", "a", 10*time.Second)
	rec := scene.Grant(r, creator, c)
	if got := scene.Get(r, other, "job"); got.Token != rec.Token {
		t.Errorf("nothing was edited, and another reads the token %d; it is %d", got.Token, rec.Token)
	}
	early := scene.Get(r, other, "job")
	for i := range 3 {
		r.edit("job", func(l *coordinationv1.Lease) { l.Labels = map[string]string{"edit": fmt.Sprint(i)} })
	}
	if got := scene.Get(r, creator, "job"); got.Token != rec.Token {
		t.Errorf("the creator reads the token %d; it was granted %d", got.Token, rec.Token)
	}
	bound := scene.Get(r, other, "job")
	if bound.Token < rec.Token {
		t.Errorf("another reads the token %d, which is less than %d", bound.Token, rec.Token)
	}
	if bound.Attempt != c.Attempt || bound.Holder != "a" {
		t.Errorf("another does not recognize the tenure: %+v", bound)
	}
	if renewed := scene.Renew(r, creator, rec); renewed.Token != rec.Token {
		t.Errorf("the first renewal changed the token from %d to %d", rec.Token, renewed.Token)
	}
	for who, s := range map[string]*kubernetes.Store{"the creator": creator, "another": other, "a newcomer": r.store()} {
		if got := scene.Get(r, s, "job"); got.Token != rec.Token {
			t.Errorf("after the first renewal %s reads the token %d; it is %d", who, got.Token, rec.Token)
		}
	}
	// What was read while it was pending still names the tenure.
	for _, old := range []backend.Record{early, bound} {
		scene.Renew(r, other, old)
	}
	scene.Release(r, other, bound)
	if _, err := creator.Renew(t.Context(), rec); !errors.Is(err, backend.ErrLost) {
		t.Errorf("a renewal after the release: %v; want ErrLost", err)
	}
	if next := scene.Grant(r, other, scene.Claim("job", "b", 10*time.Second)); next.Token <= bound.Token {
		t.Errorf("token %d follows %d, which others had read", next.Token, bound.Token)
	}
}

// TestLongDead: a lease whose holder died long ago is there for a newcomer at
// once, one whose holder has died just now after it was watched for its duration.
func TestLongDead(t *testing.T) {
	const duration = 2 * time.Second
	t.Run("margin of a second", func(t *testing.T) {
		r := enter(t)
		testLongDead(r, duration, time.Second, kubernetes.WithExpiryMargin(time.Second))
	})
	t.Run("default margin", func(t *testing.T) {
		if !scene.Slow() {
			t.Skip("takes more than a minute: LEASEHOLD_SLOW=1")
		}
		testLongDead(enter(t), duration, time.Minute)
	})
	t.Run("another program's", func(t *testing.T) {
		r := enter(t)
		r.create("job", foreignHolder("somebody else", 1))
		scene.Pass(r, 4*time.Second)
		if err := scene.Lease(r, r.store(kubernetes.WithExpiryMargin(time.Second)), "job", time.Minute).Acquire(t.Context()); err != nil {
			t.Errorf("a newcomer does not get what another program left long ago: %v", err)
		}
	})
	t.Run("not judged", func(t *testing.T) {
		r := enter(t)
		scene.Grant(r, r.store(), scene.Claim("job", "dead", time.Second))
		scene.Pass(r, 4*time.Second)
		if err := scene.Lease(r, r.store(kubernetes.WithExpiryMargin(0)), "job", time.Minute).Acquire(t.Context()); !errors.Is(err, backend.ErrHeld) {
			t.Errorf("without a margin nothing is expired by the server's clock: %v", err)
		}
	})
	t.Run("freshly dead", func(t *testing.T) {
		r := enter(t)
		granted := time.Now()
		scene.Grant(r, r.store(), scene.Claim("job", "dead", 4*time.Second))
		newcomer := scene.Lease(r, r.store(), "job", time.Minute)
		began := time.Now()
		if err := newcomer.Acquire(t.Context()); !errors.Is(err, backend.ErrHeld) {
			t.Errorf("the lease of a holder that may be alive: %v", err)
		}
		if err := newcomer.Await(t.Context()); err != nil {
			t.Fatal(err)
		}
		if early := 4*time.Second*101/100 - time.Since(began); early > 0 {
			t.Errorf("taken over %v before it was observed for its duration", early)
		}
		t.Logf("granted %v after the death", time.Since(granted).Round(time.Millisecond))
	})
}

func testLongDead(r *room, duration, margin time.Duration, opts ...kubernetes.Option) {
	s := r.store(opts...)
	dead := scene.Grant(r, s, scene.Claim("job", "dead", duration))
	asked := time.Now()
	dead = scene.Renew(r, s, dead)
	died := time.Now()
	// Not before the margin, whoever looks.
	var seen time.Time
	for seen.IsZero() {
		rec := scene.Get(r, r.store(opts...), "job")
		switch age := time.Since(asked); {
		case rec.Expired && age < duration+margin:
			r.Fatalf("called expired after %v, with a duration of %v and a margin of %v", age, duration, margin)
		case rec.Expired:
			seen = time.Now()
		case time.Since(died) > duration+margin+scene.Patience:
			r.Fatal("never called expired")
		}
		scene.Pass(r, 50*time.Millisecond)
	}
	newcomer := scene.Lease(r, r.store(opts...), "job", time.Minute)
	if err := newcomer.Acquire(r.Context()); err != nil {
		r.Fatalf("a newcomer does not get what was left long ago: %v", err)
	}
	if newcomer.Token() <= dead.Token {
		r.Errorf("token %d follows %d", newcomer.Token(), dead.Token)
	}
	if _, err := s.Renew(r.Context(), dead); !errors.Is(err, backend.ErrLost) {
		r.Errorf("the dead holder renews: %v; want ErrLost", err)
	}
	r.Logf("called expired %v after its last renewal", seen.Sub(died).Round(time.Millisecond))
}
