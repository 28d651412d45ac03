package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/leasehold/leasehold/backend"
)

func newWatch(o *options) *cobra.Command {
	var renewals bool
	cmd := &cobra.Command{
		Use:   "watch NAME",
		Short: "Follow a lease as it changes hands",
		Long: `Print who holds a lease, and again each time that changes, until interrupted.
Two changes at nearly the same time may show as one.`,
		Args:              oneName,
		ValidArgsFunction: o.completeNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			asJSON, err := o.json()
			if err != nil {
				return err
			}
			if err := backend.CheckName(args[0]); err != nil {
				return failure(err)
			}
			return o.with(cmd, func(ctx context.Context, store backend.Store) error {
				var last backend.Record
				first := true
				for rec, err := range backend.Watch(ctx, store, args[0]) {
					if err != nil {
						return err
					}
					if !first && !renewals && state(rec) == state(last) && rec.Holder == last.Holder && rec.Token == last.Token {
						continue
					}
					first, last = false, rec
					now := time.Now()
					if asJSON {
						err = printJSON(cmd.OutOrStdout(), struct {
							Time time.Time `json:"time"`
							view
						}{now, newView(rec)})
					} else {
						_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s  %s\n", now.Format("15:04:05.000"), change(rec))
					}
					if err != nil {
						return err
					}
				}
				return ctx.Err()
			})
		},
	}
	o.outputFlag(cmd)
	cmd.Flags().BoolVar(&renewals, "renewals", false, "print a line for each renewal, too, where the store shows them")
	return cmd
}

func change(rec backend.Record) string {
	switch state(rec) {
	case "moved":
		return fmt.Sprintf("moved to %s", plain(rec.Seal.To))
	case "free":
		return "free"
	case "expired":
		return fmt.Sprintf("expired: was held by %s (token %d)", plain(rec.Holder), rec.Token)
	}
	return fmt.Sprintf("held by %s (token %d)", plain(rec.Holder), rec.Token)
}
