package redis_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/integration/internal/scene"
	"github.com/leasehold/leasehold/integration/internal/servers"
	"github.com/leasehold/leasehold/integration/internal/wire"
	"github.com/leasehold/leasehold/internal/wait"
	"github.com/leasehold/leasehold/lease"
	"github.com/leasehold/leasehold/redis"
)

// ground is a prefix of a test's own, on one server.
type ground struct {
	*testing.T
	r      *servers.Redis
	prefix string
	plain  *goredis.Client // of somebody who may do everything and knows nothing of Leasehold
}

// enter returns a ground on the server that all tests share. The test runs beside
// others from now on.
func enter(t *testing.T) *ground {
	t.Helper()
	t.Parallel()
	r := servers.SharedRedis(t)
	if r.Options().IsClusterMode {
		t.Skip("the Redis that is given is a cluster, this needs one server")
	}
	return groundOn(t, r)
}

// alone is enter with a server of its own, to which it may do anything.
func alone(t *testing.T, opts ...servers.RedisOption) *ground {
	t.Helper()
	t.Parallel()
	return groundOn(t, mine(t, opts...))
}

// mine is a server that is this test's own, also where one is given to all tests.
func mine(t *testing.T, opts ...servers.RedisOption) *servers.Redis {
	t.Helper()
	if os.Getenv("LEASEHOLD_TEST_REDIS_ADDRS") != "" {
		opts = append(opts, servers.RedisAsProcesses())
	}
	return servers.OwnRedis(t, opts...)
}

func groundOn(t *testing.T, r *servers.Redis) *ground {
	t.Helper()
	g := &ground{T: t, r: r, prefix: prefix(t), plain: r.Node(0)}
	t.Cleanup(func() { wipe(r, g.prefix) })
	return g
}

// open returns a store with a client of its own; both are closed after the test.
func (g *ground) open(edit ...func(*goredis.UniversalOptions)) *redis.Store {
	g.Helper()
	return g.openWith(nil, edit...)
}

func (g *ground) openWith(opts []redis.Option, edit ...func(*goredis.UniversalOptions)) *redis.Store {
	g.Helper()
	s := redis.New(client(g, g.r, edit...), g.prefix, opts...)
	g.Cleanup(func() { s.Close() })
	return s
}

// proxy returns a wire to a node; it is closed after the test.
func (g *ground) proxy(node int) *wire.Proxy {
	g.Helper()
	p, err := wire.New(g.r.Addrs()[node])
	if err != nil {
		g.Fatal(err)
	}
	g.Cleanup(func() { p.Close() })
	return p
}

// via has a client go through a proxy.
func via(p *wire.Proxy) func(*goredis.UniversalOptions) {
	return func(o *goredis.UniversalOptions) { o.Addrs = []string{p.Addr()} }
}

// heedful has a client end its calls with their contexts.
func heedful(o *goredis.UniversalOptions) { o.ContextTimeoutEnabled = true }

// hasty has a client give up an answer soon, and send again what was not answered.
func hasty(o *goredis.UniversalOptions) { o.ReadTimeout = 400 * time.Millisecond }

// once has a client send nothing twice.
func once(o *goredis.UniversalOptions) { o.MaxRetries = -1 }

// The two keys of a name. They are part of the format, so they are not taken
// from the store.
func (g *ground) recordKey(name string) string { return g.prefix + "{" + name + "}" }
func (g *ground) aliveKey(name string) string  { return g.recordKey(name) + ":alive" }

// do runs a command of Redis's, which must succeed.
func (g *ground) do(args ...any) any {
	g.Helper()
	v, err := g.plain.Do(g.Context(), args...).Result()
	if err != nil && !errors.Is(err, goredis.Nil) {
		g.Fatalf("%v: %v", args, err)
	}
	return v
}

func (g *ground) exists(key string) bool {
	g.Helper()
	return g.do("exists", key) == int64(1)
}

// left is how long the server keeps a key.
func (g *ground) left(key string) time.Duration {
	g.Helper()
	ms, _ := g.do("pttl", key).(int64)
	return time.Duration(ms) * time.Millisecond
}

// clock is the time of the server, in microseconds.
func (g *ground) clock() uint64 {
	g.Helper()
	now, err := g.plain.Time(g.Context()).Result()
	if err != nil {
		g.Fatal(err)
	}
	return uint64(now.UnixMicro())
}

// info reads a number from what the server says about itself.
func (g *ground) info(section, field string) int {
	g.Helper()
	text, err := g.plain.Info(g.Context(), section).Result()
	if err != nil {
		g.Fatal(err)
	}
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), field+":"); ok {
			n, err := strconv.Atoi(value)
			if err != nil {
				g.Fatalf("%s: %v", line, err)
			}
			return n
		}
	}
	g.Fatalf("the server does not tell %s", field)
	return 0
}

// listeners is how many connections are subscribed to the channel of a name.
func (g *ground) listeners(name string) int {
	g.Helper()
	channels, err := g.plain.PubSubShardNumSub(g.Context(), g.recordKey(name)).Result()
	if err != nil {
		g.Fatal(err)
	}
	return int(channels[g.recordKey(name)])
}

func round(d time.Duration) string { return fmt.Sprint(d.Round(time.Millisecond)) }

// unknown checks that an error leaves the outcome open.
func unknown(t testing.TB, what string, err error) {
	t.Helper()
	if err == nil || backend.Definite(err) {
		t.Errorf("%s: %v; want an unknown outcome", what, err)
	}
}

// bystander holds another name of the same store, whatever is done to the others.
func (g *ground) bystander() {
	g.Helper()
	s := g.open()
	rec := scene.Grant(g, s, scene.Claim("bystander", "nobody", time.Hour))
	before := g.do("hgetall", g.recordKey("bystander"))
	g.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), scene.Patience)
		defer cancel()
		if after, err := g.plain.Do(ctx, "hgetall", g.recordKey("bystander")).Result(); err != nil || fmt.Sprint(after) != fmt.Sprint(before) {
			g.Errorf("another's record was %v and is %v, %v", before, after, err)
		}
		if v, err := g.plain.Get(ctx, g.aliveKey("bystander")).Result(); err != nil || v != fmt.Sprintf("%d 3600000 nobody", rec.Token) {
			g.Errorf("another's tenure is %q, %v", v, err)
		}
	})
}

// pair is a holder, which a fault will hit, and one that waits for its lease.
type pair struct {
	*ground
	duration time.Duration
	holder   *scene.Tenure
	waiter   *scene.Tenure
	wire     *wire.Proxy  // of the holder
	theirs   *wire.Proxy  // of the waiter
	renewals atomic.Int64 // of the holder
}

// pair returns when the holder has renewed and the waiter knows that it is not
// its turn. Each has a way to the server of its own. edit is for the holder's client.
func (g *ground) pair(name string, duration time.Duration, edit ...func(*goredis.UniversalOptions)) *pair {
	g.Helper()
	p := &pair{ground: g, duration: duration, wire: g.proxy(0), theirs: g.proxy(0)}
	s := g.open(append(edit, via(p.wire))...)
	p.holder = scene.Hold(g, scene.Lease(g, s, name, duration, lease.WithObserver(func(e lease.Event) {
		if e.Kind == lease.EventRenewed {
			p.renewals.Add(1)
		}
	})))
	scene.Eventually(g, "the holder renews", func() bool { return p.renewals.Load() > 0 })
	p.waiter = scene.Blocked(g, g.open(via(p.theirs)), name, duration, p.holder.Lease)
	scene.Eventually(g, "both listen", func() bool { return g.listeners(name) == 2 })
	return p
}

// reset heals a wire, and ends the connections that would stay dead.
func reset(w *wire.Proxy) {
	w.Delay(0)
	w.Cut()
	w.Heal()
}

