package servers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
)

// shared are the servers of all tests of a package.
var shared struct {
	sync.Mutex
	ctx        context.Context // from Main, which will close them; ends when interrupted
	closed     bool
	kubernetes once[*Kubernetes]
	etcd       once[*Etcd]
	cluster    once[*Etcd]
	redis      once[*Redis]
	slots      once[*Redis] // in a cluster
}

// once is a server that is started when a test first asks for it.
type once[S startable] struct {
	asked  bool
	server S
	err    error
}

// startable is what a test can have of its own or share.
type startable interface {
	*Kubernetes | *Etcd | *Redis
	Close() error
	complaints() string
	how() string // with the kind of server in front
}

// quiet drops what go-redis would write to standard error.
type quiet struct{}

// Printf does nothing.
func (quiet) Printf(context.Context, string, ...any) {}

// Main is the TestMain of a package whose tests share servers:
//
//	func TestMain(m *testing.M) { servers.Main(m) }
//
// It removes the servers when the tests are done, also when they failed or were
// interrupted.
func Main(m *testing.M) {
	goredis.SetLogger(quiet{}) // what fails is said by errors, and here much fails on purpose
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
		progress("a server was not removed: %v", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

func closeShared() error {
	shared.Lock()
	defer shared.Unlock()
	shared.closed = true
	return errors.Join(shared.kubernetes.close(), shared.etcd.close(), shared.cluster.close(), shared.redis.close(), shared.slots.close())
}

func (o *once[S]) close() error {
	if !o.asked || o.err != nil {
		return nil
	}
	return o.server.Close()
}

// get starts the server if no test has asked before.
func (o *once[S]) get(tb testing.TB, start func(context.Context) (S, error)) S {
	tb.Helper()
	shared.Lock()
	defer shared.Unlock()
	if shared.ctx == nil || shared.closed {
		tb.Fatal("servers are shared in packages whose TestMain is servers.Main, while their tests run")
	}
	if !o.asked {
		// The server outlives the test that happens to be first.
		o.asked = true
		if o.server, o.err = start(shared.ctx); o.err == nil {
			fmt.Fprintln(os.Stderr, o.server.how())
		}
	}
	if o.err != nil {
		missing(tb, o.err)
	}
	return o.server
}

// own hands a started server to one test.
func own[S startable](tb testing.TB, s S, err error) S {
	tb.Helper()
	if err != nil {
		missing(tb, err)
	}
	tb.Log(s.how())
	tb.Cleanup(func() {
		if tb.Failed() {
			tb.Log("the servers' last words:\n" + s.complaints())
		}
		if err := s.Close(); err != nil {
			tb.Errorf("the server was not removed: %v", err)
		}
	})
	return s
}

// SharedKubernetes returns the server that the tests of a package share; the
// first that asks starts it. Whoever stops or pauses a server takes one of
// OwnKubernetes. If none can be had the test is skipped, or fails with
// LEASEHOLD_REQUIRE_SERVERS=1.
func SharedKubernetes(tb testing.TB) *Kubernetes {
	tb.Helper()
	return shared.kubernetes.get(tb, func(ctx context.Context) (*Kubernetes, error) { return StartKubernetes(ctx) })
}

// OwnKubernetes starts a server for one test, which may do with it what it
// likes. It is removed after the test.
func OwnKubernetes(tb testing.TB, opts ...Option) *Kubernetes {
	tb.Helper()
	k, err := StartKubernetes(tb.Context(), opts...)
	return own(tb, k, err)
}

// SharedEtcd is SharedKubernetes with an etcd of one member, or with the
// cluster that is given, which may have several.
func SharedEtcd(tb testing.TB) *Etcd {
	tb.Helper()
	return shared.etcd.get(tb, func(ctx context.Context) (*Etcd, error) { return StartEtcd(ctx) })
}

// SharedEtcdCluster is SharedEtcd with three members.
func SharedEtcdCluster(tb testing.TB) *Etcd {
	tb.Helper()
	return shared.cluster.get(tb, func(ctx context.Context) (*Etcd, error) { return StartEtcd(ctx, WithMembers(3)) })
}

// OwnEtcd is OwnKubernetes with an etcd.
func OwnEtcd(tb testing.TB, opts ...EtcdOption) *Etcd {
	tb.Helper()
	e, err := StartEtcd(tb.Context(), opts...)
	return own(tb, e, err)
}

// SharedRedis is SharedKubernetes with a single Redis, or with what is given,
// which may be a cluster.
func SharedRedis(tb testing.TB) *Redis {
	tb.Helper()
	return shared.redis.get(tb, func(ctx context.Context) (*Redis, error) { return StartRedis(ctx) })
}

// SharedRedisCluster is SharedRedis with a cluster of three nodes, or with the
// one that is given.
func SharedRedisCluster(tb testing.TB) *Redis {
	tb.Helper()
	return shared.slots.get(tb, func(ctx context.Context) (*Redis, error) { return StartRedis(ctx, InCluster()) })
}

// OwnRedis is OwnKubernetes with a Redis.
func OwnRedis(tb testing.TB, opts ...RedisOption) *Redis {
	tb.Helper()
	r, err := StartRedis(tb.Context(), opts...)
	return own(tb, r, err)
}

// Must fails the test if there is an error, and skips it if the servers at hand
// cannot do what was asked of them: that no setting would change.
func Must(tb testing.TB, err error) {
	tb.Helper()
	switch {
	case errors.Is(err, errors.ErrUnsupported):
		tb.Skip(err)
	case err != nil:
		tb.Fatal(err)
	}
}

// Required tells whether a missing server is a failure.
func Required() bool { return os.Getenv("LEASEHOLD_REQUIRE_SERVERS") == "1" }

func missing(tb testing.TB, err error) {
	tb.Helper()
	if Required() && !errors.Is(err, errors.ErrUnsupported) {
		tb.Fatalf("LEASEHOLD_REQUIRE_SERVERS=1, and %v", err)
	}
	tb.Skipf("%v", err)
}
