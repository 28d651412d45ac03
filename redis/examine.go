package redis

import (
	"context"
	_ "embed"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/leasehold/leasehold/backend"
)

//go:embed scripts/permissions.lua
var permissionsLua string

// questionTime is how long each question of Examine may take.
const questionTime = 3 * time.Second

// probe is the name whose keys Examine asks about. It is never acquired.
const probe = "leasehold-doctor"

// Examine asks every server that has keys what it is, how it keeps its data and
// when it gives data up, whom it lets in, what this user may do (by a script that
// asks and does nothing), and what time it is.
func (s *Store) Examine(ctx context.Context) iter.Seq[backend.Finding] {
	return func(yield func(backend.Finding) bool) {
		if err := s.usable(ctx); err != nil {
			if ctx.Err() == nil {
				yield(backend.Finding{Check: "redis", Level: backend.Problem, Detail: err.Error()})
			}
			return
		}
		more := func(f backend.Finding) bool {
			// A connection may give up at the deadline a moment before the context does.
			deadline, ok := ctx.Deadline()
			over := ctx.Err() != nil || ok && time.Until(deadline) <= 0
			return !over && (f.Check == "" || yield(f))
		}
		servers, err := ask(ctx, s, s.servers)
		if err != nil {
			more(backend.Finding{Check: "server", Level: backend.Problem, Detail: s.describe("finding the servers", err).Error()})
			return
		}
		// One that is down is said once, and nothing else of it.
		var up []server
		for _, c := range servers {
			sv := s.ask(ctx, c)
			if sv.err == nil && !sv.old() {
				up = append(up, sv)
			}
			if !more(s.serverFinding(sv, len(servers) > 1)) {
				return
			}
		}
		if len(up) == 0 {
			return
		}
		for _, finding := range []func([]server) backend.Finding{
			func([]server) backend.Finding { return s.clusterFinding(ctx) }, s.memoryFinding, s.persistenceFinding, s.replicationFinding, s.accessFinding, s.clockFinding,
		} {
			if !more(finding(up)) {
				return
			}
		}
		more(s.permissionFinding(ctx))
	}
}

// ask makes a call of Examine's.
func ask[T any](ctx context.Context, s *Store, f func(ctx context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, questionTime)
	defer cancel()
	return within(ctx, s, f)
}

// server is what one says of itself.
type server struct {
	addr   string
	info   map[string]string
	denied error         // why it does not tell
	err    error         // why it does not answer
	took   time.Duration // of a round trip
	user   string
	closed bool // to the default user
	secure bool
	ahead  time.Duration // its clock of ours
}

func (s *Store) ask(ctx context.Context, c goredis.Cmdable) server {
	sv := server{addr: s.addresses()}
	if node, ok := c.(*goredis.Client); ok {
		if node.Options().Addr != failover {
			sv.addr = node.Options().Addr
		}
		sv.secure = node.Options().TLSConfig != nil
	}
	type answers struct {
		info, user string
		at         time.Time
		took       time.Duration
		closed     bool
		denied     error
	}
	a, err := ask(ctx, s, func(ctx context.Context) (a answers, err error) {
		// The first connects, which is not what is measured.
		if err := c.Ping(ctx).Err(); err != nil && !denied(err) {
			return a, err
		}
		began := time.Now()
		at, err := c.Time(ctx).Result()
		if err != nil && !denied(err) {
			return a, err
		}
		a.took = time.Since(began)
		if err == nil {
			a.at = at.Add(-a.took / 2)
		}
		if a.info, a.denied = c.Info(ctx).Result(); a.denied != nil && !answered(a.denied) {
			return a, a.denied
		}
		if who, ok := c.(interface {
			Do(ctx context.Context, args ...any) *goredis.Cmd
		}); ok {
			a.user, _ = who.Do(ctx, "acl", "whoami").Text()
			// Its flags come first, of these whether it is on. How that is put depends on the
			// protocol.
			rules, err := who.Do(ctx, "acl", "getuser", "default").Result()
			a.closed = err == nil && strings.Contains(fmt.Sprint(rules), "[off")
		}
		return a, nil
	})
	sv.err, sv.denied, sv.took, sv.user, sv.closed = err, a.denied, a.took, a.user, a.closed
	if !a.at.IsZero() {
		sv.ahead = time.Until(a.at) + a.took
	}
	sv.info = fields(a.info)
	return sv
}

