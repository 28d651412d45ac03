package redis

import (
	"fmt"
	"strings"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/leasehold/leasehold/backend"
)

// TestInvalid: what is wrong with the arguments of New every call says, and nothing is
// sent.
func TestInvalid(t *testing.T) {
	var noClient *goredis.Client
	var noCluster *goredis.ClusterClient
	for _, c := range []struct {
		what   string
		make   func(c *goredis.Client) *Store
		reason string
	}{
		{"no client", func(*goredis.Client) *Store { return New(nil, "") }, "needs a client"},
		{"a nil Client", func(*goredis.Client) *Store { return New(noClient, "") }, "needs a client"},
		{"a nil ClusterClient", func(*goredis.Client) *Store { return New(noCluster, "") }, "needs a client"},
		{"a Ring", func(*goredis.Client) *Store {
			ring := goredis.NewRing(&goredis.RingOptions{Addrs: map[string]string{"a": "192.0.2.1:1"}})
			_ = ring.Close()
			return New(ring, "")
		}, "cannot use a Ring"},
		{"retention too short", func(c *goredis.Client) *Store { return New(c, "", WithRetention(999*time.Millisecond)) }, "retention is 999ms"},
		{"retention too long", func(c *goredis.Client) *Store { return New(c, "", WithRetention(backend.MaxDuration+1)) }, "retention is"},
		{"no retention", func(c *goredis.Client) *Store { return New(c, "", WithRetention(0)) }, "retention is 0s"},
		{"negative replicas", func(c *goredis.Client) *Store { return New(c, "", WithReplicas(-1, 0)) }, "-1 replicas"},
		{"negative wait", func(c *goredis.Client) *Store { return New(c, "", WithReplicas(1, -1)) }, "cannot be waited for"},
		{"a brace", func(c *goredis.Client) *Store { return New(c, "a{") }, "hash tag"},
		{"no UTF-8", func(c *goredis.Client) *Store { return New(c, "\xff") }, "UTF-8"},
		{"NUL", func(c *goredis.Client) *Store { return New(c, "a\x00") }, "NUL"},
		{"too long", func(c *goredis.Client) *Store { return New(c, strings.Repeat("a", backend.MaxNameLen+1)) }, "bytes long"},
	} {
		t.Run(c.what, func(t *testing.T) {
			inBubble(t, func(t *testing.T, f *fake) {
				s := c.make(f.client())
				everyCall(t, s, backend.Record{Name: "report", Holder: "alice", Token: 1}, func(what string, err error) {
					refused(t, what, err, backend.ErrInvalid)
					if !strings.Contains(fmt.Sprint(err), c.reason) {
						t.Errorf("%s: %v, want %s", what, err, c.reason)
					}
				})
				for finding := range s.Examine(t.Context()) {
					if finding.Level != backend.Problem || !strings.Contains(finding.Detail, c.reason) {
						t.Errorf("Examine: %+v", finding)
					}
				}
				if s.Traits().Name != "redis" {
					t.Error("it has no traits")
				}
				if err := s.Close(); err != nil {
					t.Error(err)
				}
				if f.dials > 0 {
					t.Errorf("%d connections", f.dials)
				}
			})
		})
	}
}

