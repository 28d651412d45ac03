package servers

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// certificate is a server's or a client's, and who signed it. All in PEM.
type certificate struct{ ca, cert, key []byte }

// authority signs certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
	last int64 // serial number
}

func newAuthority() (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	from := time.Now().Add(-time.Hour)
	cert := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "leasehold-test CA"},
		NotBefore:             from,
		NotAfter:              from.AddDate(1, 0, 0),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, key.Public(), key)
	if err != nil {
		return nil, err
	}
	return &authority{cert: cert, key: key, pem: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), last: 1}, nil
}

// server returns the certificate of a server with those names and addresses.
func (a *authority) server(hosts ...string) (certificate, error) {
	return a.sign(x509.ExtKeyUsageServerAuth, hosts)
}

// client returns the certificate of a client.
func (a *authority) client() (certificate, error) { return a.sign(x509.ExtKeyUsageClientAuth, nil) }

func (a *authority) sign(usage x509.ExtKeyUsage, hosts []string) (certificate, error) {
	a.last++
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return certificate{}, err
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(a.last),
		Subject:      pkix.Name{CommonName: "leasehold-test"},
		NotBefore:    a.cert.NotBefore,
		NotAfter:     a.cert.NotAfter,
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{usage},
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			leaf.IPAddresses = append(leaf.IPAddresses, ip)
		} else {
			leaf.DNSNames = append(leaf.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, a.cert, key.Public(), a.key)
	if err != nil {
		return certificate{}, err
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return certificate{}, err
	}
	return certificate{
		ca:   a.pem,
		cert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		key:  pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER}),
	}, nil
}

// credentials are what clients need that speak TLS.
type credentials struct {
	tls               *tls.Config // nil: they do not
	cacert, cert, key string      // files
	folder            string      // of these, if they are ours
}

// certify makes the files of clients, and returns the certificate of servers at
// those addresses.
func (c *credentials) certify(addrs []string) (certificate, error) {
	fail := func(err error) (certificate, error) { return certificate{}, err }
	ca, err := newAuthority()
	if err != nil {
		return fail(err)
	}
	hosts := []string{"localhost", "127.0.0.1", "::1"}
	for _, addr := range addrs {
		host, _, err := net.SplitHostPort(addr)
		if err != nil {
			return fail(err)
		}
		hosts = append(hosts, host)
	}
	slices.Sort(hosts)
	server, err := ca.server(slices.Compact(hosts)...)
	if err != nil {
		return fail(err)
	}
	client, err := ca.client()
	if err != nil {
		return fail(err)
	}
	if c.folder, err = newFolder(); err != nil {
		return fail(err)
	}
	c.cacert, c.cert, c.key = filepath.Join(c.folder, "ca.crt"), filepath.Join(c.folder, "client.crt"), filepath.Join(c.folder, "client.key")
	for file, content := range map[string][]byte{c.cacert: client.ca, c.cert: client.cert, c.key: client.key} {
		if err := os.WriteFile(file, content, 0o600); err != nil {
			return fail(err)
		}
	}
	return server, c.load()
}

// given takes the files that the environment names, if it does.
func (c *credentials) given(env string) error {
	c.cacert, c.cert, c.key = os.Getenv(env+"_CACERT"), os.Getenv(env+"_CERT"), os.Getenv(env+"_KEY")
	if c.cacert == "" {
		return nil
	}
	return c.load()
}

// load reads the files.
func (c *credentials) load() error {
	ca, err := os.ReadFile(c.cacert)
	if err != nil {
		return err
	}
	c.tls = &tls.Config{RootCAs: x509.NewCertPool(), MinVersion: tls.VersionTLS12}
	if !c.tls.RootCAs.AppendCertsFromPEM(ca) {
		return fmt.Errorf("%s holds no certificate", c.cacert)
	}
	if c.cert == "" && c.key == "" {
		return nil
	}
	pair, err := tls.LoadX509KeyPair(c.cert, c.key)
	c.tls.Certificates = []tls.Certificate{pair}
	return err
}

// Files returns those that a client needs with TLS, else "". Close removes them.
func (c *credentials) Files() (cacert, cert, key string) { return c.cacert, c.cert, c.key }

// remove removes the files, if they are ours.
func (c *credentials) remove() error {
	if c.folder == "" {
		return nil
	}
	return os.RemoveAll(c.folder)
}