func (sv server) number(key string) int64 { return number(sv.info[key]) }

// version is what the server calls itself.
func (sv server) version() (name, version string) {
	if v := sv.info["valkey_version"]; v != "" {
		return "Valkey", v
	}
	return "Redis", sv.info["redis_version"]
}

// old reports whether the server is too old for leases.
func (sv server) old() bool {
	name, version := sv.version()
	major, err := strconv.Atoi(strings.Split(version, ".")[0])
	return err == nil && name == "Redis" && major < 7
}

func (s *Store) serverFinding(sv server, several bool) backend.Finding {
	f := backend.Finding{Check: "server"}
	if several {
		f.Check = "server " + sv.addr
	}
	name, version := sv.version()
	switch {
	case sv.err != nil:
		f.Level, f.Detail = backend.Problem, s.describe("asking it", sv.err).Error()
		return f
	case sv.denied != nil:
		f.Level = backend.Note
		f.Detail = fmt.Sprintf("answers within %v; what it is, how it keeps data and when it gives data up cannot be found out, as this user may not ask", rounded(sv.took))
		f.Fix = "have somebody who may run leasehold doctor, or ACL SETUSER <user> +info"
		return f
	case sv.old():
		f.Level = backend.Problem
		f.Detail = fmt.Sprintf("Redis %s is too old", version)
		f.Fix = "use Redis 7.0 or newer, or Valkey"
		return f
	}
	f.Detail = fmt.Sprintf("%s %s at %s, answers within %v", name, version, sv.addr, rounded(sv.took))
	if sv.info["role"] == "slave" {
		f.Level = backend.Problem
		f.Detail += "; it is a replica, which leases cannot be kept on"
		f.Fix = fmt.Sprintf("give the primary's address (it is %s:%s now), or that of the Sentinels with master_name", sv.info["master_host"], sv.info["master_port"])
	}
	if _, ok := s.client.(*goredis.ClusterClient); !ok && sv.info["redis_mode"] == "cluster" {
		f.Level = backend.Problem
		f.Detail += "; it is a node of a cluster, and the client is for one server"
		f.Fix = "add cluster=true to the URL, or use a ClusterClient"
	}
	return f
}

func rounded(d time.Duration) time.Duration { return d.Round(time.Microsecond) }

// clusterFinding tells whether all slots are served.
func (s *Store) clusterFinding(ctx context.Context) backend.Finding {
	cluster, ok := s.client.(*goredis.ClusterClient)
	if !ok {
		return backend.Finding{}
	}
	f := backend.Finding{Check: "cluster"}
	text, err := ask(ctx, s, func(ctx context.Context) (string, error) { return cluster.ClusterInfo(ctx).Result() })
	switch {
	case err != nil && denied(err):
		f.Level, f.Detail = backend.Note, "its state cannot be found out: this user may not ask (+cluster|info)"
		return f
	case err != nil:
		f.Level, f.Detail = backend.Problem, s.describe("asking for its state", err).Error()
		return f
	}
	info := fields(text)
	f.Detail = fmt.Sprintf("%s primaries, %s of 16384 slots served", info["cluster_size"], info["cluster_slots_ok"])
	if info["cluster_state"] != "ok" || info["cluster_slots_ok"] != "16384" {
		f.Level = backend.Problem
		f.Detail += ": names in the other slots cannot be leased"
		f.Fix = "redis-cli --cluster check tells which node is missing"
	}
	return f
}

// worst puts together what several servers have, of which the worst counts.
func worst(check string, up []server, judge func(sv server) (level backend.Level, detail, fix string)) backend.Finding {
	f := backend.Finding{Check: check, Level: -1}
	same := true
	for i, sv := range up {
		level, detail, fix := judge(sv)
		same = same && (i == 0 || detail == f.Detail)
		if level > f.Level {
			f.Level, f.Detail, f.Fix = level, detail, fix
			if len(up) > 1 && i > 0 && !same {
				f.Detail = sv.addr + ": " + detail
			}
		}
	}
	return f
}

