package conformance

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/internal/wait"
)

// Env is what a case works with: clients of the store under test, and names of
// its own in it.
type Env struct {
	ctx      context.Context
	cancel   context.CancelCauseFunc
	cfg      *config
	name     string // of the case
	prefix   string // of every name of this case
	traits   backend.Traits
	duration time.Duration
	label    string        // of the goroutines of this try
	scale    time.Duration // how much longer than configured, after a try that was late
	trace    *trace
	pkg      string // the store's

	mu      sync.Mutex
	clients []backend.Store // closed after the case
	names   []string        // freed after the case
	atEnd   []func()        // called after the case, last first
}

// Context ends when the case must.
func (e *Env) Context() context.Context { return e.ctx }

// Store returns the case's first client.
func (e *Env) Store() backend.Store {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.clients[0]
}

// Open returns another client of the same store. It is closed after the case.
func (e *Env) Open() backend.Store {
	s, err := e.cfg.open()
	if err != nil {
		e.Fatalf("another client of the store could not be opened: %v", err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.pkg = packageOf(s)
	s = e.trace.watch(fmt.Sprintf("client %d", len(e.clients)+1), s)
	e.clients = append(e.clients, s)
	return s
}

// Name returns a name that no other case uses, and that is freed after the case.
func (e *Env) Name(suffix string) string {
	name := e.prefix + suffix
	e.mu.Lock()
	defer e.mu.Unlock()
	if !slices.Contains(e.names, name) {
		e.names = append(e.names, name)
	}
	return name
}

// Duration is how long a tenure lasts that the case lets run out: as the store
// grants it.
func (e *Env) Duration() time.Duration { return e.duration }

// Logf reports what is worth knowing though it is not a failure.
func (e *Env) Logf(format string, args ...any) { e.cfg.logf(format, args...) }

// Fatalf fails the case and ends it.
func (e *Env) Fatalf(format string, args ...any) {
	panic(failure{what: fmt.Sprintf(format, args...), at: position()})
}

// Skipf ends the case: it cannot be run against this store.
func (e *Env) Skipf(format string, args ...any) { panic(skipped(fmt.Sprintf(format, args...))) }

// latef fails the case because something came later than its upper bound, which
// proves nothing if this process was not scheduled meanwhile.
func (e *Env) latef(format string, args ...any) {
	panic(failure{what: fmt.Sprintf(format, args...), at: position(), late: true})
}

// failure and skipped are how the methods of Env end a case.
type failure struct {
	what string
	at   string
	late bool
}

func (f failure) Error() string { return f.what }

type skipped string

func (s skipped) Error() string { return string(s) }

// attempt runs f and returns how it ended: nil, a failure or skipped.
func attempt(f func()) (outcome error) {
	defer func() {
		switch r := recover().(type) {
		case nil:
		case failure:
			outcome = r
		case skipped:
			outcome = r
		default:
			outcome = failure{what: fmt.Sprintf("panic: %v\n%s", r, stack()), at: "panic"}
		}
	}()
	f()
	return nil
}

// position returns the line of the case that is being run: the frame beneath
// attempt, or beneath one of the helpers that call back.
func position() string {
	pc := make([]uintptr, 64)
	frames := runtime.CallersFrames(pc[:runtime.Callers(2, pc)])
	for {
		f, more := frames.Next()
		if file := f.File[strings.LastIndexByte(f.File, '/')+1:]; strings.HasPrefix(file, "cases_") || !strings.Contains(f.Function, "leasehold/conformance.") {
			return fmt.Sprintf("%s:%d", file, f.Line)
		}
		if !more {
			return "?"
		}
	}
}

func stack() []byte {
	buf := make([]byte, 16<<10)
	return buf[:runtime.Stack(buf, false)]
}

// together runs f(0) … f(n-1) at once, and fails as the first of them that did,
// which stops the others.
func (e *Env) together(n int, f func(i int)) {
	var wg sync.WaitGroup
	var once sync.Once
	var first error
	start := make(chan struct{})
	for i := range n {
		wg.Go(func() {
			<-start
			if outcome := attempt(func() { f(i) }); outcome != nil {
				once.Do(func() {
					first = outcome
					e.cancel(outcome)
				})
			}
		})
	}
	close(start)
	wg.Wait()
	if first != nil {
		panic(first)
	}
}

// within waits until cond holds, and fails if it does not in time.
func (e *Env) within(d time.Duration, what string, cond func() bool) {
	deadline := time.Now().Add(d)
	for pause := time.Millisecond; ; pause = min(2*pause, 20*time.Millisecond) {
		if cond() {
			return
		}
		if time.Now().After(deadline) {
			e.latef("%s: not within %v", what, d)
		}
		e.sleep(pause)
	}
}

// eventually is within for what should happen at once.
func (e *Env) eventually(what string, cond func() bool) { e.within(e.cfg.patience, what, cond) }

// sleep passes time that must pass, unless the case ends.
func (e *Env) sleep(d time.Duration) {
	if !wait.For(e.ctx, d) {
		e.latef("the case was stopped: %v", context.Cause(e.ctx))
	}
}

func (e *Env) sleepUntil(t time.Time) { e.sleep(time.Until(t)) }

// long is a duration that no case sees the end of.
func (e *Env) long() time.Duration {
	d, err := backend.CheckDuration(max(10*time.Minute, e.traits.MinDuration), e.traits)
	if err != nil {
		e.Fatalf("the store's Traits allow no duration of ten minutes: %v", err)
	}
	return d
}

// needsExpiry skips the case where waiting for the store to call a tenure
// expired would take too long.
func (e *Env) needsExpiry() {
	if !e.seesExpiry() {
		e.Skipf("the store may call a tenure expired up to %v late, and this run waits %v (WithMaxWait)", e.traits.ExpirySlack, e.cfg.maxWait)
	}
}

func (e *Env) seesExpiry() bool { return e.traits.ExpirySlack <= e.cfg.maxWait }

// needs skips the case where the store is declared to lack a feature.
func (e *Env) needs(f Feature) {
	if e.cfg.lacks(f) {
		e.Skipf("the store is declared to lack %s", f)
	}
}

// running returns how many goroutines of this case are in the code of a package.
func (e *Env) running(pkg string) int { return count(goroutines(e.cfg.run, e.label), pkg) }

// defers calls f after the case, before the clients are closed.
func (e *Env) defers(f func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.atEnd = append(e.atEnd, f)
}

// finish ends what the case began, frees its names and closes its clients.
func (e *Env) finish() {
	for {
		e.mu.Lock()
		if len(e.atEnd) == 0 {
			e.mu.Unlock()
			break
		}
		f := e.atEnd[len(e.atEnd)-1]
		e.atEnd = e.atEnd[:len(e.atEnd)-1]
		e.mu.Unlock()
		f()
	}
	e.sweep()
	for _, s := range e.clients {
		if err := s.Close(); err != nil {
			e.Logf("a client could not be closed: %v", err)
		}
	}
}

// sweep frees the names of the case, by force where needed: somebody runs this
// against a live server.
func (e *Env) sweep() {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(e.ctx), 2*e.cfg.patience)
	defer cancel()
	if len(e.clients) == 0 {
		return
	}
	s := e.clients[0]
	names := slices.Clone(e.names)
	for rec, err := range backend.List(ctx, s, e.prefix) {
		if err == nil || errors.Is(err, backend.ErrCorrupt) {
			names = append(names, rec.Name)
		}
	}
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		if backend.CheckName(name) != nil || !strings.HasPrefix(name, e.prefix) {
			continue
		}
		if err := free(ctx, s, name); err != nil {
			e.Logf("left behind: lease %q could not be freed: %v", name, err)
		}
	}
}

// free ends whatever tenure name has.
func free(ctx context.Context, s backend.Store, name string) (err error) {
	for range 5 {
		var rec backend.Record
		var corrupt *backend.CorruptError
		switch rec, err = s.Get(ctx, name); {
		case errors.Is(err, backend.ErrNotFound), err == nil && rec.Vacant():
			return nil
		case errors.As(err, &corrupt):
			rec.Revision = corrupt.Revision
		case err != nil:
			return err
		case rec.Seal == nil:
			if err = s.Release(ctx, rec); err == nil {
				return nil
			}
		}
		rec, err = s.Acquire(ctx, backend.Claim{
			Name: name, Holder: "conformance-cleanup", Attempt: rand.Text(),
			Duration: max(s.Traits().MinDuration, time.Second), Over: rec.Revision,
		})
		if err == nil {
			if err = s.Release(ctx, rec); err == nil {
				return nil
			}
		}
	}
	return err
}

func random(n int) string { return strings.ToLower(rand.Text()[:n]) }
