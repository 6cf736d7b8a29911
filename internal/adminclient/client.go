// Package adminclient owns the way from the command line to a server's admin
// API: one request, one JSON answer, and errors told apart by what the person
// at the keyboard can do about them.
//
// It knows no endpoint: callers name the path under /api/v1 and the value to
// decode into, so that each noun of the API has one Go type, the server's.
//
// It refuses answers that are not JSON: something else listens there. What a
// terminal could take for a command in an answer's texts is escaped, unless the
// caller wants them as they are.
package adminclient

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"mime"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
	"unicode"

	"github.com/fairway-registry/fairway/internal/nodeapi"
)

// Client calls one server.
type Client struct {
	// Raw leaves the texts in answers as they are. Those in errors are escaped
	// in any case.
	Raw bool

	server string // as people call it
	base   string // of the URLs of requests
	http   *http.Client
	// socket is where a node serves what it refuses here; nil while that is not known.
	socket atomic.Pointer[Client]
}

// ErrServer says that the text given for a server is no URL of one.
var ErrServer = errors.New("it is no server URL; want for example http://127.0.0.1:5000 or unix:///run/fairway/admin.sock")

// New returns a client of server: a URL, HOST:PORT for http, or unix:///PATH
// for a socket.
func New(server string) (*Client, error) {
	if path, ok := strings.CutPrefix(server, "unix://"); ok {
		return newUnix(server, path)
	}
	if !strings.Contains(server, "://") {
		server = "http://" + server
	}
	u, err := url.Parse(server)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.RawQuery != "" || u.Fragment != "" {
		if at := strings.LastIndexByte(server, '@'); at >= 0 {
			server = "…" + server[at:] // what is before it may be a password
		}
		return nil, fmt.Errorf("%q: %w", server, ErrServer)
	}
	transport := &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         (&net.Dialer{Timeout: dialTimeout}).DialContext,
		TLSHandshakeTimeout: dialTimeout,
		IdleConnTimeout:     time.Minute,
	}
	base := strings.TrimSuffix(u.String(), "/")
	u.User = nil // net/http sends it, and nobody is shown it
	return &Client{server: strings.TrimSuffix(u.String(), "/"), base: base, http: &http.Client{Transport: transport}}, nil
}

func newUnix(server, path string) (*Client, error) {
	if !strings.HasPrefix(path, "/") {
		return nil, fmt.Errorf("%q: %w", server, ErrServer)
	}
	dialer := net.Dialer{Timeout: dialTimeout}
	transport := &http.Transport{
		DialContext:     func(ctx context.Context, _, _ string) (net.Conn, error) { return dialer.DialContext(ctx, "unix", path) },
		IdleConnTimeout: time.Minute,
	}
	return &Client{server: server, base: "http://localhost", http: &http.Client{Transport: transport}}, nil
}

const dialTimeout = 10 * time.Second

// Server is the URL that the client calls.
func (c *Client) Server() string { return c.server }

// Unreachable says that no server answered.
type Unreachable struct {
	Server string
	Err    error
}

// Error names the server and the cause without the request's URL.
func (e *Unreachable) Error() string {
	cause := e.Err
	var u *url.Error
	if errors.As(cause, &u) {
		cause = u.Err
	}
	return fmt.Sprintf("no server answers at %s: %v", e.Server, cause)
}

// Unwrap returns the cause.
func (e *Unreachable) Unwrap() error { return e.Err }

// Error is an answer that says no.
type Error struct {
	Status    int    `json:"-"`
	Code      string `json:"code"`
	Message   string `json:"message"`
	RequestID string `json:"request_id"`
}

// Error is the server's message; with its request id where the details are in
// the server's log.
func (e *Error) Error() string {
	if e.Status >= http.StatusInternalServerError && e.RequestID != "" {
		return e.Message + " (request " + e.RequestID + ")"
	}
	return e.Message
}

