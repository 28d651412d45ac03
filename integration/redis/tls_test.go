package redis_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/integration/internal/program"
	"github.com/leasehold/leasehold/integration/internal/scene"
	"github.com/leasehold/leasehold/integration/internal/servers"
)

// signer signs certificates, any kind of.
type signer struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	ca   string // file
	n    int64
}

func newSigner(t *testing.T) *signer {
	s := &signer{t: t, dir: t.TempDir(), n: 1}
	s.key = s.newKey()
	s.cert = &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "another CA"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	s.ca = s.write("ca.crt", "CERTIFICATE", s.sign(s.cert, s.key))
	return s
}

func (s *signer) newKey() *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		s.t.Fatal(err)
	}
	return key
}

func (s *signer) sign(c *x509.Certificate, key *ecdsa.PrivateKey) []byte {
	der, err := x509.CreateCertificate(rand.Reader, c, s.cert, key.Public(), s.key)
	if err != nil {
		s.t.Fatal(err)
	}
	return der
}

func (s *signer) write(name, kind string, der []byte) string {
	file := filepath.Join(s.dir, name)
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return file
}

// pair makes a certificate for host, or of a client for "".
func (s *signer) pair(host string, until time.Time) (cert, key string) {
	s.n++
	c := &x509.Certificate{
		SerialNumber: big.NewInt(s.n), Subject: pkix.Name{CommonName: "test"},
		NotBefore: s.cert.NotBefore, NotAfter: until, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if host != "" {
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		if ip := net.ParseIP(host); ip != nil {
			c.IPAddresses = []net.IP{ip}
		} else {
			c.DNSNames = []string{host}
		}
	}
	k := s.newKey()
	der, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		s.t.Fatal(err)
	}
	name := big.NewInt(s.n).String()
	return s.write(name+".crt", "CERTIFICATE", s.sign(c, k)), s.write(name+".key", "EC PRIVATE KEY", der)
}

// front is something that speaks TLS in front of a Redis that does not. What it
// shows, and whom it lets in, can be changed.
type front struct {
	addr  string
	conns chan net.Conn // of clients
}

// front listens with a certificate for host in front of a Redis. With clients, these
// must show a certificate that the signer has signed.
func (s *signer) front(r *servers.Redis, host string, until time.Time, clients bool) *front {
	cert, key := s.pair(host, until)
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		s.t.Fatal(err)
	}
	cfg := &tls.Config{Certificates: []tls.Certificate{pair}}
	if clients {
		cfg.ClientCAs = x509.NewCertPool()
		cfg.ClientCAs.AddCert(s.parsed())
		cfg.ClientAuth = tls.RequireAndVerifyClientCert
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	f := &front{l.Addr().String(), make(chan net.Conn, 1000)}
	s.t.Cleanup(func() { l.Close(); f.hangUp() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			f.conns <- conn
			go func() {
				defer conn.Close()
				if conn.(*tls.Conn).Handshake() != nil {
					return
				}
				back, err := net.Dial("tcp", r.Addrs()[0])
				if err != nil {
					return
				}
				defer back.Close()
				go func() { _, _ = io.Copy(back, conn); back.Close() }()
				_, _ = io.Copy(conn, back)
			}()
		}
	}()
	return f
}

