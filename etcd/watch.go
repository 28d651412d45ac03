package etcd

import (
	"context"
	"fmt"
	"iter"
	"math/rand/v2"
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

// streams numbers the streams that watches run on. The client puts all watches
// whose contexts carry the same metadata on one stream of one member. A number in
// it brings a new one, and with it another member, when the old has gone silent.
type streams struct {
	mu      sync.Mutex
	number  int
	changed chan struct{} // closed when the number changes
}

const streamKey = "leasehold-stream"

// context marks the context of a watch. changed is closed when it should move on.
func (n *streams) context(ctx context.Context) (_ context.Context, number int, changed <-chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.changed == nil {
		n.changed = make(chan struct{})
	}
	return metadata.AppendToOutgoingContext(clientv3.WithRequireLeader(ctx), streamKey, fmt.Sprint(n.number)), n.number, n.changed
}

// leave has all watches of a stream move on.
func (n *streams) leave(number int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if number == n.number {
		n.number++
		close(n.changed)
		n.changed = make(chan struct{})
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
func (w *watch) follow(ctx context.Context) (quiet, goOn bool) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, number, moved := w.streams.context(ctx)
	key := w.recordKey(w.name)
	late := time.AfterFunc(w.patience, cancel)
	events := w.client.Watch(stream, key, clientv3.WithRange(endKey(key)))
	if !late.Stop() {
		w.streams.leave(number)
		w.patience = min(2*w.patience, openTimeMost)
		return true, true
	}
	w.patience = openTime
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
			return false, false
		case <-w.done:
			w.yield(backend.Record{}, errClosed)
			return false, false
		case <-moved:
			return true, true
		case resp, ok := <-events:
			if !ok {
				return quiet, true
			}
			if err := resp.Err(); err != nil { // compacted, no leader, not allowed, …
				return quiet, w.failed(ctx, err)
			}
			quiet = false
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
				w.streams.leave(number)
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
