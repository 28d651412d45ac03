package lease

import (
	"slices"
	"sync"
)

// twins are the Leases of this process that hold a tenure under a holder which
// the caller named. Those with the same store, name and holder share the tenure:
// when one releases it, the others must not believe in it until they renew.
var twins = twinTable{held: make(map[twinKey][]*Lease)}

type twinTable struct {
	mu   sync.Mutex
	held map[twinKey][]*Lease
}

type twinKey struct {
	store        any
	name, holder string
}

func keyOf(l *Lease) twinKey { return twinKey{laneKey(l.store), l.rules.name, l.rules.holder} }

func (t *twinTable) add(l *Lease) {
	if !l.rules.shared {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.held[keyOf(l)] = append(t.held[keyOf(l)], l)
}

func (t *twinTable) remove(l *Lease) {
	if !l.rules.shared {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	key := keyOf(l)
	t.held[key] = slices.DeleteFunc(t.held[key], func(o *Lease) bool { return o == l })
	if len(t.held[key]) == 0 {
		delete(t.held, key)
	}
}

// of returns the other Leases that share the tenure of l.
func (t *twinTable) of(l *Lease) []*Lease {
	if !l.rules.shared {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(t.held[keyOf(l)]), func(o *Lease) bool { return o == l })
}
