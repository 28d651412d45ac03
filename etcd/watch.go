package etcd

import (
	"context"
	"iter"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/metadata"

	"github.com/leasehold/leasehold/backend"
)

const (
	// Behind the watch stands a slow look: of a connection that has died without a
	// word nobody tells. It comes after the duration of the record, within these
	// bounds.
	minBackstop = 2 * time.Second
	maxBackstop = time.Minute

	// idleBackstop is for a name that nobody holds.
	idleBackstop = 30 * time.Second

	// openTime is how long a member may take to begin a watch, at first; each time it
	// was not enough it is twice as long, up to openTimeMost.
	openTime     = 2 * time.Second
	openTimeMost = 16 * time.Second

	// laggard is how long an event may be behind a look.
	laggard = time.Second
)

// streams are those that watches run on. The client puts all watches whose contexts
// carry the same metadata on one stream of one member, and begins them there one
// after the other. So each of these has a number in it: when one has gone silent its
// watches move to another, and with it to another member.
type streams struct {
	mu      sync.Mutex
	numbers int
	open    []*stream
}

type stream struct {
	number  int
	watches int
	heard   time.Time     // when it last brought anything
	left    chan struct{} // closed when its watches should move on
}

const (
	streamKey = "leasehold-stream"

	// mostWatches is how many a stream may have. They begin one after the other, a
	// round trip each.
	mostWatches = 256
)

// join returns a stream for another watch, and the watch's context.
func (n *streams) join(ctx context.Context) (*stream, context.Context) {
	n.mu.Lock()
	defer n.mu.Unlock()
	i := slices.IndexFunc(n.open, func(s *stream) bool { return s.watches < mostWatches })
	if i < 0 {
		i = len(n.open)
		n.open = append(n.open, &stream{number: n.numbers, heard: time.Now(), left: make(chan struct{})})
		n.numbers++
	}
	s := n.open[i]
	s.watches++
	return s, metadata.AppendToOutgoingContext(clientv3.WithRequireLeader(ctx), streamKey, strconv.Itoa(s.number))
}

// part ends what join has begun. A stream without watches is used again, by its
// number: where a watch was given up before it had begun, the client keeps the
// stream open for ever.
func (n *streams) part(s *stream) {
	n.mu.Lock()
	defer n.mu.Unlock()
	s.watches--
}

func (n *streams) hear(s *stream) {
	n.mu.Lock()
	defer n.mu.Unlock()
	s.heard = time.Now()
}

// silent is for how long a stream has brought nothing.
func (n *streams) silent(s *stream) time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	return time.Since(s.heard)
}

// leave has all watches of a stream move on.
func (n *streams) leave(s *stream) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if i := slices.Index(n.open, s); i >= 0 {
		n.open = slices.Delete(n.open, i, i+1)
		close(s.left)
	}
}

// Watch yields the present record of name and the newest after each change.
func (s *Store) Watch(ctx context.Context, name string) iter.Seq2[backend.Record, error] {
	return func(yield func(backend.Record, error) bool) {
		if err := s.enter(ctx, name); err != nil {
			if ctx.Err() == nil {
				yield(backend.Record{}, err)
			}
			return
		}
		w := &watch{Store: s, name: name, yield: yield, patience: openTime}
		for pause := time.Duration(0); ; {
			quiet, goOn := w.follow(ctx)
			if !goOn {
				return
			}
			// What ends without a word is begun anew a little later each time.
			if pause = min(2*pause+10*time.Millisecond, 2*time.Second); !quiet {
				pause = 0
			}
			select {
			case <-ctx.Done():
				return
			case <-s.done:
				yield(backend.Record{}, errClosed)
				return
			case <-time.After(pause/2 + rand.N(pause/2+1)):
			}
		}
	}
}

// watch is one call of Watch.
type watch struct {
	*Store
	name  string
	yield func(backend.Record, error) bool
	told  *state // what was yielded last

	patience time.Duration // how long to wait for the watch to begin
}

