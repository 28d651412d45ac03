package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/lease"
)

func newDoctor(o *options) *cobra.Command {
	var (
		name     string
		duration time.Duration
		strict   bool
	)
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Find out what is wrong with a store, or on the way to it",
		Long: `Look at the store, tell what is wrong and what to do about it: whether it can be
reached, what it finds about itself (permissions, setup, clocks), and how long
it takes, against the --duration of the leases that are to be kept there.

For that a lease of its own is acquired, renewed, read, watched and released.
Its name is leasehold-doctor, with something random behind it if another doctor
is at work; --name sets another, where only certain names are allowed. A lease
that somebody holds is not touched.

Exit codes:
  0   nothing is wrong; there may be notes and warnings
  1   a problem was found; with --strict, or a warning
  64  usage; 69 the store cannot be reached`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError("%s takes no arguments; --name sets the name of the lease to try with", cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			asJSON, err := o.json()
			if err != nil {
				return err
			}
			chosen := cmd.Flags().Changed("name")
			if !chosen {
				name = doctorName
			}
			_, errDuration := backend.CheckDuration(duration, backend.Traits{})
			if err := cmp.Or(backend.CheckName(name), errDuration); err != nil {
				return failure(err)
			}
			ctx, cancel := interruptible(cmd.Context())
			defer cancel()
			d := &doctor{options: o, name: name, chosen: chosen, duration: duration, strict: strict, out: cmd.OutOrStdout(), asJSON: asJSON}
			return failure(d.run(ctx))
		},
	}
	f := cmd.Flags()
	f.StringVar(&name, "name", "", "the `name` of the lease to try with (default leasehold-doctor)")
	f.DurationVar(&duration, "duration", lease.DefaultDuration, "how long the leases last that are to be kept in the store")
	f.BoolVar(&strict, "strict", false, "a warning counts as a problem")
	o.outputFlag(cmd)
	return cmd
}

// How long what may take: on a store that works the whole takes a second or two.
const (
	openTime    = 10 * time.Second
	examineTime = 30 * time.Second
	probeTime   = time.Minute     // begins no further calls after that
	freeTime    = 5 * time.Second // after the end, or ^C
	closeTime   = time.Second
)

// doctor is one leasehold doctor. It prints what it finds when it finds it.
type doctor struct {
	*options
	name     string
	chosen   bool // the name, by the user
	duration time.Duration
	strict   bool
	out      io.Writer
	asJSON   bool

	count [backend.Problem + 1]int
	err   error // of the output
}

func (d *doctor) run(ctx context.Context) error {
	began := time.Now()
	traits, code, err := d.diagnose(ctx)
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		return err
	case code == 0 && (d.count[backend.Problem] > 0 || d.strict && d.count[backend.Warning] > 0):
		code = exitFailed
	}
	d.summarize(traits, time.Since(began), code)
	switch {
	case d.err != nil:
		return d.err
	case code != 0:
		return exit(code)
	}
	return nil
}

// diagnose returns an error only for what the user got wrong. The code is 0 if
// the findings decide.
func (d *doctor) diagnose(ctx context.Context) (traits backend.Traits, code int, err error) {
	url, err := d.url()
	var store backend.Store
	if err == nil {
		d.add(backend.Finding{Check: "store", Detail: cmp.Or(publicURL(url), "a URL that cannot be parsed") + d.origin()})
		// Without the process check: it is the store itself that is looked at.
		store, err = bounded(ctx, openTime, func(ctx context.Context) (backend.Store, error) { return backend.Open(ctx, url) })
	}
	if err != nil {
		if ctx.Err() == nil {
			code = d.unopened(err)
		}
		return traits, code, nil
	}
	defer func() {
		_, _ = bounded(context.WithoutCancel(ctx), closeTime, func(context.Context) (struct{}, error) { return struct{}{}, store.Close() })
	}()
	traits = store.Traits()
	granted, err := backend.CheckDuration(d.duration, traits)
	if err != nil {
		return traits, 0, err
	}
	d.promises(traits, granted)
	d.examine(ctx, store)
	p := &probe{store: store, name: d.name, chosen: d.chosen, holder: string(lease.NewHolder()), duration: d.duration, add: d.add}
	p.run(ctx)
	if !p.answered {
		code = exitUnavailable
	}
	return store.Traits(), code, nil
}

