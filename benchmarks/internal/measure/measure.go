//go:build unix

// Package measure is what the benchmarks count, time and report with.
package measure

import (
	"context"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"
)

// Figure is one number of a result line.
type Figure struct {
	Value float64
	Unit  string // ends in what is counted or what it is measured in
}

// Of returns a figure.
func Of[N int | int64 | uint64 | float64](value N, unit string) Figure {
	return Figure{float64(value), unit}
}

// Report prints a line of figures as a benchmark of its own. A benchmark here is
// an experiment, which measures all that is to be compared before it reports
// anything; so the time that the line itself took is left out.
func Report(b *testing.B, name string, figures ...Figure) {
	b.Run(name, func(b *testing.B) {
		b.ReportMetric(0, "ns/op")
		for _, f := range figures {
			b.ReportMetric(f.Value, f.Unit)
		}
	})
}

// Times are how long something took, again and again.
type Times []time.Duration

// Quantile returns what the given part of them did not exceed.
func (t Times) Quantile(q float64) time.Duration {
	if len(t) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(t))
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

// Median returns what half of them did not exceed.
func (t Times) Median() time.Duration { return t.Quantile(0.5) }

// Figures returns what is told of them everywhere.
func (t Times) Figures() []Figure {
	return []Figure{
		Of(MS(t.Median()), "median_ms"),
		Of(MS(t.Quantile(0.99)), "p99_ms"),
		Of(len(t), "samples"),
	}
}

// MS returns d in milliseconds.
func MS(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// US returns d in microseconds.
func US(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// Ratio returns how many times b is in a.
func Ratio(a, b time.Duration) float64 { return float64(a) / float64(b) }

// CPU is what this process has used.
func CPU() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// Memory is what is in use, stacks included.
func Memory() uint64 {
	runtime.GC()
	runtime.GC() // what the first has finalized
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}

// Allocations returns how often f allocates and how much, with all that its
// connection does meanwhile. Nothing else may run.
func Allocations(f func()) (n, bytes uint64) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.Mallocs - before.Mallocs, after.TotalAlloc - before.TotalAlloc
}

// Sleep waits for d, or until ctx ends.
func Sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}
