// Package memory keeps leases in the memory of the process: for tests, for
// programs whose rivals are their own goroutines, and as the smallest complete
// example of a [backend.Store].
//
//	store := memory.New()                                // private
//	store, err := backend.Open(ctx, "memory:jobs")       // shared by all who open memory:jobs
//
// # Promises
//
// The full contract of package backend. Every call takes one mutex for as long
// as it takes to look at a map, so all calls on one store are linearizable, not
// only those on one name. Expired is judged anew at each call by the store's
// clock, to the nanosecond and never early; renewals are visible, every one of
// them changes the Revision. Watchers are woken by the change itself: there is
// no polling, and no goroutine or timer but those of a Watch in progress.
//
// A token is the sum of a floor and a counter. The counter is one for the whole
// store. The floor belongs to the lease: 0 until a claim brings a MinToken, and
// then the greatest MinToken that was granted. One near [backend.MaxToken] uses
// up the tokens of its own lease and of no other: what would exceed MaxToken is
// refused.
//
// Release deletes a record without a floor. One with a floor it vacates: there
// is no holder, but the floor stays, and so does Transitions, which counts the
// changes of holder since the record was made.
//
// A second arrival of the Attempt whose tenure is current, and has not expired,
// renews that tenure, so that what it returns lasts Duration from the second
// call too.
//
// # Limits
//
// Everything is gone when the process ends, the counter and the floors too: do
// not fence something that outlives the process with these tokens. The tenures
// of memory:NAME are gone as soon as its last client is closed. But whoever opens
// memory:NAME again in this process finds the floors, and a counter that goes on.
//
// The default clock stands still while the machine is suspended; see
// [WithClock].
package memory

import (
	"context"
	"fmt"
	"iter"
	"maps"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/leasehold/leasehold/backend"
)

// minDuration keeps a mistaken unit (15 for 15 s) from becoming a lease.
const minDuration = time.Millisecond

// Clock tells how much time has passed since any origin, and calls back when
// some has. Every clock of package lease is one.
type Clock interface {
	// Now returns the present instant.
	Now() time.Duration
	// AfterFunc calls f in its own goroutine after d has passed.
	AfterFunc(d time.Duration, f func()) Timer
}

// Timer is what Clock.AfterFunc returns.
type Timer = interface {
	// Stop keeps the function from being called; it reports whether it did.
	Stop() bool
}

// Option changes how New makes a Store.
type Option func(*data)

// WithClock sets the clock that decides when a tenure has expired. The default
// is the Go runtime's monotonic clock, which is the bubble's clock inside
// testing/synctest. A holder and its store should count on the same clock.
func WithClock(c Clock) Option { return func(d *data) { d.clock = c } }

// Store is one client of a store. The zero value is not usable; see New.
type Store struct {
	*data
	closed chan struct{} // closed by Close, under data.mu
}

var (
	_ backend.Store   = (*Store)(nil)
	_ backend.Watcher = (*Store)(nil)
	_ backend.Lister  = (*Store)(nil)
)

// data is what all clients of one store share.
type data struct {
	name  string // NAME of memory:NAME; "" is private
	clock Clock

	mu       sync.Mutex
	clients  int
	records  map[string]*record
	counter  uint64 // of all grants; a token is this and the floor of its record
	revision uint64
	watchers map[string]map[chan struct{}]struct{}
}

type record struct {
	backend.Record               // without Expired and Remaining
	end            time.Duration // of the tenure, on the store's clock
	floor          uint64        // the greatest MinToken granted
}

// New returns the first client of a new, private store.
func New(opts ...Option) *Store {
	d := &data{
		clock:    runtimeClock{},
		records:  make(map[string]*record),
		watchers: make(map[string]map[chan struct{}]struct{}),
	}
	for _, opt := range opts {
		opt(d)
	}
	return d.client()
}

// Client returns another client of the same store. Each is closed on its own.
func (s *Store) Client() *Store {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.client()
}

