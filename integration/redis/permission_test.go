package redis_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/conformance"
	"github.com/leasehold/leasehold/integration/internal/scene"
	"github.com/leasehold/leasehold/integration/internal/servers"
	"github.com/leasehold/leasehold/lease"
)

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

// with is a URL with other parameters; "" removes one.
func with(rawURL string, parameters ...string) string {
	u, err := url.Parse(rawURL)
	if err != nil {
		panic(err)
	}
	q := u.Query()
	for pair := range slices.Chunk(parameters, 2) {
		if q.Del(pair[0]); pair[1] != "" {
			q.Set(pair[0], pair[1])
		}
	}
	u.RawQuery = q.Encode()
	return u.String()
}

// everyCall makes each kind of call, all at once, on a name nobody holds.
func everyCall(ctx context.Context, s backend.Store) map[string]error {
	rec := backend.Record{Name: "job", Holder: "a", Token: 1, Revision: "1", Duration: 10 * time.Second}
	calls := map[string]func() error{
		"get":     func() error { _, err := s.Get(ctx, "job"); return err },
		"renew":   func() error { _, err := s.Renew(ctx, rec); return err },
		"release": func() error { return s.Release(ctx, rec) },
		"acquire": func() error { _, err := s.Acquire(ctx, scene.Claim("job", "a", 10*time.Second)); return err },
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
	saysBut(t, s, "", class, words...)
}

// saysBut leaves one call out.
func saysBut(t *testing.T, s backend.Store, but string, class error, words ...string) {
	t.Helper()
	const patience = 4 * time.Second
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	began := time.Now()
	for call, err := range everyCall(ctx, s) {
		switch {
		case call == but:
			continue
		case err == nil:
			t.Errorf("%s succeeded", call)
			continue
		case class == errAny:
		case class != nil && !errors.Is(err, class):
			t.Errorf("%s: %v; want %v", call, err, class)
		case class == nil && backend.Definite(err):
			t.Errorf("%s: %v: is definite, and it may be different the next moment", call, err)
		}
		readable(t, call, err, words...)
		if call == "acquire" {
			t.Log(err)
		}
	}
	if took := time.Since(began); took > patience+2*time.Second {
		t.Errorf("it took %v, the context %v", took, patience)
	}
}

// readable checks an error's text.
func readable(t testing.TB, call string, err error, words ...string) {
	t.Helper()
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%s: %v\ndoes not say %q", call, err, word)
		}
	}
	if len(err.Error()) > 1000 || strings.Contains(err.Error(), "%!") || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("%s: nobody should read this: %v", call, err)
	}
}

// court is a Redis that lets nobody in without a password, as somebody sees it who
// may do everything.
type court struct {
	*testing.T
	r      *servers.Redis
	prefix string
}

func newCourt(t *testing.T, opts ...servers.RedisOption) *court {
	t.Helper()
	return &court{t, mine(t, append(opts, servers.RedisWithPassword())...), prefix(t)}
}

// within is the court of a subtest, under a prefix of its own.
func (c *court) within(t *testing.T) *court { return &court{t, c.r, prefix(t)} }

func (c *court) must(err error) {
	c.Helper()
	if err != nil {
		c.Fatal(err)
	}
}

// do runs a command on every node.
func (c *court) do(args ...any) {
	c.Helper()
	for i := range c.r.Nodes() {
		if err := c.r.Node(i).Do(c.Context(), args...).Err(); err != nil {
			c.Fatalf("%v: %v", args, err)
		}
	}
}

// user makes a user by a rule, or changes one, and returns the URL of a store.
func (c *court) user(name string, rule ...string) (storeURL string) {
	c.Helper()
	args := []any{"acl", "setuser", name, "on", ">s3cret"}
	for _, r := range rule {
		args = append(args, r)
	}
	c.do(args...)
	return c.login(name, "s3cret")
}

// login is the store's URL with another user, "" for none.
func (c *court) login(name, password string) string {
	c.Helper()
	u, err := url.Parse(c.r.URL(c.prefix))
	c.must(err)
	if len(c.r.Sentinels()) > 0 {
		return with(u.String(), "username", name, "password", password)
	}
	if u.User = nil; name != "" || password != "" {
		u.User = url.UserPassword(name, password)
	}
	return u.String()
}

// admin is a store that may do everything.
func (c *court) admin() backend.Store { return open(c, c.r.URL(c.prefix)) }

// forClusters is what the documentation says that a cluster's client needs further.
var forClusters = []string{"+cluster|slots"}

