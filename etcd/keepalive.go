package etcd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// etcd takes renewals over streams only, and serves one after the other on each:
// one for an etcd lease that is just ending waits for its end. And with a password
// the client logs in anew for every stream, which costs etcd a tenth of a second of
// a processor. So streams are kept, each for one renewal at a time. A renewal that
// finds none idle has another opened, but takes what is there first, and opening
// goes on when it has given up: those who come after it need not begin at the
// beginning.

const (
	// idleStream is for how long a stream is kept that nobody uses.
	idleStream = time.Minute

	// openPause is for how long one stream is being opened before another is, too.
	openPause = 250 * time.Millisecond

	// openLimit is how long opening a stream may take.
	openLimit = 5 * time.Second
)

// keeper has the streams.
type keeper struct {
	open func(ctx context.Context) (pb.Lease_LeaseKeepAliveClient, error)

	mu      sync.Mutex
	idle    []*renewals      // the one used last at the end
	waiting []chan<- opened  // those who want one, the first at the beginning
	opening map[*func()]bool // what is being opened, by what ends that
	last    time.Time        // when the last was begun
	closed  bool
	timer   *time.Timer // closes those that nobody uses
}

type renewals struct {
	stream pb.Lease_LeaseKeepAliveClient
	cancel context.CancelFunc
	used   time.Time
}

type opened struct {
	r   *renewals
	err error
}

// renew begins the time of an etcd lease anew and returns its seconds. Nothing is
// written to etcd's log.
func (k *keeper) renew(ctx context.Context, id clientv3.LeaseID) (ttl int64, err error) {
	r, err := k.take(ctx)
	if err != nil {
		return 0, rpctypes.Error(err)
	}
	began := time.Now()
	stop := context.AfterFunc(ctx, r.cancel)
	var resp *pb.LeaseKeepAliveResponse
	if err = r.stream.Send(&pb.LeaseKeepAliveRequest{ID: int64(id)}); err == nil {
		resp, err = r.stream.Recv()
	} else if _, why := r.stream.Recv(); why != nil {
		err = why // Send says io.EOF
	}
	if !stop() && err != nil && ctx.Err() != nil {
		err = ctx.Err()
	}
	if err == nil && resp.ID != int64(id) {
		err = fmt.Errorf("etcd was asked to renew its lease %x and has answered for %x", int64(id), resp.ID)
	}
	if err != nil {
		r.cancel()
		if !errors.Is(err, context.Canceled) {
			// Its member is not well, or cannot be reached; and others that have not been
			// heard of since may lead there, too.
			k.drop(began)
		}
		return 0, rpctypes.Error(err)
	}
	if ctx.Err() != nil {
		r.cancel()
	} else {
		r.used = time.Now()
		k.give(r)
	}
	if resp.TTL <= 0 {
		return 0, rpctypes.ErrLeaseNotFound
	}
	return resp.TTL, nil
}

// take returns a stream that nobody else uses, and waits for one if need be.
func (k *keeper) take(ctx context.Context) (*renewals, error) {
	k.mu.Lock()
	if n := len(k.idle); n > 0 {
		r := k.idle[n-1]
		k.idle = k.idle[:n-1]
		k.mu.Unlock()
		return r, nil
	}
	ch := make(chan opened, 1)
	k.waiting = append(k.waiting, ch)
	k.more()
	k.mu.Unlock()
	again := time.NewTicker(openPause)
	defer again.Stop()
	for {
		select {
		case o := <-ch:
			return o.r, o.err
		case <-again.C:
			k.mu.Lock()
			k.more()
			k.mu.Unlock()
		case <-ctx.Done():
			k.mu.Lock()
			i := slices.Index(k.waiting, chan<- opened(ch))
			if i >= 0 {
				k.waiting = slices.Delete(k.waiting, i, i+1)
			}
			k.mu.Unlock()
			if i < 0 {
				if o := <-ch; o.r != nil {
					k.give(o.r)
				}
			}
			return nil, ctx.Err()
		}
	}
}

// more opens a stream for those who wait. k.mu is held.
func (k *keeper) more() {
	if len(k.waiting) == 0 || k.closed || len(k.opening) > 0 && time.Since(k.last) < openPause {
		return
	}
	// The stream lasts longer than the call that needs it.
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(context.Background()))
	end := func() { cancel() }
	if k.opening == nil {
		k.opening = make(map[*func()]bool)
	}
	k.opening[&end] = true
	k.last = time.Now()
	go func() {
		late := time.AfterFunc(openLimit, cancel)
		stream, err := k.open(ctx)
		if !late.Stop() && err == nil {
			err = context.DeadlineExceeded
		}
		k.mu.Lock()
		delete(k.opening, &end)
		if err == nil && !k.closed {
			k.mu.Unlock()
			k.give(&renewals{stream: stream, cancel: cancel, used: time.Now()})
			return
		}
		defer k.mu.Unlock()
		cancel()
		if err == nil {
			err = errClosed
		}
		for _, ch := range k.waiting {
			ch <- opened{err: err}
		}
		k.waiting = nil
	}()
}

// give hands a stream to who has waited longest, or keeps it.
func (k *keeper) give(r *renewals) {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case k.closed:
		r.cancel()
	case len(k.waiting) > 0:
		k.waiting[0] <- opened{r: r}
		k.waiting = slices.Delete(k.waiting, 0, 1)
		k.more()
	default:
		k.idle = append(k.idle, r)
		if k.timer == nil {
			k.timer = time.AfterFunc(idleStream, k.sweep)
		}
	}
}

// sweep closes what nobody has used for a while.
func (k *keeper) sweep() {
	k.drop(time.Now().Add(-idleStream))
	k.mu.Lock()
	defer k.mu.Unlock()
	k.timer = nil
	if len(k.idle) > 0 && !k.closed {
		k.timer = time.AfterFunc(idleStream, k.sweep)
	}
}

// drop closes those that nobody uses, and that have not been used since.
func (k *keeper) drop(since time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.idle = slices.DeleteFunc(k.idle, func(r *renewals) bool {
		old := !r.used.After(since)
		if old {
			r.cancel()
		}
		return old
	})
}

func (k *keeper) close() {
	k.mu.Lock()
	k.closed = true
	k.mu.Unlock()
	k.drop(time.Now())
	k.mu.Lock()
	defer k.mu.Unlock()
	for end := range k.opening {
		(*end)()
	}
	if k.timer != nil {
		k.timer.Stop()
	}
}
