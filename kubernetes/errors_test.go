package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"github.com/leasehold/leasehold/backend"
)

func status(code int, reason, message, details string) string {
	if details == "" {
		details = "{}"
	}
	return fmt.Sprintf(`{"kind":"Status","apiVersion":"v1","status":"Failure","code":%d,"reason":%q,"message":%q,"details":%s}`, code, reason, message, details)
}

// TestExplain: which class an answer is of, whether its outcome is known, and that
// a person is told what to do.
func TestExplain(t *testing.T) {
	const kind = `{"name":"report","group":"coordination.k8s.io","kind":"leases"}`
	for _, tc := range []struct {
		name string
		code int
		body string
		want error // nil: the outcome is unknown
		says []string
	}{
		{"forbidden", 403, status(403, "Forbidden", `leases.coordination.k8s.io "report" is forbidden: User "bob" cannot create resource "leases" in API group "coordination.k8s.io" in the namespace "team-a"`, kind), backend.ErrDenied, []string{`grant the verb "create"`, `"leases"`, `"coordination.k8s.io"`, `"team-a"`, `User "bob"`}},
		{"quota", 403, status(403, "Forbidden", `exceeded quota: leases`, kind), backend.ErrDenied, []string{"a policy or a quota"}},
		{"namespace ends", 403, status(403, "Forbidden", `being terminated`, `{"causes":[{"reason":"NamespaceTerminating"}]}`), backend.ErrDenied, []string{"is being deleted"}},
		{"unauthorized", 401, status(401, "Unauthorized", "Unauthorized", ""), backend.ErrDenied, []string{"credentials"}},
		{"no namespace", 404, status(404, "NotFound", `namespaces "team-a" not found`, `{"name":"team-a","kind":"namespaces"}`), backend.ErrInvalid, []string{"namespace does not exist", "create-namespace=true"}},
		{"no such API", 404, status(404, "NotFound", "the server could not find the requested resource", ""), backend.ErrUnsupported, []string{"coordination.k8s.io/v1"}},
		{"another service", 404, "<html>not here</html>", backend.ErrUnsupported, []string{"did not answer like a Kubernetes API server"}},
		{"refused object", 422, status(422, "Invalid", "Lease is invalid: spec.leaseDurationSeconds", kind), backend.ErrInvalid, []string{"spec.leaseDurationSeconds"}},
		{"bad request", 400, status(400, "BadRequest", "no", ""), backend.ErrInvalid, nil},
		{"method", 405, status(405, "MethodNotAllowed", "no", ""), backend.ErrUnsupported, nil},
		{"busy, before it looked", 429, "Too many requests, please try again later.", nil, []string{"busy"}},
		{"a login page", 200, "<html>who are you?</html>", nil, []string{"did not answer like a Kubernetes API server"}},
		{"failed", 500, status(500, "InternalError", "etcdserver: request timed out", ""), nil, []string{"etcdserver: request timed out"}},
		{"unavailable", 503, "upstream gone", nil, []string{"503"}},
		{"timeout", 504, status(504, "Timeout", "not in time", ""), nil, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var posts atomic.Int32
			_, cfg := server(t, func(w http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodPost {
					posts.Add(1)
				}
				if r.Method == http.MethodGet && tc.code == 403 {
					answer(w, 404, status(404, "NotFound", "not found", kind))
					return
				}
				if strings.HasPrefix(tc.body, "<") {
					w.Header().Set("Content-Type", "text/html")
					w.WriteHeader(tc.code)
					w.Write([]byte(tc.body))
					return
				}
				answer(w, tc.code, tc.body)
			})
			s := openStore(t, cfg)
			_, err := s.Acquire(t.Context(), claim("alice", "a1"))
			if err == nil || tc.want != nil && !errors.Is(err, tc.want) || backend.Definite(err) != (tc.want != nil) {
				t.Fatalf("%v; want %v", err, tc.want)
			}
			for _, part := range tc.says {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%v: does not say %q", err, part)
				}
			}
			want := int32(1)
			if tc.code == 401 {
				want = 2 // the credentials may just have been renewed
			}
			if n := posts.Load(); n != want {
				t.Errorf("sent %d times, want %d", n, want)
			}
		})
	}
}

