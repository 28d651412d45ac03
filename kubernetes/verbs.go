package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/internal/boottime"
	"github.com/leasehold/leasehold/internal/wait"
)

// mostWrites is how many compare-and-swaps a call tries. Each but the first
// follows a definite refusal, after which somebody else has got on, and a fresh
// look. It is many because those who share a tenure may all renew it at once.
const mostWrites = 50

// askAgain is after which time something is tried again that the role did not allow.
const askAgain = 5 * time.Minute

// yieldTo lets others finish after the nth refused write.
func yieldTo(ctx context.Context, n int) {
	if n > 1 {
		wait.For(ctx, rand.N(min(time.Duration(n)*time.Millisecond, 20*time.Millisecond)))
	}
}

// Get returns the record of name: one GET, answered by a quorum.
func (s *Store) Get(ctx context.Context, name string) (backend.Record, error) {
	if err := s.enter(ctx, name); err != nil {
		return backend.Record{}, err
	}
	o, err := s.look(ctx, name)
	switch {
	case err != nil:
		return backend.Record{}, err
	case o == nil:
		return backend.Record{}, fmt.Errorf("%w: %q", backend.ErrNotFound, name)
	case o.corrupt != nil:
		return backend.Record{}, o.corrupt
	}
	return o.copy(), nil
}

// copy returns the record, sharing nothing with the object.
func (o *object) copy() backend.Record {
	r := o.record
	r.Metadata = maps.Clone(r.Metadata)
	if r.Seal != nil {
		seal := *r.Seal
		r.Seal = &seal
	}
	return r
}

// look reads the object of name; nil if there is none.
func (s *Store) look(ctx context.Context, name string) (*object, error) {
	object := objectName(name)
	l, date, err := s.api.get(ctx, object)
	if absent(err) && resourceOf(err) == "leases" {
		return nil, nil
	}
	if err != nil {
		return nil, s.explain("get", object, err)
	}
	o, err := s.view(l, date)
	if err != nil {
		return nil, err
	}
	if o.name != name && o.corrupt == nil { // cannot be, but for a collision of hashes
		o.corrupt = &backend.CorruptError{Name: name, Where: l.Namespace + "/" + l.Name, Revision: o.record.Revision, Err: fmt.Errorf("it is the record of lease %q", o.name)}
	}
	return o, nil
}

// Acquire grants the claim or refuses it. Where nothing is known of the name it
// creates the object, and where the object is known it replaces it: one request.
// Only if the server refuses that does it look.
func (s *Store) Acquire(ctx context.Context, claim backend.Claim) (backend.Record, error) {
	duration, err := backend.CheckClaim(claim, s.Traits())
	if err != nil {
		return backend.Record{}, err
	}
	if err := s.enter(ctx, claim.Name); err != nil {
		return backend.Record{}, err
	}
	name := objectName(claim.Name)
	known := s.recall(name)
	o := known.obj
	// A look can be spared where nothing is known to be in the way.
	guess := !known.doubtful && (o == nil && claim.Over == "" || o != nil && (o.record.Vacant() || claim.Over == o.record.Revision))
	if !guess {
		if o, err = s.look(ctx, claim.Name); err != nil {
			return backend.Record{}, err
		}
	}
	for writes := 0; ; guess = false {
		again, err := decide(o, claim)
		if err != nil && !guess {
			return backend.Record{}, err
		}
		var found *object // by the write that was refused
		if err == nil {
			writes++
			rec, refused, err := s.grant(ctx, claim, duration, o, again)
			if err != nil || refused == nil {
				return rec, err
			}
			found = refused.found
		}
		before := o
		if o = found; o == nil {
			yieldTo(ctx, writes)
			s.distrust(name)
			if o, err = s.look(ctx, claim.Name); err != nil {
				return backend.Record{}, err
			}
		}
		if err := stuck(claim.Name, before, o, writes); err != nil {
			return backend.Record{}, err
		}
	}
}

// refusal is a write that the server has refused, because it has another object
// by now.
type refusal struct {
	found *object // if the server was asked already
}

