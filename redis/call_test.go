package redis

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/internal/wait"
)

// hanging never answers requests of some kinds.
func hanging(what ...string) func(r request) any {
	return func(r request) any {
		for _, w := range what {
			if r.what == w {
				return silence(r)
			}
		}
		return nil
	}
}

// TestCallReturns: whatever the client makes of contexts, a call lasts no longer than
// its own, nor than the store allows, though nobody ever answers; and its outcome is
// unknown then.
func TestCallReturns(t *testing.T) {
	rec := backend.Record{Name: "report", Holder: "alice", Token: 7, Revision: "7"}
	calls := map[string]func(ctx context.Context, s *Store) error{
		"acquire": func(ctx context.Context, s *Store) error {
			_, err := s.Acquire(ctx, claim("alice", "a1"))
			return err
		},
		"renew":   func(ctx context.Context, s *Store) error { _, err := s.Renew(ctx, rec); return err },
		"release": func(ctx context.Context, s *Store) error { return s.Release(ctx, rec) },
		"get":     func(ctx context.Context, s *Store) error { _, err := s.Get(ctx, "report"); return err },
		"list": func(ctx context.Context, s *Store) error {
			for _, err := range s.List(ctx, "") {
				return err
			}
			return nil
		},
		"a seal": func(ctx context.Context, s *Store) error {
			c := claim("alice", "a1")
			c.Seal, c.Duration = &backend.Seal{To: "x", Epoch: 1}, backend.Forever
			_, err := s.Acquire(ctx, c)
			return err
		},
	}
	for what, call := range calls {
		for _, how := range []string{"ignoring", "heeding", "heeding, abandoned", "dialling"} {
			t.Run(what+", "+how, func(t *testing.T) {
				inBubble(t, func(t *testing.T, f *fake) {
					f.before = hanging("get", "acquire", "renew", "release", "SCAN")
					if how == "dialling" {
						end := make(chan struct{})
						defer synctest.Wait()
						defer close(end)
						f.dial = func(int) error { <-end; return errors.New("too late") }
					}
					var opts []func(*goredis.Options)
					if strings.HasPrefix(how, "heeding") {
						opts = append(opts, heeding)
					}
					s := f.storeOf(f.client(opts...), WithRequestTimeout(700*time.Millisecond))
					within := func(what string, ctx context.Context, d time.Duration) {
						t.Helper()
						began := time.Now()
						err := call(ctx, s)
						most := d + time.Millisecond
						if len(opts) > 0 && (ctx.Done() == nil || wait.Abandons(ctx)) {
							most += 150 * time.Millisecond // by which the client is late: it sleeps before it finds that it may not try again
						}
						if took := time.Since(began); took < d || took > most {
							t.Errorf("%s: it took %v, want %v: %v", what, took, d, err)
						}
						unknown(t, what, err)
					}
					ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
					if how == "heeding, abandoned" {
						ctx = wait.Abandon(ctx)
					}
					within("the context's timeout", ctx, 300*time.Millisecond)
					cancel()
					if how != "heeding, abandoned" { // who abandons does not wait either
						ctx, cancel = context.WithCancel(t.Context())
						time.AfterFunc(200*time.Millisecond, cancel)
						within("cancelled", ctx, 200*time.Millisecond)
					}
					ctx = context.Background()
					if how == "heeding, abandoned" {
						ctx = wait.Abandon(ctx)
					}
					if how == "dialling" && what != "list" {
						ctx = t.Context()
					}
					within("the store's timeout", ctx, 700*time.Millisecond)
				})
			})
		}
	}
}

// TestNotBegun: a call whose context is over sends nothing.
func TestNotBegun(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fake) {
		s := f.store()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := s.Acquire(ctx, claim("alice", "a1"))
		if unknown(t, "acquire", err); !errors.Is(err, context.Canceled) || f.dials > 0 {
			t.Errorf("%v, %d connections", err, f.dials)
		}
	})
}

