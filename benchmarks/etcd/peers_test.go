//go:build unix

package etcd_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/etcd"
	"github.com/leasehold/leasehold/lease"
)

const (
	leaseDuration = 15 * time.Second
	leaseSeconds  = int64(leaseDuration / time.Second)
)

// holder takes one name and gives it back.
type holder interface {
	acquire(ctx context.Context) error
	release(ctx context.Context) error
}

// renewer is a holder that decides when to renew. concurrency's sessions do not
// let one.
type renewer interface {
	holder
	renew(ctx context.Context) error
}

var errRefused = errors.New("somebody else holds it")

// raw does with etcd's client what the store is made of: two keys, one bound to an
// etcd lease of its own, and guarded writes.
type raw struct {
	*wire
	key, value string
	lease      clientv3.LeaseID
	granted    int64 // the revision
}

func (p place) raw(b *testing.B, name string) *raw {
	b.Helper()
	return &raw{wire: p.client(b), key: p.prefix + name, value: strings.Repeat("x", 160)} // as long as a record
}

func (r *raw) both() clientv3.Op { return clientv3.OpGet(r.key, clientv3.WithRange(r.key+"\x00\x00")) }

// at is the condition that both keys are as they were written at a revision; 0:
// that they are absent.
func (r *raw) at(revision int64) []clientv3.Cmp {
	return []clientv3.Cmp{
		clientv3.Compare(clientv3.ModRevision(r.key), "=", revision),
		clientv3.Compare(clientv3.ModRevision(r.key+"\x00"), "=", revision),
	}
}

func (r *raw) acquire(ctx context.Context) error {
	granted, err := r.Grant(ctx, leaseSeconds)
	if err != nil {
		return err
	}
	r.lease = granted.ID
	resp, err := r.Txn(ctx).
		If(r.at(0)...).
		Then(clientv3.OpPut(r.key, r.value), clientv3.OpPut(r.key+"\x00", r.value, clientv3.WithLease(r.lease))).
		Else(r.both()).
		Commit()
	if err != nil {
		return err
	}
	r.granted = resp.Header.Revision
	return succeeded(resp)
}

func (r *raw) renew(ctx context.Context) error {
	if _, err := r.KeepAliveOnce(ctx, r.lease); err != nil {
		return err
	}
	_, err := r.Do(ctx, r.both())
	return err
}

func (r *raw) release(ctx context.Context) error {
	resp, err := r.Txn(ctx).
		If(r.at(r.granted)...).
		Then(clientv3.OpDelete(r.key), clientv3.OpDelete(r.key+"\x00")).
		Else(r.both()).
		Commit()
	if err != nil {
		return err
	}
	if err := succeeded(resp); err != nil {
		return err
	}
	_, err = r.Revoke(ctx, r.lease)
	return err
}

func succeeded(resp *clientv3.TxnResponse) error {
	if !resp.Succeeded {
		return errRefused
	}
	return nil
}

// rawStream renews on a stream that it keeps.
type rawStream struct {
	*raw
	stream pb.Lease_LeaseKeepAliveClient
}

func (r *rawStream) renew(ctx context.Context) (err error) {
	if r.stream == nil {
		if r.stream, err = clientv3.RetryLeaseClient(r.Client).LeaseKeepAlive(r.Ctx()); err != nil {
			return err
		}
	}
	if err := r.stream.Send(&pb.LeaseKeepAliveRequest{ID: int64(r.lease)}); err != nil {
		return err
	}
	if _, err := r.stream.Recv(); err != nil {
		return err
	}
	_, err = r.Do(ctx, r.both())
	return err
}

// rawKey is one key that nothing bounds in time: the least that excludes others.
type rawKey struct{ *raw }

func (r rawKey) acquire(ctx context.Context) error {
	resp, err := r.Txn(ctx).
		If(clientv3.Compare(clientv3.CreateRevision(r.key), "=", 0)).
		Then(clientv3.OpPut(r.key, r.value)).
		Commit()
	if err != nil {
		return err
	}
	return succeeded(resp)
}

func (r rawKey) release(ctx context.Context) error {
	_, err := r.Delete(ctx, r.key)
	return err
}

// direct uses the store without a lease.Lease.
type direct struct {
	*wire
	store  *etcd.Store
	name   string
	record backend.Record
}

func (p place) direct(b *testing.B, name string) *direct {
	b.Helper()
	w := p.client(b)
	d := &direct{wire: w, store: etcd.New(w.Client, p.prefix), name: name}
	b.Cleanup(func() { d.store.Close() })
	return d
}

func (d *direct) acquire(ctx context.Context) (err error) {
	d.record, err = d.store.Acquire(ctx, backend.Claim{Name: d.name, Holder: "benchmark-holder", Duration: leaseDuration})
	return err
}

func (d *direct) renew(ctx context.Context) (err error) {
	d.record, err = d.store.Renew(ctx, d.record)
	return err
}

func (d *direct) release(ctx context.Context) error { return d.store.Release(ctx, d.record) }

// whole is a lease.Lease, with its context, deadline and schedule.
type whole struct {
	*wire
	lease *lease.Lease
}

// whole returns a Lease on a client, which others may have too.
func (p place) whole(b *testing.B, w *wire, name string) *whole {
	b.Helper()
	store := etcd.New(w.Client, p.prefix)
	l, err := lease.New(store, name, lease.WithDuration(leaseDuration), lease.WithRenewalService(lease.NewRenewalService(nil)))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		l.Close()
		store.Close()
	})
	return &whole{wire: w, lease: l}
}

func (w *whole) acquire(ctx context.Context) error { return w.lease.Acquire(ctx) }
func (w *whole) renew(ctx context.Context) error   { return w.lease.Extend(ctx) }
func (w *whole) release(ctx context.Context) error { return w.lease.Release(ctx) }
func (w *whole) wait(ctx context.Context) error    { return w.lease.Await(ctx) }

// mutex is concurrency's, on a session that stays.
type mutex struct {
	*wire
	session *concurrency.Session
	mutex   *concurrency.Mutex
}

func (p place) mutex(b *testing.B, w *wire, name string) *mutex {
	b.Helper()
	s, err := concurrency.NewSession(w.Client, concurrency.WithTTL(int(leaseSeconds)))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.Close() })
	return &mutex{wire: w, session: s, mutex: concurrency.NewMutex(s, p.prefix+name)}
}

func (m *mutex) acquire(ctx context.Context) error { return m.mutex.Lock(ctx) }
func (m *mutex) release(ctx context.Context) error { return m.mutex.Unlock(ctx) }
func (m *mutex) wait(ctx context.Context) error    { return m.mutex.Lock(ctx) }

// ownMutex begins and ends a session each time, as each lease of ours has an etcd
// lease of its own.
type ownMutex struct {
	*wire
	prefix  string
	session *concurrency.Session
	mutex   *concurrency.Mutex
}

func (m *ownMutex) acquire(ctx context.Context) (err error) {
	if m.session, err = concurrency.NewSession(m.Client, concurrency.WithTTL(int(leaseSeconds)), concurrency.WithContext(m.Ctx())); err != nil {
		return err
	}
	m.mutex = concurrency.NewMutex(m.session, m.prefix)
	return m.mutex.Lock(ctx)
}

func (m *ownMutex) release(ctx context.Context) error {
	return errors.Join(m.mutex.Unlock(ctx), m.session.Close())
}

func (m *ownMutex) wait(ctx context.Context) error { return m.acquire(ctx) }
