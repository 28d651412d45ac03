//go:build unix

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/cmd/leasehold/internal/supervise"
	"github.com/leasehold/leasehold/lease"
)

// reporter tells what happens to a job: lines for people, or events for
// programs, on standard error. It never waits for a reader: nobody may lose a
// lease because a pipe is full.
type reporter struct {
	name  string
	json  bool
	quiet bool
	waits bool // a refusal is not the end

	lines chan []byte // nil is the last
	gone  chan struct{}

	mu       sync.Mutex
	blocked  backend.Record // who was last told to be in the way
	troubled bool           // a failing store was told of
	holds    bool           // the lease was acquired, and the command is not being stopped
}

func newReporter(name string, json, quiet, waits bool) *reporter {
	r := &reporter{name: name, json: json, quiet: quiet, waits: waits, lines: make(chan []byte, 256), gone: make(chan struct{})}
	go func() {
		defer close(r.gone)
		for line := range r.lines {
			if line == nil {
				return
			}
			_, _ = os.Stderr.Write(line)
		}
	}()
	return r
}

func (r *reporter) line(line []byte) {
	select {
	case r.lines <- append(line, '\n'):
	default: // 256 lines that nobody reads
	}
}

// say tells people.
func (r *reporter) say(format string, args ...any) {
	if !r.json && !r.quiet {
		r.line([]byte("leasehold: " + fmt.Sprintf(format, args...)))
	}
}

// jsonEvent is one line of --json.
type jsonEvent struct {
	Time        time.Time `json:"time"`
	Event       string    `json:"event"`
	Name        string    `json:"name"`
	Holder      string    `json:"holder,omitempty"`       // blocked: who is in the way
	Token       uint64    `json:"token,omitempty"`        // of that holder
	RemainingMS *int64    `json:"remaining_ms,omitempty"` // until the command must stop, unless the lease is renewed; blocked: until the other's lease ends; stopping: until the kill
	MarginMS    *int64    `json:"margin_ms,omitempty"`    // renewed: what was left before
	ElapsedMS   *float64  `json:"elapsed_ms,omitempty"`   // how long the store took; child_exit: how long the command ran
	PID         int       `json:"pid,omitempty"`          // started
	ExitCode    *int      `json:"exit_code,omitempty"`    // child_exit: the command's; exit: leasehold's
	Signal      string    `json:"signal,omitempty"`       // child_exit: what ended it
	Cause       string    `json:"cause,omitempty"`
}

func (r *reporter) event(e jsonEvent) {
	if !r.json {
		return
	}
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	e.Name = r.name
	if line, err := json.Marshal(e); err == nil {
		r.line(line)
	}
}

func millis(d time.Duration) *int64 {
	ms := d.Milliseconds()
	return &ms
}

func precise(d time.Duration) *float64 {
	ms := float64(d.Microseconds()) / 1000
	return &ms
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// lease tells an event of the lease, whose context now has left to go.
func (r *reporter) lease(e lease.Event, left time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	j := jsonEvent{Time: e.Time, Event: string(e.Kind), Holder: e.Record.Holder, Token: e.Record.Token, Cause: text(e.Err)}
	switch e.Kind {
	case lease.EventBlocked:
		if sameHolder(e.Record, r.blocked) {
			return
		}
		if r.waits && r.blocked.Name == "" {
			r.say("waiting for lease %q, %s", r.name, held(e.Record))
		}
		r.blocked = e.Record
		j.RemainingMS, j.Cause = millis(e.Record.Remaining), ""
	case lease.EventAcquireFailed:
		j.ElapsedMS = precise(e.Elapsed)
		if r.waits && !r.troubled && !backend.Definite(e.Err) { // which ends it
			r.say("the lease could not be asked for, still trying: %v", e.Err)
			r.troubled = true
		}
	case lease.EventAcquired:
		r.holds, r.troubled = true, false
		j.RemainingMS, j.ElapsedMS = millis(left), precise(e.Elapsed)
	case lease.EventRenewed:
		j.RemainingMS, j.MarginMS, j.ElapsedMS = millis(left), millis(e.Remaining), precise(e.Elapsed)
		if r.troubled {
			r.say("the lease is renewed again")
			r.troubled = false
		}
	case lease.EventRenewFailed:
		j.RemainingMS, j.ElapsedMS = millis(left), precise(e.Elapsed)
		if r.holds {
			r.say("the lease could not be renewed, trying again for %s: %v", readable(left), e.Err)
		}
		r.troubled = true
	case lease.EventReleased:
		j.ElapsedMS = precise(e.Elapsed)
	case lease.EventReleaseFailed:
		if r.holds {
			r.say("the lease could not be released, it ends by itself: %v", e.Err)
		}
	}
	r.event(j)
}

func (r *reporter) started(pid int) { r.event(jsonEvent{Event: "started", PID: pid}) }

func (r *reporter) stopping(cause error, left time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.holds = false
	r.event(jsonEvent{Event: "stopping", RemainingMS: millis(left), Cause: text(cause)})
	if left > 0 {
		r.say("%v: the command is told to stop, and killed in %s", cause, readable(left))
	} else {
		r.say("%v: the command is killed", cause)
	}
}

func (r *reporter) ended(out supervise.Outcome, ran time.Duration) {
	e := jsonEvent{Event: "child_exit", ElapsedMS: precise(ran), Cause: text(errors.Join(out.Err, out.Stopped))}
	if out.Exited {
		if out.Status.Signaled() {
			e.Signal = unix.SignalName(out.Status.Signal())
		} else {
			code := out.Status.ExitStatus()
			e.ExitCode = &code
		}
	}
	if out.Started {
		r.event(e)
	}
}

func (r *reporter) keeping(left time.Duration) {
	r.event(jsonEvent{Event: "keeping", RemainingMS: millis(left)})
}

// finish tells how it all ended and waits, a little, until that is read. It
// returns the error that is still to be told.
func (r *reporter) finish(err error) error {
	var e *exitError
	if r.json {
		code := 0
		if errors.As(err, &e) {
			code = e.code
			if e.err != nil {
				err = &exitError{code: code, terminal: e.terminal} // told
			}
		}
		last := jsonEvent{Event: "exit", ExitCode: &code}
		if e != nil {
			last.Cause = text(e.err)
		}
		r.event(last)
	}
	select {
	case r.lines <- nil:
		select {
		case <-r.gone:
		case <-time.After(time.Second):
		}
	default:
	}
	return err
}
