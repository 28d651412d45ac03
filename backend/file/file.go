// Package file keeps leases in a folder, for the processes of one machine that
// have no server to ask.
//
//	store, err := file.New("/var/lib/myapp/leases")
//	store, err := backend.Open(ctx, "file:///var/lib/myapp/leases")
//
// # Promises
//
// The full contract of package backend, between any number of Stores in any
// number of processes, which may be killed at any instant:
//
//   - Time is counted on the boot clock (CLOCK_BOOTTIME, which goes on while the
//     machine sleeps), the same for all processes; a changed wall clock moves
//     nothing. Expired is never early.
//   - A record is replaced as a whole, synced to the disk before it gets its
//     name. A renewal overwrites one fixed-width field in place and waits for no
//     disk; each changes the Revision.
//   - Writers of one name take turns under a lock of the operating system, which
//     dies with its process. What is plain (a live record, a vacant one, or none)
//     is read without a lock; what has expired, or looks odd, is looked at again
//     under it.
//   - Watchers are told by the kernel (inotify). A look every few seconds covers
//     what it may drop; where it refuses to watch at all, they poll.
//
// A second arrival of the Attempt whose tenure is current, and has not expired,
// renews that tenure, so that what it returns lasts Duration from the second
// call too.
//
// # Tokens
//
// A token is the sum of a floor and a counter. One counter serves the folder. It
// is reserved on the disk in blocks, and after a reboot the rest of a block is
// skipped, so tokens rise across kill -9 and power cuts too.
//
// The floor belongs to the lease: 0 until a claim brings a MinToken, and then the
// greatest MinToken that was granted, kept in the record. One near
// [backend.MaxToken] uses up the tokens of its own lease and of no other: what
// would exceed MaxToken is refused. Release deletes a record without a floor, and
// Transitions begins again at 0. One with a floor it vacates: there is no holder,
// but the floor and Transitions stay.
//
// If the counter is deleted, it goes on well above what any record in the folder
// was given of it; what leases that had been released were given is forgotten. A
// floor is forgotten with its record: when that is deleted by hand, or cannot be
// read and is taken over by force. If the folder, or the machine with it, is
// restored from a backup or a snapshot, tokens granted since are granted again.
// In each of these cases, claim the lease with a MinToken that is the greatest
// token the protected resource has seen.
//
// # After a reboot
//
// A record of another boot (or of another time namespace of this one, whose
// instants mean nothing here) tells nothing about the present. It is Expired once
// it has been seen unchanged for its duration: by this Store, from the first Get,
// Acquire, List or Watch that came across it, or by any process of this boot,
// from the first Acquire that was refused because of it. A seal stays.
//
// # Limits
//
// Use a local file system. On one that is shared over a network, or implemented
// by a program, locks and notifications do not reach the other machines, so New
// refuses those it knows. Nor does it use a folder in which others may write, or
// that belongs to somebody else: who can write there can take any lease. See
// [AllowNetwork] and [AllowShared].
//
// A process that is stopped (SIGSTOP) in the few instructions in which it holds
// a lock keeps others from writing to the names that share it (about one in 64;
// all, for acquiring, where it was taking a token) until it goes on or dies. A
// call waits for that as long as its context allows. It may outlast its context
// by the time the disk takes for one sync.
//
// Only Linux has all that this store needs. Elsewhere New returns
// [backend.ErrUnsupported].
//
// # The folder
//
//	nightly-report.json      the record of the lease nightly-report
//	team-a-db~6a1f….json     the record of Team-A/db: a readable part and a hash
//	.leasehold/tokens        the token counter
//	.leasehold/2a.lock       one of 64 locks, each for the names of one hash; never deleted
//	.leasehold/2a.tmp        a record being written under that lock, or left by a
//	                         killed process for the next writer to replace
//	.leasehold/2a.seen       since when records of another boot have been waited for
//
// Records are JSON, for people to read; other files are ignored. Deleting a
// record by hand ends the lease without its holder's knowledge until it renews.
package file

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/internal/boottime"
)

const (
	// minDuration: acquiring waits for the disk, and renewing may have to wait for
	// another name's acquire under the same lock. A busy disk takes tens of
	// milliseconds, and a call has a fraction of the duration. A shorter lease
	// would be lost to the disk, not to a death.
	minDuration = 100 * time.Millisecond

	// backstop is how often a watcher looks for what no event told it.
	backstop = 5 * time.Second

	internal = ".leasehold" // the folder inside the folder
)

// Option changes what New accepts.
type Option func(*Store)