// TestBusy: a request that the server refused unseen is repeated when it says,
// and not before; and not at all if the caller would not wait so long.
func TestBusy(t *testing.T) {
	var last atomic.Int64
	var refusals atomic.Int32
	refusals.Store(1)
	_, cfg := server(t, func(w http.ResponseWriter, r *http.Request) {
		now := time.Now().UnixNano()
		if early := last.Swap(now); early != 0 && now-early < int64(time.Second) {
			t.Errorf("asked again after %v", time.Duration(now-early))
		}
		if refusals.Add(-1) >= 0 {
			w.Header().Set("Retry-After", "1")
			answer(w, 429, status(429, "TooManyRequests", "too many", `{"retryAfterSeconds":1}`))
			return
		}
		last.Store(0)
		answer(w, 200, leaseJSON)
	})
	s := openStore(t, cfg)
	if _, err := s.Get(t.Context(), "report"); err != nil {
		t.Fatalf("the server was busy for a second: %v", err)
	}
	refusals.Store(1)
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	began := time.Now()
	_, err := s.Get(ctx, "report")
	if err == nil || backend.Definite(err) || !strings.Contains(err.Error(), "busy") || time.Since(began) > 400*time.Millisecond {
		t.Fatalf("with half a second to wait: %v, after %v", err, time.Since(began))
	}
}

func TestExplainTransport(t *testing.T) {
	srv, _ := server(t, func(w http.ResponseWriter, r *http.Request) { answer(w, 200, leaseJSON) })
	for _, tc := range []struct {
		name string
		cfg  rest.Config
		want error
		says string
	}{
		{"unknown authority", rest.Config{Host: srv.URL}, backend.ErrInvalid, "certificate"},
		{"no TLS", rest.Config{Host: plain(t)}, backend.ErrInvalid, "does not speak TLS"},
		{"refused", rest.Config{Host: "https://127.0.0.1:1"}, nil, "cannot be reached"},
		{"no such host", rest.Config{Host: "https://nowhere.invalid"}, nil, "nowhere.invalid cannot be resolved"},
	} {
		s, err := New(&tc.cfg, "team-a")
		if err != nil {
			t.Fatal(err)
		}
		_, err = s.Get(t.Context(), "report")
		if err == nil || tc.want != nil && !errors.Is(err, tc.want) || backend.Definite(err) != (tc.want != nil) || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v; want %v that says %q", tc.name, err, tc.want, tc.says)
		}
		s.Close()
	}
}

// plain is the https address of a server that speaks plain HTTP.
func plain(t *testing.T) string {
	srv := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(srv.Close)
	return strings.Replace(srv.URL, "http:", "https:", 1)
}

func TestNewRefuses(t *testing.T) {
	cfg := &rest.Config{Host: "https://127.0.0.1:1"}
	for name, f := range map[string]func() (*Store, error){
		"no config":    func() (*Store, error) { return New(nil, "a") },
		"no namespace": func() (*Store, error) { return New(cfg, "") },
		"namespace":    func() (*Store, error) { return New(cfg, "Team A") },
		"margin":       func() (*Store, error) { return New(cfg, "a", WithExpiryMargin(-1)) },
		"timeout":      func() (*Store, error) { return New(cfg, "a", WithRequestTimeout(0)) },
		"poll":         func() (*Store, error) { return New(cfg, "a", WithPollInterval(-1)) },
		"label":        func() (*Store, error) { return New(cfg, "a", WithLabels(map[string]string{"a b": "c"})) },
		"label value":  func() (*Store, error) { return New(cfg, "a", WithLabels(map[string]string{"a": "b c"})) },
		"CA file": func() (*Store, error) {
			return New(&rest.Config{Host: "https://a", TLSClientConfig: rest.TLSClientConfig{CAFile: "/nope"}}, "a")
		},
	} {
		if s, err := f(); s != nil || !errors.Is(err, backend.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
}
