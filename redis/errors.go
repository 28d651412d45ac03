package redis

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"

	goredis "github.com/redis/go-redis/v9"

	"github.com/leasehold/leasehold/backend"
)

// undecided is an error whose words are known, but not the outcome: it is none of
// those of package backend, whatever it comes from.
type undecided struct {
	text string
	err  error
}

func (e *undecided) Error() string { return e.text }

// Is makes errors.Is find that a context has ended.
func (e *undecided) Is(target error) bool {
	return (target == context.Canceled || target == context.DeadlineExceeded) && errors.Is(e.err, target)
}

// explain turns what a script failed with into an error of package backend, if it is
// certain that it did nothing and will do nothing. Anything else leaves the outcome
// unknown, and only gets words.
func (s *Store) explain(doing, name string, o outcome) error {
	err := s.describe(fmt.Sprintf("%s lease %q", doing, name), o.err)
	// What was sent is refused only by an answer to it, by one that is the only one, and
	// not in the middle of a script.
	midway := strings.Contains(o.err.Error(), " script: ")
	if !backend.Definite(err) || o.times == 0 || doing == "reading" || o.times == 1 && answered(o.err) && !s.greeting(o.err) && !midway {
		return err
	}
	text := err.Error()
	for _, class := range []error{backend.ErrInvalid, backend.ErrDenied, backend.ErrUnsupported} {
		text = strings.TrimPrefix(text, class.Error()+": ")
	}
	return &undecided{text + "; it is not known whether it was done", o.err}
}

// answered reports whether err is what the server has answered.
func answered(err error) bool { return said(err) != "" }

// said is what the server has answered, "" if err is something else.
func said(err error) string {
	var e goredis.Error
	if !errors.As(err, &e) {
		return ""
	}
	return e.Error()
}

// greeting reports whether err may be what a server has answered when the client
// connected, to send again what may have been done before.
func (s *Store) greeting(err error) bool {
	text := said(err)
	for _, code := range []string{"WRONGPASS", "ERR invalid password", "ERR AUTH", "ERR Client sent AUTH", "ERR max number of clients", "ERR DB index", "ERR SELECT", "ERR invalid DB"} {
		if strings.HasPrefix(text, code) {
			return true
		}
	}
	for _, command := range []string{"'select'", "'auth'", "'client"} {
		if strings.Contains(text, command) {
			return true
		}
	}
	// Without a password the client sends nothing of the kind, unless it has these to say.
	c, ok := s.client.(*goredis.Client)
	return strings.HasPrefix(text, "NOAUTH") && ok && (c.Options().DB != 0 || c.Options().ClientName != "")
}

// failover is the address of a client that asks Sentinel.
const failover = "FailoverClient"

// addresses tells people where the servers are.
func (s *Store) addresses() string {
	switch c := s.client.(type) {
	case *goredis.Client:
		if c.Options().Addr == failover {
			return "the primary that Sentinel names"
		}
		return c.Options().Addr
	case *goredis.ClusterClient:
		return strings.Join(c.Options().Addrs, ", ")
	}
	return "the server"
}

