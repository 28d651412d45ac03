package etcd

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/leasehold/leasehold/backend"
)

// What people do to records by hand must hurt nobody else.

// TestForeignLease: a record that was edited names the etcd lease of another tenure.
// That is neither renewed nor ended in its place.
func TestForeignLease(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, f *fake) {
		c := claim("bob", "b1")
		c.Name = "other"
		bob := acquired(t, f.store(), c)
		alice := acquired(t, f.store(), claim("alice", "a1"))
		number := func(r backend.Record) string {
			_, rest, _ := strings.Cut(r.Revision, "-")
			lease, _, _ := strings.Cut(rest, "-")
			return lease
		}
		value := string(f.now()["/t/report"].Value)
		f.set("/t/report", strings.Replace(value, number(alice), number(bob), 1), 0)

		s := f.store()
		seen := must(t, f, "report")
		if number(seen) != number(alice) {
			t.Errorf("revision %q, want the etcd lease %s that is in force", seen.Revision, number(alice))
		}
		seen.Revision = strings.Replace(seen.Revision, number(alice), number(bob), 1)
		if err := s.Release(t.Context(), seen); err != nil {
			t.Fatal(err)
		}
		if rec := must(t, f, "other"); !rec.SameTenure(bob) || rec.Expired {
			t.Errorf("bob's: %+v", rec)
		}
		if f.lent() != 1 {
			t.Errorf("%d etcd leases, want bob's", f.lent())
		}
	})
}

// TestSealWithoutRecord: what is left of a seal with a floor can be released, and
// leaves the floor.
func TestSealWithoutRecord(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, f *fake) {
		s := f.store()
		c := claim("alice", "a1")
		c.Duration, c.Seal, c.MinToken = backend.Forever, &backend.Seal{To: "there", Epoch: 1}, 1000
		rec := acquired(t, s, c)
		f.remove("/t/report")
		seen := must(t, f, "report")
		if seen.Seal == nil || !seen.SameTenure(rec) {
			t.Errorf("%+v", seen)
		}
		if err := s.Release(t.Context(), seen); err != nil {
			t.Fatal(err)
		}
		if next := acquired(t, s, claim("bob", "b1")); next.Token <= rec.Token {
			t.Errorf("token %d after %d", next.Token, rec.Token)
		}
	})
}

// TestSalvage: force over a record that cannot be read keeps the floor, if that can be
// made out.
func TestSalvage(t *testing.T) {
	for name, garble := range map[string]func(string) string{
		"something behind it": func(s string) string { return s + "}" },
		"a wrong type":        func(s string) string { return strings.Replace(s, `"duration":"`, `"duration":["`, 1) + `` },
		"a newer format":      func(string) string { return `{"version":2,"floor":1099511627776,"holder":{}}` },
	} {
		inBubble(t, 1, func(t *testing.T, f *fake) {
			s := f.store()
			c := claim("alice", "a1")
			c.MinToken = 1 << 40
			rec := acquired(t, s, c)
			f.set("/t/report", garble(string(f.now()["/t/report"].Value)), 0)
			time.Sleep(2 * c.Duration)
			var corrupt *backend.CorruptError
			if _, err := s.Get(t.Context(), "report"); !errors.As(err, &corrupt) {
				t.Fatalf("%s: %v", name, err)
			}
			c = claim("bob", "b1")
			c.Over = corrupt.Revision
			next := acquired(t, s, c)
			if kept := next.Token > rec.Token; kept != (name != "a wrong type") {
				t.Errorf("%s: token %d after %d", name, next.Token, rec.Token)
			}
		})
	}
}

// TestLateSeal: a seal has no etcd lease without which it could not be applied late.
// One that is refused while an earlier sending is on its way is not refused for certain.
func TestLateSeal(t *testing.T) {
	inBubble(t, 2, func(t *testing.T, f *fake) {
		other := f.store()
		late := make(chan struct{})
		f.hooks(func(ctx context.Context, c call) error {
			if c.what == "Txn" && c.n == 1 {
				acquired(t, other, claim("bob", "b1"))
				<-late
			}
			return nil
		}, nil)
		c := claim("alice", "a1")
		c.Duration, c.Seal = backend.Forever, &backend.Seal{To: "there"}
		_, err := f.store(WithRequestTimeout(4*time.Second)).Acquire(t.Context(), c)
		unknown(t, "a seal that may be applied late", err)
		close(late)
	})
}
