package kubernetes_test

import (
	"context"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/backend/memory"
	"github.com/leasehold/leasehold/integration/internal/scene"
	"github.com/leasehold/leasehold/kubernetes"
)

// failing is a logger for what must not be logged.
func failing(t *testing.T) *slog.Logger { return slog.New(&failHandler{t}) }

type failHandler struct{ t *testing.T }

func (*failHandler) Enabled(context.Context, slog.Level) bool { return true }
func (h *failHandler) Handle(_ context.Context, r slog.Record) error {
	h.t.Errorf("logged: %s", r.Message)
	return nil
}
func (h *failHandler) WithAttrs([]slog.Attr) slog.Handler { return h }
func (h *failHandler) WithGroup(string) slog.Handler      { return h }

// TestElectorOnLock: client-go's unchanged elector over the store's lock, against
// others over its own lock, on one object.
func TestElectorOnLock(t *testing.T) {
	r := enter(t)
	stock := r.client(r.config())
	locks := []func(id string) resourcelock.Interface{
		func(id string) resourcelock.Interface { return kubernetes.ResourceLock(r.store(), "job", id) },
		func(id string) resourcelock.Interface {
			return &resourcelock.LeaseLock{LeaseMeta: metav1.ObjectMeta{Namespace: r.namespace, Name: "job"}, Client: stock.CoordinationV1(), LockConfig: resourcelock.ResourceLockConfig{Identity: id}}
		},
	}
	var inside, led atomic.Int32
	var token atomic.Uint64
	for round := range 6 {
		ctx, cancel := context.WithCancel(t.Context())
		leading := make(chan struct{})
		stopped := make(chan struct{})
		lock := locks[round%2](string(rune('a' + round)))
		go func() {
			defer close(stopped)
			leaderelection.RunOrDie(ctx, leaderelection.LeaderElectionConfig{
				Lock: lock, LeaseDuration: 4 * time.Second, RenewDeadline: 3 * time.Second, RetryPeriod: 300 * time.Millisecond, ReleaseOnCancel: true,
				Callbacks: leaderelection.LeaderCallbacks{
					OnStartedLeading: func(ctx context.Context) {
						if inside.Add(1) != 1 {
							t.Error("two lead at once")
						}
						led.Add(1)
						if f, ok := lock.(kubernetes.FencedLock); ok {
							if now := f.Token(); now <= token.Swap(now) {
								t.Errorf("the token is %d, no greater than the last", now)
							}
						}
						close(leading)
						<-ctx.Done()
					},
					OnStoppedLeading: func() {},
				},
			})
		}()
		scene.Await(r, "the elector leads", leading)
		scene.Pass(r, time.Second) // renewals
		inside.Add(-1)             // its work is done
		cancel()
		scene.Await(r, "the elector stops", stopped)
	}
	if led.Load() != 6 {
		t.Errorf("%d led, want 6", led.Load())
	}
	if o := r.object("job"); *o.Spec.HolderIdentity != "" || *o.Spec.LeaseTransitions < 4 {
		t.Errorf("the object is left as %+v", o.Spec)
	}
}

// TestManagerOnLock: two managers of controller-runtime, whose leader election is
// on Leasehold's lock; on this store and on another.
func TestManagerOnLock(t *testing.T) {
	log.SetLogger(logr.Discard())
	r := enter(t)
	shared := memory.New()
	for name, open := range map[string]func() backend.Store{
		"kubernetes": func() backend.Store { return r.store() },
		"memory":     func() backend.Store { return shared.Client() },
	} {
		t.Run(name, func(t *testing.T) {
			r := r.within(t)
			var inside atomic.Int32
			start := func(id string) (leads chan struct{}, stop func()) {
				leads = make(chan struct{})
				lease, renew, retry := 4*time.Second, 3*time.Second, 300*time.Millisecond
				mgr, err := manager.New(r.config(), manager.Options{
					LeaderElection:                      true,
					LeaderElectionResourceLockInterface: kubernetes.ResourceLock(open(), "controller", id),
					LeaderElectionReleaseOnCancel:       true,
					LeaseDuration:                       &lease, RenewDeadline: &renew, RetryPeriod: &retry,
					Metrics: server.Options{BindAddress: "0"},
				})
				if err != nil {
					t.Fatal(err)
				}
				if err := mgr.Add(manager.RunnableFunc(func(ctx context.Context) error {
					if inside.Add(1) != 1 {
						t.Error("two managers lead at once")
					}
					defer inside.Add(-1)
					close(leads)
					<-ctx.Done()
					return nil
				})); err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan error, 1)
				go func() { ended <- mgr.Start(ctx) }()
				return leads, func() {
					cancel()
					if err := scene.Await(r, "the manager stops", ended); err != nil {
						t.Error(err)
					}
				}
			}
			first, stopFirst := start("first")
			scene.Await(r, "the first manager leads", first)
			second, stopSecond := start("second")
			select {
			case <-second:
				t.Error("the second manager leads beside the first")
			case <-time.After(time.Second):
			}
			stopFirst()
			scene.Await(r, "the second manager leads", second)
			stopSecond()
		})
	}
}
