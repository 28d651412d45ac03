package servers

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	goredis "github.com/redis/go-redis/v9"
)

// Redis is one server, a primary with replicas and perhaps sentinels, or a
// cluster. Its nodes are counted from 0, which is the primary at first. Where a
// method takes the number of a node, sentinel j goes by Nodes()+j.
type Redis struct {
	Version string // of the nodes
	How     string // one line for people: what it is and where it came from

	addrs          []string // host:port of each node, for clients
	sentinels      []string // likewise
	inside         []string // of each node, for the others
	cluster        bool
	user, password string // "": anybody may do everything
	credentials
	place   place
	servers []named // nodes and then sentinels; of a given Redis none

	mu      sync.Mutex
	clients map[int]*goredis.Client
	closed  bool
}

// A RedisOption changes how StartRedis starts servers.
type RedisOption func(*redisOptions)

type redisOptions struct {
	processes, sentinel, cluster, tls, password, persistence bool
	replicas                                                 int
	flags                                                    []string
}

// WithReplicas lets so many replicas follow the primary.
func WithReplicas(n int) RedisOption { return func(o *redisOptions) { o.replicas = n } }

// WithSentinel lets three sentinels watch the primary. When two of them agree
// that it has not answered for a second, they promote a replica. The addresses
// that they tell clients are those that they use themselves, so all of it runs
// as processes.
func WithSentinel() RedisOption { return func(o *redisOptions) { o.sentinel = true } }

// InCluster starts three primaries that share the slots.
func InCluster() RedisOption { return func(o *redisOptions) { o.cluster = true } }

// RedisWithTLS is WithTLS for StartRedis. Nodes speak TLS among themselves, too.
func RedisWithTLS() RedisOption { return func(o *redisOptions) { o.tls = true } }

// RedisWithPassword lets nobody in but admin, who has a password and may create
// users. Sentinels want none.
func RedisWithPassword() RedisOption { return func(o *redisOptions) { o.password = true } }

// WithPersistence lets nodes keep what they have acknowledged when they are
// stopped. Without it they are empty when they start again.
func WithPersistence() RedisOption { return func(o *redisOptions) { o.persistence = true } }

// WithRedisFlags adds arguments to those of every node, as in
// WithRedisFlags("--maxmemory", "1mb").
func WithRedisFlags(flags ...string) RedisOption {
	return func(o *redisOptions) { o.flags = append(o.flags, flags...) }
}

// RedisAsProcesses is AsProcesses for StartRedis.
func RedisAsProcesses() RedisOption { return func(o *redisOptions) { o.processes = true } }

const (
	redisAdmin   = "admin"
	redisPrimary = "leasehold" // what sentinels call it
	redisSlots   = 16384
	redisEnv     = "LEASEHOLD_TEST_REDIS"
	addrsEnv     = redisEnv + "_ADDRS"
)

// StartRedis starts servers, or finds those that are given, and returns when all
// of them are ready. Stop them with Close. What given ones are not is an
// errors.ErrUnsupported.
func StartRedis(ctx context.Context, opts ...RedisOption) (*Redis, error) {
	var o redisOptions
	for _, opt := range opts {
		opt(&o)
	}
	if o.cluster && (o.replicas > 0 || o.sentinel) {
		return nil, errors.New("a cluster has neither replicas nor sentinels here")
	}
	if given := os.Getenv(addrsEnv); given != "" && !o.processes {
		r, err := givenRedis(ctx, given)
		if err != nil {
			return nil, err
		}
		if err := r.fits(o); err != nil {
			return nil, errors.Join(err, r.Close())
		}
		return r, nil
	}
	f, err := findRedis(ctx, o)
	if err != nil {
		return nil, err
	}
	return onFreePorts(ctx, func() (*Redis, error) { return startRedis(ctx, f, o) })
}

// PrepareRedis is PrepareEtcd for StartRedis.
func PrepareRedis(ctx context.Context) (string, error) {
	if given := os.Getenv(addrsEnv); given != "" {
		r, err := givenRedis(ctx, given)
		if err != nil {
			return "", err
		}
		return r.How, r.Close()
	}
	f, err := findRedis(ctx, redisOptions{})
	if err != nil {
		return "", err
	}
	return f.describe(redis), nil
}

func findRedis(ctx context.Context, o redisOptions) (*found, error) {
	f, err := find(ctx, !o.processes && !o.sentinel, redis)
	switch {
	case err != nil && o.sentinel:
		return nil, fmt.Errorf("no Redis can be had that sentinels could watch, as a process:\n%w", err)
	case err != nil:
		return nil, fmt.Errorf("no Redis can be had:\n%w", err)
	}
	return f, nil
}

