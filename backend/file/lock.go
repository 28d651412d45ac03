package file

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"time"

	"github.com/gofrs/flock"
)

// shardCount is how many locks the names share. A fixed set leaves no garbage
// behind, and no lock file has ever to be deleted, which cannot be done safely.
const shardCount = 64

// While another process has the lock, it is tried again after firstTry, and then
// at growing intervals of at most lastTry. Waiting in the kernel would be
// quicker, but nothing can end that wait when the context does.
const (
	firstTry = 50 * time.Microsecond
	lastTry  = 5 * time.Millisecond
)

// lock is held by one goroutine of one process. The operating system's lock is
// taken anew each time, so its file may be replaced; turn keeps the goroutines
// of this Store from competing for it.
type lock struct {
	path string
	turn chan struct{}
}

func newLock(path string) lock { return lock{path, make(chan struct{}, 1)} }

// shard returns the lock of name.
func (s *Store) shard(name string) *lock {
	return &s.shards[crc32.ChecksumIEEE([]byte(name))%shardCount]
}

type lockMode func(*flock.Flock) (bool, error)

var (
	reading lockMode = (*flock.Flock).TryRLock
	writing lockMode = (*flock.Flock).TryLock
)

// lock waits for l. On success the caller must call unlock. First, and before
// each try, it asks unless, if there is one, whether the lock still is of any use.
func (s *Store) lock(ctx context.Context, l *lock, try lockMode, unless func() error) (unlock func(), err error) {
	if unless != nil {
		if err := unless(); err != nil {
			return nil, err
		}
	}
	select {
	case l.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, l.gaveUp(ctx)
	case <-s.done:
		return nil, errClosed
	}
	defer func() {
		if err != nil {
			<-l.turn
		}
	}()
	f := flock.New(l.path, flock.SetFlag(os.O_RDONLY))
	for wait := firstTry; ; wait = min(2*wait, lastTry) {
		if unless != nil && wait > firstTry {
			if err := unless(); err != nil {
				return nil, err
			}
		}
		locked, err := try(f)
		switch {
		case locked && l.current(f):
			return func() {
				f.Unlock() // fails only for a descriptor that is not open
				<-l.turn
			}, nil
		case locked:
			f.Unlock()
			continue
		case errors.Is(err, fs.ErrNotExist):
			if err := s.makeLock(l.path); err != nil {
				return nil, refusal("the lock file "+l.path+" cannot be made", err)
			}
			continue
		case err != nil:
			return nil, refusal("the lock file "+l.path+" cannot be locked", err)
		}
		again := time.NewTimer(wait)
		select {
		case <-again.C:
		case <-ctx.Done():
			again.Stop()
			return nil, l.gaveUp(ctx)
		case <-s.done:
			again.Stop()
			return nil, errClosed
		}
	}
}

func (l *lock) gaveUp(ctx context.Context) error {
	return fmt.Errorf("%s stayed locked (if that lasts, a process that has it is stopped; fuser names it): %w", l.path, ctx.Err())
}

// current reports whether the locked file still is the one that others lock: a
// cleaner may have deleted it since it was opened.
func (l *lock) current(f *flock.Flock) bool {
	mine, err := f.Stat()
	if err != nil {
		return false
	}
	theirs, err := os.Stat(l.path)
	return err == nil && os.SameFile(mine, theirs)
}

func (s *Store) makeLock(path string) error {
	// Whoever may open a lock may keep others waiting; that is for those who may
	// write in the folder.
	writers := s.perm & 0o222
	perm := writers | writers<<1
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|noFollow, perm)
	if errors.Is(err, fs.ErrNotExist) { // the folder of the locks was deleted
		if err := s.makeInternal(); err != nil {
			return err
		}
		f, err = os.OpenFile(path, os.O_CREATE|os.O_RDWR|noFollow, perm)
	}
	if err != nil {
		return err
	}
	return errors.Join(s.share(f, perm), f.Close())
}

// share gives a new file its permissions and the owner of the folder.
func (s *Store) share(f *os.File, perm fs.FileMode) error {
	if perm&0o077 != 0 { // otherwise no umask has taken anything away
		// It may be somebody else's, who has made it a moment ago and is about to
		// do the same.
		if err := f.Chmod(perm); err != nil && !errors.Is(err, fs.ErrPermission) {
			return err
		}
	}
	return s.owner.give(f.Name())
}
