package lease

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/leasehold/leasehold/backend"
)

// Await waits until the lease is acquired or ctx ends. It returns at once where
// this Lease holds it already. There is no order among those who wait.
//
// It is woken by the store's Watch; where the store judges expiry late but shows
// renewals, also by its own observation that the holder has gone silent. Errors
// that may pass are tried again, less and less often; a definite one that is not
// backend.ErrHeld ends it. The error is an *AcquisitionError: when ctx has ended
// it wraps the cause and names who held the lease last.
func (l *Lease) Await(ctx context.Context) error {
	if l.Held() {
		return nil
	}
	err := l.operate(ctx, opTake)
	if err == nil || hopeless(err) {
		return l.acquisitionError("await", err, nil)
	}
	w := waiter{l: l, last: err}
	if ctx.Err() != nil {
		err = w.gaveUp(ctx)
	} else {
		err = w.wait(ctx)
	}
	return l.acquisitionError("await", err, w.last)
}

// Run waits for the lease, calls f while it is held, and releases it after f has
// returned, also by a panic. The context of f ends with ctx or with the tenure;
// context.Cause tells which. f must return then: the grace is all the time it
// has.
//
// Run returns what f returned. If the tenure ended before f did, the cause is
// joined to it, because somebody else may have acted in the meantime; if only
// the release failed, its *RelinquishmentError is.
//
// While f runs, the record is watched if the store can, so that a loss is told
// at once and not only by the next renewal.
func (l *Lease) Run(ctx context.Context, f func(ctx context.Context) error) (err error) {
	var tenure context.Context
	for tenure == nil || tenure.Err() != nil {
		if err := l.Await(ctx); err != nil {
			return err
		}
		tenure = l.Context()
	}
	work, cancel := context.WithCancelCause(ctx)
	unlink := context.AfterFunc(tenure, func() { cancel(context.Cause(tenure)) })
	if _, ok := l.store.(backend.Watcher); ok {
		l.background(func(context.Context) {
			for range l.Observe(work) { // what it sees is told to the machine
			}
		})
	}
	defer func() {
		unlink()
		cancel(nil)
		var lost error
		if tenure.Err() != nil {
			lost = context.Cause(tenure)
		}
		released := l.Release(context.WithoutCancel(ctx))
		switch {
		case lost != nil && !errors.Is(lost, ErrReleased) && !errors.Is(err, lost):
			err = errors.Join(err, fmt.Errorf("lease %q: %w", l.rules.name, lost))
		case lost == nil && released != nil:
			err = errors.Join(err, released)
		}
	}()
	return f(work)
}

// Observe yields the record as it is, and then each time it changes, until ctx
// ends; absence is a Record with only its Name. An error is the last thing it
// yields. What it sees it also tells this Lease, so that a tenure that was taken
// away is over at once.
func (l *Lease) Observe(ctx context.Context) iter.Seq2[backend.Record, error] {
	return func(yield func(backend.Record, error) bool) {
		for rec, err := range backend.Watch(ctx, l.store, l.rules.name) {
			if err == nil {
				l.see(rec)
			}
			if !yield(rec, err) {
				return
			}
		}
	}
}

// hopeless reports whether trying again cannot help.
func hopeless(err error) bool {
	return errors.Is(err, ErrClosed) || backend.Definite(err) && !errors.Is(err, backend.ErrHeld) && !errors.Is(err, backend.ErrLost) && !errors.Is(err, backend.ErrNotFound)
}

// waiter is one call of Await.
type waiter struct {
	l    *Lease
	last error // of the last attempt

	// spread is the time over which this waiter spreads its attempts after the
	// lease has become free. It begins at zero, so that a single waiter loses no
	// time, and doubles each time another was faster: of many waiters only those
	// few try that draw a short time, the others see in time that it is gone. Where
	// hands change quickly it also doubles each time another is seen to be faster, so
	// that those learn it who have not tried.
	spread time.Duration
	rival  uint64        // the token of the tenure that was seen last
	since  time.Duration // when that was
	retry  time.Duration // pause before the next attempt after a failure
}

// faster notes the tenure of another; lost says that this waiter has tried, too.
func (w *waiter) faster(rec backend.Record, lost bool) {
	now := w.l.clock.Now()
	if lost || rec.Token != w.rival && w.rival != 0 && now-w.since < quick {
		w.spread = min(max(2*w.spread, time.Millisecond), maxSpread)
	}
	if rec.Token != w.rival {
		w.rival, w.since = rec.Token, now
	}
}

const (
	maxSpread = 50 * time.Millisecond
	quick     = time.Second
	minRetry  = 5 * time.Millisecond
	maxRetry  = 5 * time.Second
)

