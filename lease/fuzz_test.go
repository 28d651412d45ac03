package lease

import (
	"testing"
	"time"

	"github.com/leasehold/leasehold/backend"
)

func FuzzHolderParts(f *testing.F) {
	for _, h := range []string{"", "a@b/1/c", "@//", "a@b/-1/c", string(NewHolder())} {
		f.Add(h)
	}
	f.Fuzz(func(t *testing.T, text string) {
		_, _, pid, instance, ok := Holder(text).Parts()
		if ok && (pid <= 0 || instance == "") {
			t.Errorf("%q has pid %d and instance %q", text, pid, instance)
		}
	})
}

// FuzzMachine feeds the machine a store that answers anything, and checks what
// must hold whatever the store says.
func FuzzMachine(f *testing.F) {
	f.Add([]byte("\x00\x01\x02\x03\x04\x05\x06\x07"))
	f.Add([]byte("acquire, renew, release, again and again"))
	f.Fuzz(func(t *testing.T, script []byte) {
		r := rules{name: "x", holder: "me", duration: time.Second, grace: 50 * time.Millisecond, visible: true, prefix: "me-"}
		var (
			s      state
			now    = time.Hour
			flight call // none: verbNone
			told   = true
		)
		next := func() (b byte) {
			if len(script) > 0 {
				b, script = script[0], script[1:]
			}
			return b
		}
		record := func() backend.Record {
			b := next()
			rec := backend.Record{Name: "x", Token: uint64(b & 7), Revision: string('a' + rune(b&3)), Duration: time.Duration(b&12) * 200 * time.Millisecond}
			rec.Holder = []string{"", "me", "other", "third"}[b>>4&3]
			rec.Attempt = []string{"", "me-1", "me-2", "o-1"}[next()&3]
			rec.Expired = rec.Holder != "" && b&64 != 0
			if b&128 != 0 && rec.Holder != "" {
				rec.Seal = &backend.Seal{To: "b"}
			}
			return rec
		}
		for len(script) > 0 {
			b := next()
			now += time.Duration(b>>4) * 40 * time.Millisecond
			var e event
			switch b & 7 {
			case 0, 1:
				if flight.verb != verbNone {
					continue
				}
				e = event{kind: evStart, op: opTake + opKind(b>>3&3)}
			case 2, 3, 4:
				if flight.verb == verbNone {
					continue
				}
				e = event{kind: evReply, rec: record()}
				switch next() & 7 {
				case 0:
					e.err = &backend.HeldError{Record: e.rec}
				case 1:
					e.err = backend.ErrLost
				case 2:
					e.err = errUnknown
				case 3:
					e.err = backend.ErrNotFound
				case 4:
					if flight.verb == verbAcquire { // as a right store would
						e.rec = grant(flight, uint64(next())+8)
					}
				}
				if e.err == nil && e.rec.Holder == "" && flight.verb != verbRelease && flight.verb != verbGet {
					e.err = backend.ErrInvalid // nobody grants a tenure to nobody
				}
			case 5:
				e = event{kind: evSeen, rec: record()}
			case 6:
				e = event{kind: evTick}
			default:
				if flight.verb == verbNone {
					continue
				}
				e = event{kind: evCancel, err: errUnknown}
			}
			was, sent, answered := s, s.op.sent, flight
			var a actions
			s, a = r.step(s, e, now)
			switch {
			case was.held && now >= was.stop && a.ended == nil:
				t.Fatalf("nothing ended at %v, past the stop %v", now, was.stop)
			case a.ended != nil && (!was.held || !told):
				t.Fatal("an end is told that is none, or for the second time")
			case a.began && (e.kind != evReply || e.err != nil || answered.verb != verbAcquire && answered.verb != verbRenew):
				t.Fatalf("a tenure began by event %v after call %v", e.kind, answered.verb)
			case a.began && was.held && a.ended == nil:
				t.Fatal("a tenure began while another was under way")
			case a.began && s.deadline > sent+e.rec.Duration:
				t.Fatalf("deadline %v, though the store is bound for %v after %v only", s.deadline, e.rec.Duration, sent)
			case s.held && s.stop > s.deadline-r.grace:
				t.Fatalf("stop %v and deadline %v", s.stop, s.deadline)
			case s.held && !was.held && !a.began:
				t.Fatal("held without a beginning")
			case a.done == (a.call.verb != verbNone) && (e.kind == evStart || e.kind == evReply || e.kind == evCancel):
				t.Fatalf("an operation is done: %v, and asks for call %v", a.done, a.call.verb)
			case a.call.verb != verbNone && a.call.timeout > r.duration/4:
				t.Fatalf("a call may take %v", a.call.timeout)
			}
			if e.kind == evStart || e.kind == evReply || e.kind == evCancel {
				flight = a.call
			}
			told = s.held
		}
	})
}
