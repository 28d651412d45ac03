package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// shell is an interactive shell on a terminal of its own.
type shell struct {
	p      *place
	typed  *os.File
	screen buffer
	seen   int // what expect has passed over
}

func (p *place) shell() *shell {
	p.t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		p.t.Skip(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		p.t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		p.t.Fatal(err)
	}
	defer slave.Close()
	sh := exec.Command("sh", "-i")
	sh.Dir = p.dir
	sh.Env = append(os.Environ(), "LEASEHOLD_STORE="+p.store, "PLACE="+p.dir, "PS1=$ ")
	sh.Stdin, sh.Stdout, sh.Stderr = slave, slave, slave
	sh.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := sh.Start(); err != nil {
		p.t.Fatal(err)
	}
	s := &shell{p: p, typed: master}
	read := make(chan struct{})
	go func() {
		defer close(read)
		b := make([]byte, 4096)
		for {
			n, err := master.Read(b)
			if err != nil {
				return
			}
			s.screen.Write(b[:n])
		}
	}()
	p.t.Cleanup(func() {
		sh.Process.Kill() // its terminal hangs up on the rest
		sh.Wait()
		<-read
		master.Close()
	})
	return s
}

func (s *shell) types(text string) {
	if _, err := s.typed.WriteString(text); err != nil {
		s.p.t.Fatal(err)
	}
}

// expect waits until the screen shows text, after what it showed before.
func (s *shell) expect(text string) {
	s.p.t.Helper()
	s.p.until(fmt.Sprintf("%q on the screen", text), func() bool {
		screen := s.screen.String()
		i := strings.Index(screen[s.seen:], text)
		if i >= 0 {
			s.seen += i + len(text)
		}
		return i >= 0
	})
}

const (
	ctrlC = "\x03"
	ctrlD = "\x04"
	ctrlZ = "\x1a"
)

func TestTerminal(t *testing.T) {
	p := newPlace(t)
	s := p.shell()
	s.expect("$ ")

	// The command has the terminal, and the shell has it afterwards.
	s.types("leasehold run job -- sh -c 'echo up $((1+1)); read x; echo got $x; exit 5'\n")
	s.expect("up 2")
	s.types("a line\n")
	s.expect("got a line")
	s.expect("$ ")
	s.types("echo code $?\n")
	s.expect("code 5")

	// ^C ends the command, and with it the loop that leasehold runs in: also
	// where the command does not have the terminal to itself.
	for _, redirect := range []string{"", ">/dev/null"} {
		s.expect("$ ")
		s.types("for i in 1 2 3; do leasehold run job -- sh -c 'echo up $((2+2)) >&2; exec sleep 60' " + redirect + "; done\n")
		s.expect("up 4")
		s.types(ctrlC)
		s.expect("$ ")
		s.types("echo code $?\n")
		s.expect("code 130")
	}

	// ^Z suspends all, and fg goes on.
	s.expect("$ ")
	s.types("leasehold run job -- sh -c 'echo up $((3+3)); read x; echo got $x; exit 6'\n")
	s.expect("up 6")
	s.types(ctrlZ)
	s.expect("Stopped")
	s.expect("$ ")
	s.types("fg\n")
	s.types("another\n")
	s.expect("got another")
	s.expect("$ ")
	s.types("echo code $?\n")
	s.expect("code 6")

	// In the background it is stopped when it wants to read, and then brought
	// forward.
	s.expect("$ ")
	s.types("leasehold run job -- sh -c 'read x; echo got $x' &\n")
	s.expect("$ ")
	p.until("it is stopped", func() bool {
		s.types("jobs\n") // a shell does not tell unasked
		s.expect("$ ")
		return strings.Contains(s.screen.String()[s.seen-min(s.seen, 200):], "Stopped")
	})
	s.types("fg\n")
	s.types("a third\n")
	s.expect("got a third")

	// Force asks.
	s.expect("$ ")
	c := p.start("run", "job", "--", "sh", "-c", family)
	p.untilFile("grandchild")
	s.types("leasehold release --force --now job\n")
	s.expect("Take it away? Type yes: ")
	s.types("no\n")
	s.expect("nothing was done")
	s.types("leasehold release --force --now job\n")
	s.expect("Take it away? Type yes: ")
	s.types("yes\n")
	s.expect("job is free: it was taken away from")
	c.ends(exitLost)
	s.types(ctrlD)
}
