package procs

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
)

// world is a process table made up for a test.
type world struct {
	t      *testing.T
	dir    string
	probes map[int]error // what kill(2) says; ESRCH where there is nothing
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, dir: t.TempDir(), probes: map[int]error{}}
	w.write("self/mountinfo", "22 1 0:20 / /proc rw,nosuid - proc proc rw\n")
	return w
}

func (w *world) write(name, text string) {
	name = filepath.Join(w.dir, name)
	os.MkdirAll(filepath.Dir(name), 0o755)
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		w.t.Fatal(err)
	}
}

// process adds one that may be signalled.
func (w *world) process(pid, group int, state string, threads, start int) {
	w.probes[pid], w.probes[-group] = nil, nil
	// The name is a trap for whoever splits the line at spaces.
	w.write(fmt.Sprint(pid, "/stat"), fmt.Sprintf("%d (x) R 1 (y) %s 1 %d %d 0 -1 0 0 0 0 0 0 0 0 0 20 0 %d 0 %d 0 0\n", pid, state, group, group, threads, start))
}

func (w *world) table() table {
	return table{proc: w.dir, probe: func(pid int) error {
		if err, ok := w.probes[pid]; ok {
			return err
		}
		return syscall.ESRCH
	}}
}

func TestGone(t *testing.T) {
	tests := []struct {
		what string
		set  func(w *world)
		gone bool
	}{
		{"no such process", func(w *world) {}, true},
		{"running", func(w *world) { w.process(70, 70, "S", 5, 1000) }, false},
		{"stopped", func(w *world) { w.process(70, 70, "T", 5, 1000) }, false},
		{"another got its number", func(w *world) { w.process(70, 70, "S", 5, 2000) }, true},
		{"a zombie", func(w *world) { w.process(70, 70, "Z", 1, 1000) }, true},
		{"first thread ended, others run", func(w *world) { w.process(70, 70, "Z", 2, 1000) }, false},
		{"another user's", func(w *world) { w.process(70, 70, "S", 5, 1000); w.probes[70] = syscall.EPERM }, false},
		{"another user's, number reused", func(w *world) { w.process(70, 70, "S", 5, 2000); w.probes[70] = syscall.EPERM }, true},
		{"hidden", func(w *world) { w.probes[70] = syscall.EPERM }, false},
		{"unreadable", func(w *world) { w.probes[70] = nil; w.write("70/stat", "70 (x) S 1\n") }, false},
		{"kill fails otherwise", func(w *world) { w.probes[70] = syscall.EINVAL }, false},
	}
	for _, tt := range tests {
		w := newWorld(t)
		tt.set(w)
		if got := w.table().gone(ID{70, 1000}); got != tt.gone {
			t.Errorf("%s: gone is %v", tt.what, got)
		}
	}
}

func TestGroupGone(t *testing.T) {
	tests := []struct {
		what string
		set  func(w *world)
		gone bool
	}{
		{"nobody", func(w *world) {}, true},
		{"the leader", func(w *world) { w.process(70, 70, "S", 1, 1000) }, false},
		{"a member without the leader", func(w *world) { w.process(71, 70, "S", 1, 1001) }, false},
		{"a stopped member, the leader a zombie", func(w *world) { w.process(70, 70, "Z", 1, 1000); w.process(71, 70, "T", 1, 1001) }, false},
		{"zombies only", func(w *world) { w.process(70, 70, "Z", 1, 1000); w.process(71, 70, "Z", 1, 1001) }, true},
		{"a zombie with a thread", func(w *world) { w.process(71, 70, "Z", 3, 1001) }, false},
		{"zombies, and others may be hidden", func(w *world) {
			w.process(71, 70, "Z", 1, 1001)
			w.write("self/mountinfo", "22 1 0:20 / /proc rw - proc proc rw,hidepid=invisible\n")
		}, false},
		{"zombies, and one that cannot be read", func(w *world) {
			w.process(71, 70, "Z", 1, 1001)
			w.write("72/stat", "")
		}, false},
		{"members that /proc does not show", func(w *world) { w.probes[-70] = syscall.EPERM }, false},
		{"another group under the number", func(w *world) { w.process(70, 70, "S", 1, 2000) }, true},
		{"another process under the number, which means the group had ended", func(w *world) { w.process(70, 9, "S", 1, 2000); w.probes[-70] = nil }, true},
		{"strangers only", func(w *world) { w.process(71, 9, "S", 1, 1001) }, true},
	}
	for _, tt := range tests {
		w := newWorld(t)
		tt.set(w)
		if got := w.table().groupGone(ID{70, 1000}); got != tt.gone {
			t.Errorf("%s: gone is %v", tt.what, got)
		}
	}
}

func TestRealProcesses(t *testing.T) {
	self, err := Find(os.Getpid())
	if err != nil || self.Gone() {
		t.Fatalf("this process: %v, %v", self, err)
	}
	if !(ID{self.PID, self.Start + 1}).Gone() {
		t.Error("one that was started at another time is not gone")
	}
	cmd := exec.Command("sleep", "60")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	id, err := Find(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if id.Gone() || GroupGone(id) {
		t.Error("a running process is gone")
	}
	if m, err := Members(id.PID); err != nil || len(m) != 1 || m[0] != id.PID {
		t.Errorf("the members of its group are %v, %v", m, err)
	}
	cmd.Process.Kill()
	for range 1000 { // until it is a zombie
		if id.Gone() {
			break
		}
		exec.Command("true").Run()
	}
	if !id.Gone() || !GroupGone(id) {
		t.Error("a zombie is not gone")
	}
	cmd.Wait()
	if !id.Gone() || !GroupGone(id) {
		t.Error("a process that has ended is not gone")
	}
	a, err := Machine()
	if b, _ := Machine(); err != nil || a == "" || a != b {
		t.Errorf("the machine is %q, %q, %v", a, b, err)
	}
}

func TestParseID(t *testing.T) {
	id := ID{4711, 1 << 60}
	if got, err := ParseID(id.String()); err != nil || got != id {
		t.Errorf("%v comes back as %v, %v", id, got, err)
	}
	for _, s := range []string{"", "4711", "4711.", ".5", "x.5", "4711.x", "0.5", "1.5", "-4711.5", "4711.-5", "4711.5.6", strconv.FormatUint(1<<63, 10) + ".5"} {
		if id, err := ParseID(s); err == nil {
			t.Errorf("%q is %v", s, id)
		}
	}
}
