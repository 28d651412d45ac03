package etcd_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/etcd"
	"github.com/leasehold/leasehold/integration/internal/scene"
	"github.com/leasehold/leasehold/integration/internal/servers"
	"github.com/leasehold/leasehold/internal/wait"
	"github.com/leasehold/leasehold/lease"
)

// TestCluster: whatever happens to the members of a cluster, of many contenders
// one holds the lease at a time, no increment of what it guards is lost, and when
// it is over everybody gets a turn again.
func TestCluster(t *testing.T) {
	e := servers.OwnEtcd(t, servers.WithMembers(3)) // alone, as it wants the processors
	leader := func(r *room) int {
		r.Helper()
		var i int
		scene.Eventually(r, "there is a leader", func() bool {
			var err error
			i, err = e.Leader(r.Context())
			return err == nil
		})
		return i
	}
	follower := func(r *room) int { return (leader(r) + 1) % e.Members() }
	type do = func(context.Context, int) error
	// one has a fault hit one member.
	one := func(which func(*room) int, down, up do) func(r *room) (strike, heal func() error, ready func() error) {
		return func(r *room) (strike, heal, ready func() error) {
			i := which(r)
			return func() error { return down(r.Context(), i) },
				func() error { return up(r.Context(), i) },
				func() error { return e.ReadyAt(r.Context(), i) }
		}
	}
	for _, c := range []struct {
		name   string
		fault  func(r *room) (strike, heal, ready func() error)
		quorum bool // there is one while it lasts
	}{
		{"the leader is killed", one(leader, e.Stop, e.Start), true},
		{"the leader is paused", one(leader, e.Pause, e.Resume), true},
		{"the leader is cut off", one(leader, e.CutOff, e.Reconnect), true},
		{"the leader is cut off from the others alone", one(leader, e.Isolate, e.Join), true},
		{"a follower is killed", one(follower, e.Stop, e.Start), true},
		{"the quorum is lost", func(r *room) (strike, heal, ready func() error) {
			two := []int{leader(r), follower(r)}
			each := func(f do) func() error {
				return func() error { return errors.Join(f(r.Context(), two[0]), f(r.Context(), two[1])) }
			}
			return each(e.Stop), each(e.Start), each(e.ReadyAt)
		}, false},
		{"nothing but compaction", func(r *room) (strike, heal, ready func() error) {
			nothing := func() error { return nil }
			return nothing, nothing, nothing
		}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := roomOn(t, e)
			f := r.contend(16, 3*time.Second)
			rounds := 1
			if scene.Slow() {
				rounds = 4
			}
			t.Logf("%s: before it everybody had a turn within %s", c.name, ms(f.everybody("before the fault")))
			for range rounds {
				strike, heal, ready := c.fault(r)
				before := time.Now()
				if err := strike(); errors.Is(err, errors.ErrUnsupported) {
					f.stop()
					t.Skip(err)
				} else if err != nil {
					t.Fatal(err)
				}
				struck := time.Now()
				if c.quorum {
					// Life goes on without the member.
					first := f.next(struck)
					t.Logf("%s: the next tenure began %s after it, %s before", c.name, ms(first.Sub(struck)), ms(struck.Sub(f.last(struck))))
					scene.Pass(r, time.Until(before.Add(9*time.Second)))
					f.next(time.Now())
				} else {
					scene.Eventually(r, "nobody holds it without a quorum", func() bool { return !f.held() })
					since := time.Now()
					scene.Pass(r, 6*time.Second)
					if n := f.since(since); n > 0 {
						t.Errorf("%d tenures began without a quorum", n)
					}
				}
				healed := time.Now()
				if err := heal(); err != nil {
					t.Fatal(err)
				}
				first := f.next(healed)
				if err := ready(); err != nil {
					t.Fatal(err)
				}
				back := time.Now()
				t.Logf("%s: over after %s; the next tenure began %s later, the member was ready after %s, everybody had a turn %s after that",
					c.name, ms(healed.Sub(before)), ms(first.Sub(healed)), ms(back.Sub(healed)), ms(f.everybody("after it is over")))
			}
			f.stop()
			f.account(c.name)
		})
	}
}

// field is a lease, those who contend for it, and the counter that it guards.
type field struct {
	*room
	name    string
	counter string // its key
	entries string // the prefix of the keys that say which increments were applied
	exclusion
	contenders []*contender
	cancel     context.CancelFunc
	wg         sync.WaitGroup
	compacted  atomic.Int64
}

type contender struct {
	f      *field
	client *clientv3.Client
	store  *etcd.Store
	lease  *lease.Lease

	turns                  atomic.Int64
	acked, unknown, fenced []string // the increments it has tried, by their ids
}

