package etcd

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	_ "unsafe" // for go:linkname

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/leasehold/leasehold/backend"
)

// fake is an etcd for what a real one cannot be made to do: one state with
// revisions and leases behind several members, any of which can be late, silent or
// wrong. It lives in a bubble of synctest, whose clock is the one its leases run on,
// and which fails the test if a goroutine is left at the end.
type fake struct {
	t       *testing.T
	members []*bufconn.Listener

	mu      sync.Mutex
	rev     int64 // as in etcd, an empty one is at 1
	compact int64 // what is older is gone
	history []*mvccpb.Event
	leases  map[int64]*fakeLease
	least   int64         // TTL that a grant is raised to
	most    int64         // TTL that a grant is cut to, if not 0
	changed chan struct{} // closed with each write
	log     []call        // of what has arrived
	pulses  map[*pulse]bool
	streams map[*watchStream]bool

	// before is called when a request has arrived, and what it returns is the
	// answer to one that is never applied. after is called when it has been applied:
	// an error takes the place of the answer, which it may also change. Neither has
	// the lock, so both may block.
	before func(ctx context.Context, c call) error
	after  func(ctx context.Context, c call, resp any) error
}

// call is a request that has arrived.
type call struct {
	what   string // Range, Txn, Grant, Revoke, TimeToLive, KeepAlive (each message), Watch (each creation)
	member int
	n      int // how many of its kind have arrived, this one included
	req    any
}

type fakeLease struct {
	ttl   int64
	until time.Time
	timer *time.Timer
}

// pulse is a stream of renewals, watchStream one of watches.
type pulse struct{ end chan error }

type watchStream struct {
	member int
	end    chan error
	deaf   bool // tells and takes nothing any more
	open   map[int64]*pb.WatchCreateRequest
}

// lost is what a client sees if the connection breaks before the answer.
var lost = status.Error(codes.Unavailable, "error reading from server: EOF")

// neverDone is what the client waits on for contexts of watches that it lets never
// end: one channel for the whole program. Waiting on a channel from outside keeps the
// clock of a bubble from moving, so each bubble brings its own.
//
//go:linkname neverDone go.etcd.io/etcd/client/v3.valCtxCh
var neverDone chan struct{}

// inBubble runs a test on a fake of some members. Tests that use it cannot be
// parallel.
func inBubble(t *testing.T, members int, test func(t *testing.T, f *fake)) {
	outside := neverDone
	defer func() { neverDone = outside }()
	synctest.Test(t, func(t *testing.T) {
		neverDone = make(chan struct{})
		f := &fake{
			t: t, rev: 1, least: 2,
			leases:  map[int64]*fakeLease{},
			changed: make(chan struct{}),
			pulses:  map[*pulse]bool{},
			streams: map[*watchStream]bool{},
		}
		for i := range members {
			l := bufconn.Listen(1 << 16)
			f.members = append(f.members, l)
			srv := grpc.NewServer()
			m := &member{f: f, i: i}
			pb.RegisterKVServer(srv, m)
			pb.RegisterLeaseServer(srv, m)
			pb.RegisterWatchServer(srv, m)
			served := make(chan struct{})
			go func() { defer close(served); _ = srv.Serve(l) }()
			t.Cleanup(func() { srv.Stop(); <-served })
		}
		t.Cleanup(func() {
			f.mu.Lock()
			defer f.mu.Unlock()
			for _, l := range f.leases {
				l.timer.Stop()
			}
		})
		test(t, f)
	})
}

func (f *fake) client(members ...int) *clientv3.Client {
	f.t.Helper()
	var endpoints []string
	for i := range f.members {
		if len(members) == 0 || slices.Contains(members, i) {
			endpoints = append(endpoints, fmt.Sprintf("member%d:1", i))
		}
	}
	c, err := clientv3.New(clientv3.Config{
		Endpoints: endpoints,
		Logger:    zap.NewNop(),
		DialOptions: []grpc.DialOption{grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			var i int
			if _, err := fmt.Sscanf(addr, "member%d:1", &i); err != nil {
				return nil, err
			}
			return f.members[i].DialContext(ctx)
		})},
	})
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = c.Close() })
	return c
}

// store is one with a client of its own, so that it knows nothing of the others.
func (f *fake) store(opts ...Option) *Store {
	s := New(f.client(), "/t/", opts...)
	f.t.Cleanup(func() { _ = s.Close() })
	return s
}

