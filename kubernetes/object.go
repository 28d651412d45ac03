package kubernetes

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"strconv"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/leasehold/leasehold/backend"
)

// The annotations. What the spec can say is in the spec, as client-go writes it.
const (
	domain = "leasehold.github.io"

	keyName   = domain + "/name"        // the lease name, where the object has another
	keyTenure = domain + "/tenure"      // what the spec cannot say of a tenure; removed with it
	keyFloor  = domain + "/token-floor" // the greatest MinToken that was granted; stays as long as the object
	keySeal   = domain + "/moved"       // the seal; it counts whatever the spec says
	keyOwned  = domain + "/created"     // Leasehold made the object, and nobody else has used it up to this leaseTransitions

	metadataPrefix = "metadata." + domain + "/" // and a metadata key
	oddKey         = "x-"                       // begins metadata keys that are no annotation key; the value holds the key then
)

const format = 1 // of the annotations; greater ones are of newer programs

// tenure is the annotation that belongs to one tenure. It is bound to the uid,
// the holder and the leaseTransitions of the object: where they differ, another
// program, which knows nothing of annotations, has taken the lease since.
type tenure struct {
	Format      int       `json:"format"`
	Holder      string    `json:"holder"`
	Transitions int64     `json:"transitions"`
	UID         types.UID `json:"uid,omitempty"`   // "" while pending
	Token       uint64    `json:"token,omitempty"` // 0 while pending: the object was created, and its resourceVersion is the token
	Attempt     string    `json:"attempt,omitempty"`
	Seconds     int32     `json:"seconds,omitempty"` // granted: what somebody else writes into the spec takes nothing from it

	// PendingUntil is the last resourceVersion at which the token was pending.
	PendingUntil uint64 `json:"pendingUntil,omitempty"`
}

type seal struct {
	To           string `json:"to"`
	Epoch        uint64 `json:"epoch"`
	Heir         string `json:"heir,omitempty"`
	HeirDuration string `json:"heirDuration,omitempty"`
}

// object is a Lease object and what was read out of it. The object is shared
// and never changed.
type object struct {
	*coordinationv1.Lease
	version uint64 // its resourceVersion
	name    string // of the lease
	record  backend.Record
	tenure  tenure // zero if there is none, or it is not bound
	floor   uint64
	known   bool                  // the token is what this client was granted, also while pending
	corrupt *backend.CorruptError // if not nil, record has only Name and Revision
}

// pending reports whether the token of the tenure is not annotated yet. Until
// then the object's resourceVersion is an upper bound of it.
func (o *object) pending() bool { return o.tenure.Holder != "" && o.tenure.Token == 0 }

// parse reads an object. It fails only where the server is not one whose
// resourceVersions can be counted with.
func parse(l *coordinationv1.Lease) (*object, error) {
	version, err := strconv.ParseUint(l.ResourceVersion, 10, 64)
	if err != nil || version == 0 || version >= backend.MaxToken {
		return nil, fmt.Errorf("%w: the API server's resourceVersion %q is no number that can be a token", backend.ErrUnsupported, l.ResourceVersion)
	}
	o := &object{Lease: l, version: version, name: l.Name}
	revision := string(l.UID) + "/" + l.ResourceVersion
	if err := o.read(); err != nil {
		o.tenure = tenure{}
		o.record = backend.Record{Name: o.name, Revision: revision}
		o.corrupt = &backend.CorruptError{
			Name:     o.name,
			Where:    "leases.coordination.k8s.io " + l.Namespace + "/" + l.Name,
			Revision: revision,
			Err:      err,
		}
		return o, nil
	}
	o.record.Name, o.record.Revision = o.name, revision
	return o, nil
}

