package ociclient

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// dockerHub is the one registry that is not where its name says.
const (
	dockerHub    = "docker.io"
	dockerHubURL = "https://registry-1.docker.io"
)

// ParseUpstream reads NAME or NAME=URL, where NAME is what runtimes call the
// registry: docker.io, ghcr.io, registry.example:5000. Without a URL it is
// https, or http on this machine. A user and password in the URL become the
// credentials of the Client that is made with it.
func ParseUpstream(s string) (name string, base *url.URL, err error) {
	name, text, given := strings.Cut(strings.TrimSpace(s), "=")
	name = strings.ToLower(strings.TrimSpace(name))
	if name == "" || strings.ContainsAny(name, "/ \t?#@") {
		return "", nil, fmt.Errorf("upstream %q: want NAME or NAME=URL, where NAME is a host, with a port where it has one", Redact(s))
	}
	if !given {
		text = defaultURL(name)
	}
	base, err = url.Parse(strings.TrimSpace(text))
	if err != nil || base.Host == "" || base.Scheme != "http" && base.Scheme != "https" || base.RawQuery != "" {
		return "", nil, fmt.Errorf("upstream %q: its URL must be http://HOST or https://HOST", Redact(s))
	}
	return name, base, nil
}

func defaultURL(name string) string {
	if name == dockerHub {
		return dockerHubURL
	}
	host := name
	if h, _, err := net.SplitHostPort(name); err == nil {
		host = h
	}
	if ip := net.ParseIP(strings.Trim(host, "[]")); host == "localhost" || ip != nil && ip.IsLoopback() {
		return "http://" + name
	}
	return "https://" + name
}

// Upstreams are the registries that may be asked, by the names that runtimes
// give them. It does not change once it is made.
type Upstreams struct{ byName map[string]*Client }

// UpstreamsOptions is what the clients of all upstreams share.
type UpstreamsOptions struct {
	Bases       map[string]*url.URL // by name
	Credentials Credentials
	Transport   http.RoundTripper
	Log         *slog.Logger
	UserAgent   string
	Idle        time.Duration
	Now         func() time.Time
}

// NewUpstreams makes a client for each upstream. Credentials are looked up by
// the host and port of its URL first, then by its name.
func NewUpstreams(o UpstreamsOptions) *Upstreams {
	if o.Transport == nil {
		o.Transport = NewTransport(TransportOptions{})
	}
	u := &Upstreams{byName: make(map[string]*Client, len(o.Bases))}
	for name, base := range o.Bases {
		u.byName[name] = New(Options{
			Base: base, Transport: o.Transport, Log: o.Log, UserAgent: o.UserAgent, Idle: o.Idle, Now: o.Now,
			Credentials: func(ctx context.Context, host, repo string) (Login, error) {
				if o.Credentials == nil {
					return Login{}, nil
				}
				if l, err := o.Credentials(ctx, host, repo); err != nil || l != (Login{}) {
					return l, err
				}
				return o.Credentials(ctx, name, repo)
			},
		})
	}
	return u
}

// Client returns the client of the upstream called name.
func (u *Upstreams) Client(name string) (*Client, bool) {
	c, ok := u.byName[strings.ToLower(name)]
	return c, ok
}

// Names lists the upstreams, sorted.
func (u *Upstreams) Names() []string {
	names := make([]string, 0, len(u.byName))
	for name := range u.byName {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
