package redis_test

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/leasehold/leasehold/integration/internal/scene"
	"github.com/leasehold/leasehold/internal/wait"
	"github.com/leasehold/leasehold/lease"
	"github.com/leasehold/leasehold/redis"
)

const (
	hammerNames   = 50
	hammerWorkers = 100 // of each process
)

// The program is run again as one of the processes, which has this set to
// "redis registrar prefix number".
const hammerEnv = "LEASEHOLD_TEST_HAMMER"

func init() {
	if job := os.Getenv(hammerEnv); job != "" {
		if err := hammer(strings.Fields(job)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
}

// hammer has workers hold leases for as long as the registrar listens.
func hammer(job []string) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	c := goredis.NewClient(&goredis.Options{Addr: job[0]})
	defer c.Close()
	// Two stores, so that also those of one process hear of each other.
	stores := []*redis.Store{redis.New(c, job[2]), redis.New(c, job[2])}
	var wg sync.WaitGroup
	for i := range hammerWorkers {
		conn, err := net.Dial("tcp", job[1])
		if err != nil {
			return err
		}
		wg.Go(func() {
			defer cancel()
			worker(ctx, stores[i/hammerNames%2], conn, fmt.Sprintf("%s-%d", job[3], i), i%hammerNames)
		})
	}
	wg.Wait()
	for _, s := range stores {
		s.Close()
	}
	return nil
}

// worker tells the registrar of each instant at which it holds its lease: it asks,
// and if it holds the lease still when the answer has come, it held it when the
// registrar wrote the time down, and says so.
func worker(ctx context.Context, s *redis.Store, conn net.Conn, me string, number int) {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	l, err := lease.New(s, fmt.Sprintf("name-%d", number), lease.WithDuration(time.Second+rand.N(time.Second)))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	defer l.Close()
	answers := bufio.NewReader(conn)
	tell := func(what string, token uint64) bool {
		fmt.Fprintf(conn, "%s %s %s %d\n", what, me, l.Name(), token)
		_, err := answers.ReadString('\n')
		return err == nil
	}
	for {
		if err := l.Await(ctx); err != nil {
			if ctx.Err() == nil {
				tell("failed", 0)
				fmt.Fprintln(os.Stderr, err)
			}
			return
		}
		token := l.Token()
		held := func() bool { return l.Held() && l.Token() == token }
		if !held() {
			continue
		}
		end := time.Now().Add(rand.N(20 * time.Millisecond))
		if rand.N(20) == 0 {
			end = end.Add(rand.N(1500 * time.Millisecond)) // it needs renewals
		}
		for {
			if !tell("asks", token) {
				return
			}
			if !held() {
				break
			}
			if !tell("held", token) {
				return
			}
			if time.Now().After(end) || !wait.For(l.Context(), rand.N(10*time.Millisecond)) {
				break
			}
		}
		if rand.N(50) == 0 {
			// It dies, and somebody else takes its place.
			l.Close()
			if l, err = lease.New(s, l.Name(), lease.WithDuration(time.Second+rand.N(time.Second))); err != nil {
				return
			}
			defer l.Close()
		} else {
			call, cancel := context.WithTimeout(ctx, time.Second)
			_ = l.Release(call) // what comes of it others see
			cancel()
		}
		// Who comes anew is let in sooner than who has waited for long, so there must be
		// times when nobody does.
		if !wait.For(ctx, rand.N(300*time.Millisecond)) {
			return
		}
	}
}

// registrar writes down who holds what when, by one clock.
type registrar struct {
	l     net.Listener
	began time.Time
	wg    sync.WaitGroup

	mu      sync.Mutex
	conns   map[net.Conn]bool
	tenures map[string]map[uint64]*stay // by name and token
	turns   map[string]int              // of each worker
	last    map[string]time.Time
	wrong   []string
}

// stay is a tenure from the first instant it is known to have lasted to the last.
type stay struct {
	by         string
	from, till time.Time
}

func newRegistrar(t *testing.T) *registrar {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &registrar{
		l: l, began: time.Now(), conns: make(map[net.Conn]bool), tenures: make(map[string]map[uint64]*stay),
		turns: make(map[string]int), last: make(map[string]time.Time),
	}
	r.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			r.mu.Lock()
			r.conns[c] = true
			r.mu.Unlock()
			r.wg.Go(func() { r.serve(c) })
		}
	})
	t.Cleanup(r.close)
	return r
}

// close ends all workers.
func (r *registrar) close() {
	r.l.Close()
	r.mu.Lock()
	for c := range r.conns {
		c.Close()
	}
	r.mu.Unlock()
	r.wg.Wait()
}

func (r *registrar) serve(c net.Conn) {
	defer c.Close()
	var asked time.Time
	for lines := bufio.NewScanner(c); lines.Scan(); {
		now := time.Now()
		var what, who, name string
		var token uint64
		if _, err := fmt.Sscanf(lines.Text(), "%s %s %s %d", &what, &who, &name, &token); err != nil {
			return
		}
		switch what {
		case "asks":
			asked = now
		case "held":
			r.note(who, name, token, asked)
		case "failed":
			r.mu.Lock()
			r.wrong = append(r.wrong, who+" waits no more")
			r.mu.Unlock()
		}
		fmt.Fprintln(c, what)
	}
}

