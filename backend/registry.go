package backend

import (
	"context"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"sync"
)

// Opener opens the store that a URL names. It must reject query parameters it
// does not know; [Query] helps with that.
type Opener func(ctx context.Context, u *url.URL) (Store, error)

var registry struct {
	sync.RWMutex
	openers map[string]Opener
}

// Register makes a store available to Open under a URL scheme. It is called
// from the init function of the store's package. It panics if the scheme is
// taken, like database/sql.Register.
func Register(scheme string, open Opener) {
	registry.Lock()
	defer registry.Unlock()
	if scheme == "" || open == nil {
		panic("backend: Register needs a scheme and an opener")
	}
	if _, taken := registry.openers[scheme]; taken {
		panic("backend: scheme " + scheme + " is registered twice")
	}
	if registry.openers == nil {
		registry.openers = make(map[string]Opener)
	}
	registry.openers[scheme] = open
}

// Schemes returns the schemes that Open knows, sorted.
func Schemes() []string {
	registry.RLock()
	defer registry.RUnlock()
	return slices.Sorted(maps.Keys(registry.openers))
}

// Open opens the store that rawURL names. The scheme selects the store; its
// package must have been imported. The Store owns what was opened, and Close
// closes it. Errors about the URL are ErrInvalid and never repeat a password.
func Open(ctx context.Context, rawURL string) (Store, error) {
	u, err := parseURL(rawURL)
	if err != nil {
		// The text of a url.Error repeats the URL, which may hold a password.
		return nil, fmt.Errorf("%w: the store URL cannot be parsed; it looks like file:///var/lib/leases", ErrInvalid)
	}
	registry.RLock()
	open := registry.openers[u.Scheme]
	registry.RUnlock()
	if open == nil {
		known := "no store is built into this program"
		if s := Schemes(); len(s) > 0 {
			known = "known are " + strings.Join(s, ", ") + ", the stores built into this program"
		}
		if u.Scheme == "" {
			return nil, fmt.Errorf("%w: the store URL has no scheme: %s", ErrInvalid, known)
		}
		return nil, fmt.Errorf("%w: no store is registered for the URL scheme %q: %s", ErrInvalid, u.Scheme, known)
	}
	return open(ctx, u)
}

// parseURL is url.Parse, but where several hosts stand (a:1,b:2), which that takes
// for one or refuses, they are all in Host.
func parseURL(rawURL string) (*url.URL, error) {
	scheme, rest, ok := strings.Cut(rawURL, "://")
	end := strings.IndexAny(rest, "/?#")
	if end < 0 {
		end = len(rest)
	}
	begin := strings.LastIndex(rest[:end], "@") + 1
	hosts := rest[begin:end]
	if !ok || !strings.Contains(hosts, ",") {
		return url.Parse(rawURL)
	}
	for host := range strings.SplitSeq(hosts, ",") {
		if _, err := url.Parse(scheme + "://" + host); err != nil || host == "" {
			return nil, fmt.Errorf("%q is no host", host)
		}
	}
	u, err := url.Parse(scheme + "://" + rest[:begin] + "hosts" + rest[end:])
	if err == nil {
		u.Host = hosts
	}
	return u, err
}

// Query returns the query parameters of a store URL, each of which may stand
// there once. A parameter that is not among allowed is an ErrInvalid that lists
// those that are.
func Query(u *url.URL, allowed ...string) (map[string]string, error) {
	values, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return nil, fmt.Errorf("%w: the query of the %s URL cannot be parsed", ErrInvalid, u.Scheme)
	}
	q := make(map[string]string, len(values))
	for _, key := range slices.Sorted(maps.Keys(values)) {
		if !slices.Contains(allowed, key) {
			known := "there are none"
			if len(allowed) > 0 {
				known = "known are " + strings.Join(allowed, ", ")
			}
			return nil, fmt.Errorf("%w: the %s URL has an unknown parameter %q: %s", ErrInvalid, u.Scheme, key, known)
		}
		if len(values[key]) > 1 {
			return nil, fmt.Errorf("%w: the %s URL gives the parameter %q twice", ErrInvalid, u.Scheme, key)
		}
		q[key] = values[key][0]
	}
	return q, nil
}
