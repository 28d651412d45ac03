package kubernetes

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/rest"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/internal/boottime"
)

const (
	defaultMargin  = time.Minute
	defaultTimeout = 10 * time.Second
	defaultPoll    = 2 * time.Second
)

// Option changes how New makes a Store.
type Option func(*Store)

// WithExpiryMargin sets for how much longer than its duration a record must have
// been left unrenewed, by the API server's clock, until Get calls it Expired. It
// covers the difference between the clocks of the API servers behind one address;
// the default is a minute. 0 switches this judgement off; the freshly dead are
// found by observation in any case.
func WithExpiryMargin(d time.Duration) Option { return func(s *Store) { s.margin = d } }

// WithLabels sets labels that every object gets when a tenure is granted. Labels
// that others have put there stay.
func WithLabels(labels map[string]string) Option {
	return func(s *Store) { s.labels = maps.Clone(labels) }
}

// WithCreateNamespace has Acquire create the namespace if there is none. It needs
// the verb create on namespaces.
func WithCreateNamespace() Option { return func(s *Store) { s.createNamespace = true } }

// WithVacate has Release vacate the object instead of deleting it, so that its
// history (leaseTransitions) and what others have written on it stay.
func WithVacate() Option { return func(s *Store) { s.keep = true } }

// WithRequestTimeout bounds every request, whatever the context allows. The default
// is 10 s; rest.Config.Timeout counts too if it is shorter.
func WithRequestTimeout(d time.Duration) Option { return func(s *Store) { s.timeout = d } }

// WithPollInterval sets how often a Watch looks where the role does not allow
// watching. The default is 2 s.
func WithPollInterval(d time.Duration) Option { return func(s *Store) { s.poll = d } }

// WithLogger sets where the store reports what a person should know though no call
// fails: that it may not watch, and polls. The default is slog.Default.
func WithLogger(l *slog.Logger) Option { return func(s *Store) { s.logger = l } }

// Store keeps leases in one namespace. It may be used concurrently.
type Store struct {
	namespace       string
	margin          time.Duration
	labels          map[string]string
	createNamespace bool
	keep            bool
	timeout         time.Duration
	poll            time.Duration
	logger          *slog.Logger

	api      *api
	watches  *hub
	done     chan struct{} // closed by Close
	close    sync.Once
	noDelete atomic.Int64 // until when the role is taken not to allow it, on the boot-time clock

	pollsOnce sync.Once

	mu    sync.Mutex
	last  map[string]last // by object name
	swept int             // how many were left after the last sweep
}

var (
	_ backend.Store    = (*Store)(nil)
	_ backend.Watcher  = (*Store)(nil)
	_ backend.Lister   = (*Store)(nil)
	_ backend.Examiner = (*Store)(nil)
)

// last is what this client knows of an object that it has written: so a renewal is
// one request. It is only a guess, which the compare-and-swap of the next write
// checks.
type last struct {
	obj   *object
	token uint64        // that the tenure was granted here; 0 if none is held
	sent  time.Duration // when the write was sent, on the boot-time clock

	doubtful bool // a write that relied on it was refused
}

