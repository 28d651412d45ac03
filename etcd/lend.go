package etcd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/leasehold/leasehold/backend"
)

// spares are etcd leases that no key is bound to: of attempts that were refused, and
// of tenures that were released. The next attempt needs one as long as that: it begins
// the time of a spare anew, which writes nothing to etcd's log, where a revocation and
// a grant are an entry each. A spare that nobody needs runs out.
//
// None is kept with which a Txn may still be on its way. That would be applied, late,
// on an etcd lease which is renewed for another tenure, and hold a name for as long.
type spares struct {
	mu    sync.Mutex
	kept  []spare
	clean map[clientv3.LeaseID]struct{} // of tenures that were granted here by a Txn that was sent once
}

type spare struct {
	id       clientv3.LeaseID
	duration time.Duration
	ends     time.Time
}

const (
	// mostSpares is how many are kept. Those who want names through one store at the
	// same moment are seldom more.
	mostSpares = 16

	// longestSpare is how long an etcd lease may be there for nothing.
	longestSpare = time.Minute

	// mostClean bounds what is remembered of tenures that are never released.
	mostClean = 1 << 16
)

// lent notes that a tenure was granted on an etcd lease that can be a spare after it.
func (p *spares) lent(id clientv3.LeaseID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.clean == nil || len(p.clean) >= mostClean {
		p.clean = make(map[clientv3.LeaseID]struct{})
	}
	p.clean[id] = struct{}{}
}

// returned reports whether the etcd lease of a tenure that has ended can be a spare.
func (p *spares) returned(id clientv3.LeaseID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, ok := p.clean[id]
	delete(p.clean, id)
	return ok
}

// take returns a spare of that duration, 0 if there is none.
func (p *spares) take(d time.Duration) clientv3.LeaseID {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	for i := len(p.kept) - 1; i >= 0; i-- {
		k := p.kept[i]
		over := k.ends.Before(now)
		if !over && k.duration != d {
			continue
		}
		p.kept = slices.Delete(p.kept, i, i+1)
		if !over {
			return k.id
		}
	}
	return 0
}

// put keeps a spare; false if there are enough.
func (p *spares) put(id clientv3.LeaseID, d time.Duration) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.kept) >= mostSpares && p.kept[0].ends.Before(time.Now()) {
		p.kept = p.kept[1:]
	}
	if len(p.kept) >= mostSpares {
		return false
	}
	// It may end sooner; that costs the next attempt a question, and no more.
	p.kept = append(p.kept, spare{id, d, time.Now().Add(d)})
	return true
}

// spare returns a spare that lasts for d from now on, 0 if there is none.
func (s *Store) spare(ctx context.Context, d time.Duration) clientv3.LeaseID {
	for id := s.spares.take(d); id != 0; id = s.spares.take(d) {
		ttl, err := s.prolong(ctx, id)
		switch {
		case err == nil && time.Duration(ttl)*time.Second == d:
			return id
		case !errors.Is(err, rpctypes.ErrLeaseNotFound):
			return 0
		}
	}
	return 0
}

// giveBack is told of an etcd lease that no key is bound to any more: it is kept, if
// it is fit for the next tenure, or ended.
func (s *Store) giveBack(ctx context.Context, id clientv3.LeaseID, d time.Duration, fit bool) {
	if fit && id != 0 && d <= longestSpare && s.spares.put(id, d) {
		return
	}
	s.revoke(ctx, id)
}

// lend returns the etcd lease of a new tenure, which lasts for d from now on and no
// longer.
func (s *Store) lend(ctx context.Context, name string, d time.Duration) (clientv3.LeaseID, error) {
	if id := s.spare(ctx, d); id != 0 {
		return id, nil
	}
	id, ttl, err := s.grant(ctx, d)
	if err != nil {
		return 0, s.explain("granting an etcd lease for", name, err)
	}
	granted := time.Duration(ttl) * time.Second
	if granted == d {
		return id, nil
	}
	s.revoke(ctx, id)
	if granted < d {
		return 0, fmt.Errorf("%w: the duration is %v, but etcd grants no more than %v", backend.ErrInvalid, d, granted)
	}
	for old := s.minimum.Load(); old < ttl && !s.minimum.CompareAndSwap(old, ttl); old = s.minimum.Load() {
	}
	return 0, fmt.Errorf("%w: the duration is %v, but this etcd makes at least %v of it (one and a half times its election timeout)", backend.ErrInvalid, d, granted)
}