// arrives notes a request, and does what stands before it.
func (f *fake) arrives(ctx context.Context, member int, what string, req any) (call, error) {
	f.mu.Lock()
	c := call{what: what, member: member, n: 1, req: req}
	for _, o := range f.log {
		if o.what == what {
			c.n++
		}
	}
	f.log = append(f.log, c)
	before := f.before
	f.mu.Unlock()
	if md, _ := metadata.FromIncomingContext(ctx); len(md.Get(rpctypes.MetadataRequireLeaderKey)) == 0 {
		f.t.Errorf("%s without WithRequireLeader: a member without a leader would let it wait", what)
	}
	if before != nil {
		return c, before(ctx, c)
	}
	return c, nil
}

func (f *fake) leaves(ctx context.Context, c call, resp any) error {
	f.mu.Lock()
	after := f.after
	f.mu.Unlock()
	if after != nil {
		return after(ctx, c, resp)
	}
	return nil
}

// hooks sets both, nil for none, and forgets what has arrived, so that n counts
// from here.
func (f *fake) hooks(before func(ctx context.Context, c call) error, after func(ctx context.Context, c call, resp any) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.before, f.after, f.log = before, after, nil
}

// requests returns what has arrived since the last time it was asked.
func (f *fake) requests() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []string
	for _, c := range f.log {
		all = append(all, c.what)
	}
	f.log = nil
	return strings.Join(all, " ")
}

// silent never answers and never applies, like a member that hangs.
func silent(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }

// The state. All of it with the lock.

// at returns what there is at a revision.
func (f *fake) at(rev int64) map[string]*mvccpb.KeyValue {
	now := map[string]*mvccpb.KeyValue{}
	for _, e := range f.history {
		if e.Kv.ModRevision > rev {
			break
		}
		if now[string(e.Kv.Key)] = e.Kv; isDelete(e) {
			delete(now, string(e.Kv.Key))
		}
	}
	return now
}

func isDelete(e *mvccpb.Event) bool { return e.Type != 0 }

func (f *fake) put(at int64, key, value string, lease int64) {
	kv := &mvccpb.KeyValue{Key: []byte(key), Value: []byte(value), Lease: lease, CreateRevision: at, ModRevision: at, Version: 1}
	if old := f.at(at)[key]; old != nil {
		kv.CreateRevision, kv.Version = old.CreateRevision, old.Version+1
	}
	f.history = append(f.history, &mvccpb.Event{Kv: kv})
}

func (f *fake) delete(at int64, key string) {
	f.history = append(f.history, &mvccpb.Event{Type: 1, Kv: &mvccpb.KeyValue{Key: []byte(key), ModRevision: at}})
}

// written ends a write at the revision, if it was one.
func (f *fake) written(at int64) {
	if n := len(f.history); n == 0 || f.history[n-1].Kv.ModRevision != at {
		return
	}
	f.rev = at
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *fake) revoke(id int64) bool {
	l := f.leases[id]
	if l == nil {
		return false
	}
	l.timer.Stop()
	delete(f.leases, id)
	var keys []string
	for k, kv := range f.at(f.rev) {
		if kv.Lease == id {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	for _, k := range keys {
		f.delete(f.rev+1, k)
	}
	f.written(f.rev + 1)
	return true
}

// What a test does behind the back of the store.

func (f *fake) set(key, value string, lease int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.put(f.rev+1, key, value, lease)
	f.written(f.rev + 1)
}

func (f *fake) remove(keys ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, k := range keys {
		f.delete(f.rev+1, k)
	}
	f.written(f.rev + 1)
}

func (f *fake) revokes(id int64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.revoke(id)
}

// lends grants an etcd lease, as a person would.
func (f *fake) lends(id, ttl int64) int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.leases[id] = f.newLease(id, ttl)
	return id
}

func (f *fake) newLease(id, ttl int64) *fakeLease {
	d := time.Duration(ttl) * time.Second
	return &fakeLease{ttl, time.Now().Add(d), time.AfterFunc(d, func() { f.revokes(id) })}
}

// now is what there is, with the lock taken.
func (f *fake) now() map[string]*mvccpb.KeyValue {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.at(f.rev)
}

func (f *fake) revision() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.rev
}

// skip lets etcd have counted that far.
func (f *fake) skip(to int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rev = to
}

func (f *fake) compactAll() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.compact = f.rev
}

// lent is how many etcd leases there are.
func (f *fake) lent() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.leases)
}

// left is how long an etcd lease has to go, less than 0 if there is none.
func (f *fake) left(id int64) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	if l := f.leases[id]; l != nil {
		return time.Until(l.until)
	}
	return -1
}

// watching is how many streams of watches there are, and how many watches on them;
// pulsing how many of renewals.
func (f *fake) watching() (streams, watches int) {
	synctest.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	for s := range f.streams {
		watches += len(s.open)
	}
	return len(f.streams), watches
}

