package servers

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/client"
	coordinationv1 "k8s.io/api/coordination/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	coordination "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

func TestMain(m *testing.M) { Main(m) }

func leases(t *testing.T, c *rest.Config, namespace string) coordination.LeaseInterface {
	t.Helper()
	client, err := kubernetes.NewForConfig(c)
	if err != nil {
		t.Fatal(err)
	}
	return client.CoordinationV1().Leases(namespace)
}

func lease(name string) *coordinationv1.Lease {
	return &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: name}}
}

func TestKubernetes(t *testing.T) {
	for name, opts := range map[string][]Option{"wherever": nil, "processes": {AsProcesses()}} {
		t.Run(name, func(t *testing.T) { testKubernetes(t, opts...) })
	}
}

func testKubernetes(t *testing.T, opts ...Option) {
	leavesNothing(t)
	start := time.Now()
	k := OwnKubernetes(t, opts...)
	if k.api == nil {
		t.Skip("a given cluster is not ours to try things on")
	}
	t.Logf("ready after %v", time.Since(start))
	ctx := t.Context()

	namespace, err := k.Namespace(ctx)
	if err != nil {
		t.Fatal(err)
	}
	admin := leases(t, k.Config(Admin), namespace)
	if _, err := admin.Create(ctx, lease("a"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}

	t.Run("users", func(t *testing.T) {
		for _, user := range Users()[1:] {
			if _, err := leases(t, k.Config(user), namespace).Get(ctx, "a", metav1.GetOptions{}); !apierrors.IsForbidden(err) {
				t.Errorf("%s may read before it was granted anything: %v", user, err)
			}
		}
		err := k.Grant(ctx, namespace, "holder", rbacv1.PolicyRule{
			APIGroups: []string{"coordination.k8s.io"}, Resources: []string{"leases"}, Verbs: []string{"get", "update"}, ResourceNames: []string{"a"},
		})
		if err != nil {
			t.Fatal(err)
		}
		holder := leases(t, k.Config("holder"), namespace)
		if _, err := holder.Get(ctx, "a", metav1.GetOptions{}); err != nil {
			t.Error(err)
		}
		if err := holder.Delete(ctx, "a", metav1.DeleteOptions{}); !apierrors.IsForbidden(err) {
			t.Errorf("holder may delete, which it was not granted: %v", err)
		}
		c, err := clientcmd.RESTConfigFromKubeConfig(k.Kubeconfig("holder"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := leases(t, c, namespace).Get(ctx, "a", metav1.GetOptions{}); err != nil {
			t.Errorf("with the kubeconfig: %v", err)
		}
		if _, err := leases(t, k.ConfigVia("holder", k.Addr()), namespace).Get(ctx, "a", metav1.GetOptions{}); err != nil {
			t.Errorf("through an address: %v", err)
		}
	})

	t.Run("requests", func(t *testing.T) {
		before, err := k.Requests(ctx)
		if err != nil {
			t.Fatal(err)
		}
		w, err := admin.Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=a"})
		if err != nil {
			t.Fatal(err)
		}
		w.Stop()
		leases(t, k.Config("nobody"), namespace).Get(ctx, "a", metav1.GetOptions{})
		after, err := k.Requests(ctx)
		if err != nil {
			t.Fatal(err)
		}
		got := after[len(before):]
		if len(got) != 2 {
			t.Fatalf("after a watch and a get: %+v", got)
		}
		if g := got[0]; g.Verb != "watch" || g.User != Admin || g.Code != 200 || !strings.Contains(g.Query, "fieldSelector=metadata.name") {
			t.Errorf("of a watch: %+v", g)
		}
		if g := got[1]; g.Verb != "get" || g.User != "nobody" || g.Code != 403 || g.Namespace != namespace || g.Name != "a" || g.Time.IsZero() {
			t.Errorf("of a get: %+v", g)
		}
	})

	t.Run("pause", func(t *testing.T) {
		if err := k.Pause(ctx); err != nil {
			t.Fatal(err)
		}
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if _, err := admin.Get(short, "a", metav1.GetOptions{}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a paused server answers: %v", err)
		}
		if err := k.Resume(ctx); err != nil {
			t.Fatal(err)
		}
		if _, err := admin.Get(ctx, "a", metav1.GetOptions{}); err != nil {
			t.Error(err)
		}
	})

	t.Run("stop", func(t *testing.T) {
		before, err := k.Requests(ctx)
		if err != nil {
			t.Fatal(err)
		}
		addr := k.Addr()
		if err := k.Stop(ctx); err != nil {
			t.Fatal(err)
		}
		if c, err := net.Dial("tcp", addr); err == nil {
			c.Close()
			t.Error("a stopped server accepts connections")
		}
		start := time.Now()
		if err := k.Start(ctx); err != nil {
			t.Fatal(err)
		}
		t.Logf("ready again after %v", time.Since(start))
		if k.Addr() != addr {
			t.Errorf("it moved from %s to %s", addr, k.Addr())
		}
		if _, err := admin.Get(ctx, "a", metav1.GetOptions{}); err != nil {
			t.Error(err)
		}
		after, err := k.Requests(ctx)
		if err != nil || len(after) < len(before) {
			t.Errorf("%d requests were known, after a restart %d: %v", len(before), len(after), err)
		}
		// A server that is paused can be killed, too.
		if err := errors.Join(k.Pause(ctx), k.Stop(ctx), k.Start(ctx)); err != nil {
			t.Error(err)
		}
	})

	// Whatever a test has left it in, it can be removed.
	if err := errors.Join(k.Pause(ctx), k.Close()); err != nil {
		t.Error(err)
	}
	if err := k.Close(); err != nil {
		t.Errorf("the second time: %v", err)
	}
}

// leavesNothing has a test fail that leaves something behind. It is called first,
// so that it looks last.
func leavesNothing(t *testing.T) {
	t.Helper()
	before := ours(t)
	t.Cleanup(func() {
		for what := range ours(t) {
			if !before[what] {
				t.Errorf("left behind: %s", what)
			}
		}
	})
}

// ours is all that this process has made and not removed, such as servers that
// tests share.
func ours(t *testing.T) map[string]bool {
	t.Helper()
	all := make(map[string]bool)
	dirs, _ := filepath.Glob(filepath.Join(os.TempDir(), label+"-"+run()+"_*"))
	for _, dir := range dirs {
		all[dir] = true
	}
	ctx := context.Background()
	e, err := dockerEngine(ctx)
	if err != nil {
		return all
	}
	filters := make(client.Filters).Add("label", label+"="+run())
	cs, err := e.ContainerList(ctx, client.ContainerListOptions{All: true, Filters: filters})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range cs.Items {
		all["container "+strings.Join(c.Names, ", ")] = true
	}
	ns, err := e.NetworkList(ctx, client.NetworkListOptions{Filters: filters})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range ns.Items {
		all["network "+n.Name] = true
	}
	return all
}

func TestShared(t *testing.T) {
	k := SharedKubernetes(t)
	if k != SharedKubernetes(t) {
		t.Error("there are two")
	}
	if _, err := leases(t, k.Config(Admin), "default").List(t.Context(), metav1.ListOptions{}); err != nil {
		t.Error(err)
	}
}

func TestGivenKubernetes(t *testing.T) {
	k := SharedKubernetes(t)
	file := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(file, k.Kubeconfig(Admin), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("LEASEHOLD_TEST_KUBECONFIG", file)
	t.Setenv("LEASEHOLD_TEST_KUBECONTEXT", "")
	given, err := StartKubernetes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Log(given.How)
	if given.Addr() != k.Addr() || given.Version != k.Version {
		t.Errorf("found %s %s, want %s %s", given.Addr(), given.Version, k.Addr(), k.Version)
	}
	namespace, err := given.Namespace(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := given.Grant(t.Context(), namespace, "lister", rbacv1.PolicyRule{
		APIGroups: []string{"coordination.k8s.io"}, Resources: []string{"leases"}, Verbs: []string{"list"},
	}); err != nil {
		t.Fatal(err)
	}
	lister := leases(t, given.Config("lister"), namespace)
	if _, err := lister.List(t.Context(), metav1.ListOptions{}); err != nil {
		t.Error(err)
	}
	if _, err := lister.Create(t.Context(), lease("a"), metav1.CreateOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("lister may create: %v", err)
	}
	_, auditErr := given.Requests(t.Context())
	for what, err := range map[string]error{
		"pause": given.Pause(t.Context()), "resume": given.Resume(t.Context()), "stop": given.Stop(t.Context()), "start": given.Start(t.Context()), "requests": auditErr,
	} {
		if !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := given.Close(); err != nil {
		t.Error(err)
	}
	if _, err := StartKubernetes(t.Context(), WithFlags("--v=1")); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("with flags: %v", err)
	}
}

func TestDead(t *testing.T) {
	if dead(run()) {
		t.Errorf("%s is said to be dead", run())
	}
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Skip(err)
	}
	host, _ := os.Hostname()
	pid := cmd.Process.Pid
	other := strings.Join([]string{host, strconv.Itoa(pid), began(pid)}, "-")
	if dead(other) {
		t.Errorf("%s runs and is said to be dead", other)
	}
	cmd.Process.Kill()
	cmd.Wait()
	if !dead(other) {
		t.Errorf("%s has ended and is not said to be dead", other)
	}
	for _, unknown := range []string{"", "x", "elsewhere-1-1", host + "-x-1"} {
		if dead(unknown) {
			t.Errorf("of %q nothing is known, and it is said to be dead", unknown)
		}
	}
}
