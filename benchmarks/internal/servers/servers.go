//go:build unix

// Package servers starts the server that the benchmarks of a package share.
package servers

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Server is one that the command of the integration tests starts, or finds. That
// is a process of its own, as a server should be whose client is measured; and
// the packages behind the command are internal.
type Server struct {
	kind string // "kubernetes", …
	flag string // of the command: the file that says how to reach the server

	ctx  context.Context // ends it
	stop context.CancelFunc

	mu     sync.Mutex
	access []byte // what the file said
	err    error
	pid    int           // of the command
	done   chan struct{} // closed when it has ended; nil without one
}

// New returns a server that the first benchmark that asks starts.
func New(kind, flag string) *Server { return &Server{kind: kind, flag: flag} }

// Main is the TestMain of a package whose benchmarks use s. It ends the server
// when they are done, also when they were interrupted.
func (s *Server) Main(m *testing.M) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	s.ctx, s.stop = context.WithCancel(ctx)
	go func() {
		<-ctx.Done()
		s.close()
		os.Exit(130)
	}()
	code := m.Run()
	s.close()
	os.Exit(code)
}

// Access returns what tells how to reach the server. If none can be had the
// benchmark is skipped, or fails with LEASEHOLD_REQUIRE_SERVERS=1.
func (s *Server) Access(b *testing.B) []byte {
	b.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.access == nil && s.err == nil {
		s.access, s.err = s.start()
	}
	switch {
	case s.err == nil:
		return s.access
	case os.Getenv("LEASEHOLD_REQUIRE_SERVERS") == "1":
		b.Fatalf("LEASEHOLD_REQUIRE_SERVERS=1, and there is no server (%s): %v", s.kind, s.err)
	default:
		b.Skipf("no server (%s): %v", s.kind, s.err)
	}
	return nil
}

// CPU is what the server's processes have used. ok is false where that cannot be
// known: in containers, and where it was not started here.
func (s *Server) CPU() (_ time.Duration, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return cpuOfChildren(s.pid)
}

func (s *Server) start() ([]byte, error) {
	dir, err := os.MkdirTemp("", "leasehold-benchmarks-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)          // a running program needs no file
	const home = "../../integration" // where it looks for what it has built
	// Not `go run`: that does not end the program when it is ended itself.
	program, file := filepath.Join(dir, "servers"), filepath.Join(dir, "access")
	build := exec.CommandContext(s.ctx, "go", "build", "-o", program, "./cmd/servers")
	build.Dir = home
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%w\n%s", err, out)
	}
	var said bytes.Buffer
	cmd := exec.CommandContext(s.ctx, program, "run", s.kind, s.flag, file)
	cmd.Dir, cmd.Stderr, cmd.SysProcAttr = home, &said, attributes()
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = time.Minute // it has containers to remove
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	done, ready := make(chan struct{}), make(chan error, 1)
	go func() {
		defer close(done)
		// The child dies with the thread that started it, so that has to stay.
		runtime.LockOSThread()
		if err := cmd.Start(); err != nil {
			ready <- err
			return
		}
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if line := lines.Text(); line == "Until Ctrl-C." {
				ready <- nil
			} else if strings.HasPrefix(line, s.kind+": ") {
				fmt.Println(line) // benchstat takes it for a property of the run
			}
		}
		err := cmd.Wait()
		select {
		case ready <- errors.Join(fmt.Errorf("%s", strings.TrimSpace(said.String())), err):
		default:
		}
	}()
	s.done = done
	if err := <-ready; err != nil {
		return nil, err
	}
	s.pid = cmd.Process.Pid
	return os.ReadFile(file)
}

func (s *Server) close() {
	s.stop()
	s.mu.Lock() // not while it starts
	defer s.mu.Unlock()
	if s.done != nil {
		<-s.done
	}
}
