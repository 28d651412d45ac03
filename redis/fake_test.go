package redis

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/leasehold/leasehold/backend"
)

// fake is a Redis for what a real one cannot be made to do: it can be late, silent
// or wrong at an exact moment. It does in Go what the scripts do there, which is
// nothing that a test of these tests. It lives in a bubble of synctest, whose clock
// is its own, and which fails the test if a goroutine is left at the end.
type fake struct {
	t *testing.T

	mu      sync.Mutex
	rows    map[string]*row // by the key of the record
	loaded  map[string]bool // scripts, by hash
	acks    int64           // replicas that there are, and what WAIT answers
	deaf    bool            // messages get lost
	resp2   bool            // it is too old for HELLO
	log     []request       // of what has arrived, but for what a client begins with
	counts  map[string]int  // of it, by kind
	latency time.Duration   // of each of the trips
	trips   []int           // how many scripts the client has sent together, each time
	conns   map[*fakeConn]bool
	dials   int
	most    int // connections at a time

	// before is called when a request has arrived, and what it returns, if not nil, is
	// the answer to one that is never done. after is called when it has been done, and
	// what it returns takes the place of the answer. Neither has the lock, so both may
	// block, and with them all that comes behind on the connection. dial is called for
	// each connection.
	before func(r request) any
	after  func(r request, reply any) any
	dial   func(n int) error
	greet  func(args []string) any // answers HELLO and AUTH
}

// The client says much about connections that tests break.
func init() { goredis.SetLogger(quiet{}) }

type quiet struct{}

func (quiet) Printf(context.Context, string, ...any) {}

// request is a command that has arrived.
type request struct {
	what string // acquire, renew, release or get, in capitals if the whole script has come; or the command
	n    int    // how many of its kind have arrived, this one included
	args []string
	conn int
	gone <-chan struct{} // closed with the connection
}

// name is what a script is about.
func (r request) name() string {
	_, rest, _ := strings.Cut(r.args[3], "{")
	name, _ := unescape(strings.TrimSuffix(rest, "}"))
	return name
}

// wait waits for the test to close the channel.
func (r request) wait(until <-chan struct{}) {
	select {
	case <-until:
	case <-r.gone:
	}
}

// Answers of a hook.
type (
	refusal string   // an error
	status  string   // a simple string
	push    []any    // what nobody asked for
	drop    struct{} // none: the connection ends
)

// silence never answers.
func silence(r request) any { <-r.gone; return drop{} }

// row is what both keys of a name hold.
type row struct {
	fields map[string]string // nil: there is none
	until  int64             // Unix milliseconds; 0: for ever
	alive  *life
	bad    string // what get.lua says is wrong with it
}

type life struct {
	token, lasts, holder string
	until                int64
}

func inBubble(t *testing.T, test func(t *testing.T, f *fake)) {
	synctest.Test(t, func(t *testing.T) {
		// Some clients go on dialling for a while.
		t.Cleanup(func() { time.Sleep(time.Second) })
		test(t, newFake(t))
	})
}

// ofFirst are the scripts of the first database, which the fake is.
var ofFirst = scriptsOf("")

// newFake is one outside of a bubble.
func newFake(t *testing.T) *fake {
	f := &fake{t: t, rows: map[string]*row{}, loaded: map[string]bool{}, conns: map[*fakeConn]bool{}}
	for _, s := range []*script{ofFirst.get, ofFirst.acquire, ofFirst.renew, ofFirst.release} {
		f.loaded[s.sha] = true
	}
	// Some clients forget connections that are made while they are closed.
	t.Cleanup(func() {
		var left map[*fakeConn]bool
		f.with(func() {
			f.dial = func(int) error { return errors.New("the test is over") }
			left = maps.Clone(f.conns)
		})
		for c := range left {
			c.close()
		}
	})
	return f
}

