package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/backend/memory"
	"github.com/leasehold/leasehold/lease"
)

// patient is a store whose illness a test chooses. Without any it is the memory
// store.
type patient struct {
	*memory.Store
	delay    map[string]time.Duration // by verb
	fail     map[string]error         // likewise: nothing is done
	watch    func(seq iter.Seq2[backend.Record, error]) iter.Seq2[backend.Record, error]
	findings iter.Seq[backend.Finding]
	before   func(verb string) // called first
	after    func(ctx context.Context, verb string) error
	get      func(backend.Record, error) (backend.Record, error)
	token    uint64 // granted each time, if not 0
	real     uint64 // what was granted instead

	mu    sync.Mutex
	calls map[string]int
}

func newPatient() *patient {
	return &patient{Store: memory.New(), delay: map[string]time.Duration{}, fail: map[string]error{}, calls: map[string]int{}}
}

// Close leaves the store open, for the test to look at.
func (p *patient) Close() error { return nil }

// called is how often the verb was, so far.
func (p *patient) called(verb string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.calls[verb]
}

func (p *patient) enter(ctx context.Context, verb string) error {
	p.mu.Lock()
	p.calls[verb]++
	p.mu.Unlock()
	if p.before != nil {
		p.before(verb)
	}
	select {
	case <-time.After(p.delay[verb]):
	case <-ctx.Done():
		return ctx.Err()
	}
	return p.fail[verb]
}

func (p *patient) leave(ctx context.Context, verb string) error {
	if p.after == nil {
		return nil
	}
	return p.after(ctx, verb)
}

func (p *patient) Get(ctx context.Context, name string) (backend.Record, error) {
	if err := p.enter(ctx, "read"); err != nil {
		return backend.Record{}, err
	}
	rec, err := p.Store.Get(ctx, name)
	if p.get != nil {
		return p.get(rec, err)
	}
	return rec, err
}

func (p *patient) Acquire(ctx context.Context, claim backend.Claim) (backend.Record, error) {
	if err := p.enter(ctx, "acquire"); err != nil {
		return backend.Record{}, err
	}
	rec, err := p.Store.Acquire(ctx, claim)
	if err == nil {
		err = p.leave(ctx, "acquire")
	}
	if p.token != 0 {
		p.real, rec.Token = rec.Token, p.token
	}
	return rec, err
}

func (p *patient) Renew(ctx context.Context, rec backend.Record) (backend.Record, error) {
	if err := p.enter(ctx, "renew"); err != nil {
		return backend.Record{}, err
	}
	if p.token != 0 {
		rec.Token = p.real
	}
	rec, err := p.Store.Renew(ctx, rec)
	if p.token != 0 {
		rec.Token = p.token
	}
	return rec, err
}

func (p *patient) Release(ctx context.Context, rec backend.Record) error {
	if err := p.enter(ctx, "release"); err != nil {
		return err
	}
	if p.token != 0 {
		rec.Token = p.real
	}
	return p.Store.Release(ctx, rec)
}

func (p *patient) Watch(ctx context.Context, name string) iter.Seq2[backend.Record, error] {
	seq := p.Store.Watch(ctx, name)
	if p.watch != nil {
		seq = p.watch(seq)
	}
	return seq
}

func (p *patient) Examine(context.Context) iter.Seq[backend.Finding] {
	if p.findings == nil {
		return func(func(backend.Finding) bool) {}
	}
	return p.findings
}

// sick opens the store of the test that runs.
var sick func() (backend.Store, error)

func init() {
	backend.Register("sick", func(context.Context, *url.URL) (backend.Store, error) { return sick() })
}

const probeName = "leasehold-doctor-test"

// visit has the doctor look at a store. It returns what was found, by check, and
// the exit code.
func visit(t *testing.T, ctx context.Context, store backend.Store, change ...func(*doctor)) (found map[string]finding, code int) {
	t.Helper()
	sick = func() (backend.Store, error) { return store, nil }
	var out bytes.Buffer
	d := &doctor{options: &options{store: "sick:"}, name: probeName, chosen: true, duration: lease.DefaultDuration, out: &out, asJSON: true}
	for _, f := range change {
		f(d)
	}
	began := time.Now()
	err := d.run(ctx)
	if took := time.Since(began); took > 3*time.Minute {
		t.Errorf("it took %v", took)
	}
	var e *exitError
	if errors.As(failure(err), &e) {
		code = e.code
	} else if err != nil {
		t.Errorf("run: %v", err)
	}
	return findingsOf(t, &out), code
}

