package main

import "github.com/spf13/cobra"

func newConformance(o *options) *cobra.Command { return &cobra.Command{Use: "conformance"} }
