package conformance

import (
	"errors"
	"time"

	"github.com/leasehold/leasehold/backend"
)

// tardiness is what a store may add to Traits.ExpirySlack before a case finds it
// late: the way there and back, and a busy machine.
const tardiness = 3 * time.Second

var timeCases = []Case{
	{
		Name: "time/expiry",
		Rule: "a tenure that is not renewed ends: not before its Duration has passed since the Acquire began, and at most Traits.ExpirySlack later",
		Why:  "before: two holders at once; long after: a crash is an outage",
		Run: func(e *Env) {
			e.needsExpiry()
			a, b := e.Store(), e.Open()
			began := time.Now()
			rec := e.acquire(a, e.shortClaim(e.Name(""), "alice"))
			granted := time.Now()
			taken := e.takeOver(b, rec, began)
			if late := time.Since(granted) - rec.Duration - e.traits.ExpirySlack; late > tardiness {
				e.latef("the tenure of %v ended %v after its duration and the store's ExpirySlack of %v", rec.Duration, late, e.traits.ExpirySlack)
			}
			e.rises(rec, taken, "expiry")
		},
	},
	{
		Name: "time/expired-not-early",
		Rule: "Get, Watch and List show no tenure as Expired before its Duration has passed since the call that granted or renewed it began",
		Why:  "an observer that is told too early lets a second holder in",
		Run: func(e *Env) {
			e.needsExpiry()
			a, b := e.Store(), e.Open()
			began := time.Now()
			rec := e.acquire(a, e.shortClaim(e.Name(""), "alice"))
			for renewed := false; ; {
				got := e.get(b, rec.Name)
				if passed := time.Since(began); got.Expired && passed < notBefore(rec.Duration) {
					e.Fatalf("Get shows the tenure as Expired %v after the call that granted it began; its duration is %v", passed, rec.Duration)
				} else if got.Expired && !renewed {
					e.latef("the tenure expired before it could be renewed at half of its duration")
				} else if got.Expired {
					return
				} else if !renewed && passed > rec.Duration/2 {
					before := began
					began, renewed = time.Now(), true
					_, err := a.Renew(e.ctx, rec)
					e.stillMine(err, before, rec)
				}
				e.sleep(rec.Duration / 100)
			}
		},
	},
	{
		Name: "time/renewed-outlives",
		Rule: "a tenure that is renewed in time outlives its duration, as often as it is renewed",
		Why:  "a store that counts from the acquire, or whose timer a renewal does not move, ends every long job",
		Run: func(e *Env) {
			a, b := e.Store(), e.Open()
			began := time.Now()
			rec := e.acquire(a, e.shortClaim(e.Name(""), "alice"))
			for last, end := began, began.Add(3*rec.Duration); time.Now().Before(end); {
				now := time.Now()
				if now.Sub(last) > rec.Duration/3 {
					_, err := a.Renew(e.ctx, rec)
					e.stillMine(err, last, rec)
					last = now
				}
				taken, err := b.Acquire(e.ctx, e.claim(rec.Name, "bob"))
				if err == nil {
					e.stillMine(backend.ErrLost, last, rec)
					e.Fatalf("Acquire by another was granted (token %d)", taken.Token)
				}
				e.sleep(rec.Duration / 20)
			}
		},
	},
	{
		Name: "time/renewed-expiry",
		Rule: "on success of Renew the tenure does not end before its Duration has passed since that call began, and then it ends",
		Why:  "a holder counts from its last renewal; one that died after many renewals must not block the others longer than one that died at once",
		Run: func(e *Env) {
			e.needsExpiry()
			a, b := e.Store(), e.Open()
			began := time.Now()
			rec := e.acquire(a, e.shortClaim(e.Name(""), "alice"))
			for range 4 {
				e.sleep(rec.Duration / 8)
				last := began
				began = time.Now()
				_, err := a.Renew(e.ctx, rec)
				e.stillMine(err, last, rec)
			}
			granted := time.Now()
			e.takeOver(b, rec, began)
			if late := time.Since(granted) - rec.Duration - e.traits.ExpirySlack; late > tardiness {
				e.latef("the tenure ended %v after its duration and the store's ExpirySlack of %v, counted from the last renewal", late, e.traits.ExpirySlack)
			}
		},
	},
	{
		Name: "time/same-attempt-extends",
		Rule: "the same Attempt again starts the duration anew: the tenure does not end before it has passed since that call began",
		Why:  "the caller knows only of the call that answered, and counts from there",
		Run: func(e *Env) {
			e.needsExpiry()
			a, b := e.Store(), e.Open()
			c := e.shortClaim(e.Name(""), "alice")
			first := time.Now()
			rec := e.acquire(a, c)
			e.sleepUntil(first.Add(rec.Duration / 2))
			began := time.Now()
			switch again, err := a.Acquire(e.ctx, c); {
			case err != nil:
				e.Fatalf("Acquire with the same attempt failed: %v", err)
			case again.Token != rec.Token:
				e.stillMine(backend.ErrLost, first, rec)
			}
			e.takeOver(b, rec, began)
		},
	},
	{
		Name: "time/old-timers",
		Rule: "the time of an earlier tenure, of another name, or of a claim that was refused does not end a later tenure",
		Why:  "a timer or a time to live that is not the tenure's own ends it early, and nobody notices until two hold it",
		Run: func(e *Env) {
			a, b := e.Store(), e.Open()
			released := e.acquire(a, e.shortClaim(e.Name("-released"), "alice"))
			e.release(a, released)
			replaced := e.acquire(a, e.shortClaim(e.Name("-replaced"), "alice"))
			refused := e.acquire(a, e.claim(e.Name("-refused"), "alice"))
			e.refused(b, e.shortClaim(refused.Name, "bob"))
			e.refused(b, over(e.shortClaim(refused.Name, "bob"), replaced))

			live := []backend.Record{
				e.acquire(a, e.claim(released.Name, "alice")),
				e.acquire(b, over(e.claim(replaced.Name, "bob"), replaced)),
				refused,
			}
			e.acquire(a, e.shortClaim(e.Name("-other"), "alice"))
			e.sleep(e.duration + e.duration/2 + min(e.traits.ExpirySlack, e.cfg.maxWait))
			for _, rec := range live {
				e.undisturbed(b, rec, "the time of another tenure had passed")
				e.refused(b, e.claim(rec.Name, "carol"))
				e.renew(a, rec)
			}
		},
	},
}