// some has n names held by the store, renewed by calls that it begins all at once.
type some struct {
	t    *testing.T
	s    *Store
	recs []backend.Record
	wg   sync.WaitGroup
	errs []error
}

func hold(t *testing.T, s *Store, n int) *some {
	m := &some{t: t, s: s, recs: make([]backend.Record, n), errs: make([]error, n)}
	for i := range n {
		m.wg.Go(func() {
			c := claim(fmt.Sprintf("holder%d", i), fmt.Sprintf("a%d", i))
			c.Name = fmt.Sprintf("n%d", i)
			c.Duration = time.Duration(60+i) * time.Second
			if m.recs[i], m.errs[i] = s.Acquire(t.Context(), c); m.errs[i] != nil {
				t.Errorf("%+v: %v", c, m.errs[i])
			}
		})
	}
	m.wg.Wait()
	clear(m.errs)
	return m
}

// renew begins to renew the names from i on.
func (m *some) renew(ctx context.Context, from, to int) {
	for i := from; i < to; i++ {
		m.wg.Go(func() {
			rec := m.recs[i]
			now, err := m.s.Renew(ctx, rec)
			if m.errs[i] = err; err != nil {
				return
			}
			if !now.SameTenure(rec) || now.Name != rec.Name || now.Duration != rec.Duration || now.Remaining.Truncate(time.Second) != rec.Duration {
				m.t.Errorf("%+v is the answer to %+v", now, rec)
			}
		})
	}
}

// TestTogether: what is called while others are on their way goes together, and every
// answer to whom it is for.
func TestTogether(t *testing.T) {
	for _, plain := range []bool{true, false} { // the answers are short or long
		inBubble(t, func(t *testing.T, f *fake) {
			s := f.store()
			m := hold(t, s, 1003)
			synctest.Wait() // for what has made these
			if !plain {
				for i := range m.recs {
					m.recs[i].Revision = "of another store"
				}
			}
			release := make(chan struct{})
			f.hooks(func(r request) any { r.wait(release); return nil }, nil)
			m.renew(t.Context(), 0, 1)
			m.renew(t.Context(), 1, 2)
			synctest.Wait()
			m.renew(t.Context(), 2, len(m.recs))
			synctest.Wait()
			if got := f.travelled(); len(got) != 2 || sum(got) != 2 {
				t.Errorf("at first trips of %v, want one for each of two calls", got)
			}
			close(release)
			m.wg.Wait()
			for i, err := range m.errs {
				if err != nil {
					t.Errorf("n%d: %v", i, err)
				}
			}
			got := f.travelled()
			if len(got) != 2 || sum(got) != 1001 {
				t.Errorf("then trips of %v, want two for 1001 calls", got)
			}
			for _, n := range got {
				if n > mostTogether {
					t.Errorf("%d calls go together, at most %d should", n, mostTogether)
				}
			}
			if f.most > 2*mostFlights { // newer clients make one more while they wait
				t.Errorf("%d connections, want %d", f.most, mostFlights)
			}
		})
	}
}

// TestTogetherAnswers: of what goes together one can be refused, or fail, without the
// others.
func TestTogetherAnswers(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fake) {
		s := f.store()
		m := hold(t, s, 12)
		f.remove("n5")
		f.remove("n6")
		release := make(chan struct{})
		f.hooks(func(r request) any {
			r.wait(release)
			if r.name() == "n7" {
				return refusal("OOM command not allowed when used memory > 'maxmemory'.")
			}
			return nil
		}, nil)
		m.renew(t.Context(), 0, len(m.recs))
		synctest.Wait()
		close(release)
		m.wg.Wait()
		for i, err := range m.errs {
			switch {
			case i == 5 || i == 6:
				refused(t, "removed", err, backend.ErrLost)
			case i == 7:
				unknown(t, "out of memory", err)
			case err != nil:
				t.Errorf("n%d: %v", i, err)
			}
		}
		if got := f.travelled(); len(got) > 3 || sum(got) != len(m.recs) {
			t.Errorf("trips of %v", got)
		}
	})
}

