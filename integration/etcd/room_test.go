package etcd_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/etcd"
	"github.com/leasehold/leasehold/integration/internal/scene"
	"github.com/leasehold/leasehold/integration/internal/servers"
	"github.com/leasehold/leasehold/integration/internal/wire"
)

// room is a prefix of a test's own, and who is in it.
type room struct {
	*testing.T
	e      *servers.Etcd
	prefix string
	plain  *clientv3.Client // of somebody who may do everything and knows nothing of Leasehold
}

// enter returns a room on the server that all tests share. The test runs beside
// others from now on.
func enter(t *testing.T) *room {
	t.Helper()
	t.Parallel()
	return roomOn(t, servers.SharedEtcd(t))
}

func roomOn(t *testing.T, e *servers.Etcd) *room {
	t.Helper()
	r := &room{T: t, e: e, prefix: prefix(t) + "/", plain: client(t, e, attentive)}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), scene.Patience)
		defer cancel()
		_, _ = r.plain.Delete(ctx, r.prefix, clientv3.WithPrefix())
	})
	return r
}

// attentive has a client find dead connections, and those that are back, as one
// does that Open makes.
func attentive(cfg *clientv3.Config) {
	cfg.DialKeepAliveTime = 10 * time.Second
	cfg.DialKeepAliveTimeout = 3 * time.Second
	cfg.DialOptions = append(cfg.DialOptions, grpc.WithConnectParams(grpc.ConnectParams{
		Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 500 * time.Millisecond},
		MinConnectTimeout: 3 * time.Second,
	}))
}

// open returns a store with a client of its own; both are closed after the test.
func (r *room) open(edit ...func(*clientv3.Config)) *etcd.Store {
	r.Helper()
	s := etcd.New(client(r, r.e, append([]func(*clientv3.Config){attentive}, edit...)...), r.prefix)
	r.Cleanup(func() { s.Close() })
	return s
}

// proxy returns a wire to a member; it is closed after the test.
func (r *room) proxy(member int) *wire.Proxy {
	r.Helper()
	addr, ok := strings.CutPrefix(r.e.Endpoints()[member], "http://")
	if !ok {
		r.Skip("through a proxy the certificate of a given etcd is for another address")
	}
	p, err := wire.New(addr)
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { p.Close() })
	return p
}

// via has a client go through a proxy.
func via(p *wire.Proxy) func(*clientv3.Config) {
	return func(cfg *clientv3.Config) { cfg.Endpoints = []string{"http://" + p.Addr()} }
}

// The two keys of a name. They are part of the format, so they are not taken
// from the store.
func (r *room) recordKey(name string) string { return r.prefix + name }
func (r *room) aliveKey(name string) string  { return r.prefix + name + "\x00" }

// get returns what lies under a key, with the etcd lease it is bound to; ok is
// false if there is nothing.
func (r *room) get(key string) (value string, id clientv3.LeaseID, ok bool) {
	r.Helper()
	resp, err := r.plain.Get(r.Context(), key)
	if err != nil {
		r.Fatal(err)
	}
	if len(resp.Kvs) == 0 {
		return "", 0, false
	}
	return string(resp.Kvs[0].Value), clientv3.LeaseID(resp.Kvs[0].Lease), true
}

func (r *room) put(key, value string) {
	r.Helper()
	if _, err := r.plain.Put(r.Context(), key, value); err != nil {
		r.Fatal(err)
	}
}

func (r *room) remove(key string, opts ...clientv3.OpOption) {
	r.Helper()
	if _, err := r.plain.Delete(r.Context(), key, opts...); err != nil {
		r.Fatal(err)
	}
}

func (r *room) revoke(id clientv3.LeaseID) {
	r.Helper()
	if _, err := r.plain.Revoke(r.Context(), id); err != nil {
		r.Fatal(err)
	}
}

// compact makes etcd forget all that was before now.
func (r *room) compact() {
	r.Helper()
	resp, err := r.plain.Get(r.Context(), r.prefix)
	if err != nil {
		r.Fatal(err)
	}
	r.put("/leasehold-test/compaction", "") // now is before now
	// Another test may have compacted further.
	if _, err := r.plain.Compact(r.Context(), resp.Header.Revision); err != nil && !strings.Contains(err.Error(), "has been compacted") {
		r.Fatal(err)
	}
}

