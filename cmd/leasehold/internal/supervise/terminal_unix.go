//go:build unix

package supervise

import (
	"os"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// terminal is the controlling terminal. Only the processes of one group at a
// time, the foreground, may read from it and get its signals (^C). Its methods
// do nothing on nil: there is none.
type terminal struct {
	file *os.File
	own  int // the group this process is in
}

// DieOfInterrupt ends this process as ^C would have, if it runs in the
// foreground of a terminal, so that the loop or script it runs in stops as well.
// If only the command was told, all of this process's group is.
func DieOfInterrupt(onlyCommand bool) {
	t := controllingTerminal()
	defer t.close()
	if t == nil || !t.swap(t.own, t.own) {
		return
	}
	who := os.Getpid()
	if onlyCommand {
		who = 0
	}
	signal.Reset(unix.SIGINT)
	if unix.Kill(who, unix.SIGINT) == nil {
		time.Sleep(time.Second) // it comes at any moment
	}
}

func controllingTerminal() *terminal {
	f, err := os.OpenFile("/dev/tty", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil
	}
	// A process in the background that changes the foreground is stopped, unless
	// it ignores this.
	signal.Ignore(unix.SIGTTOU)
	return &terminal{file: f, own: unix.Getpgrp()}
}

func (t *terminal) close() {
	if t != nil {
		t.file.Close()
	}
}

// pass makes another group the foreground in place of this process's, and
// reports whether it did.
func (t *terminal) pass(group int) bool { return t != nil && t.swap(t.own, group) }

// back takes the foreground back from the group, if that has it.
func (t *terminal) back(group int) { _ = t != nil && t.swap(group, t.own) }

func (t *terminal) swap(from, to int) (done bool) {
	conn, err := t.file.SyscallConn()
	if err != nil {
		return false
	}
	_ = conn.Control(func(fd uintptr) {
		now, err := unix.IoctlGetInt(int(fd), unix.TIOCGPGRP)
		done = err == nil && now == from && unix.IoctlSetPointerInt(int(fd), unix.TIOCSPGRP, to) == nil
	})
	return done
}

// interactive reports whether the command is the one that talks with the person
// at the terminal. Where its input or output is a pipe, another program of the
// same pipeline may (a pager, say): then the foreground waits until the command
// asks for it.
func interactive() bool {
	return term.IsTerminal(int(os.Stdin.Fd())) && term.IsTerminal(int(os.Stdout.Fd()))
}
