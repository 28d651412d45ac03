package kubernetes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/internal/wait"
)

// cas is an API server's compare-and-swap, for what a real one cannot be made to
// do: answer wrongly, or at the wrong moment.
type cas struct {
	mu      sync.Mutex
	version int
	leases  map[string]*coordinationv1.Lease
	log     []string
	before  func(w http.ResponseWriter, r *http.Request) bool // true: answered
	change  func(l *coordinationv1.Lease)                     // an admission webhook
}

func newCAS(t *testing.T) (*cas, *rest.Config) {
	c := &cas{version: 100, leases: map[string]*coordinationv1.Lease{}}
	_, cfg := server(t, c.serve)
	return c, cfg
}

func (c *cas) serve(w http.ResponseWriter, r *http.Request) {
	const kind = `{"name":"x","group":"coordination.k8s.io","kind":"leases"}`
	c.mu.Lock()
	before := c.before
	c.mu.Unlock()
	if before != nil && before(w, r) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	_, name, _ := strings.Cut(r.URL.Path, "/leases/")
	c.log = append(c.log, r.Method)
	reply := func(code int, l *coordinationv1.Lease) {
		l.TypeMeta = metav1.TypeMeta{APIVersion: "coordination.k8s.io/v1", Kind: "Lease"}
		answer(w, code, text(l))
	}
	switch r.Method {
	case http.MethodGet:
		if l := c.leases[name]; l != nil {
			reply(200, l)
			return
		}
		answer(w, 404, status(404, "NotFound", "not found", kind))
	case http.MethodPost, http.MethodPut:
		l := new(coordinationv1.Lease)
		if err := json.NewDecoder(r.Body).Decode(l); err != nil {
			answer(w, 400, status(400, "BadRequest", err.Error(), ""))
			return
		}
		old := c.leases[l.Name]
		switch {
		case r.Method == http.MethodPost && old != nil:
			answer(w, 409, status(409, "AlreadyExists", "exists", kind))
			return
		case r.Method == http.MethodPost:
			l.UID = types.UID(fmt.Sprint("u", c.version))
		case old == nil || old.UID != l.UID || old.ResourceVersion != l.ResourceVersion:
			answer(w, 409, status(409, "Conflict", "modified", kind))
			return
		}
		if c.change != nil {
			c.change(l)
		}
		c.store(l)
		reply(200, l)
	case http.MethodDelete:
		c.version++
		delete(c.leases, name)
		answer(w, 200, `{"kind":"Status","apiVersion":"v1","status":"Success"}`)
	}
}

func (c *cas) store(l *coordinationv1.Lease) {
	c.version++
	l.ResourceVersion = fmt.Sprint(c.version)
	c.leases[l.Name] = l
}

func (c *cas) edit(f func(l *coordinationv1.Lease)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	l := c.leases["report"].DeepCopy()
	f(l)
	c.store(l)
}

// requests returns the methods of those since the last call.
func (c *cas) requests() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := strings.Join(c.log, " ")
	c.log = nil
	return all
}

func (c *cas) answers(f func(w http.ResponseWriter, r *http.Request) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.before = f
}

func acquired(t *testing.T, s *Store, c backend.Claim) backend.Record {
	t.Helper()
	rec, err := s.Acquire(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return rec
}

func over(c backend.Claim, rec backend.Record) backend.Claim {
	c.Over = rec.Revision
	return c
}

// TestRedirect: a PUT that a proxy redirects becomes a GET, whose answer must not
// count as a renewal.
func TestRedirect(t *testing.T) {
	c, cfg := newCAS(t)
	s := openStore(t, cfg)
	rec := acquired(t, s, claim("alice", "a1"))
	c.answers(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPut {
			return false
		}
		http.Redirect(w, r, r.URL.Path+"?again", http.StatusMovedPermanently)
		return true
	})
	if again, err := s.Renew(t.Context(), rec); err == nil || backend.Definite(err) {
		t.Errorf("a redirected renewal: %+v, %v", again, err)
	}
	if got := acquiredOver(t, s, rec); got == nil || backend.Definite(got) {
		t.Errorf("a redirected takeover: %v", got)
	}
}