// The requests of a store, as etcd's protocol calls them.
const (
	rangeCall  = "/etcdserverpb.KV/Range"
	txnCall    = "/etcdserverpb.KV/Txn"
	grantCall  = "/etcdserverpb.Lease/LeaseGrant"
	revokeCall = "/etcdserverpb.Lease/LeaseRevoke"
	renewCall  = "/etcdserverpb.Lease/LeaseKeepAlive"
	watchCall  = "/etcdserverpb.Watch/Watch"
)

// tap is what a client's requests pass before its connections: it notes them,
// each attempt for itself, and can do something before one is sent.
type tap struct {
	mu       sync.Mutex
	requests []request
	before   func(method string, n int) // n counts the requests of a method, from 1; nil: nothing
	counts   map[string]int
}

// request is one that a client has sent, with the instants of before it was sent
// and after it was answered.
type request struct {
	method     string
	message    any
	sent, done time.Time // done is zero if it was not answered
	err        error
}

// tapped has a client's requests noted.
func tapped(w *tap) func(*clientv3.Config) {
	w.counts = make(map[string]int)
	return func(cfg *clientv3.Config) {
		// Within those of the client, which repeat.
		cfg.DialOptions = append(cfg.DialOptions, grpc.WithChainUnaryInterceptor(w.unary), grpc.WithChainStreamInterceptor(w.stream))
	}
}

// set makes f what happens before a request is sent from now on, counting anew.
func (w *tap) set(f func(method string, n int)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.before = f
	clear(w.counts)
}

func (w *tap) begin(method string, message any) int {
	w.mu.Lock()
	w.counts[method]++
	before, n := w.before, w.counts[method]
	w.mu.Unlock()
	if before != nil {
		before(method, n)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.requests = append(w.requests, request{method: method, message: message, sent: time.Now()})
	return len(w.requests) - 1
}

func (w *tap) end(i int, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if q := &w.requests[i]; q.done.IsZero() {
		q.done, q.err = time.Now(), err
	}
}

func (w *tap) unary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	i := w.begin(method, req)
	err := invoke(ctx, method, req, reply, cc, opts...)
	w.end(i, err)
	return err
}

func (w *tap) stream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	s, err := open(ctx, desc, cc, method, opts...)
	if err != nil {
		return nil, err
	}
	return &tappedStream{ClientStream: s, tap: w, method: method}, nil
}

// tappedStream counts what is answered as done in the order it was sent.
type tappedStream struct {
	grpc.ClientStream
	tap    *tap
	method string

	mu      sync.Mutex
	pending []int
}

func (s *tappedStream) SendMsg(m any) error {
	i := s.tap.begin(s.method, m)
	s.mu.Lock()
	s.pending = append(s.pending, i)
	s.mu.Unlock()
	return s.ClientStream.SendMsg(m)
}

func (s *tappedStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.pending) > 0 {
		s.tap.end(s.pending[0], err)
		s.pending = s.pending[1:]
	}
	return err
}

// sent returns the requests of one method.
func (w *tap) sent(method string) []request {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []request
	for _, q := range w.requests {
		if q.method == method {
			all = append(all, q)
		}
	}
	return all
}

// renewed is when the last renewal was sent that etcd has answered, and how many
// there were.
func (w *tap) renewed() (sent time.Time, n int) {
	for _, q := range w.sent(renewCall) {
		if !q.done.IsZero() && q.err == nil {
			sent, n = q.sent, n+1
		}
	}
	return sent, n
}

// fenced checks that etcd refuses what is written under a tenure that is over.
func (r *room) fenced(s *etcd.Store, stale backend.Record) {
	r.Helper()
	key := r.prefix + "data/" + stale.Attempt
	_, err := s.Guarded(r.Context(), stale, nil, clientv3.OpPut(key, "stale"))
	if !errors.Is(err, backend.ErrLost) {
		r.Errorf("a write of a tenure that is over: %v; want ErrLost", err)
	}
	if _, _, ok := r.get(key); ok {
		r.Error("what a tenure that is over has written is there")
	}
}

// ms is a duration for people.
func ms(d time.Duration) string { return fmt.Sprint(d.Round(time.Millisecond)) }