// TestRenewals: 1,000 holders renew at once, over and over, outside of a bubble.
func TestRenewals(t *testing.T) {
	f := newFake(t)
	s := f.store()
	m := hold(t, s, 1000)
	for range 2 {
		m.renew(t.Context(), 0, len(m.recs))
		m.wg.Wait()
		for i, err := range m.errs {
			if err != nil {
				t.Errorf("n%d: %v", i, err)
			}
		}
	}
	if f.most > mostFlights+mostLate {
		t.Errorf("%d connections", f.most)
	}
}

// TestLate: pipelines that nobody answers hold up others for a moment, and take only
// so many connections.
func TestLate(t *testing.T) {
	for _, opts := range [][]func(*goredis.Options){nil, {heeding}} {
		inBubble(t, func(t *testing.T, f *fake) {
			s := f.storeOf(f.client(opts...), WithRequestTimeout(2*time.Second))
			m := hold(t, s, 500)
			hung := map[int]bool{}
			f.hooks(func(r request) any {
				if r.what != "renew" {
					return nil
				}
				f.with(func() { hung[r.conn] = true })
				return silence(r)
			}, nil)
			// Two hang.
			m.renew(t.Context(), 0, 2)
			synctest.Wait()
			began := time.Now()
			if _, err := s.Get(t.Context(), "n9"); err != nil {
				t.Error(err)
			}
			if took := time.Since(began); took > late {
				t.Errorf("a call is held up for %v, want %v at most", took, late)
			}
			// More and more do.
			for i := 2; i < 400; i++ {
				m.renew(t.Context(), i, i+1)
				time.Sleep(4 * time.Millisecond)
			}
			n := 0
			f.with(func() { n = len(hung) })
			if n > mostFlights+mostLate || n < mostLate {
				t.Errorf("%d connections hang, want %d at most", n, mostFlights+mostLate)
			}
			if open := f.open(); open > mostFlights+mostLate+1 {
				t.Errorf("%d connections, want %d at most", open, mostFlights+mostLate)
			}
			m.wg.Wait()
			for i, err := range m.errs[:400] {
				unknown(t, fmt.Sprint("call ", i), err)
			}
			// When it answers again, all is as before.
			f.hooks(nil, nil)
			time.Sleep(time.Minute)
			began = time.Now()
			m.renew(t.Context(), 400, 500)
			m.wg.Wait()
			for i, err := range m.errs[400:] {
				if err != nil {
					t.Errorf("call %d: %v", i, err)
				}
			}
			if took := time.Since(began); took > late {
				t.Errorf("it took %v", took)
			}
			l := s.lanes.of("")
			l.mu.Lock()
			defer l.mu.Unlock()
			if len(l.flights) > 0 || l.late != 0 || len(l.waiting) > 0 {
				t.Errorf("%d flights, %d late and %d calls are left", len(l.flights), l.late, len(l.waiting))
			}
		})
	}
}

// TestLateEnds: a pipeline that is late and comes back after all has its answers taken,
// and no more than there should be are under way then.
func TestLateEnds(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fake) {
		s := f.store()
		m := hold(t, s, 10)
		f.hooks(func(r request) any {
			if r.name() == "n0" || r.name() == "n1" {
				time.Sleep(500 * time.Millisecond)
			}
			return nil
		}, nil)
		m.renew(t.Context(), 0, 10)
		m.wg.Wait()
		for i, err := range m.errs {
			if err != nil {
				t.Errorf("n%d: %v", i, err)
			}
		}
		if got := f.requests(); strings.Count(got, "renew") != 10 {
			t.Errorf("sent: %s", got)
		}
		if f.most > 4 {
			t.Errorf("%d connections", f.most)
		}
	})
}

