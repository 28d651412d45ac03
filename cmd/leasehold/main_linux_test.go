package main

import (
	"context"
	"errors"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/backend/file"
)

// The tests run this very program as leasehold, in processes of their own: it
// is in their PATH under that name.
func TestMain(m *testing.M) {
	os.Setenv("GORACE", "atexit_sleep_ms=0 "+os.Getenv("GORACE")) // each process would take a second to end
	testscript.Main(m, map[string]func(){
		"leasehold": main,
		"beat":      beat, // see fleet_linux_test.go
	})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: filepath.Join("testdata", "script"),
		Setup: func(e *testscript.Env) error {
			e.Setenv("XDG_STATE_HOME", filepath.Join(e.WorkDir, "state"))
			e.Setenv("NAME512", strings.Repeat("x", 512))
			e.Setenv("NAME513", strings.Repeat("x", 513))
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			// code N command args… runs a command that must end with exit code N.
			"code": func(ts *testscript.TestScript, neg bool, args []string) {
				if neg || len(args) < 2 {
					ts.Fatalf("usage: code N command args…")
				}
				err := ts.Exec(args[1], args[2:]...)
				if code := strconv.Itoa(exitCode(err)); code != args[0] {
					ts.Fatalf("exit code %s, want %s", code, args[0])
				}
			},
		},
	})
}

// exitCode is how a process ended, as a shell says it.
func exitCode(err error) int {
	var e *exec.ExitError
	switch {
	case err == nil:
		return 0
	case !errors.As(err, &e):
		return -1
	case e.Sys().(syscall.WaitStatus).Signaled():
		return 128 + int(e.Sys().(syscall.WaitStatus).Signal())
	}
	return e.ExitCode()
}

// hang is the file store, but that a method whose name is also that of a file
// in the folder does not answer.
type hang struct {
	*file.Store
	dir string
}

func init() {
	backend.Register("hang", func(ctx context.Context, u *url.URL) (backend.Store, error) {
		s, err := file.New(u.Path)
		return hang{s, u.Path}, err
	})
}

func (h hang) wait(ctx context.Context, method string) error {
	if _, err := os.Stat(filepath.Join(h.dir, method)); err != nil {
		return nil
	}
	<-ctx.Done()
	return ctx.Err()
}

func (h hang) Get(ctx context.Context, name string) (backend.Record, error) {
	if err := h.wait(ctx, "get"); err != nil {
		return backend.Record{}, err
	}
	return h.Store.Get(ctx, name)
}

func (h hang) Acquire(ctx context.Context, c backend.Claim) (backend.Record, error) {
	if err := h.wait(ctx, "acquire"); err != nil {
		return backend.Record{}, err
	}
	return h.Store.Acquire(ctx, c)
}

func (h hang) Renew(ctx context.Context, rec backend.Record) (backend.Record, error) {
	if err := h.wait(ctx, "renew"); err != nil {
		return backend.Record{}, err
	}
	return h.Store.Renew(ctx, rec)
}

func (h hang) Release(ctx context.Context, rec backend.Record) error {
	if err := h.wait(ctx, "release"); err != nil {
		return err
	}
	return h.Store.Release(ctx, rec)
}
