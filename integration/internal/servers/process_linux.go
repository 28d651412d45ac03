package servers

import "syscall"

// attributes lets a server die with this process however that dies, and keeps
// the terminal's Ctrl-C from it.
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
