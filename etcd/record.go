package etcd

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/leasehold/leasehold/backend"
)

// format is the version of what is written. A greater one is left alone.
const format = 1

// tenure is the value of the alive key, whose existence is the tenure: who holds
// the name as long as it is there.
type tenure struct {
	Version  int    `json:"version"`
	Holder   string `json:"holder"`
	Attempt  string `json:"attempt,omitempty"`
	Duration text   `json:"duration,omitzero"`
	Floor    uint64 `json:"floor,omitempty"` // the token is this and the revision of the key
	Seal     *seal  `json:"seal,omitempty"`
}

// seal is a backend.Seal.
type seal struct {
	To           string `json:"to"`
	Epoch        uint64 `json:"epoch"`
	Heir         string `json:"heir,omitempty"`
	HeirDuration text   `json:"heirDuration,omitzero"`
}

// record is the value of the record's key: all that is to be seen of the tenure,
// also when it is over.
type record struct {
	tenure
	Lease       leaseID           `json:"lease,omitempty"` // of etcd, which the alive key is bound to
	AcquiredAt  time.Time         `json:"acquiredAt,omitzero"`
	Transitions int64             `json:"transitions,omitempty"`
	Metadata    map[string]string `json:"metadata,omitempty"`
}

// text is a duration that a person can read.
type text time.Duration

func (d text) MarshalText() ([]byte, error) {
	if time.Duration(d) == backend.Forever {
		return []byte("forever"), nil
	}
	return []byte(time.Duration(d).String()), nil
}

func (d *text) UnmarshalText(b []byte) error {
	if string(b) == "forever" {
		*d = text(backend.Forever)
		return nil
	}
	v, err := time.ParseDuration(string(b))
	*d = text(v)
	return err
}

// leaseID is the number of an etcd lease, as etcdctl writes it.
type leaseID int64

func (l leaseID) MarshalText() ([]byte, error) { return strconv.AppendInt(nil, int64(l), 16), nil }

func (l *leaseID) UnmarshalText(b []byte) error {
	v, err := strconv.ParseInt(string(b), 16, 64)
	*l = leaseID(v)
	return err
}

func encode(v any) (string, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false) // for people to read
	if err := e.Encode(v); err != nil {
		return "", err
	}
	return strings.TrimSuffix(b.String(), "\n"), nil
}

func decodeTenure(b []byte) (*tenure, error) {
	var t tenure
	if err := decode(b, &t); err != nil {
		return nil, err
	}
	if err := t.check(); err != nil {
		return nil, err
	}
	if t.Holder == "" {
		return nil, errors.New("it names no holder")
	}
	return &t, nil
}

func decodeRecord(b []byte) (*record, error) {
	var r record
	if err := decode(b, &r); err != nil {
		return nil, err
	}
	if err := r.check(); err != nil {
		return nil, err
	}
	if r.Transitions < 0 || r.Lease < 0 {
		return nil, errors.New("a number in it is negative")
	}
	return &r, nil
}

// decode reads the version first: what a newer one writes may have other types.
func decode(b []byte, v any) error {
	var head struct {
		Version *int `json:"version"`
	}
	switch err := json.Unmarshal(b, &head); {
	case err != nil:
		return fmt.Errorf("it was not written by Leasehold: %w", err)
	case head.Version == nil || *head.Version < 1:
		return errors.New("it was not written by Leasehold: it has no version")
	case *head.Version > format:
		return fmt.Errorf("it is of format %d, this program knows %d: use a newer Leasehold", *head.Version, format)
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("its format is wrong: %w", err)
	}
	return nil
}

// salvage returns the floor of a value that cannot be read as a whole, 0 if it
// cannot be made out: force must not lose it, if possible.
func salvage(b []byte) uint64 {
	var v struct {
		Floor uint64 `json:"floor"`
	}
	// Of what comes after the first value nothing is known.
	if json.NewDecoder(bytes.NewReader(b)).Decode(&v) != nil || v.Floor > backend.MaxToken {
		return 0
	}
	return v.Floor
}

