package file

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/leasehold/leasehold/backend"
)

const (
	format = 1 // of record and counter files; greater ones are of newer programs

	suffix = ".json"

	maxFileSize = 1 << 20 // no record of ours comes near

	// maxReadable is how much of a name its file name shows at most.
	maxReadable = 64
)

// fileName returns the name of the file that keeps the record of a lease. Short
// names of plain characters are file names as they are. All others, upper case
// among them since there are file systems that do not tell it from lower case,
// get a hash, behind a character that no plain name has.
func fileName(name string) string {
	plain := readable(name)
	if plain == name {
		return name + suffix
	}
	sum := sha256.Sum256([]byte(name))
	return plain + "~" + hex.EncodeToString(sum[:16]) + suffix
}

// readable returns as much of name as a file name can show.
func readable(name string) string {
	b := []byte(name[:min(len(name), maxReadable)])
	for i, c := range b {
		switch {
		case 'A' <= c && c <= 'Z':
			b[i] = c + 'a' - 'A'
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '_', c == '-', c == '.' && i > 0:
		default:
			b[i] = '-'
		}
	}
	return string(b)
}

// guessName returns the lease name for a file whose text does not tell: the name
// itself, or the file name where it is hashed.
func guessName(file string) string { return strings.TrimSuffix(file, suffix) }

// mayHavePrefix reports whether the file may be the record of a name with that
// prefix.
func mayHavePrefix(file, prefix string) bool {
	shown, _, hashed := strings.Cut(guessName(file), "~")
	if !hashed {
		return strings.HasPrefix(shown, prefix)
	}
	prefix = readable(prefix)
	return strings.HasPrefix(shown, prefix) || strings.HasPrefix(prefix, shown)
}

// record is the text of a file: a head of fixed width, which renewals overwrite
// in place, and a body, which lasts as long as the tenure. Without a holder it is
// vacant, and there only to keep its floor.
type record struct {
	Format    int           `json:"leasehold"`
	Renewed   time.Duration `json:"renewed"`   // on the boot clock, in nanoseconds
	RenewedAt time.Time     `json:"renewedAt"` // for people
	body
}

type body struct {
	Name        string            `json:"name"`
	Holder      string            `json:"holder"`
	Token       uint64            `json:"token"`           // above Floor
	Floor       uint64            `json:"floor,omitempty"` // the greatest MinToken granted
	Attempt     string            `json:"attempt,omitempty"`
	Duration    duration          `json:"duration,omitzero"`
	Boot        string            `json:"boot"`
	AcquiredAt  time.Time         `json:"acquiredAt,omitzero"`
	Transitions int64             `json:"transitions"`
	Metadata    map[string]string `json:"metadata,omitempty"`
	Seal        *seal             `json:"seal,omitempty"`
}

type seal struct {
	To           string   `json:"to"`
	Epoch        uint64   `json:"epoch"`
	Heir         string   `json:"heir,omitempty"`
	HeirDuration duration `json:"heirDuration,omitempty"`
}

// duration is written as people write it.
type duration time.Duration

func (d duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

func (d *duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	*d = duration(v)
	return err
}

// head returns the first bytes of the file. They fit into one disk sector and
// one page of memory, so that neither a power cut nor a kill tears them. Someone
// who reads without a lock may still see half of an overwrite; the checksum
// tells.
func (r *record) head() []byte {
	h := fmt.Appendf(make([]byte, 0, 160), "{\n  \"leasehold\": %d,\n  \"renewed\": %20d,\n  \"renewedAt\": %q,\n",
		r.Format, r.Renewed, r.RenewedAt.UTC().Format("2006-01-02T15:04:05.000000000Z"))
	return fmt.Appendf(h, "  \"check\": \"%08x\",\n", crc32.ChecksumIEEE(h))
}

func (r *record) encode() ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(r.body); err != nil {
		return nil, err
	}
	return append(r.head(), b.Bytes()[len("{\n"):]...), nil
}

// entry is what was found under a name at an instant.
type entry struct {
	backend.Record                       // without Revision if there is none
	corrupt        *backend.CorruptError // if not nil, there is a record that cannot be read

	text   []byte
	record record
	whole  bool // the head is what its values say: not torn, not edited
}

// exists reports whether there is a record, readable or not, held or vacant.
func (e *entry) exists() bool { return e.Revision != "" }

// count returns what the token was given by the counter of the folder; 0 if
// there is no token.
func (e *entry) count() uint64 {
	if e.Token == 0 {
		return 0
	}
	return e.Token - e.record.Floor
}

// plain reports whether the entry is true though it was read without a lock. A
// live record, a vacant and an absent one were there at that instant. But a
// record that looks expired may be about to be renewed by someone who has looked
// at the clock and not yet written, and an odd one may be half written.
func (e *entry) plain() bool { return !e.exists() || e.whole && !e.Expired }

