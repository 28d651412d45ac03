package etcd

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/internal/tlsfiles"
)

func init() { backend.Register("etcd", open) }

// connectParams have a member that comes back used again soon.
var connectParams = grpc.ConnectParams{
	Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 3 * time.Second},
	MinConnectTimeout: 3 * time.Second,
}

const usage = "an etcd URL is etcd://[user:password@]host:2379[,host:2379…][/prefix], with ?cacert=FILE&cert=FILE&key=FILE for TLS"

// open opens etcd://[user:password@]host:port[,host:port…][/prefix]. Nothing is sent
// before the first call, so it opens an etcd that is down, too.
func open(_ context.Context, u *url.URL) (backend.Store, error) {
	cfg, prefix, err := configure(u)
	if err != nil {
		return nil, err
	}
	login, loginLater := lateLogin()
	cfg.DialOptions = append(cfg.DialOptions, loginLater)
	client, err := clientv3.New(cfg)
	if err != nil {
		return nil, describe("making the client", cfg.Endpoints, prefix, err)
	}
	login()
	s := New(client, prefix)
	s.owned = true
	return s, nil
}

// configure reads a URL. No error of its repeats the password, nor what may be a
// part of it.
func configure(u *url.URL) (cfg clientv3.Config, prefix string, err error) {
	fail := func(err error) (clientv3.Config, string, error) { return clientv3.Config{}, "", err }
	// A password with one of / ? # in it ends the hosts, and what comes after it up to
	// the @ would be taken for a prefix or a parameter, and shown.
	if u.Opaque != "" || u.Fragment != "" || u.Host == "" || strings.Contains(u.EscapedPath()+u.RawQuery, "@") {
		return fail(fmt.Errorf("%w: %s; in it %%2F stands for /, %%3F for ?, %%23 for # and %%40 for @", backend.ErrInvalid, usage))
	}
	q, err := backend.Query(u, slices.Concat(tlsfiles.Parameters, []string{"tls"})...)
	if err != nil {
		return fail(err)
	}
	secure, err := tlsConfig(q)
	if err != nil {
		return fail(err)
	}
	scheme := "http"
	if secure != nil {
		scheme = "https"
	}
	cfg = clientv3.Config{
		TLS:         secure,
		DialTimeout: 5 * time.Second,
		// A connection that has died without a word is found within 13 seconds, and
		// watches move on. etcd allows no more than one such question in 5.
		DialKeepAliveTime:    10 * time.Second,
		DialKeepAliveTimeout: 3 * time.Second,
		DialOptions:          []grpc.DialOption{grpc.WithConnectParams(connectParams)},
		Logger:               zap.NewNop(), // what fails is said by errors
	}
	if name := q["server-name"]; name != "" {
		// Of the name in a tls.Config gRPC thinks less than of the endpoint's.
		cfg.DialOptions = append(cfg.DialOptions, grpc.WithAuthority(name))
	}
	for host := range strings.SplitSeq(u.Host, ",") {
		addr, err := address(host)
		if err != nil {
			return fail(err)
		}
		cfg.Endpoints = append(cfg.Endpoints, scheme+"://"+addr)
	}
	if u.User != nil {
		password, _ := u.User.Password()
		if u.User.Username() == "" || password == "" {
			return fail(fmt.Errorf("%w: a user of etcd needs a name and a password: %s", backend.ErrInvalid, usage))
		}
		cfg.Username, cfg.Password = u.User.Username(), password
	}
	prefix, err = checkPrefix(u.Path)
	if err != nil {
		return fail(err)
	}
	return cfg, prefix, nil
}

// address is host:port of what may be a host alone.
func address(host string) (string, error) {
	name, port, err := net.SplitHostPort(host)
	if err != nil {
		name, port = host, "2379"
		if inner, ok := strings.CutPrefix(host, "["); ok { // IPv6
			name, ok = strings.CutSuffix(inner, "]")
			if !ok || net.ParseIP(name) == nil {
				name = ""
			}
		} else if strings.Contains(host, ":") {
			name = ""
		}
	}
	if n, err := strconv.Atoi(port); name == "" || err != nil || n < 1 || n > 65535 {
		return "", fmt.Errorf("%w: %q is no address of an etcd: %s", backend.ErrInvalid, host, usage)
	}
	return net.JoinHostPort(name, port), nil
}

// lateLogin is an option with which a client does not log in before login is
// called. clientv3.New would, and fail where nobody answers, and a program that
// waits for a lease should survive that at its beginning as it does later. What
// is sent without a login etcd refuses unseen; the client then logs in, and sends
// it again.
func lateLogin() (login func(), _ grpc.DialOption) {
	var on atomic.Bool
	return func() { on.Store(true) }, grpc.WithChainUnaryInterceptor(
		func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			if method == "/etcdserverpb.Auth/Authenticate" && !on.Load() {
				return nil // and reply has no token
			}
			return invoker(ctx, method, req, reply, cc, opts...)
		})
}

// tlsConfig returns nil where the URL asks for no TLS.
func tlsConfig(q map[string]string) (*tls.Config, error) {
	on := tlsfiles.Given(q)
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
	return tlsfiles.Load("etcd", q)
}