func (f *fake) pulsing() int {
	synctest.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.pulses)
}

// deafen makes all streams of watches that there are silent, hangUp ends all
// streams of either kind.
func (f *fake) deafen() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for s := range f.streams {
		s.deaf = true
	}
}

func (f *fake) hangUp(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for s := range f.streams {
		s.end <- err
	}
	for p := range f.pulses {
		p.end <- err
	}
}

// member is one that serves the state.
type member struct {
	pb.UnimplementedKVServer
	pb.UnimplementedLeaseServer
	pb.UnimplementedWatchServer
	f *fake
	i int
}

func (f *fake) header() *pb.ResponseHeader { return &pb.ResponseHeader{Revision: f.rev} }

func (m *member) Range(ctx context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	c, err := m.f.arrives(ctx, m.i, "Range", r)
	if err != nil {
		return nil, err
	}
	m.f.mu.Lock()
	resp, err := m.f.rangeOf(r)
	m.f.mu.Unlock()
	if err == nil {
		err = m.f.leaves(ctx, c, resp)
	}
	return resp, err
}

func within(key string, from, end []byte) bool {
	if len(end) == 0 {
		return key == string(from)
	}
	return key >= string(from) && (string(end) == "\x00" || key < string(end))
}

func (f *fake) rangeOf(r *pb.RangeRequest) (*pb.RangeResponse, error) {
	at := r.Revision
	switch {
	case at == 0:
		at = f.rev
	case at > f.rev:
		return nil, rpctypes.ErrGRPCFutureRev
	case at < f.compact:
		return nil, rpctypes.ErrGRPCCompacted
	}
	resp := &pb.RangeResponse{Header: f.header()}
	for k, kv := range f.at(at) {
		if within(k, r.Key, r.RangeEnd) {
			resp.Kvs = append(resp.Kvs, kv)
		}
	}
	slices.SortFunc(resp.Kvs, func(a, b *mvccpb.KeyValue) int { return bytes.Compare(a.Key, b.Key) })
	resp.Count = int64(len(resp.Kvs))
	if r.Limit > 0 && resp.Count > r.Limit {
		resp.Kvs, resp.More = resp.Kvs[:r.Limit], true
	}
	return resp, nil
}

func (m *member) Txn(ctx context.Context, r *pb.TxnRequest) (*pb.TxnResponse, error) {
	c, err := m.f.arrives(ctx, m.i, "Txn", r)
	if err != nil {
		return nil, err
	}
	m.f.mu.Lock()
	resp, err := m.f.txn(r)
	m.f.mu.Unlock()
	if err == nil {
		err = m.f.leaves(ctx, c, resp)
	}
	return resp, err
}

func (f *fake) txn(r *pb.TxnRequest) (*pb.TxnResponse, error) {
	now := f.at(f.rev)
	resp := &pb.TxnResponse{Succeeded: true}
	for _, c := range r.Compare {
		resp.Succeeded = resp.Succeeded && holds(c, now[string(c.Key)])
	}
	ops := r.Failure
	if resp.Succeeded {
		ops = r.Success
	}
	puts := map[string]bool{}
	for _, op := range ops {
		if p := op.GetRequestPut(); p != nil {
			if p.Lease != 0 && f.leases[p.Lease] == nil {
				return nil, rpctypes.ErrGRPCLeaseNotFound
			}
			if puts[string(p.Key)] {
				return nil, rpctypes.ErrGRPCDuplicateKey
			}
			puts[string(p.Key)] = true
		}
	}
	at := f.rev + 1
	for _, op := range ops {
		switch o := op.Request.(type) {
		case *pb.RequestOp_RequestPut:
			f.put(at, string(o.RequestPut.Key), string(o.RequestPut.Value), o.RequestPut.Lease)
			resp.Responses = append(resp.Responses, &pb.ResponseOp{Response: &pb.ResponseOp_ResponsePut{ResponsePut: &pb.PutResponse{}}})
		case *pb.RequestOp_RequestDeleteRange:
			deleted := &pb.DeleteRangeResponse{}
			if kv := now[string(o.RequestDeleteRange.Key)]; kv != nil {
				if o.RequestDeleteRange.PrevKv {
					deleted.PrevKvs = append(deleted.PrevKvs, kv)
				}
				f.delete(at, string(o.RequestDeleteRange.Key))
			}
			resp.Responses = append(resp.Responses, &pb.ResponseOp{Response: &pb.ResponseOp_ResponseDeleteRange{ResponseDeleteRange: deleted}})
		case *pb.RequestOp_RequestRange:
			found, err := f.rangeOf(o.RequestRange)
			if err != nil {
				return nil, err
			}
			resp.Responses = append(resp.Responses, &pb.ResponseOp{Response: &pb.ResponseOp_ResponseRange{ResponseRange: found}})
		default:
			return nil, status.Error(codes.Unimplemented, "not in the fake")
		}
	}
	f.written(at)
	resp.Header = f.header()
	return resp, nil
}

