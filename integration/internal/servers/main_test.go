package servers

import (
	"net/url"
	"strings"
	"testing"
)

// It comes after the tests that look for what is left behind, as shared servers
// stay until the end.
func TestSharedEtcd(t *testing.T) {
	e, cluster := SharedEtcd(t), SharedEtcdCluster(t)
	if e != SharedEtcd(t) || cluster != SharedEtcdCluster(t) {
		t.Error("there are two")
	}
	if cluster.Members() != 3 || len(cluster.Endpoints()) != 3 {
		t.Errorf("the cluster is %v", cluster.Endpoints())
	}
	u, err := url.Parse(cluster.URL("p"))
	if err != nil || u.Host != strings.Join(cluster.addrs, ",") {
		t.Errorf("URL %s: %v", u, err)
	}
}
