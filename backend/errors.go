package backend

import (
	"errors"
	"fmt"
	"time"
)

// The definite errors. A call that returns one of them (wrapped, so compare
// with errors.Is) had no effect.
var (
	// ErrNotFound: there is no record of this name.
	ErrNotFound = errors.New("no such lease")
	// ErrHeld: somebody else holds the name; see HeldError.
	ErrHeld = errors.New("lease is held by another")
	// ErrLost: the tenure named by the call is not the current one any more.
	ErrLost = errors.New("tenure is over")
	// ErrInvalid: the arguments can never be right for this store; nothing was
	// sent. Also: the Store was closed.
	ErrInvalid = errors.New("invalid")
	// ErrDenied: the server knows us and forbids it. The text says what a person
	// must grant.
	ErrDenied = errors.New("permission denied")
	// ErrUnsupported: this store cannot do that.
	ErrUnsupported = errors.New("not supported by this store")
	// ErrCorrupt: there is a record that nobody can read, or of a newer format;
	// see CorruptError. It is never overwritten without force.
	ErrCorrupt = errors.New("record cannot be read")
)

// Definite reports whether err says for certain that the call had no effect.
// Any other non-nil error leaves the outcome of a write unknown.
func Definite(err error) bool {
	for _, known := range []error{ErrNotFound, ErrHeld, ErrLost, ErrInvalid, ErrDenied, ErrUnsupported, ErrCorrupt} {
		if errors.Is(err, known) {
			return true
		}
	}
	return false
}

// HeldError is a refused Acquire. errors.Is(err, ErrHeld) is true.
type HeldError struct {
	Record Record // what was found; only Name if Claim.Over was set and there was no record
}

func (e *HeldError) Error() string {
	r := e.Record
	switch {
	case r.Seal != nil:
		return fmt.Sprintf("lease %q has moved to %q (epoch %d)", r.Name, r.Seal.To, r.Seal.Epoch)
	case r.Vacant():
		return fmt.Sprintf("lease %q has changed: there is no holder any more", r.Name)
	case r.Expired:
		return fmt.Sprintf("lease %q has changed: the tenure of %q has expired", r.Name, r.Holder)
	case r.Remaining > 0:
		return fmt.Sprintf("lease %q is held by %q, for another %v at most unless renewed", r.Name, r.Holder, r.Remaining.Round(time.Millisecond))
	}
	return fmt.Sprintf("lease %q is held by %q", r.Name, r.Holder)
}

// Is makes errors.Is(err, ErrHeld) true.
func (e *HeldError) Is(target error) bool { return target == ErrHeld }

// CorruptError is a record that cannot be read. errors.Is(err, ErrCorrupt) is
// true. Only an Acquire with Claim.Over set to its Revision replaces the record.
type CorruptError struct {
	Name     string // of the lease, as far as it is known
	Where    string // the file, key or object a person should look at
	Revision string // what Claim.Over needs; "" if the store cannot tell
	Err      error  // what is wrong with it
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("lease %q: the record in %s cannot be read: %v", e.Name, e.Where, e.Err)
}

// Is makes errors.Is(err, ErrCorrupt) true.
func (e *CorruptError) Is(target error) bool { return target == ErrCorrupt }

// Unwrap returns what is wrong with the record.
func (e *CorruptError) Unwrap() error { return e.Err }
