package etcd_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/integration/internal/scene"
	"github.com/leasehold/leasehold/integration/internal/servers"
	"github.com/leasehold/leasehold/lease"
)

// court is an etcd that lets nobody in without a password, as root sees it.
type court struct {
	*testing.T
	e      *servers.Etcd
	root   *clientv3.Client
	prefix string
}

func newCourt(t *testing.T, opts ...servers.EtcdOption) *court {
	e := servers.OwnEtcd(t, append(opts, servers.WithPassword())...)
	return &court{t, e, client(t, e), prefix(t) + "/"}
}

// within is the court of a subtest, under a prefix of its own.
func (c *court) within(t *testing.T) *court { return &court{t, c.e, c.root, prefix(t) + "/"} }

func (c *court) must(err error) {
	c.Helper()
	if err != nil {
		c.Fatal(err)
	}
}

// user makes a user with a role of the same name, and returns the URL of a store.
// The role may do nothing.
func (c *court) user(name string) (storeURL string) {
	c.Helper()
	_, err := c.root.RoleAdd(c.Context(), name)
	c.must(err)
	_, err = c.root.UserAdd(c.Context(), name, "s3cret")
	c.must(err)
	_, err = c.root.UserGrantRole(c.Context(), name, name)
	c.must(err)
	return c.login(name, "s3cret")
}

// grant is etcdctl role grant-permission --prefix=true.
func (c *court) grant(role, prefix string, what clientv3.PermissionType) {
	c.Helper()
	_, err := c.root.RoleGrantPermission(c.Context(), role, prefix, clientv3.GetPrefixRangeEnd(prefix), what)
	c.must(err)
}

// login is the store's URL with another user, "" for none.
func (c *court) login(name, password string) string {
	c.Helper()
	u, err := url.Parse(c.e.URL(c.prefix))
	c.must(err)
	if u.User = nil; name != "" {
		u.User = url.UserPassword(name, password)
	}
	return u.String()
}

// holds acquires a lease, renews it in the background without a failure, and
// releases it at the end.
func (c *court) holds(s backend.Store, name string, d time.Duration) *lease.Lease {
	c.Helper()
	l, err := lease.New(s, name, lease.WithDuration(d), lease.WithObserver(func(e lease.Event) {
		if e.Kind == lease.EventRenewFailed && c.Context().Err() == nil {
			c.Errorf("%s is not renewed: %v", name, e.Err)
		}
	}))
	c.must(err)
	c.must(l.Acquire(c.Context()))
	c.Cleanup(func() { _ = l.Release(context.WithoutCancel(c.Context())) })
	return l
}

// keeps checks that a tenure lives on for a while.
func (c *court) keeps(l *lease.Lease, d time.Duration) {
	c.Helper()
	select {
	case <-l.Context().Done():
		c.Fatalf("the tenure has ended: %v", context.Cause(l.Context()))
	case <-time.After(d):
	}
}

func (c *court) denied(what string, err error, words ...string) {
	c.Helper()
	if !errors.Is(err, backend.ErrDenied) {
		c.Errorf("%s: %v; want ErrDenied", what, err)
		return
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			c.Errorf("%s: %v\ndoes not say %q", what, err, word)
		}
	}
	if strings.Contains(err.Error(), "s3cret") {
		c.Errorf("%s tells the password: %v", what, err)
	}
	c.Logf("%s: %v", what, err)
}

// deniesWatch checks that a watch is refused, and at once.
func (c *court) deniesWatch(s backend.Store, words ...string) {
	c.Helper()
	ctx, cancel := context.WithTimeout(c.Context(), scene.Patience)
	defer cancel()
	for _, err := range backend.Watch(ctx, s, "job") {
		c.denied("watch", err, words...)
	}
	if ctx.Err() != nil {
		c.Error("a watch that is not allowed goes on")
	}
}

// command is what the documentation and the errors say to grant.
func (c *court) command() string {
	return "etcdctl role grant-permission ROLE readwrite --prefix=true " + c.prefix
}