// origin says who chose the store.
func (d *doctor) origin() string {
	switch {
	case d.store != "":
		return " (--store)"
	case os.Getenv(envStore) != "":
		return " (" + envStore + ")"
	}
	return " (the default)"
}

// unopened tells why there is no store, and returns the exit code, which is that
// of the other commands.
func (d *doctor) unopened(err error) (code int) {
	f := backend.Finding{Check: "opening", Level: backend.Problem, Detail: reason(err), Fix: fixUnanswered}
	code = exitUnavailable
	var system syscall.Errno
	var path *fs.PathError
	switch {
	case errors.Is(err, backend.ErrInvalid) && !errors.As(err, &system):
		code = exitUsage
		f.Fix = "correct what it names, or choose another store with --store or " + envStore
	case errors.Is(err, backend.ErrDenied):
		f.Fix = fixDenied
	case errors.As(err, &path):
		f.Fix = "see that the file or folder it names is there and can be used, or choose another store with --store or " + envStore
	case errors.Is(err, backend.ErrUnsupported), errors.As(err, new(*exitError)):
		f.Fix = "choose another store with --store or " + envStore
	}
	d.add(f)
	return code
}

const (
	fixUnanswered = "see that the server runs, that the address in the URL is right, and that nothing between here and there keeps it from answering"
	fixDenied     = "give what it names to the account that leasehold runs under"
)

// promises tells what the store says of itself.
func (d *doctor) promises(t backend.Traits, granted time.Duration) {
	f := backend.Finding{Check: "durations", Detail: fmt.Sprintf("from %v", t.MinDuration)}
	if t.Granularity > 1 {
		f.Detail += fmt.Sprintf(", in steps of %v", t.Granularity)
	}
	if granted != d.duration {
		f.Level = backend.Note
		f.Detail += fmt.Sprintf("; %v becomes %v", d.duration, granted)
	}
	d.add(f)

	f = backend.Finding{Check: "expiry", Detail: "seen by the store at once"}
	switch {
	case t.ExpirySlack >= backend.Forever:
		f.Detail = "not seen by the store"
	case t.ExpirySlack > 0:
		f.Detail = fmt.Sprintf("seen by the store up to %s late", readable(t.ExpirySlack))
	}
	switch {
	case t.ExpirySlack > 0 && t.RenewalsVisible:
		f.Detail += "; whoever waits sees that renewals have stopped"
	case t.ExpirySlack >= backend.Forever:
		f.Level = backend.Warning
		f.Detail += ", and renewals cannot be seen: nobody can tell that a holder has crashed"
		f.Fix = "after a crash, free the lease with leasehold release --force"
	}
	d.add(f)
}

// examine passes on what the store finds about itself.
func (d *doctor) examine(ctx context.Context, store backend.Store) {
	ctx, cancel := context.WithTimeoutCause(ctx, examineTime, errTimeout)
	defer cancel()
	found := make(chan backend.Finding)
	go func() {
		defer close(found)
		for f := range backend.Examine(ctx, store) {
			select {
			case found <- f:
			case <-ctx.Done():
				return
			}
		}
	}()
	for more := true; more; {
		var f backend.Finding
		select {
		case f, more = <-found:
			if more {
				d.add(f)
			}
		case <-ctx.Done():
			more = false
		}
	}
	if context.Cause(ctx) == errTimeout {
		d.add(backend.Finding{Check: "examination", Level: backend.Warning, Detail: fmt.Sprintf("the store has not ended it within %s", readable(examineTime)), Fix: fixUnanswered})
	}
}

// finding is a backend.Finding for programs.
type finding struct {
	Check  string `json:"check"`
	Level  string `json:"level"` // ok, note, warning, problem
	Detail string `json:"detail"`
	Fix    string `json:"fix,omitempty"`
}

