package httpserve

import (
	"net"
	"net/http"
	"slices"
	"strings"
)

// Guard tells what the operator of a server on loopback may have asked from
// what a web page may have made a browser ask.
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

// Suspicious reports whether a browser asks under a name that somebody else
// may have pointed here. Clients that are no browsers may use any name.
func (g Guard) Suspicious(req *http.Request) bool {
	return g.Loopback && fromBrowser(req) && !g.KnownHost(req.Host)
}

// fromBrowser reports whether a web page may have sent req. A page whose name
// was rebound to this machine after it was loaded is of the same origin as the
// server, as the browser sees it, and neither Origin nor Sec-Fetch-Site need be
// there then; what every browser calls itself is.
func fromBrowser(req *http.Request) bool {
	return req.Header.Get("Origin") != "" || req.Header.Get("Sec-Fetch-Site") != "" || strings.HasPrefix(req.UserAgent(), "Mozilla/")
}
