//go:build linux

package file

import (
	"context"
	"slices"
	"testing"
	"time"
)

func BenchmarkAcquireRelease(b *testing.B) {
	s, ctx := client(b, folder(b)), context.Background()
	b.ReportAllocs()
	for b.Loop() {
		rec, err := s.Acquire(ctx, claim("bench", "holder"))
		if err == nil {
			err = s.Release(ctx, rec)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRefusedAcquire(b *testing.B) {
	s, ctx := client(b, folder(b)), context.Background()
	acquire(b, s, claim("bench", "holder"))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Acquire(ctx, claim("bench", "other")); err == nil {
			b.Fatal("granted")
		}
	}
}

func BenchmarkRenew(b *testing.B) {
	s, ctx := client(b, folder(b)), context.Background()
	rec := acquire(b, s, claim("bench", "holder"))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Renew(ctx, rec); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkGet(b *testing.B) {
	s, ctx := client(b, folder(b)), context.Background()
	acquire(b, s, claim("bench", "holder"))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Get(ctx, "bench"); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkWake measures from the call of Release to the arrival of the news at
// a watcher that is another client of the folder.
func BenchmarkWake(b *testing.B) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	dir := folder(b)
	s, other := client(b, dir), client(b, dir)
	free, held := make(chan time.Time, 1), make(chan struct{})
	go func() {
		for rec, err := range other.Watch(ctx, "bench") {
			switch {
			case err != nil:
				b.Error(err)
			case rec.Vacant():
				free <- time.Now()
			default:
				held <- struct{}{}
			}
		}
	}()
	<-free
	var took []time.Duration
	for b.Loop() {
		rec := acquire(b, s, claim("bench", "holder"))
		<-held
		start := time.Now()
		if err := s.Release(ctx, rec); err != nil {
			b.Fatal(err)
		}
		took = append(took, (<-free).Sub(start))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2]), "ns-median")
	b.ReportMetric(float64(took[len(took)*99/100]), "ns-p99")
}
