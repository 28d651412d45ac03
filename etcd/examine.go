package etcd

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"iter"
	"strconv"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/leasehold/leasehold/backend"
)

// questionTime is how long each question of Examine may take.
const questionTime = 3 * time.Second

// Examine asks every member for its state, and the cluster for its members, for
// whether it wants a login, for the right to read and to write under the prefix
// (with a Txn whose condition never holds, so nothing is written), and for the
// shortest lease that it grants: one of etcd's own, of 1 s and without a key, which
// is given back at once. Traits.MinDuration is that from then on.
func (s *Store) Examine(ctx context.Context) iter.Seq[backend.Finding] {
	return func(yield func(backend.Finding) bool) {
		if err := s.usable(ctx); err != nil {
			if ctx.Err() == nil {
				yield(backend.Finding{Check: "etcd", Level: backend.Problem, Detail: err.Error()})
			}
			return
		}
		answers := s.askMembers(ctx)
		up := 0
		for _, a := range answers {
			if a.err == nil {
				up++
			}
		}
		more := func(f backend.Finding) bool { return ctx.Err() == nil && yield(f) }
		for _, a := range answers {
			if !more(s.memberFinding(a, up > len(answers)/2)) {
				return
			}
		}
		for _, f := range alarmFindings(answers) {
			if !more(f) {
				return
			}
		}
		if up == 0 {
			return
		}
		for _, question := range []func(context.Context, []answer) backend.Finding{
			s.clusterFinding, s.securityFinding, s.readFinding, s.writeFinding, s.shortestFinding,
		} {
			ask, cancel := context.WithTimeout(clientv3.WithRequireLeader(ctx), questionTime)
			f := question(ask, answers)
			cancel()
			if f.Check != "" && !more(f) || f.Level == backend.Problem { // all else would fail likewise
				return
			}
		}
	}
}

// answer is what a member says of itself.
type answer struct {
	endpoint string
	*pb.StatusResponse
	err         error
	took        time.Duration
	secure      bool
	certificate *x509.Certificate // of the member
}

// askMembers asks all at once, each over a connection of its own.
func (s *Store) askMembers(ctx context.Context) []answer {
	endpoints := s.client.Endpoints()
	answers := make([]answer, len(endpoints))
	done := make(chan struct{})
	for i, e := range endpoints {
		go func() {
			answers[i] = s.askMember(ctx, e)
			done <- struct{}{}
		}()
	}
	for range endpoints {
		<-done
	}
	return answers
}

func (s *Store) askMember(ctx context.Context, endpoint string) answer {
	a := answer{endpoint: endpoint}
	ctx, cancel := context.WithTimeout(ctx, questionTime)
	defer cancel()
	conn, err := s.client.Dial(endpoint)
	if err != nil {
		a.err = err
		return a
	}
	defer conn.Close()
	ask := func() error {
		var from peer.Peer
		began := time.Now()
		resp, err := pb.NewMaintenanceClient(conn).Status(ctx, &pb.StatusRequest{}, grpc.Peer(&from))
		a.took = time.Since(began)
		a.StatusResponse, a.err = resp, rpctypes.Error(err)
		if info, ok := from.AuthInfo.(credentials.TLSInfo); ok {
			a.secure = true
			if len(info.State.PeerCertificates) > 0 {
				a.certificate = info.State.PeerCertificates[0]
			}
		}
		return a.err
	}
	if ask() == nil {
		_ = ask() // the first has made the connection, which is not what is measured
	}
	return a
}

// lastDays is how long before the end of a certificate somebody should know.
const lastDays = 14 * 24 * time.Hour