func fresh(name string) backend.Claim {
	return backend.Claim{Name: name, Holder: "somebody", Attempt: "1", Duration: 5 * time.Second}
}

// TestRoles: readwrite on the prefix is enough for everything, and less is told.
func TestRoles(t *testing.T) {
	t.Parallel()
	c := newCourt(t)

	t.Run("readwrite", func(t *testing.T) {
		t.Parallel()
		c := c.within(t)
		u := c.user("holder")
		c.grant("holder", c.prefix, clientv3.PermissionType(clientv3.PermReadWrite))
		s, other := open(t, u), open(t, u)
		rec, err := s.Acquire(t.Context(), fresh("job"))
		c.must(err)
		_, err = s.Renew(t.Context(), rec)
		c.must(err)
		got, err := s.Get(t.Context(), "job")
		c.must(err)
		if got.Remaining <= 0 {
			t.Error("what is left of the tenure is not told: it needs the right to look at the etcd lease")
		}
		var refused *backend.HeldError
		if _, err := other.Acquire(t.Context(), backend.Claim{Name: "job", Holder: "b", Duration: 5 * time.Second}); !errors.As(err, &refused) {
			t.Errorf("a second claim: %v", err)
		}
		var names []string
		for rec, err := range backend.List(t.Context(), other, "") {
			c.must(err)
			names = append(names, rec.Name)
		}
		if len(names) != 1 || names[0] != "job" {
			t.Errorf("listed are %q", names)
		}
		told := make(chan backend.Record)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() {
			for rec, err := range backend.Watch(ctx, other, "job") {
				if err != nil {
					t.Error(err)
				}
				select {
				case told <- rec:
				case <-ctx.Done():
					return
				}
			}
		}()
		if rec := <-told; rec.Holder != "somebody" {
			t.Errorf("the watch begins with %v", rec)
		}
		waiter, err := lease.New(other, "job", lease.WithDuration(5*time.Second))
		c.must(err)
		won := make(chan error, 1)
		go func() { won <- waiter.Await(t.Context()) }()
		c.must(s.Release(t.Context(), rec))
		for rec := range told {
			if rec.Holder == string(waiter.Holder()) {
				break
			}
		}
		c.must(<-won)
		c.must(waiter.Release(t.Context()))
	})

	t.Run("another prefix", func(t *testing.T) {
		t.Parallel()
		c := c.within(t)
		s := open(t, c.user("stranger"))
		c.grant("stranger", c.prefix+"mine/", clientv3.PermissionType(clientv3.PermReadWrite))
		for call, err := range everyCall(t.Context(), s) {
			c.denied(call, err, c.command())
		}
		c.deniesWatch(s, c.command())
		// Waiting does not help, so Await does not wait.
		l, err := lease.New(s, "job")
		c.must(err)
		ctx, cancel := context.WithTimeout(t.Context(), scene.Patience)
		defer cancel()
		c.denied("await", l.Await(ctx), c.command())
	})

	t.Run("read", func(t *testing.T) {
		t.Parallel()
		c := c.within(t)
		s := open(t, c.user("reader"))
		c.grant("reader", c.prefix, clientv3.PermissionType(clientv3.PermRead))
		if _, err := s.Get(t.Context(), "job"); !errors.Is(err, backend.ErrNotFound) {
			t.Errorf("get: %v", err)
		}
		for _, err := range backend.List(t.Context(), s, "") {
			t.Errorf("list: %v", err)
		}
		_, err := s.Acquire(t.Context(), fresh("job"))
		c.denied("acquire", err, c.command())
		root := open(t, c.e.URL(c.prefix))
		rec, err := root.Acquire(t.Context(), fresh("held"))
		c.must(err)
		for rec, err := range backend.Watch(t.Context(), s, "held") {
			if err != nil || rec.Holder != "somebody" {
				t.Errorf("watch: %v, %v", rec, err)
			}
			break
		}
		_, err = s.Renew(t.Context(), rec)
		c.denied("renew", err, c.command())
		c.denied("release", s.Release(t.Context(), rec), c.command())
	})

	t.Run("write", func(t *testing.T) {
		t.Parallel()
		c := c.within(t)
		s := open(t, c.user("writer"))
		c.grant("writer", c.prefix, clientv3.PermissionType(clientv3.PermWrite))
		_, err := s.Acquire(t.Context(), fresh("job"))
		c.denied("acquire", err, c.command())
		_, err = s.Get(t.Context(), "job")
		c.denied("get", err, c.command())
	})
}

