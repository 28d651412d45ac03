package etcd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/leasehold/leasehold/backend"
)

// mostWrites is how many compare-and-swaps a call tries. Each but the first follows
// a definite refusal, after which somebody else has got on.
const mostWrites = 20

// Get returns the record of name: one linearizable Range, and a look at what is
// left of the etcd lease.
func (s *Store) Get(ctx context.Context, name string) (backend.Record, error) {
	if err := s.enter(ctx, name); err != nil {
		return backend.Record{}, err
	}
	ctx, cancel := s.bound(ctx)
	defer cancel()
	st, err := s.read(ctx, name)
	if err != nil {
		return backend.Record{}, s.explain("reading", name, err)
	}
	rec, err := st.view()
	switch {
	case err != nil:
		return backend.Record{}, err
	case st.absent():
		return backend.Record{}, fmt.Errorf("%w: %q", backend.ErrNotFound, name)
	}
	if rec.Live() && rec.Seal == nil {
		s.measure(ctx, clientv3.LeaseID(st.alive.Lease), &rec)
	}
	return rec, nil
}

// measure asks how long an etcd lease has to go. Whoever cannot be told (it needs
// the right to read what is bound to it) has the record without.
func (s *Store) measure(ctx context.Context, id clientv3.LeaseID, rec *backend.Record) {
	ctx, cancel := share(ctx, 1)
	defer cancel()
	resp, err := s.leases.LeaseTimeToLive(ctx, &pb.LeaseTimeToLiveRequest{ID: int64(id)})
	if err != nil || resp.TTL < 0 {
		return
	}
	// Whole seconds, rounded down. It is more than was granted after a change of leaders.
	rec.Remaining = time.Duration(resp.TTL+1) * time.Second
	rec.RenewedAt = time.Now().UTC().Round(0).Add(min(0, rec.Remaining-time.Duration(resp.GrantedTTL)*time.Second))
}

// Acquire grants the claim or refuses it. A name of which nothing is known is taken
// with an etcd lease and one Txn; where it was not free when last seen, a look comes
// first.
func (s *Store) Acquire(ctx context.Context, claim backend.Claim) (backend.Record, error) {
	duration, err := backend.CheckClaim(claim, s.Traits())
	if err != nil {
		return backend.Record{}, err
	}
	if err := s.enter(ctx, claim.Name); err != nil {
		return backend.Record{}, err
	}
	ctx, cancel := s.bound(ctx)
	defer cancel()
	st := newState(claim.Name, s.recordKey(claim.Name), 0, nil)
	// What a floor leaves room for depends on how far etcd has counted.
	if claim.Over != "" || claim.MinToken > 0 || s.noted(claim.Name) {
		if st, err = s.read(ctx, claim.Name); err != nil {
			return backend.Record{}, s.explain("reading", claim.Name, err)
		}
	}
	var lease clientv3.LeaseID
	var open bool // a Txn with it may still be on its way
	for writes := 0; ; writes++ {
		again, err := decide(st, claim)
		if err == nil && !again && writes == mostWrites {
			err = fmt.Errorf("lease %q was changed by others %d times in between; try again", claim.Name, writes)
		}
		if err != nil || again {
			s.note(claim.Name, st.absent())
			mine := again && st.alive.Lease == int64(lease)
			switch {
			case mine:
			case !open:
				s.giveBack(ctx, lease, duration, true)
			case !s.revoke(ctx, lease) && err != nil:
				return backend.Record{}, fmt.Errorf("lease %q: refused, but a request that was sent before may still be granted: %v", claim.Name, err)
			}
			if err != nil {
				return backend.Record{}, err
			}
			rec, err := st.view()
			if err != nil {
				return backend.Record{}, err
			}
			return s.renew(ctx, rec, clientv3.LeaseID(st.alive.Lease))
		}
		if lease == 0 && claim.Seal == nil {
			if lease, err = s.lend(ctx, claim.Name, duration); err != nil {
				return backend.Record{}, err
			}
		}
		rec, found, unsure, err := s.write(ctx, st, claim, duration, lease)
		open = open || unsure
		if err != nil {
			// If it was applied, or will be, it is for as long as the etcd lease, which
			// nobody renews.
			if !open {
				s.giveBack(ctx, lease, duration, true)
			}
			return backend.Record{}, err
		}
		if found == nil {
			if !open {
				s.spares.lent(lease)
			}
			return rec, nil
		}
		st = found
	}
}

