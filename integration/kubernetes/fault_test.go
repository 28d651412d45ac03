package kubernetes_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/integration/internal/scene"
	"github.com/leasehold/leasehold/integration/internal/servers"
	"github.com/leasehold/leasehold/integration/internal/wire"
	"github.com/leasehold/leasehold/lease"
)

// pair is a holder, which a fault will hit, and one that waits for its lease and
// has a way to the server of its own.
type pair struct {
	*room
	duration      time.Duration
	holder        *scene.Tenure
	waiter        *scene.Tenure
	wire          *wire.Proxy // of the holder
	sends, grants *through    // of the holder, of the waiter
}

// pair returns when the holder has renewed and the waiter knows that it is not
// its turn.
func (r *room) pair(name string, duration time.Duration) *pair {
	r.Helper()
	p := &pair{room: r, duration: duration, wire: r.proxy()}
	cfg, sends := wrap(r.k.ConfigVia(servers.Admin, p.wire.Addr()))
	p.sends = sends
	p.holder = scene.Hold(r, scene.Lease(r, r.open(cfg), name, duration))
	scene.Eventually(r, "the holder renews", func() bool { _, n := sends.renewed(); return n > 1 })

	cfg, p.grants = wrap(r.config())
	p.waiter = scene.Blocked(r, r.open(cfg), name, duration, p.holder.Lease)
	return p
}

// passesOver checks that the holder stops before the waiter is let in: before
// the waiter so much as asks for it. All instants are of one clock.
func (p *pair) passesOver() {
	p.Helper()
	scene.Await(p, "the waiter is granted the lease", p.waiter.Began)
	asked, _ := p.grants.renewed()
	last, _ := p.sends.renewed()
	select {
	case <-p.holder.Ended:
	default:
		p.Fatal("two hold the lease: the holder's context has not ended, and the waiter is granted it")
	}
	if !p.holder.Stopped.Before(asked) {
		p.Errorf("the holder's context ended %v after the write that let another in was sent", p.holder.Stopped.Sub(asked))
	}
	// The waiter saw the last renewal after it was sent at the earliest.
	if early := last.Add(p.duration * 101 / 100).Sub(asked); early > 0 {
		p.Errorf("the lease was taken over %v before the duration since the last acknowledged renewal had passed", early)
	}
	scene.Follows(p, p.waiter, p.holder)
	p.Logf("stopped %v after the last acknowledged renewal was sent, passed over after %v",
		p.holder.Stopped.Sub(last).Round(time.Millisecond), asked.Sub(last).Round(time.Millisecond))
	p.goesOn()
}

// goesOn checks that who lost the lease gets it again once the waiter has left.
func (p *pair) goesOn() {
	p.Helper()
	scene.AwaitFor(p, 2*scene.Patience, "Run returns", p.holder.Result)
	p.wire.Heal()
	p.wire.Delay(0)
	p.sends.set(nil)
	again := scene.Run(p, p.holder.Lease, p.waiter.Lease)
	p.waiter.Leave()
	if err := scene.Await(p, "Run returns", p.waiter.Result); err != nil {
		p.Errorf("the waiter's tenure: %v", err)
	}
	scene.Await(p, "the former holder is granted the lease again", again.Began)
	scene.Follows(p, again, p.waiter)
	again.Leave()
	if err := scene.Await(p, "Run returns", again.Result); err != nil {
		p.Errorf("the last tenure: %v", err)
	}
}

// endures checks, after a fault that began at an instant is over, that the
// tenure outlives the duration as if nothing had been.
func (p *pair) endures(since time.Time, writes int) {
	p.Helper()
	scene.Pass(p, time.Until(since.Add(p.duration*11/10)))
	select {
	case <-p.waiter.Began:
		p.Fatal("the waiter is granted the lease")
	default:
	}
	if !p.holder.Alive() {
		p.Fatalf("the blip cost the lease: %v", p.holder.Context().Err())
	}
	if _, n := p.sends.renewed(); n <= writes {
		p.Errorf("nothing was renewed since: %d writes before and after", n)
	}
	p.holder.Leave()
	if err := scene.Await(p, "Run returns", p.holder.Result); err != nil {
		p.Errorf("the holder's tenure: %v", err)
	}
	scene.Await(p, "the waiter is granted the lease", p.waiter.Began)
	scene.Follows(p, p.waiter, p.holder)
}

