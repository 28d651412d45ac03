//go:build unix

package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/cmd/leasehold/internal/departed"
	"github.com/leasehold/leasehold/cmd/leasehold/internal/procs"
	"github.com/leasehold/leasehold/cmd/leasehold/internal/supervise"
	"github.com/leasehold/leasehold/internal/boottime"
	"github.com/leasehold/leasehold/lease"
)

const runHelp = `Wait for the lease, run the command while holding it, and release it afterwards.

The command is run as it is given, without a shell, with the standard input of
leasehold, in a process group of its own. INT, TERM, HUP, QUIT, USR1, USR2, ALRM
and WINCH are passed on to the whole group; ^C and ^Z at a terminal work as if
the command was run without leasehold, but a lease is not renewed while
leasehold is suspended.

The command never outlives the lease. --grace before the lease can pass to
somebody else it gets TERM, with its group, and before that KILL, with all that
it has started, whatever the store does. A watchdog process does the same when
leasehold itself is killed or stopped. When the command ends by itself, what it
leaves behind gets TERM, and KILL after the grace, before the lease is released;
only what has a session of its own (setsid), a daemon, goes on. Out of reach are
processes of other users (sudo), and, when leasehold and its watchdog are both
killed at one instant, what the command has started.

A lease whose holder crashed on this machine is taken over at once, when every
process of its is gone: leasehold, watchdog and the command's group.
--no-process-check turns that off; do so on virtual machines that are restored
from one running snapshot under one host name.

With --at-least-for the lease is kept (and renewed) after a short command, so
that hosts whose clocks differ do not run it again. A signal ends that early
without releasing: the lease then expires. A crash is not taken over early.

Environment of the command:
  LEASEHOLD_NAME       the lease
  LEASEHOLD_HOLDER     the identity it is held under
  LEASEHOLD_TOKEN      the fencing token: greater than that of any holder before
  LEASEHOLD_DEADLINE   when the lease would end without a renewal, as known at
                       the start: RFC 3339, wall clock. On Linux also
  LEASEHOLD_DEADLINE_BOOTTIME_NS   the same on CLOCK_BOOTTIME
  LEASEHOLD_STORE      the URL of the store, without credentials

Exit codes:
  the command's own; 128+n if a signal n ended it, or ended the wait
  75   another holds the lease (see --conflict-exit-code)
  80   the lease was lost, the command was stopped in time
  81   the lease was lost, and the command outlived it, or may have
  124  the command was stopped after --max-hold
  126  the command cannot be executed
  127  there is no such command
  64   usage
  65   the record of the lease cannot be read
  69   the store cannot be reached
  70   leasehold itself failed`

type runFlags struct {
	noWait     bool
	wait       time.Duration
	duration   time.Duration
	grace      time.Duration
	atLeastFor time.Duration
	maxHold    time.Duration
	conflict   int
	metadata   map[string]string
	asJSON     bool
	quiet      bool
}

func newRun(o *options) *cobra.Command {
	var flags runFlags
	cmd := &cobra.Command{
		Use:   "run [flags] NAME -- command args…",
		Short: "Run a command while holding a lease",
		Long:  runHelp,
		Example: `  leasehold run nightly-report -- ./report.sh
  leasehold run --no-wait backup -- restic backup /home || [ $? -eq 75 ]
  leasehold run --at-least-for 1m cleanup -- ./cleanup.sh   # in the crontab of every host`,
		ValidArgsFunction: o.completeNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			name, argv, err := splitArgs(args, cmd.ArgsLenAtDash())
			if err != nil {
				return err
			}
			set := cmd.Flags().Changed
			if !set("grace") {
				flags.grace = supervise.DefaultGrace(flags.duration)
			}
			if set("wait") && flags.wait == 0 {
				flags.noWait = true
			} else if set("wait") && flags.noWait {
				return usageError("--wait and --no-wait exclude each other")
			}
			if set("max-hold") && flags.maxHold <= 0 {
				return usageError("--max-hold is %v, it must be positive", flags.maxHold)
			}
			if err := flags.check(); err != nil {
				return err
			}
			j := &job{runFlags: flags, options: o, name: name, argv: argv}
			return j.run()
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&flags.noWait, "no-wait", "n", false, "give up at once if another holds the lease")
	f.DurationVarP(&flags.wait, "wait", "w", 0, "give up after waiting this `time` (default: wait for ever)")
	f.DurationVar(&flags.duration, "duration", lease.DefaultDuration, "how long the lease lasts without a renewal: so long others wait after a crash")
	f.DurationVar(&flags.grace, "grace", 0, "how long before the end of the lease the command is told to stop (default a fifth of the duration)")
	f.DurationVar(&flags.atLeastFor, "at-least-for", 0, "keep the lease this long, even if the command ends sooner")
	f.DurationVar(&flags.maxHold, "max-hold", 0, "stop the command after this `time`")
	f.IntVarP(&flags.conflict, "conflict-exit-code", "E", exitHeld, "exit `code` if another holds the lease")
	f.StringToStringVar(&flags.metadata, "metadata", nil, "`key=value` to show to others with the lease")
	f.BoolVar(&flags.asJSON, "json", false, "tell what happens as JSON on standard error, one event a line")
	f.BoolVarP(&flags.quiet, "quiet", "q", false, "tell nothing but errors")
	f.Lookup("metadata").DefValue = ""
	cmd.MarkFlagsMutuallyExclusive("json", "quiet")
	return cmd
}

