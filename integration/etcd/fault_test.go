package etcd_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/etcd"
	"github.com/leasehold/leasehold/integration/internal/scene"
	"github.com/leasehold/leasehold/integration/internal/servers"
	"github.com/leasehold/leasehold/integration/internal/wire"
	"github.com/leasehold/leasehold/lease"
)

// pair is a holder, which a fault will hit, and one that waits for its lease and
// has a way to the server of its own.
type pair struct {
	*room
	duration time.Duration
	holder   *scene.Tenure
	waiter   *scene.Tenure
	wires    []*wire.Proxy // of the holder, to each member
	sends    *tap          // of the holder
}

// pair returns when the holder has renewed and the waiter knows that it is not
// its turn.
func (r *room) pair(name string, duration time.Duration) *pair {
	r.Helper()
	p := &pair{room: r, duration: duration, sends: new(tap)}
	var through []string
	for i := range r.e.Members() {
		w := r.proxy(i)
		p.wires = append(p.wires, w)
		through = append(through, "http://"+w.Addr())
	}
	s := r.open(tapped(p.sends), func(cfg *clientv3.Config) { cfg.Endpoints = through })
	p.holder = scene.Hold(r, scene.Lease(r, s, name, duration))
	scene.Eventually(r, "the holder renews", func() bool { _, n := p.sends.renewed(); return n > 0 })
	p.waiter = scene.Blocked(r, r.open(), name, duration, p.holder.Lease)
	return p
}

func (p *pair) wire() *wire.Proxy { return p.wires[0] }

// reset heals the wire, and ends the connections that would stay dead.
func reset(w *wire.Proxy) {
	w.Delay(0)
	w.Cut()
	w.Heal()
}

// passesOver checks that the holder has stopped when the waiter is let in, by one
// clock. bare is false if it may be the holder's own release that lets it in.
func (p *pair) passesOver(bare bool) {
	p.Helper()
	scene.AwaitFor(p, p.duration+scene.Patience, "the waiter is granted the lease", p.waiter.Began)
	scene.Follows(p, p.waiter, p.holder)
	scene.Await(p, "the holder's context ends", p.holder.Ended)
	last, _ := p.sends.renewed()
	if early := last.Add(p.duration).Sub(p.waiter.Granted); bare && early > 0 {
		p.Errorf("the lease was passed over %v before the duration since the last acknowledged renewal had passed", early)
	}
	p.Logf("stopped %s after the last acknowledged renewal was sent, passed over after %s", ms(p.holder.Stopped.Sub(last)), ms(p.waiter.Granted.Sub(last)))
	p.fenced(p.waiter.Store().(*etcd.Store), p.holder.Grant)

	// Who lost the lease gets it again once the waiter has left.
	scene.AwaitFor(p, 2*scene.Patience, "Run returns", p.holder.Result)
	for _, w := range p.wires {
		reset(w)
	}
	again := scene.Run(p, p.holder.Lease, p.waiter.Lease)
	p.waiter.Leave()
	if err := scene.Await(p, "Run returns", p.waiter.Result); err != nil {
		p.Errorf("the waiter's tenure: %v", err)
	}
	scene.Await(p, "the former holder is granted the lease again", again.Began)
	scene.Follows(p, again, p.waiter)
}

