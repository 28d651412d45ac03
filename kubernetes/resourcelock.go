package kubernetes

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/leasehold/leasehold/backend"
)

// FencedLock is what [ResourceLock] returns.
type FencedLock interface {
	resourcelock.Interface

	// Token returns the fencing token of the tenure that this lock holds. It is 0
	// while it holds none, and from the moment it can no longer be sure: when the
	// store has said that the tenure is over, when a release has begun, or when the
	// last successful renewal was sent a whole duration ago (less the margin that
	// package lease leaves too). Guarded work that asks for the token before every
	// write, and stops at 0, stops in time even where the elector's context ends
	// late. The runtime's clock stands still while a machine is suspended; what
	// stops such a holder is the resource, which refuses a smaller token.
	Token() uint64
}

// ResourceLock puts a lease of any store under an unchanged client-go
// LeaderElector: it is the Lock of a leaderelection.LeaderElectionConfig, or the
// LeaderElectionResourceLockInterface of a controller-runtime manager. identity
// must be this process's own. The caller keeps and closes the store.
//
// What it gives over client-go's own LeaseLock:
//
//   - Any store of Leasehold will do, not only Kubernetes.
//   - Every tenure has a fencing token: see [FencedLock].
//   - A release ends the tenure of this lock and no other. client-go reads the
//     record again before it releases, and may then erase the lease of whoever has
//     taken over in the meantime.
//   - A live lease is never taken because of the elector's clock alone. Renewal
//     times count in full, where client-go compares whole seconds and steals live
//     leases of one second; an edited label is no renewal. The lock also keeps its
//     own count, by the rule of package lease (holder, token and renewal time seen
//     unchanged for 1.01 durations), and takes over nothing before that. Where
//     renewals do not show in the record (etcd, Redis) the store alone judges: it
//     is then that a dead holder's lease is taken, neither sooner nor later.
//   - An expired or vacated lease is taken at the next look, without waiting a
//     duration from its first sight.
//   - A leadership never spans two tenures. An elector that finds the lease it had
//     lost free again would take it and go on as if nothing had happened, though
//     another may have led in between; here it is refused until it has told its
//     OnStoppedLeading.
//   - A record that names identity is this lock's only if this lock has claimed it.
//     client-go takes such a record for its own at once; here another process, also
//     an earlier one of a pod whose identity is its name, is waited for like anybody,
//     and shows as "IDENTITY (another process)". An acquire of this lock whose reply
//     was lost is claimed anew, never adopted.
//   - It may be used concurrently. Calls wait for each other.
//
// What no lock can mend is the timing of the elector. It counts its own lease
// from when a renewal was answered, not from when it was sent. It ends the context
// of OnStartedLeading up to RetryPeriod + RenewDeadline and one request after its
// last renewal, which may be more than LeaseDuration; it releases before it ends
// that context; and when it learns of a loss, it goes on until RenewDeadline. In
// that time another may lead already. Ask for the Token before every write, or
// use Run of package lease, whose context ends before anybody else is let in.
//
// LeaseDuration is in whole seconds, because the elector cuts off the rest: it
// publishes 1.9 s as 1 s, and 0.9 s as nothing, which is refused. A duration
// below the store's MinDuration is refused too; the elector logs the error and
// tries again for ever. A tenure keeps the duration it was granted with: what a
// renewal says is ignored.
//
// There are no Kubernetes events: of RecordEvent the lock only learns when a
// leadership begins and ends.
func ResourceLock(store backend.Store, name, identity string) resourcelock.Interface {
	return &resourceLock{store: store, name: name, identity: identity, prefix: rand.Text() + "-", turn: make(chan struct{}, 1)}
}

var _ FencedLock = (*resourceLock)(nil)

type resourceLock struct {
	store          backend.Store
	name, identity string
	prefix         string // of the attempts of this lock

	turn chan struct{} // holds one while a call is under way; guards the next six

	seen    *backend.Record // by the last Get; each Update uses it up
	count   backend.Record  // another's record whose silence is timed
	since   time.Time       // when count was first received
	longest time.Duration   // that its holder may count on
	looks   uint64          // Gets so far
	claims  uint64          // Acquires so far

	mu      sync.Mutex      // never held during a call of the store
	tenure  *backend.Record // nil: none that could be renewed
	until   time.Time       // the tenure is certain until then
	leading bool            // by what RecordEvent was told
}

