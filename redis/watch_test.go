package redis

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/leasehold/leasehold/backend"
)

// watcher collects what a Watch tells.
type watcher struct {
	t      *testing.T
	told   chan string
	err    error // when told is closed
	cancel context.CancelFunc
}

// describeRecord is how the tests below write a record.
func describeRecord(rec backend.Record) string {
	switch {
	case rec.Revision == "":
		return "absent"
	case rec.Vacant():
		return "vacant"
	case rec.Expired:
		return rec.Holder + " expired"
	}
	return rec.Holder
}

func watchName(t *testing.T, s *Store, name string) *watcher {
	ctx, cancel := context.WithCancel(t.Context())
	w := &watcher{t: t, told: make(chan string, 1000), cancel: cancel}
	go func() {
		defer close(w.told)
		for rec, err := range s.Watch(ctx, name) {
			if err != nil {
				w.err = err
				continue
			}
			if rec.Name != name {
				t.Errorf("told of %q", rec.Name)
			}
			w.told <- describeRecord(rec)
		}
	}()
	return w
}

// tells waits for these, and no others, within a time.
func (w *watcher) tells(within time.Duration, want ...string) {
	w.t.Helper()
	w.hears(within, want...)
	w.silent()
}

// talkative is a claim of which the message does not tell all.
func talkative(holder, attempt string) backend.Claim {
	c := claim(holder, attempt)
	c.Metadata = map[string]string{"a": "b"}
	return c
}

// hears waits for these within a time.
func (w *watcher) hears(within time.Duration, want ...string) {
	w.t.Helper()
	late := time.After(within + 1)
	for i, want := range want {
		select {
		case got, ok := <-w.told:
			if got != want {
				w.t.Fatalf("told %q (open: %v), want %q, the %d.", got, ok, want, i+1)
			}
		case <-late:
			w.t.Fatalf("not told %q, the %d., within %v", want, i+1, within)
		}
	}
}

// silent: there is no more to tell at the moment.
func (w *watcher) silent() {
	w.t.Helper()
	synctest.Wait()
	select {
	case got, ok := <-w.told:
		w.t.Fatalf("told %q (open: %v, %v), want nothing", got, ok, w.err)
	default:
	}
}

// ends waits for the end and returns its error.
func (w *watcher) ends(within time.Duration) error {
	w.t.Helper()
	select {
	case got, ok := <-w.told:
		if ok {
			w.t.Fatalf("told %q, want the end", got)
		}
	case <-time.After(within + 1):
		w.t.Fatalf("it goes on after %v", within)
	}
	return w.err
}