// New returns a store of the leases in a namespace. It sends nothing: whether the
// server can be reached shows with the first call. cfg is copied; its QPS, Burst
// and RateLimiter are not heeded, because a renewal that waits in a queue of the
// client is lost.
func New(cfg *rest.Config, namespace string, opts ...Option) (*Store, error) {
	if cfg == nil {
		return nil, fmt.Errorf("%w: the Kubernetes store needs a *rest.Config", backend.ErrInvalid)
	}
	if problems := validation.IsDNS1123Label(namespace); len(problems) > 0 {
		return nil, fmt.Errorf("%w: %q is no name of a namespace: %s", backend.ErrInvalid, namespace, strings.Join(problems, "; "))
	}
	s := &Store{
		namespace: namespace,
		margin:    defaultMargin,
		timeout:   defaultTimeout,
		poll:      defaultPoll,
		done:      make(chan struct{}),
		last:      make(map[string]last),
	}
	for _, opt := range opts {
		opt(s)
	}
	s.logger = cmp.Or(s.logger, slog.Default())
	switch {
	case s.margin < 0 || s.margin > backend.MaxDuration:
		return nil, fmt.Errorf("%w: the expiry margin is %v; it must be 0 (off) or more, up to a year", backend.ErrInvalid, s.margin)
	case s.timeout <= 0:
		return nil, fmt.Errorf("%w: the request timeout is %v; it must be positive", backend.ErrInvalid, s.timeout)
	case s.poll <= 0:
		return nil, fmt.Errorf("%w: the poll interval is %v; it must be positive", backend.ErrInvalid, s.poll)
	}
	for _, key := range slices.Sorted(maps.Keys(s.labels)) {
		if problems := append(validation.IsQualifiedName(key), validation.IsValidLabelValue(s.labels[key])...); len(problems) > 0 {
			return nil, fmt.Errorf("%w: the label %s=%s: %s", backend.ErrInvalid, key, s.labels[key], strings.Join(problems, "; "))
		}
	}
	a, err := newAPI(cfg, namespace, s.timeout)
	if err != nil {
		return nil, fmt.Errorf("%w: the configuration of the Kubernetes client: %w", backend.ErrInvalid, err)
	}
	s.api = a
	s.watches = newHub(s)
	return s, nil
}

// Traits tells what this store can do.
func (s *Store) Traits() backend.Traits {
	return backend.Traits{
		Name:            "kubernetes",
		Namespace:       s.namespace,
		MinDuration:     time.Second,
		Granularity:     time.Second,
		ExpirySlack:     s.slack(),
		RenewalsVisible: true,
	}
}

// Close ends the watches and closes idle connections. It touches no object.
func (s *Store) Close() error {
	s.close.Do(func() {
		close(s.done)
		s.api.close()
	})
	return nil
}

func (s *Store) closed() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

// usable begins a call.
func (s *Store) usable(ctx context.Context) error {
	if s.closed() {
		return errClosed
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("the call to the Kubernetes store was not begun: %w", err)
	}
	return nil
}

var errClosed = fmt.Errorf("%w: the Kubernetes store is closed", backend.ErrInvalid)

// enter begins a call about name.
func (s *Store) enter(ctx context.Context, name string) error {
	if err := backend.CheckName(name); err != nil {
		return err
	}
	return s.usable(ctx)
}

// recall returns what is known of an object; its obj is nil if that is nothing.
func (s *Store) recall(name string) last {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last[name]
}

// remember keeps what the server made of a write. Of several replies that arrive
// out of order the newest counts.
func (s *Store) remember(l last) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if old, ok := s.last[l.obj.Name]; ok && !old.doubtful && old.obj.UID == l.obj.UID && old.obj.version > l.obj.version {
		return
	}
	s.last[l.obj.Name] = l
	const few = 256
	if len(s.last) > 2*max(s.swept, few) {
		s.sweep()
	}
}

// distrust has the next call about an object look first. What token its tenure was
// granted here is still known.
func (s *Store) distrust(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l, ok := s.last[name]; ok {
		l.doubtful = true
		s.last[name] = l
	}
}

// forget drops what is known of an object, after it was seen to be wrong.
func (s *Store) forget(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.last, name)
}

// sweep drops what was written so long ago that its tenure is over: whoever held
// it did not release it. s.mu is held.
func (s *Store) sweep() {
	now := boottime.Now()
	for name, l := range s.last {
		if now-l.sent > 2*l.obj.record.Duration+defaultMargin && l.obj.record.Seal == nil {
			delete(s.last, name)
		}
	}
	s.swept = len(s.last)
}

// view reads an object that the server has answered with at date, with the token
// that this client was granted where the object does not tell it yet.
func (s *Store) view(l *coordinationv1.Lease, date time.Time) (*object, error) {
	o, err := parse(l)
	if err != nil {
		return nil, err
	}
	if known := s.recall(l.Name); known.token != 0 && known.obj.sameTenure(o) {
		o.record.Token, o.known = known.token, true
	}
	o.record.Expired, o.record.Remaining = s.judge(o, date)
	return o, nil
}
