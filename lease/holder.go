package lease

import (
	"crypto/rand"
	"fmt"
	"os"
	"os/user"
	"strconv"
	"strings"
	"sync"
)

// Holder is the identity that a lease is held under. Any non-empty text is one;
// "mine" means that two are equal. NewHolder makes one that says who, where and
// which process:
//
//	alice@web-1/4711/6IHZ5KXVLT3C
//
// which is what `kubectl get lease` and `leasehold get` show.
type Holder string

// NewHolder returns an identity that no other has: user, host, process id and a
// random instance.
func NewHolder() Holder {
	p := process()
	return Holder(p + rand.Text()[:12])
}

// ProcessHolder returns the one identity of this process. Lease values that
// share it (WithHolder) share one tenure: each of them renews it, and a release
// by any ends it for all.
func ProcessHolder() Holder { return processHolder() }

var processHolder = sync.OnceValue(NewHolder)

// Parts splits an identity made by NewHolder. ok is false for any other text.
func (h Holder) Parts() (who, host string, pid int, instance string, ok bool) {
	who, rest, ok1 := strings.Cut(string(h), "@")
	f := strings.Split(rest, "/")
	if !ok1 || len(f) != 3 {
		return "", "", 0, "", false
	}
	pid, err := strconv.Atoi(f[1])
	if err != nil || pid <= 0 || f[2] == "" {
		return "", "", 0, "", false
	}
	return who, f[0], pid, f[2], true
}

// process is the part of an identity that all Leases of a process share.
var process = sync.OnceValue(func() string {
	who := strconv.Itoa(os.Getuid())
	if u, err := user.Current(); err == nil && u.Username != "" {
		who = u.Username
	}
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "localhost"
	}
	return fmt.Sprintf("%s@%s/%d/", plain(who), plain(host), os.Getpid())
})

// plain keeps what is readable in a table and cannot be taken for a separator.
func plain(s string) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '-', r == '_', r == '.':
			return r
		}
		return '-'
	}, s)
	return s[:min(len(s), 64)]
}
