//go:build unix

package supervise

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leasehold/leasehold/internal/boottime"
)

// ErrWatchdog is why a command was stopped, or not started, that lost its
// watchdog.
var ErrWatchdog = errors.New("the watchdog was killed")

// ErrLate is why a command was stopped by the watchdog before the wrapper did.
var ErrLate = errors.New("leasehold itself was suspended or too slow to renew it")

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
	Outlived bool               // it, or another process of its group, was alive after the deadline
}

// Run runs the command until it ends, but not beyond ctx and the plan: when ctx
// ends, which it does no later than Plan.Term, the command is told to stop, and
// killed at Plan.Kill or when it has used up the grace. It returns when nobody
// is alive in the group any more, or, if that is past the deadline, at the
// deadline.
//
// When the command has ended by itself, what it left behind in the group is
// told to stop, too, and killed after the grace.
func (g *Guard) Run(ctx context.Context, c Command) Outcome {
	if ctx.Err() != nil {
		return Outcome{Stopped: context.Cause(ctx)}
	}
	r := &run{Guard: g, Command: c, tty: controllingTerminal(), kill: make(chan struct{}, 1)}
	defer r.tty.close()
	r.talks = interactive()
	if r.talks {
		r.tty.pass(g.id.PID)
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
	if r.out.Err == nil {
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
	deadBy time.Duration // the group was dead or killed at this instant
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
				r.out.Started, signals = true, r.Signals
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
				r.deadBy = ownTime(rep.At)
			}
			if rep.Exited != nil {
				r.out.Exited, r.out.Status = true, rep.Exited.Wait
				if !rep.Alone && r.out.Stopped == nil {
					r.tell()
					r.killAfter(r.currentPlan().grace())
				}
			}
			if rep.Alone {
				r.deadBy = ownTime(rep.At)
				_ = r.process.Kill()
				return
			}
		case s := <-signals:
			r.forward(s.(syscall.Signal))
		case <-done:
			done = nil
			r.stop(ctx, true)
		case <-r.kill:
			now := boottime.Now()
			if now > r.currentPlan().Deadline && r.gone() {
				continue // the watchdog was quicker; its report is on the way
			}
			r.signal(unix.SIGKILL)
			r.deadBy = now
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
	r.order(order{Stopping: true})
	if tell {
		r.tell()
	}
	now := boottime.Now()
	left := max(r.currentPlan().soon(now).Kill-now, 0)
	r.killAfter(left)
	r.Stopping(r.out.Stopped, left)
}

// tell asks the group to stop.
func (r *run) tell() {
	r.signal(unix.SIGTERM)
	r.signal(unix.SIGCONT) // a suspended process is told nothing
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

// verify returns when nobody is alive in the group, or when that can help
// nobody any more.
func (r *run) verify(ctx context.Context) {
	now := boottime.Now()
	killAt := now
	if r.out.Exited && r.out.Stopped == nil {
		r.reap()
		if !r.gone() {
			// Only where the watchdog cannot tell that it is alone.
			r.tell()
			killAt += r.currentPlan().grace()
		}
	}
	for pause := time.Millisecond; !r.gone(); pause = min(2*pause, 20*time.Millisecond) {
		now = boottime.Now()
		if ctx.Err() != nil && r.out.Stopped == nil {
			r.out.Stopped = context.Cause(ctx)
		}
		if r.out.Stopped != nil {
			killAt = now
			if now > r.currentPlan().Deadline {
				r.signal(unix.SIGKILL)
				r.out.Outlived = true
				return
			}
		}
		if now >= killAt {
			r.signal(unix.SIGKILL)
		}
		time.Sleep(pause)
	}
	if r.deadBy == 0 {
		r.deadBy = boottime.Now()
	}
	if r.out.Stopped != nil && r.deadBy > r.currentPlan().Deadline {
		r.out.Outlived = true
	}
}

// forward passes a signal that the wrapper got on to the group.
func (r *run) forward(s syscall.Signal) {
	if s == unix.SIGCONT {
		signal.Notify(r.Signals, unix.SIGTSTP)
		if r.talks {
			r.tty.pass(r.id.PID)
		}
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
			r.talks = true
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
	signal.Reset(unix.SIGTSTP)
	_ = unix.Kill(0, unix.SIGTSTP) // with the rest of the pipeline; on SIGCONT all goes on
}
