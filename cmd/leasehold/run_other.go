//go:build !unix

package main

import (
	"errors"

	"github.com/spf13/cobra"
)

func newRun(o *options) *cobra.Command {
	return &cobra.Command{
		Use:                "run NAME -- command args…",
		Short:              "Run a command while holding a lease (not on this system)",
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			return fail(exitUnavailable, errors.New("run needs process groups, which this system does not have"))
		},
	}
}