func (t *tenure) check() error {
	d := time.Duration(t.Duration)
	switch {
	case t.Holder == "" && t.Seal == nil && d == 0: // vacant
	case d <= 0 || d > backend.MaxDuration && d != backend.Forever:
		return fmt.Errorf("its duration is %v", d)
	case t.Seal != nil && d != backend.Forever, t.Seal == nil && d == backend.Forever:
		return fmt.Errorf("its duration is %v, which does not go with a seal or without one", d)
	}
	if t.Floor > backend.MaxToken {
		return fmt.Errorf("its floor is %d", t.Floor)
	}
	return nil
}

// revision is what Record.Revision tells: which version of the record it is, and
// what is needed of its tenure to renew, release and guard it without looking.
type revision struct {
	bare  bool // of the alive key, where there is no record beside it
	mod   int64
	lease leaseID
	floor uint64
}

func (r revision) String() string {
	if r == (revision{}) {
		return ""
	}
	s := fmt.Sprintf("%d-%x-%d", r.mod, int64(r.lease), r.floor)
	if r.bare {
		return "alive-" + s
	}
	return s
}

func parseRevision(s string) (r revision, ok bool) {
	rest, bare := strings.CutPrefix(s, "alive-")
	parts := strings.Split(rest, "-")
	if len(parts) != 3 {
		return revision{}, false
	}
	mod, err1 := strconv.ParseInt(parts[0], 10, 64)
	lease, err2 := strconv.ParseInt(parts[1], 16, 64)
	floor, err3 := strconv.ParseUint(parts[2], 10, 64)
	r = revision{bare, mod, leaseID(lease), floor}
	if err1 != nil || err2 != nil || err3 != nil || mod <= 0 || lease < 0 || floor > backend.MaxToken || r.String() != s {
		return revision{}, false
	}
	return r, true
}

// state is what both keys of a name hold at one revision of etcd.
type state struct {
	name   string
	key    string // of the record
	at     int64  // the revision of etcd
	record *mvccpb.KeyValue
	alive  *mvccpb.KeyValue
	r      *record // what record says, nil if there is none or it cannot be read
	t      *tenure // likewise of alive
	err    *backend.CorruptError
	found  uint64 // the floor of what cannot be read, if that much can
}

// newState reads the pairs that a Range of both keys, or events, have told.
func newState(name, key string, at int64, kvs []*mvccpb.KeyValue) *state {
	st := &state{name: name, key: key, at: at}
	for _, kv := range kvs {
		switch string(kv.Key) {
		case key:
			st.record = kv
		case aliveKey(key):
			st.alive = kv
		}
	}
	st.parse()
	return st
}

func (st *state) parse() {
	var err error
	st.r, st.t, st.err, st.found = nil, nil, nil, 0
	if st.record != nil {
		if st.r, err = decodeRecord(st.record.Value); err != nil {
			st.err = &backend.CorruptError{Name: st.name, Where: fmt.Sprintf("the etcd key %q", st.key), Err: err}
			st.found = salvage(st.record.Value)
		}
	}
	if st.alive != nil {
		if st.t, err = decodeTenure(st.alive.Value); err != nil && st.err == nil {
			st.err = &backend.CorruptError{Name: st.name, Where: fmt.Sprintf("the etcd key %q", aliveKey(st.key)), Err: err}
		}
	}
	if st.err != nil {
		st.err.Revision = st.revision().String()
	}
}

// same reports whether o is of the same versions of both keys.
func (st *state) same(o *state) bool {
	return modOf(st.record) == modOf(o.record) && modOf(st.alive) == modOf(o.alive)
}

// modOf is the mod_revision of a key, 0 if there is none, as etcd compares it.
func modOf(kv *mvccpb.KeyValue) int64 {
	if kv == nil {
		return 0
	}
	return kv.ModRevision
}

func (st *state) absent() bool { return st.record == nil && st.alive == nil }

// floor is what the next token must be above, besides the revision.
func (st *state) floor() (floor uint64) {
	floor = st.found
	if st.r != nil {
		floor = st.r.Floor
	}
	if st.t != nil {
		floor = max(floor, st.t.Floor)
	}
	return floor
}

// whole reports whether both keys are of one tenure. If not, somebody has deleted
// the record, or rewritten it.
func (st *state) whole() bool {
	return st.r != nil && st.t != nil && st.r.Holder == st.t.Holder && st.r.Attempt == st.t.Attempt
}

