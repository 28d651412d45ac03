package servers

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// Etcd is a cluster of one or several members. They are counted from 0.
type Etcd struct {
	Version string // of the members
	How     string // one line for people: what it is and where it came from

	addrs          []string // host:port of each member, for clients
	user, password string   // "": anybody may do everything
	credentials
	place   place
	members []named // in a given cluster none

	mu     sync.Mutex
	closed bool
}

// An EtcdOption changes how StartEtcd starts a cluster.
type EtcdOption func(*etcdOptions)

type etcdOptions struct {
	processes, tls, password bool
	members                  int // 0: it does not matter
	flags                    []string
}

// WithMembers starts so many members instead of one.
func WithMembers(n int) EtcdOption { return func(o *etcdOptions) { o.members = n } }

// WithTLS lets the members show clients a certificate and require one of them.
// Among themselves they speak without.
func WithTLS() EtcdOption { return func(o *etcdOptions) { o.tls = true } }

// WithPassword lets nobody in but root, who has a password.
func WithPassword() EtcdOption { return func(o *etcdOptions) { o.password = true } }

// WithEtcdFlags adds flags to those of every member.
func WithEtcdFlags(flags ...string) EtcdOption {
	return func(o *etcdOptions) { o.flags = append(o.flags, flags...) }
}

// EtcdAsProcesses is AsProcesses for StartEtcd.
func EtcdAsProcesses() EtcdOption { return func(o *etcdOptions) { o.processes = true } }

// answerTime is how long one question to one member may take. A member that is
// paused or cut off takes all of it.
const answerTime = 2 * time.Second

// StartEtcd starts a cluster, or finds the one that is given, and returns when
// all members are ready. Stop it with Close. What a given cluster is not is an
// errors.ErrUnsupported.
func StartEtcd(ctx context.Context, opts ...EtcdOption) (*Etcd, error) {
	var o etcdOptions
	for _, opt := range opts {
		opt(&o)
	}
	if given := os.Getenv("LEASEHOLD_TEST_ETCD_ENDPOINTS"); given != "" && !o.processes {
		e, err := givenEtcd(ctx, given)
		if err != nil {
			return nil, err
		}
		if err := e.fits(o); err != nil {
			return nil, err
		}
		return e, nil
	}
	f, err := findEtcd(ctx, o)
	if err != nil {
		return nil, err
	}
	return onFreePorts(ctx, func() (*Etcd, error) { return startEtcd(ctx, f, o) })
}

// PrepareEtcd does what takes long before StartEtcd can start a cluster, once:
// it pulls, builds, makes an image. It returns a line for people.
func PrepareEtcd(ctx context.Context) (string, error) {
	if given := os.Getenv("LEASEHOLD_TEST_ETCD_ENDPOINTS"); given != "" {
		e, err := givenEtcd(ctx, given)
		if err != nil {
			return "", err
		}
		return e.How, e.Close()
	}
	f, err := findEtcd(ctx, etcdOptions{})
	if err != nil {
		return "", err
	}
	return f.describe(etcd), nil
}

func findEtcd(ctx context.Context, o etcdOptions) (*found, error) {
	f, err := find(ctx, !o.processes, etcd)
	if err != nil {
		return nil, fmt.Errorf("no etcd can be had:\n%w", err)
	}
	return f, nil
}

// member is where a member of a cluster listens.
type member struct {
	name         string
	client, peer endpoint
}

func newMember(p place, name string) (member, error) {
	client, err := p.endpoint(name, 2379)
	if err != nil {
		return member{}, err
	}
	peer, err := p.endpoint(name, 2380)
	return member{name: name, client: client, peer: peer}, err
}

// flags are those of a member that forms a cluster with others. Clients that ask
// the cluster for its members are told the advertised address.
func (m member) flags(p place, scheme, advertised string, cluster []member) []string {
	var peers []string
	for _, o := range cluster {
		peers = append(peers, o.name+"=http://"+o.peer.inside)
	}
	return []string{
		"--name=" + m.name,
		"--data-dir=" + path.Join(p.dir(m.name), "data"),
		"--listen-client-urls=" + scheme + m.client.listen,
		"--advertise-client-urls=" + scheme + advertised,
		"--listen-peer-urls=http://" + m.peer.listen,
		"--initial-advertise-peer-urls=http://" + m.peer.inside,
		"--initial-cluster=" + strings.Join(peers, ","),
		"--unsafe-no-fsync", // survives the death of a process, which is all that is tested
		"--log-level=warn",
	}
}

