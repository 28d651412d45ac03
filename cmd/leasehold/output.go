package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/cmd/leasehold/internal/departed"
)

// readable is a duration as people say it: 250ms, 12s, 3m5s, 2h4m, 3d4h.
func readable(d time.Duration) string {
	two := func(big time.Duration, bigUnit string, small time.Duration, smallUnit string) string {
		n := d / small
		b, s := n/(big/small), n%(big/small)
		if s == 0 {
			return fmt.Sprint(int64(b), bigUnit)
		}
		return fmt.Sprint(int64(b), bigUnit, int64(s), smallUnit)
	}
	const day = 24 * time.Hour
	switch {
	case d < 0:
		return "-" + readable(-d)
	case d >= backend.Forever:
		return "for ever"
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < 10*time.Second:
		return d.Round(100 * time.Millisecond).String()
	case d < time.Minute:
		return d.Round(time.Second).String()
	case d < time.Hour:
		return two(time.Minute, "m", time.Second, "s")
	case d < day:
		return two(time.Hour, "h", time.Minute, "m")
	}
	return two(day, "d", time.Hour, "h")
}

// plain is text from a store, fit for a terminal.
func plain(s string) string {
	if strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return strconv.Quote(s)
	}
	return s
}

// state is what a record means, in a word.
func state(rec backend.Record) string {
	switch {
	case rec.Seal != nil:
		return "moved"
	case rec.Vacant():
		return "free"
	case rec.Expired:
		return "expired"
	}
	return "held"
}

// view is a record for programs.
type view struct {
	Name        string            `json:"name"`
	State       string            `json:"state"` // held, free, expired, moved, unreadable
	Holder      string            `json:"holder,omitempty"`
	Token       uint64            `json:"token,omitempty"`
	DurationMS  int64             `json:"duration_ms,omitempty"`
	RemainingMS int64             `json:"remaining_ms,omitempty"`
	AcquiredAt  *time.Time        `json:"acquired_at,omitempty"`
	RenewedAt   *time.Time        `json:"renewed_at,omitempty"`
	Transitions int64             `json:"transitions,omitempty"`
	Metadata    map[string]string `json:"metadata,omitempty"`
	MovedTo     string            `json:"moved_to,omitempty"`
	Error       string            `json:"error,omitempty"`
}

func newView(rec backend.Record) view {
	v := view{
		Name:        rec.Name,
		State:       state(rec),
		Holder:      rec.Holder,
		Token:       rec.Token,
		DurationMS:  rec.Duration.Milliseconds(),
		RemainingMS: rec.Remaining.Milliseconds(),
		Transitions: rec.Transitions,
		Metadata:    rec.Metadata,
	}
	if !rec.AcquiredAt.IsZero() {
		v.AcquiredAt = &rec.AcquiredAt
	}
	if !rec.RenewedAt.IsZero() {
		v.RenewedAt = &rec.RenewedAt
	}
	if rec.Seal != nil {
		v.MovedTo = rec.Seal.To
	}
	return v
}

func printJSON(w io.Writer, v any) error {
	line, err := json.Marshal(v)
	if err == nil {
		_, err = fmt.Fprintf(w, "%s\n", line)
	}
	return err
}

// age is how long ago something was, by the wall clock; "" if that is not known.
func age(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return readable(max(time.Since(t), 0))
}

// remaining is the time until the record expires, for a table.
func remaining(rec backend.Record) string {
	if rec.Live() && rec.Seal == nil && rec.Remaining > 0 {
		return readable(rec.Remaining)
	}
	return ""
}

// held says who holds a record, in a sentence that goes on.
func held(rec backend.Record) string {
	s := fmt.Sprintf("held by %s", plain(rec.Holder))
	if rec.Remaining > 0 {
		s += fmt.Sprintf(", for another %s at most unless renewed", readable(rec.Remaining))
	}
	return s
}

// ownMetadata is the metadata that people put there.
func ownMetadata(rec backend.Record) map[string]string { return departed.Own(rec.Metadata) }
