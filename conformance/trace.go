package conformance

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/leasehold/leasehold/backend"
)

// traceLen is how many calls a failure shows: enough for the steps of any case,
// and for the end of a long one.
const traceLen = 40

// trace remembers the last calls of a case, for its failure.
type trace struct {
	prefix string // of the names, left out of the lines
	start  time.Time

	mu      sync.Mutex
	calls   []*traced
	dropped int
}

// traced is one call, or several alike in a row.
type traced struct {
	what, answer string
	began, ended time.Duration // since the start; ended is 0 while there is no answer
	left         time.Duration // of the tenure, by the last answer
	times        int
}

func newTrace(prefix string) *trace { return &trace{prefix: prefix, start: time.Now()} }

// begin notes a call. The function it returns notes the answer.
func (t *trace) begin(what string) (answered func(answer string, left time.Duration)) {
	c := &traced{what: what, began: time.Since(t.start), times: 1}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.calls = append(t.calls, c); len(t.calls) > traceLen {
		t.calls = t.calls[1:]
		t.dropped++
	}
	return func(answer string, left time.Duration) {
		t.mu.Lock()
		defer t.mu.Unlock()
		c.answer, c.ended, c.left = answer, time.Since(t.start), left
		// A case that polls makes many calls of which only the last says anything.
		if n := len(t.calls) - 1; n > 0 && t.calls[n] == c {
			if before := t.calls[n-1]; before.what == what && before.answer == answer && before.ended != 0 {
				before.ended, before.left, before.times = c.ended, left, before.times+1
				t.calls = t.calls[:n]
			}
		}
	}
}

// note notes what was not a call.
func (t *trace) note(what, answer string) { t.begin(what)(answer, 0) }

func (t *trace) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var b strings.Builder
	if t.dropped > 0 {
		fmt.Fprintf(&b, "(%d earlier ones)\n", t.dropped)
	}
	for _, c := range t.calls {
		fmt.Fprintf(&b, "%8.1fms %s", ms(c.began), c.what)
		switch {
		case c.ended == 0:
			b.WriteString(" … no answer")
		case c.times > 1:
			fmt.Fprintf(&b, " … %d times until %.1fms", c.times, ms(c.ended))
			fallthrough
		default:
			fmt.Fprintf(&b, " → %s", c.answer)
			if c.left != 0 {
				fmt.Fprintf(&b, " for %v", c.left.Round(100*time.Microsecond))
			}
			if took := c.ended - c.began; c.times == 1 && took > time.Millisecond {
				fmt.Fprintf(&b, ", after %.1fms", ms(took))
			}
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// watch wraps a client so that its calls are remembered.
func (t *trace) watch(client string, s backend.Store) backend.Store {
	return wrap(s, func(ctx context.Context, c call, next func(context.Context) (backend.Record, error)) (backend.Record, error) {
		answered := t.begin(client + " " + t.describe(c))
		rec, err := next(ctx)
		answered(t.answer(c.verb, rec, err), rec.Remaining)
		return rec, err
	})
}

func (t *trace) describe(c call) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s(%s", c.verb, t.short(c.name))
	switch c.verb {
	case VerbAcquire:
		fmt.Fprintf(&b, " by %s for %v", t.short(c.claim.Holder), c.claim.Duration)
		if c.claim.Attempt != "" {
			fmt.Fprintf(&b, " attempt %.6s", c.claim.Attempt)
		}
		if c.claim.Over != "" {
			fmt.Fprintf(&b, " over %.24q", c.claim.Over)
		}
		if c.claim.MinToken > 0 {
			fmt.Fprintf(&b, " token above %d", c.claim.MinToken)
		}
		if c.claim.Seal != nil {
			fmt.Fprintf(&b, " seal %d to %s", c.claim.Seal.Epoch, t.short(c.claim.Seal.To))
		}
	case VerbRenew, VerbRelease:
		fmt.Fprintf(&b, " %s token %d", t.short(c.rec.Holder), c.rec.Token)
		if c.rec.Expired {
			fmt.Fprintf(&b, " expired at %.24q", c.rec.Revision)
		}
	}
	b.WriteByte(')')
	return b.String()
}

func (t *trace) answer(v Verb, rec backend.Record, err error) string {
	var held *backend.HeldError
	switch {
	case errors.As(err, &held):
		return "held: " + t.record(held.Record)
	case err != nil:
		return "error: " + strings.ReplaceAll(err.Error(), t.prefix, "·")
	case v == VerbRelease:
		return "ok"
	case v == VerbWatch || v == VerbList:
		return "end"
	}
	return t.record(rec)
}

func (t *trace) record(r backend.Record) string {
	if r.Vacant() {
		return fmt.Sprintf("vacant revision %.24q", r.Revision)
	}
	s := fmt.Sprintf("%s token %d revision %.24q", t.short(r.Holder), r.Token, r.Revision)
	if r.Expired {
		s += " expired"
	}
	if r.Seal != nil {
		s += fmt.Sprintf(" seal %d to %s", r.Seal.Epoch, t.short(r.Seal.To))
	}
	return s
}

// short keeps a line readable: names without their prefix, long texts cut.
func (t *trace) short(s string) string {
	s = strings.Replace(s, t.prefix, "·", 1)
	if q := fmt.Sprintf("%+q", s); len(q) != len(s)+2 && !strings.HasPrefix(s, "·") || len(s) > 48 {
		if len(q) > 48 {
			return q[:44] + "…\""
		}
		return q
	}
	return s
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
