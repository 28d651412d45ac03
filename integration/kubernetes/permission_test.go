package kubernetes_test

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/integration/internal/scene"
	"github.com/leasehold/leasehold/kubernetes"
	"github.com/leasehold/leasehold/lease"
)

// may grants a user verbs on leases, on all of them or on some names.
func (r *room) may(user string, verbs []string, names ...string) {
	r.Helper()
	err := r.k.Grant(r.Context(), r.namespace, user, rbacv1.PolicyRule{
		APIGroups: []string{"coordination.k8s.io"}, Resources: []string{"leases"}, Verbs: verbs, ResourceNames: names,
	})
	if err != nil {
		r.Fatal(err)
	}
}

// denies checks that err is a refusal that tells a person what to grant.
func (r *room) denies(what string, err error, verb string) {
	r.Helper()
	if !errors.Is(err, backend.ErrDenied) {
		r.Errorf("%s without the verb %s: %v; want ErrDenied", what, verb, err)
		return
	}
	scene.Mentions(r, err, `"`+verb+`"`, `"leases"`, `"coordination.k8s.io"`, r.namespace)
}

// journal is a log that can be read while it is written.
type journal struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.buf.Write(p)
}

func (j *journal) lines() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return strings.Split(strings.TrimSpace(j.buf.String()), "\n")
}

func (j *journal) logger() *slog.Logger { return slog.New(slog.NewTextHandler(j, nil)) }

// TestRoleOfHolder: get, create and update are all that a holder needs, and that
// a waiter needs.
func TestRoleOfHolder(t *testing.T) {
	r := enter(t)
	r.may("holder", []string{"get", "create", "update"})
	log := new(journal)
	const duration = 3 * time.Second
	s := r.open(r.k.Config("holder"), kubernetes.WithLogger(log.logger()), kubernetes.WithPollInterval(100*time.Millisecond))
	first := scene.Hold(r, scene.Lease(r, s, "job", duration))
	second := scene.Run(r, scene.Lease(r, s, "job", duration))
	third := scene.Run(r, scene.Lease(r, s, "job", duration))
	scene.Pass(r, duration*3/2)
	if !first.Alive() {
		t.Fatalf("the lease is not renewed: %v", first.Context().Err())
	}
	first.Leave()
	if err := scene.Await(r, "Run returns", first.Result); err != nil {
		t.Error(err)
	}
	left := r.object("job") // vacated, or taken again by now
	if value(left.Spec.HolderIdentity) == string(first.Holder()) {
		t.Errorf("the object still names who has released it: %v", left.Spec)
	}
	var next, last *scene.Tenure
	select {
	case <-second.Began:
		next, last = second, third
	case <-third.Began:
		next, last = third, second
	case <-time.After(scene.Patience):
		t.Fatal("nobody is granted the lease that was released")
	}
	next.Leave()
	scene.Await(r, "the last is granted the lease", last.Began)
	if !(first.Grant.Token < next.Grant.Token && next.Grant.Token < last.Grant.Token) {
		t.Errorf("tokens do not rise: %d, %d, %d", first.Grant.Token, next.Grant.Token, last.Grant.Token)
	}
	if value(r.object("job").Spec.LeaseTransitions) != 2 {
		t.Errorf("the object was not kept: %v", r.object("job").Spec)
	}
	// A store says once that it polls, however many watch.
	var warnings int
	for _, line := range log.lines() {
		if strings.Contains(line, "level=WARN") {
			warnings++
			for _, word := range []string{"polled", "list", "watch", "leases.coordination.k8s.io", r.namespace} {
				if !strings.Contains(line, word) {
					t.Errorf("the warning does not tell of %q: %s", word, line)
				}
			}
		}
	}
	if warnings != 1 {
		t.Errorf("the store has warned %d times that it polls:\n%s", warnings, strings.Join(log.lines(), "\n"))
	}
}

// TestRoleWithoutWatch: the verb list alone is not enough to be told.
func TestRoleWithoutWatch(t *testing.T) {
	r := enter(t)
	r.may("lister", []string{"get", "list", "create", "update", "delete"})
	log := new(journal)
	s := r.open(r.k.Config("lister"), kubernetes.WithLogger(log.logger()), kubernetes.WithPollInterval(100*time.Millisecond))
	holder := scene.Hold(r, scene.Lease(r, s, "job", 30*time.Second))
	waiter := scene.Run(r, scene.Lease(r, s, "job", 30*time.Second))
	scene.Eventually(r, "the store says that it polls", func() bool { return strings.Contains(strings.Join(log.lines(), "\n"), "level=WARN") })
	holder.Leave()
	scene.Await(r, "the waiter is granted the lease", waiter.Began)
	scene.Follows(r, waiter, holder)
}

