package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/lease"
)

func newWait(o *options) *cobra.Command {
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "wait NAME",
		Short: "Wait until a lease is free",
		Long: `Wait until nobody holds a lease: it was released, or has expired. It may be taken
by somebody else right afterwards; to wait for it and take it, use run.

Exit codes:
  0   it is free
  75  it was still held after --timeout
  65  its record cannot be read
  64  usage; 69 the store cannot be reached`,
		Args:              oneName,
		ValidArgsFunction: o.completeNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			asJSON, err := o.json()
			if err != nil {
				return err
			}
			if timeout < 0 {
				return usageError("--timeout is %v, it must not be negative", timeout)
			}
			return o.with(cmd, func(ctx context.Context, store backend.Store) error {
				if timeout > 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeoutCause(ctx, timeout, errTimeout)
					defer cancel()
				}
				rec, err := waitFree(ctx, store, args[0])
				switch {
				case err == nil && asJSON:
					return printJSON(cmd.OutOrStdout(), newView(rec))
				case errors.Is(cause(ctx, err), errTimeout) && rec.Live():
					return fail(exitHeld, fmt.Errorf("lease %q is still %s", args[0], held(rec)))
				}
				return cause(ctx, err)
			})
		},
	}
	o.outputFlag(cmd)
	cmd.Flags().DurationVar(&timeout, "timeout", 0, "give up after this `time` (default: wait for ever)")
	return cmd
}

var errTimeout = errors.New("the store has not answered in time")

// waitFree waits until nobody holds the lease. It returns the last record it
// knows of.
func waitFree(ctx context.Context, store backend.Store, name string) (rec backend.Record, err error) {
	// A Lease, which never acquires anything here, knows when a holder has been
	// silent for too long, where the store itself does not judge that.
	l, err := lease.New(store, name)
	if err != nil {
		return rec, err
	}
	defer l.Close()
	type update struct {
		rec backend.Record
		err error
	}
	updates := make(chan update)
	watch, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		defer close(updates)
		for rec, err := range l.Observe(watch) {
			select {
			case updates <- update{rec, err}:
			case <-watch.Done():
				return
			}
		}
	}()
	var silence <-chan time.Time
	for {
		select {
		case u, ok := <-updates:
			switch {
			case !ok:
				return rec, cause(ctx, errors.New("the watch of the store has ended"))
			case u.err != nil:
				return rec, u.err
			case !u.rec.Live():
				return u.rec, nil
			}
			rec = u.rec
			if rec.Duration < backend.MaxDuration {
				silence = time.After(rec.Duration + rec.Duration/100 + 10*time.Millisecond)
			}
		case <-silence:
			expired, err := l.IsExpired(ctx)
			if expired {
				rec.Expired = true
				return rec, nil
			}
			if err == nil || !backend.Definite(err) {
				silence = time.After(max(rec.Duration/4, 100*time.Millisecond))
			}
		}
	}
}