func (d *doctor) add(f backend.Finding) {
	f.Level = min(max(f.Level, backend.Good), backend.Problem)
	d.count[f.Level]++
	var err error
	if d.asJSON {
		err = printJSON(d.out, finding{f.Check, f.Level.String(), f.Detail, f.Fix})
	} else {
		_, err = fmt.Fprintf(d.out, "%-7s  %-28s  %s\n", f.Level, line(f.Check), line(f.Detail))
		if f.Fix != "" && err == nil {
			_, err = fmt.Fprintf(d.out, "%9sfix: %s\n", "", line(f.Fix))
		}
	}
	d.err = cmp.Or(d.err, err)
}

// line is a text from anywhere as one line for a terminal.
func line(s string) string {
	return plain(strings.ReplaceAll(strings.TrimSpace(s), "\n", "; "))
}

// diagnosis is the last line for programs.
type diagnosis struct {
	Store     string `json:"store,omitempty"`
	OK        int    `json:"ok"`
	Notes     int    `json:"notes"`
	Warnings  int    `json:"warnings"`
	Problems  int    `json:"problems"`
	ElapsedMS int64  `json:"elapsed_ms"`
	ExitCode  int    `json:"exit_code"`
}

func (d *doctor) summarize(t backend.Traits, took time.Duration, code int) {
	n := d.count
	var err error
	if d.asJSON {
		err = printJSON(d.out, struct {
			Summary diagnosis `json:"summary"`
		}{diagnosis{t.Name, n[backend.Good], n[backend.Note], n[backend.Warning], n[backend.Problem], took.Milliseconds(), code}})
	} else {
		_, err = fmt.Fprintf(d.out, "%s: %s, %s, %s, in %s\n", strings.TrimSpace(t.Name+" store"),
			plural(n[backend.Problem], "problem"), plural(n[backend.Warning], "warning"), plural(n[backend.Note], "note"), readable(took))
	}
	d.err = cmp.Or(d.err, err)
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// bounded calls f, and leaves it behind if it heeds its context too late.
func bounded[T any](ctx context.Context, limit time.Duration, f func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("no answer within %s", readable(limit)))
	type answer struct {
		v   T
		err error
	}
	answers := make(chan answer, 1)
	go func() {
		defer cancel()
		v, err := f(ctx)
		answers <- answer{v, err}
	}()
	select {
	case a := <-answers:
		return a.v, a.err
	case <-ctx.Done():
	}
	select {
	case a := <-answers: // it knows better why
		return a.v, a.err
	case <-time.After(100 * time.Millisecond):
		var none T
		return none, context.Cause(ctx)
	}
}

// probe tries a store out, with one lease.
type probe struct {
	store    backend.Store
	name     string
	chosen   bool // by the user
	holder   string
	duration time.Duration // of the leases that are to be kept in the store
	add      func(backend.Finding)

	answered bool // the store has, if only by a refusal

	lasts   time.Duration  // what the lease was claimed for
	attempt string         // of the last claim
	mayHold bool           // a claim was sent, and has not certainly ended
	rec     backend.Record // the tenure; without a token if it is not known
	renewed time.Time      // before the last call that prolonged it
	existed bool           // there was a record, though nobody held it

	read, acquires, renewals, releases series
}

// series are the calls of one verb, up to one that failed.
type series struct {
	times []time.Duration
	err   error
}

const (
	probeRounds = 10              // renewals and reads
	roundsTime  = 5 * time.Second // fewer, on a slow store
	toldTime    = 5 * time.Second // that a watch has to tell of a change
	toldSlow    = 3 * time.Second
)

