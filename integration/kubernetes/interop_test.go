package kubernetes_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/klog/v2"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/integration/internal/scene"
	"github.com/leasehold/leasehold/integration/internal/servers"
	"github.com/leasehold/leasehold/integration/internal/wire"
	"github.com/leasehold/leasehold/kubernetes"
	"github.com/leasehold/leasehold/lease"
)

// term is a stock client-go LeaderElector in the background. It is good for one
// term of office.
type term struct {
	sends   *through
	cancel  context.CancelFunc
	began   chan struct{} // closed when it leads
	worked  chan struct{} // closed when its work is over
	done    chan struct{} // closed when Run has returned, and the work is over if it began
	started time.Time     // set when began is closed
}

// elector runs a LeaderElector with client-go's default durations, scaled. work
// is called when it leads; nil works until its context ends.
func (r *room) elector(name, identity string, duration time.Duration, release bool, work func(context.Context)) *term {
	r.Helper()
	deadline := duration * 3 / 4
	cfg, sends := wrap(r.config())
	cfg.Timeout = max(time.Second, deadline/2) // as NewFromKubeconfig does
	e := &term{sends: sends, began: make(chan struct{}), worked: make(chan struct{}), done: make(chan struct{})}
	le, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: &resourcelock.LeaseLock{
			LeaseMeta:  metav1.ObjectMeta{Namespace: r.namespace, Name: name},
			Client:     r.client(cfg).CoordinationV1(),
			LockConfig: resourcelock.ResourceLockConfig{Identity: identity},
		},
		LeaseDuration: duration, RenewDeadline: deadline, RetryPeriod: duration / 8,
		ReleaseOnCancel: release,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(ctx context.Context) {
				e.started = time.Now()
				close(e.began)
				if work != nil {
					work(ctx)
				} else {
					<-ctx.Done()
				}
				close(e.worked)
			},
			OnStoppedLeading: func() {},
		},
	})
	if err != nil {
		r.Fatal(err)
	}
	// Its log is of no use here.
	ctx, cancel := context.WithCancel(klog.NewContext(r.Context(), klog.Logger{}))
	e.cancel = cancel
	go func() {
		defer close(e.done)
		le.Run(ctx)
		select {
		case <-e.began:
			<-e.worked
		default: // it never led, or its context has ended before the work began
		}
	}()
	r.Cleanup(func() {
		cancel()
		<-e.done
	})
	return e
}

// leave cancels the elector, which releases if it was made to. The work must be
// over, or end with its context.
func (e *term) leave(r *room) {
	r.Helper()
	e.cancel()
	scene.Await(r, "the elector stops", e.done)
}

// die is the death of the process: nothing is sent any more. What the process did
// must be over.
func (e *term) die(r *room) {
	r.Helper()
	e.sends.set(fail)
	e.leave(r)
}

// TestClientGoTakesOver from a Leasehold holder that died: not before the
// duration, and what it finds it understands.
func TestClientGoTakesOver(t *testing.T) {
	r := enter(t)
	const duration = 4 * time.Second
	cfg, sends := wrap(r.config())
	s := r.open(cfg)
	dead := scene.Renew(r, s, scene.Grant(r, s, scene.Claim("job", "leasehold", duration)))
	last, _ := sends.renewed()
	e := r.elector("job", "client-go", 10*time.Second, true, nil) // its own duration does not count
	scene.Await(r, "client-go leads", e.began)
	if early := last.Add(duration).Sub(e.started); early > 0 {
		t.Errorf("client-go leads %v before the lease was over", early)
	}
	t.Logf("client-go leads %v after the last renewal", e.started.Sub(last).Round(time.Millisecond))
	rec := scene.Get(r, s, "job")
	if rec.Holder != "client-go" || rec.Token != 0 || rec.Duration != 10*time.Second || rec.Transitions != dead.Transitions+1 {
		t.Errorf("client-go's tenure is read as %+v", rec)
	}
	if _, err := s.Renew(t.Context(), dead); !errors.Is(err, backend.ErrLost) {
		t.Errorf("the dead holder renews: %v", err)
	}
	if err := s.Release(t.Context(), dead); !errors.Is(err, backend.ErrLost) {
		t.Errorf("the dead holder releases: %v", err)
	}
	if _, err := s.Acquire(t.Context(), scene.Claim("job", "leasehold", duration)); !errors.Is(err, backend.ErrHeld) {
		t.Errorf("the dead holder acquires: %v", err)
	}
	e.leave(r)
	uid := r.object("job").UID
	next := scene.Grant(r, s, scene.Claim("job", "leasehold", duration))
	if next.Token <= dead.Token {
		t.Errorf("token %d follows %d", next.Token, dead.Token)
	}
	// Leasehold created the object, but it is not its own any more.
	scene.Release(r, s, next)
	l := r.object("job")
	if l.UID != uid || value(l.Spec.HolderIdentity) != "" || value(l.Spec.LeaseTransitions) != 2 {
		t.Errorf("what client-go has used is not vacated: %v", l)
	}
}

