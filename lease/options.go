package lease

import (
	"fmt"
	"log/slog"
	"time"

	"github.com/leasehold/leasehold/backend"
)

// DefaultDuration is how long one renewal lasts unless WithDuration says
// otherwise.
const DefaultDuration = 15 * time.Second

// Option changes how New makes a Lease.
type Option func(*options)

type options struct {
	duration    time.Duration
	holder      Holder
	shared      bool // the caller named the holder, so others may have the same
	service     RenewalService
	interval    time.Duration
	intervalSet bool
	noRenewal   bool
	grace       time.Duration
	graceSet    bool
	maxHold     time.Duration
	maxHoldSet  bool
	metadata    map[string]string
	logger      *slog.Logger
	observers   []func(Event)
	clock       Clock
}

// WithDuration sets how long the lease lasts from one renewal to the next. A
// crashed holder keeps others out for this long at most; a store that does not
// answer for almost as long costs a live holder the lease. The default is 15 s.
func WithDuration(d time.Duration) Option { return func(o *options) { o.duration = d } }

// WithHolder sets the identity to hold the lease under. Leases that share one
// share the tenure: each renews it, and a release by any ends it for all; for
// those of this process and store at once, for others when they renew or watch
// next. The default is an identity of its own for each Lease.
func WithHolder(h Holder) Option {
	return func(o *options) { o.holder, o.shared = h, true }
}

// WithRenewalService sets who renews. The default is DefaultRenewalService.
func WithRenewalService(s RenewalService) Option { return func(o *options) { o.service = s } }

// WithRenewInterval sets the time from one renewal to the next. The default is a
// third of the duration.
func WithRenewInterval(d time.Duration) Option {
	return func(o *options) { o.interval, o.intervalSet = d, true }
}

// WithoutRenewal leaves renewing to the caller: the tenure ends after its
// duration unless Renew or Extend is called.
func WithoutRenewal() Option { return func(o *options) { o.noRenewal = true } }

// WithGrace sets how long before the deadline the context ends: the time the
// work has to stop before anybody else can be let in. The default is a
// twentieth of the duration.
func WithGrace(d time.Duration) Option {
	return func(o *options) { o.grace, o.graceSet = d, true }
}

// WithMaxHold ends every tenure after d, however well it is renewed.
func WithMaxHold(d time.Duration) Option {
	return func(o *options) { o.maxHold, o.maxHoldSet = d, true }
}

// WithMetadata sets what others see in the record besides the holder. It is
// fixed for the tenure.
func WithMetadata(m map[string]string) Option { return func(o *options) { o.metadata = m } }

// WithLogger sets where transitions are logged: losses and failures as
// warnings, beginnings and ends as information, renewals for debugging. The
// default logs nothing.
func WithLogger(l *slog.Logger) Option { return func(o *options) { o.logger = l } }

// WithObserver calls f with every event, one at a time and in order, outside
// any lock: f may call the Lease, but while it runs no other event is told, so
// it should be quick. Given several times, all are called.
func WithObserver(f func(Event)) Option {
	return func(o *options) { o.observers = append(o.observers, f) }
}

// WithClock sets the clock. The default is SystemClock.
func WithClock(c Clock) Option { return func(o *options) { o.clock = c } }

// check completes the options and says what is wrong with them.
func (o *options) check(name string, traits backend.Traits) error {
	invalid := func(format string, args ...any) error {
		return fmt.Errorf("%w: lease %q: "+format, append([]any{backend.ErrInvalid, name}, args...)...)
	}
	if o.clock == nil {
		return invalid("the clock is nil")
	}
	for _, observe := range o.observers {
		if observe == nil {
			return invalid("an observer is nil")
		}
	}
	claim := backend.Claim{Name: name, Holder: string(o.holder), Duration: o.duration, Metadata: o.metadata}
	if _, err := backend.CheckClaim(claim, traits); err != nil {
		return err
	}
	if !o.graceSet {
		o.grace = o.duration / 20
	}
	if !o.intervalSet {
		o.interval = o.duration / 3
	}
	usable := deadlineOf(0, o.duration) - o.grace
	switch {
	case o.grace < 0:
		return invalid("the grace is %v, it must not be negative", o.grace)
	case usable <= o.interval && !o.graceSet && !o.intervalSet:
		return invalid("the duration %v is too short to be sure of: it takes some milliseconds at least, seconds are usual", o.duration)
	case usable <= 0:
		return invalid("the grace %v leaves nothing of the duration %v", o.grace, o.duration)
	case o.maxHoldSet && o.maxHold <= 0:
		return invalid("the longest hold is %v, it must be positive", o.maxHold)
	case o.noRenewal && o.intervalSet:
		return invalid("a renew interval is set and renewal is switched off")
	case o.noRenewal && o.service != nil:
		return invalid("a renewal service is set and renewal is switched off")
	case o.intervalSet && o.interval <= 0:
		return invalid("the renew interval is %v, it must be positive", o.interval)
	case !o.noRenewal && o.interval >= usable:
		return invalid("the renew interval %v must be below %v: the duration %v less the grace %v and the margin for clocks", o.interval, usable, o.duration, o.grace)
	}
	return nil
}
