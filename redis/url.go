package redis

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/internal/tlsfiles"
)

func init() {
	backend.Register("redis", open)
	backend.Register("rediss", open)
}

const usage = "a Redis URL is redis://[user:password@]host:6379/0?prefix=PREFIX, rediss:// with TLS; with cluster=true or further addr=host:port it is a cluster, with master_name=NAME the hosts are Sentinels"

// own are the parameters of a URL that are ours; go-redis takes the others.
var own = append([]string{"prefix", "retention", "replicas", "replicas-timeout", "cluster"}, tlsfiles.Parameters...)

// open opens a Redis. Nothing is sent before the first call, so it opens one that is
// down, too.
func open(_ context.Context, u *url.URL) (backend.Store, error) {
	client, prefix, opts, err := configure(u)
	if err != nil {
		return nil, err
	}
	s := New(client, prefix, opts...)
	s.owned = true
	if s.invalid != nil {
		_ = s.Close()
		return nil, s.invalid
	}
	return s, nil
}

// configure reads a URL. No error of its repeats the password, nor what may be a
// part of it.
func configure(u *url.URL) (client goredis.UniversalClient, prefix string, opts []Option, err error) {
	fail := func(format string, args ...any) (goredis.UniversalClient, string, []Option, error) {
		return nil, "", nil, fmt.Errorf("%w: %w", backend.ErrInvalid, fmt.Errorf(format, args...))
	}
	if u.Opaque != "" || u.Fragment != "" || u.Host == "" || strings.Contains(u.EscapedPath()+u.RawQuery, "@") {
		return fail("%s; in it %%2F stands for /, %%3F for ?, %%23 for # and %%40 for @", usage)
	}
	q, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return fail("the query of the %s URL cannot be parsed", u.Scheme)
	}
	mine := make(map[string]string)
	for _, key := range own {
		values, ok := q[key]
		if !ok {
			continue
		}
		if len(values) > 1 {
			return fail("the %s URL has the parameter %q twice", u.Scheme, key)
		}
		mine[key] = values[0]
		q.Del(key)
	}
	// Several hosts, as in the URLs of other stores, are addresses like those of addr.
	rest := *u
	if first, others, several := strings.Cut(u.Host, ","); several {
		rest.Host = first
		for host := range strings.SplitSeq(others, ",") {
			q.Add("addr", host)
		}
	}
	for _, addr := range q["addr"] {
		if strings.Contains(addr, "@") {
			return fail("an addr of the %s URL has more than a host and a port: %s", u.Scheme, usage)
		}
	}
	rest.RawQuery = q.Encode()

	if n, err := strconv.Atoi(strings.Trim(u.Path, "/")); err == nil && n < 0 {
		return fail("there is no database %d: %s", n, usage)
	}
	if opts, err = options(mine); err != nil {
		return nil, "", nil, err
	}
	secure, err := tlsConfig(u.Scheme, mine)
	if err != nil {
		return nil, "", nil, err
	}
	isCluster := q.Has("addr")
	if text, ok := mine["cluster"]; ok {
		want, err := strconv.ParseBool(text)
		switch {
		case err != nil:
			return fail("cluster=%q of the %s URL is neither true nor false", text, u.Scheme)
		case !want && isCluster && !q.Has("master_name"):
			return fail("the %s URL says cluster=false, and gives several addresses", u.Scheme)
		case want && q.Has("master_name"):
			return fail("the %s URL says cluster=true, and names the primary of Sentinels", u.Scheme)
		}
		isCluster = want
	}
	raw := rest.String()
	// What the client does with contexts is what frees its connections soon.
	switch {
	case q.Has("master_name"):
		o, err := goredis.ParseFailoverURL(raw)
		if err != nil {
			return fail("%s: %s", trimmed(err), usage)
		}
		o.ContextTimeoutEnabled = true
		if secure != nil {
			o.TLSConfig = secure(o.TLSConfig)
		}
		client = goredis.NewFailoverClient(o)
	case isCluster:
		o, err := goredis.ParseClusterURL(raw)
		if err != nil {
			return fail("%s: %s", trimmed(err), usage)
		}
		o.ContextTimeoutEnabled = true
		if secure != nil {
			o.TLSConfig = secure(o.TLSConfig)
		}
		client = goredis.NewClusterClient(o)
	default:
		o, err := goredis.ParseURL(raw)
		if err != nil {
			return fail("%s: %s", trimmed(err), usage)
		}
		o.ContextTimeoutEnabled = true
		if secure != nil {
			o.TLSConfig = secure(o.TLSConfig)
		}
		client = goredis.NewClient(o)
	}
	return client, mine["prefix"], opts, nil
}

// trimmed is what go-redis says of a URL. Of what url.Parse says nothing is repeated:
// the URL is in it.
func trimmed(err error) string {
	text := err.Error()
	if !strings.HasPrefix(text, "redis: ") {
		return "it cannot be parsed"
	}
	return strings.TrimPrefix(text, "redis: ")
}

// options are those that parameters stand for.
func options(mine map[string]string) (opts []Option, err error) {
	invalid := func(key, what string) error {
		return fmt.Errorf("%w: %s=%q of the Redis URL is %s", backend.ErrInvalid, key, mine[key], what)
	}
	if text, ok := mine["retention"]; ok {
		d, err := time.ParseDuration(text)
		if err != nil {
			return nil, invalid("retention", "no duration like 24h")
		}
		opts = append(opts, WithRetention(d))
	}
	n, timeout := 0, time.Duration(0)
	if text, ok := mine["replicas"]; ok {
		if n, err = strconv.Atoi(text); err != nil || n < 0 {
			return nil, invalid("replicas", "no number of replicas")
		}
	}
	if text, ok := mine["replicas-timeout"]; ok {
		if timeout, err = time.ParseDuration(text); err != nil || timeout <= 0 {
			return nil, invalid("replicas-timeout", "no duration like 500ms")
		}
		if n == 0 {
			return nil, invalid("replicas-timeout", "of no use without replicas")
		}
	}
	if n > 0 {
		opts = append(opts, WithReplicas(n, timeout))
	}
	return opts, nil
}

// tlsConfig returns what adds our parameters to the client's configuration, nil where
// there are none.
func tlsConfig(scheme string, mine map[string]string) (func(*tls.Config) *tls.Config, error) {
	if !tlsfiles.Given(mine) {
		return nil, nil
	}
	if scheme != "rediss" {
		return nil, fmt.Errorf("%w: %s of the Redis URL are for TLS: use rediss://", backend.ErrInvalid, strings.Join(tlsfiles.Parameters, ", "))
	}
	own, err := tlsfiles.Load("Redis", mine)
	if err != nil {
		return nil, err
	}
	return func(cfg *tls.Config) *tls.Config {
		if cfg == nil {
			return own
		}
		cfg.RootCAs, cfg.GetClientCertificate = own.RootCAs, own.GetClientCertificate
		cfg.ServerName = cmp.Or(own.ServerName, cfg.ServerName)
		cfg.MinVersion = max(cfg.MinVersion, own.MinVersion)
		return cfg
	}, nil
}
