//go:build unix && !linux

package supervise

import (
	"syscall"
	"time"

	"github.com/leasehold/leasehold/cmd/leasehold/internal/procs"
	"github.com/leasehold/leasehold/internal/boottime"
)

// machineTime is an instant of boottime as another process of this
// machine understands it: here, where that clock starts with each process, the
// wall clock's, which has to last only for the way through a pipe.
func machineTime(t time.Duration) int64 {
	return time.Now().Add(t - boottime.Now()).UnixNano()
}

// ownTime turns it back.
func ownTime(t int64) time.Duration {
	return boottime.Now() + time.Until(time.Unix(0, t))
}

// commandAttr: this system cannot tie the command's life to the watchdog's.
func commandAttr() *syscall.SysProcAttr { return nil }

func rename() {}

func adoptOrphans() {}

// alone cannot tell here. The wrapper looks when the watchdog is gone.
func alone(meant func(procs.Process) bool) bool { return true }
