package etcd

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/leasehold/leasehold/backend"
)

// DefaultPrefix is what keys begin with where no prefix is given.
const DefaultPrefix = "/leasehold/"

const (
	defaultTimeout = 10 * time.Second

	// defaultMinimum is what an etcd with its own settings (a heartbeat of 100 ms,
	// an election after 1 s) makes of any smaller TTL: 1.5 × the election, rounded
	// up. An etcd with others teaches it with the first grant.
	defaultMinimum = 2 * time.Second

	// slack is how late etcd ends a lease whose time is over: it looks every 500 ms,
	// and then lets its members agree.
	slack = time.Second
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

// Store keeps leases under one prefix. It may be used concurrently.
type Store struct {
	client  *clientv3.Client
	owned   bool // Close closes the client
	prefix  string
	invalid error // what is wrong with the arguments of New
	timeout time.Duration
	minimum atomic.Int64 // seconds
	done    chan struct{}
	close   func() error

	leases  pb.LeaseClient
	spares  spares
	keeper  keeper
	streams streams

	mu   sync.Mutex
	seen map[string]struct{}           // names that were not free when last seen
	lost map[clientv3.LeaseID]struct{} // etcd leases of tenures that were found to be over
}

var (
	_ backend.Store    = (*Store)(nil)
	_ backend.Watcher  = (*Store)(nil)
	_ backend.Lister   = (*Store)(nil)
	_ backend.Examiner = (*Store)(nil)
)

// New returns a store of the leases under a prefix. It sends nothing. The prefix
// begins and ends with a slash, which are added where they are missing; "" is
// DefaultPrefix. What is wrong with it every call says, as an ErrInvalid.
//
// The client stays the caller's: Close does not close it.
func New(client *clientv3.Client, prefix string, opts ...Option) *Store {
	s := &Store{
		client:  client,
		timeout: defaultTimeout,
		done:    make(chan struct{}),
	}
	s.prefix, s.invalid = checkPrefix(prefix)
	switch {
	case client == nil:
		s.invalid = fmt.Errorf("%w: the etcd store needs a *clientv3.Client", backend.ErrInvalid)
	case client.ActiveConnection() == nil:
		s.invalid = fmt.Errorf("%w: the etcd store needs a client with a connection; one made by v3client has none", backend.ErrInvalid)
	default:
		s.leases = clientv3.RetryLeaseClient(client)
	}
	s.keeper.open = func(ctx context.Context) (pb.Lease_LeaseKeepAliveClient, error) { return s.leases.LeaseKeepAlive(ctx) }
	s.minimum.Store(int64(defaultMinimum / time.Second))
	s.close = sync.OnceValue(func() error {
		close(s.done)
		s.keeper.close()
		if s.owned {
			return s.client.Close()
		}
		return nil
	})
	for _, opt := range opts {
		opt(s)
	}
	return s
}

func checkPrefix(prefix string) (string, error) {
	switch trimmed := strings.Trim(prefix, "/"); {
	case !utf8.ValidString(prefix):
		return "", fmt.Errorf("%w: the prefix %q is not valid UTF-8", backend.ErrInvalid, prefix)
	case strings.ContainsRune(prefix, 0):
		return "", fmt.Errorf("%w: the prefix %q contains a NUL character", backend.ErrInvalid, prefix)
	case len(prefix) > backend.MaxNameLen:
		return "", fmt.Errorf("%w: the prefix is %d bytes long, at most %d are allowed", backend.ErrInvalid, len(prefix), backend.MaxNameLen)
	case trimmed == "":
		return DefaultPrefix, nil
	default:
		return "/" + trimmed + "/", nil
	}
}

// Prefix returns what all keys of the store begin with.
func (s *Store) Prefix() string { return s.prefix }

// Traits tells what this store can do. MinDuration is 2 s, what an etcd with its
// own settings makes of anything smaller, until a grant has taught more.
func (s *Store) Traits() backend.Traits {
	return backend.Traits{
		Name:        "etcd",
		Namespace:   s.prefix,
		MinDuration: time.Duration(s.minimum.Load()) * time.Second,
		Granularity: time.Second,
		ExpirySlack: slack,
	}
}

// Close ends the watches, and closes the client if Open has made it. It touches
// no record.
func (s *Store) Close() error {
	if err := s.close(); err != nil && err != context.Canceled {
		return fmt.Errorf("closing the etcd client: %w", err)
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
	errClosed       = fmt.Errorf("%w: the etcd store is closed", backend.ErrInvalid)
	errClientClosed = fmt.Errorf("%w: the client of the etcd store is closed", backend.ErrInvalid)
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
	case s.client.Ctx().Err() != nil:
		return errClientClosed
	case ctx.Err() != nil:
		return fmt.Errorf("the call to the etcd store was not begun: %w", ctx.Err())
	}
	return nil
}

// noted tells whether it is better to look before a grant: the name was not free
// when it was last seen.
func (s *Store) noted(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.seen[name]
	return ok
}

// note keeps whether a name was free. It is a hint, so forgetting it costs a round
// trip and no more.
func (s *Store) note(name string, free bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if free {
		delete(s.seen, name)
		return
	}
	add(&s.seen, name)
}

// forsake keeps that the tenure of an etcd lease is over although that still runs:
// whoever goes on to renew the tenure must not keep it running.
func (s *Store) forsake(id clientv3.LeaseID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	add(&s.lost, id)
}

// found is the opposite: somebody else has confused two tenures.
func (s *Store) found(id clientv3.LeaseID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.lost, id)
}

func (s *Store) forsaken(id clientv3.LeaseID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.lost[id]
	return ok
}

// add puts a hint among others, of which not too many are kept.
func add[K comparable](hints *map[K]struct{}, hint K) {
	const most = 4096
	if *hints == nil || len(*hints) >= most {
		*hints = make(map[K]struct{})
	}
	(*hints)[hint] = struct{}{}
}
