package conformance_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/backend/memory"
	"github.com/leasehold/leasehold/conformance"
)

// This is all that the test of a store needs.
func ExampleRun() {
	_ = func(t *testing.T) { // func TestConformance(t *testing.T)
		store := memory.New()
		defer store.Close()
		conformance.Run(t, func(tb testing.TB) backend.Store {
			return store.Client()
		})
	}
}

// Without package testing: some of the cases against a live server.
func ExampleCheck() {
	store := memory.New()
	defer store.Close()
	open := func() (backend.Store, error) { return store.Client(), nil }

	var some []conformance.Case
	for _, c := range conformance.Cases() {
		if c.Group() == "tokens" {
			some = append(some, c)
		}
	}
	var summary conformance.Summary
	for result := range conformance.Check(context.Background(), open, conformance.WithCases(some...)) {
		if result.Err != nil {
			fmt.Println(result) // what happened, the rule, the reason, the calls
		}
		summary.Add(result)
	}
	fmt.Println(summary)
	// Output: 8 passed, 0 failed, 0 skipped
}

// A renewal whose reply is lost costs nobody the lease.
func ExampleFaults() {
	store := memory.New()
	defer store.Close()
	faults := conformance.NewFaults(store.Client())
	faults.Next(conformance.VerbRenew, conformance.LoseReply(nil))
	flaky := faults.Store() // for the code under test

	ctx := context.Background()
	rec, err := flaky.Acquire(ctx, backend.Claim{Name: "nightly-report", Holder: "alice", Duration: 15_000_000_000})
	fmt.Println(rec.Holder, err)
	_, err = flaky.Renew(ctx, rec)
	fmt.Println(err)
	_, err = flaky.Renew(ctx, rec)
	fmt.Println(err)
	// Output:
	// alice <nil>
	// injected fault
	// <nil>
}
