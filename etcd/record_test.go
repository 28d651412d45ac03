package etcd

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/leasehold/leasehold/backend"
)

// oddText is what JSON and terminals stumble over.
const oddText = "a\"b\\c<d>&e\nf\u2028g\u202eh日本\u0085\t{}"

func TestEncode(t *testing.T) {
	at := time.Date(2026, 11, 22, 1, 2, 3, 456789, time.UTC)
	for name, want := range map[string]record{
		"plain":   {tenure: tenure{Version: 1, Holder: "alice", Attempt: "a1", Duration: text(10 * time.Second)}, Lease: 0x7fffffffffffffff, AcquiredAt: at},
		"odd":     {tenure: tenure{Version: 1, Holder: oddText, Attempt: oddText, Duration: text(backend.MaxDuration), Floor: backend.MaxToken}, Lease: 1, AcquiredAt: at, Transitions: 1 << 60, Metadata: map[string]string{oddText: oddText, "empty": ""}},
		"a seal":  {tenure: tenure{Version: 1, Holder: "mover", Duration: text(backend.Forever), Seal: &seal{To: oddText, Epoch: 1<<64 - 1, Heir: "alice", HeirDuration: text(1500 * time.Millisecond)}}, AcquiredAt: at},
		"reserve": {tenure: tenure{Version: 1, Holder: "mover", Duration: text(backend.Forever), Seal: &seal{}}},
		"vacant":  {tenure: tenure{Version: 1, Floor: 77}, Transitions: 3},
	} {
		value, err := encode(want)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(value, "\n") || strings.Contains(value, `\u003c`) {
			t.Errorf("%s is not for people: %s", name, value)
		}
		got, err := decodeRecord([]byte(value))
		if err != nil || !reflect.DeepEqual(*got, want) {
			t.Errorf("%s: %s is read as\n%+v, want\n%+v, %v", name, value, got, want, err)
		}
		if value, err = encode(want.tenure); err != nil {
			t.Fatal(err)
		}
		alive, err := decodeTenure([]byte(value))
		if want.Holder == "" {
			if err == nil {
				t.Errorf("%s: an alive key without a holder is read as %+v", name, alive)
			}
		} else if err != nil || !reflect.DeepEqual(*alive, want.tenure) {
			t.Errorf("%s: %s is read as\n%+v, want\n%+v, %v", name, value, alive, want.tenure, err)
		}
	}
}

// TestFormat fixes what is written: other versions read it, and people do.
func TestFormat(t *testing.T) {
	r := record{
		tenure:      tenure{Version: 1, Holder: "alice", Attempt: "a1", Duration: text(90 * time.Second), Floor: 7},
		Lease:       0xab,
		AcquiredAt:  time.Date(2026, 11, 22, 1, 2, 3, 0, time.UTC),
		Transitions: 2,
		Metadata:    map[string]string{"pod": "x"},
	}
	const want = `{"version":1,"holder":"alice","attempt":"a1","duration":"1m30s","floor":7,"lease":"ab","acquiredAt":"2026-11-22T01:02:03Z","transitions":2,"metadata":{"pod":"x"}}`
	if got, err := encode(r); err != nil || got != want {
		t.Errorf("a record is written as\n%s, want\n%s, %v", got, want, err)
	}
	const sealed = `{"version":1,"holder":"m","duration":"forever","seal":{"to":"redis","epoch":3,"heir":"alice","heirDuration":"10s"}}`
	got, err := encode(tenure{Version: 1, Holder: "m", Duration: text(backend.Forever), Seal: &seal{To: "redis", Epoch: 3, Heir: "alice", HeirDuration: text(10 * time.Second)}})
	if err != nil || got != sealed {
		t.Errorf("a seal is written as\n%s, want\n%s, %v", got, sealed, err)
	}
}

// unreadable are values that are no record.
var unreadable = map[string]string{
	"empty":               ``,
	"no JSON":             `alice`,
	"cut off":             `{"version":1,"holder":"alice"`,
	"two":                 `{"version":1,"holder":"a","duration":"1s"}{}`,
	"no object":           `[1]`,
	"null":                `null`,
	"no version":          `{"holder":"alice","duration":"10s"}`,
	"version 0":           `{"version":0,"holder":"alice","duration":"10s"}`,
	"newer":               `{"version":2,"holder":"alice","duration":"10s"}`,
	"newer, other types":  `{"version":2,"holder":{"name":"alice"},"duration":10}`,
	"no duration":         `{"version":1,"holder":"alice"}`,
	"negative":            `{"version":1,"holder":"alice","duration":"-1s"}`,
	"too long":            `{"version":1,"holder":"alice","duration":"9000h"}`,
	"duration is odd":     `{"version":1,"holder":"alice","duration":"soon"}`,
	"duration is numeric": `{"version":1,"holder":"alice","duration":10}`,
	"forever, no seal":    `{"version":1,"holder":"alice","duration":"forever"}`,
	"seal that ends":      `{"version":1,"holder":"alice","duration":"10s","seal":{"to":"x","epoch":1}}`,
	"floor too great":     `{"version":1,"holder":"alice","duration":"10s","floor":9007199254740992}`,
	"floor negative":      `{"version":1,"holder":"alice","duration":"10s","floor":-1}`,
	"vacant, too great":   `{"version":1,"holder":"","floor":9007199254740992}`,
}

