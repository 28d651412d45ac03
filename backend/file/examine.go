//go:build linux

package file

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leasehold/leasehold/backend"
)

// examineTime bounds each check: the lock that it waits for may belong to a
// process that is stopped.
const examineTime = 2 * time.Second

// Below this a folder is nearly full. A record takes a block or two.
const (
	littleSpace = 10 << 20 // bytes
	fewFiles    = 1000
)

// Examine tells what is wrong with the folder, or may be.
func (s *Store) Examine(ctx context.Context) iter.Seq[backend.Finding] {
	return func(yield func(backend.Finding) bool) {
		if err := s.usable(ctx); err != nil {
			if ctx.Err() == nil {
				yield(backend.Finding{Check: "folder", Level: backend.Problem, Detail: err.Error(), Fix: "open the store again"})
			}
			return
		}
		for _, look := range []func(context.Context) backend.Finding{
			s.examineFolder, s.examineFileSystem, s.examineSpace, s.examineNotifier, s.examineClock, s.examineTokens, s.examineRecords,
		} {
			limited, cancel := context.WithTimeout(ctx, examineTime)
			found := look(limited)
			cancel()
			if ctx.Err() != nil || !yield(found) {
				return
			}
		}
	}
}

// cannotTell is the finding of a check that an error has kept from its end.
func cannotTell(check string, err error) backend.Finding {
	return backend.Finding{Check: check, Level: backend.Problem, Detail: err.Error(), Fix: "see that the folder is there, and that this user may use it"}
}

// examineFolder looks at what New looked at, since that can have changed.
func (s *Store) examineFolder(context.Context) backend.Finding {
	f := backend.Finding{Check: "folder"}
	for _, dir := range []string{s.dir, s.internal("")} {
		info, err := os.Stat(dir)
		if err != nil {
			return cannotTell(f.Check, err)
		}
		if err := writable(dir); err != nil {
			f.Level, f.Detail = backend.Problem, fmt.Sprintf("%s cannot be written to by this user (uid %d): %v", dir, os.Geteuid(), err)
			f.Fix = "give this user the folder, or choose another one"
			return f
		}
		mode, owner := info.Mode().Perm(), ownerOf(info)
		switch {
		case mode&0o022 != 0:
			f.Level, f.Detail = backend.Warning, fmt.Sprintf("others may write to %s (mode %04o): whoever can, can take or destroy any lease", dir, mode)
			f.Fix = "unless all of them are trusted, run: chmod go-w " + dir
			return f
		case owner.foreign():
			f.Level, f.Detail = backend.Warning, fmt.Sprintf("%s belongs to another user (%v), who can take or destroy any lease", dir, owner)
			f.Fix = "unless that user is trusted, choose a folder of your own"
			return f
		}
		if dir == s.dir {
			f.Detail = fmt.Sprintf("%s, mode %04o, %v: nobody else may write there", dir, mode, owner)
		}
	}
	return f
}

func (s *Store) examineFileSystem(context.Context) backend.Finding {
	f := backend.Finding{Check: "file system"}
	name, remote, err := s.fileSystem(s.dir)
	if err != nil {
		return cannotTell(f.Check, err)
	}
	if remote {
		f.Level, f.Detail = backend.Warning, fmt.Sprintf("it is %s: locks, clocks and notifications may end at this machine", name)
		f.Fix = "unless this machine alone uses the folder, choose one on a local disk, or a store with a server"
		return f
	}
	st, err := s.statfs()
	if err != nil {
		return cannotTell(f.Check, err)
	}
	f.Level, f.Detail, f.Fix = localFileSystem(uint32(st.Type))
	return f
}

// localFileSystem says what to know of a local file system, by the number that
// statfs(2) gives.
func localFileSystem(number uint32) (level backend.Level, detail, fix string) {
	switch number {
	case unix.TMPFS_MAGIC, unix.RAMFS_MAGIC:
		return backend.Warning, "it is kept in memory: at a reboot the token counter is forgotten with the leases, and tokens begin again at 1",
			"choose a folder on a disk, unless no resource checks the tokens"
	case unix.OVERLAYFS_SUPER_MAGIC:
		return backend.Note, "it is an overlay, as containers have: other containers do not see these leases, and they are gone with this one",
			"to exclude other containers, keep the leases in a volume that all of them share"
	}
	if name, ok := localFileSystems[number]; ok {
		return backend.Good, "local (" + name + ")", ""
	}
	return backend.Good, fmt.Sprintf("none of those known to reach beyond this machine (number %#x)", number), ""
}

var localFileSystems = map[uint32]string{
	unix.EXT4_SUPER_MAGIC:  "ext2, ext3 or ext4",
	unix.XFS_SUPER_MAGIC:   "XFS",
	unix.BTRFS_SUPER_MAGIC: "Btrfs",
	unix.F2FS_SUPER_MAGIC:  "F2FS",
	0x2fc12fc1:             "ZFS",
}

func (s *Store) statfs() (unix.Statfs_t, error) {
	st, err := statfs(s.dir)
	if err != nil {
		err = &fs.PathError{Op: "statfs", Path: s.dir, Err: err}
	}
	return st, err
}

