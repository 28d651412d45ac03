//go:build unix

package supervise

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leasehold/leasehold/cmd/leasehold/internal/procs"
	"github.com/leasehold/leasehold/internal/boottime"
)

// ErrWatchdog is why a command was stopped, or not started, that lost its
// watchdog.
var ErrWatchdog = errors.New("the watchdog was killed")

// ErrLate is why a command was stopped by the watchdog before the wrapper did.
var ErrLate = errors.New("leasehold was suspended, or too slow to renew it")

// Signals are those that are passed on to the command's group, and that must be
// sent to Run's channel for it. What was ignored when this process was started
// (nohup) stays so, here and in the command.
func Signals() []os.Signal {
	signals := []os.Signal{unix.SIGTERM, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2, unix.SIGALRM, unix.SIGWINCH}
	for _, s := range []os.Signal{unix.SIGINT, unix.SIGHUP} {
		if !signal.Ignored(s) {
			signals = append(signals, s)
		}
	}
	return signals
}

// Command is what Run needs to know besides the arguments.
type Command struct {
	Env      []string                              // added to the environment, in place of what it has under these names
	Signals  chan os.Signal                        // Signals are sent here
	Started  func(pid int)                         // called when it runs
	Stopping func(cause error, left time.Duration) // called when it has been told to stop and will be killed when left has passed
}

// Outcome is how a command ended. It ended by itself if Err and Stopped are nil.
type Outcome struct {
	Err      error              // why it never ran
	NotFound bool               // because there is no such program
	Started  bool               //
	Exited   bool               // how it ended is known: Status
	Status   syscall.WaitStatus //
	Stopped  error              // why it was stopped
	Outlived bool               // it, or something it started, was alive after the deadline, or may have been
	Late     time.Duration      // for so long at most; 0 if it still is
	Terminal bool               // it had the terminal to itself: what was typed there (^C) went to it alone
}

// Run runs the command until it ends, but not beyond ctx and the plan: when ctx
// ends, which it does no later than Plan.Term, the command is told to stop, and
// killed at Plan.Kill or when it has used up the grace. It returns when all that
// it started is dead, but no later than soon after the deadline.
//
// When the command has ended by itself, what it left behind is told to stop,
// too, and killed after the grace; only what has a session of its own, a daemon,
// goes on. But when the lease is over, that is killed as well.
func (g *Guard) Run(ctx context.Context, c Command) Outcome {
	if ctx.Err() != nil {
		return Outcome{Stopped: context.Cause(ctx)}
	}
	r := &run{Guard: g, Command: c, tty: controllingTerminal(), kill: make(chan struct{}, 1)}
	defer r.tty.close()
	if r.talks = interactive(); r.talks {
		r.out.Terminal = r.tty.pass(g.id.PID)
	}
	defer r.tty.back(g.id.PID)
	signal.Notify(c.Signals, unix.SIGTSTP, unix.SIGCONT)
	defer func() {
		if r.timer != nil {
			r.timer.Stop()
		}
	}()

	g.order(order{Start: &start{Env: c.Env}})
	r.loop(ctx)
	if r.out.Err == nil || r.out.Err == ErrWatchdog {
		r.verify(ctx)
	}
	if r.out.Stopped == ErrLate && ctx.Err() != nil {
		r.out.Stopped = context.Cause(ctx) // which it learnt a little later
	}
	return r.out
}

type run struct {
	*Guard
	Command
	out    Outcome
	tty    *terminal
	talks  bool // the command is to have the terminal
	timer  boottime.Timer
	kill   chan struct{} // it is time
	killAt time.Duration
	child  int           // the process of the command
	alone  bool          // the watchdog says that it is
	deadBy time.Duration // all were dead, or killed, at this instant
}

// loop goes on until nobody but the watchdog is left in the group, or the
// watchdog is gone.
func (r *run) loop(ctx context.Context) {
	done := ctx.Done()
	var signals <-chan os.Signal // kept until there is somebody to get them
	for {
		select {
		case rep, ok := <-r.reports:
			switch {
			case !ok:
				if !r.out.Started {
					r.out.Err = ErrWatchdog
				}
				return
			case rep.Failed != nil:
				r.out.Err, r.out.NotFound = errors.New(rep.Failed.Text), rep.Failed.NotFound
				return
			case rep.Started != 0:
				r.out.Started, r.child, signals = true, rep.Started, r.Signals
				r.Started(rep.Started)
				if r.out.Stopped != nil {
					r.tell() // it was not there to hear it
				}
			case rep.Paused != 0:
				r.paused(syscall.Signal(rep.Paused))
			case rep.Ending:
				r.stop(ctx, false)
			case rep.Killing:
				r.stop(ctx, false)
				r.deadBy = ownTime(rep.At) // whatever was done here since
			}
			if rep.Exited != nil {
				r.out.Exited, r.out.Status = true, rep.Exited.Wait
				if !rep.Alone && r.out.Stopped == nil {
					r.tell()
					r.killAfter(r.currentPlan().grace())
				}
			}
			if rep.Alone {
				r.alone = true
				if r.deadBy == 0 {
					r.deadBy = ownTime(rep.At)
				}
				_ = r.process.Kill()
				return
			}
		case s := <-signals:
			r.forward(s.(syscall.Signal))
		case <-done:
			done = nil
			r.stop(ctx, true)
		case <-r.kill:
			r.killAll()
		}
	}
}