// stuck is why another compare-and-swap is not to be tried: it was refused although
// nothing has changed, or too often.
func stuck(name string, before, now *object, writes int) error {
	switch {
	case writes == 0:
	case before != nil && now != nil && before.UID == now.UID && before.version == now.version:
		return fmt.Errorf("lease %q: the API server calls a write a conflict, but nobody else has changed the object", name)
	case writes == mostWrites:
		return fmt.Errorf("lease %q was changed by others %d times in between; try again", name, writes)
	}
	return nil
}

// decide returns why the claim cannot replace o, nil if it can. again is true if
// o is the tenure that this very attempt was granted: a resent claim.
func decide(o *object, c backend.Claim) (again bool, err error) {
	switch {
	case o == nil && c.Over != "":
		return false, &backend.HeldError{Record: backend.Record{Name: c.Name}}
	case o == nil:
		return false, nil
	case o.corrupt != nil && (c.Over == "" || c.Over != o.record.Revision):
		return false, o.corrupt
	case o.corrupt == nil && !o.record.Expired && o.record.Token != 0 && c.Attempt != "" && c.Attempt == o.record.Attempt && c.Holder == o.record.Holder:
		return true, nil
	case c.Over == "" && o.record.Live(), c.Over != "" && c.Over != o.record.Revision:
		return false, &backend.HeldError{Record: o.copy()}
	case o.DeletionTimestamp != nil:
		// It may vanish at any time, and then be created by another under our feet.
		return false, fmt.Errorf("lease %q: the object is being deleted, and waits for its finalizers: %v; try again when it is gone", c.Name, o.Finalizers)
	case o.Spec.Strategy != nil:
		return false, fmt.Errorf("%w: lease %q: spec.strategy of the object is %q: the API server chooses its holder (coordinated leader election); use another name", backend.ErrUnsupported, c.Name, *o.Spec.Strategy)
	}
	return false, nil
}

// grant writes the claim, in place of o if that is not nil.
func (s *Store) grant(ctx context.Context, claim backend.Claim, duration time.Duration, o *object, again bool) (backend.Record, *refusal, error) {
	if again {
		return s.extend(ctx, o, o.record.Token)
	}
	body, err := s.granted(claim, duration, o, time.Now())
	if err != nil {
		return backend.Record{}, nil, err
	}
	if o != nil {
		return s.update(ctx, body, 0)
	}
	sent := boottime.Now()
	l, date, err := s.api.create(ctx, body)
	if s.createNamespace && absent(err) && resourceOf(err) == "namespaces" {
		if err := s.api.createNamespace(ctx); err != nil {
			return backend.Record{}, nil, explainNamespace(s.namespace, err)
		}
		sent = boottime.Now()
		l, date, err = s.api.create(ctx, body)
	}
	switch {
	case taken(err):
		return backend.Record{}, &refusal{}, nil
	case statusOf(err) == http.StatusForbidden:
		// The role may be for objects that somebody else creates.
		denied := s.explain("create", body.Name, err)
		found, err := s.look(ctx, claim.Name)
		switch {
		case err != nil && !backend.Definite(err):
			return backend.Record{}, nil, err
		case err != nil || found == nil:
			return backend.Record{}, nil, denied
		}
		return backend.Record{}, &refusal{found}, nil
	case err != nil:
		return backend.Record{}, nil, s.explain("create", body.Name, err)
	}
	rec, err := s.wrote(body, l, date, sent, 0)
	if err == nil && rec.Token > backend.MaxToken {
		// Only now the token is known. Nobody was told of this tenure.
		s.forget(l.Name)
		if err := s.api.delete(ctx, l.Name, l.UID, l.ResourceVersion); err != nil {
			return backend.Record{}, nil, fmt.Errorf("lease %q was granted the token %d, which is too great, and could not be freed again: %w", claim.Name, rec.Token, err)
		}
		return backend.Record{}, nil, tooGreat(claim.Name, rec.Token, claim.MinToken)
	}
	return rec, nil, err
}

// update replaces an object. token is that of the tenure, 0 if it begins one or
// ends one.
func (s *Store) update(ctx context.Context, body *coordinationv1.Lease, token uint64) (backend.Record, *refusal, error) {
	sent := boottime.Now()
	l, date, err := s.api.update(ctx, body)
	if stale(err) || absent(err) {
		return backend.Record{}, &refusal{}, nil
	}
	if err != nil {
		return backend.Record{}, nil, s.explain("update", body.Name, err)
	}
	rec, err := s.wrote(body, l, date, sent, token)
	return rec, nil, err
}

