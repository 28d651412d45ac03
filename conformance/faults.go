package conformance

import (
	"context"
	"errors"
	"iter"
	"sync"
	"time"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/internal/wait"
)

// Verb names a method of a store.
type Verb string

// The verbs that faults can be put on.
const (
	VerbGet     Verb = "Get"
	VerbAcquire Verb = "Acquire"
	VerbRenew   Verb = "Renew"
	VerbRelease Verb = "Release"
	VerbWatch   Verb = "Watch" // the call is the whole sequence, from its start to its end
	VerbList    Verb = "List"  // likewise
)

var verbs = []Verb{VerbGet, VerbAcquire, VerbRenew, VerbRelease, VerbWatch, VerbList}

// ErrInjected is the error of a fault that was given none. It is none of the
// definite errors, so that it leaves the outcome unknown.
var ErrInjected = errors.New("injected fault")

// Fault stands in for one call of a store. It may make the call or not, and
// answer as it likes; what it returns is what the caller sees. Calls without a
// record in their answer (Release, Watch, List) return a zero one.
type Fault func(ctx context.Context, call func(context.Context) (backend.Record, error)) (backend.Record, error)

// Fail answers err (nil: ErrInjected) without making the call.
func Fail(err error) Fault {
	return func(context.Context, func(context.Context) (backend.Record, error)) (backend.Record, error) {
		return backend.Record{}, orInjected(err)
	}
}

// LoseReply makes the call and answers err (nil: ErrInjected) all the same, as
// if the reply had been lost.
func LoseReply(err error) Fault {
	return func(ctx context.Context, call func(context.Context) (backend.Record, error)) (backend.Record, error) {
		_, _ = call(ctx)
		return backend.Record{}, orInjected(err)
	}
}

// Hang does not make the call and answers when its context ends.
func Hang() Fault {
	return func(ctx context.Context, _ func(context.Context) (backend.Record, error)) (backend.Record, error) {
		<-ctx.Done()
		return backend.Record{}, ctx.Err()
	}
}

// HangAfter makes the call and then does not answer until its context ends.
func HangAfter() Fault {
	return func(ctx context.Context, call func(context.Context) (backend.Record, error)) (backend.Record, error) {
		_, _ = call(ctx)
		<-ctx.Done()
		return backend.Record{}, ctx.Err()
	}
}

// Stall holds the call back until the channel is closed, whatever becomes of its
// context, like a client library that does not know contexts.
func Stall(until <-chan struct{}) Fault {
	return func(ctx context.Context, call func(context.Context) (backend.Record, error)) (backend.Record, error) {
		<-until
		return call(ctx)
	}
}

// Late answers err (nil: ErrInjected) at once and makes the call when the
// channel is closed: a write that was still under way when its sender gave up.
func Late(until <-chan struct{}, err error) Fault {
	return func(ctx context.Context, call func(context.Context) (backend.Record, error)) (backend.Record, error) {
		go func() {
			<-until
			_, _ = call(context.WithoutCancel(ctx))
		}()
		return backend.Record{}, orInjected(err)
	}
}

// Delay makes the call after d, or not at all if its context ends before.
func Delay(d time.Duration) Fault {
	return func(ctx context.Context, call func(context.Context) (backend.Record, error)) (backend.Record, error) {
		if !wait.For(ctx, d) {
			return backend.Record{}, ctx.Err()
		}
		return call(ctx)
	}
}

// DelayReply makes the call, and answers after d, or when its context ends.
func DelayReply(d time.Duration) Fault {
	return func(ctx context.Context, call func(context.Context) (backend.Record, error)) (backend.Record, error) {
		rec, err := call(ctx)
		if !wait.For(ctx, d) {
			return backend.Record{}, ctx.Err()
		}
		return rec, err
	}
}

func orInjected(err error) error {
	if err == nil {
		return ErrInjected
	}
	return err
}

// Faults makes calls of a store fail, hang or come late, and counts them. Its
// methods may be called while the store is in use.
type Faults struct {
	store backend.Store

	mu    sync.Mutex
	next  map[Verb][]Fault
	every map[Verb]Fault
	calls map[Verb]int
}

// NewFaults wraps s. Without faults every call passes.
func NewFaults(s backend.Store) *Faults {
	f := &Faults{next: make(map[Verb][]Fault), every: make(map[Verb]Fault), calls: make(map[Verb]int)}
	f.store = wrap(s, func(ctx context.Context, c call, next func(context.Context) (backend.Record, error)) (backend.Record, error) {
		if fault := f.take(c.verb); fault != nil {
			return fault(ctx, next)
		}
		return next(ctx)
	})
	return f
}

// Store returns the store to hand to the code under test. It is a
// backend.Watcher and a backend.Lister if the wrapped store is.
func (f *Faults) Store() backend.Store { return f.store }

