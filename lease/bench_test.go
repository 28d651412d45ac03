//go:build unix

package lease_test

import (
	"flag"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/backend/file"
	"github.com/leasehold/leasehold/backend/memory"
	"github.com/leasehold/leasehold/lease"
)

// stores runs a benchmark on each embedded store.
func stores(b *testing.B, run func(b *testing.B, s backend.Store)) {
	b.Run("memory", func(b *testing.B) { run(b, memory.New()) })
	b.Run("file", func(b *testing.B) {
		s, err := file.New(b.TempDir(), file.AllowShared())
		if err != nil {
			b.Skip(err)
		}
		defer s.Close()
		run(b, s)
	})
}

func benchLease(b *testing.B, s backend.Store) *lease.Lease {
	l, err := lease.New(s, "bench")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { l.Close() })
	return l
}

func BenchmarkHeld(b *testing.B) {
	for name, clock := range map[string]lease.Clock{"system": lease.SystemClock, "runtime": lease.RuntimeClock} {
		b.Run(name, func(b *testing.B) {
			l, err := lease.New(memory.New(), "bench", lease.WithClock(clock))
			if err != nil {
				b.Fatal(err)
			}
			defer l.Close()
			if err := l.Acquire(b.Context()); err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				if !l.Held() {
					b.Fatal("lost")
				}
			}
		})
	}
}

func BenchmarkAcquireRelease(b *testing.B) { stores(b, acquireRelease) }

func acquireRelease(b *testing.B, s backend.Store) {
	l := benchLease(b, s)
	ctx := b.Context()
	b.ReportAllocs()
	for b.Loop() {
		if err := l.Acquire(ctx); err != nil {
			b.Fatal(err)
		}
		if err := l.Release(ctx); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRenew(b *testing.B) { stores(b, renew) }

func renew(b *testing.B, s backend.Store) {
	l := benchLease(b, s)
	ctx := b.Context()
	if err := l.Acquire(ctx); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if err := l.Extend(ctx); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkHandOver is the time from the call of Release by one holder until
// another, who waits in Await, has the lease.
func BenchmarkHandOver(b *testing.B) { stores(b, handOver) }

func handOver(b *testing.B, s backend.Store) {
	leases := []*lease.Lease{benchLease(b, s), benchLease(b, s)}
	ctx := b.Context()
	if err := leases[0].Acquire(ctx); err != nil {
		b.Fatal(err)
	}
	var took []time.Duration
	blocked := make(chan struct{}, 16)
	for i := 0; b.Loop(); i++ {
		holder, waiter := leases[i%2], leases[(i+1)%2]
		done := make(chan time.Time, 1)
		go func() {
			blocked <- struct{}{}
			if err := waiter.Await(ctx); err != nil {
				b.Error(err)
			}
			done <- time.Now()
		}()
		<-blocked
		time.Sleep(2 * time.Millisecond) // let it come to wait
		start := time.Now()
		if err := holder.Release(ctx); err != nil {
			b.Fatal(err)
		}
		took = append(took, (<-done).Sub(start))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Nanoseconds()), "median-ns")
	b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds()), "p99-ns")
}

var (
	holdFor  = flag.Duration("hold", 20*time.Second, "how long BenchmarkManyLeases holds them")
	howMany  = flag.Int("leases", 100_000, "how many BenchmarkManyLeases holds")
	sampling = 100 * time.Millisecond
)

// BenchmarkManyLeases holds leases of 15 s in one process and reports what each
// costs. Run it with -benchtime 1x.
func BenchmarkManyLeases(b *testing.B) {
	for b.Loop() {
		n := *howMany
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		lost := 0
		svc := lease.NewRenewalService(nil)
		leases := many(b, memory.New(), svc, n, lease.WithDuration(15*time.Second))
		runtime.GC()
		runtime.ReadMemStats(&after)
		cpu, start, most := cpuTime(), time.Now(), 0
		for time.Since(start) < *holdFor {
			time.Sleep(sampling)
			most = max(most, runtime.NumGoroutine())
		}
		used := float64(cpuTime()-cpu) / float64(time.Since(start))
		for _, l := range leases {
			if !l.Held() {
				lost++
			}
			l.Close()
		}
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/float64(n), "bytes/lease")
		b.ReportMetric(used, "cores")
		b.ReportMetric(float64(most), "goroutines")
		b.ReportMetric(float64(lost), "lost")
	}
}

func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
