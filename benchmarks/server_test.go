//go:build unix

package benchmarks

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

	"github.com/go-logr/logr"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
)

func TestMain(m *testing.M) {
	// client-go tells of every election; between the figures nobody wants that.
	klog.SetLogger(logr.Discard())

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	kube.ctx, kube.stop = context.WithCancel(ctx)
	go func() {
		<-ctx.Done()
		closeServer()
		os.Exit(130)
	}()
	code := m.Run()
	closeServer()
	os.Exit(code)
}

// kube is the API server of all benchmarks; the first that asks starts it.
var kube struct {
	ctx  context.Context // ends it
	stop context.CancelFunc

	mu   sync.Mutex
	cfg  *rest.Config
	err  error
	done chan struct{} // closed when its process has ended; nil without one
}

// server returns how to reach the API server. If none can be had the benchmark is
// skipped, or fails with LEASEHOLD_REQUIRE_SERVERS=1.
func server(b *testing.B) *rest.Config {
	b.Helper()
	kube.mu.Lock()
	defer kube.mu.Unlock()
	if kube.cfg == nil && kube.err == nil {
		kube.cfg, kube.err = startServer(kube.ctx)
	}
	switch {
	case kube.err == nil:
		return rest.CopyConfig(kube.cfg)
	case os.Getenv("LEASEHOLD_REQUIRE_SERVERS") == "1":
		b.Fatalf("LEASEHOLD_REQUIRE_SERVERS=1, and there is no Kubernetes API server: %v", kube.err)
	default:
		b.Skipf("no Kubernetes API server: %v", kube.err)
	}
	return nil
}

// startServer has the command of the integration tests start an API server, or
// find the given one. That is a process of its own, as an API server should be
// whose client is measured; and the packages behind it are internal.
func startServer(ctx context.Context) (*rest.Config, error) {
	dir, err := os.MkdirTemp("", "leasehold-benchmarks-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)       // a running program needs no file
	const home = "../integration" // where it looks for what it has built
	// Not `go run`: that does not end the program when it is ended itself.
	program, file := filepath.Join(dir, "servers"), filepath.Join(dir, "kubeconfig")
	build := exec.CommandContext(ctx, "go", "build", "-o", program, "./cmd/servers")
	build.Dir = home
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%w\n%s", err, out)
	}
	var said bytes.Buffer
	cmd := exec.CommandContext(ctx, program, "run", "kubernetes", "--kubeconfig", file)
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
			if line := lines.Text(); strings.HasPrefix(line, "export KUBECONFIG=") {
				ready <- nil
			} else if strings.HasPrefix(line, "kubernetes: ") {
				fmt.Println(line) // benchstat takes it for a property of the run
			}
		}
		err := cmd.Wait()
		select {
		case ready <- errors.Join(fmt.Errorf("%s", strings.TrimSpace(said.String())), err):
		default:
		}
	}()
	kube.done = done
	if err := <-ready; err != nil {
		return nil, err
	}
	return clientcmd.BuildConfigFromFlags("", file)
}

func closeServer() {
	kube.stop()
	kube.mu.Lock() // not while it starts
	defer kube.mu.Unlock()
	if kube.done != nil {
		<-kube.done
	}
}
