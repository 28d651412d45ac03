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

// Process is one line of the process table.
type Process struct {
	ID
	Parent, Group, Session int
}

// Descendants is not supported here: nobody is found.
func Descendants(pid int) []Process { return nil }

// Signal signals the process.
func (p Process) Signal(s syscall.Signal) error { return syscall.Kill(p.PID, s) }

// KillDescendants is not supported here.
func KillDescendants(pid int, meant func(Process) bool) {}
