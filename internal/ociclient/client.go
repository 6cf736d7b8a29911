package ociclient

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
)

// Credentials finds what to log in with for a repository at a host
// ("registry.example:5000"); the zero Login where there is nothing. An error says
// that it is not known whether there is.
type Credentials func(ctx context.Context, host, repo string) (Login, error)

// TokenUser is the name under which Docker hands identity tokens around.
const TokenUser = "<token>"

// Options is what a Client needs.
type Options struct {
	// Base is the registry, without /v2: https://registry.example. Its path, if
	// there is one, comes before /v2.
	Base *url.URL
	// Credentials are those of this machine, for requests that bring none; nil: none.
	Credentials Credentials
	// Transport carries the requests; nil: one by NewTransport.
	Transport http.RoundTripper
	Log       *slog.Logger
	// UserAgent names this program to the upstream.
	UserAgent string
	// Idle is how long the body of a manifest or a list may bring no byte, and how
	// long a token may take; 0 = 5 s. A blob's body is watched by whoever reads it.
	Idle time.Duration
	Now  func() time.Time // for Retry-After; nil: time.Now
}

const idleDefault = 5 * time.Second

// Client pulls from one upstream. It is safe for concurrent use.
type Client struct {
	base   *url.URL
	http   *http.Client
	creds  Credentials
	log    *slog.Logger
	agent  string
	idle   time.Duration
	tokens tokenCache
	basic  atomic.Bool // the upstream has asked for a password
	pauses *pauses
}