// AllowShared accepts a folder that belongs to somebody else, or in which group
// or others may write. Whoever can write there can take or destroy any lease.
// New files get the permissions of the folder, so several users can share one
// that has mode 2770 and their group. URL: ?shared=allow
func AllowShared() Option { return func(s *Store) { s.allowShared = true } }

// AllowNetwork accepts a file system that is shared over a network or is
// implemented by a program. It is for those whose locks are known to work and
// that only one machine uses: clocks and notifications do not reach others.
// URL: ?network=allow
func AllowNetwork() Option { return func(s *Store) { s.allowNetwork = true } }

// Store is one client of the leases in a folder. The zero value is not usable;
// see New.
type Store struct {
	dir   string      // absolute, without symbolic links
	perm  fs.FileMode // of new files
	owner owner       // likewise
	boot  string      // this boot: records of the same one have comparable instants

	allowShared, allowNetwork bool

	shards [shardCount]lock // by name: whoever writes a record holds one
	tokens lock             // taken while holding one of the above, never the other way round
	high   uint64           // the greatest count granted here, under tokens

	mu    sync.Mutex
	seen  map[string]sighting // of records of other boots, by name
	hub   *hub                // nil while nobody watches
	hubs  sync.WaitGroup
	once  sync.Once
	done  chan struct{} // closed by Close
	clock interface {
		Now() time.Duration
		AfterFunc(d time.Duration, f func()) boottime.Timer
	}

	// For tests.
	fileSystem func(dir string) (name string, remote bool, err error)
	notifier   func() (*fsnotify.Watcher, error)
	backstop   time.Duration
}

var (
	_ backend.Store   = (*Store)(nil)
	_ backend.Watcher = (*Store)(nil)
	_ backend.Lister  = (*Store)(nil)
)

func init() { backend.Register("file", open) }

func open(_ context.Context, u *url.URL) (backend.Store, error) {
	q, err := backend.Query(u, "shared", "network")
	if err != nil {
		return nil, err
	}
	if u.Opaque != "" || u.Host != "" && u.Host != "localhost" || u.User != nil || u.Fragment != "" || u.Path == "" || u.Path == "/" {
		return nil, fmt.Errorf("%w: a file URL names a folder by its full path, with three slashes: file:///var/lib/leases", backend.ErrInvalid)
	}
	var opts []Option
	for key, opt := range map[string]Option{"shared": AllowShared(), "network": AllowNetwork()} {
		switch value, given := q[key]; {
		case given && value != "allow":
			return nil, fmt.Errorf("%w: the parameter %s of the file URL is %q; %s=allow is all there is", backend.ErrInvalid, key, value, key)
		case given:
			opts = append(opts, opt)
		}
	}
	s, err := New(u.Path, opts...)
	if err != nil {
		return nil, err
	}
	return s, nil
}

// New opens the leases in the folder dir, which it creates if it is missing, for
// this user only. See the package documentation for what it refuses.
func New(dir string, opts ...Option) (*Store, error) {
	s := &Store{
		seen:       make(map[string]sighting),
		done:       make(chan struct{}),
		clock:      boottime.Clock{},
		fileSystem: fileSystem,
		notifier:   fsnotify.NewWatcher,
		backstop:   backstop,
	}
	if !boottime.Suspend() {
		return nil, fmt.Errorf("%w: the file store needs a clock that counts since the machine was started, and only Linux has one; use another store", backend.ErrUnsupported)
	}
	var err error
	if s.boot, err = boottime.ID(); err != nil {
		return nil, fmt.Errorf("%w: the file store needs /proc: %w", backend.ErrUnsupported, err)
	}
	for _, opt := range opts {
		opt(s)
	}
	if err := s.prepare(dir); err != nil {
		return nil, err
	}
	for i := range s.shards {
		s.shards[i] = newLock(s.internal(fmt.Sprintf("%02x.lock", i)))
	}
	s.tokens = newLock(s.internal("tokens.lock"))
	return s, nil
}

