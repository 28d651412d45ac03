// Package procs tells whether processes of this machine are gone. It errs on
// one side only: what cannot be seen counts as alive.
package procs

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// ErrUnsupported is returned where the system does not let one process be told
// from another that got its number later.
var ErrUnsupported = errors.New("processes cannot be identified on this system")

// ID names one process: its number and when it was started, in clock ticks
// since the machine was. Numbers are used again, the pair is not.
type ID struct {
	PID   int
	Start uint64
}

// String is the form ParseID reads: "4711.1234567".
func (id ID) String() string { return fmt.Sprintf("%d.%d", id.PID, id.Start) }

// ParseID reads what String wrote.
func ParseID(s string) (ID, error) {
	p, t, _ := strings.Cut(s, ".")
	pid, err := strconv.Atoi(p)
	if err != nil || pid <= 1 {
		// 0, 1 and below never name a single process to kill(2); and nobody
		// outlives process 1 to ask about it.
		return ID{}, fmt.Errorf("%q is not a process", s)
	}
	start, err := strconv.ParseUint(t, 10, 64)
	if err != nil {
		return ID{}, fmt.Errorf("%q is not a process", s)
	}
	return ID{pid, start}, nil
}