func TestRoleWithoutUpdate(t *testing.T) {
	r := enter(t)
	r.may("holder", []string{"get", "create"})
	s := r.open(r.k.Config("holder"))
	rec := scene.Grant(r, s, scene.Claim("job", "a", 10*time.Second))
	_, err := s.Renew(t.Context(), rec)
	r.denies("renew", err, "update")
	r.denies("release", s.Release(t.Context(), rec), "update")
	l := scene.Lease(r, s, "other", 10*time.Second, lease.WithoutRenewal())
	if err := l.Acquire(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.denies("extend", l.Extend(t.Context()), "update")
	if !l.Held() {
		t.Error("a renewal that was refused has ended the tenure, which lasts")
	}
}

func TestRoleWithoutGet(t *testing.T) {
	r := enter(t)
	r.may("holder", []string{"create", "update"})
	s := r.open(r.k.Config("holder"))
	// One request each, none of which reads.
	rec := scene.Grant(r, s, scene.Claim("job", "a", 10*time.Second))
	rec = scene.Renew(r, s, rec)
	_, err := s.Get(t.Context(), "job")
	r.denies("get", err, "get")
	_, err = r.open(r.k.Config("holder")).Acquire(t.Context(), scene.Claim("job", "b", 10*time.Second))
	r.denies("acquire what is held", err, "get")
	scene.Release(r, s, rec)
}

// TestRoleOfNames: objects that somebody else creates, and a role for them alone.
func TestRoleOfNames(t *testing.T) {
	r := enter(t)
	r.may("deleter", []string{"get", "update"}, "job")
	before := r.create("job", coordinationv1.LeaseSpec{})
	cfg, w := wrap(r.k.Config("deleter"))
	s := r.open(cfg)
	rec := scene.Grant(r, s, scene.Claim("job", "a", 10*time.Second))
	if n := len(w.sent(http.MethodPut)); n != 1 {
		t.Errorf("acquired by %d PUTs: %+v", n, w.sent(""))
	}
	rec = scene.Renew(r, s, rec)
	scene.Release(r, s, rec)
	after := r.object("job")
	if after.UID != before.UID || value(after.Spec.HolderIdentity) != "" {
		t.Errorf("the object is not vacated: %v", after)
	}
	if n := len(w.sent(http.MethodDelete)); n != 0 {
		t.Errorf("%d DELETEs of an object that is another's", n)
	}
	again := scene.Grant(r, r.open(r.k.Config("deleter")), scene.Claim("job", "b", 10*time.Second))
	if again.Token <= rec.Token {
		t.Errorf("token %d follows %d", again.Token, rec.Token)
	}
	_, err := s.Acquire(t.Context(), scene.Claim("another", "a", 10*time.Second))
	r.denies("acquire another name", err, "create")
}

func TestRoleOfNobody(t *testing.T) {
	r := enter(t)
	r.create("job", coordinationv1.LeaseSpec{})
	s := r.open(r.k.Config("nobody"))
	_, err := s.Get(t.Context(), "job")
	r.denies("get", err, "get")
	for _, name := range []string{"job", "absent"} {
		_, err = s.Acquire(t.Context(), scene.Claim(name, "a", 10*time.Second))
		r.denies("acquire", err, "create")
	}
	for _, err := range backend.List(t.Context(), s, "") {
		r.denies("list", err, "list")
	}
	for _, err := range backend.Watch(t.Context(), s, "job") {
		if err == nil {
			t.Error("nobody sees the record")
			break
		}
		r.denies("watch", err, "get")
	}
	// Waiting does not help, so Await does not wait.
	ctx, cancel := context.WithTimeout(t.Context(), scene.Patience)
	defer cancel()
	err = scene.Lease(r, s, "job", 10*time.Second).Await(ctx)
	r.denies("await", err, "create")
	if ctx.Err() != nil {
		t.Error("Await waited for a permission that is not granted")
	}
}

func TestNamespace(t *testing.T) {
	r := enter(t)
	open := func(cfg *rest.Config, namespace string, opts ...kubernetes.Option) *kubernetes.Store {
		s, err := kubernetes.New(cfg, namespace, opts...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s
	}
	admin := r.client(r.config())
	c := scene.Claim("job", "a", 10*time.Second)

	t.Run("absent", func(t *testing.T) {
		r := r.within(t)
		absent := r.namespace + "-absent"
		_, err := open(r.config(), absent).Acquire(t.Context(), c)
		if !errors.Is(err, backend.ErrInvalid) {
			t.Errorf("acquire: %v; want ErrInvalid", err)
		}
		scene.Mentions(r, err, absent, "does not exist", "WithCreateNamespace")
		if _, err := open(r.config(), absent).Get(t.Context(), "job"); !errors.Is(err, backend.ErrNotFound) {
			t.Errorf("get: %v; want ErrNotFound", err)
		}
	})

	// Somebody whose role is for all namespaces, since there is none yet for a
	// narrower one; with and without the right to make them.
	user := r.whoami("watcher")
	role, err := admin.RbacV1().ClusterRoles().Create(t.Context(), &rbacv1.ClusterRole{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "leasehold-test-"},
		Rules:      []rbacv1.PolicyRule{{APIGroups: []string{"coordination.k8s.io"}, Resources: []string{"leases"}, Verbs: []string{"get", "create", "update"}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	clean := context.WithoutCancel(t.Context())
	t.Cleanup(func() { admin.RbacV1().ClusterRoles().Delete(clean, role.Name, metav1.DeleteOptions{}) })
	if _, err := admin.RbacV1().ClusterRoleBindings().Create(t.Context(), &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: role.Name},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: user}},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role.Name},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { admin.RbacV1().ClusterRoleBindings().Delete(clean, role.Name, metav1.DeleteOptions{}) })
	scene.Eventually(r, "the role is known", func() bool {
		_, err := open(r.k.Config("watcher"), r.namespace).Get(t.Context(), "absent")
		return errors.Is(err, backend.ErrNotFound)
	})

	wanted := r.namespace + "-wanted"
	t.Run("not to be created", func(t *testing.T) {
		r := r.within(t)
		_, err := open(r.k.Config("watcher"), wanted, kubernetes.WithCreateNamespace()).Acquire(t.Context(), c)
		if !errors.Is(err, backend.ErrDenied) {
			t.Errorf("acquire: %v; want ErrDenied", err)
		}
		scene.Mentions(r, err, wanted, `"create"`, `"namespaces"`)
	})
	t.Run("created", func(t *testing.T) {
		r := r.within(t)
		role.Rules = append(role.Rules, rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"namespaces"}, Verbs: []string{"create"}})
		if _, err := admin.RbacV1().ClusterRoles().Update(t.Context(), role, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { admin.CoreV1().Namespaces().Delete(clean, wanted, metav1.DeleteOptions{}) })
		s := open(r.k.Config("watcher"), wanted, kubernetes.WithCreateNamespace())
		var rec backend.Record
		scene.Eventually(r, "the namespace is created", func() bool {
			var err error
			rec, err = s.Acquire(t.Context(), c)
			if err != nil && !errors.Is(err, backend.ErrDenied) {
				t.Fatal(err)
			}
			return err == nil
		})
		scene.Renew(r, s, rec)
	})

	t.Run("being deleted", func(t *testing.T) {
		r := r.within(t)
		doomed, err := r.k.Namespace(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		s := open(r.config(), doomed, kubernetes.WithCreateNamespace())
		held := scene.Grant(r, s, scene.Claim("held", "a", 10*time.Second))
		// It keeps the namespace from going away where somebody clears them up.
		leases := admin.CoordinationV1().Leases(doomed)
		l, err := leases.Get(t.Context(), "held", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		l.Finalizers = []string{"leasehold.test/keep"}
		if _, err := leases.Update(t.Context(), l, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			leases.Patch(clean, "held", "application/merge-patch+json", []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{})
		})
		if err := admin.CoreV1().Namespaces().Delete(t.Context(), doomed, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		scene.Eventually(r, "the namespace is being deleted", func() bool {
			ns, err := admin.CoreV1().Namespaces().Get(t.Context(), doomed, metav1.GetOptions{})
			return err == nil && ns.Status.Phase == corev1.NamespaceTerminating
		})
		_, err = s.Acquire(t.Context(), c)
		if !errors.Is(err, backend.ErrDenied) {
			t.Errorf("acquire: %v; want ErrDenied", err)
		}
		scene.Mentions(r, err, doomed, "being deleted")
		// What is held already goes on to be, until it is taken away.
		held = scene.Renew(r, s, held)
		scene.Release(r, s, held)
	})
}

// whoami is what RBAC calls a user.
func (r *room) whoami(user string) string {
	r.Helper()
	review, err := r.client(r.k.Config(user)).AuthenticationV1().SelfSubjectReviews().Create(r.Context(), &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	if err != nil {
		r.Fatal(err)
	}
	return review.Status.UserInfo.Username
}

// calls are all that write, and Get.
func calls(ctx context.Context, s *kubernetes.Store) map[string]error {
	rec := backend.Record{Name: "job", Holder: "a", Token: 1, Revision: "1/1", Duration: 10 * time.Second}
	got := make(map[string]error)
	_, got["get"] = s.Get(ctx, "job")
	_, got["acquire"] = s.Acquire(ctx, scene.Claim("job", "a", 10*time.Second))
	_, got["renew"] = s.Renew(ctx, rec)
	got["release"] = s.Release(ctx, rec)
	return got
}

// TestWrongAddress: what a person gets to read whose configuration is wrong.
func TestWrongAddress(t *testing.T) {
	r := enter(t)
	page := httptest.NewTLSServer(http.NotFoundHandler())
	defer page.Close()
	certificate := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: page.Certificate().Raw})
	pages := func(code int, kind, body string) func(*rest.Config) {
		return func(cfg *rest.Config) {
			s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", kind)
				w.WriteHeader(code)
				w.Write([]byte(body))
			}))
			r.Cleanup(s.Close)
			cfg.Host, cfg.CAData = s.URL, certificate
		}
	}
	const html = "<!doctype html><title>Router</title><p>Welcome</p>"
	refused, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	refused.Close()
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()

	for name, c := range map[string]struct {
		change func(*rest.Config)
		class  error // nil: outcome unknown, if it must not be definite
		any    bool  // definite or not
		words  []string
	}{
		"wrong authority":   {change: func(cfg *rest.Config) { cfg.CAData = certificate }, class: backend.ErrInvalid, words: []string{"certificate", r.k.Addr()}},
		"wrong token":       {change: func(cfg *rest.Config) { cfg.BearerToken = "nonsense" }, class: backend.ErrDenied, words: []string{"credentials"}},
		"no such host":      {change: func(cfg *rest.Config) { cfg.Host = "https://no-such-host.invalid:6443" }, words: []string{"no-such-host.invalid", "resolve"}},
		"refused":           {change: func(cfg *rest.Config) { cfg.Host = "https://" + refused.Addr().String() }, words: []string{refused.Addr().String(), "refused", "reached"}},
		"no TLS":            {change: func(cfg *rest.Config) { cfg.Host = "https://" + plain.Listener.Addr().String() }, class: backend.ErrInvalid, words: []string{"TLS"}},
		"a page, 404":       {change: pages(http.StatusNotFound, "text/html", html), any: true, words: []string{"API server"}},
		"a page, 404 plain": {change: pages(http.StatusNotFound, "text/plain", "404 page not found"), any: true, words: []string{"API server"}},
		"a page, 200":       {change: pages(http.StatusOK, "text/html", html), any: true, words: []string{"did not answer like"}},
		"JSON, 200":         {change: pages(http.StatusOK, "application/json", `{"status":"ok"}`), any: true, words: []string{"API server"}},
		"a page, 502":       {change: pages(http.StatusBadGateway, "text/html", html), words: []string{"502"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := r.within(t)
			cfg := r.config()
			c.change(cfg)
			ctx, cancel := context.WithTimeout(t.Context(), scene.Patience)
			defer cancel()
			for call, err := range calls(ctx, r.open(cfg)) {
				switch {
				case err == nil:
					t.Errorf("%s succeeded", call)
					continue
				case c.class != nil && !errors.Is(err, c.class):
					t.Errorf("%s: %v; want %v", call, err, c.class)
				case c.class == nil && !c.any && backend.Definite(err):
					t.Errorf("%s: %v: is definite, and it may be different the next moment", call, err)
				}
				for _, wrong := range []error{backend.ErrNotFound, backend.ErrLost, backend.ErrHeld} {
					if errors.Is(err, wrong) {
						t.Errorf("%s: %v: as if the server had spoken of a lease", call, err)
					}
				}
				scene.Mentions(r, err, c.words...)
				if len(err.Error()) > 1000 || strings.Contains(err.Error(), "%!") || strings.Contains(err.Error(), "nonsense") {
					t.Errorf("%s: nobody wants to read this: %v", call, err)
				}
				if call == "acquire" {
					t.Log(err)
				}
			}
		})
	}
}

