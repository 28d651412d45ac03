//go:build unix

package supervise

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leasehold/leasehold/internal/boottime"
)

// A test that needs to kill the wrapper runs this program as one:
// WRAPPER="duration grace" and the command as arguments.
func TestMain(m *testing.M) {
	os.Setenv("GORACE", "atexit_sleep_ms=0 "+os.Getenv("GORACE")) // each process would take a second to end
	if w := os.Getenv("WRAPPER"); w != "" {
		os.Unsetenv("WRAPPER")
		d, g0, _ := strings.Cut(w, " ")
		duration, _ := time.ParseDuration(d)
		grace, _ := time.ParseDuration(g0)
		g, err := New(os.Args[1:])
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		p := NewPlan(duration, grace, duration)
		g.SetPlan(p)
		ctx, cancel := context.WithCancelCause(context.Background())
		boottime.Clock{}.AfterFunc(p.Term-boottime.Now(), func() { cancel(errTestOver) })
		fmt.Println("watchdog", g.Leader().PID)
		fmt.Printf("end %+v\n", g.Run(ctx, command()))
		g.Close()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

var errTestOver = errors.New("lease is over")

func command() Command {
	c := Command{
		Signals:  make(chan os.Signal, 16),
		Started:  func(pid int) { fmt.Println("started", pid) },
		Stopping: func(cause error, left time.Duration) {},
	}
	signal.Notify(c.Signals, Signals()...)
	return c
}

// sh runs a shell script under a guard and returns how it ended. The script's
// folder is empty at first. What more does begins when the start was reported,
// which the script itself can overtake.
func sh(t *testing.T, duration, grace time.Duration, script string, more ...func(g *Guard, dir string, cancel func(error))) (Outcome, string, time.Duration) {
	t.Helper()
	dir := t.TempDir()
	g, err := New([]string{"sh", "-c", "cd '" + dir + "'; " + script})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	start := boottime.Now()
	plan := NewPlan(duration, grace, duration)
	g.SetPlan(plan)
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	stop := boottime.Clock{}.AfterFunc(plan.Term-boottime.Now(), func() { cancel(errTestOver) })
	defer stop.Stop()
	c := command()
	defer signal.Stop(c.Signals)
	started, ended, done := make(chan struct{}), make(chan struct{}), make(chan struct{})
	tell := c.Started
	c.Started = func(pid int) { tell(pid); close(started) }
	defer func() { close(ended); <-done }()
	go func() {
		defer close(done)
		select {
		case <-started:
		case <-ended:
			return
		}
		for _, f := range more {
			f(g, dir, cancel)
		}
	}()
	out := g.Run(ctx, c)
	took := boottime.Now() - start
	if !out.Outlived && !g.gone() {
		t.Error("Run returned while the group was alive")
	}
	return out, dir, took
}

func content(dir, name string) string {
	b, _ := os.ReadFile(filepath.Join(dir, name))
	return strings.TrimSpace(string(b))
}

func until(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !f(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Errorf("never: %s", what)
			return
		}
	}
}

func exists(dir, name string) func() bool {
	return func() bool { return content(dir, name) != "" }
}

const long, grace = 20 * time.Second, time.Second

func TestExitCodes(t *testing.T) {
	for _, code := range []int{0, 1, 75, 255} {
		out, _, _ := sh(t, long, grace, fmt.Sprint("exit ", code))
		if out.Status.ExitStatus() != code || out.Stopped != nil || out.Err != nil {
			t.Errorf("exit %d: %+v", code, out)
		}
	}
	out, _, _ := sh(t, long, grace, "kill -TERM $$; sleep 20")
	if out.Status.Signal() != syscall.SIGTERM {
		t.Errorf("killed by TERM: %+v", out)
	}
}

func TestCannotRun(t *testing.T) {
	dir := t.TempDir()
	os.WriteFile(filepath.Join(dir, "plain"), []byte("#!/bin/sh\n"), 0o644)
	os.WriteFile(filepath.Join(dir, "noformat"), []byte("?"), 0o755)
	os.WriteFile(filepath.Join(dir, "nointerpreter"), []byte("#!/no/such/sh\n"), 0o755)
	for name, notFound := range map[string]bool{
		"no-such-command-anywhere":          true,
		filepath.Join(dir, "none"):          true,
		filepath.Join(dir, "plain"):         false,
		filepath.Join(dir, "noformat"):      false,
		filepath.Join(dir, "nointerpreter"): false,
		dir:                                 false,
	} {
		g, err := New([]string{name})
		if err != nil {
			t.Fatal(err)
		}
		out := g.Run(t.Context(), command())
		g.Close()
		if out.Err == nil || out.NotFound != notFound {
			t.Errorf("%s: %+v", name, out)
		}
	}
}

// What the command inherits is what this process was started with: signals as
// they were, no pipes of ours, and the descriptors above 2 that were handed in.
func TestInheritance(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	inheritable(w)
	defer w.Close()
	out, dir, _ := sh(t, long, grace, "ls /proc/self/fd >fds; cat /proc/self/status >status")
	if out.Status != 0 || out.Err != nil {
		t.Fatalf("%+v", out)
	}
	var want, got []int
	open, _ := os.ReadDir("/proc/self/fd")
	for _, e := range open {
		n, _ := strconv.Atoi(e.Name())
		if flags, err := unix.FcntlInt(uintptr(n), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
			want = append(want, n)
		}
	}
	for _, f := range strings.Fields(content(dir, "fds")) {
		n, _ := strconv.Atoi(f)
		got = append(got, n)
	}
	slices.Sort(want)
	slices.Sort(got)
	if i := slices.Index(got, 3); i >= 0 && !slices.Contains(want, 3) {
		got = slices.Delete(got, i, i+1) // the folder that ls reads
	}
	if !slices.Equal(got, want) || len(want) < 4 {
		t.Errorf("the command has the descriptors %v, want %v", got, want)
	}
	signals := func(status, kind string) (n uint64) {
		for line := range strings.Lines(status) {
			if k, v, _ := strings.Cut(line, ":"); k == kind {
				var err error
				if n, err = strconv.ParseUint(strings.TrimSpace(v), 16, 64); err != nil {
					t.Error(err)
				}
			}
		}
		return n
	}
	own, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"SigBlk", "SigIgn", "SigCgt"} {
		n := signals(content(dir, "status"), kind)
		if kind == "SigIgn" {
			n &^= signals(string(own), kind) // what whoever runs the tests has ignored
		}
		if n != 0 {
			t.Errorf("the command starts with %s %016x", kind, n)
		}
	}
}

