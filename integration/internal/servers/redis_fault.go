package servers

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"

	goredis "github.com/redis/go-redis/v9"
)

// Promote makes a primary of a replica.
func (r *Redis) Promote(ctx context.Context, i int) error {
	return r.replicaOf(ctx, i, "no", "one", func(info map[string]string) error {
		if role := info["role"]; role != "master" {
			return fmt.Errorf("its role is %s", role)
		}
		return nil
	})
}

// Follow makes a replica of a node, and waits until it has what its primary has.
// The address is one of Addrs, or of a proxy on this machine, which containers
// cannot reach: it is an errors.ErrUnsupported.
func (r *Redis) Follow(ctx context.Context, i int, addr string) error {
	if k := slices.Index(r.addrs, addr); k >= 0 && r.inside != nil {
		addr = r.inside[k]
	} else if _, ok := r.place.(*containers); ok {
		return fmt.Errorf("a container cannot follow %s, only other nodes: %w", addr, errors.ErrUnsupported)
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return err
	}
	return r.replicaOf(ctx, i, host, port, func(info map[string]string) error {
		if at := net.JoinHostPort(info["master_host"], info["master_port"]); at != addr || info["master_link_status"] != "up" {
			return fmt.Errorf("its link to %s is %s", at, info["master_link_status"])
		}
		return nil
	})
}

func (r *Redis) replicaOf(ctx context.Context, i int, host, port string, done func(info map[string]string) error) error {
	if r.servers == nil {
		return errGiven
	}
	err := r.ask(ctx, i, func(ctx context.Context, c *goredis.Client) error { return c.Do(ctx, "replicaof", host, port).Err() })
	if err != nil {
		return fmt.Errorf("node %d: replicaof %s %s: %w", i, host, port, err)
	}
	return r.ready(ctx, []int{i}, nil, func(ctx context.Context, i int) error {
		info, err := r.info(ctx, i)
		if err != nil {
			return err
		}
		return done(info)
	})
}

// Pause stops node i in its tracks: connections stay open and nothing answers,
// until Resume.
func (r *Redis) Pause(ctx context.Context, i int) error { return r.do(ctx, i, server.pause) }

// Resume undoes Pause. As after all that brings a node back, it may take a while
// until the node is ready: ReadyAt waits for it.
func (r *Redis) Resume(ctx context.Context, i int) error { return r.do(ctx, i, server.resume) }

// Stop kills node i, which loses all it has stored, unless started
// WithPersistence. A node of a cluster still knows its slots and the others.
func (r *Redis) Stop(ctx context.Context, i int) error { return r.do(ctx, i, server.stop) }

// Start starts node i again after Stop, with the users and the role it began
// with: node 0 as the primary, unless a sentinel has told it otherwise.
func (r *Redis) Start(ctx context.Context, i int) error { return r.do(ctx, i, server.start) }

// CutOff cuts node i off from everybody, clients included, until Reconnect.
// Processes cannot be cut off: it is an errors.ErrUnsupported. What other nodes
// send to it is lost without a word; clients see that their connections are
// closed, and new ones refused.
func (r *Redis) CutOff(ctx context.Context, i int) error {
	if err := r.sever(ctx, i, toServers); err != nil {
		return err
	}
	return r.sever(ctx, i, toTests)
}

// Reconnect undoes CutOff.
func (r *Redis) Reconnect(ctx context.Context, i int) error {
	if err := r.mend(ctx, i, toTests); err != nil {
		return err
	}
	return r.mend(ctx, i, toServers)
}

// Isolate cuts node i off from the others, until Join. Clients still reach it.
func (r *Redis) Isolate(ctx context.Context, i int) error { return r.sever(ctx, i, toServers) }

// Join undoes Isolate.
func (r *Redis) Join(ctx context.Context, i int) error { return r.mend(ctx, i, toServers) }

func (r *Redis) sever(ctx context.Context, i int, l link) error {
	return r.do(ctx, i, func(s server, ctx context.Context) error { return s.sever(ctx, l) })
}

func (r *Redis) mend(ctx context.Context, i int, l link) error {
	return r.do(ctx, i, func(s server, ctx context.Context) error { return s.mend(ctx, l) })
}

func (r *Redis) do(ctx context.Context, i int, f func(server, context.Context) error) error {
	if r.servers == nil {
		return errGiven
	}
	return f(r.servers[i].server, ctx)
}
