package distapi_test

import (
	"io"
	"net"
	"os"
	"sync"
)

// spyListener notes what connections are told to send by themselves: for a
// *os.File, net.TCPConn uses sendfile.
type spyListener struct {
	net.Listener
	mu           sync.Mutex
	files, other int
}

func (l *spyListener) wrap(inner net.Listener) net.Listener {
	l.Listener = inner
	return l
}

func (l *spyListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &spyConn{c.(*net.TCPConn), l}, nil
}

func (l *spyListener) counts() (files, other int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.files, l.other
}

type spyConn struct {
	*net.TCPConn
	spy *spyListener
}

func (c *spyConn) ReadFrom(r io.Reader) (int64, error) {
	source := r
	for {
		limited, ok := source.(*io.LimitedReader)
		if !ok {
			break
		}
		source = limited.R
	}
	c.spy.mu.Lock()
	if _, ok := source.(*os.File); ok {
		c.spy.files++
	} else {
		c.spy.other++
	}
	c.spy.mu.Unlock()
	return c.TCPConn.ReadFrom(r)
}
