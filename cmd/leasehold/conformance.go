package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/conformance"
)

func newConformance(o *options) *cobra.Command {
	var (
		only     string
		list     bool
		strict   bool
		duration time.Duration
	)
	cmd := &cobra.Command{
		Use:   "conformance",
		Short: "Check that a store keeps its promises",
		Long: `Run the conformance suite against the store: what Leasehold asks of every store,
clause by clause. It works under names of its own, which begin with
"conformance." and a random part, and frees them afterwards; other leases are
not touched.

Exit codes:
  0   every check passed, or could not be run and says why
  1   the store broke a promise
  64  usage; 69 the store cannot be reached`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError("%s takes no arguments; --run chooses cases", cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			asJSON, err := o.json()
			if err != nil {
				return err
			}
			var cases []conformance.Case
			for _, c := range conformance.Cases() {
				if strings.Contains(c.Name, only) {
					cases = append(cases, c)
				}
			}
			if len(cases) == 0 {
				return usageError("no case has %q in its name; --list shows them", only)
			}
			if list {
				for _, c := range cases {
					fmt.Fprintf(cmd.OutOrStdout(), "%s\n    %s\n", c.Name, c.Rule)
				}
				return nil
			}
			url, err := o.url()
			if err != nil {
				return err
			}
			ctx, cancel := interruptible(cmd.Context())
			defer cancel()
			open := func() (backend.Store, error) { return backend.Open(ctx, url) }
			// The suite says of each case what fails; that there is no store at all is
			// to be said once.
			store, err := o.open(ctx)
			if err != nil {
				return failure(err)
			}
			defer store.Close()
			traits := store.Traits()

			opts := []conformance.Option{
				conformance.WithCases(cases...),
				conformance.WithPrefix("conformance." + strings.ToLower(rand.Text()[:8]) + "."),
				conformance.WithDuration(duration),
			}
			if strict {
				opts = append(opts, conformance.Strict())
			}
			var sum conformance.Summary
			out, progress := cmd.OutOrStdout(), term.IsTerminal(int(os.Stderr.Fd())) && !asJSON
			began := time.Now()
			n := 0
			for r := range conformance.Check(ctx, open, opts...) {
				if ctx.Err() != nil {
					break
				}
				sum.Add(r)
				n++
				if progress {
					fmt.Fprintf(cmd.ErrOrStderr(), "\r\x1b[K")
				}
				switch {
				case asJSON:
					err = printJSON(out, newResult(r))
				case r.Err != nil:
					_, err = fmt.Fprintf(out, "FAILED %v", r)
				default:
					_, err = fmt.Fprintln(out, r)
				}
				if err != nil {
					return failure(err)
				}
				if progress {
					fmt.Fprintf(cmd.ErrOrStderr(), "%d of %d", n, len(cases))
				}
			}
			if progress {
				fmt.Fprintf(cmd.ErrOrStderr(), "\r\x1b[K")
			}
			if ctx.Err() != nil {
				return failure(context.Cause(ctx))
			}
			if !asJSON {
				fmt.Fprintf(out, "%s store: %d passed, %d failed, %d skipped, in %s\n", traits.Name, sum.Passed, sum.Failed, len(sum.Skipped), readable(time.Since(began)))
			}
			if sum.Failed > 0 {
				return fail(exitFailed, fmt.Errorf("the %s store broke %d of %d promises", traits.Name, sum.Failed, len(cases)))
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&only, "run", "", "only the cases with this `text` in their name")
	f.BoolVar(&list, "list", false, "list the cases and the rules they check, and run none")
	f.BoolVar(&strict, "strict", false, "a case that cannot be run counts as failed")
	f.DurationVar(&duration, "duration", 0, "`duration` of the tenures that are left to expire; longer is slower, and calmer on a busy machine (default what the suite thinks best)")
	o.outputFlag(cmd)
	return cmd
}

// result is how one case ended, for programs.
type result struct {
	Case      string `json:"case"`
	Result    string `json:"result"` // passed, failed, skipped
	ElapsedMS int64  `json:"elapsed_ms"`
	Detail    string `json:"detail,omitempty"`
}

func newResult(r conformance.Result) result {
	res := result{Case: r.Case.Name, Result: "passed", ElapsedMS: r.Elapsed.Milliseconds()}
	switch {
	case r.Skipped != "":
		res.Result, res.Detail = "skipped", r.Skipped
	case r.Err != nil:
		res.Result, res.Detail = "failed", r.String()
	}
	return res
}
