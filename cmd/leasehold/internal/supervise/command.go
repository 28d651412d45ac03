//go:build unix

package supervise

import (
	"errors"
	"io/fs"
	"os/exec"
	"strings"
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