// over ends the lease when the command is up.
func over(t *testing.T) func(g *Guard, dir string, cancel func(error)) {
	return func(g *Guard, dir string, cancel func(error)) {
		until(t, "command is up", exists(dir, "up"))
		cancel(errTestOver)
	}
}

// brief leaves a command 100 ms to stop in.
const brief = 200 * ms

func TestStops(t *testing.T) {
	out, dir, took := sh(t, long, grace, `trap 'echo told >told; exit 3' TERM; echo 1 >up; while :; do sleep 0.01; done`, over(t))
	if out.Stopped != errTestOver || out.Outlived || out.Status.ExitStatus() != 3 || content(dir, "told") != "told" || took > long/2 {
		t.Errorf("obedient: %+v in %v", out, took)
	}
	// A whole family that does not listen.
	out, _, took = sh(t, long, brief, `trap '' TERM; (trap '' TERM; sleep 30) & (trap '' TERM; (sleep 30) & echo 1 >up; sleep 30)`, over(t))
	if out.Stopped != errTestOver || out.Outlived || took < 100*ms || took > long/2 {
		t.Errorf("deaf: %+v in %v", out, took)
	}
	// One that is suspended hears of it, too.
	out, dir, took = sh(t, long, grace, `trap 'echo told >told; exit 3' TERM; echo 1 >up; kill -STOP $$; while :; do sleep 0.01; done`, over(t))
	if out.Stopped != errTestOver || out.Outlived || content(dir, "told") != "told" || took > long/2 {
		t.Errorf("suspended: %+v in %v", out, took)
	}
	// By the clock, not by the end of the context: that comes late here.
	out, _, took = sh(t, 2*time.Second, 500*ms, `trap '' TERM; echo 1 >up; sleep 30`, func(g *Guard, dir string, cancel func(error)) {
		g.SetPlan(NewPlan(time.Second, 500*ms, time.Second))
	})
	if out.Stopped == nil || took < 900*ms || took > 1400*ms {
		t.Errorf("by the clock: %+v in %v", out, took)
	}
}

