package redis

import (
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/leasehold/leasehold/backend"
)

// The places in what answer in state.lua makes.
const (
	atVerdict = iota
	atRevision
	atBad
	atBy
	atTenure
	atLasts
	atAttempt
	atAcquired
	atTransitions
	atMetadata
	atSeal
	atFloor
	atLive
	atLeft
	atSeconds
	atMicros
	replyLength
)

// held is the answer about a name that alice holds for 10 s, of which 4 s are over.
func heldReply() []any {
	return []any{"ok", "946684800000000", nil, "alice", "946684800000000", "10000", "a1", nil, nil, nil, nil, nil, int64(1), int64(5999), "946684804", "0"}
}

func reply(edit map[int]any) []any {
	r := heldReply()
	for i, v := range edit {
		r[i] = v
	}
	return r
}

var y2k = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

func heldRecord(edit func(r *backend.Record)) backend.Record {
	r := backend.Record{
		Name: "report", Holder: "alice", Token: 946684800000000, Attempt: "a1", Duration: 10 * time.Second,
		AcquiredAt: y2k, RenewedAt: y2k.Add(0), Remaining: 6 * time.Second, Revision: "946684800000000",
	}
	if edit != nil {
		edit(&r)
	}
	return r
}

// TestDecode: what a script answers, as a record.
func TestDecode(t *testing.T) {
	s := New(nil, "t:")
	for what, c := range map[string]struct {
		reply []any
		want  backend.Record
	}{
		"held": {heldReply(), heldRecord(nil)},
		"renewed": {reply(map[int]any{atLeft: int64(9999)}), heldRecord(func(r *backend.Record) {
			r.Remaining, r.RenewedAt = 10*time.Second, y2k.Add(4*time.Second)
		})},
		"its TTL lengthened": {reply(map[int]any{atLeft: int64(60_000)}), heldRecord(func(r *backend.Record) {
			r.Remaining, r.RenewedAt = 60*time.Second+time.Millisecond, y2k.Add(4*time.Second)
		})},
		"the last millisecond": {reply(map[int]any{atLeft: int64(0)}), heldRecord(func(r *backend.Record) {
			r.Remaining, r.RenewedAt = time.Millisecond, y2k.Add(-6*time.Second+time.Millisecond)
		})},
		"its TTL removed": {reply(map[int]any{atLeft: int64(-1)}), heldRecord(func(r *backend.Record) { r.Remaining = 0 })},
		"expired":         {reply(map[int]any{atLive: int64(0), atLeft: int64(-2)}), heldRecord(func(r *backend.Record) { r.Expired, r.Remaining = true, 0 })},
		"acquired later than its token says": {reply(map[int]any{atAcquired: "946684799500001"}), heldRecord(func(r *backend.Record) {
			r.AcquiredAt = time.UnixMicro(946684799500001).UTC()
		})},
		"another record's tenure": {reply(map[int]any{atAttempt: nil, atTransitions: "3"}), heldRecord(func(r *backend.Record) { r.Attempt, r.Transitions = "", 3 })},
		"metadata": {reply(map[int]any{atMetadata: `{"a":"b","":"c d"}`}), heldRecord(func(r *backend.Record) {
			r.Metadata = map[string]string{"a": "b", "": "c d"}
		})},
		"metadata edited":      {reply(map[int]any{atMetadata: `{"a":1}`}), heldRecord(nil)},
		"metadata of a person": {reply(map[int]any{atMetadata: `hello`}), heldRecord(nil)},
		"odd transitions":      {reply(map[int]any{atTransitions: "many"}), heldRecord(nil)},
		"odd acquired":         {reply(map[int]any{atAcquired: "yesterday"}), heldRecord(func(r *backend.Record) { r.AcquiredAt = time.UnixMicro(0).UTC() })},
		"numbers":              {reply(map[int]any{atLive: "1", atLeft: "5999", atTransitions: int64(2)}), heldRecord(func(r *backend.Record) { r.Transitions = 2 })},
		"the greatest token": {reply(map[int]any{atTenure: "9007199254740991", atRevision: "9007199254740991", atAcquired: "946684800000000"}), heldRecord(func(r *backend.Record) {
			r.Token, r.Revision = backend.MaxToken, "9007199254740991"
		})},
		"one less": {reply(map[int]any{atTenure: "9007199254740990", atRevision: "9007199254740990", atAcquired: "946684800000000"}), heldRecord(func(r *backend.Record) {
			r.Token, r.Revision = backend.MaxToken-1, "9007199254740990"
		})},
		"a seal": {reply(map[int]any{atLasts: "2147483647000", atSeal: `{"to":"etcd","epoch":18446744073709551615,"heir":"bob","heirDuration":"1.5s"}`, atLeft: int64(-1)}), heldRecord(func(r *backend.Record) {
			r.Duration, r.Remaining = backend.Forever, 0
			r.Seal = &backend.Seal{To: "etcd", Epoch: 1<<64 - 1, Heir: "bob", HeirDuration: 1500 * time.Millisecond}
		})},
		"a seal without its other key": {reply(map[int]any{atLasts: "2147483647000", atSeal: `{"to":"","epoch":0}`, atLive: int64(1), atLeft: int64(-2)}), heldRecord(func(r *backend.Record) {
			r.Duration, r.Remaining, r.Seal = backend.Forever, 0, &backend.Seal{}
		})},
		"a seal that somebody let end": {reply(map[int]any{atLasts: "10000", atSeal: `{"to":"x"}`}), heldRecord(func(r *backend.Record) {
			r.Duration, r.Remaining, r.Seal = backend.Forever, 0, &backend.Seal{To: "x"}
		})},
	} {
		st, err := s.decode("report", c.reply)
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		if !c.want.RenewedAt.Equal(st.rec.RenewedAt) && (strings.Contains(what, "seal") || c.want.AcquiredAt != y2k) {
			c.want.RenewedAt = st.rec.RenewedAt
		}
		if st.absent || st.err != nil || !reflect.DeepEqual(st.rec, c.want) {
			t.Errorf("%s is read as\n%+v, %v, %v, want\n%+v", what, st.rec, st.absent, st.err, c.want)
		}
		if !st.at.Equal(y2k.Add(4 * time.Second)) {
			t.Errorf("%s: at %v", what, st.at)
		}
	}
}