// read fills in name, floor, tenure and record.
func (o *object) read() error {
	notes := o.Annotations
	// First, so that it outlives whatever else cannot be read.
	if text, ok := notes[keyFloor]; ok {
		floor, err := strconv.ParseUint(text, 10, 64)
		if err != nil || floor >= backend.MaxToken {
			return fmt.Errorf("the annotation %s is no token: %q", keyFloor, text)
		}
		o.floor = floor
	}
	if name, ok := notes[keyName]; encoded(o.Name) {
		switch {
		case !ok:
			return fmt.Errorf("the annotation %s is missing, which must tell the lease name", keyName)
		case objectName(name) != o.Name:
			return fmt.Errorf("the annotation %s says %q, which would be another object", keyName, name)
		}
		o.name = name
	}
	if text, ok := notes[keyTenure]; ok {
		if err := json.Unmarshal([]byte(text), &o.tenure); err != nil {
			return fmt.Errorf("the annotation %s: %w", keyTenure, err)
		}
		switch t := o.tenure; {
		case t.Format > format:
			return fmt.Errorf("the annotation %s has the format %d, of a newer Leasehold; this one knows up to %d", keyTenure, t.Format, format)
		case t.Format < 1:
			return fmt.Errorf("the annotation %s has no format", keyTenure)
		case t.Holder == "", t.Transitions < 0, t.Seconds < 0, t.Token > backend.MaxToken, (t.UID == "") != (t.Token == 0):
			return fmt.Errorf("the annotation %s makes no sense: %s", keyTenure, text)
		}
	}
	var sealed *backend.Seal
	if text, ok := notes[keySeal]; ok {
		var s seal
		if err := json.Unmarshal([]byte(text), &s); err != nil {
			return fmt.Errorf("the annotation %s: %w", keySeal, err)
		}
		sealed = &backend.Seal{To: s.To, Epoch: s.Epoch, Heir: s.Heir}
		if s.HeirDuration != "" {
			d, err := time.ParseDuration(s.HeirDuration)
			if err != nil || d < 0 {
				return fmt.Errorf("the annotation %s has the heir duration %q", keySeal, s.HeirDuration)
			}
			sealed.HeirDuration = d
		}
		if o.tenure.Holder == "" {
			return fmt.Errorf("the annotation %s stands there without %s, which holds its token", keySeal, keyTenure)
		}
	}

	spec := &o.Spec
	r := backend.Record{Holder: value(spec.HolderIdentity), Transitions: int64(value(spec.LeaseTransitions))}
	bound := o.tenure.Holder == r.Holder && o.tenure.Transitions == r.Transitions && (o.tenure.UID == "" || o.tenure.UID == o.UID)
	switch {
	case sealed != nil:
		// client-go from 1.34 on, with ReleaseOnCancel, may erase the spec of a
		// record that it once held.
		r.Seal, r.Holder, r.Transitions, r.Duration = sealed, o.tenure.Holder, o.tenure.Transitions, backend.Forever
	case r.Holder == "":
		o.tenure = tenure{}
		o.record = r
		return nil
	default:
		if !bound {
			o.tenure = tenure{}
		}
		r.Duration = time.Duration(value(spec.LeaseDurationSeconds)) * time.Second
	}
	if granted := time.Duration(o.tenure.Seconds) * time.Second; r.Seal == nil {
		r.Duration = max(r.Duration, granted)
	}
	r.AcquiredAt, r.RenewedAt = value(spec.AcquireTime).Time.UTC(), value(spec.RenewTime).Time.UTC()
	if t := o.tenure; t.Holder != "" {
		r.Attempt, r.Token = t.Attempt, t.Token
		if o.pending() {
			r.Token = o.floor + o.version
		}
		r.Metadata = metadataOf(notes)
	}
	o.record = r
	return nil
}