func TestLeftoversEndWithTheCommand(t *testing.T) {
	out, dir, took := sh(t, long, grace, `(trap 'echo told >told; exit' TERM; echo >up; while :; do sleep 0.01; done) & while ! [ -e up ]; do :; done; exit 7`)
	if out.Status.ExitStatus() != 7 || out.Stopped != nil || content(dir, "told") != "told" || took > long/2 {
		t.Errorf("obedient: %+v in %v", out, took)
	}
	out, _, took = sh(t, long, brief, `(trap '' TERM; echo >up; sleep 20) & while ! [ -e up ]; do :; done; exit 7`)
	if out.Status.ExitStatus() != 7 || out.Stopped != nil || took < 100*ms || took > long/2 {
		t.Errorf("deaf: %+v in %v", out, took)
	}
	// A daemon that leaves the group is not ours any more.
	out, dir, took = sh(t, long, grace, `setsid sh -c 'echo $$ >daemon; exec sleep 20' & while ! [ -s daemon ]; do :; done; exit 7`)
	pid, _ := strconv.Atoi(content(dir, "daemon"))
	if out.Status.ExitStatus() != 7 || took > long/2 || syscall.Kill(pid, syscall.SIGKILL) != nil {
		t.Errorf("daemon %d: %+v in %v", pid, out, took)
	}
}

// timeout(1) runs its command in a group of its own, as some others do.
func TestThoseWhoLeaveTheGroup(t *testing.T) {
	t.Setenv("WORK", `trap "" TERM; echo $$ >up; while :; do sleep 0.01; done`)
	for what, script := range map[string]string{
		"timeout":             `exec timeout 60 sh -c "$WORK"`,
		"timeout, with a son": `timeout 60 sh -c "$WORK"; :`,
		"job control":         `bash -mc 'sh -c "$WORK" & wait' 2>&-; :`,
		"an orphan":           `bash -mc 'sh -c "$WORK" &' 2>&-; while ! [ -s up ]; do :; done; trap 'exit 3' TERM; while :; do sleep 0.01; done`,
		"a daemon":            `setsid sh -c "$WORK" & while ! [ -s up ]; do :; done; trap 'exit 3' TERM; while :; do sleep 0.01; done`,
		"setsid":              `exec setsid sh -c "$WORK"`,
	} {
		out, dir, _ := sh(t, long, brief, script, over(t))
		pid, _ := strconv.Atoi(content(dir, "up"))
		if out.Stopped != errTestOver || out.Outlived || alive(pid) {
			t.Errorf("lost, %s: %+v, alive %v", what, out, alive(pid))
		}
		// Likewise when the wrapper or the watchdog is killed.
		cmd, dir, _, child, _ := wrapper(t, long, brief, script)
		pid, _ = strconv.Atoi(content(dir, "up"))
		cmd.Process.Kill()
		until(t, what+": all are gone", func() bool { return !alive(child) && !alive(pid) })
		out, dir, _ = sh(t, long, brief, script, func(g *Guard, dir string, cancel func(error)) {
			until(t, "command is up", exists(dir, "up"))
			syscall.Kill(g.Leader().PID, syscall.SIGKILL)
		})
		pid, _ = strconv.Atoi(content(dir, "up"))
		if what == "a daemon" || what == "setsid" {
			syscall.Kill(pid, syscall.SIGKILL) // it may go on: the lease does
		} else if alive(pid) {
			t.Errorf("watchdog killed, %s: alive", what)
		}
	}
	// A signal reaches a command that has left.
	out, dir, _ := sh(t, long, grace, `exec timeout 60 sh -c "trap 'echo told >told; exit 4' HUP; echo 1 >up; while :; do sleep 0.01; done"`, func(g *Guard, dir string, cancel func(error)) {
		until(t, "command is up", exists(dir, "up"))
		syscall.Kill(os.Getpid(), syscall.SIGHUP)
	})
	if out.Stopped != nil || content(dir, "told") == "" {
		t.Errorf("HUP: %+v, told %q", out, content(dir, "told"))
	}
}

