package lease

import "time"

// ScheduleID names a scheduled renewal. The zero value names none.
type ScheduleID uint64

// RenewalService renews leases in the background. It calls Extend, which renews
// the current tenure and never begins one. A Lease schedules itself when a
// tenure begins and cancels when it ends.
//
// Its methods may be called concurrently.
type RenewalService interface {
	// Schedule renews l from now on, until Cancel. A second Schedule of the same
	// Lease adds a second schedule.
	Schedule(l *Lease) (ScheduleID, error)
	// IsScheduled reports whether id names a schedule that has not been cancelled.
	IsScheduled(id ScheduleID) bool
	// Cancel ends a schedule and reports whether there was one. After it has
	// returned no renewal fires; one that is in flight may still finish.
	Cancel(id ScheduleID) bool
	// CancelAll cancels everything and tells of each schedule whether it did.
	CancelAll() map[ScheduleID]bool
	// RenewalDelay returns the time from one renewal of l to the next, jittered.
	RenewalDelay(l *Lease) time.Duration
}

// DefaultRenewalService returns the scheduler that all Leases of the process
// share unless WithRenewalService says otherwise.
func DefaultRenewalService() RenewalService { panic("skeleton") }

// NewRenewalService returns a scheduler of its own, on clock (nil: SystemClock).
func NewRenewalService(clock Clock) RenewalService { panic("skeleton") }
