// Package percent makes names of leases fit into keys, and reads them back: some
// bytes become %XX, as in a URL.
package percent

import (
	"strings"

	"github.com/leasehold/leasehold/backend"
)

const digits = "0123456789ABCDEF"

// Escape replaces percent signs, control characters, which no terminal should have
// to show, and the bytes of special. Different names stay different.
func Escape(name, special string) string {
	n := 0
	for i := range len(name) {
		if escaped(name[i], special) {
			n++
		}
	}
	if n == 0 {
		return name
	}
	var b strings.Builder
	b.Grow(len(name) + 2*n)
	for i := range len(name) {
		if c := name[i]; escaped(c, special) {
			b.Write([]byte{'%', digits[c>>4], digits[c&15]})
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

func escaped(c byte, special string) bool {
	return c == '%' || c < ' ' || c == 0x7f || strings.IndexByte(special, c) >= 0
}

// Unescape returns the name whose escaped form this is; ok is false where no name of
// a lease has it.
func Unescape(text, special string) (name string, ok bool) {
	b := make([]byte, 0, len(text))
	for i := 0; i < len(text); i++ {
		c := text[i]
		if c != '%' {
			b = append(b, c)
			continue
		}
		if i+2 >= len(text) {
			return "", false
		}
		hi, lo := strings.IndexByte(digits, text[i+1]), strings.IndexByte(digits, text[i+2])
		if hi < 0 || lo < 0 {
			return "", false
		}
		b = append(b, byte(hi<<4|lo))
		i += 2
	}
	name = string(b)
	if Escape(name, special) != text || backend.CheckName(name) != nil {
		return "", false
	}
	return name, true
}
