package backend

import (
	"context"
	"fmt"
	"iter"
)

// Examiner is implemented by stores that can tell what is wrong with their
// server, their permissions or their setup. Callers use [Examine].
type Examiner interface {
	// Examine looks around and yields what it finds, in the order in which a
	// person should read it: what explains what follows comes first, and what is
	// in order is said too, so that one knows that it was looked at.
	//
	// It writes no lease and frees none, and what it finds is true at that moment
	// only. What cannot be found out is a Finding as well: there is no error. It
	// never puts a secret into a text. It is bounded, a few seconds on a store that
	// answers and not for ever on one that does not; when ctx ends the sequence
	// just stops, and breaking it off frees everything.
	Examine(ctx context.Context) iter.Seq[Finding]
}

// Examine yields what the store finds wrong, or in order, as described at
// [Examiner]. A store that cannot tell yields nothing.
func Examine(ctx context.Context, s Store) iter.Seq[Finding] {
	if e, ok := s.(Examiner); ok {
		return e.Examine(ctx)
	}
	return func(func(Finding) bool) {}
}

// Finding is one thing that an examination of a store has found.
type Finding struct {
	Check  string // what was looked at: "permission to update leases"
	Level  Level  // how bad it is
	Detail string // what was found, a sentence for a person
	Fix    string // what to do about it; "" where there is nothing to do
}

// Level is how bad a Finding is. A greater one is worse.
type Level int

const (
	Good    Level = iota // as it should be
	Note                 // works, and is worth knowing
	Warning              // works now, but not as well, as safely or as long as it should
	Problem              // leases cannot be relied on, or not be had, before this is mended
)

func (l Level) String() string {
	switch l {
	case Good:
		return "ok"
	case Note:
		return "note"
	case Warning:
		return "warning"
	case Problem:
		return "problem"
	}
	return fmt.Sprintf("Level(%d)", int(l))
}
