package lease

import (
	"container/heap"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/leasehold/leasehold/backend"
)

// A deterministic simulation: several nodes, each driving the machine with a
// clock of its own rate, against one store over a network that delays, drops and
// duplicates. Nodes pause and crash. At no instant may two nodes believe that
// they hold the lease, and tokens must rise.

var (
	simRuns = flag.Int("sim.runs", 2000, "how many simulated histories")
	simSeed = flag.Uint64("sim.seed", 0, "run this one history only, and log it")
)

func TestSimulation(t *testing.T) {
	if *simSeed != 0 {
		s := newSim(*simSeed)
		s.logf = t.Logf
		if err := s.run(); err != nil {
			t.Fatal(err)
		}
		return
	}
	var grants, losses, takeovers int
	for seed := uint64(1); seed <= uint64(*simRuns); seed++ {
		s := newSim(seed)
		if err := s.run(); err != nil {
			t.Fatalf("seed %d: %v (again with -run TestSimulation -sim.seed %d -v)", seed, err, seed)
		}
		grants, losses, takeovers = grants+s.grants, losses+s.losses, takeovers+s.takeovers
	}
	t.Logf("%d histories: %d grants, %d tenures lost, %d taken over by observation", *simRuns, grants, losses, takeovers)
	if grants < *simRuns || losses == 0 || takeovers == 0 {
		t.Error("the simulation does not reach what it is meant to test")
	}
}

type sim struct {
	rnd    *rand.Rand
	now    time.Duration // true time
	queue  simQueue
	order  int
	nodes  []*simNode
	logf   func(string, ...any)
	err    error
	lossy  float64 // share of messages lost
	slow   time.Duration
	grace  time.Duration
	judges bool    // the store says Expired
	rate   float64 // of the store's clock

	rec      backend.Record // what the store keeps; Holder "" is no record
	end      time.Duration  // of the tenure, on the store's clock
	revision int
	token    uint64
	top      uint64 // the greatest token anyone has begun with

	grants, losses, takeovers int
}

// simNode is a process with a clock that runs at its own rate.
type simNode struct {
	s      *sim
	id     int
	rules  rules
	st     state
	rate   float64
	origin time.Duration
	call   int // number of the call in flight, so that late replies are ignored
	paused time.Duration
	life   int // counts crashes
}

func (n *simNode) clock() time.Duration { return n.origin + time.Duration(float64(n.s.now)*n.rate) }

// believes is what Held would say.
func (n *simNode) believes() bool { return n.st.held && n.clock() < n.st.stop }

const simDuration = time.Second

func newSim(seed uint64) *sim {
	s := &sim{rnd: rand.New(rand.NewPCG(seed, 0)), logf: func(string, ...any) {}}
	s.lossy = []float64{0, 0.05, 0.3}[s.rnd.IntN(3)]
	s.slow = []time.Duration{time.Millisecond, 50 * time.Millisecond, 800 * time.Millisecond}[s.rnd.IntN(3)]
	s.judges = s.rnd.IntN(2) == 0
	s.grace = []time.Duration{0, simDuration / 20}[s.rnd.IntN(2)]
	s.rate = s.skew()
	for i := range 2 + s.rnd.IntN(3) {
		n := &simNode{s: s, id: i, rate: s.skew(), origin: time.Duration(s.rnd.Int64N(int64(time.Hour)))}
		n.boot()
		s.nodes = append(s.nodes, n)
	}
	return s
}

// skew is the rate of a clock: within the hundredth that the time rules allow
// between holder and store, or between each of holder and observer and the truth.
func (s *sim) skew() float64 {
	spread := 0.019
	if s.judges {
		spread = 0.0095
	}
	return 1 + (s.rnd.Float64()-0.5)*spread
}

func (s *sim) storeClock() time.Duration { return time.Duration(float64(s.now) * s.rate) }

func (s *sim) after(d time.Duration, f func()) {
	s.order++
	heap.Push(&s.queue, simEvent{s.now + d, s.order, f})
}

// delay is mostly short and sometimes very long, so that messages overtake.
func (s *sim) delay() time.Duration {
	if s.rnd.IntN(20) == 0 {
		return time.Duration(s.rnd.Int64N(int64(3 * simDuration)))
	}
	return time.Duration(s.rnd.Int64N(int64(s.slow)))
}

func (s *sim) run() error {
	for s.queue.Len() > 0 && s.err == nil {
		e := heap.Pop(&s.queue).(simEvent)
		s.now = e.at
		if s.now > 30*simDuration {
			break
		}
		e.f()
		var who []int
		for _, n := range s.nodes {
			if n.believes() {
				who = append(who, n.id)
			}
		}
		if len(who) > 1 {
			s.fail("nodes %v all believe that they hold the lease", who)
		}
	}
	return s.err
}

func (s *sim) fail(format string, args ...any) {
	if s.err == nil {
		s.err = fmt.Errorf("at %v: "+format, append([]any{s.now}, args...)...)
	}
}

// boot starts a node anew, as after a crash: with another identity and nothing
// known.
func (n *simNode) boot() {
	n.life++
	who := fmt.Sprintf("node%d.%d", n.id, n.life)
	n.rules = rules{name: "x", holder: who, duration: simDuration, grace: n.s.grace, visible: true, prefix: who + "-"}
	n.st = state{}
	n.call++
	n.behave(n.life)
}

