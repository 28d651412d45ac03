package file

import (
	"encoding/json"
	"os"
	"strings"
	"time"
)

// A record of another boot is over once it has been seen unchanged for its
// duration. Each Store remembers since when it has; those that were refused an
// acquire also leave a note in the folder, since a command that looks once and
// ends, as cron runs it every minute, would otherwise be refused for ever.

// sighting is when a record of another boot was first seen as it is.
type sighting struct {
	Revision string        `json:"revision"`
	At       time.Duration `json:"at"` // on the boot clock
}

// notes are the sightings of all names that share a lock. They are worth nothing
// in another boot.
type notes struct {
	Boot string              `json:"boot"`
	Seen map[string]sighting `json:"seen"` // by name
}

// firstSeen returns since when the record has been known unchanged. It is called
// after the record was read: a holder that renewed it before that is given its
// whole duration. A renewal changes the revision, so nothing can have happened
// between two sightings of the same one.
func (s *Store) firstSeen(name, revision string) time.Duration {
	noted, found := s.notes(name).Seen[name]
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seen[name].Revision != revision {
		s.seen[name] = sighting{revision, s.clock.Now()}
	}
	at := s.seen[name].At
	if found && noted.Revision == revision && noted.At >= 0 {
		at = min(at, noted.At)
	}
	return at
}

func (s *Store) forget(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.seen, name)
}

func (s *Store) notesPath(name string) string { return s.besideLock(name, ".seen") }

// notes reads what was noted in this boot. What cannot be read was not noted:
// the record then takes its duration once more.
func (s *Store) notes(name string) notes {
	n := notes{Boot: s.boot}
	text, err := readFile(s.notesPath(name))
	var found notes
	if err == nil && json.Unmarshal(text, &found) == nil && found.Boot == s.boot {
		n = found
	}
	return n
}

// note leaves the sighting of a record of another boot for other processes. The
// lock of the name is held.
func (s *Store) note(name, revision string) error {
	n := s.notes(name)
	if n.Seen[name].Revision == revision {
		return nil
	}
	if n.Seen == nil {
		n.Seen = make(map[string]sighting)
	}
	n.Seen[name] = sighting{revision, s.firstSeen(name, revision)}
	return s.writeNotes(name, n)
}

// unnote removes what was noted about a record of another boot, which is gone
// now. The lock of the name is held.
func (s *Store) unnote(name string) {
	n := s.notes(name)
	delete(n.Seen, name)
	if len(n.Seen) == 0 {
		_ = os.Remove(s.notesPath(name))
		return
	}
	_ = s.writeNotes(name, n) // a note too many does no harm
}

func (s *Store) writeNotes(name string, n notes) error {
	text, err := json.Marshal(n)
	if err == nil {
		err = s.replace(s.notesPath(name), s.temporary(name), text, false)
	}
	return err
}

// temporary is the file in which the holder of the name's lock prepares another.
func (s *Store) temporary(name string) string { return s.besideLock(name, ".tmp") }

func (s *Store) besideLock(name, suffix string) string {
	return strings.TrimSuffix(s.shard(name).path, ".lock") + suffix
}

// otherBoot reports whether the entry is a tenure whose instants mean nothing in
// this boot.
func (e *entry) otherBoot(s *Store) bool {
	return e.Holder != "" && e.Seal == nil && e.record.Boot != s.boot
}