// follow watches, looks, and tells what comes after that, for as long as the stream
// lasts. quiet is true if nothing came of it.
//
// The watch begins first, at whatever the revision is. If it began at the one after
// the look, and somebody had written anything to etcd in between, etcd would serve it
// from a loop that runs ten times a second.
func (w *watch) follow(outer context.Context) (quiet, goOn bool) {
	ctx, cancel := context.WithCancel(outer)
	defer cancel()
	stream, marked := w.streams.join(ctx)
	defer w.streams.part(stream)
	events := w.begin(marked, cancel, stream)
	if events == nil {
		return true, outer.Err() == nil
	}
	st, err := w.look(ctx)
	if err != nil {
		return true, w.failed(ctx, err)
	}
	if !w.tell(st) {
		return false, false
	}

	timer := time.NewTimer(w.backstop(st))
	defer timer.Stop()
	var ahead *state // what a look has shown and no event has told yet
	for quiet = true; ; {
		select {
		case <-ctx.Done():
			return true, outer.Err() == nil
		case <-w.done:
			w.yield(backend.Record{}, errClosed)
			return false, false
		case <-stream.left:
			return true, true
		case resp, ok := <-events:
			if !ok {
				return quiet, true
			}
			if err := resp.Err(); err != nil { // compacted, no leader, not allowed, …
				return quiet, w.failed(ctx, err)
			}
			quiet = false
			w.streams.hear(stream)
			next := st.after(resp.Events)
			if next == st { // the look has shown it already
				continue
			}
			if st = next; !w.tell(st) {
				return false, false
			}
			if ahead != nil && st.at < ahead.at && !st.same(ahead) {
				continue // there is more to come
			}
			ahead = nil
			timer.Reset(w.backstop(st))
		case <-timer.C:
			if ahead != nil {
				w.streams.leave(stream)
				return false, true
			}
			now, err := w.look(ctx)
			if err != nil {
				if backend.Definite(w.explain("watching", w.name, err)) {
					return false, w.failed(ctx, err)
				}
				timer.Reset(minBackstop)
				continue
			}
			if now.at > st.at && !now.same(st) {
				ahead = now
				timer.Reset(laggard)
				continue
			}
			timer.Reset(w.backstop(st))
		}
	}
}

// begin begins the watch, which those that were begun on the stream before come
// first. It returns nil if nothing has come of it; when the stream was silent for too
// long, cancel has been called, and all leave the stream.
func (w *watch) begin(ctx context.Context, cancel context.CancelFunc, on *stream) clientv3.WatchChan {
	var (
		mu    sync.Mutex
		begun bool
		late  *time.Timer
	)
	mu.Lock()
	late = time.AfterFunc(w.patience, func() {
		mu.Lock()
		defer mu.Unlock()
		if begun {
			return
		}
		if rest := w.patience - w.streams.silent(on); rest > 0 {
			late.Reset(rest)
			return
		}
		cancel()
	})
	mu.Unlock()
	key := w.recordKey(w.name)
	events := w.client.Watch(ctx, key, clientv3.WithRange(endKey(key)))
	mu.Lock()
	begun = true
	late.Stop()
	mu.Unlock()
	if ctx.Err() != nil {
		w.streams.leave(on)
		w.patience = min(2*w.patience, openTimeMost)
		return nil
	}
	w.streams.hear(on)
	w.patience = openTime
	return events
}

// look reads both keys, and does not wait for an answer for ever.
func (w *watch) look(ctx context.Context) (*state, error) {
	ctx, cancel := w.bound(ctx)
	defer cancel()
	return w.read(ctx, w.name)
}

// failed reports whether to go on after an error.
func (w *watch) failed(ctx context.Context, err error) (goOn bool) {
	if ctx.Err() != nil {
		return false
	}
	if w.client.Ctx().Err() != nil && !w.closed() {
		err = errClientClosed
	}
	if err = w.explain("watching", w.name, err); backend.Definite(err) {
		w.yield(backend.Record{}, err)
		return false
	}
	return true
}

// tell yields a state that was not yielded before.
func (w *watch) tell(st *state) (goOn bool) {
	// Absence looks the same each time, but whoever was refused in between by a
	// holder that has gone again must hear of it.
	if w.told != nil && w.told.same(st) && (!st.absent() || w.told.at >= st.at) {
		return true
	}
	w.told = st
	rec, err := st.view()
	if err != nil {
		w.yield(backend.Record{}, err)
		return false
	}
	return w.yield(rec, nil)
}

// backstop is how long to wait for an event before looking.
func (w *watch) backstop(st *state) time.Duration {
	d := idleBackstop
	switch rec, _ := st.view(); {
	case rec.Seal != nil:
		d = maxBackstop
	case rec.Live():
		d = min(max(rec.Duration, minBackstop), maxBackstop)
	}
	return d + rand.N(d/4)
}

// after returns the state that events lead to; st itself if they are older.
func (st *state) after(events []*clientv3.Event) *state {
	now := &state{name: st.name, key: st.key, at: st.at, record: st.record, alive: st.alive}
	for _, e := range events {
		if e.Kv.ModRevision <= st.at {
			continue
		}
		now.at = e.Kv.ModRevision
		which := &now.alive
		if string(e.Kv.Key) == st.key {
			which = &now.record
		}
		if *which = e.Kv; e.Type == clientv3.EventTypeDelete {
			*which = nil
		}
	}
	if now.at == st.at {
		return st
	}
	now.parse()
	return now
}
