package mirror

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/ociclient"
)

const (
	// listMax bounds a listing that is handed on, in bytes.
	listMax = 16 << 20
	// listBudget bounds the memory of all large ones together: what a list has beyond
	// listSmall counts, and waits for listWait. A list of a thousand tags is a small one.
	listBudget = 4 * listMax
	listSmall  = 64 << 10
	listWait   = 10 * time.Second
	// listGrace and listRate bound how long an upstream that sends little holds a share of
	// the budget: after n bytes of a large list the next must come within the grace and n at
	// this rate, in bytes per second. A client that takes little has the time that httpserve
	// gives to one Write.
	listGrace = 10 * time.Second
	listRate  = 256 << 10
)

// readList reads a list to its end, which is an error beyond listMax. The memory is to be
// given back with release, also after an error.
func (m *Mirror) readList(ctx context.Context, body io.ReadCloser) (content []byte, release func(), err error) {
	release = func() {}
	content, err = io.ReadAll(io.LimitReader(body, listSmall+1))
	if err != nil || len(content) <= listSmall {
		return content, release, err
	}
	// All of it at once: several that had a part each would wait for each other.
	if !m.lists.TryAcquire(listMax) {
		wait, cancel := context.WithTimeout(ctx, m.listWait)
		defer cancel()
		if err := m.lists.Acquire(wait, listMax); err != nil {
			return nil, release, fault.Wrap(fault.Busy, err, "too many large lists are being handed on at once; try again").WithCode(oci.CodeUnknown)
		}
	}
	src := &paced{body: body, began: time.Now()}
	rest, err := io.ReadAll(io.LimitReader(src, listMax+1-int64(len(content))))
	return append(content, rest...), func() { m.lists.Release(listMax) }, err
}

// paced is a body that is closed, and fails, when it brings too little.
type paced struct {
	body  io.ReadCloser
	began time.Time
	n     int64
}

var errSlowList = fault.New(fault.Busy, "the upstream sends a large list too slowly; try again").WithCode(oci.CodeUnknown)

func (p *paced) Read(b []byte) (int, error) {
	due := listGrace + time.Duration(p.n)*time.Second/listRate
	// The time in which others had the processor counts; the grace is far more than that.
	late := time.AfterFunc(due-time.Since(p.began), func() { _ = p.body.Close() }) // Read reports it
	n, err := p.body.Read(b)
	if !late.Stop() {
		return n, errSlowList
	}
	p.n += int64(n)
	return n, err
}

// list hands on dist-spec v1.1 §Listing Tags and §Listing Referrers: they change,
// and nothing is pulled by them. A list is answered whole or not at all: half of
// one, or one without its next page, looks complete.
func (m *Mirror) list(w http.ResponseWriter, r *http.Request, a access, endpoint string) error {
	client, ok := m.o.Upstreams.Client(a.ns)
	if !ok {
		return notConfigured(a.ns)
	}
	query := r.URL.Query()
	query.Del("ns")
	rest := endpoint
	if len(query) > 0 {
		rest += "?" + query.Encode()
	}
	ctx := r.Context()
	res, err := m.ask(ctx, client, a, func() (*ociclient.Response, error) {
		return client.Get(ctx, string(a.repo), rest, a.auth, r.Method == http.MethodHead)
	})
	if err != nil {
		return m.heedRepository(ctx, a, err)
	}
	defer func() { _ = res.Body.Close() }() // it was only read
	content, release, err := m.readList(ctx, res.Body)
	defer release()
	switch {
	case errors.Is(err, fault.Busy):
		return err
	case err != nil:
		return fault.Wrap(fault.Busy, fmt.Errorf("read %s of %s: %w", endpoint, a.repo, err), "the upstream broke off in the middle of a list").WithCode(oci.CodeUnknown)
	case len(content) > listMax:
		return badList(fmt.Errorf("%s of %s has more than %d bytes", endpoint, a.repo, listMax))
	}
	next, err := a.next(client.URL(string(a.repo), rest), endpoint, res.Header.Values("Link"))
	if err != nil {
		return badList(fmt.Errorf("%s of %s: %w", endpoint, a.repo, err))
	}
	header := w.Header()
	for _, key := range []string{"Content-Type", "Oci-Filters-Applied"} {
		if v := res.Header.Values(key); len(v) > 0 {
			header[key] = v
		}
	}
	if next != "" {
		header.Set("Link", next)
	}
	header.Set(headerSource, sourceUpstream)
	if r.Method != http.MethodHead {
		header.Set("Content-Length", strconv.Itoa(len(content)))
	} else if res.Size >= 0 {
		header.Set("Content-Length", strconv.FormatInt(res.Size, 10))
	}
	w.WriteHeader(http.StatusOK)
	_, _ = w.Write(content) // a client that is gone needs no answer
	return nil
}