// passesOver checks that the holder has stopped when the waiter is let in, by one
// clock, and that this is not before an instant, if there is one.
func (p *pair) passesOver(until time.Time) {
	p.Helper()
	scene.AwaitFor(p, p.duration+scene.Patience, "the waiter is granted the lease", p.waiter.Began)
	scene.Follows(p, p.waiter, p.holder)
	scene.Await(p, "the holder's context ends", p.holder.Ended)
	if late := p.waiter.Granted.Sub(until); !until.IsZero() {
		if late < 0 {
			p.Errorf("the lease was passed over %v before the server was to call it expired", -late)
		}
		p.Logf("stopped %s before the tenure expired at the server, passed over %s after that", round(until.Sub(p.holder.Stopped)), round(late))
	}
	if p.holder.Stopped.After(p.waiter.Granted) {
		// The instant was noted after the end, so this need not be wrong.
		p.Logf("the end was noted %s after the waiter was let in", round(p.holder.Stopped.Sub(p.waiter.Granted)))
	}

	// Who lost the lease gets it again once the waiter has left.
	scene.AwaitFor(p, 2*scene.Patience, "Run returns", p.holder.Result)
	reset(p.wire)
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
func (p *pair) endures(since time.Time, renewals int64) {
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
	if n := p.renewals.Load(); n <= renewals {
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
	t.Parallel()
	const duration = 3 * time.Second
	for name, c := range map[string]struct {
		fault func(p *pair)
		bare  bool // nothing that the holder sends arrives, its release neither
	}{
		"cut":          {func(p *pair) { p.wire.Cut() }, true},
		"black-holed":  {func(p *pair) { p.wire.BlackHole() }, true},
		"replies lost": {func(p *pair) { p.wire.DropReplies() }, false},
		"late, then lost": {func(p *pair) {
			p.wire.Delay(duration / 40)
			n := p.renewals.Load()
			scene.Eventually(p, "a late renewal", func() bool { return p.renewals.Load() > n+1 })
			p.wire.BlackHole()
		}, true},
	} {
		for how, edit := range map[string]func(*goredis.UniversalOptions){
			"":          func(*goredis.UniversalOptions) {},
			", heedful": heedful,
		} {
			t.Run(name+how, func(t *testing.T) {
				p := enter(t).pair("job", duration, edit)
				c.fault(p)
				var until time.Time
				if c.bare {
					asked := time.Now()
					until = asked.Add(p.left(p.aliveKey("job")))
				}
				p.passesOver(until)
			})
		}
	}
	// So hears nobody anything.
	t.Run("everybody is cut off", func(t *testing.T) {
		p := enter(t).pair("job", duration)
		p.wire.Cut()
		p.theirs.Cut()
		scene.Await(p, "the holder's context ends", p.holder.Ended)
		scene.Eventually(p, "the tenure expires", func() bool { return !p.exists(p.aliveKey("job")) })
		p.theirs.Heal()
		healed := time.Now()
		p.passesOver(time.Time{})
		p.Logf("passed over %s after the wire was healed", round(p.waiter.Granted.Sub(healed)))
	})
}

// TestBlip: what is over before the duration is costs nothing.
func TestBlip(t *testing.T) {
	t.Parallel()
	const (
		blip     = time.Second
		duration = 4 * time.Second
	)
	for name, fault := range map[string]func(p *pair){
		"cut": func(p *pair) {
			p.wire.Cut()
			scene.Pass(p, blip)
			p.wire.Heal()
		},
		"black-holed, then reset": func(p *pair) {
			p.wire.BlackHole()
			scene.Pass(p, blip)
			reset(p.wire)
		},
		"replies lost, then reset": func(p *pair) {
			p.wire.DropReplies()
			scene.Pass(p, blip)
			reset(p.wire)
		},
		"slow": func(p *pair) {
			p.wire.Delay(blip / 10)
			scene.Pass(p, blip)
			p.wire.Delay(0)
		},
		// Its connections stay open and hear nothing; new ones can be made.
		"dead connections that nobody closes": func(p *pair) {
			p.wire.BlackHole()
			p.wire.Heal()
		},
	} {
		for how, edit := range map[string]func(*goredis.UniversalOptions){
			"":          func(*goredis.UniversalOptions) {},
			", heedful": heedful,
		} {
			t.Run(name+how, func(t *testing.T) {
				p := enter(t).pair("job", duration, edit)
				began, renewals := time.Now(), p.renewals.Load()
				fault(p)
				p.endures(began, renewals)
			})
		}
	}
}

// TestCallsEnd: each call ends with its context, whatever the client's options
// say and however many there are, and leaves the outcome open.
func TestCallsEnd(t *testing.T) {
	t.Parallel()
	const (
		patience = 300 * time.Millisecond
		busy     = 2 * time.Second // the client itself waits for 5
	)
	for how, edit := range map[string]func(*goredis.UniversalOptions){
		"by default": func(*goredis.UniversalOptions) {},
		"heedful":    heedful,
	} {
		t.Run(how, func(t *testing.T) {
			g := enter(t)
			p := g.proxy(0)
			s := g.open(edit, via(p))
			rec := scene.Grant(g, s, scene.Claim("held", "a", time.Minute))
			p.BlackHole()
			verbs := map[string]func(ctx context.Context) error{
				"get": func(ctx context.Context) error { _, err := s.Get(ctx, "held"); return err },
				"acquire": func(ctx context.Context) error {
					_, err := s.Acquire(ctx, scene.Claim("free", "a", time.Second))
					return err
				},
				"renew":   func(ctx context.Context) error { _, err := s.Renew(ctx, rec); return err },
				"release": func(ctx context.Context) error { return s.Release(ctx, rec) },
				"list": func(ctx context.Context) (last error) {
					for _, err := range s.List(ctx, "") {
						last = err
					}
					return last
				},
			}
			call := func(what string, verb func(ctx context.Context) error) {
				ctx, cancel := context.WithTimeout(g.Context(), patience)
				defer cancel()
				began := time.Now()
				err := verb(ctx)
				if took := time.Since(began); took > patience+busy {
					g.Errorf("%s took %v with a context of %v", what, took, patience)
				}
				unknown(g, what, err)
				if !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, os.ErrDeadlineExceeded) {
					g.Errorf("%s: %v; want the end of its context", what, err)
				}
			}
			var wg sync.WaitGroup
			for what, verb := range verbs {
				call(what, verb)
			}
			for range 50 {
				for what, verb := range verbs {
					wg.Go(func() { call(what+", one of many", verb) })
				}
			}
			wg.Wait()
			// A watch ends with its context, too.
			ctx, cancel := context.WithTimeout(g.Context(), patience)
			defer cancel()
			began := time.Now()
			for rec, err := range s.Watch(ctx, "held") {
				g.Errorf("a watch that hears nothing has yielded %+v, %v", rec, err)
			}
			if took := time.Since(began); took > patience+busy {
				g.Errorf("a watch took %v with a context of %v", took, patience)
			}
			reset(p)
			healed := time.Now()
			if again, err := s.Renew(g.Context(), rec); err != nil || !again.SameTenure(rec) {
				g.Errorf("after it was healed: %+v, %v", again, err)
			}
			g.Logf("renewed %s after it was healed", round(time.Since(healed)))
			if g.exists(g.recordKey("free")) {
				g.Error("what never arrived was granted")
			}
		})
	}
}

// losing makes a call whose write arrives and whose answer is lost. The client may
// connect anew when the write was seen to be there.
func (g *ground) losing(p *wire.Proxy, applied func() bool, call func() error) error {
	g.Helper()
	p.DropReplies()
	done := make(chan error, 1)
	go func() { done <- call() }()
	scene.Eventually(g, "the write is applied", applied)
	select {
	case err := <-done:
		g.Fatalf("no answer was lost: %v", err)
	default:
	}
	p.Heal()
	return scene.Await(g, "the call returns", done)
}

// TestLostReply: a write was applied, and nobody was told.
func TestLostReply(t *testing.T) {
	t.Parallel()
	const duration = 10 * time.Second
	// lossy returns a store whose client gives up an answer soon, has a connection,
	// and sends again what was not answered, if it may.
	lossy := func(g *ground, edit ...func(*goredis.UniversalOptions)) (*redis.Store, *wire.Proxy) {
		g.Helper()
		p := g.proxy(0)
		s := g.open(append(edit, hasty, via(p))...)
		// The server must know all scripts, else it is not the verb's answer that is lost.
		rec := scene.Grant(g, s, scene.Claim("connect", "a", time.Minute))
		scene.Get(g, s, "connect")
		scene.Release(g, s, scene.Renew(g, s, rec))
		return s, p
	}
	for _, attempt := range []string{"attempt", ""} {
		t.Run("acquire, sent again, "+attempt, func(t *testing.T) {
			g := enter(t)
			s, p := lossy(g)
			claim := scene.Claim("job", "a", duration)
			claim.Attempt = attempt
			claim.Metadata = map[string]string{"k": "v"}
			var first string
			var rec backend.Record
			err := g.losing(p, func() bool {
				first, _ = g.do("get", g.aliveKey("job")).(string)
				return first != ""
			}, func() (err error) {
				rec, err = s.Acquire(t.Context(), claim)
				return err
			})
			if err != nil {
				t.Fatalf("an answer was lost, and with it the grant: %v", err)
			}
			if want := fmt.Sprintf("%d 10000 a", rec.Token); first != want {
				t.Errorf("first there was %q; granted is %q", first, want)
			}
			got := scene.Get(g, g.open(), "job")
			if got.Token != rec.Token || got.Holder != "a" || got.Attempt != attempt || rec.Attempt != attempt || got.Transitions != 0 || rec.Revision != got.Revision || rec.Metadata["k"] != "v" || rec.Duration != duration {
				t.Errorf("granted is %+v; there is %+v", rec, got)
			}
			scene.Release(g, s, scene.Renew(g, s, rec))
		})
	}
	t.Run("acquire, sent again, and another came", func(t *testing.T) {
		g := enter(t)
		s, p := lossy(g)
		other := g.open()
		var theirs backend.Record
		err := g.losing(p, func() bool { return g.exists(g.aliveKey("job")) }, func() error {
			_, err := s.Acquire(t.Context(), scene.Claim("job", "a", 50*time.Millisecond))
			return err
		})
		// The first sending has expired by the time of the second, or another holds it.
		if err != nil {
			t.Errorf("an expired grant that was sent again: %v", err)
		}
		scene.Eventually(g, "it expires", func() bool { return !g.exists(g.aliveKey("job")) })
		first := g.do("hget", g.recordKey("job"), "token")
		p.DropReplies()
		done := make(chan error, 1)
		go func() {
			_, err := s.Acquire(t.Context(), scene.Claim("job", "a", 20*time.Millisecond))
			done <- err
		}()
		scene.Eventually(g, "another is granted it", func() bool {
			var held error
			if v := g.do("hget", g.recordKey("job"), "token"); v == first {
				return false // the write has not been applied
			}
			theirs, held = other.Acquire(t.Context(), scene.Claim("job", "b", time.Minute))
			return held == nil
		})
		p.Heal()
		unknown(t, "acquire, sent twice and then refused", scene.Await(g, "the call returns", done))
		if now := scene.Get(g, other, "job"); !now.SameTenure(theirs) {
			t.Errorf("the other's tenure has become %+v", now)
		}
	})
	t.Run("acquire, sent once", func(t *testing.T) {
		g := enter(t)
		s, p := lossy(g, once)
		const duration = time.Second
		asked := time.Now()
		err := g.losing(p, func() bool { return g.exists(g.aliveKey("job")) }, func() error {
			_, err := s.Acquire(t.Context(), scene.Claim("job", "a", duration))
			return err
		})
		unknown(t, "acquire", err)
		other := g.open()
		lost := scene.Get(g, other, "job")
		scene.Eventually(g, "it is free again", func() bool { return !g.exists(g.aliveKey("job")) })
		if free := time.Since(asked); free < duration {
			t.Errorf("it was free after %v", free)
		}
		if rec := scene.Grant(g, other, scene.Claim("job", "b", duration)); rec.Token <= lost.Token {
			t.Errorf("token %d follows %d", rec.Token, lost.Token)
		}
	})
	t.Run("acquire, read back", func(t *testing.T) {
		g := enter(t)
		s, p := lossy(g, once)
		l := scene.Lease(g, s, "job", duration)
		var lost string
		err := g.losing(p, func() bool {
			lost, _ = g.do("hget", g.recordKey("job"), "token").(string)
			return lost != ""
		}, func() error { return l.Acquire(t.Context()) })
		if err != nil {
			t.Fatal(err)
		}
		rec := scene.Get(g, g.open(), "job")
		if token, _ := strconv.ParseUint(lost, 10, 64); l.Token() <= token || rec.Token != l.Token() || rec.Holder != string(l.Holder()) || !l.Held() {
			t.Errorf("it was claimed anew with the token %d after %s; there is %+v", l.Token(), lost, rec)
		}
	})
	t.Run("acquire, and nothing more", func(t *testing.T) {
		g := enter(t)
		s, p := lossy(g)
		const duration = 2 * time.Second
		l := scene.Lease(g, s, "job", duration)
		p.DropReplies()
		asked := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		unknown(t, "acquire", l.Acquire(ctx))
		lost, _ := strconv.ParseUint(fmt.Sprint(g.do("hget", g.recordKey("job"), "token")), 10, 64)
		waiter := scene.Run(g, scene.Lease(g, g.open(), "job", duration), l)
		scene.AwaitFor(g, duration+scene.Patience, "the waiter is granted the lease", waiter.Began)
		if len(waiter.Others) > 0 || waiter.Grant.Token <= lost || lost == 0 {
			t.Errorf("token %d follows %d; it is held by %q, too", waiter.Grant.Token, lost, waiter.Others)
		}
		t.Logf("gone %s after it was asked for", round(waiter.Granted.Sub(asked)))
	})
	for how, edit := range map[string]func(*goredis.UniversalOptions){
		"sent again": func(*goredis.UniversalOptions) {},
		"sent once":  once,
	} {
		t.Run("renew, "+how, func(t *testing.T) {
			g := enter(t)
			s, p := lossy(g, edit)
			rec := scene.Grant(g, s, scene.Claim("job", "a", duration))
			g.do("pexpire", g.aliveKey("job"), 5000)
			err := g.losing(p, func() bool { return g.left(g.aliveKey("job")) > 6*time.Second }, func() error {
				again, err := s.Renew(t.Context(), rec)
				if err == nil && !again.SameTenure(rec) {
					t.Errorf("%+v was renewed as %+v", rec, again)
				}
				return err
			})
			if how == "sent once" {
				unknown(t, "renew", err)
			} else if err != nil {
				t.Errorf("an answer was lost, and with it the renewal: %v", err)
			}
			scene.Release(g, g.open(), scene.Renew(g, s, rec))
		})
		t.Run("release, "+how, func(t *testing.T) {
			g := enter(t)
			s, p := lossy(g, edit)
			rec := scene.Grant(g, s, scene.Claim("job", "a", duration))
			err := g.losing(p, func() bool { return !g.exists(g.aliveKey("job")) }, func() error { return s.Release(t.Context(), rec) })
			if how == "sent once" {
				unknown(t, "release", err)
			} else if err != nil {
				t.Errorf("it was released, and is told: %v", err)
			}
			// Another call is another matter: nobody has that tenure.
			if err := s.Release(t.Context(), rec); !errors.Is(err, backend.ErrLost) {
				t.Errorf("a second release: %v; want ErrLost", err)
			}
		})
		t.Run("release, and another came, "+how, func(t *testing.T) {
			g := enter(t)
			s, p := lossy(g, edit)
			rec := scene.Grant(g, s, scene.Claim("job", "a", duration))
			other := g.open()
			var theirs backend.Record
			err := g.losing(p, func() bool {
				var err error
				theirs, err = other.Acquire(t.Context(), scene.Claim("job", "b", duration))
				return err == nil
			}, func() error { return s.Release(t.Context(), rec) })
			// Whether it was released the second sending cannot know.
			if err != nil {
				unknown(t, "release", err)
			}
			if now := scene.Get(g, other, "job"); !now.SameTenure(theirs) || !now.Live() {
				t.Errorf("the release of a former tenure has made of the next %+v", now)
			}
			scene.Renew(g, other, theirs)
		})
		t.Run("lease, "+how, func(t *testing.T) {
			g := enter(t)
			s, p := lossy(g, edit)
			l := scene.Lease(g, s, "job", duration, lease.WithoutRenewal())
			if err := l.Acquire(t.Context()); err != nil {
				t.Fatal(err)
			}
			waiter := scene.Blocked(g, g.open(), "job", duration, l)
			err := g.losing(p, func() bool {
				select {
				case <-waiter.Began:
					return true
				default:
					return false
				}
			}, func() error { return l.Release(t.Context()) })
			if err != nil {
				t.Errorf("it was released, and is told: %v", err)
			}
			if len(waiter.Others) > 0 || !waiter.Alive() {
				t.Errorf("the release of a former tenure has hurt the next: %v, %v", waiter.Others, waiter.Cause)
			}
			if err := waiter.Renew(t.Context()); err != nil || !waiter.Alive() {
				t.Errorf("the release of a former tenure has hurt the next: %v", err)
			}
		})
	}
}

// TestServer pauses and kills the server under a holder and a waiter.
func TestServer(t *testing.T) {
	t.Parallel()
	type do = func(context.Context, int) error
	const (
		short = 2 * time.Second  // over before the server is back
		long  = 10 * time.Second // not over
	)
	for _, c := range []struct {
		name     string
		opts     []servers.RedisOption
		down, up func(*servers.Redis) do
	}{
		{"paused", nil,
			func(r *servers.Redis) do { return r.Pause }, func(r *servers.Redis) do { return r.Resume }},
		{"killed, and it remembers", []servers.RedisOption{servers.WithPersistence()},
			func(r *servers.Redis) do { return r.Stop }, func(r *servers.Redis) do { return r.Start }},
		{"cut off", nil,
			func(r *servers.Redis) do { return r.CutOff }, func(r *servers.Redis) do { return r.Reconnect }},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := alone(t, c.opts...)
			p := g.pair("job", short)
			servers.Must(t, c.down(g.r)(t.Context(), 0))
			began := time.Now()
			scene.Await(g, "the holder's context ends", p.holder.Ended)
			scene.Pass(g, time.Until(began.Add(short*3/2)))
			servers.Must(t, c.up(g.r)(t.Context(), 0))
			up := time.Now()
			servers.Must(t, g.r.ReadyAt(t.Context(), 0))
			p.passesOver(time.Time{})
			t.Logf("granted %s after the server was back", round(p.waiter.Granted.Sub(up)))
		})
		t.Run(c.name+", for a moment", func(t *testing.T) {
			g := alone(t, c.opts...)
			p := g.pair("job", long)
			began, renewals := time.Now(), p.renewals.Load()
			servers.Must(t, c.down(g.r)(t.Context(), 0))
			scene.Pass(g, time.Second)
			servers.Must(t, c.up(g.r)(t.Context(), 0))
			if away := time.Since(began); away > long*6/10 {
				t.Skipf("the server was away for %v", away)
			}
			p.endures(began, renewals)
		})
	}
	t.Run("killed, and it forgets", func(t *testing.T) {
		g := alone(t)
		p := g.pair("job", long)
		servers.Must(t, g.r.Stop(t.Context(), 0))
		servers.Must(t, g.r.Start(t.Context(), 0))
		up := time.Now()
		servers.Must(t, g.r.ReadyAt(t.Context(), 0))
		p.told(up)
	})
	t.Run("forgets while it is paused", func(t *testing.T) {
		g := alone(t)
		s := g.open(heedful)
		rec := scene.Grant(g, s, scene.Claim("job", "a", long))
		servers.Must(t, g.r.Stop(t.Context(), 0))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := s.Renew(ctx, rec)
		unknown(t, "renew while nobody listens", err)
		unknown(t, "release while nobody listens", s.Release(ctx, rec))
		servers.Must(t, g.r.Start(t.Context(), 0))
		servers.Must(t, g.r.ReadyAt(t.Context(), 0))
		if _, err := s.Renew(t.Context(), rec); !errors.Is(err, backend.ErrLost) {
			t.Errorf("renew of what is forgotten: %v; want ErrLost", err)
		}
		if _, err := s.Get(t.Context(), "job"); !errors.Is(err, backend.ErrNotFound) {
			t.Errorf("a renewal has revived it: %v", err)
		}
		if err := s.Release(t.Context(), rec); !errors.Is(err, backend.ErrLost) {
			t.Errorf("release of what is forgotten: %v; want ErrLost", err)
		}
		if next := scene.Grant(g, s, scene.Claim("job", "b", long)); next.Token <= rec.Token {
			t.Errorf("token %d follows %d", next.Token, rec.Token)
		}
	})
}