// splitArgs finds the NAME before the -- and the command after it.
func splitArgs(args []string, dash int) (name string, argv []string, err error) {
	if dash == 0 && len(args) > 1 && args[1] == "--" {
		// run -- -name -- command: a name that looks like a flag.
		return args[0], args[2:], checkCommand(args[2:])
	}
	switch {
	case len(args) == 0 || dash == 0:
		return "", nil, usageError("which lease? leasehold run NAME -- command args…")
	case dash < 0 && len(args) > 1:
		return "", nil, usageError("put -- before the command: leasehold run %s -- %s", args[0], strings.Join(args[1:], " "))
	case dash > 1:
		return "", nil, usageError("one NAME goes before the --, not %d", dash)
	}
	return args[0], args[1:], checkCommand(args[1:])
}

func checkCommand(argv []string) error {
	if len(argv) == 0 || argv[0] == "" {
		return usageError("which command? leasehold run NAME -- command args…")
	}
	return nil
}

// leastGrace is what it takes to stop a command at all.
const leastGrace = 10 * time.Millisecond

func (f *runFlags) check() error {
	switch {
	case f.wait < 0:
		return usageError("--wait is %v, it must not be negative", f.wait)
	case f.atLeastFor < 0:
		return usageError("--at-least-for is %v, it must not be negative", f.atLeastFor)
	case f.maxHold > 0 && f.atLeastFor > f.maxHold:
		return usageError("--at-least-for is %v, longer than --max-hold, %v", f.atLeastFor, f.maxHold)
	case f.conflict < 0 || f.conflict > 255:
		return usageError("--conflict-exit-code is %d, it must be from 0 to 255", f.conflict)
	}
	for key := range f.metadata {
		if strings.HasPrefix(key, "leasehold") {
			return usageError("metadata %q: keys that begin with leasehold are leasehold's own", key)
		}
	}
	return nil
}

// job is one leasehold run.
type job struct {
	runFlags
	*options
	name string
	argv []string

	url     string
	store   backend.Store
	guard   *supervise.Guard
	lease   *lease.Lease
	signals chan os.Signal
	tell    *reporter
	giveUp  context.CancelCauseFunc // ends the wait
	since   time.Duration           // when the lease was acquired, on boottime
}

// errOwnAncestor: a wait that would never end.
var errOwnAncestor = errors.New("it is held by the leasehold run that this one runs under, and would wait for itself")

var errWaited = errors.New("the time to wait is over")

func (j *job) run() (err error) {
	j.tell = newReporter(j.name, j.asJSON, j.quiet, !j.noWait)
	defer func() { err = j.tell.finish(failure(err)) }()

	if err := backend.CheckName(j.name); err != nil {
		return err
	}
	// A command that cannot be found now is not worth waiting for.
	if _, err := supervise.LookPath(j.argv[0]); err != nil {
		return cannotRun(err, supervise.NotFound(err))
	}
	// From here on no signal is lost, nor does one leave anything behind.
	j.signals = make(chan os.Signal, 64)
	signal.Notify(j.signals, supervise.Signals()...)
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	j.giveUp = cancel

	defer j.close()
	settled := j.listen()
	err = j.prepare(ctx)
	if err == nil {
		err = j.acquire(ctx)
	}
	settled()
	switch {
	case ctx.Err() != nil: // a signal came, or the wait would be for ever
		if j.lease != nil {
			j.release(time.Second)
		}
		return j.explain(context.Cause(ctx))
	case err != nil:
		return j.explain(err)
	}
	return j.hold()
}

func (j *job) close() {
	if j.lease != nil {
		_ = j.lease.Close()
	}
	if j.guard != nil {
		j.guard.Close()
	}
	if j.store != nil {
		_ = j.store.Close()
	}
}

