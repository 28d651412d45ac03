package lease

import (
	"time"

	"github.com/leasehold/leasehold/backend"
)

// EventKind says what happened to a Lease.
type EventKind string

// The kinds of events.
const (
	EventBlocked       EventKind = "blocked"        // an acquire was refused: Record is who holds it
	EventAcquired      EventKind = "acquired"       // a tenure began
	EventRenewed       EventKind = "renewed"        // it was extended
	EventRenewFailed   EventKind = "renew_failed"   // it was not; it goes on until it ends
	EventEnded         EventKind = "ended"          // it is over: Err is the cause. Told once for each tenure
	EventReleased      EventKind = "released"       // the store was told
	EventReleaseFailed EventKind = "release_failed" // the store could not be told; the record ends by itself
	EventAcquireFailed EventKind = "acquire_failed" // neither granted nor refused: Err says why
)

// Event is one transition of a Lease. Observers get them one at a time and in
// order.
type Event struct {
	Kind      EventKind
	Name      string         // of the lease
	Record    backend.Record // of the tenure; of the other holder with EventBlocked
	Time      time.Time      // wall clock, for people
	Remaining time.Duration  // until the context ends; with EventRenewed what was left of it before: the margin
	Elapsed   time.Duration  // how long the store took to answer
	Err       error
}
