package redis_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/integration/internal/scene"
	"github.com/leasehold/leasehold/integration/internal/servers"
)

// TestURL: each form of a URL opens a store that works, at the right place.
func TestURL(t *testing.T) {
	t.Parallel()
	single, cluster := plain(t), servers.SharedRedisCluster(t)
	failover := mine(t, servers.WithReplicas(1), servers.WithSentinel())
	under := prefix(t)
	addr, nodes, sentinels := single.Addrs()[0], cluster.Addrs(), failover.Sentinels()
	t.Cleanup(func() { wipe(single, under); wipe(cluster, under) })
	and := func(text string) string { return text + "prefix=" + url.QueryEscape(under) }
	for form, u := range map[string]string{
		"one server":                   and("redis://" + addr + "?"),
		"a slash":                      and("redis://" + addr + "/?"),
		"a database":                   and("redis://" + addr + "/0?"),
		"another database":             and("redis://" + addr + "/7?"),
		"a database by parameter":      and("redis://" + addr + "?db=7&"),
		"cluster=false":                and("redis://" + addr + "/0?cluster=false&"),
		"a user that needs none":       and("redis://default@" + addr + "/0?"),
		"parameters of the client's":   and("redis://" + addr + "/0?pool_size=2&read_timeout=2s&write_timeout=2s&dial_timeout=2s&max_retries=1&min_retry_backoff=1ms&client_name=me&protocol=2&"),
		"our parameters":               and("redis://" + addr + "/0?retention=90m&"),
		"one node of a cluster":        and("redis://" + nodes[0] + "?cluster=true&"),
		"addr":                         and("redis://" + nodes[0] + "?addr=" + nodes[1] + "&addr=" + nodes[2] + "&"),
		"several hosts":                and("redis://" + strings.Join(nodes, ",") + "?"),
		"several hosts, a slash":       and("redis://" + strings.Join(nodes, ",") + "/?cluster=true&"),
		"of a cluster one is down":     and("redis://127.0.0.1:1," + strings.Join(nodes, ",") + "?"),
		"Sentinel":                     and("redis://" + sentinels[0] + "/0?master_name=leasehold&"),
		"Sentinels":                    and("redis://" + strings.Join(sentinels, ",") + "/0?master_name=leasehold&"),
		"Sentinels by addr":            and("redis://" + sentinels[0] + "?master_name=leasehold&addr=" + sentinels[1] + "&"),
		"Sentinels, the first is down": and("redis://127.0.0.1:1," + strings.Join(sentinels, ",") + "/0?master_name=leasehold&"),
		"replicas":                     and("redis://" + sentinels[0] + "/0?master_name=leasehold&replicas=1&replicas-timeout=900ms&"),
	} {
		t.Run(form, func(t *testing.T) {
			t.Parallel()
			s := open(t, u)
			if got := s.Traits().Namespace; got != under {
				t.Errorf("the prefix is %q, want %q", got, under)
			}
			name := strings.ReplaceAll(form, " ", "-")
			rec := scene.Grant(t, s, scene.Claim(name, "a", time.Minute))
			rec = scene.Renew(t, s, rec)
			if got := scene.Get(t, s, name); !got.SameTenure(rec) {
				t.Errorf("read is %v", got)
			}
			found := false
			for rec, err := range backend.List(t.Context(), s, name) {
				if err != nil {
					t.Error(err)
				}
				found = found || rec.Name == name
			}
			if !found {
				t.Error("it is not listed")
			}
			if strings.Contains(u, "retention=90m") {
				if ttl := single.Node(0).PTTL(t.Context(), under+"{"+name+"}").Val(); ttl < 90*time.Minute || ttl > 91*time.Minute {
					t.Errorf("the record is kept for %v, want 91m", ttl)
				}
			}
			if seven := client(t, single).Do(t.Context(), "config", "get", "databases").Err(); seven == nil && (form == "another database" || form == "a database by parameter") {
				if n := single.Node(0).Exists(t.Context(), under+"{"+name+"}").Val(); n != 0 {
					t.Error("it is in database 0")
				}
			}
			scene.Release(t, s, rec)
		})
	}
	t.Run("replicas that are not there", func(t *testing.T) {
		t.Parallel()
		s := open(t, and("redis://"+addr+"/0?replicas=1&replicas-timeout=100ms&"))
		_, err := s.Acquire(t.Context(), scene.Claim("lonely", "a", time.Minute))
		if err == nil || backend.Definite(err) || !strings.Contains(err.Error(), "0 of 1 replicas") {
			t.Errorf("granted without a replica: %v", err)
		}
	})
	t.Run("a database there is not", func(t *testing.T) {
		t.Parallel()
		says(t, open(t, and("redis://"+addr+"/99?")), backend.ErrInvalid, "database", addr)
	})
}