// TestTakesOverFromClientGo: a leader of client-go that died is replaced after the
// duration that it published, and a hundredth, of watching it.
func TestTakesOverFromClientGo(t *testing.T) {
	for name, early := range map[string]bool{"a waiter of long standing": true, "a newcomer": false} {
		t.Run(name, func(t *testing.T) {
			r := enter(t)
			const duration = 4 * time.Second
			e := r.elector("job", "client-go", duration, false, nil)
			scene.Await(r, "client-go leads", e.began)
			uid := r.object("job").UID
			wait := func() *scene.Tenure { return scene.Run(r, scene.Lease(r, r.store(), "job", 2*time.Second)) } // its own duration does not count
			var h *scene.Tenure
			if early {
				h = wait()
				scene.Eventually(r, "client-go renews beside a waiter", func() bool { _, n := e.sends.renewed(); return n > 3 })
			}
			e.die(r)
			since, _ := e.sends.renewed()
			if !early {
				since = time.Now()
				h = wait()
			}
			scene.Await(r, "Leasehold is granted the lease", h.Began)
			if short := since.Add(duration * 101 / 100).Sub(h.Granted); short > 0 {
				t.Errorf("taken over %v too early", short)
			}
			t.Logf("granted after %v", h.Granted.Sub(since).Round(time.Millisecond))
			if l := r.object("job"); value(l.Spec.LeaseTransitions) != 1 || value(l.Spec.LeaseDurationSeconds) != 2 {
				t.Errorf("client-go reads %v", l.Spec)
			}
			h.Leave()
			if err := scene.Await(r, "Run returns", h.Result); err != nil {
				t.Error(err)
			}
			if l := r.object("job"); l.UID != uid || value(l.Spec.HolderIdentity) != "" || value(l.Spec.LeaseTransitions) != 1 {
				t.Errorf("what client-go has created is not vacated: %v", l)
			}
		})
	}
}

// TestCleanHandover in both directions: nobody waits for a duration.
func TestCleanHandover(t *testing.T) {
	r := enter(t)
	const duration = 4 * scene.Patience // on both sides: nobody gets what is not released
	first := r.elector("job", "client-go", duration, true, nil)
	scene.Await(r, "client-go leads", first.began)
	h := scene.Blocked(r, r.store(), "job", duration)
	left := time.Now()
	first.leave(r)
	scene.Await(r, "Leasehold is granted what client-go released", h.Began)
	t.Logf("client-go to Leasehold: %v", h.Granted.Sub(left).Round(time.Millisecond))

	second := r.elector("job", "client-go-2", 4*time.Second, true, nil)
	scene.Eventually(r, "client-go looks", func() bool { return len(second.sends.sent(http.MethodGet)) > 1 })
	left = time.Now()
	h.Leave()
	if err := scene.Await(r, "Run returns", h.Result); err != nil {
		t.Error(err)
	}
	scene.Await(r, "client-go leads", second.began)
	t.Logf("Leasehold to client-go: %v", second.started.Sub(left).Round(time.Millisecond))
	if n := value(r.object("job").Spec.LeaseTransitions); n != 2 {
		t.Errorf("%d transitions after two hand-overs", n)
	}
}

