package servers

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"
)

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

func TestSharedRedis(t *testing.T) {
	r, cluster := SharedRedis(t), SharedRedisCluster(t)
	if r != SharedRedis(t) || cluster != SharedRedisCluster(t) {
		t.Error("there are two")
	}
	if cluster.Nodes() < 3 || !cluster.Options().IsClusterMode {
		t.Errorf("the cluster is %v", cluster.Addrs())
	}
	for _, x := range []*redisTest{{t, r}, {t, cluster}} {
		c := x.universal()
		for k := range 10 {
			x.must(c.Set(t.Context(), fmt.Sprint("k", k), k, 0).Err())
		}
	}
}

func TestRedisGivenCluster(t *testing.T) {
	r := SharedRedisCluster(t)
	t.Setenv(addrsEnv, strings.Join(r.Addrs(), ","))
	given, err := StartRedis(t.Context(), InCluster())
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(given.Ready(t.Context()), given.Close()); err != nil {
		t.Error(err)
	}
	if given.URL("") != r.URL("") || !given.Options().IsClusterMode {
		t.Errorf("found %s, want %s", given.URL(""), r.URL(""))
	}
	t.Setenv(addrsEnv, r.Addrs()[0])
	if _, err := StartRedis(t.Context()); err == nil {
		t.Error("one node passes for a single one")
	}
}
