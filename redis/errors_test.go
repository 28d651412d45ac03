package redis

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/leasehold/leasehold/backend"
)

// refusedConn is what dialling brings where nobody listens.
func refusedConn() error {
	return &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
}

// answers are what servers answer.
var answers = []struct {
	text  string
	class error // nil: unknown
	words string
}{
	{"NOAUTH Authentication required.", backend.ErrDenied, "wants a password"},
	{"NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO <proto> AUTH <user> <pass> option can be used to authenticate the client and select the RESP protocol version at the same time", backend.ErrDenied, "wants a password"},
	{"WRONGPASS invalid username-password pair or user is disabled.", backend.ErrDenied, "does not accept the user name or the password"},
	{"ERR invalid password", backend.ErrDenied, "does not accept the user name or the password"},
	{"ERR AUTH <password> called without any password configured for the default user. Are you sure your configuration is correct?", backend.ErrDenied, "has no password for this user"},
	{"NOPERM this user has no permissions to run the 'evalsha' command", backend.ErrDenied, "ACL SETUSER <user> '~t:{*' '&t:{*' +evalsha +eval +get +set"},
	{"NOPERM this user has no permissions to access one of the keys used as arguments", backend.ErrDenied, "ACL SETUSER"},
	{"READONLY You can't write against a read only replica.", nil, "is a replica"},
	{"MOVED 866 127.0.0.1:7001", backend.ErrInvalid, "is a node of a cluster: use a ClusterClient, or a URL with cluster=true"},
	{"ASK 866 127.0.0.1:7001", backend.ErrInvalid, "is a node of a cluster"},
	{"CLUSTERDOWN Hash slot not served", nil, "the cluster is down"},
	{"TRYAGAIN Multiple keys request during rehashing of slot", nil, "slots of the cluster are moving"},
	{"LOADING Redis is loading the dataset in memory", nil, "is loading its data"},
	{"MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.", nil, "has lost its primary"},
	{"OOM command not allowed when used memory > 'maxmemory'.", nil, "has reached its maxmemory"},
	{"NOREPLICAS Not enough good replicas to write.", nil, "min-replicas-to-write"},
	{"MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.", nil, "cannot save its data"},
	{"BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.", nil, "SCRIPT KILL"},
	{"ERR Error compiling script (new function): user_script:1: unexpected symbol near '#'", backend.ErrUnsupported, "is too old: leases need Redis 7.0 or Valkey"},
	{"ERR unknown command `evalsha`, with args beginning with: ", backend.ErrUnsupported, "runs no scripts"},
	{"ERR DB index is out of range", backend.ErrInvalid, "the number of the database"},
	{"ERR SELECT is not allowed in cluster mode", backend.ErrInvalid, "a cluster has only 0"},
	{"ERR max number of clients reached", nil, "maxclients"},
	{"ERR something else", nil, "refuses"},
	{"EXECABORT Transaction discarded", nil, "refuses"},
}

// greets reports whether a client gets the answer when it connects, and never to a
// script. So it says nothing of a script that was sent on a connection before.
func greets(text string) bool {
	for _, code := range []string{"NOAUTH HELLO", "WRONGPASS", "ERR invalid password", "ERR AUTH", "ERR DB index", "ERR SELECT"} {
		if strings.HasPrefix(text, code) {
			return true
		}
	}
	return false
}

// TestAnswers: each answer has the class it should, if it is the only one, and
// the words that say what to do.
func TestAnswers(t *testing.T) {
	for _, c := range answers {
		inBubble(t, func(t *testing.T, f *fake) {
			s := f.storeOf(f.client(once))
			rec := acquired(t, s, claim("alice", "a1"))
			f.hooks(func(r request) any { return refusal(c.text) }, nil)
			for what, call := range verbs(rec) {
				err := call(t.Context(), s)
				switch {
				case greets(c.text):
				case c.class == nil:
					unknown(t, c.text+", "+what, err)
				default:
					refused(t, c.text+", "+what, err, c.class)
				}
				text := fmt.Sprint(err)
				if !strings.Contains(text, c.words) || !strings.Contains(text, `lease "report"`) || !strings.Contains(text, c.text) || strings.Contains(text, "%!") {
					t.Errorf("%s is told as: %s\nwant %s", c.text, text, c.words)
				}
				if c.class != nil && strings.Count(text, c.class.Error()) > 2 {
					t.Errorf("it says so too often: %s", text)
				}
			}
			if got := f.requests(); strings.Count(got, " ") != 3 {
				t.Errorf("%s: sent %s", c.text, got)
			}
		})
	}
}

