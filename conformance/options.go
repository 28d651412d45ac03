package conformance

import (
	"cmp"
	"slices"
	"time"

	"github.com/leasehold/leasehold/backend"
)

// Option changes how the suite is run.
type Option func(*config)

type config struct {
	open     func() (backend.Store, error)
	cases    []Case
	prefix   string
	duration time.Duration
	maxWait  time.Duration
	patience time.Duration
	timeout  time.Duration
	clients  int
	parallel int
	without  []Feature
	strict   bool
	logf     func(format string, args ...any)
	run      string // names this run among all of the process
}

// Feature is something the contract lets a store be without.
type Feature string

// The features a store may lack.
const (
	List     Feature = "List"     // enumerate names
	Seals    Feature = "Seals"    // keep a Seal: it cannot take part in a migration
	MinToken Feature = "MinToken" // grant a token above Claim.MinToken: likewise
)

// Without declares what the store cannot do. The suite checks that it refuses
// it with ErrUnsupported, and skips what depends on it.
func Without(features ...Feature) Option {
	return func(c *config) { c.without = append(c.without, features...) }
}

// WithDuration sets the duration of the tenures that a case lets run out, and of
// the leases it holds. It is raised to what the store's Traits need. The default
// is 300 ms. A longer one makes the suite slower, and calmer on a busy machine.
func WithDuration(d time.Duration) Option { return func(c *config) { c.duration = d } }

// WithMaxWait sets how much Traits.ExpirySlack a case puts up with. Cases that
// need the store to call a tenure expired are skipped where it may take longer.
// The default is 5 s.
func WithMaxWait(d time.Duration) Option { return func(c *config) { c.maxWait = d } }

// WithPatience sets how long a case waits for what should happen at once before
// it counts as not happening. It is a bound for slow networks and busy machines,
// not an expectation. The default is 15 s.
func WithPatience(d time.Duration) Option { return func(c *config) { c.patience = d } }

// WithTimeout sets how long one case may take before it counts as hung. The
// default depends on the durations.
func WithTimeout(d time.Duration) Option { return func(c *config) { c.timeout = d } }

// WithClients sets how many clients contend where a case is about contention.
// The default is 6.
func WithClients(n int) Option { return func(c *config) { c.clients = n } }

// WithParallel sets how many cases run at a time. The default is 12: most of
// them wait.
func WithParallel(n int) Option { return func(c *config) { c.parallel = n } }

// WithPrefix sets what every name begins with that the suite touches. The
// default is "conformance.".
func WithPrefix(prefix string) Option { return func(c *config) { c.prefix = prefix } }

// WithCases sets what is run: some of Cases, or others. The default is all of
// them.
func WithCases(cases ...Case) Option { return func(c *config) { c.cases = cases } }

// WithLog sets where a case reports what is worth knowing though it is not a
// failure. Run logs to its test by default; Check does not log.
func WithLog(logf func(format string, args ...any)) Option {
	return func(c *config) { c.logf = logf }
}

// Strict turns every skip into a failure.
func Strict() Option { return func(c *config) { c.strict = true } }

func newConfig(opts []Option) *config {
	c := &config{logf: func(string, ...any) {}, run: random(8)}
	for _, opt := range opts {
		opt(c)
	}
	c.prefix = cmp.Or(c.prefix, "conformance.")
	c.duration = cmp.Or(c.duration, 300*time.Millisecond)
	c.maxWait = cmp.Or(c.maxWait, 5*time.Second)
	c.patience = cmp.Or(c.patience, 15*time.Second)
	c.clients = max(2, cmp.Or(c.clients, 6))
	c.parallel = max(1, cmp.Or(c.parallel, 12))
	if c.cases == nil {
		c.cases = Cases()
	}
	return c
}

func (c *config) lacks(f Feature) bool { return slices.Contains(c.without, f) }
