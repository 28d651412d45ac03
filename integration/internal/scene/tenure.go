package scene

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/lease"
)

// Tenure is a holder at work in the background: lease.Run, until it is let go.
type Tenure struct {
	*lease.Lease
	Began  <-chan struct{} // closed when the work begins
	Ended  <-chan struct{} // closed when its context has ended
	Result <-chan error    // of Run

	// Set when Began is closed:
	Granted time.Time
	Grant   backend.Record
	Others  []string // who else held it

	// Set when Ended is closed:
	Stopped time.Time
	Cause   error

	quit   chan struct{} // ends the work
	once   sync.Once
	cancel context.CancelFunc
}

// Run has l held by somebody who works until its context ends or Leave is called,
// which the end of the test does. rivals are those who must not hold it when the
// work begins; see [Follows].
func Run(t testing.TB, l *lease.Lease, rivals ...*lease.Lease) *Tenure {
	ctx, cancel := context.WithCancel(t.Context())
	began, ended, result := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	h := &Tenure{
		Lease: l, Began: began, Ended: ended, Result: result,
		quit: make(chan struct{}), cancel: cancel,
	}
	go func() {
		result <- l.Run(ctx, func(ctx context.Context) error {
			// One clock: who holds it now holds it beside us.
			for _, rival := range rivals {
				if rival.Held() && l.Held() {
					h.Others = append(h.Others, string(rival.Holder()))
				}
			}
			h.Granted, h.Grant = time.Now(), l.Record()
			close(began)
			select {
			case <-ctx.Done():
				h.Stopped, h.Cause = time.Now(), context.Cause(ctx)
				close(ended)
			case <-h.quit:
			}
			return nil
		})
	}()
	t.Cleanup(h.Leave)
	return h
}

// Hold is [Run] that has begun.
func Hold(t testing.TB, l *lease.Lease) *Tenure {
	t.Helper()
	h := Run(t, l)
	Await(t, "the lease is granted", h.Began)
	return h
}

// Blocked is [Run] of a Lease of its own that waits and knows that it is held.
func Blocked(t testing.TB, s backend.Store, name string, d time.Duration, rivals ...*lease.Lease) *Tenure {
	t.Helper()
	told := make(chan struct{})
	tell := sync.OnceFunc(func() { close(told) })
	h := Run(t, Lease(t, s, name, d, lease.WithObserver(func(e lease.Event) {
		if e.Kind == lease.EventBlocked {
			tell()
		}
	})), rivals...)
	Await(t, "the waiter is refused", told)
	return h
}

// Leave ends the work, or the waiting for it.
func (h *Tenure) Leave() {
	h.once.Do(func() { close(h.quit) })
	select {
	case <-h.Began:
	default:
		h.cancel()
	}
}

// Alive tells that the tenure is the one that began.
func (h *Tenure) Alive() bool {
	return h.Context().Err() == nil && h.Held() && h.Token() == h.Grant.Token
}

// Follows checks that a tenure came after another, alone and with a greater token.
func Follows(t testing.TB, next, last *Tenure) {
	t.Helper()
	if len(next.Others) > 0 {
		t.Errorf("two hold the lease: %q was granted it while %q held it", next.Holder(), next.Others)
	}
	if next.Grant.Token <= last.Grant.Token {
		t.Errorf("token %d follows %d", next.Grant.Token, last.Grant.Token)
	}
}
