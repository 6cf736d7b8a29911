package swarm

import (
	"context"
	"net"
	"net/http/httptrace"
	"sync"
	"sync/atomic"
	"syscall"
)

// gather is a connection below TLS that takes what a peer sends in few system
// calls. TLS reads a record of 16 KiB at a time, and over a link that is slower
// than this machine every packet wakes the reader up, which costs more than
// anything that is done with its content.
//
// While a piece comes in, whoever reads it says how much is still to come. Then
// the kernel wakes the reader only when a part of that is here (SO_RCVLOWAT), and
// it is read at once into a buffer that goes back when it is empty, so that idle
// connections have none.
type gather struct {
	net.Conn
	raw    syscall.RawConn // nil: not of a kind that can wait for more
	shared *sync.Pool      // of *[gatherRoom]byte

	total  atomic.Int64 // bytes read from the connection so far
	coming atomic.Int64 // bytes that are certain to come

	// Of the reader.
	mark int // the low-water mark that is set
	room *[gatherRoom]byte
	held []byte // of room, not read yet
}

const (
	gatherRoom = 64 << 10
	gatherMark = 32 << 10
)

func newGather(c net.Conn, shared *sync.Pool) *gather {
	g := &gather{Conn: c, shared: shared, mark: 1}
	if s, ok := c.(syscall.Conn); ok {
		if raw, err := s.SyscallConn(); err == nil {
			g.raw = raw
		}
	}
	return g
}

// incoming is what one request reads from a connection.
type incoming struct {
	g        *gather // nil: it comes over another kind of connection
	before   int64   // bytes read from the connection before it
	consumed int64   // bytes of its content that were used
}

// expect says that n more bytes of content come. Some of them may be in the
// buffers above the connection already, at most what was read and not used; since
// TLS and HTTP add to the content, that is too much rather than too little.
func (a *incoming) expect(n int) {
	if a.g != nil {
		a.g.coming.Store(max(0, int64(n)-(a.g.total.Load()-a.before-a.consumed)))
	}
}

// Read implements net.Conn.
func (g *gather) Read(p []byte) (int, error) {
	if len(g.held) > 0 {
		return g.take(p), nil
	}
	coming := g.coming.Load()
	g.wait(coming)
	if coming <= int64(len(p)) {
		n, err := g.Conn.Read(p)
		g.count(n)
		return n, err
	}
	if g.room == nil {
		if g.room, _ = g.shared.Get().(*[gatherRoom]byte); g.room == nil {
			g.room = new([gatherRoom]byte)
		}
	}
	n, err := g.Conn.Read(g.room[:])
	g.count(n)
	g.held = g.room[:n]
	if n == 0 {
		g.give()
		return 0, err
	}
	return g.take(p), nil // an error comes again
}

func (g *gather) count(n int) {
	g.total.Add(int64(n))
	g.coming.Add(-int64(n))
}

func (g *gather) take(p []byte) int {
	n := copy(p, g.held)
	if g.held = g.held[n:]; len(g.held) == 0 {
		g.give()
	}
	return n
}

// give returns the buffer.
func (g *gather) give() {
	if g.room != nil {
		g.shared.Put(g.room)
		g.room, g.held = nil, nil
	}
}

// wait has the kernel wake the reader when a good part of what comes is here. It
// never waits for more than that.
func (g *gather) wait(coming int64) {
	mark := 1
	if coming >= gatherMark {
		mark = gatherMark
	}
	if g.raw == nil || mark == g.mark {
		return
	}
	g.mark = mark
	// Where it cannot be set, packets wake the reader as before.
	_ = g.raw.Control(func(fd uintptr) {
		_ = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVLOWAT, mark)
	})
}

// traceIncoming has the request with this context note the connection that it uses.
func traceIncoming(ctx context.Context) (context.Context, *incoming) {
	a := &incoming{}
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) {
		*a = incoming{}
		if below, ok := info.Conn.(interface{ NetConn() net.Conn }); ok {
			if g, ok := below.NetConn().(*gather); ok {
				*a = incoming{g: g, before: g.total.Load()}
			}
		}
	}}), a
}
