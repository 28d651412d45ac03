package kubernetes

import (
	"encoding/json"
	"errors"
	"maps"
	"strings"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/leasehold/leasehold/backend"
)

func newStore(t testing.TB, opts ...Option) *Store {
	t.Helper()
	s, err := New(&rest.Config{Host: "https://127.0.0.1:1"}, "team-a", opts...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// etcd stands in for what the API server does to an object that is written.
type etcd struct{ version uint64 }

func (e *etcd) put(t testing.TB, l *coordinationv1.Lease, uid string) *object {
	t.Helper()
	e.version++
	written := l.DeepCopy()
	written.UID, written.ResourceVersion = types.UID(uid), text(e.version)
	o, err := parse(written)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// edited is the object after a third party has changed it.
func (e *etcd) edited(t testing.TB, o *object, edit func(*coordinationv1.Lease)) *object {
	t.Helper()
	l := o.DeepCopy()
	edit(l)
	return e.put(t, l, string(l.UID))
}

func claim(holder, attempt string) backend.Claim {
	return backend.Claim{Name: "report", Holder: holder, Attempt: attempt, Duration: 15 * time.Second}
}

func grant(t testing.TB, e *etcd, c backend.Claim, old *object) *object {
	t.Helper()
	uid := "uid-1"
	if old != nil {
		uid = string(old.UID)
	}
	l, err := newStore(t).granted(c, c.Duration, old, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return e.put(t, l, uid)
}

func TestToken(t *testing.T) {
	e := &etcd{version: 100}
	created := grant(t, e, claim("alice", "a1"), nil)
	if created.record.Token != 101 || !created.pending() {
		t.Fatalf("a created object has the token %d, pending %v; want its resourceVersion 101, pending", created.record.Token, created.pending())
	}
	e.version += 5 // others write
	labelled := e.edited(t, created, func(l *coordinationv1.Lease) { l.Labels = map[string]string{"a": "b"} })
	if labelled.record.Token < 101 {
		t.Fatalf("while it is pending the token is shown as %d, which is no upper bound of 101", labelled.record.Token)
	}
	if !labelled.of(created.record) || !labelled.of(labelled.record) {
		t.Fatal("a label ends the tenure while the token is pending")
	}
	renewed1 := e.put(t, renewed(labelled, created.record.Token, time.Now()), "uid-1")
	if renewed1.record.Token != 101 || renewed1.pending() {
		t.Fatalf("after the first renewal the token is %d, pending %v; want 101", renewed1.record.Token, renewed1.pending())
	}
	if !renewed1.of(created.record) || !renewed1.of(renewed1.record) {
		t.Fatal("the first renewal ends the tenure")
	}
	if !renewed1.of(labelled.record) {
		t.Fatal("who joined the tenure while its token was pending is not of it any more")
	}
	renewed2 := e.put(t, renewed(renewed1, 101, time.Now()), "uid-1")
	// The revision of a later record makes a number too, but not a token.
	forged := renewed2.record
	forged.Token = renewed2.version
	if renewed2.of(forged) {
		t.Fatal("a token that was made out of a later revision is believed")
	}
	for _, f := range []func(*backend.Record){
		func(r *backend.Record) { r.Token++ },
		func(r *backend.Record) { r.Token-- },
		func(r *backend.Record) { r.Token = 0 },
		func(r *backend.Record) { r.Holder = "mallory" },
		func(r *backend.Record) { r.Holder = "" },
	} {
		for _, o := range []*object{created, labelled, renewed2} {
			forged := o.record
			if f(&forged); o.of(forged) {
				t.Errorf("a forged record is of the tenure: %+v", forged)
			}
		}
	}

	taken := grant(t, e, claim("bob", "b1"), renewed2)
	if taken.record.Token != renewed2.version+1 || taken.pending() {
		t.Fatalf("a replacement got the token %d, pending %v; want %d", taken.record.Token, taken.pending(), renewed2.version+1)
	}
	if taken.of(renewed2.record) || taken.of(created.record) || taken.record.Transitions != 1 {
		t.Fatalf("the replaced holder's tenure goes on; transitions %d", taken.record.Transitions)
	}
	again := grant(t, e, claim("bob", "b2"), taken)
	if again.record.Token <= taken.record.Token || again.of(taken.record) || again.record.Transitions != 1 {
		t.Fatalf("the same holder's next tenure: token %d after %d, transitions %d", again.record.Token, taken.record.Token, again.record.Transitions)
	}
}

// TestForeign is what client-go and people do to the object of a tenure.
func TestForeign(t *testing.T) {
	for _, tc := range []struct {
		name   string
		edit   func(*coordinationv1.Lease)
		tenure bool // goes on
		owned  bool // still ours to delete
	}{
		{"label", func(l *coordinationv1.Lease) { l.Labels = map[string]string{"a": "b"} }, true, true},
		{"annotation", func(l *coordinationv1.Lease) { l.Annotations["a"] = "b" }, true, true},
		{"renewTime", func(l *coordinationv1.Lease) { l.Spec.RenewTime = ptr(metav1.NowMicro()) }, true, true},
		{"taken over by client-go", func(l *coordinationv1.Lease) {
			l.Spec.HolderIdentity, l.Spec.LeaseTransitions = ptr("elector"), ptr(*l.Spec.LeaseTransitions+1)
		}, false, false},
		{"taken over without counting", func(l *coordinationv1.Lease) { l.Spec.HolderIdentity = ptr("elector") }, false, false},
		{"taken over and back by the same identity", func(l *coordinationv1.Lease) { *l.Spec.LeaseTransitions += 2 }, false, false},
		{"released by client-go", func(l *coordinationv1.Lease) {
			l.Spec.HolderIdentity, l.Spec.LeaseDurationSeconds = ptr(""), ptr(int32(1))
		}, false, true},
		{"vacated by kubert", func(l *coordinationv1.Lease) {
			l.Spec.HolderIdentity, l.Spec.LeaseDurationSeconds, l.Spec.AcquireTime, l.Spec.RenewTime = nil, nil, nil, nil
		}, false, true},
		{"taken and released by client-go", func(l *coordinationv1.Lease) {
			l.Spec.HolderIdentity, l.Spec.LeaseTransitions = ptr(""), ptr(*l.Spec.LeaseTransitions+1)
		}, false, false},
		{"everything gone", func(l *coordinationv1.Lease) { l.Spec = coordinationv1.LeaseSpec{} }, false, true},
		{"restored from a backup", func(l *coordinationv1.Lease) { l.UID = "uid-2" }, false, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := &etcd{version: 100}
			o := grant(t, e, claim("alice", "a1"), nil)
			o = e.put(t, renewed(o, o.record.Token, time.Now()), "uid-1")
			after := e.edited(t, o, func(l *coordinationv1.Lease) {
				l.Spec = *l.Spec.DeepCopy()
				tc.edit(l)
			})
			if after.corrupt != nil {
				t.Fatal(after.corrupt)
			}
			if got := after.of(o.record); got != tc.tenure {
				t.Errorf("the tenure goes on: %v, want %v", got, tc.tenure)
			}
			if !tc.tenure && (after.record.Token != 0 || after.record.Metadata != nil || after.record.Attempt != "") {
				t.Errorf("what was granted to another is shown of %+v", after.record)
			}
			if got := after.owned(); got != tc.owned {
				t.Errorf("ours to delete: %v, want %v", got, tc.owned)
			}
			next := grant(t, e, claim("bob", "b1"), after)
			if next.record.Token <= o.record.Token {
				t.Errorf("the next token is %d, after %d", next.record.Token, o.record.Token)
			}
			if next.owned() != tc.owned {
				t.Errorf("after the next tenure it is ours to delete: %v, want %v", next.owned(), tc.owned)
			}
			left := e.put(t, vacated(next, time.Now()), string(next.UID))
			if !left.record.Vacant() || left.record.Transitions != next.record.Transitions || left.owned() != tc.owned {
				t.Errorf("vacated: %+v, ours %v", left.record, left.owned())
			}
		})
	}
}

func TestSeal(t *testing.T) {
	e := &etcd{version: 100}
	c := backend.Claim{Name: "report", Holder: "moved to b", Attempt: "s1", Duration: backend.Forever, MinToken: 5000,
		Seal: &backend.Seal{To: "b", Epoch: 3, Heir: "alice", HeirDuration: 15 * time.Second}}
	sealed := grant(t, e, c, grant(t, e, claim("alice", "a1"), nil))
	if r := sealed.record; *r.Seal != *c.Seal || r.Duration != backend.Forever || r.Token != 5000+101+1 || *sealed.Spec.LeaseDurationSeconds != 1<<31-1 {
		t.Fatalf("sealed: %+v", sealed.record)
	}
	// A former client-go leader that releases late erases the spec.
	erased := e.edited(t, sealed, func(l *coordinationv1.Lease) {
		l.Spec.HolderIdentity, l.Spec.LeaseDurationSeconds = ptr(""), ptr(int32(1))
	})
	if r := erased.record; r.Seal == nil || r.Holder != "moved to b" || r.Token != sealed.record.Token || r.Duration != backend.Forever || !erased.of(sealed.record) {
		t.Fatalf("without its spec the seal is %+v", r)
	}
	back := grant(t, e, claim("alice", "a2"), erased)
	if back.record.Seal != nil || back.record.Token <= sealed.record.Token || back.floor != 5000 {
		t.Fatalf("over the seal: %+v, floor %d", back.record, back.floor)
	}
	left := e.put(t, vacated(sealed, time.Now()), "uid-1")
	if !left.record.Vacant() || left.floor != 5000 {
		t.Fatalf("vacated: %+v, floor %d", left.record, left.floor)
	}
}

func TestFloor(t *testing.T) {
	e := &etcd{version: 100}
	c := claim("alice", "a1")
	c.MinToken = 1000
	o := grant(t, e, c, nil)
	if o.record.Token != 1101 {
		t.Fatalf("token %d, want floor 1000 + version 101", o.record.Token)
	}
	c = claim("bob", "b1")
	c.MinToken = 7
	if o = grant(t, e, c, o); o.floor != 1000 || o.record.Token != 1000+102 {
		t.Fatalf("a smaller MinToken: floor %d, token %d", o.floor, o.record.Token)
	}
	c.MinToken = backend.MaxToken - 1
	if _, err := newStore(t).granted(c, c.Duration, o, time.Now()); !errors.Is(err, backend.ErrInvalid) {
		t.Fatalf("a token above the greatest: %v, want ErrInvalid", err)
	}
}

func TestMetadata(t *testing.T) {
	e := &etcd{version: 100}
	c := claim("alice", "a1")
	c.Metadata = map[string]string{
		"pod": "web-1", "Pod": "WEB", "leasehold.process/machine": "m", "": "empty is refused before", "x-plain": "looks odd", "a b": "space",
		"x": "short", strings.Repeat("long", 40): "long", "ünï": "\x00\n", ".dot": "edge", "dot.": "edge",
	}
	delete(c.Metadata, "")
	o := grant(t, e, c, nil)
	if !maps.Equal(o.record.Metadata, c.Metadata) {
		t.Fatalf("metadata came back as %q", o.record.Metadata)
	}
	for key := range o.Annotations {
		if _, name, ok := strings.Cut(key, "/"); !ok || len(name) > 63 {
			t.Errorf("%q is no annotation key", key)
		}
	}
	next := grant(t, e, claim("bob", "b1"), o)
	if len(next.record.Metadata) != 0 {
		t.Fatalf("the next tenure has the last one's metadata: %q", next.record.Metadata)
	}
}

func TestCorrupt(t *testing.T) {
	for name, edit := range map[string]func(map[string]string){
		"tenure":    func(a map[string]string) { a[keyTenure] = "{" },
		"newer":     func(a map[string]string) { a[keyTenure] = `{"format":2,"holder":"x"}` },
		"no format": func(a map[string]string) { a[keyTenure] = `{"holder":"x"}` },
		"no holder": func(a map[string]string) { a[keyTenure] = `{"format":1}` },
		"token too big": func(a map[string]string) {
			a[keyTenure] = `{"format":1,"holder":"x","uid":"u","token":9007199254740992}`
		},
		"half pending": func(a map[string]string) { a[keyTenure] = `{"format":1,"holder":"x","token":5}` },
		"floor":        func(a map[string]string) { a[keyFloor] = "-1" },
		"seal":         func(a map[string]string) { a[keySeal] = "null and void" },
		"seal alone":   func(a map[string]string) { a[keySeal] = `{"to":"b"}`; delete(a, keyTenure) },
		"seal's heir":  func(a map[string]string) { a[keySeal] = `{"to":"b","heirDuration":"long"}` },
	} {
		t.Run(name, func(t *testing.T) {
			e := &etcd{version: 100}
			good := grant(t, e, claim("alice", "a1"), nil)
			o := e.edited(t, good, func(l *coordinationv1.Lease) { edit(l.Annotations) })
			if o.corrupt == nil || !strings.Contains(o.corrupt.Where, "team-a/report") || o.corrupt.Revision != o.record.Revision {
				t.Fatalf("corrupt: %+v", o.corrupt)
			}
			if o.of(good.record) || o.owned() {
				t.Fatal("a record that cannot be read is taken for somebody's")
			}
			if _, err := decide(o, claim("bob", "b1")); !errors.Is(err, backend.ErrCorrupt) {
				t.Fatalf("without force: %v", err)
			}
			c := claim("bob", "b1")
			c.Over = o.corrupt.Revision
			if _, err := decide(o, c); err != nil {
				t.Fatalf("with force: %v", err)
			}
			if next := grant(t, e, c, o); next.corrupt != nil || next.record.Holder != "bob" || next.record.Token <= good.record.Token {
				t.Fatalf("after force: %+v", next.record)
			}
		})
	}
	e := &etcd{version: 100}
	odd := claim("alice", "a1")
	odd.Name = "Nightly Report"
	o := e.edited(t, grant(t, e, odd, nil), func(l *coordinationv1.Lease) { l.Annotations[keyName] = "another" })
	if o.corrupt == nil {
		t.Fatal("an object that says it is of another name is believed")
	}
}

func TestDecide(t *testing.T) {
	e := &etcd{version: 100}
	held := grant(t, e, claim("alice", "a1"), nil)
	expired := *held
	expired.record.Expired = true
	managed := e.edited(t, held, func(l *coordinationv1.Lease) {
		l.Spec.HolderIdentity, l.Spec.Strategy = nil, ptr(coordinationv1.OldestEmulationVersion)
	})
	foreign := e.edited(t, held, func(l *coordinationv1.Lease) { l.Spec.HolderIdentity = ptr("elector") })
	with := func(c backend.Claim, over string) backend.Claim { c.Over = over; return c }
	for _, tc := range []struct {
		name  string
		o     *object
		c     backend.Claim
		again bool
		want  error
	}{
		{"absent", nil, claim("bob", "b1"), false, nil},
		{"absent, over", nil, with(claim("bob", "b1"), "x/1"), false, backend.ErrHeld},
		{"held", held, claim("bob", "b1"), false, backend.ErrHeld},
		{"held by the same", held, claim("alice", "a2"), false, backend.ErrHeld},
		{"resent", held, claim("alice", "a1"), true, nil},
		{"resent, over", held, with(claim("alice", "a1"), "x/1"), true, nil},
		{"another's attempt of the same name", held, claim("bob", "a1"), false, backend.ErrHeld},
		{"over", held, with(claim("bob", "b1"), held.record.Revision), false, nil},
		{"over, stale", held, with(claim("bob", "b1"), "uid-1/100"), false, backend.ErrHeld},
		{"expired", &expired, claim("bob", "b1"), false, nil},
		{"expired, resent", &expired, claim("alice", "a1"), false, nil},
		{"expired, over, stale", &expired, with(claim("bob", "b1"), "uid-1/100"), false, backend.ErrHeld},
		{"no attempt, foreign", foreign, backend.Claim{Name: "report", Holder: "elector"}, false, backend.ErrHeld},
		{"strategy", managed, claim("bob", "b1"), false, backend.ErrUnsupported},
		{"strategy, forced", managed, with(claim("bob", "b1"), managed.record.Revision), false, backend.ErrUnsupported},
	} {
		again, err := decide(tc.o, tc.c)
		if again != tc.again || (err != nil) != (tc.want != nil) || tc.want != nil && !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, %v; want %v, %v", tc.name, again, err, tc.again, tc.want)
		}
	}
}

func TestJudge(t *testing.T) {
	at := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	fields := func(manager string, when time.Time, raw string) metav1.ManagedFieldsEntry {
		return metav1.ManagedFieldsEntry{Manager: manager, Time: &metav1.Time{Time: when}, FieldsV1: &metav1.FieldsV1{Raw: []byte(raw)}}
	}
	const renews, labels = `{"f:spec":{"f:holderIdentity":{},"f:renewTime":{}}}`, `{"f:metadata":{"f:labels":{"f:a":{}}}}`
	e := &etcd{version: 100}
	held := grant(t, e, claim("alice", "a1"), nil) // 15 s
	for _, tc := range []struct {
		name      string
		margin    time.Duration
		fields    []metav1.ManagedFieldsEntry
		age       time.Duration
		expired   bool
		remaining time.Duration
	}{
		{"fresh", time.Minute, []metav1.ManagedFieldsEntry{fields("a", at, renews)}, 0, false, 76 * time.Second},
		{"just not", time.Minute, []metav1.ManagedFieldsEntry{fields("a", at, renews)}, 75 * time.Second, false, time.Second},
		{"just", time.Minute, []metav1.ManagedFieldsEntry{fields("a", at, renews)}, 76 * time.Second, true, 0},
		{"small margin", time.Millisecond, []metav1.ManagedFieldsEntry{fields("a", at, renews)}, 16 * time.Second, false, time.Second},
		{"small margin, just", time.Millisecond, []metav1.ManagedFieldsEntry{fields("a", at, renews)}, 17 * time.Second, true, 0},
		{"off", 0, []metav1.ManagedFieldsEntry{fields("a", at, renews)}, time.Hour, false, 0},
		{"nobody owns renewTime", time.Minute, []metav1.ManagedFieldsEntry{fields("a", at, labels)}, time.Hour, false, 0},
		{"no fields", time.Minute, nil, time.Hour, false, 0},
		{"garbage", time.Minute, []metav1.ManagedFieldsEntry{fields("a", at, `{"f:spec":7}`)}, time.Hour, false, 0},
		{"the newest counts", time.Minute, []metav1.ManagedFieldsEntry{fields("a", at.Add(-time.Hour), renews), fields("b", at, renews)}, time.Second, false, 75 * time.Second},
		{"the newest counts, listed first", time.Minute, []metav1.ManagedFieldsEntry{fields("b", at, renews), fields("a", at.Add(-time.Hour), renews)}, time.Second, false, 75 * time.Second},
		{"a label is no renewal", time.Minute, []metav1.ManagedFieldsEntry{fields("a", at, renews), fields("b", at.Add(76*time.Second), labels)}, 76 * time.Second, true, 0},
		{"another server's clock", time.Minute, []metav1.ManagedFieldsEntry{fields("a", at, renews)}, -time.Second, false, 0},
	} {
		o := *held
		o.Lease = held.DeepCopy()
		o.ManagedFields = tc.fields
		expired, remaining := newStore(t, WithExpiryMargin(tc.margin)).judge(&o, at.Add(tc.age))
		if expired != tc.expired || remaining != tc.remaining {
			t.Errorf("%s: expired %v, remaining %v; want %v, %v", tc.name, expired, remaining, tc.expired, tc.remaining)
		}
	}
	o := *held
	o.Lease = held.DeepCopy()
	o.ManagedFields = []metav1.ManagedFieldsEntry{fields("a", at, renews)}
	if expired, _ := newStore(t).judge(&o, time.Time{}); expired {
		t.Error("judged without the server's clock")
	}
	o.record.Duration = 0 // a holder that publishes none
	if expired, _ := newStore(t).judge(&o, at.Add(time.Hour)); expired {
		t.Error("judged without a duration")
	}
}

// TestRenewTimeDiffers: observers go by the difference, also after the clock was
// set back to the very microsecond.
func TestRenewTimeDiffers(t *testing.T) {
	e := &etcd{version: 100}
	now := time.Now()
	c := claim("alice", "a1")
	l, err := newStore(t).granted(c, c.Duration, nil, now)
	if err != nil {
		t.Fatal(err)
	}
	o := e.put(t, l, "uid-1")
	if next := e.put(t, renewed(o, o.record.Token, now), "uid-1"); next.record.RenewedAt.Equal(o.record.RenewedAt) {
		t.Fatal("a renewal left renewTime as it was")
	}
}

// FuzzParse: whatever stands in an object, reading it ends, and what can be read
// can be granted over, renewed and vacated.
func FuzzParse(f *testing.F) {
	seed := func(annotations, spec string) { f.Add(annotations, spec, "report") }
	seed(`{}`, `{}`)
	seed(`{"leasehold.github.io/tenure":"{\"format\":1,\"holder\":\"a\",\"transitions\":1,\"uid\":\"u\",\"token\":7}"}`, `{"holderIdentity":"a","leaseTransitions":1,"leaseDurationSeconds":5}`)
	seed(`{"leasehold.github.io/tenure":"{\"format\":1,\"holder\":\"a\"}","leasehold.github.io/moved":"{\"to\":\"b\",\"epoch\":1}"}`, `{"holderIdentity":""}`)
	seed(`{"leasehold.github.io/token-floor":"12","leasehold.github.io/created":"0"}`, `{"leaseTransitions":2147483647}`)
	seed(`{"metadata.leasehold.github.io/x-a-b":"{\"key\":\"a b\",\"value\":\"c\"}"}`, `{"leaseDurationSeconds":-1}`)
	f.Fuzz(func(t *testing.T, annotations, spec, name string) {
		l := &coordinationv1.Lease{}
		if json.Unmarshal([]byte(annotations), &l.Annotations) != nil || json.Unmarshal([]byte(spec), &l.Spec) != nil {
			t.Skip()
		}
		l.Name, l.Namespace, l.UID, l.ResourceVersion = objectName(name), "team-a", "u", "100"
		o, err := parse(l)
		if err != nil {
			t.Fatal(err)
		}
		if o.corrupt == nil && o.record.Token > 100+o.floor && !strings.Contains(annotations, "token") {
			t.Fatalf("a token out of nowhere: %+v", o.record)
		}
		c := claim("bob", "b1")
		c.Name = name
		if backend.CheckName(name) != nil {
			return
		}
		e := &etcd{version: 100}
		body, err := newStore(t).granted(c, c.Duration, o, time.Now())
		if err != nil {
			return // its token would be too great
		}
		next := e.put(t, body, "u")
		if next.corrupt != nil || next.record.Holder != "bob" || next.record.Token <= o.record.Token && o.record.Token <= 100+o.floor || next.record.Seal != nil || next.name != name {
			t.Fatalf("granted over %s %s: %+v, %v", annotations, spec, next.record, next.corrupt)
		}
		again := e.put(t, renewed(next, next.record.Token, time.Now()), "u")
		if !again.of(next.record) {
			t.Fatal("a renewal ended the tenure")
		}
		if left := e.put(t, vacated(again, time.Now()), "u"); !left.record.Vacant() {
			t.Fatalf("vacated: %+v", left.record)
		}
	})
}
