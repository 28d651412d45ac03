package lease

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/leasehold/leasehold/backend"
)

// Lease is one name in one store, to be held by one holder at a time. Its
// methods may be called concurrently.
//
// A Lease may be acquired, released and acquired again any number of times.
// Each time is a tenure with a token and a Context of its own.
type Lease struct {
	store     backend.Store
	rules     rules
	clock     Clock
	service   RenewalService
	interval  time.Duration
	renews    bool
	logger    *slog.Logger
	observers []func(Event)

	// stopAt is when the context ends, 0 without a tenure: all that Held needs.
	stopAt atomic.Int64

	turn chan struct{} // holds one value while an operation is under way

	mu        sync.Mutex
	state     state
	era       uint64 // counts begins and ends, so that what belongs to an old tenure can tell
	ctx       context.Context
	cancel    context.CancelCauseFunc
	timer     Timer
	schedule  ScheduleID
	interrupt context.CancelFunc // ends the renewal in flight
	closed    bool
	events    []Event
	telling   bool // somebody is handing out events

	base    context.Context // ends with Close
	close   context.CancelFunc
	running sync.WaitGroup // everything in the background
	kicked  atomic.Bool    // an immediate renewal is under way
}

// New makes a Lease of name in store. It does no I/O. Errors are
// backend.ErrInvalid and say what is allowed.
func New(store backend.Store, name string, opts ...Option) (*Lease, error) {
	o := options{duration: DefaultDuration, clock: SystemClock}
	for _, opt := range opts {
		opt(&o)
	}
	if store == nil {
		return nil, fmt.Errorf("%w: the store is nil", backend.ErrInvalid)
	}
	if !o.shared {
		o.holder = NewHolder()
	}
	traits := store.Traits()
	if err := o.check(name, traits); err != nil {
		return nil, err
	}
	l := &Lease{
		store: store,
		rules: rules{
			name: name, holder: string(o.holder), duration: o.duration, grace: o.grace, maxHold: o.maxHold,
			metadata: maps.Clone(o.metadata), visible: traits.RenewalsVisible, prefix: rand.Text() + "-", shared: o.shared,
		},
		clock: o.clock, service: o.service, interval: o.interval, renews: !o.noRenewal,
		logger: o.logger, observers: o.observers,
		turn: make(chan struct{}, 1),
		ctx:  neverHeld,
	}
	l.base, l.close = context.WithCancel(context.Background())
	if l.service == nil {
		// The shared scheduler counts on the system's clock.
		if l.service = DefaultRenewalService(); l.clock != SystemClock {
			l.service = NewRenewalService(l.clock)
		}
	}
	return l, nil
}

// neverHeld is the context of a Lease that has had no tenure yet.
var neverHeld = func() context.Context {
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(ErrNotHeld)
	return ctx
}()

// Acquire takes the lease: where it is free or expired it begins a tenure, and
// where this Lease holds it already it renews it. It does not wait for another
// holder: then, and on every failure, the error is an *AcquisitionError.
//
// If the answer to the request is lost, the record is read back: what was
// granted is claimed anew, with a new token, or freed.
func (l *Lease) Acquire(ctx context.Context) error {
	return l.acquisitionError("acquire", l.operate(ctx, opTake), nil)
}

// TryAcquire is Acquire that reports whether it succeeded.
func (l *Lease) TryAcquire(ctx context.Context) bool { return l.Acquire(ctx) == nil }

// Renew extends the tenure. Where the lease is free or expired it begins a new
// one, with a new token; the old context has ended before. The error is an
// *AcquisitionError. While a tenure is under way, an error other than
// backend.ErrHeld and backend.ErrLost has not ended it.
func (l *Lease) Renew(ctx context.Context) error {
	return l.acquisitionError("renew", l.operate(ctx, opTake), nil)
}

// TryRenew is Renew that reports whether it succeeded.
func (l *Lease) TryRenew(ctx context.Context) bool { return l.Renew(ctx) == nil }

// Extend renews the current tenure and never begins one: it is what a
// RenewalService calls. Without a tenure the error wraps ErrNotHeld, after a
// loss backend.ErrLost; any other has not ended the tenure. It is always an
// *AcquisitionError.
func (l *Lease) Extend(ctx context.Context) error {
	return l.acquisitionError("extend", l.operate(ctx, opExtend), nil)
}

// Release ends the tenure: the context is cancelled and renewal stopped, then
// the store is told. Call it when the work has stopped, since it lets others in.
//
// A record that is not this Lease's is released too if it has expired; where
// there is none, nothing is done. Another's live record, or one that has moved
// to another store, is left alone: the error, like every failure, is a
// *RelinquishmentError.
func (l *Lease) Release(ctx context.Context) error {
	// At once, and not only when the operation under way has finished.
	l.end(ErrReleased)
	for _, twin := range twins.of(l) {
		twin.end(ErrReleased)
	}
	if err := l.operate(ctx, opRelease); err != nil {
		return &RelinquishmentError{Op: "release", Name: l.rules.name, Other: otherHolder(err), Err: err}
	}
	return nil
}

// TryRelease is Release that reports whether it succeeded.
func (l *Lease) TryRelease(ctx context.Context) bool { return l.Release(ctx) == nil }