// TestDecodeNobody: nobody holds it.
func TestDecodeNobody(t *testing.T) {
	s := New(nil, "t:")
	nothing := map[int]any{atBy: nil, atTenure: nil, atLasts: nil, atAttempt: nil, atLive: int64(0), atLeft: int64(-2), atRevision: ""}
	st, err := s.decode("report", reply(nothing))
	if err != nil || !st.absent || st.err != nil || !reflect.DeepEqual(st.rec, backend.Record{Name: "report"}) {
		t.Errorf("absent: %+v, %v", st, err)
	}
	nothing[atFloor], nothing[atRevision], nothing[atTransitions] = "77", "vacant-80", "4"
	st, err = s.decode("report", reply(nothing))
	if err != nil || st.absent || st.err != nil || st.floor != 77 || !reflect.DeepEqual(st.rec, backend.Record{Name: "report", Revision: "vacant-80", Transitions: 4}) {
		t.Errorf("vacant: %+v, %v", st, err)
	}
}

// TestDecodeCorrupt: what cannot be read says where it lies and what replaces it, and
// nothing of it is told.
func TestDecodeCorrupt(t *testing.T) {
	s := New(nil, "t:")
	for what, edit := range map[string]map[int]any{
		"it is no hash":       {atBad: "it is no hash"},
		"it is of format 2":   {atBad: "it is of format 2, this program knows 1: use a newer Leasehold", atBy: nil},
		"seal cannot be read": {atSeal: `{"to":`},
		"cannot unmarshal":    {atSeal: `{"to":7}`},
	} {
		edit[atRevision] = "corrupt-hash-0123"
		st, err := s.decode("a{b", reply(edit))
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		var corrupt *backend.CorruptError
		if !errors.As(st.err, &corrupt) || corrupt.Name != "a{b" || corrupt.Revision != "corrupt-hash-0123" || corrupt.Where != `the Redis key "t:{a%7Bb}"` || !strings.Contains(st.err.Error(), what) {
			t.Errorf("%s is told as %v (%+v)", what, st.err, corrupt)
		}
		if !reflect.DeepEqual(st.rec, backend.Record{Name: "a{b", Revision: "corrupt-hash-0123"}) || st.absent {
			t.Errorf("%s: %+v", what, st)
		}
	}
}