func acquiredOver(t *testing.T, s *Store, rec backend.Record) error {
	_, err := s.Acquire(t.Context(), over(claim("bob", "b1"), rec))
	return err
}

// TestNotWhatWasWritten: what an admission webhook has made of a grant is nothing
// to rely on; and something was written, so the error is not a refusal.
func TestNotWhatWasWritten(t *testing.T) {
	for name, change := range map[string]func(l *coordinationv1.Lease){
		"strips annotations": func(l *coordinationv1.Lease) { l.Annotations = nil },
		"garbles them":       func(l *coordinationv1.Lease) { l.Annotations[keyTenure] = "{" },
		"renames the holder": func(l *coordinationv1.Lease) { l.Spec.HolderIdentity = ptr("team-a/alice") },
		"shortens it":        func(l *coordinationv1.Lease) { l.Spec.LeaseDurationSeconds = ptr(int32(1)) },
		"keeps the old time": func(l *coordinationv1.Lease) { l.Spec.RenewTime = nil },
	} {
		c, cfg := newCAS(t)
		c.change = change
		rec, err := openStore(t, cfg).Acquire(t.Context(), claim("alice", "a1"))
		if err == nil || backend.Definite(err) {
			t.Errorf("a webhook that %s: granted %+v, %v", name, rec, err)
		}
	}
	c, cfg := newCAS(t)
	c.change = func(l *coordinationv1.Lease) { l.Labels = map[string]string{"by": "policy"} }
	acquired(t, openStore(t, cfg), claim("alice", "a1")) // that is nobody's business
}

// TestTerminating: an object that is being deleted is no place to begin a tenure.
func TestTerminating(t *testing.T) {
	c, cfg := newCAS(t)
	a, b := openStore(t, cfg), openStore(t, cfg)
	rec := acquired(t, a, claim("alice", "a1"))
	c.edit(func(l *coordinationv1.Lease) {
		l.DeletionTimestamp, l.Finalizers = &metav1.Time{Time: time.Now()}, []string{"x/y"}
	})
	rec, err := a.Renew(t.Context(), rec)
	if err != nil {
		t.Fatalf("a tenure that was there before: %v", err)
	}
	for _, cl := range []backend.Claim{claim("bob", "b1"), over(claim("bob", "b1"), rec)} {
		if err := a.Release(t.Context(), rec); cl.Over == "" && err != nil {
			t.Fatal(err)
		}
		_, err := b.Acquire(t.Context(), cl)
		if err == nil || cl.Over == "" && (backend.Definite(err) || !strings.Contains(err.Error(), "finalizers")) {
			t.Errorf("a new tenure: %v", err)
		}
	}
}

// TestRenewSeal: that a seal is still there is for the server to say.
func TestRenewSeal(t *testing.T) {
	_, cfg := newCAS(t)
	a, b := openStore(t, cfg), openStore(t, cfg)
	c := claim("moved", "s1")
	c.Duration, c.Seal = backend.Forever, &backend.Seal{To: "etcd", Epoch: 1}
	rec := acquired(t, a, c)
	if _, err := a.Renew(t.Context(), rec); err != nil {
		t.Fatal(err)
	}
	acquired(t, b, over(claim("bob", "b1"), rec))
	if got, err := a.Renew(t.Context(), rec); !errors.Is(err, backend.ErrLost) {
		t.Errorf("a seal that was replaced: %+v, %v", got, err)
	}
}

// TestPendingReplaced: a pending tenure does not swallow the one that replaces it,
// though both are of one holder and have no Attempt.
func TestPendingReplaced(t *testing.T) {
	_, cfg := newCAS(t)
	a, b := openStore(t, cfg), openStore(t, cfg)
	first := acquired(t, a, claim("alice", ""))
	second := acquired(t, b, over(claim("alice", ""), first))
	if rec, err := a.Get(t.Context(), "report"); err != nil || rec.Token != second.Token {
		t.Errorf("the first client sees token %d, %v; want %d", rec.Token, err, second.Token)
	}
	if rec, err := a.Renew(t.Context(), first); !errors.Is(err, backend.ErrLost) {
		t.Errorf("the replaced tenure is renewed: %+v, %v", rec, err)
	}
	if err := a.Release(t.Context(), first); !errors.Is(err, backend.ErrLost) {
		t.Errorf("the replaced tenure is released: %v", err)
	}
}