// verbs are the calls about one name.
func verbs(rec backend.Record) map[string]func(ctx context.Context, s *Store) error {
	return map[string]func(ctx context.Context, s *Store) error{
		"acquire": func(ctx context.Context, s *Store) error { _, err := s.Acquire(ctx, claim("bob", "b1")); return err },
		"renew":   func(ctx context.Context, s *Store) error { _, err := s.Renew(ctx, rec); return err },
		"release": func(ctx context.Context, s *Store) error { return s.Release(ctx, rec) },
		"get":     func(ctx context.Context, s *Store) error { _, err := s.Get(ctx, "report"); return err },
	}
}

// TestMidway: a script that fails in its middle may have done half of it.
func TestMidway(t *testing.T) {
	const text = "NOPERM this user has no permissions to run the 'spublish' command script: 8b7d, on @user_script:12."
	inBubble(t, func(t *testing.T, f *fake) {
		s := f.store()
		rec := acquired(t, s, claim("alice", "a1"))
		f.hooks(func(r request) any { return refusal(text) }, nil)
		for what, call := range verbs(rec) {
			err := call(t.Context(), s)
			if what == "get" {
				refused(t, what, err, backend.ErrDenied)
				continue
			}
			if unknown(t, what, err); !strings.Contains(fmt.Sprint(err), "ACL SETUSER") || !strings.Contains(fmt.Sprint(err), "not known") || strings.Contains(fmt.Sprint(err), backend.ErrDenied.Error()+":") {
				t.Errorf("%s: %v", what, err)
			}
		}
	})
}

// redisError is an answer as clients hand it on.
type redisError string

func (e redisError) Error() string { return string(e) }
func (redisError) RedisError()     {}

var _ goredis.Error = redisError("")

// TestDescribe: the words and the class of what comes from elsewhere than an answer,
// and what an answer is to a client of a cluster.
func TestDescribe(t *testing.T) {
	client := goredis.NewClient(&goredis.Options{Addr: "a:1"})
	defer client.Close()
	cluster := goredis.NewClusterClient(&goredis.ClusterOptions{Addrs: []string{"a:1", "b:2"}})
	defer cluster.Close()
	one, several := New(client, "t:"), New(cluster, "t:")
	dns := &net.OpError{Op: "dial", Net: "tcp", Err: &net.DNSError{Err: "no such host", Name: "a", IsNotFound: true}}
	for _, c := range []struct {
		s     *Store
		err   error
		class error
		words string
	}{
		{one, refusedConn(), nil, "nobody listens at a:1"},
		{one, dns, nil, "the address of a:1 cannot be found"},
		{one, io.EOF, nil, "rediss://"},
		{one, io.ErrUnexpectedEOF, nil, "unexpected EOF"},
		{one, &net.OpError{Op: "read", Net: "tcp", Err: os.NewSyscallError("read", syscall.ECONNRESET)}, nil, "has closed the connection"},
		{one, &net.OpError{Op: "write", Net: "tcp", Err: os.NewSyscallError("write", syscall.EPIPE)}, nil, "has closed the connection"},
		{one, os.ErrDeadlineExceeded, nil, "did not answer in time"},
		{one, &net.OpError{Op: "dial", Net: "tcp", Err: os.ErrDeadlineExceeded}, nil, "did not answer in time"},
		{one, context.DeadlineExceeded, nil, "did not answer in time"},
		{one, context.Canceled, nil, "the call was cancelled"},
		{one, errors.New("redis: connection pool timeout"), nil, "all connections of the client are waiting"},
		{one, errors.New(`redis: can't parse "HTTP/1.1 400 Bad Request"`), nil, "no Redis answers at a:1"},
		{one, errors.New("redis: invalid reply: \"\""), nil, "no Redis answers at a:1"},
		{one, errors.New("redis: can't read map reply: expected a valid reply"), nil, "no Redis answers at a:1"},
		{one, tls.RecordHeaderError{Msg: "first record does not look like a TLS handshake"}, backend.ErrInvalid, "does not speak TLS: use redis://"},
		{one, &tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}, backend.ErrInvalid, "cacert"},
		{one, x509.HostnameError{Certificate: &x509.Certificate{}, Host: "a"}, backend.ErrInvalid, "server-name"},
		{one, errors.New("remote error: tls: certificate required"), backend.ErrDenied, "give cert and key"},
		{one, errors.New("remote error: tls: bad certificate"), backend.ErrDenied, "give cert and key"},
		{one, errors.New("remote error: tls: unknown certificate authority"), backend.ErrDenied, "give cert and key"},
		{one, errors.New("remote error: tls: expired certificate"), backend.ErrDenied, "give cert and key"},
		{one, errors.New("redis: all sentinels specified in configuration are unreachable"), nil, "master_name"},
		{one, errors.New("something new"), nil, "doing it: something new"},
		{one, goredis.ErrClosed, backend.ErrInvalid, "the client of the redis store is closed"},
		{several, errors.New("redis: cluster has no nodes"), nil, "a:1, b:2"},
		{several, redisError("ERR This instance has cluster support disabled"), backend.ErrInvalid, "is no cluster"},
		{several, redisError("MOVED 866 127.0.0.1:7001"), nil, "slots of the cluster are moving"},
		{several, redisError("ASK 866 127.0.0.1:7001"), nil, "slots of the cluster are moving"},
		{one, fmt.Errorf("failed to initialize connection options: %w", redisError("ERR DB index is out of range")), backend.ErrInvalid, "the number of the database"},
		{one, redisError("NOAUTH Authentication required."), backend.ErrDenied, "wants a password"},
	} {
		err := c.s.describe("doing it", c.err)
		if c.class == nil && backend.Definite(err) || c.class != nil && !errors.Is(err, c.class) {
			t.Errorf("%v is %v, want %v", c.err, err, c.class)
		}
		if !errors.Is(err, c.err) && c.err != goredis.ErrClosed {
			t.Errorf("%v is lost in %v", c.err, err)
		}
		if !strings.Contains(err.Error(), c.words) || strings.Contains(err.Error(), "%!") {
			t.Errorf("%v is told as: %v\nwant %s", c.err, err, c.words)
		}
	}
	_ = one.Close()
	if err := one.describe("doing it", goredis.ErrClosed); !errors.Is(err, errClosed) {
		t.Errorf("a closed store says %v", err)
	}
}