func startEtcd(ctx context.Context, f *found, o etcdOptions) (_ *Etcd, err error) {
	e := &Etcd{How: f.describe(etcd)}
	defer func() {
		if err != nil {
			if why := e.complaints(); why != "" {
				err = fmt.Errorf("%w\n%s", err, why)
			}
			err = errors.Join(err, e.Close())
		}
	}()
	if e.place, err = newPlace(ctx, f); err != nil {
		return nil, err
	}
	cluster := make([]member, max(1, o.members))
	for i := range cluster {
		if cluster[i], err = newMember(e.place, fmt.Sprintf("%s%d", etcd.name, i)); err != nil {
			return nil, err
		}
		e.addrs = append(e.addrs, cluster[i].client.outside)
	}
	if len(cluster) > 1 {
		e.How += fmt.Sprintf(", %d members", len(cluster))
	}
	scheme := "http://"
	var files map[string][]byte
	if o.tls {
		scheme = "https://"
		e.How += ", TLS"
		server, err := e.certify(e.addrs)
		if err != nil {
			return nil, err
		}
		files = map[string][]byte{"ca.crt": server.ca, "tls.crt": server.cert, "tls.key": server.key}
	}
	// They become ready together.
	for _, m := range cluster {
		flags := m.flags(e.place, scheme, m.client.outside, cluster)
		if o.tls {
			dir := e.place.dir(m.name)
			flags = append(flags,
				"--cert-file="+path.Join(dir, "tls.crt"),
				"--key-file="+path.Join(dir, "tls.key"),
				"--trusted-ca-file="+path.Join(dir, "ca.crt"),
				"--client-cert-auth",
				"--enable-grpc-gateway=false", // it would have to be a client, too
			)
		}
		if o.password {
			flags = append(flags, "--bcrypt-cost=4") // the lowest
		}
		s, err := e.place.start(ctx, spec{
			program: etcd.name,
			name:    m.name,
			args:    append(flags, o.flags...),
			files:   files,
			publish: &m.client,
		})
		if err != nil {
			return nil, err
		}
		e.members = append(e.members, named{s, m.name})
	}
	if err := e.allReady(ctx); err != nil {
		return nil, err
	}
	if o.password {
		e.How += ", with a password"
		if err := e.protect(ctx); err != nil {
			return nil, err
		}
		if err := e.allReady(ctx); err != nil {
			return nil, err
		}
	}
	return e, e.look(ctx)
}

// protect gives root a password and lets nobody else in.
func (e *Etcd) protect(ctx context.Context) error {
	const root = "root"
	password := rand.Text()
	err := e.ask(ctx, 0, func(ctx context.Context, c *clientv3.Client) error {
		if _, err := c.UserAdd(ctx, root, password); err != nil {
			return err
		}
		if _, err := c.UserGrantRole(ctx, root, root); err != nil {
			return err
		}
		_, err := c.AuthEnable(ctx)
		return err
	})
	if err != nil {
		return fmt.Errorf("giving root a password: %w", err)
	}
	e.user, e.password = root, password
	return nil
}

func givenEtcd(ctx context.Context, given string) (*Etcd, error) {
	fail := func(err error) (*Etcd, error) {
		return nil, fmt.Errorf("LEASEHOLD_TEST_ETCD_ENDPOINTS=%s: %w", given, err)
	}
	e := &Etcd{
		addrs:    strings.Split(given, ","),
		user:     os.Getenv("LEASEHOLD_TEST_ETCD_USER"),
		password: os.Getenv("LEASEHOLD_TEST_ETCD_PASSWORD"),
	}
	for _, addr := range e.addrs {
		if _, _, err := net.SplitHostPort(addr); err != nil {
			return fail(fmt.Errorf("want host:port,...: %w", err))
		}
	}
	if err := e.given("LEASEHOLD_TEST_ETCD"); err != nil {
		return fail(err)
	}
	if err := e.look(ctx); err != nil {
		return fail(err)
	}
	e.How = fmt.Sprintf("etcd %s at %s, given by LEASEHOLD_TEST_ETCD_ENDPOINTS", e.Version, given)
	return e, nil
}

var errGiven = fmt.Errorf("a given cluster is left as it is: %w", errors.ErrUnsupported)