// endures checks, after a fault that began at an instant is over, that the
// tenure outlives the duration as if nothing had been.
func (p *pair) endures(since time.Time, renewals int) {
	p.Helper()
	scene.Pass(p, time.Until(since.Add(p.duration*11/10)))
	select {
	case <-p.waiter.Began:
		p.Fatal("the waiter is granted the lease")
	default:
	}
	if !p.holder.Alive() {
		p.Fatalf("the blip cost the lease: %v", context.Cause(p.holder.Context()))
	}
	if _, n := p.sends.renewed(); n <= renewals {
		p.Errorf("nothing was renewed since: %d renewals before and after", n)
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
	for name, c := range map[string]struct {
		fault func(p *pair)
		bare  bool
	}{
		"the connections are cut":         {func(p *pair) { p.wire().Cut() }, true},
		"the connections are black-holed": {func(p *pair) { p.wire().BlackHole() }, true},
		"every reply is lost":             {func(p *pair) { p.wire().DropReplies() }, false},
		"everything is late, then lost": {func(p *pair) {
			p.wire().Delay(p.duration / 40)
			_, n := p.sends.renewed()
			scene.Eventually(p, "a late renewal", func() bool { _, now := p.sends.renewed(); return now > n+1 })
			p.wire().BlackHole()
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			p := enter(t).pair("job", 4*time.Second)
			c.fault(p)
			p.passesOver(c.bare)
		})
	}
}

// TestBlip: what is over before the duration is costs nothing.
func TestBlip(t *testing.T) {
	const blip = 1500 * time.Millisecond
	for name, c := range map[string]struct {
		fault    func(p *pair)
		duration time.Duration
	}{
		"cut": {func(p *pair) {
			p.wire().Cut()
			scene.Pass(p, blip)
			p.wire().Heal()
		}, 8 * time.Second},
		"black-holed, then reset": {func(p *pair) {
			p.wire().BlackHole()
			scene.Pass(p, blip)
			reset(p.wire())
		}, 8 * time.Second},
		"replies lost, then reset": {func(p *pair) {
			p.wire().DropReplies()
			scene.Pass(p, blip)
			reset(p.wire())
		}, 8 * time.Second},
		"slow": {func(p *pair) {
			p.wire().Delay(blip / 10)
			scene.Pass(p, blip)
			p.wire().Delay(0)
		}, 8 * time.Second},
		// The client asks a silent connection after 10 s, and waits 3 s for an answer.
		"a dead connection that nobody closes": {func(p *pair) {
			p.wire().BlackHole()
			p.wire().Heal()
		}, 40 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			if c.duration > 20*time.Second && !scene.Slow() {
				t.Skip("takes a minute: LEASEHOLD_SLOW=1")
			}
			p := enter(t).pair("job", c.duration)
			began := time.Now()
			_, renewals := p.sends.renewed()
			c.fault(p)
			p.endures(began, renewals)
		})
	}
	// For as long as the test lasts, which is longer than the duration.
	for name, fault := range map[string]func(w *wire.Proxy){
		"one member of three is black-holed": (*wire.Proxy).BlackHole,
		"one member of three is cut":         (*wire.Proxy).Cut,
		"one member of three is mute":        (*wire.Proxy).DropReplies,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := roomOn(t, servers.SharedEtcdCluster(t)).pair("job", 8*time.Second)
			began := time.Now()
			_, renewals := p.sends.renewed()
			fault(p.wire())
			p.endures(began, renewals)
		})
	}
}

// lossy returns a store whose wire can be hurt before a request, and the wire.
func (r *room) lossy() (*etcd.Store, *wire.Proxy, *tap) {
	r.Helper()
	p, w := r.proxy(0), new(tap)
	s := r.open(via(p), tapped(w))
	if _, err := s.Get(r.Context(), "connect"); !errors.Is(err, backend.ErrNotFound) {
		r.Fatal(err)
	}
	return s, p, w
}

// losing has the reply to the first request of a method lost, and the connection
// with it before the first of another; "" leaves the wire mute.
func losing(p *wire.Proxy, method, until string) func(string, int) {
	var mu sync.Mutex
	var mute, over bool
	return func(m string, n int) {
		mu.Lock()
		defer mu.Unlock()
		switch {
		case !mute && m == method:
			mute = true
			p.DropReplies()
		case mute && !over && m == until:
			over = true
			reset(p)
		}
	}
}

