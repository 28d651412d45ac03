//go:build linux

package file

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/leasehold/leasehold/backend"
)

// watching runs s.Watch in its own goroutine. want waits for the next thing it
// yields: the holder, "x expired", an error or "end".
func watching(t *testing.T, ctx context.Context, s *Store, name string) (want func(step, text string)) {
	t.Helper()
	seen := make(chan string, 100)
	go func() {
		for rec, err := range s.Watch(ctx, name) {
			switch {
			case err != nil:
				seen <- err.Error()
			case rec.Expired:
				seen <- rec.Holder + " expired"
			default:
				seen <- rec.Holder
			}
		}
		seen <- "end"
	}()
	return func(step, text string) {
		t.Helper()
		select {
		case got := <-seen:
			if got != text && (text == "" || !strings.Contains(got, text)) {
				t.Fatalf("%s: the watch yields %q, want %q", step, got, text)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("%s: the watch yields nothing, want %q", step, text)
		}
	}
}

func TestWatch(t *testing.T) {
	for _, tt := range []struct {
		name string
		opt  Option
	}{
		{"by events", func(s *Store) { s.backstop = time.Hour }},
		{"without inotify", func(s *Store) { s.notifier = func() (*fsnotify.Watcher, error) { return nil, syscall.EMFILE } }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			dir := folder(t)
			s, other := client(t, dir), client(t, dir, tt.opt)
			want := watching(t, ctx, other, "A")
			want("at first", "")
			c := claim("A", "x")
			c.Duration = 2500 * time.Millisecond
			rec := acquire(t, s, c)
			want("acquired", "x")
			release(t, s, acquire(t, s, claim("b", "z")))
			if _, err := s.Renew(ctx, rec); err != nil {
				t.Fatal(err)
			}
			want("renewed, and nothing about the other name", "x")
			want("expired", "x expired")
			rec = acquire(t, s, claim("A", "y"))
			want("taken over", "y")
			release(t, s, rec)
			want("released", "")
			cancel()
			want("the context ended", "end")
		})
	}
}

// The record of another boot turns expired though nothing happens to it.
func TestWatchOfAnotherBoot(t *testing.T) {
	dir := folder(t)
	acquire(t, client(t, dir, rebooted("before", &fakeClock{now: 100 * time.Hour})), claim("a", "x"))
	clock := &fakeClock{now: time.Hour}
	s := client(t, dir, rebooted("after", clock))
	want := watching(t, t.Context(), s, "a")
	want("at first", "x")
	clock.advance(6 * time.Second) // one look of the backstop, at least
	clock.advance(4 * time.Second)
	want("unchanged for its duration", "x expired")
}

func TestWatchSurvivesLostEvents(t *testing.T) {
	dir := folder(t)
	s := client(t, dir, func(s *Store) { s.backstop = 10 * time.Millisecond })
	want := watching(t, t.Context(), s, "a")
	want("at first", "")
	s.mu.Lock()
	for file := range s.hub.watchers {
		s.hub.watchers[file] = nil
	}
	s.mu.Unlock()
	acquire(t, s, claim("a", "x"))
	want("acquired, and nobody told", "x")
}

func TestWatchOfAFolderThatGoes(t *testing.T) {
	for name, gone := range map[string]func(dir string) error{
		"deleted":             os.RemoveAll,
		"moved":               func(dir string) error { return os.Rename(dir, dir+"2") },
		"deleted and remade":  func(dir string) error { return errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o700)) },
		"moved and made anew": func(dir string) error { return errors.Join(os.Rename(dir, dir+"2"), os.Mkdir(dir, 0o700)) },
	} {
		t.Run(name, func(t *testing.T) {
			s := client(t, folder(t), func(s *Store) { s.backstop = time.Hour })
			want := watching(t, t.Context(), s, "a")
			want("at first", "")
			if err := gone(s.dir); err != nil {
				t.Fatal(err)
			}
			want(name, s.dir)
			want("after the error", "end")
			if _, err := os.Stat(s.dir); err == nil {
				want := watching(t, t.Context(), s, "a")
				want("watched anew", "")
				acquire(t, s, claim("a", "y"))
				want("acquired anew", "y")
				return
			}
			_, err := s.Get(t.Context(), "a")
			if err == nil || backend.Definite(err) || !strings.Contains(err.Error(), "gone") {
				t.Errorf("Get without a folder: %v", err)
			}
		})
	}
}

func TestCloseWithinAWatch(t *testing.T) {
	s := client(t, folder(t))
	n := 0
	for _, err := range s.Watch(t.Context(), "a") {
		if n++; n == 1 {
			s.Close() // waits for the hub, but not for us
		} else {
			wantErr(t, "Watch after Close", err, backend.ErrInvalid, "closed")
		}
	}
	if n != 2 {
		t.Errorf("the watch yielded %d times", n)
	}
}

func TestWatchesLeaveNothingBehind(t *testing.T) {
	before := runtime.NumGoroutine()
	s := client(t, folder(t))
	for i := range 20 {
		for range s.Watch(t.Context(), fmt.Sprint("a", i%3)) {
			break
		}
	}
	s.mu.Lock()
	if s.hub != nil {
		t.Error("the folder is watched for nobody")
	}
	s.mu.Unlock()
	a, b := watching(t, t.Context(), s, "a"), watching(t, t.Context(), s, "b")
	a("at first", "")
	b("at first", "")
	s.Close()
	a("closed", "closed")
	b("closed", "closed")
	a("after the error", "end")
	b("after the error", "end")
	for deadline := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > before; runtime.Gosched() {
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<16)
			t.Fatalf("%d goroutines before, %d after\n%s", before, runtime.NumGoroutine(), buf[:runtime.Stack(buf, true)])
		}
	}
}