// client is one that ignores contexts, unless an option says otherwise. Its pool is so
// great that nobody waits for a connection: the timers of its queue are shared by all
// bubbles.
func (f *fake) client(opts ...func(*goredis.Options)) *goredis.Client {
	o := &goredis.Options{Addr: "192.0.2.1:6379", Dialer: f.connect, PoolSize: 1000}
	for _, opt := range opts {
		opt(o)
	}
	c := goredis.NewClient(o)
	c.AddHook(tripHook{f})
	f.t.Cleanup(func() { _ = c.Close() })
	return c
}

func heeding(o *goredis.Options) { o.ContextTimeoutEnabled = true }

func once(o *goredis.Options) { o.MaxRetries = -1 }

// store is one with a client of its own.
func (f *fake) store(opts ...Option) *Store { return f.storeOf(f.client(), opts...) }

func (f *fake) storeOf(c goredis.UniversalClient, opts ...Option) *Store {
	s := New(c, "t:", opts...)
	f.t.Cleanup(func() { _ = s.Close() })
	return s
}

// tripHook notes what the client sends together.
type tripHook struct{ f *fake }

func (h tripHook) DialHook(next goredis.DialHook) goredis.DialHook { return next }

func (h tripHook) ProcessHook(next goredis.ProcessHook) goredis.ProcessHook {
	return func(ctx context.Context, cmd goredis.Cmder) error {
		h.note(cmd)
		return next(ctx, cmd)
	}
}

func (h tripHook) ProcessPipelineHook(next goredis.ProcessPipelineHook) goredis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []goredis.Cmder) error {
		h.note(cmds...)
		return next(ctx, cmds)
	}
}

func (h tripHook) note(cmds ...goredis.Cmder) {
	n := 0
	for _, c := range cmds {
		if strings.HasPrefix(c.Name(), "eval") {
			n++
		}
	}
	if n > 0 {
		h.f.mu.Lock()
		h.f.trips = append(h.f.trips, n)
		latency := h.f.latency
		h.f.mu.Unlock()
		time.Sleep(latency)
	}
}

// travelled returns the trips since the last time it was asked.
func (f *fake) travelled() []int {
	f.mu.Lock()
	defer f.mu.Unlock()
	defer func() { f.trips = nil }()
	return f.trips
}

// hooks sets both, nil for none, and forgets what has arrived.
func (f *fake) hooks(before func(r request) any, after func(r request, reply any) any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.before, f.after, f.log, f.trips = before, after, nil, nil
}

// requests returns what has arrived since the last time it was asked, but for pings.
func (f *fake) requests() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []string
	for _, r := range f.log {
		if r.what != "PING" {
			all = append(all, r.what)
		}
	}
	f.log = nil
	return strings.Join(all, " ")
}

// count is how many of a kind have arrived.
func (f *fake) count(what string) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.log {
		if r.what == what {
			n++
		}
	}
	return n
}

// with has the lock.
func (f *fake) with(do func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	do()
}

// flush forgets all scripts.
func (f *fake) flush() { f.with(func() { clear(f.loaded) }) }

// remove deletes both keys of names behind the back of the store.
func (f *fake) remove(names ...string) {
	f.with(func() {
		for _, name := range names {
			delete(f.rows, "t:{"+escape(name)+"}")
		}
	})
}

// publish sends a message to whoever listens.
func (f *fake) publish(name, message string) {
	f.with(func() { f.publishLocked("t:{"+escape(name)+"}", message) })
}

func (f *fake) publishLocked(channel, message string) (n int64) {
	for c := range f.conns {
		if c.channels[channel] && !f.deaf && !c.frozen {
			n++
			c.send(push{"smessage", channel, message})
		}
	}
	return n
}

// listening is how many connections have how many subscriptions.
func (f *fake) listening() (conns, channels int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for c := range f.conns {
		if len(c.channels) > 0 {
			conns++
			channels += len(c.channels)
		}
	}
	return conns, channels
}

// open is how many connections there are.
func (f *fake) open() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.conns)
}

// listeners calls do for the connections that have subscriptions.
func (f *fake) listeners(do func(c *fakeConn)) {
	f.with(func() {
		for c := range f.conns {
			if len(c.channels) > 0 {
				do(c)
			}
		}
	})
}