// TestLateWaiting: what waits while as many as may be are late is sent when they are not
// any more, though nobody calls again.
func TestLateWaiting(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fake) {
		s := f.store()
		m := hold(t, s, 100)
		release := make(chan struct{})
		f.hooks(func(r request) any { r.wait(release); return nil }, nil)
		for i := range 50 {
			m.renew(t.Context(), i, i+1)
			time.Sleep(30 * time.Millisecond)
		}
		m.renew(t.Context(), 50, 100)
		time.Sleep(200 * time.Millisecond)
		close(release)
		began := time.Now()
		m.wg.Wait()
		if took := time.Since(began); took > 2*late {
			t.Errorf("it took %v", took)
		}
		for i, err := range m.errs {
			if err != nil {
				t.Errorf("call %d: %v", i, err)
			}
		}
	})
}

// TestBusy: pipelines that follow each other are not one that is late.
func TestBusy(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fake) {
		s := f.store()
		m := hold(t, s, 300)
		f.with(func() { f.latency = 5 * time.Millisecond })
		for i := range m.recs {
			m.renew(t.Context(), i, i+1)
			time.Sleep(time.Millisecond)
			l := s.lanes.of("")
			l.mu.Lock()
			if l.late > 0 {
				t.Errorf("%d are late", l.late)
			}
			l.mu.Unlock()
		}
		m.wg.Wait()
	})
}

// TestGivenUp: what nobody waits for any more when its turn has come is not sent.
func TestGivenUp(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fake) {
		s := f.store()
		m := hold(t, s, 6)
		release := make(chan struct{})
		f.hooks(func(r request) any { r.wait(release); return nil }, nil)
		m.renew(t.Context(), 0, 2)
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		m.renew(ctx, 2, 4)
		m.renew(t.Context(), 4, 5)
		time.Sleep(30 * time.Millisecond)
		synctest.Wait()
		for _, err := range m.errs[2:4] {
			if unknown(t, "given up", err); !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
		}
		close(release)
		m.wg.Wait()
		var names []string
		f.with(func() {
			for _, r := range f.log {
				names = append(names, r.name())
			}
		})
		if got := fmt.Sprint(names); len(names) != 3 || strings.Contains(got, "n2") || strings.Contains(got, "n3") {
			t.Errorf("sent: %s", got)
		}
	})
}

// TestLongest: of what goes together each is waited for as long as it wants.
func TestLongest(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fake) {
		s := f.storeOf(f.client(heeding))
		m := hold(t, s, 4)
		release := make(chan struct{})
		f.hooks(func(r request) any { r.wait(release); return nil }, nil)
		m.renew(t.Context(), 0, 2)
		synctest.Wait()
		short, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		m.renew(short, 2, 3)
		m.renew(t.Context(), 3, 4)
		synctest.Wait()
		f.hooks(func(r request) any { time.Sleep(500 * time.Millisecond); return nil }, nil)
		close(release)
		m.wg.Wait()
		if unknown(t, "the short one", m.errs[2]); m.errs[3] != nil {
			t.Errorf("the long one: %v", m.errs[3])
		}
	})
}

// TestNoScript: a server that has restarted, or whose scripts were flushed, gets the
// text. So far nothing was done, and it does not count as a sending.
func TestNoScript(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fake) {
		s := f.store()
		sent := func(want string) {
			t.Helper()
			if got := f.requests(); got != want {
				t.Errorf("sent: %s, want %s", got, want)
			}
		}
		f.flush()
		rec := acquired(t, s, claim("alice", "a1"))
		sent("acquire ACQUIRE")
		if _, err := s.Renew(t.Context(), rec); err != nil {
			t.Error(err)
		}
		if _, err := s.Get(t.Context(), "report"); err != nil {
			t.Error(err)
		}
		if err := s.Release(t.Context(), rec); err != nil {
			t.Error(err)
		}
		sent("renew RENEW get GET release RELEASE")
		f.flush()
		refused(t, "released again", s.Release(t.Context(), rec), backend.ErrLost)
		sent("release RELEASE")
		rec = acquired(t, s, claim("alice", "a2"))
		sent("acquire ACQUIRE")
		f.flush()
		_, err := s.Acquire(t.Context(), claim("bob", "b1"))
		refused(t, "bob", err, backend.ErrHeld)
		sent("acquire ACQUIRE")
		f.flush()
		if _, err := s.Renew(t.Context(), rec); err != nil {
			t.Error(err)
		}
		sent("renew RENEW")
		// It is tried once.
		f.hooks(func(r request) any { return refusal("NOSCRIPT No matching script. Please use EVAL.") }, nil)
		unknown(t, "never", s.Release(t.Context(), rec))
		sent("release RELEASE")
	})
}

