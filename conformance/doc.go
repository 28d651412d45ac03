// Package conformance proves that a store keeps the promises of package
// backend, and that a lease held in it keeps those of package lease.
//
// # Plugging in a store
//
// One function, which opens another client of the same store each time:
//
//	func TestConformance(t *testing.T) {
//		server := start(t) // empty
//		conformance.Run(t, func(tb testing.TB) backend.Store {
//			return mystore.New(server.Addr())
//		})
//	}
//
// The suite closes the clients it opened. Run it under the race detector.
//
// What is checked follows from the store's [backend.Traits]: its shortest
// duration, its granularity, how late it calls a tenure expired, whether its
// renewals can be seen. What it cannot do at all is declared with [Without];
// the suite then checks that it really refuses. A case that cannot be run is
// skipped with a reason, counted, and shown in the summary. [Strict] turns
// every skip into a failure.
//
// A wrapper is a store: run the suite over it as well.
//
// # Without package testing
//
// [Check] runs the same cases against a live server and yields each [Result].
// `leasehold conformance --store URL` is built on it. Every name that a case
// touches begins with a prefix ([WithPrefix]) and contains the name of the case
// and a random part, so that runs disturb neither each other nor anybody else;
// after the case its names are freed, by force where needed. What may stay is what
// the contract says must: vacated records that keep a token floor.
//
// # What a failure says
//
// What happened, at which line of the case, the rule that was checked, why the
// rule exists, and the last calls the case made:
//
//	contract/release-stale (cases_release.go:91)
//	    what: the stale release by alice succeeded, want ErrLost
//	    rule: a release of a tenure that is over …
//	    why:  …
//	    calls: …
//
// # No false alarms
//
// The suite must never fail a store that is right, also not on a slow and busy
// machine. Lower bounds ("not before") are exact, but for a thousandth that two
// good clocks may differ; upper bounds ("soon after") are generous. A case that
// was late while the test process itself was not scheduled proves nothing: it is
// run again with a longer duration. It may well miss a fault: a suite can show a
// race, not its absence.
//
// # Faults
//
// [Faults] wraps a store and makes chosen calls fail before or after they
// took effect, hang, or come late. The cases about a lease use it; so can other
// tests.
package conformance
