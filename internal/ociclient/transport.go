package ociclient

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"net/url"
	"time"
)

// TransportOptions says how long an upstream may be silent, and whom to trust.
type TransportOptions struct {
	Connect time.Duration  // to establish a connection, and again for TLS; 0 = 3 s
	Header  time.Duration  // from the request to the answer's header; 0 = 10 s
	Roots   *x509.CertPool // nil: the system's
	// Proxy is http.ProxyFromEnvironment where the environment may say so; nil: none.
	Proxy func(*http.Request) (*url.URL, error)
}

const (
	connectDefault = 3 * time.Second
	headerDefault  = 10 * time.Second
	connsPerHost   = 64
	readBuffer     = 64 << 10
)

// NewTransport returns a transport that fails fast: a runtime that waits for a
// mirror does not go on to its next host. It does not decompress, since what is
// received must have the digest that was asked for.
func NewTransport(o TransportOptions) *http.Transport {
	if o.Connect <= 0 {
		o.Connect = connectDefault
	}
	if o.Header <= 0 {
		o.Header = headerDefault
	}
	dialer := &net.Dialer{Timeout: o.Connect, KeepAlive: 15 * time.Second}
	return &http.Transport{
		Proxy:                 o.Proxy,
		DialContext:           dialer.DialContext,
		TLSHandshakeTimeout:   o.Connect,
		TLSClientConfig:       &tls.Config{RootCAs: o.Roots, MinVersion: tls.VersionTLS12},
		ResponseHeaderTimeout: o.Header,
		DisableCompression:    true,
		// One connection a download: a layer in HTTP/2's window of a connection
		// that it shares with others is slow.
		ForceAttemptHTTP2:   false,
		MaxIdleConnsPerHost: connsPerHost,
		IdleConnTimeout:     90 * time.Second,
		ReadBufferSize:      readBuffer,
	}
}
