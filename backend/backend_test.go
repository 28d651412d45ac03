package backend

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestCheckName(t *testing.T) {
	for _, name := range []string{"a", "A/b c", "naïve", "🔒", strings.Repeat("x", 512), "..", "%00", " ", "\n"} {
		if err := CheckName(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{"", "\x00", "a\x00b", "\xff\xfe", strings.Repeat("x", 513), strings.Repeat("é", 257)} {
		if err := CheckName(name); !errors.Is(err, ErrInvalid) {
			t.Errorf("%.20q: %v", name, err)
		}
	}
}

func TestCheckClaim(t *testing.T) {
	traits := Traits{Name: "test", MinDuration: time.Second, Granularity: time.Second}
	good := Claim{Name: "x", Holder: "h", Duration: 1500 * time.Millisecond, Metadata: map[string]string{"k": strings.Repeat("v", MaxMetadataLen-1)}}
	if d, err := CheckClaim(good, traits); err != nil || d != 2*time.Second {
		t.Errorf("granted %v, %v; want 2s, rounded up", d, err)
	}
	seal := Claim{Name: "x", Holder: "moved", Duration: Forever, Seal: &Seal{To: "b"}}
	if d, err := CheckClaim(seal, traits); err != nil || d != Forever {
		t.Errorf("a seal: granted %v, %v", d, err)
	}
	for what, change := range map[string]func(*Claim){
		"no name":          func(c *Claim) { c.Name = "" },
		"no holder":        func(c *Claim) { c.Holder = "" },
		"long holder":      func(c *Claim) { c.Holder = strings.Repeat("h", MaxHolderLen+1) },
		"holder not UTF-8": func(c *Claim) { c.Holder = "\xff" },
		"holder with NUL":  func(c *Claim) { c.Holder = "a\x00" },
		"attempt":          func(c *Claim) { c.Attempt = "\xff" },
		"metadata":         func(c *Claim) { c.Metadata["more"] = "" },
		"metadata key":     func(c *Claim) { c.Metadata = map[string]string{"": "v"} },
		"metadata UTF-8":   func(c *Claim) { c.Metadata = map[string]string{"k": "\xff"} },
		"token":            func(c *Claim) { c.MinToken = MaxToken },
		"zero":             func(c *Claim) { c.Duration = 0 },
		"negative":         func(c *Claim) { c.Duration = -1 },
		"too short":        func(c *Claim) { c.Duration = time.Second - 1 },
		"too long":         func(c *Claim) { c.Duration = MaxDuration + 1 },
		"for ever":         func(c *Claim) { c.Duration = Forever },
		"mortal seal":      func(c *Claim) { c.Seal = &Seal{} },
	} {
		c := good
		c.Metadata = map[string]string{"k": strings.Repeat("v", MaxMetadataLen-1)}
		change(&c)
		if _, err := CheckClaim(c, traits); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestErrors(t *testing.T) {
	held := fmt.Errorf("wrapped: %w", &HeldError{Record: Record{Name: "x", Holder: "h", Remaining: time.Second}})
	corrupt := &CorruptError{Name: "x", Where: "/some/where", Err: errors.New("truncated")}
	if !errors.Is(held, ErrHeld) || errors.Is(held, ErrLost) || !errors.Is(corrupt, ErrCorrupt) {
		t.Error("errors.Is does not know them")
	}
	for err, want := range map[error]bool{held: true, corrupt: true, ErrLost: true, ErrInvalid: true, ErrDenied: true,
		ErrUnsupported: true, ErrNotFound: true, errors.New("reset"): false, context.Canceled: false} {
		if Definite(err) != want {
			t.Errorf("Definite(%v) is %v", err, !want)
		}
	}
	for _, tt := range []struct{ err, want string }{
		{held.Error(), `"h", for another 1s`},
		{corrupt.Error(), "/some/where"},
		{(&HeldError{Record: Record{Name: "x", Holder: "s", Seal: &Seal{To: "there"}}}).Error(), `moved to "there"`},
		{(&HeldError{Record: Record{Name: "x"}}).Error(), "no holder"},
	} {
		if !strings.Contains(tt.err, tt.want) {
			t.Errorf("%q does not say %q", tt.err, tt.want)
		}
	}
}

func TestOpen(t *testing.T) {
	t.Cleanup(func() { delete(registry.openers, "test-scheme") }) // for -count
	Register("test-scheme", func(_ context.Context, u *url.URL) (Store, error) {
		if _, err := Query(u, "known"); err != nil {
			return nil, err
		}
		return &fakeStore{}, nil
	})
	if _, err := Open(t.Context(), "test-scheme://x?known=1"); err != nil {
		t.Error(err)
	}
	for raw, want := range map[string]string{
		"test-scheme://x?other=1":           `unknown parameter "other": known are known`,
		"test-scheme://x?known=1&known=2":   "twice",
		"test-scheme://x?known=%zz":         "cannot be parsed",
		"ftp://user:secret@x":               `scheme "ftp": known are test-scheme`,
		"/just/a/path":                      "no scheme",
		"":                                  "no scheme",
		"redis://user:secret@host:port\x7f": "cannot be parsed",
	} {
		_, err := Open(t.Context(), raw)
		if !errors.Is(err, ErrInvalid) || !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("%q: %v; want %q", raw, err, want)
		}
		if strings.Contains(fmt.Sprint(err), "secret") {
			t.Errorf("the error repeats the password: %v", err)
		}
	}
	defer func() {
		if recover() == nil {
			t.Error("a scheme could be registered twice")
		}
	}()
	Register("test-scheme", func(context.Context, *url.URL) (Store, error) { return nil, nil })
}

// TestSeveralHosts: net/url takes several hosts for one, or refuses them,
// depending on their ports.
func TestSeveralHosts(t *testing.T) {
	var got *url.URL
	t.Cleanup(func() { delete(registry.openers, "test-hosts") })
	Register("test-hosts", func(_ context.Context, u *url.URL) (Store, error) {
		got = u
		return &fakeStore{}, nil
	})
	for raw, want := range map[string]string{
		"a:1,b:2/p?q=1":               "a:1,b:2",
		"u:s%40,cret@a:1,b,c:3/p?q=1": "a:1,b,c:3",
		"[::1]:1,[fe80::2]:2/p?q=1":   "[::1]:1,[fe80::2]:2",
		"one:1/p?q=1":                 "one:1",
		"one/p?q=1,2":                 "one",
		"u:s@one/p,r?q=a@b,c":         "one",
		"a:port,b:2/p":                "",
		"a,,b/p":                      "",
		"u:secret@a b,c/p":            "",
		"u:secret@[::1,b/p":           "",
		"u:sec%zzret@a,b/p":           "",
	} {
		got = nil
		_, err := Open(t.Context(), "test-hosts://"+raw)
		switch {
		case want == "":
			if !errors.Is(err, ErrInvalid) || strings.Contains(err.Error(), "sec") {
				t.Errorf("%s: %v", raw, err)
			}
		case err != nil || got.Host != want || !strings.HasPrefix(got.Path, "/p"):
			t.Errorf("%s: %+v, %v", raw, got, err)
		}
		if strings.Contains(raw, "%40") && err == nil {
			if password, _ := got.User.Password(); password != "s@,cret" {
				t.Errorf("%s: password %q", raw, password)
			}
		}
	}
}

// fakeStore answers Get with what it is told to.
type fakeStore struct {
	Store
	mu   sync.Mutex
	rec  Record
	err  error
	gets int
}

func (s *fakeStore) Get(context.Context, string) (Record, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gets++
	return s.rec, s.err
}

func (s *fakeStore) Traits() Traits { return Traits{Name: "fake"} }

func (s *fakeStore) set(rec Record, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rec, s.err = rec, err
}

func TestWatchFallsBackToPolling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &fakeStore{err: ErrNotFound}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		type item struct {
			rec Record
			err error
		}
		items := make(chan item, 10)
		go func() {
			defer close(items)
			for rec, err := range Watch(ctx, s, "x") {
				items <- item{rec, err}
			}
		}()
		if got := <-items; got.rec.Name != "x" || !got.rec.Vacant() {
			t.Errorf("absence is yielded as %+v", got)
		}
		held := Record{Name: "x", Holder: "h", Token: 1, Revision: "1", Remaining: 100 * time.Millisecond}
		s.set(held, nil)
		if got := <-items; got.rec.Holder != "h" {
			t.Errorf("%+v", got)
		}
		// It looks again when it is about to expire, not a whole interval later.
		start := time.Now()
		expired := held
		expired.Expired, expired.Remaining = true, 0
		s.set(expired, nil)
		if got := <-items; !got.rec.Expired || time.Since(start) > 200*time.Millisecond {
			t.Errorf("%+v after %v", got, time.Since(start))
		}
		// An outage is outlived, and not by storming.
		s.set(Record{}, errors.New("connection refused"))
		s.mu.Lock()
		before := s.gets
		s.mu.Unlock()
		time.Sleep(10 * time.Minute)
		s.mu.Lock()
		if n := s.gets - before; n > 100 || n < 10 {
			t.Errorf("%d looks in 10 minutes of outage", n)
		}
		s.mu.Unlock()
		s.set(Record{}, ErrNotFound)
		if got := <-items; !got.rec.Vacant() {
			t.Errorf("%+v", got)
		}
		s.set(Record{}, ErrDenied)
		if got := <-items; !errors.Is(got.err, ErrDenied) {
			t.Errorf("%+v", got)
		}
		if _, more := <-items; more {
			t.Error("a definite error is not final")
		}
	})
}

func TestPollStopsWithItsContextAndWhenBrokenOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &fakeStore{err: ErrNotFound}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		start := time.Now()
		for _, err := range Poll(ctx, s, "x", 0) {
			if err != nil {
				t.Error(err)
			}
		}
		if time.Since(start) != time.Minute {
			t.Errorf("stopped after %v", time.Since(start))
		}
		for range Poll(t.Context(), s, "x", time.Second) {
			break
		}
	})
}

func TestListIsRefusedWhereThereIsNone(t *testing.T) {
	for _, err := range List(t.Context(), &fakeStore{}, "") {
		if !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "fake") {
			t.Error(err)
		}
	}
}
