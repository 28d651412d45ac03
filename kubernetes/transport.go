package kubernetes

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/transport"
)

const (
	// An HTTP/2 connection on which nothing arrived for pingAfter is asked whether
	// it is alive, and closed if it does not answer for pingTimeout. client-go's
	// 30 s and 15 s are longer than a usual lease.
	pingAfter   = 5 * time.Second
	pingTimeout = 5 * time.Second

	dialTimeout = 5 * time.Second

	// silence is for how long a connection may leave a request unanswered until a
	// caller who gives up makes it suspect. Leases of a second give a call 250 ms.
	silence = 100 * time.Millisecond
)

// connections are those to the API server for one purpose. Verbs and watches have
// their own, so that no stream of events is in the way of a renewal.
//
// HTTP/2 sends every request over one connection; one that is dead without having
// been closed would swallow a renewal and then its retry. Therefore a request that
// was not answered in time makes the connections suspect: the next one gets a new
// connection, and those that are under way stay where they are.
type connections struct {
	build     func() http.RoundTripper // nil: current is the caller's
	streaming bool                     // replies have no end

	mu      sync.Mutex
	current http.RoundTripper
	retired []http.RoundTripper // closed with the store; their connections go when they are idle
}

var _ http.RoundTripper = (*connections)(nil)

// newConnections makes connections as cfg says, and the HTTP client that sends by
// them with the credentials of cfg. A Transport of the caller's own is used as it is.
func newConnections(cfg *rest.Config, streaming bool) (*connections, *http.Client, error) {
	tc, err := cfg.TransportConfig()
	if err != nil {
		return nil, nil, err
	}
	c := &connections{streaming: streaming, current: cfg.Transport}
	if c.current == nil {
		if c.build, err = builder(cfg, tc); err != nil {
			return nil, nil, err
		}
		c.current = c.build()
	}
	rt, err := transport.HTTPWrappersForConfig(tc, c)
	if err != nil {
		return nil, nil, err
	}
	return c, &http.Client{
		Transport: rt,
		// A PUT that is sent elsewhere becomes a GET, whose answer looks like success.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, nil
}

// builder returns what makes a transport, each with connections of its own.
func builder(cfg *rest.Config, tc *transport.Config) (func() http.RoundTripper, error) {
	tls, err := transport.TLSConfigFor(tc)
	if err != nil {
		return nil, err
	}
	dial := (&net.Dialer{Timeout: dialTimeout, KeepAlive: 15 * time.Second}).DialContext
	if tc.DialHolder != nil {
		dial = tc.DialHolder.Dial
	}
	proxy := cfg.Proxy
	if proxy == nil {
		proxy = http.ProxyFromEnvironment
	}
	return func() http.RoundTripper {
		t := &http.Transport{
			Proxy:               proxy,
			DialContext:         dial,
			ForceAttemptHTTP2:   true,
			HTTP2:               &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout},
			TLSHandshakeTimeout: dialTimeout,
			MaxIdleConnsPerHost: 25,
			IdleConnTimeout:     90 * time.Second,
			DisableCompression:  cfg.DisableCompression,
		}
		if tls != nil {
			t.TLSClientConfig = tls.Clone()
		}
		return t
	}, nil
}

// exchange is what a request that has one in its context tells of its way:
// client-go keeps the reply's headers to itself.
type exchange struct {
	mu     sync.Mutex
	by     http.RoundTripper
	sent   time.Time // when all of the request was
	header http.Header
}

type exchangeKey struct{}

func (x *exchange) context(ctx context.Context) context.Context {
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteRequest: func(httptrace.WroteRequestInfo) {
		x.mu.Lock()
		defer x.mu.Unlock()
		x.sent = time.Now()
	}})
	return context.WithValue(ctx, exchangeKey{}, x)
}

// silent reports whether a request that has come to nothing tells something about
// its connection: it went out, and there was time to answer. One that never had a
// connection does not: the next may find the one that is still being made.
func (x *exchange) silent() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return !x.sent.IsZero() && time.Since(x.sent) >= silence
}

// date is the server's clock when it answered; zero if it did not tell.
func (x *exchange) date() time.Time {
	x.mu.Lock()
	defer x.mu.Unlock()
	t, err := http.ParseTime(x.header.Get("Date"))
	if err != nil {
		return time.Time{}
	}
	return t
}

// errForeign is a success that no API server has answered: of a proxy that asks
// for a login, say.
var errForeign = errors.New("not an answer of the Kubernetes API")

// RoundTrip sends a request.
func (c *connections) RoundTrip(req *http.Request) (*http.Response, error) {
	c.mu.Lock()
	by := c.current
	c.mu.Unlock()
	x, _ := req.Context().Value(exchangeKey{}).(*exchange)
	if x != nil {
		x.mu.Lock()
		x.by, x.sent, x.header = by, time.Time{}, nil
		x.mu.Unlock()
	}
	resp, err := by.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	if x != nil {
		x.mu.Lock()
		x.header = resp.Header
		x.mu.Unlock()
	}
	if !c.streaming {
		// Half a reply is none; client-go would also print it.
		body, err := io.ReadAll(resp.Body)
		if closing := resp.Body.Close(); err == nil {
			err = closing
		}
		if err != nil {
			return nil, err
		}
		resp.Body = io.NopCloser(bytes.NewReader(body))
		// client-go takes any 200 for success where it expects no object.
		if kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")); resp.StatusCode < 300 && !strings.HasPrefix(kind, "application/") {
			return nil, fmt.Errorf("%w: status %d, of type %q", errForeign, resp.StatusCode, kind)
		}
	}
	return resp, nil
}

// suspect has the next request use a new connection: the one that x went by has
// not answered. Where that was replaced already, it stays replaced.
func (c *connections) suspect(x *exchange) {
	x.mu.Lock()
	by := x.by
	x.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.build == nil || by != c.current {
		return
	}
	c.current = c.build()
	closeIdle(by)
	const most = 16
	if len(c.retired) == most { // long idle by now
		closeIdle(c.retired[0])
		c.retired = c.retired[1:]
	}
	c.retired = append(c.retired, by)
}

// close closes what is not in use.
func (c *connections) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.build == nil {
		return
	}
	for _, rt := range append(c.retired, c.current) {
		closeIdle(rt)
	}
	c.retired = nil
}

func closeIdle(rt http.RoundTripper) {
	if c, ok := rt.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}
