package main

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/leasehold/leasehold/internal/boottime"
)

// The tests of this file are short. In full size, on the program as it is built:
//
//	LEASEHOLD_FLEET=full go test -v -run TestFleet -timeout 30m ./cmd/leasehold
var full = os.Getenv("LEASEHOLD_FLEET") == "full"

// program is the leasehold to run.
func program(t *testing.T) string {
	if !full {
		return "leasehold" // this very program, see TestMain
	}
	path := filepath.Join(t.TempDir(), "leasehold")
	if out, err := exec.Command("go", "build", "-o", path, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return path
}

// TestFleetCounter lets many processes increment a number in a file, which goes
// wrong as soon as two do it at a time.
func TestFleetCounter(t *testing.T) {
	processes, turns := 5, 6
	if full {
		processes, turns = 20, 50
	}
	leasehold := program(t)
	dir := t.TempDir()
	counter := filepath.Join(dir, "counter")
	os.WriteFile(counter, []byte("0\n"), 0o644)
	began := time.Now()
	var wg sync.WaitGroup
	for range processes {
		wg.Go(func() {
			for range turns {
				cmd := exec.Command(leasehold, "run", "--quiet", "counter", "--", "sh", "-c", `read n <"$0"; echo $((n + 1)) >"$0"`, counter)
				cmd.Env = append(os.Environ(), "XDG_STATE_HOME="+dir)
				if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
					t.Errorf("%v: %s", err, out)
				}
			}
		})
	}
	wg.Wait()
	took := time.Since(began)
	b, _ := os.ReadFile(counter)
	if got := strings.TrimSpace(string(b)); got != strconv.Itoa(processes*turns) {
		t.Errorf("%d processes counted %d times each to %s", processes, turns, got)
	}
	t.Logf("%d processes × %d turns in %v: %v a turn", processes, turns, took.Round(time.Millisecond), (took / time.Duration(processes*turns)).Round(10*time.Microsecond))
}

