package servers

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path"
	"slices"
	"sync"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// Admin may do everything: it is in system:masters, or who the given kubeconfig
// says.
const Admin = "admin"

// users are all that an API server knows. None but admin may do anything before
// Grant.
var users = []string{Admin, "holder", "watcher", "lister", "deleter", "nobody"}

// Users returns the names that Config and Kubeconfig take.
func Users() []string { return slices.Clone(users) }

// Kubernetes is an API server with its etcd.
type Kubernetes struct {
	Version string // of the API server
	How     string // one line for people: what it is and where it came from

	config *clientcmdapi.Config // of admin
	tokens map[string]string    // by user; nil: a given cluster, where users are impersonated
	addr   string
	place  place
	etcd   server
	api    server

	mu         sync.Mutex
	closed     bool
	namespaces []string // to delete from a given cluster
}

// An Option changes how StartKubernetes starts a server.
type Option func(*options)

type options struct {
	processes bool
	flags     []string
}

// AsProcesses starts processes of this machine even where there is a Docker
// engine, and even where a cluster is given.
func AsProcesses() Option { return func(o *options) { o.processes = true } }

// WithFlags adds flags to the API server's. A given cluster cannot have any.
func WithFlags(flags ...string) Option {
	return func(o *options) { o.flags = append(o.flags, flags...) }
}

const readyTime = 2 * time.Minute

// StartKubernetes starts an API server with its etcd, or finds the one that is
// given, and returns when it is ready. Stop it with Close.
func StartKubernetes(ctx context.Context, opts ...Option) (*Kubernetes, error) {
	var o options
	for _, opt := range opts {
		opt(&o)
	}
	if file := os.Getenv("LEASEHOLD_TEST_KUBECONFIG"); file != "" && !o.processes {
		if len(o.flags) > 0 {
			return nil, fmt.Errorf("a given cluster cannot be started with flags: %w", errors.ErrUnsupported)
		}
		return givenKubernetes(ctx, file, os.Getenv("LEASEHOLD_TEST_KUBECONTEXT"))
	}
	f, err := findKubernetes(ctx, o)
	if err != nil {
		return nil, err
	}
	return onFreePorts(ctx, func() (*Kubernetes, error) { return startKubernetes(ctx, f, o) })
}

// PrepareKubernetes does what takes long before StartKubernetes can start a
// server, once: it pulls, builds, makes images. It returns a line for people.
func PrepareKubernetes(ctx context.Context) (string, error) {
	if file := os.Getenv("LEASEHOLD_TEST_KUBECONFIG"); file != "" {
		k, err := givenKubernetes(ctx, file, os.Getenv("LEASEHOLD_TEST_KUBECONTEXT"))
		if err != nil {
			return "", err
		}
		return k.How, k.Close()
	}
	f, err := findKubernetes(ctx, options{})
	if err != nil {
		return "", err
	}
	return f.describe(kubeAPIServer, etcd), nil
}

func findKubernetes(ctx context.Context, o options) (*found, error) {
	f, err := find(ctx, !o.processes, kubeAPIServer, etcd)
	if err != nil {
		return nil, fmt.Errorf("no Kubernetes API server can be had:\n%w", err)
	}
	return f, nil
}

