//go:build unix

package redis_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bsm/redislock"
	"github.com/go-redsync/redsync/v4"
	redsyncgoredis "github.com/go-redsync/redsync/v4/redis/goredis/v9"
	goredis "github.com/redis/go-redis/v9"
	"github.com/redis/rueidis/rueidislock"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/lease"
	"github.com/leasehold/leasehold/redis"
)

const (
	leaseDuration = 15 * time.Second
	hangAfter     = 5 * time.Second
)

// holder takes one name and gives it back. Each of its methods fails if what it
// should do was not done.
type holder interface {
	acquire(ctx context.Context) error
	release(ctx context.Context) error
}

// renewer is a holder that decides when to renew. rueidislock renews by itself.
type renewer interface {
	holder
	renew(ctx context.Context) error
}

// waiter waits for what another holds.
type waiter interface {
	holder
	wait(ctx context.Context) error
}

// connection is what a process has of a kind: a client, and on it any number of
// holders.
type connection interface {
	holder(b *testing.B, name string) holder
}

// kind is a way to hold names.
type kind struct {
	name    string
	connect func(b *testing.B, p place) connection
}

// The candidates.
var (
	kindRaw = kind{"raw", func(b *testing.B, p place) connection { return &rawClient{p.client(b), p.prefix} }}

	kindRedislock = kind{"redislock", func(b *testing.B, p place) connection {
		return &redislockClient{redislock.New(p.client(b)), p.prefix}
	}}

	kindRedsync = kind{"redsync", func(b *testing.B, p place) connection {
		return &redsyncClient{redsync.New(redsyncgoredis.NewPool(p.client(b))), p.prefix}
	}}

	// As its README has it; but one key, which is all that one server can use.
	kindRueidislock = kind{"rueidislock", func(b *testing.B, p place) connection {
		return newRueidislock(b, p, rueidislock.LockerOption{KeyMajority: 1, NoLoopTracking: true})
	}}

	// With notices also of its own writes, which is its default.
	kindRueidislockLoop = kind{"rueidislock", func(b *testing.B, p place) connection {
		return newRueidislock(b, p, rueidislock.LockerOption{KeyMajority: 1})
	}}

	kindStore = kind{"store", func(b *testing.B, p place) connection { return newStore(b, p) }}

	// A context that cannot end needs nobody who looks at it.
	kindStoreEndless = kind{"store-endless-context", func(b *testing.B, p place) connection {
		return &endless{newStore(b, p)}
	}}

	kindLease = kind{"lease", func(b *testing.B, p place) connection { return newLease(b, p) }}

	kindLeaseUnrenewed = kind{"lease-without-renewal", func(b *testing.B, p place) connection {
		return newLease(b, p, lease.WithoutRenewal())
	}}
)

var errRefused = errors.New("somebody else holds it")

// rawClient does what a lock needs at least.
type rawClient struct {
	*goredis.Client
	prefix string
}

var (
	rawRelease = goredis.NewScript(`if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0`)
	rawRenew   = goredis.NewScript(`if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end return 0`)
)

func (c *rawClient) holder(_ *testing.B, name string) holder {
	return &raw{Client: c.Client, key: c.prefix + name, value: "0123456789abcdef012345"}
}

type raw struct {
	*goredis.Client
	key, value string
}

func (r *raw) acquire(ctx context.Context) error {
	ok, err := r.SetNX(ctx, r.key, r.value, leaseDuration).Result()
	return done(ok, err)
}

func (r *raw) renew(ctx context.Context) error {
	n, err := rawRenew.Run(ctx, r.Client, []string{r.key}, r.value, leaseDuration.Milliseconds()).Int()
	return done(n == 1, err)
}

func (r *raw) release(ctx context.Context) error {
	n, err := rawRelease.Run(ctx, r.Client, []string{r.key}, r.value).Int()
	return done(n == 1, err)
}

func done(ok bool, err error) error {
	if err == nil && !ok {
		return errRefused
	}
	return err
}

type redislockClient struct {
	*redislock.Client
	prefix string
}

func (c *redislockClient) holder(_ *testing.B, name string) holder {
	return &redislockHolder{Client: c.Client, key: c.prefix + name}
}

type redislockHolder struct {
	*redislock.Client
	key  string
	lock *redislock.Lock
}

func (h *redislockHolder) acquire(ctx context.Context) (err error) {
	h.lock, err = h.Obtain(ctx, h.key, leaseDuration, nil)
	if errors.Is(err, redislock.ErrNotObtained) {
		return errRefused
	}
	return err
}

// poll waits as redislock's README does it, but more often.
var poll = &redislock.Options{RetryStrategy: redislock.LinearBackoff(20 * time.Millisecond)}

func (h *redislockHolder) wait(ctx context.Context) (err error) {
	for {
		h.lock, err = h.Obtain(ctx, h.key, leaseDuration, poll)
		if err == nil || ctx.Err() != nil {
			return err
		}
		// It gives up after its TTL.
		if !errors.Is(err, redislock.ErrNotObtained) && !errors.Is(err, context.DeadlineExceeded) {
			return err
		}
	}
}

