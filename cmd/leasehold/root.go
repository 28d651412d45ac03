package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/leasehold/leasehold/cmd/leasehold/internal/supervise"
)

// execute runs the program and returns its exit code.
func execute(args []string) int {
	root := newRoot()
	root.SetArgs(args)
	err := root.Execute()
	if err == nil {
		return 0
	}
	var e *exitError
	if !errors.As(err, &e) {
		// Only cobra's own errors come without a code: about the arguments.
		e = &exitError{code: exitUsage, err: err}
	}
	if line := message(e); line != "" {
		fmt.Fprintln(os.Stderr, line)
	}
	if e.code == exitSignal+int(syscall.SIGINT) {
		supervise.DieOfInterrupt(e.terminal)
	}
	return e.code
}

// options are the flags that all commands share.
type options struct {
	store          string
	noProcessCheck bool
	output         string
}

func newRoot() *cobra.Command {
	o := &options{}
	root := &cobra.Command{
		Use:   "leasehold",
		Short: "Guard a command with a lease, in whatever store you already run",
		Long: `A lease gives one holder at a time the right to act, for a while, renewed in the
background, with a fencing token that only ever rises.

  leasehold run nightly-report -- ./report.sh     run it, but only one at a time
  leasehold list                                  who holds what

The store is chosen by --store or LEASEHOLD_STORE. The default is a folder of
your own on this machine, so nothing needs to be set up to try it.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				hint := "see leasehold --help"
				if similar := cmd.SuggestionsFor(args[0]); len(similar) > 0 {
					hint = "did you mean " + strings.Join(similar, " or ") + "?"
				}
				return usageError("there is no command %q; %s", args[0], hint)
			}
			return cmd.Help()
		},
		Args: cobra.ArbitraryArgs,
	}
	root.SuggestionsMinimumDistance = 2
	f := root.PersistentFlags()
	f.StringVar(&o.store, "store", "", "`URL` of the store: "+strings.Join(storeExamples(), ", ")+" (default $"+envStore+", or a folder in your home)")
	f.BoolVar(&o.noProcessCheck, "no-process-check", false, "do not take over early from a holder that crashed on this machine")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError("%w; see %s --help", err, cmd.CommandPath())
	})
	root.AddCommand(
		newRun(o), newGet(o), newList(o), newWatch(o), newWait(o), newRelease(o),
		newConformance(o), newDoctor(o), newVersion(o),
	)
	root.InitDefaultCompletionCmd()
	return root
}

// outputFlag adds --output to a command that prints for people and programs.
func (o *options) outputFlag(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&o.output, "output", "o", "text", "`format`: text or json")
}

func (o *options) json() (bool, error) {
	switch o.output {
	case "text", "":
		return false, nil
	case "json":
		return true, nil
	}
	return false, usageError("the output format is %q; text and json are all there is", o.output)
}

// oneName is the Args of a command about one lease.
func oneName(cmd *cobra.Command, args []string) error {
	switch {
	case len(args) == 0:
		return usageError("which lease? %s needs a NAME", cmd.CommandPath())
	case len(args) > 1:
		return usageError("%s takes one NAME, not %d", cmd.CommandPath(), len(args))
	}
	return nil
}

// signalError is the cause of a context that a signal has ended.
type signalError struct{ signal syscall.Signal }

func (e *signalError) Error() string { return e.signal.String() }

// interruptible returns a context that ends with a signalError when the user,
// or whoever runs the machine, wants the program to end.
func interruptible(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, os.Interrupt, syscall.SIGTERM)
	go func() {
		select {
		case s := <-ch:
			cancel(&signalError{s.(syscall.Signal)})
		case <-ctx.Done():
		}
	}()
	return ctx, func() {
		signal.Stop(ch)
		cancel(nil)
	}
}
