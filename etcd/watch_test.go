package etcd

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/leasehold/leasehold/backend"
)

// watcher collects what a Watch tells.
type watcher struct {
	t      *testing.T
	told   chan string
	err    error // when told is closed
	cancel context.CancelFunc
}

// describe is how the tests below write a record.
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
	w := &watcher{t: t, told: make(chan string, 100), cancel: cancel}
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
	late := time.After(within)
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
	w.silent()
}

// silent: there is no more to tell at the moment.
func (w *watcher) silent() {
	w.t.Helper()
	synctest.Wait()
	select {
	case got, ok := <-w.told:
		w.t.Fatalf("told %q (open: %v), want nothing", got, ok)
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
	case <-time.After(within):
		w.t.Fatalf("it goes on after %v", within)
	}
	return w.err
}

// number is how many streams the watches of a store have had.
func number(s *Store) int {
	s.streams.mu.Lock()
	defer s.streams.mu.Unlock()
	return s.streams.numbers
}

const soon = 50 * time.Millisecond

func TestWatch(t *testing.T) {
	inBubble(t, 2, func(t *testing.T, f *fake) {
		s, other := f.store(), f.store()
		var from []int64 // of the watches
		f.hooks(func(_ context.Context, c call) error {
			if r, ok := c.req.(*pb.WatchCreateRequest); ok {
				from = append(from, r.StartRevision)
				if r.StartRevision != 0 && r.StartRevision <= f.revision() {
					t.Errorf("it watches from %d, and etcd is at %d: etcd would serve it ten times a second only", r.StartRevision, f.revision())
				}
			}
			return nil
		}, nil)
		f.set("/app/x", "1", 0)
		w := watchName(t, s, "report")
		w.tells(soon, "absent")
		rec := acquired(t, other, claim("alice", "a1"))
		w.tells(soon, "alice")
		for range 3 {
			time.Sleep(5 * time.Second)
			if _, err := other.Renew(t.Context(), rec); err != nil {
				t.Fatal(err)
			}
		}
		w.silent() // renewals write nothing
		f.set(key, string(f.now()[key].Value)+" ", 0)
		w.tells(soon, "alice")
		time.Sleep(10 * time.Second)
		w.tells(soon, "alice expired")
		rec = acquired(t, other, claim("bob", "b1"))
		w.tells(soon, "bob")
		if err := other.Release(t.Context(), rec); err != nil {
			t.Fatal(err)
		}
		w.tells(soon, "absent") // both keys at once, and once
		c := claim("carol", "c1")
		c.MinToken = 100
		rec = acquired(t, other, c)
		w.tells(soon, "carol")
		if err := other.Release(t.Context(), rec); err != nil {
			t.Fatal(err)
		}
		w.tells(soon, "vacant")
		time.Sleep(time.Hour)
		w.silent()
		if len(from) != 1 || number(s) != 1 {
			t.Errorf("it watches from %v, on stream %d: nothing was wrong with the first", from, number(s))
		}
		// The keys of others are not its own.
		f.set("/t/report2", "x", 0)
		f.set("/t/report%2F", "x", 0)
		w.silent()
		w.cancel()
		if err := w.ends(soon); err != nil {
			t.Error(err)
		}
		if streams, watches := f.watching(); streams != 0 || watches != 0 {
			t.Errorf("%d streams and %d watches are left", streams, watches)
		}
	})
}