func (p *probe) run(whole context.Context) {
	ctx, cancel := context.WithTimeoutCause(whole, probeTime, errTimeout)
	defer cancel()
	p.lasts = max(min(p.duration, time.Minute), p.store.Traits().MinDuration)
	defer func() { p.free(context.WithoutCancel(whole)) }()
	if !p.look(ctx) {
		return
	}
	switch {
	case p.acquire(ctx):
		p.change(ctx)
	case errors.Is(p.acquires.err, backend.ErrDenied):
		p.begins(ctx) // the right to watch is another
	}
	p.judge(ctx, "acquire", &p.acquires)
	if p.mayHold && p.rec.Token != 0 {
		p.rounds(ctx)
		p.judge(ctx, "renew", &p.renewals)
	}
	p.judge(ctx, "read", &p.read)
	if p.mayHold && p.rec.Token != 0 && p.releases.err == nil {
		p.release(ctx)
	}
	p.judge(ctx, "release", &p.releases)
	if ctx.Err() != nil && whole.Err() == nil {
		p.add(backend.Finding{Check: "time", Level: backend.Warning, Detail: fmt.Sprintf("not everything could be tried within %s", readable(probeTime)), Fix: fixUnanswered})
	}
	if !p.mayHold && len(p.releases.times) > 0 && !p.existed {
		p.garbage(ctx)
	}
}

// patience is how long one call may take, so that a slow one is measured rather
// than given up.
func (p *probe) patience() time.Duration {
	return min(max(p.duration/4, 5*time.Second), 10*time.Second)
}

// call makes one call and notes how long it took.
func (p *probe) call(ctx context.Context, s *series, f func(context.Context) (backend.Record, error)) (backend.Record, time.Time, error) {
	if ctx.Err() != nil {
		return backend.Record{}, time.Time{}, context.Cause(ctx)
	}
	sent := time.Now()
	rec, err := bounded(ctx, p.patience(), f)
	if err == nil || backend.Definite(err) {
		p.answered = true
	}
	if err == nil || errors.Is(err, backend.ErrNotFound) {
		s.times = append(s.times, time.Since(sent))
	} else {
		s.err = err
	}
	return rec, sent, err
}

func (p *probe) get(ctx context.Context) (backend.Record, error) { return p.store.Get(ctx, p.name) }

// look finds out whether the name is free, and reports whether to go on.
func (p *probe) look(ctx context.Context) bool {
	rec, _, err := p.call(ctx, &p.read, p.get)
	switch {
	case err == nil && !rec.Vacant() && p.rename():
		return p.look(ctx)
	case err == nil && !rec.Vacant():
		p.occupied(rec)
		return false
	case err == nil, errors.Is(err, backend.ErrNotFound):
		p.existed = err == nil
		return true
	case errors.Is(err, backend.ErrDenied): // that may be all that is denied
		return true
	}
	p.judge(ctx, "read", &p.read)
	return false
}

// doctorName is always the same, so that a store which cannot delete does not fill
// up.
const doctorName = "leasehold-doctor"

// rename chooses a name that nobody uses, after the usual one was seen in use. It
// is false where the user has chosen the name, and the second time.
func (p *probe) rename() bool {
	if p.chosen {
		return false
	}
	p.chosen = true
	p.name = doctorName + "-" + strings.ToLower(rand.Text()[:8])
	return true
}

func (p *probe) occupied(rec backend.Record) {
	f := backend.Finding{Check: "name", Level: backend.Problem, Fix: "choose a name that nobody uses with --name"}
	switch state(rec) {
	case "moved":
		f.Detail = fmt.Sprintf("lease %q has moved to %s", p.name, plain(rec.Seal.To))
	case "expired":
		f.Detail = fmt.Sprintf("lease %q belongs to %s, whose time is over; it was not touched", p.name, plain(rec.Holder))
		f.Fix += ", or free it: " + p.releaseCommand()
	case "free":
		f.Detail = fmt.Sprintf("somebody else uses lease %q", p.name)
	default:
		f.Detail = fmt.Sprintf("lease %q is %s; it was not touched", p.name, held(rec))
	}
	p.add(f)
}

func (p *probe) releaseCommand() string { return "leasehold release " + strconv.Quote(p.name) }

