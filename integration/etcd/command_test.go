package etcd_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/integration/internal/servers"
)

// built is the command, built once for all tests.
var built = sync.OnceValues(func() (string, error) {
	bin, err := filepath.Abs("../../.cache/leasehold-for-etcd")
	if err != nil {
		return "", err
	}
	build := exec.Command("go", "build", "-o", bin, ".")
	build.Dir = "../../cmd/leasehold"
	build.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=")
	if out, err := build.CombinedOutput(); err != nil {
		return "", errors.New(string(out))
	}
	return bin, nil
})

// program is the command with a store.
type program struct {
	*testing.T
	bin, url string
}

func newProgram(t *testing.T, storeURL string) *program {
	t.Helper()
	bin, err := built()
	if err != nil {
		t.Fatal(err)
	}
	return &program{t, bin, storeURL}
}

func (p *program) command(args ...string) *exec.Cmd {
	c := exec.CommandContext(p.Context(), p.bin, args...)
	c.Env = append(os.Environ(), "LEASEHOLD_STORE="+p.url)
	return c
}

// run runs the command to its end.
func (p *program) run(args ...string) (stdout, stderr string, code int) {
	p.Helper()
	c := p.command(args...)
	var out, err bytes.Buffer
	c.Stdout, c.Stderr = &out, &err
	var exit *exec.ExitError
	switch failed := c.Run(); {
	case errors.As(failed, &exit):
		code = exit.ExitCode()
	case failed != nil:
		p.Fatal(failed)
	}
	return out.String(), err.String(), code
}

// prints runs the command, which must end with code, print all of parts and no
// password.
func (p *program) prints(code int, args []string, parts ...string) string {
	p.Helper()
	out, err, got := p.run(args...)
	if got != code {
		p.Fatalf("%s ended with %d, want %d\n%s%s", args, got, code, out, err)
	}
	for _, part := range parts {
		if !strings.Contains(out+err, part) {
			p.Fatalf("%s does not say %q:\n%s%s", args, part, out, err)
		}
	}
	p.hides(out + err)
	return out
}

// hides checks that a text does not tell the password.
func (p *program) hides(text string) {
	p.Helper()
	_, rest, _ := strings.Cut(p.url, "://")
	if user, _, ok := strings.Cut(rest, "@"); ok {
		if _, password, _ := strings.Cut(user, ":"); strings.Contains(text, password) {
			p.Errorf("the password is shown:\n%s", text)
		}
	}
}

func args(s string) []string { return strings.Fields(s) }

// job is a command under a lease that ends when its standard input does.
type job struct {
	*program
	cmd    *exec.Cmd
	stderr *os.File
	lines  *bufio.Scanner
	end    func() error
	token  string
}

const untilTold = "echo token $LEASEHOLD_TOKEN $LEASEHOLD_STORE; cat"

// begin starts leasehold run.
func (p *program) begin(flags ...string) *job {
	p.Helper()
	c := p.command(append(append([]string{"run"}, flags...), "--", "sh", "-c", untilTold)...)
	in, err := c.StdinPipe()
	if err != nil {
		p.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		p.Fatal(err)
	}
	stderr, err := os.Create(filepath.Join(p.TempDir(), "stderr"))
	if err != nil {
		p.Fatal(err)
	}
	p.Cleanup(func() { stderr.Close() })
	c.Stderr = stderr
	if err := c.Start(); err != nil {
		p.Fatal(err)
	}
	return &job{program: p, cmd: c, stderr: stderr, lines: bufio.NewScanner(out), end: in.Close}
}

// said is all that leasehold has told.
func (j *job) said() string {
	text, err := os.ReadFile(j.stderr.Name())
	if err != nil {
		j.Fatal(err)
	}
	return string(text)
}

// granted waits until the command runs.
func (j *job) granted() {
	j.Helper()
	started := make(chan bool, 1)
	go func() { started <- j.lines.Scan() }()
	select {
	case ok := <-started:
		fields := strings.Fields(j.lines.Text())
		if !ok || len(fields) != 3 || fields[1] == "0" {
			j.Fatalf("the job says %q\n%s", j.lines.Text(), j.said())
		}
		j.token = fields[1]
		j.hides(fields[2])
		if !strings.HasPrefix(fields[2], "etcd://") {
			j.Errorf("the job is told of the store %q", fields[2])
		}
	case <-time.After(patience):
		j.Fatalf("the job is not started\n%s", j.said())
	}
}

