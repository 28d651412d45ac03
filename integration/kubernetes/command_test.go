package kubernetes_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"

	"github.com/leasehold/leasehold/integration/internal/servers"
)

// built is the command, built once for all tests.
var built = sync.OnceValues(func() (string, error) {
	bin, err := filepath.Abs("../../.cache/leasehold")
	if err != nil {
		return "", err
	}
	build := exec.Command("go", "build", "-o", bin, ".")
	build.Dir = "../../cmd/leasehold"
	build.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=")
	if out, err := build.CombinedOutput(); err != nil {
		return "", errors.New(string(out))
	}
	return bin, nil
})

// program is the command with a store of one user of the test's namespace.
type program struct {
	*room
	bin, url string
}

func (r *room) program(user string) *program {
	r.Helper()
	bin, err := built()
	if err != nil {
		r.Fatal(err)
	}
	file := filepath.Join(r.TempDir(), "kubeconfig")
	if err := os.WriteFile(file, r.k.Kubeconfig(user), 0o600); err != nil {
		r.Fatal(err)
	}
	return &program{r, bin, "kubernetes://" + r.namespace + "?kubeconfig=" + file}
}

func (p *program) command(args ...string) *exec.Cmd {
	c := exec.CommandContext(p.Context(), p.bin, args...)
	c.Env = append(os.Environ(), "LEASEHOLD_STORE="+p.url)
	return c
}

// run runs the command to its end.
func (p *program) run(args ...string) (stdout, stderr string, code int) {
	p.Helper()
	c := p.command(args...)
	var out, err bytes.Buffer
	c.Stdout, c.Stderr = &out, &err
	var exit *exec.ExitError
	switch failed := c.Run(); {
	case errors.As(failed, &exit):
		code = exit.ExitCode()
	case failed != nil:
		p.Fatal(failed)
	}
	return out.String(), err.String(), code
}

// prints runs the command, which must end with code and print all of parts.
func (p *program) prints(code int, args []string, parts ...string) string {
	p.Helper()
	out, err, got := p.run(args...)
	if got != code {
		p.Fatalf("%s ended with %d, want %d\n%s%s", args, got, code, out, err)
	}
	for _, part := range parts {
		if !strings.Contains(out+err, part) {
			p.Fatalf("%s does not say %q:\n%s%s", args, part, out, err)
		}
	}
	return out
}

func args(s string) []string { return strings.Fields(s) }

// TestCommand goes through every subcommand.
func TestCommand(t *testing.T) {
	p := enter(t).program(servers.Admin)
	p.prints(0, args("list"), "there are no leases")
	p.prints(2, args("get job"), "free")

	job := p.command("run", "job", "--duration", "5s", "--metadata", "team=blue", "--", "sh", "-c", "echo token $LEASEHOLD_TOKEN; cat")
	in, err := job.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := job.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := job.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	token, ok := strings.CutPrefix(strings.TrimSpace(line), "token ")
	if err != nil || !ok || token == "" || token == "0" {
		t.Fatalf("the job says %q, %v", line, err)
	}
	p.prints(0, args("get job"), "held", token, "team", "blue")
	p.prints(0, args("list"), "job", token)
	p.prints(75, args("run --no-wait job -- true"), "is held by")
	p.prints(75, args("wait job --timeout 300ms"))
	p.prints(75, args("release job"), "is held by")
	if l := p.object("job"); l.Spec.HolderIdentity == nil || !strings.Contains(*l.Spec.HolderIdentity, "@") || *l.Spec.LeaseDurationSeconds != 5 {
		t.Errorf("the object says %+v", l.Spec)
	}

	watch := p.command("watch", "job", "-o", "json")
	events, err := watch.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := watch.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(events)
	state := func() string {
		if !lines.Scan() {
			t.Fatalf("the watch has ended: %v", lines.Err())
		}
		var v struct{ State string }
		if err := json.Unmarshal(lines.Bytes(), &v); err != nil {
			t.Fatal(err)
		}
		return v.State
	}
	if got := state(); got != "held" {
		t.Fatalf("the watch begins with %q", got)
	}
	waited := make(chan int, 1)
	go func() {
		_, _, code := p.run("wait", "job")
		waited <- code
	}()
	in.Close() // the job ends
	if err := job.Wait(); err != nil {
		t.Fatal(err)
	}
	for state() != "free" {
	}
	if code := await(p.room, "wait returns", waited); code != 0 {
		t.Fatalf("wait ended with %d", code)
	}
	watch.Process.Signal(os.Interrupt)
	watch.Wait()
	p.prints(2, args("get job"), "free")
	p.prints(0, args("run job -- true"))

	// Somebody's live lease, by force; and one that has expired long ago.
	p.grant(p.store(), claim("stuck", "somebody", time.Second))
	p.prints(75, args("release stuck"))
	p.prints(0, args("release stuck --force --yes"))
	p.prints(2, args("get stuck"))
}

func TestCommandConformance(t *testing.T) {
	p := enter(t).program(servers.Admin)
	p.url += "&expiry-margin=1ms"
	p.prints(0, args("conformance --run tokens/"), "kubernetes store", "0 failed")
	if strings.Contains(p.prints(0, args("list")), "held") {
		t.Error("the suite has left a lease held")
	}
}

// TestDoctor: what is in order, and of what is missing what to grant.
func TestDoctor(t *testing.T) {
	r := enter(t)
	out := r.program(servers.Admin).prints(0, args("doctor"), "API server", r.k.Version, "clocks", "permission to update leases", "0 problems")
	if strings.Contains(out, "warning") && !strings.Contains(out, "0 warnings") {
		t.Errorf("a healthy cluster is not called one:\n%s", out)
	}
	r.program("nobody").prints(1, args("doctor"), "problem", `grant the verb "update"`, "fix:")

	rule := rbacv1.PolicyRule{APIGroups: []string{"coordination.k8s.io"}, Resources: []string{"leases"}, Verbs: []string{"get", "create", "update"}}
	if err := r.k.Grant(t.Context(), r.namespace, "holder", rule); err != nil {
		t.Fatal(err)
	}
	p := r.program("holder")
	p.prints(0, args("doctor"), "0 problems", `grant the verb "watch"`)
	p.prints(1, args("doctor --strict"))
	if leases, err := r.leases.List(t.Context(), everything); err != nil || len(leases.Items) > 1 {
		t.Errorf("doctor has left behind %v, %v", leases.Items, err)
	}

	gone := r.program(servers.Admin)
	gone.url = strings.Replace(gone.url, r.namespace, "no-such-namespace", 1)
	gone.prints(1, args("doctor"), "does not exist", "kubectl create namespace no-such-namespace")
}