// decide returns why the claim cannot replace st, nil if it can. again is true if
// st is the tenure that this very attempt was granted: a resent claim.
func decide(st *state, c backend.Claim) (again bool, err error) {
	rec, err := st.view()
	switch {
	case c.Over != "" && st.absent():
		return false, &backend.HeldError{Record: backend.Record{Name: c.Name}}
	case err != nil && c.Over != rec.Revision:
		return false, err
	case err == nil && !rec.Expired && rec.Token != 0 && st.alive != nil && c.Attempt != "" && c.Attempt == rec.Attempt && c.Holder == rec.Holder:
		return true, nil
	case c.Over == "" && rec.Live(), c.Over != "" && c.Over != rec.Revision:
		return false, &backend.HeldError{Record: rec}
	}
	// The revision may go on before the write, but not so far.
	const room = 1 << 32
	if floor := max(st.floor(), c.MinToken); floor+uint64(st.at)+room > backend.MaxToken {
		return false, fmt.Errorf("%w: lease %q: with the floor %d, which a MinToken sets, its tokens could exceed the greatest there is, %d", backend.ErrInvalid, c.Name, floor, uint64(backend.MaxToken))
	}
	return false, nil
}

// write replaces st by what claim is granted. It is sent again, maybe to another
// member, only as the same attempt; whichever arrives second finds the first. If st
// is not what there is any more, found is. open is true if one of those that were
// sent may be applied later than this returns.
func (s *Store) write(ctx context.Context, st *state, claim backend.Claim, duration time.Duration, lease clientv3.LeaseID) (rec backend.Record, found *state, open bool, err error) {
	recordValue, aliveValue, err := st.granted(claim, duration, lease)
	if err != nil {
		return backend.Record{}, nil, false, err
	}
	puts := []clientv3.Op{clientv3.OpPut(st.key, recordValue), clientv3.OpPut(aliveKey(st.key), aliveValue, clientv3.WithLease(lease))}
	var resp *clientv3.TxnResponse
	var unanswered error
	commit := func(ctx context.Context) error {
		resp, found, err = s.swap(ctx, st, st.unchanged(), puts...)
		if err != nil && !answered(err) {
			unanswered = err
		}
		return err
	}
	if claim.Attempt != "" {
		err = repeat(ctx, passing, commit)
	} else {
		err = commit(ctx)
	}
	open = unanswered != nil
	switch {
	case err != nil:
		return backend.Record{}, nil, open, s.explainWrite("acquiring", st.name, cmp.Or(unanswered, err))
	case found != nil:
		return backend.Record{}, found, open, nil
	}
	rev := resp.Header.Revision
	now := newState(st.name, st.key, rev, []*mvccpb.KeyValue{
		{Key: []byte(st.key), Value: []byte(recordValue), ModRevision: rev},
		{Key: []byte(aliveKey(st.key)), Value: []byte(aliveValue), ModRevision: rev, Lease: int64(lease)},
	})
	s.note(st.name, now.floor() == 0 && lease != 0)
	rec, err = now.view()
	if err == nil && lease != 0 {
		rec.Remaining = rec.Duration
	}
	return rec, nil, open, err
}

// swap does what then says if the conditions hold; if they do not, found is what
// there is.
func (s *Store) swap(ctx context.Context, st *state, conditions []clientv3.Cmp, then ...clientv3.Op) (resp *clientv3.TxnResponse, found *state, err error) {
	resp, err = s.client.Txn(ctx).
		If(conditions...).
		Then(then...).
		Else(clientv3.OpGet(st.key, clientv3.WithRange(endKey(st.key)))).
		Commit()
	if err != nil {
		return nil, nil, err
	}
	if resp.Succeeded {
		return resp, nil, nil
	}
	return resp, newState(st.name, st.key, resp.Header.Revision, resp.Responses[0].GetResponseRange().Kvs), nil
}