// TestLostPermission: what becomes of a live holder whose user loses what it had.
func TestLostPermission(t *testing.T) {
	t.Parallel()
	c := newCourt(t)
	for name, take := range map[string]struct {
		away  func(c *court, user string) error
		words []string
	}{
		"role": {func(c *court, user string) error {
			_, err := c.root.UserRevokeRole(c.Context(), user, user)
			return err
		}, []string{"etcdctl role grant-permission"}},
		"permission": {func(c *court, user string) error {
			_, err := c.root.RoleRevokePermission(c.Context(), user, c.prefix, clientv3.GetPrefixRangeEnd(c.prefix))
			return err
		}, []string{"etcdctl role grant-permission"}},
		"user-deleted": {func(c *court, user string) error { _, err := c.root.UserDelete(c.Context(), user); return err }, []string{"does not accept"}},
		"password-new": {func(c *court, user string) error {
			_, err := c.root.UserChangePassword(c.Context(), user, "another")
			return err
		}, []string{"does not accept"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := c.within(t)
			u := c.user(name)
			c.grant(name, c.prefix, clientv3.PermissionType(clientv3.PermReadWrite))
			s := open(t, u)
			failed := make(chan error, 100)
			l, err := lease.New(s, "job", lease.WithDuration(4*time.Second), lease.WithObserver(func(e lease.Event) {
				if e.Kind == lease.EventRenewFailed {
					select {
					case failed <- e.Err:
					default:
					}
				}
			}))
			c.must(err)
			c.must(l.Acquire(t.Context()))
			c.keeps(l, 2*time.Second) // it was renewed
			c.must(take.away(c, name))
			select {
			case err := <-failed:
				c.denied("renew", err, take.words...)
			case <-time.After(scene.Patience):
				t.Fatal("renewals go on")
			}
			if !l.Held() {
				t.Error("a renewal that was refused has ended the tenure, which lasts")
			}
			select {
			case <-l.Context().Done():
				t.Logf("the tenure ends: %v", context.Cause(l.Context()))
			case <-time.After(scene.Patience):
				t.Fatal("the tenure goes on without renewals")
			}
			root := open(t, c.e.URL(c.prefix))
			if rec, err := root.Get(t.Context(), "job"); err == nil && rec.Live() && rec.Remaining > time.Second {
				t.Errorf("etcd lets the tenure go on for %v when its holder has stopped", rec.Remaining)
			}
			_, err = s.Acquire(t.Context(), fresh("job"))
			c.denied("acquire", err, take.words...)
		})
	}
}

