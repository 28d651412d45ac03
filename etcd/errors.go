package etcd

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"

	"github.com/leasehold/leasehold/backend"
)

// explain turns what a call failed with into an error of package backend, if it is
// certain that it did nothing and will do nothing. Anything else leaves the outcome
// unknown, and only gets words.
func (s *Store) explain(doing, name string, err error) error {
	return s.describe(fmt.Sprintf("%s lease %q", doing, name), err)
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
	return describe(what, s.client.Endpoints(), s.prefix, err)
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
	switch {
	case is(rpctypes.ErrPermissionDenied):
		return say(backend.ErrDenied, "the user's role needs readwrite on the prefix: etcdctl role grant-permission ROLE readwrite --prefix=true %s", prefix)
	case is(rpctypes.ErrUserEmpty):
		return say(backend.ErrDenied, "etcd at %s wants a user and a password", members)
	case is(rpctypes.ErrAuthFailed):
		return say(backend.ErrDenied, "etcd at %s does not accept the user name or the password", members)
	case is(rpctypes.ErrAuthNotEnabled):
		return say(backend.ErrInvalid, "a user is given, but etcd at %s has authentication switched off: leave the user out, or etcdctl auth enable", members)
	case is(rpctypes.ErrInvalidAuthToken, rpctypes.ErrInvalidAuthMgmt):
		return say(backend.ErrDenied, "etcd at %s does not accept the login any more", members)
	case is(rpctypes.ErrNoSpace):
		return say(nil, "etcd has no space left and takes no writes: compact and defragment it, or raise its quota, then etcdctl alarm disarm")
	case is(rpctypes.ErrRequestTooLarge):
		return say(backend.ErrInvalid, "etcd refuses the size of the record (its --max-request-bytes)")
	case is(rpctypes.ErrNoLeader):
		return say(nil, "etcd has no leader: a majority of its members must be up and reach each other")
	case is(rpctypes.ErrTooManyRequests):
		return say(nil, "etcd is too busy")
	case strings.Contains(message, "x509: "), strings.Contains(message, "certificate signed by unknown authority"):
		return say(backend.ErrInvalid, "the certificate of etcd at %s cannot be trusted: check the certificate authority (cacert) and the address", members)
	case strings.Contains(message, "first record does not look like a TLS handshake"):
		return say(backend.ErrInvalid, "etcd at %s does not speak TLS: leave out cacert, cert, key and tls", members)
	case strings.Contains(message, "remote error: tls: "):
		return say(backend.ErrDenied, "etcd at %s does not accept the client certificate, or wants one: give cert and key", members)
	case strings.Contains(message, "error reading server preface"):
		return say(nil, "etcd at %s closed the connection at once: it may want TLS (cacert, or tls=true in a URL)", members)
	case codeOf(err) == codes.Unimplemented:
		return say(backend.ErrUnsupported, "%s does not answer like an etcd of version 3", members)
	case strings.Contains(message, "no such host"):
		return say(nil, "the address of etcd cannot be resolved (%s)", members)
	case errors.Is(err, context.Canceled):
		return fmt.Errorf("%s: %w", what, err)
	case errors.Is(err, context.DeadlineExceeded), codeOf(err) == codes.DeadlineExceeded:
		return say(nil, "etcd at %s did not answer in time", members)
	case codeOf(err) == codes.Unavailable:
		return say(nil, "etcd at %s cannot be reached, or is not able to answer now", members)
	}
	return say(nil, "etcd failed")
}
