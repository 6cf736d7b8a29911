package mirror

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
)

// endpoint is what a path under /v2/ names.
type endpoint uint8

const (
	noEndpoint  endpoint = iota
	apiBase              // end-1
	apiBlob              // end-2
	apiManifest          // end-3
	apiTags              // end-8
	apiReferrer          // end-12
	apiWrite             // all that only a push or a catalog needs
	endpoints
)

// names label the endpoints in metrics.
var names = [endpoints]string{"mirror_unknown", "mirror_base", "mirror_blob", "mirror_manifest", "mirror_tags", "mirror_referrers", "mirror_write"}

// split takes a decoded path apart. Repository names contain slashes, and any
// of the fixed words may be part of one, so it reads from the end.
func split(path string) (e endpoint, name, last string) {
	rest, ok := strings.CutPrefix(path, "/v2/")
	if !ok {
		if path == "/v2" {
			return apiBase, "", ""
		}
		return noEndpoint, "", ""
	}
	if rest == "" {
		return apiBase, "", ""
	}
	if rest == "_catalog" {
		return apiWrite, "", ""
	}
	rest, last = cutLast(rest)
	rest, word := cutLast(rest)
	switch {
	case word == "manifests":
		return apiManifest, rest, last
	case word == "blobs" && last == "uploads", word == "uploads":
		return apiWrite, rest, last
	case word == "blobs":
		return apiBlob, rest, last
	case word == "referrers":
		return apiReferrer, rest, last
	case word == "tags" && last == "list":
		return apiTags, rest, ""
	}
	return noEndpoint, "", ""
}

// cutLast splits s at its last slash.
func cutLast(s string) (before, last string) {
	i := strings.LastIndexByte(s, '/')
	if i < 0 {
		return "", s
	}
	return s[:i], s[i+1:]
}

// hubAliases are other names of Docker Hub, unless they are configured themselves.
var hubAliases = map[string]string{"index.docker.io": "docker.io", "registry-1.docker.io": "docker.io"}

// known returns the configured name of an upstream that a runtime calls s.
func (m *Mirror) known(s string) (string, bool) {
	s = strings.ToLower(s)
	if _, ok := m.o.Upstreams.Client(s); ok {
		return s, true
	}
	alias, ok := hubAliases[s]
	if ok {
		_, ok = m.o.Upstreams.Client(alias)
	}
	return alias, ok
}

// target finds out which upstream and repository a request means.
func (m *Mirror) target(r *http.Request, name, def string) (a access, err error) {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return a, fault.New(fault.Invalid, "the query is malformed").WithCode(oci.CodeUnsupported)
	}
	asked := def
	if query.Has("ns") {
		asked = query.Get("ns")
		a.byQuery = true
	} else if first, rest, ok := strings.Cut(name, "/"); ok {
		// A port's colon is no part of a repository name; some clients keep it, others write '_'.
		for _, candidate := range []string{first, strings.Replace(first, "_", ":", 1)} {
			if _, ok := m.known(candidate); ok {
				asked, name, a.prefix = candidate, rest, first+"/"
				break
			}
		}
	}
	ns, ok := m.known(asked)
	if !ok {
		return a, notConfigured(asked)
	}
	a.ns = ns
	if a.repo, err = oci.ParseName(name); err != nil {
		return a, err
	}
	a.auth = r.Header.Get("Authorization")
	a.who = principalOf(a.auth)
	return a, nil
}

func notConfigured(ns string) error {
	text := fmt.Sprintf("this node does not mirror %.128q: name it in the setting \"upstreams\", or pull from it directly", ns)
	if ns == "" {
		text = "this node has no default upstream: the request must name one with ?ns= or as the first part of the repository"
	}
	return fault.New(fault.NotFound, "%s", text).WithCode(oci.CodeNameUnknown)
}
