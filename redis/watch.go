package redis

import (
	"context"
	"iter"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/leasehold/leasehold/backend"
)

const (
	// openTime is how long a watch waits for its subscription before it looks
	// without one.
	openTime = time.Second

	// Behind the messages stands a look, when the tenure should have expired, but not
	// later than maxBackstop.
	maxBackstop  = 30 * time.Second
	sealBackstop = time.Minute

	minRetry = 20 * time.Millisecond
	maxRetry = 2 * time.Second
)

// Watch yields the present record of name and the newest after each change.
func (s *Store) Watch(ctx context.Context, name string) iter.Seq2[backend.Record, error] {
	return func(yield func(backend.Record, error) bool) {
		if err := s.enter(ctx, name); err != nil {
			if ctx.Err() == nil {
				yield(backend.Record{}, err)
			}
			return
		}
		t, poke := s.topics.join(name)
		if t == nil {
			yield(backend.Record{}, errClosed)
			return
		}
		defer s.topics.part(t, poke)
		w := watch{topic: t, yield: yield, poke: poke}
		w.follow(ctx)
	}
}

// watch is one call of Watch.
type watch struct {
	*topic
	yield func(backend.Record, error) bool
	poke  chan struct{}

	told  *state        // what was yielded last
	gone  uint64        // of the topic, then
	retry time.Duration // pause after a look that has failed
}

func (w *watch) follow(ctx context.Context) {
	need := w.begin()
	timer := time.NewTimer(0)
	defer timer.Stop()
	var due time.Time // of the next look
	var last known
	for first := true; ; first = false {
		k := w.snapshot()
		switch {
		case k.ended < need:
		case k.err != nil && backend.Definite(k.err):
			w.yield(backend.Record{}, k.err)
			return
		case k.err == nil && !w.tell(k):
			return
		}
		// Whoever is told that nothing has changed waits no longer for that.
		if first || k.ended != last.ended || k.told != last.told || k.deaf && !last.deaf {
			due = time.Now().Add(w.pause(k, need))
		}
		last = k
		timer.Reset(time.Until(due))
		select {
		case <-ctx.Done():
			return
		case <-w.all.store.done:
			w.yield(backend.Record{}, errClosed)
			return
		case <-w.poke:
		case <-timer.C:
			w.refresh(false)
			due = time.Now().Add(openTime)
		}
	}
}

// pause is how long to wait for a message before looking.
func (w *watch) pause(k known, need uint64) time.Duration {
	switch {
	case k.ended < need: // nothing is known yet
		return openTime
	case k.err != nil:
		w.retry = min(max(2*w.retry, minRetry), maxRetry)
		return w.retry/2 + rand.N(w.retry)
	}
	w.retry = 0
	return k.backstop()
}

// tell yields what is known, if that was not yielded before.
func (w *watch) tell(k known) (goOn bool) {
	// Absence looks the same each time, but whoever was refused in between by a
	// holder that has gone again must hear of it.
	if w.told != nil && w.told.same(k.st) && (!k.st.absent || w.gone == k.gone) {
		return true
	}
	w.told, w.gone = k.st, k.gone
	if k.st.err != nil {
		w.yield(backend.Record{}, k.st.err)
		return false
	}
	return w.yield(k.st.rec, nil)
}

// same reports whether o is the same but for renewals.
func (st *state) same(o *state) bool {
	return st.rec.Revision == o.rec.Revision && st.absent == o.absent && st.rec.Expired == o.rec.Expired &&
		st.rec.Holder == o.rec.Holder && (st.err == nil) == (o.err == nil)
}

// topic is a name that is watched. All watches of a process share one
// subscription, and what was read for one of them.
type topic struct {
	all     *topics
	name    string
	channel string
	ctx     context.Context // ends when nobody watches it any more
	cancel  context.CancelFunc

	watches int // under all.mu

	mu      sync.Mutex
	pokes   map[chan struct{}]struct{}
	heard   bool   // the subscription is there
	looking bool   // a look is under way
	again   bool   // and another must follow
	begun   uint64 // looks
	overrun uint64 // the look that a message has overtaken
	missed  bool   // somebody has released what was not known to be held
	known
}

