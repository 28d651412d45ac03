package lease

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"sync"
	"time"

	"github.com/leasehold/leasehold/backend"
)

// ScheduleID names a scheduled renewal. The zero value names none.
type ScheduleID uint64

// RenewalService renews leases in the background. It calls Extend, which renews
// the current tenure and never begins one. A Lease schedules itself when a
// tenure begins and cancels when it ends.
//
// Its methods may be called concurrently; Schedule and Cancel do not wait for a
// store.
type RenewalService interface {
	// Schedule renews l from now on, until Cancel. A second Schedule of the same
	// Lease adds a second schedule.
	Schedule(l *Lease) (ScheduleID, error)
	// IsScheduled reports whether id names a schedule that has not been cancelled.
	IsScheduled(id ScheduleID) bool
	// Cancel ends a schedule and reports whether there was one. After it has
	// returned no renewal fires; one that is in flight may still finish.
	Cancel(id ScheduleID) bool
	// CancelAll cancels everything and tells of each schedule whether it did.
	CancelAll() map[ScheduleID]bool
	// RenewalDelay returns the time from one renewal of l to the next, jittered.
	RenewalDelay(l *Lease) time.Duration
}

// DefaultRenewalService returns the scheduler that all Leases of the process
// share unless WithRenewalService or WithClock says otherwise.
func DefaultRenewalService() RenewalService { return defaultService() }

var defaultService = sync.OnceValue(func() RenewalService { return NewRenewalService(nil) })

// NewRenewalService returns a scheduler that counts on clock (nil: SystemClock).
//
// It holds any number of leases with one timer and no goroutine of its own;
// there are goroutines only for renewals in flight. For each store it keeps at
// most 64 of them in flight that the store answers promptly, and 1024
// altogether, so that some names for which the store hangs do not keep the
// others waiting. What is due first is served first.
//
// Each renewal is followed by the next after RenewalDelay: the Lease's interval,
// less up to a tenth. One that failed is tried again after an eighth of the
// interval, then a quarter, a half, and the interval, and the sooner the less is
// left of the tenure.
func NewRenewalService(clock Clock) RenewalService {
	if clock == nil {
		clock = SystemClock
	}
	return &scheduler{clock: clock, entries: make(map[ScheduleID]*entry), lanes: make(map[any]*lane)}
}

const (
	promptCalls = 64                     // in flight for one store, as long as it answers
	maxInFlight = 1024                   // in flight for one store, whatever it does
	slowAfter   = 250 * time.Millisecond // a call that takes longer does not count as prompt
	coalesce    = 500 * time.Microsecond // what is due within this is dispatched together
)

type scheduler struct {
	clock Clock

	mu      sync.Mutex
	lastID  ScheduleID
	entries map[ScheduleID]*entry
	due     dueQueue
	lanes   map[any]*lane // by store
	timer   Timer
	alarm   time.Duration // when the timer goes off, if it is not nil
}

// entry is one scheduled Lease. It is in the due queue, or ready in its lane, or
// being renewed.
type entry struct {
	id        ScheduleID
	lease     *Lease
	lane      *lane
	at        time.Duration // when it is due
	index     int           // in the due queue; -1 elsewhere
	failures  int           // in a row
	cancelled bool
	stop      context.CancelFunc // of the renewal under way
}

// lane is the renewals of one store.
type lane struct {
	key     any
	entries int // scheduled for it
	ready   []*entry
	workers map[*worker]struct{}
}

type worker struct{ since time.Duration }

// RenewalDelay returns the Lease's renew interval, less up to a tenth.
func (s *scheduler) RenewalDelay(l *Lease) time.Duration {
	return l.interval - rand.N(l.interval/10+1)
}

func (s *scheduler) Schedule(l *Lease) (ScheduleID, error) {
	if l == nil {
		return 0, fmt.Errorf("%w: there is no lease to schedule", backend.ErrInvalid)
	}
	delay := s.RenewalDelay(l)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lastID++
	key := laneKey(l.store)
	ln := s.lanes[key]
	if ln == nil {
		ln = &lane{key: key, workers: make(map[*worker]struct{})}
		s.lanes[key] = ln
	}
	ln.entries++
	e := &entry{id: s.lastID, lease: l, lane: ln, at: s.clock.Now() + delay, index: -1}
	s.entries[e.id] = e
	heap.Push(&s.due, e)
	s.setAlarm(s.due[0].at)
	return e.id, nil
}

func (s *scheduler) IsScheduled(id ScheduleID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.entries[id] != nil
}

func (s *scheduler) Cancel(id ScheduleID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cancel(s.entries[id])
}

func (s *scheduler) CancelAll() map[ScheduleID]bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	cancelled := make(map[ScheduleID]bool, len(s.entries))
	for id, e := range s.entries {
		cancelled[id] = s.cancel(e)
	}
	return cancelled
}

