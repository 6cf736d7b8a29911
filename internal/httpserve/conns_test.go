package httpserve

import (
	"context"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"
)

func limited(t *testing.T, h http.Handler, n int) (addr string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	result := make(chan error, 1)
	go func() { result <- Serve(ctx, ln, Options{Handler: h, Grace: time.Minute, Log: quiet(), MaxConns: n}) }()
	t.Cleanup(func() {
		cancel()
		if err := <-result; err != nil {
			t.Error(err)
		}
	})
	return ln.Addr().String()
}

const get = "GET / HTTP/1.1\r\nHost: x\r\n\r\n"

func TestR17_ConnectionsAreBounded(t *testing.T) {
	const most = 3
	var now, peak atomic.Int32
	entered, leave := make(chan struct{}, 10), make(chan struct{})
	addr := limited(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		n := now.Add(1)
		defer now.Add(-1)
		for p := peak.Load(); n > p && !peak.CompareAndSwap(p, n); p = peak.Load() {
		}
		entered <- struct{}{}
		<-leave
	}), most)
	answered := make(chan error, 8)
	for range 8 {
		_, r := dial(t, addr, get)
		go func() {
			_, err := http.ReadResponse(r, nil)
			answered <- err
		}()
	}
	for range most {
		<-entered
	}
	close(leave)
	for range 8 { // those that had to wait are served when others are done
		if err := <-answered; err != nil {
			t.Error(err)
		}
	}
	if peak.Load() != most {
		t.Errorf("%d connections at once, want %d", peak.Load(), most)
	}
}

func TestR17_IdleConnectionsMakeWayForNewOnes(t *testing.T) {
	addr := limited(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}), 2)
	ask := func() net.Conn {
		t.Helper()
		c, r := dial(t, addr, get)
		if res, err := http.ReadResponse(r, nil); err != nil || res.Close {
			t.Fatalf("response %v, error %v", res, err)
		}
		return c
	}
	first := ask()
	for range 5 {
		ask()
	}
	if _, err := first.Read(make([]byte, 1)); err != io.EOF { //nolint:errorlint // the end itself
		t.Errorf("the connection that was idle for longest: %v, want its end", err)
	}
}

func TestConns_WhatTheOpenFilesAllow(t *testing.T) {
	for files, want := range map[uint64]int{0: 16, 256: 64, 1024: 448, 20_000: maxConnsDefault, 1 << 63: maxConnsDefault} {
		if got := connsFor(files); got != want {
			t.Errorf("%d open files: %d connections, want %d", files, got, want)
		}
	}
}
