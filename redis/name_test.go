package redis

import (
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/leasehold/leasehold/backend"
)

// globMatch is SCAN's MATCH: Redis's stringmatchlen, which is no path.Match.
func globMatch(pattern, text string) bool {
	for pattern != "" {
		switch pattern[0] {
		case '*':
			for i := range len(text) + 1 {
				if globMatch(pattern[1:], text[i:]) {
					return true
				}
			}
			return false
		case '?':
			if text == "" {
				return false
			}
		case '[':
			if text == "" {
				return false
			}
			pattern = pattern[1:]
			not := strings.HasPrefix(pattern, "^")
			if not {
				pattern = pattern[1:]
			}
			match := false
			for {
				switch {
				case len(pattern) >= 2 && pattern[0] == '\\':
					pattern = pattern[1:]
					match = match || pattern[0] == text[0]
				case pattern == "" || pattern[0] == ']':
					goto end
				case len(pattern) >= 3 && pattern[1] == '-':
					from, to := min(pattern[0], pattern[2]), max(pattern[0], pattern[2])
					match = match || text[0] >= from && text[0] <= to
					pattern = pattern[2:]
				default:
					match = match || pattern[0] == text[0]
				}
				pattern = pattern[1:]
			}
		end:
			if match == not {
				return false
			}
			if pattern == "" {
				return len(text) == 1
			}
		case '\\':
			if len(pattern) >= 2 {
				pattern = pattern[1:]
			}
			fallthrough
		default:
			if text == "" || pattern[0] != text[0] {
				return false
			}
		}
		pattern, text = pattern[1:], text[1:]
	}
	return text == ""
}