// Get returns the record, and the bytes by which the elector tells a renewal
// from silence.
func (l *resourceLock) Get(ctx context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	if err := l.enter(ctx); err != nil {
		return nil, nil, err
	}
	defer l.leave()
	l.seen = nil
	rec, err := l.store.Get(ctx, l.name)
	if errors.Is(err, backend.ErrNotFound) {
		return nil, nil, newLockError(metav1.StatusReasonNotFound, err) // the elector creates it then
	}
	if err != nil {
		return nil, nil, err
	}
	l.see(rec)

	ler := resourcelock.LeaderElectionRecord{
		HolderIdentity:       rec.Holder,
		LeaseDurationSeconds: int((rec.Duration + time.Second - 1) / time.Second),
		AcquireTime:          metav1.NewTime(rec.AcquiredAt),
		RenewTime:            metav1.NewTime(rec.RenewedAt),
		LeaderTransitions:    int(rec.Transitions),
	}
	switch {
	case rec.Seal != nil && (rec.Holder == "" || rec.Holder == l.identity):
		ler.HolderIdentity = "moved to " + rec.Seal.To // nobody's to take, not ours either
	case rec.Expired:
		ler.HolderIdentity = "" // the elector need not wait
	case rec.Holder == l.identity && !l.own(rec):
		ler.HolderIdentity += " (another process)" // or the elector takes it for its own
	}
	raw, err := l.raw(rec, ler)
	return &ler, raw, err
}

// own reports whether a record that names identity was claimed by this lock, though
// it may not have been told.
func (l *resourceLock) own(rec backend.Record) bool {
	return rec.Seal == nil && rec.Holder == l.identity && strings.HasPrefix(rec.Attempt, l.prefix)
}

// see remembers rec for the Update that may follow, and when its holder was last
// heard of. Only a change of holder, token or renewal time is news of it.
func (l *resourceLock) see(rec backend.Record) {
	l.seen = &rec
	old := l.count
	if old.Holder == rec.Holder && old.Token == rec.Token && old.RenewedAt.Equal(rec.RenewedAt) &&
		(!rec.RenewedAt.IsZero() || old.Revision == rec.Revision) {
		l.longest = max(l.longest, rec.Duration) // an edit must not shorten what the holder counts on
		return
	}
	l.count, l.since, l.longest = rec, time.Now(), rec.Duration
}

// raw is equal for two Gets if and only if the elector may count the time between
// them as silence.
func (l *resourceLock) raw(rec backend.Record, ler resourcelock.LeaderElectionRecord) ([]byte, error) {
	r := struct {
		resourcelock.LeaderElectionRecord
		Token    uint64 `json:"token"`
		Renewed  string `json:"renewed"` // RenewTime has whole seconds only
		Revision string `json:"revision,omitempty"`
		Look     uint64 `json:"look,omitempty"`
	}{LeaderElectionRecord: ler, Token: rec.Token, Renewed: rec.RenewedAt.UTC().Format(time.RFC3339Nano)}
	if rec.RenewedAt.IsZero() {
		r.Revision = rec.Revision // nothing else can tell
	}
	// Where renewals do not show, an unchanged record is news all the same: the
	// store says that it lives. A free one is never waited for.
	if l.looks++; !rec.Live() || !l.store.Traits().RenewalsVisible {
		r.Look = l.looks
	}
	return json.Marshal(r)
}

// silent reports whether the holder of rec, which must be the last one seen, has
// been silent for so long that it cannot believe in its tenure any more.
func (l *resourceLock) silent(rec backend.Record, own time.Duration) bool {
	if rec.Seal != nil || rec.Duration == backend.Forever || !l.store.Traits().RenewalsVisible {
		return false
	}
	d := l.longest
	if d <= 0 {
		d = own // a foreign client that publishes none
	}
	return time.Since(l.since) >= d+d/100
}

// Create begins a tenure where there is no record.
func (l *resourceLock) Create(ctx context.Context, ler resourcelock.LeaderElectionRecord) error {
	if ler.HolderIdentity != l.identity {
		return l.foreign(ler)
	}
	if err := l.enter(ctx); err != nil {
		return err
	}
	defer l.leave()
	l.seen = nil
	if _, held := l.holding(); held {
		return l.renew(ctx) // the record is gone, or was: the store decides
	}
	return l.acquire(ctx, ler, "", metav1.StatusReasonAlreadyExists)
}

// Update renews the tenure of this lock, or begins one where the last Get allows
// it. Without a holder it releases.
func (l *resourceLock) Update(ctx context.Context, ler resourcelock.LeaderElectionRecord) error {
	if ler.HolderIdentity != l.identity && ler.HolderIdentity != "" {
		return l.foreign(ler)
	}
	if err := l.enter(ctx); err != nil {
		return err
	}
	defer l.leave()
	seen := l.seen
	l.seen = nil
	if ler.HolderIdentity == "" {
		return l.release(ctx)
	}
	if _, held := l.holding(); held {
		return l.renew(ctx)
	}
	over := ""
	switch {
	case seen == nil:
		// The elector renews without a look what it believes to hold.
		return newLockError(metav1.StatusReasonConflict, fmt.Errorf("%w: lease %q: %q holds no tenure that could be renewed", backend.ErrLost, l.name, l.identity))
	case !seen.Live():
	case l.own(*seen), l.silent(*seen, lockDuration(ler)):
		over = seen.Revision
	}
	return l.acquire(ctx, ler, over, metav1.StatusReasonConflict)
}

