package benchmarks

import "syscall"

// attributes lets the server end with this process however that ends, and keeps
// the terminal's Ctrl-C from it.
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
}