// forSeals is what it says that whoever writes seals needs further, where there are
// no replicas.
var forSeals = []string{"+info"}

// rule is the one that a store tells whoever lacks it, for its prefix, and for seals.
func (c *court) rule() (rule []string) {
	c.Helper()
	bare := []string{"nopass"}
	if c.r.Options().IsClusterMode {
		bare = forClusters
	}
	s := open(c, c.user("bare", bare...))
	_, err := s.Get(c.Context(), "job")
	if !errors.Is(err, backend.ErrDenied) {
		c.Fatalf("a user who may do nothing: %v", err)
	}
	_, text, ok := strings.Cut(err.Error(), "ACL SETUSER <user> ")
	text, _, _ = strings.Cut(text, ": ")
	if !ok {
		c.Fatalf("it does not say which rule is needed: %v", err)
	}
	for _, field := range strings.Fields(text) {
		rule = append(rule, strings.Trim(field, "'"))
	}
	rule = append(rule, forSeals...)
	return rule
}

// lacking is a rule without one of its commands.
func lacking(rule []string, command string) []string {
	return slices.DeleteFunc(slices.Clone(rule), func(r string) bool { return r == "+"+command })
}

func commands(rule []string) (all []string) {
	for _, r := range rule {
		if command, ok := strings.CutPrefix(r, "+"); ok {
			all = append(all, command)
		}
	}
	return all
}

func (c *court) denied(what string, err error, words ...string) {
	c.Helper()
	if !errors.Is(err, backend.ErrDenied) {
		c.Errorf("%s: %v; want ErrDenied", what, err)
		return
	}
	readable(c, what, err, words...)
}

