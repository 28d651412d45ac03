package kubernetes

import (
	"cmp"
	"context"
	"iter"
	"math/rand/v2"
	"time"

	"github.com/leasehold/leasehold/backend"
)

const (
	// Behind the stream of events stands a slow poll: a record that should have been
	// renewed by now is looked up after half of its duration, within these bounds.
	minBackstop = time.Second
	maxBackstop = time.Minute

	// idleBackstop is for a name without a record.
	idleBackstop = 30 * time.Second
)

// Watch yields the present record of name and the newest after each change. Where
// the role allows neither list nor watch, it polls.
func (s *Store) Watch(ctx context.Context, name string) iter.Seq2[backend.Record, error] {
	return func(yield func(backend.Record, error) bool) {
		if err := s.enter(ctx, name); err != nil {
			if ctx.Err() == nil {
				yield(backend.Record{}, err)
			}
			return
		}
		for {
			w, fresh := s.watches.subscribe(objectName(name))
			if !s.follow(ctx, name, w, fresh, yield) {
				return
			}
			// Not for ever: it may have been a passing fault, or be granted.
			polling, cancel := context.WithTimeout(ctx, askAgain+rand.N(askAgain/4))
			for rec, err := range backend.Poll(polling, s, name, s.poll) {
				if !yield(rec, err) || err != nil {
					cancel()
					return
				}
			}
			cancel()
			if ctx.Err() != nil {
				return
			}
		}
	}
}

// follow yields what w is told, until the caller has enough. It returns true where
// polling is all that is left.
func (s *Store) follow(ctx context.Context, name string, w *watcher, fresh bool, yield func(backend.Record, error) bool) (poll bool) {
	defer s.watches.unsubscribe(w)
	// The look behind the stream. First it waits for the stream to begin; or the
	// stream has begun before this call, and what it told last may be older than what
	// the caller has seen.
	due := time.Now()
	if fresh {
		due = due.Add(minBackstop)
	}
	timer := time.NewTimer(time.Until(due))
	defer timer.Stop()
	var last backend.Record
	var events int // of those told when last was yielded
	for ready := fresh; ; timer.Reset(time.Until(due)) {
		looked := false
		select {
		case <-ctx.Done():
			return false
		case <-s.done:
			yield(backend.Record{}, errClosed)
			return false
		case <-w.changed:
		case <-timer.C:
			before := s.watches.news(w).version
			o, err := s.glance(ctx, name, last.Duration)
			switch {
			case ctx.Err() != nil:
				return false
			case err == nil:
				looked = s.watches.seen(w, o, before)
				ready = ready || looked
			case backend.Definite(err):
				yield(backend.Record{}, err)
				return false
			}
			due = time.Now().Add(minBackstop)
		}
		now := s.watches.news(w)
		if now.denied {
			return true
		}
		if !now.known || !ready {
			continue
		}
		rec := backend.Record{Name: name}
		if o := now.obj; o != nil {
			if o.corrupt != nil {
				yield(backend.Record{}, o.corrupt)
				return false
			}
			rec = o.copy()
		}
		// An edit is no renewal: it must not put off the look that finds the holder dead.
		if looked || last.Name == "" || rec.Holder != last.Holder || rec.Token != last.Token || !rec.RenewedAt.Equal(last.RenewedAt) {
			due = time.Now().Add(backstop(rec))
		}
		// Absence looks the same each time, but whoever was refused in between by a
		// holder that has gone again must hear of it.
		again := rec.Revision == "" && now.events != events
		if last.Name == "" || again || rec.Revision != last.Revision || rec.Expired != last.Expired || rec.Token != last.Token {
			last, events = rec, now.events
			if !yield(rec, nil) {
				return false
			}
		}
	}
}

// glance is a look that does not wait for an answer longer than a holder would: over
// a dead connection the next one must come soon.
func (s *Store) glance(ctx context.Context, name string, duration time.Duration) (*object, error) {
	ctx, cancel := context.WithTimeout(ctx, max(cmp.Or(duration, idleBackstop)/4, minBackstop))
	defer cancel()
	return s.look(ctx, name)
}

// backstop is how long to wait for an event before looking.
func backstop(r backend.Record) time.Duration {
	d := idleBackstop
	switch {
	case r.Seal != nil:
		d = maxBackstop
	case r.Live() && r.Duration > 0:
		d = min(max(r.Duration/2, minBackstop), maxBackstop)
	}
	d += rand.N(d / 4)
	if r.Live() && r.Remaining > 0 {
		d = min(d, r.Remaining+rand.N(minBackstop/4))
	}
	return d
}
