//go:build !unix

package procs

// Machine is not known here, so that nobody's processes are ever judged.
func Machine() (string, error) { return "", ErrUnsupported }

// Find is not supported here.
func Find(pid int) (ID, error) { return ID{PID: pid}, ErrUnsupported }

// Gone is never certain here.
func (id ID) Gone() bool { return false }

// GroupGone is never certain here.
func GroupGone(leader ID) bool { return false }

// Members is not supported here.
func Members(group int) ([]int, error) { return nil, ErrUnsupported }
