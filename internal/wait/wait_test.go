package wait_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/leasehold/leasehold/internal/wait"
)

func TestFor(t *testing.T) {
	for _, c := range []struct {
		what         string
		sleep, until time.Duration // until its context ends; 0: it does not
		whole        bool
		took         time.Duration
	}{
		{"undisturbed", time.Minute, 0, true, time.Minute},
		{"ended before", time.Minute, time.Second, false, time.Second},
		{"ended after", time.Second, time.Minute, true, time.Second},
		{"nothing to wait for", 0, time.Minute, true, 0},
		{"less than nothing", -time.Second, time.Minute, true, 0},
	} {
		t.Run(c.what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				if c.until > 0 {
					defer time.AfterFunc(c.until, cancel).Stop()
				}
				began := time.Now()
				whole := wait.For(ctx, c.sleep)
				if took := time.Since(began); whole != c.whole || took != c.took {
					t.Errorf("%v after %v, want %v after %v", whole, took, c.whole, c.took)
				}
			})
		})
	}
}

func TestForEnded(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if wait.For(ctx, time.Hour) {
		t.Error("an hour has passed")
	}
}

func TestPoke(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ch := make(chan struct{}, 1)
		woken := 0
		go func() {
			for range ch {
				woken++
			}
		}()
		synctest.Wait()
		wait.Poke(ch)
		synctest.Wait()
		if woken != 1 {
			t.Errorf("woken %d times, want once", woken)
		}
		close(ch)
	})
	full := make(chan struct{}, 1)
	wait.Poke(full)
	wait.Poke(full) // does not block
	if <-full; len(full) != 0 {
		t.Error("there are two messages")
	}
}