func (h *redislockHolder) renew(ctx context.Context) error {
	return h.lock.Refresh(ctx, leaseDuration, nil)
}
func (h *redislockHolder) release(ctx context.Context) error { return h.lock.Release(ctx) }

type redsyncClient struct {
	*redsync.Redsync
	prefix string
}

func (c *redsyncClient) holder(_ *testing.B, name string) holder {
	return &redsyncHolder{c.NewMutex(c.prefix+name, redsync.WithExpiry(leaseDuration))}
}

type redsyncHolder struct{ mutex *redsync.Mutex }

func (h *redsyncHolder) acquire(ctx context.Context) error {
	err := h.mutex.TryLockContext(ctx)
	var taken *redsync.ErrTaken
	if errors.As(err, &taken) {
		return errRefused
	}
	return err
}

func (h *redsyncHolder) wait(ctx context.Context) error    { return h.mutex.LockContext(ctx) }
func (h *redsyncHolder) renew(ctx context.Context) error   { return done(h.mutex.ExtendContext(ctx)) }
func (h *redsyncHolder) release(ctx context.Context) error { return done(h.mutex.UnlockContext(ctx)) }

// rueidislockClient is a Locker. It may wait for ever for what is free: when an
// attempt takes longer than TryNextAfter, 20 ms, it waits for a notice that nobody
// sends. So somebody watches it, and what hangs is begun anew and counted.
type rueidislockClient struct {
	rueidislock.Locker
	hung atomic.Int64

	mu      sync.Mutex
	holders []*rueidislockHolder
}

func newRueidislock(b *testing.B, p place, opt rueidislock.LockerOption) *rueidislockClient {
	b.Helper()
	opt.ClientOption, opt.KeyPrefix, opt.KeyValidity = p.rueidis(), p.prefix+"rueidislock", leaseDuration
	l, err := rueidislock.NewLocker(opt)
	if err != nil {
		b.Fatal(err)
	}
	c := &rueidislockClient{Locker: l}
	stop := make(chan struct{})
	b.Cleanup(func() {
		close(stop)
		l.Close()
	})
	go func() {
		for tick := time.NewTicker(100 * time.Millisecond); ; {
			select {
			case <-stop:
				tick.Stop()
				return
			case now := <-tick.C:
				c.mu.Lock()
				for _, h := range c.holders {
					if since := h.since.Load(); since != 0 && now.UnixNano()-since > int64(hangAfter) {
						(*h.giveUp.Load())()
					}
				}
				c.mu.Unlock()
			}
		}
	}()
	return c
}

func (c *rueidislockClient) hangs() int64 { return c.hung.Load() }

func (c *rueidislockClient) holder(b *testing.B, name string) holder {
	h := &rueidislockHolder{rueidislockClient: c, name: name}
	h.begin(b.Context())
	c.mu.Lock()
	c.holders = append(c.holders, h)
	c.mu.Unlock()
	return h
}

type rueidislockHolder struct {
	*rueidislockClient
	name   string
	source context.Context // of what it holds
	giveUp atomic.Pointer[context.CancelFunc]
	since  atomic.Int64 // when an acquire began; 0: there is none
	holds  context.Context
	cancel context.CancelFunc
}

func (h *rueidislockHolder) begin(ctx context.Context) {
	source, cancel := context.WithCancel(ctx)
	h.source = source
	h.giveUp.Store(&cancel)
}

var errHung = errors.New("it did not notice within 5 s that the name is free")

func (h *rueidislockHolder) acquire(ctx context.Context) error {
	err := h.acquireOnce()
	for errors.Is(err, errHung) && ctx.Err() == nil {
		h.begin(ctx)
		err = h.acquireOnce()
	}
	return err
}

// acquireOnce fails with errHung, if it must wait for long.
func (h *rueidislockHolder) acquireOnce() (err error) {
	h.since.Store(time.Now().UnixNano())
	h.holds, h.cancel, err = h.WithContext(h.source, h.name)
	h.since.Store(0)
	if err != nil && h.source.Err() != nil {
		h.hung.Add(1)
		return errHung
	}
	if err == nil && h.holds.Err() != nil {
		return errors.New("what it holds has ended already")
	}
	return err
}

// try does not wait.
func (h *rueidislockHolder) try(ctx context.Context) (err error) {
	h.holds, h.cancel, err = h.TryWithContext(ctx, h.name)
	if errors.Is(err, rueidislock.ErrNotLocked) {
		return errRefused
	}
	return err
}

// wait may hang.
func (h *rueidislockHolder) wait(ctx context.Context) (err error) {
	h.holds, h.cancel, err = h.WithContext(ctx, h.name)
	return err
}