// behave decides over and over what the node does next.
func (n *simNode) behave(life int) {
	s := n.s
	s.after(time.Duration(s.rnd.Int64N(int64(simDuration/3))), func() {
		if n.life != life {
			return
		}
		switch p := s.rnd.IntN(100); {
		case p < 2:
			s.logf("%v node %d crashes", s.now, n.id)
			n.boot()
			return
		case p < 5:
			n.paused = s.now + time.Duration(s.rnd.Int64N(int64(3*simDuration)))
		case s.now < n.paused || n.st.op.kind != opNone:
		case p < 15:
			n.step(event{kind: evStart, op: opRelease})
		case n.st.held:
			n.step(event{kind: evStart, op: []opKind{opExtend, opTake}[s.rnd.IntN(2)]})
		case p < 25:
			n.step(event{kind: evSeen, rec: s.read()})
		default:
			n.step(event{kind: evStart, op: opTake})
		}
		n.behave(life)
	})
}

// step drives the machine. A paused node does nothing until it wakes.
func (n *simNode) step(e event) {
	s := n.s
	if s.now < n.paused {
		life := n.life
		s.after(n.paused-s.now, func() {
			if n.life == life {
				n.step(e)
			}
		})
		return
	}
	was := n.st.held
	var a actions
	n.st, a = n.rules.step(n.st, e, n.clock())
	if a.ended != nil {
		if !was {
			s.fail("node %d is told an end without a tenure", n.id)
		}
		if !errors.Is(a.ended, ErrReleased) {
			s.losses++
		}
		s.logf("%v node %d ends: %v", s.now, n.id, a.ended)
	}
	if a.began {
		s.grants++
		s.logf("%v node %d holds token %d", s.now, n.id, n.st.tenure.Token)
		if n.st.tenure.Token <= s.top {
			s.fail("node %d begins with token %d after %d", n.id, n.st.tenure.Token, s.top)
		}
		s.top = n.st.tenure.Token
	}
	switch {
	case a.done:
		if a.settle && !a.began {
			n.step(event{kind: evStart, op: opSettle})
		}
	case a.call.verb != verbNone:
		n.send(a.call)
	}
}

// send carries a call to the store and its reply back, or not.
func (n *simNode) send(c call) {
	s := n.s
	n.call++
	number, life := n.call, n.life
	reply := func(e event) {
		if n.life == life && n.call == number {
			n.call++
			n.step(e)
		}
	}
	// The timeout is counted on the node's clock, whose rate is close enough.
	s.after(c.timeout, func() { reply(event{kind: evReply, err: errors.New("timeout")}) })
	copies := 1
	if s.rnd.Float64() < s.lossy/3 {
		copies = 2
	}
	for range copies {
		if s.rnd.Float64() < s.lossy {
			continue
		}
		s.after(s.delay(), func() {
			rec, err := s.serve(c)
			if s.rnd.Float64() >= s.lossy {
				s.after(s.delay(), func() { reply(event{kind: evReply, rec: rec, err: err}) })
			}
		})
	}
}

// read is what the store would answer to Get.
func (s *sim) read() backend.Record {
	rec := s.rec
	rec.Name = "x"
	rec.Expired = s.judges && rec.Holder != "" && s.storeClock() >= s.end
	return rec
}

// serve is the store: the contract in its shortest form.
func (s *sim) serve(c call) (backend.Record, error) {
	rec := s.read()
	mine := rec.SameTenure(c.rec)
	write := func(d time.Duration) {
		s.revision++
		s.rec.Revision = fmt.Sprint(s.revision)
		s.rec.RenewedAt = time.Unix(0, int64(s.now))
		s.end = s.storeClock() + d
	}
	switch c.verb {
	case verbGet:
		if rec.Holder == "" {
			return backend.Record{}, backend.ErrNotFound
		}
		return rec, nil
	case verbAcquire:
		switch {
		case rec.Holder != "" && rec.Attempt == c.claim.Attempt && !rec.Expired:
			write(c.claim.Duration)
			return s.read(), nil
		case c.claim.Over != "" && rec.Revision != c.claim.Over, c.claim.Over == "" && rec.Holder != "" && !rec.Expired:
			return backend.Record{}, &backend.HeldError{Record: rec}
		}
		if c.claim.Over != "" && rec.Holder != c.claim.Holder {
			s.takeovers++
		}
		s.token++
		s.rec = backend.Record{Name: "x", Holder: c.claim.Holder, Token: s.token, Attempt: c.claim.Attempt, Duration: c.claim.Duration}
		write(c.claim.Duration)
		return s.read(), nil
	case verbRenew:
		if !mine || rec.Expired {
			return backend.Record{}, backend.ErrLost
		}
		write(rec.Duration)
		return s.read(), nil
	default:
		if !mine || c.rec.Expired && c.rec.Revision != rec.Revision {
			return backend.Record{}, backend.ErrLost
		}
		s.rec = backend.Record{}
		return backend.Record{}, nil
	}
}

type simEvent struct {
	at    time.Duration
	order int
	f     func()
}

type simQueue []simEvent

func (q simQueue) Len() int { return len(q) }
func (q simQueue) Less(i, j int) bool {
	return q[i].at < q[j].at || q[i].at == q[j].at && q[i].order < q[j].order
}
func (q simQueue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *simQueue) Push(x any)   { *q = append(*q, x.(simEvent)) }
func (q *simQueue) Pop() any {
	old := *q
	e := old[len(old)-1]
	*q = old[:len(old)-1]
	return e
}