func startKubernetes(ctx context.Context, f *found, o options) (_ *Kubernetes, err error) {
	k := &Kubernetes{How: f.describe(kubeAPIServer, etcd), tokens: make(map[string]string)}
	defer func() {
		if err != nil {
			if why := k.complaints(); why != "" {
				err = fmt.Errorf("%w\n%s", err, why)
			}
			err = errors.Join(err, k.Close())
		}
	}()
	if k.place, err = newPlace(ctx, f); err != nil {
		return nil, err
	}
	store, err := newMember(k.place, etcd.name)
	if err != nil {
		return nil, err
	}
	api, err := k.place.endpoint(kubeAPIServer.name, 6443)
	if err != nil {
		return nil, err
	}
	k.addr = api.outside

	if k.etcd, err = k.place.start(ctx, spec{
		program: etcd.name,
		name:    store.name,
		args:    store.flags(k.place, "http://", store.client.inside, []member{store}),
	}); err != nil {
		return nil, err
	}

	host, _, err := net.SplitHostPort(api.outside)
	if err != nil {
		return nil, err
	}
	ca, err := newAuthority()
	if err != nil {
		return nil, err
	}
	cert, err := ca.server("localhost", "127.0.0.1", "::1", host)
	if err != nil {
		return nil, err
	}
	signer, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, err
	}
	var tokens bytes.Buffer
	for _, user := range users {
		k.tokens[user] = rand.Text()
		group := "leasehold-test"
		if user == Admin {
			group = "system:masters"
		}
		fmt.Fprintf(&tokens, "%s,%s,%s,%q\n", k.tokens[user], user, user, group)
	}
	k.config = newKubeconfig(k.addr, cert.ca, k.tokens[Admin])

	dir := k.place.dir(kubeAPIServer.name)
	listenHost, listenPort, err := net.SplitHostPort(api.listen)
	if err != nil {
		return nil, err
	}
	if k.api, err = k.place.start(ctx, spec{
		program: kubeAPIServer.name,
		name:    kubeAPIServer.name,
		publish: &api,
		files: map[string][]byte{
			"tls.crt":    cert.cert,
			"tls.key":    cert.key,
			"sa.key":     pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(signer)}),
			"tokens.csv": tokens.Bytes(),
			"audit.yaml": []byte(auditPolicy),
		},
		args: append([]string{
			"--etcd-servers=http://" + store.client.inside,
			"--bind-address=" + listenHost,
			"--secure-port=" + listenPort,
			"--cert-dir=" + path.Join(dir, "certs"),
			"--tls-cert-file=" + path.Join(dir, "tls.crt"),
			"--tls-private-key-file=" + path.Join(dir, "tls.key"),
			// Nobody looks for it, and without a default route none is found.
			"--advertise-address=192.0.2.1",
			"--endpoint-reconciler-type=none",
			"--service-cluster-ip-range=10.0.0.0/24",
			"--service-account-issuer=https://leasehold.test",
			"--service-account-signing-key-file=" + path.Join(dir, "sa.key"),
			"--service-account-key-file=" + path.Join(dir, "sa.key"),
			"--disable-admission-plugins=ServiceAccount",
			"--token-auth-file=" + path.Join(dir, "tokens.csv"),
			"--authorization-mode=RBAC",
			"--audit-policy-file=" + path.Join(dir, "audit.yaml"),
			"--audit-log-path=-",
			"--audit-log-mode=blocking-strict", // written before the reply
		}, o.flags...),
	}); err != nil {
		return nil, err
	}
	if err := k.ready(ctx); err != nil {
		return nil, err
	}
	return k, k.look(ctx)
}

// newKubeconfig is admin's for an API server of ours.
func newKubeconfig(addr string, ca []byte, token string) *clientcmdapi.Config {
	const name = "leasehold-test"
	c := clientcmdapi.NewConfig()
	c.Clusters[name] = &clientcmdapi.Cluster{Server: "https://" + addr, CertificateAuthorityData: ca}
	c.AuthInfos[name] = &clientcmdapi.AuthInfo{Token: token}
	c.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name}
	c.CurrentContext = name
	return c
}

func givenKubernetes(ctx context.Context, file, kubecontext string) (*Kubernetes, error) {
	fail := func(err error) (*Kubernetes, error) {
		return nil, fmt.Errorf("LEASEHOLD_TEST_KUBECONFIG=%s: %w", file, err)
	}
	c, err := clientcmd.LoadFromFile(file)
	if err != nil {
		return fail(err)
	}
	if kubecontext != "" {
		c.CurrentContext = kubecontext
	}
	if err := clientcmdapi.MinifyConfig(c); err != nil {
		return fail(err)
	}
	if err := clientcmd.ResolveLocalPaths(c); err != nil {
		return fail(err)
	}
	if err := clientcmdapi.FlattenConfig(c); err != nil {
		return fail(err)
	}
	k := &Kubernetes{config: c}
	server := k.cluster().Server
	u, err := url.Parse(server)
	if err != nil {
		return fail(err)
	}
	if k.addr = u.Host; u.Port() == "" {
		k.addr = net.JoinHostPort(u.Hostname(), "443")
	}
	if err := k.look(ctx); err != nil {
		return fail(err)
	}
	k.How = fmt.Sprintf("kube-apiserver %s at %s, given by LEASEHOLD_TEST_KUBECONFIG", k.Version, server)
	return k, nil
}

