package boottime

import (
	"runtime"
	"strings"
	"testing"
	"time"
)

// The dispatcher is shared by all tests, so this one waits for its end.
func TestNothingRunsWithoutTimers(t *testing.T) {
	var c Clock
	c.AfterFunc(time.Hour, func() {}).Stop()
	buf := make([]byte, 1<<20)
	for deadline := time.Now().Add(10 * time.Second); ; runtime.Gosched() {
		if !strings.Contains(string(buf[:runtime.Stack(buf, true)]), "boottime.(*dispatcher).run") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the timer goroutine outlives its timers")
		}
	}
}

func TestIDIsStable(t *testing.T) {
	a, err := ID()
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := ID(); a != b || a == "" {
		t.Errorf("two calls give %q and %q", a, b)
	}
}