// New returns a client of the registry at o.Base.
func New(o Options) *Client {
	if o.Transport == nil {
		o.Transport = NewTransport(TransportOptions{})
	}
	if o.Credentials == nil {
		o.Credentials = func(context.Context, string, string) (Login, error) { return Login{}, nil }
	}
	if o.UserAgent == "" {
		o.UserAgent = "fairway"
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Idle <= 0 {
		o.Idle = idleDefault
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	base, user, pass, given := SplitUser(o.Base)
	if given {
		o.Credentials = func(_ context.Context, host, _ string) (Login, error) {
			if host != base.Host {
				return Login{}, nil
			}
			return Login{User: user, Pass: pass}, nil
		}
	}
	c := &Client{
		base: base, creds: o.Credentials, log: o.Log, agent: o.UserAgent, idle: o.Idle, tokens: newTokenCache(), pauses: newPauses(o.Now),
		http: &http.Client{Transport: o.Transport, CheckRedirect: redirect},
	}
	// Whoever puts a password into the URL wants it used, and what comes is private.
	c.basic.Store(given)
	return c
}

// Host is the upstream's host and port, for people and logs.
func (c *Client) Host() string { return c.base.Host }

const (
	redirectsMax = 10
	// redirectsWait is how long redirects are followed: each of them may take as long as
	// an answer.
	redirectsWait = headerDefault
)

// asked is the key of the time at which a question was asked, in the context of its requests.
type asked struct{}

// slowRedirects is a timeout, as that of an answer's header is.
type slowRedirects struct{}

func (slowRedirects) Error() string { return "its redirects take too long" }
func (slowRedirects) Timeout() bool { return true }

// redirect follows an upstream to where it keeps its bytes. Authorization stays
// at the very host, port and scheme it was for, and is not taken up again on a
// way back: net/http alone would hand it to another port and to subdomains.
func redirect(req *http.Request, via []*http.Request) error {
	if len(via) >= redirectsMax {
		return fmt.Errorf("%d redirects in a row", len(via))
	}
	if at, ok := req.Context().Value(asked{}).(time.Time); ok && time.Since(at) > redirectsWait {
		return slowRedirects{}
	}
	first := via[0].URL
	for _, r := range append(via[1:len(via):len(via)], req) {
		if r.URL.Scheme != first.Scheme || r.URL.Host != first.Host {
			req.Header.Del("Authorization")
		}
	}
	// It would tell one host what was asked of another, and a token's query with it.
	req.Header.Del("Referer")
	return nil
}

// Range is a part of a blob: bytes First to Last, inclusive; Last < 0: to its end.
type Range struct{ First, Last int64 }

func (r Range) header() string {
	if r.Last < 0 {
		return fmt.Sprintf("bytes=%d-", r.First)
	}
	return fmt.Sprintf("bytes=%d-%d", r.First, r.Last)
}

// Response is an upstream's answer.
type Response struct {
	Status int
	Header http.Header
	// Body is to be closed, whatever the status.
	Body io.ReadCloser
	// Size is the Content-Length, −1 if the upstream does not say.
	Size int64
	// Anonymous says that anybody would have got this answer: it took neither
	// the asker's Authorization nor this machine's credentials.
	Anonymous bool
	// Outcome is what the answer means. It is not always that of the status: a 401
	// to which no token could be had, because the token service is down, decides
	// nothing.
	Outcome Outcome

	odd    string // why it is not the answer to this question, whatever its status says; "": it is
	own    bool   // the registry's own answer, and not that of a redirect's target
	at     string // the host that answered
	login  bool   // it took the credentials of a URL that a redirect led to
	cancel context.CancelCauseFunc
}

// OK reports that the upstream gave what was asked for.
func (r *Response) OK() bool { return r.Outcome == OK }

// Digest is the Docker-Content-Digest, "" where it is missing or malformed.
func (r *Response) Digest() oci.Digest {
	d, err := oci.ParseDigest(r.Header.Get("Docker-Content-Digest"))
	if err != nil {
		return ""
	}
	return d
}

// Offset is where the body of an answer begins within the blob: 0 for a whole
// one, also where a range was asked for and ignored.
func (r *Response) Offset() (int64, error) {
	if r.Status != http.StatusPartialContent {
		return 0, nil
	}
	text, ok := strings.CutPrefix(r.Header.Get("Content-Range"), "bytes ")
	first, _, dash := strings.Cut(text, "-")
	n, err := strconv.ParseInt(strings.TrimSpace(first), 10, 64)
	if !ok || !dash || err != nil || n < 0 {
		return 0, fault.New(fault.Busy, "the upstream answers 206 with the Content-Range %.64q", r.Header.Get("Content-Range")).WithCode(oci.CodeUnknown)
	}
	return n, nil
}

// Manifest asks for a manifest by tag or digest. accept is what the asker sent.
// authorization is the asker's, used as it is; "" lets the client see to it.
func (c *Client) Manifest(ctx context.Context, repo, ref string, accept []string, authorization string, head bool) (*Response, error) {
	h := http.Header{}
	if len(accept) > 0 {
		h["Accept"] = accept
	}
	d, err := oci.ParseDigest(ref)
	if err != nil {
		d = "" // a tag
	}
	return c.do(ctx, question{repo: repo, rest: "manifests/" + ref, kind: "manifest", digest: d, head: head, idle: c.idle}, h, authorization)
}

// Blob asks for a blob, or the range rng of it. An upstream may ignore the
// range and answer 200 with all of it.
func (c *Client) Blob(ctx context.Context, repo string, d oci.Digest, rng *Range, authorization string, head bool) (*Response, error) {
	h := http.Header{}
	if rng != nil {
		h["Range"] = []string{rng.header()}
	}
	return c.do(ctx, question{repo: repo, rest: "blobs/" + string(d), kind: "blob", digest: d, head: head}, h, authorization)
}

// Get asks for any other path below /v2/REPO/, such as "tags/list?n=5".
func (c *Client) Get(ctx context.Context, repo, rest, authorization string, head bool) (*Response, error) {
	return c.do(ctx, question{repo: repo, rest: rest, kind: "list", head: head, idle: c.idle}, http.Header{}, authorization)
}

// URL is what Get asks for.
func (c *Client) URL(repo, rest string) *url.URL {
	u := *c.base
	path, query, _ := strings.Cut(rest, "?")
	u.Path = strings.TrimSuffix(u.Path, "/") + "/v2/" + repo + "/" + path
	u.RawQuery = query
	return &u
}

// question is what is asked.
type question struct {
	repo, rest string
	kind       string // of limit: registries count manifests and blobs apart
	digest     oci.Digest
	head       bool
	idle       time.Duration
}

func (q question) method() string {
	if q.head {
		return http.MethodHead
	}
	return http.MethodGet
}

// do asks, unless an answer to the last such question said not to yet.
func (c *Client) do(ctx context.Context, q question, h http.Header, authorization string) (*Response, error) {
	sum := sha256.Sum256([]byte(authorization))
	key := q.method() + " " + q.kind + " " + string(sum[:])
	if status, left, ok := c.pauses.current(key); ok {
		return &Response{
			Status: status, Header: http.Header{"Retry-After": {seconds(left)}}, Body: http.NoBody, Size: 0,
			Outcome: outcomeOf(status, true), own: true, at: c.base.Host, cancel: func(error) {},
		}, nil
	}
	res, err := c.let(ctx, q, h, authorization)
	if err == nil && res.own { // the target of a redirect speaks for itself only
		c.pauses.note(key, res.Status, res.Header)
	}
	return res, err
}

// let asks, and once more when the upstream says how to be let in.
func (c *Client) let(ctx context.Context, q question, h http.Header, authorization string) (*Response, error) {
	if authorization != "" {
		return c.ask(ctx, q, h, authorization, false)
	}
	login, lost := c.creds(ctx, c.base.Host, q.repo)
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	used, anonymous := c.known(q.repo, login)
	res, err := c.ask(ctx, q, h, used, anonymous)
	if err != nil || res.Status != http.StatusUnauthorized {
		return res, err
	}
	if lost != nil {
		// Nobody knows whether this machine may have it, so that is not a refusal.
		c.log.Debug("the credentials for the upstream cannot be found", "upstream", c.base.Host, "repository", q.repo, "err", lost)
		res.Outcome = OutcomeOf(lost)
		return res, nil
	}
	c.tokens.drop(tokenKey(q.repo, login))
	found, anonymous, err := c.authorize(ctx, q.repo, login, res.Header.Values("WWW-Authenticate"))
	if err != nil {
		// The challenge goes to the asker, who may know more than this machine. What
		// the token service does not decide, nobody has decided.
		c.log.Debug("the upstream's token service lets nobody in", "upstream", c.base.Host, "repository", q.repo, "err", err)
		res.Outcome = OutcomeOf(err)
		return res, nil
	}
	if found == "" || found == used {
		if used == "" {
			return res, nil
		}
		found, anonymous = "", true // it may refuse the login and let everybody in
	}
	again, err := c.ask(ctx, q, h, found, anonymous)
	if err != nil {
		closeBody(res)
		return nil, err
	}
	if again.Status == http.StatusUnauthorized && again.own {
		closeBody(again)
		return res, nil
	}
	closeBody(res)
	return again, nil
}

// ask asks once.
func (c *Client) ask(ctx context.Context, q question, h http.Header, authorization string, anonymous bool) (*Response, error) {
	h = h.Clone() // a request that was answered once may not be sent again with the same map
	if authorization != "" {
		h["Authorization"] = []string{authorization}
	}
	res, err := c.send(ctx, q, h)
	if err == nil {
		res.Anonymous = anonymous && !res.login
	}
	return res, err
}

// closeBody gives up a body, after so much of it that the connection can be
// used again if it was but an error's text.
func closeBody(res *Response) {
	res.hurry()
	_, _ = io.CopyN(io.Discard, res.Body, 4<<10)
	_ = res.Body.Close()
}

// textWait bounds the wait for a refusal's text: its status says enough.
const textWait = time.Second

// hurry ends the exchange soon.
func (r *Response) hurry() {
	cancel := r.cancel
	time.AfterFunc(textWait, func() { cancel(nil) })
}

func (c *Client) send(ctx context.Context, q question, header http.Header) (*Response, error) {
	header["User-Agent"] = []string{c.agent}
	header["Accept-Encoding"] = []string{"identity"}
	u := c.URL(q.repo, q.rest)
	path, _, _ := strings.Cut(q.rest, "?")
	asking, cancel := context.WithCancelCause(context.WithValue(ctx, asked{}, time.Now()))
	req := (&http.Request{Method: q.method(), URL: u, Header: header, Host: u.Host}).WithContext(asking)
	res, err := c.http.Do(req) //nolint:bodyclose // the caller closes it with the Response
	if err != nil {
		cancel(nil)
		return nil, c.unreachable(ctx, q.method(), q.repo, path, err)
	}
	r := &Response{
		Status: res.StatusCode, Header: res.Header, Size: res.ContentLength, cancel: cancel,
		own: c.decides(res.Request), at: res.Request.URL.Host,
		Body: &guarded{ReadCloser: res.Body, ctx: asking, cancel: cancel, host: c.base.Host, idle: q.idle},
	}
	r.Outcome = outcomeOf(r.Status, r.own)
	if r.Outcome == OK {
		if r.odd = oddity(r, q, header); r.odd != "" {
			r.Outcome = Failed
		}
	}
	for hop := res.Request; hop != nil && hop.Response != nil; hop = hop.Response.Request {
		r.login = r.login || hop.URL.User != nil
	}
	if !r.own {
		// The challenge of a redirect's target is not the registry's: whoever answers
		// it gives the registry's credentials to somebody else.
		r.Header.Del("Www-Authenticate")
	}
	if err := r.identity(c.base.Host); err != nil {
		_ = r.Body.Close() // nothing of it is of use
		return nil, fault.Wrap(fault.Busy, err, err.Error()).WithCode(oci.CodeUnknown)
	}
	return r, nil
}

// decides reports whether the answer to req is the registry's own: it came from
// the registry, or from where the registry's host upgrades http to https, and nobody
// else had a say in where it was asked for. Another service of the same host, such as
// the storage that keeps the registry's bytes, has another path.
func (c *Client) decides(req *http.Request) bool {
	for hop := req; hop != nil; hop = hop.Response.Request {
		u := hop.URL
		if u.Scheme != c.base.Scheme || u.Host != c.base.Host {
			upgraded := c.base.Scheme == "http" && u.Scheme == "https" && u.Hostname() == c.base.Hostname()
			if !upgraded || hop.Response == nil || u.Path != hop.Response.Request.URL.Path {
				return false
			}
		}
		if hop.Response == nil {
			return true
		}
	}
	return true
}

// unreachable is the error of an upstream that gave no answer. Of a URL only the
// host is told: a redirect's query may hold a signature.
func (c *Client) unreachable(ctx context.Context, method, repo, path string, err error) error {
	var where *url.Error
	if errors.As(err, &where) {
		err = where.Err
	}
	op := fmt.Errorf("%s %s/%s of %s: %w", method, repo, path, c.base.Host, err)
	if ctx.Err() != nil {
		return op
	}
	why := "cannot be reached"
	if timeout(err) {
		why = "does not answer in time"
	}
	return fault.Wrap(fault.Busy, op, fmt.Sprintf("the upstream %s %s", c.base.Host, why)).WithCode(oci.CodeUnknown)
}

// timeout reports that waiting, and not a refusal, ended an exchange.
func timeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}

// StatusError is an upstream's refusal, for those who cannot go on without what
// they asked for, and for a face to hand on.
type StatusError struct {
	Upstream string
	Status   int
	Header   http.Header // what of it means something to the asker
	Body     []byte
	// At is the host that answered in the registry's place after a redirect; "": none.
	At string

	outcome Outcome // OK: that of the status
	odd     string  // of the Response
}

// Outcome is what the answer means.
func (e *StatusError) Outcome() Outcome {
	if e.outcome != OK {
		return e.outcome
	}
	return outcomeOf(e.Status, e.At == "")
}

// Error names the upstream and the status.
func (e *StatusError) Error() string {
	if e.At != "" {
		if e.odd != "" {
			return fmt.Sprintf("the upstream %s redirects to %s, which answers %d with %s", e.Upstream, e.At, e.Status, e.odd)
		}
		return fmt.Sprintf("the upstream %s redirects to %s, which answers %d", e.Upstream, e.At, e.Status)
	}
	if e.odd != "" {
		return fmt.Sprintf("the upstream %s answers %d with %s", e.Upstream, e.Status, e.odd)
	}
	return fmt.Sprintf("the upstream %s answers %d", e.Upstream, e.Status)
}

// RetryAfter is how long the upstream asked to be left alone; 0 if it did not.
func (e *StatusError) RetryAfter(now time.Time) time.Duration {
	return retryAfter(e.Header.Get("Retry-After"), now)
}

// refusalMax bounds what is kept of a refusal's body.
const refusalMax = 16 << 10

// Refusal reads an answer that is not OK to its end, and closes it.
func (c *Client) Refusal(res *Response) *StatusError {
	e := &StatusError{Upstream: c.base.Host, Status: res.Status, outcome: res.Outcome, odd: res.odd, Header: http.Header{}}
	if !res.own {
		e.At = res.at
	}
	for _, key := range []string{"Www-Authenticate", "Retry-After", "Content-Type", "Ratelimit-Limit", "Ratelimit-Remaining"} {
		if v := res.Header.Values(key); len(v) > 0 {
			e.Header[key] = v
		}
	}
	res.hurry()
	e.Body, _ = io.ReadAll(io.LimitReader(res.Body, refusalMax)) // half a text is as good
	_ = res.Body.Close()
	return e
}
