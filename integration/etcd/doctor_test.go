package etcd_test

import (
	"context"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/etcd"
	"github.com/leasehold/leasehold/integration/internal/program"
	"github.com/leasehold/leasehold/integration/internal/scene"
	"github.com/leasehold/leasehold/integration/internal/servers"
)

// examined is what a store finds about itself. It must not take long.
func examined(t *testing.T, s backend.Store) []backend.Finding {
	t.Helper()
	began := time.Now()
	found := slices.Collect(backend.Examine(t.Context(), s))
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("the examination took %v", took)
	}
	for _, f := range found {
		t.Logf("%-7s %-24s %s", f.Level, f.Check, f.Detail)
		if f.Fix != "" {
			t.Logf("        fix: %s", f.Fix)
		}
		if strings.Contains(f.Detail+f.Fix, "s3cret") {
			t.Error("it tells the password")
		}
	}
	return found
}

// finds checks that one finding has the level, and that its text has all words.
func finds(t *testing.T, found []backend.Finding, check string, level backend.Level, words ...string) {
	t.Helper()
	for _, f := range found {
		if !strings.HasPrefix(f.Check, check) || f.Level != level {
			continue
		}
		all := true
		for _, w := range words {
			all = all && strings.Contains(f.Detail+" "+f.Fix, w)
		}
		if all {
			return
		}
	}
	t.Errorf("no %v about %q says %q", level, check, words)
}

func worst(found []backend.Finding) (level backend.Level) {
	for _, f := range found {
		level = max(level, f.Level)
	}
	return level
}