// TestDecodeLength: what has another length is not an answer of the scripts.
func TestDecodeLength(t *testing.T) {
	s := New(nil, "t:")
	for _, r := range [][]any{nil, {}, {"ok"}, heldReply()[:replyLength-1], append(heldReply(), "x")} {
		st, err := s.decode("report", r)
		if unknown(t, fmt.Sprint(len(r), " values"), err); st != nil || !strings.Contains(fmt.Sprint(err), fmt.Sprint(len(r), " values")) {
			t.Errorf("%d values: %+v, %v", len(r), st, err)
		}
	}
	inBubble(t, func(t *testing.T, f *fake) {
		s := f.store()
		rec := acquired(t, s, claim("alice", "a1"))
		for _, odd := range []any{"hello", "", "-1", "0", int64(7), status("OK"), nil, []any{"ok"}, []any{}} {
			f.hooks(func(r request) any {
				if odd == nil {
					return []any{nil}
				}
				return odd
			}, nil)
			for what, call := range verbs(rec) {
				if err := call(t.Context(), s); err == nil || backend.Definite(err) {
					t.Errorf("%s is answered %#v: %v, want an unknown outcome", what, odd, err)
				}
			}
		}
	})
}

// TestRenewedUnreadable: a tenure whose record somebody has spoilt can be renewed by
// whoever asks for no more, and whoever does is not told that nothing was done.
func TestRenewedUnreadable(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fake) {
		s := f.store()
		rec := acquired(t, s, claim("alice", "a1"))
		f.spoil("report", "it is of format 2")
		if _, err := s.Renew(t.Context(), rec); err != nil {
			t.Error(err)
		}
		rec.Revision = "of another store"
		_, err := s.Renew(t.Context(), rec)
		unknown(t, "renewed and not told", err)
		rec.Token++
		_, err = s.Renew(t.Context(), rec)
		refused(t, "not renewed", err, backend.ErrCorrupt)
	})
}

// TestGranted: the short answers.
func TestGranted(t *testing.T) {
	c := claim("alice", "a1")
	c.Metadata = map[string]string{"a": "b"}
	rec, ok := granted(c, 1500*time.Millisecond, "946684800000000")
	want := backend.Record{
		Name: "report", Holder: "alice", Token: 946684800000000, Attempt: "a1", Duration: 1500 * time.Millisecond, AcquiredAt: y2k, RenewedAt: y2k,
		Remaining: 1500 * time.Millisecond, Metadata: map[string]string{"a": "b"}, Revision: "946684800000000",
	}
	if !ok || !reflect.DeepEqual(rec, want) {
		t.Errorf("granted:\n%+v, want\n%+v", rec, want)
	}
	if rec.Metadata["a"] = "c"; c.Metadata["a"] != "b" {
		t.Error("the record shares the claim's metadata")
	}
	c.Seal, c.Metadata = &backend.Seal{To: "x"}, nil
	rec, ok = granted(c, backend.Forever, "9007199254740991 946684800000000 12")
	if !ok || rec.Token != backend.MaxToken || rec.Revision != "9007199254740991" || !rec.AcquiredAt.Equal(y2k) || rec.Transitions != 12 || rec.Remaining != 0 || *rec.Seal != *c.Seal || rec.Metadata != nil {
		t.Errorf("a seal: %+v", rec)
	}
	if rec.Seal.To = "y"; c.Seal.To != "x" {
		t.Error("the record shares the claim's seal")
	}
	for _, told := range []string{"", " ", "x", "-1", "0", "granted 1", "renewed 1 2 3"} {
		if rec, ok := granted(c, time.Second, told); ok {
			t.Errorf("%q grants %+v", told, rec)
		}
	}
	was := heldRecord(func(r *backend.Record) { r.Expired, r.Remaining = true, 0 })
	now, ok := renewed(was, "renewed 20000 946684805 250000")
	if !ok || now.Duration != 20*time.Second || now.Remaining != 20*time.Second || now.Expired || !now.RenewedAt.Equal(y2k.Add(5250*time.Millisecond)) || !now.SameTenure(was) || !now.AcquiredAt.Equal(y2k) {
		t.Errorf("renewed: %+v, %v", now, ok)
	}
	for _, told := range []string{"", "renewed", "renewed x", "renewed 0 1 2", "renewed -5 1 2", "946684800000000", "Renewed 1 2 3"} {
		if rec, ok := renewed(was, told); ok {
			t.Errorf("%q renews %+v", told, rec)
		}
	}
}

