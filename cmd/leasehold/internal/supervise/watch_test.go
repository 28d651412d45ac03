//go:build unix

package supervise

import (
	"testing"
	"time"
)

const ms = time.Millisecond

// p has a grace of 900 ms and so a lag of 225 ms.
var p = Plan{Term: 1000 * ms, Kill: 1900 * ms, Deadline: 2000 * ms}

func TestWatchFollowsThePlan(t *testing.T) {
	orphan := func(w watch, now time.Duration) watch { w.orphan(now); return w }
	tests := []struct {
		what string
		w    watch
		now  time.Duration
		do   action
		next time.Duration
	}{
		{"nothing runs", watch{plan: p}, 5000 * ms, nothing, 0},
		{"there is time", watch{plan: p, running: true}, 0, nothing, 1225 * ms},
		{"the wrapper goes first", watch{plan: p, running: true}, 1000 * ms, nothing, 1225 * ms},
		{"the wrapper did not", watch{plan: p, running: true}, 1225 * ms, tell, 1900 * ms},
		{"the wrapper did", watch{plan: p, running: true, stopping: true}, 1225 * ms, nothing, 1900 * ms},
		{"told once", watch{plan: p, running: true, told: true}, 1300 * ms, nothing, 1900 * ms},
		{"time is up", watch{plan: p, running: true, told: true}, 1900 * ms, kill, 0},
		{"time is up, whatever the wrapper does", watch{plan: p, running: true, stopping: true}, 1900 * ms, kill, 0},
		{"long after, as on waking from suspend", watch{plan: p, running: true}, 9000 * ms, kill, 0},
		{"wrapper gone, nothing runs", orphan(watch{plan: p}, 0), 0, leave, 0},
		{"wrapper gone", orphan(watch{plan: p, running: true}, 100*ms), 100 * ms, tell, 1000 * ms},
		{"wrapper gone, told", orphan(watch{plan: p, running: true, told: true}, 100*ms), 100 * ms, nothing, 1000 * ms},
		{"wrapper gone, grace used up", orphan(watch{plan: p, running: true, told: true}, 100*ms), 1000 * ms, kill, 0},
		{"wrapper gone in the middle of stopping", orphan(watch{plan: p, running: true, stopping: true}, 1500*ms), 1500 * ms, tell, 1900 * ms},
		{"wrapper gone before any plan", orphan(watch{running: true}, 100*ms), 100 * ms, kill, 0},
	}
	for _, tt := range tests {
		do, next := tt.w.due(tt.now)
		if do != tt.do || next != tt.next {
			t.Errorf("%s: at %v do %v, ask again at %v; want %v, %v", tt.what, tt.now, do, next, tt.do, tt.next)
		}
	}
}

func TestPlanLeavesTimeForAll(t *testing.T) {
	for _, duration := range []time.Duration{50 * ms, 100 * ms, time.Second, 15 * time.Second, time.Hour} {
		for _, grace := range []time.Duration{2 * ms, duration / 20, DefaultGrace(duration), duration / 2} {
			p := NewPlan(duration, grace, duration)
			if !(p.Term < p.Kill && p.Kill < p.Deadline) || p.Deadline-p.Term != grace || p.Kill-p.Term < grace/2 {
				t.Errorf("duration %v, grace %v: the plan is %+v", duration, grace, p)
			}
		}
	}
}

func TestInnerVariablesWin(t *testing.T) {
	got := merge([]string{"A=outer", "B=1", "A=again", "AB=2"}, []string{"A=inner", "C="})
	want := []string{"B=1", "AB=2", "A=inner", "C="}
	if len(got) != len(want) {
		t.Fatal(got)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("got %q, want %q", got, want)
		}
	}
}