// TestLostReply: a write was applied, and nobody was told.
func TestLostReply(t *testing.T) {
	const duration = 10 * time.Second // a call takes a quarter of it at most
	mine := func(r *room, l *lease.Lease) {
		r.Helper()
		rec, err := r.open().Get(r.Context(), "job")
		if err != nil || !rec.Live() || rec.Holder != string(l.Holder()) || rec.Token != l.Token() || !l.Held() {
			r.Errorf("it holds the lease with the token %d; there is %+v, %v", l.Token(), rec, err)
		}
	}
	t.Run("grant", func(t *testing.T) {
		r := enter(t)
		s, p, w := r.lossy()
		l := scene.Lease(r, s, "job", duration)
		w.set(losing(p, grantCall, grantCall))
		if err := l.Acquire(t.Context()); err != nil {
			t.Fatal(err)
		}
		mine(r, l)
		ids := make(map[int64]bool)
		grants := w.sent(grantCall)
		for _, q := range grants {
			ids[q.message.(*pb.LeaseGrantRequest).ID] = true
		}
		if len(grants) < 2 || len(ids) != 1 {
			t.Errorf("%d requests have granted %d etcd leases", len(grants), len(ids))
		}
	})
	t.Run("acquire, then repeated", func(t *testing.T) {
		r := enter(t)
		s, p, w := r.lossy()
		l := scene.Lease(r, s, "job", duration)
		w.set(losing(p, txnCall, txnCall))
		if err := l.Acquire(t.Context()); err != nil {
			t.Fatal(err)
		}
		mine(r, l)
		if n := len(w.sent(txnCall)); n < 2 {
			t.Errorf("nothing was lost: %d writes", n)
		}
		if resp, err := r.plain.Get(t.Context(), r.recordKey("job")); err != nil || resp.Kvs[0].Version != 1 {
			t.Errorf("it was granted several times: %v, %v", resp, err)
		}
	})
	t.Run("acquire, then read back", func(t *testing.T) {
		r := enter(t)
		s, p, w := r.lossy()
		l := scene.Lease(r, s, "job", duration)
		w.set(losing(p, txnCall, rangeCall))
		if err := l.Acquire(t.Context()); err != nil {
			t.Fatal(err)
		}
		mine(r, l)
		// It was claimed anew: nobody knows since when what was read has lasted.
		if resp, err := r.plain.Get(t.Context(), r.recordKey("job")); err != nil || resp.Kvs[0].Version != 2 {
			t.Errorf("it was adopted: %v, %v", resp, err)
		}
	})
	t.Run("acquire, and nothing more", func(t *testing.T) {
		r := enter(t)
		s, p, w := r.lossy()
		l := scene.Lease(r, s, "job", duration)
		w.set(losing(p, txnCall, ""))
		asked := time.Now()
		err := l.Acquire(t.Context())
		if err == nil || backend.Definite(err) {
			t.Errorf("acquire: %v; want an unknown outcome", err)
		}
		lost, err := r.open().Get(t.Context(), "job")
		if err != nil || lost.Holder != string(l.Holder()) {
			t.Fatalf("the write was not applied: %+v, %v", lost, err)
		}
		waiter := scene.Blocked(r, r.open(), "job", duration, l)
		scene.AwaitFor(r, duration+scene.Patience, "the waiter is granted the lease", waiter.Began)
		if len(waiter.Others) > 0 || waiter.Grant.Token <= lost.Token {
			t.Errorf("token %d follows %d; it is held by %q, too", waiter.Grant.Token, lost.Token, waiter.Others)
		}
		t.Logf("gone %s after it was asked for", ms(waiter.Granted.Sub(asked)))
	})
	t.Run("acquire, found later", func(t *testing.T) {
		r := enter(t)
		s, p, w := r.lossy()
		// With a duration that nobody waits for.
		l := scene.Lease(r, s, "job", 20*time.Second)
		w.set(losing(p, txnCall, ""))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := l.Acquire(ctx); err == nil {
			t.Fatal("nothing was lost")
		}
		lost, err := r.open().Get(t.Context(), "job")
		if err != nil || lost.Holder != string(l.Holder()) {
			t.Fatalf("the write was not applied: %+v, %v", lost, err)
		}
		reset(p)
		// It is freed in the background, or claimed anew, whichever comes first.
		if err := l.Await(t.Context()); err != nil {
			t.Fatal(err)
		}
		mine(r, l)
		if l.Token() <= lost.Token {
			t.Errorf("token %d follows %d", l.Token(), lost.Token)
		}
	})
	for _, call := range []string{renewCall, rangeCall} {
		t.Run("renew, "+call[strings.LastIndex(call, "/")+1:], func(t *testing.T) {
			r := enter(t)
			s, p, w := r.lossy()
			l := scene.Lease(r, s, "job", duration, lease.WithoutRenewal())
			if err := l.Acquire(t.Context()); err != nil {
				t.Fatal(err)
			}
			token, deadline := l.Token(), l.Deadline()
			w.set(losing(p, call, call))
			if err := l.Extend(t.Context()); err != nil {
				t.Errorf("a reply was lost, and with it the renewal: %v", err)
			}
			if mine(r, l); l.Token() != token || l.Deadline() <= deadline {
				t.Errorf("renewed it has the token %d instead of %d, and lasts %v longer", l.Token(), token, l.Deadline()-deadline)
			}
		})
	}
	t.Run("release", func(t *testing.T) {
		r := enter(t)
		s, p, w := r.lossy()
		l := scene.Lease(r, s, "job", duration)
		if err := l.Acquire(t.Context()); err != nil {
			t.Fatal(err)
		}
		w.set(losing(p, txnCall, rangeCall))
		if err := l.Release(t.Context()); err != nil {
			t.Errorf("it was released, and is told: %v", err)
		}
		if _, err := r.open().Get(t.Context(), "job"); !errors.Is(err, backend.ErrNotFound) {
			t.Errorf("after the release: %v; want ErrNotFound", err)
		}
	})
	t.Run("release, and another came", func(t *testing.T) {
		r := enter(t)
		s, p, w := r.lossy()
		l := scene.Lease(r, s, "job", duration)
		if err := l.Acquire(t.Context()); err != nil {
			t.Fatal(err)
		}
		waiter := scene.Blocked(r, r.open(), "job", duration, l)
		lose := losing(p, txnCall, rangeCall)
		w.set(func(method string, n int) {
			if method == rangeCall {
				<-waiter.Began
			}
			lose(method, n)
		})
		if err := l.Release(t.Context()); err != nil {
			t.Errorf("it was released, and is told: %v", err)
		}
		scene.Await(r, "the waiter is granted the lease", waiter.Began)
		if len(waiter.Others) > 0 || !waiter.Alive() {
			t.Errorf("the release of a former tenure has hurt the next: %v, %v", waiter.Others, waiter.Cause)
		}
		if err := waiter.Renew(t.Context()); err != nil || !waiter.Alive() {
			t.Errorf("the release of a former tenure has hurt the next: %v", err)
		}
	})
	t.Run("release, and nothing more", func(t *testing.T) {
		r := enter(t)
		s, p, w := r.lossy()
		const duration = 2 * time.Minute // which nobody waits for
		l := scene.Lease(r, s, "job", duration)
		if err := l.Acquire(t.Context()); err != nil {
			t.Fatal(err)
		}
		waiter := scene.Blocked(r, r.open(), "job", duration, l)
		w.set(losing(p, txnCall, ""))
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		err := l.Release(ctx)
		var relinquishment *lease.RelinquishmentError
		if !errors.As(err, &relinquishment) || backend.Definite(err) {
			t.Errorf("release: %v; want an unknown outcome", err)
		}
		scene.Await(r, "the waiter is granted the lease", waiter.Began)
		if len(waiter.Others) > 0 {
			t.Errorf("two hold the lease: %q", waiter.Others)
		}
	})
}

