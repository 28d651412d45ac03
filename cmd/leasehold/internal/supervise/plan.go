//go:build unix

package supervise

import (
	"time"

	"github.com/leasehold/leasehold/internal/boottime"
)

// Plan is when a command must be told to stop, when it is killed, and when it
// must be dead, because from then on somebody else may hold the lease. Its
// instants are boottime's.
type Plan struct {
	Term     time.Duration
	Kill     time.Duration
	Deadline time.Duration
}

// NewPlan makes the plan for a lease of this duration whose deadline lies left
// ahead. The command has a little less than grace to stop: it is killed a tenth
// of the duration before the deadline, at least 50 ms and at most 1 s, but not
// before half of the grace has passed. On a busy machine it takes a while until
// whoever is to kill gets to run, and until who was killed is gone.
func NewPlan(left, grace, duration time.Duration) Plan {
	deadline := boottime.Now() + left
	margin := min(max(duration/10, 50*time.Millisecond), time.Second, grace/2)
	return Plan{Term: deadline - grace, Kill: deadline - margin, Deadline: deadline}
}

// DefaultGrace is the part of a lease's duration that a command has to stop.
func DefaultGrace(duration time.Duration) time.Duration { return duration / 5 }

// time to stop, as the plan allows it
func (p Plan) grace() time.Duration { return p.Kill - p.Term }

// lag is by how much the watchdog lets the wrapper go first. Both follow the
// same plan; a command is not to be told twice.
func (p Plan) lag() time.Duration { return min(p.grace()/4, 250*time.Millisecond) }

// soon is the plan of a command that must stop now: it has its grace, as far as
// the lease lasts.
func (p Plan) soon(now time.Duration) Plan {
	p.Kill = min(p.Kill, now+p.grace())
	p.Term = min(p.Term, now)
	return p
}