// acquire claims the lease, and reports whether it holds it.
func (p *probe) acquire(ctx context.Context) bool {
	p.attempt = rand.Text()
	p.mayHold, p.rec = true, backend.Record{}
	rec, sent, err := p.call(ctx, &p.acquires, func(ctx context.Context) (backend.Record, error) {
		return p.store.Acquire(ctx, backend.Claim{
			Name:     p.name,
			Holder:   p.holder,
			Attempt:  p.attempt,
			Duration: p.lasts,
			Metadata: map[string]string{"leasehold": "tried by leasehold doctor"},
		})
	})
	var other *backend.HeldError
	switch {
	case errors.As(err, &other) && len(p.acquires.times) == 0 && p.rename():
		p.acquires.err = nil
		return p.acquire(ctx)
	case errors.As(err, &other):
		p.mayHold = false
		p.acquires.err = nil // it is told of here
		p.occupied(other.Record)
	case err == nil:
		p.rec, p.renewed = rec, sent
		return true
	case backend.Definite(err), sent.IsZero():
		p.mayHold = false
	}
	return false
}

func (p *probe) release(ctx context.Context) bool {
	_, _, err := p.call(ctx, &p.releases, func(ctx context.Context) (backend.Record, error) {
		return backend.Record{}, p.store.Release(ctx, p.rec)
	})
	if err == nil || errors.Is(err, backend.ErrLost) {
		p.mayHold = false
	}
	return err == nil
}

// mine reports whether rec is of the last claim.
func (p *probe) mine(rec backend.Record) bool {
	return rec.Holder == p.holder && rec.Attempt == p.attempt
}

// change releases the lease and acquires it anew, which a watch must tell of and
// for which the token must rise.
func (p *probe) change(ctx context.Context) {
	news, stop := p.watch(ctx)
	defer stop()
	// What is waited for while the lease is held must leave time to release it.
	begins, ok := p.first(ctx, news, min(toldTime, p.lasts/2))
	before := p.rec.Token
	released := p.release(ctx)
	switch {
	case ok && released:
		p.told(ctx, news, begins)
	case ok:
		p.begun(begins)
	}
	if !released || !p.acquire(ctx) {
		return
	}
	f := backend.Finding{Check: "tokens", Detail: fmt.Sprintf("rise: %d, then %d", before, p.rec.Token)}
	if p.rec.Token <= before {
		f.Level = backend.Problem
		f.Detail = fmt.Sprintf("do not rise: %d, then %d; a resource that checks them would refuse the rightful holder, or let a stale one in", before, p.rec.Token)
		f.Fix = "see whether the data of the store was reset or restored from a backup, or whether several servers answer that do not agree; until then do not rely on fencing"
	}
	p.add(f)
}

// begins tries only whether a watch can be begun.
func (p *probe) begins(ctx context.Context) {
	news, stop := p.watch(ctx)
	defer stop()
	if took, ok := p.first(ctx, news, toldTime); ok {
		p.begun(took)
	}
}

func (p *probe) begun(took time.Duration) {
	p.add(backend.Finding{Check: "watch", Level: backend.Note, Detail: fmt.Sprintf("begun in %s; whether it tells of changes could not be tried", brief(took))})
}

// update is what a watch has told.
type update struct {
	rec backend.Record
	err error
}

// watch follows the lease until stop is called.
func (p *probe) watch(ctx context.Context) (news <-chan update, stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	ch := make(chan update)
	go func() {
		defer close(ch)
		for rec, err := range backend.Watch(ctx, p.store, p.name) {
			select {
			case ch <- update{rec, err}:
			case <-ctx.Done():
				return
			}
		}
	}()
	return ch, cancel
}

