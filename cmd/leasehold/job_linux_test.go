package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// place is where a test works: a folder that is a store, and one for files. At
// the end no process that knows of it may be left.
type place struct {
	t     *testing.T
	dir   string
	store string
}

func newPlace(t *testing.T) *place {
	t.Parallel()
	p := &place{t: t, dir: t.TempDir()}
	leases := filepath.Join(p.dir, "leases")
	if err := os.Mkdir(leases, 0o700); err != nil {
		t.Fatal(err)
	}
	p.store = (&url.URL{Scheme: "hang", Path: leases}).String()
	t.Cleanup(func() {
		var left []int
		for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
			if left = p.processes(); len(left) == 0 {
				return
			}
		}
		for _, pid := range left {
			line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			t.Errorf("process %d is left: %q", pid, bytes.ReplaceAll(line, []byte{0}, []byte{' '}))
			syscall.Kill(pid, syscall.SIGKILL)
		}
	})
	return p
}

// processes are those whose environment names the place.
func (p *place) processes() (pids []int) {
	all, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, f := range all {
		env, err := os.ReadFile(f)
		if err == nil && bytes.Contains(env, []byte("PLACE="+p.dir+"\x00")) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(f)))
			pids = append(pids, pid)
		}
	}
	return pids
}

func (p *place) path(name string) string { return filepath.Join(p.dir, name) }

func (p *place) read(name string) string {
	b, _ := os.ReadFile(p.path(name))
	return strings.TrimSpace(string(b))
}

func (p *place) number(name string) int {
	n, _ := strconv.Atoi(p.read(name))
	return n
}

func (p *place) until(what string, f func() bool) {
	p.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !f(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			p.t.Fatalf("never: %s", what)
		}
	}
}

func (p *place) untilFile(name string) {
	p.t.Helper()
	p.until(name+" is there", func() bool { return p.read(name) != "" })
}

// hang makes methods of the store hang.
func (p *place) hang(methods ...string) {
	for _, m := range methods {
		if err := os.WriteFile(filepath.Join(p.dir, "leases", m), nil, 0o600); err != nil {
			p.t.Fatal(err)
		}
	}
}

func (p *place) mend(methods ...string) {
	for _, m := range methods {
		os.Remove(filepath.Join(p.dir, "leases", m))
	}
}

// buffer may be read while it is written.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// command is one leasehold.
type command struct {
	*exec.Cmd
	p      *place
	stderr buffer
	done   chan struct{}
	code   int
}

// start runs leasehold in the place, which is also the folder of its command.
func (p *place) start(args ...string) *command {
	p.t.Helper()
	c := &command{Cmd: exec.Command("leasehold", args...), p: p, done: make(chan struct{})}
	c.Dir = p.dir
	c.Env = append(os.Environ(), "LEASEHOLD_STORE="+p.store, "PLACE="+p.dir)
	c.Stderr = &c.stderr
	c.WaitDelay = time.Millisecond // the family may keep standard error open
	if err := c.Start(); err != nil {
		p.t.Fatal(err)
	}
	go func() {
		c.Wait()
		c.code = c.ProcessState.ExitCode()
		if ws := c.ProcessState.Sys().(syscall.WaitStatus); ws.Signaled() {
			c.code = 128 + int(ws.Signal())
		}
		close(c.done)
	}()
	p.t.Cleanup(func() {
		c.Process.Kill()
		<-c.done
	})
	return c
}

// ends waits for the end, which must come with this exit code.
func (c *command) ends(code int) {
	c.p.t.Helper()
	select {
	case <-c.done:
	case <-time.After(20 * time.Second):
		c.p.t.Fatalf("%v does not end", c.Args)
	}
	if c.code != code {
		c.p.t.Errorf("%v: exit code %d, want %d:\n%s", c.Args, c.code, code, c.stderr.String())
	}
}

// events parses --json. Every line must be an object.
func (c *command) events() (events []jsonEvent) {
	c.p.t.Helper()
	for line := range strings.Lines(c.stderr.String()) {
		var e jsonEvent
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			c.p.t.Errorf("not a JSON event: %q: %v", line, err)
		}
		events = append(events, e)
	}
	return events
}

// find returns the last event of a kind.
func (c *command) find(kind string) (found jsonEvent) {
	c.p.t.Helper()
	for _, e := range c.events() {
		if e.Event == kind {
			found = e
		}
	}
	if found.Event == "" {
		c.p.t.Errorf("there is no event %s in\n%s", kind, c.stderr.String())
	}
	return found
}

func dead(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(b), ") Z ")
}