// TestTokensOfLogin: a login that etcd forgets after 2 s is renewed unnoticed, also
// where nothing was asked for longer than that.
func TestTokensOfLogin(t *testing.T) {
	t.Parallel()
	c := newCourt(t, servers.WithEtcdFlags("--auth-token-ttl=2"))
	u := c.user("holder")
	c.grant("holder", c.prefix, clientv3.PermissionType(clientv3.PermReadWrite))
	s, other, idle := open(t, u), open(t, u), open(t, u)
	for _, s := range []backend.Store{s, other, idle} {
		_, err := s.Get(t.Context(), "job")
		if !errors.Is(err, backend.ErrNotFound) {
			t.Fatal(err)
		}
	}
	rare := c.holds(open(t, u), "rare", 15*time.Second) // renewed every 5 s, over a stream of its own
	often := c.holds(s, "often", 4*time.Second)
	events := make(chan lease.Event, 1000)
	waiter, err := lease.New(other, "often", lease.WithDuration(4*time.Second), lease.WithObserver(func(e lease.Event) { events <- e }))
	c.must(err)
	won := make(chan error, 1)
	go func() { won <- waiter.Await(t.Context()) }()
	c.keeps(often, 11*time.Second)
	c.keeps(rare, 0)
	before := time.Now()
	c.must(often.Release(t.Context()))
	c.must(<-won)
	if took := time.Since(before); took > 2*time.Second {
		t.Errorf("the waiter was told after %v that the lease is free", took)
	}
	// A watch that begins on what is left of a login from long ago.
	for rec, err := range backend.Watch(t.Context(), idle, "rare") {
		if err != nil || rec.Holder != string(rare.Holder()) {
			t.Errorf("watch: %v, %v", rec, err)
		}
		break
	}
	for len(events) > 0 {
		if e := <-events; e.Err != nil && e.Kind != lease.EventBlocked {
			t.Errorf("the waiter: %v: %v", e.Kind, e.Err)
		}
	}
	c.must(waiter.Release(t.Context()))
}