// listen ends the wait when a signal says so, until the returned function is
// called. What comes after that is the command's.
func (j *job) listen() (settled func()) {
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case s := <-j.signals:
				switch s {
				case unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT:
					j.giveUp(&signalError{s.(syscall.Signal)})
				}
			case <-stop:
				return
			}
		}
	}()
	return func() {
		close(stop)
		<-stopped
	}
}

// prepare opens the store and starts the watchdog.
func (j *job) prepare(ctx context.Context) (err error) {
	if j.url, err = j.options.url(); err != nil {
		return err
	}
	if j.store, err = j.open(ctx); err != nil {
		return err
	}
	if _, err := backend.CheckDuration(j.duration, j.store.Traits()); err != nil {
		return err
	}
	if j.grace < leastGrace {
		return usageError("the grace is %v; a command needs at least %v to be stopped in", j.grace, leastGrace)
	}
	// The watchdog comes first: the record names it.
	if j.guard, err = supervise.New(j.argv); err != nil {
		return fail(exitInternal, fmt.Errorf("the watchdog cannot be started: %w", err))
	}
	opts := []lease.Option{
		lease.WithDuration(j.duration),
		lease.WithGrace(j.grace),
		lease.WithMetadata(j.allMetadata()),
		lease.WithObserver(j.observe),
	}
	if j.maxHold > 0 {
		opts = append(opts, lease.WithMaxHold(j.maxHold))
	}
	j.lease, err = lease.New(j.store, j.name, opts...)
	return err
}

// allMetadata adds by which processes the holder acts. A lease that is to be
// kept for longer than they live does not say.
func (j *job) allMetadata() map[string]string {
	all := maps.Clone(j.metadata)
	if all == nil {
		all = make(map[string]string)
	}
	if j.atLeastFor > 0 {
		return all
	}
	self, err := procs.Find(os.Getpid())
	if err != nil {
		return all
	}
	processes, err := departed.Metadata(self, j.guard.Leader())
	if err != nil {
		return all
	}
	maps.Copy(all, processes)
	return all
}

// observe follows what happens to the lease.
func (j *job) observe(e lease.Event) {
	switch e.Kind {
	case lease.EventAcquired, lease.EventRenewed:
		j.plan()
	case lease.EventBlocked:
		if holder := os.Getenv("LEASEHOLD_HOLDER"); !j.noWait && holder != "" && holder == e.Record.Holder {
			j.giveUp(errOwnAncestor)
		}
	}
	j.tell.lease(e, j.lease.Remaining())
}

// plan tells the watchdog until when the command may run.
func (j *job) plan() {
	// The clocks are one on Linux, and differ in their origin elsewhere.
	left := j.lease.Deadline() - lease.SystemClock.Now()
	if j.lease.Held() {
		j.guard.SetPlan(supervise.NewPlan(left, j.grace, j.duration))
	}
}

func (j *job) acquire(ctx context.Context) error {
	if !j.noWait && j.wait > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, j.wait, errWaited)
		defer cancel()
	}
	err := j.lease.Acquire(ctx)
	if j.noWait {
		return err
	}
	if err != nil && !backend.Definite(err) {
		// The store may be about to come back; if it does not, somebody should know
		// rather than wait for it. Later on, while another holds the lease, its
		// failures are waited out.
		patience, cancel := context.WithTimeout(ctx, j.duration)
		defer cancel()
		if again := j.lease.Await(patience); again == nil || backend.Definite(again) {
			err = again
		}
	}
	if errors.Is(err, backend.ErrHeld) {
		err = j.lease.Await(ctx)
	}
	return err
}

// explain says why the lease was not acquired.
func (j *job) explain(err error) error {
	var heldBy *backend.HeldError
	switch {
	case errors.Is(err, errOwnAncestor):
		return fail(j.conflict, fmt.Errorf("lease %q: %w", j.name, err))
	case errors.As(err, &heldBy):
		rec := heldBy.Record
		if rec.Seal != nil {
			return fail(j.conflict, heldBy)
		}
		if errors.Is(err, errWaited) {
			return fail(j.conflict, fmt.Errorf("gave up after %s: lease %q is %s", readable(j.wait), j.name, held(rec)))
		}
		return fail(j.conflict, fmt.Errorf("lease %q is %s", j.name, held(rec)))
	case errors.Is(err, backend.ErrHeld):
		return fail(j.conflict, err)
	}
	return err
}

