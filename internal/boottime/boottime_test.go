package boottime

import (
	"sync/atomic"
	"testing"
	"time"
)

func TestTimersFireInOrderAndNotEarly(t *testing.T) {
	var c Clock
	type fired struct{ want, got time.Duration }
	ch := make(chan fired, 100)
	start := c.Now()
	for i := range 100 {
		d := time.Duration((i*37)%100) * time.Millisecond / 4
		c.AfterFunc(d, func() { ch <- fired{start + d, c.Now()} })
	}
	for range 100 {
		if f := <-ch; f.got < f.want {
			t.Errorf("a timer fired %v early", f.want-f.got)
		}
	}
}

func TestStop(t *testing.T) {
	var c Clock
	var n atomic.Int32
	late := make(chan struct{})
	stopped := c.AfterFunc(20*time.Millisecond, func() { n.Add(1) })
	c.AfterFunc(60*time.Millisecond, func() { close(late) })
	if !stopped.Stop() {
		t.Error("Stop of a waiting timer reports false")
	}
	if stopped.Stop() {
		t.Error("a second Stop reports true")
	}
	<-late
	if n.Load() != 0 {
		t.Error("a stopped timer fired")
	}
	done := make(chan struct{})
	ran := c.AfterFunc(0, func() { close(done) })
	<-done
	if ran.Stop() {
		t.Error("Stop of a timer that has fired reports true")
	}
}

func BenchmarkNow(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		Now()
	}
}

func BenchmarkAfterFuncStop(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		Clock{}.AfterFunc(time.Hour, func() {}).Stop()
	}
}
