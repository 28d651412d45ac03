package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/leasehold/leasehold/internal/wait"
)

const (
	// fewNames is how many names are watched each by a stream of its own. Above it
	// one stream of the whole namespace serves them all.
	fewNames = 4

	// A stream is opened anew by the server's wish after this time, at random up to
	// twice of it, like those of client-go.
	streamLifetime = 5 * time.Minute

	minReconnect = 50 * time.Millisecond
	maxReconnect = 5 * time.Second

	// lag is how far behind a look a stream may be until it counts as dead.
	lag = 2 * time.Second
)

// hub shares streams of events among all watchers of a store.
type hub struct {
	s *Store

	mu       sync.Mutex
	subjects map[string]*subject // by object name, those that somebody watches
	all      *stream             // of the namespace; nil if there is none
	narrow   time.Time           // until when the role is taken not to allow that one
}

// subject is an object that somebody watches, whether it exists or not.
type subject struct {
	name     string
	watchers map[*watcher]struct{}
	own      *stream // nil while the stream of the namespace serves it

	known   bool
	denied  bool    // it can only be polled
	obj     *object // nil if there is none
	version uint64  // of the newest that is known, also of its absence
	events  int     // how many were told
}

type watcher struct {
	subject *subject
	changed chan struct{} // has room for one message: whoever fetches it sees the newest state
}

// news is what a watcher sees.
type news struct {
	known, denied bool
	obj           *object
	version       uint64 // a look that begins now sees that, or something newer
	events        int
}

func newHub(s *Store) *hub { return &hub{s: s, subjects: make(map[string]*subject)} }

// subscribe begins to watch an object. fresh is true if its stream only begins,
// and will tell the present state.
func (h *hub) subscribe(name string) (w *watcher, fresh bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	j := h.subjects[name]
	if j == nil {
		j = &subject{name: name, watchers: make(map[*watcher]struct{})}
		h.subjects[name] = j
		fresh = true
		switch {
		case h.all != nil:
			fresh = false // it does not keep what nobody asked for
		case len(h.subjects) > fewNames && time.Now().After(h.narrow):
			h.all = h.open("") // those of single names end when it has begun
		default:
			j.own = h.open(name)
		}
	}
	w = &watcher{subject: j, changed: make(chan struct{}, 1)}
	j.watchers[w] = struct{}{}
	if j.denied {
		wait.Poke(w.changed)
	}
	return w, fresh
}

// unsubscribe ends what nobody watches any more.
func (h *hub) unsubscribe(w *watcher) {
	h.mu.Lock()
	defer h.mu.Unlock()
	j := w.subject
	delete(j.watchers, w)
	if len(j.watchers) > 0 {
		return
	}
	delete(h.subjects, j.name)
	j.end()
	if len(h.subjects) == 0 && h.all != nil {
		h.all.stop()
		h.all = nil
	}
}

func (j *subject) end() {
	if j.own != nil {
		j.own.stop()
		j.own = nil
	}
}

func (h *hub) news(w *watcher) news {
	h.mu.Lock()
	defer h.mu.Unlock()
	j := w.subject
	return news{j.known, j.denied, j.obj, j.version, j.events}
}

// seen takes in what a look has found that began when before was known. It is
// false where the look tells nothing. Where the stream should have told of a
// change, it has a little time to do so.
func (h *hub) seen(w *watcher, o *object, before uint64) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	j := w.subject
	if o == nil && j.known && j.version != before {
		return false // it was absent before or after what has been told since
	}
	version := before
	switch {
	case o != nil && o.version < before:
		// Reads are answered by a quorum: the server's counter was turned back, by the
		// restoration of a backup.
		j.version, version = 0, o.version
		if st := j.source(h); st != nil {
			st.version = 0
			st.suspect()
		}
	case o != nil:
		version = o.version
	case j.obj != nil:
		version++ // its deletion was one
	}
	h.tell(j, o, version)
	if st := j.source(h); version > before && st != nil {
		time.AfterFunc(lag, func() { h.check(st, version) })
	}
	return true
}

func (j *subject) source(h *hub) *stream {
	if j.own != nil {
		return j.own
	}
	return h.all
}

// check ends the connection of a stream that has not come as far as want.
func (h *hub) check(st *stream, want uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if st.ctx.Err() == nil && st.open && st.version < want {
		st.suspect()
	}
}

