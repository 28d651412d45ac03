package kubernetes_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"

	"github.com/leasehold/leasehold/integration/internal/program"
	"github.com/leasehold/leasehold/integration/internal/scene"
	"github.com/leasehold/leasehold/integration/internal/servers"
)

// program is the command with a store of one user of the test's namespace.
func (r *room) program(user string) *program.Program {
	r.Helper()
	file := filepath.Join(r.TempDir(), "kubeconfig")
	if err := os.WriteFile(file, r.k.Kubeconfig(user), 0o600); err != nil {
		r.Fatal(err)
	}
	return program.New(r, "kubernetes://"+r.namespace+"?kubeconfig="+file)
}

// TestCommand goes through every subcommand.
func TestCommand(t *testing.T) {
	r := enter(t)
	p := r.program(servers.Admin)
	p.Prints(0, "list", "there are no leases")
	p.Prints(2, "get job", "free")

	holder := p.Begin("job", "--duration", "5s", "--metadata", "team=blue")
	holder.Granted()
	p.Prints(0, "get job", "held", holder.Token, "team", "blue")
	p.Prints(0, "list", "job", holder.Token)
	p.Prints(75, "run --no-wait job -- true", "is held by")
	p.Prints(75, "wait job --timeout 300ms")
	p.Prints(75, "release job", "is held by")
	if l := r.object("job"); l.Spec.HolderIdentity == nil || !strings.Contains(*l.Spec.HolderIdentity, "@") || *l.Spec.LeaseDurationSeconds != 5 {
		t.Errorf("the object says %+v", l.Spec)
	}

	state, interrupt := p.Watch("job")
	if got := state(); got != "held" {
		t.Fatalf("the watch begins with %q", got)
	}
	waited := make(chan int, 1)
	go func() {
		_, _, code := p.Run("wait job")
		waited <- code
	}()
	holder.End()
	holder.Ends(0)
	for state() != "free" {
	}
	if code := scene.Await(t, "wait returns", waited); code != 0 {
		t.Fatalf("wait ended with %d", code)
	}
	interrupt()
	p.Prints(2, "get job", "free")
	p.Prints(0, "run job -- true")

	// Somebody's live lease, by force; and one that has expired long ago.
	scene.Grant(t, r.store(), scene.Claim("stuck", "somebody", time.Second))
	p.Prints(75, "release stuck")
	p.Prints(0, "release stuck --force --yes")
	p.Prints(2, "get stuck")
}

func TestCommandConformance(t *testing.T) {
	p := enter(t).program(servers.Admin)
	p.URL += "&expiry-margin=1ms"
	p.Prints(0, "conformance --run tokens/", "kubernetes store", "0 failed")
	if strings.Contains(p.Prints(0, "list"), "held") {
		t.Error("the suite has left a lease held")
	}
}

// TestDoctor: what is in order, and of what is missing what to grant.
func TestDoctor(t *testing.T) {
	r := enter(t)
	out := r.program(servers.Admin).Prints(0, "doctor", "API server", r.k.Version, "clocks", "permission to update leases", "0 problems")
	if strings.Contains(out, "warning") && !strings.Contains(out, "0 warnings") {
		t.Errorf("a healthy cluster is not called one:\n%s", out)
	}
	r.program("nobody").Prints(1, "doctor", "problem", `grant the verb "update"`, "fix:")

	rule := rbacv1.PolicyRule{APIGroups: []string{"coordination.k8s.io"}, Resources: []string{"leases"}, Verbs: []string{"get", "create", "update"}}
	if err := r.k.Grant(t.Context(), r.namespace, "holder", rule); err != nil {
		t.Fatal(err)
	}
	p := r.program("holder")
	p.Prints(0, "doctor", "0 problems", `grant the verb "watch"`)
	p.Prints(1, "doctor --strict")
	if leases, err := r.leases.List(t.Context(), everything); err != nil || len(leases.Items) > 1 {
		t.Errorf("doctor has left behind %v, %v", leases.Items, err)
	}

	gone := r.program(servers.Admin)
	gone.URL = strings.Replace(gone.URL, r.namespace, "no-such-namespace", 1)
	gone.Prints(1, "doctor", "does not exist", "kubectl create namespace no-such-namespace")
}