func (k *Kubernetes) cluster() *clientcmdapi.Cluster {
	return k.config.Clusters[k.config.Contexts[k.config.CurrentContext].Cluster]
}

// kubeconfig returns a user's, as the caller's own.
func (k *Kubernetes) kubeconfig(user string) *clientcmdapi.Config {
	if !slices.Contains(users, user) {
		panic(fmt.Sprintf("servers: there is no user %q, only %q", user, users))
	}
	c := k.config.DeepCopy()
	auth := c.AuthInfos[c.Contexts[c.CurrentContext].AuthInfo]
	switch {
	case user == Admin:
	case k.tokens != nil:
		auth.Token = k.tokens[user]
	default:
		auth.Impersonate = k.rbacName(user)
	}
	return c
}

// rbacName is what a user is called in a RoleBinding. In a given cluster
// somebody may really be called holder.
func (k *Kubernetes) rbacName(user string) string {
	if k.tokens == nil {
		return "leasehold-test:" + user
	}
	return user
}

// Kubeconfig returns the content of a user's kubeconfig file; it needs no other
// file. A user that is not one of Users panics.
func (k *Kubernetes) Kubeconfig(user string) []byte {
	out, err := clientcmd.Write(*k.kubeconfig(user))
	if err != nil {
		panic(err) // it was read from one, or made here
	}
	return out
}

// Config returns a fresh client configuration of a user. The client's own rate
// limit is on, as it is by default.
func (k *Kubernetes) Config(user string) *rest.Config {
	c, err := clientcmd.NewDefaultClientConfig(*k.kubeconfig(user), nil).ClientConfig()
	if err != nil {
		panic(err)
	}
	return c
}

// ConfigVia is Config through another address, such as that of a proxy. The
// server still has to show its own certificate.
func (k *Kubernetes) ConfigVia(user, addr string) *rest.Config {
	c := k.Config(user)
	u, err := url.Parse(c.Host)
	if err != nil {
		panic(err)
	}
	if c.TLSClientConfig.ServerName == "" {
		c.TLSClientConfig.ServerName = u.Hostname()
	}
	u.Host = addr
	c.Host = u.String()
	return c
}

// Addr returns the host and port of the API server.
func (k *Kubernetes) Addr() string { return k.addr }

func (k *Kubernetes) admin() (*kubernetes.Clientset, error) {
	c := k.Config(Admin)
	c.QPS = -1
	return kubernetes.NewForConfig(c)
}

// Namespace makes a namespace and returns its name. Close deletes it.
func (k *Kubernetes) Namespace(ctx context.Context) (string, error) {
	client, err := k.admin()
	if err != nil {
		return "", err
	}
	ns, err := client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "leasehold-test-", Labels: map[string]string{"app.kubernetes.io/part-of": label}},
	}, metav1.CreateOptions{})
	if err != nil {
		return "", err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.namespaces = append(k.namespaces, ns.Name)
	return ns.Name, nil
}

// Grant lets a user do in a namespace what rules say, besides what was granted
// before, and returns when the server knows.
func (k *Kubernetes) Grant(ctx context.Context, namespace, user string, rules ...rbacv1.PolicyRule) error {
	client, err := k.admin()
	if err != nil {
		return err
	}
	role, err := client.RbacV1().Roles(namespace).Create(ctx, &rbacv1.Role{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "leasehold-test-"},
		Rules:      rules,
	}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	if _, err := client.RbacV1().RoleBindings(namespace).Create(ctx, &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: role.Name},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: k.rbacName(user)}},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: role.Name},
	}, metav1.CreateOptions{}); err != nil {
		return err
	}
	// The authorizer learns of roles from a watch of its own.
	for _, rule := range rules {
		asked := authorizationv1.ResourceAttributes{
			Namespace: namespace, Verb: first(rule.Verbs), Group: first(rule.APIGroups), Resource: first(rule.Resources), Name: first(rule.ResourceNames),
		}
		err := within(ctx, 30*time.Second, func() (bool, error) {
			review, err := client.AuthorizationV1().SubjectAccessReviews().Create(ctx, &authorizationv1.SubjectAccessReview{
				Spec: authorizationv1.SubjectAccessReviewSpec{User: k.rbacName(user), ResourceAttributes: &asked},
			}, metav1.CreateOptions{})
			return err == nil && review.Status.Allowed, err
		})
		if err != nil {
			return fmt.Errorf("granting %s to %s: %w", &rule, user, err)
		}
	}
	return nil
}