// acquire begins a tenure. A refusal is told as the reason says.
func (l *resourceLock) acquire(ctx context.Context, ler resourcelock.LeaderElectionRecord, over string, reason metav1.StatusReason) error {
	l.mu.Lock()
	leading := l.leading
	l.mu.Unlock()
	if leading {
		return newLockError(metav1.StatusReasonConflict, fmt.Errorf("%w: lease %q: %q must stop leading before it can be elected again", backend.ErrLost, l.name, l.identity))
	}
	l.claims++
	sent := time.Now()
	rec, err := l.store.Acquire(ctx, backend.Claim{
		Name:     l.name,
		Holder:   l.identity,
		Attempt:  l.prefix + strconv.FormatUint(l.claims, 36),
		Duration: lockDuration(ler),
		Over:     over,
	})
	if errors.Is(err, backend.ErrHeld) {
		return newLockError(reason, err)
	}
	if err != nil {
		return err // if it was granted all the same, the next Get shows identity
	}
	l.hold(rec, sent)
	return nil
}

// renew renews the tenure of this lock.
func (l *resourceLock) renew(ctx context.Context) error {
	tenure, _ := l.holding()
	sent := time.Now()
	rec, err := l.store.Renew(ctx, tenure)
	if errors.Is(err, backend.ErrLost) {
		l.forget()
		return newLockError(metav1.StatusReasonConflict, err)
	}
	if err != nil {
		return err
	}
	l.hold(rec, sent)
	return nil
}

// release ends the tenure of this lock. Where there is none, or it is over, what
// the caller wants is so already, and nobody else's lease is touched: that is no
// error. A conflict it must never be, since the elector answers that by trying
// again at once, and without a pause, until RenewDeadline.
//
// The tenure is forgotten whatever the outcome: one that may be released at any
// time must not be renewed.
func (l *resourceLock) release(ctx context.Context) error {
	tenure, held := l.holding()
	if !held {
		return nil
	}
	l.forget()
	if err := l.store.Release(ctx, tenure); err != nil && !errors.Is(err, backend.ErrLost) {
		return err
	}
	return nil
}

// RecordEvent records no event. An elector tells here when its leadership begins
// and when it has ended.
func (l *resourceLock) RecordEvent(event string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	// Whatever else it says, it does not lead: rather an election too many than
	// none ever again.
	l.leading = event == "became leader"
}

// Identity returns the identity of this candidate.
func (l *resourceLock) Identity() string { return l.identity }

// Describe returns namespace/name, or the name where the store has no namespace.
func (l *resourceLock) Describe() string {
	if ns := l.store.Traits().Namespace; ns != "" {
		return ns + "/" + l.name
	}
	return l.name
}

// Token implements FencedLock.
func (l *resourceLock) Token() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.tenure == nil || !time.Now().Before(l.until) {
		return 0
	}
	return l.tenure.Token
}

// enter waits until no other call is under way.
func (l *resourceLock) enter(ctx context.Context) error {
	select {
	case l.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the call about lease %q was not begun: %w", l.name, ctx.Err())
	}
}

func (l *resourceLock) leave() { <-l.turn }

func (l *resourceLock) holding() (tenure backend.Record, held bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.tenure == nil {
		return backend.Record{}, false
	}
	return *l.tenure, true
}

// hold remembers a tenure that is granted or renewed by a call begun at sent.
func (l *resourceLock) hold(rec backend.Record, sent time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tenure = &rec
	l.until = sent.Add(rec.Duration - rec.Duration/100 - 2*time.Millisecond)
}

func (l *resourceLock) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tenure = nil
}

func (l *resourceLock) foreign(ler resourcelock.LeaderElectionRecord) error {
	return fmt.Errorf("%w: lease %q: a lock of %q cannot act for %q", backend.ErrInvalid, l.name, l.identity, ler.HolderIdentity)
}

// lockDuration is what the elector asks for.
func lockDuration(ler resourcelock.LeaderElectionRecord) time.Duration {
	return time.Duration(min(ler.LeaseDurationSeconds, math.MaxInt32)) * time.Second
}

// newLockError makes err an error of the API too: the elector understands only those.
func newLockError(reason metav1.StatusReason, err error) error {
	code := int32(http.StatusConflict)
	if reason == metav1.StatusReasonNotFound {
		code = http.StatusNotFound
	}
	return &lockError{err, &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: code, Reason: reason, Message: err.Error(),
	}}}
}

type lockError struct {
	err    error
	status *apierrors.StatusError
}

func (e *lockError) Error() string   { return e.err.Error() }
func (e *lockError) Unwrap() []error { return []error{e.err, e.status} }