// TestWrongURL: what is wrong with a URL is said when it is opened, and nothing
// secret of it.
func TestWrongURL(t *testing.T) {
	t.Parallel()
	for u, word := range map[string]string{
		"redis://":                                "a Redis URL is",
		"redis:///0":                              "a Redis URL is",
		"redis:a":                                 "a Redis URL is",
		"redis://a#b":                             "%23",
		"redis://a/jobs":                          "database",
		"redis://a/0/1":                           "a Redis URL is",
		"redis://a/-1":                            "database",
		"redis://a?nonsense=1":                    "nonsense",
		"redis://a?prefix=a&prefix=b":             `"prefix" twice`,
		"redis://a?prefix=%7B%7D":                 "hash tag",
		"redis://a?prefix=%ff":                    "UTF-8",
		"redis://a?prefix=%00":                    "NUL",
		"redis://a?retention=":                    "retention",
		"redis://a?retention=1":                   "24h",
		"redis://a?retention=1ms":                 "retention",
		"redis://a?retention=9999999h":            "retention",
		"redis://a?replicas=-1":                   "replicas",
		"redis://a?replicas=many":                 "replicas",
		"redis://a?replicas=1&replicas-timeout=x": "500ms",
		"redis://a?replicas-timeout=1s":           "without replicas",
		"redis://a?cluster=perhaps":               "neither true nor false",
		"redis://a,b?cluster=false":               "several addresses",
		"redis://a?cluster=true&master_name=m":    "Sentinels",
		"redis://a?read_timeout=soon":             "read_timeout",
		"redis://a?pool_size=x":                   "pool_size",
		"redis://a?cacert=/c":                     "rediss://",
		"redis://a?server-name=x":                 "rediss://",
		"rediss://a?cacert=/no/such/file":         "/no/such/file",
		"rediss://a?cert=/no/such/file":           "both cert and key",
		"rediss://a?key=/no/such/file":            "both cert and key",
		"rediss://a?cert=/no/such&key=/file":      "/no/such",
		"rediss://a?cacert=/etc/hostname":         "no certificate",
	} {
		s, err := backend.Open(t.Context(), u)
		if err == nil {
			s.Close()
			t.Errorf("%s is opened", u)
			continue
		}
		if !errors.Is(err, backend.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", u, err)
		}
		readable(t, u, err, word)
	}
}

// secrets are passwords as people have them, and put them into URLs.
var secrets = []string{"s3cret", "s3/cret", "s3?cret", "s3#cret", "s3@cret", "s3:cret", "s3%cret", "s3,cret", "s3 cret", "s3&cret=", "s3[cret]", "12/s3cret", "12?s3cret", "12#s3cret", "/s3cret", "s3cret@"}

// leaks tells whether a text has something of a password in it.
func leaks(text string) bool {
	return slices.ContainsFunc([]string{"s3", "cret"}, func(part string) bool { return strings.Contains(text, part) })
}

