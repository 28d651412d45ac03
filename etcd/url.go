package etcd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"github.com/leasehold/leasehold/backend"
)

func init() { backend.Register("etcd", open) }

// connectParams have a member that comes back used again soon.
var connectParams = grpc.ConnectParams{
	Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 3 * time.Second},
	MinConnectTimeout: 3 * time.Second,
}

const usage = "an etcd URL is etcd://[user:password@]host:2379[,host:2379…][/prefix], with ?cacert=FILE&cert=FILE&key=FILE for TLS"

// open opens etcd://[user:password@]host:port[,host:port…][/prefix].
func open(_ context.Context, u *url.URL) (backend.Store, error) {
	q, err := backend.Query(u, "cacert", "cert", "key", "server-name", "tls")
	if err != nil {
		return nil, err
	}
	if u.Opaque != "" || u.Fragment != "" || u.Host == "" {
		return nil, fmt.Errorf("%w: %s", backend.ErrInvalid, usage)
	}
	secure, err := tlsConfig(q)
	if err != nil {
		return nil, err
	}
	scheme := "http"
	if secure != nil {
		scheme = "https"
	}
	cfg := clientv3.Config{
		TLS:         secure,
		DialTimeout: 5 * time.Second,
		// A connection that has died without a word is found within 13 seconds, and
		// watches move on. etcd allows no more than one such question in 5.
		DialKeepAliveTime:    10 * time.Second,
		DialKeepAliveTimeout: 3 * time.Second,
		DialOptions:          []grpc.DialOption{grpc.WithConnectParams(connectParams)},
		Logger:               zap.NewNop(), // what fails is said by errors
	}
	for host := range strings.SplitSeq(u.Host, ",") {
		name, port, err := net.SplitHostPort(host)
		if err != nil {
			name, port = strings.Trim(host, "[]"), "2379"
		}
		if n, err := strconv.Atoi(port); name == "" || err != nil || n < 1 || n > 65535 {
			return nil, fmt.Errorf("%w: %q is no address of an etcd: %s", backend.ErrInvalid, host, usage)
		}
		cfg.Endpoints = append(cfg.Endpoints, scheme+"://"+net.JoinHostPort(name, port))
	}
	if u.User != nil {
		password, ok := u.User.Password()
		if u.User.Username() == "" || !ok || password == "" {
			return nil, fmt.Errorf("%w: a user of etcd needs a name and a password: %s", backend.ErrInvalid, usage)
		}
		cfg.Username, cfg.Password = u.User.Username(), password
	}
	prefix, err := checkPrefix(u.Path)
	if err != nil {
		return nil, err
	}
	client, err := clientv3.New(cfg)
	if err != nil {
		// With a password it has tried to log in.
		return nil, describe("logging in", cfg.Endpoints, prefix, err)
	}
	s := New(client, prefix)
	s.owned = true
	return s, nil
}

// tlsConfig returns nil where the URL asks for no TLS.
func tlsConfig(q map[string]string) (*tls.Config, error) {
	on := q["cacert"] != "" || q["cert"] != "" || q["key"] != "" || q["server-name"] != ""
	if text, ok := q["tls"]; ok {
		want, err := strconv.ParseBool(text)
		switch {
		case err != nil:
			return nil, fmt.Errorf("%w: tls=%q of the etcd URL is neither true nor false", backend.ErrInvalid, text)
		case !want && on:
			return nil, fmt.Errorf("%w: the etcd URL says tls=false, and gives what TLS needs", backend.ErrInvalid)
		}
		on = want
	}
	if !on {
		return nil, nil
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: q["server-name"]}
	if file := q["cacert"]; file != "" {
		pem, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("%w: cacert of the etcd URL: %w", backend.ErrInvalid, err)
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%w: cacert of the etcd URL: %s holds no certificate in PEM", backend.ErrInvalid, file)
		}
	}
	if cert, key := q["cert"], q["key"]; cert != "" || key != "" {
		if cert == "" || key == "" {
			return nil, fmt.Errorf("%w: the etcd URL needs both cert and key, or neither", backend.ErrInvalid)
		}
		// It is read now, so that a mistake is told now, and again for each connection:
		// certificates are renewed while programs run.
		load := func() (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(cert, key)
			return &pair, err
		}
		if _, err := load(); err != nil {
			return nil, fmt.Errorf("%w: cert and key of the etcd URL: %w", backend.ErrInvalid, err)
		}
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return load() }
	}
	return cfg, nil
}