func TestSignalsReachTheGroup(t *testing.T) {
	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2} {
		// The inner shell gets it from the group, not from its parent.
		script := fmt.Sprintf(`trap 'echo 1 >outer' %[1]d; sh -c "trap 'echo 1 >inner; exit 8' %[1]d; echo 1 >ready; while :; do sleep 0.01; done"; exit 9`, s)
		out, dir, _ := sh(t, long, grace, script, func(g *Guard, dir string, cancel func(error)) {
			until(t, "command is up", exists(dir, "ready"))
			syscall.Kill(os.Getpid(), s)
		})
		if out.Status.ExitStatus() != 9 || content(dir, "inner") == "" || content(dir, "outer") == "" {
			t.Errorf("%v: %+v", s, out)
		}
	}
}

func TestWatchdogKilled(t *testing.T) {
	out, dir, took := sh(t, long, grace, `sleep 20 & echo $! >grandchild; echo $$ >child; wait`, func(g *Guard, dir string, cancel func(error)) {
		until(t, "command is up", exists(dir, "child"))
		syscall.Kill(g.Leader().PID, syscall.SIGKILL)
	})
	if out.Exited || out.Stopped != nil || out.Err != nil || took > long/2 {
		t.Errorf("%+v", out)
	}
	for _, who := range []string{"child", "grandchild"} {
		pid, _ := strconv.Atoi(content(dir, who))
		if alive(pid) {
			t.Errorf("the %s is alive", who)
		}
	}
}

func TestWatchdogStopped(t *testing.T) {
	for _, script := range []string{`echo 1 >up; sleep 20`, `trap '' TERM; (trap '' TERM; sleep 20) & echo 1 >up; wait`} {
		out, _, took := sh(t, long, brief, script, func(g *Guard, dir string, cancel func(error)) {
			until(t, "command is up", exists(dir, "up"))
			syscall.Kill(g.Leader().PID, syscall.SIGSTOP)
			cancel(errTestOver)
		})
		if out.Stopped != errTestOver || out.Outlived || took > long/2 {
			t.Errorf("%+v in %v", out, took)
		}
	}
}

// A watchdog that was stopped and goes on finds the newest plan first.
func TestWatchdogGoesOn(t *testing.T) {
	out, _, _ := sh(t, long, grace, `echo 1 >up; while ! [ -e done ]; do sleep 0.01; done; exit 4`, func(g *Guard, dir string, cancel func(error)) {
		until(t, "command is up", exists(dir, "up"))
		soon := NewPlan(300*ms, 200*ms, 300*ms)
		g.SetPlan(soon)
		syscall.Kill(g.Leader().PID, syscall.SIGSTOP)
		until(t, "its time is over", func() bool { return boottime.Now() > soon.Deadline })
		g.SetPlan(NewPlan(long, grace, long))
		syscall.Kill(g.Leader().PID, syscall.SIGCONT)
		// It has to answer before the command ends.
		os.WriteFile(filepath.Join(dir, "done"), nil, 0o644)
	})
	if out.Status.ExitStatus() != 4 || out.Stopped != nil {
		t.Errorf("%+v", out)
	}
}

