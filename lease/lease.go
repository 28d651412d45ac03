package lease

import (
	"context"
	"iter"
	"time"

	"github.com/leasehold/leasehold/backend"
)

type Lease struct{}

func New(store backend.Store, name string, opts ...Option) (*Lease, error) { panic("skeleton") }

func (l *Lease) Acquire(ctx context.Context) error   { panic("skeleton") }
func (l *Lease) TryAcquire(ctx context.Context) bool { panic("skeleton") }
func (l *Lease) Renew(ctx context.Context) error     { panic("skeleton") }
func (l *Lease) TryRenew(ctx context.Context) bool   { panic("skeleton") }

// Extend renews the current tenure and never begins one: ErrNotHeld without.
func (l *Lease) Extend(ctx context.Context) error             { panic("skeleton") }
func (l *Lease) Release(ctx context.Context) error            { panic("skeleton") }
func (l *Lease) TryRelease(ctx context.Context) bool          { panic("skeleton") }
func (l *Lease) IsAcquired(ctx context.Context) (bool, error) { panic("skeleton") }
func (l *Lease) IsExpired(ctx context.Context) (bool, error)  { panic("skeleton") }

// Await waits until the lease is acquired or ctx ends.
func (l *Lease) Await(ctx context.Context) error { panic("skeleton") }

// Run waits, holds, calls f with a context that ends with the tenure, releases after f has returned.
func (l *Lease) Run(ctx context.Context, f func(ctx context.Context) error) error { panic("skeleton") }

// Observe yields the record as it changes.
func (l *Lease) Observe(ctx context.Context) iter.Seq2[backend.Record, error] { panic("skeleton") }

// Close ends the tenure (cause ErrClosed), cancels everything in the background and waits for it.
// The store is not told: the record expires. Release first if the work has stopped.
func (l *Lease) Close() error { panic("skeleton") }
func (l *Lease) Held() bool   { panic("skeleton") }

// Token of the current tenure, 0 without one.
func (l *Lease) Token() uint64 { panic("skeleton") }

// Deadline is the instant on this Lease's Clock at which the store may let another in; 0 without a tenure.
func (l *Lease) Deadline() time.Duration { panic("skeleton") }

// Remaining is the time until the context ends (deadline - grace), 0 without a tenure.
func (l *Lease) Remaining() time.Duration { panic("skeleton") }
func (l *Lease) Context() context.Context { panic("skeleton") }

// Record is the current tenure's record; only Name without one.
func (l *Lease) Record() backend.Record         { panic("skeleton") }
func (l *Lease) Store() backend.Store           { panic("skeleton") }
func (l *Lease) Name() string                   { panic("skeleton") }
func (l *Lease) Namespace() string              { panic("skeleton") }
func (l *Lease) Duration() time.Duration        { panic("skeleton") }
func (l *Lease) Holder() Holder                 { panic("skeleton") }
func (l *Lease) RenewalService() RenewalService { panic("skeleton") }
func (l *Lease) ScheduleID() ScheduleID         { panic("skeleton") }