// Next puts faults on the coming calls of a verb, one on each; nil lets a call
// pass. They come before those of Every.
func (f *Faults) Next(v Verb, faults ...Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.next[v] = append(f.next[v], faults...)
}

// Every puts a fault on all coming calls of some verbs (none named: of all
// verbs) until Heal.
func (f *Faults) Every(fault Fault, of ...Verb) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(of) == 0 {
		of = verbs
	}
	for _, v := range of {
		f.every[v] = fault
	}
}

// Heal takes all faults away. Calls that one has hold of stay in its hands.
func (f *Faults) Heal() {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.next)
	clear(f.every)
}

// Calls returns how often a verb has been called, faults included.
func (f *Faults) Calls(v Verb) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[v]
}

func (f *Faults) take(v Verb) Fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls[v]++
	if queue := f.next[v]; len(queue) > 0 {
		f.next[v] = queue[1:]
		return queue[0]
	}
	return f.every[v]
}

// call is one call of a store, with what it was given.
type call struct {
	verb  Verb
	name  string // of the lease; the prefix with VerbList
	claim backend.Claim
	rec   backend.Record
}

// around stands between a caller and a store.
type around func(ctx context.Context, c call, next func(context.Context) (backend.Record, error)) (backend.Record, error)

// wrap puts a function around every call of a store. A wrapper must not make an
// optional method look supported, so it has exactly those of the store. It can
// be compared, like any store that is a pointer.
func wrap(s backend.Store, f around) backend.Store {
	w := &wrapper{s, f}
	_, watches := s.(backend.Watcher)
	_, lists := s.(backend.Lister)
	switch {
	case watches && lists:
		return struct {
			*wrapper
			watching
			listing
		}{w, watching{w}, listing{w}}
	case watches:
		return struct {
			*wrapper
			watching
		}{w, watching{w}}
	case lists:
		return struct {
			*wrapper
			listing
		}{w, listing{w}}
	}
	return w
}

type wrapper struct {
	store  backend.Store
	around around
}

func (w *wrapper) Get(ctx context.Context, name string) (backend.Record, error) {
	return w.around(ctx, call{verb: VerbGet, name: name}, func(ctx context.Context) (backend.Record, error) {
		return w.store.Get(ctx, name)
	})
}

func (w *wrapper) Acquire(ctx context.Context, claim backend.Claim) (backend.Record, error) {
	return w.around(ctx, call{verb: VerbAcquire, name: claim.Name, claim: claim}, func(ctx context.Context) (backend.Record, error) {
		return w.store.Acquire(ctx, claim)
	})
}

func (w *wrapper) Renew(ctx context.Context, rec backend.Record) (backend.Record, error) {
	return w.around(ctx, call{verb: VerbRenew, name: rec.Name, rec: rec}, func(ctx context.Context) (backend.Record, error) {
		return w.store.Renew(ctx, rec)
	})
}

func (w *wrapper) Release(ctx context.Context, rec backend.Record) error {
	_, err := w.around(ctx, call{verb: VerbRelease, name: rec.Name, rec: rec}, func(ctx context.Context) (backend.Record, error) {
		return backend.Record{}, w.store.Release(ctx, rec)
	})
	return err
}

func (w *wrapper) Traits() backend.Traits { return w.store.Traits() }
func (w *wrapper) Close() error           { return w.store.Close() }

type watching struct{ w *wrapper }

func (s watching) Watch(ctx context.Context, name string) iter.Seq2[backend.Record, error] {
	return func(yield func(backend.Record, error) bool) {
		brokenOff, failed := false, false
		_, err := s.w.around(ctx, call{verb: VerbWatch, name: name}, func(ctx context.Context) (backend.Record, error) {
			for rec, err := range s.w.store.(backend.Watcher).Watch(ctx, name) {
				if err != nil {
					failed = true
					return backend.Record{}, err
				}
				if brokenOff = !yield(rec, nil); brokenOff {
					break
				}
			}
			return backend.Record{}, nil
		})
		// When its context ends, a watch just stops. But a store that yields an error
		// then is not made better than it is.
		if err != nil && !brokenOff && (failed || ctx.Err() == nil) {
			yield(backend.Record{}, err)
		}
	}
}

type listing struct{ w *wrapper }

func (s listing) List(ctx context.Context, prefix string) iter.Seq2[backend.Record, error] {
	return func(yield func(backend.Record, error) bool) {
		brokenOff := false
		_, err := s.w.around(ctx, call{verb: VerbList, name: prefix}, func(ctx context.Context) (backend.Record, error) {
			for rec, err := range s.w.store.(backend.Lister).List(ctx, prefix) {
				// A record that cannot be read does not end the list.
				if err != nil && !errors.Is(err, backend.ErrCorrupt) {
					return backend.Record{}, err
				}
				if brokenOff = !yield(rec, err); brokenOff {
					break
				}
			}
			return backend.Record{}, nil
		})
		if err != nil && !brokenOff {
			yield(backend.Record{}, err)
		}
	}
}
