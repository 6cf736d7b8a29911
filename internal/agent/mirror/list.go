package mirror

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/fairway-registry/fairway/internal/httpserve"
	"github.com/fairway-registry/fairway/internal/ociclient"
)

// listMax bounds a listing that is handed on, in bytes.
const listMax = 16 << 20

// list hands on dist-spec v1.1 §Listing Tags and §Listing Referrers: they change,
// and nothing is pulled by them.
func (m *Mirror) list(w http.ResponseWriter, r *http.Request, a access, rest string) error {
	client, ok := m.o.Upstreams.Client(a.ns)
	if !ok {
		return notConfigured(a.ns)
	}
	query := r.URL.Query()
	query.Del("ns")
	if len(query) > 0 {
		rest += "?" + query.Encode()
	}
	ctx := r.Context()
	res, err := m.ask(ctx, client, a, func() (*ociclient.Response, error) {
		return client.Get(ctx, string(a.repo), rest, a.auth, r.Method == http.MethodHead)
	})
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }() // it was only read
	header := w.Header()
	for _, key := range []string{"Content-Type", "Content-Length", "Oci-Filters-Applied"} {
		if v := res.Header.Values(key); len(v) > 0 {
			header[key] = v
		}
	}
	if link := a.link(res.Header.Get("Link")); link != "" {
		header.Set("Link", link)
	}
	header.Set(headerSource, sourceUpstream)
	w.WriteHeader(res.Status)
	if _, err := io.Copy(w, io.LimitReader(res.Body, listMax)); err != nil {
		httpserve.Note(w, fmt.Errorf("hand on a listing: %w", err))
		panic(http.ErrAbortHandler) // half a list looks like a whole one
	}
	return nil
}

// link makes an upstream's link to its next page one to this mirror's: it must
// name the upstream as the request did. One that leads elsewhere is left out.
func (a access) link(s string) string {
	target, params, ok := strings.Cut(strings.TrimPrefix(s, "<"), ">")
	u, err := url.Parse(target)
	if !ok || err != nil {
		return ""
	}
	rest, ok := strings.CutPrefix(u.Path, "/v2/")
	if !ok {
		return ""
	}
	query := u.Query()
	if a.byQuery {
		query.Set("ns", a.ns)
	}
	return "</v2/" + a.prefix + rest + "?" + query.Encode() + ">" + params
}
