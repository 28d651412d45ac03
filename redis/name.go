package redis

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/internal/percent"
)

// DefaultPrefix is what keys begin with where no prefix is given.
const DefaultPrefix = "leasehold:"

// checkPrefix returns the prefix to use. In a cluster both keys of a name must lie
// in one hash slot, which the first pair of braces in a key decides.
func checkPrefix(prefix string) (string, error) {
	switch {
	case prefix == "":
		return DefaultPrefix, nil
	case !utf8.ValidString(prefix):
		return "", fmt.Errorf("%w: the prefix %q is not valid UTF-8", backend.ErrInvalid, prefix)
	case strings.ContainsRune(prefix, 0):
		return "", fmt.Errorf("%w: the prefix %q contains a NUL character", backend.ErrInvalid, prefix)
	case len(prefix) > backend.MaxNameLen:
		return "", fmt.Errorf("%w: the prefix is %d bytes long, at most %d are allowed", backend.ErrInvalid, len(prefix), backend.MaxNameLen)
	}
	if _, tag, ok := strings.Cut(prefix, "{"); ok && strings.IndexByte(tag, '}') < 1 {
		return "", fmt.Errorf("%w: the prefix %q has a brace that is no hash tag: {text} puts all names into one slot of a cluster, without braces they are spread", backend.ErrInvalid, prefix)
	}
	return prefix, nil
}

// special would end the hash tag that a name is. So stores with different prefixes
// never share a key.
const special = "{}"

func escape(name string) string { return percent.Escape(name, special) }

func unescape(text string) (name string, ok bool) { return percent.Unescape(text, special) }

const aliveSuffix = ":alive"

// keys returns both keys of a name. That of the record is its channel, too.
func (s *Store) keys(name string) (record, alive string) {
	record = s.prefix + "{" + escape(name) + "}"
	return record, record + aliveSuffix
}

// nameOf returns the name that a key belongs to; ok is false if none has it.
func (s *Store) nameOf(key string) (name string, ok bool) {
	rest, ok := strings.CutPrefix(strings.TrimSuffix(key, aliveSuffix), s.prefix+"{")
	if !ok || !strings.HasSuffix(rest, "}") {
		return "", false
	}
	return unescape(strings.TrimSuffix(rest, "}"))
}

// pattern matches the keys of all names that begin with prefix, as SCAN has it.
func (s *Store) pattern(prefix string) string {
	var b strings.Builder
	for _, c := range []byte(s.prefix + "{" + escape(prefix)) {
		if strings.IndexByte(`*?[]^-\`, c) >= 0 {
			b.WriteByte('\\')
		}
		b.WriteByte(c)
	}
	b.WriteByte('*')
	return b.String()
}
