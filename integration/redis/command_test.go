package redis_test

import (
	"net/url"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/integration/internal/program"
	"github.com/leasehold/leasehold/integration/internal/scene"
	"github.com/leasehold/leasehold/integration/internal/servers"
)

// TestCommand goes through every subcommand, with a password, on each form of Redis.
func TestCommand(t *testing.T) {
	t.Parallel()
	for how, opts := range map[string][]servers.RedisOption{
		"single":   nil,
		"cluster":  {servers.InCluster()},
		"sentinel": {servers.WithReplicas(1), servers.WithSentinel()},
	} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			c := newCourt(t, opts...)
			_, password := c.r.User()
			p := secretive(t, c.r.URL(c.prefix), password)
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
			waiter := p.Begin("job", "--duration", "30s")
			scene.Eventually(t, "the second waits", func() bool { return strings.Contains(waiter.Said(), "waiting for lease") })
			holder.End()
			holder.Ends(0)
			ended := time.Now()
			waiter.Granted()
			if took := time.Since(ended); took > time.Second {
				t.Errorf("the waiter was woken after %v", took)
			}
			if waiter.Token <= holder.Token { // of equal length until the year 2286
				t.Errorf("token %s follows %s", waiter.Token, holder.Token)
			}
			waiter.End()
			waiter.Ends(0)
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
			scene.Grant(t, open(t, p.URL), backend.Claim{Name: "stuck", Holder: "somebody", Duration: 2 * time.Second})
			p.Prints(75, "release stuck")
			p.Prints(0, "release stuck --force --yes")
			p.Prints(2, "get stuck")
			p.Prints(64, "run --duration 1ms job -- true", "10ms")
			p.Prints(0, "doctor", "redis store: 0 problems")
			p.Prints(0, "doctor -o json", `"problems":0`)
			if how == "single" {
				p.Prints(0, "conformance --run tokens/", "redis store", "0 failed")
			}
			p.quiet()
		})
	}
}

// discreet is a Program whose every text is looked through for a password.
type discreet struct {
	*program.Program
	password string
}

func secretive(t *testing.T, storeURL, password string) *discreet {
	return &discreet{program.New(t, storeURL), password}
}

func (d *discreet) Prints(code int, args string, parts ...string) string {
	d.Helper()
	out, stderr, got := d.Run(args)
	if got != code {
		d.Fatalf("%s ended with %d, want %d\n%s%s", args, got, code, out, stderr)
	}
	for _, part := range parts {
		if !strings.Contains(out+stderr, part) {
			d.Errorf("%s does not say %q:\n%s%s", args, part, out, stderr)
		}
	}
	if strings.Contains(out+stderr, d.password) || strings.Contains(out+stderr, url.QueryEscape(d.password)) {
		d.Errorf("%s shows the password:\n%s%s", args, out, stderr)
	}
	if strings.Contains(stderr, ".go:") {
		d.Errorf("%s shows what the client logs:\n%s", args, stderr)
	}
	return out
}

// quiet checks what a command is told that runs under a lease.
func (d *discreet) quiet() {
	d.Helper()
	out, stderr, _ := d.Run("run env -- env")
	told := ""
	for line := range strings.Lines(out) {
		if value, ok := strings.CutPrefix(line, "LEASEHOLD_STORE="); ok {
			told = value
		}
	}
	if told == "" || strings.Contains(out+stderr, d.password) {
		d.Errorf("a command is told of the store %q, and of its password: %t", told, strings.Contains(out+stderr, d.password))
	}
}

// TestCommandOverlap: of many runs at once only one is at work at a time, though one
// is killed.
func TestCommandOverlap(t *testing.T) {
	t.Parallel()
	p := program.New(t, servers.SharedRedis(t).URL(prefix(t)))
	dir := t.TempDir()
	// mkdir fails if somebody else is there.
	const runs = 6
	codes := make(chan string, runs)
	for range runs {
		go func() {
			c := p.Command("run", "--duration", "10s", "job", "--", "sh", "-c", "mkdir "+dir+"/in || exit 9; sleep 0.05; rmdir "+dir+"/in || exit 9")
			out, err := c.CombinedOutput()
			if err != nil {
				codes <- err.Error() + ": " + string(out)
				return
			}
			codes <- ""
		}()
	}
	for range runs {
		if failed := scene.Await(t, "a run ends", codes); failed != "" {
			t.Errorf("two were at work at once: %s", failed)
		}
	}
	p.Prints(2, "get job", "free")
}

