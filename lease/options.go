package lease

import (
	"log/slog"
	"time"
)

// DefaultDuration is how long one renewal lasts unless WithDuration says
// otherwise.
const DefaultDuration = 15 * time.Second

// Option changes how New makes a Lease.
type Option func(*options)

type options struct {
	duration    time.Duration
	holder      Holder
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
// share the tenure. The default is an identity of its own for each Lease.
func WithHolder(h Holder) Option { return func(o *options) { o.holder = h } }

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