// hangUp ends the connections that have subscriptions.
func (f *fake) hangUp() { f.listeners(func(c *fakeConn) { c.send(drop{}) }) }

// freeze has them say and take nothing any more.
func (f *fake) freeze() { f.listeners(func(c *fakeConn) { c.frozen = true }) }

// moveSlots ends all subscriptions, as a server does that gives slots away.
func (f *fake) moveSlots() {
	f.listeners(func(c *fakeConn) {
		for channel := range c.channels {
			delete(c.channels, channel)
			c.send(push{"sunsubscribe", channel, len(c.channels)})
		}
	})
}

// The wire.

// fakeConn is a connection. What has arrived and what is to be told wait in queues, as
// they do in the buffers of a system: a client may write all before it reads any.
type fakeConn struct {
	net.Conn
	f     *fake
	n     int
	resp3 bool
	in    chan []string
	out   chan any
	gone  chan struct{}
	end   sync.Once

	channels map[string]bool // under f.mu
	frozen   bool
}

func (f *fake) connect(context.Context, string, string) (net.Conn, error) {
	f.mu.Lock()
	f.dials++
	n, dial := f.dials, f.dial
	f.mu.Unlock()
	if dial != nil {
		if err := dial(n); err != nil {
			return nil, err
		}
	}
	client, server := net.Pipe()
	c := &fakeConn{
		Conn: server, f: f, n: n, channels: map[string]bool{},
		in: make(chan []string, 1<<12), out: make(chan any, 1<<12), gone: make(chan struct{}),
	}
	f.with(func() {
		f.conns[c] = true
		f.most = max(f.most, len(f.conns))
	})
	go c.read()
	go c.serve()
	go c.write()
	return clientConn{client}, nil
}

// clientConn fails as a system's do when the other side is gone.
type clientConn struct{ net.Conn }

func (c clientConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	if errors.Is(err, io.ErrClosedPipe) {
		err = &net.OpError{Op: "write", Net: "tcp", Err: os.NewSyscallError("write", syscall.EPIPE)}
	}
	return n, err
}

// Deadlines can be set whoever is gone.
func (c clientConn) SetReadDeadline(t time.Time) error {
	return unlessClosed(c.Conn.SetReadDeadline(t))
}
func (c clientConn) SetWriteDeadline(t time.Time) error {
	return unlessClosed(c.Conn.SetWriteDeadline(t))
}
func (c clientConn) SetDeadline(t time.Time) error { return unlessClosed(c.Conn.SetDeadline(t)) }

func unlessClosed(err error) error {
	if errors.Is(err, io.ErrClosedPipe) {
		return nil
	}
	return err
}

func (c *fakeConn) close() {
	c.end.Do(func() {
		_ = c.Close()
		close(c.gone)
		c.f.with(func() { delete(c.f.conns, c) })
	})
}

func (c *fakeConn) send(reply any) {
	select {
	case c.out <- reply:
	case <-c.gone:
	}
}

func (c *fakeConn) read() {
	defer c.close()
	r := bufio.NewReader(c)
	number := func(kind byte) (int, error) {
		line, err := r.ReadString('\n')
		if err == nil && line[0] != kind {
			err = fmt.Errorf("%q arrives instead of %q", line, kind)
			c.f.t.Error(err)
		}
		if err != nil {
			return 0, err
		}
		return strconv.Atoi(strings.TrimSpace(line[1:]))
	}
	for {
		n, err := number('*')
		if err != nil {
			return
		}
		args := make([]string, n)
		for i := range args {
			size, err := number('$')
			if err != nil {
				return
			}
			b := make([]byte, size+2)
			if _, err := io.ReadFull(r, b); err != nil {
				return
			}
			args[i] = string(b[:size])
		}
		select {
		case c.in <- args:
		case <-c.gone:
			return
		}
	}
}

func (c *fakeConn) write() {
	defer c.close()
	w := bufio.NewWriter(c)
	for {
		select {
		case reply := <-c.out:
			if reply == (drop{}) {
				_ = w.Flush()
				return
			}
			c.encode(w, reply)
			if len(c.out) == 0 && w.Flush() != nil {
				return
			}
		case <-c.gone:
			return
		}
	}
}