func TestUnreadable(t *testing.T) {
	for name, value := range unreadable {
		if r, err := decodeRecord([]byte(value)); err == nil {
			t.Errorf("a record, %s: %s is read as %+v", name, value, r)
		}
		if r, err := decodeTenure([]byte(value)); err == nil {
			t.Errorf("an alive key, %s: %s is read as %+v", name, value, r)
		}
	}
	for _, value := range []string{
		`{"version":1,"holder":"alice","duration":"10s","transitions":-1}`,
		`{"version":1,"holder":"alice","duration":"10s","lease":"-1"}`,
		`{"version":1,"holder":"alice","duration":"10s","lease":"xyz"}`,
		`{"version":1,"holder":"alice","duration":"10s","acquiredAt":"now"}`,
		`{"version":1,"holder":"alice","duration":"10s","metadata":["a"]}`,
	} {
		if r, err := decodeRecord([]byte(value)); err == nil {
			t.Errorf("a record: %s is read as %+v", value, r)
		}
	}
	// What is not known is left alone.
	if r, err := decodeRecord([]byte(`{"version":1,"holder":"alice","duration":"10s","colour":"red"}`)); err != nil || r.Holder != "alice" {
		t.Errorf("a field that is not known: %+v, %v", r, err)
	}
}

func TestRevision(t *testing.T) {
	for _, want := range []revision{
		{mod: 1}, {mod: 7, lease: 0xab}, {mod: 1<<63 - 1, lease: 1<<63 - 1, floor: backend.MaxToken}, {bare: true, mod: 3, lease: 1}, {bare: true, mod: 3, floor: 9},
	} {
		got, ok := parseRevision(want.String())
		if !ok || got != want {
			t.Errorf("%q is read as %+v, %v", want, got, ok)
		}
	}
	if s := (revision{}).String(); s != "" {
		t.Errorf("the revision of nothing is %q", s)
	}
	for _, s := range []string{
		"", "7", "7-ab", "7-ab-0-0", "0-ab-0", "-7-ab-0", "07-ab-0", "7-AB-0", "7-0ab-0", "+7-ab-0", "7-ab-", "7--0", "7-ab-9007199254740992",
		"7-8000000000000000-0", "alive-", "alive-0-ab-0", "alive-alive-7-ab-0", "Alive-7-ab-0", " 7-ab-0", "7-ab-00", "12345", "uid/12345",
	} {
		if r, ok := parseRevision(s); ok {
			t.Errorf("%q is read as %+v", s, r)
		}
	}
}

func FuzzRevision(f *testing.F) {
	for _, s := range []string{"7-ab-0", "alive-7-ab-9", "", "0-0-0", "alive-7--1-0"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, ok := parseRevision(s)
		if ok && r.String() != s {
			t.Errorf("%q is read as %+v, which is %q", s, r, r)
		}
		if !ok && r != (revision{}) {
			t.Errorf("%q is not read, but %+v", s, r)
		}
	})
}

// pair makes the state of two values; "-" is no key. The record was written at
// revision 7, the alive key at 5, bound to the etcd lease ab unless it is a seal's.
func pair(record, alive string) *state {
	var kvs []*mvccpb.KeyValue
	if record != "-" {
		kvs = append(kvs, &mvccpb.KeyValue{Key: []byte(key), Value: []byte(record), ModRevision: 7})
	}
	if alive != "-" {
		kv := &mvccpb.KeyValue{Key: []byte(key + "\x00"), Value: []byte(alive), ModRevision: 5, Lease: 0xab}
		if strings.Contains(alive, `"seal"`) {
			kv.Lease = 0
		}
		kvs = append(kvs, kv)
	}
	return newState("report", key, 9, kvs)
}

