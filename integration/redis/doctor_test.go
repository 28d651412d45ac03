package redis_test

import (
	"context"
	"encoding/json"
	"net"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/integration/internal/program"
	"github.com/leasehold/leasehold/integration/internal/servers"
	"github.com/leasehold/leasehold/redis"
)

// examined is what a store finds about itself. It must not take long.
func examined(t *testing.T, s backend.Store) []backend.Finding {
	t.Helper()
	began := time.Now()
	found := slices.Collect(backend.Examine(t.Context(), s))
	if took := time.Since(began); took > 8*time.Second {
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
		if f.Detail == "" || f.Check == "" || strings.Contains(f.Detail+f.Fix, "%!") || strings.Contains(f.Detail, "FailoverClient") {
			t.Errorf("nobody should read this: %+v", f)
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

// TestDoctor: a healthy Redis is called one; nothing is written, and nothing left.
func TestDoctor(t *testing.T) {
	t.Parallel()
	r := mine(t, servers.WithPersistence())
	u := r.URL(prefix(t))
	s := open(t, u)
	before := r.Node(0).ConfigGet(t.Context(), "*").Val()
	found := examined(t, s)
	if worst(found) > backend.Note {
		t.Error("a healthy Redis is not called one")
	}
	finds(t, found, "server", backend.Good, r.Version, r.Addrs()[0], "answers within")
	finds(t, found, "memory", backend.Good, "noeviction")
	finds(t, found, "restart", backend.Good, "append-only")
	finds(t, found, "failover", backend.Good, "no replicas")
	finds(t, found, "access", backend.Note, "without TLS", "without a password")
	finds(t, found, "clock", backend.Good)
	finds(t, found, "permissions", backend.Good, prefix(t))
	if left, err := keys(t.Context(), r, ""); err != nil || len(left) > 0 {
		t.Errorf("the examination has left %q, %v", left, err)
	}
	if after := r.Node(0).ConfigGet(t.Context(), "*").Val(); len(after) != len(before) {
		t.Error("the configuration has changed")
	}
	p := program.New(t, u)
	p.Prints(0, "doctor", "redis store: 0 problems, 0 warnings", "tokens", "watch")
	levels := make(map[string]string)
	for line := range strings.Lines(p.Prints(0, "doctor -o json", `"summary"`)) {
		var f struct{ Check, Level, Detail, Fix string }
		if err := json.Unmarshal([]byte(line), &f); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		levels[f.Check] = f.Level
	}
	for check, level := range map[string]string{"server": "ok", "memory": "ok", "restart": "ok", "access": "note", "permissions": "ok", "acquire": "ok"} {
		if levels[check] != level {
			t.Errorf("as JSON %s is %q, want %q", check, levels[check], level)
		}
	}
}

// TestDoctorRisks: what ends exclusion early is found.
func TestDoctorRisks(t *testing.T) {
	t.Parallel()
	r := mine(t)
	s, node := open(t, r.URL(prefix(t))), r.Node(0)
	set := func(name, value string) {
		t.Helper()
		if err := node.ConfigSet(t.Context(), name, value).Err(); err != nil {
			t.Fatal(err)
		}
	}
	finds(t, examined(t, s), "restart", backend.Warning, "no append-only file", "appendonly yes")
	for policy, level := range map[string]backend.Level{
		"allkeys-lru": backend.Problem, "allkeys-random": backend.Problem, "volatile-ttl": backend.Problem, "volatile-lru": backend.Problem, "noeviction": backend.Good,
	} {
		set("maxmemory-policy", policy)
		set("maxmemory", "0")
		found := examined(t, s)
		if level > backend.Good {
			finds(t, found, "memory", backend.Note, policy, "no effect", "no maxmemory", "noeviction")
		} else {
			finds(t, found, "memory", backend.Good, policy)
		}
		set("maxmemory", "100mb")
		found = examined(t, s)
		if level > backend.Good {
			finds(t, found, "memory", level, policy, "100 MiB", "evicted")
		} else {
			finds(t, found, "memory", level, policy)
		}
	}
	set("maxmemory-policy", "allkeys-lru")
	p := program.New(t, r.URL(prefix(t)))
	p.Prints(1, "doctor", "problem", "allkeys-lru", "noeviction")
	p.Prints(1, "doctor -o json", `"level":"problem"`, "allkeys-lru")
	set("maxmemory-policy", "noeviction")
	p.Prints(0, "doctor", "0 problems, 1 warning")
	p.Prints(1, "doctor --strict")
}

func TestDoctorCluster(t *testing.T) {
	t.Parallel()
	r := mine(t, servers.InCluster())
	u := r.URL(prefix(t))
	found := examined(t, open(t, u))
	for _, addr := range r.Addrs() {
		finds(t, found, "server "+addr, backend.Good, r.Version, "answers within")
	}
	finds(t, found, "cluster", backend.Good)
	finds(t, found, "permissions", backend.Good)
	program.New(t, u).Prints(0, "doctor", "0 problems")

	// As if it were alone.
	one := "redis://" + r.Addrs()[0] + "/0"
	finds(t, examined(t, open(t, one)), "server", backend.Problem, "node of a cluster", "cluster=true")
	program.New(t, one).Prints(1, "doctor", "cluster=true")

	servers.Must(t, r.Stop(t.Context(), 2))
	s := open(t, u)
	deadline := time.Now().Add(15 * time.Second)
	for { // until the others know
		if found = examined(t, s); slices.ContainsFunc(found, func(f backend.Finding) bool { return f.Check == "cluster" && f.Level == backend.Problem }) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("a cluster without a third of its slots is not called a problem")
		}
		time.Sleep(200 * time.Millisecond)
	}
	finds(t, found, "server "+r.Addrs()[2], backend.Problem, "nobody listens")
}

func TestDoctorFailover(t *testing.T) {
	t.Parallel()
	r := mine(t, servers.WithReplicas(1), servers.WithSentinel())
	u := r.URL(prefix(t))
	found := examined(t, open(t, u))
	finds(t, found, "server", backend.Good, r.Version)
	finds(t, found, "failover", backend.Note, "1 replica", "check tokens")
	found = examined(t, open(t, with(u, "replicas", "1")))
	finds(t, found, "failover", backend.Note, "1 must have")
	found = examined(t, open(t, with(u, "replicas", "2")))
	finds(t, found, "failover", backend.Problem, "waits for 2", "nothing can be granted")
	program.New(t, u).Prints(0, "doctor", "0 problems")

	replica := "redis://" + r.Addrs()[1] + "/0"
	found = examined(t, open(t, replica))
	finds(t, found, "server", backend.Problem, "replica", "master_name", r.Addrs()[0])
	program.New(t, replica).Prints(69, "doctor", "replica", "the primary")
}

func TestDoctorAccess(t *testing.T) {
	t.Parallel()
	c := newCourt(t)
	u := c.user("holder", append(c.rule(), "+info", "+ping")...)
	found := examined(t, open(t, u))
	finds(t, found, "access", backend.Note, "the password can be read on the way")
	finds(t, found, "permissions", backend.Good, c.prefix)
	if worst(found) > backend.Warning {
		t.Error("the rule that is documented is not enough")
	}
	program.New(t, u).Prints(0, "doctor -o json", `"problems":0`)

	found = examined(t, open(t, c.user("ignorant", append(c.rule(), "-info", "-ping")...)))
	finds(t, found, "server", backend.Note, "+info")
	finds(t, found, "permissions", backend.Good)

	for _, command := range []string{"get", "set", "hset", "pexpire", "time"} {
		u := c.user("without-"+command, append(c.rule(), "-"+command)...)
		finds(t, examined(t, open(t, u)), "permissions", backend.Problem, "not allowed", command, "ACL SETUSER")
		program.New(t, u).Prints(1, "doctor", "permissions", command)
	}
	finds(t, examined(t, open(t, c.user("deaf", append(c.rule(), "-ssubscribe")...))), "permissions", backend.Warning, "ssubscribe", "once a second")
	finds(t, examined(t, open(t, c.user("mute", append(c.rule(), "resetchannels")...))), "permissions", backend.Warning, "once a second")
	finds(t, examined(t, open(t, c.user("nobody", "resetkeys", "nocommands"))), "permissions", backend.Problem, "ACL SETUSER")
	finds(t, examined(t, open(t, with(c.user("stranger", c.rule()...), "prefix", "other:"))), "permissions", backend.Problem, "other:")

	found = examined(t, open(t, c.login("holder", "wr0ng")))
	finds(t, found, "server", backend.Problem, "does not accept the user name or the password")
	if len(found) != 1 {
		t.Error("what cannot be known is told, too")
	}
	found = examined(t, open(t, c.login("", "")))
	finds(t, found, "server", backend.Problem, "wants a password")
	program.New(t, c.login("", "")).Prints(1, "doctor", "wants a password")
	if left, err := keys(t.Context(), c.r, c.prefix); err != nil || slices.ContainsFunc(left, func(key string) bool { return strings.HasSuffix(key, ":alive") }) {
		t.Errorf("left are %q, %v", left, err)
	}
}

func TestDoctorTLS(t *testing.T) {
	t.Parallel()
	r := mine(t, servers.RedisWithTLS())
	found := examined(t, open(t, r.URL(prefix(t))))
	finds(t, found, "access", backend.Good, "TLS")
	s := newSigner(t)
	finds(t, examined(t, open(t, with(r.URL(""), "cacert", s.ca))), "server", backend.Problem, "cannot be trusted")
	program.New(t, with(r.URL(""), "cacert", s.ca)).Prints(1, "doctor", "cannot be trusted")
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
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()
	for _, form := range []string{"/0", "?cluster=true", "/0?master_name=m"} {
		u := func(l net.Listener) string {
			return (&url.URL{Scheme: "redis", User: url.UserPassword("me", "s3cret"), Host: l.Addr().String()}).String() + form
		}
		found := examined(t, open(t, u(l)))
		finds(t, found, "server", backend.Problem, "in time")
		found = examined(t, open(t, u(gone)))
		if len(found) != 1 || worst(found) != backend.Problem {
			t.Errorf("%s: nobody answers: %v", form, found)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		began := time.Now()
		for f := range backend.Examine(ctx, open(t, u(l))) {
			t.Errorf("found although the context has ended: %v", f)
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("the examination went on for %v", took)
		}
	}
	for f := range backend.Examine(t.Context(), redis.New(nil, "")) {
		finds(t, []backend.Finding{f}, "redis", backend.Problem, "needs a client")
	}
}
