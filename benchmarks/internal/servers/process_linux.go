package servers

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// attributes lets the server end with this process however that ends, and keeps
// the terminal's Ctrl-C from it.
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
}

// cpuOfChildren is what the processes have used that pid has started.
func cpuOfChildren(pid int) (used time.Duration, ok bool) {
	const tick = time.Second / 100 // of the kernel's counts for programs
	if pid == 0 {
		return 0, false
	}
	all, err := os.ReadDir("/proc")
	if err != nil {
		return 0, false
	}
	for _, p := range all {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%s/stat", p.Name()))
		if err != nil {
			continue // no process, or none any more
		}
		// The name in brackets may hold anything.
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		if len(fields) < 13 || fields[1] != strconv.Itoa(pid) {
			continue
		}
		for _, text := range fields[11:13] { // as a user and in the kernel
			n, err := strconv.ParseInt(text, 10, 64)
			if err != nil {
				return 0, false
			}
			used += time.Duration(n) * tick
		}
		ok = true
	}
	return used, ok
}