// TestView is what each combination of both keys means.
func TestView(t *testing.T) {
	const (
		none    = "-"
		good    = `{"version":1,"holder":"alice","attempt":"a1","duration":"10s","lease":"ab","transitions":2}`
		floored = `{"version":1,"holder":"alice","attempt":"a1","duration":"10s","floor":100,"lease":"ab","transitions":2}`
		bob     = `{"version":1,"holder":"bob","attempt":"b1","duration":"20s","lease":"cd"}`
		again   = `{"version":1,"holder":"alice","attempt":"a2","duration":"20s","lease":"cd"}`
		vacant  = `{"version":1,"holder":"","floor":50,"transitions":4}`
		sealed  = `{"version":1,"holder":"mover","duration":"forever","seal":{"to":"redis","epoch":1}}`
		corrupt = `{"version":1,"holder":"alice"`
		newer   = `{"version":2,"holder":"alice","duration":"10s"}`

		t1      = `{"version":1,"holder":"alice","attempt":"a1","duration":"10s"}`
		tFloor  = `{"version":1,"holder":"alice","attempt":"a1","duration":"10s","floor":100}`
		tSeal   = `{"version":1,"holder":"mover","duration":"forever","seal":{"to":"redis","epoch":1}}`
		tVacant = `{"version":1,"holder":""}`
	)
	for _, test := range []struct {
		record, alive string
		want          string // holder token revision, and what else there is to say
	}{
		{none, none, "vacant 0 \"\""},
		{good, none, "alice 7 7-ab-0 expired 10s"},
		{floored, none, "alice 107 7-ab-100 expired 10s"},
		{vacant, none, "vacant 0 7-0-50"},
		{sealed, none, "mover 7 7-0-0 sealed forever"},
		{corrupt, none, "corrupt record 7-0-0"},
		{newer, none, "corrupt record 7-0-0"},

		{good, t1, "alice 5 7-ab-0 10s"},
		{floored, tFloor, "alice 105 7-ab-100 10s"},
		// Each keeps a floor of its own, and the one of the tenure is in its token.
		{good, tFloor, "alice 105 7-ab-100 10s"},
		{floored, t1, "alice 5 7-ab-0 10s"},
		// Others are kept out, and it is nobody's to renew.
		{none, t1, "alice 0 alive-5-ab-0 10s"},
		{none, tFloor, "alice 0 alive-5-ab-100 10s"},
		{vacant, t1, "alice 0 7-0-50 10s"},
		{bob, t1, "alice 0 7-cd-0 10s"},
		{again, t1, "alice 0 7-cd-0 10s"},
		{sealed, t1, "mover 7 7-0-0 sealed forever"},
		{corrupt, t1, "corrupt record 7-0-0"},
		{newer, t1, "corrupt record 7-0-0"},

		{none, tSeal, "mover 5 alive-5-0-0 sealed forever"},
		{vacant, tSeal, "mover 5 7-0-50 sealed forever"},
		{good, tSeal, "mover 5 7-ab-0 sealed forever"},
		{corrupt, tSeal, "corrupt record 7-0-0"},

		{none, corrupt, "corrupt alive alive-5-ab-0"},
		{none, tVacant, "corrupt alive alive-5-ab-0"},
		{none, newer, "corrupt alive alive-5-ab-0"},
		{good, corrupt, "corrupt alive 7-ab-0"},
		{vacant, corrupt, "corrupt alive 7-0-50"},
		{sealed, tSeal, "mover 5 7-0-0 sealed forever"},
		{sealed, corrupt, "corrupt alive 7-0-0"},
		{corrupt, corrupt, "corrupt record 7-0-0"},
	} {
		rec, err := pair(test.record, test.alive).view()
		var got string
		var bad *backend.CorruptError
		switch {
		case errors.As(err, &bad):
			where := "record"
			if strings.Contains(bad.Where, `\x00`) {
				where = "alive"
			}
			got = fmt.Sprintf("corrupt %s %s", where, bad.Revision)
			if rec.Holder != "" || rec.Token != 0 || bad.Name != "report" || !strings.Contains(bad.Where, key) {
				t.Errorf("%s with %s: %+v, %+v", test.record, test.alive, rec, bad)
			}
		case err != nil:
			t.Fatal(err)
		case rec.Vacant():
			got = fmt.Sprintf("vacant %d %s", rec.Token, rec.Revision)
			if rec.Revision == "" {
				got += `""`
			}
		default:
			got = fmt.Sprintf("%s %d %s", rec.Holder, rec.Token, rec.Revision)
			if rec.Expired {
				got += " expired"
			}
			if rec.Seal != nil {
				got += " sealed"
			}
			if rec.Duration == backend.Forever {
				got += " forever"
			} else {
				got += " " + rec.Duration.String()
			}
		}
		if got != test.want {
			t.Errorf("record %s\nalive  %s\nis  %s\nnot %s", test.record, test.alive, got, test.want)
		}
	}
}

// TestViewShares: what a caller does with a record changes no other.
func TestViewShares(t *testing.T) {
	st := pair(`{"version":1,"holder":"m","duration":"forever","seal":{"to":"redis","epoch":1},"metadata":{"a":"b"}}`, "-")
	first, _ := st.view()
	first.Metadata["a"], first.Seal.To = "changed", "changed"
	if second, _ := st.view(); second.Metadata["a"] != "b" || second.Seal.To != "redis" {
		t.Errorf("it is %+v, %+v now", second.Metadata, second.Seal)
	}
}

