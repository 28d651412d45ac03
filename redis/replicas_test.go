package redis

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/leasehold/leasehold/backend"
)

// TestReplicas: WAIT follows the script on its connection; if too few replicas have
// what was written the outcome is unknown, and a refusal is one all the same.
func TestReplicas(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fake) {
		s := f.storeOf(f.client(), WithReplicas(2, 300*time.Millisecond))
		last := map[int]string{}
		var waits [][]string
		check := func(r request) any {
			f.with(func() {
				if r.what == "WAIT" {
					waits = append(waits, r.args)
					if w := strings.ToLower(last[r.conn]); w != "acquire" && w != "renew" {
						t.Errorf("WAIT follows %q on its connection", w)
					}
				}
				last[r.conn] = r.what
			})
			return nil
		}
		f.hooks(check, nil)
		f.acks = 2
		f.flush() // the text is followed by it, too
		rec := acquired(t, s, claim("alice", "a1"))
		if _, err := s.Renew(t.Context(), rec); err != nil {
			t.Fatal(err)
		}
		if got := f.requests(); got != "acquire WAIT ACQUIRE WAIT renew WAIT RENEW WAIT" {
			t.Errorf("sent: %s", got)
		}
		for _, w := range waits {
			if len(w) != 3 || w[1] != "2" || w[2] != "300" {
				t.Errorf("sent: %q", w)
			}
		}
		f.with(func() { f.acks = 1 })
		_, err := s.Renew(t.Context(), rec)
		if unknown(t, "renew", err); !strings.Contains(fmt.Sprint(err), "1 of 2 replicas") {
			t.Error(err)
		}
		_, err = s.Acquire(t.Context(), claim("bob", "b1"))
		refused(t, "bob", err, backend.ErrHeld)
		f.requests()
		if _, err := s.Get(t.Context(), "report"); err != nil {
			t.Error(err)
		}
		if err := s.Release(t.Context(), rec); err != nil {
			t.Error(err)
		}
		if got := f.requests(); got != "get GET release RELEASE" {
			t.Errorf("sent: %s", got)
		}
		_, err = s.Renew(t.Context(), rec)
		refused(t, "released", err, backend.ErrLost)
		_, err = s.Acquire(t.Context(), claim("alice", "a2"))
		unknown(t, "acquire", err)
		// The same once more, when the replica is back.
		f.with(func() { f.acks = 2 })
		if _, err = s.Acquire(t.Context(), claim("alice", "a2")); err != nil {
			t.Error(err)
		}
		// What it is told of replicas may fail.
		f.hooks(func(r request) any {
			if r.what == "WAIT" {
				return refusal("ERR WAIT cannot be used with replica instances.")
			}
			return nil
		}, nil)
		_, err = s.Acquire(t.Context(), claim("alice", "a2"))
		if unknown(t, "WAIT fails", err); !strings.Contains(fmt.Sprint(err), "not known whether replicas have it") {
			t.Error(err)
		}
		_, err = s.Acquire(t.Context(), claim("bob", "b1"))
		refused(t, "bob, WAIT fails", err, backend.ErrHeld)
	})
}

// TestReplicasTogether: what goes together is waited for once, and what needs none is
// not affected.
func TestReplicasTogether(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fake) {
		s := f.storeOf(f.client(), WithReplicas(1, 0))
		f.acks = 1
		m := hold(t, s, 8)
		f.acks = 0
		release := make(chan struct{})
		f.hooks(func(r request) any { r.wait(release); return nil }, nil)
		m.renew(t.Context(), 0, 2)
		synctest.Wait()
		m.renew(t.Context(), 2, 6)
		synctest.Wait()
		for i := 6; i < 8; i++ {
			m.wg.Go(func() {
				if m.errs[i] = s.Release(t.Context(), m.recs[i]); m.errs[i] != nil {
					t.Errorf("release: %v", m.errs[i])
				}
			})
		}
		synctest.Wait()
		close(release)
		m.wg.Wait()
		for i, err := range m.errs[:6] {
			unknown(t, fmt.Sprint("n", i), err)
		}
		if got := f.count("WAIT"); got != 3 {
			t.Errorf("it waits %d times, want once for each of three trips", got)
		}
	})
}

// TestReplicasLost: the answer to WAIT is lost, and all is sent again on another
// connection.
func TestReplicasLost(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fake) {
		s := f.storeOf(f.client(), WithReplicas(1, 0))
		f.acks = 1
		f.hooks(nil, lostReplies("WAIT", 1))
		rec := acquired(t, s, claim("alice", "a1"))
		if got := f.requests(); got != "acquire WAIT acquire WAIT" {
			t.Errorf("sent: %s", got)
		}
		f.hooks(nil, lostReplies("WAIT", 1))
		if _, err := s.Renew(t.Context(), rec); err != nil {
			t.Error(err)
		}
	})
}

// TestSealReplicated: a seal is waited for where there is a replica, also by a store
// that was not told to.
func TestSealReplicated(t *testing.T) {
	for _, acks := range []int64{0, 1} {
		inBubble(t, func(t *testing.T, f *fake) {
			s := f.store()
			f.acks = acks
			c := claim("mover", "m1")
			c.Duration, c.Seal = backend.Forever, &backend.Seal{To: "etcd", Epoch: 3, Heir: "alice", HeirDuration: 10 * time.Second}
			rec := acquired(t, s, c)
			want := map[int64]string{0: "INFO acquire", 1: "INFO acquire WAIT"}[acks]
			if got := f.requests(); got != want {
				t.Errorf("sent: %s, want %s", got, want)
			}
			got, err := s.Get(t.Context(), "report")
			if err != nil || got.Seal == nil || *got.Seal != *c.Seal || got.Duration != backend.Forever || got.Expired || !got.SameTenure(rec) {
				t.Errorf("%+v, %v", got, err)
			}
			now, err := s.Renew(t.Context(), rec)
			if err != nil || now.Seal == nil || now.Duration != backend.Forever {
				t.Errorf("renewed: %+v, %v", now, err)
			}
			_, err = s.Acquire(t.Context(), claim("bob", "b1"))
			var held *backend.HeldError
			if !errors.As(err, &held) || held.Record.Seal == nil {
				t.Errorf("bob: %v", err)
			}
			if err := s.Release(t.Context(), rec); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestSealUnasked: whether there are replicas must be known before a seal is written.
func TestSealUnasked(t *testing.T) {
	for text, class := range map[string]error{
		"NOPERM this user has no permissions to run the 'info' command": backend.ErrDenied,
		"LOADING Redis is loading the dataset in memory":                nil,
	} {
		inBubble(t, func(t *testing.T, f *fake) {
			f.hooks(answer("INFO", refusal(text)), nil)
			c := claim("mover", "m1")
			c.Duration, c.Seal = backend.Forever, &backend.Seal{To: "etcd", Epoch: 1}
			_, err := f.store().Acquire(t.Context(), c)
			if class == nil {
				unknown(t, text, err)
			} else {
				refused(t, text, err, class)
			}
			if n := f.count("acquire"); n != 0 {
				t.Errorf("%s: it is written all the same", text)
			}
		})
	}
}
