// Package wait is what the lease, the stores and their tests share to sleep, to wake
// and to give up: a sleep that heeds its context, a message that never blocks its
// sender, and a mark on the context of a call that its caller can leave behind.
package wait

import (
	"context"
	"time"
)

// For returns true when d has passed, and false if ctx ends before.
func For(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// Poke leaves a message in ch, which has room for one, unless there is one
// already: whoever fetches that sees the newest state anyway.
func Poke(ch chan<- struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

type abandons struct{}

// Abandon marks the context of a call that runs in a goroutine of its own, which its
// caller leaves behind when the context ends. Who is called may then block for as long
// as its client does, and needs no further goroutine to be able to return in time.
func Abandon(ctx context.Context) context.Context {
	return context.WithValue(ctx, abandons{}, ctx.Done())
}

// Abandons reports whether Abandon has marked the context. One that was derived from it
// and can end sooner is not marked: whoever has made that waits for the call.
func Abandons(ctx context.Context) bool {
	done, ok := ctx.Value(abandons{}).(<-chan struct{})
	return ok && done != nil && done == ctx.Done()
}