// redisNode is where a node or a sentinel listens.
type redisNode struct {
	name        string
	client, bus endpoint
}

func newRedisNode(p place, name string) (redisNode, error) {
	client, err := p.endpoint(name, 6379)
	if err != nil {
		return redisNode{}, err
	}
	bus, err := p.endpoint(name, 16379)
	return redisNode{name: name, client: client, bus: bus}, err
}

// config is a file of Redis.
type config struct{ strings.Builder }

func (c *config) add(format string, args ...any) { fmt.Fprintf(c, format+"\n", args...) }

// common is what nodes and sentinels have in common.
func (r *Redis) common(n redisNode, o redisOptions) (*config, error) {
	host, port, err := net.SplitHostPort(n.client.listen)
	if err != nil {
		return nil, err
	}
	dir := r.place.dir(n.name)
	var c config
	c.add("dir %q", dir)
	c.add("bind %s", host)
	c.add("protected-mode no")
	if !o.tls {
		c.add("port %s", port)
		return &c, nil
	}
	c.add("port 0")
	c.add("tls-port %s", port)
	c.add("tls-replication yes")
	c.add("tls-ca-cert-file %q", path.Join(dir, "ca.crt"))
	c.add("tls-cert-file %q", path.Join(dir, "tls.crt"))
	c.add("tls-key-file %q", path.Join(dir, "tls.key"))
	// With others they are clients.
	c.add("tls-client-cert-file %q", path.Join(dir, "client.crt"))
	c.add("tls-client-key-file %q", path.Join(dir, "client.key"))
	return &c, nil
}

// node is the configuration of node i.
func (r *Redis) node(i int, nodes []redisNode, o redisOptions) (*config, error) {
	n := nodes[i]
	c, err := r.common(n, o)
	if err != nil {
		return nil, err
	}
	c.add(`save ""`)
	if o.persistence {
		c.add("appendonly yes")
		c.add("appendfsync always")
	} else {
		c.add("appendonly no")
		c.add("rdb-del-sync-files yes") // what a replica was sent
	}
	if o.password {
		c.add("user default off")
		c.add("user %s on >%s ~* &* +@all", r.user, r.password)
		c.add("masteruser %s", r.user)
		c.add("masterauth %s", r.password)
	}
	// A link that is cut off is given up soon.
	c.add("repl-diskless-sync-delay 0")
	c.add("repl-ping-replica-period 1")
	c.add("repl-timeout 10")
	if i > 0 && !o.cluster {
		host, port, err := net.SplitHostPort(nodes[0].client.inside)
		if err != nil {
			return nil, err
		}
		c.add("replicaof %s %s", host, port)
	}
	if !o.cluster {
		return c, nil
	}
	_, bus, err := net.SplitHostPort(n.bus.listen)
	if err != nil {
		return nil, err
	}
	c.add("cluster-enabled yes")
	c.add("cluster-node-timeout 2000")
	c.add("cluster-port %s", bus)
	if o.tls {
		c.add("tls-cluster yes")
	}
	if n.client.inside == n.client.outside {
		return c, nil
	}
	// Among themselves they use their addresses on the network, which they find
	// out. Clients are told what is published: an address may pass for a name.
	host, port, err := net.SplitHostPort(n.client.outside)
	if err != nil {
		return nil, err
	}
	c.add("cluster-preferred-endpoint-type hostname")
	c.add("cluster-announce-hostname %s", host)
	c.add("cluster-announce-bus-port %s", bus)
	if o.tls {
		c.add("cluster-announce-tls-port %s", port)
	} else {
		c.add("cluster-announce-port %s", port)
	}
	return c, nil
}

// sentinel is the configuration of sentinel j. It knows all the others from the
// start: finding each other takes them seconds.
func (r *Redis) sentinel(j int, sentinels, nodes []redisNode, ids []string, o redisOptions) (*config, error) {
	c, err := r.common(sentinels[j], o)
	if err != nil {
		return nil, err
	}
	at := func(n redisNode) string { return strings.Replace(n.client.inside, ":", " ", 1) }
	c.add("sentinel myid %s", ids[j])
	c.add("sentinel monitor %s %s %d", redisPrimary, at(nodes[0]), len(sentinels)/2+1)
	c.add("sentinel down-after-milliseconds %s 1000", redisPrimary)
	c.add("sentinel failover-timeout %s 5000", redisPrimary)
	if o.password {
		c.add("sentinel auth-user %s %s", redisPrimary, r.user)
		c.add("sentinel auth-pass %s %s", redisPrimary, r.password)
	}
	for _, n := range nodes[1:] {
		c.add("sentinel known-replica %s %s", redisPrimary, at(n))
	}
	for k, s := range sentinels {
		if k != j {
			c.add("sentinel known-sentinel %s %s %s", redisPrimary, at(s), ids[k])
		}
	}
	return c, nil
}