func (s *Store) examineSpace(context.Context) backend.Finding {
	st, err := s.statfs()
	if err != nil {
		return cannotTell("space", err)
	}
	files := st.Ffree
	if st.Files == 0 { // there is no limit
		files = fewFiles
	}
	return space(st.Bavail*uint64(st.Bsize), files)
}

// space judges how much can still be written. A store without space grants
// nothing; what is held can be renewed, in place.
func space(bytes, files uint64) backend.Finding {
	free, unit := bytes>>20, "MB"
	if free >= 10_000 {
		free, unit = bytes>>30, "GB"
	}
	f := backend.Finding{Check: "space", Detail: fmt.Sprintf("%d %s are free", free, unit)}
	switch {
	case bytes < 1<<20 || files == 0:
		f.Level = backend.Problem
	case bytes < littleSpace || files < fewFiles:
		f.Level = backend.Warning
	default:
		return f
	}
	if files < fewFiles {
		f.Detail += fmt.Sprintf(", and %d more files are possible", files)
	}
	f.Fix = "make room: on a full disk no lease can be acquired"
	return f
}

func (s *Store) examineNotifier(context.Context) backend.Finding {
	f := backend.Finding{Check: "notification", Detail: "the kernel tells of changes"}
	w, err := s.notifier()
	if err == nil {
		defer w.Close()
		err = w.Add(s.dir)
	}
	if err != nil {
		f.Level, f.Detail = backend.Warning, fmt.Sprintf("the kernel does not tell of changes (%v); whoever waits looks every %v instead", err, backend.DefaultPollInterval)
		f.Fix = "raise the limits fs.inotify.max_user_instances and fs.inotify.max_user_watches, see inotify(7)"
	}
	return f
}

func (s *Store) examineClock(context.Context) backend.Finding {
	boot, _, _ := strings.Cut(s.boot, "time:") // without the time namespace
	return backend.Finding{Check: "clock", Detail: fmt.Sprintf("%v since the boot %s", s.clock.Now().Round(time.Second), boot)}
}

// examineTokens reads the counter without which nothing can be acquired.
func (s *Store) examineTokens(ctx context.Context) backend.Finding {
	f := backend.Finding{Check: "token counter"}
	unlock, err := s.lock(ctx, &s.tokens, reading, nil)
	if err != nil {
		return stuck(f.Check, err)
	}
	defer unlock()
	path := s.internal("tokens")
	text, err := readFile(path)
	var c counter
	switch {
	case errors.Is(err, fs.ErrNotExist):
		f.Detail = "there is none yet; it begins above the tokens of all records"
		return f
	case err == nil:
		err = c.decode(text)
	}
	if err != nil {
		f.Level, f.Detail = backend.Problem, fmt.Sprintf("%s: %v: no lease can be acquired", path, err)
		f.Fix = "restore the file, or delete it: tokens then go on above those of all records, and those of released leases are forgotten"
		return f
	}
	last := c.Last
	if c.Boot != s.boot {
		last = c.Reserved // as nextToken will say
	}
	f.Detail = fmt.Sprintf("it is at %d", last)
	return f
}

// stuck is the finding of a check that did not get a lock, or its end.
func stuck(check string, err error) backend.Finding {
	return backend.Finding{Check: check, Level: backend.Problem, Detail: err.Error(), Fix: "find the process that has the lock with fuser, and let it go on or end it"}
}

// examineRecords counts what lies in the folder.
func (s *Store) examineRecords(ctx context.Context) backend.Finding {
	f := backend.Finding{Check: "records"}
	var held, expired, other, corrupt int
	var first *backend.CorruptError
	for rec, err := range s.List(ctx, "") {
		var c *backend.CorruptError
		switch {
		case errors.As(err, &c):
			first = cmp.Or(first, c)
			corrupt++
		case errors.Is(err, context.DeadlineExceeded):
			return stuck(f.Check, err)
		case err != nil:
			return cannotTell(f.Check, err)
		case rec.Live():
			held++
		case rec.Expired:
			expired++
		default:
			other++
		}
	}
	f.Detail = fmt.Sprintf("%d held", held)
	add := func(n int, what string) {
		if n > 0 {
			f.Detail += fmt.Sprintf(", %d %s", n, what)
		}
	}
	add(expired, "expired and not released")
	add(other, "vacant")
	add(s.unfinished(), "being written, or left unfinished for the next writer to replace")
	add(corrupt, "that cannot be read")
	switch {
	case corrupt > 0:
		f.Level = backend.Problem
		f.Detail += fmt.Sprintf(", such as %s: %v", first.Where, first.Err)
		f.Fix = "look at the file, and repair or remove it: until then nobody gets that lease"
	case expired > 0:
		f.Level = backend.Note
		f.Fix = "none is needed, whoever wants them takes them over; if nobody does, leasehold release --expired '' clears them away"
	}
	return f
}

// unfinished counts the temporary files.
func (s *Store) unfinished() (n int) {
	files, err := os.ReadDir(s.internal(""))
	if err != nil {
		return 0
	}
	for _, f := range files {
		if strings.HasSuffix(f.Name(), ".tmp") {
			n++
		}
	}
	return n
}