// prepare finds or makes the folder, and refuses what it must not be.
func (s *Store) prepare(dir string) error {
	if dir == "" {
		return fmt.Errorf("%w: the file store needs a folder", backend.ErrInvalid)
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return fmt.Errorf("the working folder cannot be found: %w", err)
	}
	// The file system is judged before anything is made on it.
	at := dir
	info, err := os.Stat(at)
	for errors.Is(err, fs.ErrNotExist) && filepath.Dir(at) != at {
		at = filepath.Dir(at)
		info, err = os.Stat(at)
	}
	if err != nil {
		return refusal("the folder "+dir+" cannot be used", err)
	}
	if !info.IsDir() {
		return fmt.Errorf("%w: %s is not a folder; the file store keeps its leases in one of its own", backend.ErrInvalid, at)
	}
	if name, remote, err := s.fileSystem(at); err != nil {
		return refusal("the file system of "+at+" cannot be told", err)
	} else if remote && !s.allowNetwork {
		return fmt.Errorf("%w: the folder %s lies on %s, whose locks, clocks and notifications may end at this machine: choose a folder on a local disk, or a store with a server; if no other machine uses it, allow it with file.AllowNetwork or ?network=allow", backend.ErrInvalid, dir, name)
	}
	if err := os.MkdirAll(dir, 0o700); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("no folder can be made at %s; choose another place: %w", dir, err)
	} else if err != nil {
		return refusal("the folder "+dir+" cannot be made", err)
	}
	if s.dir, err = filepath.EvalSymlinks(dir); err != nil {
		return refusal("the folder "+dir+" cannot be used", err)
	}
	if info, err = os.Stat(s.dir); err != nil {
		return refusal("the folder "+dir+" cannot be used", err)
	}
	s.perm, s.owner = info.Mode().Perm()&0o666, ownerOf(info)
	if !s.allowShared {
		if mode := info.Mode().Perm(); mode&0o022 != 0 {
			return fmt.Errorf("%w: others may write to the folder %s (mode %04o), and so take any lease in it: run chmod go-w on it; if they are trusted, allow it with file.AllowShared or ?shared=allow", backend.ErrInvalid, s.dir, mode)
		}
		if s.owner.foreign() {
			return fmt.Errorf("%w: the folder %s belongs to another user (%v), who could take any lease in it: choose one of your own; if that user is trusted, allow it with file.AllowShared or ?shared=allow", backend.ErrInvalid, s.dir, s.owner)
		}
	}
	if err := s.makeInternal(); err != nil {
		return err
	}
	for _, dir := range []string{s.dir, s.internal("")} {
		if err := writable(dir); err != nil {
			return refusal("the folder "+dir+" cannot be written to", err)
		}
	}
	return nil
}

// makeInternal makes the folder of locks and tokens, if it is missing.
func (s *Store) makeInternal() error {
	path := s.internal("")
	switch err := os.Mkdir(path, 0o700); {
	case err == nil:
		// The umask would keep out those who share the folder.
		info, err := os.Stat(s.dir)
		if err == nil {
			err = errors.Join(os.Chmod(path, info.Mode()&(fs.ModePerm|fs.ModeSetgid)), s.owner.give(path))
		}
		if err != nil {
			return refusal("the folder "+path+" cannot be prepared", err)
		}
		return nil
	case !errors.Is(err, fs.ErrExist):
		return refusal("the folder "+path+" cannot be made", err)
	}
	if info, err := os.Lstat(path); err != nil || !info.IsDir() {
		return fmt.Errorf("%w: %s is not a folder, though the file store needs one there: move it away", backend.ErrInvalid, path)
	}
	return nil
}

func (s *Store) internal(file string) string { return filepath.Join(s.dir, internal, file) }

// Traits tells what this store can do.
func (s *Store) Traits() backend.Traits {
	return backend.Traits{
		Name:            "file",
		Namespace:       s.dir,
		MinDuration:     minDuration,
		Granularity:     1,
		RenewalsVisible: true,
	}
}

// Close ends the watches of this Store and frees what they used. It touches no
// record.
func (s *Store) Close() error {
	s.once.Do(func() {
		s.mu.Lock()
		close(s.done)
		if s.hub != nil {
			s.hub.end()
			s.hub = nil
		}
		s.mu.Unlock()
	})
	s.hubs.Wait()
	return nil
}

// enter begins a call about name.
func (s *Store) enter(ctx context.Context, name string) error {
	if err := backend.CheckName(name); err != nil {
		return err
	}
	return s.usable(ctx)
}

func (s *Store) usable(ctx context.Context) error {
	select {
	case <-s.done:
		return errClosed
	default:
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("the call to the file store was not begun: %w", err)
	}
	return nil
}

var errClosed = fmt.Errorf("%w: the file store is closed", backend.ErrInvalid)

// refusal explains an error of the operating system that came before anything
// was written: the call had no effect.
func refusal(what string, err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		return fmt.Errorf("%w: %s by this user (uid %d): give it the folder or choose another: %w", backend.ErrDenied, what, os.Geteuid(), err)
	case errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.ENAMETOOLONG), errors.Is(err, syscall.ELOOP), errors.Is(err, syscall.EINVAL):
		return fmt.Errorf("%w: %s: choose another: %w", backend.ErrInvalid, what, err)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("%s: make room on the disk: %w", what, err)
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return fmt.Errorf("%s: raise the limit of open files: %w", what, err)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s: the folder of the leases is gone; open the store again to make it anew: %w", what, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}