// hold runs the command and gives the lease back.
func (j *job) hold() error {
	j.since = boottime.Now()
	ctx := j.lease.Context()
	j.plan()
	watch, unwatch := context.WithCancel(ctx)
	watched := j.watch(watch)
	defer func() {
		unwatch()
		<-watched
	}()
	out := j.guard.Run(ctx, supervise.Command{
		Env:      j.environment(),
		Signals:  j.signals,
		Started:  j.tell.started,
		Stopping: j.tell.stopping,
	})
	j.tell.ended(out, boottime.Now()-j.since)
	switch {
	case out.Outlived:
		// Whoever is alive acts without a lease; at least it is not handed on.
		what := "is still alive"
		if out.Late > 0 {
			what = "was alive for " + readable(out.Late) + " longer"
		}
		return fail(exitOutlived, fmt.Errorf("lease %q was lost: %w; the command, or something it started, %s", j.name, out.Stopped, what))
	case errors.Is(out.Stopped, lease.ErrMaxHold):
		j.release(releaseTimeout)
		return fail(exitMaxHold, fmt.Errorf("the command was stopped after %s, as long as --max-hold allows", readable(j.maxHold)))
	case out.Stopped != nil:
		if errors.Is(out.Stopped, lease.ErrExpired) || errors.Is(out.Stopped, supervise.ErrLate) {
			j.release(time.Second) // perhaps the store still thinks that it is ours
		}
		what := "the command was stopped in time"
		if !out.Started {
			what = "the command was not started"
		}
		return fail(exitLost, fmt.Errorf("lease %q was lost: %w; %s", j.name, out.Stopped, what))
	case errors.Is(out.Err, supervise.ErrWatchdog):
		j.release(releaseTimeout)
		return fail(exitInternal, fmt.Errorf("%w before it had said that the command was started; nothing of it is alive", out.Err))
	case out.Err != nil:
		j.release(releaseTimeout)
		return cannotRun(out.Err, out.NotFound)
	}
	if j.keep() {
		j.release(releaseTimeout)
	}
	switch {
	case !out.Exited:
		return fail(exitSignal+int(unix.SIGKILL), fmt.Errorf("%w, and with it the command", supervise.ErrWatchdog))
	case out.Status.Signaled():
		return &exitError{code: exitSignal + int(out.Status.Signal()), terminal: out.Terminal}
	case out.Status.ExitStatus() != 0:
		return exit(out.Status.ExitStatus())
	}
	return nil
}

// watch looks at the record while the command runs, so that a lease that was
// taken away is lost at once, not at the next renewal. Most commands are done
// before that pays: a watch takes longer to end than they do to run.
func (j *job) watch(ctx context.Context) (done chan struct{}) {
	done = make(chan struct{})
	if !departed.CanWatch(j.store) {
		close(done)
		return done
	}
	go func() {
		defer close(done)
		select {
		case <-time.After(min(time.Second, j.duration/3)):
		case <-ctx.Done():
			return
		}
		for range j.lease.Observe(ctx) { // it is the lease that draws the conclusions
		}
	}()
	return done
}

func (j *job) environment() []string {
	rec := j.lease.Record()
	left := j.lease.Deadline() - lease.SystemClock.Now()
	env := []string{
		"LEASEHOLD_NAME=" + j.name,
		"LEASEHOLD_HOLDER=" + string(j.lease.Holder()),
		"LEASEHOLD_TOKEN=" + strconv.FormatUint(rec.Token, 10),
		"LEASEHOLD_DEADLINE=" + time.Now().Add(left).Format(time.RFC3339Nano),
		envStore + "=" + publicURL(j.url),
	}
	if boottime.Suspend() {
		env = append(env, "LEASEHOLD_DEADLINE_BOOTTIME_NS="+strconv.FormatInt(int64(boottime.Now()+left), 10))
	}
	return env
}

// keep holds on to the lease after the command has ended, for --at-least-for,
// and reports whether to release it then. Interrupted, it leaves the lease to
// expire: so much longer it is kept.
func (j *job) keep() (release bool) {
	left := j.since + j.atLeastFor - boottime.Now()
	if left <= 0 {
		return true
	}
	j.tell.keeping(left)
	over := make(chan struct{})
	defer boottime.Clock{}.AfterFunc(left, func() { close(over) }).Stop()
	lost := j.lease.Context()
	for {
		select {
		case <-over:
			return true
		case <-lost.Done():
			j.tell.say("lease %q was not kept for %s after its command had ended: %v", j.name, readable(j.atLeastFor), context.Cause(lost))
			return false
		case s := <-j.signals:
			switch s {
			case unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT:
				return false
			}
		}
	}
}

// releaseTimeout is long for a store that works, and short for a person.
const releaseTimeout = 5 * time.Second

// release gives the lease back. A failure costs others some waiting, nothing
// else; it is told as an event.
func (j *job) release(timeout time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	_ = j.lease.Release(ctx)
}

func cannotRun(err error, notFound bool) error {
	if notFound {
		return fail(exitNotFound, err)
	}
	return fail(exitNotExecutable, err)
}