// TestBusyServer: a request that the server has refused unseen is sent again when
// it wants it to be, within the context.
func TestBusyServer(t *testing.T) {
	r := enter(t)
	for name, call := range map[string]func(r *room, s *kubernetes.Store, rec backend.Record) error{
		"acquire": func(r *room, s *kubernetes.Store, rec backend.Record) error {
			_, err := s.Acquire(r.Context(), scene.Claim("free", "a", 10*time.Second))
			return err
		},
		"renew": func(r *room, s *kubernetes.Store, rec backend.Record) error {
			_, err := s.Renew(r.Context(), rec)
			return err
		},
		"release": func(r *room, s *kubernetes.Store, rec backend.Record) error { return s.Release(r.Context(), rec) },
		"get": func(r *room, s *kubernetes.Store, rec backend.Record) error {
			_, err := s.Get(r.Context(), rec.Name)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := roomOn(t, r.k)
			cfg, w := wrap(r.config())
			s := r.open(cfg)
			rec := scene.Grant(r, s, scene.Claim("job", "a", 20*time.Second))
			already := len(w.sent(""))
			var mu sync.Mutex
			left := 2
			w.set(func(req *http.Request, next http.RoundTripper) (*http.Response, error) {
				mu.Lock()
				refuse := left > 0
				left--
				mu.Unlock()
				if refuse {
					return reply(req, http.StatusTooManyRequests, http.Header{"Retry-After": {"1"}}, "Too many requests, please try again later.\n"), nil
				}
				return next.RoundTrip(req)
			})
			began := time.Now()
			if err := call(r, s, rec); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(began); took < 2*time.Second {
				t.Errorf("asked to wait a second twice, it took %v", took)
			}
			if n := len(w.sent("")) - already; n != 3 {
				t.Errorf("%d requests were sent; want 3: %+v", n, w.sent("")[already:])
			}
		})
	}
	t.Run("not within the context", func(t *testing.T) {
		t.Parallel()
		r := roomOn(t, r.k)
		cfg, w := wrap(r.config())
		s := r.open(cfg)
		// As kube-apiserver says it: this is no Status object.
		w.set(answer(http.StatusTooManyRequests, http.Header{"Retry-After": {"3600"}}, "Too many requests, please try again later.\n"))
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		for call, err := range calls(ctx, s) {
			if err == nil || backend.Definite(err) {
				t.Errorf("%s: %v", call, err)
			}
			scene.Mentions(r, err, "busy", "3600 s")
		}
		if ctx.Err() != nil {
			t.Error("the calls have waited for what could not come in time")
		}
	})
}