// told checks that a holder whose tenure was removed is told by its next renewal,
// or sooner if the waiter comes first, which gets the lease with a greater token.
func (p *pair) told(since time.Time) {
	p.Helper()
	scene.Await(p, "the holder is told", p.holder.Ended)
	after := p.holder.Stopped.Sub(since)
	by := "the next holder"
	if errors.Is(p.holder.Cause, backend.ErrLost) {
		by = "a renewal"
	}
	p.Logf("told %s after it by %s, with a duration of %s", round(after), by, p.duration)
	if !errors.Is(p.holder.Cause, lease.ErrTaken) {
		p.Errorf("the tenure ended with %v; want ErrTaken", p.holder.Cause)
	}
	p.soon(after)
	scene.AwaitFor(p, p.duration+scene.Patience, "the waiter is granted the lease", p.waiter.Began)
	if p.waiter.Grant.Token <= p.holder.Grant.Token {
		p.Errorf("token %d follows %d", p.waiter.Grant.Token, p.holder.Grant.Token)
	}
	p.Logf("granted %s after it", round(p.waiter.Granted.Sub(since)))
	// What the former holder does now hurts nobody.
	s := p.holder.Store()
	if _, err := s.Renew(p.Context(), p.holder.Grant); !errors.Is(err, backend.ErrLost) {
		p.Errorf("renew of a former tenure: %v; want ErrLost", err)
	}
	if err := s.Release(p.Context(), p.holder.Grant); !errors.Is(err, backend.ErrLost) {
		p.Errorf("release of a former tenure: %v; want ErrLost", err)
	}
	if err := p.waiter.Renew(p.Context()); err != nil || !p.waiter.Alive() {
		p.Errorf("the waiter's tenure: %v, %v", err, p.waiter.Cause)
	}
}

