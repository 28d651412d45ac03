package lease

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/leasehold/leasehold/backend"
)

// A script drives the machine by hand: each step is what happens next and what
// must come of it.
type script struct {
	t   *testing.T
	r   rules
	s   state
	now time.Duration
}

func newScript(t *testing.T) *script {
	return &script{
		t:   t,
		r:   rules{name: "x", holder: "me", duration: 10 * time.Second, grace: time.Second, visible: true, prefix: "me-"},
		now: time.Hour,
	}
}

func (c *script) step(e event) actions {
	var a actions
	c.s, a = c.r.step(c.s, e, c.now)
	return a
}

func (c *script) start(op opKind, want verb) call {
	c.t.Helper()
	return c.call(c.step(event{kind: evStart, op: op}), want)
}

func (c *script) reply(rec backend.Record, err error) actions {
	return c.step(event{kind: evReply, rec: rec, err: err})
}

// call checks which call a step asks for.
func (c *script) call(a actions, want verb) call {
	c.t.Helper()
	if a.done || a.call.verb != want {
		c.t.Fatalf("the step asks for call %v (done: %v, %v), want %v", a.call.verb, a.done, a.err, want)
	}
	return a.call
}

// done checks how an operation ended.
func (c *script) done(a actions, want error) {
	c.t.Helper()
	if !a.done || !errors.Is(a.err, want) || (want == nil) != (a.err == nil) {
		c.t.Fatalf("the operation is done: %v with %v, want true with %v", a.done, a.err, want)
	}
}

func (c *script) ended(a actions, want error) {
	c.t.Helper()
	if (want == nil) != (a.ended == nil) || !errors.Is(a.ended, want) {
		c.t.Fatalf("the tenure ended with %v, want %v", a.ended, want)
	}
}

// grant is the record a store would grant to the claim.
func grant(c call, token uint64) backend.Record {
	return backend.Record{Name: "x", Holder: c.claim.Holder, Token: token, Attempt: c.claim.Attempt, Duration: c.claim.Duration, Revision: "1"}
}

// acquire begins a tenure that was asked for now.
func (c *script) acquire(token uint64) backend.Record {
	c.t.Helper()
	rec := grant(c.start(opTake, verbAcquire), token)
	a := c.reply(rec, nil)
	c.done(a, nil)
	if !a.began {
		c.t.Fatal("no tenure began")
	}
	return rec
}

var (
	errUnknown = errors.New("connection reset")
	other      = backend.Record{Name: "x", Holder: "other", Token: 50, Attempt: "o-1", Duration: 10 * time.Second, Revision: "9", RenewedAt: time.Unix(1, 0)}
)

func heldBy(rec backend.Record) error { return &backend.HeldError{Record: rec} }

func TestDeadlineCountsFromBeforeTheSend(t *testing.T) {
	c := newScript(t)
	sent := c.now
	call := c.start(opTake, verbAcquire)
	c.now += 3 * time.Second // the answer is slow
	c.done(c.reply(grant(call, 1), nil), nil)
	if want := sent + 9898*time.Millisecond; c.s.deadline != want || c.s.stop != want-time.Second {
		t.Errorf("deadline %v and stop %v after the send, want 9.898s and 8.898s", c.s.deadline-sent, c.s.stop-sent)
	}
	call = c.start(opExtend, verbRenew)
	sent = c.now
	c.now += 2 * time.Second
	c.done(c.reply(c.s.tenure, nil), nil)
	if want := sent + 9898*time.Millisecond; c.s.deadline != want {
		t.Errorf("renewed deadline %v after the send, want 9.898s", c.s.deadline-sent)
	}
	_ = call
}