func startRedis(ctx context.Context, f *found, o redisOptions) (_ *Redis, err error) {
	r := &Redis{How: f.describe(redis), cluster: o.cluster}
	defer func() {
		if err != nil {
			if why := r.complaints(); why != "" {
				err = fmt.Errorf("%w\n%s", err, why)
			}
			err = errors.Join(err, r.Close())
		}
	}()
	if r.place, err = newPlace(ctx, f); err != nil {
		return nil, err
	}
	several := func(name string, n int) ([]redisNode, error) {
		all := make([]redisNode, n)
		for i := range all {
			if all[i], err = newRedisNode(r.place, fmt.Sprintf("%s%d", name, i)); err != nil {
				return nil, err
			}
		}
		return all, nil
	}
	size := 1 + o.replicas
	if o.cluster {
		size = 3
	}
	nodes, err := several("redis", size)
	if err != nil {
		return nil, err
	}
	for _, n := range nodes {
		r.addrs, r.inside = append(r.addrs, n.client.outside), append(r.inside, n.client.inside)
	}
	var sentinels []redisNode
	if o.sentinel {
		if sentinels, err = several("sentinel", 3); err != nil {
			return nil, err
		}
		for _, n := range sentinels {
			r.sentinels = append(r.sentinels, n.client.outside)
		}
	}
	files := make(map[string][]byte)
	if o.tls {
		if files, err = r.certificates(); err != nil {
			return nil, err
		}
	}
	if o.password {
		r.user, r.password = redisAdmin, rand.Text()
	}

	// The others look for the primary only once a second.
	for _, some := range [][]int{{0}, upTo(1, len(nodes))} {
		err := r.startAll(ctx, some, nodes, files, o.flags, func(i int) (*config, error) { return r.node(i, nodes, o) })
		if err != nil {
			return nil, err
		}
		if err := r.ready(ctx, some, r.servers, r.answers); err != nil {
			return nil, err
		}
	}
	if o.cluster {
		if err := r.meet(ctx, nodes); err != nil {
			return nil, fmt.Errorf("forming a cluster: %w", err)
		}
	}
	if err := r.ready(ctx, upTo(0, len(nodes)), r.servers, r.serves); err != nil {
		return nil, err
	}
	if o.sentinel {
		ids := make([]string, len(sentinels))
		for j := range ids {
			var id [20]byte
			rand.Read(id[:])
			ids[j] = hex.EncodeToString(id[:])
		}
		err := r.startAll(ctx, upTo(0, len(ids)), sentinels, files, []string{"--sentinel"},
			func(j int) (*config, error) { return r.sentinel(j, sentinels, nodes, ids, o) })
		if err != nil {
			return nil, err
		}
	}
	if err := r.ready(ctx, r.all(), r.servers, r.complete); err != nil {
		return nil, err
	}
	for _, what := range []struct {
		is   bool
		name string
	}{
		{o.replicas > 0, fmt.Sprintf("replicas: %d", o.replicas)},
		{o.sentinel, "3 sentinels, which need processes"},
		{o.cluster, "a cluster of 3"},
		{o.tls, "TLS"},
		{o.password, "with a password"},
		{o.persistence, "persistent"},
	} {
		if what.is {
			r.How += ", " + what.name
		}
	}
	return r, r.look(ctx)
}

func upTo(from, to int) []int {
	var all []int
	for i := from; i < to; i++ {
		all = append(all, i)
	}
	return all
}

// certificates makes the files of nodes and sentinels.
func (r *Redis) certificates() (map[string][]byte, error) {
	server, err := r.certify(slices.Concat(r.addrs, r.sentinels))
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{"ca.crt": server.ca, "tls.crt": server.cert, "tls.key": server.key}
	for name, file := range map[string]string{"client.crt": r.cert, "client.key": r.key} {
		if files[name], err = os.ReadFile(file); err != nil {
			return nil, err
		}
	}
	return files, nil
}

