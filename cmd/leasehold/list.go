package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/leasehold/leasehold/backend"
)

func newList(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list [PREFIX]",
		Short: "List the leases of a store",
		Long: `List the leases of a store, those whose names begin with PREFIX if that is given.
With --output json, one object a line.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usageError("%s takes one PREFIX, not %d", cmd.CommandPath(), len(args))
			}
			return nil
		},
		ValidArgsFunction: o.completeNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			asJSON, err := o.json()
			if err != nil {
				return err
			}
			prefix := ""
			if len(args) > 0 {
				prefix = args[0]
			}
			return o.with(cmd, func(ctx context.Context, store backend.Store) error {
				found, err := list(ctx, store, prefix)
				if err != nil {
					return err
				}
				if asJSON {
					for _, l := range found {
						v := newView(l.rec)
						if l.err != nil {
							v.State, v.Error = "unreadable", l.err.Error()
						}
						if err := printJSON(cmd.OutOrStdout(), v); err != nil {
							return err
						}
					}
					return nil
				}
				if len(found) == 0 {
					fmt.Fprintln(cmd.ErrOrStderr(), "there are no leases")
					return nil
				}
				t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
				fmt.Fprintln(t, "NAME\tSTATE\tHOLDER\tTOKEN\tAGE\tEXPIRES IN")
				for _, l := range found {
					if l.err != nil {
						fmt.Fprintf(t, "%s\tunreadable\t%s\t\t\t\n", plain(l.rec.Name), plain(l.err.Error()))
						continue
					}
					token := ""
					if l.rec.Token != 0 {
						token = strconv.FormatUint(l.rec.Token, 10)
					}
					fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", plain(l.rec.Name), state(l.rec), plain(l.rec.Holder), token, age(l.rec.AcquiredAt), remaining(l.rec))
				}
				return t.Flush()
			})
		},
	}
	o.outputFlag(cmd)
	return cmd
}

// listed is one name of a list: a record, or why it cannot be read.
type listed struct {
	rec backend.Record
	err error
}

// list returns all records with the prefix, by name.
func list(ctx context.Context, store backend.Store, prefix string) ([]listed, error) {
	var all []listed
	for rec, err := range backend.List(ctx, store, prefix) {
		if err != nil && !errors.Is(err, backend.ErrCorrupt) {
			return nil, err
		}
		all = append(all, listed{rec, err})
	}
	slices.SortFunc(all, func(a, b listed) int { return cmp.Compare(a.rec.Name, b.rec.Name) })
	return all, ctx.Err()
}
