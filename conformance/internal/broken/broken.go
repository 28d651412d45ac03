// Package broken is a small store that is right, and can be made wrong in many
// ways, one at a time: what the conformance suite must catch.
//
// It is written apart from package memory, so that the suite is not measured by
// one reading of the contract alone.
package broken

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/leasehold/leasehold/backend"
)

// Options make stores that differ, and are right.
type Options struct {
	MinDuration time.Duration
	Granularity time.Duration
	Hidden      bool // renewals change no Revision
	NoWatch     bool // it must be polled
	NoList      bool
	NoSeals     bool
	NoMinToken  bool
	KeepsFloor  bool // Release vacates records with a token floor, and the floor is their own
	Slack       time.Duration
}

// World is one store; Open gives clients of it.
type World struct {
	opts   Options
	broken map[Defect]bool

	mu       sync.Mutex
	leases   map[string]*entry
	revision int
	token    uint64
	changed  chan struct{}             // closed and replaced by every change
	attempts map[string]backend.Record // for RemembersAttempts
	watched  map[string]bool           // for OneWatchOnly
}

type entry struct {
	rec   backend.Record // without Expired and Remaining; Holder "" is vacant
	end   time.Time
	floor uint64
}

// New returns a store with the defects given: none, and it is right.
func New(opts Options, defects ...Defect) *World {
	w := &World{
		opts: opts, broken: make(map[Defect]bool), leases: make(map[string]*entry), changed: make(chan struct{}), token: 7,
		attempts: make(map[string]backend.Record), watched: make(map[string]bool),
	}
	for _, d := range defects {
		w.broken[d] = true
	}
	return w
}

// Open returns another client.
func (w *World) Open() backend.Store {
	if w.broken[EachClientAlone] {
		w = New(w.opts)
	}
	c := &client{w: w, closed: make(chan struct{}), seen: make(map[string]backend.Record)}
	switch {
	case w.opts.NoWatch && w.opts.NoList:
		return c
	case w.opts.NoWatch:
		return struct {
			*client
			lister
		}{c, lister{c}}
	case w.opts.NoList:
		return struct {
			*client
			watcher
		}{c, watcher{c}}
	}
	return struct {
		*client
		watcher
		lister
	}{c, watcher{c}, lister{c}}
}

type client struct {
	w      *World
	once   sync.Once
	closed chan struct{}
	busy   atomic.Int32 // for OneCallAtATime

	mu   sync.Mutex
	seen map[string]backend.Record // for StaleReads
}

func (c *client) Traits() backend.Traits {
	o := c.w.opts
	name := "broken"
	if c.w.broken[NamelessTraits] {
		name = ""
	}
	return backend.Traits{Name: name, MinDuration: o.MinDuration, Granularity: o.Granularity, ExpirySlack: o.Slack, RenewalsVisible: !o.Hidden}
}

func (c *client) Close() error {
	first := false
	c.once.Do(func() {
		first = true
		close(c.closed)
		if c.w.broken[CloseEndsTenures] {
			c.w.mu.Lock()
			defer c.w.mu.Unlock()
			clear(c.w.leases)
			c.w.touch()
		}
		if c.w.broken[LeakOnClose] {
			go leak()
		}
	})
	if !first && c.w.broken[SecondCloseFails] {
		return errors.New("closed twice")
	}
	return nil
}

func leak() { time.Sleep(time.Hour) }

// ready checks what every call checks first.
func (c *client) ready(ctx context.Context, name string) error {
	select {
	case <-c.closed:
		if !c.w.broken[WorksAfterClose] {
			return fmt.Errorf("%w: the store was closed", backend.ErrInvalid)
		}
	default:
	}
	if c.w.broken[CancelIsDenied] && ctx.Err() != nil {
		return backend.ErrDenied
	}
	if c.w.broken[CancelPoisons] && ctx.Err() != nil {
		c.once.Do(func() { close(c.closed) })
	}
	if !c.w.broken[IgnoresContext] && ctx.Err() != nil {
		return ctx.Err()
	}
	if c.w.broken[OneCallAtATime] {
		defer c.busy.Add(-1)
		if c.busy.Add(1) > 1 {
			return errors.New("busy")
		}
		time.Sleep(50 * time.Microsecond)
	}
	if c.w.broken[TakesAnyName] {
		return nil
	}
	return backend.CheckName(name)
}

