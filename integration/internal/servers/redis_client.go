package servers

import (
	"net/url"
	"slices"
	"strings"

	goredis "github.com/redis/go-redis/v9"
)

// Nodes returns how many there are, without sentinels.
func (r *Redis) Nodes() int { return len(r.addrs) }

// Addrs returns host:port of each node. They stay the same whatever is done to
// the nodes.
func (r *Redis) Addrs() []string { return slices.Clone(r.addrs) }

// Sentinels returns host:port of each sentinel.
func (r *Redis) Sentinels() []string { return slices.Clone(r.sentinels) }

// User returns the name and the password of one who may do everything, "" if
// anybody may.
func (r *Redis) User() (name, password string) { return r.user, r.password }

// Options returns fresh ones of a client of the whole for
// goredis.NewUniversalClient: of the sentinels, of the cluster, or of the first
// node, which is the primary as long as nobody has changed that.
func (r *Redis) Options() *goredis.UniversalOptions {
	o := &goredis.UniversalOptions{
		Addrs:         r.addrs[:1:1],
		Username:      r.user,
		Password:      r.password,
		TLSConfig:     r.tls.Clone(),
		IsClusterMode: r.cluster,
	}
	switch {
	case len(r.sentinels) > 0:
		o.Addrs, o.MasterName = r.Sentinels(), redisPrimary
	case r.cluster:
		o.Addrs = r.Addrs()
	}
	return o
}

// Node returns a client of node i alone, of one who may do everything. Close
// closes it.
func (r *Redis) Node(i int) *goredis.Client {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.clients[i]
	if c == nil {
		c = goredis.NewClient(r.options(r.addrs[i]))
		if r.clients == nil {
			r.clients = make(map[int]*goredis.Client)
		}
		r.clients[i] = c
		if r.closed {
			c.Close() // it says so itself
		}
	}
	return c
}

// options are those of a client of one node, which gives up when it is told to.
func (r *Redis) options(addr string) *goredis.Options {
	return &goredis.Options{
		Addr:                  addr,
		Username:              r.user,
		Password:              r.password,
		TLSConfig:             r.tls.Clone(),
		ContextTimeoutEnabled: true,
	}
}

// URL returns the URL of a store of Leasehold, with no prefix if that is "".
func (r *Redis) URL(prefix string) string {
	var query []string
	add := func(name, value string) {
		if value != "" {
			// Whoever reads it should recognize addresses and files.
			value = strings.NewReplacer("%3A", ":", "%2F", "/").Replace(url.QueryEscape(value))
			query = append(query, name+"="+value)
		}
	}
	u := url.URL{Scheme: "redis"}
	if r.tls != nil {
		u.Scheme = "rediss"
	}
	addrs := r.addrs[:1]
	switch {
	case len(r.sentinels) > 0:
		addrs, u.Path = r.sentinels, "/0"
		add("master_name", redisPrimary)
		// In front of the host is who a sentinel lets in.
		add("username", r.user)
		add("password", r.password)
	case r.cluster:
		addrs = r.addrs
	default:
		u.Path = "/0"
	}
	if len(r.sentinels) == 0 && r.password != "" {
		u.User = url.UserPassword(r.user, r.password)
	}
	u.Host = addrs[0]
	for _, addr := range addrs[1:] {
		add("addr", addr)
	}
	add("prefix", prefix)
	add("cacert", r.cacert)
	add("cert", r.cert)
	add("key", r.key)
	u.RawQuery = strings.Join(query, "&")
	return u.String()
}
