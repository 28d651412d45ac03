package etcd

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/leasehold/leasehold/internal/wait"
)

const (
	// attempts is how often a request is sent that can be sent again. The client's
	// balancer takes the next member for each.
	attempts = 8

	// leastAttempt is how long each of them may take at least, if the call has that
	// long.
	leastAttempt = 50 * time.Millisecond

	// longestPause is between two attempts: an election takes a second or two.
	longestPause = 500 * time.Millisecond
)

// bound is the context of a call: it ends with the store's timeout at the latest,
// and every request on it is refused by a member that knows of no leader, instead of
// waiting for one. It ends a little before the caller's, who would else not wait
// for the words that say what is wrong.
func (s *Store) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	timeout := s.timeout
	if deadline, ok := ctx.Deadline(); ok {
		left := time.Until(deadline)
		timeout = min(timeout, left-min(left/20, 100*time.Millisecond))
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	return clientv3.WithRequireLeader(ctx), cancel
}

// share is the context of the nth attempt of several: half of what is left, and a
// second for the first of them, so that a member that hangs does not use it all up.
func share(ctx context.Context, n int) (context.Context, context.CancelFunc) {
	d := time.Second << (n - 1)
	if deadline, ok := ctx.Deadline(); ok {
		d = min(d, max(time.Until(deadline)/2, leastAttempt))
	}
	return context.WithTimeout(ctx, d)
}

// repeat calls f, which must be harmless to repeat, until it succeeds, fails for
// good, or there is no time left.
func repeat(ctx context.Context, passing func(error) bool, f func(ctx context.Context) error) error {
	pause := 5 * time.Millisecond
	var last error
	for n := 1; ; n++ {
		attempt, cancel := share(ctx, n)
		err := f(attempt)
		cancel()
		if err == nil || !passing(err) {
			return err
		}
		// What a member said is worth more than that the last one was not heard in time.
		if last == nil || !hung(err) {
			last = err
		}
		if n == attempts || !wait.For(ctx, pause+rand.N(pause)) {
			return last
		}
		pause = min(4*pause, longestPause)
	}
}

// hung reports whether no answer came in time. It is what remains to be repeated
// of the requests that the client itself sends again (those that read, and those
// about etcd leases).
func hung(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || codeOf(err) == codes.DeadlineExceeded
}

// passing reports whether another attempt, maybe at another member, may succeed.
func passing(err error) bool {
	switch {
	case hung(err), errors.Is(err, io.EOF), errors.Is(err, rpctypes.ErrInvalidAuthToken), errors.Is(err, rpctypes.ErrAuthOldRevision):
		return true
	case errors.Is(err, rpctypes.ErrNoSpace):
		return false
	}
	switch codeOf(err) {
	case codes.Unavailable, codes.Aborted, codes.ResourceExhausted:
		return true
	}
	return false
}

// codeOf is the gRPC code of an error of the client.
func codeOf(err error) codes.Code {
	var e rpctypes.EtcdError
	if errors.As(err, &e) {
		return e.Code()
	}
	return status.Code(err)
}

// read reads both keys of a name, linearizably.
func (s *Store) read(ctx context.Context, name string) (st *state, err error) {
	err = repeat(ctx, hung, func(ctx context.Context) error {
		st, err = s.readOnce(ctx, name)
		return err
	})
	return st, err
}

func (s *Store) readOnce(ctx context.Context, name string) (*state, error) {
	key := s.recordKey(name)
	resp, err := s.client.Get(ctx, key, clientv3.WithRange(endKey(key)))
	if err != nil {
		return nil, err
	}
	return newState(name, key, resp.Header.Revision, resp.Kvs), nil
}

// The lease verbs are called without the client's own Lease. Its Grant leaves the
// number to the server, so that one whose reply was lost cannot be asked for again;
// its KeepAliveOnce opens a stream for each, and repeats without a pause while no
// member answers.

// grant makes an etcd lease of at least d, and returns the seconds it has.
func (s *Store) grant(ctx context.Context, d time.Duration) (id clientv3.LeaseID, ttl int64, err error) {
	id = clientv3.LeaseID(rand.Int64N(1<<63-1) + 1)
	r := &pb.LeaseGrantRequest{TTL: int64(d / time.Second), ID: int64(id)}
	err = repeat(ctx, hung, func(ctx context.Context) error {
		resp, err := s.leases.LeaseGrant(ctx, r)
		if err == nil {
			ttl = resp.TTL
		}
		return rpctypes.Error(err)
	})
	if errors.Is(err, rpctypes.ErrLeaseExist) { // by an attempt whose reply was lost
		ttl, err = s.prolong(ctx, id)
	}
	return id, ttl, err
}

// prolong begins the time of an etcd lease anew and returns its seconds.
func (s *Store) prolong(ctx context.Context, id clientv3.LeaseID) (ttl int64, err error) {
	err = repeat(ctx, passing, func(ctx context.Context) error {
		ttl, err = s.keeper.renew(ctx, id)
		return err
	})
	return ttl, err
}

// revoke ends an etcd lease that no tenure needs any more, and reports whether it is
// over for certain. It is tried once: one that stays ends by itself within its
// duration.
func (s *Store) revoke(ctx context.Context, id clientv3.LeaseID) bool {
	if id == 0 || ctx.Err() != nil {
		return false
	}
	ctx, cancel := share(ctx, 1)
	defer cancel()
	_, err := s.leases.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: int64(id)})
	return err == nil || errors.Is(rpctypes.Error(err), rpctypes.ErrLeaseNotFound)
}
