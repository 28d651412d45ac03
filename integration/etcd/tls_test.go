package etcd_test

import (
	"context"
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
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/integration/internal/scene"
	"github.com/leasehold/leasehold/integration/internal/servers"
)

// plain is the shared etcd, with neither TLS nor a password.
func plain(t *testing.T) *servers.Etcd {
	t.Helper()
	e := servers.SharedEtcd(t)
	if user, _ := e.User(); user != "" || e.Members() != 1 || !strings.HasPrefix(e.Endpoints()[0], "http://") {
		t.Skip("this needs an etcd of one member without TLS and a password, and another is given")
	}
	return e
}

// open opens a store by its URL, as users of the command do.
func open(tb testing.TB, rawURL string) backend.Store {
	tb.Helper()
	s, err := backend.Open(tb.Context(), rawURL)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { s.Close() })
	return s
}

// everyCall makes each kind of call, all at once, on a name nobody holds.
func everyCall(ctx context.Context, s backend.Store) map[string]error {
	rec := backend.Record{Name: "job", Holder: "a", Token: 1, Revision: "1-1-0", Duration: 10 * time.Second}
	calls := map[string]func() error{
		"get":     func() error { _, err := s.Get(ctx, "job"); return err },
		"renew":   func() error { _, err := s.Renew(ctx, rec); return err },
		"release": func() error { return s.Release(ctx, rec) },
		"acquire": func() error {
			_, err := s.Acquire(ctx, backend.Claim{Name: "job", Holder: "a", Attempt: "1", Duration: 10 * time.Second})
			return err
		},
		"list": func() error {
			for _, err := range backend.List(ctx, s, "") {
				return err
			}
			return nil
		},
	}
	type result struct {
		call string
		err  error
	}
	results := make(chan result)
	for call, f := range calls {
		go func() { results <- result{call, f()} }()
	}
	got := make(map[string]error)
	for range calls {
		r := <-results
		got[r.call] = r.err
	}
	return got
}

// errAny is where a server may be heard to refuse, or just be seen to close the
// connection.
var errAny = errors.New("denied or unknown")

// says checks what every call of a store fails with: the class, nil where the
// outcome must be unknown, words that a person needs, and nothing secret.
func says(t *testing.T, s backend.Store, class error, words ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), scene.Patience)
	defer cancel()
	began := time.Now()
	for call, err := range everyCall(ctx, s) {
		switch {
		case err == nil:
			t.Errorf("%s succeeded", call)
			continue
		case class == errAny:
		case call == "release" && !backend.Definite(err): // it was sent, for all that is known
		case class != nil && !errors.Is(err, class):
			t.Errorf("%s: %v; want %v", call, err, class)
		case class == nil && backend.Definite(err):
			t.Errorf("%s: %v: is definite, and it may be different the next moment", call, err)
		}
		for _, word := range words {
			if !strings.Contains(err.Error(), word) {
				t.Errorf("%s: %v\ndoes not say %q", call, err, word)
			}
		}
		if len(err.Error()) > 1000 || strings.Contains(err.Error(), "%!") || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: nobody should read this: %v", call, err)
		}
		if call == "acquire" {
			t.Log(err)
		}
	}
	if took := time.Since(began); took > 12*time.Second {
		t.Errorf("it took %v, which the store bounds at 10 s", took)
	}
}

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

// front listens with a certificate for host in front of an etcd without TLS.
func (s *signer) front(e *servers.Etcd, host string, until time.Time) (addr string) {
	cert, key := s.pair(host, until)
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		s.t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: []string{"h2"}})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { l.Close() })
	behind := strings.TrimPrefix(e.Endpoints()[0], "http://")
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				if conn.(*tls.Conn).Handshake() != nil {
					return
				}
				back, err := net.Dial("tcp", behind)
				if err != nil {
					return
				}
				defer back.Close()
				go func() { _, _ = io.Copy(back, conn); back.Close() }()
				_, _ = io.Copy(conn, back)
			}()
		}
	}()
	return l.Addr().String()
}

// with replaces the parameters of a URL that are given as name, value, name, …; ""
// removes.
func with(rawURL string, changes ...string) string {
	u, err := url.Parse(rawURL)
	if err != nil {
		panic(err)
	}
	q := u.Query()
	for i := 0; i < len(changes); i += 2 {
		if q.Set(changes[i], changes[i+1]); changes[i+1] == "" {
			q.Del(changes[i])
		}
	}
	u.RawQuery = q.Encode()
	return u.String()
}