// exclusion watches who believes to hold a lease. It asks on one clock, and those
// that may hold it one after the other, so that none who has let go counts.
type exclusion struct {
	mu     sync.Mutex
	inside map[*lease.Lease]bool // who has entered and not left
	token  uint64                // the greatest so far
	begun  []time.Time           // of tenures
	longer time.Duration         // the longest time between two
	wrong  []string
}

// enter notes that l was granted. It reports false if the tenure is over already.
func (x *exclusion) enter(l *lease.Lease) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	token := l.Token()
	x.look(l)
	if !l.Held() {
		return false
	}
	if x.inside == nil {
		x.inside = make(map[*lease.Lease]bool)
	}
	x.inside[l] = true
	now := time.Now()
	if token <= x.token {
		x.wrong = append(x.wrong, fmt.Sprintf("token %d follows %d", token, x.token))
	}
	x.token = token
	if n := len(x.begun); n > 0 {
		x.longer = max(x.longer, now.Sub(x.begun[n-1]))
	}
	x.begun = append(x.begun, now)
	return true
}

// leave notes that l is about to be let go, or is lost.
func (x *exclusion) leave(l *lease.Lease) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.look(l)
	delete(x.inside, l)
}

// look is called with mu held. Who does not hold it now never does again without
// entering.
func (x *exclusion) look(l *lease.Lease) {
	for other := range x.inside {
		// In this order: whoever the store lets in comes after the other has stopped.
		if other != l && other.Held() && l.Held() && other.Held() {
			x.wrong = append(x.wrong, fmt.Sprintf("%q and %q hold it at once, with the tokens %d and %d", l.Holder(), other.Holder(), l.Token(), other.Token()))
		}
	}
}

// next waits for the first tenure that begins after an instant.
func (f *field) next(after time.Time) (began time.Time) {
	f.Helper()
	scene.EventuallyFor(f, 2*scene.Patience, "a tenure begins", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		i, _ := slices.BinarySearchFunc(f.begun, after, time.Time.Compare)
		if i == len(f.begun) {
			return false
		}
		began = f.begun[i]
		return true
	})
	return began
}

// last is when the last tenure before an instant began.
func (f *field) last(before time.Time) time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	i, _ := slices.BinarySearchFunc(f.begun, before, time.Time.Compare)
	return f.begun[max(i-1, 0)]
}

// since is how many tenures have begun since.
func (f *field) since(t time.Time) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	i, _ := slices.BinarySearchFunc(f.begun, t, time.Time.Compare)
	return len(f.begun) - i
}

func (f *field) held() bool {
	for _, c := range f.contenders {
		if c.lease.Held() {
			return true
		}
	}
	return false
}

// contend has so many contend for a lease, each with a client of its own, while
// etcd is compacted all the time.
func (r *room) contend(n int, duration time.Duration) *field {
	r.Helper()
	f := &field{room: r, name: "job", counter: r.prefix + "data/counter", entries: r.prefix + "data/entry/"}
	ctx, cancel := context.WithCancel(r.Context())
	f.cancel = cancel
	for range n {
		c := &contender{f: f, client: client(r, r.e, attentive)}
		c.store = etcd.New(c.client, r.prefix)
		r.Cleanup(func() { c.store.Close() })
		c.lease = scene.Lease(r, c.store, f.name, duration)
		f.contenders = append(f.contenders, c)
	}
	for i, c := range f.contenders {
		f.wg.Go(func() { c.contend(ctx, i) })
	}
	f.wg.Go(func() { f.compactAll(ctx) })
	r.Cleanup(f.stop)
	return f
}

func (f *field) stop() {
	f.cancel()
	f.wg.Wait()
}

// compactAll compacts at the newest revision, again and again.
func (f *field) compactAll(ctx context.Context) {
	for wait.For(ctx, 50*time.Millisecond) {
		call, cancel := context.WithTimeout(ctx, time.Second)
		if resp, err := f.plain.Get(call, f.counter); err == nil {
			if _, err := f.plain.Compact(call, resp.Header.Revision); err == nil {
				f.compacted.Add(1)
			}
		}
		cancel()
	}
}

// everybody waits until each contender has had a turn from now on, and returns how
// long that took.
func (f *field) everybody(when string) time.Duration {
	f.Helper()
	began := time.Now()
	had := make([]int64, len(f.contenders))
	for i, c := range f.contenders {
		had[i] = c.turns.Load()
	}
	scene.EventuallyFor(f, 2*scene.Patience, "everybody gets a turn "+when, func() bool {
		for i, c := range f.contenders {
			if c.turns.Load() == had[i] {
				return false
			}
		}
		return true
	})
	return time.Since(began)
}