// TestConnecting: what is wrong before anything was sent is definite where it will
// stay so.
func TestConnecting(t *testing.T) {
	for _, c := range []struct {
		what  string
		err   error
		class error
		words string
	}{
		{"refused", refusedConn(), nil, "nobody listens"},
		{"certificate", &tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}, backend.ErrInvalid, "cacert"},
		{"no TLS", tls.RecordHeaderError{Msg: "first record does not look like a TLS handshake"}, backend.ErrInvalid, "redis://"},
		{"no such host", &net.DNSError{Err: "no such host", Name: "a", IsNotFound: true}, nil, "cannot be found"},
	} {
		inBubble(t, func(t *testing.T, f *fake) {
			s := f.store()
			f.dial = func(int) error { return c.err }
			for what, call := range verbs(backend.Record{Name: "report", Holder: "alice", Token: 1}) {
				err := call(t.Context(), s)
				if c.class == nil {
					unknown(t, c.what+", "+what, err)
				} else {
					refused(t, c.what+", "+what, err, c.class)
				}
				if !strings.Contains(fmt.Sprint(err), c.words) {
					t.Errorf("%s, %s: %v", c.what, what, err)
				}
			}
		})
	}
}

// TestNoRedis: something else answers.
func TestNoRedis(t *testing.T) {
	for _, banner := range []string{"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\n\r\n", "SSH-2.0-OpenSSH_9.2\r\n", "\x15\x03\x03\x00\x02\x02\x0a"} {
		inBubble(t, func(t *testing.T, f *fake) {
			s := f.storeOf(f.client(func(o *goredis.Options) {
				o.Dialer = func(context.Context, string, string) (net.Conn, error) {
					client, server := net.Pipe()
					go func() {
						defer server.Close()
						b := make([]byte, 1024)
						if _, err := server.Read(b); err == nil {
							_, _ = io.WriteString(server, banner)
						}
					}()
					return client, nil
				}
			}))
			_, err := s.Acquire(t.Context(), claim("alice", "a1"))
			unknown(t, banner, err)
			if strings.HasPrefix(banner, "\x15") { // without the end of a line it is as if it hung up
				return
			}
			if !strings.Contains(fmt.Sprint(err), "no Redis answers at 192.0.2.1:6379") {
				t.Errorf("%q is told as: %v", banner, err)
			}
		})
	}
}