// next waits until a watch tells of a record that want accepts.
func next(ctx context.Context, news <-chan update, limit time.Duration, want func(backend.Record) bool) error {
	over := time.NewTimer(limit)
	defer over.Stop()
	for {
		select {
		case u, more := <-news:
			switch {
			case !more:
				return cause(ctx, errors.New("the watch has ended by itself"))
			case u.err != nil:
				return cause(ctx, u.err)
			case want(u.rec):
				return nil
			}
		case <-over.C:
			return errSilent
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

var errSilent = errors.New("the watch tells nothing")

// first waits for what a watch tells at once, and tells if that does not come.
func (p *probe) first(ctx context.Context, news <-chan update, limit time.Duration) (took time.Duration, ok bool) {
	began := time.Now()
	err := next(ctx, news, limit, func(backend.Record) bool { return true })
	if err != nil {
		p.untold(ctx, err, fmt.Sprintf("no state of the lease within %s", readable(limit)))
	}
	return time.Since(began), err == nil
}

// told waits for the watch to tell that the lease is free.
func (p *probe) told(ctx context.Context, news <-chan update, begins time.Duration) {
	changed := time.Now()
	err := next(ctx, news, toldTime, func(rec backend.Record) bool { return !p.mine(rec) })
	took := time.Since(changed)
	if err != nil {
		p.untold(ctx, err, fmt.Sprintf("it was not told within %s that the lease is free", readable(toldTime)))
		return
	}
	f := backend.Finding{Check: "watch", Detail: fmt.Sprintf("begun in %s; a change is told %s", brief(begins), after(took))}
	if took > toldSlow {
		f.Level = backend.Warning
		f.Fix = "whoever waits for a lease gets it that much later: look for what holds back streams between here and the server"
	}
	if _, ok := p.store.(backend.Watcher); !ok && f.Level < backend.Note {
		f.Level = backend.Note
		f.Detail += fmt.Sprintf("; the store tells nothing by itself, whoever waits looks every %s", readable(backend.DefaultPollInterval))
	}
	p.add(f)
}

// untold tells of a watch that failed.
func (p *probe) untold(ctx context.Context, err error, silence string) {
	if ctx.Err() != nil {
		return
	}
	f := p.failed(err)
	f.Check = "watch"
	if err == errSilent {
		f.Detail = silence + ": whoever waits for a lease learns late that it is free"
		f.Fix = "look for a proxy or a firewall between here and the server that holds back, or cuts off, long answers"
	}
	p.add(f)
}

// errStale: linearizable reads are part of the contract.
var errStale = errors.New("a read does not show what was written before it")

// rounds renews and reads in turns, so that the lease stays held meanwhile.
func (p *probe) rounds(ctx context.Context) {
	began := time.Now()
	for i := 0; i < probeRounds && time.Since(began) < roundsTime && ctx.Err() == nil; i++ {
		if p.renewals.err == nil {
			rec, sent, err := p.call(ctx, &p.renewals, func(ctx context.Context) (backend.Record, error) { return p.store.Renew(ctx, p.rec) })
			switch {
			case err == nil:
				p.rec, p.renewed = rec, sent
			case errors.Is(err, backend.ErrLost):
				return
			}
		}
		if p.read.err == nil {
			rec, _, err := p.call(ctx, &p.read, p.get)
			if (err == nil || errors.Is(err, backend.ErrNotFound)) && !p.mine(rec) {
				p.read.err = errStale
			}
		}
	}
}

// judge tells how the calls of a verb went.
func (p *probe) judge(ctx context.Context, verb string, s *series) {
	switch {
	case s.err != nil && ctx.Err() != nil && !backend.Definite(s.err), s.err == nil && len(s.times) == 0:
		return // it was cut off, or not tried
	case s.err != nil:
		f := p.failed(s.err)
		f.Check = verb
		if n := len(s.times); n > 0 {
			f.Detail += fmt.Sprintf(" (after %s without an error)", plural(n, "call"))
		}
		p.add(f)
		return
	}
	times := slices.Sorted(slices.Values(s.times))
	slowest := times[len(times)-1]
	f := backend.Finding{Check: verb, Detail: fmt.Sprintf("median %s, slowest %s of %d", brief(times[(len(times)-1)/2]), brief(slowest), len(times))}
	// A renewal is due after a third of the duration, and each call is given up
	// after a quarter.
	switch {
	case slowest > p.duration/4:
		f.Level = backend.Problem
		f.Detail += fmt.Sprintf(": leases of %s, whose calls are given up after %s, would be lost", readable(p.duration), readable(p.duration/4))
	case slowest > p.duration/10:
		f.Level = backend.Warning
		f.Detail += fmt.Sprintf(": for leases of %s that leaves little room for a second try", readable(p.duration))
	}
	if f.Level > backend.Good {
		f.Fix = fmt.Sprintf("use a --duration of %s or more, or find out what is slow: the server, or the network", readable(longer(slowest)))
	}
	p.add(f)
}

// longer is a duration for which a call that takes so long is not slow.
func longer(call time.Duration) time.Duration {
	step := 100 * time.Millisecond
	if call > step {
		step = time.Second
	}
	return (10*call + step - 1) / step * step
}

// failed says what an error means, and what to do.
func (p *probe) failed(err error) backend.Finding {
	f := backend.Finding{Level: backend.Problem, Detail: reason(err), Fix: fixUnanswered}
	var corrupt *backend.CorruptError
	switch {
	case errors.Is(err, backend.ErrDenied):
		f.Fix = fixDenied + "; where only certain names are allowed, choose one of them with --name"
	case errors.Is(err, errStale):
		f.Fix = "see whether reads are answered by a replica or a cache: use the address of the primary"
	case errors.Is(err, backend.ErrLost) && time.Since(p.renewed) >= p.lasts:
		f.Fix = fmt.Sprintf("the calls take longer than the lease lasts: use a --duration longer than %s, or find out what is slow", readable(p.lasts))
	case errors.Is(err, backend.ErrLost), errors.Is(err, backend.ErrHeld):
		f.Fix = "find out who else writes under this name, or whether the store loses what was written"
	case errors.As(err, &corrupt):
		f.Fix = fmt.Sprintf("look at %s, or choose another name with --name", plain(corrupt.Where))
	case errors.Is(err, backend.ErrInvalid):
		f.Fix = "correct what it names: the URL, --name or --duration"
	case errors.Is(err, backend.ErrUnsupported):
		f.Fix = "choose another store, or another version of its server"
	}
	return f
}

// free gives the lease back if that was not done yet, whatever ended the rest.
func (p *probe) free(ctx context.Context) {
	if !p.mayHold {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, freeTime)
	defer cancel()
	rec, err := p.rec, error(nil)
	if rec.Token == 0 { // whether the claim was granted is not known
		rec, err = bounded(ctx, freeTime, p.get)
		switch {
		case errors.Is(err, backend.ErrNotFound), err == nil && !p.mine(rec):
			p.add(backend.Finding{Check: "leftover", Level: backend.Note, Detail: fmt.Sprintf("lease %q was asked for without an answer; it is not held now, but the claim may still arrive, and then ends by itself after %s", p.name, readable(p.lasts))})
			return
		}
	}
	if err == nil {
		_, err = bounded(ctx, freeTime, func(ctx context.Context) (struct{}, error) { return struct{}{}, p.store.Release(ctx, rec) })
	}
	if err == nil || errors.Is(err, backend.ErrLost) {
		p.mayHold = false
		return
	}
	p.add(backend.Finding{
		Check:  "leftover",
		Level:  backend.Warning,
		Detail: fmt.Sprintf("lease %q could not be released (%s)", p.name, reason(err)),
		Fix:    fmt.Sprintf("it ends by itself within %s; then remove it: %s", readable(p.lasts), p.releaseCommand()),
	})
}

// garbage tells if the store has kept a record of a name that is not used again.
func (p *probe) garbage(ctx context.Context) {
	rec, err := bounded(ctx, p.patience(), p.get)
	if err == nil && rec.Vacant() {
		p.add(backend.Finding{
			Check:  "leftover",
			Level:  backend.Note,
			Detail: fmt.Sprintf("the record of lease %q stays, without a holder: it may not be, or is not, deleted", p.name),
			Fix:    "delete it by hand, and use one --name each time",
		})
	}
}

// after says when, on the scale on which people wait.
func after(d time.Duration) string {
	if d < time.Millisecond {
		return "at once"
	}
	return "after " + brief(d)
}

// brief is how long a call took.
func brief(d time.Duration) string {
	if d < 100*time.Millisecond {
		return d.Round(10 * time.Microsecond).String()
	}
	return readable(d)
}
