package servers

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/moby/moby/api/pkg/stdcopy"
	dockercontainer "github.com/moby/moby/api/types/container"
	dockernet "github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/log"
	"github.com/testcontainers/testcontainers-go/network"
)

// engine is a Docker engine that answers.
type engine struct {
	*client.Client
	version string
	host    string // where published ports are
}

var (
	engineMu    sync.Mutex
	engineFound *engine
	engineErr   error
)

// dockerEngine returns the engine, or why there is none; it looks once.
func dockerEngine(ctx context.Context) (*engine, error) {
	if os.Getenv("LEASEHOLD_TEST_DOCKER") == "off" {
		return nil, errors.New("no Docker engine is used: LEASEHOLD_TEST_DOCKER=off")
	}
	engineMu.Lock()
	defer engineMu.Unlock()
	if engineFound == nil && engineErr == nil {
		e, err := newEngine(ctx)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			err = fmt.Errorf("no Docker engine: %w", err)
		}
		engineFound, engineErr = e, err
	}
	return engineFound, engineErr
}

func newEngine(ctx context.Context) (e *engine, err error) {
	defer func() {
		if r := recover(); r != nil { // so testcontainers says that it finds no engine
			err = fmt.Errorf("%v", r)
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	log.SetDefault(log.NewNoopLogger())
	// Sweep does what testcontainers' reaper would, without its image.
	setenv("TESTCONTAINERS_RYUK_DISABLED", "true")
	c, err := testcontainers.NewDockerClientWithOpts(ctx)
	if err != nil {
		return nil, err
	}
	v, err := c.ServerVersion(ctx, client.ServerVersionOptions{})
	if err != nil {
		return nil, err
	}
	// In a container testcontainers takes the engine to be outside of it. One
	// whose bridge is ours is inside.
	if n, err := c.NetworkInspect(ctx, "bridge", client.NetworkInspectOptions{}); err == nil && strings.HasPrefix(c.DaemonHost(), "unix:") {
		if _, err := net.InterfaceByName(n.Network.Options["com.docker.network.bridge.name"]); err == nil {
			setenv("TESTCONTAINERS_HOST_OVERRIDE", "127.0.0.1")
		}
	}
	p, err := testcontainers.NewDockerProvider(testcontainers.WithLogger(log.NewNoopLogger()))
	if err != nil {
		return nil, err
	}
	defer p.Close()
	host, err := p.DaemonHost(ctx)
	if err != nil {
		return nil, err
	}
	if host == "localhost" {
		host = "127.0.0.1"
	}
	return &engine{Client: c.Client, version: strings.SplitN(v.Version, "+", 2)[0], host: host}, nil
}

func setenv(name, value string) {
	if os.Getenv(name) == "" {
		os.Setenv(name, value)
	}
}

// Of a pull: how long to wait for its first sign of life and between signs, how
// long in all, and how long a failure is remembered by all processes, so that
// one run of the tests waits only once.
const (
	pullConnect  = 10 * time.Second
	pullStall    = time.Minute
	pullTime     = 10 * time.Minute
	pullRemember = 30 * time.Minute
)

// pull makes sure that the engine has an image.
func (e *engine) pull(ctx context.Context, name string) error {
	if _, err := e.ImageInspect(ctx, name); err == nil {
		return nil
	}
	dir := os.TempDir()
	if root, err := repository(); err == nil {
		if dir, err = cache(root); err != nil {
			return err
		}
	}
	failed := filepath.Join(dir, fmt.Sprintf(".pull-%.8x", sha256.Sum256([]byte(name))))
	if info, err := os.Stat(failed); err == nil && time.Since(info.ModTime()) < pullRemember {
		why, err := os.ReadFile(failed)
		if err == nil {
			return fmt.Errorf("image %s cannot be pulled: %s (tried at %s; to try again, remove %s)", name, why, info.ModTime().Format("15:04:05"), failed)
		}
	}
	err := e.tryPull(ctx, name)
	if err == nil || ctx.Err() != nil {
		os.Remove(failed)
		return err
	}
	progress("image %s cannot be pulled, looking for programs: %v", name, err)
	os.WriteFile(failed, []byte(err.Error()), 0o644) // else it is tried again
	return fmt.Errorf("image %s cannot be pulled: %w", name, err)
}

func (e *engine) tryPull(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, pullTime, fmt.Errorf("not within %v", pullTime))
	defer cancel()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	watchdog := time.AfterFunc(pullConnect, func() { stop(fmt.Errorf("no answer within %v", pullConnect)) })
	defer watchdog.Stop()
	why := func(err error) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return err
	}
	resp, err := e.ImagePull(ctx, name, client.ImagePullOptions{})
	if err != nil {
		return why(err)
	}
	defer resp.Close()
	watchdog.Stop()
	progress("pulling %s", name)
	stalled := time.AfterFunc(pullStall, func() { stop(fmt.Errorf("no progress for %v", pullStall)) })
	defer stalled.Stop()
	for m, err := range resp.JSONMessages(ctx) {
		if err != nil {
			return why(err)
		}
		if m.Error != nil {
			return m.Error
		}
		stalled.Reset(pullStall)
	}
	return why(nil)
}

