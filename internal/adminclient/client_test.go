package adminclient

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fairway-registry/fairway/internal/nodeapi"
)

func TestNew_TakesURLsAndHostPort(t *testing.T) {
	for text, want := range map[string]string{
		"http://127.0.0.1:5000":     "http://127.0.0.1:5000",
		"https://fairway.test/":     "https://fairway.test",
		"localhost:5000":            "http://localhost:5000",
		"https://h.test/behind/it/": "https://h.test/behind/it",
	} {
		c, err := New(text)
		if err != nil || c.Server() != want {
			t.Errorf("New(%q): %v; want server %s", text, err, want)
		}
	}
	for _, text := range []string{"", "ftp://h", "http://", "http://h?x=1", "http://[::1", "unix://relative.sock", "unix://"} {
		if _, err := New(text); !errors.Is(err, ErrServer) {
			t.Errorf("New(%q): error %v, want ErrServer", text, err)
		}
	}
}

func serve(t *testing.T, h http.HandlerFunc) *Client {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	c, err := New(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestCall_SendsAndDecodesJSON(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json; charset=utf-8")
		_, _ = fmt.Fprintf(w, `{"saw":"%s %s %s"}`, r.Method, r.URL.RequestURI(), r.Header.Get("Content-Type"))
	})
	var out struct{ Saw string }
	if err := c.Call(t.Context(), "POST", "/gc/runs?x=1", map[string]int{"a": 1}, &out); err != nil {
		t.Fatal(err)
	}
	if want := "POST /api/v1/gc/runs?x=1 application/json"; out.Saw != want {
		t.Errorf("the server saw %q, want %q", out.Saw, want)
	}
}

func TestCall_OverASocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "admin.sock")
	c, err := New("unix://" + path)
	if err != nil {
		t.Fatal(err)
	}
	var u *Unreachable
	if err := c.Call(t.Context(), "GET", "/x", nil, nil); !errors.As(err, &u) || !strings.Contains(err.Error(), "unix://"+path) {
		t.Errorf("nobody there: %v", err)
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = fmt.Fprintf(w, `{"saw":"%s %s"}`, r.Method, r.URL.RequestURI())
	}))
	srv.Listener = ln
	srv.Start()
	defer srv.Close()
	var out struct{ Saw string }
	if err := c.Call(t.Context(), "PUT", "/x?y=1", struct{}{}, &out); err != nil || out.Saw != "PUT /api/v1/x?y=1" {
		t.Errorf("the server saw %q, %v", out.Saw, err)
	}
}

func TestCall_ErrorsAreToldApart(t *testing.T) {
	t.Run("an answer that says no", func(t *testing.T) {
		c := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusNotFound)
			_, _ = w.Write([]byte(`{"error":{"code":"NOT_FOUND","message":"no run 7","request_id":"r1"}}`))
		})
		var e *Error
		if err := c.Call(t.Context(), "GET", "/x", nil, nil); !errors.As(err, &e) || e.Status != 404 || e.Code != "NOT_FOUND" || e.Error() != "no run 7" {
			t.Errorf("error %#v", err)
		}
	})
	t.Run("the server's fault carries the request id", func(t *testing.T) {
		c := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusInternalServerError)
			_, _ = w.Write([]byte(`{"error":{"code":"INTERNAL","message":"internal error","request_id":"r1"}}`))
		})
		if err := c.Call(t.Context(), "GET", "/x", nil, nil); err == nil || !strings.Contains(err.Error(), "request r1") {
			t.Errorf("error %v", err)
		}
	})
	for name, h := range map[string]http.HandlerFunc{
		"another program's 404": func(w http.ResponseWriter, _ *http.Request) { http.NotFound(w, nil) },
		"another program's 200": func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) },
	} {
		t.Run(name, func(t *testing.T) {
			if err := serve(t, h).Call(t.Context(), "GET", "/x", nil, &struct{}{}); err == nil || !strings.Contains(err.Error(), "something else listen") {
				t.Errorf("error %v", err)
			}
		})
	}
	t.Run("nobody there", func(t *testing.T) {
		srv := httptest.NewServer(http.NotFoundHandler())
		srv.Close()
		c, err := New(srv.URL)
		if err != nil {
			t.Fatal(err)
		}
		var u *Unreachable
		if err := c.Call(t.Context(), "GET", "/x", nil, nil); !errors.As(err, &u) || strings.Contains(err.Error(), "/api/v1") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("the caller's own end", func(t *testing.T) {
		release := make(chan struct{})
		c := serve(t, func(http.ResponseWriter, *http.Request) { <-release })
		defer close(release)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := c.Call(ctx, "GET", "/x", nil, nil); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v", err)
		}
	})
}

