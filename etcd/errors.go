package etcd

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"

	"github.com/leasehold/leasehold/backend"
)

// explain turns what a call failed with into an error of package backend, if it is
// certain that it did nothing and will do nothing. Anything else leaves the outcome
// unknown, and only gets words.
func (s *Store) explain(doing, name string, err error) error {
	return s.describe(fmt.Sprintf("%s lease %q", doing, name), err)
}

// explainWrite is explain for what was sent once too often to say that it did nothing,
// unless a member has answered so.
func (s *Store) explainWrite(doing, name string, err error) error {
	explained := s.explain(doing, name, err)
	if answered(err) || !backend.Definite(explained) {
		return explained
	}
	text := explained.Error()
	for _, class := range []error{backend.ErrInvalid, backend.ErrDenied, backend.ErrUnsupported} {
		text = strings.TrimPrefix(text, class.Error()+": ")
	}
	return &undecided{text + "; it is not known whether it was done", err}
}

// undecided is an error whose words are known, but not the outcome.
type undecided struct {
	text string
	err  error
}

func (e *undecided) Error() string { return e.text }

func (e *undecided) Unwrap() error { return e.err }

// answered reports whether err is what a member has answered, and means that it has
// done nothing.
func answered(err error) bool {
	var e rpctypes.EtcdError
	if !errors.As(err, &e) {
		return false
	}
	switch e.Code() {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled, codes.Unknown, codes.Aborted, codes.Internal:
		return false
	}
	return true
}

func (s *Store) explainList(err error) error {
	return s.describe("listing leases", err)
}

func (s *Store) describe(what string, err error) error {
	switch {
	case backend.Definite(err):
		return err
	case s.closed():
		return errClosed
	}
	if hung(err) {
		if why := s.disconnected(); why != nil {
			err = fmt.Errorf("%w: %w", err, why)
		}
	}
	return describe(what, s.client.Endpoints(), s.prefix, err)
}

// disconnected is why there is no connection to any member, nil if there is one or
// it is being made. Calls of the client wait for one, and when their time is over
// that is all they tell.
func (s *Store) disconnected() error {
	conn := s.client.ActiveConnection()
	if conn.GetState() != connectivity.TransientFailure {
		return nil
	}
	// A request that does not wait is refused with the reason, and not sent.
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	_, err := pb.NewMaintenanceClient(conn).Status(ctx, &pb.StatusRequest{})
	if codeOf(err) != codes.Unavailable {
		return nil
	}
	return err
}

// describe says what went wrong at the members of an etcd.
func describe(what string, endpoints []string, prefix string, err error) error {
	say := func(class error, format string, args ...any) error {
		text := fmt.Sprintf(format, args...)
		if class == nil {
			return fmt.Errorf("%s: %s: %w", what, text, err)
		}
		return fmt.Errorf("%w: %s: %s: %w", class, what, text, err)
	}
	members := strings.Join(endpoints, ", ")
	is := func(targets ...error) bool {
		for _, t := range targets {
			if errors.Is(err, t) {
				return true
			}
		}
		return false
	}
	message := err.Error()
	tells := func(parts ...string) bool {
		for _, p := range parts {
			if strings.Contains(message, p) {
				return true
			}
		}
		return false
	}
	switch {
	case is(rpctypes.ErrPermissionDenied):
		return say(backend.ErrDenied, "the user's role needs readwrite on the prefix: etcdctl role grant-permission ROLE readwrite --prefix=true %s", prefix)
	case is(rpctypes.ErrUserEmpty):
		return say(backend.ErrDenied, "etcd at %s wants a user and a password: etcd://user:password@host, or Username and Password of the client", members)
	case is(rpctypes.ErrAuthFailed):
		return say(backend.ErrDenied, "etcd at %s does not accept the user name or the password", members)
	case is(rpctypes.ErrInvalidAuthToken):
		return say(backend.ErrDenied, "etcd at %s does not accept the login any more", members)
	case is(rpctypes.ErrAuthOldRevision):
		return say(nil, "a user or a role of etcd was changed at that moment")
	case is(rpctypes.ErrNoSpace):
		return say(nil, "etcd has no space left and takes no writes: compact and defragment it, or raise its --quota-backend-bytes, then etcdctl alarm disarm")
	case is(rpctypes.ErrCorrupt):
		return say(nil, "etcd has found its data corrupt, and answers nothing: etcdctl alarm list names the member to replace")
	case is(rpctypes.ErrRequestTooLarge):
		return say(backend.ErrInvalid, "etcd refuses the size of the record (its --max-request-bytes)")
	case is(rpctypes.ErrNoLeader):
		return say(nil, "etcd has no leader: a majority of its members must be up and reach each other")
	case is(rpctypes.ErrTooManyRequests):
		return say(nil, "etcd is too busy")
	case tells("x509: ") && tells("authentication handshake failed"):
		return say(backend.ErrInvalid, "the certificate of etcd at %s cannot be trusted: check the certificate authority (cacert) and the address, or the name in the certificate (server-name)", members)
	case tells("first record does not look like a TLS handshake"):
		return say(backend.ErrInvalid, "%s does not speak TLS: leave out cacert, cert, key and tls", members)
	case refusedCertificate(message):
		return say(backend.ErrDenied, "etcd at %s does not accept the client certificate, or wants one: give cert and key", members)
	case tells("authentication handshake failed: EOF"):
		return say(nil, "etcd at %s closes the connection when TLS begins: if it does not speak TLS, leave out cacert, cert, key and tls", members)
	case tells("looked like an HTTP/1.1 header", "unexpected HTTP status code", "malformed HTTP response"):
		return say(nil, "something that is no etcd answers at %s, or on the way there: check the address", members)
	case tells("use of closed network connection"): // gRPC has closed it, after some time
		return say(nil, "etcd at %s did not answer in time", members)
	case tells("error reading server preface: EOF", "error reading server preface: read tcp", "error reading server preface: connection", "write: broken pipe", "connection reset by peer"):
		if strings.Contains(members, "https://") {
			return say(nil, "etcd at %s closes the connection: it may want a client certificate, or another one (cert and key)", members)
		}
		return say(nil, "etcd at %s closes the connection: it may want TLS (cacert, or tls=true in a URL)", members)
	case codeOf(err) == codes.Unimplemented:
		return say(backend.ErrUnsupported, "%s does not answer like an etcd of version 3", members)
	case tells("no such host"):
		return say(nil, "the address of etcd cannot be resolved (%s)", members)
	case errors.Is(err, context.Canceled):
		return fmt.Errorf("%s: %w", what, err)
	case tells("Error while dialing"):
		return say(nil, "etcd at %s cannot be reached", members)
	case hung(err):
		return say(nil, "etcd at %s did not answer in time", members)
	case codeOf(err) == codes.Unavailable:
		return say(nil, "etcd at %s cannot be reached, or is not able to answer now", members)
	}
	return say(nil, "etcd failed")
}

// refusedCertificate reports whether a member has ended the TLS handshake because of
// our certificate. Another alert may also end a connection on which requests were
// served.
func refusedCertificate(message string) bool {
	_, alert, ok := strings.Cut(message, "remote error: tls: ")
	return ok && strings.Contains(alert, "certificate")
}
