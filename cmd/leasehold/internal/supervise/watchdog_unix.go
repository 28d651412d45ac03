//go:build unix

package supervise

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leasehold/leasehold/cmd/leasehold/internal/procs"
	"github.com/leasehold/leasehold/internal/boottime"
)

// The watchdog is this same program, started as
//
//	leasehold __watchdog ORDERS REPORTS -- command args…
//
// with the numbers of the two pipes it talks by. It runs from here, before the
// packages that the rest of the program needs are initialized, so that it is
// up at once and stays small.
const watchdogArg = "__watchdog"

func init() {
	if a := os.Args; len(a) > 5 && a[1] == watchdogArg && a[4] == "--" {
		orders, err1 := strconv.Atoi(a[2])
		reports, err2 := strconv.Atoi(a[3])
		if err1 == nil && err2 == nil && unix.Getpgrp() == os.Getpid() {
			os.Exit(watchdogMain(orders, reports, a[5:]))
		}
	}
}

type watchdog struct {
	watch
	argv    []string
	orders  int // the wrapper's orders; does not block
	reports int // to the wrapper; does not block, so a stopped wrapper holds nothing up
	wakeR   int // something happened, look at everything
	wakeW   int
	partial []byte // of an order
	child   int    // the process that runs the command, 0 before and after
	alone   bool
	timer   boottime.Timer
	armed   time.Duration
}

func watchdogMain(orders, reports int, argv []string) int {
	// The kernel kills the command when the thread that started it is gone
	// (Pdeathsig); this one lives as long as the process.
	runtime.LockOSThread()
	w := &watchdog{argv: argv, orders: orders, reports: reports, alone: true}
	var wake [2]int
	if err := unix.Pipe(wake[:]); err != nil {
		return 1
	}
	w.wakeR, w.wakeW = wake[0], wake[1]
	for _, fd := range []int{w.orders, w.reports, w.wakeR, w.wakeW} {
		unix.CloseOnExec(fd)
		if err := unix.SetNonblock(fd, true); err != nil {
			return 1
		}
	}
	w.catchSignals()
	rename()
	adoptOrphans()

	for {
		w.readOrders()
		w.reap()
		act, next := w.due(boottime.Now())
		switch act {
		case leave:
			return 0
		case kill:
			w.told = true
			w.report(report{Killing: true})
			if w.child != 0 {
				_ = unix.Kill(w.child, unix.SIGKILL) // no time is lost on the rest
			}
			procs.KillDescendants(os.Getpid(), w.meant)
			_ = unix.Kill(-os.Getpid(), unix.SIGKILL)
		case tell:
			w.told = true
			w.report(report{Ending: true})
			signalGroup(unix.SIGTERM, os.Getpid(), w.meant)
			signalGroup(unix.SIGCONT, os.Getpid(), w.meant) // a suspended process is told nothing
			continue
		}
		if w.child == 0 && w.running {
			// Not everybody whose end matters is a child of ours.
			if look := boottime.Now() + 20*time.Millisecond; next == 0 || look < next {
				next = look
			}
		}
		w.wakeAt(next)
		w.wait()
	}
}

// meant reports whether a process that descends from this one must end: all must
// when the lease does, and else all but daemons.
func (w *watchdog) meant(p procs.Process) bool {
	return w.told || w.stopping || w.orphaned || !daemon(p)
}

// catchSignals keeps the signals that are meant for the group from ending the
// watchdog. They are caught, not ignored: what is ignored stays so in the
// command. What was ignored from the start (nohup) is to stay so.
func (w *watchdog) catchSignals() {
	ignored := make([]os.Signal, 0, 2)
	for _, s := range []os.Signal{unix.SIGHUP, unix.SIGINT} {
		if signal.Ignored(s) {
			ignored = append(ignored, s)
		}
	}
	drain := make(chan os.Signal, 1)
	signal.Notify(drain)
	if len(ignored) > 0 {
		signal.Ignore(ignored...)
	}
	children := make(chan os.Signal, 1)
	signal.Notify(children, unix.SIGCHLD)
	go func() {
		for {
			select {
			case <-drain:
			case <-children:
				w.wake()
			}
		}
	}()
}