// holds: of a key that is not there all numbers are 0, and no value is equal to
// anything.
func holds(c *pb.Compare, kv *mvccpb.KeyValue) bool {
	if kv == nil {
		if c.Target == pb.Compare_VALUE {
			return false
		}
		kv = &mvccpb.KeyValue{}
	}
	var order int
	compare := func(a, b int64) {
		switch {
		case a < b:
			order = -1
		case a > b:
			order = 1
		}
	}
	switch c.Target {
	case pb.Compare_VALUE:
		order = bytes.Compare(kv.Value, c.GetValue())
	case pb.Compare_MOD:
		compare(kv.ModRevision, c.GetModRevision())
	case pb.Compare_CREATE:
		compare(kv.CreateRevision, c.GetCreateRevision())
	case pb.Compare_VERSION:
		compare(kv.Version, c.GetVersion())
	case pb.Compare_LEASE:
		compare(kv.Lease, c.GetLease())
	}
	switch c.Result {
	case pb.Compare_EQUAL:
		return order == 0
	case pb.Compare_GREATER:
		return order > 0
	case pb.Compare_LESS:
		return order < 0
	default:
		return order != 0
	}
}

func (m *member) LeaseGrant(ctx context.Context, r *pb.LeaseGrantRequest) (*pb.LeaseGrantResponse, error) {
	f := m.f
	c, err := f.arrives(ctx, m.i, "Grant", r)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	if f.leases[r.ID] != nil {
		f.mu.Unlock()
		return nil, rpctypes.ErrGRPCLeaseExist
	}
	ttl := max(r.TTL, f.least)
	if f.most > 0 {
		ttl = min(ttl, f.most)
	}
	f.leases[r.ID] = f.newLease(r.ID, ttl)
	resp := &pb.LeaseGrantResponse{Header: f.header(), ID: r.ID, TTL: ttl}
	f.mu.Unlock()
	return resp, f.leaves(ctx, c, resp)
}

func (m *member) LeaseRevoke(ctx context.Context, r *pb.LeaseRevokeRequest) (*pb.LeaseRevokeResponse, error) {
	c, err := m.f.arrives(ctx, m.i, "Revoke", r)
	if err != nil {
		return nil, err
	}
	if !m.f.revokes(r.ID) {
		return nil, rpctypes.ErrGRPCLeaseNotFound
	}
	resp := &pb.LeaseRevokeResponse{Header: &pb.ResponseHeader{Revision: m.f.revision()}}
	return resp, m.f.leaves(ctx, c, resp)
}

func (m *member) LeaseTimeToLive(ctx context.Context, r *pb.LeaseTimeToLiveRequest) (*pb.LeaseTimeToLiveResponse, error) {
	f := m.f
	c, err := f.arrives(ctx, m.i, "TimeToLive", r)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	resp := &pb.LeaseTimeToLiveResponse{Header: f.header(), ID: r.ID, TTL: -1}
	if l := f.leases[r.ID]; l != nil {
		resp.TTL, resp.GrantedTTL = int64(time.Until(l.until)/time.Second), l.ttl
	}
	f.mu.Unlock()
	return resp, f.leaves(ctx, c, resp)
}

// LeaseKeepAlive serves one renewal after the other, as etcd does. One of an etcd
// lease that is not there is answered with a TTL of 0.
func (m *member) LeaseKeepAlive(stream pb.Lease_LeaseKeepAliveServer) error {
	f := m.f
	p := &pulse{end: make(chan error, 1)}
	f.mu.Lock()
	f.pulses[p] = true
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		delete(f.pulses, p)
		f.mu.Unlock()
	}()
	done := make(chan error, 1)
	go func() { done <- m.pulse(stream) }()
	select {
	case err := <-done:
		return err
	case err := <-p.end:
		return err
	}
}

func (m *member) pulse(stream pb.Lease_LeaseKeepAliveServer) error {
	f, ctx := m.f, stream.Context()
	for {
		r, err := stream.Recv()
		if err != nil {
			return nil
		}
		c, err := f.arrives(ctx, m.i, "KeepAlive", r)
		if err != nil {
			return err
		}
		f.mu.Lock()
		resp := &pb.LeaseKeepAliveResponse{Header: f.header(), ID: r.ID}
		if l := f.leases[r.ID]; l != nil {
			d := time.Duration(l.ttl) * time.Second
			l.until = time.Now().Add(d)
			l.timer.Reset(d)
			resp.TTL = l.ttl
		}
		f.mu.Unlock()
		if err := f.leaves(ctx, c, resp); err != nil {
			return err
		}
		if err := stream.Send(resp); err != nil {
			return err
		}
	}
}

