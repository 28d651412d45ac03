//go:build linux

package file

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gofrs/flock"
	"golang.org/x/sys/unix"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/internal/boottime"
)

func claim(name, holder string) backend.Claim {
	return backend.Claim{Name: name, Holder: holder, Duration: 10 * time.Second}
}

// folder returns a path at which New makes a folder of its own.
func folder(t testing.TB) string { return filepath.Join(t.TempDir(), "leases") }

func client(t testing.TB, dir string, opts ...Option) *Store {
	t.Helper()
	s, err := New(dir, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func acquire(t testing.TB, s *Store, c backend.Claim) backend.Record {
	t.Helper()
	rec, err := s.Acquire(context.Background(), c)
	if err != nil {
		t.Fatalf("Acquire(%+v): %v", c, err)
	}
	return rec
}

func get(t testing.TB, s *Store, name string) backend.Record {
	t.Helper()
	rec, err := s.Get(context.Background(), name)
	if err != nil {
		t.Fatalf("Get(%q): %v", name, err)
	}
	return rec
}

func release(t testing.TB, s *Store, rec backend.Record) {
	t.Helper()
	if err := s.Release(context.Background(), rec); err != nil {
		t.Fatalf("Release(%+v): %v", rec, err)
	}
}

func wantErr(t testing.TB, what string, err, want error, texts ...string) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: got error %v, want %v", what, err, want)
		return
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("%s: the error does not say %q: %v", what, text, err)
		}
	}
}

// fakeClock is moved by hand.
type fakeClock struct {
	mu     sync.Mutex
	now    time.Duration
	timers map[*fakeTimer]struct{}
}

type fakeTimer struct {
	clock *fakeClock
	at    time.Duration
	f     func()
}

func (c *fakeClock) Now() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *fakeClock) AfterFunc(d time.Duration, f func()) boottime.Timer {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := &fakeTimer{c, c.now + d, f}
	if c.timers == nil {
		c.timers = make(map[*fakeTimer]struct{})
	}
	c.timers[t] = struct{}{}
	return t
}

func (t *fakeTimer) Stop() bool {
	t.clock.mu.Lock()
	defer t.clock.mu.Unlock()
	_, waiting := t.clock.timers[t]
	delete(t.clock.timers, t)
	return waiting
}

func (c *fakeClock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now += d
	for t := range c.timers {
		if t.at <= c.now {
			delete(c.timers, t)
			go t.f()
		}
	}
}

// rebooted makes a client believe that it runs in another boot, on another clock.
func rebooted(boot string, clock *fakeClock) Option {
	return func(s *Store) { s.boot, s.clock = boot, clock }
}

func TestTenureEndsExactlyAtItsDuration(t *testing.T) {
	clock := &fakeClock{now: time.Hour}
	dir := folder(t)
	s, other := client(t, dir, rebooted("this", clock)), client(t, dir, rebooted("this", clock))
	c := claim("a", "x")
	c.Metadata = map[string]string{"": "no", "k": "v"}
	_, err := s.Acquire(t.Context(), c)
	wantErr(t, "an empty key", err, backend.ErrInvalid)
	c.Metadata = map[string]string{"k\u2028<&>\"": "v\x01\uFFFD😀"}
	rec := acquire(t, s, c)
	got := get(t, other, "a")
	if fmt.Sprint(got) != fmt.Sprint(rec) {
		t.Errorf("granted %+v, found %+v", rec, got)
	}
	clock.advance(10*time.Second - 1)
	if got := get(t, other, "a"); got.Expired || got.Remaining != 1 {
		t.Errorf("1 ns before the end: %+v", got)
	}
	_, err = other.Acquire(t.Context(), claim("a", "y"))
	wantErr(t, "Acquire 1 ns before the end", err, backend.ErrHeld)
	renewed, err := s.Renew(t.Context(), rec)
	if err != nil || renewed.Revision == rec.Revision || renewed.Token != rec.Token {
		t.Errorf("Renew of %+v: %+v, %v", rec, renewed, err)
	}
	clock.advance(10 * time.Second)
	if got := get(t, other, "a"); !got.Expired || got.Remaining != 0 || got.Revision != renewed.Revision {
		t.Errorf("at the end: %+v", got)
	}
	_, err = s.Renew(t.Context(), rec)
	wantErr(t, "Renew at the end", err, backend.ErrLost)
	next := acquire(t, other, claim("a", "y"))
	if next.Token <= rec.Token || next.Transitions != 1 || next.Metadata != nil {
		t.Errorf("after %+v came %+v", rec, next)
	}
	wantErr(t, "Release of the old tenure", s.Release(t.Context(), rec), backend.ErrLost)
	renewed, err = other.Renew(t.Context(), next)
	if err != nil {
		t.Fatal(err)
	}
	if e, err := s.read("a", "a.json"); err != nil || e.record.Renewed != clock.now+1 {
		t.Errorf("renewed within the same nanosecond: %v, %v", e.record.Renewed, err)
	}
	next.Expired = true
	wantErr(t, "Release of a stale sighting", other.Release(t.Context(), next), backend.ErrLost)
	release(t, other, renewed)
	_, err = s.Get(t.Context(), "a")
	wantErr(t, "Get after Release", err, backend.ErrNotFound)
}

func TestSameAttemptIsTheSameTenureWhileItLasts(t *testing.T) {
	clock := &fakeClock{now: time.Hour}
	s := client(t, folder(t), rebooted("this", clock))
	c := claim("a", "x")
	c.Attempt = "1"
	first := acquire(t, s, c)
	clock.advance(6 * time.Second)
	if again := acquire(t, s, c); !again.SameTenure(first) || again.Remaining != c.Duration {
		t.Errorf("the same attempt got %+v after %+v", again, first)
	}
	other := c
	other.Attempt = "2"
	_, err := s.Acquire(t.Context(), other)
	wantErr(t, "another attempt of the same holder", err, backend.ErrHeld)
	clock.advance(10 * time.Second)
	if late := acquire(t, s, c); late.Token <= first.Token {
		t.Errorf("an expired tenure was revived by its attempt: %+v", late)
	}
}

func TestOverIsACompareAndSwap(t *testing.T) {
	s := client(t, folder(t))
	over := claim("a", "y")
	over.Over = "1"
	_, err := s.Acquire(t.Context(), over)
	var held *backend.HeldError
	if !errors.As(err, &held) || held.Record.Name != "a" || held.Record.Holder != "" {
		t.Errorf("Over of an absent record: %v", err)
	}
	rec := acquire(t, s, claim("a", "x"))
	over.Over = rec.Revision
	renewed, err := s.Renew(t.Context(), rec)
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Acquire(t.Context(), over)
	wantErr(t, "Over of a revision before a renewal", err, backend.ErrHeld)
	over.Over = renewed.Revision
	if got := acquire(t, s, over); got.Holder != "y" || got.Token <= rec.Token {
		t.Errorf("Over got %+v", got)
	}
}