// value is *p, or zero: every field of a spec may be missing.
func value[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

// revision takes a Revision apart.
func revision(s string) (uid types.UID, version uint64) {
	i := strings.LastIndexByte(s, '/')
	if i < 0 {
		return "", 0
	}
	version, err := strconv.ParseUint(s[i+1:], 10, 64)
	if err != nil {
		return "", 0
	}
	return types.UID(s[:i]), version
}

// of reports whether rec is of the tenure that the object is in. Its token says
// so; and where that was still pending when rec was read, its revision does, out
// of which the token was made then.
func (o *object) of(rec backend.Record) bool {
	own := &o.record
	if own.Holder == "" || own.Holder != rec.Holder || own.Token == 0 || rec.Token == 0 {
		return false
	}
	if own.Token == rec.Token && (o.known || !o.pending()) {
		return true
	}
	until := o.tenure.PendingUntil
	if o.pending() {
		until = o.version
	}
	uid, version := revision(rec.Revision)
	return uid == o.UID && version != 0 && version <= until && rec.Token == o.floor+version &&
		rec.Attempt == own.Attempt && rec.Transitions == own.Transitions
}

// sameTenure reports whether both objects are in one tenure, which has a token.
func (o *object) sameTenure(p *object) bool {
	if o.UID != p.UID || o.tenure.Holder == "" || o.tenure.Holder != p.tenure.Holder ||
		o.tenure.Attempt != p.tenure.Attempt || o.tenure.Transitions != p.tenure.Transitions {
		return false
	}
	switch {
	case o.pending() && p.pending():
		return true
	case o.pending():
		return p.tenure.PendingUntil >= o.version // a renewal writes that, a grant does not
	case p.pending():
		return o.tenure.PendingUntil >= p.version
	}
	return o.tenure.Token == p.tenure.Token
}

// metadataOf returns the metadata among annotations.
func metadataOf(notes map[string]string) map[string]string {
	var m map[string]string
	for key, v := range notes {
		key, ok := strings.CutPrefix(key, metadataPrefix)
		if !ok {
			continue
		}
		if strings.HasPrefix(key, oddKey) {
			var odd struct{ Key, Value string }
			if json.Unmarshal([]byte(v), &odd) == nil && annotationKey(odd.Key) == key {
				key, v = odd.Key, odd.Value
			}
		}
		if m == nil {
			m = make(map[string]string)
		}
		m[key] = v
	}
	return m
}

// annotationKey returns the last part of the annotation key for a metadata key.
func annotationKey(key string) string {
	if !strings.HasPrefix(key, oddKey) && len(validation.IsQualifiedName(metadataPrefix+key)) == 0 {
		return key
	}
	r := readable(key)
	return strings.TrimSuffix(oddKey+r[:min(len(r), 30)], "-") + "-" + hash(key)
}

// annotated returns the annotations without keyOwned and those of a tenure, and
// with m in their place.
func annotated(notes map[string]string, m map[string]string) map[string]string {
	out := make(map[string]string, len(notes)+len(m)+3)
	for k, v := range notes {
		if k != keyTenure && k != keySeal && k != keyOwned && !strings.HasPrefix(k, metadataPrefix) {
			out[k] = v
		}
	}
	for k, v := range m {
		key := annotationKey(k)
		if key != k {
			v = text(struct {
				Key   string `json:"key"`
				Value string `json:"value"`
			}{k, v})
		}
		out[metadataPrefix+key] = v
	}
	return out
}

// text is v in JSON; none of what is written here can fail.
func text(v any) string {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		panic(err)
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// granted returns the object that grants the claim: a new one where old is nil,
// otherwise one to replace old with.
func (s *Store) granted(claim backend.Claim, duration time.Duration, old *object, now time.Time) (*coordinationv1.Lease, error) {
	l := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: objectName(claim.Name), Namespace: s.namespace}}
	t := tenure{Format: format, Holder: claim.Holder, Attempt: claim.Attempt, Seconds: int32(duration / time.Second)}
	floor := claim.MinToken
	owned := true
	if old != nil {
		l = old.replacement()
		t.Transitions = int64(value(l.Spec.LeaseTransitions))
		if old.record.Seal != nil {
			t.Transitions = old.record.Transitions
		}
		if previous := value(l.Spec.HolderIdentity); previous != claim.Holder && t.Transitions < math.MaxInt32 {
			t.Transitions++
		}
		floor = max(floor, old.floor)
		t.UID, t.Token = old.UID, floor+old.version+1
		if t.Token > backend.MaxToken {
			return nil, tooGreat(claim.Name, t.Token, floor)
		}
		owned = old.owned()
	}
	l.Annotations = annotated(l.Annotations, claim.Metadata)
	delete(l.Annotations, keyName)
	if encoded(l.Name) {
		l.Annotations[keyName] = claim.Name
	}
	if owned {
		l.Annotations[keyOwned] = strconv.FormatInt(t.Transitions, 10)
	}
	if delete(l.Annotations, keyFloor); floor > 0 {
		l.Annotations[keyFloor] = strconv.FormatUint(floor, 10)
	}
	l.Annotations[keyTenure] = text(t)
	if c := claim.Seal; c != nil {
		note := seal{To: c.To, Epoch: c.Epoch, Heir: c.Heir}
		if c.HeirDuration != 0 {
			note.HeirDuration = c.HeirDuration.String()
		}
		l.Annotations[keySeal] = text(note)
	}
	if len(s.labels) > 0 {
		labels := maps.Clone(l.Labels)
		if labels == nil {
			labels = make(map[string]string, len(s.labels))
		}
		maps.Copy(labels, s.labels)
		l.Labels = labels
	}
	l.Spec.HolderIdentity = &t.Holder
	l.Spec.LeaseDurationSeconds = &t.Seconds
	l.Spec.LeaseTransitions = ptr(int32(t.Transitions))
	l.Spec.AcquireTime = ptr(metav1.NewMicroTime(now))
	l.Spec.RenewTime = after(now, old)
	return l, nil
}

