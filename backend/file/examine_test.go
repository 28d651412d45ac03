//go:build linux

package file

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"

	"github.com/leasehold/leasehold/backend"
)

// finding returns what was found about one thing.
func finding(t *testing.T, s *Store, check string) backend.Finding {
	t.Helper()
	for f := range backend.Examine(t.Context(), s) {
		if f.Check == check {
			return f
		}
	}
	t.Errorf("nothing was found about the %s", check)
	return backend.Finding{}
}

func wantFinding(t *testing.T, f backend.Finding, level backend.Level, texts ...string) {
	t.Helper()
	if f.Level != level || level >= backend.Warning && f.Fix == "" {
		t.Errorf("the level of %+v is %v, want %v, with a fix", f, f.Level, level)
	}
	for _, text := range texts {
		if !strings.Contains(f.Detail+"\n"+f.Fix, text) {
			t.Errorf("%+v does not say %q", f, text)
		}
	}
}

func TestExamineHealthy(t *testing.T) {
	s := client(t, folder(t))
	acquire(t, s, claim("x", "y"))
	before := contents(t, s.dir)
	var checks []string
	for f := range backend.Examine(t.Context(), s) {
		if f.Check != "file system" && f.Check != "space" { // the machine's
			wantFinding(t, f, backend.Good)
		}
		checks = append(checks, f.Check)
	}
	if want := []string{"folder", "file system", "space", "notification", "clock", "token counter", "records"}; !slices.Equal(checks, want) {
		t.Errorf("looked at %v, want %v", checks, want)
	}
	wantFinding(t, finding(t, s, "records"), backend.Good, "1 held")
	wantFinding(t, finding(t, s, "token counter"), backend.Good, "at 1")
	if after := contents(t, s.dir); !slices.Equal(before, after) {
		t.Errorf("the folder held %v, and holds %v", before, after)
	}
}

// contents are the records of a folder, with their texts.
func contents(t *testing.T, dir string) (all []string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*"+suffix))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, f+string(text))
	}
	return all
}

func TestExamineFolder(t *testing.T) {
	s := client(t, folder(t))
	for _, dir := range []string{s.dir, s.internal("")} {
		if err := os.Chmod(dir, 0o770); err != nil {
			t.Fatal(err)
		}
		wantFinding(t, finding(t, s, "folder"), backend.Warning, "others may write to "+dir, "0770", "chmod go-w "+dir)
		if err := os.Chmod(dir, 0o500); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(filepath.Dir(filepath.Dir(s.dir)), 0o755); err != nil {
			t.Fatal(err)
		}
		asNobody(t, func() {
			wantFinding(t, finding(t, s, "folder"), backend.Problem, "cannot be written to", "uid")
		})
		if err := os.Chmod(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(s.dir, 65534, 65534); err != nil {
			t.Fatal(err)
		}
		wantFinding(t, finding(t, s, "folder"), backend.Warning, "uid 65534")
	}
	if err := os.RemoveAll(s.dir); err != nil {
		t.Fatal(err)
	}
	wantFinding(t, finding(t, s, "folder"), backend.Problem, s.dir)
}

func TestExamineFileSystem(t *testing.T) {
	s := client(t, folder(t))
	s.fileSystem = func(string) (string, bool, error) { return "NFS", true, nil }
	wantFinding(t, finding(t, s, "file system"), backend.Warning, "NFS")
	s.fileSystem = func(string) (string, bool, error) { return "", false, syscall.EIO }
	wantFinding(t, finding(t, s, "file system"), backend.Problem, "input/output")
	for number, want := range map[uint32]backend.Level{
		unix.EXT4_SUPER_MAGIC:      backend.Good,
		unix.TMPFS_MAGIC:           backend.Warning,
		unix.OVERLAYFS_SUPER_MAGIC: backend.Note,
		0x1234:                     backend.Good,
	} {
		if level, detail, fix := localFileSystem(number); level != want || detail == "" || level > backend.Good && fix == "" {
			t.Errorf("%#x: %v, %q, %q; want %v", number, level, detail, fix, want)
		}
	}
}

func TestExamineSpace(t *testing.T) {
	wantFinding(t, space(1<<30, 1e6), backend.Good, "1024 MB")
	wantFinding(t, space(75e9, 1e6), backend.Good, "69 GB")
	wantFinding(t, space(5<<20, 1e6), backend.Warning, "5 MB", "make room")
	wantFinding(t, space(1<<30, 10), backend.Warning, "10 more files", "make room")
	wantFinding(t, space(1000, 1e6), backend.Problem, "make room")
	wantFinding(t, space(1<<30, 0), backend.Problem, "0 more files")
}

func TestExamineNotifier(t *testing.T) {
	s := client(t, folder(t))
	s.notifier = func() (*fsnotify.Watcher, error) { return nil, syscall.EMFILE }
	wantFinding(t, finding(t, s, "notification"), backend.Warning, "too many open files", "max_user_instances")
}

func TestExamineTokens(t *testing.T) {
	s := client(t, folder(t))
	wantFinding(t, finding(t, s, "token counter"), backend.Good, "none yet")
	acquire(t, s, claim("x", "y"))
	later := client(t, s.dir, rebooted("another boot", &fakeClock{}))
	wantFinding(t, finding(t, later, "token counter"), backend.Good, "at 1001")
	if err := os.WriteFile(s.internal("tokens"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	wantFinding(t, finding(t, s, "token counter"), backend.Problem, s.internal("tokens"), "no lease can be acquired", "delete it")
}

func TestExamineRecords(t *testing.T) {
	clock := &fakeClock{now: time.Hour}
	s := client(t, folder(t), rebooted("this boot", clock))
	acquire(t, s, claim("a", "y"))
	clock.advance(time.Minute)
	acquire(t, s, claim("b", "y"))
	c := claim("c", "y")
	c.MinToken = 10
	release(t, s, acquire(t, s, c))
	if err := os.WriteFile(s.internal("00.tmp"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	wantFinding(t, finding(t, s, "records"), backend.Note, "1 held", "1 expired", "1 vacant", "1 being written", "release --expired")
	bad := filepath.Join(s.dir, "bad.json")
	if err := errors.Join(os.WriteFile(bad, nil, 0o600), os.WriteFile(filepath.Join(s.dir, "worse.json"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	wantFinding(t, finding(t, s, "records"), backend.Problem, "1 held", "2 that cannot be read", bad, "empty")
}

func TestExamineBehindAStuckProcess(t *testing.T) {
	s := client(t, folder(t))
	acquire(t, s, claim("x", "y"))
	unlock, err := client(t, s.dir).lock(t.Context(), &s.tokens, writing, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	began := time.Now()
	found := slices.Collect(backend.Examine(t.Context(), s))
	if took := time.Since(began); took > 3*examineTime {
		t.Errorf("it took %v", took)
	}
	if len(found) != 7 {
		t.Fatalf("found %+v", found)
	}
	wantFinding(t, found[5], backend.Problem, "stayed locked", "fuser")
	wantFinding(t, found[6], backend.Good, "1 held")
}

func TestExamineEnds(t *testing.T) {
	s := client(t, folder(t))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	n := 0
	for range backend.Examine(ctx, s) {
		n++
		cancel()
	}
	if n != 1 {
		t.Errorf("it goes on for %d findings after its context has ended", n-1)
	}
	for range backend.Examine(t.Context(), s) {
		break
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	wantFinding(t, slices.Collect(backend.Examine(t.Context(), s))[0], backend.Problem, "closed")
}
