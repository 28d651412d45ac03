package kubernetes_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clientset "k8s.io/client-go/kubernetes"
	coordination "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/rest"

	"github.com/leasehold/leasehold/integration/internal/servers"
	"github.com/leasehold/leasehold/integration/internal/wire"
	"github.com/leasehold/leasehold/kubernetes"
)

// The annotation that a person would break. It is part of the format, so it is
// not taken from the store.
const tenureAnnotation = "leasehold.github.io/tenure"

// room is a namespace of a test's own, and who is in it.
type room struct {
	*testing.T
	k         *servers.Kubernetes
	namespace string
	leases    coordination.LeaseInterface // of somebody who may do everything and knows nothing of Leasehold
}

// enter returns a room on the server that all tests share. The test runs beside
// others from now on.
func enter(t *testing.T) *room {
	t.Helper()
	t.Parallel()
	return roomOn(t, servers.SharedKubernetes(t))
}

func roomOn(t *testing.T, k *servers.Kubernetes) *room {
	t.Helper()
	namespace, err := k.Namespace(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r := &room{T: t, k: k, namespace: namespace}
	r.leases = r.client(r.config()).CoordinationV1().Leases(namespace)
	return r
}

// within is the same room for a subtest.
func (r *room) within(t *testing.T) *room {
	inner := *r
	inner.T = t
	return &inner
}

func (r *room) config() *rest.Config { return r.k.Config(servers.Admin) }

func (r *room) client(cfg *rest.Config) *clientset.Clientset {
	r.Helper()
	cfg.QPS = -1
	c, err := clientset.NewForConfig(cfg)
	if err != nil {
		r.Fatal(err)
	}
	return c
}

// open returns a store; it is closed after the test.
func (r *room) open(cfg *rest.Config, opts ...kubernetes.Option) *kubernetes.Store {
	r.Helper()
	s, err := kubernetes.New(cfg, r.namespace, opts...)
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { s.Close() })
	return s
}

func (r *room) store(opts ...kubernetes.Option) *kubernetes.Store {
	r.Helper()
	return r.open(r.config(), opts...)
}

// object returns the Lease object, as kubectl would.
func (r *room) object(name string) *coordinationv1.Lease {
	r.Helper()
	l, err := r.leases.Get(r.Context(), name, metav1.GetOptions{})
	if err != nil {
		r.Fatal(err)
	}
	return l
}

// create creates a Lease object by somebody who knows nothing of Leasehold.
func (r *room) create(name string, spec coordinationv1.LeaseSpec) *coordinationv1.Lease {
	r.Helper()
	l, err := r.leases.Create(r.Context(), &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec}, metav1.CreateOptions{})
	if err != nil {
		r.Fatal(err)
	}
	return l
}

// edit changes a Lease object, again if somebody else did at the same time.
func (r *room) edit(name string, change func(*coordinationv1.Lease)) *coordinationv1.Lease {
	r.Helper()
	for {
		l := r.object(name)
		change(l)
		after, err := r.leases.Update(r.Context(), l, metav1.UpdateOptions{})
		if err == nil {
			return after
		}
		if !apierrors.IsConflict(err) {
			r.Fatal(err)
		}
	}
}

func (r *room) remove(name string) {
	r.Helper()
	if err := r.leases.Delete(r.Context(), name, metav1.DeleteOptions{}); err != nil {
		r.Fatal(err)
	}
}

// proxy returns a wire to the API server; it is closed after the test.
func (r *room) proxy() *wire.Proxy {
	r.Helper()
	p, err := wire.New(r.k.Addr())
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { p.Close() })
	return p
}

// through is what a client's requests pass before the store's connections: it
// can note, hold and answer them.
type through struct {
	mu       sync.Mutex
	requests []request
	fault    func(*http.Request, http.RoundTripper) (*http.Response, error) // nil: none
}

// request is one that a client has sent, with the instants of before it was
// sent and after it was answered.
type request struct {
	method     string
	watch      bool
	sent, done time.Time
	code       int // 0: not answered
}

// wrap returns cfg with its requests noted.
func wrap(cfg *rest.Config) (*rest.Config, *through) {
	w := new(through)
	cfg.Wrap(func(next http.RoundTripper) http.RoundTripper {
		return roundTripper(func(req *http.Request) (*http.Response, error) { return w.roundTrip(req, next) })
	})
	return cfg, w
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

func (w *through) roundTrip(req *http.Request, next http.RoundTripper) (*http.Response, error) {
	w.mu.Lock()
	fault := w.fault
	i := len(w.requests)
	w.requests = append(w.requests, request{method: req.Method, watch: isWatch(req), sent: time.Now()})
	w.mu.Unlock()
	var resp *http.Response
	var err error
	if fault != nil {
		resp, err = fault(req, next)
	} else {
		resp, err = next.RoundTrip(req)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.requests[i].done = time.Now()
	if err == nil {
		w.requests[i].code = resp.StatusCode
	}
	return resp, err
}

func isWatch(req *http.Request) bool { return req.URL.Query().Get("watch") == "true" }

// set makes f what happens to requests from now on; nil lets them pass.
func (w *through) set(f func(*http.Request, http.RoundTripper) (*http.Response, error)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fault = f
}

// sent returns the requests of one method, "" for all.
func (w *through) sent(method string) []request {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []request
	for _, q := range w.requests {
		if method == "" || q.method == method {
			all = append(all, q)
		}
	}
	return all
}

// renewed is when the last write was sent that the client knows to have
// succeeded.
func (w *through) renewed() (sent time.Time, writes int) {
	for _, q := range w.sent("") {
		if q.code/100 == 2 && (q.method == http.MethodPut || q.method == http.MethodPost) {
			sent, writes = q.sent, writes+1
		}
	}
	return sent, writes
}

// only has f happen to requests of some methods.
func only(f func(*http.Request, http.RoundTripper) (*http.Response, error), methods ...string) func(*http.Request, http.RoundTripper) (*http.Response, error) {
	return func(req *http.Request, next http.RoundTripper) (*http.Response, error) {
		for _, m := range methods {
			if req.Method == m {
				return f(req, next)
			}
		}
		return next.RoundTrip(req)
	}
}

// hang answers nothing and sends nothing.
func hang(req *http.Request, _ http.RoundTripper) (*http.Response, error) {
	<-req.Context().Done()
	return nil, context.Cause(req.Context())
}

// fail answers at once that nothing can be sent.
func fail(*http.Request, http.RoundTripper) (*http.Response, error) {
	return nil, fmt.Errorf("the network is unreachable")
}

// forgetful lets the request arrive and loses the reply.
func forgetful(req *http.Request, next http.RoundTripper) (*http.Response, error) {
	resp, err := next.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	resp.Body.Close()
	return nil, fmt.Errorf("connection reset by peer")
}

// answer has every request answered by a page of somebody else.
func answer(code int, header http.Header, body string) func(*http.Request, http.RoundTripper) (*http.Response, error) {
	return func(req *http.Request, _ http.RoundTripper) (*http.Response, error) {
		return reply(req, code, header, body), nil
	}
}

func reply(req *http.Request, code int, header http.Header, body string) *http.Response {
	h := header.Clone()
	if h == nil {
		h = make(http.Header)
	}
	if h.Get("Content-Type") == "" {
		h.Set("Content-Type", "text/plain")
	}
	return &http.Response{
		StatusCode: code, Status: fmt.Sprintf("%d %s", code, http.StatusText(code)),
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: h, Body: io.NopCloser(strings.NewReader(body)), ContentLength: int64(len(body)), Request: req,
	}
}

func ptr[T any](v T) *T { return &v }
