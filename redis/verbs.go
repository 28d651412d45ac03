package redis

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"syscall"
	"time"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/internal/wait"
)

// Get returns the record of name.
func (s *Store) Get(ctx context.Context, name string) (backend.Record, error) {
	if err := s.enter(ctx, name); err != nil {
		return backend.Record{}, err
	}
	st, err := s.look(ctx, name)
	switch {
	case err != nil:
		return backend.Record{}, err
	case st.err != nil:
		return st.rec, st.err
	case st.absent:
		return backend.Record{}, fmt.Errorf("%w: %q", backend.ErrNotFound, name)
	}
	return st.rec, nil
}

// look reads both keys.
func (s *Store) look(ctx context.Context, name string) (*state, error) {
	o := s.run(ctx, name, s.scripts.get, 0, nil)
	if o.err != nil {
		return nil, s.explain("reading", name, o)
	}
	return s.decode(name, o.reply)
}

// Acquire grants the claim or refuses it.
func (s *Store) Acquire(ctx context.Context, claim backend.Claim) (backend.Record, error) {
	duration, err := backend.CheckClaim(claim, s.Traits())
	if err != nil {
		return backend.Record{}, err
	}
	if err := s.enter(ctx, claim.Name); err != nil {
		return backend.Record{}, err
	}
	if claim.Seal != nil { // two questions share the time that one has
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, s.timeout)
		defer cancel()
	}
	args := append(make([]any, 0, 4), claim.Holder, claim.Attempt, strconv.FormatInt(duration.Milliseconds(), 10), s.keep)
	var fields []any
	if len(claim.Metadata) > 0 {
		b, err := json.Marshal(claim.Metadata)
		if err != nil {
			return backend.Record{}, fmt.Errorf("%w: the metadata of lease %q: %w", backend.ErrInvalid, claim.Name, err)
		}
		fields = append(fields, "metadata", string(b))
	}
	acked := s.replicas
	if c := claim.Seal; c != nil {
		b, err := json.Marshal(seal{c.To, c.Epoch, c.Heir, c.HeirDuration.String()})
		if err != nil {
			return backend.Record{}, fmt.Errorf("%w: the seal of lease %q: %w", backend.ErrInvalid, claim.Name, err)
		}
		fields = append(fields, "seal", string(b))
		// A seal that a failover forgets lets two stores have the name.
		if acked == 0 {
			replicated, err := s.replicated(ctx, claim.Name)
			if err != nil {
				return backend.Record{}, s.describe(fmt.Sprintf("asking for replicas, which must have the seal of lease %q (+info, +wait)", claim.Name), err)
			}
			if replicated {
				acked = 1
			}
		}
	}
	// Mostly there is no more to say, and the less is sent the faster it is.
	var more []any
	if claim.Attempt == "" || claim.Over != "" || claim.MinToken > 0 || len(fields) > 0 {
		call := ""
		if claim.Attempt == "" {
			call = rand.Text() // what the client sends again is the same call
		}
		more = append([]any{call, claim.Over, strconv.FormatUint(claim.MinToken, 10)}, fields...)
	}
	o := s.run(ctx, claim.Name, s.scripts.acquire, acked, args, more...)
	if o.err != nil {
		return backend.Record{}, s.explain("acquiring", claim.Name, o)
	}
	if rec, ok := granted(claim, duration, o.told); ok {
		return s.acknowledged(rec, "granted", acked, o)
	}
	st, err := s.decode(claim.Name, o.reply)
	if err != nil {
		return backend.Record{}, err
	}
	verdict := text(o.reply[0])
	if verdict == verdictOK && st.err == nil {
		return s.acknowledged(st.rec, "granted", acked, o)
	}
	switch {
	case verdict == verdictExhausted:
		err = fmt.Errorf("%w: lease %q: with the floor %d, which a MinToken sets, its tokens would exceed the greatest there is, %d", backend.ErrInvalid, claim.Name, max(st.floor, claim.MinToken), uint64(backend.MaxToken))
	case claim.Over != "" && st.absent:
		err = &backend.HeldError{Record: backend.Record{Name: claim.Name}}
	case st.err != nil:
		err = st.err
	default:
		err = &backend.HeldError{Record: st.rec}
	}
	if o.times > 1 {
		err = &undecided{fmt.Sprintf("%v; but a request that was sent before, and not answered, may still be granted", err), errUnanswered}
	}
	return backend.Record{}, err
}

