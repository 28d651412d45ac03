package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/leasehold/leasehold/backend"
)

func newGet(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "get NAME",
		Short: "Show who holds a lease",
		Long: `Show who holds a lease.

Exit codes:
  0   somebody holds it
  2   it is free
  3   its holder's time is over, or its holder crashed: it can be taken
  65  its record cannot be read
  64  usage; 69 the store cannot be reached`,
		Args:              oneName,
		ValidArgsFunction: o.completeNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			asJSON, err := o.json()
			if err != nil {
				return err
			}
			return o.with(cmd, func(ctx context.Context, store backend.Store) error {
				rec, err := lookUp(ctx, store, args[0])
				if err != nil {
					return err
				}
				if asJSON {
					err = printJSON(cmd.OutOrStdout(), newView(rec))
				} else {
					err = describe(cmd.OutOrStdout(), rec)
				}
				switch {
				case err != nil:
					return err
				case rec.Vacant():
					return exit(exitFree)
				case rec.Expired:
					return exit(exitExpired)
				}
				return nil
			})
		},
	}
	o.outputFlag(cmd)
	return cmd
}

// lookUp is Get, but that there is no record is one with only its Name.
func lookUp(ctx context.Context, store backend.Store, name string) (backend.Record, error) {
	if err := backend.CheckName(name); err != nil {
		return backend.Record{}, err
	}
	rec, err := store.Get(ctx, name)
	if errors.Is(err, backend.ErrNotFound) {
		return backend.Record{Name: name}, nil
	}
	return rec, err
}

// describe prints a record in full.
func describe(w io.Writer, rec backend.Record) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) { fmt.Fprintf(t, name+"\t"+format+"\n", args...) }
	row("name", "%s", plain(rec.Name))
	row("state", "%s", state(rec))
	if s := rec.Seal; s != nil {
		row("moved to", "%s (epoch %d)", plain(s.To), s.Epoch)
	}
	if rec.Holder != "" {
		row("holder", "%s", plain(rec.Holder))
	}
	if rec.Token != 0 {
		row("token", "%d", rec.Token)
	}
	if !rec.Vacant() {
		at := func(name string, t time.Time) {
			if !t.IsZero() {
				row(name, "%s ago (%s)", age(t), t.Local().Format(time.DateTime))
			}
		}
		at("acquired", rec.AcquiredAt)
		at("renewed", rec.RenewedAt)
		if rec.Duration > 0 {
			row("duration", "%s", readable(rec.Duration))
		}
		if s := remaining(rec); s != "" {
			row("expires", "in %s unless renewed", s)
		}
	}
	if rec.Transitions > 0 {
		row("changes", "%d", rec.Transitions)
	}
	own := ownMetadata(rec)
	for _, key := range slices.Sorted(maps.Keys(own)) {
		row(plain(key), "%s", plain(own[key]))
	}
	return t.Flush()
}
