// Package backend is the contract between a lease and the store it lives in.
//
// A [Store] keeps one [Record] for each name. It decides who holds the name: of
// any number of clients that call Acquire at once, one is granted the tenure.
// It assigns the fencing token of that tenure in the same write. Everything
// else (when to renew, when to stop, how long to wait) is the business of
// package lease, which knows no store by name.
//
// # Promises every store makes
//
//   - Get, Acquire, Renew and Release of one name are linearizable.
//   - On success of Acquire or Renew the store will not end the tenure before
//     Record.Duration has passed since the call began.
//   - Tokens of one name strictly rise: over release, expiry, deletion,
//     re-creation and migration, and above Claim.MinToken.
//   - A write whose outcome is unknown is never sent again behind the caller's
//     back, unless as the same Attempt.
//   - Release and Renew never touch a tenure that is not the one they name.
//   - Different names are different leases, case included.
//
// The suite in package conformance checks these, clause by clause, against any
// store.
//
// What a store may do beyond that it tells by its methods: [Watcher], [Lister],
// [Examiner]. The functions [Watch], [List] and [Examine] take any store.
//
// # What a store cannot promise
//
// A record says who may act; it cannot stop a process that was paused from
// acting late. Where that matters, hand the token to the resource and let it
// refuse a smaller one (fencing; M. Kleppmann, "How to do distributed locking",
// 2016; M. Burrows, "The Chubby lock service", OSDI 2006, calls the same thing
// a sequencer).
//
// # Errors
//
// The sentinel errors of this package are definite: the call had no effect.
// Any other error from Acquire, Renew or Release means that the outcome is
// unknown: the write may have been applied, or may still be. See [Definite].
//
// # Choosing a store by URL
//
// [Open] opens what a URL names. A store's package registers its scheme when it
// is imported:
//
//	import _ "github.com/leasehold/leasehold/backend/file"
//
//	store, err := backend.Open(ctx, "file:///var/lib/myapp/leases")
package backend