// imageOf returns an image that holds nothing but a program and the libraries
// it needs. It is made once for each program and kept.
func (e *engine) imageOf(ctx context.Context, name, version, file string, libraries []string) (string, error) {
	hash := sha256.New()
	for _, f := range append([]string{file}, libraries...) {
		if err := copyFile(hash, f); err != nil {
			return "", err
		}
	}
	tag := fmt.Sprintf("%s/%s:%s-%.10x", label, name, strings.ReplaceAll(version, "+", "_"), hash.Sum(nil))
	if _, err := e.ImageInspect(ctx, tag); err == nil {
		return tag, nil
	}
	unlock, err := lock(ctx, filepath.Join(os.TempDir(), "."+label+"-"+name+".lock"), "another process makes the image "+tag)
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := e.ImageInspect(ctx, tag); err == nil {
		return tag, nil
	}
	o := client.ImageImportOptions{Message: name + " " + version}
	if len(libraries) > 0 {
		// Where this machine's loader looks may be configured in files that the
		// image does not have.
		var dirs []string
		for _, l := range libraries {
			if dir := path.Dir(l); !slices.Contains(dirs, dir) {
				dirs = append(dirs, dir)
			}
		}
		o.Changes = []string{"ENV LD_LIBRARY_PATH=" + strings.Join(dirs, ":")}
	}
	r, w := io.Pipe()
	go func() {
		t := tar.NewWriter(w)
		err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777})
		if err == nil {
			err = addFile(t, programPath(name), file)
		}
		for _, l := range libraries {
			if err == nil {
				err = addFile(t, l, l)
			}
		}
		w.CloseWithError(errors.Join(err, t.Close()))
	}()
	resp, err := e.ImageImport(ctx, client.ImageImportSource{Source: r, SourceName: "-"}, tag, o)
	if err != nil {
		r.CloseWithError(err)
		return "", fmt.Errorf("image %s: %w", tag, err)
	}
	defer resp.Close()
	said, err := io.ReadAll(resp)
	if err != nil {
		return "", fmt.Errorf("image %s: %w", tag, err)
	}
	if _, err := e.ImageInspect(ctx, tag); err != nil {
		return "", fmt.Errorf("image %s: %w: %s", tag, err, said)
	}
	return tag, nil
}

// addFile adds a file, or what a link leads to, that can be executed.
func addFile(t *tar.Writer, name, file string) error {
	info, err := os.Stat(file)
	if err != nil {
		return err
	}
	h := &tar.Header{Typeflag: tar.TypeReg, Name: strings.TrimPrefix(name, "/"), Mode: 0o755, Size: info.Size()}
	if err := t.WriteHeader(h); err != nil {
		return err
	}
	return copyFile(t, file)
}

func copyFile(w io.Writer, file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(w, f)
	return err
}

// programPath is where the public images have their program, too.
func programPath(name string) string { return "/usr/local/bin/" + name }

// sweep removes what it can, and returns what it could not as an error.
func (e *engine) sweep(ctx context.Context, gone func(run string) bool) ([]string, error) {
	var removed []string
	var errs []error
	ours := make(client.Filters).Add("label", label)
	cs, err := e.ContainerList(ctx, client.ContainerListOptions{All: true, Filters: ours})
	if err != nil {
		return nil, err
	}
	for _, c := range cs.Items {
		if !gone(c.Labels[label]) {
			continue
		}
		if _, err := e.ContainerRemove(ctx, c.ID, client.ContainerRemoveOptions{Force: true, RemoveVolumes: true}); err != nil {
			errs = append(errs, err)
			continue
		}
		removed = append(removed, "container "+strings.Join(c.Names, ", "))
	}
	ns, err := e.NetworkList(ctx, client.NetworkListOptions{Filters: ours})
	if err != nil {
		return removed, errors.Join(append(errs, err)...)
	}
	for _, n := range ns.Items {
		if !gone(n.Labels[label]) {
			continue
		}
		if _, err := e.NetworkRemove(ctx, n.ID, client.NetworkRemoveOptions{}); err != nil {
			errs = append(errs, err)
			continue
		}
		removed = append(removed, "network "+n.Name)
	}
	return removed, errors.Join(errs...)
}