// TestSecretURL: no password is repeated by an error, whatever is in it, and however
// it was written.
func TestSecretURL(t *testing.T) {
	t.Parallel()
	for _, secret := range secrets {
		for _, format := range []string{
			"redis://:%s@127.0.0.1:1/0", "redis://me:%s@127.0.0.1:1/0?prefix=a", "redis://%s@127.0.0.1:1/0", "rediss://me:%s@127.0.0.1:1?skip_verify=true",
			"redis://me:%s@127.0.0.1:1,127.0.0.1:2/0", "redis://me:%s@127.0.0.1:1?addr=127.0.0.1:2", "redis://me:%s@127.0.0.1:1/0?master_name=m",
			"redis://127.0.0.1:1/0?master_name=m&username=me&password=%s", "redis://me:%s@127.0.0.1:1/0?nonsense=1", "redis://me:%s@127.0.0.1:1/0?read_timeout=soon",
			"redis://me:%s@127.0.0.1:x/0", "redis://me:%s@127.0.0.1:1/jobs", "redis://me:%s@", "redis:me:%s@127.0.0.1:1", "redis://me:%s@127.0.0.1:1/0?retention=x",
			"redis://127.0.0.1:1/0?sentinel_password=%s", "redis://127.0.0.1:1/0?password=%s", "redis://127.0.0.1:1?addr=me:%s@127.0.0.1:2",
		} {
			for _, written := range []string{secret, url.QueryEscape(secret), url.PathEscape(secret)} {
				u := fmt.Sprintf(format, written)
				if _, query, _ := strings.Cut(format, "?"); strings.Contains(query, "%s") && strings.ContainsAny(written, "&") {
					continue // what follows is another parameter, of which errors must tell
				}
				s, err := backend.Open(t.Context(), u)
				if err != nil {
					if !errors.Is(err, backend.ErrInvalid) {
						t.Errorf("%s: %v", u, err)
					}
					if leaks(err.Error()) {
						t.Errorf("%s: %v", u, err)
					}
					continue
				}
				s.Close()
			}
		}
	}
}

// TestSecretCall: nor does an error of a call.
func TestSecretCall(t *testing.T) {
	t.Parallel()
	for _, format := range []string{"redis://me:%s@127.0.0.1:1/0", "redis://me:%s@127.0.0.1:1?cluster=true", "redis://me:%s@127.0.0.1:1?master_name=m&username=me&password=%[1]s", "rediss://:%s@127.0.0.1:1/0"} {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			s := open(t, fmt.Sprintf(format, url.QueryEscape("s3/?#@cret")))
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			for call, err := range everyCall(ctx, s) {
				if err == nil || leaks(err.Error()) {
					t.Errorf("%s: %v", call, err)
				}
			}
			for f := range backend.Examine(t.Context(), s) {
				if leaks(f.Detail + f.Fix) {
					t.Errorf("%v", f)
				}
			}
		})
	}
}

// FuzzURL: whatever a URL is, to open it does not panic, sends nothing, and tells
// nothing of the password.
func FuzzURL(f *testing.F) {
	for _, secret := range secrets {
		f.Add("redis://me:", secret, "@127.0.0.1:1/0?prefix=a")
		f.Add("rediss://", secret, "@127.0.0.1:1,127.0.0.1:2?cluster=true")
	}
	f.Add("redis://127.0.0.1:1?master_name=m&password=", "s3cret", "&addr=127.0.0.1:2")
	f.Fuzz(func(t *testing.T, before, secret, after string) {
		// What is searched for must not be there for another reason.
		const mark = "s3cret"
		if leaks(before) || leaks(after) || strings.ContainsAny(secret, "\x00") {
			t.Skip()
		}
		scheme := "redis"
		if strings.HasPrefix(before, "rediss:") {
			scheme = "rediss"
		}
		_, rest, _ := strings.Cut(before, ":")
		// Files are not for fuzzing, and a name of a parameter, or a value of one that is
		// wrong, is repeated.
		if strings.ContainsAny(rest, "?=&") || strings.ContainsAny(after, "?=&") && !strings.Contains(after, "@") {
			t.Skip()
		}
		s, err := backend.Open(t.Context(), scheme+":"+rest+mark+secret+after)
		if err == nil {
			s.Close()
			return
		}
		// It may pass for a part of a host, or of a path; an @ behind it says that it is none.
		if strings.Contains(after, "@") && strings.HasPrefix(rest, "//") && strings.Contains(rest, ":") && strings.Contains(err.Error(), mark) {
			t.Errorf("%q: %v", scheme+":"+rest+mark+secret+after, err)
		}
	})
}
