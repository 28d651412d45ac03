package program

import (
	"bufio"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/leasehold/leasehold/integration/internal/scene"
)

// Job is a command under a lease that ends when its standard input does.
type Job struct {
	*Program
	Process *os.Process  // of leasehold run
	Token   string       // that the command was told, once it was Granted
	End     func() error // ends the command

	cmd    *exec.Cmd
	stderr string // a file
	lines  *bufio.Scanner
}

const untilTold = "echo token $LEASEHOLD_TOKEN $LEASEHOLD_STORE; cat"

// Begin starts leasehold run.
func (p *Program) Begin(flags ...string) *Job {
	p.Helper()
	c := p.Command(append(append([]string{"run"}, flags...), "--", "sh", "-c", untilTold)...)
	in, err := c.StdinPipe()
	if err != nil {
		p.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		p.Fatal(err)
	}
	stderr, err := os.Create(filepath.Join(p.TempDir(), "stderr"))
	if err != nil {
		p.Fatal(err)
	}
	p.Cleanup(func() { stderr.Close() })
	c.Stderr = stderr
	if err := c.Start(); err != nil {
		p.Fatal(err)
	}
	return &Job{Program: p, Process: c.Process, End: in.Close, cmd: c, stderr: stderr.Name(), lines: bufio.NewScanner(out)}
}

// Said is all that leasehold has told so far.
func (j *Job) Said() string {
	j.Helper()
	text, err := os.ReadFile(j.stderr)
	if err != nil {
		j.Fatal(err)
	}
	return string(text)
}

// Granted waits until the command runs, and checks what it is told of the lease.
func (j *Job) Granted() {
	j.Helper()
	started := make(chan bool, 1)
	go func() { started <- j.lines.Scan() }()
	select {
	case ok := <-started:
		fields := strings.Fields(j.lines.Text())
		if !ok || len(fields) != 3 || fields[1] == "0" {
			j.Fatalf("the job says %q\n%s", j.lines.Text(), j.Said())
		}
		j.Token = fields[1]
		j.hides(fields[2])
		if scheme, _, _ := strings.Cut(j.URL, "://"); !strings.HasPrefix(fields[2], scheme+"://") {
			j.Errorf("the job is told of the store %q", fields[2])
		}
	case <-time.After(scene.Patience):
		j.Fatalf("the job is not started\n%s", j.Said())
	}
}

// Ends waits until leasehold has ended, which must be with code.
func (j *Job) Ends(code int) {
	j.Helper()
	done := make(chan struct{})
	go func() { _ = j.cmd.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(scene.Patience):
		j.Fatalf("leasehold does not end\n%s", j.Said())
	}
	if got := j.cmd.ProcessState.ExitCode(); got != code {
		j.Errorf("leasehold ended with %d, want %d\n%s", got, code, j.Said())
	}
	j.hides(j.Said())
}

// Event is one that leasehold run --json has told.
type Event struct {
	Time         time.Time
	Event, Cause string
}

// Event returns the first of a kind; it has no Time if there was none.
func (j *Job) Event(kind string) Event {
	j.Helper()
	for line := range strings.Lines(j.Said()) {
		var e Event
		if json.Unmarshal([]byte(line), &e) == nil && e.Event == kind {
			return e
		}
	}
	return Event{}
}