// parsed is the authority's certificate as others read it.
func (s *signer) parsed() *x509.Certificate {
	text, err := os.ReadFile(s.ca)
	if err != nil {
		s.t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

// hangUp closes all connections.
func (f *front) hangUp() {
	for {
		select {
		case conn := <-f.conns:
			conn.Close()
		default:
			return
		}
	}
}

// plain is the shared Redis, with neither TLS nor a password.
func plain(t *testing.T) *servers.Redis {
	t.Helper()
	r := servers.SharedRedis(t)
	if o := r.Options(); o.IsClusterMode || o.TLSConfig != nil || o.Password != "" {
		t.Skip("this needs one Redis without TLS and a password, and another is given")
	}
	return r
}

func works(t *testing.T, s backend.Store) {
	t.Helper()
	rec := scene.Grant(t, s, scene.Claim("works", "a", time.Minute))
	scene.Release(t, s, scene.Renew(t, s, rec))
}

// TestTLS: everything works with TLS, and what is wrong with it is told.
func TestTLS(t *testing.T) {
	t.Parallel()
	r := mine(t, servers.RedisWithTLS())
	addr, good := r.Addrs()[0], r.URL(prefix(t))
	other := newSigner(t)
	otherCert, otherKey := other.pair("", time.Now().Add(time.Hour))
	p := program.New(t, good)
	p.Prints(0, "run job -- true")
	p.Prints(0, "doctor", "TLS", "0 problems")
	s := open(t, good)
	works(t, s)
	waiter := scene.Lease(t, s, "job", time.Minute)
	h := scene.Hold(t, scene.Lease(t, s, "job", time.Minute))
	won := make(chan error, 1)
	go func() { won <- waiter.Await(t.Context()) }()
	scene.Pass(t, 300*time.Millisecond)
	h.Leave()
	if err := scene.AwaitFor(t, time.Second, "the waiter is woken", won); err != nil {
		t.Error(err)
	}
	for name, c := range map[string]struct {
		url   string
		class error
		words []string
	}{
		"another authority":                       {with(good, "cacert", other.ca), backend.ErrInvalid, []string{addr, "cannot be trusted", "cacert"}},
		"the system's authorities":                {with(good, "cacert", "", "cert", "", "key", ""), backend.ErrInvalid, []string{addr, "cannot be trusted", "cacert"}},
		"no client certificate":                   {with(good, "cert", "", "key", ""), errAny, []string{addr, "certificate", "cert and key"}},
		"client certificate of another authority": {with(good, "cert", otherCert, "key", otherKey), errAny, []string{addr, "certificate"}},
		"plain client":                            {strings.Replace(with(good, "cacert", "", "cert", "", "key", ""), "rediss:", "redis:", 1), nil, []string{addr, "TLS"}},
		"another name":                            {with(good, "server-name", "redis.example"), backend.ErrInvalid, []string{addr, "cannot be trusted", "redis.example"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			says(t, open(t, c.url), c.class, c.words...)
		})
	}
}

// TestTLSCluster: the nodes of a cluster, and Sentinels with what they watch.
func TestTLSCluster(t *testing.T) {
	t.Parallel()
	for how, opts := range map[string][]servers.RedisOption{
		"cluster":  {servers.InCluster(), servers.RedisWithTLS()},
		"sentinel": {servers.WithReplicas(1), servers.WithSentinel(), servers.RedisWithTLS()},
	} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			r := mine(t, opts...)
			good := r.URL(prefix(t))
			s := open(t, good)
			works(t, s)
			for _, err := range backend.List(t.Context(), s, "") {
				t.Error(err)
			}
			program.New(t, good).Prints(0, "doctor", "TLS", "0 problems")
			stranger := open(t, with(good, "cacert", newSigner(t).ca))
			if how == "sentinel" { // it asks one after the other, again and again
				says(t, stranger, errAny, "Sentinel")
				return
			}
			says(t, stranger, backend.ErrInvalid, "cannot be trusted", "cacert")
		})
	}
}