func (c *fakeConn) encode(w io.Writer, v any) {
	switch v := v.(type) {
	case string:
		fmt.Fprintf(w, "$%d\r\n%s\r\n", len(v), v)
	case status:
		fmt.Fprintf(w, "+%s\r\n", v)
	case refusal:
		fmt.Fprintf(w, "-%s\r\n", v)
	case int:
		fmt.Fprintf(w, ":%d\r\n", v)
	case int64:
		fmt.Fprintf(w, ":%d\r\n", v)
	case nil:
		if c.resp3 {
			io.WriteString(w, "_\r\n")
		} else {
			io.WriteString(w, "$-1\r\n")
		}
	case push:
		kind := '*'
		if c.resp3 {
			kind = '>'
		}
		fmt.Fprintf(w, "%c%d\r\n", kind, len(v))
		for _, e := range v {
			c.encode(w, e)
		}
	case []any:
		fmt.Fprintf(w, "*%d\r\n", len(v))
		for _, e := range v {
			c.encode(w, e)
		}
	case map[string]any:
		fmt.Fprintf(w, "%%%d\r\n", len(v))
		for k, e := range v {
			c.encode(w, k)
			c.encode(w, e)
		}
	default:
		c.f.t.Errorf("no answer: %#v", v)
	}
}

func (c *fakeConn) serve() {
	for {
		select {
		case args := <-c.in:
			reply := c.request(args)
			if c.dead() {
				<-c.gone
			}
			if reply != (noReply{}) {
				c.send(reply)
			}
			if reply == (drop{}) {
				return
			}
		case <-c.gone:
			return
		}
	}
}

type noReply struct{}

func (c *fakeConn) dead() (frozen bool) {
	c.f.with(func() { frozen = c.frozen })
	return frozen
}

func (c *fakeConn) request(args []string) any {
	f := c.f
	r := request{what: strings.ToUpper(args[0]), args: args, conn: c.n, gone: c.gone}
	switch r.what {
	case "HELLO", "AUTH":
		f.mu.Lock()
		greet := f.greet
		f.mu.Unlock()
		if greet != nil {
			if reply := greet(args); reply != nil {
				return reply
			}
		}
		if f.resp2 || args[1] != "3" {
			return refusal("ERR unknown command 'HELLO'")
		}
		c.resp3 = true
		return map[string]any{"server": "redis", "version": "7.0.15", "proto": 3, "role": "master"}
	case "CLIENT":
		if strings.EqualFold(args[1], "setinfo") {
			return status("OK")
		}
		return refusal("ERR unknown subcommand")
	case "EVALSHA", "EVAL":
		known := map[*script]string{ofFirst.get: "get", ofFirst.acquire: "acquire", ofFirst.renew: "renew", ofFirst.release: "release"}
		for s, what := range known {
			if args[1] == s.sha {
				r.what = what
			} else if args[1] == s.source {
				r.what = strings.ToUpper(what)
			}
		}
	}
	f.mu.Lock()
	if f.log == nil {
		f.counts = map[string]int{}
	}
	f.counts[r.what]++
	r.n = f.counts[r.what]
	f.log = append(f.log, r)
	before, after := f.before, f.after
	f.mu.Unlock()
	if before != nil {
		if reply := before(r); reply != nil {
			return reply
		}
	}
	reply := c.do(r)
	if after != nil {
		if instead := after(r, reply); instead != nil {
			return instead
		}
	}
	return reply
}