func (w *watchdog) wake() { _, _ = unix.Write(w.wakeW, []byte{0}) }

func (w *watchdog) wakeAt(at time.Duration) {
	if at == w.armed {
		return
	}
	if w.timer != nil {
		w.timer.Stop()
		w.timer = nil
	}
	if w.armed = at; at != 0 {
		w.timer = boottime.Clock{}.AfterFunc(at-boottime.Now(), w.wake)
	}
}

// wait blocks until there is something to look at.
func (w *watchdog) wait() {
	fds := []unix.PollFd{{Fd: int32(w.wakeR), Events: unix.POLLIN}, {Fd: int32(w.orders), Events: unix.POLLIN}}
	if w.orphaned {
		fds = fds[:1]
	}
	_, _ = unix.Poll(fds, -1) // an error is an interruption: look, and wait again
	var buf [64]byte
	for {
		if n, err := unix.Read(w.wakeR, buf[:]); n <= 0 || err != nil {
			break
		}
	}
	if w.armed <= boottime.Now() {
		w.armed = 0 // it went off
	}
}

// readOrders follows all orders given up to now, so that no decision is taken
// on an old plan when a newer one is there: the watchdog may have been stopped
// for a while.
func (w *watchdog) readOrders() {
	var buf [4096]byte
	for !w.orphaned {
		n, err := unix.Read(w.orders, buf[:])
		switch {
		case n > 0:
			w.partial = append(w.partial, buf[:n]...)
			w.follow()
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			return
		default:
			w.orphan(boottime.Now())
		}
	}
}

func (w *watchdog) follow() {
	for {
		line, rest, ok := bytes.Cut(w.partial, []byte("\n"))
		if !ok {
			return
		}
		w.partial = rest
		var o order
		if err := json.Unmarshal(line, &o); err != nil {
			continue
		}
		switch {
		case o.Plan != nil:
			w.plan = Plan{Term: ownTime(o.Plan.Term), Kill: ownTime(o.Plan.Kill)}
		case o.Stopping:
			w.stopping = true
		case o.Start != nil && w.child == 0:
			w.start(o.Start.Env)
		}
	}
}

func (w *watchdog) start(env []string) {
	path, err := LookPath(w.argv[0])
	if err != nil {
		w.report(report{Failed: &failure{NotFound: NotFound(err), Text: err.Error()}})
		return
	}
	pid, err := syscall.ForkExec(path, w.argv, &syscall.ProcAttr{
		Env:   merge(os.Environ(), env),
		Files: []uintptr{0, 1, 2}, // and whatever else the wrapper was started with
		Sys:   commandAttr(),
	})
	if err != nil {
		// "No such file" is the interpreter that a script asks for.
		w.report(report{Failed: &failure{Text: fmt.Sprintf("%s cannot be executed: %v", path, err)}})
		return
	}
	w.child, w.running, w.alone = pid, true, false
	w.report(report{Started: pid})
}

// reap collects what has ended in the group.
func (w *watchdog) reap() {
	if !w.running {
		return
	}
	var exited *exitStatus
	childless := false
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG|syscall.WUNTRACED, nil)
		if err == syscall.EINTR {
			continue
		}
		if pid <= 0 {
			childless = err == syscall.ECHILD
			break
		}
		switch {
		case pid != w.child:
		case status.Stopped():
			w.report(report{Paused: int(status.StopSignal())})
		default:
			w.child, exited = 0, &exitStatus{status}
		}
	}
	if w.child == 0 && (childless || alone(w.meant)) {
		w.running, w.alone = false, true
	}
	if exited != nil || w.alone {
		w.report(report{Exited: exited, Alone: w.alone})
	}
}

// report tells the wrapper. If it does not listen it is gone, which shows
// elsewhere, or stopped.
func (w *watchdog) report(r report) {
	r.At = machineTime(boottime.Now())
	line, err := json.Marshal(r)
	if err == nil {
		_, _ = unix.Write(w.reports, append(line, '\n'))
	}
}
