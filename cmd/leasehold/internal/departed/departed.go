// Package departed lets the lease of a crashed holder be taken over at once,
// not after its duration, where the crash can be seen: on the holder's own
// machine.
//
// A holder writes into the metadata of its record on which machine it runs and
// by which processes it acts. Wrap presents a record as expired when it names
// this machine and every one of these processes is gone, and claims over it. A
// record without all of that, another machine's, a seal, or one with a process
// that cannot be judged is left as it is.
//
// A request that a dead process sent may still be on its way to somebody, as
// after any lease has run out. Fencing tokens are there for that.
package departed

import (
	"context"
	"errors"
	"iter"
	"maps"
	"os"
	"sync"
	"time"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/cmd/leasehold/internal/procs"
)

// The keys of the metadata. Machine is compared as a whole.
const (
	Prefix     = "leasehold.process."
	keyMachine = Prefix + "machine"
	keyWrapper = Prefix + "wrapper" // the process that renews
	keyGroup   = Prefix + "group"   // the leader of the group that acts
)

// Metadata names the processes a holder acts by: the one that renews the lease,
// and the process group that does the work under it, by its leader.
func Metadata(wrapper, group procs.ID) (map[string]string, error) {
	here, err := machine()
	if err != nil {
		return nil, err
	}
	return map[string]string{
		keyMachine: here,
		keyWrapper: wrapper.String(),
		keyGroup:   group.String(),
	}, nil
}

// gone reports whether the holder that wrote this metadata is gone for certain.
func gone(metadata map[string]string) bool {
	there := metadata[keyMachine]
	if there == "" {
		return false
	}
	wrapper, err1 := procs.ParseID(metadata[keyWrapper])
	group, err2 := procs.ParseID(metadata[keyGroup])
	if err1 != nil || err2 != nil {
		return false
	}
	here, err := machine()
	return err == nil && here == there && wrapper.Gone() && procs.GroupGone(group)
}

var machine = sync.OnceValues(procs.Machine)

// interval is how often a Watch looks after the processes of the holder it is
// waiting for: one or two system calls.
const interval = 100 * time.Millisecond

// Wrap returns store with the records of departed holders shown as expired.
func Wrap(store backend.Store) *Store { return &Store{Store: store, gone: gone} }

// Store is what Wrap returns.
type Store struct {
	backend.Store
	gone func(metadata map[string]string) bool
}

// Unwrap returns the store underneath.
func (s *Store) Unwrap() backend.Store { return s.Store }

// CanWatch reports whether store is told of changes by itself.
func CanWatch(store backend.Store) bool {
	if s, ok := store.(*Store); ok {
		store = s.Store
	}
	_, ok := store.(backend.Watcher)
	return ok
}

// judgeable reports whether the record is of a kind that is judged at all: not,
// for one, if it is this process's.
func judgeable(rec backend.Record) bool {
	return rec.Live() && rec.Seal == nil && rec.Metadata[keyMachine] != "" && rec.Metadata[keyWrapper] != own()
}

var own = sync.OnceValue(func() string {
	id, err := procs.Find(os.Getpid())
	if err != nil {
		return ""
	}
	return id.String()
})

func (s *Store) judge(rec backend.Record) backend.Record {
	if judgeable(rec) && s.gone(rec.Metadata) {
		rec.Expired, rec.Remaining = true, 0
	}
	return rec
}

// Get returns the record, expired if its holder has departed.
func (s *Store) Get(ctx context.Context, name string) (backend.Record, error) {
	rec, err := s.Store.Get(ctx, name)
	return s.judge(rec), err
}

// Acquire claims over the record of a departed holder.
func (s *Store) Acquire(ctx context.Context, claim backend.Claim) (backend.Record, error) {
	rec, err := s.Store.Acquire(ctx, claim)
	found, departed := s.departed(err)
	if !departed || claim.Over != "" || found.Revision == "" {
		return rec, err
	}
	// The refusal was definite, so this becomes the only claim under way. It is
	// refused if anybody else was first.
	claim.Over = found.Revision
	rec, err = s.Store.Acquire(ctx, claim)
	if found, departed := s.departed(err); departed {
		err = &backend.HeldError{Record: found}
	}
	return rec, err
}

// departed returns the record that an Acquire was refused for, as expired, if
// its holder has departed.
func (s *Store) departed(err error) (backend.Record, bool) {
	var held *backend.HeldError
	if !errors.As(err, &held) {
		return backend.Record{}, false
	}
	rec := s.judge(held.Record)
	return rec, rec.Expired && !held.Record.Expired
}

// List yields each record, expired if its holder has departed.
func (s *Store) List(ctx context.Context, prefix string) iter.Seq2[backend.Record, error] {
	return func(yield func(backend.Record, error) bool) {
		for rec, err := range backend.List(ctx, s.Store, prefix) {
			if !yield(s.judge(rec), err) {
				return
			}
		}
	}
}

// Watch yields the record as it changes, and once more when its holder departs.
func (s *Store) Watch(ctx context.Context, name string) iter.Seq2[backend.Record, error] {
	return func(yield func(backend.Record, error) bool) {
		type update struct {
			rec backend.Record
			err error
		}
		ctx, cancel := context.WithCancel(ctx)
		updates := make(chan update)
		defer func() {
			cancel()
			for range updates { // until the sequence underneath has ended
			}
		}()
		go func() {
			defer close(updates)
			for rec, err := range backend.Watch(ctx, s.Store, name) {
				select {
				case updates <- update{rec, err}:
				case <-ctx.Done():
					return
				}
			}
		}()

		var last backend.Record
		look := time.NewTicker(interval)
		defer look.Stop()
		for {
			if judgeable(last) {
				look.Reset(interval)
			} else {
				look.Stop()
			}
			select {
			case u, ok := <-updates:
				if !ok {
					return
				}
				rec := s.judge(u.rec)
				last = rec
				last.Metadata = maps.Clone(rec.Metadata) // rec is the caller's to change
				if !yield(rec, u.err) {
					return
				}
			case <-look.C:
				rec := s.judge(last)
				if !rec.Expired {
					continue
				}
				last = rec
				if !yield(last, nil) {
					return
				}
			}
		}
	}
}

// Own returns the metadata that people put there: all but Metadata's.
func Own(metadata map[string]string) map[string]string {
	own := maps.Clone(metadata)
	for _, key := range []string{keyMachine, keyWrapper, keyGroup} {
		delete(own, key)
	}
	return own
}