// takeOver tries until the tenure is over, which must not be too early.
func (e *Env) takeOver(s backend.Store, rec backend.Record, began time.Time) (taken backend.Record) {
	e.within(rec.Duration+e.traits.ExpirySlack+e.cfg.patience, "another is granted the lease after its holder stopped renewing", func() bool {
		got, err := s.Acquire(e.ctx, e.claim(rec.Name, "bob"))
		if passed := time.Since(began); err == nil && passed < notBefore(rec.Duration) {
			e.Fatalf("another was granted the lease %v after the holder's last call began; its duration is %v", passed, rec.Duration)
		}
		if err != nil && !errors.Is(err, backend.ErrHeld) {
			e.Fatalf("Acquire failed: %v", err)
		}
		taken = got
		return err == nil
	})
	return taken
}

// stillMine fails if a tenure was lost: by the store's fault if its time was not
// over, counted from the last call that extended it, and else by our own delay.
func (e *Env) stillMine(err error, extended time.Time, rec backend.Record) {
	passed := time.Since(extended)
	switch {
	case err == nil:
	case !errors.Is(err, backend.ErrLost):
		e.Fatalf("Renew failed: %v", err)
	case passed < notBefore(rec.Duration):
		e.Fatalf("the tenure was lost %v after the call that extended it began; its duration is %v", passed, rec.Duration)
	default:
		e.latef("the tenure could not be renewed in time: %v had passed of %v", passed, rec.Duration)
	}
}