// tell makes o, or its absence, what j's watchers see, unless something newer than
// version is known. h.mu is held.
func (h *hub) tell(j *subject, o *object, version uint64) {
	if version < j.version {
		return
	}
	if o != nil {
		// What the server's clock has judged once holds until the next renewal; an
		// event does not come with a clock.
		if old := j.obj; old != nil && old.UID == o.UID && old.record.Expired && old.record.RenewedAt.Equal(o.record.RenewedAt) && old.record.Holder == o.record.Holder {
			o.record.Expired, o.record.Remaining = true, 0
		}
	}
	j.known, j.obj, j.version = true, o, version
	for w := range j.watchers {
		wait.Poke(w.changed)
	}
}

// stream is a LIST and the WATCH after it, over and over, of one object or of all.
type stream struct {
	h    *hub
	name string // of the object; "" for all
	ctx  context.Context
	stop context.CancelFunc

	verb string // of the request that run is at

	// Guarded by h.mu.
	open    bool   // the WATCH is
	version uint64 // how far it has come
	cut     func() // ends the WATCH and its connection
}

// open begins a stream. h.mu is held.
func (h *hub) open(name string) *stream {
	st := &stream{h: h, name: name}
	st.ctx, st.stop = context.WithCancel(context.Background())
	go st.run()
	return st
}

// suspect ends a WATCH that is behind, and has the next one use another
// connection. h.mu is held.
func (st *stream) suspect() {
	if st.cut != nil {
		st.cut()
	}
}

// run serves the stream until it is stopped.
func (st *stream) run() {
	defer func() {
		if st.h.s.closed() { // its connection is idle only now
			st.h.s.api.close()
		}
	}()
	for delay := minReconnect; ; {
		began := time.Now()
		err := st.once()
		switch {
		case st.ctx.Err() != nil:
			return
		case err != nil && st.refused(err):
			return
		}
		if time.Since(began) > maxReconnect {
			delay = minReconnect
		}
		if !wait.For(st.ctx, delay/2+rand.N(delay)) {
			return
		}
		delay = min(2*delay, maxReconnect)
	}
}

// refused deals with an error that will not pass, and reports whether it was one.
func (st *stream) refused(err error) bool {
	if statusOf(err) != http.StatusForbidden {
		return false
	}
	h := st.h
	denied := false
	defer func() {
		if denied {
			h.s.polls(h.s.explain(st.verb, st.name, err))
		}
	}()
	h.mu.Lock()
	defer h.mu.Unlock()
	if st.name == "" {
		// One object each may still be allowed.
		if h.all != st {
			return true
		}
		h.narrow, h.all = time.Now().Add(askAgain), nil
		for name, j := range h.subjects {
			if j.own == nil && !j.denied {
				j.own = h.open(name)
			}
		}
		return true
	}
	j := h.subjects[st.name]
	if j == nil || j.own != st {
		return true
	}
	j.own, j.denied, denied = nil, true, true
	for w := range j.watchers {
		wait.Poke(w.changed)
	}
	return true
}

// polls tells once that there is no watching.
func (s *Store) polls(err error) {
	s.pollsOnce.Do(func() {
		s.logger.Warn("leases cannot be watched, and are polled instead: the verbs list and watch on leases.coordination.k8s.io would make waiters faster and cheaper",
			"namespace", s.namespace, "interval", s.poll, "error", err)
	})
}

// once lists, watches, and goes on watching while the server lets it. It returns
// nil when everything is to be listed anew.
func (st *stream) once() error {
	version, err := st.list()
	if err != nil {
		return err
	}
	for {
		next, err := st.watch(version)
		if err != nil || next == "" {
			return err
		}
		version = next
	}
}