// ends waits until leasehold has ended, which must be with code.
func (j *job) ends(code int) {
	j.Helper()
	done := make(chan struct{})
	go func() { _ = j.cmd.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(patience):
		j.Fatalf("leasehold does not end\n%s", j.said())
	}
	if got := j.cmd.ProcessState.ExitCode(); got != code {
		j.Errorf("leasehold ended with %d, want %d\n%s", got, code, j.said())
	}
	j.hides(j.said())
}

// event is the first of a kind that leasehold run --json has told.
func (j *job) event(kind string) (e struct {
	Time         time.Time
	Event, Cause string
}) {
	j.Helper()
	for line := range strings.Lines(j.said()) {
		if json.Unmarshal([]byte(line), &e) == nil && e.Event == kind {
			return e
		}
	}
	e.Time = time.Time{}
	return e
}

// TestCommand goes through every subcommand, with a password.
func TestCommand(t *testing.T) {
	t.Parallel()
	e := servers.OwnEtcd(t, servers.WithPassword())
	p := newProgram(t, e.URL(prefix(t)))
	p.prints(0, args("list"), "there are no leases")
	p.prints(2, args("get job"), "free")

	holder := p.begin("job", "--duration", "5s", "--metadata", "team=blue")
	holder.granted()
	p.prints(0, args("get job"), "held", holder.token, "team", "blue")
	p.prints(0, args("get -o json job"), `"token":`+holder.token, `"state":"held"`)
	p.prints(0, args("list"), "job", holder.token)
	p.prints(75, args("run --no-wait job -- true"), "is held by")
	p.prints(75, args("wait job --timeout 300ms"))
	p.prints(75, args("release job"), "is held by")

	watch := p.command("watch", "job", "-o", "json")
	events, err := watch.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := watch.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(events)
	state := func() string {
		if !lines.Scan() {
			t.Fatalf("the watch has ended: %v", lines.Err())
		}
		var v struct{ State string }
		if err := json.Unmarshal(lines.Bytes(), &v); err != nil {
			t.Fatal(err)
		}
		return v.State
	}
	if got := state(); got != "held" {
		t.Fatalf("the watch begins with %q", got)
	}
	waited := make(chan int, 1)
	go func() {
		_, _, code := p.run("wait", "job")
		waited <- code
	}()
	holder.end()
	holder.ends(0)
	for state() != "free" {
	}
	select {
	case code := <-waited:
		if code != 0 {
			t.Errorf("wait ended with %d", code)
		}
	case <-time.After(patience):
		t.Fatal("wait does not return")
	}
	watch.Process.Signal(os.Interrupt)
	watch.Wait()
	p.prints(2, args("get job"), "free")
	out := p.prints(0, args("run --json job -- true"), `"event":"acquired"`, `"event":"released"`)
	if out != "" {
		t.Errorf("events are printed to standard output: %s", out)
	}

	// Somebody's live lease, by force.
	_, err = open(t, p.url).Acquire(t.Context(), backend.Claim{Name: "stuck", Holder: "somebody", Duration: 2 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	p.prints(75, args("release stuck"))
	p.prints(0, args("release stuck --force --yes"))
	p.prints(2, args("get stuck"))

	p.prints(64, args("run --duration 1s job -- true"), "the etcd store needs at least 2s")
	p.prints(64, args("list extra arguments"))
}

func TestCommandConformance(t *testing.T) {
	t.Parallel()
	p := newProgram(t, servers.SharedEtcd(t).URL(prefix(t)))
	p.prints(0, args("conformance --run tokens/"), "etcd store", "0 failed")
	if out := p.prints(0, args("list")); strings.Contains(out, "held") {
		t.Errorf("the suite has left a lease held: %s", out)
	}
}

// TestCommandCluster is of a URL with several hosts.
func TestCommandCluster(t *testing.T) {
	t.Parallel()
	p := newProgram(t, servers.SharedEtcdCluster(t).URL(prefix(t)))
	holder := p.begin("job", "--duration", "5s")
	holder.granted()
	p.prints(0, args("list"), "job", holder.token)
	holder.end()
	holder.ends(0)
	_, hosts, _ := strings.Cut(p.url, "://")
	hosts, _, _ = strings.Cut(hosts, "/")
	p.prints(0, args("doctor"), hosts, "3 members, of which 1 may fail", "0 problems")
}

// TestCommandTakeover: who waits takes over from a holder that is killed, once etcd
// has ended the tenure.
func TestCommandTakeover(t *testing.T) {
	t.Parallel()
	p := newProgram(t, servers.SharedEtcd(t).URL(prefix(t)))
	holder := p.begin("job", "--duration", "3s")
	holder.granted()
	// A holder that has crashed on this machine is noticed at once, so that must be
	// switched off to see etcd end the tenure.
	waiter := p.begin("job", "--duration", "3s", "--no-process-check")
	for deadline := time.Now().Add(patience); !strings.Contains(waiter.said(), "waiting for lease"); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the second does not wait:\n%s", waiter.said())
		}
	}
	began := time.Now()
	if err := holder.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	waiter.granted()
	if took := time.Since(began); took < time.Second || took > 10*time.Second {
		t.Errorf("taken over after %v, from a lease of 3 s", took)
	}
	if len(waiter.token) < len(holder.token) || len(waiter.token) == len(holder.token) && waiter.token <= holder.token {
		t.Errorf("token %s follows %s", waiter.token, holder.token)
	}
	waiter.end()
	waiter.ends(0)
}