// Watch serves all watches of a stream. The events of one revision are in one
// response.
func (m *member) Watch(stream pb.Watch_WatchServer) error {
	f := m.f
	s := &watchStream{member: m.i, end: make(chan error, 1), open: map[int64]*pb.WatchCreateRequest{}}
	f.mu.Lock()
	f.streams[s] = true
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		delete(f.streams, s)
		f.mu.Unlock()
	}()
	requests := make(chan *pb.WatchRequest)
	go func() {
		defer close(requests)
		for {
			r, err := stream.Recv()
			if err != nil {
				return
			}
			select {
			case requests <- r:
			case <-stream.Context().Done():
				return
			}
		}
	}()
	var next int64
	for {
		f.mu.Lock()
		changed := f.changed
		answers := f.events(s)
		f.mu.Unlock()
		for _, a := range answers {
			if err := stream.Send(a); err != nil {
				return err
			}
		}
		select {
		case err := <-s.end:
			return err
		case <-stream.Context().Done():
			return stream.Context().Err()
		case <-changed:
		case r, ok := <-requests:
			if !ok {
				requests = nil
				continue
			}
			a, err := f.watch(stream.Context(), s, r, &next)
			if err != nil {
				return err
			}
			if a != nil {
				if err := stream.Send(a); err != nil {
					return err
				}
			}
		}
	}
}

// watch begins or ends one. What a hook says to a creation is the reason it is
// refused for, as etcd's own refusals are, unless the whole stream is.
func (f *fake) watch(ctx context.Context, s *watchStream, r *pb.WatchRequest, next *int64) (*pb.WatchResponse, error) {
	var refused error
	if c := r.GetCreateRequest(); c != nil {
		if _, refused = f.arrives(ctx, s.member, "Watch", c); status.Code(refused) == codes.Unavailable {
			return nil, refused
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	a := &pb.WatchResponse{Header: f.header()}
	switch c := r.GetCreateRequest(); {
	case s.deaf:
		return nil, nil
	case refused != nil:
		a.WatchId, a.Created, a.Canceled, a.CancelReason = -1, true, true, refused.Error()
	case c != nil:
		if c.StartRevision == 0 {
			c.StartRevision = f.rev + 1
		}
		a.Created, a.WatchId = true, *next
		s.open[*next] = c
		*next++
	default:
		id := r.GetCancelRequest().GetWatchId()
		if s.open[id] == nil {
			return nil, nil
		}
		delete(s.open, id)
		a.WatchId, a.Canceled = id, true
	}
	return a, nil
}

// events takes what there is to be told.
func (f *fake) events(s *watchStream) (answers []*pb.WatchResponse) {
	if s.deaf {
		return nil
	}
	for id, w := range s.open {
		if w.StartRevision < f.compact {
			answers = append(answers, &pb.WatchResponse{Header: f.header(), WatchId: id, CompactRevision: f.compact, Canceled: true})
			delete(s.open, id)
			continue
		}
		var a *pb.WatchResponse
		for _, e := range f.history {
			if e.Kv.ModRevision < w.StartRevision || !within(string(e.Kv.Key), w.Key, w.RangeEnd) {
				continue
			}
			if a == nil || a.Events[0].Kv.ModRevision != e.Kv.ModRevision {
				a = &pb.WatchResponse{Header: f.header(), WatchId: id}
				answers = append(answers, a)
			}
			a.Events = append(a.Events, e)
		}
		w.StartRevision = max(w.StartRevision, f.rev+1)
	}
	return answers
}

// What tests of several files share.

const (
	key   = "/t/report"
	alive = key + "\x00"
)

func claim(holder, attempt string) backend.Claim {
	return backend.Claim{Name: "report", Holder: holder, Attempt: attempt, Duration: 10 * time.Second}
}

func acquired(t *testing.T, s *Store, c backend.Claim) backend.Record {
	t.Helper()
	rec, err := s.Acquire(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return rec
}

// leaseOf is the etcd lease of a record.
func leaseOf(t *testing.T, rec backend.Record) int64 {
	t.Helper()
	r, ok := parseRevision(rec.Revision)
	if !ok || r.lease == 0 {
		t.Fatalf("the revision %q tells no etcd lease", rec.Revision)
	}
	return int64(r.lease)
}