// TestLateAcquire: a write that arrives after its author has given up keeps others
// out for one duration at most, and not at all once its etcd lease is over.
func TestLateAcquire(t *testing.T) {
	const duration = 6 * time.Second
	for name, late := range map[string]time.Duration{
		"while the etcd lease lasts": duration / 2,
		"when it is over":            duration * 4 / 3,
	} {
		t.Run(name, func(t *testing.T) {
			r := enter(t)
			s, p, w := r.lossy()
			l := scene.Lease(r, s, "job", duration)
			w.set(func(method string, n int) {
				if method == txnCall && n == 1 {
					p.Delay(late)
				}
			})
			asked := time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if err := l.Acquire(ctx); err == nil || backend.Definite(err) {
				t.Fatalf("acquire: %v; want an unknown outcome", err)
			}
			if n := len(w.sent(txnCall)); n == 0 {
				t.Fatal("the machine was so busy that nothing was written within a second")
			}
			if _, _, ok := r.get(r.recordKey("job")); ok {
				t.Fatalf("the write was not late, after %v", time.Since(asked))
			}
			if late > duration {
				// It is refused when it arrives, so it is never there.
				for time.Since(asked) < late+2*time.Second {
					if _, _, ok := r.get(r.aliveKey("job")); ok {
						t.Fatal("the write has outlived its etcd lease")
					}
					scene.Pass(r, 20*time.Millisecond)
				}
				other := r.open()
				scene.Release(r, other, scene.Grant(r, other, scene.Claim("job", "b", duration)))
				return
			}
			scene.Eventually(r, "the write arrives", func() bool { _, _, ok := r.get(r.aliveKey("job")); return ok })
			lost, err := r.open().Get(t.Context(), "job")
			if err != nil || lost.Holder != string(l.Holder()) || l.Held() {
				t.Errorf("what arrived late is read as %+v, %v; its author believes to hold it: %v", lost, err, l.Held())
			}
			waiter := scene.Blocked(r, r.open(), "job", duration, l)
			scene.Await(r, "the waiter is granted the lease", waiter.Began)
			if len(waiter.Others) > 0 || waiter.Grant.Token <= lost.Token {
				t.Errorf("token %d follows %d; it is held by %q, too", waiter.Grant.Token, lost.Token, waiter.Others)
			}
			t.Logf("gone %s after it was asked for", ms(waiter.Granted.Sub(asked)))
		})
	}
}

