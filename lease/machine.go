package lease

import (
	"cmp"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/leasehold/leasehold/backend"
)

// This file is the lease as a pure function: rules.step takes the state, what
// happened and the instant, and returns the new state and what is to be done.
// It does no I/O, reads no clock and starts nothing. Lease drives it with a real
// store and a real clock; tests and simulations drive the same function with
// others.

// rules are what does not change in the life of a Lease.
type rules struct {
	name     string
	holder   string
	duration time.Duration // to ask for
	grace    time.Duration
	maxHold  time.Duration // 0: no limit
	metadata map[string]string
	visible  bool   // backend.Traits.RenewalsVisible
	prefix   string // of every Attempt of this Lease, and of nobody else's
	shared   bool   // other Leases may have the same holder
}

// state is all that a Lease knows.
type state struct {
	held     bool           // a tenure is under way and its context has not ended
	tenure   backend.Record // its record; after a local end, what may still lie in the store
	since    time.Duration  // when its grant was asked for
	deadline time.Duration  // when the store may let another in
	stop     time.Duration  // when the context ends
	failure  error          // of the last renewal, nil if it succeeded
	attempts uint64         // how many Attempts there have been
	seen     sighting
	op       operation
}

// sighting is another's record, and since when it has been seen unchanged.
type sighting struct {
	rec     backend.Record
	since   time.Duration
	longest time.Duration // duration that was published since then
}

// operation is what a caller, or the renewal service, asked for. There is one
// at a time; it consists of calls to the store, one after the other.
type operation struct {
	kind      opKind
	verb      verb          // the call in flight
	sent      time.Duration // when it was sent
	calls     int           // how many there were
	join      bool          // the renewal in flight joins the tenure of a Lease with the same holder
	tooLate   bool          // the release in flight gives back a grant that came too late
	unsettled bool          // an acquire of this operation may have been applied, or may still be
	unsure    bool          // a release of this operation may have been applied, or may still be
	err       error         // what to report if nothing better is found
}

type opKind int

const (
	opNone    opKind = iota
	opTake           // Acquire and Renew: extend the tenure, or begin one
	opExtend         // extend the tenure, never begin one
	opRelease        // free what is mine or has expired
	opSettle         // free what an unknown acquire may have left
)

type verb int

const (
	verbNone verb = iota
	verbGet
	verbAcquire
	verbRenew
	verbRelease
)

// event is something that happened.
type event struct {
	kind eventKind
	op   opKind         // evStart
	rec  backend.Record // evReply, evSeen
	err  error          // evReply; evEnd: the cause
}

type eventKind int

const (
	evStart  eventKind = iota // an operation is to begin; the one before is done
	evReply                   // the call in flight returned, or was given up
	evCancel                  // likewise given up, and the caller is not interested any more
	evSeen                    // a record was read or watched outside any operation
	evTick                    // nothing but time
	evEnd                     // the tenure is to end, for a reason of this Lease's own
)

// actions is what a step wants done, in this order.
type actions struct {
	ended  error         // end the context, with this cause
	began  bool          // make a new context
	wake   time.Duration // step again at this instant; 0: no need
	renew  bool          // extend at once: something contradicts the tenure
	call   call          // send this, and step with the reply
	done   bool          // the operation is done
	err    error         // ... and this is its result
	settle bool          // ... and opSettle should follow
	note   EventKind     // tell observers
	about  backend.Record
	noteOf error
	margin time.Duration // EventRenewed: what was left before
}

// call is one call of the store.
type call struct {
	verb    verb
	claim   backend.Claim  // verbAcquire
	rec     backend.Record // verbRenew, verbRelease
	timeout time.Duration
}

const (
	// maxCalls bounds an operation: each further call follows from a record that
	// changed under it, and when that happens over and over somebody else is at
	// work.
	maxCalls = 6
	// maxTimeout bounds one call where a quarter of the duration is very long.
	maxTimeout = 30 * time.Second
)