func TestTLS(t *testing.T) {
	t.Parallel()
	e := servers.OwnEtcd(t, servers.WithTLS())
	good := e.URL(prefix(t))
	other := newSigner(t)
	otherCert, otherKey := other.pair("", time.Now().Add(time.Hour))
	addr := strings.TrimPrefix(e.Endpoints()[0], "https://")

	t.Run("right", func(t *testing.T) {
		s := open(t, good)
		rec, err := s.Acquire(t.Context(), backend.Claim{Name: "job", Holder: "a", Attempt: "1", Duration: 5 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Renew(t.Context(), rec); err != nil {
			t.Error(err)
		}
		if err := s.Release(t.Context(), rec); err != nil {
			t.Error(err)
		}
	})
	for name, c := range map[string]struct {
		url   string
		class error
		words []string
	}{
		"wrong authority":                         {with(good, "cacert", other.ca), backend.ErrInvalid, []string{addr, "cannot be trusted", "cacert"}},
		"the system's authorities":                {with(good, "cacert", "", "cert", "", "key", "", "tls", "true"), backend.ErrInvalid, []string{addr, "cannot be trusted", "cacert"}},
		"no client certificate":                   {with(good, "cert", "", "key", ""), errAny, []string{addr, "client certificate", "cert and key"}},
		"client certificate of another authority": {with(good, "cert", otherCert, "key", otherKey), errAny, []string{addr, "client certificate"}},
		"plain client":                            {with(good, "cacert", "", "cert", "", "key", ""), nil, []string{addr, "TLS", "cacert"}},
		"another name":                            {with(good, "server-name", "etcd.example"), backend.ErrInvalid, []string{addr, "cannot be trusted", "etcd.example"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			says(t, open(t, c.url), c.class, c.words...)
		})
	}
}

// TestServerCertificate: what is wrong with a server's certificate is told, and
// what is right with it suffices: no client certificate is asked for.
func TestServerCertificate(t *testing.T) {
	t.Parallel()
	e := plain(t)
	s := newSigner(t)
	u := func(addr string, more ...string) string {
		return with("etcd://"+addr+prefix(t), append([]string{"cacert", s.ca}, more...)...)
	}
	later := time.Now().Add(time.Hour)
	t.Run("right", func(t *testing.T) {
		for _, u := range []string{u(s.front(e, "127.0.0.1", later)), u(s.front(e, "etcd.example", later), "server-name", "etcd.example")} {
			if _, err := open(t, u).Get(t.Context(), "job"); !errors.Is(err, backend.ErrNotFound) {
				t.Error(err)
			}
		}
	})
	for name, c := range map[string]struct {
		url   string
		words []string
	}{
		"expired":      {u(s.front(e, "127.0.0.1", time.Now().Add(-time.Minute))), []string{"cannot be trusted", "expired"}},
		"another name": {u(s.front(e, "etcd.example", later)), []string{"cannot be trusted", "127.0.0.1", "server-name"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			says(t, open(t, c.url), backend.ErrInvalid, c.words...)
		})
	}
}

// TestWrongAddress: what a person gets to read whose URL is wrong, or whose etcd is
// not there.
func TestWrongAddress(t *testing.T) {
	t.Parallel()
	e := plain(t)
	under := prefix(t)
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
	page2 := httptest.NewUnstartedServer(http.NotFoundHandler())
	page2.Config.Protocols = new(http.Protocols)
	page2.Config.Protocols.SetUnencryptedHTTP2(true)
	page2.Start()
	t.Cleanup(page2.Close)
	at := func(l net.Listener) string { return "etcd://" + l.Addr().String() + under }
	for name, c := range map[string]struct {
		url   string
		class error
		words []string
	}{
		"no such host":     {"etcd://no-such-host.invalid:2379" + under, nil, []string{"no-such-host.invalid", "resolve"}},
		"refused":          {at(refused), nil, []string{refused.Addr().String(), "refused", "reached"}},
		"refused, a login": {strings.Replace(at(refused), "//", "//user:s3cret@", 1), nil, []string{refused.Addr().String(), "refused", "reached"}},
		"silent":           {at(silent), nil, []string{silent.Addr().String(), "in time"}},
		"a web server":     {at(page.Listener), nil, []string{page.Listener.Addr().String(), "no etcd"}},
		"one of HTTP/2":    {at(page2.Listener), nil, []string{page2.Listener.Addr().String(), "no etcd"}},
		"no TLS":           {with(e.URL(under), "tls", "true"), nil, []string{"does not speak TLS", "leave out"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			says(t, open(t, c.url), c.class, c.words...)
		})
	}
	t.Run("bounded by the context", func(t *testing.T) {
		t.Parallel()
		for _, u := range []string{at(silent), at(refused), strings.Replace(at(silent), "//", "//user:s3cret@", 1)} {
			s := open(t, u)
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			began := time.Now()
			for call, err := range everyCall(ctx, s) {
				if err == nil || backend.Definite(err) {
					t.Errorf("%s: %s: %v", u, call, err)
				}
			}
			if took := time.Since(began); took > 2*time.Second {
				t.Errorf("%s: the calls took %v, their context 1 s", u, took)
			}
			cancel()
		}
	})
}