// TestWatch: what a watch tells, and what it asks for that.
func TestWatch(t *testing.T) {
	for _, old := range []bool{false, true} {
		inBubble(t, func(t *testing.T, f *fake) {
			f.resp2 = old
			s, other := f.store(), f.store()
			w := watchName(t, s, "report")
			w.tells(soon, "absent")
			if got := f.requests(); got != "SSUBSCRIBE get" {
				t.Errorf("sent: %s, want the subscription before the look", got)
			}
			rec := acquired(t, other, talkative("alice", "a1"))
			w.tells(soon, "alice")
			if got := f.requests(); got != "acquire get" {
				t.Errorf("sent: %s, want one look", got)
			}
			for range 3 {
				time.Sleep(5 * time.Second)
				if _, err := other.Renew(t.Context(), rec); err != nil {
					t.Fatal(err)
				}
			}
			w.silent() // renewals are not told
			time.Sleep(10*time.Second - time.Millisecond)
			w.silent()
			w.tells(soon, "alice expired")
			rec = acquired(t, other, claim("bob", "b1"))
			w.tells(soon, "bob")
			f.requests()
			if err := other.Release(t.Context(), rec); err != nil {
				t.Fatal(err)
			}
			w.tells(soon, "absent")
			if got := f.requests(); got != "release" {
				t.Errorf("sent: %s, want no look, as the message tells all", got)
			}
			c := claim("carol", "c1")
			c.MinToken = 100
			rec = acquired(t, other, c)
			w.tells(soon, "carol")
			if err := other.Release(t.Context(), rec); err != nil {
				t.Fatal(err)
			}
			w.tells(soon, "vacant")
			f.requests()
			time.Sleep(10 * time.Minute)
			w.silent()
			if n := f.count("get"); n < 10 || n > 27 {
				t.Errorf("%d looks in ten minutes in which nothing happens, want one for each half minute", n)
			}
			if n := f.count("SSUBSCRIBE"); n != 0 {
				t.Errorf("%d subscriptions: nothing was wrong with the first", n)
			}
			// Others' messages are not its own, nor are those of nobody.
			acquired(t, other, backend.Claim{Name: "other", Holder: "x", Duration: time.Minute})
			f.publish("report", "")
			f.publish("report", "released")
			f.publish("report", "released x")
			f.publish("report", "acquired 1")
			w.silent()
			w.cancel()
			if err := w.ends(soon); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestWatchMessages: what a message tells nobody looks for, and a message that nobody
// understands is a reason to look.
func TestWatchMessages(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fake) {
		s, other := f.store(), f.store()
		if err := other.Release(t.Context(), acquired(t, other, claim("x", "x1"))); err != nil {
			t.Fatal(err)
		}
		w := watchName(t, s, "report")
		w.tells(soon, "absent")
		time.Sleep(time.Millisecond) // so that the token is not the last one and one more
		f.requests()
		rec := acquired(t, other, claim("alice of the 3 trees", "a 1"))
		w.tells(0, "alice of the 3 trees")
		if got := f.requests(); got != "acquire" {
			t.Errorf("sent: %s, want no look, as the message tells all", got)
		}
		time.Sleep(5 * time.Second)
		if _, err := other.Renew(t.Context(), rec); err != nil {
			t.Fatal(err)
		}
		time.Sleep(9 * time.Second)
		w.silent()
		w.tells(time.Second+soon, "alice of the 3 trees expired")
		if n := f.count("get"); n != 2 {
			t.Errorf("%d looks, want one at the end that was told and one at the real one", n)
		}
		for _, message := range []string{"edited", "acquired 9000000000000000", "vacated 9000000000000000", "granted", "granted 1 a 9000000000000000", "granted 99 a 9000000000000000 10 b"} {
			f.requests()
			f.publish("report", message)
			synctest.Wait()
			if got := f.requests(); got != "get" {
				t.Errorf("%q: sent: %s, want a look", message, got)
			}
			w.silent()
		}
		// Those of before are not believed.
		for _, message := range []string{"released 1", "granted 1 a 1 10000 zoe", fmt.Sprintf("granted 1 a %d 10000 zoe", rec.Token)} {
			f.requests()
			f.publish("report", message)
			w.silent()
			if got := f.requests(); got != "" {
				t.Errorf("%q: sent: %s", message, got)
			}
		}
	})
}

// TestHeard: what is not a message of a script's tells nothing.
func TestHeard(t *testing.T) {
	st, token := heard("report", "granted 3 a 1 946684800000000 10000 bob  b")
	want := backend.Record{
		Name: "report", Holder: "bob  b", Token: 946684800000000, Attempt: "a 1", Duration: 10 * time.Second, AcquiredAt: y2k, RenewedAt: y2k,
		Remaining: 10 * time.Second, Revision: "946684800000000",
	}
	if st == nil || token != want.Token || !reflect.DeepEqual(st.rec, want) || st.absent || st.err != nil {
		t.Errorf("granted: %+v, %d", st, token)
	}
	if st, _ = heard("report", "granted 0  946684800000000 10000 bob"); st == nil || st.rec.Attempt != "" || st.rec.Holder != "bob" {
		t.Errorf("granted without an attempt: %+v", st)
	}
	if st, token = heard("report", "released 7"); st == nil || !st.absent || token != 7 || !reflect.DeepEqual(st.rec, backend.Record{Name: "report"}) {
		t.Errorf("released: %+v, %d", st, token)
	}
	for _, message := range []string{
		"", "released", "released ", "released x", "released 0", "released -1", "acquired 7", "vacated 7", "edited", "granted", "granted ", "granted x", "granted 0",
		"granted 0 ", "granted 0  ", "granted -1 a 7 10 b", "granted 1 a", "granted 1 a 7", "granted 1 a 7 10", "granted 1 a 7 10 ", "granted 1 a 0 10 b", "granted 1 a x 10 b",
		"granted 1 a 7 0 b", "granted 1 a 7 -1 b", "granted 1 a 9007199254740992 10 b", "granted 2 a 7 10 b", "granted 0 x7 10 b", "granted 9223372036854775807 a 7 10 b", "RELEASED 7",
	} {
		if st, token := heard("report", message); st != nil || token != 0 {
			t.Errorf("%q tells %+v, %d", message, st, token)
		}
	}
}

// TestWatchExpiry: the end of a tenure is told at its end, and not later, though nobody
// says anything; of a lease that lasts long, too.
func TestWatchExpiry(t *testing.T) {
	for _, d := range []time.Duration{20 * time.Millisecond, 10 * time.Second, 29 * time.Second, 47 * time.Second, 3 * time.Minute} {
		inBubble(t, func(t *testing.T, f *fake) {
			s := f.store()
			c := claim("alice", "a1")
			c.Duration = d
			acquired(t, s, c)
			time.Sleep(d / 4)
			w := watchName(t, s, "report")
			w.tells(soon/2, "alice")
			synctest.Wait()
			left := d - d/4 - 2*time.Millisecond
			time.Sleep(left)
			w.silent()
			w.tells(5*time.Millisecond, "alice expired")
			f.requests()
			time.Sleep(20 * time.Second)
			w.silent()
			if got := f.requests(); got != "" {
				t.Errorf("sent: %s, when all is told", got)
			}
		})
	}
}

// TestWatchTogether: any number of watches of a name share a look.
func TestWatchTogether(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fake) {
		s, other := f.store(), f.store()
		var all []*watcher
		for range 100 {
			all = append(all, watchName(t, s, "report"))
		}
		for _, w := range all {
			w.tells(soon, "absent")
		}
		if f.count("SSUBSCRIBE") != 1 {
			t.Errorf("sent: %s", f.requests())
		}
		f.requests()
		rec := acquired(t, other, talkative("alice", "a1"))
		for _, w := range all {
			w.tells(soon, "alice")
		}
		if got := f.requests(); got != "acquire get" {
			t.Errorf("sent: %s", got)
		}
		// One that begins now does not rely on what was read before.
		late := watchName(t, s, "report")
		late.tells(soon, "alice")
		if got := f.requests(); got != "get" {
			t.Errorf("sent: %s", got)
		}
		if err := other.Release(t.Context(), rec); err != nil {
			t.Fatal(err)
		}
		for _, w := range append(all, late) {
			w.tells(0, "absent")
		}
		if got := f.requests(); got != "release" {
			t.Errorf("sent: %s", got)
		}
		// Those that go do not disturb those that stay.
		for _, w := range all {
			w.cancel()
			if err := w.ends(soon); err != nil {
				t.Error(err)
			}
		}
		acquired(t, other, claim("bob", "b1"))
		late.tells(soon, "bob")
		if n := f.count("SUNSUBSCRIBE"); n != 0 {
			t.Error("it has unsubscribed")
		}
	})
}