func TestTimeouts(t *testing.T) {
	c := newScript(t)
	if got := c.start(opTake, verbAcquire).timeout; got != 2500*time.Millisecond {
		t.Errorf("an acquire may take %v, want a quarter of the duration", got)
	}
	c = newScript(t)
	c.acquire(1)
	c.now = c.s.stop - 2*time.Second
	if got := c.start(opExtend, verbRenew).timeout; got != time.Second {
		t.Errorf("a renewal with 2s left may take %v, want half of it", got)
	}
	c = newScript(t)
	c.r.duration = 24 * time.Hour
	if got := c.start(opTake, verbAcquire).timeout; got != maxTimeout {
		t.Errorf("an acquire for a day may take %v, want %v", got, maxTimeout)
	}
}

func TestStopEndsTheTenureWhateverHappensNext(t *testing.T) {
	for _, kind := range []eventKind{evTick, evSeen, evReply} {
		c := newScript(t)
		rec := c.acquire(1)
		if kind == evReply {
			c.start(opExtend, verbRenew)
		}
		c.now = c.s.stop - 1
		if kind == evTick {
			if a := c.step(event{kind: evTick}); a.ended != nil || a.wake != c.s.stop {
				t.Errorf("a tick before the stop: ended %v, wake %v", a.ended, a.wake)
			}
		}
		c.now = c.s.stop
		a := c.step(event{kind: kind, rec: rec})
		c.ended(a, ErrExpired)
		if a.note == EventRenewed || c.s.held {
			t.Errorf("an answer that comes after the stop revives the tenure")
		}
		c.ended(c.step(event{kind: evTick}), nil) // told once
	}
}

func TestCauseOfTheEnd(t *testing.T) {
	c := newScript(t)
	c.acquire(1)
	c.start(opExtend, verbRenew)
	a := c.reply(backend.Record{}, &backend.CorruptError{Name: "x", Where: "/x", Err: errUnknown})
	c.ended(a, nil)
	c.now = c.s.stop
	a = c.step(event{kind: evTick})
	c.ended(a, ErrExpired)
	c.ended(a, backend.ErrCorrupt)

	c = newScript(t)
	c.r.maxHold = 15 * time.Second
	c.acquire(1)
	c.now += 8 * time.Second
	c.start(opExtend, verbRenew)
	c.done(c.reply(c.s.tenure, nil), nil)
	c.now += 7*time.Second - 1
	c.ended(c.step(event{kind: evTick}), nil)
	c.now++
	c.ended(c.step(event{kind: evTick}), ErrMaxHold)

	c = newScript(t)
	c.acquire(1)
	c.start(opExtend, verbRenew)
	a = c.reply(backend.Record{}, backend.ErrLost) // before the store may end it
	c.ended(a, ErrTaken)
	c.ended(a, backend.ErrLost)
	c.done(a, backend.ErrLost)
}

func TestFailedRenewalIsNotALoss(t *testing.T) {
	for _, err := range []error{errUnknown, backend.ErrDenied, backend.ErrInvalid, backend.ErrCorrupt} {
		c := newScript(t)
		c.acquire(1)
		before := c.s.deadline
		c.now += time.Second
		c.start(opExtend, verbRenew)
		a := c.reply(backend.Record{}, err)
		c.done(a, err)
		if a.ended != nil || a.note != EventRenewFailed || !c.s.held || c.s.deadline != before {
			t.Errorf("%v: ended %v, told %q, deadline moved by %v", err, a.ended, a.note, c.s.deadline-before)
		}
	}
}

func TestUnknownAcquireIsClaimedAnewNeverAdopted(t *testing.T) {
	c := newScript(t)
	first := c.start(opTake, verbAcquire)
	c.call(c.reply(backend.Record{}, errUnknown), verbGet)
	c.now += time.Second
	again := c.call(c.reply(grant(first, 7), nil), verbAcquire)
	if again.claim.Over != "1" || again.claim.Attempt == first.claim.Attempt {
		t.Errorf("claimed over %q with attempt %q after %q", again.claim.Over, again.claim.Attempt, first.claim.Attempt)
	}
	sent := c.now
	c.now += time.Second
	a := c.reply(grant(again, 8), nil)
	c.done(a, nil)
	if a.settle || c.s.tenure.Token != 8 || c.s.deadline != sent+9898*time.Millisecond {
		t.Errorf("settle %v, token %d, deadline %v after the second send", a.settle, c.s.tenure.Token, c.s.deadline-sent)
	}
}

