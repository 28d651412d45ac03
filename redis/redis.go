package redis

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/leasehold/leasehold/backend"
)

const (
	defaultTimeout   = 10 * time.Second
	defaultRetention = 24 * time.Hour

	defaultReplicasTimeout = 500 * time.Millisecond

	// minDuration leaves a holder time to renew over a local network.
	minDuration = 10 * time.Millisecond

	// slack is how late Redis, which counts milliseconds, calls a key expired.
	slack = 2 * time.Millisecond
)

// Option changes how New makes a Store.
type Option func(*Store)

// WithRequestTimeout bounds every call, whatever its context allows. The default
// is 10 s.
func WithRequestTimeout(d time.Duration) Option {
	return func(s *Store) {
		if d > 0 {
			s.timeout = d
		}
	}
}

// WithRetention sets for how long the record of an expired tenure, and the last
// token of a released one, are kept. The default is a day. The last token matters
// only while the server's clock is behind it, because it was set back: retention is
// how far that may be. At least a second, at most a year.
func WithRetention(d time.Duration) Option {
	return func(s *Store) {
		if d < time.Second || d > backend.MaxDuration {
			s.invalid = fmt.Errorf("%w: the retention is %v, it must be between 1s and %v", backend.ErrInvalid, d, backend.MaxDuration)
			return
		}
		s.retention = d
	}
}

// WithReplicas has every grant and renewal wait until n replicas have it, for at
// most the given time (Redis's WAIT). If fewer have, the call fails and its outcome
// is unknown: the write stays where it is. A timeout of 0 is 500 ms; it should be
// shorter than the client's ReadTimeout.
//
// It makes it less likely that a failover forgets a tenure, and not impossible: the
// replica that is promoted may be another than those that answered, and one that has
// answered keeps what it got only in memory. See "What replication can lose" in the
// package documentation.
func WithReplicas(n int, timeout time.Duration) Option {
	return func(s *Store) {
		if n < 0 || timeout < 0 {
			s.invalid = fmt.Errorf("%w: %d replicas within %v cannot be waited for", backend.ErrInvalid, n, timeout)
			return
		}
		if timeout == 0 {
			timeout = defaultReplicasTimeout
		}
		s.replicas, s.replicasTimeout = n, max(timeout, time.Millisecond)
	}
}

// Store keeps leases under one prefix. It may be used concurrently.
type Store struct {
	client          goredis.UniversalClient
	owned           bool // Close closes the client
	punctual        bool // the client heeds the deadlines of contexts
	prefix          string
	invalid         error // what is wrong with the arguments of New
	timeout         time.Duration
	retention       time.Duration
	keep            string // retention, in milliseconds
	replicas        int
	replicasTimeout time.Duration

	done  chan struct{}
	close func() error

	scripts scripts
	channel string // what the channel of a name has behind the key of its record
	lanes   lanes
	topics  topics
}

var (
	_ backend.Store    = (*Store)(nil)
	_ backend.Watcher  = (*Store)(nil)
	_ backend.Lister   = (*Store)(nil)
	_ backend.Examiner = (*Store)(nil)
)

// New returns a store of the leases under a prefix. It sends nothing. The prefix is
// taken as it is; "" is DefaultPrefix. The client is a *Client (of one server, or
// one that asks Sentinel) or a *ClusterClient. What is wrong with the arguments every
// call says, as an ErrInvalid.
//
// The client stays the caller's: Close does not close it. One with
// ContextTimeoutEnabled frees its connections sooner when a server does not answer;
// calls of the store are bounded by their contexts in any case.
func New(client goredis.UniversalClient, prefix string, opts ...Option) *Store {
	s := &Store{
		client:          client,
		timeout:         defaultTimeout,
		retention:       defaultRetention,
		replicasTimeout: defaultReplicasTimeout,
		done:            make(chan struct{}),
	}
	for _, opt := range opts {
		opt(s)
	}
	s.keep = strconv.FormatInt(s.retention.Milliseconds(), 10)
	if checked, err := checkPrefix(prefix); err != nil {
		s.invalid = err
	} else {
		s.prefix = checked
	}
	db := 0
	switch c := client.(type) {
	case *goredis.Client:
		if c == nil {
			s.invalid = errNoClient
			break
		}
		s.punctual, db = c.Options().ContextTimeoutEnabled, c.Options().DB
	case *goredis.ClusterClient:
		if c == nil {
			s.invalid = errNoClient
			break
		}
		s.punctual = c.Options().ContextTimeoutEnabled
	case nil:
		s.invalid = errNoClient
	case *goredis.Ring:
		s.invalid = fmt.Errorf("%w: the redis store cannot use a Ring: when one of its servers is down, others take over its names and know nothing of their leases", backend.ErrInvalid)
	default:
		// What one of these makes of several servers cannot be known.
		s.invalid = fmt.Errorf("%w: the redis store needs a *redis.Client or a *redis.ClusterClient, not a %T (hooks can be added to these)", backend.ErrInvalid, client)
	}
	s.channel = channelSuffix(db)
	s.scripts = scriptsOf(s.channel)
	s.topics.init(s)
	s.close = sync.OnceValue(func() error {
		close(s.done)
		s.topics.close()
		if s.owned {
			return s.client.Close()
		}
		return nil
	})
	return s
}

// Prefix returns what all keys of the store begin with.
func (s *Store) Prefix() string { return s.prefix }

// Traits tells what this store can do.
func (s *Store) Traits() backend.Traits {
	return backend.Traits{
		Name:        "redis",
		Namespace:   s.prefix,
		MinDuration: minDuration,
		Granularity: time.Millisecond,
		ExpirySlack: slack,
	}
}

// Close ends the watches, and closes the client if Open has made it. It touches
// no record.
func (s *Store) Close() error {
	if err := s.close(); err != nil && !errors.Is(err, goredis.ErrClosed) {
		return fmt.Errorf("closing the Redis client: %w", err)
	}
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

var (
	errNoClient     = fmt.Errorf("%w: the redis store needs a client of go-redis", backend.ErrInvalid)
	errClosed       = fmt.Errorf("%w: the redis store is closed", backend.ErrInvalid)
	errClientClosed = fmt.Errorf("%w: the client of the redis store is closed", backend.ErrInvalid)
)

// enter begins a call about name.
func (s *Store) enter(ctx context.Context, name string) error {
	if err := backend.CheckName(name); err != nil {
		return err
	}
	return s.usable(ctx)
}

// usable begins a call.
func (s *Store) usable(ctx context.Context) error {
	switch {
	case s.invalid != nil:
		return s.invalid
	case s.closed():
		return errClosed
	case ctx.Err() != nil:
		return fmt.Errorf("the call to the redis store was not begun: %w", ctx.Err())
	}
	return nil
}