// soon checks that a loss was told no later than by the renewal that follows it.
func (p *pair) soon(after time.Duration) {
	p.Helper()
	if after > p.duration*2/3 {
		p.Errorf("it was told after %v: the next renewal is due after a third of %v", after, p.duration)
	}
}

// toldAlone has a holder for which nobody waits lose its tenure, and checks that it
// is told by the next renewal, which revives nothing.
func (g *ground) toldAlone(duration time.Duration, remove func()) {
	g.Helper()
	p := &pair{ground: g, duration: duration}
	p.holder = scene.Hold(g, scene.Lease(g, g.open(), "alone", duration))
	scene.Eventually(g, "the holder listens", func() bool { return g.listeners("alone") == 1 })
	remove()
	since := time.Now()
	scene.Await(g, "the holder is told", p.holder.Ended)
	after := p.holder.Stopped.Sub(since)
	g.Logf("told %s after it, with a duration of %s", round(after), duration)
	p.soon(after)
	if !errors.Is(p.holder.Cause, lease.ErrTaken) || !errors.Is(p.holder.Cause, backend.ErrLost) {
		g.Errorf("the tenure ended with %v; want ErrTaken and ErrLost", p.holder.Cause)
	}
	if g.exists(g.aliveKey("alone")) {
		g.Error("it was revived")
	}
	next := scene.Hold(g, scene.Lease(g, g.open(), "alone", duration))
	scene.Follows(g, next, p.holder)
}

// TestFlushAll: who holds a lease that is wiped away is told at the next renewal.
func TestFlushAll(t *testing.T) {
	t.Parallel()
	for _, command := range []string{"flushall", "flushdb"} {
		t.Run(command, func(t *testing.T) {
			g := alone(t)
			p := g.pair("job", 3*time.Second)
			g.do(command)
			p.told(time.Now())
			g.toldAlone(3*time.Second, func() { g.do(command) })
		})
	}
}

// TestScriptFlush: that scripts are forgotten between calls and during them,
// nobody notices.
func TestScriptFlush(t *testing.T) {
	t.Parallel()
	const workers = 8
	storm := func(t *testing.T, r *servers.Redis) {
		g := groundOn(t, r)
		ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
		defer cancel()
		var flushes, cycles atomic.Int64
		var wg sync.WaitGroup
		for i := range r.Nodes() {
			wg.Go(func() {
				for n := r.Node(i); ctx.Err() == nil; {
					if n.ScriptFlush(ctx).Err() == nil {
						flushes.Add(1)
					}
				}
			})
		}
		s := g.open() // one for all, so that there are pipelines
		for i := range workers {
			wg.Go(func() {
				name := fmt.Sprintf("job-%d", i)
				last := uint64(0)
				for ctx.Err() == nil {
					rec, err := s.Acquire(t.Context(), scene.Claim(name, "a", time.Minute))
					if err == nil {
						_, err = s.Renew(t.Context(), rec)
					}
					if err == nil {
						_, err = s.Get(t.Context(), name)
					}
					if err == nil {
						err = s.Release(t.Context(), rec)
					}
					if err != nil || rec.Token <= last {
						t.Errorf("token %d follows %d, %v", rec.Token, last, err)
						return
					}
					last = rec.Token
					cycles.Add(1)
				}
			})
		}
		wg.Wait()
		t.Logf("%d tenures, scripts were flushed %d times", cycles.Load(), flushes.Load())
	}
	t.Run("one server", func(t *testing.T) { t.Parallel(); storm(t, servers.SharedRedis(t)) })
	t.Run("cluster", func(t *testing.T) { t.Parallel(); storm(t, servers.SharedRedisCluster(t)) })
}

