// Package tlsfiles makes the TLS configuration of a client from the files that the
// URL of a store names.
package tlsfiles

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"

	"github.com/leasehold/leasehold/backend"
)

// Parameters are those of a URL that Load reads.
var Parameters = []string{"cacert", "cert", "key", "server-name"}

// Given reports whether there is any of them.
func Given(q map[string]string) bool {
	for _, p := range Parameters {
		if q[p] != "" {
			return true
		}
	}
	return false
}

// Load returns the configuration that cacert (whom to trust; by default whom the
// system does), cert and key (who one is) and server-name of a URL ask for. Its
// errors are ErrInvalid, and name the parameter and the URL, as of is ("etcd").
func Load(of string, q map[string]string) (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: q["server-name"]}
	if file := q["cacert"]; file != "" {
		pem, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("%w: cacert of the %s URL: %w", backend.ErrInvalid, of, err)
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%w: cacert of the %s URL: %s holds no certificate in PEM", backend.ErrInvalid, of, file)
		}
	}
	if cert, key := q["cert"], q["key"]; cert != "" || key != "" {
		if cert == "" || key == "" {
			return nil, fmt.Errorf("%w: the %s URL needs both cert and key, or neither", backend.ErrInvalid, of)
		}
		// It is read now, so that a mistake is told now, and again for each connection:
		// certificates are renewed while programs run.
		load := func() (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(cert, key)
			return &pair, err
		}
		if _, err := load(); err != nil {
			return nil, fmt.Errorf("%w: cert and key of the %s URL: %w", backend.ErrInvalid, of, err)
		}
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return load() }
	}
	return cfg, nil
}