// containers is a place whose servers are containers on networks of their own.
// There are two, so that a server can be cut off from the others and still be
// reached by tests.
type containers struct {
	engine *engine
	images map[string]string
	inner  *testcontainers.DockerNetwork // where servers know each other by name
	outer  *testcontainers.DockerNetwork // through which ports are published

	mu   sync.Mutex
	next netip.Addr // on inner
}

func newContainers(ctx context.Context, f *found) (place, error) {
	// Nothing is published through an internal network, so outer it is.
	inner, subnet, err := newNetwork(ctx, network.WithInternal())
	if err != nil {
		return nil, err
	}
	outer, _, err := newNetwork(ctx)
	if err != nil {
		return nil, errors.Join(err, inner.Remove(ctx))
	}
	first := subnet.Addr().Next().Next() // the one before it is the engine's
	return &containers{engine: f.engine, images: f.images, inner: inner, outer: outer, next: first}, nil
}

// newNetwork makes a network on a subnet of its own choice: only on such a one
// can servers choose their addresses, and an engine has but some thirty subnets
// to choose from itself, fewer where the machine's own networks overlap.
func newNetwork(ctx context.Context, opts ...network.NetworkCustomizer) (*testcontainers.DockerNetwork, netip.Prefix, error) {
	const tries = 10
	for try := 1; ; try++ {
		// RFC 2544 gives 198.18.0.0/15 to tests of networks; nothing routes it.
		subnet := netip.PrefixFrom(netip.AddrFrom4([...]byte{198, 18 | byte(rand.IntN(2)), byte(rand.IntN(256)), byte(rand.IntN(16) << 4)}), 28)
		n, err := network.New(ctx, append(opts,
			network.WithLabels(map[string]string{label: run()}),
			network.WithIPAM(&dockernet.IPAM{Config: []dockernet.IPAMConfig{{Subnet: subnet}}}),
		)...)
		if err == nil {
			return n, subnet, nil
		}
		if try == tries || !strings.Contains(strings.ToLower(err.Error()), "overlap") {
			return nil, netip.Prefix{}, fmt.Errorf("a network for containers: %w", err)
		}
	}
}

// address returns one for another server, which keeps it whatever is done to it.
// Else servers that were stopped may get each other's, which nodes of a cluster
// that knew them do not sort out.
func (c *containers) address() netip.Addr {
	c.mu.Lock()
	defer c.mu.Unlock()
	a := c.next
	c.next = a.Next()
	return a
}

func (c *containers) dir(name string) string { return "/" + label + "/" + name }

func (c *containers) endpoint(name string, port int) (endpoint, error) {
	published, err := freePort()
	return endpoint{
		listen:  fmt.Sprintf("0.0.0.0:%d", port),
		inside:  fmt.Sprintf("%s:%d", name, port),
		outside: fmt.Sprintf("%s:%d", c.engine.host, published),
	}, err
}

func (c *containers) start(ctx context.Context, s spec) (server, error) {
	address := c.address()
	opts := []testcontainers.ContainerCustomizer{
		testcontainers.WithLogger(log.NewNoopLogger()),
		testcontainers.WithEntrypoint(programPath(s.program)),
		testcontainers.WithCmd(s.args...),
		testcontainers.WithLabels(map[string]string{label: run()}),
		network.WithNetwork([]string{s.name}, c.inner),
		testcontainers.WithEndpointSettingsModifier(func(networks map[string]*dockernet.EndpointSettings) {
			if n := networks[c.inner.Name]; n != nil {
				n.IPAMConfig = &dockernet.EndpointIPAMConfig{IPv4Address: address}
			}
		}),
	}
	for name, content := range s.files {
		opts = append(opts, testcontainers.WithFiles(testcontainers.ContainerFile{
			Reader: bytes.NewReader(content), ContainerFilePath: path.Join(c.dir(s.name), name), FileMode: 0o644,
		}))
	}
	if s.publish != nil {
		_, port, err := net.SplitHostPort(s.publish.listen)
		if err != nil {
			return nil, err
		}
		inside, err := dockernet.ParsePort(port + "/tcp")
		if err != nil {
			return nil, err
		}
		host, outside, err := net.SplitHostPort(s.publish.outside)
		if err != nil {
			return nil, err
		}
		binding := dockernet.PortBinding{HostPort: outside}
		if host == "127.0.0.1" { // else any: the engine's own address need not be host
			binding.HostIP = netip.MustParseAddr(host)
		}
		opts = append(opts,
			network.WithNetwork(nil, c.outer),
			testcontainers.WithExposedPorts(port+"/tcp"),
			testcontainers.WithHostConfigModifier(func(c *dockercontainer.HostConfig) {
				c.PortBindings = dockernet.PortMap{inside: {binding}}
			}))
	}
	ctr, err := testcontainers.Run(ctx, c.images[s.program], opts...)
	if err != nil {
		// What a failed start has left.
		return nil, errors.Join(err, testcontainers.TerminateContainer(ctr, testcontainers.StopTimeout(0)))
	}
	return &container{
		engine: c.engine, id: ctr.GetContainerID(), name: s.name, inner: c.inner.Name, kept: address,
		networks: [...]string{toServers: c.inner.ID, toTests: c.outer.ID},
	}, nil
}

