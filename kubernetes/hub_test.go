package kubernetes

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/internal/wait"
)

// fakeAPI answers GET, LIST and WATCH of leases, and lets a test be in the way:
// what happens only once in a thousand runs of a real server.
type fakeAPI struct {
	t *testing.T

	mu       sync.Mutex
	version  int
	leases   map[string]*coordinationv1.Lease
	events   []watchEvent
	changed  chan struct{} // closed with each event
	deaf     bool          // streams that are open tell nothing more
	requests map[string]int

	// before is called with "get NAME", "list", "list NAME", "watch", "watch NAME";
	// what it returns is the answer if it is no 200.
	before func(what string) int
	after  func(what string) // called when the answer is made, and before it is sent
	noDate bool              // in lists

	srv *openCounter
}

// openCounter counts the connections that clients have open.
type openCounter struct{ open atomic.Int32 }

func (c *openCounter) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	c.open.Add(1)
	return &countedConn{Conn: conn, c: c}, nil
}

type countedConn struct {
	net.Conn
	c    *openCounter
	once sync.Once
}

func (c *countedConn) Close() error {
	c.once.Do(func() { c.c.open.Add(-1) })
	return c.Conn.Close()
}

type watchEvent struct {
	Type    string                `json:"type"`
	Object  *coordinationv1.Lease `json:"object"`
	version int
}

func newFakeAPI(t *testing.T, opts ...Option) (*fakeAPI, *Store) {
	f := &fakeAPI{t: t, version: 10, leases: make(map[string]*coordinationv1.Lease), changed: make(chan struct{}), requests: make(map[string]int), before: func(string) int { return 200 }}
	_, cfg := server(t, f.serve)
	f.srv = new(openCounter)
	cfg.Dial = f.srv.dial
	return f, openStore(t, cfg, opts...)
}

// put writes a lease, as a holder would.
func (f *fakeAPI) put(name, holder string, edits ...func(*coordinationv1.Lease)) *coordinationv1.Lease {
	f.mu.Lock()
	defer f.mu.Unlock()
	kind := "MODIFIED"
	if f.leases[name] == nil {
		kind = "ADDED"
	}
	f.version++
	l := &coordinationv1.Lease{
		TypeMeta:   metav1.TypeMeta{APIVersion: "coordination.k8s.io/v1", Kind: "Lease"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "team-a", UID: types.UID("uid-" + name), ResourceVersion: fmt.Sprint(f.version)},
		Spec:       coordinationv1.LeaseSpec{HolderIdentity: &holder, LeaseDurationSeconds: ptr(int32(15))},
	}
	for _, edit := range edits {
		edit(l)
	}
	f.leases[name] = l
	f.tell(kind, l)
	return l
}

func (f *fakeAPI) remove(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.version++
	l := f.leases[name].DeepCopy()
	l.ResourceVersion = fmt.Sprint(f.version)
	delete(f.leases, name)
	f.tell("DELETED", l)
}

func (f *fakeAPI) tell(kind string, l *coordinationv1.Lease) {
	f.events = append(f.events, watchEvent{kind, l, f.version})
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *fakeAPI) count(what string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for w, k := range f.requests {
		if w == what || strings.HasPrefix(w, what+" ") {
			n += k
		}
	}
	return n
}

func (f *fakeAPI) serve(w http.ResponseWriter, r *http.Request) {
	_, name, _ := strings.Cut(r.URL.Path, "/leases/")
	q := r.URL.Query()
	what := "get " + name
	if name == "" {
		what = "list"
		if q.Get("watch") != "" {
			what = "watch"
		}
		if only := strings.TrimPrefix(q.Get("fieldSelector"), "metadata.name="); only != "" {
			what, name = what+" "+only, only
		}
	}
	f.mu.Lock()
	f.requests[what]++
	before := f.before
	f.mu.Unlock()
	if code := before(what); code != 200 {
		verb, _, _ := strings.Cut(what, " ")
		answer(w, code, status(code, "Forbidden", `User "bob" cannot `+verb+` resource "leases"`, ""))
		return
	}
	if strings.HasPrefix(what, "watch") {
		f.stream(w, r, name)
		return
	}
	code, text := f.answer(what, name)
	f.mu.Lock()
	after := f.after
	f.mu.Unlock()
	if after != nil {
		after(what)
	}
	if f.noDate && strings.HasPrefix(what, "list") {
		w.Header()["Date"] = nil
	}
	answer(w, code, text)
}