func (r *registrar) note(who, name string, token uint64, at time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.tenures[name] == nil {
		r.tenures[name] = make(map[uint64]*stay)
	}
	s := r.tenures[name][token]
	switch {
	case s == nil:
		r.tenures[name][token] = &stay{who, at, at}
		r.turns[who]++
	case s.by != who:
		r.wrong = append(r.wrong, fmt.Sprintf("%s: %s and %s were both granted the token %d", name, s.by, who, token))
	default:
		s.till = at
	}
	r.last[who] = at
}

// account checks that of each name the tenures lie one behind the other, as their
// tokens do.
func (r *registrar) account() (tenures int, wrong []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	wrong = append(wrong, r.wrong...)
	for name, by := range r.tenures {
		tokens := make([]uint64, 0, len(by))
		for token := range by {
			tokens = append(tokens, token)
		}
		sort.Slice(tokens, func(i, j int) bool { return tokens[i] < tokens[j] })
		var latest *stay
		var last uint64
		for _, token := range tokens {
			s := by[token]
			if latest != nil && !s.from.After(latest.till) {
				wrong = append(wrong, fmt.Sprintf("%s: %s held it with %d until %v, %s with %d from %v", name, latest.by, last, latest.till.Sub(r.began), s.by, token, s.from.Sub(r.began)))
			}
			if latest == nil || s.till.After(latest.till) {
				latest, last = s, token
			}
			tenures++
		}
	}
	return tenures, wrong
}

// everybody waits until each worker of some processes has had a turn since.
func (r *registrar) everybody(t *testing.T, since time.Time, processes ...string) {
	t.Helper()
	scene.EventuallyFor(t, 2*scene.Patience, "everybody gets a turn", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, p := range processes {
			for i := range hammerWorkers {
				if !r.last[fmt.Sprintf("%s-%d", p, i)].After(since) {
					return false
				}
			}
		}
		return true
	})
}

// TestHammer: two processes with a hundred workers each hold fifty names in turns,
// while connections are killed all the time and a process once: never do two hold
// one name, tokens rise, and everybody gets on.
func TestHammer(t *testing.T) {
	g := alone(t)
	r := newRegistrar(t)
	lasts := 15 * time.Second
	if scene.Slow() {
		lasts = time.Minute
	}
	type process struct {
		*exec.Cmd
		said strings.Builder
		done chan error
	}
	start := func(number string) *process {
		t.Helper()
		program, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		p := &process{Cmd: exec.Command(program), done: make(chan error, 1)}
		p.Env = append(os.Environ(), fmt.Sprintf("%s=%s %s %s %s", hammerEnv, g.r.Addrs()[0], r.l.Addr(), g.prefix, number))
		p.Stdout, p.Stderr = &p.said, &p.said
		if err := p.Start(); err != nil {
			t.Fatal(err)
		}
		go func() { p.done <- p.Wait() }()
		t.Cleanup(func() { p.Process.Kill() })
		return p
	}
	first, second := start("1"), start("2")
	r.everybody(t, r.began, "1", "2")
	began := time.Now()
	t.Logf("everybody had a turn within %s", round(began.Sub(r.began)))

	var kills, killed atomic.Int64
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var killer sync.WaitGroup
	killer.Go(func() {
		for wait.For(ctx, rand.N(200*time.Millisecond)) {
			kills.Add(1)
			// Some at random, sometimes all of a kind.
			if what := rand.N(20); what < 2 {
				n, _ := g.plain.ClientKillByFilter(ctx, "TYPE", []string{"normal", "pubsub"}[what], "SKIPME", "yes").Result()
				killed.Add(n)
				continue
			}
			list, _ := g.plain.ClientList(ctx).Result()
			for line := range strings.Lines(list) {
				id, ok := strings.CutPrefix(strings.Fields(line)[0], "id=")
				if ok && rand.N(4) == 0 {
					n, _ := g.plain.ClientKillByFilter(ctx, "ID", id, "SKIPME", "yes").Result()
					killed.Add(n)
				}
			}
		}
	})
	scene.Pass(t, lasts/2)
	if err := second.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	scene.Await(t, "the process dies", second.done)
	third := start("3")
	r.everybody(t, time.Now(), "1", "3")
	scene.Pass(t, time.Until(began.Add(lasts)))
	cancel()
	killer.Wait()
	over := time.Now()
	r.everybody(t, over, "1", "3")
	calm := time.Since(over)
	r.close()
	for i, p := range []*process{first, third} {
		if err := scene.Await(t, "the process ends", p.done); err != nil {
			t.Errorf("process %d: %v", i, err)
		}
	}
	for _, p := range []*process{first, second, third} {
		if said := p.said.String(); strings.Contains(said, "DATA RACE") || strings.Contains(said, "panic:") {
			t.Error(said)
		}
	}
	tenures, wrong := r.account()
	for i, w := range wrong {
		if i < 10 {
			t.Error(w)
		}
	}
	r.mu.Lock()
	least, most := int(^uint(0)>>1), 0
	for _, n := range r.turns {
		least, most = min(least, n), max(most, n)
	}
	workers := len(r.turns)
	r.mu.Unlock()
	took := over.Sub(began)
	t.Logf("%d tenures of %d workers in %s (%.0f a second), from %d to %d each; %d connections killed at %d times; everybody had a turn within %s after that",
		tenures, workers, round(time.Since(r.began)), float64(tenures)/took.Seconds(), least, most, killed.Load(), kills.Load(), round(calm))
}