func TestUnknownAcquireOfWhichNothingIsSeen(t *testing.T) {
	for name, found := range map[string]func(*script, call) actions{
		"absent":      func(c *script, _ call) actions { return c.reply(backend.Record{}, backend.ErrNotFound) },
		"unreachable": func(c *script, _ call) actions { return c.reply(backend.Record{}, errUnknown) },
	} {
		c := newScript(t)
		first := c.start(opTake, verbAcquire)
		c.call(c.reply(backend.Record{}, errUnknown), verbGet)
		a := found(c, first)
		c.done(a, errUnknown)
		if !a.settle {
			t.Errorf("%s: the write may land later, but nothing is settled", name)
		}
		c.start(opSettle, verbGet)
		rec := grant(first, 3)
		if free := c.call(c.reply(rec, nil), verbRelease); !free.rec.SameTenure(rec) {
			t.Errorf("%s: settling frees %+v", name, free.rec)
		}
		c.done(c.reply(backend.Record{}, nil), nil)
	}
}

func TestSettlingNeverFreesTheTenureNorAnothers(t *testing.T) {
	c := newScript(t)
	c.acquire(1)
	a := c.step(event{kind: evStart, op: opSettle})
	c.done(a, nil)
	c = newScript(t)
	c.start(opSettle, verbGet)
	expired := other
	expired.Expired = true
	c.done(c.reply(expired, nil), nil)
}

func TestCancelledAcquireIsSettled(t *testing.T) {
	c := newScript(t)
	c.start(opTake, verbAcquire)
	a := c.step(event{kind: evCancel, err: errUnknown})
	c.done(a, errUnknown)
	if !a.settle {
		t.Error("an acquire whose caller left is not settled")
	}
	c.acquire(1)
	c.start(opTake, verbRenew)
	if a := c.step(event{kind: evCancel, err: errUnknown}); a.settle || a.ended != nil {
		t.Errorf("a renewal whose caller left: settle %v, ended %v", a.settle, a.ended)
	}
}

func TestGrantThatComesTooLateIsGivenBack(t *testing.T) {
	c := newScript(t)
	call := c.start(opTake, verbAcquire)
	c.now += 9 * time.Second
	free := c.call(c.reply(grant(call, 5), nil), verbRelease)
	if free.rec.Token != 5 || c.s.held {
		t.Errorf("released %+v, held %v", free.rec, c.s.held)
	}
	if a := c.reply(backend.Record{}, nil); !a.done || a.err == nil {
		t.Errorf("done %v with %v, want an error", a.done, a.err)
	}
}

func TestTakeoverByObservation(t *testing.T) {
	c := newScript(t)
	c.start(opTake, verbAcquire)
	c.done(c.reply(backend.Record{}, heldBy(other)), backend.ErrHeld)
	seen := c.now

	c.now = seen + 10*time.Second // the duration, without the hundredth
	c.start(opTake, verbAcquire)
	c.done(c.reply(backend.Record{}, heldBy(other)), backend.ErrHeld)

	c.now = seen + 10100*time.Millisecond
	edited := other
	edited.Revision, edited.Metadata = "10", map[string]string{"edited": "by a person"}
	c.start(opTake, verbAcquire)
	over := c.call(c.reply(backend.Record{}, heldBy(edited)), verbAcquire)
	if over.claim.Over != "10" {
		t.Errorf("claimed over %q, want the newest revision", over.claim.Over)
	}
	c.done(c.reply(grant(over, 60), nil), nil)

	for what, change := range map[string]func(*script, *backend.Record){
		"it was renewed":           func(_ *script, r *backend.Record) { r.RenewedAt = time.Unix(2, 0) },
		"it has a new token":       func(_ *script, r *backend.Record) { r.Token++ },
		"it has another holder":    func(_ *script, r *backend.Record) { r.Holder = "third" },
		"it is a seal":             func(_ *script, r *backend.Record) { r.Seal = &backend.Seal{} },
		"it lasts for ever":        func(_ *script, r *backend.Record) { r.Duration = backend.Forever },
		"renewals are not visible": func(c *script, _ *backend.Record) { c.r.visible = false },
	} {
		c := newScript(t)
		c.start(opTake, verbAcquire)
		c.done(c.reply(backend.Record{}, heldBy(other)), backend.ErrHeld)
		c.now += 11 * time.Second
		now := other
		change(c, &now)
		c.start(opTake, verbAcquire)
		if a := c.reply(backend.Record{}, heldBy(now)); !a.done {
			t.Errorf("%s, and yet it is claimed over", what)
		}
	}
}

