package etcd

import (
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/leasehold/leasehold/backend"
)

// oddNames are names that a careless key would mix up.
var oddNames = []string{
	"report", "Report", "a/b", "a%2Fb", "a%2fb", "a%252Fb", "/", "//", "%", "%%", "%2F", "..", ".", " ", "a b",
	"a\tb", "a\nb", "a\x7fb", "a\x01", "ünïcödé", "日本", "{a}", "a\u0085b", strings.Repeat("/", backend.MaxNameLen),
}

func TestEscape(t *testing.T) {
	for name, want := range map[string]string{
		"report": "report",
		"a/b":    "a%2Fb",
		"a%2Fb":  "a%252Fb",
		"a\nb":   "a%0Ab",
		"a\x7fb": "a%7Fb",
		"日本 {x}": "日本 {x}",
	} {
		if got := escape(name); got != want {
			t.Errorf("escape(%q) = %q, want %q", name, got, want)
		}
	}
	seen := map[string]string{}
	for _, name := range oddNames {
		key := escape(name)
		if other, ok := seen[key]; ok {
			t.Errorf("%q and %q have the key %q", name, other, key)
		}
		seen[key] = name
		if got, ok := unescape(key); !ok || got != name {
			t.Errorf("unescape(escape(%q)) = %q, %v", name, got, ok)
		}
	}
}

// TestNobodys: keys that no name has. Were one of them listed under a name, that
// name would be found nowhere, or be another's.
func TestNobodys(t *testing.T) {
	for _, key := range []string{
		"", "a/b", "%", "a%", "a%2", "%2f", "%41", "%ZZ", "%G0", "a\nb", "%00", "\x00", "a\x00", "\xff", "a%FF",
		strings.Repeat("a", backend.MaxNameLen+1),
	} {
		if name, ok := unescape(key); ok {
			t.Errorf("unescape(%q) = %q", key, name)
		}
	}
}

func FuzzEscape(f *testing.F) {
	for _, name := range oddNames {
		f.Add(name)
	}
	f.Add("a%2")
	f.Add("\xff")
	f.Fuzz(func(t *testing.T, s string) {
		if backend.CheckName(s) == nil {
			key := escape(s)
			if got, ok := unescape(key); !ok || got != s {
				t.Errorf("unescape(escape(%q)) = %q, %v", s, got, ok)
			}
			for i := range len(key) {
				if c := key[i]; c == '/' || c < ' ' || c == 0x7f {
					t.Errorf("escape(%q) = %q", s, key)
				}
			}
		}
		// As a key that was found.
		if name, ok := unescape(s); ok && (escape(name) != s || backend.CheckName(name) != nil || !utf8.ValidString(name)) {
			t.Errorf("unescape(%q) = %q, whose key is %q", s, name, escape(name))
		}
	})
}

// TestKeys: both keys of a name and no others are in its range.
func TestKeys(t *testing.T) {
	s := New(nil, "/t/")
	for _, name := range oddNames {
		from := s.recordKey(name)
		for _, other := range oddNames {
			for _, k := range []string{s.recordKey(other), aliveKey(s.recordKey(other))} {
				if in := k >= from && k < endKey(from); in != (name == other) {
					t.Errorf("the key %q of %q is in the range of %q: %v", k, other, name, in)
				}
			}
		}
	}
}

// TestPrefixes: stores of which one's prefix begins with the other's keep apart.
func TestPrefixes(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, f *fake) {
		client := f.client()
		short, long := New(client, "/a/"), New(client, "/a/b/")
		for _, s := range []*Store{short, long} {
			for _, name := range oddNames {
				c := claim("alice", "a")
				c.Name = name
				acquired(t, s, c)
			}
		}
		// Keys of a person's, which are nobody's lease.
		f.set("/a/c/d", "x", 0)
		f.set("/a/%2f", "x", 0)
		f.set("/a/", "x", 0)
		f.set("/ab/report", "x", 0)
		want := slices.Sorted(slices.Values(oddNames))
		for _, s := range []*Store{short, long} {
			var got []string
			for rec, err := range s.List(t.Context(), "") {
				if err != nil || rec.Holder != "alice" || rec.Token == 0 {
					t.Errorf("%s lists %+v, %v", s.Prefix(), rec, err)
				}
				got = append(got, rec.Name)
			}
			if slices.Sort(got); !slices.Equal(got, want) {
				t.Errorf("%s lists %q, want %q", s.Prefix(), got, want)
			}
		}
		if len(want) != len(slices.Compact(want)) || len(f.now()) != 4*len(want)+4 {
			t.Errorf("there are %d keys for two times %d names", len(f.now()), len(want))
		}
	})
}

// TestListPages: a page may end between the two keys of a name, and later pages
// are of the same revision as the first.
func TestListPages(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, f *fake) {
		s := f.store()
		f.set("/t/0-person's", "x", 0) // so that the 1000th key is a record
		c := claim("alice", "a")
		const n = 1050
		value, err := encode(tenure{Version: format, Holder: "alice", Duration: text(c.Duration)})
		if err != nil {
			t.Fatal(err)
		}
		f.mu.Lock() // as n Txns would be slow: the fake reads its history for each
		for i := range n {
			k := s.recordKey(strings.Repeat("0", i/100) + string(rune('A'+i%100)))
			f.put(2, k, value, 0)
			f.put(2, k+"\x00", value, 0)
			if i == n-1 {
				f.written(2)
			}
		}
		f.mu.Unlock()
		f.hooks(nil, nil)
		names := map[string]bool{}
		corrupt := 0
		for rec, err := range s.List(t.Context(), "") {
			if err != nil {
				corrupt++
				continue
			}
			if len(names) == 0 {
				f.remove(s.recordKey("zzz")) // anything, so that the newest revision is another
				f.set(s.recordKey("~later"), value, 0)
			}
			if rec.Holder != "alice" || rec.Expired || rec.Token == 0 {
				t.Errorf("listed: %+v", rec)
			}
			names[rec.Name] = true
		}
		if len(names) != n || corrupt != 1 {
			t.Errorf("%d names and %d errors, want %d and 1", len(names), corrupt, n)
		}
		if got := f.requests(); got != "Range Range Range" {
			t.Errorf("requests: %s", got)
		}
	})
}
