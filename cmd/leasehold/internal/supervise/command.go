//go:build unix

package supervise

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/leasehold/leasehold/cmd/leasehold/internal/procs"
)

// LookPath finds the program that a command names. Unlike exec.LookPath it
// takes one from the present folder if PATH says so: that is the user's choice.
func LookPath(name string) (string, error) {
	path, err := exec.LookPath(name)
	if errors.Is(err, exec.ErrDot) {
		err = nil
	}
	return path, err
}

// NotFound reports whether that is what an error of LookPath says.
func NotFound(err error) bool {
	return errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist)
}

// daemon reports whether a descendant has a session of its own: that is how one
// takes its leave.
func daemon(p procs.Process) bool {
	session, err := unix.Getsid(0)
	return err == nil && p.Session != session
}

// signalGroup signals the watchdog's group, and those of the watchdog's children
// that are meant and have left it. The command may have: timeout(1) does, for
// one, and passes on what it gets to its own children.
func signalGroup(s syscall.Signal, watchdog int, meant func(procs.Process) bool) {
	_ = unix.Kill(-watchdog, s)
	for _, p := range procs.Descendants(os.Getpid()) {
		if p.Parent == watchdog && p.Group != watchdog && meant(p) {
			_ = p.Signal(s)
		}
	}
}

// merge returns env with the variables of inner, which win: of two with one
// name, programs disagree on which counts.
func merge(env, inner []string) []string {
	ours := make(map[string]bool, len(inner))
	for _, v := range inner {
		name, _, _ := strings.Cut(v, "=")
		ours[name] = true
	}
	merged := make([]string, 0, len(env)+len(inner))
	for _, v := range env {
		if name, _, _ := strings.Cut(v, "="); !ours[name] {
			merged = append(merged, v)
		}
	}
	return append(merged, inner...)
}
