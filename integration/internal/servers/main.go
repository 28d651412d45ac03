package servers

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"testing"
	"time"
)

// shared is the one server of all tests of a package.
var shared struct {
	sync.Mutex
	ctx    context.Context // from Main, which will close it; ends when interrupted
	closed bool
	k      *Kubernetes
	err    error
}

// Main is the TestMain of a package whose tests use SharedKubernetes:
//
//	func TestMain(m *testing.M) { servers.Main(m) }
//
// It removes the server when the tests are done, also when they failed or were
// interrupted.
func Main(m *testing.M) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	shared.Lock()
	shared.ctx = ctx
	shared.Unlock()
	done := make(chan struct{})
	go func() {
		<-ctx.Done()
		select {
		case <-done: // it ended with stop
			return
		default:
		}
		progress("%v", context.Cause(ctx))
		// No Cleanup of a test will run, but the tests still do, and may be
		// removing their servers or starting some.
		var err error
		for range 10 {
			if _, err = sweep(context.Background(), func(r string) bool { return r == run() }); err == nil {
				break
			}
			time.Sleep(200 * time.Millisecond)
		}
		if err != nil {
			progress("not all that these tests had started was removed: %v", err)
		}
		os.Exit(130)
	}()
	code := m.Run()
	close(done)
	stop()
	if err := closeShared(); err != nil {
		progress("the server was not removed: %v", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

func closeShared() error {
	shared.Lock()
	defer shared.Unlock()
	if shared.closed = true; shared.k == nil {
		return nil
	}
	k := shared.k
	shared.k = nil
	return k.Close()
}

// SharedKubernetes returns the server that the tests of a package share; the
// first that asks starts it. Whoever stops or pauses a server takes one of
// OwnKubernetes. If none can be had the test is skipped, or fails with
// LEASEHOLD_REQUIRE_SERVERS=1.
func SharedKubernetes(tb testing.TB) *Kubernetes {
	tb.Helper()
	shared.Lock()
	defer shared.Unlock()
	if shared.ctx == nil || shared.closed {
		tb.Fatal("SharedKubernetes is for packages whose TestMain is servers.Main, while their tests run")
	}
	if shared.k == nil && shared.err == nil {
		// The server outlives the test that happens to be first.
		shared.k, shared.err = StartKubernetes(shared.ctx)
		if shared.err == nil {
			fmt.Fprintf(os.Stderr, "kubernetes: %s\n", shared.k.How)
		}
	}
	if shared.err != nil {
		missing(tb, shared.err)
	}
	return shared.k
}

// OwnKubernetes starts a server for one test, which may do with it what it
// likes. It is removed after the test.
func OwnKubernetes(tb testing.TB, opts ...Option) *Kubernetes {
	tb.Helper()
	k, err := StartKubernetes(tb.Context(), opts...)
	if err != nil {
		missing(tb, err)
	}
	tb.Logf("kubernetes: %s", k.How)
	tb.Cleanup(func() {
		if tb.Failed() {
			tb.Log("the servers' last words:\n" + k.complaints())
		}
		if err := k.Close(); err != nil {
			tb.Errorf("the server was not removed: %v", err)
		}
	})
	return k
}

// Required tells whether a missing server is a failure.
func Required() bool { return os.Getenv("LEASEHOLD_REQUIRE_SERVERS") == "1" }

func missing(tb testing.TB, err error) {
	tb.Helper()
	if Required() {
		tb.Fatalf("LEASEHOLD_REQUIRE_SERVERS=1, and %v", err)
	}
	tb.Skipf("%v", err)
}