// telling are the servers that tell about themselves.
func telling(up []server) (some []server) {
	return slices.DeleteFunc(slices.Clone(up), func(sv server) bool { return sv.denied != nil })
}

// memoryFinding tells whether leases may be given up for other data.
func (s *Store) memoryFinding(up []server) backend.Finding {
	if up = telling(up); len(up) == 0 {
		return backend.Finding{}
	}
	return worst("memory", up, func(sv server) (backend.Level, string, string) {
		policy, limit := sv.info["maxmemory_policy"], sv.number("maxmemory")
		const fix = "CONFIG SET maxmemory-policy noeviction, or keep leases on a server of their own"
		switch {
		case policy == "noeviction" && limit == 0:
			return backend.Good, "nothing is evicted (maxmemory-policy noeviction, no maxmemory)", ""
		case policy == "noeviction":
			return backend.Good, fmt.Sprintf("nothing is evicted (maxmemory-policy noeviction); when %d MiB are used, nothing new is granted", limit>>20), ""
		case limit == 0:
			return backend.Note, fmt.Sprintf("maxmemory-policy is %s, which has no effect as long as there is no maxmemory", policy), fix
		}
		return backend.Problem, fmt.Sprintf("maxmemory-policy is %s: when %d MiB are used, live leases are evicted, and somebody else is let in", policy, limit>>20), fix
	})
}

// persistenceFinding tells what a restart forgets.
func (s *Store) persistenceFinding(up []server) backend.Finding {
	if up = telling(up); len(up) == 0 {
		return backend.Finding{}
	}
	return worst("restart", up, func(sv server) (backend.Level, string, string) {
		switch {
		case sv.info["aof_enabled"] != "1":
			return backend.Warning, "there is no append-only file: a server that restarts has forgotten the leases of the last seconds, or all, and lets others in while their holders still act. Tokens rise",
				"appendonly yes with appendfsync always; or have the server stay down for as long as the longest lease lasts"
		case sv.closed:
			return backend.Problem, "the append-only file is of no use for leases: the default user is off, and with its rights Redis loads what scripts have written (it logs NOPERM). A restart forgets all leases, and lets others in while their holders still act. Tokens rise",
				"leave the default user on with a password (requirepass) instead of off"
		case sv.info["aof_last_write_status"] == "err":
			return backend.Problem, "the append-only file cannot be written", "see the server's log: is the disk full?"
		}
		return backend.Good, "an append-only file is kept; with appendfsync always a restart forgets nothing, with everysec the last second", ""
	})
}

// replicationFinding tells what a failover forgets.
func (s *Store) replicationFinding(up []server) backend.Finding {
	if up = telling(up); len(up) == 0 {
		return backend.Finding{}
	}
	return worst("failover", up, func(sv server) (backend.Level, string, string) {
		n := sv.number("connected_slaves")
		switch {
		case sv.info["role"] == "slave":
			return backend.Good, "this is a replica", ""
		case n == 0:
			return backend.Good, "no replicas: there is no failover, and while the server is down nothing is granted or renewed", ""
		case s.replicas > 0 && int64(s.replicas) > n:
			return backend.Problem, fmt.Sprintf("%d replicas, and the store waits for %d: nothing can be granted", n, s.replicas), "give fewer replicas, or add some"
		case s.replicas > 0:
			return backend.Note, fmt.Sprintf("%d replicas, of which %d must have a grant or a renewal: a failover to another one may still forget it", n, s.replicas), ""
		}
		return backend.Note, fmt.Sprintf("%d replicas, which get changes a little later: a failover may forget the newest grants and renewals, and let two hold for as long as the first still may. Tokens rise", n),
			"have what is protected check tokens; replicas=N in the URL makes it less likely"
	})
}