// Renew starts the duration of rec's tenure anew: the etcd lease first, which no
// log of etcd's remembers, and then a linearizable look, because an etcd lease can
// be renewed whose key is gone.
func (s *Store) Renew(ctx context.Context, rec backend.Record) (backend.Record, error) {
	if err := s.enter(ctx, rec.Name); err != nil {
		return backend.Record{}, err
	}
	ctx, cancel := s.bound(ctx)
	defer cancel()
	rev, _ := parseRevision(rec.Revision)
	if s.forsaken(clientv3.LeaseID(rev.lease)) || rec.Token == 0 {
		rev.lease = 0
	}
	return s.renew(ctx, rec, clientv3.LeaseID(rev.lease))
}

// renew renews rec's tenure, whose etcd lease is known, or 0.
func (s *Store) renew(ctx context.Context, rec backend.Record, lease clientv3.LeaseID) (backend.Record, error) {
	for {
		var ttl int64
		var err error
		if lease != 0 {
			if ttl, err = s.prolong(ctx, lease); err != nil && !errors.Is(err, rpctypes.ErrLeaseNotFound) {
				return backend.Record{}, s.explain("renewing", rec.Name, err)
			}
		}
		st, err := s.read(ctx, rec.Name)
		if err != nil {
			return backend.Record{}, s.explain("renewing", rec.Name, err)
		}
		now, err := st.current(rec)
		if err != nil {
			if lease != 0 {
				s.forsake(lease)
			}
			return backend.Record{}, err
		}
		bound := clientv3.LeaseID(0)
		if st.alive != nil {
			bound = clientv3.LeaseID(st.alive.Lease)
		}
		switch {
		case now.Expired:
			return backend.Record{}, fmt.Errorf("%w: lease %q: the tenure of %q expired before it was renewed", backend.ErrLost, rec.Name, rec.Holder)
		case now.Seal != nil, bound == 0: // for ever as it is
			return now, nil
		case bound == lease && ttl > 0:
			s.found(lease)
			now.RenewedAt = time.Now().UTC().Round(0)
			now.Remaining = time.Duration(ttl) * time.Second
			return now, nil
		case bound == lease:
			return backend.Record{}, fmt.Errorf("lease %q: etcd says that its lease %x is over, and that the key bound to it is there: the member that was asked is behind", rec.Name, lease)
		}
		lease = bound // which the caller could not know
	}
}

// current returns the record if it still is of rec's tenure, also if that has
// expired.
func (st *state) current(rec backend.Record) (backend.Record, error) {
	now, err := st.view()
	switch {
	case err != nil:
		return backend.Record{}, err
	case st.absent():
		return backend.Record{}, fmt.Errorf("%w: lease %q: there is no record any more", backend.ErrLost, rec.Name)
	case now.Vacant():
		return backend.Record{}, fmt.Errorf("%w: lease %q: nobody holds it any more", backend.ErrLost, rec.Name)
	case now.Holder == rec.Holder && now.Token == 0:
		return backend.Record{}, fmt.Errorf("%w: lease %q: its record was deleted or rewritten under its holder", backend.ErrLost, rec.Name)
	case !now.SameTenure(rec) && !(now.Expired && now.Holder == rec.Holder && rec.Attempt != "" && now.Attempt == rec.Attempt):
		return backend.Record{}, fmt.Errorf("%w: lease %q: it is %q who holds it now, with token %d", backend.ErrLost, rec.Name, now.Holder, now.Token)
	}
	return now, nil
}