// TestTwoDoctors: one that finds the usual name in use takes another.
func TestTwoDoctors(t *testing.T) {
	store := memory.New()
	theirs, err := store.Acquire(t.Context(), backend.Claim{Name: doctorName, Holder: "another doctor", Duration: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	found, code := visit(t, t.Context(), store.Client(), func(d *doctor) { d.name, d.chosen = doctorName, false })
	if code != 0 || found["tokens"].Level != "ok" {
		t.Errorf("exit code %d, found %v", code, found)
	}
	if rec, err := store.Get(t.Context(), doctorName); err != nil || !rec.SameTenure(theirs) || rec.Revision != theirs.Revision {
		t.Errorf("the other doctor's lease is now %+v, %v", rec, err)
	}
}

func findingsOf(t *testing.T, out *bytes.Buffer) map[string]finding {
	t.Helper()
	found := make(map[string]finding)
	for lines := bufio.NewScanner(out); lines.Scan(); {
		var f finding
		if err := json.Unmarshal(lines.Bytes(), &f); err != nil {
			t.Errorf("%s: %v", lines.Bytes(), err)
		}
		if f.Check == "" {
			continue // the summary
		}
		if was, twice := found[f.Check]; twice {
			t.Errorf("two findings about %s:\n%+v\n%+v", f.Check, was, f)
		}
		found[f.Check] = f
	}
	return found
}

// expect checks the level of each finding that is not ok, and some of its text.
func expect(t *testing.T, found map[string]finding, want map[string][]string) {
	t.Helper()
	for check, f := range found {
		if _, expected := want[check]; !expected && f.Level != "ok" {
			t.Errorf("found %+v", f)
		}
	}
	for check, texts := range want {
		f, ok := found[check]
		if !ok {
			t.Errorf("nothing was found about %s: %v", check, found)
			continue
		}
		if f.Level != texts[0] {
			t.Errorf("the level is not %s: %+v", texts[0], f)
		}
		for _, text := range texts[1:] {
			if !strings.Contains(f.Detail+"\n"+f.Fix, text) {
				t.Errorf("it does not say %q: %+v", text, f)
			}
		}
	}
}

// expectFree checks that the lease of the doctor was left to nobody.
func expectFree(t *testing.T, p *patient) {
	t.Helper()
	if rec, err := p.Store.Get(context.Background(), probeName); !errors.Is(err, backend.ErrNotFound) {
		t.Errorf("the doctor has left %+v, %v", rec, err)
	}
}

func wantCode(t *testing.T, got, want int) {
	t.Helper()
	if got != want {
		t.Errorf("the exit code is %d, want %d", got, want)
	}
}

func TestDoctorFindsNothingWrong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPatient()
		found, code := visit(t, t.Context(), p, func(d *doctor) { d.strict = true })
		wantCode(t, code, 0)
		expect(t, found, nil)
		for _, check := range []string{"store", "durations", "expiry", "watch", "tokens", "acquire", "renew", "read", "release"} {
			if _, ok := found[check]; !ok {
				t.Errorf("nothing was found about %s", check)
			}
		}
		if p.called("renew") != probeRounds || p.called("release") != 2 {
			t.Errorf("%d renewals, %d releases", p.called("renew"), p.called("release"))
		}
		expectFree(t, p)
	})
}