func TestRenewalIsInPlace(t *testing.T) {
	s := client(t, folder(t))
	rec := acquire(t, s, claim("a", "x"))
	path := filepath.Join(s.dir, "a.json")
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{rec.Revision: true}
	for range 1000 {
		renewed, err := s.Renew(t.Context(), rec)
		if err != nil {
			t.Fatal(err)
		}
		if seen[renewed.Revision] {
			t.Fatal("two renewals have the same revision")
		}
		seen[renewed.Revision] = true
		if got := get(t, s, "a"); got.Revision != renewed.Revision || !got.RenewedAt.Equal(renewed.RenewedAt) {
			t.Fatalf("renewed %+v, found %+v", renewed, got)
		}
	}
	after, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if !os.SameFile(before, after) || before.Size() != after.Size() {
		t.Error("a renewal replaced the file")
	}
}

// A head that is being overwritten must not be believed by one who reads it
// without the lock; one that was edited by hand is no loss of the tenure.
func TestTornHead(t *testing.T) {
	s := client(t, folder(t))
	rec := acquire(t, s, claim("a", "x"))
	path := filepath.Join(s.dir, "a.json")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// One digit of the new instant, the others of the old: all looks well but for
	// the checksum.
	at := bytes.IndexByte(text[len("{\n  \"leasehold\": 1,\n"):], ',') + len("{\n  \"leasehold\": 1,\n") - 1
	digit := text[at]
	text[at] = '0' + (digit-'0'+9)%10
	writer := flock.New(s.shard("a").path)
	if ok, err := writer.TryLock(); !ok {
		t.Fatal(err)
	}
	if err := overwrite(path, text); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	got, err := s.Get(ctx, "a")
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("half a head was read as %+v, %v", got, err)
	}
	text[at] = digit
	edited := bytes.Replace(text, []byte(`"holder"`), []byte(`"label": "edited", "holder"`), 1)
	edited = bytes.Replace(edited, []byte(`"check": "`), []byte(`"check": "0`), 1)
	if err := os.WriteFile(path, edited, 0o600); err != nil {
		t.Fatal(err)
	}
	writer.Unlock()
	renewed, err := s.Renew(t.Context(), rec)
	if err != nil {
		t.Fatalf("Renew of an edited record: %v", err)
	}
	if e, err := s.read("a", "a.json"); err != nil || !e.whole || e.Revision != renewed.Revision {
		t.Errorf("after the renewal of an edited record: %+v, %v", e, err)
	}
}

// A process that was stopped while it held a lock stops the writers of that lock
// alone, and them only as long as their contexts allow.
func TestStuckWriter(t *testing.T) {
	s := client(t, folder(t))
	rec := acquire(t, s, claim("a", "x"))
	stuck := flock.New(s.shard("a").path)
	if ok, err := stuck.TryLock(); !ok {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	get(t, s, "a")
	_, err := s.Acquire(ctx, claim("a", "y"))
	wantErr(t, "Acquire of a live lease", err, backend.ErrHeld)
	free := "b"
	for ; s.shard(free) == s.shard("a"); free += "b" {
	}
	release(t, s, acquire(t, s, claim(free, "x")))

	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			_, err := s.Renew(ctx, rec)
			wantErr(t, "Renew", err, context.DeadlineExceeded, ".lock")
		})
	}
	wg.Wait()
	got := make(chan error)
	go func() {
		_, err := s.Renew(t.Context(), rec)
		got <- err
	}()
	for len(s.shard("a").turn) == 0 { // until it waits
		runtime.Gosched()
	}
	s.Close()
	wantErr(t, "Renew when the store is closed", <-got, backend.ErrInvalid)
	stuck.Unlock()
	s = client(t, s.dir)
	if _, err := s.Renew(t.Context(), rec); err != nil {
		t.Error(err)
	}
}