func (f *fakeAPI) answer(what, name string) (code int, text string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var body any
	if strings.HasPrefix(what, "get") {
		l := f.leases[name]
		if l == nil {
			return 404, status(404, "NotFound", "not found", `{"name":"x","group":"coordination.k8s.io","kind":"leases"}`)
		}
		body = l
	} else {
		list := &coordinationv1.LeaseList{TypeMeta: metav1.TypeMeta{APIVersion: "coordination.k8s.io/v1", Kind: "LeaseList"}, ListMeta: metav1.ListMeta{ResourceVersion: fmt.Sprint(f.version)}}
		for _, l := range f.leases {
			if name == "" || l.Name == name {
				list.Items = append(list.Items, *l)
			}
		}
		body = list
	}
	b, err := json.Marshal(body)
	if err != nil {
		f.t.Error(err)
	}
	return 200, string(b)
}

func (f *fakeAPI) stream(w http.ResponseWriter, r *http.Request, name string) {
	var from int
	fmt.Sscan(r.URL.Query().Get("resourceVersion"), &from)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(200)
	w.(http.Flusher).Flush()
	enc := json.NewEncoder(w)
	for {
		f.mu.Lock()
		changed, deaf := f.changed, f.deaf
		var due []watchEvent
		for _, e := range f.events {
			if e.version > from && (name == "" || e.Object.Name == name) {
				due = append(due, e)
			}
		}
		f.mu.Unlock()
		for _, e := range due {
			if deaf {
				<-r.Context().Done()
				return
			}
			from = e.version
			if enc.Encode(e) != nil {
				return
			}
			w.(http.Flusher).Flush()
		}
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		}
	}
}

// watching collects what a Watch yields.
type watching struct {
	t      *testing.T
	ch     chan backend.Record
	err    chan error
	cancel context.CancelFunc
}