// key is where a name is kept.
func (w *World) key(name string) string {
	switch {
	case w.broken[FoldsCase]:
		return strings.ToLower(name)
	case w.broken[UnescapesNames]:
		return strings.ReplaceAll(name, "%2F", "/")
	case w.broken[CutsNames] && len(name) > 255:
		return name[:255]
	case w.broken[TrimsNames]:
		return strings.TrimSpace(name)
	}
	return name
}

// lookup returns the entry of a name, or nil. The lock is held.
func (w *World) lookup(name string) *entry {
	return w.leases[w.key(name)]
}

// view is what clients see of an entry.
func (w *World) view(e *entry, name string) backend.Record {
	rec := e.rec
	rec.Name = name
	if !w.broken[AliasesMetadata] {
		rec.Metadata = maps.Clone(rec.Metadata)
		if rec.Seal != nil {
			seal := *rec.Seal
			rec.Seal = &seal
		}
	}
	if rec.Holder == "" || rec.Seal != nil && !w.broken[SealsExpire] {
		return rec
	}
	left := time.Until(e.end)
	switch {
	case w.broken[ExpiresEarly]:
		left -= rec.Duration / 10
	case w.broken[ExpiresNever]:
		left = rec.Duration
	case w.broken[ExpiresLate]:
		left += 5 * time.Second
	}
	rec.Expired = left <= 0
	if rec.Expired && w.broken[ExpiryChangesRevision] {
		rec.Revision += "x"
	}
	rec.Remaining = max(0, left)
	if w.broken[RemainingTooSmall] {
		rec.Remaining -= rec.Remaining / 20
	}
	return rec
}

// touch makes watchers look. The lock is held.
func (w *World) touch() {
	close(w.changed)
	w.changed = make(chan struct{})
}

