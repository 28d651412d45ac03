// Command servers prepares, starts and sweeps away the real servers that tests
// run against. See package servers for where they come from.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
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
  run etcd                    start an etcd for trying things, until Ctrl-C
      --members N               how many (default: 1)
      --tls                     with a certificate, and one for clients
      --password                nobody but root may do anything
      --url-file FILE           where to write its URL once it is ready
      --processes               no containers
  run redis                   start a Redis for trying things, until Ctrl-C
      --replicas N              how many replicas it has (default: 0)
      --sentinel                three sentinels watch it
      --cluster                 a cluster of three nodes
      --tls                     with a certificate, and one for clients
      --password                nobody but admin may do anything
      --persistence             what is stored survives
      --url-file FILE           where to write its URL once it is ready
      --processes               no containers
  sweep                       remove the containers, networks and folders of runs that have died
      --all                     and of all others

Environment:
  LEASEHOLD_REQUIRE_SERVERS=1          a missing server is a failure
  LEASEHOLD_TEST_KUBECONFIG            use this cluster
  LEASEHOLD_TEST_KUBECONTEXT           a context of it
  LEASEHOLD_TEST_ETCD_ENDPOINTS        use this etcd: host:port,...
  LEASEHOLD_TEST_ETCD_USER             who may do everything in it, if it has users; and
  LEASEHOLD_TEST_ETCD_PASSWORD         a password
  LEASEHOLD_TEST_ETCD_CACERT           a file: speak TLS
  LEASEHOLD_TEST_ETCD_CERT             a file, if it wants certificates of clients; and
  LEASEHOLD_TEST_ETCD_KEY              a file
  LEASEHOLD_TEST_REDIS_ADDRS           use this Redis: host:port, or those of all nodes of a cluster
  LEASEHOLD_TEST_REDIS_USER, _PASSWORD, _CACERT, _CERT, _KEY
                                       likewise
  LEASEHOLD_TEST_KUBE_APISERVER_IMAGE  use this image, "none": no image
  LEASEHOLD_TEST_ETCD_IMAGE            likewise
  LEASEHOLD_TEST_REDIS_IMAGE           likewise
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
		switch {
		case len(args) < 2:
			return usageError("run what? There are: kubernetes, etcd, redis")
		case args[1] == "kubernetes":
			return runKubernetes(ctx, out, flags, func() error { return parse(args[2:]) })
		case args[1] == "etcd":
			return runEtcd(ctx, out, flags, func() error { return parse(args[2:]) })
		case args[1] == "redis":
			return runRedis(ctx, out, flags, func() error { return parse(args[2:]) })
		}
		return usageError(fmt.Sprintf("run %q? There are: kubernetes, etcd, redis", args[1]))
	}
	return usageError(fmt.Sprintf("what is %q?", args[0]))
}

// prepare fails for a missing server only where one is required, and then only
// after it has looked for all.
func prepare(ctx context.Context, out io.Writer) error {
	var errs []error
	for _, s := range []struct {
		name    string
		prepare func(context.Context) (string, error)
	}{
		{"kubernetes", servers.PrepareKubernetes},
		{"etcd", servers.PrepareEtcd},
		{"redis", servers.PrepareRedis},
	} {
		how, err := s.prepare(ctx)
		switch {
		case ctx.Err() != nil:
			return errors.Join(append(errs, err)...)
		case err == nil:
			fmt.Fprintf(out, "%s: %s\n", s.name, how)
		case servers.Required():
			errs = append(errs, err)
		default:
			fmt.Fprintf(out, "%s: none, its tests are skipped: %v\n", s.name, err)
		}
	}
	return errors.Join(errs...)
}

func runKubernetes(ctx context.Context, out io.Writer, flags *flag.FlagSet, parse func() error) (err error) {
	file := flags.String("kubeconfig", "", "")
	user := flags.String("user", servers.Admin, "")
	processes := flags.Bool("processes", false, "")
	if err := parse(); err != nil {
		return err
	}
	if !slices.Contains(servers.Users(), *user) {
		return usageError(fmt.Sprintf("there is no user %q, only %s", *user, strings.Join(servers.Users(), ", ")))
	}
	var opts []servers.Option
	if *processes {
		opts = append(opts, servers.AsProcesses())
	}
	if *file == "" {
		dir, err := os.MkdirTemp("", "kubernetes-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		*file = filepath.Join(dir, "kubeconfig")
	}
	k, err := servers.StartKubernetes(ctx, opts...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, k.Close()) }()
	if err := os.WriteFile(*file, k.Kubeconfig(*user), 0o600); err != nil {
		return err
	}
	fmt.Fprintf(out, "kubernetes: %s\nexport KUBECONFIG=%s\nUntil Ctrl-C.\n", k.How, *file)
	<-ctx.Done()
	return nil
}