// TestLost: it says why.
func TestLost(t *testing.T) {
	rec := heldRecord(nil)
	for words, st := range map[string]*state{
		"there is no record any more":       {rec: backend.Record{Name: "report"}, absent: true},
		"nobody holds it any more":          {rec: backend.Record{Name: "report", Revision: "vacant-1"}},
		`it is "bob" who holds it now`:      {rec: heldRecord(func(r *backend.Record) { r.Holder, r.Token = "bob", 7 })},
		"expired before it was renewed":     {rec: heldRecord(func(r *backend.Record) { r.Expired = true })},
		"was renewed since it was seen":     {rec: heldRecord(nil)},
		`"alice" who holds it now, with to`: {rec: heldRecord(func(r *backend.Record) { r.Token++ })},
	} {
		err := st.lost(rec)
		if refused(t, words, err, backend.ErrLost); !strings.Contains(err.Error(), words) {
			t.Errorf("%v, want %s", err, words)
		}
	}
	corrupt := &state{err: &backend.CorruptError{Name: "report"}}
	refused(t, "corrupt", corrupt.lost(rec), backend.ErrCorrupt)
}

// FuzzDecode: whatever comes, a record keeps the promises of package backend.
func FuzzDecode(f *testing.F) {
	join := func(r []any) string {
		var b strings.Builder
		for i, v := range r {
			if i > 0 {
				b.WriteByte('\x1f')
			}
			if b.WriteString(text(v)); v == nil {
				b.WriteByte(0)
			}
		}
		return b.String()
	}
	f.Add(join(heldReply()))
	for _, edit := range []map[int]any{
		{atLive: int64(0)}, {atBy: nil}, {atBy: nil, atFloor: "7"}, {atBad: "x"}, {atSeal: `{"to":"x","epoch":1,"heirDuration":"9s"}`},
		{atLeft: int64(-1)}, {atTenure: "9007199254740992"}, {atTenure: "18446744073709551616"}, {atTenure: "-1"}, {atLasts: "0"}, {atLasts: "31536000001"},
		{atLasts: "9223372036854775807"}, {atLeft: "9223372036854775807"}, {atLeft: "10000000000000"}, {atMetadata: `null`}, {atSeal: "null"}, {atSeconds: "-9223372036854775808"},
	} {
		f.Add(join(reply(edit)))
	}
	s := New(nil, "t:")
	f.Fuzz(func(t *testing.T, joined string) {
		var r []any
		for _, field := range strings.Split(joined, "\x1f") {
			if field == "\x00" {
				r = append(r, nil)
			} else if n, err := strconv.ParseInt(field, 10, 64); err == nil && n < 1000 {
				r = append(r, n)
			} else {
				r = append(r, field)
			}
		}
		st, err := s.decode("report", r)
		if (err == nil) != (len(r) == replyLength) || (st == nil) != (err != nil) {
			t.Fatalf("%d values: %v, %v", len(r), st, err)
		}
		if err != nil {
			unknown(t, "decode", err)
			return
		}
		rec := st.rec
		if rec.Name != "report" {
			t.Errorf("name %q", rec.Name)
		}
		switch {
		case st.err != nil:
			refused(t, "corrupt", st.err, backend.ErrCorrupt)
			if !reflect.DeepEqual(rec, backend.Record{Name: "report", Revision: rec.Revision}) || st.absent {
				t.Errorf("what cannot be read is told: %+v", st)
			}
		case st.absent || rec.Vacant():
			if rec.Holder != "" || rec.Expired || rec.Remaining != 0 || rec.Token != 0 {
				t.Errorf("nobody: %+v", rec)
			}
		default:
			if rec.Expired && (rec.Remaining != 0 || rec.Seal != nil) {
				t.Errorf("expired and not: %+v", rec)
			}
			if rec.Seal != nil && rec.Duration != backend.Forever {
				t.Errorf("a seal that ends: %+v", rec)
			}
			if rec.Remaining < 0 || rec.Transitions < 0 && r[atTransitions] == nil {
				t.Errorf("%+v", rec)
			}
		}
	})
}
