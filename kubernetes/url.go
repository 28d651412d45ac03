package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/leasehold/leasehold/backend"
)

func init() { backend.Register("kubernetes", open) }

// inClusterNamespace is where a pod finds the name of its own.
const inClusterNamespace = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"

// open opens kubernetes://NAMESPACE?kubeconfig=FILE&context=NAME. Without both it
// is the cluster that the pod runs in, and outside of one what kubectl would use.
func open(_ context.Context, u *url.URL) (backend.Store, error) {
	q, err := backend.Query(u, "kubeconfig", "context", "create-namespace", "expiry-margin", "vacate")
	if err != nil {
		return nil, err
	}
	if u.Opaque != "" || u.User != nil || u.Port() != "" || strings.Trim(u.Path, "/") != "" || u.Fragment != "" {
		return nil, fmt.Errorf("%w: a Kubernetes URL is kubernetes://NAMESPACE, with ?kubeconfig=FILE&context=NAME for a cluster that is not the default one", backend.ErrInvalid)
	}
	var opts []Option
	for key, opt := range map[string]Option{"create-namespace": WithCreateNamespace(), "vacate": WithVacate()} {
		text, ok := q[key]
		if !ok {
			continue
		}
		on, err := strconv.ParseBool(text)
		if err != nil {
			return nil, fmt.Errorf("%w: %s=%q of the Kubernetes URL is neither true nor false", backend.ErrInvalid, key, text)
		}
		if on {
			opts = append(opts, opt)
		}
	}
	if text, ok := q["expiry-margin"]; ok {
		d, err := time.ParseDuration(text)
		if err != nil {
			return nil, fmt.Errorf("%w: expiry-margin=%q of the Kubernetes URL is no duration like 90s", backend.ErrInvalid, text)
		}
		opts = append(opts, WithExpiryMargin(d))
	}
	cfg, namespace, err := configuration(q["kubeconfig"], q["context"])
	if err != nil {
		return nil, err
	}
	if host := u.Hostname(); host != "" {
		namespace = host
	}
	return New(cfg, namespace, opts...)
}

// configuration returns how to reach a cluster, and the namespace that goes with
// it.
func configuration(kubeconfig, contextName string) (*rest.Config, string, error) {
	if kubeconfig == "" && contextName == "" {
		cfg, err := rest.InClusterConfig()
		if err == nil {
			namespace, err := os.ReadFile(inClusterNamespace)
			if err != nil {
				namespace = nil // the URL names one
			}
			return cfg, strings.TrimSpace(string(namespace)), nil
		}
		if !errors.Is(err, rest.ErrNotInCluster) {
			return nil, "", fmt.Errorf("%w: the pod's access to its cluster: %w", backend.ErrInvalid, err)
		}
	}
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = kubeconfig
	loader := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: contextName})
	cfg, err := loader.ClientConfig()
	switch {
	case clientcmd.IsEmptyConfig(err) && kubeconfig == "":
		return nil, "", fmt.Errorf("%w: no cluster to use: this is no pod, and there is no kubeconfig (looked at $KUBECONFIG and %s): name one with ?kubeconfig=FILE", backend.ErrInvalid, clientcmd.RecommendedHomeFile)
	case err != nil:
		return nil, "", fmt.Errorf("%w: the kubeconfig cannot be used: %w", backend.ErrInvalid, err)
	}
	namespace, _, err := loader.Namespace()
	if err != nil {
		return nil, "", fmt.Errorf("%w: the kubeconfig cannot be used: %w", backend.ErrInvalid, err)
	}
	return cfg, namespace, nil
}
