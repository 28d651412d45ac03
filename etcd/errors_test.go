package etcd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/leasehold/leasehold/backend"
)

// TestDescribe: what is certain not to have been done has a class, and all else has
// none; each is a sentence that says what to do.
func TestDescribe(t *testing.T) {
	unavailable := func(text string) error { return status.Error(codes.Unavailable, text) }
	connection := func(text string) error {
		return unavailable(`connection error: desc = "transport: ` + text + `"`)
	}
	preface := func(text string) error {
		return unavailable(`connection error: desc = "error reading server preface: ` + text + `"`)
	}
	const grant = "etcdctl role grant-permission ROLE readwrite --prefix=true /jobs/"
	for _, c := range []struct {
		err   error
		class error // nil: unknown
		words string
	}{
		{rpctypes.ErrPermissionDenied, backend.ErrDenied, grant},
		{rpctypes.ErrUserEmpty, backend.ErrDenied, "wants a user and a password"},
		{rpctypes.ErrAuthFailed, backend.ErrDenied, "does not accept the user name or the password"},
		{rpctypes.ErrInvalidAuthToken, backend.ErrDenied, "does not accept the login any more"},
		{rpctypes.ErrAuthOldRevision, nil, "was changed at that moment"},
		{rpctypes.ErrNoSpace, nil, "etcdctl alarm disarm"},
		{rpctypes.ErrCorrupt, nil, "etcdctl alarm list"},
		{rpctypes.ErrRequestTooLarge, backend.ErrInvalid, "--max-request-bytes"},
		{rpctypes.ErrNoLeader, nil, "a majority of its members must be up"},
		{rpctypes.ErrTooManyRequests, nil, "too busy"},
		// These may have been applied.
		{rpctypes.ErrTimeout, nil, "not able to answer now"},
		{rpctypes.ErrLeaderChanged, nil, "not able to answer now"},
		{rpctypes.ErrTimeoutDueToLeaderFail, nil, "not able to answer now"},
		{rpctypes.ErrTimeoutDueToConnectionLost, nil, "not able to answer now"},
		{rpctypes.ErrStopped, nil, "not able to answer now"},
		{unavailable("error reading from server: EOF"), nil, "not able to answer now"},
		{unavailable("transport is closing"), nil, "not able to answer now"},
		{status.Error(codes.Unknown, "panic"), nil, "etcd failed"},
		{status.Error(codes.Internal, "stream terminated by RST_STREAM"), nil, "etcd failed"},
		{unavailable("error reading from server: remote error: tls: bad record MAC"), nil, "not able to answer now"},
		{unavailable("error reading from server: x509: certificate has expired"), nil, "not able to answer now"},
		{io.EOF, nil, "etcd failed"},
		{context.DeadlineExceeded, nil, "http://a:1, http://b:2 did not answer in time"},
		{status.Error(codes.DeadlineExceeded, "context deadline exceeded"), nil, "did not answer in time"},
		{context.Canceled, nil, "context canceled"},

		{connection("Error while dialing: dial tcp 127.0.0.1:1: connect: connection refused"), nil, "cannot be reached"},
		{connection("Error while dialing dial tcp: lookup x: no such host"), nil, "cannot be resolved"},
		{connection("authentication handshake failed: x509: certificate signed by unknown authority"), backend.ErrInvalid, "cacert"},
		{connection("authentication handshake failed: tls: failed to verify certificate: x509: certificate has expired or is not yet valid"), backend.ErrInvalid, "expired"},
		{connection("authentication handshake failed: tls: first record does not look like a TLS handshake"), backend.ErrInvalid, "leave out cacert, cert, key and tls"},
		{connection("authentication handshake failed: EOF"), nil, "leave out cacert, cert, key and tls"},
		{connection("authentication handshake failed: remote error: tls: bad certificate"), backend.ErrDenied, "give cert and key"},
		{preface("remote error: tls: certificate required"), backend.ErrDenied, "give cert and key"},
		{preface("EOF"), nil, "it may want TLS"},
		{preface("read tcp 127.0.0.1:1->127.0.0.1:2: read: connection reset by peer"), nil, "it may want TLS"},
		{preface("http2: frame too large, note that the frame header looked like an HTTP/1.1 header"), nil, "no etcd answers"},
		{preface("raw-read tcp 127.0.0.1:1->127.0.0.1:2: use of closed network connection"), nil, "did not answer in time"},
		{status.Error(codes.Unimplemented, "unexpected HTTP status code received from server: 404 (Not Found)"), nil, "no etcd answers"},
		{status.Error(codes.Unimplemented, "unknown service etcdserverpb.KV"), backend.ErrUnsupported, "does not answer like an etcd"},
	} {
		err := describe(`acquiring lease "job"`, []string{"http://a:1", "http://b:2"}, "/jobs/", c.err)
		if !errors.Is(err, c.err) {
			t.Errorf("%v is lost in %v", c.err, err)
		}
		if c.class == nil && backend.Definite(err) || c.class != nil && !errors.Is(err, c.class) {
			t.Errorf("%v is %v, want %v", c.err, err, c.class)
		}
		if !strings.Contains(err.Error(), c.words) || !strings.Contains(err.Error(), `acquiring lease "job"`) || strings.Contains(err.Error(), "%!") {
			t.Errorf("%v is told as: %v\nwant %s", c.err, err, c.words)
		}
		if c.class != nil && strings.Count(err.Error(), c.class.Error()) > 2 { // etcd says permission denied, too
			t.Errorf("%v says it too often", err)
		}
	}
	// Without a client certificate a member that wants one may just be seen to go.
	if err := describe("x", []string{"https://a:1"}, "/", unavailable("write tcp 127.0.0.1:1->127.0.0.1:2: write: broken pipe")); backend.Definite(err) || !strings.Contains(err.Error(), "client certificate") {
		t.Error(err)
	}
}