func (w *waiter) wait(ctx context.Context) error {
	l := w.l
	watchCtx, stop := context.WithCancel(ctx)
	news := make(chan news, 1)
	defer stop()
	// It ends when this call does, if the store heeds its context; Close waits.
	last := w.last
	if !l.background(func(context.Context) { w.watch(watchCtx, news, last) }) {
		return ErrClosed
	}

	var (
		free  bool   // the watch says so
		blind bool   // there is no watch
		try   *alarm // when to try next
	)
	defer func() { try.stop() }()
	set := func(d time.Duration) {
		try.stop()
		try = l.alarm(d)
	}
	set(w.pause(free, blind))
	for {
		select {
		case <-ctx.Done():
			return w.gaveUp(ctx)
		case <-l.base.Done():
			return ErrClosed
		case n := <-news:
			if n.err != nil {
				blind = true
				l.log(slog.LevelWarn, "the lease cannot be watched; trying at intervals", "error", n.err)
				set(0)
				continue
			}
			was := free
			free = !n.rec.Live()
			switch {
			case free && !was:
				w.retry = 0
				set(rand.N(w.spread + 1))
			case !free:
				w.faster(n.rec, false)
				w.retry = 0
				set(w.pause(free, blind))
			}
		case <-try.c:
			err := l.operate(ctx, opTake)
			if err == nil || hopeless(err) {
				return err
			}
			if ctx.Err() == nil {
				w.last = err
			}
			var held *backend.HeldError
			if errors.As(err, &held) {
				w.faster(held.Record, true)
			}
			w.retry = min(max(2*w.retry, minRetry), maxRetry, max(minRetry, l.rules.duration/2))
			set(w.pause(free, blind))
		}
	}
}

// pause is how long to wait for news before an attempt is made anyway.
func (w *waiter) pause(free, blind bool) time.Duration {
	l := w.l
	retry := w.retry + rand.N(w.retry/4+1)
	switch {
	case !errors.Is(w.last, backend.ErrHeld):
		return retry // the store failed
	case free:
		// The watch says free, the store says held: one of them is behind.
		return retry
	case blind:
		return l.rules.duration/3 + rand.N(l.rules.duration/12+1)
	}
	l.mu.Lock()
	at, ok := l.state.seen.overAt(&l.rules)
	l.mu.Unlock()
	if ok {
		return max(at-l.clock.Now(), 0) + rand.N(w.spread+1)
	}
	// The store tells when it expires. Should it fail to, this is the backstop.
	backstop := max(4*l.rules.duration, 5*time.Minute)
	return backstop + rand.N(backstop/4)
}

func (w *waiter) gaveUp(ctx context.Context) error {
	var interrupted *interruptedError
	if errors.As(w.last, &interrupted) { // there was no other reason
		return fmt.Errorf("gave up waiting: %w", context.Cause(ctx))
	}
	return fmt.Errorf("gave up waiting: %w; last: %w", context.Cause(ctx), w.last)
}

// news is what the watch of a waiter has seen last.
type news struct {
	rec backend.Record
	err error
}

// watch keeps the newest state in ch, which has room for one, until ctx ends.
// last is the refusal that observers have been told of already.
func (w *waiter) watch(ctx context.Context, ch chan news, last error) {
	l := w.l
	var blocked backend.Record // whom observers know to be in the way
	var held *backend.HeldError
	if errors.As(last, &held) {
		blocked = held.Record
	}
	for rec, err := range l.Observe(ctx) {
		if err == nil && rec.Live() && rec.Holder != l.rules.holder && (rec.Holder != blocked.Holder || rec.Token != blocked.Token) {
			blocked = rec
			l.mu.Lock()
			l.queue(Event{Kind: EventBlocked, Record: rec, Err: &backend.HeldError{Record: rec}})
			l.mu.Unlock()
			l.tell()
		}
		n := news{rec, err}
		select {
		case ch <- n:
		default:
			select {
			case <-ch: // overtaken
			default:
			}
			ch <- n // nobody else sends
		}
	}
}

// alarm is a timer on the Lease's clock.
type alarm struct {
	c     chan struct{}
	timer Timer
}

func (l *Lease) alarm(d time.Duration) *alarm {
	a := &alarm{c: make(chan struct{}, 1)}
	if d <= 0 {
		a.c <- struct{}{}
		return a
	}
	a.timer = l.clock.AfterFunc(d, func() { a.c <- struct{}{} })
	return a
}

func (a *alarm) stop() {
	if a != nil && a.timer != nil {
		a.timer.Stop()
	}
}