// logins is how often somebody has logged in.
func (c *court) logins() (n int) {
	c.Helper()
	resp, err := http.Get(c.e.Endpoints()[0] + "/metrics")
	c.must(err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	c.must(err)
	for _, m := range regexp.MustCompile(`(?m)^grpc_server_handled_total\{[^}]*grpc_method="Authenticate"[^}]*\} (\S+)$`).FindAllSubmatch(text, -1) {
		v, err := strconv.ParseFloat(string(m[1]), 64)
		c.must(err)
		n += int(v)
	}
	return n
}

// TestLogins: etcd makes a login expensive (its password is hashed), so renewals
// must not need one each.
func TestLogins(t *testing.T) {
	t.Parallel()
	c := newCourt(t)
	s := open(t, c.e.URL(c.prefix))
	before := c.logins()
	rec, err := s.Acquire(t.Context(), fresh("job"))
	c.must(err)
	const times = 200
	for range times {
		rec, err = s.Renew(t.Context(), rec)
		c.must(err)
	}
	c.must(s.Release(t.Context(), rec))
	if n := c.logins() - before; n < 1 || n > 4 {
		t.Errorf("%d logins for one tenure with %d renewals", n, times)
	} else {
		t.Logf("%d logins for one tenure with %d renewals", n, times)
	}
}

func TestWrongLogin(t *testing.T) {
	t.Parallel()
	c := newCourt(t)
	name, _ := c.e.User()
	for what, word := range map[string]string{
		c.login(name, "s3cret"):     "does not accept the user name or the password",
		c.login("nobody", "s3cret"): "does not accept the user name or the password",
		c.login("", ""):             "wants a user and a password",
	} {
		says(t, open(t, what), backend.ErrDenied, word)
		c.deniesWatch(open(t, what), word)
	}
	t.Run("authentication is off", func(t *testing.T) {
		u := strings.Replace(plain(t).URL(prefix(t)), "//", "//user:s3cret@", 1)
		s := open(t, u)
		rec, err := s.Acquire(t.Context(), fresh("job"))
		c.must(err)
		_, err = s.Renew(t.Context(), rec)
		c.must(err)
		c.must(s.Release(t.Context(), rec))
	})
}

// TestOpenWhileDown: a store with a password opens where nobody answers, and whoever
// waits for a lease is granted it when etcd is there.
func TestOpenWhileDown(t *testing.T) {
	t.Parallel()
	c := newCourt(t)
	servers.Must(t, c.e.Stop(t.Context(), 0))
	began := time.Now()
	s := open(t, c.e.URL(c.prefix))
	if took := time.Since(began); took > time.Second {
		t.Errorf("it took %v to open a store", took)
	}
	l, err := lease.New(s, "job", lease.WithDuration(4*time.Second))
	c.must(err)
	won := make(chan error, 1)
	go func() { won <- l.Await(t.Context()) }()
	select {
	case err := <-won:
		t.Fatalf("Await returns while etcd is down: %v", err)
	case <-time.After(2 * time.Second):
	}
	servers.Must(t, c.e.Start(t.Context(), 0))
	select {
	case err := <-won:
		c.must(err)
	case <-time.After(scene.Patience):
		t.Fatal("Await does not return")
	}
	c.must(l.Release(t.Context()))
}

// TestNoSpace: an etcd that is full grants nothing, and says so; who holds goes on
// to hold, and can release.
func TestNoSpace(t *testing.T) {
	t.Parallel()
	e := servers.OwnEtcd(t, servers.WithEtcdFlags("--quota-backend-bytes=2097152"))
	c := &court{t, e, client(t, e), prefix(t) + "/"}
	s := open(t, e.URL(c.prefix))
	holder := c.holds(s, "held", 4*time.Second)
	brief := c.holds(s, "brief", 20*time.Second)
	filled := 0
	for value := strings.Repeat("x", 100_000); ; filled++ {
		if _, err := c.root.Put(t.Context(), "/filling/"+strconv.Itoa(filled), value); err != nil {
			t.Logf("etcd is full after %d: %v", filled, err)
			break
		}
		if filled == 1000 {
			t.Fatal("etcd does not become full")
		}
	}
	for range 2 { // with the alarm
		_, err := s.Acquire(t.Context(), fresh("job"))
		if err == nil || backend.Definite(err) {
			t.Errorf("acquire: %v; whoever waits should go on to", err)
		} else if !strings.Contains(err.Error(), "no space") || !strings.Contains(err.Error(), "etcdctl alarm disarm") {
			t.Errorf("acquire: %v", err)
		} else {
			t.Log(err)
		}
	}
	c.keeps(holder, 6*time.Second)
	c.must(brief.Release(t.Context()))
	if _, err := s.Get(t.Context(), "brief"); !errors.Is(err, backend.ErrNotFound) {
		t.Errorf("get: %v", err)
	}
	// The way back, as people go it.
	waiter, err := lease.New(s, "job", lease.WithDuration(4*time.Second))
	c.must(err)
	won := make(chan error, 1)
	go func() { won <- waiter.Await(t.Context()) }()
	_, err = c.root.Delete(t.Context(), "/filling/", clientv3.WithPrefix())
	c.must(err)
	status, err := c.root.Status(t.Context(), e.Endpoints()[0])
	c.must(err)
	_, err = c.root.Compact(t.Context(), status.Header.Revision)
	c.must(err)
	_, err = c.root.Defragment(t.Context(), e.Endpoints()[0])
	c.must(err)
	_, err = c.root.AlarmDisarm(t.Context(), &clientv3.AlarmMember{})
	c.must(err)
	select {
	case err := <-won:
		c.must(err)
	case <-time.After(scene.Patience):
		t.Fatal("whoever waited is not granted the lease when there is space again")
	}
	c.must(waiter.Release(t.Context()))
	c.keeps(holder, time.Second)
}

// TestNoLeader: members that are too few say so at once.
func TestNoLeader(t *testing.T) {
	t.Parallel()
	e := servers.OwnEtcd(t, servers.WithMembers(3))
	s := open(t, e.URL(prefix(t)))
	if _, err := s.Get(t.Context(), "job"); !errors.Is(err, backend.ErrNotFound) {
		t.Fatal(err)
	}
	servers.Must(t, e.Stop(t.Context(), 0))
	servers.Must(t, e.Stop(t.Context(), 1))
	deadline := time.Now().Add(scene.Patience)
	for {
		_, err := s.Acquire(t.Context(), fresh("job"))
		if err == nil {
			t.Fatal("one of three members grants a lease")
		}
		if backend.Definite(err) {
			t.Fatalf("%v: is definite", err)
		}
		t.Log(err)
		if strings.Contains(err.Error(), "etcd has no leader: a majority of its members must be up") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("nobody says that there is no leader")
		}
	}
}
