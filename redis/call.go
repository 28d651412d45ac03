package redis

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/leasehold/leasehold/internal/wait"
)

// call is one script to be run.
type call struct {
	ctx    context.Context
	script *script
	args   []any // of EVALSHA, the command's name and the hash included
	sent   sending
	acked  int // how many replicas should have it

	cmd  *goredis.Cmd  // that was made of args last
	done chan struct{} // closed when the outcome is set
	outcome
}

// record is the key of the record.
func (c *call) record() string { return c.args[3].(string) }

// outcome is what came of a call.
type outcome struct {
	told  string // what the script has answered: in short,
	reply []any  // or at length
	err   error
	times int   // how often it was sent: the client sends again what was not answered
	acks  int64 // of replicas
	unack error // why that is not known
}

// run runs a script on both keys of a name. Between args and more it is told how often
// it was sent. It does not wait for longer than ctx lasts.
func (s *Store) run(ctx context.Context, name string, sc *script, acked int, args []any, more ...any) outcome {
	bounded, cancel := s.bound(ctx)
	defer cancel()
	record, alive := s.keys(name)
	c := &call{ctx: bounded, script: sc, acked: acked, done: make(chan struct{})}
	c.args = append(make([]any, 0, 6+len(args)+len(more)), "evalsha", sc.sha, "2", record, alive)
	c.args = append(append(c.args, args...), &c.sent)
	c.args = append(c.args, more...)
	if s.send(c, s.mayBlock(ctx)) {
		return c.outcome
	}
	select {
	case <-c.done:
		return c.outcome
	case <-bounded.Done():
		err := bounded.Err() // and not the cause, which may be an error that means something else
		if ctx.Err() == nil {
			err = fmt.Errorf("no answer within %v: %w", s.timeout, err)
		}
		return outcome{err: err, times: c.sent.times()}
	case <-s.done:
		return outcome{err: errInFlight, times: c.sent.times()}
	}
}

// errInFlight is a call that was under way when the store was closed.
var errInFlight = errors.New("the redis store was closed before Redis had answered")

// mayBlock reports whether the caller may be kept for as long as the client takes.
// To wait in another goroutine for what the client does is dear: two threads are woken
// for it.
func (s *Store) mayBlock(ctx context.Context) bool {
	return s.punctual && ctx.Done() == nil || wait.Abandons(ctx)
}

// bound keeps a call from waiting for longer than the store's timeout.
func (s *Store) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) <= s.timeout {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, s.timeout)
}

// send has the call made, on its way to the server that has its keys. If it may block,
// it makes the call itself where it can, and returns true if that is done.
func (s *Store) send(c *call, mayBlock bool) (done bool) {
	cluster, ok := s.client.(*goredis.ClusterClient)
	if !ok {
		return s.lanes.of("").send(s, s.client, c, mayBlock)
	}
	// To know the server the client may have to ask for it.
	home := func() bool {
		node, err := cluster.MasterForKey(c.ctx, c.record())
		if err != nil {
			c.err = err
			c.end()
			return true
		}
		return s.lanes.of(node.Options().Addr).send(s, cluster, c, mayBlock)
	}
	if mayBlock {
		return home()
	}
	go home()
	return false
}

func (c *call) end() {
	c.times = c.sent.times()
	close(c.done)
}

// take takes what the command has brought.
func (c *call) take() {
	v, err := c.cmd.Result()
	c.err = err
	c.told, _ = v.(string)
	c.reply, _ = v.([]any)
}

// command makes the command that is sent: with the hash of the script, or its text.
func (c *call) command(whole bool) *goredis.Cmd {
	args := c.args
	if whole {
		args = slices.Clone(args)
		args[0], args[1] = "eval", c.script.source
	}
	c.cmd = goredis.NewCmd(c.ctx, args...)
	c.cmd.SetFirstKeyPos(3)
	return c.cmd
}