// deadlineOf is the instant until which a grant or renewal of d is certain to be
// good, counted from before it was asked for: less a hundredth for clocks that
// run at different rates, and 2 ms for their granularity.
func deadlineOf(sent, d time.Duration) time.Duration { return sent + d - d/100 - 2*time.Millisecond }

// stopOf is when the context ends of a tenure whose grant was asked for at since
// and that is good until deadline.
func (r *rules) stopOf(since, deadline time.Duration) time.Duration {
	stop := deadline - r.grace
	if r.maxHold > 0 {
		stop = min(stop, since+r.maxHold)
	}
	return stop
}

// patience is how long one call may take where no tenure is at stake.
func (r *rules) patience() time.Duration { return min(r.duration/4, maxTimeout) }

// observedOver is how long an observer must have seen a record of duration d
// unchanged: more by the same hundredth.
func observedOver(d time.Duration) time.Duration { return d + d/100 }

func (r *rules) step(s state, e event, now time.Duration) (state, actions) {
	var a actions
	// The stop counts before anything else that is only noticed after it.
	if s.held && now >= s.stop {
		s.end(&a, r.overdue(&s, now))
	}
	switch e.kind {
	case evStart:
		s.op = operation{kind: e.op}
		r.start(&s, &a, now)
	case evReply:
		r.reply(&s, &a, e, now)
	case evCancel:
		s.op.unsettled = s.op.unsettled || s.op.verb == verbAcquire
		r.finish(&s, &a, e.err)
	case evSeen:
		r.see(&s, &a, e.rec, now)
	case evEnd:
		if s.held {
			s.end(&a, e.err)
		}
	}
	if s.held {
		a.wake = s.stop
	}
	return s, a
}

func (r *rules) start(s *state, a *actions, now time.Duration) {
	switch {
	case s.op.kind == opTake && s.held, s.op.kind == opExtend && s.held:
		r.send(s, a, verbRenew, s.tenure, "", now)
	case s.op.kind == opTake:
		r.send(s, a, verbAcquire, backend.Record{}, "", now)
	case s.op.kind == opExtend:
		r.finish(s, a, ErrNotHeld)
	case s.op.kind == opRelease:
		if s.held {
			s.end(a, ErrReleased)
		}
		if s.tenure.Holder != "" {
			r.send(s, a, verbRelease, s.tenure, "", now)
		} else {
			r.send(s, a, verbGet, backend.Record{}, "", now)
		}
	case s.op.kind == opSettle && s.held:
		r.finish(s, a, nil) // what was left is the tenure by now, or gone
	case s.op.kind == opSettle:
		r.send(s, a, verbGet, backend.Record{}, "", now)
	}
}

// reply takes the answer to the call in flight. An error that is not definite
// leaves open whether a write was applied.
func (r *rules) reply(s *state, a *actions, e event, now time.Duration) {
	switch s.op.verb {
	case verbAcquire:
		r.acquireReply(s, a, e, now)
	case verbRenew:
		r.renewReply(s, a, e, now)
	case verbRelease:
		r.releaseReply(s, a, e, now)
	case verbGet:
		if errors.Is(e.err, backend.ErrNotFound) {
			e.rec, e.err = backend.Record{Name: r.name}, nil
		}
		switch {
		case e.err != nil:
			r.finish(s, a, cmp.Or(s.op.err, e.err))
		case s.op.kind == opTake:
			r.readBack(s, a, e.rec, now)
		default:
			r.freeIfAllowed(s, a, e.rec, now)
		}
	}
}

func (r *rules) acquireReply(s *state, a *actions, e event, now time.Duration) {
	var held *backend.HeldError
	switch {
	case e.err == nil && now >= r.stopOf(s.op.sent, deadlineOf(s.op.sent, e.rec.Duration)):
		// Granted, but the answer took as long as the tenure lasts.
		s.op.tooLate = true
		s.op.err = fmt.Errorf("the store took %v to grant %v: too late to be of use", now-s.op.sent, e.rec.Duration)
		if r.shared {
			r.finish(s, a, s.op.err) // another may have joined the tenure
			return
		}
		r.send(s, a, verbRelease, e.rec, "", now)
	case e.err == nil:
		s.op.unsettled = false
		r.begin(s, a, e.rec, now)
		r.finish(s, a, nil)
	case errors.As(e.err, &held):
		r.refused(s, a, held.Record, e.err, now)
	case backend.Definite(e.err):
		r.finish(s, a, e.err)
	default:
		s.op.unsettled, s.op.err = true, e.err
		r.send(s, a, verbGet, backend.Record{}, "", now)
	}
}