// TestHolderStopsFirst: whatever is wrong between a holder and the server, its
// context has ended before anybody else is granted the lease.
func TestHolderStopsFirst(t *testing.T) {
	const duration = 4 * time.Second
	for name, fault := range map[string]func(p *pair){
		"the connections are cut":         func(p *pair) { p.wire.Cut() },
		"the connections are black-holed": func(p *pair) { p.wire.BlackHole() },
		"every reply is lost":             func(p *pair) { p.wire.DropReplies() },
		"the write hangs":                 func(p *pair) { p.sends.set(only(hang, http.MethodPut, http.MethodDelete)) },
		"the write fails":                 func(p *pair) { p.sends.set(only(fail, http.MethodPut, http.MethodDelete)) },
		"the write arrives and its reply is lost": func(p *pair) {
			// Each renewal makes the waiter wait anew; none is known to the holder.
			p.sends.set(only(func(req *http.Request, next http.RoundTripper) (*http.Response, error) {
				if p.sendsSince(p.holder.Granted) > 6 {
					return fail(req, next)
				}
				return forgetful(req, next)
			}, http.MethodPut, http.MethodDelete))
		},
		"the acknowledgement is late, then nothing": func(p *pair) {
			// Just within the time that the holder gives a call. Counted from the
			// acknowledgement, the tenure would last longer than the waiter waits.
			const late = duration / 9
			p.wire.Delay(late)
			scene.Eventually(p, "a renewal is acknowledged late", func() bool {
				for _, q := range p.sends.sent(http.MethodPut) {
					if q.code == http.StatusOK && q.done.Sub(q.sent) >= 2*late {
						return true
					}
				}
				return false
			})
			p.wire.BlackHole()
		},
		"the write arrives after most of the duration, then nothing": func(p *pair) {
			p.wire.Delay(duration * 7 / 10)
			before := p.object("job").ResourceVersion
			scene.Eventually(p, "a renewal arrives", func() bool { return p.object("job").ResourceVersion != before })
			p.wire.Cut()
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := enter(t).pair("job", duration)
			fault(p)
			p.passesOver()
		})
	}
}

func (p *pair) sendsSince(t time.Time) (n int) {
	for _, q := range p.sends.sent(http.MethodPut) {
		if q.sent.After(t) {
			n++
		}
	}
	return n
}

// TestBlip: what is over before the duration is costs nothing.
func TestBlip(t *testing.T) {
	const (
		duration = 6 * time.Second
		blip     = 1500 * time.Millisecond
	)
	busy := http.Header{"Retry-After": {"1"}}
	for name, fault := range map[string]func(p *pair){
		"cut": func(p *pair) {
			p.wire.Cut()
			scene.Pass(p, 2*time.Second)
			p.wire.Heal()
		},
		// What was black-holed stays so after Heal, and is never closed: whoever waits
		// for such a connection waits for ever.
		"black hole": func(p *pair) {
			p.wire.BlackHole()
			scene.Pass(p, blip)
			p.wire.Heal()
		},
		"a dead connection that nobody closes": func(p *pair) {
			p.wire.BlackHole()
			p.wire.Heal()
		},
		"replies lost": func(p *pair) {
			p.wire.DropReplies()
			scene.Pass(p, blip)
			p.wire.Heal()
		},
		"slow": func(p *pair) {
			p.wire.Delay(blip / 2)
			scene.Pass(p, blip)
			p.wire.Delay(0)
		},
		"writes fail": func(p *pair) {
			p.sends.set(only(fail, http.MethodPut))
			scene.Pass(p, blip)
			p.sends.set(nil)
		},
		"the server is busy": func(p *pair) {
			p.sends.set(only(answer(http.StatusTooManyRequests, busy, "too many requests"), http.MethodPut))
			scene.Pass(p, blip)
			p.sends.set(nil)
		},
		"the server fails": func(p *pair) {
			p.sends.set(answer(http.StatusServiceUnavailable, nil, "no endpoints available"))
			scene.Pass(p, blip)
			p.sends.set(nil)
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := enter(t).pair("job", duration)
			began := time.Now()
			_, writes := p.sends.renewed()
			fault(p)
			p.endures(began, writes)
		})
	}
}

// TestDeadConnections: a waiter whose connections have all gone silent without an
// end still learns that the lease is free.
func TestDeadConnections(t *testing.T) {
	r := enter(t)
	const duration = 5 * time.Second
	holder := scene.Hold(r, scene.Lease(r, r.store(), "job", duration))
	proxy := r.proxy()
	waiter := scene.Blocked(r, r.open(r.k.ConfigVia(servers.Admin, proxy.Addr())), "job", duration)
	proxy.BlackHole()
	proxy.Heal()
	left := time.Now()
	holder.Leave()
	if err := scene.Await(r, "Run returns", holder.Result); err != nil {
		t.Error(err)
	}
	scene.Await(r, "the waiter is granted the lease", waiter.Began)
	t.Logf("granted %v after the holder left", waiter.Granted.Sub(left).Round(time.Millisecond))
}

// TestSilentWatch: a stream of events that tells nothing does not keep a waiter
// until the duration is over.
func TestSilentWatch(t *testing.T) {
	r := enter(t)
	const duration = 16 * time.Second
	holder := scene.Hold(r, scene.Lease(r, r.store(), "job", duration, lease.WithoutRenewal()))
	cfg, sends := wrap(r.config())
	sends.set(func(req *http.Request, next http.RoundTripper) (*http.Response, error) {
		resp, err := next.RoundTrip(req)
		if err == nil && isWatch(req) {
			resp.Body = &silence{resp.Body, req.Context()}
		}
		return resp, err
	})
	waiter := scene.Blocked(r, r.open(cfg), "job", duration)
	since := time.Now()
	holder.Leave()
	if err := scene.Await(r, "Run returns", holder.Result); err != nil {
		t.Error(err)
	}
	scene.Await(r, "the waiter is granted the lease", waiter.Began)
	took := waiter.Granted.Sub(since)
	if took >= duration {
		t.Errorf("granted only %v after the holder left: the waiter was told nothing, and has watched it for the duration", took)
	}
	t.Logf("granted %v after the holder left", took.Round(time.Millisecond))
}