func tooGreat(name string, token, floor uint64) error {
	return fmt.Errorf("%w: lease %q: its token would be %d, with the floor %d that a MinToken sets; none can be greater than %d", backend.ErrInvalid, name, token, floor, uint64(backend.MaxToken))
}

// renewed returns the object that renews the tenure of old, which is token's.
func renewed(old *object, token uint64, now time.Time) *coordinationv1.Lease {
	l := old.replacement()
	l.Spec.RenewTime = after(now, old)
	if granted := old.tenure.Seconds; granted > 0 {
		l.Spec.LeaseDurationSeconds = &granted
	}
	if old.pending() {
		t := old.tenure
		t.UID, t.Token, t.PendingUntil = old.UID, token, old.version
		l.Annotations = maps.Clone(l.Annotations)
		l.Annotations[keyTenure] = text(t)
	}
	return l
}

// vacated returns the object without a holder, as client-go leaves it behind.
func vacated(old *object, now time.Time) *coordinationv1.Lease {
	l := old.replacement()
	owned := old.owned()
	l.Annotations = annotated(l.Annotations, nil)
	transitions := int32(old.record.Transitions)
	if owned {
		l.Annotations[keyOwned] = strconv.Itoa(int(transitions))
	}
	l.Spec.HolderIdentity = ptr("")
	l.Spec.LeaseDurationSeconds = ptr(int32(1))
	l.Spec.LeaseTransitions = &transitions
	l.Spec.AcquireTime = ptr(metav1.NewMicroTime(now))
	l.Spec.RenewTime = after(now, old)
	return l
}

// made reports whether o is what the server made of written, which replaced what
// had its uid and resourceVersion. It is not where a proxy has answered with
// something else, or an admission webhook has changed what the lease consists of.
func (o *object) made(written *coordinationv1.Lease) bool {
	_, replaced := revision("/" + written.ResourceVersion)
	w := &written.Spec
	return o.corrupt == nil && o.Name == written.Name &&
		(written.UID == "" || o.UID == written.UID) && o.version > replaced &&
		o.Annotations[keyTenure] == written.Annotations[keyTenure] && o.Annotations[keySeal] == written.Annotations[keySeal] &&
		o.Annotations[keyFloor] == written.Annotations[keyFloor] &&
		value(o.Spec.HolderIdentity) == value(w.HolderIdentity) && value(o.Spec.LeaseTransitions) == value(w.LeaseTransitions) &&
		value(o.Spec.LeaseDurationSeconds) == value(w.LeaseDurationSeconds) &&
		value(o.Spec.RenewTime).Truncate(time.Microsecond).Equal(value(w.RenewTime).Truncate(time.Microsecond))
}

// replacement returns a copy to be changed: whoever changes a map or what a
// pointer shows puts a new one there. What the server knows better is left out.
func (o *object) replacement() *coordinationv1.Lease {
	l := *o.Lease
	l.ManagedFields = nil // means: as they are
	return &l
}

// owned reports whether Leasehold made the object and nobody else has taken the
// lease ever since. Others' objects are not deleted.
func (o *object) owned() bool {
	note, ok := o.Annotations[keyOwned]
	if !ok || o.corrupt != nil {
		return false
	}
	if o.record.Seal != nil {
		return true
	}
	if o.record.Holder != "" && o.tenure.Holder == "" {
		return false
	}
	return note == strconv.FormatInt(o.record.Transitions, 10)
}

// after is now as a renewTime that differs from the one before, also if the clock
// was set back: observers go by the difference.
func after(now time.Time, old *object) *metav1.MicroTime {
	if old != nil && old.Spec.RenewTime != nil && now.Truncate(time.Microsecond).Equal(old.Spec.RenewTime.Truncate(time.Microsecond)) {
		now = now.Add(time.Microsecond)
	}
	return ptr(metav1.NewMicroTime(now))
}

func ptr[T any](v T) *T { return &v }
