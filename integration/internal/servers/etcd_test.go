package servers

import (
	"context"
	"crypto/tls"
	"errors"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// patience is how long something may take that should happen at once, on a
// machine that is busy with other things.
const patience = 30 * time.Second

// etcdTest is a cluster under test.
type etcdTest struct {
	*testing.T
	*Etcd
	clients []*clientv3.Client // one for each member
}

func onEtcd(t *testing.T, e *Etcd) *etcdTest {
	t.Helper()
	x := &etcdTest{T: t, Etcd: e}
	for i := range e.Members() {
		c := e.Config()
		c.Endpoints = c.Endpoints[i : i+1]
		client, err := clientv3.New(c)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { client.Close() })
		x.clients = append(x.clients, client)
	}
	return x
}

// try calls f until it succeeds, and gives each attempt a second.
func (x *etcdTest) try(what string, f func(context.Context) error) {
	x.Helper()
	var last error
	err := within(x.Context(), patience, func() (bool, error) {
		ctx, cancel := context.WithTimeout(x.Context(), time.Second)
		defer cancel()
		last = f(ctx)
		return last == nil, nil
	})
	if err != nil {
		for i, s := range x.status(x.Context()) {
			x.Logf("member %d: %+v, %v", i, s.StatusResponse, s.err)
		}
		x.Fatalf("%s: %v; last: %v", what, err, last)
	}
}

func (x *etcdTest) put(i int, value string) {
	x.Helper()
	x.try("put", func(ctx context.Context) error {
		_, err := x.clients[i].Put(ctx, "key", value)
		return err
	})
}

func (x *etcdTest) get(i int, want string) {
	x.Helper()
	var got string
	x.try("get", func(ctx context.Context) error {
		r, err := x.clients[i].Get(ctx, "key")
		if err == nil && len(r.Kvs) == 1 {
			got = string(r.Kvs[0].Value)
		}
		return err
	})
	if got != want {
		x.Errorf("member %d has %q, want %q", i, got, want)
	}
}

// refuses checks that a member answers no linearizable read, and that its data
// can or cannot be reached at all.
func (x *etcdTest) refuses(i int, reachable bool) {
	x.Helper()
	ctx, cancel := context.WithTimeout(x.Context(), 2*time.Second)
	defer cancel()
	if r, err := x.clients[i].Get(ctx, "key"); err == nil {
		x.Errorf("member %d still serves linearizable reads: %v", i, r.Kvs)
	}
	ctx, cancel = context.WithTimeout(x.Context(), 2*time.Second)
	defer cancel()
	if r, err := x.clients[i].Get(ctx, "key", clientv3.WithSerializable()); (err == nil) != reachable {
		x.Errorf("the data of member %d: %v, %v, want reachable %v", i, r, err, reachable)
	}
}

// leader waits for one that is not old.
func (x *etcdTest) leader(old int) int {
	x.Helper()
	var leader int
	x.try("leader", func(context.Context) (err error) {
		if leader, err = x.Leader(x.Context()); err == nil && leader == old {
			err = errors.New("it is still the old one")
		}
		return err
	})
	return leader
}

func (x *etcdTest) must(err error) {
	x.Helper()
	if err != nil {
		x.Fatal(err)
	}
}

func etcdPlaces() map[string][]EtcdOption {
	return map[string][]EtcdOption{"wherever": nil, "processes": {EtcdAsProcesses()}}
}

func TestEtcd(t *testing.T) {
	for name, opts := range etcdPlaces() {
		t.Run(name, func(t *testing.T) {
			leavesNothing(t)
			start := time.Now()
			e := OwnEtcd(t, opts...)
			if e.members == nil {
				t.Skip("a given cluster is not ours to try things on")
			}
			t.Logf("ready after %v", time.Since(start))
			if !strings.HasPrefix(e.Version, "v3.") {
				t.Errorf("version %q", e.Version)
			}
			x := onEtcd(t, e)
			x.put(0, "1")
			x.must(errors.Join(e.Pause(t.Context(), 0), e.Stop(t.Context(), 0), e.Start(t.Context(), 0), e.Ready(t.Context())))
			x.get(0, "1")
			// Whatever a test has left it in, it can be removed.
			x.must(errors.Join(e.Pause(t.Context(), 0), e.Close(), e.Close()))
		})
	}
}

func TestEtcdCluster(t *testing.T) {
	for name, opts := range etcdPlaces() {
		t.Run(name, func(t *testing.T) { testEtcdCluster(t, opts...) })
	}
}