// everything does all that there is to do with a store, and returns what fails. s is
// of the user in question, other of somebody who may do everything.
func (c *court) everything(s, other backend.Store) (failed map[string]error) {
	failed = make(map[string]error)
	ctx, cancel := context.WithTimeout(c.Context(), scene.Patience)
	defer cancel()
	admin := client(c, c.r)
	note := func(what string, err error) bool {
		if err != nil && failed[what] == nil {
			failed[what] = err
		}
		return err == nil
	}
	grant := func(claim backend.Claim) (backend.Record, bool) {
		rec, err := s.Acquire(ctx, claim)
		return rec, note("acquire "+claim.Name, err)
	}
	claim := func(name string, d time.Duration) backend.Claim { return scene.Claim(name, "a", d) }

	// A tenure, its refusals, its end; and a script that the server has forgotten.
	if rec, ok := grant(claim("plain", time.Minute)); ok {
		_, err := s.Renew(ctx, rec)
		note("renew", err)
		_, err = s.Get(ctx, "plain")
		note("get", err)
		if _, err := s.Acquire(ctx, claim("plain", time.Minute)); !errors.Is(err, backend.ErrHeld) {
			note("refusal", fmt.Errorf("a second claim: %w", err))
		}
		_, err = s.Renew(ctx, backend.Record{Name: "plain", Holder: rec.Holder, Token: rec.Token})
		note("renew by token", err)
		c.do("script", "flush")
		_, err = s.Get(ctx, "plain")
		note("get after script flush", err)
		if note("release", s.Release(ctx, rec)) {
			if err := s.Release(ctx, rec); !errors.Is(err, backend.ErrLost) {
				note("second release", fmt.Errorf("it says: %v", err))
			}
		}
		_, _ = grant(claim("plain", time.Minute))
	}
	// With all that a claim can bring, a seal, and a floor.
	full := claim("full", time.Minute)
	full.Metadata = map[string]string{"team": "blue"}
	full.Attempt = ""
	if rec, ok := grant(full); ok {
		seal := claim("full", backend.Forever)
		seal.Over, seal.Seal = rec.Revision, &backend.Seal{To: "elsewhere", Epoch: 1}
		if rec, ok := grant(seal); ok {
			_, err := s.Renew(ctx, rec)
			note("renew a seal", err)
			back := claim("full", time.Minute)
			back.Over, back.MinToken = rec.Revision, rec.Token+1e6
			if rec, ok := grant(back); ok {
				note("vacate", s.Release(ctx, rec))
			}
		}
	}
	// Expiry.
	if rec, err := other.Acquire(ctx, claim("brief", 10*time.Millisecond)); note("admin", err) {
		for err == nil && !rec.Expired && ctx.Err() == nil {
			rec, err = s.Get(ctx, "brief")
			note("get expired", err)
		}
		if err == nil {
			note("release expired", s.Release(ctx, rec))
		}
	}
	if rec, err := other.Acquire(ctx, claim("brief", 10*time.Millisecond)); note("admin", err) {
		scene.Pass(c, 20*time.Millisecond)
		if rec, ok := grant(claim("brief", time.Minute)); ok {
			note("release", s.Release(ctx, rec))
		}
		_, err = s.Renew(ctx, rec)
		if !errors.Is(err, backend.ErrLost) {
			note("renew the lost", fmt.Errorf("it says: %v", err))
		}
	}
	// What people have done to records.
	for name, spoil := range map[string][]any{
		"a string":     {"set", c.prefix + "{spoilt}", "x"},
		"a list":       {"rpush", c.prefix + "{spoilt}", "x"},
		"no token":     {"hset", c.prefix + "{spoilt}", "a", "b"},
		"a new format": {"hset", c.prefix + "{spoilt}", "format", "2", "token", "1", "holder", "b"},
	} {
		note("admin", admin.Del(ctx, c.prefix+"{spoilt}", c.prefix+"{spoilt}:alive").Err())
		note("admin", admin.Do(ctx, spoil...).Err())
		_, err := s.Get(ctx, "spoilt")
		var corrupt *backend.CorruptError
		if !errors.As(err, &corrupt) {
			note("get "+name, fmt.Errorf("it says: %v", err))
			continue
		}
		force := claim("spoilt", time.Minute)
		force.Over = corrupt.Revision
		if rec, ok := grant(force); ok {
			note("release spoilt", s.Release(ctx, rec))
		}
	}
	// The last token alone, with a strange field.
	if rec, ok := grant(claim("edited", time.Minute)); ok {
		note("admin", admin.HSet(ctx, c.prefix+"{edited}", "note", "x").Err())
		note("release edited", s.Release(ctx, rec))
		if rec, ok := grant(claim("edited", time.Minute)); ok {
			note("release edited", s.Release(ctx, rec))
		}
	}
	// Telling others, and being told.
	rec, err := other.Acquire(ctx, claim("told", time.Minute))
	note("admin", err)
	watched, stop := c.watch(s, "told")
	if _, err := c.next(watched); note("watch", err) {
		scene.Pass(c, 300*time.Millisecond) // its subscription may be later than its first look
		note("admin", other.Release(ctx, rec))
		released := time.Now()
		_, err := c.next(watched)
		if took := time.Since(released); note("watch", err) && took > 500*time.Millisecond {
			note("watch", fmt.Errorf("told after %v", took))
		}
	}
	// What is not watched any more is not listened to any more, on a connection that stays.
	beside, end := c.watch(s, "beside")
	_, _ = c.next(beside)
	stop()
	for began := time.Now(); c.listeners("told") > 0; scene.Pass(c, 20*time.Millisecond) {
		if time.Since(began) > 500*time.Millisecond {
			note("end of a watch", errors.New("it is still listened to"))
			break
		}
	}
	end()
	told, stop := c.watch(other, "tells")
	defer stop()
	_, err = c.next(told)
	note("admin", err)
	scene.Pass(c, 300*time.Millisecond)
	if _, ok := grant(claim("tells", time.Minute)); ok {
		granted := time.Now()
		_, err := c.next(told)
		if took := time.Since(granted); note("admin", err) && took > 500*time.Millisecond {
			note("telling", fmt.Errorf("told after %v", took))
		}
	}
	for _, err := range backend.List(ctx, s, "") {
		note("list", err)
	}
	return failed
}

// watch watches a name until it is stopped.
func (c *court) watch(s backend.Store, name string) (records chan backend.Record, stop context.CancelFunc) {
	ctx, stop := context.WithCancel(c.Context())
	records = make(chan backend.Record, 100)
	go func() {
		for rec, err := range backend.Watch(ctx, s, name) {
			if err != nil {
				rec = backend.Record{Name: "failed", Holder: err.Error()}
			}
			records <- rec
		}
	}()
	return records, stop
}

// next is the next record of a watch.
func (c *court) next(records chan backend.Record) (backend.Record, error) {
	select {
	case rec := <-records:
		if rec.Name == "failed" {
			return rec, errors.New(rec.Holder)
		}
		return rec, nil
	case <-time.After(2 * time.Second):
		return backend.Record{}, errors.New("nothing is told")
	}
}

