package servers

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
)

// redisTest is a Redis under test.
type redisTest struct {
	*testing.T
	*Redis
}

func onRedis(t *testing.T, opts ...RedisOption) *redisTest {
	t.Helper()
	start := time.Now()
	r := OwnRedis(t, opts...)
	if r.servers == nil {
		t.Skip("a given Redis is not ours to try things on")
	}
	t.Logf("ready after %v", time.Since(start))
	return &redisTest{T: t, Redis: r}
}

func (x *redisTest) must(err error) {
	x.Helper()
	if err != nil {
		x.Fatal(err)
	}
}

// try calls f until it succeeds, and gives each attempt a second.
func (x *redisTest) try(what string, f func(context.Context) error) {
	x.Helper()
	var last error
	err := within(x.Context(), patience, func() (bool, error) {
		ctx, cancel := context.WithTimeout(x.Context(), time.Second)
		defer cancel()
		last = f(ctx)
		return last == nil, nil
	})
	if err != nil {
		x.Fatalf("%s: %v; last: %v", what, err, last)
	}
}

func (x *redisTest) set(i int, value string) {
	x.Helper()
	x.try("set", func(ctx context.Context) error { return x.Node(i).Set(ctx, "key", value, 0).Err() })
}

// get wants a value, or "" for none. A replica may need a moment.
func (x *redisTest) get(i int, want string) {
	x.Helper()
	x.try("get", func(ctx context.Context) error {
		got, err := x.Node(i).Get(ctx, "key").Result()
		if err == goredis.Nil {
			got, err = "", nil
		}
		if err == nil && got != want {
			err = fmt.Errorf("node %d has %q, want %q", i, got, want)
		}
		return err
	})
}

// silent checks that a node does not answer.
func (x *redisTest) silent(i int) {
	x.Helper()
	ctx, cancel := context.WithTimeout(x.Context(), 300*time.Millisecond)
	defer cancel()
	if got, err := x.Node(i).Get(ctx, "key").Result(); err == nil || err == goredis.Nil {
		x.Errorf("node %d still answers: %q, %v", i, got, err)
	}
}

// universal is a client such as a program has.
func (x *redisTest) universal() goredis.UniversalClient {
	o := x.Options()
	o.ContextTimeoutEnabled = true
	c := goredis.NewUniversalClient(o)
	x.Cleanup(func() { c.Close() })
	return c
}

func TestRedis(t *testing.T) {
	leavesNothing(t)
	t.Run("all", func(t *testing.T) {
		for _, test := range []struct {
			name string
			run  func(*testing.T, ...RedisOption)
		}{ // the longest first
			{"cluster, secured", func(t *testing.T, opts ...RedisOption) {
				testRedisCluster(t, append(opts, RedisWithTLS(), RedisWithPassword())...)
			}},
			{"replicas", testRedisReplicas},
			{"single", testRedis},
			{"secured", testRedisSecured},
		} {
			for _, place := range []struct {
				name string
				opts []RedisOption
			}{{"wherever", nil}, {"processes", []RedisOption{RedisAsProcesses()}}} {
				t.Run(test.name+", "+place.name, func(t *testing.T) {
					t.Parallel()
					test.run(t, place.opts...)
				})
			}
		}
		t.Run("sentinel", func(t *testing.T) {
			t.Parallel()
			testRedisSentinel(t)
		})
		t.Run("sentinel, secured", func(t *testing.T) {
			t.Parallel()
			x := onRedis(t, WithSentinel(), WithReplicas(1), RedisWithTLS(), RedisWithPassword())
			x.must(x.universal().Set(t.Context(), "key", "1", 0).Err())
			x.get(1, "1")
			x.checkSentinelURL()
		})
	})
}

func testRedis(t *testing.T, opts ...RedisOption) {
	x := onRedis(t, append(opts, WithRedisFlags("--maxmemory", "123mb"))...)
	ctx := t.Context()
	if x.Version == "" || x.Nodes() != 1 || len(x.Addrs()) != 1 {
		t.Errorf("version %q, %d nodes at %v", x.Version, x.Nodes(), x.Addrs())
	}
	if got, err := x.Node(0).ConfigGet(ctx, "maxmemory").Result(); err != nil || got["maxmemory"] != fmt.Sprint(123<<20) {
		t.Errorf("a flag is not passed on: %v, %v", got, err)
	}
	x.must(x.universal().Set(ctx, "key", "1", 0).Err())
	x.get(0, "1")

	x.must(x.Pause(ctx, 0))
	x.silent(0)
	x.must(errors.Join(x.Resume(ctx, 0), x.Ready(ctx)))
	x.get(0, "1")

	if err := x.CutOff(ctx, 0); !errors.Is(err, errors.ErrUnsupported) {
		x.must(err)
		x.silent(0)
		x.must(errors.Join(x.Reconnect(ctx, 0), x.Ready(ctx)))
		x.get(0, "1")
	}

	x.must(x.Stop(ctx, 0))
	x.silent(0)
	x.must(errors.Join(x.Start(ctx, 0), x.ReadyAt(ctx, 0)))
	x.get(0, "")
	// A server that is paused can be killed, too.
	x.must(errors.Join(x.Pause(ctx, 0), x.Stop(ctx, 0), x.Start(ctx, 0), x.Ready(ctx)))
	x.set(0, "2")

	if u := x.URL(""); u != "redis://"+x.addrs[0]+"/0" {
		t.Errorf("URL %s", u)
	}
	if p, err := x.Primary(ctx); p != 0 || err != nil {
		t.Errorf("primary %d, %v", p, err)
	}
	// Whatever a test has left it in, it can be removed.
	x.must(errors.Join(x.Pause(ctx, 0), x.Close(), x.Close()))
}

