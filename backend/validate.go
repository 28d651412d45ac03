package backend

import (
	"fmt"
	"strings"
	"time"
	"unicode/utf8"
)

// Limits that hold in every store.
const (
	MaxNameLen     = 512       // bytes of a name
	MaxHolderLen   = 1024      // bytes of a holder, an attempt or a seal's label
	MaxMetadataLen = 16 * 1024 // bytes of all keys and values of the metadata together
)

// CheckName returns an ErrInvalid that says what is wrong with name, or nil. Any
// non-empty UTF-8 text of up to MaxNameLen bytes without NUL is a name.
func CheckName(name string) error {
	switch {
	case name == "":
		return fmt.Errorf("%w: the lease name is empty", ErrInvalid)
	case len(name) > MaxNameLen:
		return fmt.Errorf("%w: the lease name is %d bytes long, at most %d are allowed", ErrInvalid, len(name), MaxNameLen)
	case !utf8.ValidString(name):
		return fmt.Errorf("%w: the lease name %q is not valid UTF-8", ErrInvalid, name)
	case strings.ContainsRune(name, 0):
		return fmt.Errorf("%w: the lease name %q contains a NUL character", ErrInvalid, name)
	}
	return nil
}

// CheckClaim checks what every store checks, and returns the duration to grant:
// the claim's, rounded up to the store's granularity. A seal lasts Forever.
// The error is ErrInvalid and says what is allowed.
func CheckClaim(c Claim, t Traits) (granted time.Duration, err error) {
	if err := CheckName(c.Name); err != nil {
		return 0, err
	}
	if c.Holder == "" {
		return 0, fmt.Errorf("%w: lease %q: the claim names no holder", ErrInvalid, c.Name)
	}
	if err := checkText("holder", c.Holder); err != nil {
		return 0, err
	}
	if err := checkText("attempt", c.Attempt); err != nil {
		return 0, err
	}
	size := 0
	for k, v := range c.Metadata {
		if k == "" {
			return 0, fmt.Errorf("%w: a metadata key is empty", ErrInvalid)
		}
		if !utf8.ValidString(k) || !utf8.ValidString(v) {
			return 0, fmt.Errorf("%w: metadata %q is not valid UTF-8", ErrInvalid, k)
		}
		size += len(k) + len(v)
	}
	if size > MaxMetadataLen {
		return 0, fmt.Errorf("%w: the metadata is %d bytes long, at most %d are allowed", ErrInvalid, size, MaxMetadataLen)
	}
	if c.MinToken >= MaxToken {
		return 0, fmt.Errorf("%w: no token can be greater than %d", ErrInvalid, c.MinToken)
	}
	if c.Seal != nil {
		if err := checkText("seal label", c.Seal.To); err != nil {
			return 0, err
		}
		if err := checkText("seal heir", c.Seal.Heir); err != nil {
			return 0, err
		}
		if c.Duration != Forever {
			return 0, fmt.Errorf("%w: a seal lasts Forever, not %v", ErrInvalid, c.Duration)
		}
		return Forever, nil
	}
	return CheckDuration(c.Duration, t)
}

// CheckDuration returns the duration a store with these traits grants for d, or
// an ErrInvalid that says what is allowed.
func CheckDuration(d time.Duration, t Traits) (granted time.Duration, err error) {
	switch {
	case d <= 0:
		return 0, fmt.Errorf("%w: the duration is %v, it must be positive", ErrInvalid, d)
	case d < t.MinDuration:
		return 0, fmt.Errorf("%w: the duration is %v, the %s store needs at least %v", ErrInvalid, d, t.Name, t.MinDuration)
	case d > MaxDuration:
		return 0, fmt.Errorf("%w: the duration is %v, at most %v (a year) is allowed", ErrInvalid, d, MaxDuration)
	}
	if g := t.Granularity; g > 1 {
		d = (d + g - 1) / g * g
	}
	return d, nil
}

func checkText(what, s string) error {
	if len(s) > MaxHolderLen {
		return fmt.Errorf("%w: the %s is %d bytes long, at most %d are allowed", ErrInvalid, what, len(s), MaxHolderLen)
	}
	if !utf8.ValidString(s) {
		return fmt.Errorf("%w: the %s %q is not valid UTF-8", ErrInvalid, what, s)
	}
	if strings.ContainsRune(s, 0) {
		return fmt.Errorf("%w: the %s %q contains a NUL character", ErrInvalid, what, s)
	}
	return nil
}