func first(s []string) string {
	if len(s) == 0 {
		return ""
	}
	return s[0]
}

// Pause stops the API server in its tracks: connections stay open and nothing
// answers, until Resume.
func (k *Kubernetes) Pause(ctx context.Context) error { return k.do(ctx, server.pause) }

// Resume undoes Pause.
func (k *Kubernetes) Resume(ctx context.Context) error { return k.do(ctx, server.resume) }

// Stop kills the API server. Its etcd, and with it all objects, stays.
func (k *Kubernetes) Stop(ctx context.Context) error { return k.do(ctx, server.stop) }

// Start starts the API server again after Stop, at the same address, and
// returns when it is ready.
func (k *Kubernetes) Start(ctx context.Context) error {
	if err := k.do(ctx, server.start); err != nil {
		return err
	}
	return k.ready(ctx)
}

func (k *Kubernetes) do(ctx context.Context, f func(server, context.Context) error) error {
	if k.api == nil {
		return fmt.Errorf("a given cluster is left as it is: %w", errors.ErrUnsupported)
	}
	return f(k.api, ctx)
}

// Close removes the servers with all they stored, or from a given cluster what
// Namespace made.
func (k *Kubernetes) Close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return nil
	}
	k.closed = true
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	errs := []error{removeAll(ctx, k.place, k.servers())}
	if len(k.namespaces) > 0 && k.place == nil {
		client, err := k.admin()
		if err != nil {
			return err
		}
		for _, ns := range k.namespaces {
			errs = append(errs, client.CoreV1().Namespaces().Delete(ctx, ns, metav1.DeleteOptions{}))
		}
	}
	return errors.Join(errs...)
}

// ready waits until the API server says that it is, and has the namespace that
// every cluster has.
func (k *Kubernetes) ready(ctx context.Context) error {
	c := k.Config(Admin)
	c.Timeout = 5 * time.Second
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(c.CAData)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, DisableKeepAlives: true}
	client := &http.Client{Transport: transport, Timeout: c.Timeout}
	last := errors.New("no answer")
	err := within(ctx, readyTime, func() (bool, error) {
		if err := noneEnded(ctx, k.servers()); err != nil {
			return false, err
		}
		for _, path := range []string{"/readyz", "/api/v1/namespaces/default"} {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.Host+path, nil)
			if err != nil {
				return false, err
			}
			req.Header.Set("Authorization", "Bearer "+c.BearerToken)
			resp, err := client.Do(req)
			if err != nil {
				last = err
				return false, nil
			}
			resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				last = fmt.Errorf("%s: %s", path, resp.Status)
				return false, nil
			}
		}
		return true, nil
	})
	if err != nil {
		return fmt.Errorf("the API server at %s does not become ready: %w; last: %w", k.addr, err, last)
	}
	return nil
}

// look asks the server for its version.
func (k *Kubernetes) look(ctx context.Context) error {
	c := k.Config(Admin)
	c.Timeout = 30 * time.Second
	client, err := kubernetes.NewForConfig(c)
	if err != nil {
		return err
	}
	v, err := client.Discovery().ServerVersion()
	if err != nil {
		return err
	}
	k.Version = v.GitVersion
	return ctx.Err()
}

// servers returns those that were started.
func (k *Kubernetes) servers() []named {
	var all []named
	if k.api != nil {
		all = append(all, named{k.api, kubeAPIServer.name})
	}
	if k.etcd != nil {
		all = append(all, named{k.etcd, etcd.name})
	}
	return all
}

func (k *Kubernetes) complaints() string { return lastWords(k.servers()) }

func (k *Kubernetes) how() string { return "kubernetes: " + k.How }