func testRedisReplicas(t *testing.T, opts ...RedisOption) {
	x := onRedis(t, append(opts, WithReplicas(2), RedisWithPassword())...)
	ctx := t.Context()
	wait := func(i, want int) {
		t.Helper()
		c := x.Node(i).Conn() // that waits for what it has written itself
		defer c.Close()
		x.must(c.Set(ctx, "key", "waited", 0).Err())
		limit := 10 * time.Second
		if want < 2 {
			limit = 300 * time.Millisecond
		}
		if n, err := c.Wait(ctx, 2, limit).Result(); err != nil || int(n) != want {
			t.Errorf("%d replicas have it, want %d: %v", n, want, err)
		}
	}
	wait(0, 2)
	for i := range x.Nodes() {
		x.get(i, "waited")
	}
	if _, err := x.Node(1).Set(ctx, "key", "x", 0).Result(); err == nil {
		t.Error("a replica takes writes")
	}

	x.must(x.Pause(ctx, 2))
	wait(0, 1)
	x.must(errors.Join(x.Resume(ctx, 2), x.Ready(ctx)))
	wait(0, 2)

	proxy, cut := redisProxy(t, x.addrs[0])
	if err := x.Isolate(ctx, 1); !errors.Is(err, errors.ErrUnsupported) {
		x.must(err)
		wait(0, 1)
		x.must(x.Node(1).Ping(ctx).Err())
		x.must(errors.Join(x.Join(ctx, 1), x.Ready(ctx)))
		wait(0, 2)
		if err := x.Follow(ctx, 1, proxy); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("following a proxy: %v", err)
		}
	} else {
		x.must(x.Follow(ctx, 1, proxy))
		wait(0, 2)
		cut()
		wait(0, 1)
		x.must(x.Follow(ctx, 1, x.addrs[0]))
		wait(0, 2)
	}

	x.must(errors.Join(x.Stop(ctx, 0), x.Promote(ctx, 1)))
	if p, err := x.Primary(ctx); p != 1 || err != nil {
		t.Errorf("primary %d, want 1: %v", p, err)
	}
	x.get(1, "waited")
	x.set(1, "promoted")
	x.must(errors.Join(x.Start(ctx, 0), x.ReadyAt(ctx, 0)))
	x.get(0, "")
	x.must(errors.Join(x.Follow(ctx, 0, x.addrs[1]), x.Follow(ctx, 2, x.addrs[1]), x.Ready(ctx)))
	x.get(0, "promoted")
	wait(1, 2)
}

// redisProxy passes connections on until it is cut off.
func redisProxy(t *testing.T, to string) (addr string, cut func()) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var conns []io.Closer
	var done bool
	cut = func() {
		mu.Lock()
		defer mu.Unlock()
		done = true
		l.Close()
		for _, c := range conns {
			c.Close()
		}
	}
	t.Cleanup(cut)
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				in.Close()
				continue
			}
			mu.Lock()
			conns = append(conns, in, out)
			if done { // whoever is cut off tries again at once
				in.Close()
				out.Close()
			}
			mu.Unlock()
			go io.Copy(in, out)
			go io.Copy(out, in)
		}
	}()
	return l.Addr().String(), cut
}