func (c *fakeConn) do(r request) any {
	f := c.f
	f.mu.Lock()
	defer f.mu.Unlock()
	switch r.what {
	case "PING":
		if len(c.channels) > 0 && !c.resp3 {
			return push{"pong", ""}
		}
		return status("PONG")
	case "SELECT":
		return status("OK")
	case "SSUBSCRIBE", "SUNSUBSCRIBE":
		for _, channel := range r.args[1:] {
			if r.what == "SSUBSCRIBE" {
				c.channels[channel] = true
			} else {
				delete(c.channels, channel)
			}
			c.send(push{strings.ToLower(r.what), channel, len(c.channels)})
		}
		return noReply{}
	case "SPUBLISH":
		return f.publishLocked(r.args[1], r.args[2])
	case "WAIT":
		return f.acks
	case "INFO":
		return fmt.Sprintf("# Replication\r\nconnected_slaves:%d\r\n", f.acks)
	case "SCRIPT":
		clear(f.loaded)
		return status("OK")
	case "SCAN":
		keys := []any{}
		for key, row := range f.rows {
			if row.fields != nil && globMatch(r.args[3], key) {
				keys = append(keys, key)
			}
			if row.alive != nil && globMatch(r.args[3], key+aliveSuffix) {
				keys = append(keys, key+aliveSuffix)
			}
		}
		return []any{"0", keys}
	case "get", "GET", "acquire", "ACQUIRE", "renew", "RENEW", "release", "RELEASE":
		what := strings.ToLower(r.what)
		sc := map[string]*script{"get": ofFirst.get, "acquire": ofFirst.acquire, "renew": ofFirst.renew, "release": ofFirst.release}[what]
		if r.what != what {
			f.loaded[sc.sha] = true
		} else if !f.loaded[sc.sha] {
			return refusal("NOSCRIPT No matching script. Please use EVAL.")
		}
		if r.args[2] != "2" || r.args[4] != r.args[3]+aliveSuffix {
			f.t.Errorf("keys: %q", r.args[2:5])
		}
		return f.run(what, r.args[3], r.args[5:])
	}
	return refusal(fmt.Sprintf("ERR unknown command '%s', with args beginning with: ", r.args[0]))
}

// The scripts. All of it with the lock.

const forever = "2147483647000"

func (f *fake) row(key string) *row {
	r := f.rows[key]
	if r == nil {
		r = &row{}
		f.rows[key] = r
	}
	now := time.Now().UnixMilli()
	if r.alive != nil && r.alive.until > 0 && now > r.alive.until {
		r.alive = nil
	}
	if r.until > 0 && now > r.until {
		r.fields, r.until = nil, 0
	}
	return r
}

// tenure is the one that is in force or was the last.
func (r *row) tenure() (by, token, lasts string, live bool) {
	sealed := r.fields["seal"] != ""
	switch live = r.alive != nil || sealed; {
	case r.alive != nil && !sealed:
		return r.alive.holder, r.alive.token, r.alive.lasts, live
	case r.fields["holder"] != "":
		return r.fields["holder"], r.fields["token"], r.fields["duration"], live
	}
	return "", "", "", live
}

func (r *row) revision() string {
	by, token, _, _ := r.tenure()
	switch {
	case r.bad != "":
		return "corrupt-hash-1"
	case by != "":
		return token
	case r.fields["floor"] != "":
		return "vacant-" + r.fields["token"]
	}
	return ""
}

func (r *row) answer(verdict string) []any {
	by, token, lasts, live := r.tenure()
	left := int64(-2)
	if r.alive != nil {
		if left = r.alive.until - time.Now().UnixMilli(); r.alive.until == 0 {
			left = -1
		}
	}
	own := func(field string) string {
		if r.fields["token"] == token {
			return r.fields[field]
		}
		return ""
	}
	now := time.Now()
	a := []any{verdict, r.revision(), r.bad, by, token, lasts, own("attempt"), own("acquired"), r.fields["transitions"],
		own("metadata"), r.fields["seal"], r.fields["floor"], map[bool]int{true: 1}[live], left,
		strconv.FormatInt(now.Unix(), 10), strconv.Itoa(now.Nanosecond() / 1000)}
	for i := range a {
		if a[i] == "" && i != 1 {
			a[i] = nil
		}
	}
	return a
}

