package supervise

import (
	"os"
	"slices"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/leasehold/leasehold/cmd/leasehold/internal/procs"
)

// machineTime is an instant of boottime as another process of this
// machine understands it: on Linux as it is, time since boot.
func machineTime(t time.Duration) int64 { return int64(t) }

// ownTime turns it back.
func ownTime(t int64) time.Duration { return time.Duration(t) }

// commandAttr: the command dies with the watchdog, even of SIGKILL.
func commandAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}

// rename keeps the watchdog alive when somebody kills everything by the name of
// leasehold.
func rename() {
	name := []byte("lease-watchdog\x00")
	_ = unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&name[0])), 0, 0, 0)
}

// adoptOrphans makes this process the parent of its descendants that lose
// theirs, so that none gets out of sight, and none stays a zombie.
func adoptOrphans() {
	_ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
}

// alone reports whether the watchdog, this process, is all that is left: nobody
// else is in its group, nor descends from it and is meant.
func alone(meant func(procs.Process) bool) bool {
	if slices.ContainsFunc(procs.Descendants(os.Getpid()), meant) {
		return false
	}
	members, err := procs.Members(os.Getpid())
	return err == nil && len(members) <= 1
}
