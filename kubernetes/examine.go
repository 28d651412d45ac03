package kubernetes

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"net/http"
	"time"

	"github.com/leasehold/leasehold/backend"
)

// permissions are what the verbs of RBAC on leases are good for, in the order in
// which they matter. None missing is a problem for certain: it is asked for every
// name, and a role may be for some. Whoever tries will see.
var permissions = []struct {
	verb  string
	level backend.Level // if it is missing
	lack  string
}{
	{"get", backend.Warning, "no record can be read, unless the role is for certain names"},
	{"update", backend.Warning, "no lease can be renewed, unless the role is for certain names"},
	{"create", backend.Warning, "only leases whose objects somebody else has created can be acquired"},
	{"delete", backend.Note, "released objects are emptied and stay"},
	{"list", backend.Warning, "leases cannot be listed, and waiters poll instead of being told, unless the role is for certain names"},
	{"watch", backend.Warning, "waiters poll instead of being told, unless the role is for certain names"},
}

// clocksApart is how far apart the server's clock and this machine's may be
// before somebody should know.
const clocksApart = 5 * time.Second

// Examine asks for the server's version and clock, for the namespace, and, by
// SelfSubjectAccessReviews, for every permission.
func (s *Store) Examine(ctx context.Context) iter.Seq[backend.Finding] {
	return func(yield func(backend.Finding) bool) {
		more := func(check string, level backend.Level, detail, fix string) bool {
			return ctx.Err() == nil && yield(backend.Finding{Check: check, Level: level, Detail: detail, Fix: fix})
		}
		if err := s.usable(ctx); err != nil {
			more("API server", backend.Problem, err.Error(), "")
			return
		}
		var version struct{ GitVersion string }
		began := time.Now()
		date, err := s.api.json(ctx, http.MethodGet, "/version", nil, &version)
		took := time.Since(began)
		if err != nil {
			more("API server", backend.Problem, s.explain("get", "/version", err).Error(), "check the address and the credentials, with kubectl version and the same kubeconfig for example")
			return
		}
		if !more("API server", backend.Good, fmt.Sprintf("%s at %s answered in %v", version.GitVersion, s.api.host, took.Round(100*time.Microsecond)), "") {
			return
		}
		if !more(clockFinding(date, began, took)) || !more(s.namespaceFinding(ctx)) {
			return
		}
		for _, p := range permissions {
			check := "permission to " + p.verb + " leases"
			level, detail, fix := backend.Good, "granted in namespace "+s.namespace, ""
			allowed, err := s.api.allowed(ctx, p.verb)
			switch {
			case err != nil:
				level, detail = backend.Note, "cannot be found out: "+err.Error()
			case !allowed:
				level, detail = p.level, fmt.Sprintf("not granted for all names in namespace %s: %s", s.namespace, p.lack)
				fix = fmt.Sprintf("grant the verb %q on the resource \"leases\" of the API group \"coordination.k8s.io\" in namespace %q", p.verb, s.namespace)
			}
			if !more(check, level, detail, fix) {
				return
			}
		}
	}
}

// clockFinding compares the clocks. Nothing that Leasehold decides depends on it,
// but what it writes for others is this machine's time.
func clockFinding(date, asked time.Time, took time.Duration) (check string, level backend.Level, detail, fix string) {
	check = "clocks"
	if date.IsZero() {
		return check, backend.Note, "the API server does not tell the time: long-dead holders are found by observation only", ""
	}
	here := asked.Add(took / 2)
	detail = fmt.Sprintf("the API server's says %s, this machine's %s (UTC)", date.UTC().Format(time.TimeOnly), here.UTC().Format(time.TimeOnly))
	if d := here.Sub(date.Add(resolution / 2)).Abs(); d > clocksApart+took/2 {
		return check, backend.Warning, detail + fmt.Sprintf(", about %v apart: leases are safe all the same, but renewTime misleads those who read it", d.Round(time.Second)), "synchronize the clocks (NTP)"
	}
	return check, backend.Good, detail, ""
}

func (s *Store) namespaceFinding(ctx context.Context) (check string, level backend.Level, detail, fix string) {
	check = "namespace"
	_, err := s.api.json(ctx, http.MethodGet, "/api/v1/namespaces/"+s.namespace, nil, nil)
	switch status := statusOf(err); {
	case err == nil:
		return check, backend.Good, s.namespace + " exists", ""
	case status == http.StatusNotFound && s.createNamespace:
		return check, backend.Note, s.namespace + " does not exist; the first Acquire will create it", ""
	case status == http.StatusNotFound:
		return check, backend.Problem, s.namespace + " does not exist", "kubectl create namespace " + s.namespace + ", or let Leasehold do it (create-namespace=true)"
	case status == http.StatusForbidden:
		return check, backend.Good, s.namespace + "; whether it exists is not for this user to ask", ""
	}
	return check, backend.Note, "cannot be found out: " + err.Error(), ""
}

// allowed asks whether this user may do verb with every lease of the namespace.
func (a *api) allowed(ctx context.Context, verb string) (bool, error) {
	type attributes struct {
		Namespace string `json:"namespace"`
		Verb      string `json:"verb"`
		Group     string `json:"group"`
		Resource  string `json:"resource"`
	}
	var review struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
		Spec       struct {
			Attributes attributes `json:"resourceAttributes"`
		} `json:"spec"`
		Status struct {
			Allowed bool `json:"allowed"`
		} `json:"status,omitzero"`
	}
	review.APIVersion, review.Kind = "authorization.k8s.io/v1", "SelfSubjectAccessReview"
	review.Spec.Attributes = attributes{a.namespace, verb, "coordination.k8s.io", "leases"}
	_, err := a.json(ctx, http.MethodPost, "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review, &review)
	return review.Status.Allowed, err
}

// json sends a request about something that is no Lease.
func (a *api) json(ctx context.Context, method, path string, body, into any) (date time.Time, err error) {
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	x := new(exchange)
	r := a.rest.Verb(method).AbsPath(path).MaxRetries(0).SetHeader("Accept", "application/json")
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return time.Time{}, err
		}
		r = r.SetHeader("Content-Type", "application/json").Body(text)
	}
	reply, err := r.DoRaw(x.context(ctx))
	if err != nil {
		return time.Time{}, err
	}
	if into != nil {
		err = json.Unmarshal(reply, into)
	}
	return x.date(), err
}
