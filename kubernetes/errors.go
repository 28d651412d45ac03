package kubernetes

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/leasehold/leasehold/backend"
)

// namespaceTerminating is the cause the API server gives where a namespace is
// being deleted (corev1.NamespaceTerminatingCause).
const namespaceTerminating metav1.CauseType = "NamespaceTerminating"

// explain turns what a request failed with into an error of package backend, if
// it is certain that the request did nothing and will do nothing. Anything else
// leaves the outcome unknown, and only gets words. verb is that of RBAC, name of
// the object, "" for all of them.
func (s *Store) explain(verb, name string, err error) error {
	what := fmt.Sprintf("%s lease %s in namespace %s", verb, name, s.namespace)
	switch {
	case strings.HasPrefix(name, "/"): // a path
		what = verb + " " + name
	case name == "":
		what = fmt.Sprintf("%s leases in namespace %s", verb, s.namespace)
	}
	say := func(class error, format string, args ...any) error {
		text := fmt.Sprintf(format, args...)
		if class == nil {
			return fmt.Errorf("%s: %s: %w", what, text, err)
		}
		return fmt.Errorf("%w: %s: %s: %w", class, what, text, err)
	}
	switch status := statusOf(err); {
	case status == 0:
		return s.explainTransport(what, err)
	case status == http.StatusUnauthorized:
		return say(backend.ErrDenied, "the API server does not accept the credentials: they may have expired")
	case apierrors.HasStatusCause(err, namespaceTerminating):
		return say(backend.ErrDenied, "the namespace is being deleted")
	case status == http.StatusForbidden && !foreignReply(err) && !lacksVerb(err, verb):
		return say(backend.ErrDenied, "a policy or a quota of the cluster forbids it")
	case status == http.StatusForbidden:
		return say(backend.ErrDenied, "grant the verb %q on the resource %q of the API group %q in namespace %q", verb, "leases", "coordination.k8s.io", s.namespace)
	case status == http.StatusTooManyRequests:
		if seconds, ok := apierrors.SuggestsClientDelay(err); ok {
			return say(nil, "the API server is busy and asks to be left alone for %d s", seconds)
		}
		return say(nil, "the API server is busy")
	case foreignReply(err) && status < 500 && (s.api.known.Load() || status == http.StatusRequestTimeout || status >= 420):
		return say(nil, "something on the way to %s has answered in its place (%d)", s.api.host, status)
	case foreignReply(err) && status < 500:
		return say(backend.ErrUnsupported, "%s did not answer like a Kubernetes API server: check the server's address", s.api.host)
	case status == http.StatusNotFound && resourceOf(err) == "namespaces":
		return say(backend.ErrInvalid, "the namespace does not exist: create it, or let Leasehold create it (WithCreateNamespace, create-namespace=true in a URL)")
	case status == http.StatusNotFound && resourceOf(err) != "leases":
		return say(backend.ErrUnsupported, "the API server has no coordination.k8s.io/v1: Kubernetes 1.14 was the first with it")
	case status == http.StatusBadRequest, status == http.StatusUnprocessableEntity, status == http.StatusRequestEntityTooLarge:
		return say(backend.ErrInvalid, "the API server refuses the object")
	case status == http.StatusMethodNotAllowed:
		return say(backend.ErrUnsupported, "the API server does not allow it")
	case status >= 500:
		return say(nil, "the API server failed (%d)", status)
	}
	return say(nil, "refused")
}

// lacksVerb reports whether a 403 is because of the role.
func lacksVerb(err error, verb string) bool { return strings.Contains(err.Error(), "cannot "+verb) }

// explainTransport is explain where there is no answer.
func (s *Store) explainTransport(what string, err error) error {
	var (
		dns       *net.DNSError
		authority x509.UnknownAuthorityError
		hostname  x509.HostnameError
		invalid   x509.CertificateInvalidError
		alert     tls.AlertError
		verify    *tls.CertificateVerificationError
		header    tls.RecordHeaderError
	)
	switch {
	case errors.As(err, &authority), errors.As(err, &hostname), errors.As(err, &invalid), errors.As(err, &verify):
		return fmt.Errorf("%w: %s: the certificate of %s cannot be trusted: check the certificate authority and the address in the kubeconfig: %w", backend.ErrInvalid, what, s.api.host, err)
	case errors.As(err, &alert), isAlert(err):
		return fmt.Errorf("%w: %s: %s does not accept the client certificate: %w", backend.ErrDenied, what, s.api.host, err)
	case errors.As(err, &header), strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		return fmt.Errorf("%w: %s: %s does not speak TLS: check the server's address: %w", backend.ErrInvalid, what, s.api.host, err)
	case errors.Is(err, errForeign):
		return fmt.Errorf("%s: %s did not answer like a Kubernetes API server: check the server's address, and what is on the way to it: %w", what, s.api.host, err)
	case errors.As(err, &dns):
		return fmt.Errorf("%s: the API server's address %s cannot be resolved: %w", what, dns.Name, err)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s: the API server %s did not answer in time: %w", what, s.api.host, err)
	case errors.Is(err, context.Canceled):
		return fmt.Errorf("%s: %w", what, err)
	}
	return fmt.Errorf("%s: the API server %s cannot be reached: %w", what, s.api.host, err)
}

// isAlert reports whether the server ended the TLS handshake because of our
// certificate. crypto/tls tells of a remote alert by text alone.
func isAlert(err error) bool {
	text := err.Error()
	i := strings.Index(text, "remote error: tls: ")
	return i >= 0 && strings.Contains(text[i:], "certificate")
}