func testRedisSentinel(t *testing.T, opts ...RedisOption) {
	x := onRedis(t, append(opts, WithReplicas(1), WithSentinel())...)
	ctx := t.Context()
	c := x.universal()
	x.must(c.Set(ctx, "key", "before", 0).Err())
	x.get(1, "before")
	if p, err := x.Primary(ctx); p != 0 || err != nil {
		t.Fatalf("primary %d, want 0: %v", p, err)
	}
	start := time.Now()
	x.must(errors.Join(x.Pause(ctx, 0), x.Stop(ctx, 4))) // and one sentinel
	x.try("another primary", func(ctx context.Context) error {
		p, err := x.Primary(ctx)
		if err == nil && p != 1 {
			err = fmt.Errorf("primary %d", p)
		}
		return err
	})
	t.Logf("another primary after %v", time.Since(start))
	x.try("a write", func(ctx context.Context) error { return c.Set(ctx, "key", "after", 0).Err() })
	t.Logf("written again after %v", time.Since(start))
	x.get(1, "after")
	x.must(errors.Join(x.Resume(ctx, 0), x.Start(ctx, 4), x.Ready(ctx)))
	if p, err := x.Primary(ctx); p != 1 || err != nil {
		t.Errorf("primary %d, want 1: %v", p, err)
	}
	x.checkSentinelURL()
}

// checkSentinelURL reads it with the client's own parser.
func (x *redisTest) checkSentinelURL() {
	x.Helper()
	u, err := url.Parse(x.URL("p"))
	x.must(err)
	q := u.Query()
	for _, ours := range []string{"prefix", "cacert", "cert", "key"} {
		q.Del(ours)
	}
	u.RawQuery = q.Encode()
	o, err := goredis.ParseFailoverURL(u.String())
	x.must(err)
	user, password := x.User()
	if !slices.Equal(slices.Sorted(slices.Values(o.SentinelAddrs)), slices.Sorted(slices.Values(x.Sentinels()))) ||
		o.MasterName != redisPrimary || o.Username != user || o.Password != password || (o.TLSConfig != nil) != (x.tls != nil) {
		x.Errorf("URL %s: %+v", x.URL("p"), o)
	}
}

func testRedisCluster(t *testing.T, opts ...RedisOption) {
	// Half the usual time, which it takes to notice and twice to forget.
	x := onRedis(t, append(opts, InCluster(), WithRedisFlags("--cluster-node-timeout", "1000"))...)
	ctx := t.Context()
	c := x.universal()
	const keys = 100
	for k := range keys {
		x.must(c.Set(ctx, fmt.Sprint("k", k), k, 0).Err())
	}
	// Each node has some of them and knows who has the others.
	total := 0
	for i, addr := range x.Addrs() {
		n, err := x.Node(i).DBSize(ctx).Result()
		x.must(err)
		if n == 0 {
			t.Errorf("node %d has nothing", i)
		}
		total += int(n)
		for k := range keys {
			err := x.Node(i).Get(ctx, fmt.Sprint("k", k)).Err()
			if err == nil {
				continue
			}
			_, to, ok := strings.Cut(strings.TrimPrefix(err.Error(), "MOVED "), " ")
			if !ok || to == addr || !slices.Contains(x.addrs, to) {
				t.Fatalf("node %d redirects with %v", i, err)
			}
		}
	}
	if total != keys {
		t.Errorf("%d keys, want %d", total, keys)
	}

	u, err := url.Parse(x.URL("p"))
	x.must(err)
	if got := append([]string{u.Host}, u.Query()["addr"]...); !slices.Equal(got, x.addrs) || u.Scheme != "rediss" || u.Path != "" || u.Query().Get("prefix") != "p" {
		t.Errorf("URL %s", u)
	}
	if _, err := x.Primary(ctx); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("primary: %v", err)
	}

	// They find each other again, whoever is back first.
	start := time.Now()
	x.must(errors.Join(x.Stop(ctx, 1), x.Stop(ctx, 2), x.Start(ctx, 2), x.Start(ctx, 1), x.Ready(ctx)))
	t.Logf("ready again after %v", time.Since(start))
	start = time.Now()
	if err := x.Isolate(ctx, 1); !errors.Is(err, errors.ErrUnsupported) {
		x.must(err)
		for _, i := range []int{0, 1} {
			x.try("a cluster that is broken", func(ctx context.Context) error {
				if x.serves(ctx, i) == nil {
					return fmt.Errorf("node %d finds it whole", i)
				}
				return nil
			})
		}
		t.Logf("known to be broken after %v", time.Since(start))
		start = time.Now()
		x.must(errors.Join(x.Join(ctx, 1), x.Ready(ctx)))
		t.Logf("whole after %v", time.Since(start))
	}
	for k := range keys {
		x.try("set", func(ctx context.Context) error { return c.Set(ctx, fmt.Sprint("k", k), k, 0).Err() })
	}
}