// TestWatchJoinLooks: a watch that begins while a look is under way waits for one that
// has begun after it.
func TestWatchJoinLooks(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fake) {
		s, other := f.store(), f.store()
		watchName(t, s, "report").tells(soon, "absent")
		hold := make(chan struct{})
		f.hooks(nil, func(r request, _ any) any {
			if r.what == "get" && r.n == 1 {
				r.wait(hold)
			}
			return nil
		})
		f.deaf = true
		w1 := watchName(t, s, "report") // its look finds nothing
		synctest.Wait()
		acquired(t, other, claim("alice", "a1"))
		w2 := watchName(t, s, "report") // begun when alice holds it
		synctest.Wait()
		close(hold)
		w2.tells(soon, "alice")
		w1.cancel()
	})
}

// TestWatchOvertaken: a message that comes while a look is under way is newer than what
// that has found.
func TestWatchOvertaken(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fake) {
		s, other := f.store(), f.store()
		w := watchName(t, s, "report")
		w.tells(soon, "absent")
		hold := make(chan struct{})
		f.hooks(nil, func(r request, _ any) any {
			if r.what == "get" && r.n == 1 {
				r.wait(hold) // with alice in it
			}
			return nil
		})
		rec := acquired(t, other, talkative("alice", "a1"))
		synctest.Wait()
		if err := other.Release(t.Context(), rec); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		close(hold)
		// Whoever was refused by alice hears that she has gone.
		w.tells(soon, "alice", "absent")
		if got := f.requests(); got != "acquire get release get" {
			t.Errorf("sent: %s, want another look behind the one that was overtaken", got)
		}
		// Who is known to hold it has gone, while a look still finds her.
		rec = acquired(t, other, talkative("alice", "a2"))
		w.tells(soon, "alice")
		held := make(chan struct{})
		f.hooks(nil, func(r request, _ any) any {
			if r.what == "get" && r.n == 1 {
				r.wait(held)
			}
			return nil
		})
		f.publish("report", "edited")
		synctest.Wait()
		if err := other.Release(t.Context(), rec); err != nil {
			t.Fatal(err)
		}
		w.tells(0, "absent")
		close(held)
		time.Sleep(time.Second)
		w.silent()
		if got := f.requests(); got != "get release get" {
			t.Errorf("sent: %s, want another look behind the one that was overtaken", got)
		}
		// What was acquired while a look is under way is found by the next.
		hold = make(chan struct{})
		f.hooks(nil, func(r request, _ any) any {
			if r.what == "get" && r.n == 1 {
				r.wait(hold)
			}
			return nil
		})
		f.publish("report", "acquired 9000000000000000")
		synctest.Wait()
		acquired(t, other, claim("bob", "b1"))
		synctest.Wait()
		close(hold)
		w.tells(soon, "bob")
	})
}