func TestDoctorMeasuresEachVerb(t *testing.T) {
	for _, verb := range []string{"read", "acquire", "renew", "release"} {
		for _, tt := range []struct {
			delay time.Duration
			want  []string
		}{
			{1400 * time.Millisecond, []string{"ok", "median 1.4s, slowest 1.4s"}},
			{1600 * time.Millisecond, []string{"warning", "leases of 15s", "--duration of 16s or more"}},
			{3700 * time.Millisecond, []string{"warning"}},
			{4 * time.Second, []string{"problem", "given up after 3.8s", "--duration of 40s or more"}},
			{time.Minute, []string{"problem", "no answer within 5s"}},
		} {
			synctest.Test(t, func(t *testing.T) {
				p := newPatient()
				p.before = func(v string) { // heeds no context
					if v == verb {
						time.Sleep(tt.delay)
					}
				}
				found, code := visit(t, t.Context(), p)
				want := map[string][]string{verb: tt.want}
				switch {
				case tt.delay == time.Minute && verb == "acquire":
					want["leftover"] = []string{"note", "may still arrive"}
				case tt.delay == time.Minute && verb == "release":
					want["leftover"] = []string{"warning", "leasehold release"}
					want["watch"] = []string{"note"}
				}
				expect(t, found, want)
				switch {
				case tt.delay == time.Minute && verb == "read":
					wantCode(t, code, exitUnavailable)
				case tt.want[0] == "problem":
					wantCode(t, code, exitFailed)
				default:
					wantCode(t, code, 0)
				}
				time.Sleep(2 * time.Minute) // for what was left behind
			})
		}
	}
}

func TestDoctorTriesLessOnASlowStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPatient()
		for _, verb := range []string{"read", "acquire", "renew", "release"} {
			p.delay[verb] = 4900 * time.Millisecond
		}
		began := time.Now()
		found, _ := visit(t, t.Context(), p)
		if took := time.Since(began); took > probeTime {
			t.Errorf("it took %v", took)
		}
		slow := []string{"problem", "--duration of 49s"}
		expect(t, found, map[string][]string{"read": slow, "acquire": slow, "renew": slow, "release": slow})
		expectFree(t, p)
	})
}

func TestDoctorComparesWithTheDuration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPatient()
		p.delay["renew"] = 40 * time.Millisecond
		found, code := visit(t, t.Context(), p, func(d *doctor) { d.duration = 150 * time.Millisecond })
		wantCode(t, code, exitFailed)
		expect(t, found, map[string][]string{"renew": {"problem", "leases of 150ms", "--duration of 400ms or more"}})
		expectFree(t, p)

		p.delay["renew"] = 200 * time.Millisecond // it ends meanwhile
		found, code = visit(t, t.Context(), p, func(d *doctor) { d.duration = 150 * time.Millisecond })
		wantCode(t, code, exitFailed)
		expect(t, found, map[string][]string{"renew": {"problem", "--duration longer than 150ms"}})
	})
}

func TestDoctorAsksForWhatIsDenied(t *testing.T) {
	denied := fmt.Errorf("%w: grant the verb to the role", backend.ErrDenied)
	leftover := []string{"warning", `"leasehold-doctor-test" could not be released`, "within 15s", `leasehold release "leasehold-doctor-test"`}
	for verb, more := range map[string]map[string][]string{
		"read":    {},
		"acquire": {"watch": {"note", "could not be tried"}},
		"renew":   {},
		"release": {"leftover": leftover, "watch": {"note", "could not be tried"}},
		"watch":   {},
	} {
		t.Run(verb, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPatient()
				p.fail[verb] = denied
				if verb == "watch" {
					p.watch = func(iter.Seq2[backend.Record, error]) iter.Seq2[backend.Record, error] {
						return func(yield func(backend.Record, error) bool) { yield(backend.Record{}, denied) }
					}
				}
				found, code := visit(t, t.Context(), p)
				wantCode(t, code, exitFailed)
				more[verb] = []string{"problem", "grant the verb to the role", "to the account", "--name"}
				expect(t, found, more)
				others := []string{"read", "acquire", "renew", "release", "watch"}
				if verb == "acquire" {
					others = []string{"read", "watch"}
				}
				for _, other := range others {
					if _, ok := found[other]; !ok {
						t.Errorf("%s was not tried", other)
					}
				}
				if verb == "renew" && p.called("read") <= probeRounds {
					t.Errorf("%d reads", p.called("read"))
				}
				if verb != "release" {
					expectFree(t, p)
				}
			})
		})
	}
}

