package departed

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/backend/memory"
	"github.com/leasehold/leasehold/cmd/leasehold/internal/procs"
	"github.com/leasehold/leasehold/conformance"
)

// dead is the metadata of a holder on this machine whose processes are gone.
func dead(t *testing.T) map[string]string {
	t.Helper()
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	id, err := procs.Find(cmd.Process.Pid)
	cmd.Process.Kill()
	cmd.Wait()
	if err != nil {
		t.Skip(err)
	}
	m, err := Metadata(id, id)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// orphaned returns the leader, which is gone, of a group that has a member.
func orphaned(t *testing.T) procs.ID {
	cmd := exec.Command("sh", "-c", "sleep 60 & read x")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	id, err := procs.Find(cmd.Process.Pid)
	t.Cleanup(func() { syscall.Kill(-id.PID, syscall.SIGKILL) })
	stdin.Close()
	cmd.Wait()
	if err != nil || !id.Gone() {
		t.Fatalf("the leader %v is not gone, %v", id, err)
	}
	return id
}

func self(t *testing.T) procs.ID {
	id, err := procs.Find(os.Getpid())
	if err != nil {
		t.Skip(err)
	}
	return id
}

func hold(t *testing.T, s backend.Store, name, holder string, metadata map[string]string) backend.Record {
	t.Helper()
	rec, err := s.Acquire(t.Context(), backend.Claim{Name: name, Holder: holder, Attempt: holder, Duration: time.Hour, Metadata: metadata})
	if err != nil {
		t.Fatal(err)
	}
	return rec
}

func claim(name string) backend.Claim {
	return backend.Claim{Name: name, Holder: "new", Attempt: "new", Duration: time.Hour}
}

func TestOnlyTheDepartedAreTakenOver(t *testing.T) {
	gone, me := dead(t), self(t)
	with := func(key, value string) map[string]string {
		m := maps.Clone(gone)
		if m[key] = value; value == "" {
			delete(m, key)
		}
		return m
	}
	leader := orphaned(t)
	reused := procs.ID{PID: me.PID, Start: me.Start + 1}
	tests := []struct {
		what     string
		metadata map[string]string
		departed bool
	}{
		{"all gone", gone, true},
		{"numbers reused", with(keyWrapper, reused.String()), true},
		{"wrapper alive", with(keyWrapper, me.String()), false},
		{"a member of the group alive, its leader gone", with(keyGroup, leader.String()), false},
		{"no metadata", nil, false},
		{"no machine", with(keyMachine, ""), false},
		{"another boot", with(keyMachine, "0"+gone[keyMachine]), false},
		{"another host", with(keyMachine, gone[keyMachine]+"2"), false},
		{"no wrapper", with(keyWrapper, ""), false},
		{"no group", with(keyGroup, ""), false},
		{"wrapper unreadable", with(keyWrapper, "soon"), false},
		{"group unreadable", with(keyGroup, "-1.5"), false},
	}
	for _, tt := range tests {
		inner := memory.New()
		s := Wrap(inner)
		old := hold(t, inner, "job", "old", tt.metadata)
		got, err := s.Get(t.Context(), "job")
		if err != nil || got.Expired != tt.departed || got.Holder != "old" {
			t.Errorf("%s: Get is %+v, %v", tt.what, got, err)
		}
		for rec, err := range s.List(t.Context(), "") {
			if err != nil || rec.Expired != tt.departed {
				t.Errorf("%s: List has %+v, %v", tt.what, rec, err)
			}
		}
		rec, err := s.Acquire(t.Context(), claim("job"))
		switch {
		case tt.departed && (err != nil || rec.Token <= old.Token):
			t.Errorf("%s: not taken over: %+v, %v", tt.what, rec, err)
		case !tt.departed && !errors.Is(err, backend.ErrHeld):
			t.Errorf("%s: taken over: %+v, %v", tt.what, rec, err)
		}
	}
}

func TestSealsAndExplicitClaimsAreLeftAlone(t *testing.T) {
	inner := memory.New()
	s := Wrap(inner)
	_, err := inner.Acquire(t.Context(), backend.Claim{Name: "moved", Holder: "seal", Duration: backend.Forever, Seal: &backend.Seal{To: "x", Epoch: 1}, Metadata: dead(t)})
	if err != nil {
		t.Fatal(err)
	}
	if rec, err := s.Get(t.Context(), "moved"); err != nil || rec.Expired {
		t.Errorf("a seal is %+v, %v", rec, err)
	}
	if _, err := s.Acquire(t.Context(), claim("moved")); !errors.Is(err, backend.ErrHeld) {
		t.Errorf("a sealed name was claimed: %v", err)
	}
	hold(t, inner, "job", "old", dead(t))
	c := claim("job")
	c.Over = "not it"
	if _, err := s.Acquire(t.Context(), c); !errors.Is(err, backend.ErrHeld) {
		t.Errorf("a claim over another revision: %v", err)
	}
}

// Of many who see the same dead holder one is granted its lease.
func TestOneTakesOver(t *testing.T) {
	for range 20 {
		inner := memory.New()
		s := Wrap(inner)
		hold(t, inner, "job", "old", dead(t))
		var wg sync.WaitGroup
		var mu sync.Mutex
		granted := 0
		for i := range 8 {
			wg.Go(func() {
				c := claim("job")
				c.Holder = fmt.Sprint("new", i)
				c.Attempt = c.Holder
				_, err := s.Acquire(context.Background(), c)
				if err == nil {
					mu.Lock()
					granted++
					mu.Unlock()
				} else if !errors.Is(err, backend.ErrHeld) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if granted != 1 {
			t.Fatalf("%d were granted it", granted)
		}
	}
}

func TestWatchTellsOfADeath(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	id, err := procs.Find(cmd.Process.Pid)
	if err != nil {
		t.Skip(err)
	}
	m, err := Metadata(id, id)
	if err != nil {
		t.Fatal(err)
	}
	inner := memory.New()
	s := Wrap(inner)
	hold(t, inner, "job", "old", m)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	var died time.Time
	n := 0
	for rec, err := range s.Watch(ctx, "job") {
		if err != nil {
			t.Fatal(err)
		}
		switch n++; {
		case n == 1 && !rec.Expired:
			died = time.Now()
			cmd.Process.Kill()
			cmd.Wait()
		case n == 2 && rec.Expired && rec.Holder == "old":
			if took := time.Since(died); took > 5*interval {
				t.Errorf("told after %v", took)
			}
			if err := inner.Release(ctx, rec); err != nil {
				t.Fatal(err)
			}
		case n == 3 && rec.Vacant():
			return
		default:
			t.Fatalf("the watch yields, as number %d, %+v", n, rec)
		}
	}
	t.Fatal("the watch ended")
}

// The process check is a store like any other.
func TestConformance(t *testing.T) {
	open := func() backend.Store {
		s, err := backend.Open(t.Context(), "memory:departed")
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	keep := open() // its records, from one client to the next
	defer keep.Close()
	conformance.Run(t, func(tb testing.TB) backend.Store { return Wrap(open()) })
}