// TestWatchAbsence: absence is told again if somebody held in between, and only then.
func TestWatchAbsence(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fake) {
		s, other := f.store(), f.store()
		w := watchName(t, s, "report")
		w.tells(soon, "absent")
		for range 3 {
			f.deaf = true
			rec := acquired(t, other, claim("alice", "a1"))
			f.deaf = false
			if err := other.Release(t.Context(), rec); err != nil {
				t.Fatal(err)
			}
			w.tells(soon, "absent")
		}
		time.Sleep(5 * time.Minute) // with looks
		w.silent()
		// An old message, of a tenure before the one that is held, is not believed.
		old := acquired(t, other, claim("alice", "a2"))
		w.tells(soon, "alice")
		f.publish("report", fmt.Sprint("released ", old.Token-1))
		w.silent()
		time.Sleep(time.Second)
		w.silent()
	})
}

// TestWatchSlow: whoever takes its time hears of absence again if somebody held meanwhile,
// and of nothing that is over.
func TestWatchSlow(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fake) {
		s, other := f.store(), f.store()
		fast := watchName(t, s, "report")
		fast.tells(soon, "absent")
		taken := make(chan string)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			for rec := range s.Watch(ctx, "report") {
				select {
				case taken <- describeRecord(rec):
				case <-ctx.Done():
				}
			}
		}()
		synctest.Wait()
		rec := acquired(t, other, talkative("alice", "a1"))
		fast.tells(soon, "alice")
		if err := other.Release(t.Context(), rec); err != nil {
			t.Fatal(err)
		}
		fast.tells(0, "absent")
		take := func(want string) {
			t.Helper()
			select {
			case got := <-taken:
				if got != want {
					t.Errorf("told %q, want %q", got, want)
				}
			case <-time.After(time.Minute):
				t.Errorf("not told %q", want)
			}
		}
		take("absent")
		take("absent")
		acquired(t, other, claim("bob", "b1"))
		take("bob")
		cancel()
		<-done
	})
}

