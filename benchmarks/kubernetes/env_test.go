//go:build unix

package kubernetes_test

import (
	"testing"

	"github.com/go-logr/logr"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"github.com/leasehold/leasehold/benchmarks/internal/servers"
)

var apiServer = servers.New("kubernetes", "--kubeconfig")

func TestMain(m *testing.M) {
	// client-go tells of every election; between the figures nobody wants that.
	klog.SetLogger(logr.Discard())
	apiServer.Main(m)
}

// server returns how to reach the API server.
func server(b *testing.B) *rest.Config {
	b.Helper()
	cfg, err := clientcmd.RESTConfigFromKubeConfig(apiServer.Access(b))
	if err != nil {
		b.Fatal(err)
	}
	return cfg
}
