//go:build unix

package kubernetes_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clientset "k8s.io/client-go/kubernetes"
	coordinationclient "k8s.io/client-go/kubernetes/typed/coordination/v1"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/benchmarks/internal/measure"
	"github.com/leasehold/leasehold/kubernetes"
)

// holder takes, renews and gives back one lease, each with one request.
type holder interface {
	acquire(ctx context.Context) error
	renew(ctx context.Context) error
	release(ctx context.Context) error
}

// raw does with the typed client what a lease needs at least.
type raw struct {
	*wire
	leases coordinationclient.LeaseInterface
	name   string
	vacate bool
	object *coordinationv1.Lease
}

func (p place) raw(name string, vacate bool) (*raw, error) {
	w := newWire()
	client, err := clientset.NewForConfig(w.through(p.cfg))
	if err != nil {
		return nil, err
	}
	return &raw{wire: w, leases: client.CoordinationV1().Leases(p.namespace), name: name, vacate: vacate}, nil
}

func (r *raw) acquire(ctx context.Context) (err error) {
	identity, now := "benchmark-holder", metav1.NowMicro()
	duration, transitions := int32(leaseDuration/time.Second), int32(0)
	spec := coordinationv1.LeaseSpec{
		HolderIdentity: &identity, LeaseDurationSeconds: &duration, AcquireTime: &now, RenewTime: &now, LeaseTransitions: &transitions,
	}
	if r.object == nil {
		r.object, err = r.leases.Create(ctx, &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: r.name}, Spec: spec}, metav1.CreateOptions{})
		return err
	}
	transitions = *r.object.Spec.LeaseTransitions + 1
	r.object.Spec = spec
	return r.update(ctx)
}

func (r *raw) renew(ctx context.Context) error {
	now := metav1.NowMicro()
	r.object.Spec.RenewTime = &now
	return r.update(ctx)
}

func (r *raw) release(ctx context.Context) error {
	if r.vacate {
		nobody, second, now := "", int32(1), metav1.NowMicro()
		s := &r.object.Spec
		s.HolderIdentity, s.LeaseDurationSeconds, s.AcquireTime, s.RenewTime = &nobody, &second, &now, &now
		return r.update(ctx)
	}
	at := metav1.Preconditions{UID: &r.object.UID, ResourceVersion: &r.object.ResourceVersion}
	r.object = nil
	return r.leases.Delete(ctx, r.name, metav1.DeleteOptions{Preconditions: &at})
}

func (r *raw) update(ctx context.Context) (err error) {
	r.object, err = r.leases.Update(ctx, r.object, metav1.UpdateOptions{})
	return err
}

// direct uses the store without a lease.Lease.
type direct struct {
	store  *kubernetes.Store
	name   string
	record backend.Record
}

func (d *direct) acquire(ctx context.Context) (err error) {
	d.record, err = d.store.Acquire(ctx, backend.Claim{Name: d.name, Holder: "benchmark-holder", Duration: leaseDuration})
	return err
}

func (d *direct) renew(ctx context.Context) (err error) {
	d.record, err = d.store.Renew(ctx, d.record)
	return err
}

func (d *direct) release(ctx context.Context) error { return d.store.Release(ctx, d.record) }

// whole is a lease.Lease, with its context, deadline and schedule.
type whole struct{ *ours }

func (w whole) acquire(ctx context.Context) error { return w.lease.Acquire(ctx) }
func (w whole) renew(ctx context.Context) error   { return w.lease.Extend(ctx) }
func (w whole) release(ctx context.Context) error { return w.lease.Release(ctx) }

// holders returns those to compare. The second raw one is there to tell how much
// of a ratio is noise.
func (p place) holders(b *testing.B, vacate bool) map[string]holder {
	b.Helper()
	var opts []kubernetes.Option
	mode := "delete"
	if vacate {
		opts, mode = append(opts, kubernetes.WithVacate()), "vacate"
	}
	hs := make(map[string]holder)
	for _, variant := range variants {
		name := fmt.Sprintf("%s-%s", mode, variant)
		switch variant {
		case "raw", "raw-again":
			r, err := p.raw(name, vacate)
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(r.hangUp)
			hs[variant] = r
		default:
			c, err := p.ours(name, opts...)
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(c.close)
			if hs[variant] = (whole{c}); variant == "store" {
				hs[variant] = &direct{store: c.store, name: name}
			}
		}
	}
	return hs
}

var variants = []string{"raw", "raw-again", "store", "lease"}

// step is one request of a holder's round.
type step struct {
	verb   string
	vacate bool // of those that leave the object there
	do     func(h holder, ctx context.Context) error
}

var round = []step{
	{"acquire-create", false, holder.acquire},
	{"renew", false, holder.renew},
	{"release-delete", false, holder.release},
	{"acquire-update", true, holder.acquire},
	{"renew", true, holder.renew},
	{"release-vacate", true, holder.release},
}

// BenchmarkKubernetesLatency measures one request of each kind: through the typed
// client, the store, and the lease. They take turns at every single request, in an
// order drawn each time.
func BenchmarkKubernetesLatency(b *testing.B) {
	const (
		rounds  = 300
		warm    = 10 // connections, and the objects that stay
		counted = 30 // for allocations
	)
	p, ctx := newPlace(b), b.Context()
	holders := map[bool]map[string]holder{false: p.holders(b, false), true: p.holders(b, true)}

	type line struct{ verb, variant string }
	took := make(map[line]measure.Times)
	type cost struct{ n, bytes, times uint64 }
	costs := make(map[line]cost)
	once := func(s step, variant string) time.Duration {
		start := time.Now()
		if err := s.do(holders[s.vacate][variant], ctx); err != nil {
			b.Fatalf("%s %s: %v", s.verb, variant, err)
		}
		return time.Since(start)
	}
	for i := range warm + rounds {
		for _, s := range round {
			for _, v := range rand.Perm(len(variants)) {
				d := once(s, variants[v])
				if l := (line{s.verb, variants[v]}); i >= warm {
					took[l] = append(took[l], d)
				}
			}
		}
	}
	for range counted {
		for _, s := range round {
			for _, variant := range variants {
				l := line{s.verb, variant}
				c := costs[l]
				n, bytes := measure.Allocations(func() { once(s, variant) })
				costs[l] = cost{c.n + n, c.bytes + bytes, c.times + 1}
			}
		}
	}
	told := make(map[string]bool)
	for _, s := range round {
		if told[s.verb] {
			continue
		}
		told[s.verb] = true
		base := took[line{s.verb, "raw"}].Median()
		for _, variant := range variants {
			l := line{s.verb, variant}
			c := costs[l]
			measure.Report(b, s.verb+"/"+variant, append(took[l].Figures(),
				measure.Of(measure.Ratio(took[l].Median(), base), "ratio_to_raw"),
				measure.Of(float64(c.n/c.times), "allocs/op"),
				measure.Of(float64(c.bytes/c.times), "B/op"))...)
		}
	}
}
