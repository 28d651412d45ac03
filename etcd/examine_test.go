package etcd

import (
	"crypto/x509"
	"errors"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/leasehold/leasehold/backend"
)

func TestKnownBugs(t *testing.T) {
	for version, want := range map[string]struct {
		bugs    int
		upgrade string
	}{
		"3.3.27":        {3, "3.5.28"},
		"3.4.0":         {3, "3.4.42"},
		"3.4.30":        {3, "3.4.42"},
		"3.4.31":        {2, "3.4.42"},
		"3.4.38":        {1, "3.4.42"},
		"3.4.41":        {1, "3.4.42"},
		"3.4.42":        {0, ""},
		"3.5.12":        {3, "3.5.28"},
		"3.5.13":        {2, "3.5.28"},
		"3.5.22":        {2, "3.5.28"},
		"3.5.23":        {1, "3.5.28"},
		"3.5.27":        {1, "3.5.28"},
		"3.5.28":        {0, ""},
		"3.5.100":       {0, ""},
		"3.6.0":         {2, "3.6.9"},
		"v3.6.4":        {2, "3.6.9"},
		"3.6.5":         {1, "3.6.9"},
		"3.6.8":         {1, "3.6.9"},
		"3.6.9":         {0, ""},
		"3.7.0":         {0, ""},
		"3.7.0-rc.1":    {0, ""},
		"3.5.9+vendor1": {3, "3.5.28"},
		"4.0.0":         {0, ""},
		"":              {0, ""},
		"3":             {0, ""},
		"not.a.version": {0, ""},
	} {
		bugs, upgrade := knownBugs(version)
		if len(bugs) != want.bugs || upgrade != want.upgrade {
			t.Errorf("%q: %q, upgrade to %q; want %d, %q", version, bugs, upgrade, want.bugs, want.upgrade)
		}
	}
}

func TestMemberFinding(t *testing.T) {
	s := New(nil, "/jobs")
	up := func(change func(*answer)) answer {
		a := answer{endpoint: "https://a:2379", took: time.Millisecond, StatusResponse: &pb.StatusResponse{
			Header: &pb.ResponseHeader{MemberId: 7, ClusterId: 1}, Version: "3.7.3", Leader: 7, RaftTerm: 5, DbSize: 3 << 20,
		}}
		change(&a)
		return a
	}
	for name, c := range map[string]struct {
		a     answer
		most  bool
		level backend.Level
		words []string
	}{
		"leader":          {up(func(a *answer) {}), true, backend.Good, []string{"etcd 3.7.3 answered in 1ms, term 5, 3.0 MiB used, the leader"}},
		"follower":        {up(func(a *answer) { a.Leader = 8 }), true, backend.Good, []string{"etcd 3.7.3"}},
		"no leader":       {up(func(a *answer) { a.Leader = 0 }), true, backend.Problem, []string{"knows of no leader", "cut off"}},
		"learner":         {up(func(a *answer) { a.IsLearner = true }), true, backend.Warning, []string{"learner", "etcdctl member promote"}},
		"old":             {up(func(a *answer) { a.Version = "3.5.9" }), true, backend.Warning, []string{"stuck", "revoked", "with the past", "upgrade to 3.5.28 or newer"}},
		"old, no leader":  {up(func(a *answer) { a.Version, a.Leader = "3.5.9", 0 }), true, backend.Problem, []string{"knows of no leader"}},
		"certificate":     {up(func(a *answer) { a.certificate = &x509.Certificate{NotAfter: time.Now().Add(time.Hour)} }), true, backend.Warning, []string{"certificate ends"}},
		"new certificate": {up(func(a *answer) { a.certificate = &x509.Certificate{NotAfter: time.Now().Add(100 * 24 * time.Hour)} }), true, backend.Good, nil},
		"silent":          {answer{endpoint: "http://a:2379", err: errors.New("gone")}, true, backend.Warning, []string{"gone", "most members do answer"}},
		"most silent":     {answer{endpoint: "http://a:2379", err: errors.New("gone")}, false, backend.Problem, []string{"gone", "see that this member runs"}},
	} {
		f := s.memberFinding(c.a, c.most)
		if f.Check != "member a:2379" || f.Level != c.level || f.Level > backend.Note && f.Fix == "" {
			t.Errorf("%s: %+v; want %v", name, f, c.level)
		}
		for _, w := range c.words {
			if !strings.Contains(f.Detail+" "+f.Fix, w) {
				t.Errorf("%s: %+v\ndoes not say %q", name, f, w)
			}
		}
	}
}

func TestAlarmFindings(t *testing.T) {
	with := func(errs ...string) []answer {
		return []answer{{err: errors.New("gone")}, {StatusResponse: &pb.StatusResponse{}}, {StatusResponse: &pb.StatusResponse{Errors: errs}}}
	}
	if found := alarmFindings(with()); len(found) != 0 {
		t.Errorf("without an alarm: %+v", found)
	}
	if found := alarmFindings(with("etcdserver: no leader")); len(found) != 0 {
		t.Errorf("no leader is no alarm: %+v", found)
	}
	found := alarmFindings(with("memberID:7 alarm:NOSPACE ", "memberID:8 alarm:CORRUPT "))
	if len(found) != 2 || found[0].Level != backend.Problem || !strings.Contains(found[0].Fix, "etcdctl alarm disarm") ||
		found[1].Level != backend.Problem || !strings.Contains(found[1].Fix, "etcdctl alarm list") {
		t.Errorf("%+v", found)
	}
}

func TestSize(t *testing.T) {
	for n, want := range map[int64]string{0: "0 KiB", 1: "1 KiB", 25 << 10: "25 KiB", 3 << 19: "1.5 MiB", 2 << 30: "2.0 GiB", 8 << 30: "8.0 GiB"} {
		if got := size(n); got != want {
			t.Errorf("%d is %q, want %q", n, got, want)
		}
	}
}