// TestWatchBetween: whatever happens while the watch begins is told, and told once,
// also if it is compacted by then.
func TestWatchBetween(t *testing.T) {
	for _, compacted := range []bool{false, true} {
		for name, want := range map[string][]string{
			"before Watch": {"alice"},
			"before Range": {"alice"},
			"after Range":  {"absent", "alice"},
		} {
			t.Run(fmt.Sprint(name, ", compacted ", compacted), func(t *testing.T) {
				inBubble(t, 1, func(t *testing.T, f *fake) {
					s := f.store()
					done := false
					do := func(when string) {
						if done || when != name {
							return
						}
						done = true
						f.set("/app/x", "1", 0)
						if when == "before Range" { // an event of the past by the time it is read
							f.set(key, `{"version":1,"holder":"zoe","duration":"1h"}`, 0)
						}
						f.mu.Lock()
						f.leases[7] = f.newLease(7, 3600)
						f.put(f.rev+1, key, `{"version":1,"holder":"alice","duration":"1h"}`, 0)
						f.put(f.rev+1, alive, `{"version":1,"holder":"alice","duration":"1h"}`, 7)
						f.written(f.rev + 1)
						f.mu.Unlock()
						f.set("/app/x", "2", 0)
						if compacted {
							f.compactAll()
						}
					}
					f.hooks(func(_ context.Context, c call) error { do("before " + c.what); return nil },
						func(_ context.Context, c call, _ any) error { do("after " + c.what); return nil })
					w := watchName(t, s, "report")
					w.tells(time.Second, want...)
					time.Sleep(time.Minute)
					w.silent()
					w.cancel()
					_ = w.ends(soon)
				})
			})
		}
	}
}

// TestWatchGoesOn: whatever ends a stream, the watch lives, and tells the newest.
func TestWatchGoesOn(t *testing.T) {
	for name, err := range map[string]error{
		"connection lost": lost,
		"no leader":       rpctypes.ErrGRPCNoLeader,
		"ended":           nil,
		"cancelled":       status.Error(codes.Canceled, "cancelled"),
		"failed":          status.Error(codes.Unknown, "failed"),
		"unhealthy":       rpctypes.ErrGRPCUnhealthy,
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, 2, func(t *testing.T, f *fake) {
				s, other := f.store(), f.store()
				w, w2 := watchName(t, s, "report"), watchName(t, s, "other")
				w.tells(soon, "absent")
				w2.tells(soon, "absent")
				if streams, watches := f.watching(); streams != 1 || watches != 2 {
					t.Errorf("%d streams with %d watches, want all on one", streams, watches)
				}
				// For a while there is no stream to be had, either.
				down := time.Now().Add(700 * time.Millisecond)
				f.hooks(func(_ context.Context, c call) error {
					if c.what == "Watch" && time.Now().Before(down) {
						return lost
					}
					return nil
				}, nil)
				f.hangUp(err)
				rec := acquired(t, other, claim("alice", "a1"))
				w.tells(6*time.Second, "alice")
				if err := other.Release(t.Context(), rec); err != nil {
					t.Fatal(err)
				}
				w.tells(soon, "absent")
				// While nobody listens it comes and goes again.
				f.hangUp(err)
				acquired(t, other, claim("bob", "b1"))
				f.remove(key, alive)
				f.compactAll()
				f.set("/app/x", "1", 0)
				for got := range w.told { // bob may be seen, or merged with what comes after
					if got == "absent" {
						break
					}
				}
				w.silent()
				w.cancel()
				w2.cancel()
				_ = w.ends(soon)
				if streams, watches := f.watching(); streams != 0 || watches != 0 {
					t.Errorf("%d streams and %d watches are left", streams, watches)
				}
			})
		})
	}
}

