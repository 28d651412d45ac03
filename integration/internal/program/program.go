// Package program runs the command, as it is built for users, on a store. A [Job]
// is what it runs under a lease.
package program

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// built is the command, built once for all tests of a package.
var built = sync.OnceValues(func() (string, error) {
	gomod, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return "", err
	}
	root := filepath.Dir(filepath.Dir(strings.TrimSpace(string(gomod))))
	cache := filepath.Join(root, ".cache")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	// Tests of several packages may want it at the same time.
	dir, err := os.MkdirTemp(cache, "leasehold-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	build := exec.Command("go", "build", "-o", filepath.Join(dir, "leasehold"), ".")
	build.Dir = filepath.Join(root, "cmd", "leasehold")
	build.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=")
	if out, err := build.CombinedOutput(); err != nil {
		return "", errors.New(string(out))
	}
	bin := filepath.Join(cache, "leasehold")
	return bin, os.Rename(filepath.Join(dir, "leasehold"), bin)
})

// Program is the command with a store.
type Program struct {
	testing.TB
	URL string // of the store

	bin string
}

// New returns the command with the store of a URL.
func New(t testing.TB, storeURL string) *Program {
	t.Helper()
	bin, err := built()
	if err != nil {
		t.Fatal(err)
	}
	return &Program{t, storeURL, bin}
}

// Command returns the command, which is to be started and ends with the test.
func (p *Program) Command(args ...string) *exec.Cmd {
	c := exec.CommandContext(p.Context(), p.bin, args...)
	c.Env = append(os.Environ(), "LEASEHOLD_STORE="+p.URL)
	return c
}

// Run runs the command, with arguments that have no blanks, to its end.
func (p *Program) Run(args string) (stdout, stderr string, code int) {
	p.Helper()
	c := p.Command(strings.Fields(args)...)
	var out, err bytes.Buffer
	c.Stdout, c.Stderr = &out, &err
	var exit *exec.ExitError
	switch failed := c.Run(); {
	case errors.As(failed, &exit):
		code = exit.ExitCode()
	case failed != nil:
		p.Fatal(failed)
	}
	return out.String(), err.String(), code
}

// Prints runs the command as [Program.Run] does. It must end with code, and print
// all of parts and no password; what it prints to standard output is returned.
func (p *Program) Prints(code int, args string, parts ...string) string {
	p.Helper()
	out, err, got := p.Run(args)
	if got != code {
		p.Fatalf("%s ended with %d, want %d\n%s%s", args, got, code, out, err)
	}
	for _, part := range parts {
		if !strings.Contains(out+err, part) {
			p.Fatalf("%s does not say %q:\n%s%s", args, part, out, err)
		}
	}
	p.hides(out + err)
	return out
}

// Watch watches a lease. Each call of state returns the next one that the command
// tells of; stop interrupts it.
func (p *Program) Watch(name string) (state func() string, stop func()) {
	p.Helper()
	c := p.Command("watch", name, "-o", "json")
	out, err := c.StdoutPipe()
	if err != nil {
		p.Fatal(err)
	}
	if err := c.Start(); err != nil {
		p.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	state = func() string {
		p.Helper()
		if !lines.Scan() {
			p.Fatalf("the watch has ended: %v", lines.Err())
		}
		var v struct{ State string }
		if err := json.Unmarshal(lines.Bytes(), &v); err != nil {
			p.Fatal(err)
		}
		return v.State
	}
	stop = func() {
		_ = c.Process.Signal(os.Interrupt)
		_ = c.Wait()
	}
	return state, stop
}

// hides checks that a text does not tell the password.
func (p *Program) hides(text string) {
	p.Helper()
	_, rest, _ := strings.Cut(p.URL, "://")
	user, _, _ := strings.Cut(rest, "@")
	if _, password, _ := strings.Cut(user, ":"); rest != user && password != "" && strings.Contains(text, password) {
		p.Errorf("the password is shown:\n%s", text)
	}
}