// Call sends in, if it is not nil, as JSON to path below /api/v1 and decodes
// the answer into out, if that is not nil. Errors are *Unreachable, *Error, or
// ctx's.
func (c *Client) Call(ctx context.Context, method, path string, in, out any) error {
	if at := c.socket.Load(); at != nil {
		return at.Call(ctx, method, path, in, out)
	}
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("encode the request: %w", err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+"/api/v1"+path, body)
	if err != nil {
		return fmt.Errorf("make the request: %w", err)
	}
	req.Header.Set("Accept", "application/json")
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := c.http.Do(req)
	if err != nil {
		return c.failed(ctx, err)
	}
	defer func() { _ = res.Body.Close() }() // nothing is lost by a failed close of what was read
	content, err := io.ReadAll(res.Body)
	if err != nil {
		return c.failed(ctx, err)
	}
	if at := res.Header.Get(nodeapi.SocketHeader); at != "" && res.StatusCode == http.StatusForbidden && c.base == c.server {
		socket, err := c.node(at)
		if err != nil {
			return err
		}
		c.socket.Store(socket)
		return socket.Call(ctx, method, path, in, out)
	}
	return c.answer(res, content, out)
}

// Socket is the URL of the socket that a node has named; "" if it has not.
func (c *Client) Socket() string {
	if at := c.socket.Load(); at != nil {
		return at.server
	}
	return ""
}

// Trusted returns an error unless there is a socket at path that belongs to root or
// to the caller.
func Trusted(path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return errors.New("cannot be looked at from here")
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || info.Mode().Type() != fs.ModeSocket || st.Uid != 0 && int(st.Uid) != os.Geteuid() {
		return errors.New("is not one of root or of this user")
	}
	return nil
}

// node returns a client of a node by the socket that was named at its address.
// Anybody on the machine may listen at an address that is free, so the socket
// counts only if it belongs to root or to the caller.
func (c *Client) node(path string) (*Client, error) {
	refuse := func(why string) error {
		return &Error{Status: http.StatusForbidden, Message: fmt.Sprintf(
			"the node at %s serves its admin API on the socket %s only, which %s; name it with --node unix://PATH", c.server, printable(path), why)}
	}
	if !filepath.IsAbs(path) {
		return nil, refuse("is no absolute path")
	}
	if err := Trusted(path); err != nil {
		return nil, refuse(err.Error())
	}
	at, err := newUnix("unix://"+path, path)
	if err != nil {
		return nil, refuse("is no address")
	}
	at.Raw = c.Raw
	return at, nil
}

// failed tells the end of ctx from a server that does not answer.
func (c *Client) failed(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return &Unreachable{Server: c.server, Err: err}
}

func (c *Client) answer(res *http.Response, content []byte, out any) error {
	if res.StatusCode >= http.StatusBadRequest {
		var e struct {
			Error *Error `json:"error"`
		}
		if json.Unmarshal(content, &e) != nil || e.Error == nil {
			return &Error{Status: res.StatusCode, Message: fmt.Sprintf(
				"%s answered %q, but not as Fairway's admin API does; does something else listen there?", c.server, res.Status)}
		}
		e.Error.Status = res.StatusCode
		e.Error.Message, e.Error.RequestID = printable(e.Error.Message), printable(e.Error.RequestID)
		return e.Error
	}
	if out == nil || res.StatusCode == http.StatusNoContent {
		return nil
	}
	if mt, _, err := mime.ParseMediaType(res.Header.Get("Content-Type")); err != nil || mt != "application/json" {
		return &Error{Status: http.StatusBadGateway, Message: c.server + " answers, but not as Fairway's admin API does; does something else listen there?"}
	}
	if err := c.decode(content, out); err != nil {
		return &Error{Status: http.StatusBadGateway, Message: fmt.Sprintf("%s sent an answer that this program cannot read: %v", c.server, err)}
	}
	return nil
}

func (c *Client) decode(content []byte, out any) error {
	if c.Raw {
		return json.Unmarshal(content, out)
	}
	var v any
	dec := json.NewDecoder(bytes.NewReader(content))
	dec.UseNumber()
	if err := dec.Decode(&v); err != nil {
		return err
	}
	safe, err := json.Marshal(escaped(v))
	if err != nil {
		return err
	}
	return json.Unmarshal(safe, out)
}

// escaped is v with all texts made printable.
func escaped(v any) any {
	switch v := v.(type) {
	case string:
		return printable(v)
	case []any:
		for i := range v {
			v[i] = escaped(v[i])
		}
	case map[string]any:
		safe := make(map[string]any, len(v))
		for name, value := range v {
			safe[printable(name)] = escaped(value)
		}
		return safe
	}
	return v
}

// printable escapes, as Go does, what does not print: somebody else may have
// chosen the text, and a terminal obeys some of it.
func printable(s string) string {
	if !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if unicode.IsPrint(r) {
			b.WriteRune(r)
		} else {
			b.WriteString(strings.Trim(strconv.QuoteRune(r), "'"))
		}
	}
	return b.String()
}
