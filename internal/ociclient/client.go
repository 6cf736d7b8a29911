package ociclient

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
)

// Credentials finds what to log in with at a host ("registry.example:5000").
// The user TokenUser says that pass is an identity token.
type Credentials func(host string) (user, pass string, ok bool)

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
}

// Client pulls from one upstream. It is safe for concurrent use.
type Client struct {
	base   *url.URL
	http   *http.Client
	creds  Credentials
	log    *slog.Logger
	agent  string
	tokens tokenCache
	basic  atomic.Bool // the upstream has asked for a password
}

// New returns a client of the registry at o.Base.
func New(o Options) *Client {
	if o.Transport == nil {
		o.Transport = NewTransport(TransportOptions{})
	}
	if o.Credentials == nil {
		o.Credentials = func(string) (string, string, bool) { return "", "", false }
	}
	if o.UserAgent == "" {
		o.UserAgent = "fairway"
	}
	return &Client{
		base: o.Base, creds: o.Credentials, log: o.Log, agent: o.UserAgent, tokens: newTokenCache(),
		http: &http.Client{Transport: o.Transport, CheckRedirect: redirect},
	}
}

// Host is the upstream's host and port, for people and logs.
func (c *Client) Host() string { return c.base.Host }

const redirectsMax = 10

// redirect follows an upstream to where it keeps its bytes. Authorization stays
// at the very host, port and scheme it was for, and is not taken up again on a
// way back: net/http alone would hand it to another port and to subdomains.
func redirect(req *http.Request, via []*http.Request) error {
	if len(via) >= redirectsMax {
		return fmt.Errorf("%d redirects in a row", len(via))
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
}

// OK reports that the upstream gave what was asked for.
func (r *Response) OK() bool {
	return r.Status == http.StatusOK || r.Status == http.StatusPartialContent
}

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
		return 0, fmt.Errorf("the upstream answers 206 with the Content-Range %.64q", r.Header.Get("Content-Range"))
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
	return c.do(ctx, head, repo, "manifests/"+ref, h, authorization)
}

// Blob asks for a blob, or the range rng of it. An upstream may ignore the
// range and answer 200 with all of it.
func (c *Client) Blob(ctx context.Context, repo string, d oci.Digest, rng *Range, authorization string, head bool) (*Response, error) {
	h := http.Header{"Accept-Encoding": {"identity"}}
	if rng != nil {
		h["Range"] = []string{rng.header()}
	}
	return c.do(ctx, head, repo, "blobs/"+string(d), h, authorization)
}

// Get asks for any other path below /v2/REPO/, such as "tags/list?n=5".
func (c *Client) Get(ctx context.Context, repo, rest, authorization string, head bool) (*Response, error) {
	return c.do(ctx, head, repo, rest, http.Header{}, authorization)
}

// do asks, and once more when the upstream says how to be let in.
func (c *Client) do(ctx context.Context, head bool, repo, rest string, h http.Header, authorization string) (*Response, error) {
	if authorization != "" {
		h["Authorization"] = []string{authorization}
		res, err := c.send(ctx, head, repo, rest, h)
		if err == nil {
			res.Anonymous = false
		}
		return res, err
	}
	used, anonymous := c.known(repo)
	if used != "" {
		h["Authorization"] = []string{used}
	}
	res, err := c.send(ctx, head, repo, rest, h)
	if err != nil || res.Status != http.StatusUnauthorized {
		if err == nil {
			res.Anonymous = anonymous
		}
		return res, err
	}
	c.tokens.drop(repo)
	found, anonymous, err := c.authorize(ctx, repo, res.Header.Values("WWW-Authenticate"))
	if err != nil || found == "" || found == used {
		// The challenge goes to the asker, who may know more than this machine.
		if err != nil {
			c.log.Debug("the upstream's token service lets nobody in", "upstream", c.base.Host, "repository", repo, "err", err)
		}
		return res, nil
	}
	h["Authorization"] = []string{found}
	again, err := c.send(ctx, head, repo, rest, h)
	if err != nil {
		closeBody(res)
		return nil, err
	}
	if again.Status == http.StatusUnauthorized {
		closeBody(again)
		return res, nil
	}
	closeBody(res)
	again.Anonymous = anonymous
	return again, nil
}

// closeBody gives up a body, after so much of it that the connection can be
// used again if it was but an error's text.
func closeBody(res *Response) {
	_, _ = io.CopyN(io.Discard, res.Body, 4<<10)
	_ = res.Body.Close()
}

func (c *Client) send(ctx context.Context, head bool, repo, rest string, h http.Header) (*Response, error) {
	method := http.MethodGet
	if head {
		method = http.MethodHead
	}
	// A request that was answered once may not be sent again with the same map.
	header := h.Clone()
	header["User-Agent"] = []string{c.agent}
	u := *c.base
	path, query, _ := strings.Cut(rest, "?")
	u.Path = strings.TrimSuffix(u.Path, "/") + "/v2/" + repo + "/" + path
	u.RawQuery = query
	req := (&http.Request{Method: method, URL: &u, Header: header, Host: u.Host}).WithContext(ctx)
	res, err := c.http.Do(req) //nolint:bodyclose // the caller closes it with the Response
	if err != nil {
		return nil, c.unreachable(ctx, method, repo, path, err)
	}
	return &Response{Status: res.StatusCode, Header: res.Header, Body: res.Body, Size: res.ContentLength}, nil
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
}

// Error names the upstream and the status.
func (e *StatusError) Error() string {
	return fmt.Sprintf("the upstream %s answers %d", e.Upstream, e.Status)
}

// refusalMax bounds what is kept of a refusal's body.
const refusalMax = 16 << 10

// Refusal reads an answer that is not OK to its end, and closes it.
func (c *Client) Refusal(res *Response) *StatusError {
	e := &StatusError{Upstream: c.base.Host, Status: res.Status, Header: http.Header{}}
	for _, key := range []string{"Www-Authenticate", "Retry-After", "Content-Type", "Ratelimit-Limit", "Ratelimit-Remaining"} {
		if v := res.Header.Values(key); len(v) > 0 {
			e.Header[key] = v
		}
	}
	e.Body, _ = io.ReadAll(io.LimitReader(res.Body, refusalMax)) // half a text is as good
	_ = res.Body.Close()
	return e
}
