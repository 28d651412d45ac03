package lease

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/internal/wait"
)

// This file drives the machine: it makes the calls that a step asks for, and
// turns its other actions into contexts, timers, schedules and events.

// operate runs one operation, after the one under way.
func (l *Lease) operate(ctx context.Context, kind opKind) error {
	if ctx.Err() != nil {
		return &interruptedError{context.Cause(ctx)}
	}
	select {
	case l.turn <- struct{}{}:
	case <-ctx.Done():
		return &interruptedError{context.Cause(ctx)}
	case <-l.base.Done():
		return ErrClosed
	}
	// Observers may begin another operation, so they are told after this one.
	defer l.tell()
	defer func() { <-l.turn }()
	switch {
	case l.base.Err() != nil:
		return ErrClosed
	case ctx.Err() != nil:
		return &interruptedError{context.Cause(ctx)}
	}

	a := l.apply(event{kind: evStart, op: kind})
	for !a.done {
		if a.ended != nil { // a loss is not kept back until the store has answered
			l.background(func(context.Context) { l.tell() })
		}
		rec, err := l.call(ctx, a.call)
		e := event{kind: evReply, rec: rec, err: err}
		switch {
		case err == nil || backend.Definite(err):
		case l.base.Err() != nil:
			e = event{kind: evCancel, err: ErrClosed}
		case ctx.Err() != nil:
			e = event{kind: evCancel, err: ctx.Err()}
		}
		a = l.apply(e)
		if e.kind == evCancel && a.err == ctx.Err() && a.err != nil {
			a.err = &interruptedError{context.Cause(ctx)}
		}
	}
	if a.settle {
		l.background(func(ctx context.Context) {
			if err := l.operate(ctx, opSettle); err != nil {
				l.log(slog.LevelWarn, "an acquire of unknown outcome could not be looked into; it may keep others out for one duration", "error", err)
			}
		})
	}
	return a.err
}

// call makes one call of the store, bounded by its timeout whatever the store
// does: a client that ignores its context is left to finish in the background.
func (l *Lease) call(ctx context.Context, c call) (backend.Record, error) {
	type reply struct {
		rec backend.Record
		err error
	}
	// The caller's cause does not go along: a store that wraps it in its error
	// would seem to have said what it says.
	caller := ctx
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(caller), c.timeout, &timeoutError{c.timeout})
	unlink := context.AfterFunc(caller, cancel)
	defer unlink()
	replies := make(chan reply, 1)
	if !l.track() {
		cancel()
		return backend.Record{}, ErrClosed
	}
	if c.verb == verbRenew {
		l.mu.Lock()
		l.interrupt = cancel
		l.mu.Unlock()
	}
	left := wait.Abandon(ctx)
	go func() {
		defer l.running.Done()
		var r reply
		switch c.verb {
		case verbGet:
			r.rec, r.err = l.store.Get(left, l.rules.name)
		case verbAcquire:
			r.rec, r.err = l.store.Acquire(left, c.claim)
		case verbRenew:
			r.rec, r.err = l.store.Renew(left, c.rec)
		case verbRelease:
			r.err = l.store.Release(left, c.rec)
		}
		replies <- r
	}()
	var r reply
	select {
	case r = <-replies:
		if r.err != nil && !backend.Definite(r.err) && ctx.Err() != nil {
			r.err = fmt.Errorf("%w (%w)", context.Cause(ctx), r.err)
		}
	case <-ctx.Done():
		r.err = context.Cause(ctx)
	case <-l.base.Done():
		r.err = ErrClosed
	}
	if c.verb == verbRenew {
		l.mu.Lock()
		l.interrupt = nil
		l.mu.Unlock()
	}
	cancel()
	return r.rec, r.err
}

// timeoutError is a call that took too long.
type timeoutError struct{ after time.Duration }

func (e *timeoutError) Error() string {
	return fmt.Sprintf("the store did not answer within %v", e.after.Round(time.Microsecond))
}

// Is makes errors.Is(err, context.DeadlineExceeded) true.
func (e *timeoutError) Is(target error) bool { return target == context.DeadlineExceeded }

// Timeout is true, as net.Error has it.
func (e *timeoutError) Timeout() bool { return true }