// The holder counts on the duration it was granted, whatever an edit says.
func TestEditDoesNotShortenTheWait(t *testing.T) {
	c := newScript(t)
	c.step(event{kind: evSeen, rec: other})
	c.now += 2 * time.Second
	edited := other
	edited.Duration, edited.Revision = time.Second, "10"
	c.start(opTake, verbAcquire)
	c.done(c.reply(backend.Record{}, heldBy(edited)), backend.ErrHeld)
	// A store that stamps no renewals shows them by the revision alone.
	c = newScript(t)
	unstamped := other
	unstamped.RenewedAt = time.Time{}
	c.step(event{kind: evSeen, rec: unstamped})
	c.now += 11 * time.Second
	unstamped.Revision = "10"
	c.start(opTake, verbAcquire)
	c.done(c.reply(backend.Record{}, heldBy(unstamped)), backend.ErrHeld)
}

func TestGrantAfterTheLongestHoldIsGivenBack(t *testing.T) {
	c := newScript(t)
	c.r.maxHold = time.Second
	call := c.start(opTake, verbAcquire)
	c.now += 2 * time.Second
	c.call(c.reply(grant(call, 5), nil), verbRelease)
}

func TestSharedHolderLeavesUnknownAcquiresAlone(t *testing.T) {
	c := newScript(t)
	c.r.shared = true
	first := c.start(opTake, verbAcquire)
	c.call(c.reply(backend.Record{}, errUnknown), verbGet)
	join := c.call(c.reply(grant(first, 7), nil), verbRenew) // another may have joined it
	c.done(c.reply(join.rec, nil), nil)
	c.step(event{kind: evEnd, err: ErrReleased})

	c = newScript(t)
	c.r.shared = true
	call := c.start(opTake, verbAcquire)
	c.now += 9 * time.Second
	if a := c.reply(grant(call, 5), nil); !a.done || a.err == nil || a.settle {
		t.Errorf("a grant that came too late: done %v with %v, settle %v", a.done, a.err, a.settle)
	}
}

func TestForeignRecordWithoutDurationIsWaitedForOwnDuration(t *testing.T) {
	c := newScript(t)
	rec := other
	rec.Duration = 0
	c.step(event{kind: evSeen, rec: rec})
	c.now += 10 * time.Second
	if c.s.seen.over(&c.r, c.now) {
		t.Error("over before the observer's own duration and a hundredth")
	}
	c.now += 100 * time.Millisecond
	if !c.s.seen.over(&c.r, c.now) {
		t.Error("not over after the observer's own duration and a hundredth")
	}
}

func TestSharedHolderJoinsTheTenure(t *testing.T) {
	c := newScript(t)
	sibling := backend.Record{Name: "x", Holder: "me", Token: 4, Attempt: "sibling-1", Duration: 10 * time.Second, Revision: "4"}
	c.start(opTake, verbAcquire)
	join := c.call(c.reply(backend.Record{}, heldBy(sibling)), verbRenew)
	if join.rec.Token != 4 {
		t.Errorf("renews token %d", join.rec.Token)
	}
	a := c.reply(sibling, nil)
	c.done(a, nil)
	if !a.began || c.s.tenure.Token != 4 {
		t.Errorf("began %v with token %d", a.began, c.s.tenure.Token)
	}
}