// TestEditedDuration: what somebody else writes into leaseDurationSeconds takes
// nothing from what was granted.
func TestEditedDuration(t *testing.T) {
	c, cfg := newCAS(t)
	s := openStore(t, cfg)
	rec := acquired(t, s, claim("alice", "a1"))
	for _, edit := range []*int32{ptr(int32(1)), nil} {
		c.edit(func(l *coordinationv1.Lease) { l.Spec.LeaseDurationSeconds = edit })
		if seen, err := openStore(t, cfg).Get(t.Context(), "report"); err != nil || seen.Duration != 15*time.Second {
			t.Errorf("observers see a duration of %v, %v", seen.Duration, err)
		}
		var err error
		if rec, err = s.Renew(t.Context(), rec); err != nil || rec.Duration != 15*time.Second {
			t.Errorf("it is renewed for %v, %v", rec.Duration, err)
		}
	}
	if got := *c.leases["report"].Spec.LeaseDurationSeconds; got != 15 {
		t.Errorf("the renewal leaves %d s in the spec", got)
	}
}

// TestFloorOutlivesGarbage: force over a record that cannot be read keeps the floor
// if that can.
func TestFloorOutlivesGarbage(t *testing.T) {
	c, cfg := newCAS(t)
	s := openStore(t, cfg)
	cl := claim("alice", "a1")
	cl.Name, cl.MinToken = "The Report", 1_000_000
	rec := acquired(t, s, cl)
	c.mu.Lock()
	l := c.leases[objectName(cl.Name)]
	delete(l.Annotations, keyName)
	c.store(l)
	c.mu.Unlock()
	var corrupt *backend.CorruptError
	if _, err := s.Get(t.Context(), cl.Name); !errors.As(err, &corrupt) {
		t.Fatal(err)
	}
	forced := claim("bob", "b1")
	forced.Name, forced.Over = cl.Name, corrupt.Revision
	if got := acquired(t, s, forced); got.Token <= rec.Token {
		t.Errorf("after force the token is %d, after %d", got.Token, rec.Token)
	}
}

// TestConflictWithNobody: a server that calls every write a conflict is not asked
// again and again.
func TestConflictWithNobody(t *testing.T) {
	c, cfg := newCAS(t)
	s := openStore(t, cfg)
	rec := acquired(t, s, claim("alice", "a1"))
	var writes int
	c.answers(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodGet {
			return false
		}
		writes++
		answer(w, 409, status(409, "Conflict", "no", `{"name":"report","group":"coordination.k8s.io","kind":"leases"}`))
		return true
	})
	if _, err := s.Renew(t.Context(), rec); err == nil || backend.Definite(err) || writes > 2 {
		t.Errorf("after %d writes: %v", writes, err)
	}
}

// TestNamedRole: a role that may not create asks twice at first; and that the look
// failed is not that it may not.
func TestNamedRole(t *testing.T) {
	c, cfg := newCAS(t)
	acquired(t, openStore(t, cfg), claim("alice", "a1"))
	fail := true
	c.answers(func(w http.ResponseWriter, r *http.Request) bool {
		switch {
		case r.Method == http.MethodPost:
			answer(w, 403, status(403, "Forbidden", `User "bob" cannot create resource "leases"`, ""))
		case r.Method == http.MethodGet && fail:
			answer(w, 500, status(500, "InternalError", "etcdserver: leader changed", ""))
		default:
			return false
		}
		return true
	})
	s := openStore(t, cfg)
	if _, err := s.Acquire(t.Context(), claim("bob", "b1")); err == nil || backend.Definite(err) {
		t.Errorf("the look failed: %v", err)
	}
	fail = false
	c.requests()
	if _, err := s.Acquire(t.Context(), claim("bob", "b1")); !errors.Is(err, backend.ErrHeld) {
		t.Error(err)
	}
	if got := c.requests(); got != "GET" { // and the POST that was answered before
		t.Errorf("it took %s after the POST", got)
	}
}