// wrote takes in what the server made of a write that was sent at an instant. An
// error is no refusal: something has been written.
func (s *Store) wrote(body, l *coordinationv1.Lease, date time.Time, sent time.Duration, token uint64) (backend.Record, error) {
	o, err := parse(l)
	if err == nil && !o.made(body) {
		err = errors.New("something on the way to the API server, or an admission webhook, has changed it")
	}
	if err != nil {
		s.distrust(body.Name)
		return backend.Record{}, fmt.Errorf("lease object %s/%s: the answer is not what was written: %v", s.namespace, body.Name, err) // %v: not the class of err
	}
	if token != 0 {
		o.record.Token = token
	}
	o.known = true
	_, o.record.Remaining = s.judge(o, date)
	s.remember(last{obj: o, token: o.record.Token, sent: sent})
	return o.copy(), nil
}

// Renew starts the duration of rec's tenure anew: one PUT where this client wrote
// the object last.
func (s *Store) Renew(ctx context.Context, rec backend.Record) (backend.Record, error) {
	if err := s.enter(ctx, rec.Name); err != nil {
		return backend.Record{}, err
	}
	known := s.recall(objectName(rec.Name))
	o := known.obj
	if o != nil && (known.doubtful || o.record.Seal != nil || !o.of(rec) || s.nearEnd(ctx, known)) {
		o = nil
	}
	var before *object
	for writes := 0; ; writes++ {
		if o == nil {
			var err error
			if o, err = s.tenure(ctx, rec); err != nil {
				return backend.Record{}, err
			}
			if s.ended(o) {
				return backend.Record{}, fmt.Errorf("%w: lease %q: the tenure of %q expired before it was renewed", backend.ErrLost, rec.Name, rec.Holder)
			}
		}
		if o.record.Seal != nil { // it lasts for ever as it is
			return o.copy(), nil
		}
		if err := stuck(rec.Name, before, o, writes); err != nil {
			return backend.Record{}, err
		}
		renewal, refused, err := s.extend(ctx, o, rec.Token)
		if err != nil || refused == nil {
			return renewal, err
		}
		s.distrust(o.Name)
		yieldTo(ctx, writes+1)
		before, o = o, nil
	}
}

// extend renews the tenure of o.
func (s *Store) extend(ctx context.Context, o *object, token uint64) (backend.Record, *refusal, error) {
	return s.update(ctx, renewed(o, token, time.Now()), token)
}

// nearEnd reports whether a renewal that is sent now might find the record
// expired by the server's clock: then it is to be looked up first.
func (s *Store) nearEnd(ctx context.Context, l last) bool {
	over := s.overAfter(l.obj.record)
	if over == 0 {
		return false
	}
	budget := s.api.timeout
	if deadline, ok := ctx.Deadline(); ok {
		budget = min(budget, time.Until(deadline))
	}
	return boottime.Now()-l.sent+budget >= over-resolution
}

// ended reports whether a tenure that was just looked up is not to be renewed any
// more: it has expired, or could have by the time that the write arrives.
func (s *Store) ended(o *object) bool {
	return o.record.Expired || o.record.Remaining > 0 && o.record.Remaining <= resolution
}

// tenure looks up the object, and returns it if it is in rec's tenure.
func (s *Store) tenure(ctx context.Context, rec backend.Record) (*object, error) {
	o, err := s.look(ctx, rec.Name)
	switch {
	case err != nil:
		return nil, err
	case o == nil:
		err = fmt.Errorf("%w: lease %q: there is no record any more", backend.ErrLost, rec.Name)
	case o.corrupt != nil:
		return nil, o.corrupt
	case o.record.Vacant():
		err = fmt.Errorf("%w: lease %q: nobody holds it any more", backend.ErrLost, rec.Name)
	case o.of(rec):
		return o, nil
	case o.record.Token == 0 && rec.Token == 0 && rec.Expired && rec.Holder == o.record.Holder && rec.Revision == o.record.Revision:
		return o, nil // another program's, and it has expired: Release asks for no token then
	case o.record.Token == 0:
		err = fmt.Errorf("%w: lease %q: it is %q who holds it now, of another program, without a token", backend.ErrLost, rec.Name, o.record.Holder)
	default:
		err = fmt.Errorf("%w: lease %q: it is %q who holds it now, with token %d", backend.ErrLost, rec.Name, o.record.Holder, o.record.Token)
	}
	// Not what this store holds there by another tenure.
	if known := s.recall(objectName(rec.Name)); known.obj != nil && (o == nil || !known.obj.sameTenure(o)) {
		s.forget(objectName(rec.Name))
	}
	return nil, err
}