// TestNoScriptTogether: in a pipeline all of them are sent again, and nothing else.
func TestNoScriptTogether(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fake) {
		s := f.store()
		m := hold(t, s, 8)
		var gone []backend.Record
		for i := range 2 {
			c := claim("carol", "c")
			c.Name = fmt.Sprint("gone", i)
			gone = append(gone, acquired(t, s, c))
			if err := s.Release(t.Context(), gone[i]); err != nil {
				t.Fatal(err)
			}
		}
		release := make(chan struct{})
		f.hooks(nil, func(r request, _ any) any { r.wait(release); return nil })
		m.renew(t.Context(), 0, 2)
		synctest.Wait()
		m.renew(t.Context(), 2, 8)
		for _, rec := range gone {
			m.wg.Go(func() { refused(t, "released again", s.Release(t.Context(), rec), backend.ErrLost) })
		}
		m.wg.Go(func() {
			if _, err := s.Get(t.Context(), "n1"); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		f.with(func() { // of two scripts
			delete(f.loaded, ofFirst.renew.sha)
			delete(f.loaded, ofFirst.release.sha)
		})
		f.hooks(nil, nil)
		close(release)
		m.wg.Wait()
		for i, err := range m.errs {
			if err != nil {
				t.Errorf("n%d: %v", i, err)
			}
		}
		count := map[string]int{}
		for _, what := range strings.Fields(f.requests()) {
			count[what]++
		}
		if count["renew"] != 6 || count["release"] != 2 || count["get"] != 1 || count["GET"] != 0 || count["RENEW"] != 6 || count["RELEASE"] != 2 {
			t.Errorf("sent: %v", count)
		}
	})
}

// TestClosedInFlight: what is under way when the store is closed may have been done.
func TestClosedInFlight(t *testing.T) {
	for _, owned := range []bool{false, true} {
		for _, opts := range [][]func(*goredis.Options){nil, {heeding}} {
			inBubble(t, func(t *testing.T, f *fake) {
				s := f.storeOf(f.client(opts...))
				s.owned = owned
				rec := acquired(t, s, claim("alice", "a1"))
				f.hooks(hanging("acquire", "renew", "release"), nil)
				var wg sync.WaitGroup
				ctx := t.Context()
				for _, ctx := range []context.Context{ctx, wait.Abandon(ctx)} {
					wg.Go(func() {
						_, err := s.Acquire(ctx, claim("bob", "b1"))
						unknown(t, "acquire", err)
					})
					wg.Go(func() {
						_, err := s.Renew(ctx, rec)
						unknown(t, "renew", err)
					})
					wg.Go(func() { unknown(t, "release", s.Release(ctx, rec)) })
				}
				time.Sleep(200 * time.Millisecond)
				if n := f.count("acquire") + f.count("renew") + f.count("release"); n < 3 {
					t.Errorf("%d are under way", n) // or wait behind those
				}
				began := time.Now()
				if err := s.Close(); err != nil {
					t.Error(err)
				}
				wg.Wait()
				if took := time.Since(began); owned && took > time.Second || took > 25*time.Second { // who abandons is kept for as long as the client tries
					t.Errorf("it took %v", took)
				}
			})
		}
	}
}