// listeners is how many connections listen to a name.
func (c *court) listeners(name string) (n int64) {
	c.Helper()
	channel := c.prefix + "{" + name + "}"
	for i := range c.r.Nodes() {
		m, err := c.r.Node(i).PubSubShardNumSub(c.Context(), channel).Result()
		c.must(err)
		n += m[channel]
	}
	return n
}

// dispensable are commands of the rule without which everything works, less well.
var dispensable = map[string]string{
	"hget": "a release is slower",
	"hlen": "a release is slower",
	"hdel": "a release is slower",
}

func names(failed map[string]error) string {
	var all []string
	for what := range failed {
		all = append(all, what)
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}

// TestRule: the rule that errors and the documentation tell is enough for
// everything, and each command in it for something.
func TestRule(t *testing.T) {
	t.Parallel()
	for how, opts := range map[string][]servers.RedisOption{"single": nil, "cluster": {servers.InCluster()}} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			c := newCourt(t, opts...)
			rule := c.rule()
			t.Log(strings.Join(rule, " "))
			t.Run("is enough", func(t *testing.T) {
				c := c.within(t)
				s := open(t, c.user("worker", c.rule()...))
				for what, err := range c.everything(s, c.admin()) {
					t.Errorf("%s: %v", what, err)
				}
			})
			t.Run("conformance", func(t *testing.T) {
				c := c.within(t)
				u := c.user("conformant", c.rule()...)
				conformance.Run(t, func(tb testing.TB) backend.Store { return open(tb, u) }, conformance.WithDuration(time.Second))
			})
			for _, command := range commands(rule) {
				t.Run("without "+command, func(t *testing.T) {
					t.Parallel()
					c := c.within(t)
					name := strings.ReplaceAll("without-"+command, "|", "-")
					failed := c.everything(open(t, c.user(name, lacking(c.rule(), command)...)), c.admin())
					t.Logf("fails: %s", names(failed))
					for what, err := range failed {
						c.refused(what, err)
					}
					if len(failed) == 0 && dispensable[command] == "" {
						t.Errorf("the rule has +%s, and everything works without", command)
					}
				})
			}
		})
	}
}

// TestRuleReplicas: whoever waits for replicas, as with seals everybody does where
// there are some, needs one command more, and is told which.
func TestRuleReplicas(t *testing.T) {
	t.Parallel()
	c := newCourt(t, servers.WithReplicas(1))
	seal := scene.Claim("sealed", "a", backend.Forever)
	seal.Seal = &backend.Seal{To: "elsewhere", Epoch: 1}
	less, all := c.user("less", c.rule()...), c.user("all", append(c.rule(), "+wait")...)
	s := open(t, less)
	works(t, s)
	_, err := s.Acquire(t.Context(), seal)
	if err == nil {
		t.Error("a seal is written, and nobody knows whether replicas have it")
	} else {
		readable(t, "a seal", err, "'wait'")
	}
	_, err = open(t, with(less, "replicas", "1")).Acquire(t.Context(), scene.Claim("job", "a", time.Minute))
	if err == nil {
		t.Error("a lease is granted, and nobody knows whether replicas have it")
	} else {
		readable(t, "acquire", err, "'wait'")
	}
	s = open(t, with(all, "replicas", "1", "replicas-timeout", "3s")) // a new replica is slow at first
	works(t, s)
	if rec, err := c.admin().Get(t.Context(), "sealed"); err == nil { // by the one who could not know
		scene.Grant(t, s, backend.Claim{Name: "sealed", Holder: "a", Duration: time.Minute, Over: rec.Revision})
	} else {
		scene.Grant(t, s, seal)
	}
}

// refused checks an error that a server has given: one of permissions says so, and
// what is needed.
func (c *court) refused(what string, err error) {
	c.Helper()
	text := err.Error()
	if strings.Contains(text, "The user executing the script") || strings.Contains(text, "ACL failure in script") || strings.Contains(text, "NOPERM") {
		readable(c, what, err, "ACL SETUSER")
	}
	if strings.Contains(text, "%!") {
		c.Errorf("%s: %v", what, err)
	}
}

// dump is what a name's keys hold, without what passes by itself.
func (c *court) dump(name string) string {
	c.Helper()
	admin := client(c, c.r)
	record := c.prefix + "{" + name + "}"
	fields, err := admin.HGetAll(c.Context(), record).Result()
	c.must(err)
	alive, err := admin.Get(c.Context(), record+":alive").Result()
	if !errors.Is(err, goredis.Nil) {
		c.must(err)
	}
	var ttls []bool
	for _, key := range []string{record, record + ":alive"} {
		ttl, err := admin.PTTL(c.Context(), key).Result()
		c.must(err)
		ttls = append(ttls, ttl > 0)
	}
	return fmt.Sprintf("%v %q %v", fields, alive, ttls) // maps are printed in order
}

