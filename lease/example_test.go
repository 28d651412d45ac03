package lease_test

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/backend/memory"
	"github.com/leasehold/leasehold/lease"
)

func Example() {
	ctx := context.Background()
	store, err := backend.Open(ctx, "memory:") // or file:///var/lib/myapp/leases
	if err != nil {
		panic(err)
	}
	defer store.Close()
	l, err := lease.New(store, "nightly-report", lease.WithDuration(15*time.Second))
	if err != nil {
		panic(err)
	}
	defer l.Close()
	err = l.Run(ctx, func(ctx context.Context) error { // waits, holds, releases
		fmt.Println("nobody else is here; token", l.Token())
		return ctx.Err() // ctx ends before anybody else can be let in
	})
	if err != nil {
		panic(err)
	}
	// Output: nobody else is here; token 1
}

// The example in the README is the one above.
func TestREADMEShowsTheExample(t *testing.T) {
	body := func(file, pattern string) string {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		m := regexp.MustCompile(pattern).FindSubmatch(text)
		if m == nil {
			t.Fatalf("%s: no match for %s", file, pattern)
		}
		var lines []string
		for line := range strings.Lines(string(m[1])) {
			if line = strings.TrimSpace(line); line != "" {
				lines = append(lines, line)
			}
		}
		return strings.Join(lines, "\n")
	}
	code := body("example_test.go", `(?s)func Example\(\) \{\n(.*?)\t// Output:`)
	readme := body("../README.md", "(?s)```go\n(.*?)```")
	if code != readme {
		t.Errorf("README.md shows\n%s\n\nexample_test.go runs\n%s", readme, code)
	}
}

func ExampleLease_TryAcquire() {
	ctx := context.Background()
	store := memory.New()
	a, _ := lease.New(store, "leader", lease.WithHolder("a"))
	b, _ := lease.New(store, "leader", lease.WithHolder("b"))
	fmt.Println(a.TryAcquire(ctx), b.TryAcquire(ctx))
	fmt.Println(b.Acquire(ctx).(*lease.AcquisitionError).Other)
	fmt.Println(a.TryRelease(ctx), b.TryAcquire(ctx))
	b.TryRelease(ctx)
	// Output:
	// true false
	// a
	// true true
}

func ExampleLease_Context() {
	ctx := context.Background()
	l, _ := lease.New(memory.New(), "leader", lease.WithDuration(100*time.Millisecond), lease.WithoutRenewal())
	_ = l.Acquire(ctx)
	<-l.Context().Done() // nobody renews it
	fmt.Println(context.Cause(l.Context()), l.Held())
	// Output: lease was not renewed in time false
}
