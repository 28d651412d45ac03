package lease

import (
	"errors"
	"fmt"

	"github.com/leasehold/leasehold/backend"
)

// Why a tenure ended: context.Cause of Lease.Context is one of these, or wraps
// one. A record that became unreadable is backend.ErrCorrupt.
var (
	ErrReleased = errors.New("lease was released")
	ErrExpired  = errors.New("lease was not renewed in time")
	ErrTaken    = errors.New("lease was taken away")
	ErrMoved    = errors.New("lease has moved to another store")
	ErrMaxHold  = errors.New("lease was held for as long as allowed")
	ErrClosed   = errors.New("lease object was closed")
)

// ErrNotHeld is the cause of Lease.Context while there is no tenure, and the
// error of Extend then.
var ErrNotHeld = errors.New("lease is not held")

// AcquisitionError is every failure of Acquire, Renew, Extend and Await. It
// wraps the store's error: errors.Is(err, backend.ErrHeld) tells that another
// holds the lease.
type AcquisitionError struct {
	Op    string // "acquire", "renew", "extend", "await"
	Name  string // of the lease
	Other string // the holder that is in the way, "" if that is not the reason
	Err   error
}

func (e *AcquisitionError) Error() string { return describe(e.Op, e.Name, e.Err) }

// Unwrap returns the store's error.
func (e *AcquisitionError) Unwrap() error { return e.Err }

// RelinquishmentError is every failure of Release. Whatever it says, this Lease
// does not hold the lease any more, and the record ends by itself after its
// duration unless another holds it.
type RelinquishmentError struct {
	Op    string // "release"
	Name  string // of the lease
	Other string // the holder that is in the way, "" if that is not the reason
	Err   error
}

func (e *RelinquishmentError) Error() string { return describe(e.Op, e.Name, e.Err) }

// Unwrap returns the store's error.
func (e *RelinquishmentError) Unwrap() error { return e.Err }

func describe(op, name string, err error) string {
	return fmt.Sprintf("%s lease %q: %v", op, name, err)
}

// interruptedError says that the caller's context ended an operation. What its
// cause wraps is the caller's affair: it may well be another lease's loss, and
// must not be taken for this store's answer.
type interruptedError struct{ cause error }

func (e *interruptedError) Error() string { return "interrupted: " + e.cause.Error() }
func (e *interruptedError) Unwrap() error { return e.cause }

// otherHolder finds who is in the way.
func otherHolder(err error) string {
	var held *backend.HeldError
	var interrupted *interruptedError
	if !errors.As(err, &interrupted) && errors.As(err, &held) {
		return held.Record.Holder
	}
	return ""
}
