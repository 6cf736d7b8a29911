package agent

import (
	"crypto/x509"
	"log/slog"
	"net/http"
	"os"

	"github.com/fairway-registry/fairway/internal/ociclient"
	"github.com/fairway-registry/fairway/internal/setting"
)

// upstreams are the registries that this node pulls from.
type upstreams struct {
	clients   *ociclient.Upstreams
	standard  string // the one of requests that name none; "" for none
	transport *http.Transport
}

func openUpstreams(cfg Config, log *slog.Logger, version string) (upstreams, error) {
	bases, standard, err := cfg.upstreams()
	if err != nil {
		return upstreams{}, err
	}
	o := ociclient.TransportOptions{Proxy: http.ProxyFromEnvironment}
	if cfg.CA != "" {
		if o.Roots, err = authorities(cfg.CA); err != nil {
			return upstreams{}, err
		}
	}
	var credentials ociclient.Credentials
	if cfg.Credentials != "" {
		file, err := ociclient.OpenConfigFile(cfg.Credentials, log)
		if err != nil {
			return upstreams{}, setting.Errorf("credentials", "%v", err)
		}
		credentials = file.Find
	}
	transport := ociclient.NewTransport(o)
	return upstreams{
		clients: ociclient.NewUpstreams(ociclient.UpstreamsOptions{
			Bases: bases, Credentials: credentials, Transport: transport, Log: log, UserAgent: "fairway/" + version,
		}),
		standard: standard, transport: transport,
	}, nil
}

// authorities are the system's and those in a file.
func authorities(path string) (*x509.CertPool, error) {
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool() // a machine without any has only those of the file
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, setting.Errorf("ca", "%v", err)
	}
	if !pool.AppendCertsFromPEM(content) {
		return nil, setting.Errorf("ca", "%s has no certificate in PEM", path)
	}
	return pool, nil
}