func TestGlobMatch(t *testing.T) {
	for _, c := range []struct {
		pattern, text string
		want          bool
	}{
		{"a*", "abc", true}, {"a*c", "abc", true}, {"a*d", "abc", false}, {"*", "", true}, {"", "a", false},
		{"a?c", "abc", true}, {"a?", "a", false}, {"[ab]x", "bx", true}, {"[^ab]x", "bx", false}, {"[^ab]x", "cx", true},
		{"[a-c]", "b", true}, {"[c-a]", "b", true}, {"[a-c]", "d", false}, {`[\]]`, "]", true}, {`\*`, "*", true}, {`\*`, "a", false},
		{`a\`, `a\`, true}, {"[a", "a", true}, {`\-x`, "-x", true}, {"a", "", false},
	} {
		if got := globMatch(c.pattern, c.text); got != c.want {
			t.Errorf("%q matches %q: %v", c.pattern, c.text, got)
		}
	}
}

// oddNames are names that a careless key would mix up.
var oddNames = []string{
	"report", "Report", "a/b", "a%2Fb", "a%2fb", "a%252Fb", "%", "%%", "%7B", "{", "}", "{}", "{a}", "}{", "a}:alive", "a:alive", ":alive",
	"..", " ", "a b", "a\tb", "a\nb", "a\rb", "a\x7fb", "a\x01", "ünïcödé", "日本", "a\u0085b",
	"*", "?", "a*", "a?b", "[a]", "[^a]", "a-b", `\`, `\\`, `a\*`, strings.Repeat("{", backend.MaxNameLen), "a",
}

// oddPrefixes begin each other, have a hash tag, and what patterns are made of.
var oddPrefixes = []string{"t:", "t:{", "t", "app{x}", "{x}", "{x}{", "a*:", "a?:", "[a]:", `a\:`, "^", "-", "%7B", "x:{y}:alive", "ä:"}

func TestEscape(t *testing.T) {
	for name, want := range map[string]string{
		"report":    "report",
		"a/b c":     "a/b c",
		"a{b}c":     "a%7Bb%7Dc",
		"a%7Bb":     "a%257Bb",
		"a\nb":      "a%0Ab",
		"a\x1fb":    "a%1Fb",
		"a\x7fb":    "a%7Fb",
		"日本\x01":    "日本%01",
		"a*?[]\\:-": "a*?[]\\:-",
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

// TestNobodys: what no name is written as. Were one of them listed under a name, that
// would be found nowhere, or be another's.
func TestNobodys(t *testing.T) {
	for _, key := range []string{
		"", "{", "a}", "%", "a%", "a%2", "%7b", "%41", "%ZZ", "%G0", "%7G", "a\nb", "%00", "\x00", "\x7f", "\xff", "a%FF", "%2F",
		strings.Repeat("a", backend.MaxNameLen+1),
	} {
		if name, ok := unescape(key); ok {
			t.Errorf("unescape(%q) = %q", key, name)
		}
	}
}

func FuzzEscape(f *testing.F) {
	for _, name := range oddNames {
		f.Add(name, "a")
	}
	f.Add("a%2", "a%252")
	f.Add("\xff", "%FF")
	f.Fuzz(func(t *testing.T, a, b string) {
		if backend.CheckName(a) == nil {
			key := escape(a)
			if got, ok := unescape(key); !ok || got != a {
				t.Errorf("unescape(escape(%q)) = %q, %v", a, got, ok)
			}
			if strings.ContainsAny(key, "{}\r\n\x7f\x00") {
				t.Errorf("escape(%q) = %q", a, key)
			}
			if backend.CheckName(b) == nil {
				if escape(a) == escape(b) != (a == b) {
					t.Errorf("escape(%q) = %q, escape(%q) = %q", a, key, b, escape(b))
				}
				// A prefix of a name is one of its key.
				if strings.HasPrefix(a, b) != strings.HasPrefix(key, escape(b)) {
					t.Errorf("%q begins with %q: %v; of the keys %q and %q that is not so", a, b, strings.HasPrefix(a, b), key, escape(b))
				}
			}
		}
		// As a key that was found.
		if name, ok := unescape(a); ok && (escape(name) != a || backend.CheckName(name) != nil || !utf8.ValidString(name)) {
			t.Errorf("unescape(%q) = %q, whose key is %q", a, name, escape(name))
		}
	})
}

// hashTag is what decides in which slot of a cluster a key lies.
func hashTag(key string) string {
	_, rest, ok := strings.Cut(key, "{")
	if tag, _, closed := strings.Cut(rest, "}"); ok && closed && tag != "" {
		return tag
	}
	return key
}

// TestKeys: no two names of any stores share a key, both keys of a name lie in one
// slot, and each key is found again under its name, in its store only.
func TestKeys(t *testing.T) {
	owners := map[string]string{}
	stores := map[string]*Store{}
	for _, prefix := range oddPrefixes {
		if s := New(nil, prefix); s.Prefix() == prefix {
			stores[prefix] = s
		}
	}
	for _, prefix := range oddPrefixes {
		s := New(nil, prefix)
		if s.Prefix() != prefix {
			if prefix == "t:{" || prefix == "{x}{" { // New refuses these
				continue
			}
			t.Fatalf("the prefix %q is %q", prefix, s.Prefix())
		}
		for _, name := range oddNames {
			record, alive := s.keys(name)
			if hashTag(record) != hashTag(alive) {
				t.Errorf("%q and %q are in different slots", record, alive)
			}
			if !strings.Contains(prefix, "{") && hashTag(record) != escape(name) {
				t.Errorf("the hash tag of %q is %q, want the name's", record, hashTag(record))
			}
			for _, key := range []string{record, alive} {
				if owner, ok := owners[key]; ok {
					t.Errorf("the key %q is that of %s, and of %q under %q", key, owner, name, prefix)
				}
				owners[key] = prefix + " " + name
				if got, ok := s.nameOf(key); !ok || got != name {
					t.Errorf("nameOf(%q) under %q = %q, %v, want %q", key, prefix, got, ok, name)
				}
				for other, o := range stores {
					if got, ok := o.nameOf(key); ok && other != prefix {
						t.Errorf("nameOf(%q) under %q = %q, it is of the store %q", key, other, got, prefix)
					}
				}
			}
		}
	}
}

// TestNameOfOthers: keys of a person's are nobody's lease.
func TestNameOfOthers(t *testing.T) {
	s := New(nil, "t:")
	for _, key := range []string{
		"", "t:", "t:{", "t:{}", "t:{a", "t:a}", "t:{a}x", "t:{a}:alive:alive", "t:{a}:other", "x:{a}", "T:{a}", "t:{a\n}", "t:{a{b}", "t:{a}b}", "t:{%41}", "at:{a}",
	} {
		if name, ok := s.nameOf(key); ok {
			t.Errorf("nameOf(%q) = %q", key, name)
		}
	}
}

// TestPattern: it matches the keys of the names with the prefix, and of no others.
func TestPattern(t *testing.T) {
	begin := append(slices.Clone(oddNames), "", "a%", "a{", "[", "%7")
	for _, prefix := range oddPrefixes {
		s := New(nil, prefix)
		if s.Prefix() != prefix {
			continue
		}
		for _, start := range begin {
			pattern := s.pattern(start)
			for _, name := range oddNames {
				record, alive := s.keys(name)
				for _, key := range []string{record, alive} {
					if got := globMatch(pattern, key); got != strings.HasPrefix(name, start) {
						t.Errorf("%q matches the key %q: %v, and %q begins with %q: %v", pattern, key, got, name, start, !got)
					}
					if globMatch(pattern, "x"+key) {
						t.Errorf("%q matches %q", pattern, "x"+key)
					}
				}
			}
		}
	}
}

// TestList: over odd names of several stores, with other things in between, each lists
// its own, once.
func TestList(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fake) {
		client := f.client()
		want := slices.Sorted(slices.Values(oddNames))
		for _, prefix := range []string{"t:", "t", "a*:", "app{x}"} {
			s := f.storeOf(client)
			s.prefix = prefix
			for _, name := range oddNames {
				c := claim("alice", "a")
				c.Name = name
				acquired(t, s, c)
			}
		}
		f.with(func() {
			for _, key := range []string{"t:{a}x", "t:{%41}", "t:", "x"} {
				f.rows[key] = &row{fields: map[string]string{"token": "1"}}
			}
		})
		for _, prefix := range []string{"t:", "t", "a*:", "app{x}"} {
			s := f.storeOf(client)
			s.prefix = prefix
			for _, start := range []string{"", "a", "{", "zzz"} {
				var got []string
				for rec, err := range s.List(t.Context(), start) {
					if err != nil || rec.Holder != "alice" || rec.Token == 0 {
						t.Errorf("%s lists %+v, %v", prefix, rec, err)
					}
					got = append(got, rec.Name)
				}
				slices.Sort(got)
				some := slices.DeleteFunc(slices.Clone(want), func(name string) bool { return !strings.HasPrefix(name, start) })
				if !slices.Equal(got, some) {
					t.Errorf("%s lists %q under %q, want %q", prefix, got, start, some)
				}
			}
		}
	})
}

// TestListGone: a name that goes between its key and its record is not listed.
func TestListGone(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fake) {
		s := f.store()
		for _, name := range []string{"a", "b", "c"} {
			c := claim("alice", "a")
			c.Name = name
			acquired(t, s, c)
		}
		f.hooks(nil, func(r request, _ any) any {
			if r.what == "SCAN" {
				f.remove("b")
				f.spoil("c", "it is no hash")
			}
			return nil
		})
		var got []string
		for rec, err := range s.List(t.Context(), "") {
			if got = append(got, rec.Name); rec.Name == "c" {
				refused(t, "c", err, backend.ErrCorrupt)
			} else if err != nil {
				t.Error(err)
			}
		}
		if slices.Sort(got); !slices.Equal(got, []string{"a", "c"}) {
			t.Errorf("List: %q", got)
		}
	})
}

// TestCheckPrefix: which prefixes can be used.
func TestCheckPrefix(t *testing.T) {
	for prefix, ok := range map[string]bool{
		"": true, "a": true, "app:": true, "{app}": true, "a{b}c": true, "a}": true, "}": true, "a{b}{": true, "a{b}{}": true, "日本": true,
		strings.Repeat("a", backend.MaxNameLen): true,
		"{":                                     false, "a{": false, "{}": false, "a{}b": false, "{}{b}": false, "}{": false, "a{b": false,
		"a\x00b": false, "\xff": false, strings.Repeat("a", backend.MaxNameLen+1): false,
	} {
		got, err := checkPrefix(prefix)
		if ok && (err != nil || got != prefix && prefix != "" || got == "") {
			t.Errorf("the prefix %q: %q, %v", prefix, got, err)
		}
		if !ok {
			refused(t, "the prefix "+prefix, err, backend.ErrInvalid)
		}
	}
	if got, _ := checkPrefix(""); got != DefaultPrefix {
		t.Errorf("the default prefix is %q", got)
	}
}