func watchName(t *testing.T, s *Store, name string) *watching {
	ctx, cancel := context.WithCancel(context.Background())
	w := &watching{t, make(chan backend.Record, 100), make(chan error, 1), cancel}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for rec, err := range s.Watch(ctx, name) {
			if err != nil {
				w.err <- err
				return
			}
			w.ch <- rec
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
	return w
}

// holder waits until the watch shows who holds the lease.
func (w *watching) holder(want string, within time.Duration) {
	w.t.Helper()
	late := time.After(within)
	for last := "nothing"; ; {
		select {
		case rec := <-w.ch:
			if last = rec.Holder; last == want {
				return
			}
		case err := <-w.err:
			w.t.Fatalf("the watch ended: %v", err)
		case <-late:
			w.t.Fatalf("after %v the watch shows %q, want %q", within, last, want)
		}
	}
}

const soon = 10 * time.Second

// TestSubscribedDuringList: whoever begins to watch while the namespace is being
// listed must not fall between the list and the events after it.
func TestSubscribedDuringList(t *testing.T) {
	f, s := newFakeAPI(t)
	listing, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	f.before = func(what string) int {
		if what == "list" {
			once.Do(func() { close(listing) })
			<-goOn
		}
		return 200
	}
	for i := range fewNames + 1 {
		watchName(t, s, fmt.Sprint("other-", i))
	}
	<-listing
	w := watchName(t, s, "report")
	w.holder("", soon) // it has looked, and there was nothing
	f.put("report", "alice")
	close(goOn)
	w.holder("alice", soon) // idleBackstop is longer
}

// TestOneStream: above a handful of names, one stream serves them all.
func TestOneStream(t *testing.T) {
	f, s := newFakeAPI(t)
	const n = 50
	watches := make([]*watching, n)
	for i := range n {
		watches[i] = watchName(t, s, fmt.Sprint("name-", i))
		watches[i].holder("", soon)
	}
	for i := range n {
		f.put(fmt.Sprint("name-", i), "alice")
	}
	for i := range n {
		watches[i].holder("alice", soon)
	}
	s.watches.mu.Lock()
	for name, j := range s.watches.subjects {
		if j.own != nil {
			t.Errorf("%s still has a stream of its own", name)
		}
	}
	s.watches.mu.Unlock()
	if got := f.count("watch"); got > fewNames+1 {
		t.Fatalf("%d names were watched by %d streams, want at most %d", n, got, fewNames+1)
	}
	for _, w := range watches {
		w.cancel()
	}
	// The streams end with their watchers.
	for i := 0; ; i++ {
		s.watches.mu.Lock()
		left := len(s.watches.subjects)
		all := s.watches.all
		s.watches.mu.Unlock()
		if left == 0 && all == nil {
			break
		}
		if i > 1000 {
			t.Fatalf("%d names are still watched", left)
		}
		wait.For(t.Context(), 10*time.Millisecond)
	}
}

// TestSecondWatcher sees what was written before it began, though the stream that
// serves it may be behind.
func TestSecondWatcher(t *testing.T) {
	f, s := newFakeAPI(t)
	watchName(t, s, "report").holder("", soon)
	f.mu.Lock()
	f.deaf = true
	f.mu.Unlock()
	f.put("report", "alice")
	second := watchName(t, s, "report")
	if rec := <-second.ch; rec.Holder != "alice" {
		t.Fatalf("the first that a second watcher sees is %q, want alice", rec.Holder)
	}
}

// TestDeafStream: a stream that has gone silent without ending is noticed by the
// look behind it, and replaced.
func TestDeafStream(t *testing.T) {
	f, s := newFakeAPI(t)
	f.put("report", "alice")
	w := watchName(t, s, "report")
	w.holder("alice", soon)
	f.mu.Lock()
	f.deaf = true
	f.mu.Unlock()
	f.put("report", "bob")
	w.holder("bob", 2*15*time.Second/2) // half of the duration, and a little
	f.mu.Lock()
	f.deaf = false
	f.mu.Unlock()
	for i := 0; f.count("watch") < 2; i++ {
		if i > 1000 {
			t.Fatal("the deaf stream was not replaced")
		}
		wait.For(t.Context(), 10*time.Millisecond)
	}
	f.put("report", "carol")
	w.holder("carol", 5*time.Second) // by the new stream, not by the next look
}

// TestLateEvents: an event that is older than what was looked up shows nobody what
// was before.
func TestLateEvents(t *testing.T) {
	f, s := newFakeAPI(t)
	old := f.put("report", "alice")
	w := watchName(t, s, "report")
	w.holder("alice", soon)
	f.put("report", "bob")
	w.holder("bob", soon)
	s.watches.mu.Lock()
	st := s.watches.subjects["report"].own
	s.watches.mu.Unlock()
	if err := st.event("MODIFIED", old); err != nil {
		t.Fatal(err)
	}
	f.remove("report")
	for {
		rec := <-w.ch
		if rec.Holder == "alice" {
			t.Fatal("an old event was shown after a newer one")
		}
		if rec.Holder == "" {
			return
		}
	}
}

// TestAbsentAgain: whoever was refused by a holder that is gone again must hear of
// it, though absence looks as before.
func TestAbsentAgain(t *testing.T) {
	f, s := newFakeAPI(t)
	w := watchName(t, s, "report")
	w.holder("", soon)
	f.put("report", "alice")
	f.remove("report")
	w.holder("", soon)
}

// TestPolls: without the right to watch the store polls, and says so once.
func TestPolls(t *testing.T) {
	for _, verb := range []string{"list", "watch"} {
		t.Run(verb, func(t *testing.T) {
			var log syncBuffer
			f, s := newFakeAPI(t, WithPollInterval(20*time.Millisecond), WithLogger(slog.New(slog.NewTextHandler(&log, nil))))
			f.before = func(what string) int {
				if strings.HasPrefix(what, verb) {
					return 403
				}
				return 200
			}
			f.put("report", "alice")
			var all []*watching
			for i := range fewNames + 3 {
				w := watchName(t, s, fmt.Sprint("other-", i))
				w.holder("", soon)
				all = append(all, w)
			}
			w := watchName(t, s, "report")
			w.holder("alice", soon)
			f.put("report", "bob")
			w.holder("bob", soon)
			f.put("other-0", "carol")
			all[0].holder("carol", soon)
			if n := strings.Count(log.String(), "level=WARN"); n != 1 || !strings.Contains(log.String(), `grant the verb \"`+verb) {
				t.Fatalf("logged %d times: %s", n, log.String())
			}
		})
	}
}

// TestNarrow: where the role is for certain names, each is watched by itself.
func TestNarrow(t *testing.T) {
	f, s := newFakeAPI(t)
	f.before = func(what string) int {
		if what == "list" || what == "watch" {
			return 403
		}
		return 200
	}
	var all []*watching
	for i := range fewNames + 3 {
		w := watchName(t, s, fmt.Sprint("name-", i))
		w.holder("", soon)
		all = append(all, w)
	}
	for i, w := range all {
		f.put(fmt.Sprint("name-", i), "alice")
		w.holder("alice", soon)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := f.requests["list"]; n != 1 {
		t.Fatalf("what is not allowed was asked for %d times, want 1", n)
	}
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