// TestHalfDone: what is not allowed to write something leaves nothing behind that
// is half done, whichever it is.
func TestHalfDone(t *testing.T) {
	t.Parallel()
	c := newCourt(t)
	rule := c.rule()
	for _, command := range []string{"set", "del", "hset", "hdel", "pexpire"} {
		if !slices.Contains(rule, "+"+command) {
			continue
		}
		t.Run(command, func(t *testing.T) {
			t.Parallel()
			c := c.within(t)
			ctx, admin := t.Context(), c.admin()
			s := open(t, c.user("lacks-"+command, lacking(c.rule(), command)...))
			long := func(name string) backend.Claim { return scene.Claim(name, "a", time.Minute) }
			held := func(name string) backend.Record { return scene.Grant(t, admin, long(name)) }
			floored := func(name string) backend.Record {
				claim := long(name)
				claim.MinToken = 1
				return scene.Grant(t, admin, claim)
			}
			sealed := func(name string) backend.Record {
				claim := scene.Claim(name, "a", backend.Forever)
				claim.Seal = &backend.Seal{To: "elsewhere", Epoch: 1}
				return scene.Grant(t, admin, claim)
			}
			expired := func(name string) backend.Record {
				scene.Grant(t, admin, scene.Claim(name, "a", 10*time.Millisecond))
				var rec backend.Record
				scene.Eventually(t, "it expires", func() bool { rec = scene.Get(t, admin, name); return rec.Expired })
				return rec
			}
			released := func(name string) backend.Record {
				rec := held(name)
				scene.Release(t, admin, rec)
				return rec
			}
			vacant := func(name string) backend.Record {
				rec := floored(name)
				scene.Release(t, admin, rec)
				return rec
			}
			none := func(name string) backend.Record { return backend.Record{Name: name} }
			edited := func(name string) backend.Record {
				rec := held(name)
				c.must(client(t, c.r).HSet(ctx, c.prefix+"{"+name+"}", "note", "x", "format", "2").Err())
				return rec
			}
			acquire := func(rec backend.Record) error { _, err := s.Acquire(ctx, long(rec.Name)); return err }
			over := func(rec backend.Record) error {
				claim := long(rec.Name)
				claim.Over = rec.Revision
				_, err := s.Acquire(ctx, claim)
				return err
			}
			floor := func(rec backend.Record) error {
				claim := long(rec.Name)
				claim.MinToken = rec.Token + 1
				_, err := s.Acquire(ctx, claim)
				return err
			}
			renew := func(rec backend.Record) error { _, err := s.Renew(ctx, rec); return err }
			release := func(rec backend.Record) error { return s.Release(ctx, rec) }
			for what, try := range map[string]struct {
				state func(name string) backend.Record
				call  func(rec backend.Record) error
			}{
				"acquire what is free":  {none, acquire},
				"acquire the released":  {released, acquire},
				"acquire the expired":   {expired, acquire},
				"acquire the vacant":    {vacant, acquire},
				"acquire with a floor":  {expired, floor},
				"acquire over a tenure": {held, over},
				"acquire over a seal":   {sealed, over},
				"renew":                 {held, renew},
				"renew with a floor":    {floored, renew},
				"renew the edited":      {edited, renew},
				"release":               {held, release},
				"release with a floor":  {floored, release},
				"release the expired":   {expired, release},
				"release the edited":    {edited, release},
				"release what is lost":  {released, release},
			} {
				rec := try.state(what)
				before := c.dump(what)
				err := try.call(rec)
				after := c.dump(what)
				t.Logf("%s: %v", what, err)
				switch {
				case err == nil || errors.Is(err, backend.ErrLost):
				case before != after:
					t.Errorf("%s, refused: %v\nhas made of %s\n%s", what, err, before, after)
				default:
					c.refused(what, err)
				}
			}
		})
	}
}

