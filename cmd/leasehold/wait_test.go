package main

import (
	"context"
	"errors"
	"iter"
	"testing"
	"time"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/backend/memory"
)

// mute is a store that never says that a tenure has expired, and not how long
// it has to go.
type mute struct{ *memory.Store }

func (m mute) Get(ctx context.Context, name string) (backend.Record, error) {
	rec, err := m.Store.Get(ctx, name)
	rec.Expired, rec.Remaining = false, 0
	return rec, err
}

func (m mute) Watch(ctx context.Context, name string) iter.Seq2[backend.Record, error] {
	return func(yield func(backend.Record, error) bool) {
		for rec, err := range m.Store.Watch(ctx, name) {
			rec.Expired, rec.Remaining = false, 0
			if !yield(rec, err) {
				return
			}
		}
	}
}

func TestWaitSeesSilence(t *testing.T) {
	s := mute{memory.New()}
	const duration = 200 * time.Millisecond
	rec, err := s.Acquire(t.Context(), backend.Claim{Name: "job", Holder: "h", Duration: duration})
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(duration/2, func() { s.Renew(context.Background(), rec) })
	began := time.Now()
	got, err := waitFree(t.Context(), s, "job")
	if err != nil || !got.Expired || got.Holder != "h" {
		t.Errorf("%+v, %v", got, err)
	}
	if took := time.Since(began); took < duration*3/2 {
		t.Errorf("it took the holder for dead after %v", took)
	}
}

func TestWaitGivesUp(t *testing.T) {
	s := memory.New()
	if _, err := s.Acquire(t.Context(), backend.Claim{Name: "job", Holder: "h", Duration: time.Hour}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeoutCause(t.Context(), 20*time.Millisecond, errTimeout)
	defer cancel()
	if rec, err := waitFree(ctx, s, "job"); !errors.Is(err, errTimeout) || rec.Holder != "h" {
		t.Errorf("%+v, %v", rec, err)
	}
}