// lanes are the ways to the servers, by address. Of what is called while others are
// on their way, all goes together, in a pipeline: so 100,000 leases are renewed with
// a few connections and little work for each.
type lanes struct {
	mu sync.Mutex
	by map[string]*lane
}

func (l *lanes) of(addr string) *lane {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.by == nil {
		l.by = make(map[string]*lane)
	}
	if l.by[addr] == nil {
		l.by[addr] = &lane{}
	}
	return l.by[addr]
}

const (
	// mostFlights is how many pipelines are under way at a time, those aside that
	// are late.
	mostFlights = 2

	// late is after how much time a pipeline holds up others no longer.
	late = 50 * time.Millisecond

	// mostLate is how many may be, as each has a connection of the client's.
	mostLate = 14

	// mostTogether is how many calls go in one pipeline.
	mostTogether = 512
)

type lane struct {
	mu      sync.Mutex
	flights []*flight // under way and not late
	late    int
	waiting []*call
	timer   *time.Timer // set while calls are waiting: a flight may be late by then
}

// flight is a goroutine that makes calls, together with others.
type flight struct {
	began  time.Time
	isLate bool
	first  [1]*call
}

// send has the call made at once, alone, if there is room, else with those that are
// waiting. It makes it itself if it may, and returns true if that is done.
func (l *lane) send(s *Store, client goredis.UniversalClient, c *call, mayBlock bool) (done bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.waiting) > 0 || !l.room() {
		l.waiting = append(l.waiting, c)
		l.watch(s, client)
		return false
	}
	f := l.begin()
	f.first[0] = c
	if !mayBlock {
		go l.fly(s, client, f, f.first[:])
		return false
	}
	l.mu.Unlock()
	s.exchange(client, f.first[:])
	l.mu.Lock()
	if batch := l.land(f); len(batch) > 0 {
		go l.fly(s, client, f, batch)
	}
	return true
}

func (l *lane) room() bool { return len(l.flights) < mostFlights && l.late < mostLate }

func (l *lane) begin() *flight {
	f := &flight{began: time.Now()}
	l.flights = append(l.flights, f)
	return f
}

// fly makes calls, and then those that are waiting.
func (l *lane) fly(s *Store, client goredis.UniversalClient, f *flight, batch []*call) {
	for len(batch) > 0 {
		s.exchange(client, batch)
		l.mu.Lock()
		batch = l.land(f)
		l.mu.Unlock()
	}
}

// land returns the calls that a flight should make next. If there are none, it ends.
func (l *lane) land(f *flight) (batch []*call) {
	switch {
	case f.isLate:
		l.late--
	case len(l.waiting) > 0:
		f.began = time.Now()
		return l.take()
	default:
		l.flights = slices.DeleteFunc(l.flights, func(o *flight) bool { return o == f })
	}
	return nil
}

func (l *lane) take() []*call {
	n := min(len(l.waiting), mostTogether)
	batch := l.waiting[:n:n]
	if l.waiting = l.waiting[n:]; len(l.waiting) == 0 {
		l.waiting = nil
	}
	return batch
}

// watch looks for flights that are late, for as long as calls are waiting.
func (l *lane) watch(s *Store, client goredis.UniversalClient) {
	if l.timer != nil || len(l.waiting) == 0 {
		return
	}
	l.timer = time.AfterFunc(late, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.timer = nil
		l.flights = slices.DeleteFunc(l.flights, func(f *flight) bool {
			if f.isLate = time.Since(f.began) >= late; f.isLate {
				l.late++
			}
			return f.isLate
		})
		for len(l.waiting) > 0 && l.room() {
			f := l.begin()
			go l.fly(s, client, f, l.take())
		}
		l.watch(s, client)
	})
}