// TestDeletePolicy: that one object may not be deleted says nothing of others,
// unless it is the role that says so.
func TestDeletePolicy(t *testing.T) {
	for message, want := range map[string]string{
		`admission webhook denied the request`:            "DELETE",
		`User "bob" cannot delete resource "leases" here`: "PUT",
	} {
		c, cfg := newCAS(t)
		s := openStore(t, cfg)
		once := true
		c.answers(func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodDelete && once {
				once = false
				answer(w, 403, status(403, "Forbidden", message, ""))
				return true
			}
			return false
		})
		for i := range 2 {
			cl := claim("alice", "a1")
			cl.Name = fmt.Sprint("report-", i)
			rec := acquired(t, s, cl)
			c.requests()
			if err := s.Release(t.Context(), rec); err != nil {
				t.Fatal(err)
			}
		}
		if got := c.requests(); got != want {
			t.Errorf("%s: the next object is released by %s, want %s", message, got, want)
		}
	}
}

// TestRestored: after etcd was restored from a backup resourceVersions are lower;
// a renewal is one request again after the first.
func TestRestored(t *testing.T) {
	c, cfg := newCAS(t)
	s := openStore(t, cfg)
	rec := acquired(t, s, claim("alice", "a1"))
	c.mu.Lock()
	c.version = 100_000
	c.mu.Unlock()
	rec, err := s.Renew(t.Context(), rec)
	if err != nil {
		t.Fatal(err)
	}
	c.mu.Lock()
	c.version, c.leases["report"].ResourceVersion = 50_000, "50000"
	c.mu.Unlock()
	for range 2 {
		c.requests()
		if rec, err = s.Renew(t.Context(), rec); err != nil {
			t.Fatal(err)
		}
	}
	if got := c.requests(); got != "PUT" {
		t.Errorf("a renewal takes %s", got)
	}
}

// TestSlowDial: where a connection takes longer to make than a call may last, the
// next call finds it made.
func TestSlowDial(t *testing.T) {
	_, cfg := server(t, func(w http.ResponseWriter, r *http.Request) { answer(w, 200, leaseJSON) })
	cfg.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		wait.For(context.WithoutCancel(ctx), 300*time.Millisecond)
		return (&net.Dialer{}).DialContext(context.WithoutCancel(ctx), network, addr)
	}
	s := openStore(t, cfg)
	answered := func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		_, err := s.Get(ctx, "report")
		return err == nil
	}
	for i := 0; !answered(); i++ {
		if i == 20 {
			t.Fatal("no call was ever answered")
		}
	}
}

// TestNewCertificate: after a 401 the connection is made anew, with the client
// certificate that has been renewed on disk since.
func TestNewConnectionAfter401(t *testing.T) {
	var refuse = map[string]bool{}
	var mu sync.Mutex
	_, cfg := server(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if len(refuse) == 0 {
			refuse[r.RemoteAddr] = true // the first connection's certificate expires later
		} else if refuse[r.RemoteAddr] {
			answer(w, 401, status(401, "Unauthorized", "x509: certificate has expired", ""))
			return
		}
		answer(w, 200, leaseJSON)
	})
	s := openStore(t, cfg)
	for range 3 {
		if _, err := s.Get(t.Context(), "report"); err != nil {
			t.Fatal(err)
		}
	}
}

// TestProxyAnswers: what a proxy says in the API server's place decides nothing,
// once an API server was seen there.
func TestProxyAnswers(t *testing.T) {
	c, cfg := newCAS(t)
	s := openStore(t, cfg)
	acquired(t, s, claim("alice", "a1"))
	for _, code := range []int{404, 408, 409, 499, 502} {
		c.answers(func(w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("Content-Type", "text/html")
			w.WriteHeader(code)
			w.Write([]byte("<html>" + http.StatusText(code) + "</html>"))
			return true
		})
		cl := claim("bob", "b1")
		cl.Name = "other"
		if _, err := s.Acquire(t.Context(), cl); err == nil || backend.Definite(err) {
			t.Errorf("%d: %v", code, err)
		}
		if _, err := s.Get(t.Context(), "report"); err == nil || backend.Definite(err) {
			t.Errorf("%d to a read: %v", code, err)
		}
	}
}

