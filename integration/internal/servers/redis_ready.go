package servers

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"

	goredis "github.com/redis/go-redis/v9"
)

// ask asks one node, over a connection of its own.
func (r *Redis) ask(ctx context.Context, i int, question func(context.Context, *goredis.Client) error) error {
	return r.connect(ctx, r.options(r.addrs[i]), func(ctx context.Context, o *goredis.Options) error {
		c := goredis.NewClient(o)
		defer c.Close()
		return question(ctx, c)
	})
}

// askSentinel is ask with a sentinel.
func (r *Redis) askSentinel(ctx context.Context, j int, question func(context.Context, *goredis.SentinelClient) error) error {
	o := r.options(r.sentinels[j])
	o.Username, o.Password = "", ""
	return r.connect(ctx, o, func(ctx context.Context, o *goredis.Options) error {
		c := goredis.NewSentinelClient(o)
		defer c.Close()
		return question(ctx, c)
	})
}

// connect makes a connection before there is a client: one that cannot connect
// complains on standard error, and here nobody answers for quite normal reasons.
func (r *Redis) connect(ctx context.Context, o *goredis.Options, use func(context.Context, *goredis.Options) error) error {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	dial := new(net.Dialer).DialContext
	if r.tls != nil {
		dial = (&tls.Dialer{Config: r.tls}).DialContext
	}
	conn, err := dial(ctx, "tcp", o.Addr)
	if err != nil {
		return err
	}
	first := make(chan net.Conn, 1)
	first <- conn
	o.MaxRetries = -1
	o.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
		select {
		case conn := <-first:
			return conn, nil
		default:
			return dial(ctx, network, addr)
		}
	}
	defer func() {
		select {
		case conn := <-first:
			conn.Close()
		default:
		}
	}()
	return use(ctx, o)
}

// info is what a node says about itself.
func (r *Redis) info(ctx context.Context, i int) (map[string]string, error) {
	var text string
	err := r.ask(ctx, i, func(ctx context.Context, c *goredis.Client) (err error) {
		text, err = c.Info(ctx).Result()
		return err
	})
	return fieldsOf(text), err
}

// fieldsOf reads lines of name:value.
func fieldsOf(text string) map[string]string {
	fields := make(map[string]string)
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			fields[name] = value
		}
	}
	return fields
}

// all are the numbers of nodes and sentinels.
func (r *Redis) all() []int { return upTo(0, len(r.addrs)+len(r.sentinels)) }

// answers tells whether a node answers.
func (r *Redis) answers(ctx context.Context, i int) error {
	return r.ask(ctx, i, func(ctx context.Context, c *goredis.Client) error { return c.Ping(ctx).Err() })
}

// serves tells whether a node or a sentinel does what it is for.
func (r *Redis) serves(ctx context.Context, i int) error {
	if j := i - len(r.addrs); j >= 0 {
		return r.askSentinel(ctx, j, func(ctx context.Context, c *goredis.SentinelClient) error {
			if err := c.CkQuorum(ctx, redisPrimary).Err(); err != nil {
				return err
			}
			m, err := c.Master(ctx, redisPrimary).Result()
			if err == nil && m["flags"] != "master" {
				err = fmt.Errorf("of the primary it says %s", m["flags"])
			}
			return err
		})
	}
	if err := r.answers(ctx, i); err != nil {
		return err
	}
	info, err := r.info(ctx, i)
	switch {
	case err != nil:
		return err
	case info["loading"] == "1":
		return errors.New("it is still loading")
	case info["role"] == "slave" && info["master_link_status"] != "up":
		return fmt.Errorf("its link to the primary at %s:%s is %s", info["master_host"], info["master_port"], info["master_link_status"])
	case r.cluster:
		return r.ask(ctx, i, r.inCluster)
	}
	return nil
}

// inCluster tells whether a node knows all the others, and by the addresses that
// clients use.
func (r *Redis) inCluster(ctx context.Context, c *goredis.Client) error {
	text, err := c.ClusterInfo(ctx).Result()
	if err != nil {
		return err
	}
	if state := fieldsOf(text)["cluster_state"]; state != "ok" {
		return fmt.Errorf("the state of its cluster is %s", state)
	}
	if r.servers == nil {
		return nil
	}
	shards, err := c.ClusterShards(ctx).Result()
	if err != nil {
		return err
	}
	var known []string
	for _, s := range shards {
		for _, n := range s.Nodes {
			port := n.Port
			if r.tls != nil {
				port = n.TLSPort
			}
			addr := net.JoinHostPort(n.Endpoint, strconv.FormatInt(port, 10))
			if !slices.Contains(r.addrs, addr) {
				return fmt.Errorf("it takes %q for a node", addr)
			}
			if len(s.Slots) > 0 {
				known = append(known, addr)
			}
		}
	}
	slices.Sort(known)
	if n := len(slices.Compact(known)); n != len(r.addrs) {
		return fmt.Errorf("it knows %d nodes with slots", n)
	}
	return nil
}

