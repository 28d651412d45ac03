package lease

import (
	"time"

	"github.com/leasehold/leasehold/internal/boottime"
)

// Clock tells how much time has passed, and calls back when some has. Its
// instants count from any origin and are positive; they never go back and have
// nothing to do with the wall clock, which therefore cannot creep into a
// decision.
type Clock interface {
	// Now returns the present instant.
	Now() time.Duration
	// AfterFunc calls f in its own goroutine after d has passed.
	AfterFunc(d time.Duration, f func()) Timer
}

// Timer is what Clock.AfterFunc returns. It is an alias, so that a clock written
// for one package of this module serves the others.
type Timer = interface {
	// Stop keeps the function from being called; it reports whether it did.
	Stop() bool
}

// SystemClock is the clock a Lease uses unless told otherwise: CLOCK_BOOTTIME on
// Linux, which goes on while the machine is suspended, so that a holder which
// slept finds its lease over when it wakes; RuntimeClock elsewhere.
//
// A guest clock cannot see that its virtual machine was paused from outside.
// Against that only the fencing token helps.
var SystemClock Clock = systemClock()

// RuntimeClock is the Go runtime's monotonic clock. Inside a bubble of
// testing/synctest it is the bubble's clock. It stands still while the machine
// is suspended.
var RuntimeClock Clock = runtimeClock{}

func systemClock() Clock {
	if boottime.Suspend() {
		return boottime.Clock{}
	}
	return RuntimeClock
}

type runtimeClock struct{}

var started = time.Now()

// Now counts from a century before the process started: the clock of a synctest
// bubble begins in the year 2000, and instants are to be positive there too.
func (runtimeClock) Now() time.Duration { return 100*365*24*time.Hour + time.Since(started) }

func (runtimeClock) AfterFunc(d time.Duration, f func()) Timer { return time.AfterFunc(d, f) }