// memberFinding tells of one member. most is true if most members answer.
func (s *Store) memberFinding(a answer, most bool) backend.Finding {
	f := backend.Finding{Check: "member " + strings.TrimPrefix(strings.TrimPrefix(a.endpoint, "http://"), "https://")}
	if a.err != nil {
		err := describe("asking for its state", []string{a.endpoint}, s.prefix, a.err)
		f.Level, f.Detail = backend.Problem, err.Error()
		f.Fix = "see that this member runs, that the address is right, and that nothing between here and there keeps it from answering"
		if backend.Definite(err) {
			f.Fix = "correct what it names: the URL, or the configuration of the client"
		}
		if most {
			f.Level = backend.Warning
			f.Detail += "; most members do answer"
		}
		return f
	}
	f.Detail = fmt.Sprintf("etcd %s answered in %v, term %d", a.Version, a.took.Round(10*time.Microsecond), a.RaftTerm)
	bugs, upgrade := knownBugs(a.Version)
	left := lastDays
	if a.certificate != nil {
		left = time.Until(a.certificate.NotAfter)
	}
	var full float64
	// Versions before 3.6 do not tell, nor do older clients know of it.
	if q, ok := any(a.StatusResponse).(interface{ GetDbSizeQuota() int64 }); ok && q.GetDbSizeQuota() > 0 {
		full = float64(a.DbSize) / float64(q.GetDbSizeQuota())
		f.Detail += fmt.Sprintf(", %s of %s used", size(a.DbSize), size(q.GetDbSizeQuota()))
	} else if a.DbSize > 0 {
		f.Detail += ", " + size(a.DbSize) + " used"
	}
	switch {
	case a.Leader == 0:
		f.Level = backend.Problem
		f.Detail += "; it knows of no leader, so it grants and renews nothing"
		f.Fix = "a majority of the members must be up and reach each other"
		if most {
			f.Fix += ": see why this one is cut off"
		}
	case a.IsLearner:
		f.Level = backend.Warning
		f.Detail += "; it is a learner, which answers nothing that leases need"
		f.Fix = "promote it (etcdctl member promote), or leave it out of the endpoints"
	case len(bugs) > 0:
		f.Level = backend.Warning
		f.Detail += "; in this version " + strings.Join(bugs, ", and ")
		f.Fix = "upgrade to " + upgrade + " or newer"
	case full > 0.8:
		f.Level = backend.Warning
		f.Detail += "; when all is used etcd takes no writes any more"
		f.Fix = "compact and defragment it, or raise its --quota-backend-bytes"
	case left < lastDays:
		f.Level = backend.Warning
		f.Detail += fmt.Sprintf("; its certificate ends at %s", a.certificate.NotAfter.UTC().Format(time.RFC3339))
		f.Fix = "renew the certificate: without a valid one no client connects"
	default:
		if a.Leader == a.Header.GetMemberId() {
			f.Detail += ", the leader"
		}
	}
	return f
}

func size(n int64) string {
	const mib, gib = 1 << 20, 1 << 30
	switch {
	case n < mib:
		return fmt.Sprintf("%d KiB", (n+1023)/1024)
	case n < gib:
		return fmt.Sprintf("%.1f MiB", float64(n)/mib)
	}
	return fmt.Sprintf("%.1f GiB", float64(n)/gib)
}

// bugs of etcd that matter to leases, and the patch of each minor version that
// mended them. What is older than these never was, what is newer never had them.
var bugs = []struct {
	what  string
	fixed map[int]int // of 3.x
}{
	// etcd-io/etcd#15247
	{"a leader that was stuck can end and renew leases that are another leader's", map[int]int{4: 31, 5: 13}},
	// etcd-io/etcd#20615
	{"a renewal may be acknowledged after the lease was revoked", map[int]int{4: 38, 5: 23, 6: 5}},
	// etcd-io/etcd#20418
	{"a member that was paused may answer a read with the past", map[int]int{4: 42, 5: 28, 6: 9}},
}

// knownBugs returns those of a version, and the version to upgrade to. A version
// that it cannot read has none.
func knownBugs(version string) (what []string, upgrade string) {
	parts := strings.SplitN(strings.TrimPrefix(version, "v"), ".", 3)
	if len(parts) < 3 || parts[0] != "3" {
		return nil, ""
	}
	patchText, _, _ := strings.Cut(parts[2], "-")
	patchText, _, _ = strings.Cut(patchText, "+")
	minor, err1 := strconv.Atoi(parts[1])
	patch, err2 := strconv.Atoi(patchText)
	if err1 != nil || err2 != nil {
		return nil, ""
	}
	best := 0
	for _, b := range bugs {
		fixed, ok := b.fixed[minor]
		if minor < 4 || ok && patch < fixed {
			what = append(what, b.what)
			best = max(best, fixed)
		}
	}
	switch {
	case what == nil:
		return nil, ""
	case minor < 4:
		return what, "3.5.28"
	}
	return what, fmt.Sprintf("3.%d.%d", minor, best)
}