// TestAfter: events lead to the state that a read would have shown.
func TestAfter(t *testing.T) {
	const good = `{"version":1,"holder":"alice","duration":"10s"}`
	put := func(k string, rev int64) *clientv3.Event {
		return &clientv3.Event{Kv: &mvccpb.KeyValue{Key: []byte(k), Value: []byte(good), ModRevision: rev}}
	}
	del := func(k string, rev int64) *clientv3.Event {
		return &clientv3.Event{Type: 1, Kv: &mvccpb.KeyValue{Key: []byte(k), ModRevision: rev}}
	}
	for _, test := range []struct {
		events        []*clientv3.Event
		at            int64
		record, alive int64
	}{
		{nil, 9, 7, 5},
		{[]*clientv3.Event{del(alive, 11)}, 11, 7, 0},
		{[]*clientv3.Event{del(key, 11), del(alive, 11)}, 11, 0, 0},
		{[]*clientv3.Event{put(key, 12), put(alive, 12)}, 12, 12, 12},
		{[]*clientv3.Event{del(key, 11), del(alive, 11), put(key, 13), put(alive, 13)}, 13, 13, 13},
		{[]*clientv3.Event{put(key, 13), put(alive, 13), del(alive, 14)}, 14, 13, 0},
	} {
		st := pair(good, good).after(test.events)
		if st.at != test.at || modOf(st.record) != test.record || modOf(st.alive) != test.alive || (st.r != nil) != (test.record != 0) || (st.t != nil) != (test.alive != 0) {
			t.Errorf("%v leads to %+v", test.events, st)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, v := range unreadable {
		f.Add(v, v)
	}
	const good = `{"version":1,"holder":"alice","attempt":"a1","duration":"10s","floor":3,"lease":"ab","acquiredAt":"2026-11-22T01:02:03Z","transitions":2,"metadata":{"a":"b"}}`
	f.Add(good, good)
	f.Add("-", good)
	f.Add(good, "-")
	f.Add(`{"version":1,"holder":"","floor":50}`, good)
	f.Add(`{"version":1,"holder":"m","duration":"forever","seal":{"to":"redis","epoch":1,"heir":"x","heirDuration":"1s"}}`, good)
	f.Add(`{"version":1,"holder":"","duration":"forever","seal":{"to":"redis","epoch":1}}`, "-")
	f.Add(`{"version":1,"holder":"a","duration":"10s","metadata":null,"seal":null}`, `{"VERSION":1,"Holder":"a","duration":"10s"}`)
	f.Fuzz(func(t *testing.T, a, b string) {
		if r, err := decodeRecord([]byte(a)); err == nil {
			again(t, a, r, decodeRecord)
		}
		if r, err := decodeTenure([]byte(b)); err == nil {
			again(t, b, r, decodeTenure)
		}
		st := pair(a, b)
		rec, err := st.view()
		switch {
		case err != nil && !errors.Is(err, backend.ErrCorrupt):
			t.Errorf("%q, %q: %v", a, b, err)
		case (rec.Revision == "") != st.absent():
			t.Errorf("%q, %q: the revision is %q", a, b, rec.Revision)
		case err == nil && st.alive != nil && !rec.Live():
			// What is there keeps others out.
			t.Errorf("%q, %q: %+v", a, b, rec)
		case err == nil && rec.Expired && rec.Seal != nil:
			t.Errorf("%q, %q: a seal that ends: %+v", a, b, rec)
		}
		if r, ok := parseRevision(rec.Revision); rec.Revision != "" && (!ok || r.String() != rec.Revision) {
			t.Errorf("%q, %q: the revision is %q", a, b, rec.Revision)
		}
		// All that is done with a state.
		_, _ = decide(st, claim("bob", "b1"))
		_, _ = st.current(rec)
		_ = st.asGranted(rec)
		if _, _, err := st.granted(claim("bob", "b1"), 10*time.Second, 1); err != nil {
			t.Error(err)
		}
	})
}

// again: what was read is written and read as the same.
func again[R any](t *testing.T, value string, r *R, read func([]byte) (*R, error)) {
	t.Helper()
	written, err := encode(r)
	if err != nil {
		t.Errorf("%q is read as %+v, and cannot be written: %v", value, r, err)
		return
	}
	second, err := read([]byte(written))
	if err != nil {
		t.Errorf("%q is written as %q: %v", value, written, err)
		return
	}
	if rewritten, err := encode(second); err != nil || rewritten != written {
		t.Errorf("%q is written as %q, and then as %q, %v", value, written, rewritten, err)
	}
}