func TestOwnEndedTenureIsNotRevived(t *testing.T) {
	c := newScript(t)
	rec := c.acquire(1)
	c.now = c.s.stop
	c.ended(c.step(event{kind: evTick}), ErrExpired)
	c.start(opTake, verbAcquire)
	over := c.call(c.reply(backend.Record{}, heldBy(rec)), verbAcquire)
	if over.claim.Over != rec.Revision {
		t.Errorf("claimed over %q", over.claim.Over)
	}
	c.done(c.reply(grant(over, 2), nil), nil)
}

func TestRenewTakesAFreeLeaseAnewAndTellsTheLossFirst(t *testing.T) {
	c := newScript(t)
	c.acquire(1)
	c.start(opTake, verbRenew)
	a := c.reply(backend.Record{}, backend.ErrLost)
	c.ended(a, ErrTaken)
	again := c.call(a, verbAcquire)
	a = c.reply(grant(again, 2), nil)
	c.done(a, nil)
	if !a.began || c.s.tenure.Token != 2 {
		t.Errorf("began %v with token %d", a.began, c.s.tenure.Token)
	}
}

func TestSeen(t *testing.T) {
	c := newScript(t)
	mine := c.acquire(10)
	moved := other
	moved.Seal = &backend.Seal{To: "elsewhere"}
	older := other
	older.Token = 9
	foreign := other
	foreign.Token, foreign.Attempt = 0, ""
	expired := mine
	expired.Expired = true
	edited := mine
	edited.Revision = "77"
	upper := mine
	upper.Token = 12 // a store that knows only an upper bound yet, of the same attempt
	for _, tt := range []struct {
		what  string
		rec   backend.Record
		ended error
		renew bool
	}{
		{"its own record", mine, nil, false},
		{"its own record, edited", edited, nil, false},
		{"a greater token and another attempt", other, ErrTaken, false},
		{"a seal", moved, ErrMoved, false},
		{"nothing", backend.Record{Name: "x"}, nil, true},
		{"an older tenure", older, nil, true},
		{"a foreign holder without token", foreign, nil, true},
		{"its own record, expired", expired, nil, true},
		{"its own attempt with a greater token", upper, nil, true},
	} {
		c := *c
		a := c.step(event{kind: evSeen, rec: tt.rec})
		if (a.ended == nil) != (tt.ended == nil) || !errors.Is(a.ended, tt.ended) || a.renew != tt.renew {
			t.Errorf("%s: ended %v, renew %v; want %v, %v", tt.what, a.ended, a.renew, tt.ended, tt.renew)
		}
	}
}