// TestLateGuardedWrite: what a holder has sent in time, and arrives when another
// holds the lease, is refused; without a guard it is not.
func TestLateGuardedWrite(t *testing.T) {
	r := enter(t)
	const (
		duration = 4 * time.Second
		late     = 8 * time.Second
	)
	p := r.proxy(0)
	c := client(t, r.e, attentive, via(p))
	s := etcd.New(c, r.prefix, etcd.WithRequestTimeout(scene.Patience))
	t.Cleanup(func() { s.Close() })
	asked := time.Now()
	rec := scene.Grant(r, s, scene.Claim("job", "a", duration))
	waiter := scene.Blocked(r, r.open(), "job", time.Minute)
	p.Delay(late)
	guarded := make(chan error, 1)
	go func() {
		_, err := s.Guarded(t.Context(), rec, nil, clientv3.OpPut(r.prefix+"data/guarded", "late"))
		guarded <- err
	}()
	bare := make(chan error, 1)
	go func() {
		_, err := c.Put(t.Context(), r.prefix+"data/bare", "late")
		bare <- err
	}()
	scene.Await(r, "the waiter is granted the lease", waiter.Began)
	if early := duration - waiter.Granted.Sub(asked); early > 0 {
		t.Errorf("the waiter was let in %v early", early)
	}
	if _, _, ok := r.get(r.prefix + "data/bare"); ok {
		t.Fatalf("nothing was late: the waiter was let in only after %v", waiter.Granted.Sub(asked))
	}
	p.Delay(0) // for the answers
	if err := scene.Await(r, "the late write is answered", guarded); !errors.Is(err, backend.ErrLost) {
		t.Errorf("a late write: %v; want ErrLost", err)
	}
	if err := scene.Await(r, "the late write is answered", bare); err != nil {
		t.Error(err)
	}
	if _, _, ok := r.get(r.prefix + "data/guarded"); ok {
		t.Error("a guarded write is there though it came late")
	}
	if _, _, ok := r.get(r.prefix + "data/bare"); !ok {
		t.Error("the write that was to be late never came")
	}
	if !waiter.Alive() {
		t.Errorf("the waiter's tenure: %v", waiter.Cause)
	}
}