// A cleaner that deletes lock files must not let two writers in.
func TestDeletedLocks(t *testing.T) {
	s := client(t, folder(t))
	rec := acquire(t, s, claim("a", "x"))
	if err := os.RemoveAll(s.internal("")); err != nil {
		t.Fatal(err)
	}
	release(t, s, rec)
	if next := acquire(t, s, claim("a", "x")); next.Token <= rec.Token {
		t.Errorf("token %d after %d", next.Token, rec.Token)
	}
	deleted := false
	unlock, err := s.lock(t.Context(), s.shard("a"), func(f *flock.Flock) (bool, error) {
		ok, err := f.TryLock()
		if !deleted {
			deleted = true
			err = errors.Join(err, os.Remove(f.Path()))
		}
		return ok, err
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if ok, err := flock.New(s.shard("a").path).TryLock(); ok || err != nil {
		t.Errorf("the lock was deleted before it was taken, and a second one was granted: %v, %v", ok, err)
	}
	unlock()
}

func TestAnotherBoot(t *testing.T) {
	dir := folder(t)
	clock := &fakeClock{now: time.Hour}
	before := client(t, dir, rebooted("before", &fakeClock{now: 100 * time.Hour}))
	rec := acquire(t, before, claim("a", "x"))
	sealed := acquire(t, before, backend.Claim{Name: "s", Holder: "moved", Duration: backend.Forever, Seal: &backend.Seal{To: "etcd", Epoch: 1}})

	after := client(t, dir, rebooted("after", clock))
	_, err := after.Acquire(t.Context(), claim("a", "y"))
	wantErr(t, "Acquire after the reboot", err, backend.ErrHeld)
	clock.advance(9 * time.Second)
	if got := get(t, after, "a"); got.Expired || got.Remaining != time.Second {
		t.Errorf("9 s after it was seen: %+v", got)
	}
	// It is no record of another boot, but of another time namespace: it lives.
	if _, err := before.Renew(t.Context(), rec); err != nil {
		t.Fatal(err)
	}
	clock.advance(5 * time.Second)
	if got := get(t, after, "a"); got.Expired || got.Remaining != 10*time.Second {
		t.Errorf("renewed, and seen again after 5 s: %+v", got)
	}
	clock.advance(10*time.Second - 1)
	if got := get(t, after, "a"); got.Expired {
		t.Errorf("1 ns before it is over: %+v", got)
	}
	clock.advance(1)
	if got := get(t, after, "a"); !got.Expired {
		t.Errorf("unchanged for its duration: %+v", got)
	}
	// Another client has seen nothing of this.
	if got := get(t, client(t, dir, rebooted("after", clock)), "a"); got.Expired {
		t.Errorf("seen for the first time: %+v", got)
	}
	next := acquire(t, after, claim("a", "y"))
	if next.Token <= sealed.Token {
		t.Errorf("token %d after %d", next.Token, sealed.Token)
	}
	_, err = before.Renew(t.Context(), rec)
	wantErr(t, "Renew of the lost tenure", err, backend.ErrLost)
	clock.advance(10000 * time.Hour)
	if got := get(t, after, "s"); got.Expired || got.Seal == nil || got.Seal.Epoch != 1 || got.Duration != backend.Forever {
		t.Errorf("the seal became %+v", got)
	}
	release(t, after, next)

	// A holder that came across the reboot, as a checkpoint does.
	rec = acquire(t, before, claim("a", "x"))
	if _, err := after.Renew(t.Context(), rec); err != nil {
		t.Fatal(err)
	}
	if got := get(t, client(t, dir, rebooted("after", clock)), "a"); got.Remaining != 10*time.Second {
		t.Errorf("renewed in this boot: %+v", got)
	}
	clock.advance(10 * time.Second)
	if got := get(t, client(t, dir, rebooted("after", clock)), "a"); !got.Expired {
		t.Errorf("renewed in this boot, 10 s later: %+v", got)
	}
	release(t, after, rec)
	if len(after.seen) != 0 {
		t.Errorf("%d sightings are left", len(after.seen))
	}
}

func TestTokens(t *testing.T) {
	dir := folder(t)
	s := client(t, dir)
	var last uint64
	grant := func(s *Store, floor uint64) uint64 {
		t.Helper()
		c := claim("a", "x")
		c.MinToken = floor
		rec := acquire(t, s, c)
		release(t, s, rec)
		if rec.Token <= last || rec.Token <= floor {
			t.Errorf("token %d after %d with MinToken %d", rec.Token, last, floor)
		}
		last = rec.Token
		return rec.Token
	}
	if got := grant(s, 0); got != 1 {
		t.Errorf("the first token is %d", got)
	}
	for _, floor := range []uint64{0, 0, 5, 3, 1 << 40, 0} {
		grant(s, floor)
	}
	grant(client(t, dir), 0)

	// A power cut: what was not synced is what it was at the last reservation.
	counterFile := s.internal("tokens")
	text, err := os.ReadFile(counterFile)
	if err != nil {
		t.Fatal(err)
	}
	for range 10 {
		grant(client(t, dir), 0)
	}
	if err := os.WriteFile(counterFile, text, 0o600); err != nil {
		t.Fatal(err)
	}
	grant(client(t, dir, rebooted("after", &fakeClock{now: time.Hour})), 0)

	// Far beyond the block.
	for range tokenBlock + 2 {
		s = client(t, dir)
		unlock, err := s.lock(t.Context(), s.shard("a"), writing, nil)
		if err != nil {
			t.Fatal(err)
		}
		token, err := s.nextToken(t.Context(), "a", 1<<40, 0)
		unlock()
		if err != nil || token != last+1 && token != last+tokenBlock+1 {
			t.Fatalf("token %d after %d, %v", token, last, err)
		}
		last = token
		s.Close()
	}

	t.Run("missing", func(t *testing.T) {
		kept := acquire(t, client(t, dir), claim("kept", "x"))
		if err := os.Remove(counterFile); err != nil {
			t.Fatal(err)
		}
		if rec := acquire(t, client(t, dir), claim("b", "x")); rec.Token <= kept.Token {
			t.Errorf("token %d after %d", rec.Token, kept.Token)
		}
	})
	for name, text := range map[string]string{
		"empty": "", "cut off": `{"leasehold": 1, "la`, "foreign": `{"a": 1}`, "newer": `{"leasehold": 2, "last": 1, "reserved": 1, "boot": "x"}`,
	} {
		t.Run(name, func(t *testing.T) {
			good, err := os.ReadFile(counterFile)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(counterFile, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			s := client(t, dir)
			_, err = s.Acquire(t.Context(), claim("c", "x"))
			wantErr(t, "Acquire", err, backend.ErrCorrupt, counterFile, "delete it")
			if _, err := s.Renew(t.Context(), get(t, s, "kept")); err != nil {
				t.Errorf("Renew, which needs no token: %v", err)
			}
			if got, _ := os.ReadFile(counterFile); string(got) != text {
				t.Errorf("the file was changed to %q", got)
			}
			if err := os.WriteFile(counterFile, good, 0o600); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// floored acquires name with a MinToken.
func floored(t testing.TB, s *Store, c backend.Claim, floor uint64) backend.Record {
	t.Helper()
	c.MinToken = floor
	rec := acquire(t, s, c)
	if rec.Token <= floor {
		t.Errorf("token %d with MinToken %d", rec.Token, floor)
	}
	return rec
}

func TestTokenIsFloorPlusCount(t *testing.T) {
	clock := &fakeClock{now: time.Hour}
	dir := folder(t)
	boot := "this"
	open := func() *Store { return client(t, dir, rebooted(boot, clock)) }
	count := uint64(0)
	var rec backend.Record
	want := func(step string, got backend.Record, floor uint64) {
		t.Helper()
		if count++; got.Token != floor+count {
			t.Errorf("%s: token %d, want the floor %d and the count %d", step, got.Token, floor, count)
		}
		rec = got
	}
	over := func(c backend.Claim) backend.Claim {
		c.Over = rec.Revision
		return c
	}
	const floor = 1 << 40
	want("no MinToken", acquire(t, open(), claim("a", "x")), 0)
	want("a MinToken, Over", floored(t, open(), over(claim("a", "x")), 5), 5)
	want("a greater one, Over", floored(t, open(), over(claim("a", "x")), floor), floor)
	renewed, err := open().Renew(t.Context(), rec)
	if err != nil {
		t.Fatal(err)
	}
	release(t, open(), renewed)
	want("after release", acquire(t, open(), claim("a", "y")), floor)
	clock.advance(10 * time.Second)
	want("after expiry", acquire(t, open(), claim("a", "z")), floor)
	release(t, open(), get(t, open(), "a"))
	want("a smaller MinToken", floored(t, open(), claim("a", "x"), 3), floor)
	seal := backend.Claim{Name: "a", Holder: "moved", Duration: backend.Forever, Seal: &backend.Seal{To: "etcd", Epoch: 1}}
	want("sealed", acquire(t, open(), over(seal)), floor)
	want("over the seal", acquire(t, open(), over(claim("a", "x"))), floor)
	want("another name", acquire(t, open(), claim("b", "x")), 0)
	release(t, open(), rec)
	if _, err := os.Stat(filepath.Join(dir, "b.json")); !os.IsNotExist(err) {
		t.Errorf("a record without a floor was not deleted: %v", err)
	}

	// A tenure of another boot: renewed in this one, and released by this one.
	rec = get(t, open(), "a")
	boot = "after"
	if _, err := open().Renew(t.Context(), rec); err != nil {
		t.Fatal(err)
	}
	boot = "third"
	release(t, open(), rec)
	count = tokenBlock + 1 // what was reserved and not granted is skipped
	want("in another boot", acquire(t, open(), claim("a", "x")), floor)
	release(t, open(), rec)

	// Without the counter, what is left of it in the records counts, not the floors.
	if err := os.Remove(open().internal("tokens")); err != nil {
		t.Fatal(err)
	}
	count = tokenBlock
	want("the counter is missing, all is vacant", acquire(t, open(), claim("a", "x")), floor)
	if err := os.Remove(open().internal("tokens")); err != nil {
		t.Fatal(err)
	}
	count += tokenBlock
	want("the counter is missing, one is held", acquire(t, open(), claim("b", "x")), 0)

	// An older counter comes back: what the record was given of it is known.
	if err := os.WriteFile(open().internal("tokens"), (&counter{Format: format, Boot: boot, Last: 1, Reserved: 2}).encode(), 0o600); err != nil {
		t.Fatal(err)
	}
	rec = get(t, open(), "a")
	count = rec.Token - floor
	want("over what an older counter granted", acquire(t, open(), over(claim("a", "x"))), floor)
}

// A claim near the greatest token there is uses up its own name, and nothing of
// the others.
func TestGreatestMinToken(t *testing.T) {
	s := client(t, folder(t))
	first := floored(t, s, claim("last", "x"), backend.MaxToken-1)
	if first.Token != backend.MaxToken {
		t.Errorf("token %d", first.Token)
	}
	release(t, s, first)
	path := filepath.Join(s.dir, "last.json")
	for _, file := range []string{path, s.internal("tokens")} {
		before, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range []*Store{s, client(t, s.dir), client(t, s.dir, rebooted("after", &fakeClock{now: time.Hour}))} {
			_, err = s.Acquire(t.Context(), claim("last", "x"))
			wantErr(t, "a token above the greatest", err, backend.ErrInvalid, fmt.Sprint(uint64(backend.MaxToken)))
		}
		if after, _ := os.ReadFile(file); !bytes.Equal(after, before) {
			t.Errorf("a refused claim wrote %s: %s", file, after)
		}
	}
	if rec := acquire(t, s, claim("other", "x")); rec.Token != first.Token-(backend.MaxToken-1)+1 {
		t.Errorf("another name got token %d", rec.Token)
	}
	c := claim("new", "x")
	c.MinToken = backend.MaxToken - 1
	_, err := s.Acquire(t.Context(), c)
	wantErr(t, "a MinToken above which there is none", err, backend.ErrInvalid)
	_, err = s.Get(t.Context(), "new")
	wantErr(t, "Get of what was refused", err, backend.ErrNotFound)
	if rec := acquire(t, s, claim("new", "x")); rec.Token != 3 {
		t.Errorf("after a refused MinToken: token %d", rec.Token)
	}
}

func TestVacant(t *testing.T) {
	s := client(t, folder(t))
	c := claim("a", "x")
	c.Attempt, c.Metadata = "1", map[string]string{"k": "v"}
	rec := floored(t, s, c, 1000)
	release(t, s, rec)
	left := get(t, client(t, s.dir), "a")
	if want := (backend.Record{Name: "a", Revision: left.Revision}); fmt.Sprint(left) != fmt.Sprint(want) || left.Revision == "" || !left.Vacant() {
		t.Errorf("Release left %+v", left)
	}
	writer := flock.New(s.shard("a").path)
	if ok, err := writer.TryLock(); !ok {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if got, err := s.Get(ctx, "a"); err != nil || got.Revision != left.Revision {
		t.Errorf("Get while another writes: %+v, %v", got, err)
	}
	writer.Unlock()
	listed := 0
	for got, err := range s.List(t.Context(), "") {
		if listed++; err != nil || fmt.Sprint(got) != fmt.Sprint(left) {
			t.Errorf("List yields %+v, %v", got, err)
		}
	}
	if listed != 1 {
		t.Errorf("List yields %d records", listed)
	}
	_, err := s.Renew(t.Context(), rec)
	wantErr(t, "Renew of the old tenure", err, backend.ErrLost, "nobody")
	wantErr(t, "Release of the old tenure", s.Release(t.Context(), rec), backend.ErrLost, "nobody")
	_, err = s.Renew(t.Context(), left)
	wantErr(t, "Renew of nobody's", err, backend.ErrLost)
	wantErr(t, "Release of nobody's", s.Release(t.Context(), left), backend.ErrLost)

	stale := claim("a", "y")
	stale.Over = rec.Revision
	_, err = s.Acquire(t.Context(), stale)
	var held *backend.HeldError
	if !errors.As(err, &held) || fmt.Sprint(held.Record) != fmt.Sprint(left) {
		t.Errorf("Over of the old tenure: %v", err)
	}
	over := stale
	over.Over = left.Revision
	next := acquire(t, s, over)
	if next.Token <= rec.Token || next.Transitions != 1 {
		t.Errorf("Over of the vacant record got %+v", next)
	}
	release(t, s, next)
	again := get(t, s, "a")
	if again.Revision == left.Revision || again.Transitions != 1 {
		t.Errorf("vacant again: %+v after %+v", again, left)
	}
	_, err = s.Acquire(t.Context(), over)
	wantErr(t, "Over of the vacant record before", err, backend.ErrHeld)
	// The attempt of a tenure that is over means nothing any more.
	if got := acquire(t, s, c); got.Token <= next.Token || got.Transitions != 2 {
		t.Errorf("the same attempt again got %+v", got)
	}
	if len(s.seen) != 0 {
		t.Errorf("%d sightings are left", len(s.seen))
	}
}

// A vacant record has no instant that could matter: neither the clock nor a
// reboot makes it expired, or hides it for a while.
func TestVacantAfterAReboot(t *testing.T) {
	dir := folder(t)
	clock := &fakeClock{now: 100 * time.Hour}
	before := client(t, dir, rebooted("before", clock))
	release(t, before, floored(t, before, claim("a", "x"), 1000))
	clock.advance(1000 * time.Hour)
	after := client(t, dir, rebooted("after", &fakeClock{now: time.Second}))
	for _, s := range []*Store{before, after} {
		if got := get(t, s, "a"); got.Expired || got.Remaining != 0 || !got.Vacant() {
			t.Errorf("%+v", got)
		}
	}
	if rec := acquire(t, after, claim("a", "x")); rec.Token <= 1000+tokenBlock {
		t.Errorf("token %d", rec.Token)
	}
	if len(before.seen)+len(after.seen) != 0 {
		t.Error("sightings are left")
	}
}

// A floor must be on the disk for good when a token above it is known, and so
// must be the vacant record that keeps it: the folder is synced, which fails
// where it may not be read.
func TestFloorIsMadeToLast(t *testing.T) {
	base := t.TempDir()
	if err := os.Chmod(filepath.Dir(base), 0o755); err != nil {
		t.Fatal(err)
	}
	s := client(t, filepath.Join(base, "leases"))
	again := claim("again", "x")
	again.Attempt, again.MinToken = "1", 1000
	acquire(t, s, again)
	old := floored(t, s, claim("old", "x"), 1000)
	release(t, s, floored(t, s, claim("vacant", "x"), 1000))
	acquire(t, s, claim("plain", "x"))
	files, err := filepath.Glob(filepath.Join(s.dir, "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range append(files, s.internal("tokens")) {
		if err := os.Chmod(file, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Chmod(s.internal(""), 0o777), os.Chmod(s.dir, 0o333)); err != nil {
		t.Fatal(err)
	}
	defer os.Chmod(s.dir, 0o700)
	locks, err := filepath.Glob(s.internal("*.lock"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range locks {
		if err := os.Chmod(file, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	asNobody(t, func() {
		unsynced := func(what string, err error) {
			t.Helper()
			if err == nil || backend.Definite(err) || !strings.Contains(err.Error(), "synced") {
				t.Errorf("%s: %v", what, err)
			}
		}
		c := claim("new", "x")
		c.MinToken = 1000
		_, err := s.Acquire(t.Context(), c)
		unsynced("the first MinToken", err)
		_, err = s.Acquire(t.Context(), claim("vacant", "x"))
		unsynced("above a floor that may not last yet", err)
		_, err = s.Acquire(t.Context(), again)
		unsynced("the same attempt again, which may not have been made to last", err)
		unsynced("Release", s.Release(t.Context(), old))
		if got := get(t, s, "old"); !got.Vacant() {
			t.Errorf("released: %+v", got)
		}
		plain := get(t, s, "plain")
		if _, err := s.Renew(t.Context(), plain); err != nil {
			t.Errorf("Renew: %v", err)
		}
		if err := s.Release(t.Context(), plain); err != nil {
			t.Errorf("Release without a floor: %v", err)
		}
		if _, err := s.Acquire(t.Context(), claim("plain", "x")); err != nil {
			t.Errorf("Acquire without a floor: %v", err)
		}
	})
}

func TestNames(t *testing.T) {
	s := client(t, folder(t))
	names := []string{
		"a", "A", "aB", "Ab", "ab", "a~b", "a-b", "a.b", "a/b", "a/b/", "/a", "/", ".", "..", "...", ".a", "../../etc/passwd",
		"con", "CON", "nul", "tokens", ".leasehold", "a.json", "a.lock", "a b", " ", "\t", "\n", "%2f", "%", "{a}", "a\\b", "-", "_", "-rf", "*", "ü", "u\u0308", "日本語", "😀",
		strings.Repeat("a", maxReadable), strings.Repeat("a", maxReadable+1), strings.Repeat("b", 512), strings.Repeat("😀", 128),
		strings.TrimSuffix(fileName("A"), suffix), fileName("A"), strings.Repeat("\u2028", 170), strings.Repeat("\x01", 512),
	}
	for _, name := range names {
		rec := acquire(t, s, claim(name, "holder of "+name))
		if rec.Name != name {
			t.Errorf("%q was granted as %q", name, rec.Name)
		}
	}
	good := regexp.MustCompile(`^[a-z0-9_-][a-z0-9._-]{0,63}(~[0-9a-f]{32})?\.json$`)
	files, err := filepath.Glob(filepath.Join(s.dir, "*.json"))
	if err != nil || len(files) != len(names) {
		t.Errorf("%d files for %d names, %v", len(files), len(names), err)
	}
	for _, f := range files {
		if !good.MatchString(filepath.Base(f)) {
			t.Errorf("the file name %q", f)
		}
	}
	for _, name := range names {
		if got := get(t, s, name); got.Name != name || got.Holder != "holder of "+name {
			t.Errorf("under %q lies %+v", name, got)
		}
	}
	for _, prefix := range []string{"", "a", "A", "a/", ".", "%", "😀", strings.Repeat("b", 100), strings.Repeat("b", 513), "nothing"} {
		var got, want []string
		for rec, err := range s.List(t.Context(), prefix) {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, rec.Name)
		}
		for _, name := range names {
			if strings.HasPrefix(name, prefix) {
				want = append(want, name)
			}
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("List(%q) yields %q, want %q", prefix, got, want)
		}
	}
	for rec := range s.List(t.Context(), "") {
		release(t, s, rec)
	}
	if files, _ := os.ReadDir(s.dir); len(files) != 1 { // of locks and tokens
		t.Errorf("left behind: %v", files)
	}
	for _, name := range []string{"", "a\x00", strings.Repeat("a", 513), "\xff"} {
		_, err := s.Acquire(t.Context(), claim(name, "x"))
		wantErr(t, "Acquire", err, backend.ErrInvalid)
	}
}

func TestCorruption(t *testing.T) {
	s := client(t, folder(t))
	acquire(t, s, claim("good", "x"))
	c := claim("a", "x")
	c.Metadata = map[string]string{"k": "v"}
	rec := acquire(t, s, c)
	path := filepath.Join(s.dir, "a.json")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(filepath.Join(s.dir, "good.json"))
	if err != nil {
		t.Fatal(err)
	}
	written, err := s.read("a", "a.json")
	if err != nil {
		t.Fatal(err)
	}
	put := func(text string) func() error {
		return func() error { return os.WriteFile(path, []byte(text), 0o600) }
	}
	edit := func(old, new string) func() error {
		edited := strings.Replace(string(text), old, new, 1)
		if edited == string(text) {
			t.Fatalf("%q is not there", old)
		}
		return put(edited)
	}
	release(t, s, floored(t, s, claim("v", "x"), 1000))
	vacant, err := os.ReadFile(filepath.Join(s.dir, "v.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(s.dir, "v.json")); err != nil {
		t.Fatal(err)
	}
	vacant = bytes.Replace(vacant, []byte(`"name": "v"`), []byte(`"name": "a"`), 1)
	editVacant := func(old, new string) func() error {
		edited := strings.Replace(string(vacant), old, new, 1)
		if edited == string(vacant) {
			t.Fatalf("%q is not in %s", old, vacant)
		}
		return put(edited)
	}
	type test struct {
		make  func() error
		says  string
		stays bool // even by force
	}
	tests := map[string]test{
		"empty":            {make: put(""), says: "empty"},
		"zeros":            {make: put(string(make([]byte, 400))), says: "damaged"},
		"text":             {make: put("hello"), says: "damaged"},
		"foreign":          {make: put(`{"a": 1}`), says: "not a lease"},
		"array":            {make: put(`[]`), says: "damaged"},
		"newer":            {make: edit(`"leasehold": 1`, `"leasehold": 2`), says: "format 2"},
		"newer, odd":       {make: put(`{"leasehold": 3, "holder": ["a", "b"]}`), says: "format 3"},
		"of another":       {make: put(string(good)), says: `another lease, "good"`},
		"twice":            {make: put(string(text) + string(text)), says: "damaged"},
		"no holder":        {make: edit(`"holder": "x"`, `"holder": ""`), says: "no holder"},
		"no token":         {make: edit(`"token": 2`, `"token": 0`), says: "token 0"},
		"huge token":       {make: edit(`"token": 2`, `"token": 9007199254740992`), says: "token 9007199254740992"},
		"negative":         {make: edit(`"duration": "10s"`, `"duration": "-10s"`), says: "duration -10s"},
		"a century":        {make: edit(`"duration": "10s"`, `"duration": "876000h"`), says: "duration 876000h"},
		"from the future":  {make: edit(fmt.Sprintf(`"renewed": %20d`, written.record.Renewed), `"renewed": 9223372036854775807`), says: "time of renewal"},
		"far too large":    {make: func() error { return errors.Join(put("")(), os.Truncate(path, 1<<40)) }, says: "too large"},
		"empty folder":     {make: func() error { return os.Mkdir(path, 0o700) }, says: "a folder"},
		"folder":           {make: func() error { return os.MkdirAll(filepath.Join(path, "x"), 0o700) }, says: "a folder", stays: true},
		"link":             {make: func() error { return os.Symlink(filepath.Join(s.dir, "good.json"), path) }, says: "symbolic link"},
		"link to nowhere":  {make: func() error { return os.Symlink("nowhere", path) }, says: "symbolic link"},
		"pipe":             {make: func() error { return unix.Mkfifo(path, 0o600) }, says: "no regular file"},
		"no holder, floor": {make: edit(`"holder": "x"`, `"floor": 1, "holder": ""`), says: "no holder"},
		"token at floor":   {make: edit(`"token": 2`, `"token": 2, "floor": 2`), says: "token 2"},
		"negative floor":   {make: edit(`"token": 2`, `"token": 2, "floor": -1`), says: "damaged"},
		"vacant, no floor": {make: editVacant(`"floor": 1000`, `"floor": 0`), says: "no holder"},
		"floor missing":    {make: editVacant(`"floor": 1000,`, ``), says: "no holder"},
		"greatest floor":   {make: editVacant(`"floor": 1000`, `"floor": 9007199254740991`), says: "floor 9007199254740991"},
		"vacant, token":    {make: editVacant(`"token": 0`, `"token": 1001`), says: "no holder"},
		"vacant seal":      {make: editVacant(`"token": 0`, `"token": 0, "seal": {"to": "b", "epoch": 1}`), says: "no holder"},
		"vacant of none":   {make: editVacant(`"boot": "`, `"boot": "", "x": "`), says: "time of renewal"},
		"vacant, newer":    {make: editVacant(`"leasehold": 1`, `"leasehold": 2`), says: "format 2"},
		"record of a boot": {make: edit(`"boot": "`, `"boot": "", "x": "`), says: "time of renewal"},
	}
	for n := 0; n < len(text)-2; n += 7 {
		tests[fmt.Sprint("cut off at ", n)] = test{make: put(string(text[:n])), says: ""}
	}
	for n := 0; n < len(vacant)-2; n += 7 {
		tests[fmt.Sprint("vacant, cut off at ", n)] = test{make: put(string(vacant[:n])), says: ""}
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if err := errors.Join(os.RemoveAll(path), tt.make()); err != nil {
				t.Fatal(err)
			}
			check := func(what string, err error) {
				t.Helper()
				wantErr(t, what, err, backend.ErrCorrupt, path, tt.says)
			}
			_, err := s.Get(t.Context(), "a")
			check("Get", err)
			var corrupt *backend.CorruptError
			if !errors.As(err, &corrupt) || corrupt.Name != "a" || corrupt.Where != path || corrupt.Revision == "" {
				t.Fatalf("Get returns %#v", err)
			}
			_, err = s.Acquire(t.Context(), claim("a", "y"))
			check("Acquire", err)
			wrong := claim("a", "y")
			wrong.Over = rec.Revision
			_, err = s.Acquire(t.Context(), wrong)
			check("Acquire over another revision", err)
			_, err = s.Renew(t.Context(), rec)
			check("Renew", err)
			check("Release", s.Release(t.Context(), rec))
			for _, err := range s.Watch(t.Context(), "a") {
				check("Watch", err)
			}
			listed := make(map[string]error)
			for rec, err := range s.List(t.Context(), "") {
				listed[rec.Name] = err
			}
			check("List", listed["a"])
			if err, found := listed["good"]; err != nil || !found {
				t.Errorf("List of the others: %v, %v", err, found)
			}
			release(t, s, acquire(t, s, claim("other", "x")))

			over := claim("a", "y")
			over.Over = corrupt.Revision
			got, err := s.Acquire(t.Context(), over)
			if tt.stays {
				check("Acquire over it", err)
				return
			}
			if err != nil || got.Token <= rec.Token || got.Transitions != 0 {
				t.Errorf("Acquire over it: %+v, %v", got, err)
			}
			release(t, s, got)
		})
	}
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(filepath.Join(s.dir, "good.json")); !bytes.Equal(got, good) {
		t.Error("the target of a symbolic link was changed")
	}
	// What has another suffix is nobody's business.
	if err := os.WriteFile(filepath.Join(s.dir, "README"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for rec, err := range s.List(t.Context(), "") {
		if rec.Name != "good" || err != nil {
			t.Errorf("List yields %+v, %v", rec, err)
		}
	}
}

func TestFolders(t *testing.T) {
	try := func(dir string, want error, texts ...string) {
		t.Helper()
		s, err := New(dir)
		wantErr(t, "New", err, want, texts...)
		if s != nil {
			t.Error("New returns a Store and an error")
		}
	}
	base := t.TempDir()
	dir := filepath.Join(base, "a", "b c")
	s := client(t, dir)
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("New made %v, %v", info, err)
	}
	if s.Traits().Namespace != s.dir {
		t.Errorf("the namespace is %q", s.Traits().Namespace)
	}
	rec := acquire(t, s, claim("x", "y"))
	link := filepath.Join(base, "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	if got := get(t, client(t, link), "x"); !got.SameTenure(rec) {
		t.Errorf("through a symbolic link: %+v", got)
	}
	if err := os.WriteFile(filepath.Join(base, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	try(filepath.Join(base, "file"), backend.ErrInvalid, "not a folder")
	try(filepath.Join(base, "file", "below"), backend.ErrInvalid)
	try("", backend.ErrInvalid)
	try("a\x00b", backend.ErrInvalid)
	try(filepath.Join(base, strings.Repeat("n", 300)), backend.ErrInvalid)

	if err := os.Chmod(dir, 0o770); err != nil {
		t.Fatal(err)
	}
	try(dir, backend.ErrInvalid, s.dir, "0770", "chmod", "AllowShared")
	shared := client(t, dir, AllowShared())
	acquire(t, shared, claim("shared", "y"))
	for _, file := range []string{filepath.Join(dir, "shared.json"), shared.shard("shared").path, shared.internal("tokens")} {
		// Those that the first client made are of its time.
		if info, err := os.Stat(file); err != nil || !strings.HasSuffix(file, "tokens") && info.Mode().Perm() != 0o660 {
			t.Errorf("in a shared folder: %v, %v", info.Mode(), err)
		}
	}

	remote := func(s *Store) {
		s.fileSystem = func(string) (string, bool, error) { return remoteFileSystems[unix.NFS_SUPER_MAGIC], true, nil }
	}
	below := filepath.Join(base, "c", "d")
	_, err := New(below, remote)
	wantErr(t, "New on NFS", err, backend.ErrInvalid, below, "NFS", "AllowNetwork")
	if _, err := os.Stat(filepath.Dir(below)); err == nil {
		t.Error("New refused the file system and left a folder on it")
	}
	client(t, below, remote, AllowNetwork())
	if name, remote, err := fileSystem(base); remote || err != nil {
		t.Errorf("the file system of the test is %s, %v", name, err)
	}
	for uid, want := range map[int]bool{0: false, os.Geteuid(): false, 4711: true} {
		if got := (owner{uid: uid}).foreign(); got != want {
			t.Errorf("uid %d is foreign: %v", uid, got)
		}
	}
}

// asNobody runs f without the rights of root, which every test here may have.
func asNobody(t *testing.T, f func()) {
	if os.Geteuid() != 0 {
		f()
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlock: the thread ends with us
		if _, err := unix.SetfsuidRetUid(65534); err != nil {
			t.Error(err)
			return
		}
		f()
	}()
	<-done
}

func TestPermissions(t *testing.T) {
	base := t.TempDir()
	if err := os.Chmod(filepath.Dir(base), 0o755); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(base, "leases")
	s := client(t, dir)
	acquire(t, s, claim("mine", "x"))
	if err := os.Chmod(base, 0o555); err != nil {
		t.Fatal(err)
	}
	defer os.Chmod(base, 0o755)
	if err := os.Chmod(dir, 0o555); err != nil {
		t.Fatal(err)
	}
	defer os.Chmod(dir, 0o755)
	asNobody(t, func() {
		_, err := New(dir)
		wantErr(t, "New in a folder that cannot be written to", err, backend.ErrDenied, dir, "uid")
		_, err = New(filepath.Join(base, "another"))
		wantErr(t, "New of a folder that cannot be made", err, backend.ErrDenied, "another")
	})
	s = client(t, dir) // whoever runs the test, the rights come later
	asNobody(t, func() {
		_, err := s.Acquire(t.Context(), claim("x", "y"))
		wantErr(t, "Acquire", err, backend.ErrDenied, "uid")
		wantErr(t, "Release", s.Release(t.Context(), backend.Record{Name: "mine", Holder: "x", Token: 1}), backend.ErrDenied)
	})
	if os.Geteuid() != 0 {
		return // what follows takes a second user
	}
	if err := errors.Join(os.Chmod(dir, 0o755), os.Chmod(s.internal(""), 0o755), os.Chmod(s.shard("mine").path, 0o644)); err != nil {
		t.Fatal(err)
	}
	asNobody(t, func() {
		_, err := s.Get(t.Context(), "mine")
		wantErr(t, "Get of an unreadable record", err, backend.ErrCorrupt, "may not read")
	})
	if err := os.Chown(dir, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	_, err := New(dir)
	wantErr(t, "New in another's folder", err, backend.ErrInvalid, "uid 65534", "AllowShared")
	s = client(t, dir, AllowShared())
	acquire(t, s, claim("by root", "x"))
	for _, file := range []string{filepath.Join(dir, fileName("by root")), s.shard("by root").path} {
		info, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		if uid := info.Sys().(*syscall.Stat_t).Uid; uid != 65534 {
			t.Errorf("root made %s and kept it as uid %d", file, uid)
		}
	}
}

func TestURL(t *testing.T) {
	dir := folder(t)
	s, err := backend.Open(t.Context(), "file://"+dir+"?shared=allow&network=allow")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	acquire(t, s.(*Store), claim("a", "x"))
	for _, url := range []string{
		"file:", "file:foo", "file://host/dir", "file:///", "file://", "file:///tmp?x=y", "file:///tmp?shared=yes", "file:///tmp?shared=", "file:///tmp#x", "file://u:p@localhost/tmp",
	} {
		s, err := backend.Open(t.Context(), url)
		wantErr(t, url, err, backend.ErrInvalid)
		if s != nil {
			t.Errorf("%s opens a %v", url, s.Traits())
		}
	}
}

func TestClosedAndEnded(t *testing.T) {
	s := client(t, folder(t))
	rec := acquire(t, s, claim("a", "x"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := s.Acquire(ctx, claim("b", "x"))
	wantErr(t, "Acquire whose context has ended", err, context.Canceled)
	_, err = s.Get(t.Context(), "b")
	wantErr(t, "Get of what was not acquired", err, backend.ErrNotFound)
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		t.Error(err)
	}
	_, err = s.Get(t.Context(), "a")
	wantErr(t, "Get", err, backend.ErrInvalid, "closed")
	_, err = s.Acquire(t.Context(), claim("b", "x"))
	wantErr(t, "Acquire", err, backend.ErrInvalid, "closed")
	_, err = s.Renew(t.Context(), rec)
	wantErr(t, "Renew", err, backend.ErrInvalid, "closed")
	wantErr(t, "Release", s.Release(t.Context(), rec), backend.ErrInvalid, "closed")
	for _, err := range s.List(t.Context(), "") {
		wantErr(t, "List", err, backend.ErrInvalid, "closed")
	}
	for _, err := range s.Watch(t.Context(), "a") {
		wantErr(t, "Watch", err, backend.ErrInvalid, "closed")
	}
}

// Commands that cron starts, one after the other, each of which asks once: the
// wait for a record of another boot must not begin anew with each.
func TestRefusalByARecordOfAnotherBootIsNoted(t *testing.T) {
	dir := folder(t)
	clock := &fakeClock{now: time.Hour}
	before := client(t, dir, rebooted("before", &fakeClock{now: 100 * time.Hour}))
	rec := acquire(t, before, claim("a", "x"))
	once := func() error {
		_, err := client(t, dir, rebooted("after", clock)).Acquire(t.Context(), claim("a", "y"))
		return err
	}
	wantErr(t, "the first", once(), backend.ErrHeld)
	clock.advance(9 * time.Second)
	wantErr(t, "after 9 s", once(), backend.ErrHeld)
	// It lives after all, in another time namespace: the wait begins anew.
	if _, err := before.Renew(t.Context(), rec); err != nil {
		t.Fatal(err)
	}
	clock.advance(2 * time.Second)
	wantErr(t, "2 s after it was renewed", once(), backend.ErrHeld)
	clock.advance(10*time.Second - 1)
	wantErr(t, "1 ns before it is over", once(), backend.ErrHeld)
	if got := get(t, client(t, dir, rebooted("third", clock)), "a"); got.Expired {
		t.Errorf("another boot believes the note: %+v", got)
	}
	clock.advance(1)
	if err := once(); err != nil {
		t.Errorf("after its duration: %v", err)
	}
	if _, err := os.Stat(before.notesPath("a")); !os.IsNotExist(err) {
		t.Errorf("the note is left behind: %v", err)
	}
	for _, floor := range []uint64{0, 1000} {
		name := fmt.Sprint("released ", floor)
		rec := floored(t, before, claim(name, "x"), floor)
		_, err := client(t, dir, rebooted("after", clock)).Acquire(t.Context(), claim(name, "y"))
		wantErr(t, name, err, backend.ErrHeld)
		if _, err := os.Stat(before.notesPath(name)); err != nil {
			t.Fatal(err)
		}
		release(t, client(t, dir, rebooted("after", clock)), rec)
		if _, err := os.Stat(before.notesPath(name)); !os.IsNotExist(err) {
			t.Errorf("%s, and the note is left behind: %v", name, err)
		}
	}
}

// A waiter that saw the lease free and was refused, by a holder that has gone
// again, must be woken: it will not see that holder. So it is
// whether or not Release leaves a record.
func TestWatchTellsOfAbsenceAgain(t *testing.T) {
	for _, floor := range []uint64{0, 1000} {
		dir := folder(t)
		s, other := client(t, dir), client(t, dir)
		if floor != 0 {
			release(t, other, floored(t, other, claim("a", "x"), floor))
		}
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		seen := 0
		for rec, err := range s.Watch(ctx, "a") {
			if err != nil || !rec.Vacant() || (rec.Revision != "") != (floor != 0) {
				t.Fatalf("%+v, %v", rec, err)
			}
			if seen++; seen == 3 {
				break
			}
			release(t, other, acquire(t, other, claim("a", "x")))
		}
		if seen != 3 {
			t.Errorf("told %d times, with MinToken %d", seen, floor)
		}
	}
}

// A process that is stopped while it takes a token must not make live holders
// lose their leases because others wait for one.
func TestStuckTokenCounterDoesNotKeepHoldersFromRenewing(t *testing.T) {
	dir := folder(t)
	holder, other := client(t, dir), client(t, dir)
	rec := acquire(t, holder, claim("a", "x"))
	free := "b"
	for holder.shard(free) != holder.shard("a") {
		free += "b"
	}
	stuck := flock.New(holder.tokens.path)
	if ok, err := stuck.TryLock(); !ok {
		t.Fatal(err)
	}
	defer stuck.Unlock()
	ctx, cancel := context.WithCancel(t.Context())
	waiting := make(chan error, 1)
	go func() {
		_, err := other.Acquire(ctx, claim(free, "y"))
		waiting <- err
	}()
	for start := time.Now(); time.Since(start) < 20*tokenPatience; {
		brief, done := context.WithTimeout(t.Context(), 10*tokenPatience)
		if _, err := holder.Renew(brief, rec); err != nil {
			t.Fatalf("while another waits for a token: %v", err)
		}
		done()
	}
	cancel()
	if err := <-waiting; !errors.Is(err, context.Canceled) {
		t.Errorf("the one that waited: %v", err)
	}
}

func TestRefusalDoesNotQueueBehindAStuckWriter(t *testing.T) {
	s := client(t, folder(t))
	acquire(t, s, claim("a", "x"))
	s.shard("a").turn <- struct{}{} // a goroutine of this Store waits for a stopped process
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, err := s.Acquire(ctx, claim("a", "y"))
	wantErr(t, "Acquire of a live lease", err, backend.ErrHeld)
	<-s.shard("a").turn
}

func TestLocksAreForThoseWhoMayWrite(t *testing.T) {
	for folderMode, want := range map[fs.FileMode]fs.FileMode{0o755: 0o600, 0o750: 0o600, 0o700: 0o600, 0o770: 0o660, 0o777: 0o666} {
		dir := t.TempDir()
		if err := os.Chmod(dir, folderMode); err != nil {
			t.Fatal(err)
		}
		s := client(t, dir, AllowShared())
		acquire(t, s, claim("a", "x"))
		for file, want := range map[string]fs.FileMode{s.shard("a").path: want, filepath.Join(dir, "a.json"): folderMode & 0o666} {
			info, err := os.Stat(file)
			if err != nil || info.Mode().Perm() != want {
				t.Errorf("folder %04o: %s has %v, %v; want %04o", folderMode, filepath.Base(file), info.Mode(), err, want)
			}
		}
	}
}