// startAll starts some of the nodes, all at once.
func (r *Redis) startAll(ctx context.Context, some []int, nodes []redisNode, files map[string][]byte, flags []string, configure func(int) (*config, error)) error {
	started := make([]named, len(some))
	errs := make([]error, len(some))
	var wg sync.WaitGroup
	for k, i := range some {
		wg.Go(func() {
			c, err := configure(i)
			if err != nil {
				errs[k] = err
				return
			}
			n := nodes[i]
			const file = "redis.conf" // which sentinels rewrite
			with := map[string][]byte{file: []byte(c.String())}
			for name, content := range files {
				with[name] = content
			}
			s, err := r.place.start(ctx, spec{
				program: redis.name,
				name:    n.name,
				args:    append([]string{path.Join(r.place.dir(n.name), file)}, flags...),
				files:   with,
				publish: &n.client,
			})
			started[k], errs[k] = named{s, n.name}, err
		})
	}
	wg.Wait()
	for k, s := range started {
		if errs[k] == nil {
			r.servers = append(r.servers, s)
		}
	}
	return errors.Join(errs...)
}

// meet makes a cluster of nodes that know nothing yet.
func (r *Redis) meet(ctx context.Context, nodes []redisNode) error {
	for i := range nodes {
		err := r.ask(ctx, i, func(ctx context.Context, c *goredis.Client) error {
			from, to := i*redisSlots/len(nodes), (i+1)*redisSlots/len(nodes)-1
			if err := c.ClusterAddSlotsRange(ctx, from, to).Err(); err != nil {
				return err
			}
			// Else they would have to settle who is who.
			if err := c.Do(ctx, "cluster", "set-config-epoch", i+1).Err(); err != nil {
				return err
			}
			for j, other := range nodes[:i] {
				ip, err := r.servers[j].address(ctx)
				if err != nil {
					return err
				}
				_, port, err := net.SplitHostPort(other.client.inside)
				if err != nil {
					return err
				}
				_, bus, err := net.SplitHostPort(other.bus.inside)
				if err != nil {
					return err
				}
				if err := c.Do(ctx, "cluster", "meet", ip, port, bus).Err(); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func givenRedis(ctx context.Context, given string) (*Redis, error) {
	r := &Redis{
		addrs:    strings.Split(given, ","),
		user:     os.Getenv(redisEnv + "_USER"),
		password: os.Getenv(redisEnv + "_PASSWORD"),
	}
	r.cluster = len(r.addrs) > 1
	err := func() error {
		for _, addr := range r.addrs {
			if _, _, err := net.SplitHostPort(addr); err != nil {
				return fmt.Errorf("want host:port,...: %w", err)
			}
		}
		if err := r.given(redisEnv); err != nil {
			return err
		}
		for i := range r.addrs {
			info, err := r.info(ctx, i)
			if err != nil {
				return err
			}
			switch cluster := info["cluster_enabled"] == "1"; {
			case cluster && !r.cluster:
				return errors.New("it is a node of a cluster, of which all should be named")
			case !cluster && r.cluster:
				return fmt.Errorf("%s is no node of a cluster", r.addrs[i])
			}
		}
		return r.look(ctx)
	}()
	if err != nil {
		return nil, fmt.Errorf("%s=%s: %w", addrsEnv, given, err)
	}
	r.How = fmt.Sprintf("Redis %s at %s, given by %s", r.Version, given, addrsEnv)
	return r, nil
}

// fits tells whether what is given is what was asked for.
func (r *Redis) fits(o redisOptions) error {
	switch {
	case o.replicas > 0 || o.sentinel:
		return fmt.Errorf("want replicas or sentinels: %w", errGiven)
	case o.cluster && !r.cluster:
		return fmt.Errorf("want a cluster: %w", errGiven)
	case o.tls && r.cert == "":
		return fmt.Errorf("want client certificates: %w", errGiven)
	case o.password && r.password == "":
		return fmt.Errorf("want a user with a password: %w", errGiven)
	case o.persistence:
		return fmt.Errorf("want persistence: %w", errGiven)
	case len(o.flags) > 0:
		return fmt.Errorf("want flags %q: %w", o.flags, errGiven)
	}
	return nil
}

// Close removes the servers with all they stored. A given Redis keeps it.
func (r *Redis) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil
	}
	r.closed = true
	var errs []error
	for _, c := range r.clients {
		errs = append(errs, c.Close())
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return errors.Join(append(errs, removeAll(ctx, r.place, r.servers), r.credentials.remove())...)
}

func (r *Redis) complaints() string { return lastWords(r.servers) }

func (r *Redis) how() string { return "redis: " + r.How }
