//go:build unix && !linux

package procs

import "syscall"

// Machine is not known here, so that nobody's processes are ever judged.
func Machine() (string, error) { return "", ErrUnsupported }

// Find is not supported here.
func Find(pid int) (ID, error) { return ID{PID: pid}, ErrUnsupported }

// Gone reports whether the process is gone for certain.
func (id ID) Gone() bool { return syscall.Kill(id.PID, 0) == syscall.ESRCH }

// GroupGone reports whether the process group that leader founded has no member
// for certain, a zombie included.
func GroupGone(leader ID) bool { return syscall.Kill(-leader.PID, 0) == syscall.ESRCH }

// Members is not supported here.
func Members(group int) ([]int, error) { return nil, ErrUnsupported }