// refused decides whether rec, which stands in the way, may be claimed over.
func (r *rules) refused(s *state, a *actions, rec backend.Record, err error, now time.Duration) {
	s.sight(r, rec, now)
	switch {
	case rec.Seal != nil:
		r.finish(s, a, err)
	case s.op.calls >= maxCalls:
		if r.ownAttempt(rec) && s.op.err != nil {
			err = s.op.err // that it is ourselves who hold it explains nothing
		}
		r.finish(s, a, err)
	case r.ownAttempt(rec):
		// Left by an acquire whose answer never came, or by a tenure that ended
		// here. Its token must not be used again, so the tenure is not adopted.
		r.send(s, a, verbAcquire, backend.Record{}, rec.Revision, now)
	case rec.Holder == r.holder && rec.Token != 0: // of a Lease with the same holder, or of this one before
		s.op.join = true
		r.send(s, a, verbRenew, rec, "", now)
	case rec.Vacant(), rec.Expired:
		r.send(s, a, verbAcquire, backend.Record{}, "", now) // it was freed while we asked
	case s.seen.over(r, now):
		r.send(s, a, verbAcquire, backend.Record{}, rec.Revision, now)
	default:
		r.finish(s, a, err)
	}
}

// readBack looks at what an unknown acquire left. A record with our attempt is
// claimed anew, since nobody knows when the grant that it shows was made; any
// other stands in the way like one met by an acquire. Absence proves nothing,
// the write may land later.
func (r *rules) readBack(s *state, a *actions, rec backend.Record, now time.Duration) {
	if rec.Vacant() || rec.Expired {
		r.finish(s, a, s.op.err)
		return
	}
	r.refused(s, a, rec, &backend.HeldError{Record: rec}, now)
}

func (r *rules) renewReply(s *state, a *actions, e event, now time.Duration) {
	join := s.op.join
	s.op.join = false
	switch {
	case e.err == nil && join:
		if now >= r.stopOf(s.op.sent, deadlineOf(s.op.sent, e.rec.Duration)) {
			r.finish(s, a, fmt.Errorf("the store took %v to renew for %v: too late to be of use", now-s.op.sent, e.rec.Duration))
			return
		}
		r.begin(s, a, e.rec, now)
		r.finish(s, a, nil)
	case !s.held && !join:
		// The tenure ended here while the call was under way. Whatever the store
		// says, it stays ended: its loss has been told.
		r.finish(s, a, ErrNotHeld)
	case e.err == nil:
		a.margin = s.stop - now
		s.extend(r, e.rec, s.op.sent)
		r.finish(s, a, nil)
		a.note, a.about = EventRenewed, s.tenure
	case errors.Is(e.err, backend.ErrLost):
		if s.held {
			cause := ErrTaken // the store had promised it for longer
			if now >= s.deadline {
				cause = ErrExpired
			}
			s.lose(a, fmt.Errorf("%w: %w", cause, e.err))
		}
		if s.op.kind == opTake && s.op.calls < maxCalls {
			r.send(s, a, verbAcquire, backend.Record{}, "", now)
			return
		}
		r.finish(s, a, e.err)
	default:
		// A failed renewal is not a loss: the tenure goes on until its stop.
		r.finish(s, a, e.err)
		if s.held {
			// The last calls before the stop have hardly any time: that they got no answer
			// explains less than the refusal before them.
			if backend.Definite(e.err) || !backend.Definite(s.failure) {
				s.failure = e.err
			}
			a.note, a.about, a.noteOf = EventRenewFailed, s.tenure, e.err
		}
	}
}