// TestWatchLost: connections break, in every way, and the watch finds out what it has
// missed.
func TestWatchLost(t *testing.T) {
	for what, c := range map[string]struct {
		lose   func(f *fake)
		within time.Duration
	}{
		"hung up":  {(*fake).hangUp, 100 * time.Millisecond},
		"moved":    {(*fake).moveSlots, 100 * time.Millisecond},
		"silent":   {(*fake).freeze, 2*askAfter + 100*time.Millisecond},
		"deaf":     {func(f *fake) { f.deaf = true }, maxBackstop * 5 / 4},
		"refused":  {func(f *fake) { f.dial = func(int) error { return refusedConn() }; f.hangUp() }, 5 * time.Second},
		"shutdown": {func(f *fake) { f.listeners(func(c *fakeConn) { c.send(refusal("ERR shutting down")); c.send(drop{}) }) }, time.Second},
	} {
		t.Run(what, func(t *testing.T) {
			inBubble(t, func(t *testing.T, f *fake) {
				s, other := f.store(), f.store()
				acquired(t, other, backend.Claim{Name: "x", Holder: "x", Duration: time.Minute}) // a connection, in case there are no more
				w, w2 := watchName(t, s, "report"), watchName(t, s, "other")
				w.tells(soon, "absent")
				w2.tells(soon, "absent")
				time.Sleep(2 * time.Second)
				w2.silent()
				if conns, channels := f.listening(); conns != 1 || channels != 2 {
					t.Errorf("%d connections with %d channels", conns, channels)
				}
				c.lose(f)
				long := claim("alice", "a1")
				long.Duration = 5 * time.Minute
				acquired(t, other, long)
				w.tells(c.within, "alice")
				w2.silent()
				f.with(func() { f.deaf, f.dial = false, nil })
				time.Sleep(5 * time.Second)
				if conns, channels := f.listening(); what != "silent" && (conns != 1 || channels != 2) {
					t.Errorf("%d connections with %d channels", conns, channels)
				}
				rec, err := other.Get(t.Context(), "report")
				if err != nil {
					t.Fatal(err)
				}
				if err := other.Release(t.Context(), rec); err != nil {
					t.Fatal(err)
				}
				w.tells(0, "absent")
				w.cancel()
				w2.cancel()
				_, _ = w.ends(soon), w2.ends(soon)
				time.Sleep(linger + 2*time.Second)
				if conns, channels := f.listening(); what != "silent" && (conns != 0 || channels != 0) {
					t.Errorf("%d connections with %d channels are left", conns, channels)
				}
			})
		})
	}
}

// TestWatchPing: a connection that is well is asked now and then, and kept.
func TestWatchPing(t *testing.T) {
	for _, old := range []bool{false, true} {
		inBubble(t, func(t *testing.T, f *fake) {
			f.resp2 = old
			w := watchName(t, f.store(), "report")
			w.tells(soon, "absent")
			f.requests()
			time.Sleep(time.Minute + time.Second)
			if n := f.count("PING"); n != 12 || f.count("SSUBSCRIBE") != 0 {
				t.Errorf("sent: %s", f.requests())
			}
		})
	}
}

