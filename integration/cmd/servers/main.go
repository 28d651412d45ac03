// Command servers prepares, starts and sweeps away the real servers that tests
// run against. See package servers for where they come from.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/leasehold/leasehold/integration/internal/servers"
)

const help = `Usage: go run ./cmd/servers COMMAND

  prepare                     see what servers there are; pull or build what is missing, once
  run kubernetes              start an API server for trying things, until Ctrl-C
      --kubeconfig FILE         where to write how to reach it (default: kubeconfig in a temporary folder)
      --user NAME               who uses it (default: admin; others may do nothing yet)
      --processes               no containers
  sweep                       remove the containers, networks and folders of runs that have died
      --all                     and of all others

Environment:
  LEASEHOLD_REQUIRE_SERVERS=1          a missing server is a failure
  LEASEHOLD_TEST_KUBECONFIG            use this cluster
  LEASEHOLD_TEST_KUBECONTEXT           a context of it
  LEASEHOLD_TEST_KUBE_APISERVER_IMAGE  use this image, "none": no image
  LEASEHOLD_TEST_ETCD_IMAGE            likewise
  KUBEBUILDER_ASSETS                   a folder with kube-apiserver and etcd
  LEASEHOLD_TEST_BUILD=off             do not build servers
  LEASEHOLD_TEST_DOCKER=off            do not use Docker
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := command(ctx, os.Args[1:], os.Stdout)
	var wrong usageError
	switch {
	case errors.As(err, &wrong):
		fmt.Fprintf(os.Stderr, "servers: %v\n\n%s", err, help)
		os.Exit(64)
	case err != nil:
		fmt.Fprintf(os.Stderr, "servers: %v\n", err)
		os.Exit(1)
	}
}

type usageError string

func (e usageError) Error() string { return string(e) }

func command(ctx context.Context, args []string, out io.Writer) error {
	if len(args) == 0 {
		return usageError("a command is missing")
	}
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	parse := func(args []string) error {
		if err := flags.Parse(args); err != nil {
			return usageError(err.Error())
		}
		if flags.NArg() > 0 {
			return usageError(fmt.Sprintf("what is %q?", flags.Arg(0)))
		}
		return nil
	}
	switch args[0] {
	case "help", "-h", "-help", "--help":
		fmt.Fprint(out, help)
		return nil
	case "prepare":
		if err := parse(args[1:]); err != nil {
			return err
		}
		return prepare(ctx, out)
	case "sweep":
		all := flags.Bool("all", false, "")
		if err := parse(args[1:]); err != nil {
			return err
		}
		removed, err := servers.Sweep(ctx, *all)
		for _, line := range removed {
			fmt.Fprintf(out, "removed %s\n", line)
		}
		return err
	case "run":
		if len(args) < 2 || args[1] != "kubernetes" {
			return usageError("run what? There is: kubernetes")
		}
		file := flags.String("kubeconfig", "", "")
		user := flags.String("user", servers.Admin, "")
		processes := flags.Bool("processes", false, "")
		if err := parse(args[2:]); err != nil {
			return err
		}
		known := false
		for _, u := range servers.Users() {
			known = known || u == *user
		}
		if !known {
			return usageError(fmt.Sprintf("there is no user %q, only %s", *user, strings.Join(servers.Users(), ", ")))
		}
		var opts []servers.Option
		if *processes {
			opts = append(opts, servers.AsProcesses())
		}
		return runKubernetes(ctx, out, *file, *user, opts)
	}
	return usageError(fmt.Sprintf("what is %q?", args[0]))
}

// prepare fails for a missing server only where one is required.
func prepare(ctx context.Context, out io.Writer) error {
	how, err := servers.PrepareKubernetes(ctx)
	if err == nil {
		fmt.Fprintf(out, "kubernetes: %s\n", how)
		return nil
	}
	if servers.Required() || ctx.Err() != nil {
		return err
	}
	fmt.Fprintf(out, "kubernetes: none, its tests are skipped: %v\n", err)
	return nil
}

func runKubernetes(ctx context.Context, out io.Writer, file, user string, opts []servers.Option) (err error) {
	if file == "" {
		dir, err := os.MkdirTemp("", "kubernetes-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		file = filepath.Join(dir, "kubeconfig")
	}
	k, err := servers.StartKubernetes(ctx, opts...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, k.Close()) }()
	if err := os.WriteFile(file, k.Kubeconfig(user), 0o600); err != nil {
		return err
	}
	fmt.Fprintf(out, "kubernetes: %s\nexport KUBECONFIG=%s\nUntil Ctrl-C.\n", k.How, file)
	<-ctx.Done()
	return nil
}
