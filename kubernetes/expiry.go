package kubernetes

import (
	"encoding/json"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/leasehold/leasehold/backend"
)

// resolution is how far apart two readings of the server's clock may be from what
// they say: the Date of a reply and the times in managedFields are cut off to
// whole seconds.
const resolution = time.Second

// renewalTime returns when the API server last saw spec.renewTime changed, by its
// own clock: the newest managedFields time of an entry that owns the field. Zero
// if it does not tell.
func renewalTime(fields []metav1.ManagedFieldsEntry) (newest time.Time) {
	for i := range fields {
		f := &fields[i]
		if f.Time == nil || f.FieldsV1 == nil || f.Subresource != "" || !f.Time.After(newest) {
			continue
		}
		var owned struct {
			Spec map[string]json.RawMessage `json:"f:spec"`
		}
		if json.Unmarshal(f.FieldsV1.Raw, &owned) != nil {
			continue
		}
		if _, ok := owned.Spec["f:renewTime"]; ok {
			newest = f.Time.Time
		}
	}
	return newest
}

// judge fills in Expired and Remaining, as the server's clock had it at date; a
// zero date judges nothing. A tenure is called expired where the server has seen
// no renewal for its duration, the margin and the resolution of its clock: the
// margin is for the clocks of several API servers, one of which wrote the record
// and another of which answers now.
func (s *Store) judge(o *object, date time.Time) (expired bool, remaining time.Duration) {
	over := s.overAfter(o.record)
	if over == 0 || date.IsZero() || o.corrupt != nil {
		return false, 0
	}
	renewed := renewalTime(o.ManagedFields)
	if renewed.IsZero() {
		return false, 0
	}
	if age := date.Sub(renewed); age >= over {
		return true, 0
	} else if age < 0 { // another API server's clock
		return false, 0
	} else {
		return false, ceil(over-age, resolution)
	}
}

// overAfter is the age, by the server's clock, at which a record is expired; 0 if
// that is not judged.
func (s *Store) overAfter(r backend.Record) time.Duration {
	if s.margin == 0 || r.Holder == "" || r.Seal != nil || r.Duration <= 0 {
		return 0
	}
	return r.Duration + s.margin + resolution
}

func ceil(d, unit time.Duration) time.Duration { return (d + unit - 1) / unit * unit }

// slack is how late Expired may turn true: both readings may be off by the
// resolution.
func (s *Store) slack() time.Duration {
	if s.margin == 0 {
		return backend.Forever
	}
	return s.margin + 2*resolution
}