func TestRelease(t *testing.T) {
	expired, sealed, sibling := other, other, other
	expired.Expired = true
	sealed.Seal = &backend.Seal{To: "b"}
	sibling.Holder = "me"
	type answer struct {
		rec backend.Record
		err error
	}
	none := answer{err: backend.ErrNotFound}
	for _, tt := range []struct {
		what    string
		mine    bool
		answers []answer // to the calls, in order
		calls   []verb
		want    error
	}{
		{"mine", true, []answer{{}}, []verb{verbRelease}, nil},
		{"mine, but lost to another", true, []answer{{err: backend.ErrLost}, {rec: other}}, []verb{verbRelease, verbGet}, backend.ErrHeld},
		{"mine, and gone", true, []answer{{err: backend.ErrLost}, none}, []verb{verbRelease, verbGet}, nil},
		{"mine, the reply lost", true, []answer{{err: errUnknown}, none}, []verb{verbRelease, verbGet}, nil},
		{"mine, the reply lost, another came", true, []answer{{err: errUnknown}, {rec: other}}, []verb{verbRelease, verbGet}, nil},
		{"mine, the request lost", true, []answer{{err: errUnknown}, {rec: sibling}, {}}, []verb{verbRelease, verbGet, verbRelease}, nil},
		{"mine, the store gone", true, []answer{{err: errUnknown}, {err: errUnknown}}, []verb{verbRelease, verbGet}, errUnknown},
		{"mine, denied", true, []answer{{err: backend.ErrDenied}}, []verb{verbRelease}, backend.ErrDenied},
		{"none", false, []answer{none}, []verb{verbGet}, nil},
		{"a Lease's with the same holder", false, []answer{{rec: sibling}, {}}, []verb{verbGet, verbRelease}, nil},
		{"another's, expired", false, []answer{{rec: expired}, {}}, []verb{verbGet, verbRelease}, nil},
		{"another's, expired, and renewed meanwhile", false, []answer{{rec: expired}, {err: backend.ErrLost}, {rec: other}}, []verb{verbGet, verbRelease, verbGet}, backend.ErrHeld},
		{"another's", false, []answer{{rec: other}}, []verb{verbGet}, backend.ErrHeld},
		{"a seal", false, []answer{{rec: sealed}}, []verb{verbGet}, backend.ErrHeld},
		{"a corrupt one", false, []answer{{err: backend.ErrCorrupt}}, []verb{verbGet}, backend.ErrCorrupt},
	} {
		c := newScript(t)
		if tt.mine {
			c.acquire(1)
		}
		a := c.step(event{kind: evStart, op: opRelease})
		if tt.mine {
			c.ended(a, ErrReleased) // before the store is told
		}
		for i, v := range tt.calls {
			c.call(a, v)
			if v == verbRelease && tt.answers[i].err == nil && strings.HasPrefix(tt.what, "another's") && !a.call.rec.Expired {
				t.Errorf("%s: released without the condition that it has not changed", tt.what)
			}
			a = c.reply(tt.answers[i].rec, tt.answers[i].err)
		}
		if !a.done || !errors.Is(a.err, tt.want) || (a.err == nil) != (tt.want == nil) {
			t.Errorf("%s: done %v with %v, want %v", tt.what, a.done, a.err, tt.want)
		}
	}
}

func TestReleaseOfWhatWasSeenUnchanged(t *testing.T) {
	c := newScript(t)
	c.step(event{kind: evSeen, rec: other})
	c.now += 10100 * time.Millisecond
	c.start(opRelease, verbGet)
	free := c.call(c.reply(other, nil), verbRelease)
	if !free.rec.Expired || free.rec.Revision != other.Revision {
		t.Errorf("released without the condition that it has not changed: %+v", free.rec)
	}
}

func TestOperationsEnd(t *testing.T) {
	// A store that contradicts itself for ever must not keep a caller for ever.
	for _, op := range []opKind{opTake, opRelease} {
		c := newScript(t)
		a := c.step(event{kind: evStart, op: op})
		vacant, mine := backend.Record{Name: "x"}, other
		mine.Holder = "me"
		for i := range 100 {
			if a.done {
				break
			}
			switch a.call.verb {
			case verbAcquire:
				a = c.reply(backend.Record{}, heldBy(vacant))
			case verbGet:
				a = c.reply(mine, nil)
			default:
				a = c.reply(backend.Record{}, backend.ErrLost)
			}
			if i == 99 {
				t.Errorf("operation %v goes on and on", op)
			}
		}
	}
}

func BenchmarkMachineRenew(b *testing.B) {
	r := rules{name: "x", holder: "me", duration: 10 * time.Second, grace: time.Second, visible: true, prefix: "me-"}
	now := time.Hour
	s, a := r.step(state{}, event{kind: evStart, op: opTake}, now)
	rec := grant(a.call, 1)
	s, _ = r.step(s, event{kind: evReply, rec: rec}, now)
	b.ReportAllocs()
	for b.Loop() {
		now += time.Millisecond
		s, _ = r.step(s, event{kind: evStart, op: opExtend}, now)
		s, _ = r.step(s, event{kind: evReply, rec: rec}, now)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/2, "ns/step")
}