// TestCommandOutage: an etcd that is away for less than the lease costs nothing; of
// one that is away for longer the holder stops in time, and then waits for it.
func TestCommandOutage(t *testing.T) {
	t.Parallel()
	e := servers.OwnEtcd(t, servers.WithPassword())
	p := newProgram(t, e.URL(prefix(t)))
	stop := func() {
		t.Helper()
		servers.Must(t, e.Stop(t.Context(), 0))
	}
	start := func() {
		t.Helper()
		servers.Must(t, e.Start(t.Context(), 0))
		servers.Must(t, e.ReadyAt(t.Context(), 0))
	}
	brief := p.begin("brief", "--duration", "30s")
	brief.granted()
	long := p.begin("long", "--duration", "4s", "--json")
	long.granted()
	stop()
	gone := time.Now()
	long.ends(80)
	renewal, stopped := long.event("renew_failed"), long.event("child_exit")
	if renewal.Time.IsZero() || renewal.Cause == "" {
		t.Errorf("nobody was told that the lease is not renewed:\n%s", long.said())
	}
	if took := stopped.Time.Sub(gone); stopped.Time.IsZero() || took > 4*time.Second {
		t.Errorf("the command was stopped %v after the end of etcd, its lease is of 4 s", took)
	}
	// One that begins now waits a while; and one that does not wait says what is wrong.
	late := p.begin("long", "--duration", "25s")
	p.prints(69, args("get brief"), "cannot be reached")
	start()
	late.granted()
	late.end()
	late.ends(0)
	if s := late.said(); !strings.Contains(s, "still trying") {
		t.Errorf("nobody was told that etcd is down:\n%s", s)
	}
	p.prints(0, args("get brief"), "held", brief.token)
	brief.end()
	brief.ends(0)
	p.prints(2, args("get brief"), "free")
	p.prints(2, args("get long"), "free")
}

// TestCommandSignal: an interrupted command releases its lease.
func TestCommandSignal(t *testing.T) {
	t.Parallel()
	p := newProgram(t, servers.SharedEtcd(t).URL(prefix(t)))
	holder := p.begin("job", "--duration", "30s")
	holder.granted()
	if err := holder.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	holder.ends(128 + int(syscall.SIGTERM))
	p.prints(2, args("get job"), "free")
}

// TestCommandDenied: the exit codes of what a person gets wrong.
func TestCommandDenied(t *testing.T) {
	t.Parallel()
	c := newCourt(t)
	reader := newProgram(t, c.user("reader"))
	c.grant("reader", c.prefix, 0) // read
	reader.prints(2, args("get job"), "free")
	reader.prints(69, args("run job -- true"), "permission denied", c.command())
	newProgram(t, c.login("reader", "wr0ng")).prints(69, args("get job"), "does not accept the user name or the password")
	newProgram(t, c.login("", "")).prints(69, args("list"), "wants a user and a password")
	bad := newProgram(t, strings.Replace(c.login("reader", "12345"), "12345@", "12345/678@", 1))
	for _, command := range []string{"get job", "list", "doctor", "doctor -o json", "run --json job -- true", "conformance"} {
		out, stderr, code := bad.run(args(command)...)
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