// TestWatchSilent: a stream that has died without a word is found by the look
// behind it, and all watches leave it.
func TestWatchSilent(t *testing.T) {
	inBubble(t, 2, func(t *testing.T, f *fake) {
		s, other := f.store(), f.store()
		c := claim("alice", "a1")
		acquired(t, other, c)
		names := []string{"report", "other", "third"}
		var ws []*watcher
		for i, name := range names {
			w := watchName(t, s, name)
			w.tells(soon, map[bool]string{true: "alice", false: "absent"}[i == 0])
			ws = append(ws, w)
		}
		f.deafen()
		began := time.Now()
		c = over(claim("bob", "b1"), must(t, f, "report"))
		c.Duration = time.Hour
		rec := acquired(t, other, c)
		ws[0].tells(10*time.Second*5/4+2*laggard, "bob")
		t.Logf("told after %v", time.Since(began))
		if number(s) != 2 {
			t.Errorf("the streams have number %d", number(s))
		}
		// The others have moved without having found out themselves, and hear at once.
		synctest.Wait()
		time.Sleep(100 * time.Millisecond)
		if streams, watches := f.watching(); streams != 1 || watches != len(ws) {
			t.Errorf("%d watches on %d streams, want all on a new one", watches, streams)
		}
		c = claim("carol", "c1")
		c.Name = "third"
		acquired(t, other, c)
		// Being told of absence again is allowed where something may have been in between.
		for got := range ws[2].told {
			if got == "carol" {
				break
			} else if got != "absent" {
				t.Fatalf("told %q", got)
			}
		}
		if err := other.Release(t.Context(), rec); err != nil {
			t.Fatal(err)
		}
		ws[0].tells(soon, "absent")
		if number(s) != 2 {
			t.Errorf("the streams have number %d", number(s))
		}
		for _, w := range ws {
			w.cancel()
		}
		if streams, watches := f.watching(); streams != 0 || watches != 0 {
			t.Errorf("%d streams and %d watches are left", streams, watches)
		}
	})
}

// TestWatchLaggard: an event that is a little behind the look is no reason to leave
// the stream.
func TestWatchLaggard(t *testing.T) {
	inBubble(t, 2, func(t *testing.T, f *fake) {
		s, other := f.store(), f.store()
		acquired(t, other, claim("alice", "a1"))
		w := watchName(t, s, "report")
		w.tells(soon, "alice")
		f.deafen()
		c := over(claim("bob", "b1"), must(t, f, "report"))
		c.Duration = time.Hour
		acquired(t, other, c)
		f.hooks(nil, func(_ context.Context, c call, _ any) error {
			if c.what == "Range" && c.n == 1 {
				time.AfterFunc(laggard/2, func() {
					f.mu.Lock()
					defer f.mu.Unlock()
					for s := range f.streams {
						s.deaf = false
					}
					close(f.changed)
					f.changed = make(chan struct{})
				})
			}
			return nil
		})
		w.tells(14*time.Second, "bob")
		time.Sleep(5 * time.Second)
		w.silent()
		if number(s) != 1 {
			t.Errorf("the streams have number %d", number(s))
		}
		w.cancel()
		_ = w.ends(soon)
	})
}

// TestWatchBegin: a member that does not begin the watch is left.
func TestWatchBegin(t *testing.T) {
	inBubble(t, 2, func(t *testing.T, f *fake) {
		s, other := f.store(), f.store()
		f.hooks(func(ctx context.Context, c call) error {
			if c.what == "Watch" && c.n == 1 {
				return silent(ctx)
			}
			return nil
		}, nil)
		w := watchName(t, s, "report")
		acquired(t, other, claim("alice", "a1"))
		w.tells(openTime+time.Second, "alice")
		if number(s) != 2 {
			t.Errorf("the streams have number %d", number(s))
		}
		// etcd's client keeps the stream whose watch was never begun, so there are two.
		if err := other.Release(t.Context(), must(t, f, "report")); err != nil {
			t.Fatal(err)
		}
		w.tells(soon, "absent")
		w.cancel()
		_ = w.ends(soon)
	})
}

