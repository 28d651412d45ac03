//go:build unix

package redis_test

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"

	"github.com/leasehold/leasehold/benchmarks/internal/servers"
)

var server = servers.New("redis", "--url-file")

func TestMain(m *testing.M) { server.Main(m) }

// place is a prefix of one benchmark.
type place struct {
	addr, user, password string
	tls                  *tls.Config
	prefix               string
	wire                 *wire // if set, what clients send is counted
}

func newPlace(b *testing.B) place {
	b.Helper()
	u, err := url.Parse(strings.TrimSpace(string(server.Access(b))))
	if err != nil {
		b.Fatal(err)
	}
	q := u.Query()
	if q.Has("addr") || q.Has("master_name") {
		b.Skip("the peers are measured on one server, and this is a cluster or has sentinels")
	}
	p := place{addr: u.Host, user: u.User.Username(), prefix: "leasehold-benchmark-" + strings.ToLower(rand.Text()[:8]) + ":"}
	p.password, _ = u.User.Password()
	if u.Scheme == "rediss" {
		p.tls = encryption(b, u.Hostname(), q)
	}
	c := p.client(b)
	b.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		for all := c.Scan(ctx, 0, p.prefix+"*", 10_000).Iterator(); all.Next(ctx); {
			if err := c.Unlink(ctx, all.Val()).Err(); err != nil {
				b.Error(err)
				return
			}
		}
	})
	return p
}

func encryption(b *testing.B, host string, q url.Values) *tls.Config {
	b.Helper()
	cfg := &tls.Config{ServerName: host, MinVersion: tls.VersionTLS12}
	if file := q.Get("cacert"); file != "" {
		pem, err := os.ReadFile(file)
		if err != nil {
			b.Fatal(err)
		}
		cfg.RootCAs = x509.NewCertPool()
		cfg.RootCAs.AppendCertsFromPEM(pem)
	}
	if file := q.Get("cert"); file != "" {
		pair, err := tls.LoadX509KeyPair(file, q.Get("key"))
		if err != nil {
			b.Fatal(err)
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	return cfg
}

// client returns a new client of go-redis with connections of its own, as if it
// were alone in its process, closed after the benchmark. All have the same options:
// the defaults, and that deadlines of contexts are heeded.
func (p place) client(b *testing.B) *goredis.Client {
	b.Helper()
	opts := &goredis.Options{Addr: p.addr, Username: p.user, Password: p.password, TLSConfig: p.tls, ContextTimeoutEnabled: true}
	if p.wire != nil {
		opts.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
			return p.wire.dial(ctx, &net.Dialer{}, network, addr, p.tls)
		}
	}
	c := goredis.NewClient(opts)
	b.Cleanup(func() { c.Close() })
	return c
}

// rueidis are the options of a client of rueidis.
func (p place) rueidis() rueidis.ClientOption {
	opt := rueidis.ClientOption{InitAddress: []string{p.addr}, Username: p.user, Password: p.password, TLSConfig: p.tls}
	if p.wire != nil {
		opt.DialCtxFn = func(ctx context.Context, addr string, d *net.Dialer, cfg *tls.Config) (net.Conn, error) {
			return p.wire.dial(ctx, d, "tcp", addr, cfg)
		}
	}
	return opt
}

// wire counts what is written to connections. A client writes a command, or
// several that go together, at once.
type wire struct{ writes atomic.Int64 }

func (w *wire) dial(ctx context.Context, d *net.Dialer, network, addr string, cfg *tls.Config) (net.Conn, error) {
	var conn net.Conn
	var err error
	if cfg == nil {
		conn, err = d.DialContext(ctx, network, addr)
	} else {
		conn, err = (&tls.Dialer{NetDialer: d, Config: cfg}).DialContext(ctx, network, addr)
	}
	if err != nil {
		return nil, err
	}
	return counted{conn, w}, nil
}

type counted struct {
	net.Conn
	wire *wire
}

func (c counted) Write(b []byte) (int, error) {
	c.wire.writes.Add(1)
	return c.Conn.Write(b)
}

// spent is what the server has done so far.
type spent struct {
	scripts  float64       // that were run
	inside   time.Duration // of them, by the clock
	commands float64       // also those that scripts have run
	cpu      time.Duration // of the server, as a user and in the kernel
}

// spent asks the server. Nothing else may use it meanwhile.
func (p place) spent(b *testing.B, c *goredis.Client) spent {
	b.Helper()
	text, err := c.Info(b.Context(), "stats", "commandstats", "cpu").Result()
	if err != nil {
		b.Fatal(err)
	}
	var s spent
	for lines := bufio.NewScanner(strings.NewReader(text)); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), ":")
		switch name {
		case "total_commands_processed":
			s.commands, _ = strconv.ParseFloat(value, 64)
		case "cmdstat_evalsha", "cmdstat_eval":
			for field := range strings.SplitSeq(value, ",") {
				key, text, _ := strings.Cut(field, "=")
				switch n, _ := strconv.ParseInt(text, 10, 64); key {
				case "calls":
					s.scripts += float64(n)
				case "usec":
					s.inside += time.Duration(n) * time.Microsecond
				}
			}
		case "used_cpu_user", "used_cpu_sys":
			seconds, _ := strconv.ParseFloat(value, 64)
			s.cpu += time.Duration(seconds * float64(time.Second))
		}
	}
	return s
}

// since is what the server has done since s, less what it took to ask.
func (s spent) since(before spent) spent {
	return spent{s.scripts - before.scripts, s.inside - before.inside, s.commands - before.commands - 1, s.cpu - before.cpu}
}

// plus is both together.
func (s spent) plus(o spent) spent {
	return spent{s.scripts + o.scripts, s.inside + o.inside, s.commands + o.commands, s.cpu + o.cpu}
}
