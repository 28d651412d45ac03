//go:build unix

package kubernetes_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clientset "k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/leasehold/leasehold/kubernetes"
	"github.com/leasehold/leasehold/lease"
)

// What Kubernetes' own components and controller-runtime use.
const (
	leaseDuration = 15 * time.Second
	renewDeadline = 10 * time.Second
	retryPeriod   = 2 * time.Second

	// An elector that is refused asks again after the retry period and up to 1.2
	// times of it on top.
	longestPoll = retryPeriod * 22 / 10
)

// place is a namespace of one benchmark.
type place struct {
	cfg       *rest.Config
	namespace string
}

func newPlace(b *testing.B) place {
	b.Helper()
	cfg := server(b)
	client, err := clientset.NewForConfig(cfg)
	if err != nil {
		b.Fatal(err)
	}
	ns, err := client.CoreV1().Namespaces().Create(b.Context(), &corev1.Namespace{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "leasehold-benchmark-"},
	}, metav1.CreateOptions{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := client.CoreV1().Namespaces().Delete(context.Background(), ns.Name, metav1.DeleteOptions{}); err != nil {
			b.Error(err)
		}
	})
	return place{cfg, ns.Name}
}

// ours is a Leasehold candidate, alone in its process as far as the server knows.
type ours struct {
	*wire
	store *kubernetes.Store
	lease *lease.Lease
}

func (p place) ours(name string, opts ...kubernetes.Option) (*ours, error) {
	c := &ours{wire: newWire()}
	var err error
	if c.store, err = kubernetes.New(c.through(p.cfg), p.namespace, opts...); err != nil {
		return nil, err
	}
	// A scheduler of its own too.
	c.lease, err = lease.New(c.store, name, lease.WithDuration(leaseDuration), lease.WithRenewalService(lease.NewRenewalService(nil)))
	return c, err
}

func (c *ours) close() {
	c.lease.Close()
	c.store.Close()
}

// theirs is client-go's elector as it comes, from its start to its end: it can be
// run only once.
type theirs struct {
	*wire
	led  chan time.Time // when it began to lead
	stop context.CancelFunc
	done chan struct{}
}

func (p place) theirs(ctx context.Context, name, identity string) (*theirs, error) {
	c := &theirs{wire: newWire(), led: make(chan time.Time, 1), done: make(chan struct{})}
	cfg := c.through(p.cfg)
	cfg.Timeout = renewDeadline / 2 // as controller-runtime has it
	client, err := clientset.NewForConfig(cfg)
	if err != nil {
		return nil, err
	}
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: &resourcelock.LeaseLock{
			LeaseMeta:  metav1.ObjectMeta{Namespace: p.namespace, Name: name},
			Client:     client.CoordinationV1(),
			LockConfig: resourcelock.ResourceLockConfig{Identity: identity},
		},
		LeaseDuration:   leaseDuration,
		RenewDeadline:   renewDeadline,
		RetryPeriod:     retryPeriod,
		ReleaseOnCancel: true,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(context.Context) { c.led <- time.Now() },
			OnStoppedLeading: func() {},
		},
	})
	if err != nil {
		return nil, err
	}
	ctx, c.stop = context.WithCancel(ctx)
	go func() {
		defer close(c.done)
		elector.Run(ctx)
	}()
	return c, nil
}

// lead waits until it leads, and returns when that was.
func (c *theirs) lead(ctx context.Context) (time.Time, error) {
	select {
	case t := <-c.led:
		return t, nil
	case <-c.done:
		return time.Time{}, fmt.Errorf("the elector has ended")
	case <-ctx.Done():
		return time.Time{}, context.Cause(ctx)
	}
}

func (c *theirs) close() {
	c.stop()
	<-c.done
	c.hangUp()
}
