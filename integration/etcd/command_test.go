package etcd_test

import (
	"context"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/integration/internal/program"
	"github.com/leasehold/leasehold/integration/internal/scene"
	"github.com/leasehold/leasehold/integration/internal/servers"
)

// TestCommand goes through every subcommand, with a password.
func TestCommand(t *testing.T) {
	t.Parallel()
	e := servers.OwnEtcd(t, servers.WithPassword())
	p := program.New(t, e.URL(prefix(t)))
	p.Prints(0, "list", "there are no leases")
	p.Prints(2, "get job", "free")

	holder := p.Begin("job", "--duration", "5s", "--metadata", "team=blue")
	holder.Granted()
	p.Prints(0, "get job", "held", holder.Token, "team", "blue")
	p.Prints(0, "get -o json job", `"token":`+holder.Token, `"state":"held"`)
	p.Prints(0, "list", "job", holder.Token)
	p.Prints(75, "run --no-wait job -- true", "is held by")
	p.Prints(75, "wait job --timeout 300ms")
	p.Prints(75, "release job", "is held by")

	state, interrupt := p.Watch("job")
	if got := state(); got != "held" {
		t.Fatalf("the watch begins with %q", got)
	}
	waited := make(chan int, 1)
	go func() {
		_, _, code := p.Run("wait job")
		waited <- code
	}()
	holder.End()
	holder.Ends(0)
	for state() != "free" {
	}
	if code := scene.Await(t, "wait returns", waited); code != 0 {
		t.Errorf("wait ended with %d", code)
	}
	interrupt()
	p.Prints(2, "get job", "free")
	out := p.Prints(0, "run --json job -- true", `"event":"acquired"`, `"event":"released"`)
	if out != "" {
		t.Errorf("events are printed to standard output: %s", out)
	}

	// Somebody's live lease, by force.
	_, err := open(t, p.URL).Acquire(t.Context(), backend.Claim{Name: "stuck", Holder: "somebody", Duration: 2 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	p.Prints(75, "release stuck")
	p.Prints(0, "release stuck --force --yes")
	p.Prints(2, "get stuck")

	p.Prints(64, "run --duration 1s job -- true", "the etcd store needs at least 2s")
	p.Prints(64, "list extra arguments")
}

func TestCommandConformance(t *testing.T) {
	t.Parallel()
	p := program.New(t, servers.SharedEtcd(t).URL(prefix(t)))
	p.Prints(0, "conformance --run tokens/", "etcd store", "0 failed")
	if out := p.Prints(0, "list"); strings.Contains(out, "held") {
		t.Errorf("the suite has left a lease held: %s", out)
	}
}

// TestCommandCluster is of a URL with several hosts.
func TestCommandCluster(t *testing.T) {
	t.Parallel()
	p := program.New(t, servers.SharedEtcdCluster(t).URL(prefix(t)))
	holder := p.Begin("job", "--duration", "5s")
	holder.Granted()
	p.Prints(0, "list", "job", holder.Token)
	holder.End()
	holder.Ends(0)
	_, hosts, _ := strings.Cut(p.URL, "://")
	hosts, _, _ = strings.Cut(hosts, "/")
	p.Prints(0, "doctor", hosts, "3 members, of which 1 may fail", "0 problems")
}

// TestCommandTakeover: who waits takes over from a holder that is killed, once etcd
// has ended the tenure.
func TestCommandTakeover(t *testing.T) {
	t.Parallel()
	p := program.New(t, servers.SharedEtcd(t).URL(prefix(t)))
	holder := p.Begin("job", "--duration", "3s")
	holder.Granted()
	// A holder that has crashed on this machine is noticed at once, so that must be
	// switched off to see etcd end the tenure.
	waiter := p.Begin("job", "--duration", "3s", "--no-process-check")
	scene.Eventually(t, "the second waits", func() bool { return strings.Contains(waiter.Said(), "waiting for lease") })
	began := time.Now()
	if err := holder.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	waiter.Granted()
	if took := time.Since(began); took < time.Second || took > 10*time.Second {
		t.Errorf("taken over after %v, from a lease of 3 s", took)
	}
	if len(waiter.Token) < len(holder.Token) || len(waiter.Token) == len(holder.Token) && waiter.Token <= holder.Token {
		t.Errorf("token %s follows %s", waiter.Token, holder.Token)
	}
	waiter.End()
	waiter.Ends(0)
}

// TestCommandOutage: an etcd that is away for less than the lease costs nothing; of
// one that is away for longer the holder stops in time, and then waits for it.
func TestCommandOutage(t *testing.T) {
	t.Parallel()
	e := servers.OwnEtcd(t, servers.WithPassword())
	p := program.New(t, e.URL(prefix(t)))
	stop := func() {
		t.Helper()
		servers.Must(t, e.Stop(t.Context(), 0))
	}
	start := func() {
		t.Helper()
		servers.Must(t, e.Start(t.Context(), 0))
		servers.Must(t, e.ReadyAt(t.Context(), 0))
	}
	brief := p.Begin("brief", "--duration", "30s")
	brief.Granted()
	long := p.Begin("long", "--duration", "4s", "--json")
	long.Granted()
	stop()
	gone := time.Now()
	long.Ends(80)
	renewal, stopped := long.Event("renew_failed"), long.Event("child_exit")
	if renewal.Time.IsZero() || renewal.Cause == "" {
		t.Errorf("nobody was told that the lease is not renewed:\n%s", long.Said())
	}
	if took := stopped.Time.Sub(gone); stopped.Time.IsZero() || took > 4*time.Second {
		t.Errorf("the command was stopped %v after the end of etcd, its lease is of 4 s", took)
	}
	// One that begins now waits a while; and one that does not wait says what is wrong.
	late := p.Begin("long", "--duration", "25s")
	p.Prints(69, "get brief", "cannot be reached")
	start()
	late.Granted()
	late.End()
	late.Ends(0)
	if s := late.Said(); !strings.Contains(s, "still trying") {
		t.Errorf("nobody was told that etcd is down:\n%s", s)
	}
	p.Prints(0, "get brief", "held", brief.Token)
	brief.End()
	brief.Ends(0)
	p.Prints(2, "get brief", "free")
	p.Prints(2, "get long", "free")
}

// TestCommandSignal: an interrupted command releases its lease.
func TestCommandSignal(t *testing.T) {
	t.Parallel()
	p := program.New(t, servers.SharedEtcd(t).URL(prefix(t)))
	holder := p.Begin("job", "--duration", "30s")
	holder.Granted()
	if err := holder.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	holder.Ends(128 + int(syscall.SIGTERM))
	p.Prints(2, "get job", "free")
}

// TestCommandDenied: the exit codes of what a person gets wrong.
func TestCommandDenied(t *testing.T) {
	t.Parallel()
	c := newCourt(t)
	reader := program.New(t, c.user("reader"))
	c.grant("reader", c.prefix, 0) // read
	reader.Prints(2, "get job", "free")
	reader.Prints(69, "run job -- true", "permission denied", c.command())
	program.New(t, c.login("reader", "wr0ng")).Prints(69, "get job", "does not accept the user name or the password")
	program.New(t, c.login("", "")).Prints(69, "list", "wants a user and a password")
	bad := program.New(t, strings.Replace(c.login("reader", "12345"), "12345@", "12345/678@", 1))
	for _, command := range []string{"get job", "list", "doctor", "doctor -o json", "run --json job -- true", "conformance"} {
		out, stderr, code := bad.Run(command)
		if code != 64 || strings.Contains(out+stderr, "678") {
			t.Errorf("%s: %d, %s%s", command, code, out, stderr)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := c.root.Get(ctx, c.prefix); err != nil {
		t.Error(err)
	}
}
