//go:build unix

package kubernetes_test

import (
	"errors"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/rest"
)

// wire is what is between one client and the API server: connections of its own,
// as if the client were alone in its process, and a count of what goes over them.
type wire struct {
	requests atomic.Int64
	writes   atomic.Int64 // that the server acknowledged
	cut      atomic.Bool

	mu       sync.Mutex
	next     http.RoundTripper
	wrote    time.Time     // when the last write was acknowledged
	watching chan struct{} // closed when a watch has been answered
}

func newWire() *wire { return &wire{watching: make(chan struct{})} }

var errCut = errors.New("the wire is cut")

// through returns cfg with all its requests going over w.
func (w *wire) through(cfg *rest.Config) *rest.Config {
	cfg = rest.CopyConfig(cfg)
	cfg.QPS = -1 // waiting in the client is not what is measured
	// client-go shares connections among clients that dial alike.
	cfg.Dial = (&net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}).DialContext
	cfg.Wrap(func(next http.RoundTripper) http.RoundTripper {
		w.mu.Lock()
		w.next = next
		w.mu.Unlock()
		return roundTripper(func(req *http.Request) (*http.Response, error) { return w.send(next, req) })
	})
	return cfg
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

func (w *wire) send(next http.RoundTripper, req *http.Request) (*http.Response, error) {
	if w.cut.Load() {
		return nil, errCut
	}
	w.requests.Add(1)
	resp, err := next.RoundTrip(req)
	if err != nil || resp.StatusCode >= 300 {
		return resp, err
	}
	switch {
	case req.Method != http.MethodGet:
		w.writes.Add(1)
		w.mu.Lock()
		w.wrote = time.Now()
		w.mu.Unlock()
	case req.URL.Query().Get("watch") != "":
		w.mu.Lock()
		select {
		case <-w.watching:
		default:
			close(w.watching)
		}
		w.mu.Unlock()
	}
	return resp, nil
}

// hangUp closes the connections of a client of client-go, which would keep them
// for a while: they are not to be counted with what is measured next.
func (w *wire) hangUp() {
	w.mu.Lock()
	defer w.mu.Unlock()
	utilnet.CloseIdleConnectionsFor(w.next)
}

// rearm returns a channel that the next watch closes.
func (w *wire) rearm() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.watching = make(chan struct{})
	return w.watching
}

// lastWrite is when a write was last acknowledged. One that is under way when the
// wire is cut may still be.
func (w *wire) lastWrite() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.wrote
}