// TestTampered: what others do to the keys of a held name, by hand or by mistake.
func TestTampered(t *testing.T) {
	t.Parallel()
	const duration = time.Minute
	type want struct {
		get, renew, acquire, release error // nil, or what it is
		says                         string
		mine                         bool // Get tells my tenure
		stays                        bool // what is wrong outlives the release, for a person to see
	}
	var (
		corrupt = backend.ErrCorrupt
		// The record cannot be read, and the tenure goes on: it lives in the other key.
		unreadable = want{get: corrupt, acquire: corrupt}
		// The other key cannot be read: nobody knows who holds it.
		void      = want{get: corrupt, renew: corrupt, acquire: corrupt, release: corrupt, says: "alive"}
		unnoticed = want{mine: true, acquire: backend.ErrHeld}
	)
	foreign := func(what string) want { w := unreadable; w.says, w.stays = what, true; return w }
	type tamper func(g *ground, record, alive string)
	do := func(args ...any) tamper {
		return func(g *ground, record, alive string) {
			args := slices.Clone(args)
			for i, a := range args {
				switch a {
				case "$record":
					args[i] = record
				case "$alive":
					args[i] = alive
				}
			}
			g.do(args...)
		}
	}
	then := func(all ...tamper) tamper {
		return func(g *ground, record, alive string) {
			for _, f := range all {
				f(g, record, alive)
			}
		}
	}
	for name, c := range map[string]struct {
		do tamper
		want
	}{
		"alive is deleted":              {do("del", "$alive"), want{renew: backend.ErrLost}},
		"both are deleted":              {do("del", "$alive", "$record"), want{get: backend.ErrNotFound, renew: backend.ErrLost, release: backend.ErrLost}},
		"the record is deleted":         {do("del", "$record"), unnoticed},
		"the record is a string":        {do("set", "$record", "garbage"), foreign("no hash")},
		"the record is a list":          {then(do("del", "$record"), do("rpush", "$record", "a", "b")), foreign("no hash")},
		"the record is another's hash":  {then(do("del", "$record"), do("hset", "$record", "user", "bob")), foreign("not written by Leasehold")},
		"the record is of a new format": {do("hset", "$record", "format", "2"), want{get: corrupt, acquire: corrupt, says: "newer"}},
		"the format is a word":          {do("hset", "$record", "format", "new"), unreadable},
		"the token is a word":           {do("hset", "$record", "token", "first"), unreadable},
		"the token is gone":             {do("hdel", "$record", "token"), unreadable},
		"the duration is a word":        {do("hset", "$record", "duration", "long"), unreadable},
		"the floor is a word":           {do("hset", "$record", "floor", "low"), unreadable},
		"the seal is a word":            {do("hset", "$record", "seal", "wax"), unreadable},
		"the token is another":          {do("hset", "$record", "token", "7"), unnoticed},
		"the holder is another":         {do("hset", "$record", "holder", "b"), unnoticed},
		"the duration is another":       {do("hset", "$record", "duration", "5"), unnoticed},
		"the metadata are a word":       {do("hset", "$record", "metadata", "red"), unnoticed},
		"a field is added":              {do("hset", "$record", "colour", "red"), unnoticed},
		"the record is persisted":       {do("persist", "$record"), unnoticed},
		"alive is persisted":            {do("persist", "$alive"), unnoticed},
		"alive is a word":               {do("set", "$alive", "garbage"), void},
		"alive is empty":                {do("set", "$alive", ""), void},
		"alive has no holder":           {do("set", "$alive", "5 5 "), void},
		"alive has no number":           {do("set", "$alive", "one 5 a"), void},
		"alive is a list":               {then(do("del", "$alive"), do("rpush", "$alive", "a")), void},
		"alive is a hash":               {then(do("del", "$alive"), do("hset", "$alive", "holder", "a")), void},
		"alive is another's":            {do("set", "$alive", "5 5000 b", "px", 5000), want{renew: backend.ErrLost, acquire: backend.ErrHeld, release: backend.ErrLost}},
	} {
		t.Run(name, func(t *testing.T) {
			g := enter(t)
			g.bystander()
			mine, other := g.open(), g.open()
			// There are two names: one is freed by its holder, the other by force.
			for _, how := range []string{"release", "force"} {
				record, alive := g.recordKey(how), g.aliveKey(how)
				claim := scene.Claim(how, "a", duration)
				claim.Metadata = map[string]string{"k": "v"}
				rec := scene.Grant(g, mine, claim)
				c.do(g, record, alive)
				is := func(what string, err, want error) {
					t.Helper()
					if want == nil && err != nil || want != nil && !errors.Is(err, want) {
						t.Errorf("%s: %v; want %v", what, err, want)
					}
					if want != corrupt {
						return
					}
					var e *backend.CorruptError
					if !errors.As(err, &e) || e.Name != how || !strings.Contains(e.Where, record) || e.Revision == "" {
						t.Errorf("%s: the error does not tell name, key and revision: %#v", what, e)
					}
					scene.Mentions(t, err, record, c.says)
				}
				now, err := other.Get(t.Context(), how)
				is("get", err, c.get)
				if c.mine && !(now.SameTenure(rec) && now.Live() && now.Revision == rec.Revision) {
					t.Errorf("%+v has become %+v", rec, now)
				}
				// As often as it is tried.
				if c.acquire != nil {
					for range 2 {
						_, err = other.Acquire(t.Context(), scene.Claim(how, "b", duration))
						is("acquire", err, c.acquire)
						claim := scene.Claim(how, "b", duration)
						claim.Over = rec.Revision + "0"
						if _, err = other.Acquire(t.Context(), claim); err == nil || !backend.Definite(err) {
							t.Errorf("acquire over another revision: %v", err)
						}
					}
				}
				before := g.left(alive)
				again, err := mine.Renew(t.Context(), rec)
				is("renew", err, c.renew)
				if err == nil {
					if !again.SameTenure(rec) || again.Duration != duration {
						t.Errorf("%+v was renewed as %+v", rec, again)
					}
					if left := g.left(alive); left < duration*9/10 {
						t.Errorf("renewed it lasts for %v, before for %v", left, before)
					}
				}
				if how == "release" {
					is("release", mine.Release(t.Context(), rec), c.release)
					if c.renew == nil && g.exists(alive) {
						t.Error("the tenure has outlived its release")
					}
					if c.stays {
						_, err = other.Acquire(t.Context(), scene.Claim(how, "b", duration))
						is("acquire after the release", err, corrupt)
					}
				}
				// By force it can be had in any case, and without where nothing is in the way.
				claim = scene.Claim(how, "b", duration)
				now, err = other.Get(t.Context(), how)
				var e *backend.CorruptError
				switch {
				case errors.As(err, &e):
					claim.Over = e.Revision
				case err == nil && now.Live():
					claim.Over = now.Revision
				}
				next, err := other.Acquire(t.Context(), claim)
				if err != nil {
					t.Fatalf("by force: %v", err)
				}
				if next.Token <= rec.Token {
					t.Errorf("token %d follows %d", next.Token, rec.Token)
				}
				if _, err := mine.Renew(t.Context(), rec); !errors.Is(err, backend.ErrLost) {
					t.Errorf("renew of a tenure that was replaced: %v; want ErrLost", err)
				}
				if err := mine.Release(t.Context(), rec); !errors.Is(err, backend.ErrLost) {
					t.Errorf("release of a tenure that was replaced: %v; want ErrLost", err)
				}
				if now := scene.Get(g, mine, how); !now.SameTenure(next) || !now.Live() {
					t.Errorf("the next tenure is %+v", now)
				}
				scene.Release(g, other, scene.Renew(g, other, next))
			}
		})
	}
}

// TestTamperedExpired: of a tenure that is over, what Get cannot read no Acquire
// overwrites without force, and every one with it does.
func TestTamperedExpired(t *testing.T) {
	t.Parallel()
	for name, fields := range map[string][]any{
		"no duration":        {"duration", "0"},
		"an endless one":     {"duration", "99999999999999"},
		"too great a token":  {"token", "9999999999999999"},
		"a huge token":       {"token", "99999999999999999999"},
		"a word for a token": {"token", "first"},
		"a new format":       {"format", "2"},
		"a broken seal":      {"seal", "{"},
	} {
		t.Run(name, func(t *testing.T) {
			g := enter(t)
			g.bystander()
			s := g.open()
			rec := scene.Grant(g, s, scene.Claim("job", "a", 10*time.Millisecond))
			scene.Eventually(g, "it expires", func() bool { return !g.exists(g.aliveKey("job")) })
			g.do(append([]any{"hset", g.recordKey("job")}, fields...)...)
			var e *backend.CorruptError
			if _, err := s.Get(t.Context(), "job"); !errors.As(err, &e) || !strings.Contains(e.Where, g.recordKey("job")) || e.Revision == "" {
				t.Fatalf("get: %v; want ErrCorrupt", err)
			}
			if got, err := s.Acquire(t.Context(), scene.Claim("job", "b", time.Minute)); !errors.Is(err, backend.ErrCorrupt) {
				t.Fatalf("acquire: %+v, %v; want ErrCorrupt", got, err)
			}
			claim := scene.Claim("job", "b", time.Minute)
			claim.Over = e.Revision
			next, err := s.Acquire(t.Context(), claim)
			if err != nil {
				t.Fatalf("by force: %v", err)
			}
			if next.Token <= rec.Token {
				t.Errorf("token %d follows %d", next.Token, rec.Token)
			}
			scene.Release(g, s, scene.Renew(g, s, next))
		})
	}
}

// TestTamperedRemainder: a last token that is none is told, or has no effect.
func TestTamperedRemainder(t *testing.T) {
	g := enter(t)
	g.bystander()
	s := g.open()
	for i, token := range []string{"", "-1", "1e3", "1.5", "first", "9007199254740991", "9999999999999999", "99999999999999999999"} {
		name := fmt.Sprintf("job-%d", i)
		rec := scene.Grant(g, s, scene.Claim(name, "a", time.Minute))
		scene.Release(g, s, rec)
		g.do("hset", g.recordKey(name), "token", token)
		_, err := s.Get(t.Context(), name)
		if !errors.Is(err, backend.ErrCorrupt) && !errors.Is(err, backend.ErrNotFound) {
			t.Errorf("%q: get: %v", token, err)
		}
		claim := scene.Claim(name, "b", time.Minute)
		next, err := s.Acquire(t.Context(), claim)
		var e *backend.CorruptError
		switch {
		case token == "9007199254740991":
			// That is the greatest there is, so there is no next.
			if err == nil || !backend.Definite(err) {
				t.Errorf("%q: acquire: %+v, %v", token, next, err)
			}
			continue
		case errors.As(err, &e):
			scene.Mentions(t, err, g.recordKey(name))
			claim.Over = e.Revision
			next, err = s.Acquire(t.Context(), claim)
		}
		if err != nil || next.Token <= rec.Token || next.Token > backend.MaxToken {
			t.Errorf("%q: acquire: %+v, %v", token, next, err)
			continue
		}
		scene.Release(g, s, scene.Renew(g, s, next))
	}
}