func (d *data) client() *Store {
	d.clients++
	return &Store{data: d, closed: make(chan struct{})}
}

// named holds the stores that memory:NAME has opened and nobody has closed, and
// those that have floors to keep.
var named = struct {
	sync.Mutex
	stores  map[string]*data
	counter uint64 // the greatest one of any that was closed
}{stores: make(map[string]*data)}

func init() { backend.Register("memory", open) }

func open(_ context.Context, u *url.URL) (backend.Store, error) {
	if _, err := backend.Query(u); err != nil {
		return nil, err
	}
	name, err := url.PathUnescape(u.Opaque)
	if err != nil || u.Host != "" || u.Path != "" || u.User != nil || u.Fragment != "" {
		return nil, fmt.Errorf("%w: a memory URL is memory: for a private store or memory:NAME for one shared in this process", backend.ErrInvalid)
	}
	if name == "" {
		return New(), nil
	}
	named.Lock()
	defer named.Unlock()
	if d := named.stores[name]; d != nil {
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.client(), nil
	}
	s := New()
	s.name, s.counter = name, named.counter
	named.stores[name] = s.data
	return s, nil
}

// Close closes this client and ends its watches; other clients go on. With the
// last one all tenures are gone.
func (s *Store) Close() error {
	named.Lock() // before s.mu, as in open
	defer named.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.isClosed() {
		return nil
	}
	close(s.closed)
	if s.clients--; s.clients == 0 && named.stores[s.name] == s.data {
		for _, r := range s.records {
			s.vacate(r)
		}
		if len(s.records) == 0 {
			delete(named.stores, s.name)
		}
		named.counter = max(named.counter, s.counter)
	}
	return nil
}

func (s *Store) isClosed() bool {
	select {
	case <-s.closed:
		return true
	default:
		return false
	}
}

// Traits tells what this store can do.
func (s *Store) Traits() backend.Traits {
	return backend.Traits{
		Name:            "memory",
		Namespace:       s.name,
		MinDuration:     minDuration,
		Granularity:     1,
		RenewalsVisible: true,
	}
}

// enter begins a call about name: on success s.mu is held.
func (s *Store) enter(ctx context.Context, name string) error {
	if err := backend.CheckName(name); err != nil {
		return err
	}
	return s.lock(ctx)
}

// lock takes s.mu if the call may go on.
func (s *Store) lock(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("the call to the memory store was not begun: %w", err)
	}
	s.mu.Lock()
	if s.isClosed() {
		s.mu.Unlock()
		return fmt.Errorf("%w: the memory store is closed", backend.ErrInvalid)
	}
	return nil
}

// Get returns the record of name.
func (s *Store) Get(ctx context.Context, name string) (backend.Record, error) {
	if err := s.enter(ctx, name); err != nil {
		return backend.Record{}, err
	}
	defer s.mu.Unlock()
	r := s.records[name]
	if r == nil {
		return backend.Record{}, fmt.Errorf("%w: %q", backend.ErrNotFound, name)
	}
	return r.view(s.clock.Now()), nil
}