// TestWatchFlapping: where no subscription can be had, or none that lasts, the watch
// looks from time to time.
func TestWatchFlapping(t *testing.T) {
	for what, prepare := range map[string]func(f *fake){
		"forbidden":  func(f *fake) { f.before = answer("SSUBSCRIBE", refusal("NOPERM No permissions to access a channel")) },
		"unknown":    func(f *fake) { f.before = answer("SSUBSCRIBE", refusal("ERR unknown command `ssubscribe`")) },
		"fails":      func(f *fake) { f.before = answer("SSUBSCRIBE", refusal("ERR something else")) },
		"moved":      func(f *fake) { f.before = answer("SSUBSCRIBE", refusal("MOVED 866 192.0.2.2:6379")) },
		"dropped":    func(f *fake) { f.before = answer("SSUBSCRIBE", drop{}) },
		"not heard":  func(f *fake) { f.before = answer("SSUBSCRIBE", noReply{}) },
		"never said": func(f *fake) { f.before = hanging("SSUBSCRIBE") },
		"ended": func(f *fake) {
			f.after = func(r request, reply any) any {
				if r.what == "SSUBSCRIBE" {
					return drop{}
				}
				return nil
			}
		},
		"no room": func(f *fake) {
			f.dial = func(n int) error {
				if n > 4 {
					return refusedConn()
				}
				return nil
			}
		},
	} {
		t.Run(what, func(t *testing.T) {
			inBubble(t, func(t *testing.T, f *fake) {
				s, other := f.store(), f.store()
				_, _ = s.Get(t.Context(), "report") // so that there is a connection
				_, _ = other.Get(t.Context(), "report")
				f.with(func() { f.dials = 4 })
				prepare(f)
				const poll = backend.DefaultPollInterval * 5 / 4
				w := watchName(t, s, "report")
				w.tells(openTime+soon, "absent")
				rec := acquired(t, other, claim("alice", "a1"))
				w.tells(poll+soon, "alice")
				for range 4 {
					time.Sleep(5 * time.Second)
					if _, err := other.Renew(t.Context(), rec); err != nil {
						t.Fatal(err)
					}
				}
				w.silent()
				w.tells(10*time.Second+poll, "alice expired")
				f.requests()
				time.Sleep(10 * time.Second)
				if n := f.count("get"); n < 7 || n > 30 {
					t.Errorf("it looks %d times in 10 seconds", n)
				}
				if n := f.count("SSUBSCRIBE"); n > 50 { // a client subscribes once more before it says that it has failed
					t.Errorf("it subscribes %d times in 10 seconds", n)
				}
				if n := f.count("SSUBSCRIBE"); n > 0 && (what == "forbidden" || what == "unknown") {
					t.Errorf("it subscribes %d times more where it may not", n)
				}
				long := claim("bob", "b1")
				long.Duration = 5 * time.Minute
				acquired(t, other, long)
				w.tells(poll+soon, "bob")
				// When it can be had, it is taken.
				f.hooks(nil, nil)
				f.with(func() { f.dial = nil })
				if what != "forbidden" && what != "unknown" && what != "not heard" {
					time.Sleep(2*askAfter + 3*time.Second)
					if _, err := other.Get(t.Context(), "report"); err != nil {
						t.Fatal(err)
					}
					if conns, _ := f.listening(); conns != 1 {
						t.Errorf("%d connections have subscriptions", conns)
					}
				}
				w.cancel()
				if err := w.ends(soon); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// answer answers requests of a kind so.
func answer(what string, reply any) func(r request) any {
	return func(r request) any {
		if r.what == what {
			return reply
		}
		return nil
	}
}

// TestWatchBackoff: while nothing can be reached it is tried, and not too often.
func TestWatchBackoff(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fake) {
		s, other := f.store(), f.store()
		w := watchName(t, s, "report")
		w.tells(soon, "absent")
		f.with(func() { f.dial = func(int) error { return refusedConn() } })
		f.with(func() {
			for c := range f.conns {
				c.send(drop{})
			}
		})
		dialled := func() (n int) {
			f.with(func() { n = f.dials })
			return n
		}
		time.Sleep(time.Minute)
		before := dialled()
		time.Sleep(time.Minute)
		if n := dialled() - before; n < 20 || n > 1500 { // newer clients dial five times each
			t.Errorf("%d dials in a minute", n)
		}
		w.silent()
		f.with(func() { f.dial = nil })
		acquired(t, other, claim("alice", "a1"))
		w.tells(5*time.Second, "alice")
	})
}

// TestWatchGivenUp: a watch that ends before its subscription is confirmed, and begins
// anew, is listened to.
func TestWatchGivenUp(t *testing.T) {
	for n := range 4 {
		inBubble(t, func(t *testing.T, f *fake) {
			s, other := f.store(), f.store()
			keep := watchName(t, s, "other")
			keep.tells(soon, "absent")
			hold := make(chan struct{})
			f.hooks(func(r request) any {
				if r.what == "SSUBSCRIBE" || r.what == "SUNSUBSCRIBE" {
					r.wait(hold)
				}
				return nil
			}, nil)
			for range n {
				w := watchName(t, s, "report")
				synctest.Wait()
				w.cancel()
				if err := w.ends(0); err != nil {
					t.Error(err)
				}
				synctest.Wait()
			}
			w := watchName(t, s, "report")
			synctest.Wait()
			close(hold)
			w.tells(soon, "absent")
			f.requests()
			rec := acquired(t, other, talkative("alice", "a1"))
			w.tells(soon, "alice")
			if err := other.Release(t.Context(), rec); err != nil {
				t.Fatal(err)
			}
			w.tells(soon, "absent")
			if got := f.requests(); got != "acquire get release" {
				t.Errorf("sent: %s", got)
			}
			if conns, channels := f.listening(); conns != 1 || channels != 2 {
				t.Errorf("%d connections with %d channels", conns, channels)
			}
			w.cancel()
			_ = w.ends(soon)
			time.Sleep(soon)
			if conns, channels := f.listening(); conns != 1 || channels != 1 {
				t.Errorf("%d connections with %d channels", conns, channels)
			}
			keep.silent()
		})
	}
}

// TestWatchMany: a thousand names on one connection.
func TestWatchMany(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fake) {
		s, other := f.store(), f.store()
		var all []*watcher
		for i := range 1000 {
			all = append(all, watchName(t, s, fmt.Sprint("n", i)))
		}
		for _, w := range all {
			w.hears(2*time.Second, "absent")
		}
		if conns, channels := f.listening(); conns != 1 || channels != len(all) {
			t.Errorf("%d connections with %d channels", conns, channels)
		}
		if f.most > 1+mostFlights+mostLate {
			t.Errorf("%d connections", f.most)
		}
		f.hangUp()
		time.Sleep(2 * time.Second)
		if conns, channels := f.listening(); conns != 1 || channels != len(all) {
			t.Errorf("%d connections with %d channels", conns, channels)
		}
		f.requests()
		for i, w := range all {
			if i%100 == 7 {
				c := claim("alice", fmt.Sprint(i))
				if i%200 == 7 {
					c = talkative("alice", fmt.Sprint(i))
				}
				c.Name = fmt.Sprint("n", i)
				acquired(t, other, c)
				w.tells(soon, "alice")
			}
		}
		if n := f.count("get"); n != 5 {
			t.Errorf("%d looks for ten changes of which five messages tell all", n)
		}
		synctest.Wait()
		for _, w := range all {
			if n := len(w.told); n > 0 {
				t.Errorf("%d things are told that did not happen", n)
			}
			w.cancel()
		}
		for _, w := range all {
			_ = w.ends(soon)
		}
		time.Sleep(linger + soon)
		if conns, _ := f.listening(); conns != 0 {
			t.Errorf("%d connections listen to nothing", conns)
		}
	})
}

// TestWatchLinger: the connection stays for a moment after the last watch, for the next.
func TestWatchLinger(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fake) {
		s := f.store()
		var conns []int
		f.hooks(func(r request) any {
			if r.what == "SSUBSCRIBE" {
				conns = append(conns, r.conn)
			}
			return nil
		}, nil)
		for _, pause := range []time.Duration{linger / 2, linger / 2, 2 * linger, 0} {
			w := watchName(t, s, "report")
			w.tells(soon, "absent")
			w.cancel()
			_ = w.ends(soon)
			time.Sleep(pause)
		}
		if len(conns) != 4 || conns[0] != conns[1] || conns[1] != conns[2] || conns[2] == conns[3] {
			t.Errorf("subscribed on connections %v", conns)
		}
		time.Sleep(linger + soon)
		s.topics.mu.Lock()
		if n := len(s.topics.byName) + len(s.topics.listeners); n != 0 {
			t.Errorf("%d topics and listeners are left", n)
		}
		s.topics.mu.Unlock()
		if n := f.open(); n > 1 {
			t.Errorf("%d connections are left", n)
		}
	})
}

