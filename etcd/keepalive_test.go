package etcd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/leasehold/leasehold/backend"
)

// crowd acquires n names for an hour.
func crowd(t *testing.T, s *Store, n int) (recs []backend.Record) {
	t.Helper()
	for i := range n {
		c := claim("alice", "a")
		c.Name, c.Duration = fmt.Sprint("report", i), time.Hour
		recs = append(recs, acquired(t, s, c))
	}
	return recs
}

// atOnce renews all of them at the same time: none is answered before all have come.
func atOnce(t *testing.T, f *fake, s *Store, recs []backend.Record) {
	t.Helper()
	all := make(chan struct{})
	f.hooks(func(_ context.Context, c call) error {
		if c.what == "KeepAlive" {
			if c.n == len(recs) {
				close(all)
			}
			<-all
		}
		return nil
	}, nil)
	var wg sync.WaitGroup
	for _, rec := range recs {
		wg.Go(func() {
			if _, err := s.Renew(t.Context(), rec); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	f.hooks(nil, nil)
}

func TestKeeperReuse(t *testing.T) {
	inBubble(t, 2, func(t *testing.T, f *fake) {
		s := f.store()
		recs := crowd(t, s, 5)
		if n := f.pulsing(); n != 0 {
			t.Errorf("%d streams before the first renewal", n)
		}
		for range 3 {
			for _, rec := range recs {
				if _, err := s.Renew(t.Context(), rec); err != nil {
					t.Fatal(err)
				}
			}
		}
		if n := f.pulsing(); n != 1 {
			t.Errorf("%d streams for renewals one after the other", n)
		}
		for range 2 {
			atOnce(t, f, s, recs)
			if n := f.pulsing(); n != len(recs) {
				t.Errorf("%d streams for %d renewals at once", n, len(recs))
			}
		}
	})
}

// TestKeeperIdle: a stream that nobody uses for a minute is closed, one that is
// used stays.
func TestKeeperIdle(t *testing.T) {
	inBubble(t, 2, func(t *testing.T, f *fake) {
		s := f.store()
		recs := crowd(t, s, 3)
		atOnce(t, f, s, recs)
		for after, want := range []int{3, 3, 3, 1, 1, 1, 1} { // every 20 s, used each time
			if n := f.pulsing(); n != want {
				t.Errorf("%d streams after %d s, want %d", n, after*20, want)
			}
			time.Sleep(20*time.Second - time.Millisecond)
			if _, err := s.Renew(t.Context(), recs[0]); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Millisecond)
		}
		time.Sleep(2 * idleStream)
		if n := f.pulsing(); n != 0 {
			t.Errorf("%d streams that nobody uses", n)
		}
		if _, err := s.Renew(t.Context(), recs[0]); err != nil {
			t.Error(err)
		}
		time.Sleep(2 * idleStream)
		if n := f.pulsing(); n != 0 {
			t.Errorf("%d streams that nobody uses", n)
		}
	})
}

// TestKeeperFailure: if one stream fails, those that nobody uses are not trusted
// any more; those in use are left alone.
func TestKeeperFailure(t *testing.T) {
	inBubble(t, 2, func(t *testing.T, f *fake) {
		s := f.store()
		recs := crowd(t, s, 4)
		atOnce(t, f, s, recs)
		hold := make(chan struct{})
		f.hooks(func(_ context.Context, c call) error {
			switch {
			case c.what == "KeepAlive" && c.n == 1:
				<-hold
			case c.what == "KeepAlive" && c.n == 2:
				return lost
			}
			return nil
		}, nil)
		held := make(chan error, 1)
		go func() { _, err := s.Renew(t.Context(), recs[0]); held <- err }()
		synctest.Wait()
		if _, err := s.Renew(t.Context(), recs[1]); err != nil {
			t.Error(err)
		}
		if n := f.pulsing(); n != 2 {
			t.Errorf("%d streams, want the one in use and a new one", n)
		}
		close(hold)
		if err := <-held; err != nil {
			t.Error(err)
		}
		f.mu.Lock()
		n := 0
		for _, c := range f.log {
			if c.what == "KeepAlive" {
				n++
			}
		}
		f.mu.Unlock()
		if n != 3 {
			t.Errorf("%d renewals were sent, want 3: the one that was under way was not hurt", n)
		}
		// All members hang up while no renewal is under way.
		f.hangUp(lost)
		synctest.Wait()
		if _, err := s.Renew(t.Context(), recs[0]); err != nil {
			t.Error(err)
		}
		if n := f.pulsing(); n != 1 {
			t.Errorf("%d streams", n)
		}
	})
}

// TestKeeperCancel: a renewal that its caller gives up leaves no stream on which
// its answer could still arrive, and be taken for another's.
func TestKeeperCancel(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, f *fake) {
		s := f.store()
		recs := crowd(t, s, 2)
		atOnce(t, f, s, recs[:1])
		f.hooks(func(ctx context.Context, c call) error {
			if c.what == "KeepAlive" && c.n == 1 {
				return silent(ctx)
			}
			return nil
		}, nil)
		ctx, cancel := context.WithCancel(t.Context())
		const brief = 300 * time.Millisecond // not the time of an attempt
		time.AfterFunc(brief, cancel)
		began := time.Now()
		if _, err := s.Renew(ctx, recs[0]); !errors.Is(err, context.Canceled) || time.Since(began) != brief {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		if _, err := s.Renew(t.Context(), recs[1]); err != nil {
			t.Error(err)
		}
		if n := f.pulsing(); n != 2 {
			t.Errorf("%d streams, want one that still waits for the answer, and another", n)
		}
		time.Sleep(exchangeLimit)
		synctest.Wait()
		if n := f.pulsing(); n != 1 {
			t.Errorf("%d streams are left", n)
		}
	})
}

// TestKeeperClose: Close ends the streams, also one that is in use, as soon as it
// is not.
func TestKeeperClose(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, f *fake) {
		s := f.store()
		recs := crowd(t, s, 3)
		atOnce(t, f, s, recs)
		hold := make(chan struct{})
		f.hooks(func(_ context.Context, c call) error {
			if c.what == "KeepAlive" {
				<-hold
			}
			return nil
		}, nil)
		held := make(chan error, 1)
		go func() { _, err := s.Renew(t.Context(), recs[0]); held <- err }()
		synctest.Wait()
		_ = s.Close()
		if n := f.pulsing(); n != 1 {
			t.Errorf("%d streams, want the one in use", n)
		}
		close(hold)
		if err := <-held; err != nil {
			t.Errorf("a renewal that was under way: %v", err)
		}
		if n := f.pulsing(); n != 0 {
			t.Errorf("%d streams are left", n)
		}
		time.Sleep(2 * idleStream)
	})
}