// beat is the command of TestFleetChaos. It writes a line to a log, again and
// again, for as long as it runs: its token, its number, the time since boot.
//
//	beat LOG MILLISECONDS [deaf] [family]
func beat() {
	log, err := os.OpenFile(os.Args[1], os.O_APPEND|os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	ms, _ := strconv.Atoi(os.Args[2])
	how := os.Args[3:]
	if slices.Contains(how, "deaf") {
		signal.Ignore(syscall.SIGTERM)
	}
	if slices.Contains(how, "family") {
		cmd := exec.Command("beat", os.Args[1], "600000", "deaf")
		if err := cmd.Start(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	token := os.Getenv("LEASEHOLD_TOKEN")
	for end := boottime.Now() + time.Duration(ms)*time.Millisecond; boottime.Now() < end; time.Sleep(time.Millisecond) {
		fmt.Fprintf(log, "%s %d %d\n", token, os.Getpid(), boottime.Now())
	}
}

// TestFleetChaos kills and stops wrappers, watchdogs and commands at random,
// stopped ones for longer than the lease lasts. No two commands of different
// tokens may ever be at work at one time, and tokens must rise.
func TestFleetChaos(t *testing.T) {
	contenders, length := 4, 4*time.Second
	if full {
		contenders, length = 20, 3*time.Minute
	}
	const duration = time.Second
	leasehold := program(t)
	dir := t.TempDir()
	log := filepath.Join(dir, "log")
	os.WriteFile(log, nil, 0o644)
	end := time.Now().Add(length)

	stalls := watchStalls(end)
	var mu sync.Mutex
	running := map[int]bool{}  // wrappers
	codes := map[int]int{}     // exit codes, and how many
	harmed := map[int]string{} // wrappers, and what was done to them
	deeds := map[string]int{}  // what was done, and how often
	var stopped sync.WaitGroup // those that are to be continued

	var wg sync.WaitGroup
	for range contenders {
		wg.Go(func() {
			for time.Now().Before(end) {
				how := []string{log, strconv.Itoa(20 + rand.IntN(600))}
				if rand.IntN(2) == 0 {
					how = append(how, "deaf")
				}
				if rand.IntN(2) == 0 {
					how = append(how, "family")
				}
				args := []string{"run", "--quiet", "--duration", duration.String(), "chaos", "--"}
				if rand.IntN(4) == 0 {
					args = append(args, "timeout", "60") // which leaves the group
				}
				cmd := exec.Command(leasehold, append(append(args, "beat"), how...)...)
				cmd.Env = append(os.Environ(), "XDG_STATE_HOME="+dir)
				var stderr buffer
				cmd.Stderr = &stderr
				cmd.WaitDelay = time.Second
				began := boottime.Now()
				if err := cmd.Start(); err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				running[cmd.Process.Pid] = true
				mu.Unlock()
				cmd.Wait()
				code := cmd.ProcessState.ExitCode()
				mu.Lock()
				delete(running, cmd.Process.Pid)
				codes[code]++
				deed := harmed[cmd.Process.Pid]
				delete(harmed, cmd.Process.Pid)
				mu.Unlock()
				switch {
				case slices.Contains([]int{0, -1, 137, 143, exitLost, exitInternal}, code):
				case code == exitOutlived && stalls.since(began):
					// It tells the truth: this machine was too busy to kill in time.
				default:
					t.Errorf("exit code %d after %q: %s", code, deed, stderr.String())
				}
			}
		})
	}

	kill := func(pids ...int) {
		for _, pid := range pids {
			syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	stop := func(pid int) {
		if syscall.Kill(pid, syscall.SIGSTOP) == nil {
			stopped.Add(1)
			time.AfterFunc(duration+rand.N(2*duration), func() {
				syscall.Kill(pid, syscall.SIGCONT)
				stopped.Done()
			})
		}
	}
	for time.Now().Before(end) {
		time.Sleep(rand.N(2*duration/5) + time.Millisecond)
		child := lastBeat(log)
		mu.Lock()
		watchdog := parent(child)
		for watchdog > 1 && !running[parent(watchdog)] {
			watchdog = parent(watchdog)
		}
		wrapper := parent(watchdog)
		holds := running[wrapper] && harmed[wrapper] == ""
		var waiting []int
		for pid := range running {
			if pid != wrapper && harmed[pid] == "" {
				waiting = append(waiting, pid)
			}
		}
		deed := ""
		switch n := rand.IntN(10); {
		case n < 2 && len(waiting) > 0:
			wrapper = waiting[rand.IntN(len(waiting))]
			if n == 0 {
				deed = "kill waiting"
				kill(wrapper)
			} else {
				deed = "stop waiting"
				stop(wrapper)
			}
		case !holds:
		case n < 4:
			deed = "kill wrapper"
			kill(wrapper)
		case n < 5:
			deed = "kill watchdog"
			kill(watchdog)
		case n < 6:
			// Nobody is left then to care for a family, or for what is left of one.
			if args, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", child)); len(args) == 0 || parent(child) != watchdog || strings.Contains(string(args), "family") || strings.Contains(string(args), "600000") {
				break
			}
			deed = "kill both"
			kill(wrapper, watchdog)
		case n < 8:
			deed = "stop wrapper"
			stop(wrapper)
		case n < 9:
			deed = "stop watchdog"
			stop(watchdog)
		default:
			deed = "stop command"
			stop(child)
		}
		if deed != "" {
			harmed[wrapper] = deed
			deeds[deed]++
		}
		mu.Unlock()
	}
	stopped.Wait()
	wg.Wait()
	t.Cleanup(func() { // there is nobody, unless the test has failed
		left, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		for _, f := range left {
			if args, _ := os.ReadFile(f); strings.Contains(string(args), log) {
				pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(f)))
				t.Errorf("process %d is left: %q", pid, args)
				kill(pid)
			}
		}
	})

	tenures := readBeats(t, log)
	var gaps []time.Duration
	for i, a := range tenures {
		if a.last < a.first {
			t.Fatalf("%+v", a)
		}
		if i == 0 {
			continue
		}
		before := tenures[i-1]
		if a.token <= before.token {
			t.Errorf("token %d came after token %d", a.token, before.token)
		}
		if a.first <= before.last {
			t.Errorf("token %d was at work until %v, token %d from %v on: %v of both", before.token, before.last, a.token, a.first, before.last-a.first)
		}
		gaps = append(gaps, a.first-before.last)
	}
	slices.Sort(gaps)
	if len(gaps) < 3 {
		t.Fatalf("only %d tenures", len(tenures))
	}
	t.Logf("%d tenures in %v; from one to the next: least %v, median %v, longest %v", len(tenures), length, gaps[0], gaps[len(gaps)/2], gaps[len(gaps)-1])
	t.Logf("done to them: %v", deeds)
	t.Logf("exit codes: %v", codes)
}

// stallLog knows when this process was not scheduled for a while.
type stallLog struct {
	mu  sync.Mutex
	all []time.Duration
}

func watchStalls(end time.Time) *stallLog {
	s := &stallLog{}
	go func() {
		for last := boottime.Now(); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
			now := boottime.Now()
			if now-last > 30*time.Millisecond {
				s.mu.Lock()
				s.all = append(s.all, now)
				s.mu.Unlock()
			}
			last = now
		}
	}()
	return s
}

func (s *stallLog) since(t time.Duration) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.all) > 0 && s.all[len(s.all)-1] > t
}

type tenure struct {
	token       uint64
	first, last time.Duration
}

// readBeats returns when each token was at work, by its beginning.
func readBeats(t *testing.T, log string) []tenure {
	b, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	all := map[uint64]*tenure{}
	for line := range strings.Lines(string(b)) {
		var token uint64
		var pid int
		var at time.Duration
		if _, err := fmt.Sscanf(line, "%d %d %d\n", &token, &pid, (*int64)(&at)); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		x := all[token]
		if x == nil {
			x = &tenure{token: token, first: at}
			all[token] = x
		}
		x.first, x.last = min(x.first, at), max(x.last, at)
	}
	var sorted []tenure
	for _, x := range all {
		sorted = append(sorted, *x)
	}
	slices.SortFunc(sorted, func(a, b tenure) int { return cmp.Compare(a.first, b.first) })
	return sorted
}

// lastBeat is the process that wrote to the log last.
func lastBeat(log string) (pid int) {
	f, err := os.Open(log)
	if err != nil {
		return 0
	}
	defer f.Close()
	if end, err := f.Seek(0, 2); err == nil {
		f.Seek(max(end-200, 0), 0)
	}
	b := make([]byte, 200)
	n, _ := f.Read(b)
	lines := strings.Split(strings.TrimSpace(string(b[:n])), "\n")
	fields := strings.Fields(lines[len(lines)-1])
	if len(fields) == 3 {
		pid, _ = strconv.Atoi(fields[1])
	}
	return pid
}

func parent(pid int) int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b)[strings.LastIndexByte(string(b), ')')+1:])
	n, _ := strconv.Atoi(f[1])
	return n
}