// TestWatchFinal: what does not get better by trying again ends the watch.
func TestWatchFinal(t *testing.T) {
	for name, test := range map[string]struct {
		do   func(t *testing.T, f *fake, s *Store)
		when string // "before" the watch, or after it has begun
		want error
	}{
		"may not read": {func(t *testing.T, f *fake, _ *Store) {
			f.hooks(func(_ context.Context, c call) error {
				if c.what == "Range" {
					return rpctypes.ErrGRPCPermissionDenied
				}
				return nil
			}, nil)
		}, "before", backend.ErrDenied},
		"may neither": {func(t *testing.T, f *fake, _ *Store) {
			f.hooks(func(_ context.Context, c call) error {
				if c.what == "Watch" || c.what == "Range" {
					return rpctypes.ErrGRPCPermissionDenied
				}
				return nil
			}, nil)
		}, "before", backend.ErrDenied},
		"may not read any more": {func(t *testing.T, f *fake, _ *Store) {
			f.hooks(func(_ context.Context, c call) error {
				if c.what == "Range" {
					return rpctypes.ErrGRPCPermissionDenied
				}
				return nil
			}, nil)
		}, "after", backend.ErrDenied},
		"unreadable":     {func(_ *testing.T, f *fake, _ *Store) { f.set(key, "garbage", 0) }, "before", backend.ErrCorrupt},
		"unreadable now": {func(_ *testing.T, f *fake, _ *Store) { f.set(alive, "garbage", 0) }, "after", backend.ErrCorrupt},
		"closed":         {func(_ *testing.T, _ *fake, s *Store) { _ = s.Close() }, "after", backend.ErrInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, 1, func(t *testing.T, f *fake) {
				s := f.store()
				if test.when == "before" {
					test.do(t, f, s)
				}
				w := watchName(t, s, "report")
				if test.when == "after" {
					w.tells(soon, "absent")
					test.do(t, f, s)
				}
				if err := w.ends(40 * time.Second); !errors.Is(err, test.want) {
					t.Errorf("it ends with %v, want %v", err, test.want)
				}
				if streams, watches := f.watching(); streams != 0 || watches != 0 {
					t.Errorf("%d streams and %d watches are left", streams, watches)
				}
			})
		})
	}
}

// TestWatchWaits: while etcd does not answer at all, the watch neither ends nor
// asks without a pause.
func TestWatchWaits(t *testing.T) {
	inBubble(t, 2, func(t *testing.T, f *fake) {
		s, other := f.store(), f.store()
		f.hooks(func(_ context.Context, c call) error {
			if c.what == "Range" {
				return status.Error(codes.Unknown, "failed") // the client does not repeat it
			}
			return nil
		}, nil)
		w := watchName(t, s, "report")
		time.Sleep(time.Minute)
		w.silent()
		f.mu.Lock()
		n := len(f.log)
		f.mu.Unlock()
		if n < 20 || n > 120 {
			t.Errorf("%d requests in a minute", n)
		}
		f.hooks(nil, nil)
		w.tells(5*time.Second, "absent")
		acquired(t, other, claim("alice", "a1"))
		w.tells(soon, "alice")
		w.cancel()
		_ = w.ends(soon)
	})
}

// TestWatchBreak: breaking off frees everything, wherever it is done.
func TestWatchBreak(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, f *fake) {
		s, other := f.store(), f.store()
		for range s.Watch(t.Context(), "report") {
			break // at the first look
		}
		if streams, watches := f.watching(); streams != 0 || watches != 0 {
			t.Errorf("%d streams and %d watches are left", streams, watches)
		}
		n := 0
		for range s.Watch(t.Context(), "report") {
			if n++; n == 1 {
				time.AfterFunc(time.Second, func() { acquired(t, other, claim("alice", "a1")) })
			} else {
				break // at an event
			}
		}
		if streams, watches := f.watching(); streams != 0 || watches != 0 {
			t.Errorf("%d streams and %d watches are left", streams, watches)
		}
		// A context that has ended tells nothing, not even an error.
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		for rec, err := range s.Watch(ctx, "report") {
			t.Errorf("told %+v, %v", rec, err)
		}
		// One that ends while etcd hangs.
		f.hooks(func(ctx context.Context, c call) error { return silent(ctx) }, nil)
		w := watchName(t, s, "report")
		time.Sleep(time.Second)
		w.cancel()
		if err := w.ends(soon); err != nil {
			t.Error(err)
		}
		f.hooks(nil, nil)
	})
}