// TestFailingServer: after a 503 nobody knows what has happened, so nothing is
// sent again.
func TestFailingServer(t *testing.T) {
	r := enter(t)
	for _, code := range []int{http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout} {
		for _, header := range []http.Header{nil, {"Retry-After": {"1"}}} {
			cfg, w := wrap(r.config())
			s := r.open(cfg)
			name := strings.ToLower(http.StatusText(code)) + "/" + header.Get("Retry-After")
			rec := scene.Grant(r, s, scene.Claim(name, "a", 20*time.Second))
			already := len(w.sent(""))
			w.set(only(answer(code, header, "no endpoints available"), http.MethodPut, http.MethodPost, http.MethodDelete))
			_, acquiring := s.Acquire(t.Context(), scene.Claim("free", "a", 10*time.Second))
			_, renewing := s.Renew(t.Context(), rec)
			releasing := s.Release(t.Context(), rec)
			for call, err := range map[string]error{"acquire": acquiring, "renew": renewing, "release": releasing} {
				if err == nil || backend.Definite(err) {
					t.Errorf("%d, %v: %s: %v; the outcome is unknown", code, header, call, err)
				}
				scene.Mentions(r, err, "failed", strconv.Itoa(code))
			}
			if n := len(w.sent("")) - already; n != 3 {
				t.Errorf("%d, %v: %d requests for three calls: %+v", code, header, n, w.sent("")[already:])
			}
			w.set(nil)
			scene.Release(r, s, scene.Renew(r, s, rec))
		}
	}
	if _, err := r.leases.Get(t.Context(), "free", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("what was never sent has arrived: %v", err)
	}
}

func value[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}