// TestOwnObject: what nobody else has used is removed; what is to be kept, stays.
func TestOwnObject(t *testing.T) {
	r := enter(t)
	for name, c := range map[string]struct {
		opts []kubernetes.Option
		do   func(name string)
		gone bool
	}{
		"own":  {do: func(string) {}, gone: true},
		"keep": {opts: []kubernetes.Option{kubernetes.WithVacate()}, do: func(string) {}},
		"finalizers": {do: func(name string) {
			r.edit(name, func(l *coordinationv1.Lease) { l.Finalizers = []string{"leasehold.test/keep"} })
		}},
		"labelled": {do: func(name string) {
			r.edit(name, func(l *coordinationv1.Lease) { l.Labels = map[string]string{"a": "b"} })
		}, gone: true},
	} {
		for _, known := range []bool{true, false} { // whether the client remembers the object
			name := fmt.Sprintf("%s-%v", name, known)
			s := r.store(c.opts...)
			rec := scene.Grant(r, s, scene.Claim(name, "a", 10*time.Second))
			uid := r.object(name).UID
			c.do(name)
			if known {
				rec = scene.Renew(r, s, rec)
			}
			scene.Release(r, s, rec)
			l, err := r.leases.Get(t.Context(), name, metav1.GetOptions{})
			switch {
			case c.gone && !apierrors.IsNotFound(err):
				t.Errorf("%s: it was not deleted: %v, %v", name, l, err)
			case c.gone:
				continue
			case err != nil || l.UID != uid || value(l.Spec.HolderIdentity) != "" || l.DeletionTimestamp != nil:
				t.Errorf("%s: it was not vacated: %v, %v", name, l, err)
			}
			if next := scene.Grant(r, s, scene.Claim(name, "b", 10*time.Second)); next.Token <= rec.Token || next.Transitions <= rec.Transitions {
				t.Errorf("%s: %+v follows %+v", name, next, rec)
			}
			if len(l.Finalizers) > 0 {
				if after := r.object(name); len(after.Finalizers) != 1 {
					t.Errorf("%s: a takeover has removed the finalizers: %v", name, after)
				}
				r.edit(name, func(l *coordinationv1.Lease) { l.Finalizers = nil })
			}
		}
	}
}