// TestTamperedUnderHolder is TestTampered with holders at work and others waiting.
func TestTamperedUnderHolder(t *testing.T) {
	t.Parallel()
	const duration = 3 * time.Second
	t.Run("alive is deleted", func(t *testing.T) {
		p := enter(t).pair("job", duration)
		p.bystander()
		p.do("del", p.aliveKey("job"))
		p.told(time.Now())
	})
	t.Run("both are deleted", func(t *testing.T) {
		p := enter(t).pair("job", duration)
		p.do("del", p.aliveKey("job"), p.recordKey("job"))
		p.told(time.Now())
		p.toldAlone(duration, func() { p.do("del", p.aliveKey("alone"), p.recordKey("alone")) })
	})
	t.Run("alive is deleted, alone", func(t *testing.T) {
		g := enter(t)
		g.toldAlone(duration, func() { g.do("del", g.aliveKey("alone")) })
	})
	for name, args := range map[string][]any{
		"the record is deleted":   {"del"},
		"the record is persisted": {"persist"},
	} {
		t.Run(name, func(t *testing.T) {
			p := enter(t).pair("job", duration)
			p.do(args[0], p.recordKey("job"))
			p.endures(time.Now(), p.renewals.Load())
		})
	}
	t.Run("alive is persisted", func(t *testing.T) {
		p := enter(t).pair("job", duration)
		p.do("persist", p.aliveKey("job"))
		since, renewals := time.Now(), p.renewals.Load()
		scene.Eventually(p, "the next renewal repairs it", func() bool { return p.left(p.aliveKey("job")) > 0 })
		p.endures(since, renewals)
	})
	t.Run("the record is garbage", func(t *testing.T) {
		p := enter(t).pair("job", duration)
		p.bystander()
		p.do("set", p.recordKey("job"), "garbage")
		since, renewals := time.Now(), p.renewals.Load()
		scene.Eventually(p, "renewals go on", func() bool { return p.renewals.Load() > renewals+1 })
		scene.Pass(p, time.Until(since.Add(duration*11/10)))
		if !p.holder.Alive() {
			t.Errorf("the holder's tenure: %v", context.Cause(p.holder.Context()))
		}
		p.holder.Leave()
		if err := scene.Await(p, "Run returns", p.holder.Result); err != nil {
			t.Errorf("the holder's tenure: %v", err)
		}
		err := scene.Await(p, "the waiter is told", p.waiter.Result)
		if !errors.Is(err, backend.ErrCorrupt) {
			t.Errorf("the waiter: %v; want ErrCorrupt", err)
		}
		scene.Mentions(t, err, p.recordKey("job"))
		if v := p.do("get", p.recordKey("job")); v != "garbage" {
			t.Errorf("what a person was to see has become %v", v)
		}
	})
	t.Run("alive is garbage", func(t *testing.T) {
		p := enter(t).pair("job", duration)
		p.bystander()
		p.do("set", p.aliveKey("job"), "garbage")
		since := time.Now()
		scene.Await(p, "the holder is told", p.holder.Ended)
		if !errors.Is(p.holder.Cause, backend.ErrCorrupt) {
			t.Errorf("the tenure ended with %v; want ErrCorrupt", p.holder.Cause)
		}
		t.Logf("told %s after it, with a duration of %s", round(p.holder.Stopped.Sub(since)), duration)
	})
}

// TestTokensAhead: tokens rise when the last one is ahead of the server's clock,
// as it is when that was set back.
func TestTokensAhead(t *testing.T) {
	g := enter(t)
	s := g.open()
	ahead := g.clock() + 3600_000_000
	// Somebody released it an hour from now.
	released := scene.Grant(g, s, scene.Claim("released", "a", time.Minute))
	g.do("set", g.aliveKey("released"), fmt.Sprintf("%d 60000 a", ahead))
	released.Token, released.Revision = ahead, strconv.FormatUint(ahead, 10)
	scene.Release(g, s, released)
	// Somebody held it until an hour from now.
	scene.Grant(g, s, scene.Claim("expired", "a", 10*time.Millisecond))
	scene.Eventually(g, "it expires", func() bool { return !g.exists(g.aliveKey("expired")) })
	g.do("hset", g.recordKey("expired"), "token", ahead)
	// It is held, by force it is taken.
	taken := scene.Grant(g, s, scene.Claim("taken", "a", time.Minute))
	g.do("set", g.aliveKey("taken"), fmt.Sprintf("%d 60000 a", ahead))
	claim := scene.Claim("taken", "b", time.Minute)
	claim.Over = strconv.FormatUint(ahead, 10)
	scene.Release(g, s, scene.Grant(g, s, claim))
	if _, err := s.Renew(t.Context(), taken); !errors.Is(err, backend.ErrLost) {
		t.Errorf("renew of another token: %v; want ErrLost", err)
	}
	for _, name := range []string{"released", "expired", "taken"} {
		last := ahead
		if name == "taken" {
			last++
		}
		for i := range 4 {
			if i == 3 {
				// The floor lies above all.
				last += 1000
			}
			claim := scene.Claim(name, "c", 20*time.Millisecond)
			if i == 3 {
				claim.MinToken = last
			}
			rec := scene.Grant(g, s, claim)
			if rec.Token != last+1 {
				t.Errorf("%s: token %d follows %d", name, rec.Token, last)
			}
			last = rec.Token
			if i%2 == 0 {
				scene.Release(g, s, rec)
			} else {
				scene.Eventually(g, "it expires", func() bool { return !g.exists(g.aliveKey(name)) })
			}
		}
	}
}