func (s *scheduler) cancel(e *entry) bool {
	if e == nil {
		return false
	}
	e.cancelled = true
	if e.stop != nil {
		e.stop() // it may still be waiting for its turn
	}
	delete(s.entries, e.id)
	if e.index >= 0 {
		heap.Remove(&s.due, e.index)
	}
	if e.lane.entries--; e.lane.entries == 0 {
		delete(s.lanes, e.lane.key)
	}
	if len(s.entries) == 0 && s.timer != nil {
		s.timer.Stop()
		s.timer = nil
	}
	return true
}

// laneKey tells stores apart. Those that cannot be compared share a lane with
// others of their type.
func laneKey(store backend.Store) any {
	if v := reflect.ValueOf(store); !v.Comparable() {
		return v.Type()
	}
	return store
}

// setAlarm makes the timer go off at about the instant, or sooner; s.mu is held.
func (s *scheduler) setAlarm(at time.Duration) {
	now := s.clock.Now()
	at = max(at, now+coalesce)
	if s.timer != nil {
		if s.alarm <= at {
			return
		}
		s.timer.Stop()
	}
	s.alarm = at
	s.timer = s.clock.AfterFunc(at-now, func() { s.dispatch(at) })
}

// dispatch moves what is due to the lanes and starts workers for it.
func (s *scheduler) dispatch(alarm time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.timer == nil || s.alarm != alarm {
		return // it was replaced while it went off
	}
	s.timer = nil
	now := s.clock.Now()
	for len(s.due) > 0 && s.due[0].at <= now {
		e := heap.Pop(&s.due).(*entry)
		e.lane.ready = append(e.lane.ready, e)
	}
	waiting := false
	for _, ln := range s.lanes {
		waiting = s.staff(ln, now) || waiting
	}
	if len(s.due) > 0 {
		s.setAlarm(s.due[0].at)
	}
	if waiting {
		s.setAlarm(now + slowAfter/4) // to see which calls have become slow
	}
}

// staff starts workers for what is ready, as far as the limits allow; it
// reports whether some of it must wait.
func (s *scheduler) staff(ln *lane, now time.Duration) (waiting bool) {
	if len(ln.ready) == 0 {
		return false
	}
	prompt := 0
	for w := range ln.workers {
		if now-w.since < slowAfter {
			prompt++
		}
	}
	for range min(len(ln.ready), promptCalls-prompt, maxInFlight-len(ln.workers)) {
		w := &worker{since: now}
		ln.workers[w] = struct{}{}
		e := ln.next()
		go s.work(ln, w, e)
	}
	return len(ln.ready) > 0
}

// next takes what became ready first.
func (ln *lane) next() *entry {
	e := ln.ready[0]
	ln.ready[0] = nil
	if ln.ready = ln.ready[1:]; len(ln.ready) == 0 {
		ln.ready = nil // let go of the array
	}
	return e
}

// work renews e and then whatever else is ready.
func (s *scheduler) work(ln *lane, w *worker, e *entry) {
	s.mu.Lock()
	for {
		if !e.cancelled {
			start := s.clock.Now()
			w.since = start
			var ctx context.Context
			ctx, e.stop = context.WithCancel(context.Background())
			s.mu.Unlock()
			err := e.lease.Extend(ctx)
			s.mu.Lock()
			e.stop()
			e.stop = nil
			s.again(e, start, err)
		}
		if len(ln.ready) == 0 {
			break
		}
		e = ln.next()
	}
	delete(ln.workers, w)
	s.mu.Unlock()
}

// again sets when e is due next; s.mu is held.
func (s *scheduler) again(e *entry, start time.Duration, err error) {
	switch {
	case e.cancelled:
		return
	case errors.Is(err, ErrNotHeld), errors.Is(err, ErrClosed):
		s.cancel(e)
		return
	case err == nil:
		e.failures = 0
		e.at = start + s.RenewalDelay(e.lease)
	default:
		pause := e.lease.interval >> max(0, 3-e.failures)
		e.failures++
		pause = min(pause, e.lease.Remaining()/4)
		pause -= rand.N(pause/4 + 1)
		e.at = s.clock.Now() + max(pause, e.lease.rules.duration/100)
	}
	heap.Push(&s.due, e)
	s.setAlarm(s.due[0].at)
}

// dueQueue is ordered by when entries are due.
type dueQueue []*entry

func (q dueQueue) Len() int           { return len(q) }
func (q dueQueue) Less(i, j int) bool { return q[i].at < q[j].at }
func (q dueQueue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].index, q[j].index = i, j
}

func (q *dueQueue) Push(x any) {
	e := x.(*entry)
	e.index = len(*q)
	*q = append(*q, e)
}

func (q *dueQueue) Pop() any {
	old := *q
	e := old[len(old)-1]
	old[len(old)-1] = nil
	*q = old[:len(old)-1]
	e.index = -1
	return e
}
