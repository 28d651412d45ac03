package conformance

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/leasehold/leasehold/backend"
)

// Run runs the cases as subtests of t. Every call of open gives another client
// of the same store, which is empty at first; the suite closes it.
//
// The cases run side by side, whatever -parallel says, and Run returns when all
// have ended.
func Run(t *testing.T, open func(tb testing.TB) backend.Store, opts ...Option) {
	t.Helper()
	var mu sync.Mutex
	ended := false // a case that hung and was given up must not log any more
	cfg := newConfig(append([]Option{WithLog(func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		if !ended {
			t.Logf(format, args...)
		}
	})}, opts...))
	ctx, cancel := context.WithCancel(context.Background())
	defer func() {
		cancel()
		mu.Lock()
		defer mu.Unlock()
		ended = true
	}()

	var summary Summary
	packages := make(map[string]bool)
	cfg.each(func(c Case) {
		t.Run(c.Name, func(t *testing.T) {
			cfg := *cfg
			cfg.open = func() (backend.Store, error) {
				s := open(t)
				if s == nil {
					return nil, fmt.Errorf("open returned no store")
				}
				mu.Lock()
				defer mu.Unlock()
				packages[packageOf(s)] = true
				return s, nil
			}
			r := cfg.check(ctx, c)
			if t.Skipped() {
				r.Err, r.Skipped = nil, "open skipped the test"
			}
			mu.Lock()
			summary.Add(r)
			mu.Unlock()
			switch {
			case r.Skipped != "":
				t.Skip(r.Skipped)
			case r.Err != nil:
				t.Error(r)
			}
		})
	})
	t.Run("hygiene/goroutines", func(t *testing.T) {
		packages["github.com/leasehold/leasehold/lease"] = true
		noGoroutines(t, cfg, packages)
	})
	t.Log(summary)
}

// noGoroutines fails if something that a case began is still running after its
// clients were closed.
func noGoroutines(t *testing.T, cfg *config, packages map[string]bool) {
	left := leftRunning(cfg.run, packages, cfg.patience)
	if len(left) == 0 {
		return
	}
	t.Errorf(`hygiene/goroutines
    what: %d goroutines were still there %v after all clients were closed
    rule: no goroutine, timer or watch outlives the call, the lease or the client that owns it
    why:  a process that opens and closes leases for months fills up
    goroutines:
%s`, len(left), cfg.patience, strings.Join(left, "\n\n"))
}

// leftRunning returns the goroutines of a run that do not end within a time. Only
// those in the code of the given packages count: a client library may keep idle
// connections for later.
func leftRunning(run string, packages map[string]bool, within time.Duration) (left []string) {
	for deadline := time.Now().Add(within); ; time.Sleep(10 * time.Millisecond) {
		left = nil
		for _, stack := range goroutines(run, "") {
			for pkg := range packages {
				if count([]string{stack}, pkg) > 0 {
					left = append(left, stack)
					break
				}
			}
		}
		if len(left) == 0 || time.Now().After(deadline) {
			return left
		}
	}
}