func TestDoctorWatches(t *testing.T) {
	silent := func(n int) func(iter.Seq2[backend.Record, error]) iter.Seq2[backend.Record, error] {
		return func(seq iter.Seq2[backend.Record, error]) iter.Seq2[backend.Record, error] {
			return func(yield func(backend.Record, error) bool) {
				i := 0
				for rec, err := range seq {
					if i++; i <= n && !yield(rec, err) {
						return
					}
				}
			}
		}
	}
	for what, tt := range map[string]struct {
		watch func(iter.Seq2[backend.Record, error]) iter.Seq2[backend.Record, error]
		code  int
		want  []string
	}{
		"silent":       {silent(0), exitFailed, []string{"problem", "no state of the lease within 5s", "proxy"}},
		"silent later": {silent(1), exitFailed, []string{"problem", "not told within 5s that the lease is free", "proxy"}},
		"late": {func(seq iter.Seq2[backend.Record, error]) iter.Seq2[backend.Record, error] {
			return func(yield func(backend.Record, error) bool) {
				first := true
				for rec, err := range seq {
					if !first {
						time.Sleep(4 * time.Second)
					}
					first = false
					if !yield(rec, err) {
						return
					}
				}
			}
		}, 0, []string{"warning", "told after 4s", "holds back"}},
		"ended": {func(iter.Seq2[backend.Record, error]) iter.Seq2[backend.Record, error] {
			return func(func(backend.Record, error) bool) {}
		}, exitFailed, []string{"problem", "ended by itself"}},
		"failed": {func(iter.Seq2[backend.Record, error]) iter.Seq2[backend.Record, error] {
			return func(yield func(backend.Record, error) bool) { yield(backend.Record{}, errors.New("too old")) }
		}, exitFailed, []string{"problem", "too old"}},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPatient()
				p.watch = tt.watch
				found, code := visit(t, t.Context(), p)
				wantCode(t, code, tt.code)
				expect(t, found, map[string][]string{"watch": tt.want})
				expectFree(t, p)
				time.Sleep(time.Minute) // for what was left behind
			})
		})
	}
	t.Run("none", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			found, code := visit(t, t.Context(), struct{ backend.Store }{memory.New()})
			wantCode(t, code, 0)
			expect(t, found, map[string][]string{"watch": {"note", "every 1s"}})
		})
	})
}

func TestDoctorTouchesNobodysLease(t *testing.T) {
	for what, change := range map[string]func(p *patient){
		"held":    func(*patient) {},
		"expired": func(*patient) { time.Sleep(2 * time.Minute) },
		// It was free when the doctor looked.
		"taken": func(p *patient) {
			p.get = func(backend.Record, error) (backend.Record, error) { return backend.Record{}, backend.ErrNotFound }
		},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPatient()
				theirs, err := p.Store.Acquire(t.Context(), backend.Claim{Name: probeName, Holder: "somebody", Duration: time.Minute})
				if err != nil {
					t.Fatal(err)
				}
				change(p)
				found, code := visit(t, t.Context(), p)
				wantCode(t, code, exitFailed)
				expect(t, found, map[string][]string{"name": {"problem", "somebody", "not touched", "--name"}})
				if rec, err := p.Store.Get(t.Context(), probeName); err != nil || !rec.SameTenure(theirs) || rec.Revision != theirs.Revision {
					t.Errorf("the lease was %+v, and is %+v, %v", theirs, rec, err)
				}
				if p.called("renew")+p.called("release") > 0 {
					t.Errorf("%d renewals, %d releases", p.called("renew"), p.called("release"))
				}
			})
		})
	}
}

func TestDoctorSeesTokensThatDoNotRise(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPatient()
		p.token = 7
		found, code := visit(t, t.Context(), p)
		wantCode(t, code, exitFailed)
		expect(t, found, map[string][]string{"tokens": {"problem", "do not rise: 7, then 7", "backup"}})
		expectFree(t, p)
	})
}

func TestDoctorSeesStaleReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPatient()
		p.get = func(backend.Record, error) (backend.Record, error) { return backend.Record{}, backend.ErrNotFound }
		found, code := visit(t, t.Context(), p)
		wantCode(t, code, exitFailed)
		expect(t, found, map[string][]string{"read": {"problem", "does not show what was written", "primary"}})
		expectFree(t, p)
	})
}

func TestDoctorSeesALeaseTakenAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPatient()
		p.fail["renew"] = backend.ErrLost
		found, code := visit(t, t.Context(), p)
		wantCode(t, code, exitFailed)
		expect(t, found, map[string][]string{"renew": {"problem", "who else writes"}})
	})
}

func TestDoctorFreesItsLease(t *testing.T) {
	signal := &signalError{2}
	for what, setUp := range map[string]func(p *patient, cancel context.CancelCauseFunc){
		"interrupted while it renews": func(p *patient, cancel context.CancelCauseFunc) {
			p.before = func(verb string) {
				if verb == "renew" && p.called("renew") == 3 {
					cancel(signal)
				}
			}
		},
		"interrupted while it acquires": func(p *patient, cancel context.CancelCauseFunc) {
			p.after = func(context.Context, string) error {
				cancel(signal)
				return errors.New("the answer was lost")
			}
		},
		"no answer to acquire": func(p *patient, _ context.CancelCauseFunc) {
			p.after = func(context.Context, string) error { return errors.New("the answer was lost") }
		},
		"one release failed": func(p *patient, _ context.CancelCauseFunc) {
			p.fail["release"] = errors.New("reset")
			p.before = func(verb string) {
				if verb == "release" && p.called("release") == 2 {
					delete(p.fail, "release")
				}
			}
		},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancelCause(t.Context())
				defer cancel(nil)
				p := newPatient()
				setUp(p, cancel)
				_, code := visit(t, ctx, p)
				if strings.HasPrefix(what, "interrupted") {
					wantCode(t, code, exitSignal+2)
				} else {
					wantCode(t, code, exitFailed)
				}
				expectFree(t, p)
			})
		})
	}
}

func TestDoctorCannotReachTheStore(t *testing.T) {
	for what, setUp := range map[string]func(p *patient){
		"refused": func(p *patient) {
			for _, verb := range []string{"read", "acquire", "renew", "release"} {
				p.fail[verb] = errors.New("connection refused")
			}
		},
		"no answer": func(p *patient) {
			p.before = func(string) { time.Sleep(time.Hour) }
		},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPatient()
				setUp(p)
				found, code := visit(t, t.Context(), p)
				wantCode(t, code, exitUnavailable)
				expect(t, found, map[string][]string{"read": {"problem", "see that the server runs"}})
				if p.called("acquire") != 0 {
					t.Error("it went on")
				}
				time.Sleep(2 * time.Hour)
			})
		})
	}
	for _, tt := range []struct {
		err  error
		code int
		want []string
	}{
		{errors.New("connection refused"), exitUnavailable, []string{"connection refused", "see that the server runs"}},
		{fmt.Errorf("%w: grant get", backend.ErrDenied), exitUnavailable, []string{"grant get", "account"}},
		{fmt.Errorf("%w: the URL is wrong", backend.ErrInvalid), exitUsage, []string{"the URL is wrong", "correct"}},
		{fmt.Errorf("%w: here", backend.ErrUnsupported), exitUnavailable, []string{"choose another store"}},
	} {
		found, code := visit(t, t.Context(), nil, func(*doctor) {
			sick = func() (backend.Store, error) { return nil, tt.err }
		})
		wantCode(t, code, tt.code)
		expect(t, found, map[string][]string{"opening": append([]string{"problem"}, tt.want...)})
	}
	synctest.Test(t, func(t *testing.T) {
		found, code := visit(t, t.Context(), nil, func(*doctor) {
			sick = func() (backend.Store, error) { time.Sleep(time.Hour); return nil, nil }
		})
		wantCode(t, code, exitUnavailable)
		expect(t, found, map[string][]string{"opening": {"problem", "no answer within 10s"}})
		time.Sleep(time.Hour)
	})
}

