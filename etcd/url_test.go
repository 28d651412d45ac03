package etcd

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/leasehold/leasehold/backend"
)

// A store that is only configured: what backend.Open and this package make of a URL,
// without a connection.
func init() {
	backend.Register("etcd-test", func(_ context.Context, u *url.URL) (backend.Store, error) {
		cfg, prefix, err := configure(u)
		if err != nil {
			return nil, err
		}
		return &configured{cfg: cfg, prefix: prefix}, nil
	})
}

type configured struct {
	backend.Store
	cfg    clientv3.Config
	prefix string
}

func configureText(rawURL string) (*configured, error) {
	s, err := backend.Open(context.Background(), strings.Replace(rawURL, "etcd:", "etcd-test:", 1))
	if err != nil {
		return nil, err
	}
	return s.(*configured), nil
}

// certificates writes a certificate that signs itself, and its key.
func certificates(t *testing.T) (cert, key string) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, c, c, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, kind string, der []byte) string {
		file := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	return write("cert", "CERTIFICATE", der), write("key", "EC PRIVATE KEY", keyDER)
}

func TestURL(t *testing.T) {
	cert, key := certificates(t)
	for raw, want := range map[string]struct {
		endpoints      []string
		prefix         string
		user, password string
		tls            bool
		server         string
	}{
		"etcd://a":                              {[]string{"http://a:2379"}, DefaultPrefix, "", "", false, ""},
		"etcd://a/":                             {[]string{"http://a:2379"}, DefaultPrefix, "", "", false, ""},
		"etcd://a:1,b,[::1],[::1]:2,10.0.0.1/":  {[]string{"http://a:1", "http://b:2379", "http://[::1]:2379", "http://[::1]:2", "http://10.0.0.1:2379"}, DefaultPrefix, "", "", false, ""},
		"etcd://a/jobs":                         {[]string{"http://a:2379"}, "/jobs/", "", "", false, ""},
		"etcd://a/jobs/b%20c%2Fd/":              {[]string{"http://a:2379"}, "/jobs/b c/d/", "", "", false, ""},
		"etcd://me:word@a:1,b:2/jobs":           {[]string{"http://a:1", "http://b:2"}, "/jobs/", "me", "word", false, ""},
		"etcd://me:w%2Fo%3Fr%23d%40%2C@a":       {[]string{"http://a:2379"}, DefaultPrefix, "me", "w/o?r#d@,", false, ""},
		"etcd://me:wo,rd@a,b":                   {[]string{"http://a:2379", "http://b:2379"}, DefaultPrefix, "me", "wo,rd", false, ""},
		"etcd://me:wo@rd@a":                     {[]string{"http://a:2379"}, DefaultPrefix, "me", "wo@rd", false, ""},
		"etcd://a?tls=true":                     {[]string{"https://a:2379"}, DefaultPrefix, "", "", true, ""},
		"etcd://a?tls=false":                    {[]string{"http://a:2379"}, DefaultPrefix, "", "", false, ""},
		"etcd://a?server-name=b":                {[]string{"https://a:2379"}, DefaultPrefix, "", "", true, "b"},
		"etcd://a,b/p?cacert=" + cert:           {[]string{"https://a:2379", "https://b:2379"}, "/p/", "", "", true, ""},
		"etcd://a?cert=" + cert + "&key=" + key: {[]string{"https://a:2379"}, DefaultPrefix, "", "", true, ""},
	} {
		c, err := configureText(raw)
		if err != nil {
			t.Errorf("%s: %v", raw, err)
			continue
		}
		if !slices.Equal(c.cfg.Endpoints, want.endpoints) || c.prefix != want.prefix || c.cfg.Username != want.user || c.cfg.Password != want.password || (c.cfg.TLS != nil) != want.tls {
			t.Errorf("%s becomes %v, prefix %q, %q:%q, %v", raw, c.cfg.Endpoints, c.prefix, c.cfg.Username, c.cfg.Password, c.cfg.TLS)
		}
		if want.tls && (c.cfg.TLS.ServerName != want.server || c.cfg.TLS.InsecureSkipVerify || c.cfg.TLS.MinVersion < tls.VersionTLS12) {
			t.Errorf("%s: TLS is %+v", raw, c.cfg.TLS)
		}
		if strings.Contains(raw, "cacert=") != (c.cfg.TLS != nil && c.cfg.TLS.RootCAs != nil) {
			t.Errorf("%s: the authorities are not those that are given", raw)
		}
		if strings.Contains(raw, "&key=") {
			if pair, err := c.cfg.TLS.GetClientCertificate(nil); err != nil || len(pair.Certificate) != 1 {
				t.Errorf("%s: the client certificate is %v, %v", raw, pair, err)
			}
		}
	}
}