// TestACLRule: the rule has the prefix as a pattern that matches that alone, and the
// commands that this store and this client need.
func TestACLRule(t *testing.T) {
	client := goredis.NewClient(&goredis.Options{Addr: "192.0.2.1:1", DB: 3})
	defer client.Close()
	cluster := goredis.NewClusterClient(&goredis.ClusterOptions{Addrs: []string{"192.0.2.1:1"}})
	defer cluster.Close()
	plain := goredis.NewClient(&goredis.Options{Addr: "192.0.2.1:1"})
	defer plain.Close()
	rule := New(plain, `a*?[x]\:`).aclRule()
	if want := `'~a\*\?\[x\]\\:{*' '&a\*\?\[x\]\\:{*'`; !strings.Contains(rule, want) {
		t.Errorf("%s, want %s", rule, want)
	}
	for _, command := range []string{"evalsha", "eval", "get", "hset", "spublish", "ssubscribe", "sunsubscribe", "scan"} {
		if !strings.Contains(rule+" ", " +"+command+" ") {
			t.Errorf("%s lacks %s", rule, command)
		}
	}
	for command, s := range map[string]*Store{" +select": New(client, ""), " +cluster|slots": New(cluster, ""), " +wait": New(plain, "", WithReplicas(1, 0))} {
		if !strings.Contains(s.aclRule(), command) || strings.Contains(rule, command) {
			t.Errorf("%q and for others %q, only the first wants%s", s.aclRule(), rule, command)
		}
	}
}

// TestUnknownEval: a server that has no scripts says so in words of its own.
func TestUnknownEval(t *testing.T) {
	for _, text := range []string{"ERR unknown command `evalsha`, with args beginning with: `a`", "ERR unknown command 'eval'"} {
		inBubble(t, func(t *testing.T, f *fake) {
			s := f.store()
			f.hooks(func(r request) any { return refusal(text) }, nil)
			_, err := s.Get(t.Context(), "report")
			refused(t, text, err, backend.ErrUnsupported)
		})
	}
}

// TestGreeting: what is wrong with the password or the database shows when the client
// connects, and is told like any other answer.
func TestGreeting(t *testing.T) {
	for _, c := range []struct {
		what   string
		opt    func(o *goredis.Options)
		hello  any
		auth   any
		answer string // to all else
		words  string
		class  error
	}{
		{"wrong password", func(o *goredis.Options) { o.Password = "x" }, refusal("WRONGPASS invalid username-password pair or user is disabled."), refusal("WRONGPASS invalid username-password pair or user is disabled."), "", "does not accept", backend.ErrDenied},
		{"wrong user", func(o *goredis.Options) { o.Username, o.Password = "u", "x" }, refusal("WRONGPASS invalid username-password pair or user is disabled."), refusal("WRONGPASS invalid username-password pair or user is disabled."), "", "does not accept", backend.ErrDenied},
		{"no password set", func(o *goredis.Options) { o.Password = "x" }, refusal("ERR unknown command 'HELLO'"), refusal("ERR AUTH <password> called without any password configured for the default user. Are you sure your configuration is correct?"), "", "has no password", backend.ErrDenied},
		{"password wanted", func(o *goredis.Options) {}, refusal("NOAUTH HELLO must be called with the client already authenticated"), nil, "NOAUTH Authentication required.", "wants a password", backend.ErrDenied},
		{"wrong database", func(o *goredis.Options) { o.DB = 99 }, nil, nil, "ERR DB index is out of range", "number of the database", backend.ErrInvalid},
	} {
		t.Run(c.what, func(t *testing.T) {
			inBubble(t, func(t *testing.T, f *fake) {
				f.greet = func(args []string) any {
					if strings.EqualFold(args[0], "hello") {
						return c.hello
					}
					return c.auth
				}
				f.before = func(r request) any {
					if c.answer != "" {
						return refusal(c.answer)
					}
					return nil
				}
				s := f.storeOf(f.client(c.opt))
				for what, call := range verbs(backend.Record{Name: "report", Holder: "alice", Token: 1}) {
					err := call(t.Context(), s)
					if refused(t, what, err, c.class); !strings.Contains(fmt.Sprint(err), c.words) {
						t.Errorf("%s: %v, want %s", what, err, c.words)
					}
				}
				n := 0
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				for _, err := range s.Watch(ctx, "report") {
					n++
					refused(t, "watch", err, c.class)
				}
				if n != 1 {
					t.Errorf("Watch yields %d times", n)
				}
			})
		})
	}
}
