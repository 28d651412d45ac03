package boottime

import (
	"container/heap"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const suspend = true

// now is a raw system call: package unix would announce it to the scheduler,
// which costs more than the call itself, and this one never blocks.
func now() time.Duration {
	var ts unix.Timespec
	if _, _, e := syscall.RawSyscall(unix.SYS_CLOCK_GETTIME, unix.CLOCK_BOOTTIME, uintptr(unsafe.Pointer(&ts)), 0); e != 0 {
		// Linux has had CLOCK_BOOTTIME since 2.6.39, long before any kernel Go runs on.
		panic("boottime: clock_gettime(CLOCK_BOOTTIME): " + e.Error())
	}
	return time.Duration(ts.Nano())
}

func bootID() (string, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("the id of this boot cannot be read: %w", err)
	}
	// A time namespace has an offset of its own: its instants are no one else's.
	ns, err := os.Readlink("/proc/self/ns/time")
	if err != nil {
		ns = "" // a kernel before 5.6 has none
	}
	return strings.TrimSpace(string(id)) + ns, nil
}

func afterFunc(d time.Duration, f func()) Timer {
	t := &timer{f: f, at: now() + max(d, 0)}
	if err := timers.add(t); err != nil {
		// No timerfd to be had (a sandbox, or a limit that is reached): the runtime's
		// timer is late by the time spent in suspend, but it is a timer.
		return time.AfterFunc(d, f)
	}
	return t
}

// timers serves every timer of the process with one timerfd and one goroutine,
// which exist only while there are timers.
var timers dispatcher

// linger is how long the goroutine waits for another timer when none is left.
const linger = 10 * time.Millisecond

type dispatcher struct {
	mu    sync.Mutex
	queue timerQueue
	file  *os.File      // nil while the goroutine does not run
	armed time.Duration // the instant the timerfd goes off
}

func (d *dispatcher) add(t *timer) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.file == nil {
		fd, err := unix.TimerfdCreate(unix.CLOCK_BOOTTIME, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
		if err != nil {
			return err
		}
		file := os.NewFile(uintptr(fd), "timerfd")
		if err := file.SetReadDeadline(time.Time{}); err != nil {
			file.Close()
			return err // it cannot be waited for: the limit of epoll is reached, or a sandbox forbids it
		}
		d.file = file
		heap.Push(&d.queue, t)
		d.arm(t.at)
		go d.run(d.file)
		return nil
	}
	heap.Push(&d.queue, t)
	if t.at < d.armed || len(d.queue) == 1 {
		d.arm(t.at)
	}
	return nil
}

// arm sets the timerfd; d.mu is held. An instant of 0 would disarm it.
func (d *dispatcher) arm(at time.Duration) {
	d.armed = max(at, 1)
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(int64(d.armed))}
	conn, err := d.file.SyscallConn()
	if err == nil {
		err = conn.Control(func(fd uintptr) {
			if e := unix.TimerfdSettime(int(fd), unix.TFD_TIMER_ABSTIME, &spec, nil); e != nil {
				panic("boottime: timerfd_settime: " + e.Error()) // impossible for these arguments
			}
		})
	}
	if err != nil {
		panic("boottime: timerfd: " + err.Error()) // only this file closes it
	}
}

func (d *dispatcher) run(file *os.File) {
	var buf [8]byte
	idle := false
	for {
		if _, err := file.Read(buf[:]); err != nil {
			panic("boottime: timerfd: " + err.Error())
		}
		d.mu.Lock()
		t := now()
		for len(d.queue) > 0 && d.queue[0].at <= t {
			go heap.Pop(&d.queue).(*timer).f()
			idle = false
		}
		switch {
		case len(d.queue) > 0:
			idle = false
			d.arm(d.queue[0].at)
		case !idle:
			idle = true
			d.arm(t + linger)
		default:
			d.file = nil
			d.mu.Unlock()
			file.Close()
			return
		}
		d.mu.Unlock()
	}
}

type timer struct {
	at    time.Duration
	f     func()
	index int // in the queue, -1 when it is not there any more
}

func (t *timer) Stop() bool {
	d := &timers
	d.mu.Lock()
	defer d.mu.Unlock()
	if t.index < 0 {
		return false
	}
	heap.Remove(&d.queue, t.index)
	if len(d.queue) == 0 {
		d.arm(now() + linger) // let the goroutine find out that it is done
	}
	return true
}

type timerQueue []*timer

func (q timerQueue) Len() int           { return len(q) }
func (q timerQueue) Less(i, j int) bool { return q[i].at < q[j].at }
func (q timerQueue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].index, q[j].index = i, j
}

func (q *timerQueue) Push(x any) {
	t := x.(*timer)
	t.index = len(*q)
	*q = append(*q, t)
}

func (q *timerQueue) Pop() any {
	old := *q
	t := old[len(old)-1]
	old[len(old)-1] = nil
	*q = old[:len(old)-1]
	t.index = -1
	return t
}
