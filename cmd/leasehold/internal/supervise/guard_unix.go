//go:build unix

package supervise

import (
	"bufio"
	"encoding/json"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leasehold/leasehold/cmd/leasehold/internal/procs"
)

// Guard is the wrapper's hand on a command: the watchdog that runs it, and the
// process group they are in.
type Guard struct {
	process *os.Process
	id      procs.ID // of the watchdog, which leads the group
	orders  *os.File
	reports chan report // closed when the watchdog is gone
	closed  chan struct{}
	reap    func()

	mu   sync.Mutex
	plan Plan
}

// New starts the watchdog for a command, which it does not run yet. This process
// must have no other children, now or later: what descends from it is taken for
// the command's.
func New(argv []string) (*Guard, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	ordersR, ordersW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	reportsR, reportsW, err := os.Pipe()
	if err != nil {
		ordersR.Close()
		ordersW.Close()
		return nil, err
	}
	// The watchdog gets its ends under the numbers they have here, so that no
	// descriptor the command is to inherit has to make room for them.
	defer ordersR.Close()
	defer reportsW.Close()
	fds := [2]int{inheritable(ordersR), inheritable(reportsW)}
	args := append([]string{"leasehold", watchdogArg, strconv.Itoa(fds[0]), strconv.Itoa(fds[1]), "--"}, argv...)
	adoptOrphans() // of the watchdog
	process, err := os.StartProcess(self, args, &os.ProcAttr{
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
		Sys:   &syscall.SysProcAttr{Setpgid: true},
	})
	if err != nil {
		ordersW.Close()
		reportsR.Close()
		return nil, err
	}
	g := &Guard{
		process: process,
		orders:  ordersW,
		reports: make(chan report),
		closed:  make(chan struct{}),
		// Until then its number, which is the group's, is nobody else's.
		reap: sync.OnceFunc(func() { _, _ = process.Wait() }),
	}
	if g.id, err = procs.Find(process.Pid); err != nil {
		g.id = procs.ID{PID: process.Pid} // fit for signals, not for Metadata
	}
	go g.listen(reportsR)
	return g, nil
}

func inheritable(f *os.File) (fd int) {
	// Not Fd(), which would make the pipe block.
	if conn, err := f.SyscallConn(); err == nil {
		_ = conn.Control(func(n uintptr) {
			fd = int(n)
			_, _ = unix.FcntlInt(n, unix.F_SETFD, 0)
		})
	}
	return fd
}

func (g *Guard) listen(f *os.File) {
	defer f.Close()
	defer close(g.reports)
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var r report
		if json.Unmarshal(lines.Bytes(), &r) != nil {
			continue
		}
		select {
		case g.reports <- r:
		case <-g.closed:
			return
		}
	}
}

// Leader identifies the watchdog, whose number is also the group's.
func (g *Guard) Leader() procs.ID { return g.id }

// SetPlan says when the command must end. It is called before Run and after
// each renewal.
func (g *Guard) SetPlan(p Plan) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.plan = p
	g.order(order{Plan: &wirePlan{machineTime(p.Term), machineTime(p.Kill)}})
}

func (g *Guard) currentPlan() Plan {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.plan
}

// order tells the watchdog. One that does not listen, because it was stopped,
// goes on with an older plan, which ends earlier.
func (g *Guard) order(o order) {
	line, err := json.Marshal(o)
	if err != nil {
		return
	}
	_ = g.orders.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
	_, _ = g.orders.Write(append(line, '\n'))
}

// gone reports whether nobody in the group is alive, for certain.
func (g *Guard) gone() bool {
	if procs.GroupGone(g.id) {
		return true
	}
	if _, err := procs.Members(g.id.PID); err == nil {
		return false
	}
	// Only kill(2) can tell, to which a dead watchdog is a member until it is
	// collected.
	g.reap()
	return procs.GroupGone(g.id)
}

// Close ends the watchdog. It is called when no command runs, before Run or
// after it.
func (g *Guard) Close() {
	close(g.closed)
	g.orders.Close()
	_ = g.process.Kill()
	g.reap()
}