// known is what is known of a name.
type known struct {
	st    *state
	err   error  // why the last look failed
	ended uint64 // looks
	told  uint64 // by messages
	gone  uint64 // how often it became free without being seen held
	deaf  bool
}

// backstop is how long to wait for a message before looking.
func (k known) backstop() time.Duration {
	d := maxBackstop - rand.N(maxBackstop/4)
	switch rec := k.st.rec; {
	case rec.Seal != nil:
		d = sealBackstop
	case rec.Live() && rec.Remaining > 0:
		d = min(d, rec.Remaining+time.Millisecond)
	}
	if k.deaf {
		d = min(d, backend.DefaultPollInterval+rand.N(backend.DefaultPollInterval/4))
	}
	return d
}

// begin returns the number of the look whose outcome a new watch waits for. Where
// there is no subscription yet, it begins with that.
func (t *topic) begin() (need uint64) {
	t.mu.Lock()
	heard := t.heard
	need = t.begun + 1
	t.mu.Unlock()
	if heard {
		return t.refresh(true)
	}
	return need
}

// snapshot returns what is known.
func (t *topic) snapshot() known {
	t.mu.Lock()
	defer t.mu.Unlock()
	k := t.known
	k.deaf = !t.heard
	return k
}

// refresh has somebody look. If one is looking already and anew is set, because
// that may have begun too early, another look follows. It returns the number of the
// look.
func (t *topic) refresh(anew bool) (number uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.refreshLocked(anew)
}

func (t *topic) refreshLocked(anew bool) (number uint64) {
	switch {
	case !t.looking:
		if t.ctx.Err() == nil && t.all.start(t.look) {
			t.looking = true
			t.begun++
		}
	case anew:
		t.again = true
		return t.begun + 1
	}
	return t.begun
}

func (t *topic) look() {
	for {
		st, err := t.all.store.look(t.ctx, t.name)
		if !t.learn(st, err) {
			return
		}
	}
}

// learn takes in what a look has found, and reports whether another must follow.
func (t *topic) learn(st *state, err error) (again bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	again, t.again = t.again && t.ctx.Err() == nil, false
	switch {
	case t.overrun == t.begun: // what a message has told is newer
	case err != nil:
		t.ended, t.err = t.begun, err
	default:
		t.ended, t.err, t.st = t.begun, nil, st
		if t.missed {
			t.gone, t.missed = t.gone+1, false
		}
	}
	if again {
		t.begun++
	} else {
		t.looking = false
	}
	t.tellLocked()
	return again
}

// tellLocked has all watches see what is known.
func (t *topic) tellLocked() {
	for poke := range t.pokes {
		select {
		case poke <- struct{}{}:
		default:
		}
	}
}

// hear takes in a message of a script's. Most tell all there is to know.
func (t *topic) hear(message string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	known := uint64(0)
	if t.st != nil && t.err == nil {
		known = t.st.rec.Token
	}
	st, token := heard(t.name, message)
	switch {
	case st != nil && (token > known && !st.absent || token == known && st.absent):
		if t.looking { // and may have begun before
			t.overrun, t.again = t.begun, true
		}
		t.st, t.err = st, nil
		t.ended = max(t.ended, t.begun)
		if st.absent {
			t.gone++
		}
		t.told++
		t.tellLocked()
	case st != nil && token <= known: // it has been seen
	default:
		t.missed = t.missed || st != nil && st.absent
		t.refreshLocked(true)
	}
}

// confirm notes that the subscription is there; what happened before it, a look shows.
func (t *topic) confirm() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.heard = true
	t.refreshLocked(true)
}

// mute notes that it is not.
func (t *topic) mute() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.heard {
		t.heard = false
		t.tellLocked()
	}
}
