// Package embedded runs etcd within the process of a test. It is ready in a
// fraction of a second and grants leases of one second, which a server of its
// own, as package servers starts them, does not. It cannot be cut off, and what
// it costs is paid by the test.
package embedded

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
)

// readyTime is how long a start may take on a machine that is busy with other
// things.
const readyTime = 30 * time.Second

// Cluster is an etcd of one or several members. They are counted from 0.
type Cluster struct {
	members   []*embed.Etcd
	endpoints []string

	mu      sync.Mutex
	stopped map[int]bool
}

// Start starts a cluster of so many members, and returns when all are ready. It
// is gone after the test.
func Start(tb testing.TB, members int) *Cluster {
	tb.Helper()
	const tries = 3
	for try := 1; ; try++ {
		c, err := start(tb, members)
		if err == nil {
			return c
		}
		// Somebody else may have got one of the ports first.
		if try == tries || !errors.Is(err, syscall.EADDRINUSE) {
			tb.Fatal(err)
		}
	}
}

func start(tb testing.TB, members int) (*Cluster, error) {
	peers, err := peerURLs(members)
	if err != nil {
		return nil, err
	}
	dir := tb.TempDir()
	c := &Cluster{stopped: make(map[int]bool)}
	// One after the other, but without waiting: each asks the others whether
	// the cluster is a new one, and waits a second for those that listen and do
	// not answer yet.
	for i := range peers {
		e, err := embed.StartEtcd(config(filepath.Join(dir, name(i)), i, peers))
		if err != nil {
			c.close()
			return nil, err
		}
		c.members = append(c.members, e)
		c.endpoints = append(c.endpoints, e.Clients[0].Addr().String())
	}
	tb.Cleanup(c.close)
	late := time.After(readyTime)
	for i, e := range c.members {
		select {
		case <-e.Server.ReadyNotify():
		case err := <-e.Err():
			return nil, err
		case <-late:
			return nil, fmt.Errorf("member %d is not ready within %v", i, readyTime)
		}
	}
	return c, nil
}

func name(i int) string { return fmt.Sprintf("etcd%d", i) }

// peerURLs returns where members listen for each other. Several must know that
// of all before one listens.
func peerURLs(members int) ([]url.URL, error) {
	urls := make([]url.URL, members)
	for i := range urls {
		urls[i] = url.URL{Scheme: "http", Host: "127.0.0.1:0"}
		if members == 1 {
			break
		}
		l, err := net.Listen("tcp", urls[i].Host)
		if err != nil {
			return nil, err
		}
		defer l.Close()
		urls[i].Host = l.Addr().String()
	}
	return urls, nil
}

func config(dir string, i int, peers []url.URL) *embed.Config {
	c := embed.NewConfig()
	c.Name = name(i)
	c.Dir = dir
	c.ListenClientUrls = []url.URL{{Scheme: "http", Host: "127.0.0.1:0"}}
	c.AdvertiseClientUrls = c.ListenClientUrls
	c.ListenPeerUrls = peers[i : i+1]
	c.AdvertisePeerUrls = c.ListenPeerUrls
	var all []string
	for i, peer := range peers {
		all = append(all, name(i)+"="+peer.String())
	}
	c.InitialCluster = strings.Join(all, ",")
	c.TickMs = 10
	c.ElectionMs = 100
	c.UnsafeNoFsync = true
	c.EnableGRPCGateway = false
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	return c
}

func (c *Cluster) close() {
	for i, e := range c.members {
		// A server that hands over its leadership first takes a second.
		c.HardStop(i)
		e.Close()
	}
}

// Endpoints returns host:port of each member, for clients.
func (c *Cluster) Endpoints() []string { return c.endpoints }

// Client returns a client of all members. It is closed after the test.
func (c *Cluster) Client(tb testing.TB) *clientv3.Client {
	tb.Helper()
	client, err := clientv3.New(clientv3.Config{Endpoints: c.endpoints, Logger: zap.NewNop()})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := client.Close(); err != nil && !errors.Is(err, context.Canceled) {
			tb.Error(err)
		}
	})
	return client
}

// HardStop stops a member like a crash: it hands nothing over, and does not run
// again.
func (c *Cluster) HardStop(i int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.stopped[i] {
		c.stopped[i] = true
		c.members[i].Server.HardStop()
	}
}

// Leader returns which member is the leader, -1 if there is none at the moment.
func (c *Cluster) Leader() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	leader, term := -1, uint64(0)
	for i, e := range c.members {
		s := e.Server
		if !c.stopped[i] && s.Leader() == s.MemberID() && s.Term() > term {
			leader, term = i, s.Term()
		}
	}
	return leader
}