// stop begins the end of the command, once; tell unless the watchdog did that.
func (r *run) stop(ctx context.Context, tell bool) {
	if r.out.Stopped != nil {
		return
	}
	r.out.Stopped = ErrLate
	if ctx.Err() != nil {
		r.out.Stopped = context.Cause(ctx)
	}
	now := boottime.Now()
	left := max(r.currentPlan().soon(now).Kill-now, 0)
	r.order(order{Stopping: true})
	r.killAfter(left)
	if tell {
		r.tell()
	}
	r.Stopping(r.out.Stopped, left)
}

// tell asks the command, and what it has started, to stop.
func (r *run) tell() {
	r.signal(unix.SIGTERM)
	r.signal(unix.SIGCONT) // a suspended process is told nothing
}

func (r *run) signal(s syscall.Signal) { signalGroup(s, r.id.PID, r.meant) }

// meant reports whether a process must end before the lease is given back: all
// must when the lease is lost, and else all but daemons.
func (r *run) meant(p procs.Process) bool {
	return p.PID != r.id.PID && (r.out.Stopped != nil || p.PID == r.child || !daemon(p))
}

// killAll kills the group and all that are meant.
func (r *run) killAll() {
	now := boottime.Now()
	// If nobody is left to kill, and it is late, the watchdog was quicker: its
	// report, which says when, is on the way.
	overtaken := now > r.currentPlan().Deadline && !r.others()
	if !procs.GroupGone(r.id) {
		_ = unix.Kill(-r.id.PID, unix.SIGKILL)
	}
	procs.KillDescendants(os.Getpid(), r.meant)
	if r.deadBy == 0 && !overtaken {
		r.deadBy = now
	}
}

// others reports whether any are alive that are meant, as far as can be seen.
func (r *run) others() bool {
	return slices.ContainsFunc(procs.Descendants(os.Getpid()), r.meant)
}

// allGone reports whether all that are meant are dead.
func (r *run) allGone() bool {
	return r.gone() && (r.alone && r.out.Stopped == nil || !r.others())
}

// killAfter sets when the group is killed, unless it is sooner already.
func (r *run) killAfter(d time.Duration) {
	at := boottime.Now() + d
	if r.timer != nil {
		if r.killAt <= at {
			return
		}
		r.timer.Stop()
	}
	r.killAt = at
	r.timer = boottime.Clock{}.AfterFunc(d, func() {
		select {
		case r.kill <- struct{}{}:
		default:
		}
	})
}

// burial is how long killed processes may take to disappear. They do nothing
// any more, but what they had in hand in the kernel; one that is there for
// longer is stuck in that, or could not be killed.
const burial = 500 * time.Millisecond

// verify returns when all are dead, or when waiting for that can help nobody any
// more.
func (r *run) verify(ctx context.Context) {
	began := boottime.Now()
	killAt := began
	if r.alone {
		r.reap()
		if r.out.Stopped == nil && !r.allGone() {
			// Only where the watchdog cannot tell that it is alone.
			r.tell()
			killAt += r.currentPlan().grace()
		}
	}
	for pause := time.Millisecond; !r.allGone(); pause = min(2*pause, 20*time.Millisecond) {
		now := boottime.Now()
		if ctx.Err() != nil && r.out.Stopped == nil {
			r.out.Stopped = context.Cause(ctx)
			killAt = now
		}
		if now >= killAt {
			r.killAll()
		}
		if r.out.Stopped != nil && now > max(began, r.currentPlan().Deadline)+burial {
			r.out.Outlived = true
			return
		}
		time.Sleep(pause)
	}
	if r.deadBy == 0 {
		r.deadBy = boottime.Now()
	}
	if late := r.deadBy - r.currentPlan().Deadline; r.out.Stopped != nil && late > 0 {
		r.out.Outlived, r.out.Late = true, late
	}
}

// forward passes a signal that the wrapper got on to the group.
func (r *run) forward(s syscall.Signal) {
	if s == unix.SIGCONT && r.talks {
		r.tty.pass(r.id.PID)
	}
	r.signal(s)
}

// paused follows the command into suspension, as a shell's jobs do: what it
// sees is this process. Nothing is renewed meanwhile, and the watchdog ends the
// command when the lease does.
func (r *run) paused(s syscall.Signal) {
	switch s {
	case unix.SIGTTIN, unix.SIGTTOU:
		// It wants the terminal. If that is ours to give, that is all.
		if r.tty.pass(r.id.PID) {
			r.talks, r.out.Terminal = true, true
			r.signal(unix.SIGCONT)
			return
		}
	case unix.SIGTSTP:
	default:
		return // somebody stopped this one process, and did not mean us
	}
	if r.tty == nil {
		return
	}
	r.tty.back(r.id.PID)
	// With the rest of the pipeline; on SIGCONT all goes on. Not by SIGTSTP, whose
	// default Go does not restore once it was asked for. Either does nothing where
	// there is no shell to continue us.
	_ = unix.Kill(0, unix.SIGTTIN)
}