// TestOutOfMemory: at its maxmemory Redis grants no leases, and those that are
// held live on.
func TestOutOfMemory(t *testing.T) {
	g := alone(t, servers.WithRedisFlags("--maxmemory-policy", "noeviction"))
	s := g.open()
	kept := scene.Grant(g, s, scene.Claim("kept", "a", time.Minute))
	freed := scene.Grant(g, s, scene.Claim("freed", "a", time.Minute))
	floored := scene.Claim("floored", "a", time.Minute)
	floored.MinToken = 5
	vacated := scene.Grant(g, s, floored)
	over := scene.Grant(g, s, scene.Claim("over", "a", 10*time.Millisecond))
	held := scene.Hold(g, scene.Lease(g, g.open(), "held", 2*time.Second))
	waiter := scene.Blocked(g, g.open(), "held", 2*time.Second, held.Lease)
	scene.Eventually(g, "over is over", func() bool { return !g.exists(g.aliveKey("over")) })
	since := time.Now()
	// Also for clients whose scripts the server does not know yet.
	for _, flush := range []bool{false, true} {
		g.do("config", "set", "maxmemory", max(g.info("memory", "used_memory")-100_000, 1))
		if flush {
			g.do("script", "flush")
		}
		for _, name := range []string{"new", "over"} {
			before := g.do("hgetall", g.recordKey(name))
			_, err := s.Acquire(t.Context(), scene.Claim(name, "b", time.Minute))
			unknown(t, "acquire", err)
			scene.Mentions(t, err, "maxmemory", "OOM", name)
			if after := g.do("hgetall", g.recordKey(name)); fmt.Sprint(after) != fmt.Sprint(before) || g.exists(g.aliveKey(name)) {
				t.Errorf("a refused acquire has made of %v %v", before, after)
			}
		}
		if rec := scene.Get(g, s, "kept"); !rec.SameTenure(kept) || !rec.Live() {
			t.Errorf("it is %+v", rec)
		}
		scene.Renew(g, s, kept)
		if g.left(g.aliveKey("kept")) < 50*time.Second {
			t.Error("it was not renewed")
		}
		if _, err := s.Acquire(t.Context(), scene.Claim("kept", "b", time.Minute)); err == nil {
			t.Error("it was granted to another")
		}
	}
	scene.Release(g, s, freed)
	scene.Release(g, s, vacated)
	for _, name := range []string{"freed", "floored"} {
		if g.exists(g.aliveKey(name)) {
			t.Errorf("%s was released and is held", name)
		}
		if !g.exists(g.recordKey(name)) {
			t.Errorf("the last token of %s is forgotten", name)
		}
	}
	// Through more than a duration.
	scene.Pass(g, time.Until(since.Add(2500*time.Millisecond)))
	if !held.Alive() {
		t.Errorf("the holder's tenure: %v", context.Cause(held.Context()))
	}
	held.Leave()
	if err := scene.Await(g, "Run returns", held.Result); err != nil {
		t.Errorf("the holder's tenure: %v", err)
	}
	select {
	case <-waiter.Began:
		t.Error("the waiter was granted the lease without memory")
	case err := <-waiter.Result:
		t.Errorf("the waiter has given up: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	g.do("config", "set", "maxmemory", 0)
	healed := time.Now()
	scene.Await(g, "the waiter is granted the lease", waiter.Began)
	scene.Follows(g, waiter, held)
	t.Logf("granted %s after there was memory", round(waiter.Granted.Sub(healed)))
	for name, last := range map[string]backend.Record{"freed": freed, "floored": vacated, "over": over} {
		if rec := scene.Grant(g, s, scene.Claim(name, "b", time.Minute)); rec.Token <= last.Token {
			t.Errorf("token %d follows %d", rec.Token, last.Token)
		}
	}
}

// TestMissedMessage: a release of which a waiter hears nothing.
func TestMissedMessage(t *testing.T) {
	t.Parallel()
	t.Run("connections are dead and open", func(t *testing.T) {
		// Nothing but the time when the tenure would have expired tells.
		const duration = 4 * time.Second
		g := enter(t)
		p := g.proxy(0)
		h := scene.Hold(g, scene.Lease(g, g.open(), "job", duration))
		waiter := scene.Blocked(g, g.open(hasty, via(p)), "job", duration, h.Lease)
		scene.Eventually(g, "the waiter listens", func() bool { return g.listeners("job") == 2 })
		scene.Pass(g, 500*time.Millisecond) // the look that follows is over by then
		left := g.left(g.aliveKey("job"))
		p.BlackHole()
		p.Heal()
		gone := time.Now()
		h.Leave()
		scene.AwaitFor(g, duration+scene.Patience, "the waiter is granted the lease", waiter.Began)
		scene.Follows(g, waiter, h)
		after := waiter.Granted.Sub(gone)
		if after > 2*duration {
			t.Errorf("granted %v after the holder left, with a duration of %v", after, duration)
		}
		t.Logf("granted %s after the holder left, %s before the tenure would have ended", round(after), round(left-after))
	})
	const long = 3 * time.Minute // so it is not expiry that tells
	killer := func(g *ground) {
		g.Helper()
		if err := g.plain.ClientKillByFilter(g.Context(), "TYPE", "pubsub").Err(); err != nil {
			g.Fatal(err)
		}
	}
	t.Run("killed at the moment of the release", func(t *testing.T) {
		g := alone(t)
		for i := range 5 {
			name := fmt.Sprintf("job-%d", i)
			rec := scene.Grant(g, g.open(), scene.Claim(name, "a", long))
			s := g.open()
			waiter := scene.Blocked(g, s, name, long)
			scene.Eventually(g, "the waiter listens", func() bool { return g.listeners(name) > 0 })
			// All at once: nobody can have connected anew in between.
			var heard *goredis.IntCmd
			if _, err := g.plain.TxPipelined(t.Context(), func(pipe goredis.Pipeliner) error {
				pipe.ClientKillByFilter(t.Context(), "TYPE", "pubsub")
				pipe.Del(t.Context(), g.recordKey(name), g.aliveKey(name))
				heard = pipe.SPublish(t.Context(), g.recordKey(name), fmt.Sprintf("released %d", rec.Token))
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			gone := time.Now()
			scene.Await(g, "the waiter is granted the lease", waiter.Began)
			t.Logf("granted %s after a release that %d have heard", round(waiter.Granted.Sub(gone)), heard.Val())
			if heard.Val() > 0 {
				t.Error("the message was not missed")
			}
			if after := waiter.Granted.Sub(gone); after > 5*time.Second {
				t.Errorf("it took %v: messages are looked for again within a second", after)
			}
		}
	})
	t.Run("killed again and again", func(t *testing.T) {
		g := alone(t)
		h := scene.Hold(g, scene.Lease(g, g.open(), "job", long))
		for range 3 {
			waiter := scene.Blocked(g, g.open(), "job", long, h.Lease)
			for range 20 {
				killer(g)
				wait.For(t.Context(), rand.N(60*time.Millisecond))
			}
			killed := time.Now()
			scene.Eventually(g, "the waiter listens again", func() bool { return g.listeners("job") > 0 })
			back := time.Now()
			h.Leave()
			scene.Await(g, "Run returns", h.Result)
			released := time.Now()
			scene.Await(g, "the waiter is granted the lease", waiter.Began)
			scene.Follows(g, waiter, h)
			t.Logf("listens again %s after the last connection was killed; granted %s after the release", round(back.Sub(killed)), round(waiter.Granted.Sub(released)))
			if back.Sub(killed) > 3*time.Second {
				t.Errorf("it listens again only after %v", back.Sub(killed))
			}
			if after := waiter.Granted.Sub(released); after > time.Second {
				t.Errorf("it was granted %v after the release", after)
			}
			h = waiter
		}
	})
	t.Run("all connections killed again and again", func(t *testing.T) {
		g := alone(t)
		h := scene.Hold(g, scene.Lease(g, g.open(), "job", 5*time.Second))
		waiter := scene.Blocked(g, g.open(), "job", 5*time.Second, h.Lease)
		for end := time.Now().Add(6 * time.Second); time.Now().Before(end); {
			_ = g.plain.ClientKillByFilter(t.Context(), "TYPE", "normal", "SKIPME", "yes").Err()
			_ = g.plain.ClientKillByFilter(t.Context(), "TYPE", "pubsub").Err()
			wait.For(t.Context(), rand.N(200*time.Millisecond))
		}
		if !h.Alive() {
			t.Errorf("the holder's tenure: %v", context.Cause(h.Context()))
		}
		h.Leave()
		left := time.Now()
		scene.Await(g, "the waiter is granted the lease", waiter.Began)
		scene.Follows(g, waiter, h)
		t.Logf("granted %s after the holder left", round(waiter.Granted.Sub(left)))
	})
}

// TestNoChannels: who may not listen looks from time to time; who may not publish
// releases all the same.
func TestNoChannels(t *testing.T) {
	const long = 3 * time.Minute
	g := alone(t)
	g.do("acl", "setuser", "deaf", "on", ">secret", "~"+g.prefix+"*", "resetchannels", "+@all")
	deaf := func(o *goredis.UniversalOptions) { o.Username, o.Password = "deaf", "secret" }
	t.Run("waiter", func(t *testing.T) {
		g := groundOn(t, g.r)
		g.do("acl", "setuser", "deaf", "~"+g.prefix+"*")
		h := scene.Hold(g, scene.Lease(g, g.open(), "job", long))
		for range 2 {
			waiter := scene.Blocked(g, g.open(deaf), "job", long, h.Lease)
			scene.Pass(g, 1500*time.Millisecond) // it has looked once by then, for want of a subscription
			if g.listeners("job") > 1 {          // the holder's
				t.Fatal("it listens")
			}
			h.Leave()
			scene.Await(g, "Run returns", h.Result)
			released := time.Now()
			scene.Await(g, "the waiter is granted the lease", waiter.Began)
			scene.Follows(g, waiter, h)
			after := waiter.Granted.Sub(released)
			t.Logf("granted %s after the release", round(after))
			if after > 3*time.Second {
				t.Errorf("granted %v after the release: it should look every second", after)
			}
			h = waiter
		}
	})
	t.Run("holder", func(t *testing.T) {
		const duration = 2 * time.Second
		g := groundOn(t, g.r)
		g.do("acl", "setuser", "deaf", "~"+g.prefix+"*")
		s := g.open(deaf)
		rec := scene.Grant(g, s, scene.Claim("job", "a", duration))
		waiter := scene.Blocked(g, g.open(), "job", long)
		scene.Eventually(g, "the waiter listens", func() bool { return g.listeners("job") > 0 })
		rec = scene.Renew(g, s, rec)
		if err := s.Release(t.Context(), rec); err != nil {
			t.Fatal(err)
		}
		released := time.Now()
		if g.exists(g.aliveKey("job")) {
			t.Error("it was not released")
		}
		scene.Await(g, "the waiter is granted the lease", waiter.Began)
		t.Logf("granted %s after a release that was not told, of a duration of %s", round(waiter.Granted.Sub(released)), duration)
		if after := waiter.Granted.Sub(released); after > duration+2*time.Second {
			t.Errorf("granted %v after the release", after)
		}
	})
}

// TestNeverConfused: prefixes, names and holders of which one begins with another.
func TestNeverConfused(t *testing.T) {
	g := enter(t)
	c := client(t, g.r)
	type id struct{ prefix, name, holder string }
	var all []id
	for _, p := range []string{"a:", "a:b:", "a:b:{c}", "a", "a:b"} {
		for _, name := range []string{"job", "job2", "b:job", "b:{job}", "{job}", "job}", "b:{c}{job}", "c}{job", "job:alive", "job}:alive", "job%7D", "%"} {
			for _, holder := range []string{"worker-1", "worker-12", "worker-1 2", "1 60000 worker-1", "worker-1\n"} {
				all = append(all, id{p, name, holder})
			}
		}
	}
	stores := make(map[string]*redis.Store)
	held := make(map[string]id) // by prefix and name
	records := make(map[string]backend.Record)
	for _, w := range all {
		s := stores[w.prefix]
		if s == nil {
			s = redis.New(c, g.prefix+w.prefix)
			t.Cleanup(func() { s.Close() })
			stores[w.prefix] = s
		}
		where := w.prefix + "\x00" + w.name
		rec, err := s.Acquire(t.Context(), scene.Claim(w.name, w.holder, time.Minute))
		if by, ok := held[where]; ok {
			var refused *backend.HeldError
			if !errors.As(err, &refused) || refused.Record.Holder != by.holder || refused.Record.Name != w.name {
				t.Errorf("%q, which %q holds, for %q: %+v, %v", w.name, by.holder, w.holder, rec, err)
			}
			// Under another's name there is nothing to be done, whatever the token is.
			stolen := records[where]
			stolen.Holder = w.holder
			if _, err := s.Renew(t.Context(), stolen); !errors.Is(err, backend.ErrLost) {
				t.Errorf("%q renews what %q holds: %v", w.holder, by.holder, err)
			}
			if err := s.Release(t.Context(), stolen); !errors.Is(err, backend.ErrLost) {
				t.Errorf("%q releases what %q holds: %v", w.holder, by.holder, err)
			}
			stolen = records[where]
			stolen.Token /= 10
			if _, err := s.Renew(t.Context(), stolen); !errors.Is(err, backend.ErrLost) {
				t.Errorf("token %d renews %d: %v", stolen.Token, records[where].Token, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%q under %q: %v", w.name, w.prefix, err)
			continue
		}
		held[where], records[where] = w, rec
	}
	count := 0
	for p, s := range stores {
		n := 0
		for rec, err := range s.List(t.Context(), "") {
			if w, ok := held[p+"\x00"+rec.Name]; err != nil || !ok || rec.Holder != w.holder || !rec.SameTenure(records[p+"\x00"+rec.Name]) {
				t.Errorf("%q lists %+v, %v", p, rec, err)
			}
			n++
		}
		if n != 12 {
			t.Errorf("%q lists %d names of 12", p, n)
		}
		count += n
	}
	// One of them is freed, all others stay.
	for where, w := range held {
		scene.Release(g, stores[w.prefix], records[where])
		delete(held, where)
		count--
		left := 0
		for _, s := range stores {
			for _, err := range s.List(t.Context(), "") {
				if err != nil {
					t.Fatal(err)
				}
				left++
			}
		}
		if left != count {
			t.Fatalf("%q under %q was released: %d are left of %d", w.name, w.prefix, left, count)
		}
		if count < 40 {
			break
		}
	}
}

// stepC lets a program's clock be set: by as many seconds as a file says.
const stepC = `
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t *step;

__attribute__((constructor)) static void begin(void) {
	int fd = open(getenv("LEASEHOLD_STEP"), O_RDONLY);
	void *p = mmap(0, sizeof *step, PROT_READ, MAP_SHARED, fd, 0);
	if (fd < 0 || p == MAP_FAILED) abort();
	step = p;
}

int clock_gettime(clockid_t clock, struct timespec *t) {
	int r = syscall(SYS_clock_gettime, clock, t);
	if (r == 0 && clock == CLOCK_REALTIME && step) t->tv_sec += *step;
	return r;
}

int gettimeofday(struct timeval *restrict v, void *restrict zone) {
	struct timespec t;
	int r = clock_gettime(CLOCK_REALTIME, &t);
	v->tv_sec = t.tv_sec;
	v->tv_usec = t.tv_nsec / 1000;
	return r;
}

time_t time(time_t *p) {
	struct timespec t;
	clock_gettime(CLOCK_REALTIME, &t);
	if (p) *p = t.tv_sec;
	return t.tv_sec;
}
`

// stepped returns a ground on a server whose clock can be set.
func stepped(t *testing.T) (g *ground, step func(time.Duration)) {
	t.Helper()
	t.Parallel()
	server, err := exec.LookPath("redis-server")
	if err != nil {
		server, err = exec.LookPath("valkey-server")
	}
	if err != nil || runtime.GOOS != "linux" {
		t.Skipf("sets the clock of a process of Linux: %v", err)
	}
	cc, err := exec.LookPath("cc")
	if err != nil {
		t.Skipf("sets the clock by a library that it makes: %v", err)
	}
	dir := t.TempDir()
	source, library, file := filepath.Join(dir, "step.c"), filepath.Join(dir, "step.so"), filepath.Join(dir, "step")
	if err := os.WriteFile(source, []byte(stepC), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(cc, "-shared", "-fPIC", "-O1", "-o", library, source).CombinedOutput(); err != nil {
		t.Skipf("sets the clock by a library that it makes: %v: %s", err, out)
	}
	step = func(d time.Duration) {
		t.Helper()
		f, err := os.OpenFile(file, os.O_CREATE|os.O_WRONLY, 0o600)
		if err == nil {
			_, err = f.WriteAt(binary.NativeEndian.AppendUint64(nil, uint64(int64(d/time.Second))), 0)
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	step(0)
	// A socket needs no free port. Its path must be short.
	socket := filepath.Join(dir, "s")
	if len(socket) > 100 {
		short, err := os.MkdirTemp("", "lh")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(short) })
		socket = filepath.Join(short, "s")
	}
	cmd := exec.Command(server, "--port", "0", "--unixsocket", socket, "--save", "", "--dir", dir, "--hz", "100")
	cmd.Env = append(os.Environ(), "LD_PRELOAD="+library, "LEASEHOLD_STEP="+file)
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Log(said.String())
		}
	})
	plain := goredis.NewClient(&goredis.Options{Network: "unix", Addr: socket})
	t.Cleanup(func() { plain.Close() })
	scene.Eventually(t, "the server is up", func() bool {
		_, err := os.Stat(socket)
		return err == nil && plain.Ping(t.Context()).Err() == nil
	})
	return &ground{T: t, prefix: prefix(t), plain: plain}, step
}

// TestClockIsSet sets the clock of the server back and forth: tokens rise, renewals
// last for their duration, and who has lost a tenure by it is told.
func TestClockIsSet(t *testing.T) {
	g, step := stepped(t)
	s := redis.New(g.plain, g.prefix)
	t.Cleanup(func() { s.Close() })
	const duration = 3 * time.Second
	var last uint64
	grant := func(after string, d time.Duration) backend.Record {
		t.Helper()
		rec := scene.Grant(g, s, scene.Claim("job", "a", d))
		if rec.Token <= last {
			t.Errorf("%s: token %d follows %d", after, rec.Token, last)
		}
		last = rec.Token
		return rec
	}
	before := g.clock()
	held := scene.Hold(g, scene.Lease(g, s, "held", duration))
	rec := grant("first", time.Minute)
	step(-time.Hour)
	if now := g.clock(); before < now || before-now < 3590_000_000 {
		t.Fatalf("the clock was not set back: %d and %d", before, now)
	}
	if left := g.left(g.aliveKey("job")); left < time.Hour {
		t.Errorf("set back by an hour, it has %v left", left)
	}
	scene.Renew(g, s, rec)
	if left := g.left(g.aliveKey("job")); left > time.Minute {
		t.Errorf("renewed for a minute it has %v left", left)
	}
	scene.Release(g, s, rec)
	grant("set back and released", 20*time.Millisecond)
	expired := func() {
		t.Helper()
		scene.Eventually(g, "it expires", func() bool { return !g.exists(g.aliveKey("job")) })
	}
	expired()
	grant("expired", 20*time.Millisecond)
	expired()
	step(-2 * time.Hour)
	rec = grant("set back once more", time.Minute)
	scene.Eventually(g, "the holder goes on", func() bool { return g.left(g.aliveKey("held")) < duration })
	if !held.Alive() {
		t.Errorf("the clock was set back, and cost a tenure: %v", context.Cause(held.Context()))
	}
	step(time.Hour)
	since := time.Now()
	scene.Await(g, "the holder is told", held.Ended)
	if after := held.Stopped.Sub(since); after > duration*2/3 {
		t.Errorf("told after %v: the next renewal is due after a third of %v", after, duration)
	}
	if !errors.Is(held.Cause, backend.ErrLost) {
		t.Errorf("the tenure ended with %v; want ErrLost", held.Cause)
	}
	t.Logf("told %s after the clock was set forward, with a duration of %s", round(held.Stopped.Sub(since)), duration)
	if _, err := s.Renew(t.Context(), rec); !errors.Is(err, backend.ErrLost) {
		t.Errorf("renew after the end: %v; want ErrLost", err)
	}
	rec = grant("set forward", time.Minute)
	scene.Release(g, s, rec)
	step(0)
	grant("set right", time.Minute)
	scene.Follows(g, scene.Hold(g, scene.Lease(g, s, "held", duration)), held)
}