// describe says what went wrong.
func (s *Store) describe(what string, err error) error {
	say := func(class error, format string, args ...any) error {
		text := fmt.Sprintf(format, args...)
		if class == nil {
			return fmt.Errorf("%s: %s: %w", what, text, err)
		}
		return fmt.Errorf("%w: %s: %s: %w", class, what, text, err)
	}
	where := s.addresses()
	message, code := err.Error(), said(err)
	begins := func(codes ...string) bool {
		for _, c := range codes {
			if strings.HasPrefix(code, c) {
				return true
			}
		}
		return false
	}
	tells := func(parts ...string) bool {
		for _, p := range parts {
			if strings.Contains(message, p) {
				return true
			}
		}
		return false
	}
	if tells("all sentinels specified in configuration are unreachable", "all sentinels are unreachable") {
		return say(nil, "no Sentinel knows the primary: check their addresses and the master_name")
	}
	if answered(err) {
		switch {
		case begins("NOAUTH") || tells("HELLO must be called with the client already authenticated", "unauthenticated multibulk length", "unauthenticated bulk length"):
			return say(backend.ErrDenied, "Redis at %s wants a password: redis://user:password@host, or Username and Password of the client", where)
		case begins("WRONGPASS", "ERR invalid password"):
			return say(backend.ErrDenied, "Redis at %s does not accept the user name or the password", where)
		case begins("ERR AUTH", "ERR Client sent AUTH, but no password is set"):
			return say(backend.ErrDenied, "Redis at %s has no password for this user: leave it out, or set one there", where)
		case denied(err):
			return say(backend.ErrDenied, "the user needs: %s", s.aclRule())
		case begins("READONLY"):
			return say(nil, "Redis at %s is a replica, and answers nothing that must be true: leases need the primary, of which Sentinel or a cluster's client knows the address", where)
		case begins("MOVED", "ASK "):
			if _, ok := s.client.(*goredis.ClusterClient); ok {
				return say(nil, "slots of the cluster are moving")
			}
			return say(backend.ErrInvalid, "Redis at %s is a node of a cluster: use a ClusterClient, or a URL with cluster=true", where)
		case tells("This instance has cluster support disabled"):
			return say(backend.ErrInvalid, "Redis at %s is no cluster: leave out cluster and addr", where)
		case begins("CLUSTERDOWN"):
			return say(nil, "the cluster is down: a server that has slots cannot be reached by the others")
		case begins("TRYAGAIN"):
			return say(nil, "slots of the cluster are moving")
		case begins("LOADING"):
			return say(nil, "Redis at %s has just started and is loading its data", where)
		case begins("MASTERDOWN"):
			return say(nil, "Redis at %s is a replica that has lost its primary", where)
		case begins("OOM"):
			return say(nil, "Redis at %s has reached its maxmemory and grants no leases; those that are held can be renewed and released", where)
		case begins("NOREPLICAS"):
			return say(nil, "Redis at %s has fewer good replicas than its min-replicas-to-write, and takes no writes", where)
		case begins("MISCONF"):
			return say(nil, "Redis at %s cannot save its data and takes no writes", where)
		case begins("BUSY"):
			return say(nil, "Redis at %s is busy with a script of somebody's: SCRIPT KILL ends it", where)
		case tells("Error compiling script"):
			return say(backend.ErrUnsupported, "Redis at %s is too old: leases need Redis 7.0 or Valkey", where)
		case begins("ERR unknown command") && tells("eval"):
			return say(backend.ErrUnsupported, "Redis at %s runs no scripts, which leases need", where)
		case tells("DB index is out of range", "SELECT is not allowed in cluster mode"):
			return say(backend.ErrInvalid, "the number of the database behind the address is wrong: Redis at %s has fewer (a cluster has only 0)", where)
		case tells("max number of clients reached"):
			return say(nil, "Redis at %s has no room for another connection (its maxclients)", where)
		}
		return say(nil, "Redis at %s refuses", where)
	}
	var netErr net.Error
	switch {
	case errors.Is(err, goredis.ErrClosed):
		if s.closed() {
			return errClosed
		}
		return errClientClosed
	case tells("x509: "):
		return say(backend.ErrInvalid, "the certificate of Redis at %s cannot be trusted: check the certificate authority (cacert) and the address, or the name in the certificate (server-name)", where)
	case tells("first record does not look like a TLS handshake"):
		return say(backend.ErrInvalid, "%s does not speak TLS: use redis:// instead of rediss://", where)
	case tells("tls: certificate required", "tls: bad certificate", "tls: unknown certificate", "tls: expired certificate"):
		return say(backend.ErrDenied, "Redis at %s does not accept the client certificate, or wants one: give cert and key", where)
	case tells("redis: can't parse", "redis: invalid reply", "redis: can't read"):
		return say(nil, "something that is no Redis answers at %s, or on the way there: check the address", where)
	case tells("connection pool timeout"):
		return say(nil, "all connections of the client are waiting for Redis at %s", where)
	case tells("cluster has no nodes"):
		return say(nil, "no node of the cluster can be reached at %s", where)
	case tells("connection refused"):
		return say(nil, "nobody listens at %s", where)
	case tells("no such host", "server misbehaving"):
		return say(nil, "the address of %s cannot be found", where)
	case errors.Is(err, context.Canceled):
		return say(nil, "the call was cancelled")
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &netErr) && netErr.Timeout():
		if c, ok := s.client.(*goredis.Client); ok && c.Options().Addr == failover {
			return say(nil, "neither Sentinel nor the primary that it names has answered in time")
		}
		return say(nil, "Redis at %s did not answer in time%s", where, s.silence())
	case errors.Is(err, io.EOF), tells("connection reset by peer", "broken pipe"):
		return say(nil, "Redis at %s has closed the connection, as one does that speaks only TLS (rediss://), has no room for more (its maxclients), or lets in only its own machine (protected mode)", where)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// silence is why a server may not answer: one that waits for TLS, or does not know it,
// says nothing.
func (s *Store) silence() string {
	if c, ok := s.client.(*goredis.Client); ok && c.Options().TLSConfig != nil {
		return " (does it speak TLS there?)"
	}
	return ""
}

// denied reports whether the server knows us and forbids it.
func denied(err error) bool {
	text := said(err)
	return strings.HasPrefix(text, "NOPERM") || strings.Contains(text, "The user executing the script can't") || strings.Contains(text, "ACL failure in script")
}

// aclRule is what a user must be allowed to do, as a command of Redis.
func (s *Store) aclRule() string {
	glob := strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`, "]", `\]`).Replace(s.prefix)
	rule := []string{fmt.Sprintf("ACL SETUSER <user> '~%[1]s{*' '&%[1]s{*'", glob)}
	commands := slices.Concat([]string{"evalsha", "eval"}, scriptCommands, messageCommands, []string{"scan"})
	switch c := s.client.(type) {
	case *goredis.Client:
		if c.Options().DB != 0 {
			commands = append(commands, "select")
		}
	case *goredis.ClusterClient:
		commands = append(commands, "cluster|slots")
	}
	if s.replicas > 0 {
		commands = append(commands, "wait")
	}
	for _, command := range commands {
		rule = append(rule, "+"+command)
	}
	return strings.Join(rule, " ")
}

// What the scripts and the watches run.
var (
	scriptCommands  = []string{"get", "set", "del", "exists", "type", "getrange", "hget", "hmget", "hgetall", "hlen", "hset", "hdel", "pexpire", "pttl", "time"}
	messageCommands = []string{"spublish", "ssubscribe", "sunsubscribe"}
)