// silence is a body that nothing comes out of.
type silence struct {
	io.Closer
	ctx context.Context
}

func (s *silence) Read([]byte) (int, error) {
	<-s.ctx.Done()
	return 0, context.Cause(s.ctx)
}

// TestServer kills and pauses a server, and sets one up as none is by default.
func TestServer(t *testing.T) {
	t.Parallel()
	// Without the gate the API server drops spec.strategy.
	k := servers.OwnKubernetes(t, servers.WithFlags("--feature-gates=CoordinatedLeaderElection=true", "--runtime-config=coordination.k8s.io/v1beta1=true"))
	const (
		short = 3 * time.Second  // over before the server is back
		long  = 30 * time.Second // not over
	)
	// Of each there is a pair, of holder and waiter.
	outage := func(t *testing.T, down, up func(r *room)) {
		r := roomOn(t, k)
		lost, kept := r.pair("short", short), r.pair("long", long)
		_, writes := kept.sends.renewed()
		began := time.Now()
		down(r)
		scene.Await(r, "the context of the short lease ends", lost.holder.Ended)
		scene.Pass(r, time.Until(began.Add(short*3/2))) // the waiter would be let in now
		up(r)
		over := time.Now()
		if over.Sub(began) > long*8/10 {
			t.Skipf("the server was away for %v, which the lease of %v was not to survive", over.Sub(began), long)
		}
		lost.passesOver()
		// Everything is as it was, and the server has been told since.
		scene.EventuallyFor(r, long, "the long lease is renewed", func() bool { _, n := kept.sends.renewed(); return n > writes })
		if !kept.holder.Alive() {
			t.Errorf("the outage of %v cost a lease of %v: %v", over.Sub(began), long, kept.holder.Context().Err())
		}
		kept.holder.Leave()
		scene.Await(r, "the waiter of the long lease is granted it", kept.waiter.Began)
		t.Logf("away for %v", over.Sub(began).Round(time.Millisecond))
	}
	must := func(r *room, err error) {
		r.Helper()
		if err != nil {
			r.Fatal(err)
		}
	}
	t.Run("killed and started again", func(t *testing.T) {
		outage(t,
			func(r *room) { must(r, k.Stop(r.Context())) },
			func(r *room) { must(r, k.Start(r.Context())) })
	})
	t.Run("paused and resumed", func(t *testing.T) {
		outage(t,
			func(r *room) { must(r, k.Pause(r.Context())) },
			func(r *room) { must(r, k.Resume(r.Context())) })
	})
	t.Run("paused for a moment", func(t *testing.T) {
		r := roomOn(t, k)
		p := r.pair("job", 6*time.Second)
		_, writes := p.sends.renewed()
		began := time.Now()
		must(r, k.Pause(r.Context()))
		scene.Pass(r, 1500*time.Millisecond)
		must(r, k.Resume(r.Context()))
		p.endures(began, writes)
	})
	t.Run("strategy", func(t *testing.T) { testStrategy(roomOn(t, k)) })
}

// testStrategy: an object whose holder the API server chooses is left alone.
func testStrategy(r *room) {
	for _, holder := range []string{"", "chosen-by-the-server"} {
		name := fmt.Sprintf("coordinated-%d", len(holder))
		spec := coordinationv1.LeaseSpec{Strategy: ptr(coordinationv1.OldestEmulationVersion)}
		if holder != "" {
			spec.HolderIdentity, spec.LeaseDurationSeconds = &holder, ptr[int32](1)
			spec.RenewTime = ptr(metav1.NewMicroTime(time.Now().Add(-time.Hour)))
		}
		before := r.create(name, spec)
		if before.Spec.Strategy == nil {
			r.Skip("this API server does not know spec.strategy")
		}
		s := r.store()
		rec := scene.Get(r, s, name)
		if _, err := s.Acquire(r.Context(), scene.Claim(name, "a", time.Second)); holder == "" && !errors.Is(err, backend.ErrUnsupported) || holder != "" && !errors.Is(err, backend.ErrHeld) {
			r.Errorf("acquire over holder %q and a strategy: %v", holder, err)
		}
		c := scene.Claim(name, "a", time.Second)
		c.Over = rec.Revision
		_, err := s.Acquire(r.Context(), c)
		if !errors.Is(err, backend.ErrUnsupported) {
			r.Errorf("acquire over the revision of holder %q and a strategy: %v", holder, err)
		}
		scene.Mentions(r, err, "strategy", string(*before.Spec.Strategy))
		if after := r.object(name); after.ResourceVersion != before.ResourceVersion {
			r.Errorf("the object was touched: %v", after.Spec)
		}
	}
}