// Release ends rec's tenure: a guarded delete of both keys, and the end of the etcd
// lease, unless the next tenure can have that. A record with a token floor is vacated instead.
func (s *Store) Release(ctx context.Context, rec backend.Record) error {
	if err := s.enter(ctx, rec.Name); err != nil {
		return err
	}
	ctx, cancel := s.bound(ctx)
	defer cancel()
	st := newState(rec.Name, s.recordKey(rec.Name), 0, nil)
	conditions := st.asGranted(rec)
	if conditions == nil {
		var err error
		if st, err = s.read(ctx, rec.Name); err != nil {
			return s.explain("reading", rec.Name, err)
		}
	}
	var open error // what left it unknown whether an earlier sending was applied
	for writes := 0; ; writes++ {
		ops := []clientv3.Op{clientv3.OpDelete(st.key), clientv3.OpDelete(aliveKey(st.key), clientv3.WithPrevKV())}
		if conditions == nil {
			now, err := st.current(rec)
			if errors.Is(err, backend.ErrLost) && open != nil {
				return s.explainWrite("releasing", rec.Name, open) // it was that, or not
			}
			if err != nil {
				return err
			}
			if rec.Expired && (!now.Expired || now.Revision != rec.Revision) {
				return fmt.Errorf("%w: lease %q: the tenure of %q was renewed since it was seen expired", backend.ErrLost, rec.Name, rec.Holder)
			}
			if writes == mostWrites {
				return fmt.Errorf("lease %q was changed by others %d times in between; try again", rec.Name, writes)
			}
			if st.floor() > 0 {
				value, err := st.vacated()
				if err != nil {
					return err
				}
				ops[0] = clientv3.OpPut(st.key, value)
			}
			conditions = st.unchanged()
		}
		// It ends this one tenure and nothing else, however often it arrives.
		var resp *clientv3.TxnResponse
		var found *state
		err := repeat(ctx, passing, func(ctx context.Context) (err error) {
			resp, found, err = s.swap(ctx, st, conditions, ops...)
			if err != nil && !answered(err) {
				open = err
			}
			return err
		})
		if err != nil {
			return s.explainWrite("releasing", rec.Name, cmp.Or(open, err))
		}
		if found == nil {
			for _, alive := range resp.Responses[1].GetResponseDeleteRange().PrevKvs {
				lease := clientv3.LeaseID(alive.Lease)
				s.giveBack(ctx, lease, rec.Duration, s.spares.returned(lease))
			}
			return nil
		}
		st, conditions = found, nil
	}
}

// asGranted are the conditions under which both keys are as they were written when
// rec was granted, nil if it does not tell enough or there is a floor to keep.
func (st *state) asGranted(rec backend.Record) []clientv3.Cmp {
	rev, ok := parseRevision(rec.Revision)
	if !ok || rev.bare || rev.floor > 0 || rev.lease == 0 || rec.Expired || rec.Token == 0 || rec.Token > backend.MaxToken {
		return nil
	}
	value, err := encode(tenure{Version: format, Holder: rec.Holder, Attempt: rec.Attempt, Duration: text(rec.Duration)})
	if err != nil {
		return nil
	}
	return []clientv3.Cmp{
		clientv3.Compare(clientv3.ModRevision(st.key), "=", rev.mod),
		clientv3.Compare(clientv3.ModRevision(aliveKey(st.key)), "=", int64(rec.Token)),
		clientv3.Compare(clientv3.Value(aliveKey(st.key)), "=", value),
	}
}

// List yields every name under the prefix, as they were at one revision of etcd.
func (s *Store) List(ctx context.Context, prefix string) iter.Seq2[backend.Record, error] {
	return func(yield func(backend.Record, error) bool) {
		if err := s.usable(ctx); err != nil {
			yield(backend.Record{}, err)
			return
		}
		const page = 1000
		from := s.prefix + escape(prefix)
		end := clientv3.GetPrefixRangeEnd(from)
		var at int64                // 0 is the newest
		var kept []*mvccpb.KeyValue // of a name whose other key may be on the next page
		flush := func() bool {
			if len(kept) == 0 {
				return true
			}
			key := strings.TrimSuffix(string(kept[0].Key), "\x00")
			name, ok := unescape(strings.TrimPrefix(key, s.prefix))
			st := newState(name, key, at, kept)
			kept = nil
			if !ok { // of a store under a longer prefix, or nobody's
				return true
			}
			rec, err := st.view()
			if err != nil {
				rec = backend.Record{Name: name}
			}
			return yield(rec, err)
		}
		for {
			var resp *clientv3.GetResponse
			call, cancel := s.bound(ctx)
			err := repeat(call, hung, func(ctx context.Context) (err error) {
				resp, err = s.client.Get(ctx, from, clientv3.WithRange(end), clientv3.WithLimit(page), clientv3.WithRev(at))
				return err
			})
			cancel()
			if err != nil {
				yield(backend.Record{}, s.explainList(err))
				return
			}
			if at == 0 {
				at = resp.Header.Revision
			}
			for _, kv := range resp.Kvs {
				if len(kept) > 0 && string(kv.Key) != string(kept[0].Key)+"\x00" && !flush() {
					return
				}
				kept = append(kept, kv)
				from = string(kv.Key) + "\x00"
			}
			if !resp.More {
				flush()
				return
			}
		}
	}
}