// complete is serves of servers to which nothing has been done yet: whoever
// follows or watches is known.
func (r *Redis) complete(ctx context.Context, i int) error {
	if err := r.serves(ctx, i); err != nil {
		return err
	}
	replicas := len(r.addrs) - 1
	if j := i - len(r.addrs); j >= 0 {
		return r.askSentinel(ctx, j, func(ctx context.Context, c *goredis.SentinelClient) error {
			all, err := c.Replicas(ctx, redisPrimary).Result()
			if err != nil {
				return err
			}
			up := 0
			for _, s := range all {
				if s["flags"] == "slave" && s["master-link-status"] == "ok" {
					up++
				}
			}
			if up != replicas {
				return fmt.Errorf("it knows %d replicas, of which %d are up", len(all), up)
			}
			m, err := c.Master(ctx, redisPrimary).Result()
			if n := strconv.Itoa(len(r.sentinels) - 1); err == nil && m["num-other-sentinels"] != n {
				err = fmt.Errorf("it knows %s other sentinels", m["num-other-sentinels"])
			}
			return err
		})
	}
	if i > 0 || r.cluster {
		return nil
	}
	info, err := r.info(ctx, i)
	if err != nil {
		return err
	}
	for k := range replicas {
		if s := info[fmt.Sprintf("slave%d", k)]; !strings.Contains(s, "state=online") {
			return fmt.Errorf("of %d replicas it knows as number %d: %q", replicas, k, s)
		}
	}
	return nil
}

// ready waits until some nodes pass a test, as long as those run that must.
func (r *Redis) ready(ctx context.Context, some []int, mustRun []named, test func(context.Context, int) error) error {
	errs := make([]error, len(some))
	err := within(ctx, readyTime, func() (bool, error) {
		if err := noneEnded(ctx, mustRun); err != nil {
			return false, err
		}
		var wg sync.WaitGroup
		for k, i := range some {
			wg.Go(func() {
				if errs[k] = test(ctx, i); errs[k] != nil {
					errs[k] = fmt.Errorf("%d: %w", i, errs[k])
				}
			})
		}
		wg.Wait()
		return errors.Join(errs...) == nil, nil
	})
	if err != nil {
		return fmt.Errorf("of nodes %v at %s not all become ready: %w; last: %w", some, slices.Concat(r.addrs, r.sentinels), err, errors.Join(errs...))
	}
	return nil
}

// look asks the nodes for their version.
func (r *Redis) look(ctx context.Context) error {
	info, err := r.info(ctx, 0)
	r.Version = info["redis_version"]
	if v := info["valkey_version"]; v != "" {
		r.Version = v // the other is what it is compatible with
	}
	return err
}

// Ready waits until all nodes and sentinels are ready: nodes serve, replicas are
// linked to a primary, sentinels could replace it, each node of a cluster finds
// it complete.
func (r *Redis) Ready(ctx context.Context) error { return r.ready(ctx, r.all(), nil, r.serves) }

// ReadyAt is Ready for one of them.
func (r *Redis) ReadyAt(ctx context.Context, i int) error {
	return r.ready(ctx, []int{i}, nil, r.serves)
}

// Primary returns which node most sentinels call the primary, and without them
// the first node that takes itself for one. While there is none it is an error.
func (r *Redis) Primary(ctx context.Context) (int, error) {
	if r.cluster {
		return -1, fmt.Errorf("all nodes of a cluster are primaries: %w", errors.ErrUnsupported)
	}
	var err error
	votes := make([]int, len(r.addrs))
	var mu sync.Mutex
	var wg sync.WaitGroup
	vote := func(i int, e error) {
		mu.Lock()
		defer mu.Unlock()
		if e != nil {
			err = errors.Join(err, e)
		} else if i >= 0 {
			votes[i]++
		}
	}
	if len(r.sentinels) == 0 {
		for i := range r.addrs {
			wg.Go(func() {
				info, e := r.info(ctx, i)
				if e == nil && info["role"] != "master" {
					i = -1
				}
				vote(i, e)
			})
		}
	}
	for j := range r.sentinels {
		wg.Go(func() {
			var addr string
			e := r.askSentinel(ctx, j, func(ctx context.Context, c *goredis.SentinelClient) error {
				at, e := c.GetMasterAddrByName(ctx, redisPrimary).Result()
				if e == nil {
					addr = net.JoinHostPort(at[0], at[1])
				}
				return e
			})
			vote(slices.Index(r.addrs, addr), e)
		})
	}
	wg.Wait()
	if i := slices.IndexFunc(votes, func(n int) bool { return n > len(r.sentinels)/2 }); i >= 0 {
		return i, nil
	}
	return -1, errors.Join(errors.New("no node is the primary"), err)
}