// family is a command with a child of its own. It writes down when it is told to
// stop, and does so or not.
const (
	family = `exec 2>/dev/null; trap 'echo told >told; exit 3' TERM; echo $PPID >watchdog; echo $$ >child; sleep 30 & echo $! >grandchild; while :; do sleep 0.01; done`
	deaf   = `exec 2>/dev/null; trap 'echo told >told' TERM; echo $PPID >watchdog; echo $$ >child; (trap '' TERM; exec sleep 30) & echo $! >grandchild; while :; do sleep 0.01; done`
)

var families = map[string]string{"obedient": family, "deaf": deaf}

// alone fails if any of the family is alive: it is the command of the next
// holder.
const alone = `for who in child grandchild; do if kill -0 $(cat $who) 2>/dev/null; then grep -q ') Z ' /proc/$(cat $who)/stat 2>/dev/null || exit 9; fi; done; date >alone`

func TestKilledWrapper(t *testing.T) {
	for name, script := range families {
		t.Run(name, func(t *testing.T) {
			p := newPlace(t)
			c := p.start("run", "--duration", "30s", "--grace", "1s", "job", "--", "sh", "-c", script)
			p.untilFile("grandchild")
			next := p.start("run", "--json", "job", "--", "sh", "-c", alone)
			p.until("the next one waits", func() bool { return strings.Contains(next.stderr.String(), "blocked") })
			began := time.Now()
			c.Process.Kill()
			next.ends(0)
			if took := time.Since(began); took > 3*time.Second {
				t.Errorf("the next one was let in after %v", took)
			}
			if p.read("told") != "told" {
				t.Error("the command was not told to stop")
			}
		})
	}
}

func TestStoppedWrapper(t *testing.T) {
	for name, script := range families {
		t.Run(name, func(t *testing.T) {
			p := newPlace(t)
			c := p.start("run", "--duration", "1s", "--json", "job", "--", "sh", "-c", script)
			p.untilFile("grandchild")
			next := p.start("run", "--duration", "1s", "--json", "job", "--", "sh", "-c", alone)
			p.until("the next one waits", func() bool { return strings.Contains(next.stderr.String(), "blocked") })
			c.Process.Signal(syscall.SIGSTOP)
			next.ends(0)
			if p.read("told") != "told" {
				t.Error("the command was not told to stop")
			}
			c.Process.Signal(syscall.SIGCONT)
			c.ends(exitLost)
			if e := c.find("exit"); *e.ExitCode != exitLost || !strings.Contains(e.Cause, "stopped in time") {
				t.Errorf("%+v", e)
			}
		})
	}
}

func TestWatchdogKilled(t *testing.T) {
	p := newPlace(t)
	c := p.start("run", "--duration", "30s", "job", "--", "sh", "-c", family)
	p.untilFile("grandchild")
	syscall.Kill(p.number("watchdog"), syscall.SIGKILL)
	<-c.done
	if c.code != 137 && c.code != exitInternal { // the latter if it had not yet said that it has started the command
		t.Errorf("exit code %d", c.code)
	}
	if !dead(p.number("child")) || !dead(p.number("grandchild")) {
		t.Error("the command has survived")
	}
	if !strings.Contains(c.stderr.String(), "the watchdog was killed") {
		t.Error(c.stderr.String())
	}
	p.start("run", "--no-wait", "job", "--", "true").ends(0)
}

// The watchdog dies as soon as the command runs, perhaps before it could say so.
// What the command has started must not be there when the lease is given back.
func TestWatchdogKilledAtOnce(t *testing.T) {
	for range 10 {
		t.Run("", func(t *testing.T) {
			p := newPlace(t)
			c := p.start("run", "--duration", "30s", "job", "--", "sh", "-c", `sleep 30 & echo $! >grandchild; kill -9 $PPID; wait`)
			<-c.done
			if c.code != 137 && c.code != exitInternal {
				t.Errorf("exit code %d:\n%s", c.code, c.stderr.String())
			}
			if !dead(p.number("grandchild")) {
				t.Error("what the command had started has survived")
			}
		})
	}
}

// Where wrapper and watchdog are both killed, what the command had started is
// nobody's any more. It keeps the lease taken while it is there.
func TestBothKilled(t *testing.T) {
	p := newPlace(t)
	c := p.start("run", "--duration", "30s", "job", "--", "sh", "-c", family)
	p.untilFile("grandchild")
	syscall.Kill(p.number("watchdog"), syscall.SIGKILL)
	c.Process.Kill()
	p.until("the command is dead", func() bool { return dead(p.number("child")) })
	if dead(p.number("grandchild")) {
		t.Skip("the wrapper was quicker")
	}
	p.start("run", "--no-wait", "job", "--", "true").ends(exitHeld)
	next := p.start("run", "job", "--", "sh", "-c", alone)
	syscall.Kill(p.number("grandchild"), syscall.SIGKILL)
	next.ends(0)
}