func (c *client) Get(ctx context.Context, name string) (backend.Record, error) {
	if err := c.ready(ctx, name); err != nil {
		return backend.Record{}, err
	}
	w := c.w
	if w.broken[StaleReads] {
		c.mu.Lock()
		defer c.mu.Unlock()
		if rec, ok := c.seen[name]; ok && !rec.Expired {
			delete(c.seen, name)
			return rec, nil
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	e := w.lookup(name)
	if e == nil && w.broken[AbsentIsVacant] {
		return backend.Record{Name: name}, nil
	}
	if e == nil {
		return backend.Record{}, fmt.Errorf("%w: %q", backend.ErrNotFound, name)
	}
	rec := w.view(e, name)
	if rec.Expired && w.broken[HidesExpired] {
		return backend.Record{}, fmt.Errorf("%w: %q", backend.ErrNotFound, name)
	}
	if w.broken[StaleReads] {
		c.seen[name] = rec
	}
	return rec, nil
}

func (c *client) Acquire(ctx context.Context, claim backend.Claim) (backend.Record, error) {
	w := c.w
	if err := c.ready(ctx, claim.Name); err != nil {
		return backend.Record{}, err
	}
	if claim.Seal != nil && w.opts.NoSeals || claim.MinToken != 0 && w.opts.NoMinToken {
		return backend.Record{}, backend.ErrUnsupported
	}
	if w.broken[RaisesDuration] {
		claim.Duration = max(claim.Duration, w.opts.MinDuration)
	}
	granted, err := backend.CheckClaim(claim, c.Traits())
	switch {
	case w.broken[TakesAnyClaim]:
		granted = max(granted, claim.Duration)
	case err != nil:
		return backend.Record{}, err
	}
	if w.broken[SmallLimits] && len(claim.Metadata) == 1 && len(fmt.Sprint(claim.Metadata)) > 4096 {
		return backend.Record{}, fmt.Errorf("%w: too much metadata", backend.ErrInvalid)
	}
	if w.broken[DoesNotRound] {
		granted = claim.Duration
	}
	began := time.Now()

	w.mu.Lock()
	defer w.mu.Unlock()
	e := w.lookup(claim.Name)
	var found backend.Record
	if e != nil {
		found = w.view(e, claim.Name)
	}
	found.Name = claim.Name
	sameAttempt := found.Attempt == claim.Attempt && (claim.Attempt != "" || w.broken[EmptyAttemptIsOne]) && found.Holder == claim.Holder
	if found.Live() && sameAttempt && !w.broken[RefusesSameAttempt] ||
		found.Expired && sameAttempt && w.broken[AttemptOutlivesExpiry] {
		if w.broken[AttemptDoesNotExtend] {
			return found, nil
		}
		e.end = began.Add(e.rec.Duration)
		w.renewed(e)
		return w.view(e, claim.Name), nil
	}
	if claim.Attempt != "" && found.Live() && w.broken[SameHolderIsGranted] && found.Holder == claim.Holder {
		found = backend.Record{Name: claim.Name}
	}
	if before, ok := w.attempts[claim.Attempt]; ok && w.broken[RemembersAttempts] {
		return before, nil
	}
	free := !found.Live()
	switch {
	case w.broken[SealIsForce] && claim.Seal != nil:
		free = true
	case w.broken[ExpiredStaysHeld] && found.Expired, w.broken[VacantIsHeld] && e != nil && found.Holder == "":
		free = found.Revision == claim.Over
	case claim.Over == "":
	case w.broken[OverIsForce]:
		free = true
	case w.broken[OverIsIgnored]:
	case w.broken[OverTakesExpired] && found.Expired:
	case found.Revision == "" && w.broken[OverTakesAbsent]:
	default:
		free = found.Revision == claim.Over
	}
	if !free {
		if w.broken[LosersLeaveRecords] && e == nil {
			w.leases[w.key(claim.Name)] = &entry{rec: backend.Record{Name: claim.Name, Holder: claim.Holder, Duration: granted}, end: began.Add(granted)}
		}
		if w.broken[LosersLeaveOthers] {
			other := claim.Name + ".waiting"
			w.leases[w.key(other)] = &entry{rec: backend.Record{Name: other, Holder: claim.Holder, Duration: granted}, end: began.Add(granted)}
		}
		if w.broken[RefusalIsEmpty] {
			return backend.Record{}, &backend.HeldError{Record: backend.Record{Name: claim.Name}}
		}
		return backend.Record{}, &backend.HeldError{Record: found}
	}
	if w.broken[NotAtomic] {
		w.mu.Unlock()
		time.Sleep(100 * time.Microsecond)
		w.mu.Lock()
		e = w.lookup(claim.Name)
	}
	return w.grant(e, claim, granted, began)
}

// grant writes a new tenure. The lock is held.
func (w *World) grant(e *entry, claim backend.Claim, granted time.Duration, began time.Time) (backend.Record, error) {
	next := &entry{end: began.Add(granted)}
	var before backend.Record
	if e != nil {
		if before = e.rec; !w.broken[ForgetsFloor] {
			next.floor = e.floor
		}
	}
	if !w.broken[ForgetsMinToken] {
		next.floor = max(next.floor, claim.MinToken)
	}
	w.token++
	token := w.token
	switch {
	case w.opts.KeepsFloor:
		token += next.floor
	case w.broken[TokenRestarts]:
		token = max(before.Token, next.floor) + 1
	case w.broken[TokenPerHolder] && before.Holder == claim.Holder:
		token = before.Token
	case w.broken[TokenFromClock]:
		token = uint64(time.Now().Unix())
	case w.broken[SealKeepsToken] && claim.Seal != nil:
		token = before.Token
	case w.broken[TokenTooLarge]:
		token += backend.MaxToken
	default:
		w.token = max(token, next.floor+1)
		token = w.token
	}
	if token > backend.MaxToken && !w.broken[TokenTooLarge] && !w.broken[TokensOverflow] {
		return backend.Record{}, fmt.Errorf("%w: there is no greater token", backend.ErrInvalid)
	}
	w.revision++
	now := time.Now()
	next.rec = backend.Record{
		Name: claim.Name, Holder: claim.Holder, Token: token, Attempt: claim.Attempt, Duration: granted,
		AcquiredAt: now, RenewedAt: now, Transitions: before.Transitions, Metadata: claim.Metadata, Revision: strconv.Itoa(w.revision),
	}
	if before.Holder != claim.Holder {
		next.rec.Transitions++
	}
	if w.broken[SealIsDropped] {
		claim.Seal = nil
	}
	if next.rec.Seal = claim.Seal; claim.Seal != nil && w.broken[SealsExpire] {
		next.end = began.Add(300 * time.Millisecond)
	}
	if !w.broken[AliasesMetadata] {
		next.rec.Metadata = maps.Clone(claim.Metadata)
		if claim.Seal != nil {
			seal := *claim.Seal
			next.rec.Seal = &seal
		}
	}
	if w.broken[MergesMetadata] {
		next.rec.Metadata = maps.Clone(before.Metadata)
		if next.rec.Metadata == nil {
			next.rec.Metadata = make(map[string]string)
		}
		maps.Copy(next.rec.Metadata, claim.Metadata)
	}
	w.leases[w.key(claim.Name)] = next
	w.attempts[claim.Attempt] = next.rec
	w.touch()
	if w.broken[OldTimers] && claim.Seal == nil {
		time.AfterFunc(granted, func() {
			w.mu.Lock()
			defer w.mu.Unlock()
			if e := w.lookup(claim.Name); e != nil && e.rec.Seal == nil {
				e.end = time.Now()
				w.touch()
			}
		})
	}
	return w.view(next, claim.Name), nil
}

// renewed notes that an entry was renewed. The lock is held.
func (w *World) renewed(e *entry) {
	if !w.broken[RenewalsAreNotStamped] {
		e.rec.RenewedAt = time.Now()
	}
	if !w.opts.Hidden && !w.broken[RenewalsAreHidden] {
		w.revision++
		e.rec.Revision = strconv.Itoa(w.revision)
	}
	if w.broken[RenewalsLookLikeChanges] {
		w.token++
		e.rec.Token = w.token
	}
	if !w.opts.Hidden {
		w.touch()
	}
}

func (w *World) lost(name string) error {
	if w.broken[ErrorsAreTwoThings] {
		return fmt.Errorf("%w: %w: %q", backend.ErrLost, backend.ErrNotFound, name)
	}
	return fmt.Errorf("%w: %q", backend.ErrLost, name)
}

// current reports whether a record's tenure is the current one. The lock is held.
func (w *World) current(e *entry, rec backend.Record) bool {
	if e == nil || e.rec.Holder == "" {
		return false
	}
	return e.rec.Holder == rec.Holder && (e.rec.Token == rec.Token || w.broken[IgnoresToken]) || w.broken[IgnoresHolder] && e.rec.Token == rec.Token
}

func (c *client) Renew(ctx context.Context, rec backend.Record) (backend.Record, error) {
	if err := c.ready(ctx, rec.Name); err != nil {
		return backend.Record{}, err
	}
	began := time.Now()
	w := c.w
	w.mu.Lock()
	defer w.mu.Unlock()
	e := w.lookup(rec.Name)
	if e == nil && w.broken[RenewRecreates] {
		e = &entry{rec: rec, end: began.Add(rec.Duration)}
		w.leases[w.key(rec.Name)] = e
	}
	if !w.current(e, rec) {
		return backend.Record{}, w.lost(rec.Name)
	}
	if w.view(e, rec.Name).Expired && !w.broken[RenewRevives] {
		return backend.Record{}, w.lost(rec.Name)
	}
	if w.broken[RenewNeedsRevision] && rec.Revision != e.rec.Revision {
		return backend.Record{}, w.lost(rec.Name)
	}
	if !w.broken[RenewExtendsNothing] {
		e.end = began.Add(e.rec.Duration)
	}
	w.renewed(e)
	if w.broken[RenewForgetsMetadata] {
		e.rec.Metadata = nil
	}
	return w.view(e, rec.Name), nil
}

func (c *client) Release(ctx context.Context, rec backend.Record) error {
	if err := c.ready(ctx, rec.Name); err != nil {
		return err
	}
	w := c.w
	w.mu.Lock()
	defer w.mu.Unlock()
	e := w.lookup(rec.Name)
	switch {
	case w.broken[ReleaseIsForce] && e != nil:
	case w.broken[SecondReleaseSucceeds] && e == nil:
		return nil
	case !w.current(e, rec):
		return w.lost(rec.Name)
	case rec.Expired && rec.Revision != e.rec.Revision && !w.broken[ReleaseExpiredBlindly]:
		return w.lost(rec.Name)
	case w.broken[CannotReleaseExpired] && w.view(e, rec.Name).Expired:
		return w.lost(rec.Name)
	}
	switch {
	case w.broken[ReleaseExpiredIsNothing] && w.view(e, rec.Name).Expired:
	case w.broken[ReleaseLeavesRecord]:
		e.end = time.Now()
	case w.opts.KeepsFloor && e.floor != 0:
		w.revision++
		e.rec = backend.Record{Name: rec.Name, Transitions: e.rec.Transitions, Revision: strconv.Itoa(w.revision)}
	default:
		delete(w.leases, w.key(rec.Name))
	}
	w.touch()
	return nil
}

type watcher struct{ c *client }

func (s watcher) Watch(ctx context.Context, name string) iter.Seq2[backend.Record, error] {
	return func(yield func(backend.Record, error) bool) {
		c, w := s.c, s.c.w
		if err := c.ready(ctx, name); err != nil {
			if ctx.Err() == nil || w.broken[WatchFailsOnCancel] {
				yield(backend.Record{}, err)
			}
			return
		}
		if w.broken[OneWatchOnly] {
			w.mu.Lock()
			second := w.watched[name]
			w.watched[name] = true
			w.mu.Unlock()
			if second {
				<-ctx.Done()
				return
			}
			defer func() {
				w.mu.Lock()
				defer w.mu.Unlock()
				w.watched[name] = false
			}()
		}
		var last backend.Record
		for n := 0; ; n++ {
			w.mu.Lock()
			changed := w.changed
			now := backend.Record{Name: name}
			if e := w.lookup(name); e != nil {
				now = w.view(e, name)
			}
			w.mu.Unlock()

			switch differs := now.Revision != last.Revision || now.Expired != last.Expired || now.Holder != last.Holder; {
			case n > 0 && !differs:
			case n > 0 && w.broken[WatchEndsWithRenewal] && now.Token == last.Token && now.Holder != "" && !now.Expired:
				return
			case n > 0 && now.Expired && w.broken[WatchMissesExpiry]:
			case n == 0 && w.broken[WatchSkipsPresent]:
			case n > 0 && w.broken[WatchMissesTakeover] && last.Holder != "" && now.Holder != "" && !now.Expired:
			case n > 0 && w.broken[WatchMissesRelease] && now.Holder == "":
			case !yield(now, nil):
				return
			}
			last = now
			if w.broken[WatchHasGap] {
				w.mu.Lock()
				changed = w.changed // what changed while the reader was busy is gone
				w.mu.Unlock()
			}
			var expiry <-chan time.Time
			if now.Live() && now.Remaining > 0 {
				expiry = time.After(now.Remaining)
			}
			select {
			case <-changed:
			case <-expiry:
			case <-ctx.Done():
				if w.broken[WatchFailsOnCancel] {
					yield(backend.Record{}, ctx.Err())
				}
				if !w.broken[WatchOutlivesContext] {
					return
				}
				<-c.closed
				return
			case <-c.closed:
				if !w.broken[WatchEndsSilently] {
					yield(backend.Record{}, fmt.Errorf("%w: the store was closed", backend.ErrInvalid))
				}
				return
			}
		}
	}
}

type lister struct{ c *client }

func (s lister) List(ctx context.Context, prefix string) iter.Seq2[backend.Record, error] {
	return func(yield func(backend.Record, error) bool) {
		c, w := s.c, s.c.w
		if err := c.ready(ctx, "x"); err != nil {
			if ctx.Err() == nil || !w.broken[ListIsCutShort] {
				yield(backend.Record{}, err)
			}
			return
		}
		var recs []backend.Record
		w.mu.Lock()
		for key, e := range w.leases {
			name := e.rec.Name
			if w.broken[ListsKeys] {
				name = strings.ReplaceAll(key, "%", "%25")
			}
			if strings.HasPrefix(name, prefix) || w.broken[ListFoldsCase] && strings.HasPrefix(strings.ToLower(name), strings.ToLower(prefix)) {
				recs = append(recs, w.view(e, name))
			}
		}
		w.mu.Unlock()
		for _, rec := range recs {
			if !yield(rec, nil) {
				return
			}
		}
	}
}