// alarmFindings tells of alarms, which every member tells with its state, so that
// nobody needs the right to list them. An alarm of one is an alarm of all.
func alarmFindings(answers []answer) []backend.Finding {
	var text strings.Builder
	for _, a := range answers {
		if a.err == nil {
			fmt.Fprintln(&text, strings.Join(a.Errors, "\n"))
		}
	}
	var found []backend.Finding
	if strings.Contains(text.String(), "NOSPACE") {
		found = append(found, backend.Finding{
			Check: "alarms", Level: backend.Problem,
			Detail: "NOSPACE: a member has used all its space, and etcd takes no writes: leases are renewed, and none is granted",
			Fix:    "compact and defragment it, or raise its --quota-backend-bytes, then etcdctl alarm disarm",
		})
	}
	if strings.Contains(text.String(), "CORRUPT") {
		found = append(found, backend.Finding{
			Check: "alarms", Level: backend.Problem,
			Detail: "CORRUPT: the data of a member differs from that of the others",
			Fix:    "find it with etcdctl alarm list, and replace it",
		})
	}
	return found
}

// clusterFinding tells whether the endpoints are the members of one cluster. It
// says nothing where that is so.
func (s *Store) clusterFinding(ctx context.Context, answers []answer) backend.Finding {
	f := backend.Finding{Check: "cluster"}
	var id uint64
	for _, a := range answers {
		switch {
		case a.err != nil:
		case id == 0:
			id = a.Header.GetClusterId()
		case id != a.Header.GetClusterId():
			f.Level = backend.Problem
			f.Detail = "the members are of different clusters, which know nothing of each other: each would grant the same lease"
			f.Fix = "give the endpoints of one cluster only"
			return f
		}
	}
	var resp *clientv3.MemberListResponse
	err := repeat(ctx, hung, func(ctx context.Context) (err error) {
		resp, err = s.client.MemberList(ctx)
		return err
	})
	if err != nil {
		f.Level, f.Detail = backend.Note, s.describe("asking for the members", err).Error()
		return f
	}
	voters := 0
	for _, m := range resp.Members {
		if !m.IsLearner {
			voters++
		}
	}
	f.Detail = fmt.Sprintf("%d members", voters)
	if voters == 1 {
		f.Detail = "1 member"
	}
	switch {
	case voters%2 == 0:
		f.Level = backend.Note
		f.Detail += fmt.Sprintf(": %d may fail, as of %d, and there is one more that can", (voters-1)/2, voters-1)
		f.Fix = "run an odd number of members"
	case len(answers) == 1 && voters > 1:
		f.Level = backend.Note
		f.Detail += ", of which one endpoint is given: if that leads to one of them, leases end when it fails"
		f.Fix = "give the endpoints of all members"
	case voters == 1:
		f.Detail += ": while it is down nothing is granted or renewed"
	default:
		f.Detail += fmt.Sprintf(", of which %d may fail", (voters-1)/2)
	}
	return f
}