// TestClosed: after Close nothing is sent, and every call says so.
func TestClosed(t *testing.T) {
	for _, whose := range []string{"the store", "the client", "both"} {
		inBubble(t, func(t *testing.T, f *fake) {
			client := f.client()
			s := f.storeOf(client)
			rec := acquired(t, s, claim("alice", "a1"))
			if whose != "the store" {
				_ = client.Close()
			}
			if whose != "the client" {
				for range 2 {
					if err := s.Close(); err != nil {
						t.Error(err)
					}
				}
			}
			f.hooks(nil, nil)
			dials := f.dials
			everyCall(t, s, rec, func(what string, err error) {
				refused(t, whose+" is closed, "+what, err, backend.ErrInvalid)
				words := "the redis store is closed"
				if whose == "the client" {
					words = "the client of the redis store is closed"
				}
				if !strings.Contains(fmt.Sprint(err), words) {
					t.Errorf("%s: %v, want %q", what, err, words)
				}
			})
			if got := f.requests(); got != "" || f.dials != dials {
				t.Errorf("sent: %s, on %d new connections", got, f.dials-dials)
			}
		})
	}
	// A client that is the caller's stays open.
	inBubble(t, func(t *testing.T, f *fake) {
		client := f.client()
		_ = f.storeOf(client).Close()
		acquired(t, f.storeOf(client), claim("alice", "a1"))
	})
}

// everyCall makes every call there is.
func everyCall(t *testing.T, s *Store, rec backend.Record, told func(what string, err error)) {
	t.Helper()
	_, err := s.Acquire(t.Context(), claim("alice", "a1"))
	told("acquire", err)
	_, err = s.Renew(t.Context(), rec)
	told("renew", err)
	told("release", s.Release(t.Context(), rec))
	_, err = s.Get(t.Context(), "report")
	told("get", err)
	n := 0
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, err := range s.Watch(ctx, "report") {
		n++
		told("watch", err)
	}
	for _, err := range s.List(t.Context(), "") {
		n++
		told("list", err)
	}
	if n != 2 {
		t.Errorf("Watch and List yield %d times, want once each", n)
	}
}

// TestClientClosedInFlight: what is under way when the owner of the client closes that.
func TestClientClosedInFlight(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fake) {
		client := f.client()
		s := f.storeOf(client)
		rec := acquired(t, s, claim("alice", "a1"))
		f.hooks(hanging("renew", "release"), nil)
		var wg sync.WaitGroup
		wg.Go(func() { unknown(t, "release", s.Release(t.Context(), rec)) })
		wg.Go(func() { _, err := s.Renew(t.Context(), rec); unknown(t, "renew", err) })
		synctest.Wait()
		_ = client.Close()
		wg.Wait()
	})
}

// TestNobodyListens: where a server cannot be reached every call says so, those too
// that go together.
func TestNobodyListens(t *testing.T) {
	for _, opts := range [][]func(*goredis.Options){nil, {heeding}, {once}} {
		inBubble(t, func(t *testing.T, f *fake) {
			f.dial = func(int) error { time.Sleep(time.Millisecond); return refusedConn() }
			s := f.storeOf(f.client(opts...))
			m := &some{t: t, s: s, recs: make([]backend.Record, 12), errs: make([]error, 12)}
			for i := range m.recs {
				m.recs[i] = backend.Record{Name: fmt.Sprint("n", i), Holder: "alice", Token: 7, Revision: "7"}
			}
			m.renew(t.Context(), 0, 12)
			m.wg.Wait()
			for i, err := range m.errs {
				if unknown(t, fmt.Sprint("call ", i), err); !strings.Contains(fmt.Sprint(err), "nobody listens at 192.0.2.1:6379") {
					t.Errorf("call %d: %v", i, err)
				}
			}
			if got := f.travelled(); len(got) > 3 {
				t.Errorf("trips of %v", got)
			}
		})
	}
}