// TestExplainKeeps: what has a class keeps it, and a store that is closed says so.
func TestExplainKeeps(t *testing.T) {
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{"127.0.0.1:1"}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s := New(c, "")
	for _, class := range []error{backend.ErrLost, backend.ErrHeld, backend.ErrNotFound, backend.ErrCorrupt} {
		in := fmt.Errorf("%w: as it is", class)
		if got := s.explain("reading", "job", in); got != in {
			t.Errorf("%v becomes %v", in, got)
		}
	}
	s.Close()
	if err := s.explain("reading", "job", context.Canceled); !errors.Is(err, backend.ErrInvalid) {
		t.Errorf("a closed store says %v", err)
	}
}

// TestDisconnected: a call whose time is over while there is no connection says why
// there is none, whoever has made the client.
func TestDisconnected(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{addr}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s := New(c, "", WithRequestTimeout(time.Second))
	defer s.Close()
	began := time.Now()
	_, err = s.Get(t.Context(), "job")
	if backend.Definite(err) || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "refused") || !strings.Contains(err.Error(), "cannot be reached") {
		t.Errorf("nobody listens: %v", err)
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("it took %v", took)
	}
}

// TestUndecided: what was sent, and may have been done, has no class, but the words.
func TestUndecided(t *testing.T) {
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{"127.0.0.1:1"}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s := New(c, "")
	in := status.Error(codes.Unavailable, "connection error: desc = \"transport: authentication handshake failed: x509: certificate signed by unknown authority\"")
	if err := s.explain("releasing", "job", in); !errors.Is(err, backend.ErrInvalid) {
		t.Errorf("a read: %v", err)
	}
	err = s.explainWrite("releasing", "job", in)
	if backend.Definite(err) || !errors.Is(err, in) || !strings.HasPrefix(err.Error(), `releasing lease "job": the certificate of etcd`) || !strings.Contains(err.Error(), "not known") {
		t.Errorf("a write: %v", err)
	}
	if err := s.explainWrite("releasing", "job", rpctypes.ErrPermissionDenied); !errors.Is(err, backend.ErrDenied) || strings.Contains(err.Error(), "not known") {
		t.Errorf("a write that was refused: %v", err)
	}
	if err := s.explainWrite("releasing", "job", rpctypes.ErrTimeout); backend.Definite(err) || strings.Contains(err.Error(), "not known whether") {
		t.Errorf("a write without an answer: %v", err)
	}
}
