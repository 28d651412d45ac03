package procs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/leasehold/leasehold/internal/boottime"
)

// Machine names the world in which a process number has a meaning: this boot of
// this machine with its clock, and this PID namespace. The host name is in it
// because machines restored from one snapshot share everything else.
func Machine() (string, error) {
	if self, _ := os.Readlink("/proc/self"); self != strconv.Itoa(os.Getpid()) {
		return "", fmt.Errorf("%w: /proc is that of another PID namespace", ErrUnsupported)
	}
	boot, err := boottime.ID()
	if err != nil {
		return "", err
	}
	ns, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return "", err
	}
	host, err := os.Hostname()
	if err != nil {
		return "", err
	}
	return boot + ns + host, nil
}

// Find identifies a process that is running now.
func Find(pid int) (ID, error) {
	st, err := system.stat(strconv.Itoa(pid))
	if err != nil {
		return ID{}, err
	}
	return ID{pid, st.start}, nil
}

// Gone reports whether the process is gone for certain.
func (id ID) Gone() bool { return system.gone(id) }

// GroupGone reports whether the process group that leader founded has no living
// member for certain, whoever leads it now.
func GroupGone(leader ID) bool { return system.groupGone(leader) }

// Members returns the living processes of a group.
func Members(group int) ([]int, error) {
	alive, _, err := system.members(group)
	return alive, err
}

// Process is one line of the process table.
type Process struct {
	ID
	Parent, Group, Session int
}

// Descendants returns the living processes that descend from pid. It shows what
// /proc shows, which may leave out those of other users.
func Descendants(pid int) []Process { return system.descendants(pid) }

// Signal signals this very process, not one that got its number since.
func (p Process) Signal(s syscall.Signal) error {
	fd, err := unix.PidfdOpen(p.PID, 0)
	if err == nil {
		defer unix.Close(fd)
	}
	if p.Gone() {
		return syscall.ESRCH
	}
	if err != nil { // before Linux 5.3
		return syscall.Kill(p.PID, s)
	}
	return unix.PidfdSendSignal(fd, s, nil, 0)
}

// KillDescendants kills those that descend from pid and are meant, and what they
// start meanwhile.
func KillDescendants(pid int, meant func(Process) bool) {
	killed := map[ID]bool{}
	// /proc is not read at one instant: where a parent goes away in between, its
	// children seem to descend from nobody. So two looks must agree that there is
	// nobody left.
	for tries, clean := 0, 0; tries < 20 && clean < 2; tries++ { // else they are faster than we are
		clean++
		for _, p := range Descendants(pid) {
			if meant(p) && !killed[p.ID] {
				clean, killed[p.ID] = 0, true
				_ = p.Signal(syscall.SIGKILL)
			}
		}
	}
}

// table is the process table as this process may see it. kill(2) answers first:
// /proc may hide the processes of other users (hidepid) or be another
// namespace's. /proc only adds what kill cannot tell: reuse, and zombies.
type table struct {
	probe func(pid int) error // kill(pid, 0)
	proc  string
}

var system = table{
	probe: func(pid int) error { return syscall.Kill(pid, 0) },
	proc:  "/proc",
}

func (t table) gone(id ID) bool {
	if t.probe(id.PID) == syscall.ESRCH {
		return true
	}
	st, err := t.stat(strconv.Itoa(id.PID))
	if err != nil {
		return false
	}
	return st.start != id.Start || st.dead()
}

func (t table) groupGone(leader ID) bool {
	if t.probe(-leader.PID) == syscall.ESRCH {
		return true
	}
	// A number is not given out again while a group goes by it.
	if st, err := t.stat(strconv.Itoa(leader.PID)); err == nil && st.start != leader.Start {
		return true
	}
	// Only zombies may be left, which stay for as long as their parent likes.
	// Looking twice, because while we look a process may fork and exit.
	for range 2 {
		alive, zombies, err := t.members(leader.PID)
		if err != nil || len(alive) > 0 || len(zombies) == 0 {
			return false
		}
	}
	return true
}

// members returns who is in the group. It is an error if /proc may not show
// all of them.
func (t table) members(group int) (alive, zombies []int, err error) {
	mounts, err := os.ReadFile(filepath.Join(t.proc, "self/mountinfo"))
	if err != nil {
		return nil, nil, err
	}
	if strings.Contains(string(mounts), "hidepid=") {
		return nil, nil, errors.New("the processes of other users are hidden (hidepid)")
	}
	err = t.each(func(pid int, st stat, err error) error {
		switch {
		case err != nil:
			return err
		case st.group != group:
		case st.dead():
			zombies = append(zombies, pid)
		default:
			alive = append(alive, pid)
		}
		return nil
	})
	return alive, zombies, err
}

func (t table) descendants(pid int) (found []Process) {
	all := map[int]stat{}
	_ = t.each(func(pid int, st stat, err error) error {
		if err == nil {
			all[pid] = st
		}
		return nil
	})
	for one, st := range all {
		if st.dead() {
			continue
		}
		// No parent is younger than its child, but the lines were not read at one
		// instant, so there might be a circle.
		for up, steps := st.parent, 0; up > 0 && steps < len(all); up, steps = all[up].parent, steps+1 {
			if up == pid {
				found = append(found, Process{ID{one, st.start}, st.parent, st.group, st.session})
				break
			}
		}
	}
	return found
}

// each calls f for every process, but those that end meanwhile, until f fails.
func (t table) each(f func(pid int, st stat, err error) error) error {
	dir, err := os.Open(t.proc)
	if err != nil {
		return err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		st, err := t.stat(name)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			continue
		}
		if err := f(pid, st, err); err != nil {
			return err
		}
	}
	return nil
}

// stat is what /proc/PID/stat tells that matters here; see proc_pid_stat(5).
type stat struct {
	state                  byte
	parent, group, session int
	threads                int
	start                  uint64
}

// dead reports whether the process is a zombie. One whose first thread has
// ended while others run looks like one, but for their number.
func (s stat) dead() bool { return (s.state == 'Z' || s.state == 'X') && s.threads <= 1 }

func (t table) stat(pid string) (stat, error) {
	text, err := os.ReadFile(filepath.Join(t.proc, pid, "stat"))
	if err != nil {
		return stat{}, err
	}
	// The second field is the program's name in parentheses, which may itself
	// hold spaces and parentheses.
	s := string(text)
	f := strings.Fields(s[strings.LastIndexByte(s, ')')+1:])
	if len(f) < 20 {
		return stat{}, fmt.Errorf("%s/%s/stat cannot be read", t.proc, pid)
	}
	st := stat{state: f[0][0]}
	var errs [5]error
	st.parent, errs[0] = strconv.Atoi(f[1])
	st.group, errs[1] = strconv.Atoi(f[2])
	st.session, errs[2] = strconv.Atoi(f[3])
	st.threads, errs[3] = strconv.Atoi(f[17])
	st.start, errs[4] = strconv.ParseUint(f[19], 10, 64)
	return st, errors.Join(errs[:]...)
}