// stubPulse is a stream of renewals without a connection. Only what keeper uses of
// it is there.
type stubPulse struct {
	pb.Lease_LeaseKeepAliveClient
	ctx  context.Context
	send func(*pb.LeaseKeepAliveRequest) error
	recv func() (*pb.LeaseKeepAliveResponse, error)
}

func (s *stubPulse) Send(r *pb.LeaseKeepAliveRequest) error    { return s.send(r) }
func (s *stubPulse) Recv() (*pb.LeaseKeepAliveResponse, error) { return s.recv() }

// TestKeeperErrors: what a renewal fails with is what the stream ended with.
func TestKeeperErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var opened []*stubPulse
		sent := func(*pb.LeaseKeepAliveRequest) error { return nil }
		next := stubPulse{send: sent}
		var refused error
		k := &keeper{open: func(ctx context.Context) (pb.Lease_LeaseKeepAliveClient, error) {
			if refused != nil {
				return nil, refused
			}
			s := next
			s.ctx = ctx
			opened = append(opened, &s)
			return &s, nil
		}}
		defer k.close()
		for name, test := range map[string]struct {
			stub stubPulse
			want error
		}{
			"ended before it was sent": {stubPulse{send: func(*pb.LeaseKeepAliveRequest) error { return io.EOF }, recv: func() (*pb.LeaseKeepAliveResponse, error) { return nil, rpctypes.ErrGRPCNoLeader }}, rpctypes.ErrNoLeader},
			"ended after it":           {stubPulse{send: sent, recv: func() (*pb.LeaseKeepAliveResponse, error) { return nil, rpctypes.ErrGRPCPermissionDenied }}, rpctypes.ErrPermissionDenied},
			"no such etcd lease":       {stubPulse{send: sent, recv: func() (*pb.LeaseKeepAliveResponse, error) { return &pb.LeaseKeepAliveResponse{ID: 1}, nil }}, rpctypes.ErrLeaseNotFound},
		} {
			next = test.stub
			if ttl, err := k.renew(t.Context(), 1); !errors.Is(err, test.want) || ttl != 0 {
				t.Errorf("%s: %d, %v; want %v", name, ttl, err, test.want)
			}
			if open := opened[len(opened)-1].ctx.Err() == nil; open != (test.want == rpctypes.ErrLeaseNotFound) {
				t.Errorf("%s: the stream is open: %v", name, open)
			}
			k.drop(time.Now())
			if opened[len(opened)-1].ctx.Err() == nil {
				t.Errorf("%s: the stream is not closed", name)
			}
		}
		// An answer to another's question: the stream has lost count.
		next = stubPulse{send: sent, recv: func() (*pb.LeaseKeepAliveResponse, error) { return &pb.LeaseKeepAliveResponse{ID: 2, TTL: 7}, nil }}
		if ttl, err := k.renew(t.Context(), 1); err == nil || errors.Is(err, rpctypes.ErrLeaseNotFound) || len(k.idle) != 0 || opened[len(opened)-1].ctx.Err() == nil {
			t.Errorf("an answer for another: %d, %v", ttl, err)
		}
		refused = rpctypes.ErrGRPCUserEmpty
		if _, err := k.renew(t.Context(), 1); !errors.Is(err, rpctypes.ErrUserEmpty) {
			t.Errorf("no stream: %v", err)
		}
		refused = nil
	})
}

// TestStreamOutlivesItsCaller: a renewal that has waited for a stream until its time
// was over has not opened it in vain.
func TestStreamOutlivesItsCaller(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, _ *fake) {
		k := keeper{open: func(ctx context.Context) (pb.Lease_LeaseKeepAliveClient, error) {
			time.Sleep(200 * time.Millisecond)
			return &stubPulse{
				ctx:  ctx,
				send: func(*pb.LeaseKeepAliveRequest) error { return nil },
				recv: func() (*pb.LeaseKeepAliveResponse, error) {
					select {
					case <-ctx.Done():
						return nil, ctx.Err()
					case <-time.After(20 * time.Millisecond):
						return &pb.LeaseKeepAliveResponse{ID: 1, TTL: 7}, nil
					}
				},
			}, nil
		}}
		defer k.close()
		ctx, cancel := context.WithTimeout(t.Context(), 210*time.Millisecond)
		defer cancel()
		began := time.Now()
		first := make(chan error, 1)
		go func() { _, err := k.renew(ctx, 1); first <- err }()
		synctest.Wait()
		if _, err := k.renew(t.Context(), 1); err != nil {
			t.Error(err)
		}
		if err := <-first; !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		// One opening and two answers.
		if took := time.Since(began); took != 240*time.Millisecond {
			t.Errorf("the second is renewed after %v", took)
		}
		time.Sleep(time.Second) // another is being opened
	})
}