// TestLateAbsence: a look that found nothing, and is answered after the creation
// was told, does not hide the object.
func TestLateAbsence(t *testing.T) {
	f, s := newFakeAPI(t)
	first := watchName(t, s, "report")
	first.holder("", soon)
	looking, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	f.after = func(what string) {
		if what == "get report" {
			once.Do(func() {
				close(looking)
				<-goOn
			})
		}
	}
	second := watchName(t, s, "report")
	<-looking
	f.put("report", "alice")
	first.holder("alice", soon)
	close(goOn)
	second.holder("alice", soon)
	f.mu.Lock()
	f.after = nil
	f.mu.Unlock()
	wait.For(t.Context(), lag+time.Second) // until a look behind a healthy stream would have cut it
	s.watches.mu.Lock()
	defer s.watches.mu.Unlock()
	if j := s.watches.subjects["report"]; j.obj == nil || f.count("watch") != 1 {
		t.Errorf("the watch shows %v, after %d streams", j.obj, f.count("watch"))
	}
}

// TestSecondWatcherOfBusyName: events do not keep it from its first look.
func TestSecondWatcherOfBusyName(t *testing.T) {
	f, s := newFakeAPI(t)
	f.put("report", "alice")
	watchName(t, s, "report").holder("alice", soon)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	go func() {
		for wait.For(ctx, 50*time.Millisecond) {
			f.put("report", "alice")
		}
	}()
	watchName(t, s, "report").holder("alice", soon)
}

// TestRestoredWatch: a watch follows the server when its counter is turned back.
func TestRestoredWatch(t *testing.T) {
	f, s := newFakeAPI(t)
	f.version = 100_000
	f.put("report", "alice")
	w := watchName(t, s, "report")
	w.holder("alice", soon)
	f.mu.Lock()
	f.version, f.events = 50_000, nil
	f.mu.Unlock()
	f.put("report", "bob")
	s.watches.mu.Lock()
	s.watches.subjects["report"].own.suspect() // the server was restarted
	s.watches.mu.Unlock()
	w.holder("bob", soon)
	f.put("report", "carol")
	w.holder("carol", soon)
}

// TestGone: a server that calls every version too old is not asked in a hot loop.
func TestGone(t *testing.T) {
	f, s := newFakeAPI(t)
	f.before = func(what string) int {
		if strings.HasPrefix(what, "watch") {
			return http.StatusGone
		}
		return 200
	}
	watchName(t, s, "report").holder("", soon)
	wait.For(t.Context(), 3*time.Second)
	if n := f.count("list"); n > 12 {
		t.Errorf("it was listed %d times in three seconds", n)
	}
}

// TestEditsPutOffNoLook: a dead record that somebody goes on editing is still found
// to have expired.
func TestEditsPutOffNoLook(t *testing.T) {
	f, s := newFakeAPI(t, WithExpiryMargin(time.Millisecond))
	f.noDate = true // in lists, so that only a look can judge
	dead := func() {
		f.put("report", "alice", func(l *coordinationv1.Lease) {
			l.Spec.LeaseDurationSeconds = ptr(int32(2))
			l.ManagedFields = []metav1.ManagedFieldsEntry{{
				Manager: "m", Operation: "Update", Time: &metav1.Time{Time: time.Now().Add(-time.Hour)},
				FieldsV1: &metav1.FieldsV1{Raw: []byte(`{"f:spec":{"f:renewTime":{}}}`)},
			}}
		})
	}
	dead()
	w := watchName(t, s, "report")
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	go func() {
		for wait.For(ctx, 200*time.Millisecond) {
			dead()
		}
	}()
	late := time.After(soon)
	for {
		select {
		case rec := <-w.ch:
			if rec.Expired {
				return
			}
		case <-late:
			t.Fatal("the expiry was not told")
		}
	}
}

// TestCloseLeavesNoConnection: the stream's own goes as well.
func TestCloseLeavesNoConnection(t *testing.T) {
	f, s := newFakeAPI(t)
	w := watchName(t, s, "report")
	w.holder("", soon)
	s.Close() // which ends the watch, and that its stream
	for i := 0; f.srv.open.Load() > 0; i++ {
		if i > 500 {
			t.Fatalf("%d connections are open", f.srv.open.Load())
		}
		wait.For(t.Context(), 10*time.Millisecond)
	}
}