// TestDeadWaiter: a waiter that hears nothing keeps nobody else waiting, and hears
// of the release when it can again.
func TestDeadWaiter(t *testing.T) {
	const duration = 3 * time.Minute // so it is not expiry that tells
	t.Run("for good", func(t *testing.T) {
		r := enter(t)
		h := scene.Hold(r, scene.Lease(r, r.open(), "job", duration))
		p := r.proxy(0)
		dead := scene.Blocked(r, r.open(via(p)), "job", duration, h.Lease)
		waiter := scene.Blocked(r, r.open(), "job", duration, h.Lease, dead.Lease)
		p.BlackHole()
		left := time.Now()
		h.Leave()
		scene.Await(r, "the other waiter is granted the lease", waiter.Began)
		scene.Follows(r, waiter, h)
		t.Logf("granted %s after the holder left", ms(waiter.Granted.Sub(left)))
		waiter.Leave()
		scene.Await(r, "Run returns", waiter.Result)
		next := scene.Hold(r, scene.Lease(r, r.open(), "job", duration))
		scene.Follows(r, next, waiter)
		dead.Leave()
		if err := scene.Await(r, "Run returns", dead.Result); !errors.Is(err, context.Canceled) {
			t.Errorf("the dead waiter: %v", err)
		}
	})
	t.Run("healed", func(t *testing.T) {
		r := enter(t)
		p := r.proxy(0)
		s, err := backend.Open(t.Context(), "etcd://"+p.Addr()+r.prefix)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		h := scene.Hold(r, scene.Lease(r, r.open(), "job", duration))
		waiter := scene.Blocked(r, s, "job", duration, h.Lease)
		// The connection stays dead and open. New ones can be made.
		p.BlackHole()
		p.Heal()
		left := time.Now()
		h.Leave()
		scene.AwaitFor(r, 2*scene.Patience, "the waiter is granted the lease", waiter.Began)
		scene.Follows(r, waiter, h)
		t.Logf("granted %s after the holder left", ms(waiter.Granted.Sub(left)))
	})
}

// TestCutWatch: what happens while a watch is cut off is told when it is back,
// also if etcd has forgotten it since.
func TestCutWatch(t *testing.T) {
	const duration = 3 * time.Minute // so it is neither expiry nor a renewal that tells
	for name, compacted := range map[string]bool{"": false, ", compacted": true} {
		t.Run("waiter"+name, func(t *testing.T) {
			r := enter(t)
			p := r.proxy(0)
			h := scene.Hold(r, scene.Lease(r, r.open(), "job", duration))
			waiter := scene.Blocked(r, r.open(via(p)), "job", duration, h.Lease)
			p.Cut()
			h.Leave()
			scene.Await(r, "Run returns", h.Result)
			next := scene.Hold(r, scene.Lease(r, r.open(), "job", duration))
			next.Leave()
			scene.Await(r, "Run returns", next.Result)
			if compacted {
				r.compact()
			}
			p.Heal()
			healed := time.Now()
			scene.Await(r, "the waiter is granted the lease", waiter.Began)
			scene.Follows(r, waiter, next)
			t.Logf("granted %s after it was healed", ms(waiter.Granted.Sub(healed)))
		})
		t.Run("holder"+name, func(t *testing.T) {
			r := enter(t)
			p, w := r.proxy(0), new(tap)
			s := r.open(via(p), tapped(w))
			h := scene.Hold(r, scene.Lease(r, s, "job", duration))
			scene.Eventually(r, "the holder watches", func() bool {
				watches := w.sent(watchCall)
				return len(watches) > 0 && !watches[0].done.IsZero()
			})
			p.Cut()
			r.remove(r.recordKey("job"), clientv3.WithRange(r.aliveKey("job")+"\x00"))
			next := scene.Hold(r, scene.Lease(r, r.open(), "job", duration))
			if compacted {
				r.compact()
			}
			p.Heal()
			scene.Await(r, "the holder is told", h.Ended)
			if !errors.Is(h.Cause, lease.ErrTaken) {
				t.Errorf("the tenure ended with %v; want ErrTaken", h.Cause)
			}
			scene.Await(r, "Run returns", h.Result)
			if next.Grant.Token <= h.Grant.Token || !next.Alive() {
				t.Errorf("token %d follows %d: %v", next.Grant.Token, h.Grant.Token, next.Cause)
			}
			r.fenced(s, h.Grant)
		})
	}
}

