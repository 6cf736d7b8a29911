package distapi

import "strings"

// endpoint is what a path under /v2/ names.
type endpoint uint8

const (
	noEndpoint  endpoint = iota
	apiBase              // end-1
	apiBlob              // end-2, end-10
	apiManifest          // end-3, end-7, end-9
	apiUploads           // end-4, end-11
	apiUpload            // end-5, end-6, end-13, end-14
	apiTags              // end-8
	apiReferrer          // end-12
	apiCatalog           // Distribution's, not in the specification
	endpoints
)

// names label the endpoints in metrics.
var names = [endpoints]string{"v2_unknown", "v2_base", "v2_blob", "v2_manifest", "v2_uploads", "v2_upload", "v2_tags", "v2_referrers", "v2_catalog"}

// allow is the Allow header of each endpoint.
var allow = [endpoints]string{
	apiBase: "GET, HEAD", apiBlob: "GET, HEAD, DELETE", apiManifest: "GET, HEAD, PUT, DELETE",
	apiUploads: "POST", apiUpload: "GET, HEAD, PATCH, PUT, DELETE", apiTags: "GET, HEAD", apiReferrer: "GET, HEAD", apiCatalog: "GET, HEAD",
}

// split takes a decoded path apart. Repository names contain slashes, and any
// of the fixed words may be part of one, so it reads from the end. name and
// last are not checked.
func split(path string) (e endpoint, name, last string) {
	rest, ok := strings.CutPrefix(path, "/v2/")
	if !ok {
		if path == "/v2" {
			return apiBase, "", ""
		}
		return noEndpoint, "", ""
	}
	switch rest {
	case "":
		return apiBase, "", ""
	case "_catalog":
		return apiCatalog, "", ""
	}
	if name, ok := strings.CutSuffix(rest, "/blobs/uploads/"); ok {
		return apiUploads, name, ""
	}
	rest, last = cutLast(rest)
	rest, word := cutLast(rest)
	switch word {
	case "manifests":
		return apiManifest, rest, last
	case "blobs":
		if last == "uploads" {
			return apiUploads, rest, ""
		}
		return apiBlob, rest, last
	case "referrers":
		return apiReferrer, rest, last
	case "tags":
		if last == "list" {
			return apiTags, rest, ""
		}
	case "uploads":
		if name, ok := strings.CutSuffix(rest, "/blobs"); ok {
			return apiUpload, name, last
		}
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
