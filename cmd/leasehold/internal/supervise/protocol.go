//go:build unix

package supervise

import "syscall"

// The wrapper and its watchdog talk in lines of JSON, each shorter than a pipe
// keeps in one piece, but for the start. That the other end is gone shows as the
// end of the stream. Instants are as machineTime gives them.

// order is what the wrapper tells the watchdog. Orders come one kind at a time.
type order struct {
	Plan     *wirePlan `json:"plan,omitempty"`     // the lease was acquired or renewed
	Start    *start    `json:"start,omitempty"`    // run the command
	Stopping bool      `json:"stopping,omitempty"` // the wrapper stops the command itself, up to the kill
}

type wirePlan struct{ Term, Kill int64 }

type start struct {
	Env []string // what the command's environment has besides the watchdog's own
}

// report is what the watchdog tells the wrapper.
type report struct {
	At      int64       `json:"at"`                // when this was so
	Started int         `json:"started,omitempty"` // the process that runs the command
	Failed  *failure    `json:"failed,omitempty"`  // it could not be started
	Paused  int         `json:"paused,omitempty"`  // a signal suspended it
	Exited  *exitStatus `json:"exited,omitempty"`
	Alone   bool        `json:"alone,omitempty"`  // nobody else is in the group any more
	Ending  bool        `json:"ending,omitempty"` // the watchdog told the group to stop
	Killing bool        `json:"killing,omitempty"`
}

type failure struct {
	NotFound bool
	Text     string
}

type exitStatus struct {
	Wait syscall.WaitStatus
}
