package redis

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/leasehold/leasehold/internal/wait"
)

const (
	// askAfter is how long a connection may be silent before it is asked whether it
	// is alive, and then how long the answer may take.
	askAfter = 5 * time.Second

	// linger is how long a connection stays without subscriptions.
	linger = time.Second
)

// topics are the names that are watched, and the connections on which messages come.
// The messages are those of sharded channels, one for each name, which lies in the
// slot of its keys.
type topics struct {
	store  *Store
	ctx    context.Context
	cancel context.CancelFunc

	life    sync.Mutex // may be taken while holding any other
	closed  bool
	running sync.WaitGroup

	mu        sync.Mutex
	byName    map[string]*topic
	listeners map[string]*listener // by the server's address; "" where there is one
}

func (a *topics) init(s *Store) {
	a.store = s
	a.ctx, a.cancel = context.WithCancel(context.Background())
	a.byName = make(map[string]*topic)
	a.listeners = make(map[string]*listener)
}

func (a *topics) close() {
	a.life.Lock()
	a.closed = true
	a.life.Unlock()
	a.cancel()
	// A connection that is being made heeds the client's time limits only.
	ended := make(chan struct{})
	go func() {
		a.running.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(linger):
	}
}

// start runs f in the background, where close waits for it. It reports false if the
// store is closed.
func (a *topics) start(f func()) bool {
	a.life.Lock()
	defer a.life.Unlock()
	if !a.closed {
		a.running.Go(f)
	}
	return !a.closed
}

// join begins a watch, which is told by the channel. It returns nil if the store is
// closed.
func (a *topics) join(name string) (*topic, chan struct{}) {
	poke := make(chan struct{}, 1)
	a.mu.Lock()
	defer a.mu.Unlock()
	t := a.byName[name]
	if t == nil {
		record, _ := a.store.keys(name)
		t = &topic{all: a, name: name, channel: record + a.store.channel, pokes: make(map[chan struct{}]struct{})}
		t.ctx, t.cancel = context.WithCancel(a.ctx)
		if !a.start(func() { a.attach([]*topic{t}) }) {
			t.cancel()
			return nil, nil
		}
		a.byName[name] = t
	}
	t.watches++
	t.mu.Lock()
	t.pokes[poke] = struct{}{}
	t.mu.Unlock()
	return t, poke
}

// part ends what join has begun.
func (a *topics) part(t *topic, poke chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	t.mu.Lock()
	delete(t.pokes, poke)
	t.mu.Unlock()
	if t.watches--; t.watches > 0 {
		return
	}
	t.cancel()
	delete(a.byName, t.name)
	for _, l := range a.listeners {
		if l.topics[t.channel] == t {
			delete(l.topics, t.channel)
			l.change(t.channel)
		}
	}
}

// attach has topics listened to at the servers that have their slots. It goes on
// until it knows these.
func (a *topics) attach(some []*topic) {
	for pause := minRetry; len(some) > 0; pause = min(2*pause, maxRetry) {
		var later []*topic
		for _, t := range some {
			if t.ctx.Err() == nil && !a.attachOne(t) {
				later = append(later, t)
			}
		}
		if some = later; len(some) > 0 && !wait.For(a.ctx, pause/2+rand.N(pause)) {
			return
		}
	}
}