func badList(err error) error {
	return fault.Wrap(fault.Busy, err, "the upstream's list cannot be handed on completely: "+err.Error()).WithCode(oci.CodeUnknown)
}

// next makes an upstream's link to its next page (RFC 8288) one to this mirror's,
// which must name the upstream as the request did; "" if there is none. asked is
// the URL that the links are relative to. The next page of a list is the same
// list with another query, whatever the upstream calls itself.
func (a access) next(asked *url.URL, endpoint string, lines []string) (string, error) {
	for _, l := range parseLinks(lines) {
		if !l.next {
			continue
		}
		u, err := asked.Parse(l.target)
		if err != nil {
			return "", fmt.Errorf("its next page %.128q is not a URL", ociclient.Redact(l.target))
		}
		if !strings.HasSuffix(u.Path, "/v2/"+string(a.repo)+"/"+endpoint) {
			return "", fmt.Errorf("its next page is at %.128q, which is another list", u.Path)
		}
		query, err := url.ParseQuery(u.RawQuery)
		if err != nil {
			return "", errors.New("the query of its next page is malformed")
		}
		if a.byQuery {
			query.Set("ns", a.ns)
		}
		mine := url.URL{Path: "/v2/" + a.prefix + string(a.repo) + "/" + endpoint, RawQuery: query.Encode()}
		return "<" + mine.String() + `>; rel="next"`, nil
	}
	return "", nil
}

// link is one of a Link header.
type link struct {
	target string
	next   bool
}

// parseLinks reads all links of all header lines. One that does not say what it
// is leads to the next page, as the only one that a list needs.
func parseLinks(lines []string) (all []link) {
	for _, rest := range lines {
		for {
			_, after, ok := strings.Cut(rest, "<")
			if !ok {
				break
			}
			target, params, ok := strings.Cut(after, ">")
			if !ok {
				break
			}
			l := link{target: strings.TrimSpace(target), next: true}
			rest = l.params(params)
			all = append(all, l)
		}
	}
	return all
}

// params reads the parameters of a link, and returns what comes after them.
func (l *link) params(s string) (rest string) {
	for first := true; ; {
		s = strings.TrimLeft(s, " \t")
		if !strings.HasPrefix(s, ";") {
			return s
		}
		s = strings.TrimLeft(s[1:], " \t;")
		end := strings.IndexAny(s, "=;,")
		if end < 0 {
			return ""
		}
		name := strings.TrimSpace(s[:end])
		if s = s[end:]; s[0] != '=' {
			continue
		}
		var value string
		value, s = linkValue(strings.TrimLeft(s[1:], " \t"))
		if first && strings.EqualFold(name, "rel") {
			first = false // RFC 8288 §3.3: the first counts
			l.next = false
			for rel := range strings.FieldsSeq(value) {
				l.next = l.next || strings.EqualFold(rel, "next")
			}
		}
	}
}

// linkValue reads a token or a quoted string.
func linkValue(s string) (value, rest string) {
	if !strings.HasPrefix(s, `"`) {
		end := strings.IndexAny(s, ";,")
		if end < 0 {
			end = len(s)
		}
		return strings.TrimSpace(s[:end]), s[end:]
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '\\':
			if i++; i < len(s) {
				b.WriteByte(s[i])
			}
		case '"':
			return b.String(), s[i+1:]
		default:
			b.WriteByte(s[i])
		}
	}
	return b.String(), ""
}