func (r *rules) releaseReply(s *state, a *actions, e event, now time.Duration) {
	switch {
	case s.op.tooLate:
		r.finish(s, a, s.op.err)
	case e.err == nil:
		a.about = s.tenure
		s.tenure = backend.Record{}
		r.finish(s, a, nil)
	case errors.Is(e.err, backend.ErrLost), errors.Is(e.err, backend.ErrNotFound):
		s.tenure = backend.Record{}
		r.look(s, a, e.err, now)
	case backend.Definite(e.err):
		r.finish(s, a, e.err)
	default:
		s.op.unsure = true
		r.look(s, a, e.err, now)
	}
}

// look reads the record to see what a release that did not succeed has left.
func (r *rules) look(s *state, a *actions, err error, now time.Duration) {
	s.op.err = err
	if s.op.calls >= maxCalls {
		r.finish(s, a, err)
		return
	}
	r.send(s, a, verbGet, backend.Record{}, "", now)
}

// freeIfAllowed releases a record that is mine, or anyone's that has expired.
func (r *rules) freeIfAllowed(s *state, a *actions, rec backend.Record, now time.Duration) {
	if rec.Holder != r.holder {
		s.sight(r, rec, now)
	}
	switch {
	case rec.Vacant():
		s.tenure = backend.Record{}
		r.finish(s, a, nil)
	case rec.Seal != nil:
		r.finish(s, a, &backend.HeldError{Record: rec})
	case s.op.calls >= maxCalls:
		r.finish(s, a, cmp.Or[error](s.op.err, &backend.HeldError{Record: rec}))
	case s.op.kind == opSettle && !r.ownAttempt(rec):
		r.finish(s, a, nil)
	case rec.Holder == r.holder:
		r.send(s, a, verbRelease, rec, "", now)
	case rec.Expired, s.seen.over(r, now):
		rec.Expired = true // the store is to make sure that it has not changed since
		r.send(s, a, verbRelease, rec, "", now)
	case s.op.unsure:
		// What was mine is gone, and another has come since.
		s.tenure = backend.Record{}
		r.finish(s, a, nil)
	default:
		r.finish(s, a, &backend.HeldError{Record: rec})
	}
}

// see takes a record that arrived by itself.
func (r *rules) see(s *state, a *actions, rec backend.Record, now time.Duration) {
	switch {
	case !s.held:
		if rec.Holder != r.holder {
			s.sight(r, rec, now)
		}
	case rec.Token > s.tenure.Token && rec.Attempt != s.tenure.Attempt:
		cause := ErrTaken
		if rec.Seal != nil {
			cause = ErrMoved
		}
		s.lose(a, fmt.Errorf("%w: %w", cause, &backend.HeldError{Record: rec}))
		s.sight(r, rec, now)
	case rec.Token != s.tenure.Token, rec.Holder != s.tenure.Holder, rec.Expired:
		a.renew = true // the store decides
	}
}

// send puts the next call of the operation in flight. over is for verbAcquire.
func (r *rules) send(s *state, a *actions, v verb, rec backend.Record, over string, now time.Duration) {
	s.op.verb, s.op.sent = v, now
	s.op.calls++
	timeout := r.patience()
	if s.held {
		timeout = min(timeout, (s.stop-now)/2)
	}
	a.call = call{verb: v, rec: rec, timeout: timeout}
	if v == verbAcquire {
		s.attempts++
		a.call.claim = backend.Claim{
			Name: r.name, Holder: r.holder, Attempt: r.prefix + strconv.FormatUint(s.attempts, 36),
			Duration: r.duration, Metadata: r.metadata, Over: over,
		}
	}
}

// finish ends the operation.
func (r *rules) finish(s *state, a *actions, err error) {
	// What another with the same holder may have joined is not freed behind its back.
	a.done, a.err, a.settle = true, err, s.op.unsettled && s.op.kind == opTake && !r.shared
	switch {
	case s.op.kind == opTake && !s.held && errors.Is(err, backend.ErrHeld):
		a.note, a.noteOf, a.about = EventBlocked, err, s.seen.rec
	case s.op.kind == opTake && !s.held && err != nil:
		a.note, a.noteOf = EventAcquireFailed, err
	case s.op.kind == opRelease && err != nil:
		a.note, a.noteOf = EventReleaseFailed, err
	case s.op.kind == opRelease:
		a.note = EventReleased
	}
	s.op = operation{}
}