func testRedisSecured(t *testing.T, opts ...RedisOption) {
	x := onRedis(t, append(opts, RedisWithTLS(), RedisWithPassword(), WithPersistence())...)
	ctx := t.Context()
	x.set(0, "1")
	x.must(errors.Join(x.Stop(ctx, 0), x.Start(ctx, 0), x.Ready(ctx)))
	x.get(0, "1")
	x.must(x.universal().Get(ctx, "key").Err())

	try := func(change func(*goredis.UniversalOptions)) error {
		o := x.Options()
		o.ContextTimeoutEnabled = true
		o.MaxRetries = -1
		change(o)
		ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
		defer cancel()
		c := goredis.NewUniversalClient(o)
		defer c.Close()
		return c.Get(ctx, "key").Err()
	}
	for what, change := range map[string]func(*goredis.UniversalOptions){
		"without a certificate": func(o *goredis.UniversalOptions) { o.TLSConfig.Certificates = nil },
		"without TLS":           func(o *goredis.UniversalOptions) { o.TLSConfig = nil },
		"of another authority": func(o *goredis.UniversalOptions) {
			o.TLSConfig = &tls.Config{Certificates: o.TLSConfig.Certificates}
		},
	} {
		if err := try(change); err == nil || err == goredis.Nil {
			t.Errorf("%s it is let in", what)
		}
	}
	if err := try(func(o *goredis.UniversalOptions) { o.Username, o.Password = "", "" }); !goredis.IsAuthError(err) {
		t.Errorf("without a password: %v", err)
	}
	if err := try(func(o *goredis.UniversalOptions) { o.Password = "x" }); err == nil || !strings.Contains(err.Error(), "WRONGPASS") {
		t.Errorf("with a wrong password: %v", err)
	}
	x.must(x.Node(0).ACLSetUser(ctx, "reader", "on", ">secret", "~key", "+get").Err())
	if err := try(func(o *goredis.UniversalOptions) { o.Username, o.Password = "reader", "secret" }); err != nil {
		t.Errorf("as another user: %v", err)
	}

	u, err := url.Parse(x.URL("a:b/c"))
	x.must(err)
	cacert, cert, key := x.Files()
	user, password := x.User()
	secret, _ := u.User.Password()
	if q := u.Query(); u.Scheme != "rediss" || u.Path != "/0" || u.Host != x.addrs[0] || u.User.Username() != user || secret != password ||
		q.Get("cacert") != cacert || q.Get("cert") != cert || q.Get("key") != key || q.Get("prefix") != "a:b/c" {
		t.Errorf("URL %s", u)
	}
	x.must(x.Close())
	if _, err := os.Stat(cacert); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the files are left behind: %v", err)
	}
}

// What was found here can be given to others.
func TestRedisGiven(t *testing.T) {
	leavesNothing(t)
	x := onRedis(t, RedisWithTLS(), RedisWithPassword(), RedisAsProcesses())
	x.set(0, "1")
	cacert, cert, key := x.Files()
	user, password := x.User()
	t.Setenv(addrsEnv, x.addrs[0])
	for name, value := range map[string]string{"_USER": user, "_PASSWORD": password, "_CACERT": cacert, "_CERT": cert, "_KEY": key} {
		t.Setenv(redisEnv+name, value)
	}
	given, err := StartRedis(t.Context(), RedisWithTLS(), RedisWithPassword())
	x.must(err)
	if t.Log(given.How); given.Version != x.Version || given.URL("a") != x.URL("a") {
		t.Errorf("found %s %s, want %s %s", given.Version, given.URL("a"), x.Version, x.URL("a"))
	}
	(&redisTest{t, given}).get(0, "1")
	x.must(given.Ready(t.Context()))
	for what, f := range map[string]func(context.Context, int) error{
		"pause": given.Pause, "resume": given.Resume, "stop": given.Stop, "start": given.Start,
		"cut off": given.CutOff, "reconnect": given.Reconnect, "isolate": given.Isolate, "join": given.Join, "promote": given.Promote,
	} {
		if err := f(t.Context(), 0); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := given.Follow(t.Context(), 0, x.addrs[0]); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("follow: %v", err)
	}
	x.must(given.Close())
	for what, opt := range map[string]RedisOption{
		"replicas": WithReplicas(1), "sentinels": WithSentinel(), "cluster": InCluster(),
		"persistence": WithPersistence(), "flags": WithRedisFlags("--maxmemory", "1mb"),
	} {
		if _, err := StartRedis(t.Context(), opt); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s: %v", what, err)
		}
	}
	x.must(x.Close())
}

func TestOlder(t *testing.T) {
	for version, want := range map[string]bool{"v6.2.14": true, "v7.0.15": false, "v7.2.4": false, "v8.0.1": false, "v10.0.0": false} {
		if older(version, redis.oldest) != want {
			t.Errorf("%s older than %s: %v", version, redis.oldest, !want)
		}
	}
}

func TestRedisMissing(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	_, err := StartRedis(t.Context(), RedisAsProcesses())
	if err == nil || !strings.Contains(err.Error(), redis.missing) {
		t.Errorf("where there is none: %v", err)
	}
}