func (a *topics) attachOne(t *topic) bool {
	addr, source := "", subscriber(a.store.client)
	if cluster, ok := a.store.client.(*goredis.ClusterClient); ok {
		node, err := cluster.MasterForKey(t.ctx, t.channel)
		if err != nil {
			return false
		}
		addr, source = node.Options().Addr, node
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if t.ctx.Err() != nil {
		return true
	}
	l := a.listeners[addr]
	if l == nil {
		l = &listener{all: a, addr: addr, source: source, topics: make(map[string]*topic), wake: make(chan struct{}, 1)}
		if !a.start(l.run) {
			return true
		}
		a.listeners[addr] = l
	}
	l.topics[t.channel] = t
	l.change(t.channel)
	return true
}

// subscriber is a client of one server.
type subscriber interface {
	SSubscribe(ctx context.Context, channels ...string) *goredis.PubSub
}

// listener is a connection on which the messages of one server come.
type listener struct {
	all    *topics
	addr   string
	source subscriber
	wake   chan struct{}

	// Under all.mu.
	topics  map[string]*topic // by channel
	changed []string          // channels that were added or removed
}

// change notes that a channel was added or removed. all.mu is held.
func (l *listener) change(channel string) {
	l.changed = append(l.changed, channel)
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// run listens until the connection ends or nobody needs it. What it listened to is
// then attached anew: the server may be another by then.
//
// The client would mend a connection by itself, but it subscribes to all channels at
// once then, which a cluster refuses where they are of several slots.
func (l *listener) run() {
	began := time.Now()
	l.listen()
	l.all.mu.Lock()
	if l.all.listeners[l.addr] == l {
		delete(l.all.listeners, l.addr)
	}
	var left []*topic
	for _, t := range l.topics {
		left = append(left, t)
	}
	l.topics = nil
	l.all.mu.Unlock()
	for _, t := range left {
		t.mute()
	}
	if len(left) == 0 {
		return
	}
	if cluster, ok := l.all.store.client.(*goredis.ClusterClient); ok {
		cluster.ReloadState(l.all.ctx)
	}
	pause := minRetry
	if time.Since(began) < time.Second {
		pause = maxRetry / 4
	}
	if wait.For(l.all.ctx, pause/2+rand.N(pause)) {
		l.all.attach(left)
	}
}

// subscriptions are those of one connection, by channel.
type subscriptions struct {
	state  map[string]int // asked or confirmed
	ending map[string]int // how many ends of it were asked for and not confirmed
}

const (
	asked     = 1
	confirmed = 2
)

func (l *listener) listen() {
	ctx, cancel := context.WithCancel(l.all.ctx)
	defer cancel()
	ps := l.source.SSubscribe(ctx)
	received := make(chan any)
	var receiving sync.WaitGroup
	var spoke atomic.Bool // since it was asked whether it is alive
	receiving.Go(func() {
		for {
			m, err := ps.ReceiveTimeout(ctx, 0)
			var answer goredis.Error
			if err != nil && errors.As(err, &answer) {
				m = answer
			} else if err != nil {
				m = nil
			}
			if m, ok := m.(*goredis.Message); ok {
				// At once, as somebody waits for it.
				if t := l.topicOf(m.Channel); t != nil {
					t.hear(m.Payload)
				}
				spoke.Store(true)
				continue
			}
			select {
			case received <- m:
			case <-ctx.Done():
				return
			}
			if m == nil {
				return
			}
		}
	})
	defer receiving.Wait()
	defer ps.Close()
	defer cancel()

	subscribed := subscriptions{state: make(map[string]int), ending: make(map[string]int)}
	tick := time.NewTicker(askAfter)
	defer tick.Stop()
	var idle <-chan time.Time
	silent := false // it was asked whether it is alive, and has not said anything since
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.wake:
			if !l.apply(ctx, ps, subscribed) {
				return
			}
			idle = nil
			if len(subscribed.state) == 0 {
				idle = time.After(linger)
			}
		case <-idle:
			if l.retire() {
				return
			}
			idle = nil
		case <-tick.C:
			if silent && !spoke.Load() || len(subscribed.state) > 0 && ps.Ping(ctx) != nil {
				return
			}
			spoke.Store(false)
			silent = len(subscribed.state) > 0
		case m := <-received:
			silent = false
			if m == nil || !l.take(m, subscribed) {
				return
			}
		}
	}
}

// retire takes the listener out of use if nobody needs it.
func (l *listener) retire() bool {
	l.all.mu.Lock()
	defer l.all.mu.Unlock()
	if len(l.topics) > 0 {
		return false
	}
	delete(l.all.listeners, l.addr)
	return true
}

// apply subscribes to what was added and unsubscribes from what was removed. It
// reports whether the connection lasts.
func (l *listener) apply(ctx context.Context, ps *goredis.PubSub, subscribed subscriptions) bool {
	l.all.mu.Lock()
	channels := l.changed
	l.changed = nil
	wanted := make([]*topic, len(channels))
	for i, channel := range channels {
		wanted[i] = l.topics[channel]
	}
	l.all.mu.Unlock()
	for i, channel := range channels {
		var err error
		switch t := wanted[i]; {
		case t == nil && subscribed.state[channel] != 0:
			delete(subscribed.state, channel)
			subscribed.ending[channel]++
			err = ps.SUnsubscribe(ctx, channel)
		case t != nil && subscribed.state[channel] == 0:
			subscribed.state[channel] = asked
			err = ps.SSubscribe(ctx, channel)
		case t != nil && subscribed.state[channel] == confirmed:
			t.confirm()
		}
		if err != nil {
			return false
		}
	}
	return true
}

func (l *listener) topicOf(channel string) *topic {
	l.all.mu.Lock()
	defer l.all.mu.Unlock()
	return l.topics[channel]
}

// take deals with what has come, and reports whether to go on.
func (l *listener) take(m any, subscribed subscriptions) bool {
	switch m := m.(type) {
	case *goredis.Subscription:
		switch {
		case m.Kind == "ssubscribe" && subscribed.state[m.Channel] != 0:
			subscribed.state[m.Channel] = confirmed
			if t := l.topicOf(m.Channel); t != nil {
				t.confirm()
			}
		case m.Kind == "sunsubscribe" && subscribed.ending[m.Channel] > 0:
			if subscribed.ending[m.Channel]--; subscribed.ending[m.Channel] == 0 {
				delete(subscribed.ending, m.Channel)
			}
		case m.Kind == "sunsubscribe" && subscribed.state[m.Channel] != 0:
			return false // the slot has moved to another server
		}
	case goredis.Error:
		// Whoever may not subscribe looks from time to time. Anything else, a slot that
		// is elsewhere for instance, may be better on another connection.
		return strings.HasPrefix(m.Error(), "NOPERM") || strings.HasPrefix(m.Error(), "ERR unknown")
	}
	return true
}
