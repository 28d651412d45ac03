package redis

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"time"

	"github.com/leasehold/leasehold/backend"
)

// seal is a backend.Seal as it stands in a record.
type seal struct {
	To           string `json:"to"`
	Epoch        uint64 `json:"epoch"`
	Heir         string `json:"heir,omitempty"`
	HeirDuration string `json:"heirDuration,omitempty"`
}

// The verdicts that come with a state.
const (
	verdictOK        = "ok"        // it is the caller's
	verdictExhausted = "exhausted" // there is no greater token
	// Or "held", or "lost": it is not.
)

// state is what a script tells of both keys.
type state struct {
	rec    backend.Record
	absent bool
	err    error // a *backend.CorruptError; rec has only Name and Revision then
	floor  uint64
	at     time.Time // by the server's clock
}

// decode reads what answer in state.lua has made.
func (s *Store) decode(name string, reply []any) (*state, error) {
	const length = 16
	if len(reply) != length {
		return nil, fmt.Errorf("lease %q: the script has answered %d values instead of %d: is there something between this program and Redis that changes answers?", name, len(reply), length)
	}
	f := make([]string, length)
	for i, v := range reply {
		f[i] = text(v)
	}
	revision, bad, by, tenure, lasts := f[1], f[2], f[3], f[4], f[5]
	attempt, acquired, transitions, metadata, sealed := f[6], f[7], f[8], f[9], f[10]
	floor, live, left := f[11], f[12] == "1", number(f[13])
	st := &state{
		rec: backend.Record{Name: name, Revision: revision},
		at:  time.Unix(number(f[14]), number(f[15])*1000).UTC(),
	}
	st.floor, _ = strconv.ParseUint(floor, 10, 64)
	record, _ := s.keys(name)
	corrupt := func(format string, args ...any) {
		st.rec = backend.Record{Name: name, Revision: revision}
		st.err = &backend.CorruptError{Name: name, Where: fmt.Sprintf("the Redis key %q", record), Revision: revision, Err: fmt.Errorf(format, args...)}
	}
	if bad != "" {
		corrupt("%s", bad)
		return st, nil
	}
	r := &st.rec
	r.Transitions = number(transitions)
	if by == "" {
		st.absent = floor == ""
		return st, nil
	}
	r.Holder, r.Attempt = by, attempt
	r.Token, _ = strconv.ParseUint(tenure, 10, 64)
	r.Duration = time.Duration(number(lasts)) * time.Millisecond
	r.AcquiredAt = acquiredAt(acquired, tenure)
	r.RenewedAt = r.AcquiredAt
	// What it says of its tenure besides is for people, and they may edit it.
	if metadata != "" && json.Unmarshal([]byte(metadata), &r.Metadata) != nil {
		r.Metadata = nil
	}
	switch {
	case sealed != "":
		var v seal
		if err := json.Unmarshal([]byte(sealed), &v); err != nil {
			corrupt("its seal cannot be read: %w", err)
			return st, nil
		}
		r.Seal = &backend.Seal{To: v.To, Epoch: v.Epoch, Heir: v.Heir}
		r.Seal.HeirDuration, _ = time.ParseDuration(v.HeirDuration)
		r.Duration = backend.Forever
	case !live:
		r.Expired = true
	case left >= 0 && left < backend.MaxDuration.Milliseconds(): // else somebody has changed its TTL
		// Redis calls a key expired when its last millisecond is over.
		r.Remaining = time.Duration(left+1) * time.Millisecond
		r.RenewedAt = st.at.Add(min(0, r.Remaining-r.Duration))
	}
	return st, nil
}

// granted is the record of a claim, if that was granted.
func granted(c backend.Claim, duration time.Duration, told string) (rec backend.Record, ok bool) {
	rec = backend.Record{Name: c.Name, Holder: c.Holder, Attempt: c.Attempt, Duration: duration}
	token, more, _ := strings.Cut(told, " ")
	acquired, transitions, _ := strings.Cut(more, " ")
	rec.Revision, rec.Transitions = token, number(transitions)
	rec.Token, _ = strconv.ParseUint(token, 10, 64)
	rec.AcquiredAt = acquiredAt(acquired, token)
	rec.RenewedAt = rec.AcquiredAt
	if len(c.Metadata) > 0 {
		rec.Metadata = maps.Clone(c.Metadata)
	}
	if c.Seal != nil {
		seal := *c.Seal
		rec.Seal = &seal
	} else {
		rec.Remaining = duration
	}
	return rec, rec.Token > 0
}

// renewed is what rec has become, if it was renewed.
func renewed(rec backend.Record, told string) (_ backend.Record, ok bool) {
	told, ok = strings.CutPrefix(told, "renewed ")
	ms, told, _ := strings.Cut(told, " ")
	seconds, micros, _ := strings.Cut(told, " ")
	rec.Duration = time.Duration(number(ms)) * time.Millisecond
	rec.RenewedAt = time.Unix(number(seconds), number(micros)*1000).UTC()
	rec.Expired, rec.Remaining = false, rec.Duration
	return rec, ok && rec.Duration > 0
}

// heard is the state that a message tells of, nil if there is more to know of it:
//
//	released <token>
//	granted <length of the attempt> <attempt> <token> <milliseconds> <holder>
func heard(name, message string) (st *state, token uint64) {
	what, rest, _ := strings.Cut(message, " ")
	switch what {
	case "released":
		if token, _ = strconv.ParseUint(rest, 10, 64); token > 0 {
			return &state{rec: backend.Record{Name: name}, absent: true}, token
		}
	case "granted":
		length, rest, _ := strings.Cut(rest, " ")
		n, err := strconv.Atoi(length)
		if err != nil || n < 0 || n >= len(rest) || rest[n] != ' ' {
			return nil, 0
		}
		f := strings.SplitN(rest[n+1:], " ", 3)
		if len(f) < 3 || f[2] == "" {
			return nil, 0
		}
		token, _ = strconv.ParseUint(f[0], 10, 64)
		duration := time.Duration(number(f[1])) * time.Millisecond
		if token == 0 || token > backend.MaxToken || duration <= 0 {
			return nil, 0
		}
		at := acquiredAt("", f[0])
		return &state{rec: backend.Record{
			Name: name, Holder: f[2], Token: token, Attempt: rest[:n], Duration: duration,
			AcquiredAt: at, RenewedAt: at, Remaining: duration, Revision: f[0],
		}, at: at}, token
	}
	return nil, 0
}

// acquiredAt is when a tenure began, which is its token if nothing else is said.
func acquiredAt(acquired, token string) time.Time {
	return time.UnixMicro(number(cmp.Or(acquired, token))).UTC()
}

// lost says why a state is not rec's tenure any more.
func (st *state) lost(rec backend.Record) error {
	now := st.rec
	why := fmt.Sprintf("it is %q who holds it now, with token %d", now.Holder, now.Token)
	switch {
	case st.err != nil:
		return st.err
	case st.absent:
		why = "there is no record any more"
	case now.Vacant():
		why = "nobody holds it any more"
	case now.SameTenure(rec) && now.Expired:
		why = fmt.Sprintf("the tenure of %q expired before it was renewed", rec.Holder)
	case now.SameTenure(rec):
		why = fmt.Sprintf("the tenure of %q was renewed since it was seen expired", rec.Holder)
	}
	return fmt.Errorf("%w: lease %q: %s", backend.ErrLost, rec.Name, why)
}

func text(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case int64:
		return strconv.FormatInt(v, 10)
	}
	return ""
}

func number(s string) int64 {
	n, _ := strconv.ParseInt(s, 10, 64)
	return n
}
