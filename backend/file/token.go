package file

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/leasehold/leasehold/backend"
)

// tokenBlock is how much of the counter is reserved at a time: one sync for so
// many acquires, and so many tokens lost in each reboot.
const tokenBlock = 1000

// counter is the token counter of a folder: a token is the floor of its record
// and a count of this. Last is overwritten in place and not synced; a reboot may
// set it back. Reserved is on the disk before a count up to it is granted.
type counter struct {
	Format   int    `json:"leasehold"`
	Last     uint64 `json:"last"`
	Reserved uint64 `json:"reserved"`
	Boot     string `json:"boot"` // during which Last is right
}

func (c *counter) encode() []byte {
	return fmt.Appendf(nil, "{\n  \"leasehold\": %d,\n  \"last\": %20d,\n  \"reserved\": %20d,\n  \"boot\": %q\n}\n",
		c.Format, c.Last, c.Reserved, c.Boot)
}

// tokenPatience is how long to wait for the counter with the lock of a name in
// hand: whoever holds a name under that lock cannot renew meanwhile.
const tokenPatience = 20 * time.Millisecond

// errTokensBusy: the counter was locked for longer than that.
var errTokensBusy = errors.New("the token counter is locked")

// nextToken returns a token greater than floor, by a count greater than above
// and than all that were granted in this folder. The lock of name is held.
func (s *Store) nextToken(ctx context.Context, name string, floor, above uint64) (uint64, error) {
	brief, cancel := context.WithTimeout(ctx, tokenPatience)
	unlock, err := s.lock(brief, &s.tokens, writing, nil)
	busy := errors.Is(err, context.DeadlineExceeded)
	cancel()
	switch {
	case busy:
		return 0, errTokensBusy
	case err != nil:
		return 0, err
	}
	defer unlock()

	path := s.internal("tokens")
	text, err := readFile(path)
	missing := errors.Is(err, fs.ErrNotExist)
	var c counter
	if missing {
		if c.Reserved, err = s.tokensOnRecord(); err != nil {
			return 0, err
		}
	} else {
		if err == nil {
			err = c.decode(text)
		}
		if errors.Is(err, fs.ErrPermission) {
			return 0, refusal("the token counter "+path+" cannot be read", err)
		}
		if err != nil {
			return 0, &backend.CorruptError{Name: name, Where: path, Err: fmt.Errorf("%w; restore the file or delete it: tokens then go on above those of all records, and those of released leases are forgotten", err)}
		}
	}
	inPlace := c.Boot == s.boot && bytes.Equal(text, c.encode())
	if c.Boot != s.boot {
		c.Last, c.Boot = c.Reserved, s.boot
	}
	// Also above what this Store and the record know: the counter may have been
	// replaced by an older one.
	c.Last = max(c.Last, above, s.high) + 1
	switch {
	case floor+c.Last > backend.MaxToken: // nothing was written: others lose no count by it
		return 0, fmt.Errorf("%w: lease %q: its next token would be %d, with the floor %d that a MinToken sets; none can be greater than %d", backend.ErrInvalid, name, floor+c.Last, floor, uint64(backend.MaxToken))
	case inPlace && c.Last <= c.Reserved:
		err = overwrite(path, c.encode())
	default:
		c.Format, c.Reserved = format, min(c.Last+tokenBlock, backend.MaxToken)
		err = s.replace(path, s.internal("tokens.tmp"), c.encode(), true)
		if missing && err == nil {
			err = s.syncFolders()
		}
	}
	if err != nil {
		return 0, refusal("the token counter "+path+" cannot be written", err)
	}
	s.high = c.Last
	return floor + c.Last, nil
}

func (c *counter) decode(text []byte) error {
	if err := json.Unmarshal(text, c); err != nil {
		return fmt.Errorf("it is damaged, or no token counter: %w", err)
	}
	if c.Format != format || c.Boot == "" || c.Last > backend.MaxToken || c.Reserved > backend.MaxToken {
		return errors.New("it is no token counter of this version")
	}
	return nil
}

// tokensOnRecord returns a number that is above the count of every record in
// the folder, and well above, since some may be unreadable or about to be
// written; 0 if there are none.
func (s *Store) tokensOnRecord() (uint64, error) {
	files, err := os.ReadDir(s.dir)
	if err != nil {
		return 0, refusal("the folder "+s.dir+" cannot be read", err)
	}
	var greatest uint64
	for _, f := range files {
		if !strings.HasSuffix(f.Name(), suffix) {
			continue
		}
		greatest = max(greatest, tokenBlock)
		if e, err := s.read("", f.Name()); err != nil {
			return 0, err
		} else if e.corrupt == nil {
			greatest = max(greatest, e.count()+tokenBlock)
		}
	}
	return min(greatest, backend.MaxToken), nil
}

// overwrite writes text over the beginning of a file. Within one page a kill
// cannot interrupt it, and within one sector a power cut cannot.
func overwrite(path string, text []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|noFollow, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(text, 0)
	return errors.Join(err, f.Close())
}

// replace gives path a new text as a whole. The caller holds the lock that the
// temporary file belongs to, so what lies there was left by a killed process.
// With lasting set, it is on the disk for good when replace returns; otherwise
// a power cut may bring back the old text, but nothing in between.
func (s *Store) replace(path, temporary string, text []byte, lasting bool) error {
	f, err := os.OpenFile(temporary, os.O_CREATE|os.O_EXCL|os.O_WRONLY, s.perm)
	if errors.Is(err, fs.ErrExist) {
		if err := os.Remove(temporary); err != nil {
			return err
		}
		f, err = os.OpenFile(temporary, os.O_CREATE|os.O_EXCL|os.O_WRONLY, s.perm)
	}
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err == nil {
		err = s.share(f, s.perm)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(temporary, path)
	}
	if err != nil {
		os.Remove(temporary)
		return err
	}
	if lasting {
		return syncFolder(filepath.Dir(path))
	}
	return nil
}

// syncFolder makes the names in a folder last.
func syncFolder(dir string) error {
	f, err := os.Open(dir)
	if err == nil {
		err = errors.Join(f.Sync(), f.Close())
	}
	if err != nil {
		// Not %w: the change was made, so this is no definite refusal.
		return fmt.Errorf("the folder %s cannot be synced to the disk: %v", dir, err)
	}
	return nil
}

// syncFolders makes the folder itself last, and those that New made it in. Of
// those further up, some may not be ours to open.
func (s *Store) syncFolders() error {
	for dir := s.dir; filepath.Dir(dir) != dir; {
		dir = filepath.Dir(dir)
		_ = syncFolder(dir)
	}
	return syncFolder(s.dir)
}