func TestProcessCheckOff(t *testing.T) {
	p := newPlace(t)
	c := p.start("run", "--duration", "1s", "job", "--", "sh", "-c", family)
	p.untilFile("grandchild")
	c.Process.Kill()
	p.until("it is dead", func() bool { return dead(p.number("child")) })
	p.start("run", "--no-wait", "--no-process-check", "job", "--", "true").ends(exitHeld)
	p.start("run", "--no-process-check", "job", "--", "true").ends(0)
}

func TestHungStore(t *testing.T) {
	for name, script := range families {
		t.Run(name, func(t *testing.T) {
			p := newPlace(t)
			const duration, grace = 3 * time.Second, 800 * time.Millisecond
			c := p.start("run", "--duration", duration.String(), "--grace", grace.String(), "--json", "job", "--", "sh", "-c", script)
			p.untilFile("grandchild")
			p.hang("renew", "get", "release", "acquire")
			hung := time.Now()
			p.until("all are dead", func() bool { return dead(p.number("child")) && dead(p.number("grandchild")) })
			if took := time.Since(hung); took > duration+time.Second {
				t.Errorf("dead %v after the last renewal, or later", took)
			}
			c.ends(exitLost)
			if p.read("told") != "told" {
				t.Error("the command was not told to stop")
			}
			stopping, exit := c.find("stopping"), c.find("exit")
			if left := *stopping.RemainingMS; left <= 0 || left > grace.Milliseconds() {
				t.Errorf("it was told to stop %dms before it was killed", left)
			}
			if !strings.Contains(exit.Cause, "not renewed in time") || !strings.Contains(exit.Cause, "did not answer") {
				t.Errorf("the cause is %q", exit.Cause)
			}
			if script == family && *c.find("child_exit").ExitCode != 3 {
				t.Errorf("%+v", c.find("child_exit"))
			}
		})
	}
}

func TestTakenAway(t *testing.T) {
	p := newPlace(t)
	c := p.start("run", "--duration", "30s", "--json", "job", "--", "sh", "-c", family)
	p.untilFile("grandchild")
	out := p.start("release", "--force", "--yes", "--now", "job")
	out.ends(0)
	c.ends(exitLost)
	if e := c.find("stopping"); time.Since(e.Time) > 5*time.Second || !strings.Contains(e.Cause, "taken away") {
		t.Errorf("%+v", e)
	}
	p.start("run", "--no-wait", "job", "--", "sh", "-c", alone).ends(0)
}

func TestForceWaitsForItsVictim(t *testing.T) {
	p := newPlace(t)
	const duration = time.Second
	// The victim learns nothing: its store hangs.
	victim := p.start("run", "--duration", duration.String(), "job", "--", "sh", "-c", deaf)
	p.untilFile("grandchild")
	began := time.Now()
	victim.Process.Signal(syscall.SIGSTOP)
	force := p.start("release", "--force", "--yes", "job")
	next := p.start("run", "job", "--", "sh", "-c", alone)
	force.ends(0)
	if took := time.Since(began); took < duration {
		t.Errorf("it waited %v", took)
	}
	next.ends(0)
	victim.Process.Signal(syscall.SIGCONT)
	victim.ends(exitLost)
}

func TestAtLeastFor(t *testing.T) {
	p := newPlace(t)
	began := time.Now()
	c := p.start("run", "--at-least-for", "2s", "--duration", "1s", "--json", "job", "--", "sh", "-c", "echo 1 >ended; exit 5")
	p.untilFile("ended")
	p.start("run", "--no-wait", "job", "--", "true").ends(exitHeld)
	c.ends(5)
	if took := time.Since(began); took < 2*time.Second {
		t.Errorf("kept for %v", took)
	}
	p.start("run", "--no-wait", "job", "--", "true").ends(0)

	// Interrupted, it leaves the lease behind, and nobody takes that for a crash.
	c = p.start("run", "--at-least-for", "1h", "--duration", "1s", "--json", "job", "--", "true")
	p.until("it is kept", func() bool { return strings.Contains(c.stderr.String(), "keeping") })
	c.Process.Signal(syscall.SIGTERM)
	c.ends(0)
	p.start("run", "--no-wait", "job", "--", "true").ends(exitHeld)
	p.start("run", "--wait", "5s", "job", "--", "true").ends(0)
}