func TestDoctorPassesOnWhatTheStoreFinds(t *testing.T) {
	warning := backend.Finding{Check: "server clock", Level: backend.Warning, Detail: "2s behind", Fix: "set it"}
	synctest.Test(t, func(t *testing.T) {
		p := newPatient()
		p.findings = func(yield func(backend.Finding) bool) { yield(warning) }
		found, code := visit(t, t.Context(), p)
		wantCode(t, code, 0)
		expect(t, found, map[string][]string{"server clock": {"warning", "2s behind", "set it"}})
		_, code = visit(t, t.Context(), p, func(d *doctor) { d.strict = true; p.Store = memory.New() })
		wantCode(t, code, exitFailed)
	})
	synctest.Test(t, func(t *testing.T) {
		p := newPatient()
		p.findings = func(yield func(backend.Finding) bool) {
			if yield(warning) {
				time.Sleep(time.Hour)
			}
		}
		found, code := visit(t, t.Context(), p)
		wantCode(t, code, 0)
		expect(t, found, map[string][]string{"server clock": {"warning"}, "examination": {"warning", "within 30s"}})
		if _, ok := found["renew"]; !ok {
			t.Error("it did not go on")
		}
		time.Sleep(time.Hour)
	})
}

func TestDoctorTellsOfARecordThatStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPatient()
		p.get = func(rec backend.Record, err error) (backend.Record, error) {
			if errors.Is(err, backend.ErrNotFound) && p.called("release") > 0 {
				return backend.Record{Name: probeName, Revision: "1"}, nil
			}
			return rec, err
		}
		found, code := visit(t, t.Context(), p)
		wantCode(t, code, 0)
		expect(t, found, map[string][]string{"leftover": {"note", "without a holder", "delete it by hand"}})

		p = newPatient()
		p.get = func(rec backend.Record, err error) (backend.Record, error) {
			if errors.Is(err, backend.ErrNotFound) { // it was there before, too
				return backend.Record{Name: probeName, Revision: "1"}, nil
			}
			return rec, err
		}
		found, _ = visit(t, t.Context(), p)
		expect(t, found, nil)
	})
}

func TestDoctorTellsWhatTheStorePromises(t *testing.T) {
	for _, tt := range []struct {
		traits  backend.Traits
		granted time.Duration
		want    map[string][]string
	}{
		{backend.Traits{MinDuration: time.Second, Granularity: time.Second}, 2 * time.Second,
			map[string][]string{"durations": {"note", "from 1s, in steps of 1s; 1.5s becomes 2s"}, "expiry": {"ok", "at once"}}},
		{backend.Traits{ExpirySlack: time.Minute, RenewalsVisible: true}, 1500 * time.Millisecond,
			map[string][]string{"expiry": {"ok", "up to 1m late", "renewals have stopped"}}},
		{backend.Traits{ExpirySlack: backend.Forever, RenewalsVisible: true}, 1500 * time.Millisecond,
			map[string][]string{"expiry": {"ok", "not seen by the store; whoever waits sees"}}},
		{backend.Traits{ExpirySlack: backend.Forever}, 1500 * time.Millisecond,
			map[string][]string{"expiry": {"warning", "crashed", "release --force"}}},
	} {
		var out bytes.Buffer
		d := &doctor{duration: 1500 * time.Millisecond, out: &out, asJSON: true}
		d.promises(tt.traits, tt.granted)
		expect(t, findingsOf(t, &out), tt.want)
	}
}

func TestDoctorText(t *testing.T) {
	var out bytes.Buffer
	d := &doctor{out: &out}
	d.add(backend.Finding{Check: "permission to update", Level: backend.Problem, Detail: "denied:\nby \x1b[2J", Fix: "grant it"})
	d.add(backend.Finding{Check: "a", Level: 9, Detail: "b"})
	d.summarize(backend.Traits{Name: "fake"}, 1500*time.Millisecond, 1)
	want := "problem  permission to update          \"denied:; by \\x1b[2J\"\n" +
		"         fix: grant it\n" +
		"problem  a                             b\n" +
		"fake store: 2 problems, 0 warnings, 0 notes, in 1.5s\n"
	if out.String() != want {
		t.Errorf("printed\n%s\nwant\n%s", &out, want)
	}
}