func testEtcdCluster(t *testing.T, opts ...EtcdOption) {
	leavesNothing(t)
	start := time.Now()
	e := OwnEtcd(t, append(opts, WithMembers(3))...)
	if e.members == nil {
		t.Skip("a given cluster is not ours to try things on")
	}
	t.Logf("ready after %v", time.Since(start))
	ctx := t.Context()

	// What is done to the leader, and undone; whether clients still reach it.
	for _, what := range []struct {
		name      string
		do, undo  func(*Etcd, context.Context, int) error
		reachable bool
	}{
		{"killed", (*Etcd).Stop, (*Etcd).Start, false},
		{"paused", (*Etcd).Pause, (*Etcd).Resume, false},
		{"cut off", (*Etcd).CutOff, (*Etcd).Reconnect, false},
		{"isolated", (*Etcd).Isolate, (*Etcd).Join, true},
		{"isolated and killed", func(e *Etcd, ctx context.Context, i int) error {
			if err := e.Isolate(ctx, i); err != nil {
				return err // nothing is done then
			}
			return e.Stop(ctx, i)
		}, func(e *Etcd, ctx context.Context, i int) error {
			return errors.Join(e.Start(ctx, i), e.Join(ctx, i))
		}, false},
	} {
		t.Run(what.name, func(t *testing.T) {
			x := onEtcd(t, e)
			old := x.leader(-1)
			x.put(old, "before "+what.name)
			start := time.Now()
			Must(t, what.do(e, ctx, old))
			after := x.leader(old)
			t.Logf("member %d %s: %d leads after %v", old, what.name, after, time.Since(start))
			x.put(after, "while "+what.name)
			t.Logf("written again after %v", time.Since(start))
			x.must(e.Ready(ctx))
			x.refuses(old, what.reachable)

			start = time.Now()
			x.must(what.undo(e, ctx, old))
			x.must(e.ReadyAt(ctx, old))
			t.Logf("member %d is back after %v", old, time.Since(start))
			x.get(old, "while "+what.name)
			x.put(old, "after "+what.name)
			for i := range x.clients {
				x.get(i, "after "+what.name)
			}
		})
	}

	t.Run("quorum lost", func(t *testing.T) {
		x := onEtcd(t, e)
		x.put(2, "before")
		x.must(errors.Join(e.Stop(ctx, 0), e.Stop(ctx, 1)))
		short, cancel := context.WithTimeout(ctx, 3*time.Second)
		defer cancel()
		if err := e.Ready(short); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("one of three is ready: %v", err)
		}
		x.refuses(2, true)
		if l, err := e.Leader(ctx); err == nil {
			t.Errorf("one of three has a leader: %d", l)
		}
		start := time.Now()
		x.must(errors.Join(e.Start(ctx, 0), e.Start(ctx, 1), e.Ready(ctx)))
		t.Logf("ready again after %v", time.Since(start))
		for i := range x.clients {
			x.get(i, "before")
		}
	})

	if err := errors.Join(e.Stop(ctx, 0), e.Pause(ctx, 1), e.Close()); err != nil {
		t.Error(err)
	}
}

func TestEtcdSecured(t *testing.T) {
	for name, opts := range etcdPlaces() {
		t.Run(name, func(t *testing.T) {
			leavesNothing(t)
			e := OwnEtcd(t, append(opts, WithTLS(), WithPassword(), WithEtcdFlags("--auth-token-ttl=2"))...)
			x := onEtcd(t, e)
			x.put(0, "1")
			x.get(0, "1")

			refused := func(what string, change func(*clientv3.Config), known ...error) {
				t.Helper()
				c := e.Config()
				change(&c)
				ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
				defer cancel()
				c.Context = ctx
				client, err := clientv3.New(c)
				if err == nil {
					defer client.Close()
					_, err = client.Get(ctx, "key")
				}
				if err == nil {
					t.Errorf("%s: it is let in", what)
				}
				ok := len(known) == 0
				for _, k := range known {
					ok = ok || errors.Is(err, k)
				}
				if !ok {
					t.Errorf("%s: %v, want %v", what, err, known)
				}
			}
			refused("without a certificate", func(c *clientv3.Config) { c.TLS.Certificates = nil })
			refused("without TLS", func(c *clientv3.Config) { c.TLS, c.Endpoints = nil, []string{"http://" + e.addrs[0]} })
			refused("of another authority", func(c *clientv3.Config) { c.TLS = &tls.Config{Certificates: c.TLS.Certificates} })
			// The certificate's name is taken for a user's.
			refused("without a password", func(c *clientv3.Config) { c.Username, c.Password = "", "" },
				rpctypes.ErrPermissionDenied, rpctypes.ErrUserEmpty)
			refused("with a wrong password", func(c *clientv3.Config) { c.Password = "x" }, rpctypes.ErrAuthFailed)

			u, err := url.Parse(e.URL("a/b"))
			x.must(err)
			cacert, cert, key := e.Files()
			user, password := e.User()
			secret, _ := u.User.Password()
			if q := u.Query(); u.Scheme != "etcd" || u.Path != "/a/b" || u.Host != e.addrs[0] || u.User.Username() != user || secret != password ||
				q.Get("cacert") != cacert || q.Get("cert") != cert || q.Get("key") != key {
				t.Errorf("URL %s", u)
			}

			if e.members == nil {
				return
			}
			// What was found here can be given to others.
			t.Setenv("LEASEHOLD_TEST_ETCD_ENDPOINTS", e.addrs[0])
			for name, value := range map[string]string{"USER": user, "PASSWORD": password, "CACERT": cacert, "CERT": cert, "KEY": key} {
				t.Setenv("LEASEHOLD_TEST_ETCD_"+name, value)
			}
			given, err := StartEtcd(t.Context(), WithTLS(), WithPassword(), WithMembers(1))
			x.must(err)
			if t.Log(given.How); given.Version != e.Version || given.URL("a") != e.URL("a") {
				t.Errorf("found %s %s, want %s %s", given.Version, given.URL("a"), e.Version, e.URL("a"))
			}
			onEtcd(t, given).get(0, "1")
			for what, f := range map[string]func(context.Context, int) error{
				"pause": given.Pause, "resume": given.Resume, "stop": given.Stop, "start": given.Start,
				"cut off": given.CutOff, "reconnect": given.Reconnect, "isolate": given.Isolate, "join": given.Join,
			} {
				if err := f(t.Context(), 0); !errors.Is(err, errors.ErrUnsupported) {
					t.Errorf("%s: %v", what, err)
				}
			}
			x.must(given.Close())
			for what, opt := range map[string]EtcdOption{"members": WithMembers(3), "flags": WithEtcdFlags("--log-level=info")} {
				if _, err := StartEtcd(t.Context(), opt); !errors.Is(err, errors.ErrUnsupported) {
					t.Errorf("%s: %v", what, err)
				}
			}

			x.must(e.Close())
			if _, err := os.Stat(cacert); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the files are left behind: %v", err)
			}
		})
	}
}