// Acquire grants the claim or refuses it.
func (s *Store) Acquire(ctx context.Context, claim backend.Claim) (backend.Record, error) {
	duration, err := backend.CheckClaim(claim, s.Traits())
	if err != nil {
		return backend.Record{}, err
	}
	if err := s.enter(ctx, claim.Name); err != nil {
		return backend.Record{}, err
	}
	defer s.mu.Unlock()

	now := s.clock.Now() // after the call began: no tenure ends early
	old := s.records[claim.Name]
	if old != nil && !old.expired(now) && claim.Attempt != "" && old.Attempt == claim.Attempt && old.Holder == claim.Holder {
		s.renew(old, now)
		return old.view(now), nil
	}
	switch {
	case old == nil && claim.Over != "":
		return backend.Record{}, &backend.HeldError{Record: backend.Record{Name: claim.Name}}
	case old != nil && claim.Over != "" && old.Revision != claim.Over,
		old != nil && claim.Over == "" && !old.Vacant() && !old.expired(now):
		return backend.Record{}, &backend.HeldError{Record: old.view(now)}
	}
	floor := claim.MinToken
	if old != nil {
		floor = max(floor, old.floor)
	}
	token := floor + s.counter + 1
	if token > backend.MaxToken {
		return backend.Record{}, fmt.Errorf("%w: lease %q: its next token would be %d, with the floor %d that a MinToken sets; none can be greater than %d", backend.ErrInvalid, claim.Name, token, floor, uint64(backend.MaxToken))
	}

	s.counter++
	r := &record{floor: floor, Record: backend.Record{
		Name:     claim.Name,
		Holder:   claim.Holder,
		Token:    token,
		Attempt:  claim.Attempt,
		Duration: duration,
		Metadata: maps.Clone(claim.Metadata),
	}}
	if claim.Seal != nil {
		seal := *claim.Seal
		r.Seal = &seal
	}
	if old != nil {
		r.Transitions = old.Transitions
		if old.Holder != r.Holder {
			r.Transitions++
		}
	}
	s.records[claim.Name] = r
	s.renew(r, now)
	r.AcquiredAt = r.RenewedAt
	return r.view(now), nil
}

// Renew starts the duration of rec's tenure anew.
func (s *Store) Renew(ctx context.Context, rec backend.Record) (backend.Record, error) {
	if err := s.enter(ctx, rec.Name); err != nil {
		return backend.Record{}, err
	}
	defer s.mu.Unlock()
	r, err := s.tenure(rec)
	if err != nil {
		return backend.Record{}, err
	}
	now := s.clock.Now()
	if r.expired(now) {
		return backend.Record{}, fmt.Errorf("%w: lease %q: the tenure of %q expired before it was renewed", backend.ErrLost, rec.Name, rec.Holder)
	}
	if r.Seal == nil { // a seal lasts for ever as it is
		s.renew(r, now)
	}
	return r.view(now), nil
}

// Release ends rec's tenure. It deletes the record, or vacates it if there is a
// floor to keep.
func (s *Store) Release(ctx context.Context, rec backend.Record) error {
	if err := s.enter(ctx, rec.Name); err != nil {
		return err
	}
	defer s.mu.Unlock()
	r, err := s.tenure(rec)
	if err != nil {
		return err
	}
	if rec.Expired && rec.Revision != r.Revision {
		return fmt.Errorf("%w: lease %q: the tenure of %q was renewed since it was seen expired", backend.ErrLost, rec.Name, rec.Holder)
	}
	s.vacate(r)
	return nil
}

// vacate leaves of the record what outlives its tenure: nothing, unless there is
// a floor. s.mu is held.
func (s *Store) vacate(r *record) {
	if r.floor == 0 {
		delete(s.records, r.Name)
		s.wake(r.Name)
		return
	}
	left := &record{floor: r.floor, Record: backend.Record{Name: r.Name, Transitions: r.Transitions}}
	s.records[r.Name] = left
	s.touch(left)
}

// tenure returns the record if it still is of rec's tenure. s.mu is held.
func (s *Store) tenure(rec backend.Record) (*record, error) {
	r := s.records[rec.Name]
	switch {
	case r == nil:
		return nil, fmt.Errorf("%w: lease %q: there is no record any more", backend.ErrLost, rec.Name)
	case r.Vacant():
		return nil, fmt.Errorf("%w: lease %q: nobody holds it any more", backend.ErrLost, rec.Name)
	case !r.SameTenure(rec):
		return nil, fmt.Errorf("%w: lease %q: it is %q who holds it now, with token %d", backend.ErrLost, rec.Name, r.Holder, r.Token)
	}
	return r, nil
}

// renew starts r's duration at now, as one write to the record. s.mu is held.
func (s *Store) renew(r *record, now time.Duration) {
	r.RenewedAt = time.Now().UTC().Round(0) // Round drops the monotonic reading
	r.end = now + r.Duration
	s.touch(r)
}

