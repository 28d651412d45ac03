package backend

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"time"
)

// Watch yields the present state of name and then the newest one after each
// change, as described at [Watcher]. A store that is not told of changes is
// polled.
func Watch(ctx context.Context, s Store, name string) iter.Seq2[Record, error] {
	if w, ok := s.(Watcher); ok {
		return w.Watch(ctx, name)
	}
	return Poll(ctx, s, name, DefaultPollInterval)
}

// List yields the record of every name with the prefix, as described at
// [Lister]. A store that cannot enumerate names yields one ErrUnsupported.
func List(ctx context.Context, s Store, prefix string) iter.Seq2[Record, error] {
	if l, ok := s.(Lister); ok {
		return l.List(ctx, prefix)
	}
	return func(yield func(Record, error) bool) {
		yield(Record{}, fmt.Errorf("%w: the %s store cannot list names", ErrUnsupported, s.Traits().Name))
	}
}

// DefaultPollInterval is how often Watch looks where it must poll.
const DefaultPollInterval = time.Second

// Poll is a Watch for stores that are not told of changes: it looks every
// interval (jittered by a quarter, so that many waiters do not look at once),
// and sooner when the record is about to expire. Stores that lost the right to
// watch fall back to it.
//
// A look that gets no answer within five intervals (5 s at least) is given up.
// An error after which looking again is pointless (ErrInvalid, ErrDenied,
// ErrUnsupported, ErrCorrupt) is final; after any other it looks again, at
// intervals that grow to ten times the given one.
func Poll(ctx context.Context, s Store, name string, interval time.Duration) iter.Seq2[Record, error] {
	if interval <= 0 {
		interval = DefaultPollInterval
	}
	return func(yield func(Record, error) bool) {
		var last Record
		first, failures := true, 0
		for ctx.Err() == nil {
			rec, err := look(ctx, s, name, max(5*interval, 5*time.Second))
			if errors.Is(err, ErrNotFound) {
				rec, err = Record{Name: name}, nil
			}
			wait := interval
			switch {
			case ctx.Err() != nil:
				return
			case err != nil && Definite(err):
				yield(Record{}, err)
				return
			case err != nil:
				failures = min(failures+1, 10)
				wait *= time.Duration(failures)
			default:
				failures = 0
				if first || rec.Revision != last.Revision || rec.Expired != last.Expired || rec.Holder != last.Holder || rec.Token != last.Token {
					if !yield(rec, nil) {
						return
					}
					first, last = false, rec
				}
				if rec.Live() && rec.Remaining > 0 && rec.Remaining < wait {
					wait = rec.Remaining + time.Millisecond
				}
			}
			wait += time.Duration(rand.Int64N(int64(wait)/4 + 1))
			select {
			case <-ctx.Done():
				return
			case <-time.After(wait):
			}
		}
	}
}

// look is one Get, bounded so that a request which hangs does not blind the
// caller. A client that ignores its context is left behind.
func look(ctx context.Context, s Store, name string, timeout time.Duration) (Record, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	type answer struct {
		rec Record
		err error
	}
	answers := make(chan answer, 1)
	go func() {
		rec, err := s.Get(ctx, name)
		answers <- answer{rec, err}
	}()
	select {
	case a := <-answers:
		return a.rec, a.err
	case <-ctx.Done():
		return Record{}, ctx.Err()
	}
}