func (f *fake) run(what, key string, argv []string) any {
	r := f.row(key)
	arg := func(i int) string { // as Lua counts
		if i > len(argv) {
			return ""
		}
		return argv[i-1]
	}
	by, tenure, _, live := r.tenure()
	now := time.Now()
	after := func(more ...string) int64 {
		ms := now.UnixMilli()
		for _, m := range more {
			ms += number(m)
		}
		return ms
	}
	switch what {
	case "acquire":
		return f.acquire(key, r, arg, argv)
	case "renew":
		mine := r.alive != nil && r.alive.token == arg(2) && r.alive.holder == arg(1)
		if mine {
			if r.alive.lasts != forever {
				r.alive.until = after(r.alive.lasts)
				if r.until > 0 {
					r.until = after(r.alive.lasts, arg(3))
				}
			}
			if arg(4) == "0" {
				return fmt.Sprintf("renewed %s %d %d", r.alive.lasts, now.Unix(), now.Nanosecond()/1000)
			}
			return r.answer(verdictOK)
		}
		return r.answer("lost")
	case "release":
		if by != arg(1) || tenure != arg(2) {
			if by == "" && r.bad == "" && r.fields["token"] == arg(2) && arg(5) != "1" {
				return "released"
			}
			return r.answer("lost")
		}
		if arg(3) == "1" && live {
			return r.answer("lost")
		}
		if floor := r.fields["floor"]; floor != "" {
			transitions := r.fields["transitions"]
			*r = row{fields: map[string]string{"token": arg(2), "floor": floor, "transitions": transitions}}
			f.publishLocked(key, "vacated "+arg(2))
			return "released"
		}
		*r = row{fields: map[string]string{"token": arg(2)}, until: after(arg(4))}
		f.publishLocked(key, "released "+arg(2))
		return "released"
	}
	return r.answer(verdictOK)
}

func (f *fake) acquire(key string, r *row, arg func(int) string, argv []string) any {
	holder, attempt, duration := arg(1), arg(2), arg(3)
	by, tenure, lasts, live := r.tenure()
	now := time.Now()
	again := attempt != "" && r.fields["attempt"] == attempt || arg(6) != "" && r.fields["call"] == arg(6)
	if again && r.bad == "" && r.alive != nil && by == holder && tenure == r.fields["token"] {
		if lasts != forever {
			r.alive.until = now.UnixMilli() + number(lasts)
		}
		return r.answer(verdictOK)
	}
	if over := arg(7); over != "" && r.revision() != over || over == "" && (r.bad != "" || live) {
		return r.answer("held")
	}
	floor := max(number(r.fields["floor"]), number(arg(8)))
	last := number(r.fields["token"])
	if r.alive != nil {
		last = max(last, number(r.alive.token))
	}
	if max(last, floor) >= backend.MaxToken {
		return r.answer(verdictExhausted)
	}
	transitions := int64(0)
	if r.bad == "" && (by != "" || r.fields["floor"] != "") {
		transitions = number(r.fields["transitions"])
		if by != holder {
			transitions++
		}
	}
	n := max(last+1, now.UnixMicro(), floor+1)
	token := strconv.FormatInt(n, 10)
	_, released := r.fields["token"]
	plain := len(argv) == 5 && r.alive == nil && (r.fields == nil || len(r.fields) == 1 && released)
	*r = row{
		fields: map[string]string{"holder": holder, "token": token, "duration": duration, "attempt": attempt},
		alive:  &life{token, duration, holder, 0},
	}
	if n != now.UnixMicro() {
		r.fields["acquired"] = strconv.FormatInt(now.UnixMicro(), 10)
	}
	if attempt == "" {
		r.fields["call"] = arg(6)
	}
	if transitions > 0 {
		r.fields["transitions"] = strconv.FormatInt(transitions, 10)
	}
	if floor > 0 {
		r.fields["floor"] = strconv.FormatInt(floor, 10)
	}
	for i := 8; i+1 < len(argv); i += 2 {
		r.fields[argv[i]] = argv[i+1]
	}
	if duration != forever {
		r.alive.until = now.UnixMilli() + number(duration)
		if floor == 0 {
			r.until = r.alive.until + number(arg(4))
		}
	}
	if plain && n == now.UnixMicro() {
		f.publishLocked(key, fmt.Sprintf("granted %d %s %s %s %s", len(attempt), attempt, token, duration, holder))
		return token
	}
	f.publishLocked(key, "acquired "+token)
	return fmt.Sprintf("%s %d %d", token, now.UnixMicro(), transitions)
}

