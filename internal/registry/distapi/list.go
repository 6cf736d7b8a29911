package distapi

import (
	"encoding/json"
	"fmt"
	"iter"
	"net/http"
	"net/url"
	"strconv"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/meta"
)

// tagPageMax bounds a page of tags for which the client gave a size. Without
// one it gets the whole list (dist-spec §Listing Tags).
const tagPageMax = 10_000

// tags is dist-spec §Listing Tags.
func (h *Handler) tags(w http.ResponseWriter, r *http.Request, name oci.Name, _ string) error {
	query, err := parseQuery(r)
	if err != nil {
		return err
	}
	p, err := parsePage(query, tagPageMax)
	if err != nil {
		return err
	}
	if p.last != "" {
		if _, err := oci.ParseTag(p.last); err != nil {
			return err
		}
	}
	tags, more, err := h.store.Tags(r.Context(), name, p.last, p.n)
	if err != nil {
		return err
	}
	if more && len(tags) > 0 {
		link(w, "/v2/"+string(name)+"/tags/list", url.Values{"n": {strconv.Itoa(p.n)}, "last": {tags[len(tags)-1]}})
	}
	b := append(make([]byte, 0, 64+16*len(tags)), `{"name":"`...)
	b = append(append(b, name...), `","tags":`...)
	writeJSON(w, r, typeJSON, append(appendPlain(b, tags), '}'))
	return nil
}

// catalog is Distribution's /v2/_catalog.
func (h *Handler) catalog(w http.ResponseWriter, r *http.Request, _ oci.Name, _ string) error {
	query, err := parseQuery(r)
	if err != nil {
		return err
	}
	p, err := parsePage(query, h.pageMax)
	if err != nil {
		return err
	}
	if len(p.last) > oci.NameMax {
		return fault.New(fault.Invalid, "invalid repository name in last: it is longer than %d bytes", oci.NameMax).WithCode(oci.CodeNameInvalid)
	}
	if p.n < 0 {
		p.n = h.pageMax
	}
	names, more, err := h.store.Repositories(r.Context(), p.last, p.n)
	if err != nil {
		return err
	}
	if more && len(names) > 0 {
		link(w, "/v2/_catalog", url.Values{"n": {strconv.Itoa(p.n)}, "last": {names[len(names)-1]}})
	}
	b := append(make([]byte, 0, 32+32*len(names)), `{"repositories":`...)
	writeJSON(w, r, typeJSON, append(appendPlain(b, names), '}'))
	return nil
}

// appendPlain appends a JSON array of tags or names, whose grammar leaves
// nothing to escape.
func appendPlain(b []byte, list []string) []byte {
	b = append(b, '[')
	for i, s := range list {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(append(append(b, '"'), s...), '"')
	}
	return append(b, ']')
}

// link sets the Link header to the next page (RFC 5988).
func link(w http.ResponseWriter, path string, query url.Values) {
	w.Header()["Link"] = []string{"<" + path + "?" + query.Encode() + `>; rel="next"`}
}

const (
	indexHead = `{"schemaVersion":2,"mediaType":"` + oci.MediaTypeIndex + `","manifests":[`
	indexTail = `]}`
)

// referrers is dist-spec §Listing Referrers. Once a registry has this endpoint
// it never answers 404: a repository or subject that does not exist has no
// referrers.
func (h *Handler) referrers(w http.ResponseWriter, r *http.Request, name oci.Name, last string) error {
	d, err := oci.ParseDigest(last)
	if err != nil {
		return err
	}
	query, err := parseQuery(r)
	if err != nil {
		return err
	}
	p, err := parsePage(query, h.pageMax)
	if err != nil {
		return err
	}
	var after oci.Digest
	if p.last != "" {
		if after, err = oci.ParseDigest(p.last); err != nil {
			return err
		}
	}
	artifactType := query.Get("artifactType")
	body, next, err := appendIndex(h.store.Referrers(r.Context(), name, d, artifactType, after), p.n)
	if err != nil {
		return err
	}
	if next != "" {
		q := url.Values{"last": {string(next)}}
		if p.n >= 0 {
			q.Set("n", strconv.Itoa(p.n))
		}
		if artifactType != "" {
			q.Set("artifactType", artifactType)
		}
		link(w, "/v2/"+string(name)+"/referrers/"+string(d), q)
	}
	if artifactType != "" {
		w.Header()["Oci-Filters-Applied"] = []string{"artifactType"}
	}
	writeJSON(w, r, typeIndex, body)
	return nil
}

// appendIndex renders an index of n descriptors (n < 0: of any number), as far
// as they fit into a manifest, but of one at least. next is the last of them
// where there are more: many clients read only the first page, so that it has
// all that a manifest can.
func appendIndex(found iter.Seq2[meta.Referrer, error], n int) (body []byte, next oci.Digest, err error) {
	body = append(make([]byte, 0, 4096), indexHead...)
	var last oci.Digest
	count := 0
	for r, err := range found {
		if err != nil {
			return nil, "", err
		}
		one, err := json.Marshal(r)
		if err != nil {
			return nil, "", fmt.Errorf("render referrer %s: %w", r.Digest, err)
		}
		if count == n || count > 0 && len(body)+len(one)+1+len(indexTail) > oci.ManifestMax {
			next = last
			break
		}
		if count > 0 {
			body = append(body, ',')
		}
		body = append(body, one...)
		count, last = count+1, r.Digest
	}
	return append(body, indexTail...), next, nil
}