func (c *containers) close(ctx context.Context) error {
	return errors.Join(c.inner.Remove(ctx), c.outer.Remove(ctx))
}

// container is one server. Its folder is the container's own, and stays until
// the container is removed.
type container struct {
	engine   *engine
	id, name string
	inner    string     // the name of the network to other servers
	kept     netip.Addr // its address there
	networks [2]string  // the IDs, by link
}

func (c *container) pause(ctx context.Context) error {
	_, err := c.engine.ContainerPause(ctx, c.id, client.ContainerPauseOptions{})
	return err
}

func (c *container) resume(ctx context.Context) error {
	_, err := c.engine.ContainerUnpause(ctx, c.id, client.ContainerUnpauseOptions{})
	return err
}

func (c *container) stop(ctx context.Context) error {
	if _, err := c.engine.ContainerKill(ctx, c.id, client.ContainerKillOptions{Signal: "KILL"}); err != nil {
		return err
	}
	return within(ctx, time.Minute, func() (bool, error) {
		running, err := c.running(ctx)
		return !running, err
	})
}

func (c *container) start(ctx context.Context) error {
	_, err := c.engine.ContainerStart(ctx, c.id, client.ContainerStartOptions{})
	return err
}

func (c *container) running(ctx context.Context) (bool, error) {
	i, err := c.engine.ContainerInspect(ctx, c.id, client.ContainerInspectOptions{})
	if err != nil {
		return false, err
	}
	return i.Container.State.Running, nil
}

func (c *container) address(ctx context.Context) (string, error) {
	i, err := c.engine.ContainerInspect(ctx, c.id, client.ContainerInspectOptions{})
	if err != nil {
		return "", err
	}
	n := i.Container.NetworkSettings.Networks[c.inner]
	if n == nil || !n.IPAddress.IsValid() {
		return "", fmt.Errorf("%s has no address among the other servers", c.name)
	}
	return n.IPAddress.String(), nil
}

func (c *container) sever(ctx context.Context, l link) error {
	_, err := c.engine.NetworkDisconnect(ctx, c.networks[l], client.NetworkDisconnectOptions{Container: c.id})
	return err
}

// mend gives the server its name, its address and its published port again.
func (c *container) mend(ctx context.Context, l link) error {
	var known dockernet.EndpointSettings
	if l == toServers {
		known.Aliases = []string{c.name}
		known.IPAMConfig = &dockernet.EndpointIPAMConfig{IPv4Address: c.kept}
	}
	_, err := c.engine.NetworkConnect(ctx, c.networks[l], client.NetworkConnectOptions{Container: c.id, EndpointConfig: &known})
	return err
}

func (c *container) remove(ctx context.Context) error {
	_, err := c.engine.ContainerRemove(ctx, c.id, client.ContainerRemoveOptions{Force: true, RemoveVolumes: true})
	return err
}

func (c *container) output(ctx context.Context) (stdout, stderr []byte, err error) {
	r, err := c.engine.ContainerLogs(ctx, c.id, client.ContainerLogsOptions{ShowStdout: true, ShowStderr: true})
	if err != nil {
		return nil, nil, err
	}
	defer r.Close()
	var out, errs bytes.Buffer
	_, err = stdcopy.StdCopy(&out, &errs, r)
	return out.Bytes(), errs.Bytes(), err
}