// list tells the present state and returns its version.
func (st *stream) list() (version string, err error) {
	h := st.h
	st.verb = "list"
	h.mu.Lock()
	before := st.version
	for _, j := range h.subjects {
		if st.name == "" || st.name == j.name {
			before = max(before, j.version)
		}
	}
	h.mu.Unlock()
	// All of them are kept until the end: somebody may begin to watch one only then,
	// and what is older than the version will not be told again.
	items := make(map[string]*coordinationv1.Lease)
	var date time.Time
	for next := ""; ; {
		page, at, err := h.s.api.list(st.ctx, st.name, next)
		if err != nil {
			return "", err
		}
		for i := range page.Items {
			items[page.Items[i].Name] = &page.Items[i]
		}
		version, date = page.ResourceVersion, at
		if next = page.Continue; next == "" {
			break
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if st.ctx.Err() != nil {
		return "", st.ctx.Err()
	}
	now, _ := strconv.ParseUint(version, 10, 64)
	turned := now != 0 && now < before // see seen
	if turned {
		st.version = 0
	}
	st.advance(version)
	for name, j := range h.subjects {
		switch {
		case st.name == "":
			j.end() // this one serves it now
		case st.name != name:
			continue
		}
		if turned {
			j.version = 0
		}
		l := items[name]
		if l == nil {
			h.tell(j, nil, st.version)
			continue
		}
		o, err := h.s.view(l, date)
		if err != nil {
			return "", err
		}
		h.tell(j, o, o.version)
	}
	return version, nil
}

func (h *hub) watched(name string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.subjects[name] != nil
}

// advance notes how far the stream has come. h.mu is held.
func (st *stream) advance(version string) {
	if v, err := strconv.ParseUint(version, 10, 64); err == nil {
		st.version = max(st.version, v)
	}
}

// watch tells what happens after version. It returns how far it came when the
// stream has ended and can be gone on with, "" if all is to be listed again.
func (st *stream) watch(version string) (string, error) {
	h := st.h
	st.verb = "watch"
	ctx, cancel := context.WithCancel(st.ctx)
	defer cancel()
	// Without an answer to the request itself there is no stream.
	answer := time.AfterFunc(h.s.api.timeout, cancel)
	w, x, err := h.s.api.watch(ctx, st.name, version, streamLifetime+rand.N(streamLifetime))
	if !answer.Stop() && st.ctx.Err() == nil {
		h.s.api.streams.suspect(x)
		err = errors.Join(err, fmt.Errorf("the watch was not answered within %v", h.s.api.timeout))
	}
	if err != nil {
		if w != nil {
			w.Stop()
		}
		if apierrors.IsUnauthorized(err) {
			h.s.api.streams.suspect(x) // a client certificate belongs to the connection
		}
		if gone(err) {
			return "", nil
		}
		return "", err
	}
	defer w.Stop()
	h.mu.Lock()
	st.open = true
	st.cut = func() {
		h.s.api.streams.suspect(x)
		cancel()
	}
	h.mu.Unlock()
	defer func() {
		h.mu.Lock()
		st.open, st.cut = false, nil
		h.mu.Unlock()
	}()
	came := false
	for {
		select {
		case <-ctx.Done():
			return "", st.ctx.Err()
		case e, ok := <-w.ResultChan():
			if !ok {
				if !came {
					return "", errQuiet
				}
				return version, nil
			}
			if e.Type == watch.Error {
				err := apierrors.FromObject(e.Object)
				if gone(err) {
					return "", nil
				}
				return "", err
			}
			l, ok := e.Object.(*coordinationv1.Lease)
			if !ok {
				continue
			}
			came, version = true, l.ResourceVersion
			if err := st.event(e.Type, l); err != nil {
				return "", err
			}
		}
	}
}

// errQuiet is a stream that ended without a word: it is begun anew, a little
// later each time.
var errQuiet = errors.New("the watch ended without an event")

// event tells one event.
func (st *stream) event(kind watch.EventType, l *coordinationv1.Lease) error {
	h := st.h
	var o *object
	if (kind == watch.Added || kind == watch.Modified) && h.watched(l.Name) {
		var err error
		if o, err = h.s.view(l, time.Time{}); err != nil {
			return err
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	st.advance(l.ResourceVersion)
	j := h.subjects[l.Name]
	if j == nil || kind == watch.Bookmark {
		return nil
	}
	if kind != watch.Deleted && o == nil { // subscribed just now
		return nil
	}
	version, err := strconv.ParseUint(l.ResourceVersion, 10, 64)
	if err != nil {
		return fmt.Errorf("the resourceVersion %q of an event is no number", l.ResourceVersion)
	}
	j.events++
	h.tell(j, o, version)
	return nil
}