// exchange makes calls of one server.
func (s *Store) exchange(client goredis.UniversalClient, batch []*call) {
	lost := false // a server, perhaps
	for whole := false; len(batch) > 0; whole = true {
		ctx, cancel, some := awaited(batch)
		if len(some) > 0 {
			s.process(ctx, client, some, whole)
		}
		cancel()
		batch = batch[:0]
		for _, c := range some {
			c.take()
			if c.err != nil && !whole && strings.HasPrefix(c.err.Error(), "NOSCRIPT") {
				// It has restarted, or somebody has flushed its scripts. So far nothing was done.
				c.sent.n.Add(-1)
				batch = append(batch, c)
				continue
			}
			lost = lost || c.err != nil && !answered(c.err)
			c.end()
		}
	}
	// The client looks for a server that has taken over only once a minute.
	if cluster, ok := client.(*goredis.ClusterClient); ok && lost {
		cluster.ReloadState(context.Background())
	}
}

// awaited ends the calls that nobody waits for any more: they are not sent. The
// context lasts for as long as one of the others is waited for.
func awaited(batch []*call) (ctx context.Context, cancel context.CancelFunc, some []*call) {
	var last time.Time
	some = make([]*call, 0, len(batch))
	for _, c := range batch {
		if err := c.ctx.Err(); err != nil {
			c.err = err
			c.end()
			continue
		}
		some = append(some, c)
		if deadline, ok := c.ctx.Deadline(); ok && deadline.After(last) {
			last = deadline
		}
	}
	switch len(some) {
	case 0:
		return nil, func() {}, nil
	case 1:
		return some[0].ctx, func() {}, some
	}
	ctx, cancel = context.WithDeadline(context.WithoutCancel(some[0].ctx), last)
	return ctx, cancel, some
}

// process sends commands and reads what is answered, which is in each then.
func (s *Store) process(ctx context.Context, client goredis.UniversalClient, batch []*call, whole bool) {
	acked := 0
	for _, c := range batch {
		acked = max(acked, c.acked)
	}
	switch {
	case acked > 0:
		s.processAcked(ctx, client, batch, whole, acked)
	case len(batch) == 1:
		_ = client.Process(ctx, batch[0].command(whole))
	default:
		pipe := client.Pipeline()
		for _, c := range batch {
			_ = pipe.Process(ctx, c.command(whole))
		}
		_, err := pipe.Exec(ctx)
		for _, c := range batch {
			tellWhy(c.cmd, err)
		}
	}
}

// tellWhy has a command know why it was not sent: if there was no connection for a
// pipeline, some versions of the client tell only whoever has made that.
func tellWhy(cmd *goredis.Cmd, err error) {
	if err != nil && cmd.Err() == nil && cmd.Val() == nil {
		cmd.SetErr(err)
	}
}

// processAcked is process, and asks on the same connection, which the answer is
// about, how many replicas have got it.
func (s *Store) processAcked(ctx context.Context, client goredis.UniversalClient, batch []*call, whole bool, acked int) {
	cluster, _ := client.(*goredis.ClusterClient)
	for try := 0; len(batch) > 0; try++ {
		if cluster != nil {
			// A client of the node does not follow when its slots move.
			node, err := cluster.MasterForKey(ctx, batch[0].record())
			if err != nil {
				for _, c := range batch {
					c.command(whole).SetErr(err)
				}
				return
			}
			client = node
		}
		pipe := client.Pipeline()
		for _, c := range batch {
			_ = pipe.Process(ctx, c.command(whole))
		}
		wait := pipe.Do(ctx, "wait", acked, s.replicasTimeout.Milliseconds())
		_, err := pipe.Exec(ctx)
		tellWhy(wait, err)
		var moved []*call
		for _, c := range batch {
			tellWhy(c.cmd, err)
			if c.acks, c.unack = wait.Int64(); try < 3 && cluster != nil && c.cmd.Err() != nil && strings.HasPrefix(c.cmd.Err().Error(), "MOVED ") {
				c.sent.n.Add(-1)
				moved = append(moved, c)
			}
		}
		if batch = moved; len(batch) > 0 {
			cluster.ReloadState(ctx)
		}
	}
}
