// Package wire is a TCP proxy whose wire can be cut, black-holed, muted and
// slowed, for tests of what a client makes of it. It does not look at what it
// carries: TLS passes through untouched.
//
// When a method returns, its fault is in force: not one byte more passes.
package wire

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Proxy carries connections to a target. Make it with New.
type Proxy struct {
	target string
	l      net.Listener
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup
	delay  atomic.Int64

	mu    sync.Mutex
	mode  mode
	links map[*link]bool
}

type mode int

const (
	passes mode = iota
	cut
	blackHole
	mute // towards the client
)

// New listens on a port of its own of 127.0.0.1 and carries what arrives there
// to target, a host:port. Target is dialed for each connection, so it need not
// be up yet.
func New(target string) (*Proxy, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("proxy of %s: %w", target, err)
	}
	p := &Proxy{target: target, l: l, links: make(map[*link]bool)}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.wg.Go(p.accept)
	return p, nil
}

// Addr returns the host and port that clients connect to.
func (p *Proxy) Addr() string { return p.l.Addr().String() }

// Cut resets all connections, and every new one as soon as it is accepted.
func (p *Proxy) Cut() {
	for _, l := range p.set(cut) {
		l.reset()
	}
}

// BlackHole keeps all connections open and lets nothing pass, either way, not
// even their end. New ones are accepted and hear nothing.
func (p *Proxy) BlackHole() {
	for _, l := range p.set(blackHole) {
		l.up.kill()
		l.down.kill()
	}
}

// DropReplies lets what clients send pass and swallows what the target sends:
// the reply is lost after the write. A connection under TLS must have been used
// before, as its handshake is a reply, too.
func (p *Proxy) DropReplies() {
	for _, l := range p.set(mute) {
		l.down.kill()
	}
}

// Delay makes everything that is read from now on arrive d later, in its order,
// each way. It stays until another Delay.
func (p *Proxy) Delay(d time.Duration) { p.delay.Store(int64(d)) }

// Heal lets new connections pass. Old ones that were black-holed or muted stay
// so, as bytes of them are lost, and stay open.
func (p *Proxy) Heal() { p.set(passes) }

// Close resets all connections and returns when nothing of the proxy runs.
func (p *Proxy) Close() error {
	p.cancel()
	err := p.l.Close()
	p.Cut()
	p.wg.Wait()
	return err
}

// set returns the links that were there before.
func (p *Proxy) set(m mode) []*link {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mode = m
	links := make([]*link, 0, len(p.links))
	for l := range p.links {
		links = append(links, l)
	}
	return links
}

func (p *Proxy) accept() {
	for {
		client, err := p.l.Accept()
		if p.ctx.Err() != nil {
			if err == nil {
				client.Close()
			}
			return
		}
		if err != nil { // out of files, say
			time.Sleep(time.Millisecond)
			continue
		}
		p.wg.Go(func() { p.carry(client.(*net.TCPConn)) })
	}
}

// carry serves one connection until it ends.
func (p *Proxy) carry(client *net.TCPConn) {
	l := &link{client: client, ended: make(chan struct{})}
	p.mu.Lock()
	mode := p.mode
	if mode != cut {
		p.links[l] = true
	}
	l.up.dead = mode == blackHole
	l.down.dead = mode == blackHole || mode == mute
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		delete(p.links, l)
		p.mu.Unlock()
	}()
	if mode == cut {
		l.reset()
		return
	}
	if mode == blackHole {
		io.Copy(io.Discard, client)
		<-l.ended // its end is not to be seen either
		return
	}
	var d net.Dialer
	server, err := d.DialContext(p.ctx, "tcp", p.target)
	if err != nil {
		if l.down.isDead() && p.ctx.Err() == nil {
			<-l.ended
		}
		l.reset()
		return
	}
	if !l.connect(server.(*net.TCPConn)) {
		return
	}
	var pipes sync.WaitGroup
	pipes.Go(func() { l.carry(&l.up, client, l.server, &p.delay) })
	pipes.Go(func() { l.carry(&l.down, l.server, client, &p.delay) })
	pipes.Wait()
	if l.up.isDead() || l.down.isDead() {
		<-l.ended
	}
	l.close()
}

// link is a client's connection and the one to the target that belongs to it.
type link struct {
	up, down pipe
	ended    chan struct{} // closed when both connections are

	mu             sync.Mutex
	closed         bool
	client, server *net.TCPConn // server is nil until it is connected
}

// connect adds the connection to the target, unless the link has ended.
func (l *link) connect(server *net.TCPConn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		server.SetLinger(0)
		server.Close()
		return false
	}
	l.server = server
	l.up.to(server)
	l.down.to(l.client)
	return true
}

// reset ends both connections at once: what is under way is lost.
func (l *link) reset() { l.end(true) }

func (l *link) close() { l.end(false) }

func (l *link) end(reset bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	l.closed = true
	for _, c := range []*net.TCPConn{l.client, l.server} {
		if c == nil {
			continue
		}
		if reset {
			c.SetLinger(0)
		}
		c.Close()
	}
	close(l.ended)
}

// chunk is what was read at once, and when it is to arrive; without data it is
// the end.
type chunk struct {
	data []byte
	due  time.Time
}

// carry moves one direction until its end has arrived, or the link has ended.
func (l *link) carry(p *pipe, src, dst *net.TCPConn, delay *atomic.Int64) {
	chunks := make(chan chunk, 64)
	var reader sync.WaitGroup
	defer reader.Wait()
	reader.Go(func() {
		defer close(chunks)
		buf := make([]byte, 32<<10)
		for {
			n, err := src.Read(buf)
			c := chunk{data: append([]byte(nil), buf[:n]...), due: time.Now().Add(time.Duration(delay.Load()))}
			if n > 0 && !l.queue(chunks, c) {
				return
			}
			switch {
			case err == io.EOF:
				l.queue(chunks, chunk{due: c.due})
				return
			case err != nil:
				if !p.isDead() {
					l.reset()
				}
				return
			}
		}
	})
	for c := range chunks {
		if d := time.Until(c.due); d > 0 {
			t := time.NewTimer(d)
			select {
			case <-t.C:
			case <-l.ended:
				t.Stop()
			}
		}
		if err := p.write(dst, c.data); err != nil {
			l.reset()
		}
	}
}

func (l *link) queue(chunks chan<- chunk, c chunk) bool {
	select {
	case chunks <- c:
		return true
	case <-l.ended:
		return false
	}
}

// pipe is one direction of a link. A dead one swallows everything.
type pipe struct {
	mu   sync.Mutex // held while writing
	flag sync.Mutex // guards dead and dst
	dead bool
	dst  *net.TCPConn
}

func (p *pipe) to(dst *net.TCPConn) {
	p.flag.Lock()
	defer p.flag.Unlock()
	p.dst = dst
}

func (p *pipe) isDead() bool {
	p.flag.Lock()
	defer p.flag.Unlock()
	return p.dead
}

// kill returns when no write is under way any more.
func (p *pipe) kill() {
	p.flag.Lock()
	p.dead = true
	if p.dst != nil {
		p.dst.SetWriteDeadline(time.Unix(1, 0)) // the other end may not be reading
	}
	p.flag.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
}

// write passes data on, or the end if there is none.
func (p *pipe) write(dst *net.TCPConn, data []byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.isDead() {
		return nil
	}
	var err error
	if len(data) == 0 {
		err = dst.CloseWrite()
	} else {
		_, err = dst.Write(data)
	}
	if p.isDead() {
		return nil
	}
	return err
}
