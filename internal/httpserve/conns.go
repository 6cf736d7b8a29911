package httpserve

import (
	"container/list"
	"net"
	"net/http"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	maxConnsDefault = 4096
	// filesPerConn is how many files a connection may have open: itself and
	// the blob that it carries. filesSpare is for everything else.
	filesPerConn = 2
	filesSpare   = 128
)

// maxConns is how many connections the process can serve at once.
func maxConns() int {
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return maxConnsDefault
	}
	return connsFor(files.Cur)
}

func connsFor(files uint64) int {
	if files >= filesSpare+filesPerConn*maxConnsDefault {
		return maxConnsDefault
	}
	return max(int(files)-filesSpare, filesPerConn*16) / filesPerConn
}

// connLimit is a listener that bounds the connections that are open at once.
// It hands them out as they are, since net/http sends files on a bare one only,
// and learns from http.Server's ConnState what becomes of them.
type connLimit struct {
	net.Listener
	slots  chan struct{} // one for each connection
	closed chan struct{}
	once   sync.Once

	mu      sync.Mutex // held for no I/O
	waiting bool       // a new connection waits for a slot
	idle    *list.List // of net.Conn, the one that became idle first in front
	at      map[net.Conn]*list.Element
}

func newConnLimit(ln net.Listener, n int) *connLimit {
	return &connLimit{
		Listener: ln, slots: make(chan struct{}, n), closed: make(chan struct{}),
		idle: list.New(), at: map[net.Conn]*list.Element{},
	}
}

// Accept waits for a connection and then for a slot for it.
func (l *connLimit) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	select {
	case l.slots <- struct{}{}:
		return c, nil
	default:
	}
	l.want()
	defer l.wanted()
	select {
	case l.slots <- struct{}{}:
		return c, nil
	case <-l.closed:
		_ = c.Close() // nothing was read from it
		return nil, net.ErrClosed
	}
}

// Close ends a wait in Accept too.
func (l *connLimit) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// want closes the connection that has been idle for longest, or else the next
// one that becomes idle. Its client sees what any idle connection may come to.
func (l *connLimit) want() {
	l.mu.Lock()
	front := l.idle.Front()
	if front == nil {
		l.waiting = true
		l.mu.Unlock()
		return
	}
	c := front.Value.(net.Conn)
	l.forget(c)
	l.mu.Unlock()
	_ = c.Close() // ConnState reports the end
}

func (l *connLimit) wanted() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting = false
}

// note is http.Server's ConnState.
func (l *connLimit) note(c net.Conn, state http.ConnState) {
	if l.noted(c, state) {
		_ = c.Close() // ConnState reports the end
	}
	if state == http.StateClosed || state == http.StateHijacked {
		<-l.slots
	}
}

// noted reports whether the connection is to be closed for another one.
func (l *connLimit) noted(c net.Conn, state http.ConnState) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.forget(c)
	if state != http.StateIdle {
		return false
	}
	if l.waiting {
		l.waiting = false
		return true
	}
	l.at[c] = l.idle.PushBack(c)
	return false
}

// forget takes a connection from the idle ones. The caller holds mu.
func (l *connLimit) forget(c net.Conn) {
	if e, ok := l.at[c]; ok {
		l.idle.Remove(e)
		delete(l.at, c)
	}
}