// TestValid: the limits themselves are allowed, and what is wrong with a call is said
// before anything is sent.
func TestValid(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fake) {
		s := f.storeOf(f.client(), WithRetention(time.Second), WithRetention(backend.MaxDuration), WithReplicas(0, 0), WithRequestTimeout(0), WithRequestTimeout(-1))
		if s.invalid != nil || s.timeout != defaultTimeout || s.keep != "31536000000" {
			t.Errorf("%v, %v, %s", s.invalid, s.timeout, s.keep)
		}
		if s := f.storeOf(f.client(), WithReplicas(1, 0)); s.replicasTimeout != 500*time.Millisecond {
			t.Errorf("WAIT for %v", s.replicasTimeout)
		}
		if s := f.storeOf(f.client(), WithReplicas(1, time.Microsecond)); s.replicasTimeout < time.Millisecond {
			t.Errorf("WAIT for %v, which is for ever", s.replicasTimeout)
		}
		for what, edit := range map[string]func(c *backend.Claim){
			"no name":         func(c *backend.Claim) { c.Name = "" },
			"a name with NUL": func(c *backend.Claim) { c.Name = "a\x00" },
			"no holder":       func(c *backend.Claim) { c.Holder = "" },
			"too short":       func(c *backend.Claim) { c.Duration = minDuration - 1 },
			"too long":        func(c *backend.Claim) { c.Duration = backend.MaxDuration + 1 },
			"forever":         func(c *backend.Claim) { c.Duration = backend.Forever },
			"token too great": func(c *backend.Claim) { c.MinToken = backend.MaxToken + 1 },
		} {
			c := claim("alice", "a1")
			edit(&c)
			_, err := s.Acquire(t.Context(), c)
			refused(t, what, err, backend.ErrInvalid)
		}
		rec := backend.Record{Name: "", Holder: "alice", Token: 1}
		_, err := s.Renew(t.Context(), rec)
		refused(t, "renew no name", err, backend.ErrInvalid)
		refused(t, "release no name", s.Release(t.Context(), rec), backend.ErrInvalid)
		if f.dials > 0 {
			t.Errorf("%d connections", f.dials)
		}
	})
	s := New(nil, "")
	if s.Prefix() != DefaultPrefix || s.Traits().Namespace != DefaultPrefix {
		t.Errorf("the default prefix is %q", s.Prefix())
	}
}

// TestSent fixes what scripts are told, which those of other versions that share the
// keys rely on.
func TestSent(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fake) {
		s := f.storeOf(f.client(), WithRetention(time.Hour))
		var argv []string
		f.hooks(func(r request) any { argv = r.args[5:]; return nil }, nil)
		expect := func(what string, want ...string) {
			t.Helper()
			if fmt.Sprint(argv) != fmt.Sprint(want) {
				t.Errorf("%s: %q, want %q", what, argv, want)
			}
		}
		rec := acquired(t, s, claim("alice", "a1"))
		expect("acquire", "alice", "a1", "10000", "3600000", "1")
		if _, err := s.Renew(t.Context(), rec); err != nil {
			t.Fatal(err)
		}
		expect("renew", "alice", rec.Revision, "3600000", "0", "1")
		other := rec
		other.Revision = "x"
		if _, err := s.Renew(t.Context(), other); err != nil {
			t.Fatal(err)
		}
		expect("renew a record of somebody's", "alice", rec.Revision, "3600000", "1", "1")
		if err := s.Release(t.Context(), rec); err != nil {
			t.Fatal(err)
		}
		expect("release", "alice", rec.Revision, "0", "3600000", "1")
		c := claim("alice", "a2")
		c.Duration = 1500 * time.Microsecond * 1000
		rec = acquired(t, s, c)
		expect("another acquire", "alice", "a2", "1500", "3600000", "1")
		c = claim("bob", "")
		c.Over, c.MinToken, c.Metadata = rec.Revision, 7, map[string]string{"a": "b"}
		acquired(t, s, c)
		if len(argv) != 10 || argv[5] == "" || argv[6] != rec.Revision || argv[7] != "7" || argv[8] != "metadata" || argv[9] != `{"a":"b"}` {
			t.Errorf("over: %q", argv)
		}
		// An expired tenure is released by whoever has seen it so, and it as it was.
		time.Sleep(time.Minute)
		rec, err := s.Get(t.Context(), "report")
		if err != nil || !rec.Expired {
			t.Fatalf("%+v, %v", rec, err)
		}
		argv = nil
		stale := rec
		stale.Revision = "7"
		refused(t, "another revision", s.Release(t.Context(), stale), backend.ErrLost)
		expect("another revision")
		if err := s.Release(t.Context(), rec); err != nil {
			t.Fatal(err)
		}
		expect("release of an expired one", "bob", rec.Revision, "1", "3600000", "1")
	})
}