// TestCommandTakeover: who waits takes over from a holder that is killed, once Redis
// has ended the tenure.
func TestCommandTakeover(t *testing.T) {
	t.Parallel()
	p := program.New(t, servers.SharedRedis(t).URL(prefix(t)))
	const duration = 1500 * time.Millisecond
	holder := p.Begin("job", "--duration", duration.String())
	holder.Granted()
	// A holder that has crashed on this machine is noticed at once, so that must be
	// switched off to see Redis end the tenure.
	waiter := p.Begin("job", "--duration", "3s", "--no-process-check")
	scene.Eventually(t, "the second waits", func() bool { return strings.Contains(waiter.Said(), "waiting for lease") })
	began := time.Now()
	if err := holder.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	waiter.Granted()
	if took := time.Since(began); took < duration/2 || took > 3*duration {
		t.Errorf("taken over after %v, from a lease of %v", took, duration)
	}
	if waiter.Token <= holder.Token {
		t.Errorf("token %s follows %s", waiter.Token, holder.Token)
	}
	waiter.End()
	waiter.Ends(0)
}

// TestCommandOutage: a Redis that is away for less than the lease, and has kept it,
// costs nothing; of one that is away for longer the holder stops in time.
func TestCommandOutage(t *testing.T) {
	t.Parallel()
	// Not with a password: what scripts have done, Redis 7.0 reads from its file as its
	// default user, who then may not.
	c := &court{t, mine(t, servers.WithPersistence()), prefix(t)}
	p := secretive(t, c.r.URL(c.prefix), ".go:")
	brief := p.Begin("brief", "--duration", "30s")
	brief.Granted()
	long := p.Begin("long", "--duration", "2s", "--json")
	long.Granted()
	servers.Must(t, c.r.Stop(t.Context(), 0))
	gone := time.Now()
	p.Prints(69, "get brief", "nobody listens at "+c.r.Addrs()[0])
	p.Prints(69, "list", "nobody listens at "+c.r.Addrs()[0])
	p.Prints(69, "run --no-wait job -- true", "nobody listens at")
	p.Prints(69, "doctor", "nobody listens at")
	long.Ends(80)
	renewal, stopped := long.Event("renew_failed"), long.Event("child_exit")
	if renewal.Time.IsZero() || renewal.Cause == "" {
		t.Errorf("nobody was told that the lease is not renewed:\n%s", long.Said())
	}
	if took := stopped.Time.Sub(gone); stopped.Time.IsZero() || took > 2*time.Second {
		t.Errorf("the command was stopped %v after the end of Redis, its lease is of 2 s", took)
	}
	late := p.Begin("long", "--duration", "25s")
	scene.Pass(t, time.Second)
	servers.Must(t, c.r.Start(t.Context(), 0))
	servers.Must(t, c.r.ReadyAt(t.Context(), 0))
	late.Granted()
	late.End()
	late.Ends(0)
	if said := late.Said() + long.Said(); strings.Contains(said, ".go:") {
		t.Errorf("what the client logs is shown:\n%s", said)
	}
	p.Prints(0, "get brief", "held", brief.Token)
	// For a second the client of one that has seen many refusals does not try again.
	scene.Pass(t, 1500*time.Millisecond)
	brief.End()
	brief.Ends(0)
	p.Prints(2, "get brief", "free")
}

// TestCommandSignal: an interrupted command releases its lease.
func TestCommandSignal(t *testing.T) {
	t.Parallel()
	p := program.New(t, servers.SharedRedis(t).URL(prefix(t)))
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
	reader := secretive(t, c.user("reader", append(lacking(c.rule(), "set"), "+info")...), "s3cret")
	reader.Prints(2, "get job", "free")
	reader.Prints(69, "run job -- true", "permission denied", "ACL SETUSER")
	reader.Prints(1, "doctor", "permissions", "not allowed", "ACL SETUSER")
	wrong := secretive(t, c.login("reader", "wr0ng"), "wr0ng")
	for _, command := range []string{"get job", "list", "wait job --timeout 20s", "run --wait 20s job -- true", "run --json job -- true"} {
		wrong.Prints(69, command, "does not accept the user name or the password")
	}
	wrong.Prints(1, "doctor", "does not accept the user name or the password")
	secretive(t, c.login("", ""), "s3cret").Prints(69, "list", "wants a password")
	for _, bad := range []string{
		strings.Replace(c.login("reader", "12345"), "12345@", "12345/s3cret@", 1),
		strings.Replace(c.login("reader", "12345"), "12345@", "12345?s3cret@", 1),
		strings.Replace(c.login("reader", "12345"), "12345@", "12345#s3cret@", 1),
		with(c.login("reader", "12s3cret"), "nonsense", "1"),
		with(c.login("reader", "12s3cret"), "read_timeout", "soon"),
		with(c.login("reader", "12s3cret"), "cluster", "perhaps"),
		strings.Replace(c.login("reader", "12s3cret"), "/0?", "/jobs?", 1),
		strings.Replace(c.login("reader", "12s3cret"), "redis://", "redis:", 1),
		strings.Replace(c.login("reader", "12s3cret"), ":"+port(c.r.Addrs()[0]), ":nonsense", 1),
	} {
		p := secretive(t, bad, "s3cret")
		for _, command := range []string{"get job", "list", "doctor", "doctor -o json", "run --json job -- true", "conformance"} {
			p.Prints(64, command)
		}
	}
}

func port(addr string) string { return addr[strings.LastIndexByte(addr, ':')+1:] }
