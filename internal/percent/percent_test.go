package percent_test

import (
	"testing"

	"github.com/leasehold/leasehold/internal/percent"
)

func Test(t *testing.T) {
	for name, want := range map[string]string{
		"nightly-report": "nightly-report",
		"a/b{c}":         "a%2Fb{c}",
		"100%":           "100%25",
		"%2F":            "%252F",
		"a\nb\x7f":       "a%0Ab%7F",
		"größe 😀":        "größe 😀",
	} {
		if got := percent.Escape(name, "/"); got != want {
			t.Errorf("%q becomes %q, want %q", name, got, want)
		}
		if got, ok := percent.Unescape(want, "/"); !ok || got != name {
			t.Errorf("%q becomes %q, %v, want %q", want, got, ok, name)
		}
	}
	for _, text := range []string{"", "a/b", "100%", "%2", "%zz", "%2f", "%41", "\xff", "%00", "a\nb"} {
		if name, ok := percent.Unescape(text, "/"); ok {
			t.Errorf("%q is taken for the escaped form of %q", text, name)
		}
	}
}

func Fuzz(f *testing.F) {
	f.Add("a/b%2F")
	f.Fuzz(func(t *testing.T, text string) {
		if name, ok := percent.Unescape(text, "/{}"); ok && percent.Escape(name, "/{}") != text {
			t.Errorf("%q is not the escaped form of %q", text, name)
		}
	})
}