// fits tells whether a given cluster is what was asked for.
func (e *Etcd) fits(o etcdOptions) error {
	switch {
	case o.members > 0 && o.members != len(e.addrs):
		return fmt.Errorf("want %d members, given are %d: %w", o.members, len(e.addrs), errGiven)
	case o.tls && e.cert == "":
		return fmt.Errorf("want client certificates: %w", errGiven)
	case o.password && e.user == "":
		return fmt.Errorf("want a user with a password: %w", errGiven)
	case len(o.flags) > 0:
		return fmt.Errorf("want flags %q: %w", o.flags, errGiven)
	}
	return nil
}

// Members returns how many there are.
func (e *Etcd) Members() int { return len(e.addrs) }

// Endpoints returns the URL of each member. They stay the same whatever is done
// to the members.
func (e *Etcd) Endpoints() []string {
	scheme := "http://"
	if e.tls != nil {
		scheme = "https://"
	}
	urls := make([]string, len(e.addrs))
	for i, addr := range e.addrs {
		urls[i] = scheme + addr
	}
	return urls
}

// Config returns a fresh client configuration, of root where there is one. It
// logs nothing.
func (e *Etcd) Config() clientv3.Config {
	return clientv3.Config{
		Endpoints:   e.Endpoints(),
		Username:    e.user,
		Password:    e.password,
		TLS:         e.tls.Clone(),
		DialTimeout: 5 * time.Second,
		Logger:      zap.NewNop(),
	}
}

// User returns the name and the password of root, "" if there is none.
func (e *Etcd) User() (name, password string) { return e.user, e.password }

// URL returns the URL of a store of Leasehold.
func (e *Etcd) URL(prefix string) string {
	u := url.URL{Scheme: "etcd", Host: strings.Join(e.addrs, ","), Path: "/" + strings.TrimPrefix(prefix, "/")}
	if e.user != "" {
		u.User = url.UserPassword(e.user, e.password)
	}
	query := url.Values{}
	for name, file := range map[string]string{"cacert": e.cacert, "cert": e.cert, "key": e.key} {
		if file != "" {
			query.Set(name, file)
		}
	}
	u.RawQuery = query.Encode()
	return u.String()
}

// Leader returns which member is the leader: one that answers, and says so
// itself. While there is none it is an error. A leader that has just lost the
// others does not know yet.
func (e *Etcd) Leader(ctx context.Context) (int, error) {
	leader, err := -1, errors.New("no member that answers is the leader")
	var term uint64
	for i, s := range e.status(ctx) {
		switch {
		case s.err != nil:
			err = fmt.Errorf("%w; member %d: %w", err, i, s.err)
		case s.Leader == s.Header.MemberId && s.RaftTerm > term:
			leader, term = i, s.RaftTerm
		}
	}
	if leader < 0 {
		return leader, err
	}
	return leader, nil
}

type status struct {
	*clientv3.StatusResponse
	err error
}

// status asks all members at once. When most have answered it does not wait for
// the others much longer: they may be paused or gone.
func (e *Etcd) status(ctx context.Context) []status {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	all := make([]status, len(e.addrs))
	answered := make(chan error, len(all))
	for i, endpoint := range e.Endpoints() {
		go func() {
			all[i].err = e.ask(ctx, i, func(ctx context.Context, c *clientv3.Client) (err error) {
				all[i].StatusResponse, err = c.Status(ctx, endpoint)
				return err
			})
			answered <- all[i].err
		}()
	}
	most := len(all)/2 + 1
	for range all {
		if err := <-answered; err != nil {
			continue
		}
		if most--; most == 0 {
			late := time.AfterFunc(answerTime/10, cancel)
			defer late.Stop()
		}
	}
	return all
}

// ask asks one member, over a connection of its own.
func (e *Etcd) ask(ctx context.Context, i int, question func(context.Context, *clientv3.Client) error) error {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	c := e.Config()
	c.Context = ctx
	c.DialTimeout = answerTime
	c.Endpoints = c.Endpoints[i : i+1]
	client, err := clientv3.New(c)
	if err != nil {
		return err
	}
	defer client.Close()
	return question(ctx, client)
}

// Ready waits until most members serve linearizable reads.
func (e *Etcd) Ready(ctx context.Context) error {
	all := make([]int, len(e.addrs))
	for i := range all {
		all[i] = i
	}
	return e.ready(ctx, len(all)/2+1, all, nil)
}

// ReadyAt waits until one member serves linearizable reads.
func (e *Etcd) ReadyAt(ctx context.Context, i int) error { return e.ready(ctx, 1, []int{i}, nil) }

