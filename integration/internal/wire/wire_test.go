package wire

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// echo is a server that answers each line with itself, and notes it.
type echo struct {
	net.Listener
	mu    sync.Mutex
	lines []string
	conns sync.WaitGroup
}

func newEcho(t *testing.T) *echo {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	e := &echo{Listener: l}
	e.conns.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			e.conns.Go(func() {
				defer c.Close()
				for s := bufio.NewScanner(c); s.Scan(); {
					e.mu.Lock()
					e.lines = append(e.lines, s.Text())
					e.mu.Unlock()
					fmt.Fprintln(c, s.Text())
				}
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		e.conns.Wait()
	})
	return e
}

func (e *echo) heard(line string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, l := range e.lines {
		if l == line {
			return true
		}
	}
	return false
}

// proxied returns a server, a proxy of it that is closed after the test, and
// looks for goroutines it left.
func proxied(t *testing.T) (*echo, *Proxy) {
	t.Helper()
	e := newEcho(t)
	p, err := New(e.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Close()
		buf := make([]byte, 1<<20)
		for try := 0; ; try++ {
			// A goroutine that Close has waited for may still be on its way out.
			stacks := string(buf[:runtime.Stack(buf, true)])
			if !strings.Contains(stacks, "wire.(*Proxy).accept") && !strings.Contains(stacks, "wire.(*Proxy).carry") && !strings.Contains(stacks, "wire.(*link)") {
				return
			}
			if try == 100 {
				t.Errorf("left behind after Close:\n%s", stacks)
				return
			}
			time.Sleep(time.Millisecond)
		}
	})
	return e, p
}

type conn struct {
	*net.TCPConn
	r *bufio.Reader
}

func dial(t *testing.T, p *Proxy) conn {
	t.Helper()
	c, err := net.Dial("tcp", p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return conn{c.(*net.TCPConn), bufio.NewReader(c)}
}

// ask sends a line and returns the answer.
func (c conn) ask(line string, patience time.Duration) (string, error) {
	c.SetDeadline(time.Now().Add(patience))
	if _, err := fmt.Fprintln(c, line); err != nil {
		return "", err
	}
	answer, err := c.r.ReadString('\n')
	return strings.TrimSpace(answer), err
}

func (c conn) works(t *testing.T, line string) {
	t.Helper()
	if answer, err := c.ask(line, 10*time.Second); answer != line || err != nil {
		t.Errorf("asked %q, answered %q: %v", line, answer, err)
	}
}

// refused asks in a new connection, which may be reset before it is a connection.
func refused(t *testing.T, p *Proxy) {
	t.Helper()
	c, err := net.Dial("tcp", p.Addr())
	if err != nil {
		return
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := bufio.NewReader(c).ReadString('\n'); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a new connection is not refused: %v", err)
	}
}

// short is how long a test listens for what must not come.
const short = 100 * time.Millisecond

func (c conn) hearsNothing(t *testing.T, line string) {
	t.Helper()
	if answer, err := c.ask(line, short); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("asked %q, answered %q: %v; want silence", line, answer, err)
	}
}

func TestPass(t *testing.T) {
	_, p := proxied(t)
	c := dial(t, p)
	c.works(t, "one")
	c.works(t, "two")
	// An end travels, too, and what was sent before it is not lost.
	fmt.Fprintln(c, "three")
	c.CloseWrite()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	rest, err := io.ReadAll(c.r)
	if string(rest) != "three\n" || err != nil {
		t.Errorf("after the end: %q, %v", rest, err)
	}
}

func TestCut(t *testing.T) {
	_, p := proxied(t)
	c := dial(t, p)
	c.works(t, "before")
	p.Cut()
	if _, err := c.ask("after", 10*time.Second); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a connection that was cut: %v", err)
	}
	refused(t, p)
	p.Heal()
	dial(t, p).works(t, "healed")
}

