//go:build linux

package file

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/leasehold/leasehold/backend"
)

// The tests below run this test program again as another process, in one of
// these roles.
var roles = map[string]func(dir string, args []string) error{
	"hammer": hammer,
	"chaos":  chaos,
	"touch":  touch,
}

const roleVar = "LEASEHOLD_FILE_TEST_ROLE"

func TestMain(m *testing.M) {
	if role := os.Getenv(roleVar); role != "" {
		if err := roles[role](os.Args[1], os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, role, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func process(t *testing.T, role, dir string, args ...string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe, append([]string{dir}, args...)...)
	cmd.Env = append(os.Environ(), roleVar+"="+role)
	cmd.Stderr = os.Stderr
	return cmd
}

// logTo returns a file that several processes may append lines to.
func logTo(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
}

// hammer takes one lease many times. While it holds it, it is alone with the
// file "inside", and appends its token to the log.
func hammer(dir string, args []string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	turns, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	s, err := New(dir)
	if err != nil {
		return err
	}
	defer s.Close()
	log, err := logTo(args[0])
	if err != nil {
		return err
	}
	inside := args[0] + ".inside"
	for range turns {
		var rec backend.Record
		for seen, err := range s.Watch(ctx, "hammered") {
			if err != nil {
				return err
			}
			if seen.Live() {
				continue
			}
			rec, err = s.Acquire(ctx, claim("hammered", strconv.Itoa(os.Getpid())))
			if err == nil {
				break
			}
			if !errors.Is(err, backend.ErrHeld) {
				return err
			}
		}
		if rec.Token == 0 {
			return ctx.Err()
		}
		f, err := os.OpenFile(inside, os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return fmt.Errorf("not alone: %w", err)
		}
		fmt.Fprintln(log, rec.Token)
		if rec, err = s.Renew(ctx, rec); err != nil {
			return err
		}
		if err := errors.Join(f.Close(), os.Remove(inside), s.Release(ctx, rec)); err != nil {
			return err
		}
	}
	return nil
}

func TestProcessesExcludeEachOther(t *testing.T) {
	const processes, turns = 8, 25
	dir, log := folder(t), filepath.Join(t.TempDir(), "log")
	var running []*exec.Cmd
	start := time.Now()
	for range processes {
		cmd := process(t, "hammer", dir, log, strconv.Itoa(turns))
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		running = append(running, cmd)
	}
	for _, cmd := range running {
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	}
	t.Logf("%v a turn", time.Since(start)/(processes*turns))
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Fields(string(text))
	if len(lines) != processes*turns {
		t.Errorf("%d turns, want %d", len(lines), processes*turns)
	}
	var last uint64
	for _, line := range lines {
		token, err := strconv.ParseUint(line, 10, 64)
		if err != nil || token <= last {
			t.Fatalf("token %s after %d", line, last)
		}
		last = token
	}
	s := client(t, dir)
	for rec, err := range s.List(t.Context(), "") {
		t.Errorf("left behind: %+v, %v", rec, err)
	}
	if left, _ := filepath.Glob(s.internal("*.tmp")); len(left) != 0 {
		t.Errorf("left behind: %q", left)
	}
}

// chaos does everything to a few leases until it is killed, and logs what it was
// granted.
func chaos(dir string, args []string) error {
	ctx := context.Background()
	s, err := New(dir)
	if err != nil {
		return err
	}
	log, err := logTo(args[0])
	if err != nil {
		return err
	}
	for {
		c := claim(fmt.Sprint("Lease ", rand.N(3)), strconv.Itoa(os.Getpid()))
		c.Metadata = map[string]string{"padding": strings.Repeat("x", rand.N(8000))}
		rec, err := s.Get(ctx, c.Name)
		c.Over = rec.Revision
		switch {
		case err != nil && !errors.Is(err, backend.ErrNotFound):
		case rec.Vacant() || rand.N(3) == 0:
			rec, err = s.Acquire(ctx, c)
			if err == nil {
				fmt.Fprintln(log, rec.Token)
			}
		case rand.N(3) == 0:
			err = s.Release(ctx, rec)
		default:
			_, err = s.Renew(ctx, rec)
		}
		if err != nil && !errors.Is(err, backend.ErrNotFound) && !errors.Is(err, backend.ErrHeld) && !errors.Is(err, backend.ErrLost) {
			fmt.Fprintln(log, err)
			return err
		}
	}
}

func TestKill(t *testing.T) {
	dir := folder(t)
	logPath := filepath.Join(t.TempDir(), "log")
	log, err := logTo(logPath)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	size := func() int64 {
		info, err := log.Stat()
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	victim := func() *exec.Cmd {
		cmd := process(t, "chaos", dir, logPath)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	victims := []*exec.Cmd{victim(), victim(), victim()}
	for i := range 40 {
		// Only one that works can be killed at its work.
		for before, deadline := size(), time.Now().Add(20*time.Second); size() == before; {
			if time.Now().After(deadline) {
				t.Fatal("no process gets anything done any more")
			}
			time.Sleep(time.Millisecond)
		}
		time.Sleep(rand.N(15 * time.Millisecond))
		v := victims[i%3]
		v.Process.Kill()
		v.Wait()
		if i < 37 {
			victims[i%3] = victim()
		}
	}
	f, err := os.Open(logPath)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	granted := make(map[uint64]bool)
	var greatest uint64
	for lines := bufio.NewScanner(f); lines.Scan(); {
		token, err := strconv.ParseUint(lines.Text(), 10, 64)
		if err != nil {
			t.Fatal(lines.Text())
		}
		if granted[token] {
			t.Fatalf("token %d was granted twice", token)
		}
		granted[token] = true
		greatest = max(greatest, token)
	}
	t.Logf("%d grants", len(granted))
	s := client(t, dir)
	for rec, err := range s.List(t.Context(), "") {
		if err != nil {
			t.Errorf("%+v: %v", rec, err)
			continue
		}
		greatest = max(greatest, rec.Token) // granted, and killed before it was logged
	}
	for i := range 3 {
		c := claim(fmt.Sprint("Lease ", i), "survivor")
		if rec, err := s.Get(t.Context(), c.Name); err == nil {
			c.Over = rec.Revision
		}
		if rec := acquire(t, s, c); rec.Token <= greatest {
			t.Errorf("token %d after %d", rec.Token, greatest)
		}
	}
	if files, _ := os.ReadDir(s.internal("")); len(files) > 2*(3+1)+1 {
		t.Errorf("the killed have left %v behind", files)
	}
}

// touch acquires a lease when it reads a line, and releases it at the next one.
func touch(dir string, args []string) error {
	ctx := context.Background()
	s, err := New(dir)
	if err != nil {
		return err
	}
	in := bufio.NewReader(os.Stdin)
	if _, err := in.ReadString('\n'); err != nil {
		return err
	}
	rec, err := s.Acquire(ctx, claim(args[0], "touch"))
	if err != nil {
		return err
	}
	if _, err := in.ReadString('\n'); err != nil {
		return err
	}
	return s.Release(ctx, rec)
}

func TestWatchOfAnotherProcess(t *testing.T) {
	dir := folder(t)
	s := client(t, dir, func(s *Store) { s.backstop = time.Hour })
	want := watching(t, t.Context(), s, "a/b")
	want("at first", "")
	cmd := process(t, "touch", dir, "a/b")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	io.WriteString(in, "\n")
	want("acquired", "touch")
	io.WriteString(in, "\n")
	want("released", "")
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// The floor is in the folder, not in a process.
func TestFloorOfAnotherProcess(t *testing.T) {
	dir := folder(t)
	s := client(t, dir, func(s *Store) { s.backstop = time.Hour })
	high := floored(t, s, claim("a/b", "here"), 1<<40)
	release(t, s, high)
	want := watching(t, t.Context(), s, "a/b")
	want("vacant", "")
	cmd := process(t, "touch", dir, "a/b")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	io.WriteString(in, "\n")
	want("acquired", "touch")
	theirs := get(t, s, "a/b")
	if theirs.Token != high.Token+1 {
		t.Errorf("another process got token %d after %d", theirs.Token, high.Token)
	}
	io.WriteString(in, "\n")
	want("vacated", "")
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if rec := acquire(t, s, claim("a/b", "here")); rec.Token != theirs.Token+1 {
		t.Errorf("token %d after %d", rec.Token, theirs.Token)
	}
}
