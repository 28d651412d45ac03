package kubernetes_test

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"os"
	"slices"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/integration/internal/scene"
	"github.com/leasehold/leasehold/kubernetes"
	"github.com/leasehold/leasehold/lease"
)

var everything = metav1.ListOptions{}

// manifest returns the objects of a file of the store's manifests. A field that
// no object has is an error.
func manifest(t *testing.T, file string) []runtime.Object {
	t.Helper()
	text, err := os.ReadFile("../../kubernetes/manifests/" + file)
	if err != nil {
		t.Fatal(err)
	}
	var all []runtime.Object
	docs := yaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(text)))
	decoder := scheme.Codecs.UniversalDeserializer()
	for {
		doc, err := docs.Read()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		o, _, err := decoder.Decode(doc, nil, nil)
		if err != nil {
			t.Fatalf("%s: %v\n%s", file, err, doc)
		}
		all = append(all, o)
	}
}

// apply creates the objects in the namespace, as kubectl apply -n would; the API
// server refuses what it does not know.
func (r *room) apply(file string) {
	r.Helper()
	c := r.client(r.config())
	ctx, options := r.Context(), metav1.CreateOptions{FieldValidation: metav1.FieldValidationStrict}
	for _, o := range manifest(r.T, file) {
		var err error
		switch o := o.(type) {
		case *rbacv1.Role:
			_, err = c.RbacV1().Roles(r.namespace).Create(ctx, o, options)
		case *rbacv1.RoleBinding:
			for i := range o.Subjects {
				o.Subjects[i].Namespace = r.namespace // what kubectl would have to be told for a ServiceAccount
			}
			_, err = c.RbacV1().RoleBindings(r.namespace).Create(ctx, o, options)
		case *corev1.ServiceAccount:
			_, err = c.CoreV1().ServiceAccounts(r.namespace).Create(ctx, o, options)
		case *appsv1.Deployment:
			_, err = c.AppsV1().Deployments(r.namespace).Create(ctx, o, options)
		case *coordinationv1.Lease:
			_, err = c.CoordinationV1().Leases(r.namespace).Create(ctx, o, options)
		default:
			r.Fatalf("%s holds a %T", file, o)
		}
		if err != nil {
			r.Fatalf("%s: %v", file, err)
		}
	}
}

// bind binds a user of the server to a Role of the namespace.
func (r *room) bind(user, role string) {
	r.Helper()
	_, err := r.client(r.config()).RbacV1().RoleBindings(r.namespace).Create(r.Context(), &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: user + "-" + role},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: role},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "User", Name: user}},
	}, metav1.CreateOptions{})
	if err != nil {
		r.Fatal(err)
	}
}

// knows waits until the authorizer has seen the roles, by a call that they allow.
func (r *room) knows(call func() error) {
	r.Helper()
	scene.Eventually(r, "the authorizer knows the role", func() bool { return !errors.Is(call(), backend.ErrDenied) })
}

// TestRoles: each role of the manifests is enough for what it says, and gives no
// more than that.
func TestRoles(t *testing.T) {
	r := enter(t)
	r.apply("role.yaml")
	r.bind("holder", "leasehold-holder")
	s := r.open(r.k.Config("holder"))
	list := func() error {
		for _, err := range s.List(t.Context(), "") {
			return err
		}
		return nil
	}
	r.knows(func() error { _, err := s.Get(t.Context(), "job"); return err })

	rec := scene.Grant(r, s, scene.Claim("job", "alice", 15*time.Second))
	scene.Release(r, s, scene.Renew(r, s, rec))
	if o := r.object("job"); o.Spec.HolderIdentity == nil || *o.Spec.HolderIdentity != "" {
		t.Errorf("without delete the object is not vacated but %+v", o.Spec)
	}
	if err := list(); !errors.Is(err, backend.ErrDenied) {
		t.Errorf("the holder's role allows listing: %v", err)
	}

	r.bind("holder", "leasehold-watcher")
	r.knows(list)
	for rec, err := range s.Watch(t.Context(), "job") {
		if err != nil || !rec.Vacant() {
			t.Errorf("watching: %+v, %v", rec, err)
		}
		break
	}

	r.bind("deleter", "leasehold-holder")
	r.bind("deleter", "leasehold-deleter")
	d := r.open(r.k.Config("deleter"))
	r.knows(func() error { _, err := d.Get(t.Context(), "other"); return err })
	scene.Eventually(r, "the object is deleted", func() bool {
		// The two bindings may become known one after the other.
		fresh := r.open(r.k.Config("deleter"))
		scene.Release(r, fresh, scene.Grant(r, fresh, scene.Claim("other", "bob", 15*time.Second)))
		_, err := fresh.Get(t.Context(), "other")
		return errors.Is(err, backend.ErrNotFound)
	})
}

// TestNamedLease: a role for one lease, whose object is made in advance.
func TestNamedLease(t *testing.T) {
	r := enter(t)
	r.apply("named-lease.yaml")
	r.bind("holder", "leasehold-nightly-report")
	s := r.open(r.k.Config("holder"))
	r.knows(func() error { _, err := s.Get(t.Context(), "nightly-report"); return err })
	l := scene.Lease(r, s, "nightly-report", 15*time.Second)
	for range 2 {
		if err := l.Acquire(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := l.Renew(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := l.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Acquire(t.Context(), scene.Claim("another", "alice", 15*time.Second)); !errors.Is(err, backend.ErrDenied) {
		t.Errorf("another lease: %v, want ErrDenied", err)
	}
}

// TestNamespaceCreator: what create-namespace=true needs.
func TestNamespaceCreator(t *testing.T) {
	for _, o := range manifest(t, "namespace-creator.yaml") {
		role, ok := o.(*rbacv1.ClusterRole)
		if !ok || len(role.Rules) != 1 || !slices.Equal(role.Rules[0].Resources, []string{"namespaces"}) || !slices.Equal(role.Rules[0].Verbs, []string{"create"}) {
			t.Errorf("namespace-creator.yaml holds %+v", o)
		}
	}
}

// TestDeployment: the account of the example may do all that its command needs,
// and of its three replicas one leads.
func TestDeployment(t *testing.T) {
	r := enter(t)
	r.apply("role.yaml")
	r.apply("deployment.yaml")
	account := func() *rest.Config {
		cfg := r.config()
		cfg.Impersonate = rest.ImpersonationConfig{UserName: "system:serviceaccount:" + r.namespace + ":leader-example"}
		return cfg
	}
	probe := r.open(account())
	r.knows(func() error { _, err := probe.Get(t.Context(), "leader-example"); return err })
	r.knows(func() error {
		for _, err := range probe.List(t.Context(), "") {
			return err
		}
		return nil
	})
	var replicas []*lease.Lease
	for range 3 {
		replicas = append(replicas, scene.Lease(r, r.open(account(), kubernetes.WithLogger(failing(t))), "leader-example", 15*time.Second))
	}
	leading := make(chan *lease.Lease, len(replicas))
	for _, l := range replicas {
		go func() {
			if l.Await(t.Context()) == nil {
				leading <- l
			}
		}()
	}
	var last uint64
	for range replicas {
		l := scene.Await(r, "somebody leads", leading)
		if l.Token() <= last {
			t.Errorf("token %d after %d", l.Token(), last)
		}
		last = l.Token()
		select {
		case other := <-leading:
			t.Fatalf("%s and %s lead", l.Holder(), other.Holder())
		default:
		}
		if err := l.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}