// accessFinding tells who is let in.
func (s *Store) accessFinding(up []server) backend.Finding {
	f := backend.Finding{Check: "access", Detail: "without TLS"}
	secure, user := up[0].secure, up[0].user
	if secure {
		f.Detail = "TLS"
	}
	password := false
	switch c := s.client.(type) {
	case *goredis.Client:
		password = c.Options().Password != "" || c.Options().CredentialsProvider != nil || c.Options().CredentialsProviderContext != nil
	case *goredis.ClusterClient:
		password = c.Options().Password != "" || c.Options().CredentialsProvider != nil || c.Options().CredentialsProviderContext != nil
	}
	if user != "" {
		f.Detail += fmt.Sprintf(", as the user %q", user)
	}
	switch {
	case password && !secure:
		f.Level = backend.Note
		f.Detail += ": the password can be read on the way"
		f.Fix = "use TLS (rediss://)"
	case !password && !secure:
		f.Level = backend.Note
		f.Detail += ", without a password: whoever reaches it may take any lease"
		f.Fix = "unless only programs that are trusted reach it, set up users (ACL SETUSER)"
	case !password:
		f.Detail += ", without a password"
	}
	return f
}

// clockFinding compares clocks. Leases do not depend on ours; but tokens come from
// the server's, and whoever reads times in records compares them with their own.
func (s *Store) clockFinding(up []server) backend.Finding {
	f := backend.Finding{Check: "clock"}
	least, most := up[0].ahead, up[0].ahead
	for _, sv := range up {
		least, most = min(least, sv.ahead), max(most, sv.ahead)
	}
	furthest := most
	if -least > most {
		furthest = least
	}
	f.Detail = fmt.Sprintf("the server's differs from this machine's by %v", furthest.Abs().Round(time.Millisecond))
	switch {
	case most-least > time.Second:
		f.Level = backend.Warning
		f.Detail = fmt.Sprintf("those of the servers differ by %v: after a failover, or when slots move, tokens rise only because the last ones are known", (most - least).Round(time.Millisecond))
		f.Fix = "have their clocks synchronized"
	case furthest.Abs() > time.Minute:
		f.Level = backend.Note
		f.Detail += "; leases do not depend on it, but the times in records are the server's"
	}
	return f
}

// permissionFinding asks what this user may do.
func (s *Store) permissionFinding(ctx context.Context) backend.Finding {
	f := backend.Finding{Check: "permissions", Detail: "all that leases need is allowed under " + s.prefix}
	record, _ := s.keys(probe)
	check := func(key string, names []string) ([]string, error) {
		return ask(ctx, s, func(ctx context.Context) ([]string, error) {
			args := make([]any, len(names))
			for i, name := range names {
				args[i] = name
			}
			return s.client.Eval(ctx, permissionsLua, []string{key}, args...).StringSlice()
		})
	}
	lacking, err := check(record, scriptCommands)
	var quiet []string
	if err == nil {
		quiet, err = check(record, messageCommands)
	}
	switch {
	case err != nil && denied(err):
		f.Level = backend.Problem
		f.Detail = "this user may not run scripts on keys under " + s.prefix
		f.Fix = s.aclRule()
	case err != nil:
		f.Level, f.Detail = backend.Problem, s.describe("asking for them", err).Error()
	case len(lacking) > 0:
		// A rule may be for certain keys. Whoever tries will see.
		f.Level = backend.Problem
		f.Detail = fmt.Sprintf("not allowed under %s: %s", s.prefix, strings.Join(lacking, ", "))
		f.Fix = s.aclRule()
	case len(quiet) > 0:
		f.Level = backend.Warning
		f.Detail = fmt.Sprintf("not allowed under %s: %s: those who wait for a lease are not told that it is free, and ask once a second", s.prefix, strings.Join(quiet, ", "))
		f.Fix = s.aclRule()
	}
	return f
}

// replicated reports whether the server of a name has replicas.
func (s *Store) replicated(ctx context.Context, name string) (bool, error) {
	text, err := within(ctx, s, func(ctx context.Context) (string, error) {
		client := s.client
		if cluster, ok := client.(*goredis.ClusterClient); ok {
			record, _ := s.keys(name)
			node, err := cluster.MasterForKey(ctx, record)
			if err != nil {
				return "", err
			}
			client = node
		}
		return client.Info(ctx, "replication").Result()
	})
	if err != nil {
		return false, err
	}
	return number(fields(text)["connected_slaves"]) > 0, nil
}

// fields reads lines of name:value.
func fields(text string) map[string]string {
	all := make(map[string]string)
	for line := range strings.Lines(text) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			all[key] = value
		}
	}
	return all
}