func TestBlackHole(t *testing.T) {
	e, p := proxied(t)
	c, gone := dial(t, p), dial(t, p)
	c.works(t, "before")
	gone.works(t, "before")
	p.BlackHole()
	c.hearsNothing(t, "lost")
	gone.Close()
	fresh := dial(t, p)
	fresh.hearsNothing(t, "new")
	p.Heal()
	c.hearsNothing(t, "still lost")
	fresh.hearsNothing(t, "still new")
	dial(t, p).works(t, "healed")
	for _, line := range []string{"lost", "new", "still lost", "still new"} {
		if e.heard(line) {
			t.Errorf("the server heard %q", line)
		}
	}
	p.Cut()
	if _, err := c.ask("cut", 10*time.Second); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a black-holed connection that was cut: %v", err)
	}
}

// A peer that does not read must not keep BlackHole from returning.
func TestBlackHoleWhileWriting(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	p, err := New(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	c := dial(t, p)
	c.SetDeadline(time.Now().Add(time.Second))
	for err == nil {
		_, err = c.Write(make([]byte, 1<<20))
	}
	done := make(chan struct{})
	go func() {
		p.BlackHole()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("BlackHole does not return")
	}
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Write(make([]byte, 64<<20)); err != nil {
		t.Errorf("a black hole swallows everything: %v", err)
	}
}

func TestDropReplies(t *testing.T) {
	e, p := proxied(t)
	c := dial(t, p)
	c.works(t, "before")
	p.DropReplies()
	c.hearsNothing(t, "written")
	fresh := dial(t, p)
	fresh.hearsNothing(t, "also written")
	for _, line := range []string{"written", "also written"} {
		if !e.heard(line) {
			t.Errorf("the server did not hear %q", line)
		}
	}
	p.Heal()
	c.hearsNothing(t, "again")
	dial(t, p).works(t, "healed")
}

func TestDelay(t *testing.T) {
	_, p := proxied(t)
	c := dial(t, p)
	c.works(t, "before")
	const d = 50 * time.Millisecond
	p.Delay(d)
	start := time.Now()
	c.works(t, "slow")
	if took := time.Since(start); took < 2*d {
		t.Errorf("there and back took %v with a delay of %v", took, d)
	}
	// It is a delay, not a rate.
	p.Delay(500 * time.Millisecond)
	start = time.Now()
	for i := range 20 {
		fmt.Fprintln(c, i)
		time.Sleep(time.Millisecond)
	}
	c.SetDeadline(start.Add(10 * time.Second))
	for i := range 20 {
		if line, err := c.r.ReadString('\n'); line != fmt.Sprintln(i) || err != nil {
			t.Fatalf("line %d is %q: %v", i, line, err)
		}
	}
	if took := time.Since(start); took < time.Second || took > 5*time.Second {
		t.Errorf("20 lines took %v", took)
	}
	p.Delay(0)
	// What is delayed when the wire is black-holed never arrives.
	p.Delay(short)
	fmt.Fprintln(c, "late")
	p.BlackHole()
	c.hearsNothing(t, "later")
}

func TestTargetIsDown(t *testing.T) {
	e, p := proxied(t)
	e.Close()
	refused(t, p)
}

func TestCloseInUse(t *testing.T) {
	for _, fault := range []func(*Proxy){(*Proxy).Heal, (*Proxy).Cut, (*Proxy).BlackHole, (*Proxy).DropReplies, func(p *Proxy) { p.Delay(time.Hour) }} {
		_, p := proxied(t)
		c := dial(t, p)
		c.works(t, "before")
		fault(p)
		fmt.Fprintln(c, "under way")
		if fresh, err := net.Dial("tcp", p.Addr()); err == nil {
			defer fresh.Close()
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		if _, err := c.ask("after", 10*time.Second); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("after Close: %v", err)
		}
		if _, err := net.Dial("tcp", p.Addr()); err == nil {
			t.Error("a closed proxy accepts")
		}
	}
}