// now is what there is of a name.
func (f *fake) now(name string) (r row) {
	f.with(func() {
		r = *f.row("t:{" + escape(name) + "}")
		r.fields = maps.Clone(r.fields)
	})
	return r
}

// spoil has it unreadable.
func (f *fake) spoil(name, why string) {
	f.with(func() { f.row("t:{" + escape(name) + "}").bad = why })
}

// What the tests share.

const soon = 10 * time.Millisecond

func claim(holder, attempt string) backend.Claim {
	return backend.Claim{Name: "report", Holder: holder, Attempt: attempt, Duration: 10 * time.Second}
}

func acquired(t *testing.T, s *Store, c backend.Claim) backend.Record {
	t.Helper()
	rec, err := s.Acquire(t.Context(), c)
	if err != nil {
		t.Fatalf("%+v: %v", c, err)
	}
	return rec
}

// unknown fails the test unless err leaves the outcome open.
func unknown(t *testing.T, what string, err error) {
	t.Helper()
	if err == nil || backend.Definite(err) {
		t.Errorf("%s: %v, want an unknown outcome", what, err)
	}
}

// refused fails the test unless err is of the class.
func refused(t *testing.T, what string, err, class error) {
	t.Helper()
	if !errors.Is(err, class) {
		t.Errorf("%s: %v, want %v", what, err, class)
	}
}

func sum(ns []int) (n int) {
	for _, m := range ns {
		n += m
	}
	return n
}

// TestFake: the verbs do on it what they should, whatever protocol it speaks.
func TestFake(t *testing.T) {
	for _, old := range []bool{false, true} {
		inBubble(t, func(t *testing.T, f *fake) {
			f.resp2 = old
			s := f.store()
			_, err := s.Get(t.Context(), "report")
			refused(t, "nothing there", err, backend.ErrNotFound)
			c := claim("alice", "a1")
			c.Metadata = map[string]string{"pod": "x"}
			rec := acquired(t, s, c)
			if rec.Token != uint64(time.Now().UnixMicro()) || rec.Remaining != 10*time.Second || rec.Attempt != "a1" || rec.Metadata["pod"] != "x" {
				t.Errorf("granted %+v", rec)
			}
			got, err := s.Get(t.Context(), "report")
			if err != nil || !got.SameTenure(rec) || got.Metadata["pod"] != "x" || got.Revision != rec.Revision || got.Remaining < 10*time.Second {
				t.Errorf("Get: %+v, %v", got, err)
			}
			var held *backend.HeldError
			if _, err := s.Acquire(t.Context(), claim("bob", "b1")); !errors.As(err, &held) || !held.Record.SameTenure(rec) {
				t.Errorf("bob: %v", err)
			}
			time.Sleep(9 * time.Second)
			if rec, err = s.Renew(t.Context(), rec); err != nil {
				t.Fatal(err)
			}
			time.Sleep(9 * time.Second)
			var names []string
			for rec, err := range s.List(t.Context(), "") {
				if err != nil {
					t.Error(err)
				}
				names = append(names, rec.Name)
			}
			if !slices.Equal(names, []string{"report"}) {
				t.Errorf("List: %q", names)
			}
			if err := s.Release(t.Context(), rec); err != nil {
				t.Fatal(err)
			}
			refused(t, "released twice", s.Release(t.Context(), rec), backend.ErrLost)
			if next := acquired(t, s, claim("bob", "b1")); next.Token <= rec.Token {
				t.Errorf("token %d after %d", next.Token, rec.Token)
			}
			time.Sleep(10*time.Second + 2*time.Millisecond)
			if rec, err = s.Get(t.Context(), "report"); err != nil || !rec.Expired {
				t.Errorf("expired: %+v, %v", rec, err)
			}
			if f.open() != 1 {
				t.Errorf("%d connections", f.open())
			}
		})
	}
}