func runEtcd(ctx context.Context, out io.Writer, flags *flag.FlagSet, parse func() error) (err error) {
	members := flags.Int("members", 0, "")
	tls := flags.Bool("tls", false, "")
	password := flags.Bool("password", false, "")
	file := flags.String("url-file", "", "")
	processes := flags.Bool("processes", false, "")
	if err := parse(); err != nil {
		return err
	}
	if *members < 0 {
		return usageError(fmt.Sprintf("%d members?", *members))
	}
	opts := []servers.EtcdOption{servers.WithMembers(*members)}
	if *tls {
		opts = append(opts, servers.WithTLS())
	}
	if *password {
		opts = append(opts, servers.WithPassword())
	}
	if *processes {
		opts = append(opts, servers.EtcdAsProcesses())
	}
	e, err := servers.StartEtcd(ctx, opts...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.Close()) }()
	const prefix = "leasehold"
	if *file != "" {
		if err := writeWhole(*file, e.URL(prefix)+"\n"); err != nil {
			return err
		}
	}
	fmt.Fprintf(out, "etcd: %s\n", e.How)
	export := func(name, value string) {
		if value != "" {
			fmt.Fprintf(out, "export ETCDCTL_%s='%s'\n", name, value)
		}
	}
	export("ENDPOINTS", strings.Join(e.Endpoints(), ","))
	if name, password := e.User(); name != "" {
		export("USER", name+":"+password)
	}
	cacert, cert, key := e.Files()
	export("CACERT", cacert)
	export("CERT", cert)
	export("KEY", key)
	fmt.Fprintf(out, "leasehold: %s\nUntil Ctrl-C.\n", e.URL(prefix))
	<-ctx.Done()
	return nil
}

func runRedis(ctx context.Context, out io.Writer, flags *flag.FlagSet, parse func() error) (err error) {
	replicas := flags.Int("replicas", 0, "")
	file := flags.String("url-file", "", "")
	options := map[string]servers.RedisOption{
		"sentinel":    servers.WithSentinel(),
		"cluster":     servers.InCluster(),
		"tls":         servers.RedisWithTLS(),
		"password":    servers.RedisWithPassword(),
		"persistence": servers.WithPersistence(),
		"processes":   servers.RedisAsProcesses(),
	}
	wanted := make(map[string]*bool)
	for name := range options {
		wanted[name] = flags.Bool(name, false, "")
	}
	if err := parse(); err != nil {
		return err
	}
	switch {
	case *replicas < 0:
		return usageError(fmt.Sprintf("%d replicas?", *replicas))
	case *wanted["cluster"] && (*replicas > 0 || *wanted["sentinel"]):
		return usageError("a cluster has neither replicas nor sentinels here")
	}
	opts := []servers.RedisOption{servers.WithReplicas(*replicas)}
	for name, opt := range options {
		if *wanted[name] {
			opts = append(opts, opt)
		}
	}
	r, err := servers.StartRedis(ctx, opts...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	const prefix = "leasehold"
	if *file != "" {
		if err := writeWhole(*file, r.URL(prefix)+"\n"); err != nil {
			return err
		}
	}
	fmt.Fprintf(out, "redis: %s\n", r.How)
	name, password := r.User()
	if password != "" {
		fmt.Fprintf(out, "export REDISCLI_AUTH='%s'\n", password)
	}
	for _, addr := range r.Addrs() {
		host, port, err := net.SplitHostPort(addr)
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "redis-cli -h %s -p %s", host, port)
		if *wanted["cluster"] {
			fmt.Fprint(out, " -c")
		}
		if name != "" {
			fmt.Fprintf(out, " --user %s", name)
		}
		if cacert, cert, key := r.Files(); cacert != "" {
			fmt.Fprintf(out, " --tls --cacert '%s'", cacert)
			if cert != "" {
				fmt.Fprintf(out, " --cert '%s' --key '%s'", cert, key)
			}
		}
		fmt.Fprintln(out)
	}
	if all := r.Sentinels(); len(all) > 0 {
		fmt.Fprintf(out, "sentinels: %s\n", strings.Join(all, ", "))
	}
	fmt.Fprintf(out, "leasehold: %s\nUntil Ctrl-C.\n", r.URL(prefix))
	<-ctx.Done()
	return nil
}

// writeWhole writes a file that somebody waits for, and who must not see half
// of it. It may hold a password.
func writeWhole(file, content string) error {
	tmp := file + ".tmp"
	if err := os.WriteFile(tmp, []byte(content), 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, file)
}
