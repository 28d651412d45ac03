package kubernetes

import (
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/util/validation"
)

func TestObjectName(t *testing.T) {
	for name, want := range map[string]string{
		"nightly-report": "nightly-report",
		"a.b":            "a.b",
		"Nightly Report": "leasehold--nightly-report--",
		"a/b":            "leasehold--a-b--",
		"-":              "leasehold--",
		"ü":              "leasehold--",
		"leasehold--a":   "leasehold--leasehold--a--",
		"leasehold-a":    "leasehold-a",
	} {
		got := objectName(name)
		if encoded(got) != strings.HasPrefix(want, reserved) || !strings.HasPrefix(got, want) || !encoded(got) && got != want {
			t.Errorf("%q is %q, want %q…", name, got, want)
		}
	}
}

func FuzzObjectName(f *testing.F) {
	f.Add("a", "A")
	f.Add("leasehold--a", "a")
	f.Add(strings.Repeat("a", 253), strings.Repeat("a", 254))
	f.Fuzz(func(t *testing.T, a, b string) {
		x, y := objectName(a), objectName(b)
		if problems := validation.IsDNS1123Subdomain(x); a != "" && len(problems) > 0 {
			t.Fatalf("%q is %q, which Kubernetes refuses: %v", a, x, problems)
		}
		if (x == y) != (a == b) {
			t.Fatalf("%q and %q are %q and %q", a, b, x, y)
		}
		if x == a && objectName(x) != x || x != a && objectName(x) == x {
			t.Fatalf("%q is %q, and that is %q: a name can be made that is another's object", a, x, objectName(x))
		}
	})
}