func alive(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(b), ") Z ")
}

// wrapper runs this program as a wrapper and returns the numbers of its
// watchdog and command.
func wrapper(t *testing.T, duration, grace time.Duration, script string) (cmd *exec.Cmd, dir string, watchdog, child int, output func() string) {
	t.Helper()
	dir = t.TempDir()
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd = exec.Command(os.Args[0], "sh", "-c", "cd '"+dir+"'; "+script)
	cmd.Env = append(os.Environ(), fmt.Sprintf("WRAPPER=%v %v", duration, grace))
	cmd.Stdout, cmd.Stderr = log, os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	output = func() string { return content(dir, "log") }
	until(t, "command is up", exists(dir, "up"))
	until(t, "started", func() bool { return strings.Contains(output(), "started") })
	fmt.Sscanf(output(), "watchdog %d\nstarted %d", &watchdog, &child)
	t.Cleanup(func() {
		syscall.Kill(-watchdog, syscall.SIGKILL)
		cmd.Process.Kill()
		cmd.Wait()
	})
	return cmd, dir, watchdog, child, output
}

const family = `trap 'echo told >>told; exit' TERM; sleep 30 & echo $! >grandchild; echo 1 >up; while :; do sleep 0.01; done`
const deafFamily = `trap '' TERM; sleep 30 & echo $! >grandchild; echo 1 >up; while :; do sleep 0.01; done`

func TestWrapperKilled(t *testing.T) {
	cmd, dir, watchdog, child, _ := wrapper(t, long, grace, family)
	grandchild, _ := strconv.Atoi(content(dir, "grandchild"))
	start := time.Now()
	cmd.Process.Kill()
	cmd.Wait()
	until(t, "all are gone", func() bool { return !alive(child) && !alive(grandchild) && !alive(watchdog) })
	if content(dir, "told") != "told" || time.Since(start) > long/2 {
		t.Errorf("told %q, gone after %v", content(dir, "told"), time.Since(start))
	}
	cmd, dir, watchdog, child, _ = wrapper(t, long, 400*ms, deafFamily)
	grandchild, _ = strconv.Atoi(content(dir, "grandchild"))
	start = time.Now()
	cmd.Process.Kill()
	cmd.Wait()
	until(t, "all are gone", func() bool { return !alive(child) && !alive(grandchild) && !alive(watchdog) })
	if took := time.Since(start); took < 200*ms || took > long/2 {
		t.Errorf("deaf ones are gone after %v", took)
	}
}

func TestWrapperStopped(t *testing.T) {
	for _, script := range []string{family, deafFamily} {
		const duration, grace = 2 * time.Second, 800 * ms
		begin := time.Now()
		cmd, dir, _, child, output := wrapper(t, duration, grace, script)
		grandchild, _ := strconv.Atoi(content(dir, "grandchild"))
		cmd.Process.Signal(syscall.SIGSTOP)
		until(t, "all are gone", func() bool { return !alive(child) && !alive(grandchild) })
		if took := time.Since(begin); took > duration+time.Second {
			t.Errorf("gone after %v, duration %v", took, duration)
		}
		if script == family && content(dir, "told") != "told" {
			t.Errorf("told %q", content(dir, "told"))
		}
		time.Sleep(duration)
		cmd.Process.Signal(syscall.SIGCONT)
		cmd.Wait()
		if !strings.Contains(output(), "Outlived:false") || strings.Contains(output(), "Stopped:<nil>") {
			t.Errorf("%s", output())
		}
	}
}

func TestBothKilled(t *testing.T) {
	cmd, _, watchdog, child, _ := wrapper(t, long, grace, `echo 1 >up; exec sleep 30`)
	syscall.Kill(watchdog, syscall.SIGKILL)
	cmd.Process.Kill()
	cmd.Wait()
	until(t, "the command is gone", func() bool { return !alive(child) && !alive(watchdog) })
}