func (st *state) revision() revision {
	switch {
	case st.whole():
		// What is in force, and not what the record says of it, which may have been edited.
		return revision{mod: st.record.ModRevision, lease: leaseID(st.alive.Lease), floor: st.t.Floor}
	case st.r != nil:
		return revision{mod: st.record.ModRevision, lease: st.r.Lease, floor: st.r.Floor}
	case st.record != nil:
		return revision{mod: st.record.ModRevision}
	case st.t != nil:
		return revision{bare: true, mod: st.alive.ModRevision, lease: leaseID(st.alive.Lease), floor: st.t.Floor}
	case st.alive != nil:
		return revision{bare: true, mod: st.alive.ModRevision, lease: leaseID(st.alive.Lease)}
	}
	return revision{}
}

// view is the record of backend. It shares nothing with the state.
//
// A tenure whose record somebody has deleted, vacated or given to another keeps
// others out until its etcd lease is over, but has no token any more: it is nobody's
// to renew.
func (st *state) view() (backend.Record, error) {
	rec := backend.Record{Name: st.name, Revision: st.revision().String()}
	if st.err != nil {
		return rec, st.err
	}
	r, t := st.r, st.t
	if r == nil && t == nil {
		return rec, nil
	}
	if r != nil {
		rec.Transitions = r.Transitions
	}
	switch {
	case st.whole(), t != nil && t.Seal != nil:
		rec.Token = t.Floor + uint64(st.alive.ModRevision)
	case r != nil && r.Seal != nil: // whatever else is missing
		rec.Token = r.Floor + uint64(st.record.ModRevision)
		t = &r.tenure
	case t != nil:
		r = nil
	case r.Holder == "":
		return rec, nil
	default:
		t = &r.tenure
		rec.Expired = true
		rec.Token = r.Floor + uint64(st.record.ModRevision)
	}
	rec.Holder, rec.Attempt, rec.Duration = t.Holder, t.Attempt, time.Duration(t.Duration)
	if t.Seal != nil {
		rec.Seal = &backend.Seal{To: t.Seal.To, Epoch: t.Seal.Epoch, Heir: t.Seal.Heir, HeirDuration: time.Duration(t.Seal.HeirDuration)}
	}
	if r != nil {
		rec.AcquiredAt, rec.RenewedAt = r.AcquiredAt, r.AcquiredAt
		rec.Metadata = maps.Clone(r.Metadata)
	}
	return rec, nil
}

// unchanged are the conditions under which the state is still as it was read.
func (st *state) unchanged() []clientv3.Cmp {
	return []clientv3.Cmp{
		clientv3.Compare(clientv3.ModRevision(st.key), "=", modOf(st.record)),
		clientv3.Compare(clientv3.ModRevision(aliveKey(st.key)), "=", modOf(st.alive)),
	}
}

// granted returns the values of both keys when claim has been granted in place
// of st.
func (st *state) granted(claim backend.Claim, duration time.Duration, lease clientv3.LeaseID) (recordValue, aliveValue string, err error) {
	t := tenure{
		Version:  format,
		Holder:   claim.Holder,
		Attempt:  claim.Attempt,
		Duration: text(duration),
		Floor:    max(st.floor(), claim.MinToken),
	}
	if c := claim.Seal; c != nil {
		t.Seal = &seal{To: c.To, Epoch: c.Epoch, Heir: c.Heir, HeirDuration: text(c.HeirDuration)}
	}
	r := record{tenure: t, Lease: leaseID(lease), AcquiredAt: time.Now().UTC().Round(0), Metadata: claim.Metadata}
	if old := st.r; old != nil {
		r.Transitions = old.Transitions
		if old.Holder != claim.Holder {
			r.Transitions++
		}
	}
	if recordValue, err = encode(r); err == nil {
		aliveValue, err = encode(t)
	}
	return recordValue, aliveValue, err
}

// vacated returns the value of a record that keeps the floor.
func (st *state) vacated() (string, error) {
	left := record{tenure: tenure{Version: format, Floor: st.floor()}}
	if st.r != nil {
		left.Transitions = st.r.Transitions
	}
	return encode(left)
}