// TestWatchClosed: Close ends the watches, waits for what runs, and leaves nothing.
func TestWatchClosed(t *testing.T) {
	for _, when := range []string{"beginning", "watching", "looking", "lost", "unreachable"} {
		t.Run(when, func(t *testing.T) {
			inBubble(t, func(t *testing.T, f *fake) {
				s := f.store()
				if when == "unreachable" {
					f.dial = func(int) error { return refusedConn() }
				}
				if when == "looking" {
					f.before = hanging("get")
				}
				w := watchName(t, s, "report")
				switch when {
				case "watching":
					w.tells(soon, "absent")
				case "lost":
					w.tells(soon, "absent")
					f.hangUp()
					synctest.Wait()
				case "unreachable":
					time.Sleep(10 * time.Second)
				case "looking":
					synctest.Wait()
				}
				began := time.Now()
				if err := s.Close(); err != nil {
					t.Error(err)
				}
				if left := running(); left != "" {
					t.Errorf("Close has returned, and this runs: %s", left)
				}
				if took := time.Since(began); took > time.Second {
					t.Errorf("Close took %v", took)
				}
				if when == "beginning" {
					for range w.told { // it may have begun
					}
				}
				refused(t, when, w.ends(0), backend.ErrInvalid)
				synctest.Wait()
				if conns, _ := f.listening(); conns != 0 {
					t.Errorf("%d connections listen", conns)
				}
				s.topics.mu.Lock()
				defer s.topics.mu.Unlock()
				if n := len(s.topics.byName); n != 0 {
					t.Errorf("%d topics are left", n)
				}
			})
		})
	}
}