func TestCall_WhatATerminalWouldObeyIsEscaped(t *testing.T) {
	status := http.StatusOK
	c := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_, _ = w.Write([]byte(`{"n":9007199254740993,"holder":"a\u001b[2Jb\nc\u202ed é 'x'","list":["\u0007"],"m":{"k\u001b":1},"error":{"message":"no\u001b[31m"}}`))
	})
	type answer struct {
		N      int64
		Holder string
		List   []string
		M      map[string]int
	}
	var got, raw answer
	if err := c.Call(t.Context(), "GET", "/x", nil, &got); err != nil {
		t.Fatal(err)
	}
	if got.N != 9007199254740993 || got.Holder != `a\x1b[2Jb\nc\u202ed é 'x'` || got.List[0] != `\a` || got.M[`k\x1b`] != 1 {
		t.Errorf("got %q", fmt.Sprint(got))
	}
	c.Raw = true
	if err := c.Call(t.Context(), "GET", "/x", nil, &raw); err != nil || raw.Holder != "a\x1b[2Jb\nc\u202ed é 'x'" {
		t.Errorf("raw: %q, %v", raw.Holder, err)
	}
	status = http.StatusConflict
	if err := c.Call(t.Context(), "GET", "/x", nil, nil); err == nil || err.Error() != `no\x1b[31m` {
		t.Errorf("error %q", err)
	}
}

// TestNode_ASocketCountsIfItBelongsToSomebodyWhoIsTrusted: anybody may listen at
// an address that is free, and name a socket there.
func TestNode_ASocketCountsIfItBelongsToSomebodyWhoIsTrusted(t *testing.T) {
	dir := t.TempDir()
	served := 0
	handler := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		served++
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(`{"node":"n1"}`))
	})
	listen := func(name string) string {
		path := filepath.Join(dir, name)
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		srv := &httptest.Server{Listener: l, Config: &http.Server{Handler: handler, ReadHeaderTimeout: dialTimeout}}
		srv.Start()
		t.Cleanup(srv.Close)
		return path
	}
	mine, foreign := listen("mine"), listen("foreign")
	link := filepath.Join(dir, "link")
	if err := os.Symlink(mine, link); err != nil {
		t.Fatal(err)
	}
	cases := map[string]string{
		mine: "", link: "not one of root", "mine": "no absolute path", filepath.Join(dir, "gone"): "cannot be looked at",
	}
	if os.Geteuid() == 0 { // who else can give a socket away?
		if err := os.Chown(foreign, 12345, -1); err != nil {
			t.Fatal(err)
		}
		cases[foreign] = "not one of root"
	}
	for named, want := range cases {
		tcp := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set(nodeapi.SocketHeader, named)
			w.WriteHeader(http.StatusForbidden)
		}))
		c, err := New(tcp.URL)
		if err != nil {
			t.Fatal(err)
		}
		served = 0
		var out struct{ Node string }
		err = c.Call(t.Context(), "GET", "/status", nil, &out)
		tcp.Close()
		switch {
		case want == "" && (err != nil || out.Node != "n1" || c.Socket() != "unix://"+named):
			t.Errorf("%s: %v, %+v, socket %q", named, err, out, c.Socket())
		case want != "" && (err == nil || !strings.Contains(err.Error(), want) || served != 0):
			t.Errorf("%s: %v, %d requests, want %q and none", named, err, served, want)
		}
	}
}