// Release ends rec's tenure: one DELETE, or one PUT where the object stays, if
// this client wrote the object last.
func (s *Store) Release(ctx context.Context, rec backend.Record) error {
	if err := s.enter(ctx, rec.Name); err != nil {
		return err
	}
	known := s.recall(objectName(rec.Name))
	o := known.obj
	if o != nil && (known.doubtful || !o.of(rec) || rec.Expired) {
		o = nil
	}
	var before *object
	for writes := 0; ; writes++ {
		if o == nil {
			var err error
			if o, err = s.tenure(ctx, rec); err != nil {
				return err
			}
			if rec.Expired && rec.Revision != o.record.Revision {
				return fmt.Errorf("%w: lease %q: the tenure of %q was renewed since it was seen expired", backend.ErrLost, rec.Name, rec.Holder)
			}
		}
		if err := stuck(rec.Name, before, o, writes); err != nil {
			return err
		}
		refused, err := s.end(ctx, o)
		if err != nil || refused == nil {
			return err
		}
		s.distrust(o.Name)
		yieldTo(ctx, writes+1)
		before, o = o, nil
	}
}

// end deletes the object if it may, and vacates it otherwise.
func (s *Store) end(ctx context.Context, o *object) (*refusal, error) {
	if !s.keep && !s.mayNotDelete() && o.owned() && o.floor == 0 && len(o.Finalizers) == 0 {
		err := s.api.delete(ctx, o.Name, o.UID, o.ResourceVersion)
		switch {
		case stale(err) || absent(err):
			return &refusal{}, nil
		case err == nil:
			s.forget(o.Name)
			return nil, nil
		case statusOf(err) != http.StatusForbidden:
			return nil, s.explain("delete", o.Name, err)
		case lacksVerb(err, "delete"):
			s.noDelete.Store(int64(boottime.Now() + askAgain)) // until then it is one request again
		}
	}
	_, refused, err := s.update(ctx, vacated(o, time.Now()), 0)
	return refused, err
}

// mayNotDelete reports whether the role was found not to allow it, of late.
func (s *Store) mayNotDelete() bool { return int64(boottime.Now()) < s.noDelete.Load() }

// List yields the records whose names have the prefix: all objects of the
// namespace are read, in pages of one snapshot.
func (s *Store) List(ctx context.Context, prefix string) iter.Seq2[backend.Record, error] {
	return func(yield func(backend.Record, error) bool) {
		for next := ""; ; {
			if err := s.usable(ctx); err != nil {
				yield(backend.Record{}, err)
				return
			}
			page, date, err := s.api.list(ctx, "", next)
			if err != nil {
				yield(backend.Record{}, s.explain("list", "", err))
				return
			}
			for i := range page.Items {
				o, err := s.view(&page.Items[i], date)
				switch {
				case err != nil:
					yield(backend.Record{}, err)
					return
				case !strings.HasPrefix(o.name, prefix):
					continue
				case o.corrupt != nil:
					if !yield(backend.Record{Name: o.name}, o.corrupt) {
						return
					}
				case !yield(o.copy(), nil):
					return
				}
			}
			if next = page.Continue; next == "" {
				return
			}
		}
	}
}

func explainNamespace(namespace string, err error) error {
	if statusOf(err) == http.StatusForbidden {
		return fmt.Errorf("%w: create namespace %s: grant the verb \"create\" on the resource \"namespaces\", or create it by hand: %w", backend.ErrDenied, namespace, err)
	}
	return fmt.Errorf("namespace %s does not exist and could not be created: %w", namespace, err)
}