func (r *rules) begin(s *state, a *actions, rec backend.Record, now time.Duration) {
	s.held, s.since, s.seen, s.deadline = true, s.op.sent, sighting{}, 0
	s.extend(r, rec, s.op.sent)
	a.began, a.note, a.about = true, EventAcquired, s.tenure
}

// extend moves the deadline; it never moves back.
func (s *state) extend(r *rules, rec backend.Record, sent time.Duration) {
	s.tenure, s.failure = rec, nil
	s.deadline = max(s.deadline, deadlineOf(sent, rec.Duration))
	s.stop = r.stopOf(s.since, s.deadline)
}

// overdue is the cause of an end at the stop.
func (r *rules) overdue(s *state, now time.Duration) error {
	switch {
	case r.maxHold > 0 && now >= s.since+r.maxHold && s.stop == s.since+r.maxHold:
		return ErrMaxHold
	case s.failure != nil:
		return fmt.Errorf("%w: the last renewal failed: %w", ErrExpired, s.failure)
	}
	return ErrExpired
}

// end ends the tenure here; its record may still lie in the store.
func (s *state) end(a *actions, cause error) { s.held, a.ended = false, cause }

// lose ends the tenure because the store has, or another's.
func (s *state) lose(a *actions, cause error) {
	s.end(a, cause)
	s.tenure = backend.Record{}
}

// ownAttempt reports whether rec was granted to an acquire of this Lease value,
// and to nobody else. A Lease that shares its holder cannot know: another may
// have joined the tenure since.
func (r *rules) ownAttempt(rec backend.Record) bool {
	return !r.shared && rec.Holder == r.holder && strings.HasPrefix(rec.Attempt, r.prefix)
}

// sight remembers another's record. Only a change of holder, token or renewal
// time starts the count anew: an edited label is not a renewal.
func (s *state) sight(r *rules, rec backend.Record, now time.Duration) {
	old := s.seen.rec
	switch {
	case rec.Vacant():
		s.seen = sighting{}
	case old.Holder == rec.Holder && old.Token == rec.Token && old.RenewedAt.Equal(rec.RenewedAt) &&
		(old.Revision == rec.Revision || !rec.RenewedAt.IsZero()):
		// An edit must not shorten what the holder counts on.
		s.seen.rec, s.seen.longest = rec, max(s.seen.longest, rec.Duration)
	default:
		s.seen = sighting{rec: rec, since: now, longest: rec.Duration}
	}
}

// over reports whether the record seen has been unchanged for so long that its
// holder cannot believe in it any more.
func (g sighting) over(r *rules, now time.Duration) bool {
	at, ok := g.overAt(r)
	return ok && now >= at
}

// overAt is when over turns true, if the record does not change. ok is false
// where time proves nothing: renewals do not show, or the record is a seal.
func (g sighting) overAt(r *rules) (at time.Duration, ok bool) {
	if g.rec.Vacant() || g.rec.Seal != nil || g.rec.Duration == backend.Forever || !r.visible {
		return 0, false
	}
	d := g.longest
	if d <= 0 {
		d = r.duration // a foreign client that publishes none
	}
	return g.since + observedOver(d), true
}

// expired reports whether rec is over: by the store, by what this Lease has
// seen, or because it was its own and the deadline is past.
func (r *rules) expired(s *state, rec backend.Record, now time.Duration) bool {
	switch {
	case rec.Vacant() || rec.Seal != nil:
		return false
	case rec.Expired:
		return true
	case rec.Holder == r.holder:
		return rec.SameTenure(s.tenure) && now >= s.deadline
	}
	return s.seen.rec.Holder == rec.Holder && s.seen.over(r, now)
}
