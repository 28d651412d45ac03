package servers

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// label marks every container and network with the run that made it.
const label = "leasehold-test"

// run identifies this process: host, PID, and when it began, so that a PID that
// is used again is not taken for it.
var run = sync.OnceValue(func() string {
	host, err := os.Hostname()
	if err != nil {
		host = "localhost"
	}
	pid := os.Getpid()
	return fmt.Sprintf("%s-%d-%s", host, pid, began(pid))
})

// newFolder makes a folder that Sweep removes if this process cannot.
func newFolder() (string, error) { return os.MkdirTemp("", label+"-"+run()+"_") }

// dead tells whether the process of a run is gone for certain. Of another host
// nothing is certain.
func dead(run string) bool {
	rest, start, ok := cutLast(run, "-")
	if !ok {
		return false
	}
	host, id, ok := cutLast(rest, "-")
	if !ok {
		return false
	}
	pid, err := strconv.Atoi(id)
	here, herr := os.Hostname()
	if err != nil || herr != nil || pid <= 0 || here != host {
		return false
	}
	if err := syscall.Kill(pid, 0); err == syscall.ESRCH {
		return true
	}
	return began(pid) != start
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// began is when a process began, in the system's own count; 0 where it cannot
// be known.
func began(pid int) string {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "0"
	}
	// The name in brackets may hold anything.
	_, rest, _ := cutLast(string(stat), ")")
	if fields := strings.Fields(rest); len(fields) > 19 {
		return fields[19]
	}
	return "0"
}

// Sweep removes what dead runs have left, and with all also what living ones
// and those of other machines have. It returns a line for each thing removed.
func Sweep(ctx context.Context, all bool) ([]string, error) {
	return sweep(ctx, func(run string) bool { return all || dead(run) })
}

// sweep removes what the runs have left that are gone.
func sweep(ctx context.Context, gone func(run string) bool) ([]string, error) {
	var removed []string
	dirs, err := filepath.Glob(filepath.Join(os.TempDir(), label+"-*"))
	if err != nil {
		return nil, err
	}
	for _, dir := range dirs {
		name, _, _ := cutLast(filepath.Base(dir), "_")
		if !gone(strings.TrimPrefix(name, label+"-")) {
			continue
		}
		if err := os.RemoveAll(dir); err != nil {
			return removed, err
		}
		removed = append(removed, "folder "+dir)
	}
	e, err := dockerEngine(ctx)
	if err != nil {
		return removed, nil // so nothing of ours is in it
	}
	more, err := e.sweep(ctx, gone)
	return append(removed, more...), err
}
