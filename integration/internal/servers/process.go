package servers

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// processes is a place whose servers are processes of this machine, in a
// temporary folder.
type processes struct {
	files map[string]string // of the programs
	tmp   string
}

func newProcesses(f *found) (place, error) {
	tmp, err := newFolder()
	if err != nil {
		return nil, err
	}
	return &processes{files: f.files, tmp: tmp}, nil
}

func (p *processes) dir(name string) string { return filepath.Join(p.tmp, name) }

func (p *processes) endpoint(_ string, _ int) (endpoint, error) {
	port, err := freePort()
	addr := fmt.Sprintf("127.0.0.1:%d", port)
	return endpoint{listen: addr, inside: addr, outside: addr}, err
}

func (p *processes) start(ctx context.Context, s spec) (server, error) {
	dir := p.dir(s.name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	for name, content := range s.files {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			return nil, err
		}
	}
	proc := &process{path: p.files[s.program], dir: dir, args: s.args}
	if err := proc.start(ctx); err != nil {
		return nil, err
	}
	return proc, nil
}

func (p *processes) close(context.Context) error { return os.RemoveAll(p.tmp) }

// process is one server. It is started again in the same folder with the same
// arguments.
type process struct {
	path, dir string
	args      []string

	mu   sync.Mutex
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
}

func (p *process) start(context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.alive() {
		return nil
	}
	cmd := exec.Command(p.path, p.args...)
	cmd.Dir = p.dir
	cmd.SysProcAttr = attributes()
	stdout, err := p.log("stdout")
	if err != nil {
		return err
	}
	defer stdout.Close()
	stderr, err := p.log("stderr")
	if err != nil {
		return err
	}
	defer stderr.Close()
	cmd.Stdout, cmd.Stderr = stdout, stderr
	if err := inKeeper(cmd.Start); err != nil {
		return err
	}
	p.cmd, p.done = cmd, make(chan struct{})
	go func(done chan struct{}) {
		cmd.Wait()
		close(done)
	}(p.done)
	return nil
}

func (p *process) log(name string) (*os.File, error) {
	return os.OpenFile(filepath.Join(p.dir, name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
}

// alive is called with mu held.
func (p *process) alive() bool {
	if p.cmd == nil {
		return false
	}
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

func (p *process) signal(sig syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.alive() {
		return errors.New("the server is not running")
	}
	return p.cmd.Process.Signal(sig)
}

func (p *process) pause(context.Context) error  { return p.signal(syscall.SIGSTOP) }
func (p *process) resume(context.Context) error { return p.signal(syscall.SIGCONT) }

func (p *process) stop(ctx context.Context) error {
	if err := p.signal(syscall.SIGKILL); err != nil {
		return err
	}
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (p *process) sever(context.Context, link) error { return errNoNetwork }
func (p *process) mend(context.Context, link) error  { return errNoNetwork }

var errNoNetwork = fmt.Errorf("a process cannot be cut off, it has no network of its own: %w", errors.ErrUnsupported)

func (p *process) running(context.Context) (bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.alive(), nil
}

// address is that of every process.
func (p *process) address(context.Context) (string, error) { return "127.0.0.1", nil }

func (p *process) remove(ctx context.Context) error {
	if ok, _ := p.running(ctx); !ok {
		return nil
	}
	return p.stop(ctx)
}

func (p *process) output(context.Context) (stdout, stderr []byte, err error) {
	stdout, err = os.ReadFile(filepath.Join(p.dir, "stdout"))
	if err == nil {
		stderr, err = os.ReadFile(filepath.Join(p.dir, "stderr"))
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return stdout, stderr, err
}

// keeper is a thread that lives as long as this process. A child that is to die
// with its parent really dies with the thread that started it, and threads of
// Go come and go.
var keeper = sync.OnceValue(func() chan<- func() {
	work := make(chan func())
	go func() {
		runtime.LockOSThread()
		for f := range work {
			f()
		}
	}()
	return work
})

func inKeeper(f func() error) error {
	err := make(chan error, 1)
	keeper() <- func() { err <- f() }
	return <-err
}

// within calls cond until it is true or an error, or time is up.
func within(ctx context.Context, d time.Duration, cond func() (bool, error)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, d, fmt.Errorf("not within %v", d))
	defer cancel()
	for {
		if ok, err := cond(); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(50 * time.Millisecond):
		}
	}
}