// TestOthers: a user of one prefix can neither read nor change what is under
// another, however similar.
func TestOthers(t *testing.T) {
	t.Parallel()
	c := newCourt(t)
	for mine, others := range map[string][]string{
		"jobs:":      {"jobs", "job", "jobs:x:", "leasehold:"},
		"a*b?[c]\\:": {"axb?[c]\\:", "a*bx[c]\\:", "a*b?c\\:", "a*b?[c]:"},
		"{tag}:":     {"{tag}", "{tag}:x"},
	} {
		under := &court{t, c.r, mine}
		u := under.user("of-"+strconv.Itoa(len(mine)), under.rule()...)
		s := open(t, u)
		for what, err := range under.everything(s, under.admin()) {
			t.Errorf("under %s: %s: %v", mine, what, err)
		}
		for _, other := range others {
			admin := open(t, with(c.r.URL(other)))
			rec := scene.Grant(t, admin, scene.Claim("job", "somebody", time.Minute))
			stranger := open(t, with(u, "prefix", other))
			says(t, stranger, backend.ErrDenied, "ACL SETUSER")
			c.denied("renew", func() error { _, err := stranger.Renew(t.Context(), rec); return err }())
			c.denied("release", stranger.Release(t.Context(), rec))
			if now := scene.Get(t, admin, "job"); !now.SameTenure(rec) || !now.Live() {
				t.Errorf("under %s somebody of %s made %v of %v", other, mine, now, rec)
			}
			watched, stop := c.watch(stranger, "job")
			if got, err := c.next(watched); err == nil {
				t.Errorf("a watch under %s tells %v", other, got)
			} else {
				readable(t, "watch", err, "permission denied")
			}
			stop()
		}
	}
}

// TestLogin: what is told whoever is not let in.
func TestLogin(t *testing.T) {
	t.Parallel()
	c := newCourt(t)
	name, _ := c.r.User()
	u := c.user("worker", c.rule()...)
	c.must(c.r.Node(0).Do(t.Context(), "acl", "setuser", "off", "off", ">s3cret").Err())
	for what, try := range map[string]struct{ url, word string }{
		"no password":      {c.login("", ""), "wants a password"},
		"a wrong password": {c.login(name, "s3cret"), "does not accept the user name or the password"},
		"nobody":           {c.login("nobody", "s3cret"), "does not accept the user name or the password"},
		"a password alone": {c.login("", "s3cret"), "does not accept the user name or the password"},
		"switched off":     {c.login("off", "s3cret"), "does not accept the user name or the password"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			s := open(t, try.url)
			says(t, s, backend.ErrDenied, try.word, c.r.Addrs()[0])
			ctx, cancel := context.WithTimeout(t.Context(), scene.Patience)
			defer cancel()
			for _, err := range backend.Watch(ctx, s, "job") {
				c.denied("watch", err, try.word)
			}
			l := scene.Lease(t, s, "job", time.Minute)
			c.denied("await", l.Await(ctx), try.word) // waiting does not help
			if ctx.Err() != nil {
				t.Error("it goes on")
			}
		})
	}
	t.Run("another database", func(t *testing.T) {
		t.Parallel()
		other := strings.Replace(u, "/0?", "/1?", 1)
		says(t, open(t, other), backend.ErrDenied, "select")
		c := c.within(t)
		u := c.user("selecting", append(c.rule(), "+select")...)
		s := open(t, strings.Replace(u, "/0?", "/1?", 1))
		scene.Release(t, s, scene.Grant(t, s, scene.Claim("job", "a", time.Minute)))
	})
}

// TestLostPermission: what becomes of a live holder whose user loses what it had.
func TestLostPermission(t *testing.T) {
	t.Parallel()
	const duration = 2 * time.Second
	c := newCourt(t)
	for name, take := range map[string]struct {
		away []any
		word string
	}{
		"commands":     {[]any{"setuser", "commands", "nocommands"}, "ACL SETUSER"},
		"one-command":  {[]any{"setuser", "one-command", "-pexpire"}, "ACL SETUSER"},
		"keys":         {[]any{"setuser", "keys", "resetkeys"}, "ACL SETUSER"},
		"user-deleted": {[]any{"deluser", "user-deleted"}, "does not accept"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := c.within(t)
			s := open(t, c.user(name, c.rule()...))
			failed := make(chan error, 100)
			l := scene.Lease(t, s, "job", duration, lease.WithObserver(func(e lease.Event) {
				if e.Kind == lease.EventRenewFailed {
					select {
					case failed <- e.Err:
					default:
					}
				}
			}))
			h := scene.Hold(t, l)
			scene.Pass(t, duration) // it was renewed
			if len(failed) > 0 || !h.Alive() {
				t.Fatalf("it is not renewed: %v", <-failed)
			}
			c.do(append([]any{"acl"}, take.away...)...)
			err := scene.Await(t, "a renewal fails", failed)
			if name == "one-command" { // the script had begun
				readable(t, "renew", err, take.word)
			} else {
				c.denied("renew", err, take.word)
			}
			if !l.Held() {
				t.Error("a renewal that was refused has ended the tenure, which lasts")
			}
			scene.Await(t, "the tenure ends", h.Ended)
			if rec, err := c.admin().Get(t.Context(), "job"); err == nil && rec.Live() && rec.Remaining > duration/2 {
				t.Errorf("the tenure goes on for %v when its holder has stopped", rec.Remaining)
			}
			_, err = s.Acquire(t.Context(), scene.Claim("other", "a", duration))
			c.denied("acquire", err, take.word)
		})
	}
}