// Renew starts the duration of rec's tenure anew.
func (s *Store) Renew(ctx context.Context, rec backend.Record) (backend.Record, error) {
	if err := s.enter(ctx, rec.Name); err != nil {
		return backend.Record{}, err
	}
	token := strconv.FormatUint(rec.Token, 10)
	full := "0"
	if rec.Revision != token || rec.Seal != nil { // a caller's own record, which may not tell all
		full = "1"
	}
	o := s.run(ctx, rec.Name, s.scripts.renew, s.replicas, []any{rec.Holder, token, s.keep, full})
	if o.err != nil {
		return backend.Record{}, s.explain("renewing", rec.Name, o)
	}
	if now, ok := renewed(rec, o.told); ok {
		return s.acknowledged(now, "renewed", s.replicas, o)
	}
	st, err := s.decode(rec.Name, o.reply)
	switch {
	case err != nil:
		return backend.Record{}, err
	case text(o.reply[0]) != verdictOK:
		return backend.Record{}, st.lost(rec)
	case st.err != nil: // it is the record that cannot be read, and the tenure was renewed
		return backend.Record{}, fmt.Errorf("lease %q was renewed, but not told: %v", rec.Name, st.err)
	}
	return s.acknowledged(st.rec, "renewed", s.replicas, o)
}

// nobodyThere reports whether there was nobody to send it to.
func nobodyThere(o outcome) bool {
	return o.times == 0 && errors.Is(o.err, syscall.ECONNREFUSED)
}

// releaseRetry is for how long a release is tried that could not be sent.
const releaseRetry = 1500 * time.Millisecond

// Release ends rec's tenure. The last token stays for the retention, or, with a
// floor, the vacated record.
func (s *Store) Release(ctx context.Context, rec backend.Record) error {
	if err := s.enter(ctx, rec.Name); err != nil {
		return err
	}
	expired := "0"
	token := strconv.FormatUint(rec.Token, 10)
	if rec.Expired {
		if rec.Revision != token {
			return fmt.Errorf("%w: lease %q: the record of the expired tenure is of another revision", backend.ErrLost, rec.Name)
		}
		expired = "1"
	}
	args := []any{rec.Holder, token, expired, s.keep}
	o := s.run(ctx, rec.Name, s.scripts.release, 0, args)
	if nobodyThere(o) {
		// For a second after a server is back the client may repeat what it was refused with
		// before, and nobody else would release it.
		again, cancel := context.WithTimeout(ctx, min(releaseRetry, s.timeout))
		defer cancel()
		for nobodyThere(o) && wait.For(again, releaseRetry/8) {
			if next := s.run(again, rec.Name, s.scripts.release, 0, args); next.times > 0 || again.Err() == nil {
				o = next
			}
		}
	}
	if o.err != nil {
		return s.explain("releasing", rec.Name, o)
	}
	if o.told == "released" {
		return nil
	}
	st, err := s.decode(rec.Name, o.reply)
	if err != nil {
		return err
	}
	err = st.lost(rec)
	if o.times > 1 && !st.rec.SameTenure(rec) {
		return &undecided{fmt.Sprintf("%v; it is not known whether a request that was sent before, and not answered, has released it", err), errUnanswered}
	}
	return err
}

var errUnanswered = errors.New("a request was not answered")

// acknowledged returns the record if as many replicas have it as must.
func (s *Store) acknowledged(rec backend.Record, done string, acked int, o outcome) (backend.Record, error) {
	switch {
	case acked == 0:
		return rec, nil
	case o.unack != nil:
		return backend.Record{}, fmt.Errorf("lease %q was %s, but it is not known whether replicas have it: %w", rec.Name, done, o.unack)
	case o.acks < int64(acked):
		return backend.Record{}, fmt.Errorf("lease %q was %s, but %d of %d replicas had it after %v", rec.Name, done, o.acks, acked, s.replicasTimeout)
	}
	return rec, nil
}