// running returns the stack of something that watches have in the background, "" if there
// is nothing.
func running() string {
	buf := make([]byte, 1<<20)
	for _, g := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		for _, f := range []string{"redis.(*listener).", "redis.(*topic).look", "redis.(*topics).attach"} {
			if strings.Contains(g, f) {
				return g
			}
		}
	}
	return ""
}

// TestWatchNotBegun: a watch that is given up before it is listened to leaves nothing.
func TestWatchNotBegun(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fake) {
		s := f.store()
		keep := watchName(t, s, "other")
		keep.tells(soon, "absent")
		for range 200 {
			topic, poke := s.topics.join("report")
			s.topics.part(topic, poke)
			if !s.topics.attachOne(topic) {
				t.Error("it is to be tried again")
			}
		}
		synctest.Wait()
		time.Sleep(soon)
		if _, channels := f.listening(); channels != 1 {
			t.Errorf("%d channels are listened to", channels)
		}
		s.topics.mu.Lock()
		defer s.topics.mu.Unlock()
		for _, l := range s.topics.listeners {
			if len(l.topics) != 1 {
				t.Errorf("%d topics of one watch", len(l.topics))
			}
		}
	})
}

// TestWatchErrors: what will stay so ends a watch, and what passes does not.
func TestWatchErrors(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fake) {
		other := f.store()
		for _, a := range answers {
			if greets(a.text) {
				continue // TestGreeting
			}
			s := f.store()
			fails := true
			f.hooks(func(r request) any {
				if r.what == "get" && fails {
					return refusal(a.text)
				}
				return nil
			}, nil)
			w := watchName(t, s, "report")
			if a.class != nil {
				refused(t, a.text, w.ends(2*time.Second), a.class)
				continue
			}
			time.Sleep(20 * time.Second)
			w.silent()
			if n := f.count("get"); n < 5 || n > 120 { // with the client's own retries
				t.Errorf("%s: it looks %d times in 20 s", a.text, n)
			}
			f.with(func() { fails = false })
			w.tells(maxRetry*2, "absent")
			rec := acquired(t, other, claim("alice", ""))
			w.tells(soon, "alice")
			if err := other.Release(t.Context(), rec); err != nil {
				t.Error(err)
			}
			w.tells(0, "absent")
			w.cancel()
			_ = w.ends(soon)
		}
	})
}

// TestWatchCorrupt: a record that cannot be read ends the watch, when that is seen.
func TestWatchCorrupt(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fake) {
		s := f.store()
		w := watchName(t, s, "report")
		w.tells(soon, "absent")
		f.spoil("report", "it is no hash")
		err := w.ends(maxBackstop * 5 / 4)
		refused(t, "corrupt", err, backend.ErrCorrupt)
		var corrupt *backend.CorruptError
		if !errors.As(err, &corrupt) || corrupt.Revision == "" || corrupt.Where != `the Redis key "t:{report}"` {
			t.Errorf("%#v", corrupt)
		}
		refused(t, "at once", watchName(t, s, "report").ends(soon), backend.ErrCorrupt)
	})
}

// TestWatchBroken: whoever breaks off leaves nothing.
func TestWatchBroken(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fake) {
		s := f.store()
		for range s.Watch(t.Context(), "report") {
			break
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		for rec, err := range s.Watch(ctx, "report") {
			t.Errorf("%+v, %v from a context that is over", rec, err)
		}
		for _, err := range s.Watch(t.Context(), "") {
			refused(t, "no name", err, backend.ErrInvalid)
		}
		time.Sleep(linger + soon)
		s.topics.mu.Lock()
		defer s.topics.mu.Unlock()
		if n := len(s.topics.byName) + len(s.topics.listeners); n != 0 {
			t.Errorf("%d topics and listeners are left", n)
		}
	})
}

// TestWatchSeal: a name that has moved away is looked at once a minute.
func TestWatchSeal(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fake) {
		s := f.store()
		c := claim("mover", "m1")
		c.Duration, c.Seal = backend.Forever, &backend.Seal{To: "etcd", Epoch: 1}
		acquired(t, s, c)
		w := watchName(t, s, "report")
		w.tells(soon, "mover")
		f.requests()
		time.Sleep(10*time.Minute + time.Second)
		if n := f.count("get"); n != 10 {
			t.Errorf("%d looks in 10 minutes", n)
		}
		w.silent()
	})
}