func TestInterruptedWait(t *testing.T) {
	p := newPlace(t)
	c := p.start("run", "job", "--", "sh", "-c", family)
	p.untilFile("grandchild")
	for _, s := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT} {
		w := p.start("run", "job", "--", "true")
		p.until("it waits", func() bool { return strings.Contains(w.stderr.String(), "waiting") })
		w.Process.Signal(s)
		w.ends(128 + int(s))
	}
	w := p.start("wait", "job")
	time.Sleep(50 * time.Millisecond)
	w.Process.Signal(syscall.SIGINT)
	w.ends(130)
	c.Process.Signal(syscall.SIGTERM)
	c.ends(3)
	if list, _ := os.ReadDir(p.path("leases")); len(list) != 1 { // its own folder
		t.Errorf("left in the store: %v", list)
	}
}

func TestUnreachableStore(t *testing.T) {
	p := newPlace(t)
	p.hang("acquire", "get", "release")
	c := p.start("run", "--duration", "400ms", "job", "--", "true")
	c.ends(exitUnavailable)
	if s := c.stderr.String(); strings.Count(s, "\n") != 2 || strings.Count(s, "did not answer within 100ms") != 2 {
		t.Error(s)
	}
	c = p.start("run", "--duration", "400ms", "--no-wait", "job", "--", "true")
	c.ends(exitUnavailable)
	c = p.start("run", "--duration", "1h", "job", "--", "true")
	time.Sleep(100 * time.Millisecond)
	c.Process.Signal(syscall.SIGINT)
	c.ends(130)
	p.mend("acquire", "get", "release")

	// One that is already waiting goes on doing so.
	holder := p.start("run", "--duration", "400ms", "job", "--", "sh", "-c", family)
	p.untilFile("grandchild")
	w := p.start("run", "--duration", "400ms", "job", "--", "sh", "-c", alone)
	p.until("it waits", func() bool { return strings.Contains(w.stderr.String(), "waiting") })
	p.hang("acquire")
	holder.Process.Signal(syscall.SIGTERM)
	holder.ends(3)
	p.until("it notices", func() bool { return strings.Contains(w.stderr.String(), "still trying") })
	p.mend("acquire")
	w.ends(0)
}

func TestReleaseFails(t *testing.T) {
	p := newPlace(t)
	p.hang("release")
	c := p.start("run", "--duration", "400ms", "job", "--", "sh", "-c", "exit 6")
	c.ends(6)
	if !strings.Contains(c.stderr.String(), "could not be released") {
		t.Error(c.stderr.String())
	}
}

func TestEvents(t *testing.T) {
	p := newPlace(t)
	c := p.start("run", "--json", "--duration", "300ms", "job", "--", "sh", "-c", "sleep 0.5; exit 4")
	c.ends(4)
	var kinds []string
	for _, e := range c.events() {
		if e.Event != "renewed" || kinds[len(kinds)-1] != "renewed" {
			kinds = append(kinds, e.Event)
		}
		if e.Name != "job" || e.Time.IsZero() {
			t.Errorf("%+v", e)
		}
	}
	if got, want := strings.Join(kinds, " "), "acquired started renewed child_exit ended released exit"; got != want {
		t.Errorf("the events are\n%s, want\n%s", got, want)
	}
	if e := c.find("renewed"); e.Token == 0 || *e.RemainingMS <= 0 || *e.MarginMS <= 0 || *e.ElapsedMS <= 0 {
		t.Errorf("%+v", e)
	}
	if e := c.find("child_exit"); *e.ExitCode != 4 || *e.ElapsedMS < 500 {
		t.Errorf("%+v", e)
	}
}

// Nobody may lose a lease because standard error is not read.
func TestBlockedStandardError(t *testing.T) {
	p := newPlace(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	w.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
	w.Write(make([]byte, 1<<20))
	c := exec.Command("leasehold", "run", "--json", "--duration", "200ms", "job", "--", "sleep", "1")
	c.Env = append(os.Environ(), "LEASEHOLD_STORE="+p.store, "PLACE="+p.dir)
	conn, _ := w.SyscallConn()
	conn.Control(func(fd uintptr) { syscall.SetNonblock(int(fd), false) })
	c.Stderr = w
	began := time.Now()
	err = c.Run()
	w.Close()
	if err != nil || time.Since(began) > 4*time.Second {
		t.Errorf("%v after %v", err, time.Since(began))
	}
}

// A KILL for the group of the outer one reaches what the inner one runs.
func TestNestedDiesWithTheOuter(t *testing.T) {
	p := newPlace(t)
	c := p.start("run", "--duration", "3s", "--json", "outer", "--", "leasehold", "run", "--duration", "30s", "inner", "--", "sh", "-c", deaf)
	p.untilFile("grandchild")
	p.hang("renew")
	hung := time.Now()
	p.until("all are dead", func() bool { return dead(p.number("child")) && dead(p.number("grandchild")) })
	if took := time.Since(hung); took > 4*time.Second {
		t.Errorf("dead %v after the last renewal, or later", took)
	}
	c.ends(exitLost)
}