// TestKubectl: the column that a person sees.
func TestKubectl(t *testing.T) {
	r := enter(t)
	l := scene.Lease(r, r.store(), "job", 10*time.Second)
	if err := l.Acquire(t.Context()); err != nil {
		t.Fatal(err)
	}
	// As kubectl get lease asks for it.
	out, err := r.client(r.config()).CoordinationV1().RESTClient().Get().Namespace(r.namespace).Resource("leases").
		SetHeader("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io").DoRaw(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var table metav1.Table
	if err := json.Unmarshal(out, &table); err != nil {
		t.Fatal(err)
	}
	for i, c := range table.ColumnDefinitions {
		if c.Name != "Holder" {
			continue
		}
		shown, ok := table.Rows[0].Cells[i].(string)
		if !ok || shown != string(l.Holder()) {
			t.Errorf("the holder is shown as %v; it is %q", table.Rows[0].Cells[i], l.Holder())
		}
		if strings.ContainsFunc(shown, func(c rune) bool { return !unicode.IsGraphic(c) || unicode.IsSpace(c) }) || len(shown) > 100 {
			t.Errorf("the holder is not readable: %q", shown)
		}
		host, _ := os.Hostname()
		if !strings.Contains(shown, host) || !strings.Contains(shown, fmt.Sprint(os.Getpid())) {
			t.Errorf("the holder does not tell host and process: %q", shown)
		}
		t.Logf("%s\t%s", table.Rows[0].Cells[0], shown)
		return
	}
	t.Errorf("there is no holder in %v", table.ColumnDefinitions)
}

// TestMissingFields: every field of a spec may be missing, as other programs
// leave it.
func TestMissingFields(t *testing.T) {
	clear := []struct {
		field string
		do    func(*coordinationv1.LeaseSpec)
	}{
		{"holderIdentity", func(s *coordinationv1.LeaseSpec) { s.HolderIdentity = nil }},
		{"leaseDurationSeconds", func(s *coordinationv1.LeaseSpec) { s.LeaseDurationSeconds = nil }},
		{"acquireTime", func(s *coordinationv1.LeaseSpec) { s.AcquireTime = nil }},
		{"renewTime", func(s *coordinationv1.LeaseSpec) { s.RenewTime = nil }},
		{"leaseTransitions", func(s *coordinationv1.LeaseSpec) { s.LeaseTransitions = nil }},
	}
	for set := range 1 << len(clear) {
		spec := foreignHolder("somebody else", 1)
		var missing []string
		for i, c := range clear {
			if set&(1<<i) != 0 {
				c.do(&spec)
				missing = append(missing, c.field)
			}
		}
		t.Run(strings.Join(append(missing, "missing"), " "), func(t *testing.T) {
			r := enter(t)
			before := r.create("job", spec)
			s := r.store()
			rec := scene.Get(r, s, "job")
			if rec.Vacant() != (spec.HolderIdentity == nil) || rec.Token != 0 || rec.Expired {
				t.Errorf("%v is read as %+v", spec, rec)
			}
			l := scene.Lease(r, s, "job", time.Second)
			began := time.Now()
			err := l.Acquire(t.Context())
			if spec.HolderIdentity == nil {
				if err != nil {
					t.Fatalf("what nobody holds is not granted: %v", err)
				}
			} else {
				if !errors.Is(err, backend.ErrHeld) {
					t.Errorf("what somebody else holds: %v", err)
				}
				if err := l.Await(t.Context()); err != nil {
					t.Fatal(err)
				}
				// A second is published, or else it is the waiter's own.
				if early := time.Second*101/100 - time.Since(began); early > 0 {
					t.Errorf("taken over %v too early", early)
				}
			}
			got := r.object("job")
			if s := got.Spec; s.HolderIdentity == nil || s.LeaseDurationSeconds == nil || s.AcquireTime == nil || s.RenewTime == nil || s.LeaseTransitions == nil {
				t.Errorf("Leasehold left out a field: %v", s)
			}
			if value(got.Spec.LeaseTransitions) != value(spec.LeaseTransitions)+1 {
				t.Errorf("%d transitions after %v", value(got.Spec.LeaseTransitions), spec.LeaseTransitions)
			}
			if err := l.Release(t.Context()); err != nil {
				t.Error(err)
			}
			if after := r.object("job"); after.UID != before.UID {
				t.Errorf("another's object was replaced")
			}
		})
	}
}

// TestEditsByOthers: labels and annotations of others are no loss, and stay.
func TestEditsByOthers(t *testing.T) {
	r := enter(t)
	s := r.store(kubernetes.WithVacate(), kubernetes.WithLabels(map[string]string{"app": "ours"}))
	h := scene.Hold(r, scene.Lease(r, s, "job", 3*time.Second, lease.WithRenewInterval(50*time.Millisecond), lease.WithMetadata(map[string]string{"version": "1"})))
	put := func(l *coordinationv1.Lease, label, note string) {
		if l.Labels == nil {
			l.Labels = make(map[string]string)
		}
		l.Labels[label] = "x"
		l.Annotations[note] = "x"
	}
	var labels, notes []string
	for i := range 40 { // between the renewals
		label, note := fmt.Sprintf("team/l%d", i), fmt.Sprintf("team/n%d", i)
		labels, notes = append(labels, label), append(notes, note)
		r.edit("job", func(l *coordinationv1.Lease) { put(l, label, note) })
	}
	scene.Pass(r, 4*time.Second)
	if !h.Alive() {
		t.Fatalf("edits of others have cost the lease: %v", h.Context().Err())
	}
	kept := func(when string) {
		t.Helper()
		l := r.object("job")
		for i := range labels {
			if l.Labels[labels[i]] != "x" || l.Annotations[notes[i]] != "x" {
				t.Errorf("%s: %s or %s is gone", when, labels[i], notes[i])
			}
		}
		if l.Labels["app"] != "ours" {
			t.Errorf("%s: the label of the store's own is missing: %v", when, l.Labels)
		}
	}
	kept("renewals")
	h.Leave()
	if err := scene.Await(r, "Run returns", h.Result); err != nil {
		t.Error(err)
	}
	kept("release")
	// A takeover: the next one dies, and is waited for.
	scene.Grant(r, s, scene.Claim("job", "dead", time.Second))
	kept("acquire")
	next := scene.Hold(r, scene.Lease(r, s, "job", 3*time.Second))
	kept("takeover")
	if got := scene.Get(r, s, "job"); len(got.Metadata) != 0 || next.Grant.Token <= h.Grant.Token {
		t.Errorf("the new tenure is %+v", got)
	}
}

// guard is what the lease guards. It does not ask who ought to be inside, it
// looks who is; on one clock.
type guard struct {
	mu         sync.Mutex
	inside     *visit
	last       *visit // of the tenure before, or the present one
	tenures    map[string]int
	total      int
	handovers  map[string]int
	visits     int
	stalls     int
	violations []string
	stop       chan struct{}
}

// visit is one stay inside.
type visit struct {
	kind, who string // who is an actor
	tenure    *int   // the same for all visits of one tenure
	token     uint64
	since     time.Time
}

const (
	stay = 2 * time.Millisecond
	// stalled is how long a visit must have lasted until another's at the same time
	// says that this process was not running, not that two hold the lease: a
	// holder has the grace of a twentieth of its duration to leave.
	stalled = 150 * time.Millisecond
)

// visit enters, stays and leaves, if ctx still allows it at the moment of
// entering.
func (g *guard) visit(ctx context.Context, v visit) bool {
	g.mu.Lock()
	if ctx.Err() != nil {
		g.mu.Unlock()
		return false
	}
	v.since = time.Now()
	if in := g.inside; in != nil {
		if d := v.since.Sub(in.since); d < stalled {
			g.violations = append(g.violations, fmt.Sprintf("%s enters while %s has been inside for %v", v.who, in.who, d))
		} else {
			g.stalls++
		}
	}
	g.visits++
	if g.last == nil || g.last.tenure != v.tenure {
		if g.last != nil {
			g.handovers[g.last.kind+" to "+v.kind]++
		}
		g.tenures[v.who]++
		g.total++
	}
	if g.last == nil || g.last.tenure != v.tenure || g.last.who != v.who {
		g.last = &v
	}
	g.inside = &v
	g.mu.Unlock()

	time.Sleep(stay)

	g.mu.Lock()
	if g.inside == &v {
		g.inside = nil
	}
	g.mu.Unlock()
	return true
}

// work visits until an instant, the end of ctx or of the test; it returns false
// if ctx has ended.
func (g *guard) work(ctx context.Context, v visit, d time.Duration) bool {
	until := time.Now().Add(d)
	for time.Now().Before(until) && !g.stopped() {
		if !g.visit(ctx, v) {
			return false
		}
		time.Sleep(stay)
	}
	return ctx.Err() == nil
}

func (g *guard) stopped() bool {
	select {
	case <-g.stop:
		return true
	default:
		return false
	}
}

// rest lets n other tenures come first, for a time: a waiter that is told would
// otherwise always be faster than one that polls.
func (g *guard) rest(n int) {
	g.mu.Lock()
	target := g.total + n
	g.mu.Unlock()
	for end := time.Now().Add(8 * time.Second); time.Now().Before(end) && !g.stopped(); time.Sleep(10 * time.Millisecond) {
		g.mu.Lock()
		enough := g.total >= target
		g.mu.Unlock()
		if enough {
			return
		}
	}
}

func (g *guard) turns(actors []string) (all bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, a := range actors {
		if g.tenures[a] == 0 {
			return false
		}
	}
	return g.handovers[ours+" to "+theirs] > 0 && g.handovers[theirs+" to "+ours] > 0
}

const ours, theirs = "Leasehold", "client-go"

// TestInterop has client-go and Leasehold compete for one object while their
// holders die, and while Leasehold's lose their way to the server.
// LEASEHOLD_INTEROP says for how long, 20s by default.
func TestInterop(t *testing.T) {
	r := enter(t)
	length := 20 * time.Second
	if text := os.Getenv("LEASEHOLD_INTEROP"); text != "" {
		var err error
		if length, err = time.ParseDuration(text); err != nil {
			t.Fatalf("LEASEHOLD_INTEROP: %v", err)
		}
	}
	each := 2 // of both kinds
	if length >= time.Minute {
		each = 3
	}
	const duration = 4 * time.Second
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	g := &guard{tenures: make(map[string]int), handovers: make(map[string]int), stop: make(chan struct{})}
	ends := make(map[string]int)
	var mu sync.Mutex // of ends and tokens
	var token uint64
	tokens := 0
	ended := func(how string) {
		mu.Lock()
		defer mu.Unlock()
		ends[how]++
	}

	// What the API server saw: how often the lease changed hands.
	historyCtx, endHistory := context.WithCancel(t.Context())
	defer endHistory()
	history := r.history(historyCtx, "job")

	var actors []string
	var all sync.WaitGroup
	for i := range each {
		name := fmt.Sprintf("%s %d", theirs, i)
		actors = append(actors, name)
		random := rand.New(rand.NewPCG(seed, uint64(i)))
		all.Go(func() {
			for n := 0; !g.stopped(); n++ {
				release := random.IntN(3) > 0
				how := []string{"leaves", "leaves", "dies", "blip"}[random.IntN(4)]
				v := visit{kind: theirs, who: name, tenure: new(int)}
				spell := 200*time.Millisecond + time.Duration(random.Int64N(int64(time.Second)))
				var e *term
				made := make(chan struct{})
				lost := false
				e = r.elector("job", fmt.Sprintf("client-go-%d#%d", i, n), duration, release, func(ctx context.Context) {
					<-made
					alive := g.work(ctx, v, spell)
					if how == "blip" && alive { // client-go stands errors, but no silence
						e.sends.set(fail)
						alive = g.work(ctx, v, time.Second)
						e.sends.set(nil)
						alive = alive && g.work(ctx, v, time.Second)
					}
					lost = !alive
				})
				close(made)
				select {
				case <-e.worked:
				case <-e.done:
				case <-g.stop:
				}
				select {
				case <-e.began:
					<-e.worked
				default:
				}
				if how == "dies" {
					e.sends.set(fail)
				}
				e.cancel()
				<-e.done
				if !e.idle() {
					switch {
					case lost:
						ended(theirs + " lost on its own")
					case how == "leaves" && release:
						ended(theirs + " released")
					case how == "blip":
						ended(theirs + " blip")
					default:
						ended(theirs + " died")
					}
				}
				g.rest(1 + random.IntN(2))
			}
		})
	}
	faults := []string{"releases", "releases", "dies", "cut", "black hole", "replies lost", "slow", "hangs", "fails", "forgets", "blip"}
	for i := range each {
		name := fmt.Sprintf("%s %d", ours, i)
		actors = append(actors, name)
		random := rand.New(rand.NewPCG(seed, uint64(10+i)))
		all.Go(func() {
			for !g.stopped() {
				p, err := wire.New(r.k.Addr())
				if err != nil {
					t.Error(err)
					return
				}
				cfg, sends := wrap(r.k.ConfigVia(servers.Admin, p.Addr()))
				s, err := kubernetes.New(cfg, r.namespace)
				if err != nil {
					t.Error(err)
					return
				}
				l, err := lease.New(s, "job", lease.WithDuration(duration))
				if err != nil {
					t.Error(err)
					return
				}
				for dead := false; !dead && !g.stopped(); g.rest(1 + random.IntN(3)) {
					how := faults[random.IntN(len(faults))]
					spell := 200*time.Millisecond + time.Duration(random.Int64N(int64(time.Second)))
					ctx, cancel := context.WithCancel(t.Context())
					go func() {
						select {
						case <-g.stop:
							cancel()
						case <-ctx.Done():
						}
					}()
					worked := false
					l.Run(ctx, func(ctx context.Context) error {
						worked = true
						v := visit{kind: ours, who: name, tenure: new(int), token: l.Token()}
						mu.Lock()
						if tokens++; v.token <= token {
							t.Errorf("token %d follows %d", v.token, token)
						}
						token = v.token
						mu.Unlock()
						if !g.work(ctx, v, spell) {
							return nil
						}
						switch how {
						case "releases":
							return nil
						case "dies": // the work is over, and nobody is told
							dead = true
							sends.set(fail)
							p.Cut()
							return nil
						case "cut":
							p.Cut()
						case "black hole", "blip":
							p.BlackHole()
						case "replies lost":
							p.DropReplies()
						case "slow":
							p.Delay(duration / 2)
						case "hangs":
							sends.set(hang)
						case "fails":
							sends.set(fail)
						case "forgets":
							sends.set(only(forgetful, http.MethodPut, http.MethodDelete))
						}
						if how == "blip" {
							g.work(ctx, v, time.Second)
							p.Heal()
							g.work(ctx, v, time.Second)
							return nil
						}
						if how == "forgets" { // else it would renew for ever
							g.work(ctx, v, time.Second)
							sends.set(only(fail, http.MethodPut, http.MethodDelete))
						}
						g.work(ctx, v, time.Minute)
						return nil
					})
					cancel()
					if worked {
						ended(ours + " " + how)
					}
					p.Heal()
					p.Delay(0)
					sends.set(nil)
				}
				l.Close()
				s.Close()
				p.Close()
			}
		})
	}
	time.Sleep(length)
	for end := time.Now().Add(2*length + 20*time.Second); !g.turns(actors) && time.Now().Before(end); {
		time.Sleep(100 * time.Millisecond)
	}
	close(g.stop)
	all.Wait()
	endHistory()
	changes, objects := history(), 0

	for _, v := range g.violations {
		t.Error(v)
	}
	if !g.turns(actors) {
		t.Errorf("somebody never had a turn, or the lease never changed between the two: %v, %v", g.tenures, g.handovers)
	}
	if g.stalls > 0 {
		t.Logf("%d visits were stalled, and prove nothing", g.stalls)
	}
	uid, holder := "", ""
	var transitions int32
	foreign := false // whether client-go has led on this object
	for _, c := range changes {
		switch {
		case c.deleted && foreign:
			t.Errorf("an object that client-go has used was deleted")
			fallthrough
		case c.deleted:
			uid = ""
			continue
		case c.uid != uid:
			uid, holder, foreign, objects = c.uid, "", false, objects+1
			transitions = -1
		}
		switch {
		case c.transitions < transitions, c.holder != "" && c.holder != holder && c.transitions == transitions:
			t.Errorf("leaseTransitions is %d with the holder %q; it was %d with %q", c.transitions, c.holder, transitions, holder)
		}
		transitions = c.transitions
		if c.holder != "" {
			holder = c.holder
		}
		foreign = foreign || strings.HasPrefix(c.holder, "client-go-")
	}
	if holder == "" {
		t.Error("the history of the object tells nothing")
	}
	t.Logf("%d visits, %d tenures %v, hand-overs %v", g.visits, g.total, g.tenures, g.handovers)
	t.Logf("%d tokens, the last %d; %d objects, the last with %d transitions; ends %v", tokens, token, objects, transitions, ends)
}

// idle reports whether the elector has never led.
func (e *term) idle() bool {
	select {
	case <-e.began:
		return false
	default:
		return true
	}
}

// change is one state of an object.
type change struct {
	uid, holder string
	transitions int32
	deleted     bool
}

// history follows an object from now on. The function it returns waits for ctx to
// have ended and returns every state.
func (r *room) history(ctx context.Context, name string) func() []change {
	r.Helper()
	list, err := r.leases.List(ctx, metav1.ListOptions{})
	if err != nil {
		r.Fatal(err)
	}
	version := list.ResourceVersion
	var changes []change
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			w, err := r.leases.Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + name, ResourceVersion: version})
			if err != nil {
				if ctx.Err() == nil {
					r.Errorf("the object cannot be followed: %v", err)
				}
				return
			}
			for e := range w.ResultChan() {
				if l, ok := e.Object.(*coordinationv1.Lease); ok {
					version = l.ResourceVersion
					changes = append(changes, change{string(l.UID), value(l.Spec.HolderIdentity), value(l.Spec.LeaseTransitions), e.Type == watch.Deleted})
				}
			}
		}
	}()
	return func() []change {
		<-done
		return changes
	}
}
