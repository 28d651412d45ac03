//go:build unix

package etcd_test

import (
	"context"
	"crypto/rand"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/stats"

	"github.com/leasehold/leasehold/benchmarks/internal/servers"
)

var cluster = servers.New("etcd", "--url-file")

func TestMain(m *testing.M) { cluster.Main(m) }

// place is a prefix of one benchmark.
type place struct {
	cfg    clientv3.Config
	prefix string // between slashes
}

func newPlace(b *testing.B) place {
	b.Helper()
	p := place{prefix: "/leasehold-benchmark-" + strings.ToLower(rand.Text()[:8]) + "/"}
	u, err := url.Parse(strings.TrimSpace(string(cluster.Access(b))))
	if err != nil {
		b.Fatal(err)
	}
	p.cfg = clientv3.Config{Username: u.User.Username(), DialTimeout: 5 * time.Second, Logger: zap.NewNop()}
	p.cfg.Password, _ = u.User.Password()
	scheme, q := "http://", u.Query()
	if q.Has("cacert") {
		scheme = "https://"
		files := transport.TLSInfo{TrustedCAFile: q.Get("cacert"), CertFile: q.Get("cert"), KeyFile: q.Get("key")}
		if p.cfg.TLS, err = files.ClientConfig(); err != nil {
			b.Fatal(err)
		}
	}
	for host := range strings.SplitSeq(u.Host, ",") {
		p.cfg.Endpoints = append(p.cfg.Endpoints, scheme+host)
	}
	b.Cleanup(func() {
		w := p.client(b)
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if _, err := w.Delete(ctx, p.prefix, clientv3.WithPrefix()); err != nil {
			b.Error(err)
		}
	})
	return p
}

// wire is a client with a connection of its own, as if it were alone in its
// process, and a count of what goes over it.
type wire struct {
	*clientv3.Client
	requests atomic.Int64 // messages on streams included
	watches  atomic.Int64 // that etcd has begun

	mu       sync.Mutex
	watching chan struct{} // closed when the next watch has begun
}

// client returns a new client, closed after the benchmark.
func (p place) client(b *testing.B) *wire {
	b.Helper()
	w := &wire{watching: make(chan struct{})}
	cfg := p.cfg
	cfg.DialOptions = []grpc.DialOption{grpc.WithStatsHandler(w)}
	var err error
	if w.Client, err = clientv3.New(cfg); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { w.Close() })
	return w
}

// rearm returns a channel that the next watch closes.
func (w *wire) rearm() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.watching = make(chan struct{})
	return w.watching
}

// HandleRPC is told of every message.
func (w *wire) HandleRPC(_ context.Context, s stats.RPCStats) {
	switch s := s.(type) {
	case *stats.OutPayload:
		w.requests.Add(1)
	case *stats.InPayload:
		if resp, ok := s.Payload.(*pb.WatchResponse); ok && resp.Created {
			w.watches.Add(1)
			w.mu.Lock()
			select {
			case <-w.watching:
			default:
				close(w.watching)
			}
			w.mu.Unlock()
		}
	}
}

// TagRPC, TagConn and HandleConn complete a stats.Handler.
func (w *wire) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context   { return ctx }
func (w *wire) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
func (w *wire) HandleConn(context.Context, stats.ConnStats)                       {}

// entries returns how many entries etcd's log has had. A revision would not count
// those that changed nothing.
func (w *wire) entries(ctx context.Context) (uint64, error) {
	resp, err := w.Status(ctx, w.Endpoints()[0])
	if err != nil {
		return 0, err
	}
	return resp.RaftIndex, nil
}