func (c *contender) contend(ctx context.Context, number int) {
	f := c.f
	for n := 0; ctx.Err() == nil; n++ {
		if err := c.lease.Await(ctx); err != nil {
			if ctx.Err() == nil {
				f.Errorf("contender %d waits no more: %v", number, err)
			}
			return
		}
		if f.enter(c.lease) {
			c.increment(c.lease.Context(), fmt.Sprintf("%d-%d", number, n))
			f.leave(c.lease)
			c.turns.Add(1)
		}
		// What comes of it the store tells whoever waits.
		call, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		_ = c.lease.Release(call)
		cancel()
		// Who comes anew is let in sooner than who has waited for long, so there must be
		// times when nobody does.
		wait.For(ctx, 300*time.Millisecond+rand.N(time.Second))
	}
}

// increment reads the counter and writes it one greater, with an entry of its own
// beside it, as long as it holds the lease.
func (c *contender) increment(ctx context.Context, id string) {
	f := c.f
	rec := c.lease.Record()
	// A member that does not answer must not keep it from letting others in.
	ctx, cancel := context.WithTimeout(clientv3.WithRequireLeader(ctx), time.Second)
	defer cancel()
	resp, err := c.client.Get(ctx, f.counter)
	if err != nil || !c.lease.Held() {
		return
	}
	count := 0
	if len(resp.Kvs) > 0 {
		count, _ = strconv.Atoi(string(resp.Kvs[0].Value))
	}
	wait.For(ctx, rand.N(10*time.Millisecond))
	next := strconv.Itoa(count + 1)
	// That it is held still when the write arrives is what the guard is for.
	ops := []clientv3.Op{clientv3.OpPut(f.counter, next), clientv3.OpPut(f.entries+id, next)}
	var txn *clientv3.TxnResponse
	if count%2 == 0 {
		txn, err = c.store.Guarded(ctx, rec, nil, ops...)
	} else {
		txn, err = c.client.Txn(clientv3.WithRequireLeader(ctx)).If(c.store.Guard(rec)).Then(ops...).Commit()
	}
	switch {
	case err == nil && txn.Succeeded:
		c.acked = append(c.acked, id)
	case err == nil, errors.Is(err, backend.ErrLost):
		c.fenced = append(c.fenced, id)
	default:
		c.unknown = append(c.unknown, id)
	}
	wait.For(ctx, rand.N(10*time.Millisecond))
}

// account compares what was counted with what was acknowledged. Nobody holds the
// lease any more, and somebody has since whatever was of unknown outcome, so that
// nothing of it can be applied later.
func (f *field) account(what string) {
	f.Helper()
	f.mu.Lock()
	for i, w := range f.wrong {
		if i < 10 {
			f.Error(w)
		}
	}
	tenures, longest := len(f.begun), f.longer
	f.mu.Unlock()

	ctx, cancel := context.WithTimeout(f.Context(), scene.Patience)
	defer cancel()
	resp, err := f.plain.Get(ctx, f.counter)
	if err != nil || len(resp.Kvs) == 0 {
		f.Fatalf("the counter: %v, %v", resp, err)
	}
	count, err := strconv.Atoi(string(resp.Kvs[0].Value))
	if err != nil {
		f.Fatal(err)
	}
	resp, err = f.plain.Get(ctx, f.entries, clientv3.WithPrefix(), clientv3.WithRev(resp.Header.Revision))
	if errors.Is(err, rpctypes.ErrCompacted) {
		resp, err = f.plain.Get(ctx, f.entries, clientv3.WithPrefix())
	}
	if err != nil {
		f.Fatal(err)
	}
	applied := make(map[string]bool)
	by := make(map[string]string) // who counted up to a number
	for _, kv := range resp.Kvs {
		id := strings.TrimPrefix(string(kv.Key), f.entries)
		applied[id] = true
		if other := by[string(kv.Value)]; other != "" {
			f.Errorf("an update was lost: %s and %s both counted up to %s", other, id, kv.Value)
		}
		by[string(kv.Value)] = id
	}
	if count != len(applied) {
		f.Errorf("the counter says %d after %d increments", count, len(applied))
	}
	var acked, unknown, settled, fenced int
	for _, c := range f.contenders {
		acked, unknown, fenced = acked+len(c.acked), unknown+len(c.unknown), fenced+len(c.fenced)
		for _, id := range c.acked {
			if !applied[id] {
				f.Errorf("increment %s was acknowledged and is not there", id)
			}
		}
		for _, id := range c.fenced {
			if applied[id] {
				f.Errorf("increment %s was refused and is there", id)
			}
		}
		for _, id := range c.unknown {
			if applied[id] {
				settled++
			}
		}
	}
	if acked+settled != count {
		f.Errorf("the counter says %d; %d increments were acknowledged, and %d of unknown outcome were applied", count, acked, settled)
	}
	f.Logf("%s: %d tenures, %s between two at most; counted to %d: %d acknowledged, %d of %d unknown ones applied, %d refused; %d compactions",
		what, tenures, ms(longest), count, acked, settled, unknown, fenced, f.compacted.Load())
}
