// Package lease gives one holder at a time the right to act, for a while,
// renewed in the background, with a fencing token that only ever rises. It runs
// on any [backend.Store].
//
//	l, err := lease.New(store, "nightly-report", lease.WithDuration(15*time.Second))
//	err = l.Run(ctx, func(ctx context.Context) error {
//		// Nobody else is here while ctx is not done.
//		return report(ctx)
//	})
//
// # Promises
//
// A tenure's deadline is counted from the instant before it was asked for: sent
// + granted duration × 0.99 − 2 ms. The context ends a grace before the deadline
// ([WithGrace]), whatever call is in flight and however the store behaves, so
// work that heeds its context within the grace has stopped before anybody else
// is let in. No agreement of clocks is needed, only that they run at the same
// rate within one in a hundred. (C. Gray and D. Cheriton, "Leases: an efficient
// fault-tolerant mechanism for distributed file cache consistency", SOSP 1989.)
//
// The clock goes on while the machine is suspended ([SystemClock]): a holder that
// slept finds its lease over when it wakes, and [Lease.Held] says so before any
// timer has fired.
//
// A renewal that fails is not a loss. Renewals begin after a third of the
// duration and are tried again, more and more often, until the tenure ends. Each
// call of the store is given up after a quarter of the duration or half of what
// is left, whichever is less, and after 30 s in any case.
//
// A loss is told once, with a cause ([Lease.Context]); who asks later sees the
// same.
//
// An acquire whose answer was lost is never taken for granted, nor left behind:
// its record is claimed anew, with a new token, or freed. What cannot be seen yet
// keeps others out for one duration at most.
//
// Another's tenure is taken over when the store calls it expired; or, where
// renewals show in the record, when this Lease itself has seen it unchanged for
// its duration × 1.01. Wall clocks in records decide nothing.
//
// No goroutine, timer or watch outlives the call or the Lease that owns it.
// Renewals of any number of leases share one scheduler; see [NewRenewalService].
//
// # Limits
//
// A context ends; it cannot stop code that does not look at it, a process that
// was paused between looking and acting, or a request that is already on its
// way. Where two actors must never both succeed, pass [Lease.Token] along and let
// the resource refuse a token smaller than the greatest it has seen.
//
// A virtual machine that is paused from outside may not see the time that
// passed.
//
// Whoever removes a live record from outside ends exclusion until the holder's
// next renewal or watch event.
//
// There is no order among those who wait, and a Lease cannot be held twice: two
// goroutines that share one share its tenure.
//
// # Errors
//
// Failures of Acquire, Renew, Extend and Await are [*AcquisitionError], those of
// Release [*RelinquishmentError]. Both name the other holder where there is one
// and wrap the store's error: errors.Is(err, backend.ErrHeld).
package lease
