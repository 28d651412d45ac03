package file

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/leasehold/leasehold/backend"
)

// Get returns the record of name.
func (s *Store) Get(ctx context.Context, name string) (backend.Record, error) {
	if err := s.enter(ctx, name); err != nil {
		return backend.Record{}, err
	}
	e, err := s.look(ctx, name, fileName(name))
	switch {
	case err != nil:
		return backend.Record{}, err
	case e.corrupt != nil:
		return backend.Record{}, e.corrupt
	case !e.exists():
		return backend.Record{}, fmt.Errorf("%w: %q", backend.ErrNotFound, name)
	}
	return e.Record, nil
}

// look reads without the lock what can be, and with it what cannot.
func (s *Store) look(ctx context.Context, name, file string) (*entry, error) {
	e, err := s.read(name, file)
	if err != nil || e.plain() {
		return e, err
	}
	unlock, err := s.lock(ctx, s.shard(e.Name), reading, nil)
	if err != nil {
		return nil, err
	}
	defer unlock()
	return s.read(name, file)
}

// Acquire grants the claim or refuses it.
func (s *Store) Acquire(ctx context.Context, claim backend.Claim) (backend.Record, error) {
	granted, err := backend.CheckClaim(claim, s.Traits())
	if err != nil {
		return backend.Record{}, err
	}
	if err := s.enter(ctx, claim.Name); err != nil {
		return backend.Record{}, err
	}
	for {
		rec, err := s.acquire(ctx, claim, granted)
		if err != errTokensBusy {
			return rec, err
		}
		// Wait for the counter without keeping anybody from renewing.
		unlock, err := s.lock(ctx, &s.tokens, writing, nil)
		if err != nil {
			return backend.Record{}, err
		}
		unlock()
	}
}

func (s *Store) acquire(ctx context.Context, claim backend.Claim, granted time.Duration) (backend.Record, error) {
	file := fileName(claim.Name)
	unlock, err := s.lock(ctx, s.shard(claim.Name), writing, func() error {
		// Most refusals need no lock: the losers of a race do not keep the winner
		// from renewing, and wait for nobody.
		if e, err := s.read(claim.Name, file); err == nil && e.plain() && !e.grantedTo(claim) && !e.otherBoot(s) {
			return e.refusal(claim)
		}
		return nil
	})
	if err != nil {
		return backend.Record{}, err
	}
	defer unlock()
	e, err := s.read(claim.Name, file)
	if err != nil {
		return backend.Record{}, err
	}
	if e.grantedTo(claim) {
		// The first arrival may have been ended before it had made this last.
		if e.record.lasting() {
			if err := syncFolder(s.dir); err != nil {
				return backend.Record{}, err
			}
		}
		return s.renew(e)
	}
	if err := e.refusal(claim); err != nil {
		if e.otherBoot(s) {
			_ = s.note(claim.Name, e.Revision) // without it the wait is only longer
		}
		return backend.Record{}, err
	}
	floor := claim.MinToken
	// Also that of a damaged record, if it can be made out.
	if old := e.record; e.corrupt == nil || old.Floor < old.Token && old.Token <= backend.MaxToken {
		floor = max(floor, old.Floor)
	}
	token, err := s.nextToken(ctx, claim.Name, floor, e.count())
	if err != nil {
		return backend.Record{}, err
	}
	at := time.Now().UTC().Round(0) // Round drops the monotonic reading
	r := record{Format: format, Renewed: s.clock.Now(), RenewedAt: at, body: body{
		Name:       claim.Name,
		Holder:     claim.Holder,
		Token:      token,
		Floor:      floor,
		Attempt:    claim.Attempt,
		Duration:   duration(granted),
		Boot:       s.boot,
		AcquiredAt: at,
		Metadata:   maps.Clone(claim.Metadata),
	}}
	if c := claim.Seal; c != nil {
		r.Seal = &seal{To: c.To, Epoch: c.Epoch, Heir: c.Heir, HeirDuration: duration(c.HeirDuration)}
	}
	if e.exists() && e.corrupt == nil {
		r.Transitions = e.Transitions
		if e.Holder != claim.Holder {
			r.Transitions++
		}
	}
	if err := e.makeWay(); err != nil {
		return backend.Record{}, err
	}
	if e.otherBoot(s) {
		defer s.unnote(claim.Name)
	}
	return s.write(&r, r.lasting() || e.Seal != nil)
}

// lasting reports whether a power cut must not bring back what was there before.
// After it no holder of a tenure is alive, so that may be forgotten. A seal may
// not, nor a floor; and one that was found there may have been brought by a
// process that was killed before it had made it last.
func (r *record) lasting() bool { return r.Seal != nil || r.Floor != 0 }

// grantedTo reports whether the claim is a second arrival of the one that began
// this tenure.
func (e *entry) grantedTo(c backend.Claim) bool {
	return e.exists() && !e.Expired && c.Attempt != "" && c.Attempt == e.Attempt && c.Holder == e.Holder
}

// refusal returns why the claim cannot replace what is there.
func (e *entry) refusal(c backend.Claim) error {
	switch {
	case c.Over == "" && e.Live(),
		c.Over != "" && c.Over != e.Revision && e.corrupt == nil:
		return &backend.HeldError{Record: e.Record}
	case e.corrupt != nil && (c.Over == "" || c.Over != e.corrupt.Revision):
		return e.corrupt
	}
	return nil
}

// makeWay removes an empty folder, over which no file can be renamed.
func (e *entry) makeWay() error {
	var odd *oddFile
	if e.corrupt == nil || !errors.As(e.corrupt, &odd) || !odd.mode.IsDir() {
		return nil
	}
	if err := os.Remove(e.corrupt.Where); err != nil {
		c := *e.corrupt
		c.Err = fmt.Errorf("it is a folder; move it away by hand: %w", err)
		return &c
	}
	return nil
}

