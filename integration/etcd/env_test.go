package etcd_test

import (
	"context"
	"flag"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/leasehold/leasehold/etcd"
	"github.com/leasehold/leasehold/integration/internal/servers"
)

func TestMain(m *testing.M) {
	flag.Set("test.parallel", "8") // most tests wait most of the time; -parallel still counts
	servers.Main(m)
}

// client returns a new client of e, closed after the test. edit may change how it
// is made.
func client(tb testing.TB, e *servers.Etcd, edit ...func(*clientv3.Config)) *clientv3.Client {
	tb.Helper()
	cfg := e.Config()
	for _, f := range edit {
		f(&cfg)
	}
	c, err := clientv3.New(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { c.Close() })
	return c
}

// store returns a store with a client of its own under a prefix that is the test's
// own, and deleted after it.
func store(tb testing.TB, e *servers.Etcd) *etcd.Store {
	tb.Helper()
	c := client(tb, e)
	s := etcd.New(c, prefix(tb))
	tb.Cleanup(func() {
		s.Close()
		_, _ = c.Delete(context.Background(), s.Prefix(), clientv3.WithPrefix())
	})
	return s
}

// prefix is of this test alone.
func prefix(tb testing.TB) string {
	return "/leasehold-test/" + strings.NewReplacer("/", "-", " ", "-").Replace(tb.Name())
}
