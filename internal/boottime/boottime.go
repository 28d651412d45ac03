// Package boottime is the clock that leases are counted on: time since the
// machine was started, suspend included, which no administrator, NTP daemon or
// leap second can change.
//
// On Linux it is CLOCK_BOOTTIME, with a timerfd for its timers, because the Go
// runtime's clock and timers stand still while the machine is suspended: a
// holder that slept for an hour would believe that no time has passed. Where
// there is no such clock the runtime's is used, and Suspend is false.
package boottime

import (
	"time"
)

// Now returns the time since an origin that is the same for every process since
// the machine was started (where Suspend is true; since an arbitrary instant of
// this process otherwise).
func Now() time.Duration { return now() }

// Suspend reports whether Now goes on counting while the machine is suspended.
func Suspend() bool { return suspend }

// ID names this boot of this machine: instants of Now may be compared between
// two processes only if their IDs are equal. It is an error where the system
// does not tell.
func ID() (string, error) { return bootID() }

// Timer is what AfterFunc returns.
type Timer = interface {
	// Stop keeps the function from being called; it reports whether it did.
	Stop() bool
}

// Clock is Now with timers on the same clock. The zero value is ready to use.
type Clock struct{}

// Now returns the instant on this clock.
func (Clock) Now() time.Duration { return now() }

// AfterFunc calls f in its own goroutine once d has passed on this clock,
// counting the time the machine was suspended.
func (Clock) AfterFunc(d time.Duration, f func()) Timer { return afterFunc(d, f) }
