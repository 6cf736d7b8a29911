package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// load sends one request over and over on each of some connections, from one
// thread with epoll, as wrk does (which cannot HEAD: it waits for the body).
type load struct {
	addr     string
	request  []byte
	head     bool // answers have no body
	conns    int
	duration time.Duration
}

type loadResult struct {
	requests int
	bad      int // answers other than 200
	elapsed  time.Duration
}

func (r loadResult) perSecond() float64 { return float64(r.requests) / r.elapsed.Seconds() }

type loadConn struct {
	fd  int
	buf []byte
	n   int // bytes in buf
}

func (l load) run() (res loadResult, err error) {
	ep, err := unix.EpollCreate1(0)
	if err != nil {
		return res, err
	}
	defer func() { _ = unix.Close(ep) }()
	conns := map[int32]*loadConn{}
	defer func() {
		for _, c := range conns {
			_ = unix.Close(c.fd)
		}
	}()
	for range l.conns {
		c, err := l.dial()
		if err != nil {
			return res, err
		}
		conns[int32(c.fd)] = c
		if err := unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, c.fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(c.fd)}); err != nil {
			return res, err
		}
	}
	began := time.Now()
	for _, c := range conns {
		if err := l.send(c); err != nil {
			return res, err
		}
	}
	events := make([]unix.EpollEvent, l.conns)
	for time.Since(began) < l.duration {
		n, err := unix.EpollWait(ep, events, 100)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return res, err
		}
		for _, e := range events[:n] {
			if err := l.receive(conns[e.Fd], &res); err != nil {
				return res, err
			}
		}
	}
	res.elapsed = time.Since(began)
	return res, nil
}

func (l load) dial() (*loadConn, error) {
	addr, err := net.ResolveTCPAddr("tcp4", l.addr)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: addr.Port, Addr: [4]byte(addr.IP.To4())}); err != nil {
		_ = unix.Close(fd) // the first error is the one that matters
		return nil, err
	}
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return &loadConn{fd: fd, buf: make([]byte, 64<<10)}, nil
}

// send relies on a request that fits into the socket's buffer.
func (l load) send(c *loadConn) error {
	n, err := unix.Write(c.fd, l.request)
	if err == nil && n != len(l.request) {
		err = errors.New("short write")
	}
	return err
}

func (l load) receive(c *loadConn, res *loadResult) error {
	if c.n == len(c.buf) {
		c.buf = append(c.buf, make([]byte, len(c.buf))...)
	}
	n, err := unix.Read(c.fd, c.buf[c.n:])
	if err != nil {
		return err
	}
	if n == 0 {
		return fmt.Errorf("the server closed the connection after %q", c.buf[:c.n])
	}
	c.n += n
	status, done, err := parseAnswer(c.buf[:c.n], l.head)
	if err != nil || !done {
		return err
	}
	res.requests++
	if status != 200 {
		res.bad++
	}
	c.n = 0
	return l.send(c)
}

// parseAnswer tells whether b holds a whole answer.
func parseAnswer(b []byte, head bool) (status int, done bool, err error) {
	end := bytes.Index(b, []byte("\r\n\r\n"))
	if end < 0 {
		return 0, false, nil
	}
	if len(b) < 12 {
		return 0, false, fmt.Errorf("no HTTP answer: %q", b)
	}
	if status, err = strconv.Atoi(string(b[9:12])); err != nil {
		return 0, false, err
	}
	if head {
		return status, true, nil
	}
	size, chunked := bodySize(b[:end])
	switch {
	case chunked:
		return status, bytes.HasSuffix(b, []byte("\r\n0\r\n\r\n")), nil
	case size < 0:
		return 0, false, fmt.Errorf("an answer without a length: %q", b[:end])
	}
	return status, len(b) >= end+4+size, nil
}

func bodySize(head []byte) (size int, chunked bool) {
	size = -1
	for line := range bytes.SplitSeq(head, []byte("\r\n")) {
		name, value, ok := bytes.Cut(line, []byte(":"))
		if !ok {
			continue
		}
		switch {
		case len(name) == len("Content-Length") && bytes.EqualFold(name, []byte("Content-Length")):
			if n, err := strconv.Atoi(string(bytes.TrimSpace(value))); err == nil {
				size = n
			}
		case len(name) == len("Transfer-Encoding") && bytes.EqualFold(name, []byte("Transfer-Encoding")):
			chunked = true
		}
	}
	return size, chunked
}
