package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/leasehold/leasehold/backend"
)

// The exit codes. They are stable. Those from 64 to 78 mean what they do in
// sysexits(3), 124 to 127 what they do in timeout(1) and in a shell.
const (
	exitFailed        = 1   // conformance: the store broke a promise; doctor: it has a problem
	exitFree          = 2   // get: nobody holds it
	exitExpired       = 3   // get: its holder's time is over
	exitUsage         = 64  //
	exitCorrupt       = 65  // the record cannot be read
	exitUnavailable   = 69  // the store cannot be reached, or refuses
	exitInternal      = 70  // leasehold itself failed
	exitHeld          = 75  // another holds the lease
	exitLost          = 80  // the lease was lost, the command stopped in time
	exitOutlived      = 81  // the lease was lost, the command outlived it
	exitMaxHold       = 124 // the command was stopped after --max-hold
	exitNotExecutable = 126
	exitNotFound      = 127
	exitSignal        = 128 // and the number of the signal
)

// exitError ends the program with a code, silently if err is nil.
type exitError struct {
	code     int
	err      error
	terminal bool // what was typed at the terminal went to the command alone
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

func exit(code int) error { return &exitError{code: code} }

func fail(code int, err error) error { return &exitError{code: code, err: err} }

func usageError(format string, args ...any) error {
	return fail(exitUsage, fmt.Errorf(format, args...))
}

// failure gives an error that came from a store or a lease the code for its
// kind.
func failure(err error) error {
	var e *exitError
	var s *signalError
	switch {
	case err == nil || errors.As(err, &e):
		return err
	case errors.As(err, &s):
		return exit(exitSignal + int(s.signal))
	case errors.Is(err, backend.ErrInvalid):
		return fail(exitUsage, err)
	case errors.Is(err, backend.ErrHeld):
		return fail(exitHeld, err)
	case errors.Is(err, backend.ErrCorrupt):
		return fail(exitCorrupt, err)
	}
	return fail(exitUnavailable, err)
}

// message is the line to print for an error, "" for none.
func message(err error) string {
	var e *exitError
	if errors.As(err, &e) && e.err == nil {
		return ""
	}
	return "leasehold: " + strings.ReplaceAll(reason(err), "\n", "; ")
}

// reason is the text of an error, for people. What is invalid says so by itself.
func reason(err error) string {
	return strings.TrimPrefix(err.Error(), backend.ErrInvalid.Error()+": ")
}

// cause is why ctx ended, or err if it has not.
func cause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}
