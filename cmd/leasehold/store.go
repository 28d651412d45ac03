package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"github.com/spf13/cobra"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/cmd/leasehold/internal/departed"

	// The stores that --store can name.
	_ "github.com/leasehold/leasehold/backend/file"
	_ "github.com/leasehold/leasehold/backend/memory"
	_ "github.com/leasehold/leasehold/etcd"
	_ "github.com/leasehold/leasehold/kubernetes"
	_ "github.com/leasehold/leasehold/redis"
)

const envStore = "LEASEHOLD_STORE"

// silence is the log of the Redis client, which is one for the whole program and
// would go to standard error. What fails is told by errors.
type silence struct{}

func (silence) Printf(context.Context, string, ...any) {}

func init() { goredis.SetLogger(silence{}) }

func storeExamples() []string {
	examples := map[string]string{
		"file":       "file:///var/lib/leases",
		"kubernetes": "kubernetes://namespace",
		"etcd":       "etcd://host:2379",
		"redis":      "redis://host:6379",
	}
	var known []string
	for _, scheme := range backend.Schemes() {
		if e, ok := examples[scheme]; ok {
			known = append(known, e)
		}
	}
	return known
}

// url returns the URL of the store to use.
func (o *options) url() (string, error) {
	if s := cmp.Or(o.store, os.Getenv(envStore)); s != "" {
		return s, nil
	}
	state := os.Getenv("XDG_STATE_HOME")
	if !filepath.IsAbs(state) { // as the specification asks for
		home, err := os.UserHomeDir()
		if err != nil || !filepath.IsAbs(home) {
			return "", fail(exitUnavailable, fmt.Errorf("no store is named, and there is no home folder for the default one: use --store or %s", envStore))
		}
		state = filepath.Join(home, ".local", "state")
	}
	dir := filepath.Join(state, "leasehold", "leases")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fail(exitUnavailable, fmt.Errorf("the default store cannot be made: %w; use --store or %s", err, envStore))
	}
	return (&url.URL{Scheme: "file", Path: filepath.ToSlash(dir)}).String(), nil
}

// open opens the store, with the process check unless that is switched off. The
// caller closes it.
func (o *options) open(ctx context.Context) (backend.Store, error) {
	u, err := o.url()
	if err != nil {
		return nil, err
	}
	store, err := backend.Open(ctx, u)
	var system syscall.Errno
	switch {
	case errors.Is(err, backend.ErrInvalid) && !errors.As(err, &system):
		return nil, failure(err) // the URL is wrong
	case err != nil:
		return nil, fail(exitUnavailable, fmt.Errorf("the store cannot be opened: %s", reason(err)))
	}
	if o.noProcessCheck {
		return store, nil
	}
	return departed.Wrap(store), nil
}

// with opens the store for f and closes it afterwards. The context ends with a
// signal.
func (o *options) with(cmd *cobra.Command, f func(ctx context.Context, store backend.Store) error) error {
	ctx, cancel := interruptible(cmd.Context())
	defer cancel()
	store, err := o.open(ctx)
	if err != nil {
		return failure(cause(ctx, err))
	}
	defer store.Close()
	return failure(cause(ctx, f(ctx, store)))
}

// parseURL is url.Parse for one or several hosts, which are all in Host, as
// backend.Open takes them.
func parseURL(raw string) (*url.URL, error) {
	scheme, rest, _ := strings.Cut(raw, "://")
	authority := rest
	if end := strings.IndexAny(rest, "/?#"); end >= 0 {
		authority = rest[:end]
	}
	begin := strings.LastIndexByte(authority, '@') + 1
	first, others, several := strings.Cut(authority[begin:], ",")
	if !several {
		return url.Parse(raw)
	}
	for host := range strings.SplitSeq(others, ",") {
		if _, err := url.Parse(scheme + "://" + host); err != nil || host == "" {
			return nil, errors.New("not a host")
		}
	}
	u, err := url.Parse(scheme + "://" + authority[:begin] + first + rest[len(authority):])
	if err == nil {
		u.Host += "," + others
	}
	return u, err
}

// publicURL returns the URL without what might let its reader in, "" where that
// cannot be told from the rest.
func publicURL(raw string) string {
	u, err := parseURL(raw)
	if err != nil {
		return ""
	}
	redis := u.Scheme == "redis" || u.Scheme == "rediss"
	// An @ behind the hosts may be the end of a password with one of / ? # in it.
	if (redis || u.User != nil || strings.Contains(u.Host, ":")) && strings.Contains(u.EscapedPath()+u.RawQuery+u.EscapedFragment(), "@") {
		return ""
	}
	u.User = nil
	if i := strings.LastIndexByte(u.Opaque, '@'); i >= 0 {
		u.Opaque = u.Opaque[i+1:]
	}
	u.Fragment, u.RawFragment = "", ""
	query := u.Query()
	for key, values := range query {
		if secret(key) && (!redis && u.Scheme != "etcd" || key != "key") { // that is a file's name
			query.Del(key)
		}
		for i, addr := range values {
			if redis && key == "addr" { // a further host
				values[i] = addr[strings.LastIndexByte(addr, '@')+1:]
			}
		}
	}
	u.RawQuery = query.Encode()
	return u.String()
}

func secret(key string) bool {
	key = strings.ToLower(key)
	for _, part := range []string{"user", "pass", "pwd", "secret", "token", "key", "auth", "cred", "sign"} {
		if strings.Contains(key, part) {
			return true
		}
	}
	return false
}

// completeNames offers the names of leases to the shell.
func (o *options) completeNames(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveDefault
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), 2*time.Second)
	defer cancel()
	store, err := o.open(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer store.Close()
	var names []string
	for rec := range backend.List(ctx, store, prefix) {
		if rec.Name != "" {
			names = append(names, rec.Name)
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
