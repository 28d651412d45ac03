package etcd

import (
	"context"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/leasehold/leasehold/backend"
)

// Guard returns the condition that rec's tenure is the current one and has not
// ended. In the If of a Txn of your own it makes etcd itself refuse what a stale
// holder writes, whatever that believes: no clock is involved. rec is the record of
// the tenure, as lease.Lease.Record or a call of this store has returned it; of any
// other record (no tenure, another store's) the condition never holds.
//
// It holds for keys of the same etcd, also through a client that package namespace
// of etcd's client wraps, as long as the store has the same one. For anything else
// there is Record.Token.
func (s *Store) Guard(rec backend.Record) clientv3.Cmp {
	key := aliveKey(s.recordKey(rec.Name))
	rev, ok := parseRevision(rec.Revision)
	if !ok || rec.Token <= rev.floor || rec.Token > backend.MaxToken || s.invalid != nil {
		// Of a key that is not there the revision is 0, and never less.
		return clientv3.Compare(clientv3.ModRevision(key), "<", 0)
	}
	return clientv3.Compare(clientv3.ModRevision(key), "=", int64(rec.Token-rev.floor))
}

// Guarded does ops in one Txn if rec's tenure is the current one and all conditions
// hold. If the tenure is over, nothing is done and the error is ErrLost. If one of
// the conditions does not hold, nothing is done either, and the response says so:
// Succeeded is false. Any other error leaves it unknown whether they were done.
//
// It is sent once: what a Txn does that was sent twice only its author can know.
func (s *Store) Guarded(ctx context.Context, rec backend.Record, conditions []clientv3.Cmp, ops ...clientv3.Op) (*clientv3.TxnResponse, error) {
	if err := s.enter(ctx, rec.Name); err != nil {
		return nil, err
	}
	ctx, cancel := s.bound(ctx)
	defer cancel()
	key := s.recordKey(rec.Name)
	resp, err := s.client.Txn(ctx).
		If(append([]clientv3.Cmp{s.Guard(rec)}, conditions...)...).
		Then(ops...).
		Else(clientv3.OpGet(key, clientv3.WithRange(endKey(key)))).
		Commit()
	if err != nil {
		return nil, s.explain("a guarded write for", rec.Name, err)
	}
	if resp.Succeeded {
		return resp, nil
	}
	st := newState(rec.Name, key, resp.Header.Revision, resp.Responses[0].GetResponseRange().Kvs)
	if rev, ok := parseRevision(rec.Revision); ok && rec.Token > rev.floor && uint64(modOf(st.alive)) == rec.Token-rev.floor {
		return resp, nil // it was one of theirs
	}
	if now, err := st.view(); err == nil && now.Live() {
		return nil, fmt.Errorf("%w: lease %q: it is %q who holds it now, with token %d: nothing was written", backend.ErrLost, rec.Name, now.Holder, now.Token)
	}
	return nil, fmt.Errorf("%w: lease %q: the tenure with token %d is over: nothing was written", backend.ErrLost, rec.Name, rec.Token)
}
