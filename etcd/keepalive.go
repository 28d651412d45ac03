package etcd

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// etcd takes renewals over streams only, and serves one after the other on each:
// one for an etcd lease that is just ending waits for its end. And with a password
// the client logs in anew for every stream, which costs etcd a tenth of a second of
// a processor. So streams are kept, each for one renewal at a time, and as many
// as there are renewals at once.

// keeper keeps the streams that no renewal uses at the moment.
type keeper struct {
	open func(ctx context.Context) (pb.Lease_LeaseKeepAliveClient, error)

	mu     sync.Mutex
	idle   []*renewals // the one used last at the end
	closed bool
	timer  *time.Timer // closes those that nobody uses
}

// idleStream is for how long a stream is kept that nobody uses.
const idleStream = time.Minute

type renewals struct {
	stream pb.Lease_LeaseKeepAliveClient
	cancel context.CancelFunc
	used   time.Time
}

// renew begins the time of an etcd lease anew and returns its seconds. Nothing is
// written to etcd's log.
func (k *keeper) renew(ctx context.Context, id clientv3.LeaseID) (ttl int64, err error) {
	r := k.take()
	if r == nil {
		if r, err = k.begin(ctx); err != nil {
			return 0, err
		}
	}
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
			// Its member is not well, or cannot be reached; and the others may lead there, too.
			k.drop()
		}
		return 0, rpctypes.Error(err)
	}
	k.give(r, ctx.Err() == nil)
	if resp.TTL <= 0 {
		return 0, rpctypes.ErrLeaseNotFound
	}
	return resp.TTL, nil
}

// begin opens a stream, which lasts longer than the call that needs it.
func (k *keeper) begin(ctx context.Context) (*renewals, error) {
	alone, cancel := context.WithCancel(clientv3.WithRequireLeader(context.Background()))
	stop := context.AfterFunc(ctx, cancel)
	stream, err := k.open(alone)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		cancel()
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, rpctypes.Error(err)
	}
	return &renewals{stream: stream, cancel: cancel}, nil
}

func (k *keeper) take() *renewals {
	k.mu.Lock()
	defer k.mu.Unlock()
	n := len(k.idle)
	if n == 0 {
		return nil
	}
	r := k.idle[n-1]
	k.idle = k.idle[:n-1]
	return r
}

// give puts a stream back, if it is fit for another renewal.
func (k *keeper) give(r *renewals, fit bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !fit || k.closed {
		r.cancel()
		return
	}
	r.used = time.Now()
	k.idle = append(k.idle, r)
	if k.timer == nil {
		k.timer = time.AfterFunc(idleStream, k.sweep)
	}
}

// sweep closes what nobody has used for a while.
func (k *keeper) sweep() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.timer = nil
	n := 0
	for n < len(k.idle) && time.Since(k.idle[n].used) >= idleStream {
		k.idle[n].cancel()
		n++
	}
	k.idle = append(k.idle[:0:0], k.idle[n:]...)
	if len(k.idle) > 0 && !k.closed {
		k.timer = time.AfterFunc(idleStream, k.sweep)
	}
}

// drop closes all that nobody uses.
func (k *keeper) drop() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, r := range k.idle {
		r.cancel()
	}
	k.idle = nil
}

func (k *keeper) close() {
	k.drop()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.closed = true
	if k.timer != nil {
		k.timer.Stop()
	}
}
