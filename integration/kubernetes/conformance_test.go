package kubernetes_test

import (
	"flag"
	"testing"
	"time"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/conformance"
	"github.com/leasehold/leasehold/integration/internal/servers"
	"github.com/leasehold/leasehold/kubernetes"
)

func TestMain(m *testing.M) {
	flag.Set("test.parallel", "8") // most tests wait most of the time; -parallel still counts
	servers.Main(m)
}

// TestConformance holds the store to all promises. The margin is as small as it
// can be where there is one API server, so that the cases which wait for a
// tenure to be called expired need not wait for a minute each. Leases of one
// second would give a call 250 ms, which is little for an API server that shares
// two processors with hundreds of new clients.
func TestConformance(t *testing.T) {
	k := servers.SharedKubernetes(t)
	namespace, err := k.Namespace(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	conformance.Run(t, func(tb testing.TB) backend.Store {
		s, err := kubernetes.New(k.Config("admin"), namespace, kubernetes.WithExpiryMargin(time.Millisecond))
		if err != nil {
			tb.Fatal(err)
		}
		return s
	}, conformance.WithDuration(3*time.Second))
}
