//go:build unix

package supervise

import "time"

// watch decides what the watchdog does. It has no clock and does nothing.
type watch struct {
	plan     Plan
	running  bool // the group has, or may have, members besides the watchdog
	stopping bool // the wrapper stops the command itself
	told     bool // the group was told to stop
	orphaned bool // the wrapper is gone
}

type action int

const (
	nothing action = iota
	tell           // TERM to the group
	kill           // KILL to the group, and to all that descends from it
	leave          // nothing is left to watch over
)

// orphan notes that the wrapper is gone. What runs on without it must stop now.
func (w *watch) orphan(now time.Duration) {
	w.orphaned = true
	w.plan = w.plan.soon(now)
}

// due returns what must be done at now, and the instant to ask again at if
// nothing happens before (0: none).
func (w *watch) due(now time.Duration) (action, time.Duration) {
	if !w.running {
		if w.orphaned {
			return leave, 0
		}
		return nothing, 0
	}
	if now >= w.plan.Kill {
		return kill, 0
	}
	if w.told || w.stopping && !w.orphaned {
		return nothing, w.plan.Kill
	}
	term := w.plan.Term
	if !w.orphaned {
		term += w.plan.lag()
	}
	if now >= term {
		return tell, w.plan.Kill
	}
	return nothing, term
}
