package kubernetes

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"github.com/leasehold/leasehold/backend"
)

// server is an HTTPS server with HTTP/2, as API servers are.
func server(t *testing.T, handle http.HandlerFunc) (*httptest.Server, *rest.Config) {
	t.Helper()
	srv := httptest.NewUnstartedServer(handle)
	srv.EnableHTTP2 = true
	srv.StartTLS()
	t.Cleanup(srv.Close)
	return srv, &rest.Config{
		Host:            srv.URL,
		TLSClientConfig: rest.TLSClientConfig{Insecure: true},
		ContentConfig:   rest.ContentConfig{ContentType: "application/json"}, // which a test can read
	}
}

// openStore returns a store that is closed after the test.
func openStore(t *testing.T, cfg *rest.Config, opts ...Option) *Store {
	t.Helper()
	s, err := New(cfg, "team-a", opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// hangable is a store of a server that leaves requests unanswered while hang is
// set, and says of each that it has come.
func hangable(t *testing.T) (s *Store, c *conns, hang *atomic.Bool, entered chan struct{}) {
	hang, entered, c = new(atomic.Bool), make(chan struct{}, 2), new(conns)
	_, cfg := server(t, func(w http.ResponseWriter, r *http.Request) {
		if hang.Load() {
			entered <- struct{}{}
			<-r.Context().Done()
		}
		answer(w, 200, leaseJSON)
	})
	cfg.Dial = c.dial
	return openStore(t, cfg), c, hang, entered
}

// conns counts the connections that are dialled, and can silence those there are.
type conns struct {
	dialled atomic.Int32
	mu      sync.Mutex
	all     []*mute
}

// mute is a connection on which nothing arrives any more once it is silent.
type mute struct {
	net.Conn
	silent atomic.Bool
	over   chan struct{}
	once   sync.Once
}

func (m *mute) Read(b []byte) (int, error) {
	n, err := m.Conn.Read(b)
	if m.silent.Load() {
		<-m.over
		return 0, net.ErrClosed
	}
	return n, err
}

func (m *mute) Close() error {
	m.once.Do(func() { close(m.over) })
	return m.Conn.Close()
}

func (c *conns) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	c.dialled.Add(1)
	conn, err := (&net.Dialer{}).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	m := &mute{Conn: conn, over: make(chan struct{})}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all = append(c.all, m)
	return m, nil
}

func (c *conns) silence() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range c.all {
		m.silent.Store(true)
	}
}

const leaseJSON = `{"apiVersion":"coordination.k8s.io/v1","kind":"Lease","metadata":{"name":"report","namespace":"team-a","uid":"u","resourceVersion":"7"},"spec":{"holderIdentity":"elector","leaseDurationSeconds":15}}`

func answer(w http.ResponseWriter, status int, body string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write([]byte(body))
}

// TestDeadConnection: a connection that is dead without having been closed costs
// one request, not the retry too.
func TestDeadConnection(t *testing.T) {
	_, cfg := server(t, func(w http.ResponseWriter, r *http.Request) { answer(w, 200, leaseJSON) })
	var c conns
	cfg.Dial = c.dial
	s := openStore(t, cfg)
	for range 3 {
		if _, err := s.Get(t.Context(), "report"); err != nil {
			t.Fatal(err)
		}
	}
	if n := c.dialled.Load(); n != 1 {
		t.Fatalf("three requests were made over %d connections", n)
	}
	c.silence()
	other, leave := context.WithCancel(t.Context()) // keeps the connection in use
	defer leave()
	go s.Get(other, "report")
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := s.Get(ctx, "report"); err == nil || backend.Definite(err) || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("over a dead connection: %v", err)
	}
	if _, err := s.Get(t.Context(), "report"); err != nil {
		t.Fatalf("after it: %v", err)
	}
	if n := c.dialled.Load(); n != 2 {
		t.Fatalf("%d connections were made, want 2", n)
	}
}

// TestSuspectOnce: a request that hung on a connection which was given up already
// says nothing about the one that has taken its place.
func TestSuspectOnce(t *testing.T) {
	s, c, hang, entered := hangable(t)
	hang.Store(true)
	get := func(timeout time.Duration) chan error {
		ctx, cancel := context.WithTimeout(t.Context(), timeout)
		ended := make(chan error, 1)
		go func() {
			defer cancel()
			_, err := s.Get(ctx, "report")
			ended <- err
		}()
		<-entered
		return ended
	}
	late := get(time.Second)
	if err := <-get(300 * time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	hang.Store(false)
	if _, err := s.Get(t.Context(), "report"); err != nil {
		t.Fatal(err)
	}
	if err := <-late; !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	if _, err := s.Get(t.Context(), "report"); err != nil || c.dialled.Load() != 2 {
		t.Fatalf("%v, over %d connections; want 2", err, c.dialled.Load())
	}
}

// TestCancelledIsNotSuspect: who gives up says nothing about the connection.
func TestCancelledIsNotSuspect(t *testing.T) {
	s, c, hang, entered := hangable(t)
	hang.Store(true)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-entered
		cancel()
	}()
	if _, err := s.Get(ctx, "report"); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	hang.Store(false)
	if _, err := s.Get(t.Context(), "report"); err != nil || c.dialled.Load() != 1 {
		t.Fatalf("%v, over %d connections; want 1", err, c.dialled.Load())
	}
}

// TestOwnTransport: one of the caller's is used as it is, and not closed.
func TestOwnTransport(t *testing.T) {
	srv, cfg := server(t, func(w http.ResponseWriter, r *http.Request) { answer(w, 200, leaseJSON) })
	own := &closeCounter{RoundTripper: srv.Client().Transport}
	cfg.TLSClientConfig, cfg.Transport = rest.TLSClientConfig{}, own
	s := openStore(t, cfg)
	if _, err := s.Get(t.Context(), "report"); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if own.sent.Load() != 1 || own.closed.Load() {
		t.Fatalf("the caller's transport sent %d requests, closed: %v", own.sent.Load(), own.closed.Load())
	}
}

type closeCounter struct {
	http.RoundTripper
	sent   atomic.Int32
	closed atomic.Bool
}

func (c *closeCounter) RoundTrip(r *http.Request) (*http.Response, error) {
	c.sent.Add(1)
	return c.RoundTripper.RoundTrip(r)
}

func (c *closeCounter) CloseIdleConnections() { c.closed.Store(true) }