func TestDoctor(t *testing.T) {
	t.Parallel()
	e := plain(t)
	c := client(t, e)
	under := prefix(t) + "/"
	s := etcd.New(c, under)
	leases, err := c.Leases(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	found := examined(t, s)
	if worst(found) > backend.Note {
		t.Error("a healthy etcd is not called one")
	}
	finds(t, found, "member", backend.Good, strings.TrimPrefix(e.Version, "v"), "answered in", "term", "the leader", " used")
	finds(t, found, "cluster", backend.Good, "1 member")
	finds(t, found, "access", backend.Note, "without TLS", "authentication switched off")
	finds(t, found, "permission to read", backend.Good, under)
	finds(t, found, "permission to write", backend.Good, under)
	finds(t, found, "shortest lease", backend.Good, "2 s")

	// Nothing was written, and nothing is left.
	after, err := c.Get(t.Context(), under, clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	if after.Count != 0 {
		t.Errorf("the examination has written %v", after.Kvs)
	}
	now, err := c.Leases(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(now.Leases) > len(leases.Leases)+5 { // of other tests
		t.Errorf("there are %d etcd leases, before %d", len(now.Leases), len(leases.Leases))
	}
	program.New(t, e.URL(under)).Prints(0, "doctor", "etcd store: 0 problems, 0 warnings", "shortest lease", "tokens")
}

// TestDoctorTeaches: an etcd with another election timeout has other least durations.
func TestDoctorTeaches(t *testing.T) {
	t.Parallel()
	for flags, want := range map[string]time.Duration{"--heartbeat-interval=50 --election-timeout=500": time.Second, "--election-timeout=3000": 5 * time.Second} {
		e := servers.OwnEtcd(t, servers.WithEtcdFlags(strings.Fields(flags)...))
		c := client(t, e)
		s := etcd.New(c, prefix(t))
		rev := func() int64 {
			resp, err := c.Get(t.Context(), "x")
			if err != nil {
				t.Fatal(err)
			}
			return resp.Header.Revision
		}
		before := rev()
		finds(t, examined(t, s), "shortest lease", backend.Good, want.String()[:1]+" s")
		if got := s.Traits().MinDuration; got != want {
			t.Errorf("%s: MinDuration is %v, want %v", flags, got, want)
		}
		if after := rev(); after != before {
			t.Errorf("the examination has written: revision %d became %d", before, after)
		}
		if leases, err := c.Leases(t.Context()); err != nil || len(leases.Leases) != 0 {
			t.Errorf("left are the etcd leases %v, %v", leases.Leases, err)
		}
		rec, err := s.Acquire(t.Context(), backend.Claim{Name: "job", Holder: "a", Duration: want})
		if err != nil {
			t.Error(err)
		} else if err := s.Release(t.Context(), rec); err != nil {
			t.Error(err)
		}
	}
}

func TestDoctorMembers(t *testing.T) {
	t.Parallel()
	e := servers.OwnEtcd(t, servers.WithMembers(3))
	under := prefix(t)
	s := open(t, e.URL(under))
	finds(t, examined(t, s), "cluster", backend.Good, "3 members, of which 1 may fail")
	one := open(t, "etcd://"+strings.TrimPrefix(e.Endpoints()[0], "http://")+under)
	finds(t, examined(t, one), "cluster", backend.Note, "3 members", "one endpoint is given")

	addr := func(i int) string { return strings.TrimPrefix(e.Endpoints()[i], "http://") }
	servers.Must(t, e.Pause(t.Context(), 2))
	found := examined(t, s)
	finds(t, found, "member "+addr(2), backend.Warning, "did not answer in time", "most members do answer")
	servers.Must(t, e.Resume(t.Context(), 2))
	servers.Must(t, e.Stop(t.Context(), 2))
	servers.Must(t, e.Ready(t.Context()))
	found = examined(t, s)
	finds(t, found, "member "+addr(2), backend.Warning, "cannot be reached", "most members do answer")
	if worst(found) > backend.Warning {
		t.Error("two of three members are called a problem")
	}
	program.New(t, e.URL(under)).Prints(0, "doctor", "0 problems, 1 warning")
	program.New(t, e.URL(under)).Prints(1, "doctor --strict")

	servers.Must(t, e.Stop(t.Context(), 1))
	deadline := time.Now().Add(scene.Patience)
	for { // until the last one knows
		found = examined(t, s)
		leaderless := slices.ContainsFunc(found, func(f backend.Finding) bool { return strings.Contains(f.Detail, "knows of no leader") })
		if leaderless || time.Now().After(deadline) {
			break
		}
		time.Sleep(200 * time.Millisecond)
	}
	finds(t, found, "member "+addr(1), backend.Problem, "cannot be reached")
	finds(t, found, "member "+addr(0), backend.Problem, "knows of no leader", "a majority of the members")

	servers.Must(t, e.Stop(t.Context(), 0))
	found = examined(t, s)
	if len(found) != 3 || worst(found) != backend.Problem {
		t.Errorf("nobody answers: %v", found)
	}
	program.New(t, e.URL(under)).Prints(69, "doctor", "problem", "cannot be reached")
}

// TestDoctorClusters: endpoints of two clusters.
func TestDoctorClusters(t *testing.T) {
	t.Parallel()
	// By this, and by the names of its members, a cluster calls itself.
	a, b := servers.OwnEtcd(t, servers.WithEtcdFlags("--initial-cluster-token=a")), servers.OwnEtcd(t, servers.WithEtcdFlags("--initial-cluster-token=b"))
	u := "etcd://" + strings.TrimPrefix(a.Endpoints()[0], "http://") + "," + strings.TrimPrefix(b.Endpoints()[0], "http://") + prefix(t)
	finds(t, examined(t, open(t, u)), "cluster", backend.Problem, "different clusters")
}

func TestDoctorPermission(t *testing.T) {
	t.Parallel()
	c := newCourt(t)
	holder := c.user("holder")
	c.grant("holder", c.prefix, clientv3.PermissionType(clientv3.PermReadWrite))
	found := examined(t, open(t, holder))
	finds(t, found, "access", backend.Note, `"holder"`, "the password can be read on the way")
	finds(t, found, "permission to write", backend.Good)
	if worst(found) > backend.Note {
		t.Error("the role that is documented is not enough")
	}
	program.New(t, holder).Prints(0, "doctor -o json", `"problems":0`, `"warnings":0`)

	reader := c.user("reader")
	c.grant("reader", c.prefix, clientv3.PermissionType(clientv3.PermRead))
	found = examined(t, open(t, reader))
	finds(t, found, "permission to read", backend.Good)
	finds(t, found, "permission to write", backend.Warning, "no lease can be acquired", c.command())
	program.New(t, reader).Prints(1, "doctor", "problem", c.command())

	found = examined(t, open(t, c.user("nobody")))
	finds(t, found, "permission to read", backend.Warning, c.command())
	finds(t, found, "permission to write", backend.Warning, c.command())

	found = examined(t, open(t, c.login("holder", "wr0ng")))
	finds(t, found, "", backend.Problem, "does not accept the user name or the password")
	found = examined(t, open(t, c.login("", "")))
	finds(t, found, "", backend.Problem, "wants a user and a password") // of its state, or of a record
	program.New(t, c.login("", "")).Prints(1, "doctor", "wants a user and a password")
	if keys, err := c.root.Get(t.Context(), c.prefix, clientv3.WithPrefix()); err != nil || keys.Count != 0 {
		t.Errorf("left are %v, %v", keys, err)
	}
}

func TestDoctorTLS(t *testing.T) {
	t.Parallel()
	found := examined(t, open(t, servers.OwnEtcd(t, servers.WithTLS()).URL(prefix(t))))
	finds(t, found, "access", backend.Good, "TLS; etcd has authentication switched off")
	if worst(found) > backend.Good {
		t.Error("an etcd with TLS has something wrong with it")
	}
	s := newSigner(t)
	e := plain(t)
	u := with("etcd://"+s.front(e, "127.0.0.1", time.Now().Add(time.Hour))+prefix(t), "cacert", s.ca)
	finds(t, examined(t, open(t, u)), "member", backend.Warning, "its certificate ends at", "renew")
	u = with("etcd://"+s.front(e, "127.0.0.1", time.Now().Add(-time.Hour+time.Minute))+prefix(t), "cacert", s.ca)
	finds(t, examined(t, open(t, u)), "member", backend.Problem, "expired")
}

func TestDoctorAlarms(t *testing.T) {
	t.Parallel()
	e := servers.OwnEtcd(t, servers.WithEtcdFlags("--quota-backend-bytes=2097152"))
	c := client(t, e)
	value := strings.Repeat("x", 100_000)
	var err error
	for i := 0; err == nil && i < 1000; i++ {
		_, err = c.Put(t.Context(), "/filling/"+string(rune('a'+i)), value)
	}
	found := examined(t, open(t, e.URL(prefix(t))))
	finds(t, found, "alarms", backend.Problem, "NOSPACE", "etcdctl alarm disarm")
	if _, ok := any(&etcdserverpb.StatusResponse{}).(interface{ GetDbSizeQuota() int64 }); ok { // clients before 3.6 do not know it
		finds(t, found, "member", backend.Warning, "of 2.0 MiB used", "--quota-backend-bytes")
	}
	program.New(t, e.URL(prefix(t))).Prints(1, "doctor", "NOSPACE")
}

// TestDoctorSilence: nothing that does not answer is waited for, and a context that
// ends is an end.
func TestDoctorSilence(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, login := range []string{"", "user:s3cret@"} {
		s := open(t, "etcd://"+login+l.Addr().String()+prefix(t))
		finds(t, examined(t, s), "member", backend.Problem, "did not answer in time")
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		began := time.Now()
		for f := range backend.Examine(ctx, s) {
			t.Errorf("found although the context has ended: %v", f)
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("the examination went on for %v", took)
		}
	}
}
