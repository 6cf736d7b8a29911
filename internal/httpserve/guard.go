package httpserve

import (
	"net"
	"net/http"
	"slices"
	"strings"
)

// Guard separates requests of the operator of a server on loopback from those
// that a web page has made a browser send.
type Guard struct {
	// Loopback says that the server listens on loopback, where a Host header
	// must be an IP address, localhost, or one of Hosts.
	Loopback bool
	Hosts    []string
}

// KnownHost reports whether nobody but the operator can have chosen the name:
// a page from evil.example whose name was rebound to 127.0.0.1 still says
// evil.example.
func (g Guard) KnownHost(hostport string) bool {
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	return net.ParseIP(strings.Trim(host, "[]")) != nil || host == "localhost" || strings.HasSuffix(host, ".localhost") || slices.Contains(g.Hosts, host)
}

// Suspicious reports whether the request has a host name that somebody else may
// have pointed to this machine. Nothing else distinguishes it: to a browser, a
// page whose name was rebound after it was loaded is of the server's own origin,
// so that neither Origin nor Sec-Fetch-Site need be there, and what a client
// calls itself is up to the page. A request without a host is not a browser's.
func (g Guard) Suspicious(req *http.Request) bool {
	return g.Loopback && req.Host != "" && !g.KnownHost(req.Host)
}