func (h *rueidislockHolder) release(context.Context) error {
	if h.holds.Err() != nil {
		return errors.New("it was lost before it was released")
	}
	h.cancel() // returns when the server has answered
	return nil
}

// storeClient is a Store of ours.
type storeClient struct{ *redis.Store }

func newStore(b *testing.B, p place) *storeClient {
	b.Helper()
	s := redis.New(p.client(b), p.prefix)
	b.Cleanup(func() { s.Close() })
	return &storeClient{s}
}

func (c *storeClient) holder(_ *testing.B, name string) holder {
	return &direct{store: c.Store, name: name, attempts: rand.Text() + "-"}
}

type endless struct{ *storeClient }

func (c *endless) holder(b *testing.B, name string) holder {
	return &endlessHolder{c.storeClient.holder(b, name).(*direct)}
}

// endlessHolder does not pass the context on.
type endlessHolder struct{ *direct }

func (h *endlessHolder) acquire(context.Context) error { return h.direct.acquire(context.Background()) }
func (h *endlessHolder) renew(context.Context) error   { return h.direct.renew(context.Background()) }
func (h *endlessHolder) release(context.Context) error { return h.direct.release(context.Background()) }

// direct uses the store without a lease.Lease.
type direct struct {
	store  *redis.Store
	name   string
	record backend.Record

	attempts string // what acquires are told apart by begins with this, as those of a lease.Lease
	number   int
}

func (d *direct) acquire(ctx context.Context) error {
	d.number++
	rec, err := d.store.Acquire(ctx, backend.Claim{
		Name: d.name, Holder: "benchmark-holder", Attempt: d.attempts + strconv.Itoa(d.number), Duration: leaseDuration,
	})
	switch {
	case errors.Is(err, backend.ErrHeld):
		return errRefused
	case err != nil:
		return err
	case rec.Token <= d.record.Token:
		return fmt.Errorf("token %d after %d", rec.Token, d.record.Token)
	}
	d.record = rec
	return nil
}

func (d *direct) renew(ctx context.Context) error {
	rec, err := d.store.Renew(ctx, d.record)
	if err != nil {
		return err
	}
	if rec.Token != d.record.Token || rec.Remaining != leaseDuration {
		return errors.New("it was renewed otherwise than it was asked for")
	}
	d.record = rec
	return nil
}

func (d *direct) release(ctx context.Context) error { return d.store.Release(ctx, d.record) }

// leaseClient makes Leases of ours on one store.
type leaseClient struct {
	*storeClient
	opts []lease.Option
}

func newLease(b *testing.B, p place, opts ...lease.Option) *leaseClient {
	b.Helper()
	return &leaseClient{newStore(b, p), append([]lease.Option{lease.WithDuration(leaseDuration)}, opts...)}
}

func (c *leaseClient) holder(b *testing.B, name string) holder {
	l, err := lease.New(c.Store, name, c.opts...)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { l.Close() })
	return &whole{lease: l}
}

// whole is a lease.Lease, with its context, deadline and schedule.
type whole struct {
	lease *lease.Lease
	token uint64
}

func (w *whole) acquire(ctx context.Context) error {
	err := w.granted(w.lease.Acquire(ctx))
	if errors.Is(err, backend.ErrHeld) {
		return errRefused
	}
	return err
}

func (w *whole) granted(err error) error {
	if err != nil {
		return err
	}
	token := w.lease.Token()
	if token <= w.token || !w.lease.Held() {
		return fmt.Errorf("token %d after %d, held: %t", token, w.token, w.lease.Held())
	}
	w.token = token
	return nil
}

func (w *whole) renew(ctx context.Context) error   { return w.lease.Extend(ctx) }
func (w *whole) release(ctx context.Context) error { return w.lease.Release(ctx) }
func (w *whole) wait(ctx context.Context) error    { return w.granted(w.lease.Await(ctx)) }

// verify fails unless holders of a kind exclude each other, and unless what one has
// released another can have.
func verify(b *testing.B, k kind, p place) {
	b.Helper()
	ctx := b.Context()
	try := func(h holder) error {
		if r, ok := h.(*rueidislockHolder); ok {
			return r.try(ctx)
		}
		return h.acquire(ctx)
	}
	first, second := k.connect(b, p).holder(b, "verify"), k.connect(b, p).holder(b, "verify")
	for i := range 10 {
		if err := try(first); err != nil {
			b.Fatalf("%s: acquire %d: %v", k.name, i, err)
		}
		if err := try(second); !errors.Is(err, errRefused) {
			b.Fatalf("%s: what another holds was not refused: %v", k.name, err)
		}
		if r, ok := first.(renewer); ok {
			if err := r.renew(ctx); err != nil {
				b.Fatalf("%s: renew %d: %v", k.name, i, err)
			}
		}
		if err := first.release(ctx); err != nil {
			b.Fatalf("%s: release %d: %v", k.name, i, err)
		}
		first, second = second, first
	}
}

// hanger counts what had to be begun anew.
type hanger interface{ hangs() int64 }
