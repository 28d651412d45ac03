//go:build unix

package etcd_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/benchmarks/internal/measure"
	"github.com/leasehold/leasehold/etcd"
)

// candidate is one of those that take turns.
type candidate struct {
	name string
	do   func(ctx context.Context) error
}

// takeTurns has all candidates do it once in each round, in an order drawn each
// time, and reports how long it took them. The first is what the others are
// compared with.
func takeTurns(b *testing.B, rounds int, candidates ...candidate) {
	b.Helper()
	const (
		warm    = 20
		counted = 30 // for allocations
	)
	once := func(c candidate) time.Duration {
		start := time.Now()
		if err := c.do(b.Context()); err != nil {
			b.Fatalf("%s: %v", c.name, err)
		}
		return time.Since(start)
	}
	took := make([]measure.Times, len(candidates))
	for round := range warm + rounds {
		for _, i := range rand.Perm(len(candidates)) {
			if d := once(candidates[i]); round >= warm {
				took[i] = append(took[i], d)
			}
		}
	}
	for i, c := range candidates {
		n, bytes := measure.Allocations(func() {
			for range counted {
				once(c)
			}
		})
		measure.Report(b, c.name, append(took[i].Figures(),
			measure.Of(measure.Ratio(took[i].Median(), took[0].Median()), "ratio_to_raw"),
			measure.Of(n/counted, "allocs/op"),
			measure.Of(bytes/counted, "B/op"))...)
	}
}

// BenchmarkEtcdAcquireRelease measures acquiring a free name and releasing it.
func BenchmarkEtcdAcquireRelease(b *testing.B) {
	p := newPlace(b)
	cycle := func(name string, h holder) candidate {
		return candidate{name, func(ctx context.Context) error {
			if err := h.acquire(ctx); err != nil {
				return err
			}
			return h.release(ctx)
		}}
	}
	takeTurns(b, 1000,
		cycle("raw", p.raw(b, "raw")),
		cycle("raw-again", p.raw(b, "raw-again")),
		cycle("store", p.direct(b, "store")),
		cycle("lease", p.whole(b, p.client(b), "lease")),
		cycle("mutex-own-session", &ownMutex{wire: p.client(b), prefix: p.prefix + "own"}),
		cycle("mutex-shared-session", p.mutex(b, p.client(b), "shared")),
		cycle("raw-txn-delete", rawKey{p.raw(b, "raw-txn-delete")}),
	)
}

// BenchmarkEtcdRenew measures one renewal.
func BenchmarkEtcdRenew(b *testing.B) {
	p := newPlace(b)
	var candidates []candidate
	add := func(name string, r renewer) {
		if err := r.acquire(b.Context()); err != nil {
			b.Fatal(err)
		}
		candidates = append(candidates, candidate{name, r.renew})
	}
	add("raw", p.raw(b, "raw"))
	add("raw-again", p.raw(b, "raw-again"))
	add("raw-kept-stream", &rawStream{raw: p.raw(b, "raw-kept-stream")})
	add("store", p.direct(b, "store"))
	add("lease", p.whole(b, p.client(b), "lease"))
	takeTurns(b, 1000, candidates...)
}

// BenchmarkEtcdLog counts the entries in etcd's log, and the messages from the
// client, of one operation of each kind.
func BenchmarkEtcdLog(b *testing.B) {
	const times = 50
	p, ctx := newPlace(b), b.Context()
	count := func(name string, w *wire, before, f func(ctx context.Context) error) {
		b.Helper()
		var written, sent uint64
		for range times {
			if before != nil {
				if err := before(ctx); err != nil {
					b.Fatalf("before %s: %v", name, err)
				}
			}
			at, err := w.entries(ctx)
			if err != nil {
				b.Fatal(err)
			}
			requests := w.requests.Load()
			if err := f(ctx); err != nil {
				b.Fatalf("%s: %v", name, err)
			}
			sent += uint64(w.requests.Load() - requests)
			now, err := w.entries(ctx)
			if err != nil {
				b.Fatal(err)
			}
			written += now - at
		}
		measure.Report(b, name, measure.Of(float64(written)/times, "entries/op"), measure.Of(float64(sent)/times, "requests/op"))
	}
	refused := func(h holder) func(context.Context) error {
		return func(ctx context.Context) error {
			if err := h.acquire(ctx); !errors.Is(err, backend.ErrHeld) {
				return errors.Join(errors.New("it was not refused"), err)
			}
			return nil
		}
	}

	d := p.direct(b, "log")
	count("store/acquire-at-first", d.wire, nil, func(ctx context.Context) error {
		d.name += "x" // free each time, and never seen
		return d.acquire(ctx)
	})
	count("store/renew", d.wire, nil, d.renew)
	count("store/get", d.wire, nil, func(ctx context.Context) error {
		_, err := d.store.Get(ctx, d.name)
		return err
	})
	other := p.direct(b, d.name)
	count("store/refused-at-first", other.wire, func(context.Context) error {
		other.store = etcd.New(other.Client, p.prefix) // one that has not seen the name yet
		return nil
	}, refused(other))
	count("store/refused", other.wire, nil, refused(other))
	count("store/acquire-after-release", d.wire, d.release, d.acquire)
	count("store/release", d.wire, func(ctx context.Context) error {
		d.name += "y"
		return d.acquire(ctx)
	}, d.release)

	own := &ownMutex{wire: p.client(b), prefix: p.prefix + "own"}
	count("mutex-own-session/acquire-release", own.wire, nil, func(ctx context.Context) error {
		if err := own.acquire(ctx); err != nil {
			return err
		}
		return own.release(ctx)
	})
	shared := p.mutex(b, p.client(b), "shared")
	count("mutex-shared-session/acquire-release", shared.wire, nil, func(ctx context.Context) error {
		if err := shared.acquire(ctx); err != nil {
			return err
		}
		return shared.release(ctx)
	})
}