// Renew starts the duration of rec's tenure anew.
func (s *Store) Renew(ctx context.Context, rec backend.Record) (backend.Record, error) {
	if err := s.enter(ctx, rec.Name); err != nil {
		return backend.Record{}, err
	}
	unlock, err := s.lock(ctx, s.shard(rec.Name), writing, nil)
	if err != nil {
		return backend.Record{}, err
	}
	defer unlock()
	e, err := s.tenure(rec)
	if err != nil {
		return backend.Record{}, err
	}
	if e.Expired {
		return backend.Record{}, fmt.Errorf("%w: lease %q: the tenure of %q expired before it was renewed", backend.ErrLost, rec.Name, rec.Holder)
	}
	return s.renew(e)
}

// Release ends rec's tenure. It deletes the record, or vacates it if there is a
// floor to keep.
func (s *Store) Release(ctx context.Context, rec backend.Record) error {
	if err := s.enter(ctx, rec.Name); err != nil {
		return err
	}
	unlock, err := s.lock(ctx, s.shard(rec.Name), writing, nil)
	if err != nil {
		return err
	}
	defer unlock()
	e, err := s.tenure(rec)
	if err != nil {
		return err
	}
	if rec.Expired && rec.Revision != e.Revision {
		return fmt.Errorf("%w: lease %q: the tenure of %q was renewed since it was seen expired", backend.ErrLost, rec.Name, rec.Holder)
	}
	if e.otherBoot(s) {
		defer s.unnote(rec.Name)
	}
	if floor := e.record.Floor; floor != 0 {
		_, err := s.write(&record{Format: format, Renewed: s.clock.Now(), RenewedAt: time.Now(), body: body{
			Name:        rec.Name,
			Floor:       floor,
			Boot:        s.boot,
			Transitions: e.Transitions,
		}}, true)
		return err
	}
	path := filepath.Join(s.dir, fileName(rec.Name))
	if err := os.Remove(path); err != nil {
		return refusal("the record "+path+" cannot be deleted", err)
	}
	s.forget(rec.Name)
	if e.Seal != nil {
		return syncFolder(s.dir)
	}
	return nil
}

// tenure returns what is there if it still is of rec's tenure. The lock is held.
func (s *Store) tenure(rec backend.Record) (*entry, error) {
	e, err := s.read(rec.Name, fileName(rec.Name))
	switch {
	case err != nil:
		return nil, err
	case e.corrupt != nil:
		return nil, e.corrupt
	case !e.exists():
		return nil, fmt.Errorf("%w: lease %q: there is no record any more", backend.ErrLost, rec.Name)
	case e.Vacant():
		return nil, fmt.Errorf("%w: lease %q: nobody holds it any more", backend.ErrLost, rec.Name)
	case !e.SameTenure(rec):
		return nil, fmt.Errorf("%w: lease %q: it is %q who holds it now, with token %d", backend.ErrLost, rec.Name, e.Holder, e.Token)
	}
	return e, nil
}

// renew starts the duration anew, in place where the file is as we write it. The
// lock is held.
func (s *Store) renew(e *entry) (backend.Record, error) {
	if e.Seal != nil { // it lasts for ever as it is
		return e.Record, nil
	}
	r, inPlace := &e.record, e.whole
	now := s.clock.Now()
	if r.Boot == s.boot {
		now = max(now, r.Renewed+1) // so that the Revision changes
	} else {
		r.Boot, inPlace = s.boot, false
	}
	r.Renewed, r.RenewedAt = now, time.Now().UTC().Round(0)
	if !inPlace {
		return s.write(r, false)
	}
	head := r.head()
	path := filepath.Join(s.dir, fileName(r.Name))
	if err := overwrite(path, head); err != nil {
		return backend.Record{}, refusal("the record "+path+" cannot be renewed", err)
	}
	copy(e.text, head)
	return r.granted(e.text), nil
}

// write replaces the record. The lock is held.
func (s *Store) write(r *record, lasting bool) (backend.Record, error) {
	text, err := r.encode()
	if err != nil {
		return backend.Record{}, fmt.Errorf("%w: lease %q: %w", backend.ErrInvalid, r.Name, err)
	}
	path := filepath.Join(s.dir, fileName(r.Name))
	if err := s.replace(path, s.temporary(r.Name), text, lasting); err != nil {
		return backend.Record{}, refusal("the record "+path+" cannot be written", err)
	}
	s.forget(r.Name)
	return r.granted(text), nil
}

// List yields the records whose names have the prefix, each as it was when it
// was read.
func (s *Store) List(ctx context.Context, prefix string) iter.Seq2[backend.Record, error] {
	return func(yield func(backend.Record, error) bool) {
		if err := s.usable(ctx); err != nil {
			yield(backend.Record{}, err)
			return
		}
		files, err := os.ReadDir(s.dir)
		if err != nil {
			yield(backend.Record{}, refusal("the folder "+s.dir+" cannot be read", err))
			return
		}
		for _, f := range files {
			file := f.Name()
			if !strings.HasSuffix(file, suffix) || !mayHavePrefix(file, prefix) {
				continue
			}
			err := s.usable(ctx)
			var e *entry
			if err == nil {
				e, err = s.look(ctx, "", file)
			}
			switch {
			case err != nil:
				yield(backend.Record{}, err)
				return
			case e.corrupt != nil:
				if !yield(backend.Record{Name: e.Name}, e.corrupt) {
					return
				}
			case e.exists() && strings.HasPrefix(e.Name, prefix):
				if !yield(e.Record, nil) {
					return
				}
			}
		}
	}
}