// IsAcquired asks the store whether this Lease's holder holds the lease and it
// has not expired. See Held for the question without I/O.
func (l *Lease) IsAcquired(ctx context.Context) (bool, error) {
	rec, expired, err := l.look(ctx)
	return err == nil && !rec.Vacant() && rec.Seal == nil && rec.Holder == l.rules.holder && !expired, err
}

// IsExpired asks the store whether there is a record and it has expired, whoever
// held it: by the store's own clock, because this Lease has seen it unchanged
// for longer than its duration, or because it was this Lease's and its deadline
// is past.
func (l *Lease) IsExpired(ctx context.Context) (bool, error) {
	_, expired, err := l.look(ctx)
	return expired, err
}

// Held reports whether the lease is held: a tenure is under way and its context
// has not ended. It does no I/O and allocates nothing; call it before each step
// that nobody else may take at the same time. It looks at the clock, so it is
// right also where a timer is late.
func (l *Lease) Held() bool {
	stop := l.stopAt.Load()
	return stop != 0 && l.clock.Now() < time.Duration(stop)
}

// Context is done when the tenure ends; context.Cause says why: ErrReleased,
// ErrExpired, ErrTaken, ErrMoved, ErrMaxHold, ErrClosed, or backend.ErrCorrupt
// (compare with errors.Is). It ends a grace before the deadline, so that work
// which heeds it has stopped before another can be let in. After the end it
// stays what it was until the next tenure begins; before the first it is done
// with ErrNotHeld.
func (l *Lease) Context() context.Context {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ctx
}

// Record returns the record of the tenure as this Lease last knew it, with only
// its Name while there is none.
func (l *Lease) Record() backend.Record {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.state.held {
		return backend.Record{Name: l.rules.name}
	}
	rec := l.state.tenure
	rec.Metadata = maps.Clone(rec.Metadata)
	return rec
}

// Token returns the fencing token of the tenure, 0 while there is none. Hand it
// to the resource that the lease guards, and let that refuse a smaller one.
func (l *Lease) Token() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.state.held {
		return 0
	}
	return l.state.tenure.Token
}

// Deadline returns the instant, on this Lease's Clock, from which the store may
// let another in, 0 while there is no tenure. The context ends a grace before.
func (l *Lease) Deadline() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.state.held {
		return 0
	}
	return l.state.deadline
}

// Remaining returns the time until the context ends unless the tenure is
// renewed, 0 while there is none.
func (l *Lease) Remaining() time.Duration {
	stop := l.stopAt.Load()
	if stop == 0 {
		return 0
	}
	return max(0, time.Duration(stop)-l.clock.Now())
}

// Store returns the store the lease lives in.
func (l *Lease) Store() backend.Store { return l.store }

// Name returns the name of the lease.
func (l *Lease) Name() string { return l.rules.name }

// Namespace returns what keeps the store's names apart from another's.
func (l *Lease) Namespace() string { return l.store.Traits().Namespace }

// Duration returns how long one renewal lasts, as asked for. A coarse store may
// grant more: Record().Duration.
func (l *Lease) Duration() time.Duration { return l.rules.duration }

// Holder returns the identity the lease is held under.
func (l *Lease) Holder() Holder { return Holder(l.rules.holder) }

// RenewalService returns who renews.
func (l *Lease) RenewalService() RenewalService { return l.service }

// ScheduleID returns the schedule of the renewals of the tenure, zero when
// nothing is scheduled.
func (l *Lease) ScheduleID() ScheduleID {
	l.mu.Lock()
	id := l.schedule
	l.mu.Unlock()
	if id != 0 && !l.service.IsScheduled(id) {
		return 0 // somebody has cancelled it
	}
	return id
}

// Close ends the tenure (the cause is ErrClosed) and everything this Lease has
// in the background, and waits for that: also for a call whose client ignores
// its context. The store is not told, so that work which has not stopped yet
// stays alone until the record expires; Release first where it has. Calls after
// Close fail with ErrClosed. Do not call it from an observer.
func (l *Lease) Close() error {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.end(ErrClosed)
	l.close()
	l.running.Wait()
	return nil
}

// end ends the tenure for a reason of this Lease's own.
func (l *Lease) end(cause error) {
	l.apply(event{kind: evEnd, err: cause})
	l.tell()
}

// acquisitionError makes the error of an operation. refusal is the one that
// names who was in the way, where it is not err itself.
func (l *Lease) acquisitionError(op string, err, refusal error) error {
	if err == nil {
		return nil
	}
	return &AcquisitionError{Op: op, Name: l.rules.name, Other: otherHolder(cmp.Or(refusal, err)), Err: err}
}

// see tells the machine of a record that arrived by itself.
func (l *Lease) see(rec backend.Record) {
	l.apply(event{kind: evSeen, rec: rec})
	l.tell()
}

// look reads the record, for a question.
func (l *Lease) look(ctx context.Context) (rec backend.Record, expired bool, err error) {
	rec, err = l.call(ctx, call{verb: verbGet, timeout: l.rules.patience()})
	if err != nil && ctx.Err() != nil {
		err = &interruptedError{context.Cause(ctx)}
	}
	if errors.Is(err, backend.ErrNotFound) {
		rec, err = backend.Record{Name: l.rules.name}, nil
	}
	if err != nil {
		return rec, false, fmt.Errorf("look at lease %q: %w", l.rules.name, err)
	}
	l.see(rec)
	l.mu.Lock()
	defer l.mu.Unlock()
	return rec, l.rules.expired(&l.state, rec, l.clock.Now()), nil
}