// touch makes what was done to r a write. s.mu is held.
func (s *Store) touch(r *record) {
	s.revision++
	r.Revision = strconv.FormatUint(s.revision, 10)
	s.wake(r.Name)
}

func (r *record) expired(now time.Duration) bool {
	return r.Holder != "" && r.Seal == nil && now >= r.end
}

// view returns the record as it is at now. It shares nothing with the store.
func (r *record) view(now time.Duration) backend.Record {
	v := r.Record
	v.Metadata = maps.Clone(r.Metadata)
	if r.Seal != nil {
		seal := *r.Seal
		v.Seal = &seal
	} else if v.Expired = r.expired(now); v.Live() {
		v.Remaining = r.end - now
	}
	return v
}

// wake tells the watchers of name, all of which have room for one message: a
// watcher that has not fetched the last one yet will see the newest state when
// it does. s.mu is held.
func (s *Store) wake(name string) {
	for w := range s.watchers[name] {
		poke(w)
	}
}

func poke(w chan struct{}) {
	select {
	case w <- struct{}{}:
	default:
	}
}

// Watch yields the present record of name and the newest after each change.
func (s *Store) Watch(ctx context.Context, name string) iter.Seq2[backend.Record, error] {
	return func(yield func(backend.Record, error) bool) {
		changed := make(chan struct{}, 1)
		changed <- struct{}{} // the present state comes first
		stop := func() bool { return true }
		defer func() { stop() }()

		if err := s.enter(ctx, name); err != nil {
			if ctx.Err() == nil {
				yield(backend.Record{}, err)
			}
			return
		}
		if s.watchers[name] == nil {
			s.watchers[name] = make(map[chan struct{}]struct{})
		}
		s.watchers[name][changed] = struct{}{}
		s.mu.Unlock()
		defer func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			delete(s.watchers[name], changed)
			if len(s.watchers[name]) == 0 {
				delete(s.watchers, name)
			}
		}()

		var last backend.Record
		for {
			select {
			case <-ctx.Done():
			case <-s.closed:
			case <-changed:
			}
			if err := s.lock(ctx); err != nil {
				if ctx.Err() == nil {
					yield(backend.Record{}, err)
				}
				return
			}
			rec := backend.Record{Name: name}
			if r := s.records[name]; r != nil {
				rec = r.view(s.clock.Now())
			}
			s.mu.Unlock()

			// Before the yield, which lasts as long as the caller likes.
			stop()
			if rec.Remaining > 0 {
				stop = s.clock.AfterFunc(rec.Remaining, func() { poke(changed) }).Stop
			}
			// Absence looks the same each time, but whoever was refused in between by
			// a holder that has gone again must hear of it.
			if last.Name == "" || rec.Revision != last.Revision || rec.Expired != last.Expired || rec.Revision == "" {
				last = rec
				if !yield(rec, nil) {
					return
				}
			}
		}
	}
}

// List yields the records whose names have the prefix, as they were when it
// began.
func (s *Store) List(ctx context.Context, prefix string) iter.Seq2[backend.Record, error] {
	return func(yield func(backend.Record, error) bool) {
		if err := s.lock(ctx); err != nil {
			yield(backend.Record{}, err)
			return
		}
		now := s.clock.Now()
		var found []backend.Record
		for name, r := range s.records {
			if strings.HasPrefix(name, prefix) {
				found = append(found, r.view(now))
			}
		}
		s.mu.Unlock()
		for _, rec := range found {
			if !yield(rec, nil) {
				return
			}
		}
	}
}

// runtimeClock is the Go runtime's monotonic clock.
type runtimeClock struct{}

var origin = time.Now()

func (runtimeClock) Now() time.Duration { return time.Since(origin) }

func (runtimeClock) AfterFunc(d time.Duration, f func()) Timer { return time.AfterFunc(d, f) }