// securityFinding tells who is let in.
func (s *Store) securityFinding(ctx context.Context, answers []answer) backend.Finding {
	f := backend.Finding{Check: "access"}
	secure := true
	for _, a := range answers {
		secure = secure && (a.err != nil || a.secure)
	}
	f.Detail = "without TLS"
	if secure {
		f.Detail = "TLS"
	}
	enabled, known := true, true
	switch err := repeat(ctx, hung, func(ctx context.Context) error {
		resp, err := s.client.AuthStatus(ctx)
		if err == nil {
			enabled = resp.Enabled
		}
		return err
	}); {
	case err == nil:
	case errors.Is(err, rpctypes.ErrPermissionDenied), errors.Is(err, rpctypes.ErrUserEmpty), errors.Is(err, rpctypes.ErrAuthFailed):
	default: // 3.4 does not tell
		known = false
	}
	switch user := s.client.Username; {
	case !known && user != "":
		f.Detail += fmt.Sprintf(", as the user %q, if etcd has authentication on", user)
	case !known:
		f.Detail += "; whether etcd wants a login cannot be found out"
	case enabled && user != "":
		f.Detail += fmt.Sprintf(", as the user %q", user)
		if !secure {
			f.Level = backend.Note
			f.Detail += ": the password can be read on the way"
			f.Fix = "use TLS"
		}
	case enabled:
		f.Detail += ", authentication is on"
	case user != "":
		f.Level = backend.Note
		f.Detail += fmt.Sprintf("; there is no login: the user %q is given, but etcd has authentication switched off", user)
		f.Fix = "etcdctl auth enable, or leave the user out"
	case secure:
		f.Detail += "; etcd has authentication switched off: whoever may connect may take any lease"
	default:
		f.Level = backend.Note
		f.Detail += ", and etcd has authentication switched off: whoever reaches it may take any lease"
		f.Fix = "unless only programs that are trusted reach it, use TLS with client certificates, or etcdctl auth enable"
	}
	return f
}

// permission tells what a question about a permission has failed with.
func (s *Store) permission(f backend.Finding, lack string, err error) backend.Finding {
	switch {
	case err == nil:
		f.Detail = "granted under " + s.prefix
	case errors.Is(err, rpctypes.ErrPermissionDenied):
		// A role may be for certain keys. Whoever tries will see.
		f.Level = backend.Warning
		f.Detail = fmt.Sprintf("not granted for all names under %s: %s, unless the role is for certain names", s.prefix, lack)
		f.Fix = "etcdctl role grant-permission ROLE readwrite --prefix=true " + s.prefix
	default:
		f.Level, f.Detail = backend.Problem, s.describe("asking for it", err).Error()
	}
	return f
}

func (s *Store) readFinding(ctx context.Context, _ []answer) backend.Finding {
	err := repeat(ctx, hung, func(ctx context.Context) error {
		_, err := s.client.Get(ctx, s.prefix, clientv3.WithPrefix(), clientv3.WithLimit(1), clientv3.WithKeysOnly())
		return err
	})
	return s.permission(backend.Finding{Check: "permission to read"}, "no record can be read, and leases cannot be listed", err)
}

// writeFinding asks by a Txn that can do nothing: of no key is the revision less
// than 0. What it would put and delete etcd checks all the same.
func (s *Store) writeFinding(ctx context.Context, _ []answer) backend.Finding {
	key := s.recordKey("leasehold-doctor")
	err := repeat(ctx, passing, func(ctx context.Context) error {
		_, err := s.client.Txn(ctx).
			If(clientv3.Compare(clientv3.ModRevision(key), "<", 0)).
			Then(clientv3.OpPut(key, ""), clientv3.OpDelete(aliveKey(key))).
			Commit()
		return err
	})
	f := backend.Finding{Check: "permission to write"}
	if errors.Is(err, rpctypes.ErrNoSpace) {
		return backend.Finding{} // which is told already
	}
	return s.permission(f, "no lease can be acquired, renewed or released", err)
}

// shortestFinding asks for the shortest lease.
func (s *Store) shortestFinding(ctx context.Context, _ []answer) backend.Finding {
	f := backend.Finding{Check: "shortest lease"}
	id, ttl, err := s.grant(ctx, time.Second)
	switch {
	case errors.Is(err, rpctypes.ErrNoSpace), errors.Is(err, rpctypes.ErrPermissionDenied):
		return backend.Finding{}
	case err != nil:
		f.Level, f.Detail = backend.Problem, s.describe("granting an etcd lease", err).Error()
		return f
	}
	s.revoke(ctx, id)
	s.minimum.Store(ttl)
	f.Detail = fmt.Sprintf("%d s (one and a half times the election timeout, rounded up)", ttl)
	if ttl > 10 {
		f.Level = backend.Note
		f.Detail += ": so long a crashed holder keeps others out at least"
	}
	return f
}
