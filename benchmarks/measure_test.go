//go:build unix

package benchmarks

import (
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"
)

// figure is one number of a result line; names end in what they count or are
// measured in.
type figure struct {
	value float64
	unit  string
}

// report prints a line of figures as a benchmark of its own. A benchmark here is
// an experiment, which measures all that is to be compared before it reports
// anything; so the time that the line itself took is left out.
func report(b *testing.B, name string, figures ...figure) {
	b.Run(name, func(b *testing.B) {
		b.ReportMetric(0, "ns/op")
		for _, f := range figures {
			b.ReportMetric(f.value, f.unit)
		}
	})
}

// times are how long something took, again and again.
type times []time.Duration

// quantile returns what the given part of them did not exceed.
func (t times) quantile(q float64) time.Duration {
	if len(t) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(t))
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

func (t times) median() time.Duration { return t.quantile(0.5) }

// figures returns what is told of them everywhere.
func (t times) figures() []figure {
	return []figure{
		{ms(t.median()), "median_ms"},
		{ms(t.quantile(0.99)), "p99_ms"},
		{float64(len(t)), "samples"},
	}
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func ratio(a, b time.Duration) float64 { return float64(a) / float64(b) }

// cpuTime is what this process has used.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// memory is what is in use, stacks included.
func memory() uint64 {
	runtime.GC()
	runtime.GC() // what the first has finalized
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}

// allocations returns how often f allocates and how much, with all that its
// connection does meanwhile. Nothing else may run.
func allocations(f func()) (n, bytes uint64) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.Mallocs - before.Mallocs, after.TotalAlloc - before.TotalAlloc
}
