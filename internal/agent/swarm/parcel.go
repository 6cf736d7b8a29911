package swarm

import (
	"context"
	"crypto/tls"
	"net"
	"sync"
)

// parcel is a connection below TLS that can gather what is written to it. TLS
// writes each record of 16 KiB by itself, and to a socket each of them is a
// system call, which costs more than the encryption does.
type parcel struct {
	net.Conn

	mu     sync.Mutex // TLS may have an alert to write while a handler writes
	holds  bool
	held   []byte
	shared *sync.Pool // of *[]byte
}

// parcels wraps the connections that a listener accepts.
type parcels struct {
	net.Listener
	shared sync.Pool
}

func (l *parcels) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &parcel{Conn: c, shared: &l.shared}, nil
}

// Write implements net.Conn. What is held is taken for written: an error of the
// connection shows in together, and whatever follows fails too.
func (c *parcel) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.holds {
		return c.Conn.Write(p)
	}
	c.held = append(c.held, p...)
	return len(p), nil
}

// together calls write, and has all that it writes to the connection leave at
// once when it returns. It is for a part of one piece, which fits into memory. A
// nil parcel only calls write.
func (c *parcel) together(write func() error) error {
	if c == nil {
		return write()
	}
	c.mu.Lock()
	room, _ := c.shared.Get().(*[]byte)
	if room == nil {
		room = new(make([]byte, 0, grain+grain/8))
	}
	c.holds, c.held = true, (*room)[:0]
	c.mu.Unlock()
	err := write()
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.held) > 0 {
		// Also after an error: TLS has counted these records.
		if _, flushErr := c.Conn.Write(c.held); err == nil {
			err = flushErr
		}
	}
	*room = c.held
	c.holds, c.held = false, nil
	c.shared.Put(room)
	return err
}

type parcelKey struct{}

// withParcel lets parcelOf find the parcel below a server's TLS connection.
func withParcel(ctx context.Context, c net.Conn) context.Context {
	if t, ok := c.(*tls.Conn); ok {
		if p, ok := t.NetConn().(*parcel); ok {
			return context.WithValue(ctx, parcelKey{}, p)
		}
	}
	return ctx
}

// parcelOf returns nil where there is none, as in tests without a server.
func parcelOf(ctx context.Context) *parcel {
	p, _ := ctx.Value(parcelKey{}).(*parcel)
	return p
}