// read returns what lies under name. With an empty name it is the one that the
// file tells.
func (s *Store) read(name, file string) (*entry, error) {
	e := &entry{Record: backend.Record{Name: name}}
	// Before the file is read: whoever renews it afterwards is not called expired.
	now := s.clock.Now()
	path := filepath.Join(s.dir, file)
	text, err := readFile(path)
	var odd *oddFile
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if _, err := os.Stat(s.dir); err != nil {
			return nil, refusal("the record of lease "+name+" cannot be looked for", err)
		}
		s.forget(name)
		return e, nil
	case errors.As(err, &odd):
		e.corrupt = &backend.CorruptError{Revision: odd.revision, Err: odd}
	case err != nil:
		return nil, refusal("the record "+path+" cannot be read", err)
	default:
		e.text = text
		if err := e.decode(file, now, s.boot); err != nil {
			e.corrupt = &backend.CorruptError{Revision: revision(text), Err: err}
		}
	}
	if e.corrupt != nil {
		e.corrupt.Where = path
		e.corrupt.Err = fmt.Errorf("%w; if nobody needs it, move it away or take the lease over by force", e.corrupt.Err)
		if name != "" {
			e.corrupt.Name = name
		} else if e.corrupt.Name = e.record.Name; e.corrupt.Name == "" || fileName(e.corrupt.Name) != file {
			e.corrupt.Name = guessName(file)
		}
		e.Record = backend.Record{Name: e.corrupt.Name, Revision: e.corrupt.Revision}
		s.forget(e.Name)
		return e, nil
	}

	if e.Vacant() || e.Seal != nil { // neither ends
		s.forget(e.Name)
		return e, nil
	}
	end := e.record.Renewed + e.Duration
	if e.record.Boot == s.boot {
		s.forget(e.Name)
	} else {
		end = s.firstSeen(e.Name, e.Revision) + e.Duration
	}
	if e.Expired = now >= end; !e.Expired {
		e.Remaining = min(end-now, e.Duration)
	}
	return e, nil
}

// decode fills the entry from its text, all but Expired and Remaining.
func (e *entry) decode(file string, now time.Duration, boot string) error {
	r := &e.record
	if len(e.text) == 0 {
		return errors.New("the file is empty")
	}
	err := json.Unmarshal(e.text, r)
	switch {
	case r.Format > format:
		return fmt.Errorf("it has format %d, and this program knows %d: use a newer one", r.Format, format)
	case err != nil:
		return fmt.Errorf("it is damaged, or not a lease: %w", err)
	case r.Format != format:
		return errors.New("it is not a lease")
	case backend.CheckName(r.Name) != nil, fileName(r.Name) != file, e.Name != "" && e.Name != r.Name:
		return fmt.Errorf("it is the record of another lease, %q", r.Name)
	case r.Holder == "" && (r.Floor == 0 || r.Token != 0 || r.Seal != nil):
		return errors.New("it names no holder")
	case r.Floor >= backend.MaxToken:
		return fmt.Errorf("its token floor %d cannot be", r.Floor)
	case r.Holder != "" && (r.Token <= r.Floor || r.Token > backend.MaxToken):
		return fmt.Errorf("its token %d cannot be", r.Token)
	case r.Holder != "" && r.Seal == nil && (r.Duration <= 0 || r.Duration > duration(backend.MaxDuration)):
		return fmt.Errorf("its duration %v cannot be", time.Duration(r.Duration))
	case r.Renewed < 0, r.Boot == "", r.Boot == boot && r.Renewed > now+time.Second:
		return fmt.Errorf("its time of renewal, %v after the boot %q, cannot be", r.Renewed, r.Boot)
	}
	e.whole = bytes.HasPrefix(e.text, r.head())
	e.Record = r.view(e.text)
	return nil
}

// view returns the record as callers see it, without Expired and Remaining.
func (r *record) view(text []byte) backend.Record {
	if r.Holder == "" {
		return backend.Record{Name: r.Name, Transitions: r.Transitions, Revision: revision(text)}
	}
	v := backend.Record{
		Name:        r.Name,
		Holder:      r.Holder,
		Token:       r.Token,
		Attempt:     r.Attempt,
		Duration:    time.Duration(r.Duration),
		AcquiredAt:  r.AcquiredAt,
		RenewedAt:   r.RenewedAt,
		Transitions: r.Transitions,
		Metadata:    r.Metadata,
		Revision:    revision(text),
	}
	if r.Seal != nil {
		v.Duration = backend.Forever
		v.Seal = &backend.Seal{To: r.Seal.To, Epoch: r.Seal.Epoch, Heir: r.Seal.Heir, HeirDuration: time.Duration(r.Seal.HeirDuration)}
	}
	return v
}

// granted is the view of what was written just now.
func (r *record) granted(text []byte) backend.Record {
	v := r.view(text)
	if v.Seal == nil {
		v.Remaining = v.Duration
	}
	return v
}

// revision changes with every write, since the instant of renewal, the token or
// (from one vacant record to the next) the count of transitions does, and with
// every edit by hand.
func revision(text []byte) string {
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:16])
}

// readFile returns the text of a regular file. The error is an *oddFile if there
// is something else in its place.
func readFile(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|noFollow, 0)
	if err != nil {
		return nil, odd(path, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxFileSize {
		return nil, odd(path, errors.New("it changed meanwhile"))
	}
	text := make([]byte, info.Size())
	n, err := f.ReadAt(text, 0)
	if err != nil && err != io.EOF { // the end: somebody has cut it off just now
		return nil, err
	}
	return text[:n], nil
}

// oddFile is a file whose text cannot be had, or does not matter.
type oddFile struct {
	what     string
	mode     fs.FileMode
	revision string
	cause    error
}

func (e *oddFile) Error() string { return "it is " + e.what }

func (e *oddFile) Unwrap() error { return e.cause }

// odd says what is wrong with a file that could not be read because of cause.
func odd(path string, cause error) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	mode := info.Mode()
	e := &oddFile{mode: mode, cause: cause, revision: fmt.Sprintf("%v-%d-%d", mode, info.Size(), info.ModTime().UnixNano())}
	switch {
	case mode&fs.ModeSymlink != 0:
		e.what = "a symbolic link"
	case mode.IsDir():
		e.what = "a folder"
	case !mode.IsRegular():
		e.what = "no regular file"
	case info.Size() > maxFileSize:
		e.what = "far too large"
	case errors.Is(cause, fs.ErrPermission):
		e.what = fmt.Sprintf("a file that this user (uid %d) may not read", os.Geteuid())
	default:
		return cause
	}
	return e
}