func TestWrongURL(t *testing.T) {
	cert, key := certificates(t)
	none := filepath.Join(t.TempDir(), "none")
	for raw, words := range map[string]string{
		"etcd:":                                  "etcd://[user:password@]host:2379",
		"etcd:a:2379":                            "etcd://[user:password@]host:2379",
		"etcd://":                                "etcd://[user:password@]host:2379",
		"etcd:///jobs":                           "etcd://[user:password@]host:2379",
		"etcd://a#jobs":                          "etcd://[user:password@]host:2379",
		"etcd://:2379":                           `":2379" is no address`,
		"etcd://a:0":                             `"a:0" is no address`,
		"etcd://a:65536":                         `"a:65536" is no address`,
		"etcd://a:2379,b:0":                      `"b:0" is no address`,
		"etcd://a,,b":                            "cannot be parsed",
		"etcd://a,b:x":                           "cannot be parsed",
		"etcd://a/%zz":                           "cannot be parsed",
		"etcd://me@a":                            "needs a name and a password",
		"etcd://me:@a":                           "needs a name and a password",
		"etcd://:word@a":                         "needs a name and a password",
		"etcd://a/j%00b":                         "NUL",
		"etcd://a/%ff":                           "UTF-8",
		"etcd://a/" + strings.Repeat("x", 600):   "at most",
		"etcd://a?ca=x":                          `unknown parameter "ca": known are cacert, cert, key, server-name, tls`,
		"etcd://a?tls=true&tls=true":             "twice",
		"etcd://a?tls=maybe":                     "neither true nor false",
		"etcd://a?tls=false&cacert=" + cert:      "tls=false",
		"etcd://a?cert=" + cert:                  "both cert and key",
		"etcd://a?key=" + key:                    "both cert and key",
		"etcd://a?cacert=" + none:                "no such file",
		"etcd://a?cacert=" + key:                 "no certificate in PEM",
		"etcd://a?cert=" + cert + "&key=" + cert: "cert and key of the etcd URL",
		// Passwords that are not escaped.
		"etcd://me:12/s3cret@a":     "%2F stands for /",
		"etcd://me:12?s3cret@a":     "%3F for ?",
		"etcd://me:12#s3cret@a":     "%23 for #",
		"etcd://me:12@b/s3cret@a":   "%40 for @",
		"etcd://me:s3cret/12@a":     "cannot be parsed",
		"etcd://me:12,3/s3cret@a:1": "%2F stands for /",
		"etcd://me:s3%cret@a":       "cannot be parsed",
		"etcd://me:s3cret@a:x":      "cannot be parsed",
		"etcd://me:s3cret@a?b=c":    `unknown parameter "b"`,
		"etcd://me:s3cret@a:99999":  `"a:99999" is no address`,
	} {
		_, err := configureText(raw)
		if !errors.Is(err, backend.ErrInvalid) || !strings.Contains(err.Error(), words) {
			t.Errorf("%s: %v; want ErrInvalid that says %s", raw, err, words)
			continue
		}
		for _, part := range []string{"s3cret", "s3%cret", "word@", "%!"} {
			if strings.Contains(strings.ReplaceAll(err.Error(), "user:password@", ""), part) {
				t.Errorf("%s: %v", raw, err)
			}
		}
	}
	if _, err := backend.Open(t.Context(), "etcd://me:s3cret@a:99999"); !errors.Is(err, backend.ErrInvalid) || strings.Contains(err.Error(), "s3cret") {
		t.Error(err)
	}
}

// FuzzURL: whatever a person writes, no part of the password is in an error, nor in
// what later errors tell: the endpoints and the prefix.
func FuzzURL(f *testing.F) {
	for _, seed := range [][3]string{
		{"", "a:2379,b:2379", "/jobs"},
		{"%2F", "a", "?tls=true"},
		{"/", "a", ""}, {"?", "a", ""}, {"#", "a", ""}, {"@", "a", ""}, {",", "a", ""}, {":", "a", ""}, {"%", "a", ""}, {"@b/", "a", ""}, {"@b?", "a", ""}, {"@b,c/", "a", ""}, {"[", "a", ""},
		{"\\", "[::1]:1", "/%2F?cacert=x"},
		{";", "a", "#b"}, {"@b/?", "", "?x=1&x=2"}, {",b/", ",", ""}, {"@[::1]:", "a", ""}, {"\x00", "a", ""},
	} {
		f.Add(seed[0], seed[1], seed[2])
	}
	f.Fuzz(func(t *testing.T, between, hosts, tail string) {
		for _, parts := range [][2]string{{"S3CRET", "H1DDEN"}, {"90210", "80211"}, {"7771", "7772"}} {
			if strings.Contains(hosts+tail, parts[0]) || strings.Contains(hosts+tail, parts[1]) {
				return
			}
			raw := "etcd://user:" + parts[0] + between + parts[1] + "@" + hosts + tail
			c, err := configureText(raw)
			told := ""
			if err != nil {
				if !errors.Is(err, backend.ErrInvalid) {
					t.Errorf("%q: %v is no ErrInvalid", raw, err)
				}
				told = err.Error()
			} else {
				told = strings.Join(c.cfg.Endpoints, " ") + " " + c.prefix
			}
			for _, p := range parts {
				if strings.Contains(told, p) {
					t.Errorf("%q: a part of the password is told: %s", raw, told)
				}
			}
		}
	})
}
