package etcd

import (
	"strings"
	"unicode/utf8"

	"github.com/leasehold/leasehold/backend"
)

const hex = "0123456789ABCDEF"

// escape makes a name one segment of a path that a terminal can show: slashes,
// percent signs and control characters become %XX. So a store under /a/ and one
// under /a/b/ never share a key.
func escape(name string) string {
	n := 0
	for i := range len(name) {
		if special(name[i]) {
			n++
		}
	}
	if n == 0 {
		return name
	}
	var b strings.Builder
	b.Grow(len(name) + 2*n)
	for i := range len(name) {
		if c := name[i]; special(c) {
			b.Write([]byte{'%', hex[c>>4], hex[c&15]})
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

func special(c byte) bool { return c == '/' || c == '%' || c < ' ' || c == 0x7f }

// unescape returns the name whose escaped form this is; ok is false where no name
// has it.
func unescape(key string) (name string, ok bool) {
	b := make([]byte, 0, len(key))
	for i := 0; i < len(key); i++ {
		c := key[i]
		if c != '%' {
			b = append(b, c)
			continue
		}
		if i+2 >= len(key) {
			return "", false
		}
		hi, lo := strings.IndexByte(hex, key[i+1]), strings.IndexByte(hex, key[i+2])
		if hi < 0 || lo < 0 {
			return "", false
		}
		b = append(b, byte(hi<<4|lo))
		i += 2
	}
	name = string(b)
	if escape(name) != key || !utf8.ValidString(name) || backend.CheckName(name) != nil {
		return "", false
	}
	return name, true
}

// A name has two keys side by side, so that one Range reads both and one Watch
// sees both.

// recordKey is the key of the record, which people read.
func (s *Store) recordKey(name string) string { return s.prefix + escape(name) }

// aliveKey is the key that the tenure lives in. No other lies between it and the
// record's, and no name has it: names have no NUL.
func aliveKey(recordKey string) string { return recordKey + "\x00" }

// endKey is the end of the range of both.
func endKey(recordKey string) string { return recordKey + "\x00\x00" }