// TestServer kills and pauses the only member under holders and waiters.
func TestServer(t *testing.T) {
	t.Parallel()
	e := servers.OwnEtcd(t)
	const (
		short = 3 * time.Second  // over before the member is back
		long  = 40 * time.Second // not over
	)
	type do = func(context.Context, int) error
	for _, c := range []struct {
		name     string
		down, up do
	}{
		{"killed and started again", e.Stop, e.Start},
		{"paused and resumed", e.Pause, e.Resume},
	} {
		// Of each there is a pair, of holder and waiter.
		t.Run(c.name, func(t *testing.T) {
			r := roomOn(t, e)
			lost, kept := r.pair("short", short), r.keptPair("long", long)
			began := time.Now()
			servers.Must(t, c.down(t.Context(), 0))
			scene.Await(r, "the context of the short lease ends", lost.holder.Ended)
			scene.Pass(r, time.Until(began.Add(short*3/2)))
			servers.Must(t, c.up(t.Context(), 0))
			servers.Must(t, e.ReadyAt(t.Context(), 0))
			over := time.Now()
			if over.Sub(began) > long*8/10 {
				t.Skipf("the member was away for %v, which the lease of %v was not to survive", over.Sub(began), long)
			}
			lost.passesOver(false) // what was sent to a member that is paused arrives
			// The member has been told since.
			_, renewals := kept.sends.renewed()
			scene.EventuallyFor(r, long, "the long lease is renewed", func() bool { _, n := kept.sends.renewed(); return n > renewals })
			if !kept.holder.Alive() {
				t.Errorf("the outage of %v cost a lease of %v: %v", over.Sub(began), long, context.Cause(kept.holder.Context()))
			}
			select {
			case <-kept.waiter.Began:
				t.Error("the waiter of the long lease is let in")
			default:
			}
			kept.holder.Leave()
			scene.Await(r, "the waiter of the long lease is granted it", kept.waiter.Began)
			scene.Follows(r, kept.waiter, kept.holder)
			t.Logf("away for %s; the short lease was granted again %s after that", ms(over.Sub(began)), ms(lost.waiter.Granted.Sub(over)))
		})
		t.Run(c.name+", for a moment", func(t *testing.T) {
			r := roomOn(t, e)
			p := r.pair("job", 10*time.Second)
			began := time.Now()
			_, renewals := p.sends.renewed()
			servers.Must(t, c.down(t.Context(), 0))
			scene.Pass(r, 1500*time.Millisecond)
			servers.Must(t, c.up(t.Context(), 0))
			if away := time.Since(began); away > 6*time.Second {
				t.Skipf("the member was away for %v", away)
			}
			p.endures(began, renewals)
		})
	}
}

// keptPair is pair, which does not wait for the first renewal of a long lease.
func (r *room) keptPair(name string, duration time.Duration) *pair {
	r.Helper()
	p := &pair{room: r, duration: duration, sends: new(tap)}
	s := r.open(tapped(p.sends))
	p.holder = scene.Hold(r, scene.Lease(r, s, name, duration))
	p.waiter = scene.Blocked(r, r.open(), name, duration, p.holder.Lease)
	return p
}