// TestServerCertificate: what is wrong with a server's certificate is told, and
// what is right with it suffices: no client certificate is asked for.
func TestServerCertificate(t *testing.T) {
	t.Parallel()
	r := plain(t)
	s := newSigner(t)
	u := func(f *front, more ...string) string {
		return with("rediss://"+f.addr+"/0", append([]string{"prefix", prefix(t), "cacert", s.ca}, more...)...)
	}
	later := time.Now().Add(time.Hour)
	works(t, open(t, u(s.front(r, "127.0.0.1", later, false))))
	works(t, open(t, u(s.front(r, "redis.example", later, false), "server-name", "redis.example")))
	works(t, open(t, with(u(s.front(r, "redis.example", later, false)), "skip_verify", "true")))
	for name, c := range map[string]struct {
		url   string
		words []string
	}{
		"expired":      {u(s.front(r, "127.0.0.1", time.Now().Add(-time.Minute), false)), []string{"cannot be trusted", "expired"}},
		"another name": {u(s.front(r, "redis.example", later, false)), []string{"cannot be trusted", "127.0.0.1", "server-name"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			says(t, open(t, c.url), backend.ErrInvalid, c.words...)
		})
	}
}

// TestRenewedCertificate: a client's certificate is read anew for each connection,
// as programs outlive certificates; what cannot be read is told when the store is
// opened.
func TestRenewedCertificate(t *testing.T) {
	t.Parallel()
	r := plain(t)
	authority, stranger := newSigner(t), newSigner(t)
	f := authority.front(r, "127.0.0.1", time.Now().Add(time.Hour), true)
	files := t.TempDir()
	cert, key := filepath.Join(files, "client.crt"), filepath.Join(files, "client.key")
	put := func(newCert, newKey string) {
		t.Helper()
		for to, from := range map[string]string{cert: newCert, key: newKey} {
			text, err := os.ReadFile(from)
			if err == nil {
				err = os.WriteFile(to, text, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	u := with("rediss://"+f.addr+"/0", "prefix", prefix(t), "cacert", authority.ca, "cert", cert, "key", key)
	if s, err := backend.Open(t.Context(), u); !errors.Is(err, backend.ErrInvalid) || !strings.Contains(err.Error(), cert) {
		t.Errorf("without the files: %v, %v", s, err)
	}
	put(authority.pair("", time.Now().Add(time.Hour)))
	s := open(t, u)
	works(t, s)
	put(stranger.pair("", time.Now().Add(time.Hour)))
	works(t, s) // on the connections there are
	f.hangUp()
	says(t, s, errAny, "certificate")
	put(authority.pair("", time.Now().Add(time.Hour)))
	works(t, s)
}

// TestWrongAddress: what a person gets to read whose URL is wrong, or whose Redis is
// not there.
func TestWrongAddress(t *testing.T) {
	t.Parallel()
	r := plain(t)
	refused, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	refused.Close()
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { silent.Close() })
	page := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(page.Close)
	addr := r.Addrs()[0]
	at := func(l net.Listener) string { return "redis://:s3cret@" + l.Addr().String() + "/0" }
	for name, c := range map[string]struct {
		url   string
		class error
		words []string
	}{
		"no such host":         {"redis://:s3cret@no-such-host.invalid:6379/0?max_retries=-1", nil, []string{"no-such-host.invalid", "cannot be found"}},
		"refused":              {at(refused) + "?max_retries=-1", nil, []string{refused.Addr().String(), "nobody listens"}},
		"silent":               {at(silent), nil, []string{silent.Addr().String(), "in time"}},
		"a web server":         {at(page.Listener), nil, []string{page.Listener.Addr().String(), "no Redis"}},
		"no TLS":               {strings.Replace(r.URL(""), "redis:", "rediss:", 1), nil, []string{addr, "in time"}}, // it is waiting for more
		"no cluster":           {with(r.URL(""), "cluster", "true"), backend.ErrInvalid, []string{addr, "no cluster", "leave out cluster"}},
		"no Sentinel":          {with(r.URL(""), "master_name", "leasehold"), nil, []string{"Sentinel", "master_name"}},
		"a cluster is refused": {at(refused) + "?cluster=true", nil, []string{refused.Addr().String()}},
		"Sentinel is refused":  {at(refused) + "?master_name=leasehold", nil, []string{"Sentinel"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			says(t, open(t, c.url), c.class, c.words...)
		})
	}
}
