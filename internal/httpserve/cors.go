package httpserve

import (
	"net/http"
	"slices"
)

// AnyOrigin is the entry of a list of origins that lets every page read.
const AnyOrigin = "*"

// CORS decides what web pages of other origins may do. Without any origin it lets
// none of them read, and refuses what would change something.
type CORS struct {
	origins    []string
	any        bool
	protection *http.CrossOriginProtection
}

// NewCORS lets pages of these origins (scheme://host[:port]) do what any client
// may, and with AnyOrigin all others read.
func NewCORS(origins []string) (*CORS, error) {
	c := &CORS{protection: http.NewCrossOriginProtection()}
	for _, o := range origins {
		if o == AnyOrigin {
			c.any = true
			continue
		}
		if err := c.protection.AddTrustedOrigin(o); err != nil {
			return nil, err
		}
		c.origins = append(c.origins, o)
	}
	return c, nil
}

const (
	corsRead    = "GET, HEAD"
	corsAll     = "GET, HEAD, POST, PUT, PATCH, DELETE"
	corsHeaders = "Accept, Authorization, Content-Range, Content-Type, If-Match, If-None-Match, If-Range, Range"
	corsExpose  = "Accept-Ranges, Content-Length, Content-Range, Docker-Content-Digest, Docker-Distribution-Api-Version, Docker-Upload-Uuid, ETag, Link, Location, OCI-Filters-Applied, OCI-Subject, OCI-Tag, Range, WWW-Authenticate, X-Request-Id"
	corsMaxAge  = "3600" // seconds
)

// Answer sets the headers that let a page read the response. It reports true
// where it has answered: a preflight request, or one that is refused.
func (c *CORS) Answer(w http.ResponseWriter, r *http.Request) bool {
	header := w.Header()
	if c.any || len(c.origins) > 0 {
		header.Add("Vary", "Origin") // without one, too: a cache may keep the response for other pages
	}
	if origin := r.Header["Origin"]; len(origin) == 1 {
		methods := ""
		switch {
		case slices.Contains(c.origins, origin[0]):
			methods = corsAll
			header["Access-Control-Allow-Origin"] = origin
		case c.any:
			methods = corsRead
			header["Access-Control-Allow-Origin"] = []string{AnyOrigin}
		}
		if methods != "" {
			header.Set("Access-Control-Expose-Headers", corsExpose)
			if r.Method == http.MethodOptions && r.Header["Access-Control-Request-Method"] != nil {
				header.Set("Access-Control-Allow-Methods", methods)
				header.Set("Access-Control-Allow-Headers", corsHeaders)
				header.Set("Access-Control-Max-Age", corsMaxAge)
				w.WriteHeader(http.StatusNoContent)
				return true
			}
		}
	}
	if err := c.protection.Check(r); err != nil {
		Denied(w, err, "a web page of another origin may not change anything here")
		return true
	}
	return false
}