// TestUnable: what servers say that cannot, or may not, do what is asked is passed
// on with what it means, and of the right class: whoever waits goes on to, where
// waiting helps.
func TestUnable(t *testing.T) {
	t.Parallel()

	t.Run("replica", func(t *testing.T) {
		t.Parallel()
		r := mine(t, servers.WithReplicas(1))
		for _, addr := range r.Addrs()[1:] {
			saysBut(t, open(t, "redis://"+addr+"/0"), "list", nil, addr, "is a replica", "primary")
		}
		// And when its primary is gone.
		servers.Must(t, r.Stop(t.Context(), 0))
		for _, stale := range []string{"yes", "no"} {
			servers.Must(t, r.Node(1).ConfigSet(t.Context(), "replica-serve-stale-data", stale).Err())
			saysBut(t, open(t, "redis://"+r.Addrs()[1]+"/0"), "list", nil, r.Addrs()[1], "is a replica")
		}
	})

	t.Run("cluster", func(t *testing.T) {
		t.Parallel()
		r := mine(t, servers.InCluster())
		for _, addr := range r.Addrs() {
			s := open(t, "redis://"+addr+"/0")
			moved := 0
			for _, name := range []string{"a", "b", "c", "d", "e", "f", "g", "h"} {
				_, err := s.Acquire(t.Context(), scene.Claim(name, "a", time.Second))
				if err == nil { // one of its own slots
					continue
				}
				moved++
				if !errors.Is(err, backend.ErrInvalid) {
					t.Errorf("%v: want ErrInvalid", err)
				}
				readable(t, "acquire", err, addr, "cluster=true")
			}
			if moved == 0 {
				t.Errorf("one node has granted all leases")
			}
		}
		says(t, open(t, "redis://"+r.Addrs()[0]+"/1"), backend.ErrInvalid, "database")
		servers.Must(t, r.Stop(t.Context(), 1))
		s := open(t, r.URL(prefix(t)))
		scene.Eventually(t, "the cluster is down", func() bool {
			_, err := s.Get(t.Context(), "job")
			return err != nil && strings.Contains(err.Error(), "CLUSTERDOWN")
		})
		// The slot of "job" is served, and the others not.
		saysBut(t, s, "list", nil, "the cluster is down", "cannot be reached")
	})

	t.Run("settings", func(t *testing.T) {
		t.Parallel()
		r := mine(t, servers.WithRedisFlags("--enable-protected-configs", "yes"))
		node, addr := r.Node(0), r.Addrs()[0]
		u := r.URL(prefix(t))
		set := func(pairs ...string) {
			t.Helper()
			for pair := range slices.Chunk(pairs, 2) {
				if err := node.ConfigSet(t.Context(), pair[0], pair[1]).Err(); err != nil {
					t.Fatal(err)
				}
			}
		}
		held := scene.Grant(t, open(t, u), scene.Claim("held", "a", time.Minute))

		// Too few replicas.
		set("min-replicas-to-write", "1")
		saysBut(t, open(t, u), "list", nil, addr, "min-replicas-to-write")
		set("min-replicas-to-write", "0")

		// No memory: nothing is granted; what is held can be renewed, and released.
		set("maxmemory", "1")
		s := open(t, u)
		_, err := s.Acquire(t.Context(), scene.Claim("job", "a", time.Minute))
		if err == nil || backend.Definite(err) {
			t.Errorf("without memory: %v", err)
		}
		readable(t, "acquire", err, addr, "maxmemory", "renewed and released")
		held = scene.Renew(t, s, held)
		scene.Release(t, s, held)
		set("maxmemory", "0")

		// No disk.
		set("dir", "/proc", "save", "1 1", "stop-writes-on-bgsave-error", "yes")
		_ = node.BgSave(t.Context()).Err()
		scene.Eventually(t, "saving fails", func() bool {
			return strings.Contains(node.Info(t.Context(), "persistence").Val(), "rdb_last_bgsave_status:err")
		})
		saysBut(t, open(t, u), "list", nil, addr, "cannot save its data")
		set("save", "", "stop-writes-on-bgsave-error", "no")

		// No room.
		clients := node.ClientList(t.Context()).Val()
		set("maxclients", strconv.Itoa(strings.Count(clients, "\n")))
		// It says so and hangs up; which of them the client meets first is open.
		says(t, open(t, u), nil, addr)
		set("maxclients", "1000")

		// Somebody's endless script.
		set("busy-reply-threshold", "10")
		go func() { _ = client(t, r).Eval(t.Context(), "while true do end", nil).Err() }()
		scene.Eventually(t, "Redis is busy", func() bool {
			err := node.Get(t.Context(), "x").Err()
			return err != nil && strings.HasPrefix(err.Error(), "BUSY")
		})
		says(t, open(t, u), nil, addr, "busy with a script", "SCRIPT KILL")
		if err := node.ScriptKill(t.Context()).Err(); err != nil {
			t.Fatal(err)
		}
		works(t, open(t, u))
	})

	t.Run("no scripts", func(t *testing.T) {
		t.Parallel()
		r := mine(t, servers.WithRedisFlags("--rename-command", "EVALSHA", ""))
		saysBut(t, open(t, r.URL(prefix(t))), "list", backend.ErrUnsupported, r.Addrs()[0], "runs no scripts")
	})

	t.Run("loading", func(t *testing.T) {
		t.Parallel()
		addr := answering(t, "-LOADING Redis is loading the dataset in memory")
		says(t, open(t, "redis://"+addr+"/0?max_retries=-1"), nil, addr, "loading its data")
	})

	// What Redis 6 says of a script that begins with #!.
	t.Run("too old", func(t *testing.T) {
		t.Parallel()
		addr := answering(t, "-ERR Error compiling script (new function): user_script:1: unexpected symbol near '#' ")
		saysBut(t, open(t, "redis://"+addr+"/0"), "list", backend.ErrUnsupported, addr, "too old", "Redis 7.0", "Valkey")
	})

	t.Run("another type", func(t *testing.T) {
		t.Parallel()
		r := plain(t)
		s := store(t, r)
		key := s.Prefix() + "{job}"
		if err := r.Node(0).ZAdd(t.Context(), key, goredis.Z{Member: "x"}).Err(); err != nil {
			t.Fatal(err)
		}
		_, err := s.Get(t.Context(), "job")
		if !errors.Is(err, backend.ErrCorrupt) {
			t.Errorf("%v: want ErrCorrupt", err)
		}
		readable(t, "get", err, key, "no hash")
		if _, err := s.Acquire(t.Context(), scene.Claim("job", "a", time.Minute)); !errors.Is(err, backend.ErrCorrupt) {
			t.Errorf("%v: want ErrCorrupt", err)
		}
		if kind := r.Node(0).Type(t.Context(), key).Val(); kind != "zset" {
			t.Errorf("the key was overwritten: it is now %s", kind)
		}
	})
}

// answering is something that speaks the protocol of Redis: it knows how to say
// hello, and has one answer to all else.
func answering(t *testing.T, answer string) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				in := bufio.NewReader(conn)
				line := func() string {
					text, err := in.ReadString('\n')
					if err != nil || len(text) < 3 {
						return ""
					}
					return text[1 : len(text)-2]
				}
				for {
					n, err := strconv.Atoi(line())
					if err != nil {
						return
					}
					var words []string
					for range n {
						size, err := strconv.Atoi(line())
						if err != nil {
							return
						}
						word := make([]byte, size+2)
						if _, err := io.ReadFull(in, word); err != nil {
							return
						}
						words = append(words, strings.ToLower(string(word[:size])))
					}
					reply := answer
					switch {
					case len(words) == 0:
						return
					case words[0] == "hello", words[0] == "client":
						reply = "-ERR unknown command"
					case words[0] == "evalsha" && strings.HasPrefix(answer, "-ERR Error compiling"):
						reply = "-NOSCRIPT No matching script. Please use EVAL."
					}
					if _, err := io.WriteString(conn, reply+"\r\n"); err != nil {
						return
					}
				}
			}()
		}
	}()
	return l.Addr().String()
}