// apply steps the machine and does what it asks for, but for the call, which is
// the caller's, as is tell.
func (l *Lease) apply(e event) actions {
	l.mu.Lock()
	if l.closed && e.kind == evReply {
		e = event{kind: evCancel, err: ErrClosed} // nothing begins after Close
	}
	now := l.clock.Now()
	elapsed := now - l.state.op.sent
	var a actions
	ending := l.state.tenure
	l.state, a = l.rules.step(l.state, e, now)

	var unschedule ScheduleID
	if a.ended != nil {
		l.era++
		twins.remove(l)
		l.stopAt.Store(0)
		l.cancel(a.ended)
		if l.timer != nil {
			l.timer.Stop()
			l.timer = nil
		}
		if l.interrupt != nil {
			l.interrupt() // there is nothing left to renew
		}
		unschedule, l.schedule = l.schedule, 0
		l.queue(Event{Kind: EventEnded, Record: ending, Err: a.ended})
	}
	if a.began {
		l.era++
		twins.add(l)
		l.ctx, l.cancel = context.WithCancelCause(context.Background())
	}
	if l.state.held {
		l.stopAt.Store(int64(l.state.stop))
		if l.timer == nil {
			era := l.era
			l.timer = l.clock.AfterFunc(a.wake-now, func() { l.tick(era) })
		}
	}
	if a.note != "" {
		ev := Event{Kind: a.note, Record: a.about, Err: a.noteOf, Elapsed: elapsed}
		switch {
		case a.note == EventRenewed:
			ev.Remaining = a.margin
		case l.state.held:
			ev.Remaining = l.state.stop - now
		}
		l.queue(ev)
	}
	era := l.era
	l.mu.Unlock()

	if unschedule != 0 {
		l.service.Cancel(unschedule)
	}
	if a.began && l.renews {
		l.startRenewal(era)
	}
	if a.renew && l.kicked.CompareAndSwap(false, true) {
		if !l.background(func(ctx context.Context) {
			defer l.kicked.Store(false)
			_ = l.operate(ctx, opExtend) // its outcome is told as an event
		}) {
			l.kicked.Store(false)
		}
	}
	return a
}

// tick is called when the stop was due that was known when the timer was set;
// renewals have usually moved it. One timer for each tenure, set anew once a
// duration, is cheaper than one moved at each renewal.
func (l *Lease) tick(era uint64) {
	l.mu.Lock()
	current := l.era == era
	if current {
		l.timer = nil
	}
	l.mu.Unlock()
	if current {
		l.apply(event{kind: evTick})
		l.tell()
	}
}

// startRenewal schedules the renewals of the tenure that began in era.
func (l *Lease) startRenewal(era uint64) {
	id, err := l.service.Schedule(l)
	l.mu.Lock()
	if err != nil {
		l.queue(Event{Kind: EventRenewFailed, Record: l.state.tenure, Err: fmt.Errorf("renewals could not be scheduled: %w", err)})
	} else if l.era == era {
		l.schedule, id = id, 0
	}
	l.mu.Unlock()
	if err == nil && id != 0 {
		l.service.Cancel(id) // the tenure ended meanwhile
	}
}

// track adds something that runs in the background, unless the Lease is closed;
// l.running.Done ends it.
func (l *Lease) track() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.running.Add(1)
	return true
}

// background runs f with a context that ends with the Lease. It reports false
// if the Lease is closed.
func (l *Lease) background(f func(ctx context.Context)) bool {
	if !l.track() {
		return false
	}
	go func() {
		defer l.running.Done()
		f(l.base)
	}()
	return true
}

// queue adds an event for tell; l.mu is held.
func (l *Lease) queue(e Event) {
	if l.logger == nil && len(l.observers) == 0 {
		return
	}
	e.Name, e.Time = l.rules.name, time.Now()
	l.events = append(l.events, e)
}

// tell hands the queued events out, in order, by one goroutine at a time, and
// without a lock, so that observers may call the Lease.
func (l *Lease) tell() {
	l.mu.Lock()
	if l.telling {
		l.mu.Unlock()
		return
	}
	l.telling = true
	for len(l.events) > 0 {
		events := l.events
		l.events = nil
		l.mu.Unlock()
		for _, e := range events {
			l.logEvent(e)
			for _, observe := range l.observers {
				observe(e)
			}
		}
		l.mu.Lock()
	}
	l.telling = false
	l.mu.Unlock()
}

func (l *Lease) logEvent(e Event) {
	level := slog.LevelInfo
	switch {
	case e.Kind == EventEnded && !errors.Is(e.Err, ErrReleased) && !errors.Is(e.Err, ErrClosed):
		level = slog.LevelWarn
	case e.Kind == EventRenewFailed || e.Kind == EventReleaseFailed || e.Kind == EventAcquireFailed:
		level = slog.LevelWarn
	case e.Kind == EventRenewed:
		level = slog.LevelDebug
	}
	var attrs []any
	if e.Record.Holder != "" {
		attrs = append(attrs, "recordHolder", e.Record.Holder, "token", e.Record.Token)
	}
	if e.Remaining > 0 {
		attrs = append(attrs, "remaining", e.Remaining)
	}
	if e.Err != nil {
		attrs = append(attrs, "error", e.Err)
	}
	l.log(level, "lease "+string(e.Kind), attrs...)
}

func (l *Lease) log(level slog.Level, msg string, attrs ...any) {
	if l.logger == nil {
		return
	}
	l.logger.Log(context.Background(), level, msg, append([]any{"lease", l.rules.name, "holder", l.rules.holder}, attrs...)...)
}