// allReady waits for those that were just started, none of which may end.
func (e *Etcd) allReady(ctx context.Context) error {
	for i := range e.members {
		if err := e.ready(ctx, 1, []int{i}, e.members); err != nil {
			return err
		}
	}
	return nil
}

// ready waits until enough of some members are ready, as long as those run that
// must.
func (e *Etcd) ready(ctx context.Context, enough int, some []int, mustRun []named) error {
	errs := make([]error, len(some))
	err := within(ctx, readyTime, func() (bool, error) {
		if err := noneEnded(ctx, mustRun); err != nil {
			return false, err
		}
		var wg sync.WaitGroup
		for n, i := range some {
			wg.Go(func() { errs[n] = e.read(ctx, i) })
		}
		wg.Wait()
		ready := 0
		for _, err := range errs {
			if err == nil {
				ready++
			}
		}
		return ready >= enough, nil
	})
	if err != nil {
		return fmt.Errorf("of members %v at %s fewer than %d become ready: %w; last: %w", some, e.addrs, enough, err, errors.Join(errs...))
	}
	return nil
}

// read makes a linearizable read through a member.
func (e *Etcd) read(ctx context.Context, i int) error {
	return e.ask(ctx, i, func(ctx context.Context, c *clientv3.Client) error {
		_, err := c.Get(ctx, label)
		if errors.Is(err, rpctypes.ErrPermissionDenied) { // which it checks after all else
			return nil
		}
		return err
	})
}

// look asks the members for their version.
func (e *Etcd) look(ctx context.Context) error {
	var errs []error
	for _, s := range e.status(ctx) {
		if s.err == nil {
			e.Version = "v" + s.Version
			return nil
		}
		errs = append(errs, s.err)
	}
	return errors.Join(errs...)
}

// Pause stops member i in its tracks: connections stay open and nothing answers,
// until Resume.
func (e *Etcd) Pause(ctx context.Context, i int) error { return e.do(ctx, i, server.pause) }

// Resume undoes Pause. As after all that brings a member back, it may take a
// while until the member is ready: ReadyAt waits for it.
func (e *Etcd) Resume(ctx context.Context, i int) error { return e.do(ctx, i, server.resume) }

// Stop kills member i. It loses nothing that it has stored.
func (e *Etcd) Stop(ctx context.Context, i int) error { return e.do(ctx, i, server.stop) }

// Start starts member i again after Stop.
func (e *Etcd) Start(ctx context.Context, i int) error { return e.do(ctx, i, server.start) }

// CutOff cuts member i off from everybody, clients included, until Reconnect.
// Processes cannot be cut off: it is an errors.ErrUnsupported. What the other
// members send to it is lost without a word; clients see that their connections
// are closed, and new ones refused.
func (e *Etcd) CutOff(ctx context.Context, i int) error {
	if err := e.sever(ctx, i, toServers); err != nil {
		return err
	}
	return e.sever(ctx, i, toTests)
}

// Reconnect undoes CutOff.
func (e *Etcd) Reconnect(ctx context.Context, i int) error {
	if err := e.mend(ctx, i, toTests); err != nil {
		return err
	}
	return e.mend(ctx, i, toServers)
}

// Isolate cuts member i off from the others, until Join. Clients still reach it.
func (e *Etcd) Isolate(ctx context.Context, i int) error { return e.sever(ctx, i, toServers) }

// Join undoes Isolate.
func (e *Etcd) Join(ctx context.Context, i int) error { return e.mend(ctx, i, toServers) }

func (e *Etcd) sever(ctx context.Context, i int, l link) error {
	return e.do(ctx, i, func(s server, ctx context.Context) error { return s.sever(ctx, l) })
}

func (e *Etcd) mend(ctx context.Context, i int, l link) error {
	return e.do(ctx, i, func(s server, ctx context.Context) error { return s.mend(ctx, l) })
}

func (e *Etcd) do(ctx context.Context, i int, f func(server, context.Context) error) error {
	if e.members == nil {
		return errGiven
	}
	return f(e.members[i].server, ctx)
}

// Close removes the members with all they stored. A given cluster keeps it.
func (e *Etcd) Close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil
	}
	e.closed = true
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return errors.Join(removeAll(ctx, e.place, e.members), e.credentials.remove())
}

func (e *Etcd) complaints() string { return lastWords(e.members) }

func (e *Etcd) how() string { return "etcd: " + e.How }
