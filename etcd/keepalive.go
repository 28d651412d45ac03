package etcd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// etcd takes renewals over streams only, and serves one after the other on each:
// one for an etcd lease that is just ending waits for its end. And with a password
// the client logs in anew for every stream, which costs etcd a tenth of a second of
// a processor. So streams are kept, each for one renewal at a time. A renewal that
// finds none idle waits a little for one, then has another opened, but takes what is
// there first; and opening goes on when it has given up: those who come after it need
// not begin at the beginning.

const (
	// idleStream is for how long a stream is kept that nobody uses.
	idleStream = time.Minute

	// patience is how long a renewal waits for one of the streams that there are
	// before another is opened.
	patience = 25 * time.Millisecond

	// openPause is for how long a stream is being opened before a second one is, too:
	// the member may hang. There is never a third; etcd could be busy with logins.
	openPause = 250 * time.Millisecond

	// openLimit is how long opening a stream may take, and exchangeLimit how long a
	// renewal on it goes on when its caller has given up.
	openLimit     = 5 * time.Second
	exchangeLimit = 2 * time.Second
)

// keeper has the streams.
type keeper struct {
	open func(ctx context.Context) (pb.Lease_LeaseKeepAliveClient, error)
	live atomic.Int64 // streams

	mu      sync.Mutex
	idle    []*renewals            // the one used last at the end
	busy    map[*renewals]bool     // true: its caller has given up
	waiting []waiting              // the first at the beginning
	opening map[*renewals]struct{} // have no stream yet
	last    time.Time              // when the last was begun
	closed  bool
	timer   *time.Timer // closes those that nobody uses
}

type renewals struct {
	stream pb.Lease_LeaseKeepAliveClient
	cancel func()
	used   time.Time
	late   *time.Timer // since its caller has given up
}

// waiting is a renewal without a stream.
type waiting struct {
	since time.Time
	ch    chan opened
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
	k.mu.Lock()
	if k.busy == nil {
		k.busy = make(map[*renewals]bool)
	}
	k.busy[r] = false
	k.mu.Unlock()
	type answer struct {
		ttl int64
		err error
	}
	answers := make(chan answer, 1)
	go func() {
		ttl, err := k.exchange(r, id, began)
		answers <- answer{ttl, err}
	}()
	select {
	case a := <-answers:
		return a.ttl, rpctypes.Error(a.err)
	case <-ctx.Done():
		// A renewal that had to wait may be at its end when it gets its stream, which
		// then goes on without it.
		k.abandon(r)
		if time.Since(began) >= leastAttempt && errors.Is(ctx.Err(), context.DeadlineExceeded) {
			k.drop(began)
		}
		return 0, ctx.Err()
	}
}

// exchange asks and waits for the answer, and puts the stream back.
func (k *keeper) exchange(r *renewals, id clientv3.LeaseID, began time.Time) (ttl int64, err error) {
	var resp *pb.LeaseKeepAliveResponse
	if err = r.stream.Send(&pb.LeaseKeepAliveRequest{ID: int64(id)}); err == nil {
		resp, err = r.stream.Recv()
	} else if _, why := r.stream.Recv(); why != nil {
		err = why // Send says io.EOF
	}
	if err == nil && resp.ID != int64(id) {
		err = fmt.Errorf("etcd was asked to renew its lease %x and has answered for %x", int64(id), resp.ID)
	}
	k.mu.Lock()
	delete(k.busy, r)
	inTime := r.late == nil || r.late.Stop()
	r.late = nil
	k.mu.Unlock()
	if !inTime || err != nil {
		r.cancel()
		// Its member is not well, or cannot be reached; and others that have not been
		// heard of since may lead there, too.
		k.drop(began)
	} else {
		r.used = time.Now()
		k.give(r)
	}
	switch {
	case err != nil:
		return 0, err
	case resp.TTL <= 0:
		return 0, rpctypes.ErrLeaseNotFound
	}
	return resp.TTL, nil
}

// abandon notes that nobody waits for the answer on a stream. It is not closed at
// once: opening another may take longer than the answer.
func (k *keeper) abandon(r *renewals) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, ok := k.busy[r]; !ok {
		return // it has come
	}
	k.busy[r] = true
	r.late = time.AfterFunc(exchangeLimit, r.cancel)
	if k.closed {
		r.cancel()
	}
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
	w := waiting{time.Now(), make(chan opened, 1)}
	k.waiting = append(k.waiting, w)
	k.more()
	k.mu.Unlock()
	again := time.NewTicker(patience)
	defer again.Stop()
	for {
		select {
		case o := <-w.ch:
			return o.r, o.err
		case <-again.C:
			k.mu.Lock()
			k.more()
			k.mu.Unlock()
		case <-ctx.Done():
			k.mu.Lock()
			i := slices.Index(k.waiting, w)
			if i >= 0 {
				k.waiting = slices.Delete(k.waiting, i, i+1)
			}
			k.mu.Unlock()
			if i < 0 {
				if o := <-w.ch; o.r != nil {
					k.give(o.r)
				}
			}
			return nil, ctx.Err()
		}
	}
}

// more opens a stream if those who wait need another. k.mu is held.
func (k *keeper) more() {
	if len(k.waiting) == 0 || k.closed {
		return
	}
	now := time.Now()
	switch len(k.opening) {
	case 0:
		if k.live.Load() > 0 && now.Sub(k.waiting[0].since) < patience {
			return
		}
	case 1:
		if now.Sub(k.last) < openPause {
			return
		}
	default:
		return
	}
	// The stream lasts longer than the call that needs it.
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(context.Background()))
	r := &renewals{cancel: cancel}
	if k.opening == nil {
		k.opening = make(map[*renewals]struct{})
	}
	k.opening[r] = struct{}{}
	k.last = now
	go func() {
		late := time.AfterFunc(openLimit, cancel)
		stream, err := k.open(ctx)
		if !late.Stop() {
			err = context.DeadlineExceeded // that is why it was cancelled
		}
		k.mu.Lock()
		delete(k.opening, r)
		if err == nil && !k.closed {
			k.mu.Unlock()
			k.live.Add(1)
			r.stream, r.used = stream, time.Now()
			r.cancel = sync.OnceFunc(func() {
				cancel()
				k.live.Add(-1)
			})
			k.give(r)
			return
		}
		defer k.mu.Unlock()
		cancel()
		if err == nil {
			err = errClosed
		}
		for _, w := range k.waiting {
			w.ch <- opened{err: err}
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
		k.waiting[0].ch <- opened{r: r}
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
	for r := range k.opening {
		r.cancel()
	}
	for r, abandoned := range k.busy {
		if abandoned {
			r.cancel()
		}
	}
	if k.timer != nil {
		k.timer.Stop()
	}
}
