// Package endpoint owns the grammar of runtime endpoints and the places where
// the sockets of container runtimes usually are. It opens the driver for an
// endpoint, and a Detector finds the endpoints of a machine for as long as an
// agent runs (N13).
//
// The package never decides that there is no runtime. An endpoint that does not
// answer is a source that is unknown until it does, also when its socket is gone
// again. A place that cannot be looked at, and the traces of a runtime that does
// not listen, make a source that cannot be asked either.
package endpoint

import (
	"context"
	"log/slog"
	"path/filepath"
	"strings"

	"github.com/fairway-registry/fairway/internal/agent/inuse"
	"github.com/fairway-registry/fairway/internal/agent/inuse/containerd"
	"github.com/fairway-registry/fairway/internal/agent/inuse/cri"
	"github.com/fairway-registry/fairway/internal/agent/inuse/docker"
	"github.com/fairway-registry/fairway/internal/fault"
)

// None is the endpoint that says that this node has no container runtime.
const None = "none"

// Kinds of runtime API, as they are written before "://".
const (
	kindContainerd = "containerd"
	kindCRI        = "cri"
	kindDocker     = "docker"
	kindUnix       = "unix" // one of the above
)

// Open makes the source for an endpoint: containerd://PATH, cri://PATH,
// docker://PATH (Podman's service too), or unix://PATH and /PATH, of which the
// kind is found by asking when it answers. The runtime need not be up. An
// error is Invalid.
func Open(_ context.Context, endpoint string, log *slog.Logger) (inuse.Source, error) {
	if endpoint == None {
		return inuse.None{}, nil
	}
	kind, path, err := parse(endpoint)
	if err != nil {
		return nil, err
	}
	if kind == kindUnix {
		return newGuess(path, log), nil
	}
	return open(kind, path, name(kind, path), log)
}

func parse(endpoint string) (kind, path string, err error) {
	kind, path, ok := strings.Cut(endpoint, "://")
	if !ok {
		kind, path = kindUnix, endpoint
	}
	switch kind {
	case kindContainerd, kindCRI, kindDocker, kindUnix:
	default:
		return "", "", fault.New(fault.Invalid, "runtime endpoint %q: %q is no kind of runtime; want containerd, cri, docker, unix, or \"none\"", endpoint, kind)
	}
	if !filepath.IsAbs(path) {
		return "", "", fault.New(fault.Invalid, "runtime endpoint %q: want the absolute path of a socket, as in containerd:///run/containerd/containerd.sock, or \"none\"", endpoint)
	}
	return kind, filepath.Clean(path), nil
}

// name is short where the path says who is there. It depends on nothing but the
// endpoint: reports tell the runtimes of a node apart by it, across restarts.
func name(kind, path string) string {
	user := ""
	if _, rest, ok := strings.Cut(path, "/run/user/"); ok {
		id, _, _ := strings.Cut(rest, "/")
		user = "-" + id
	}
	for _, known := range []struct{ part, name string }{
		{"crio", "cri-o"}, {"podman", "podman"}, {"/microk8s/", "microk8s"}, {"/k3s/", "k3s"}, {"/k0s/", "k0s"},
	} {
		if strings.Contains(path, known.part) {
			return known.name + user
		}
	}
	if kind == kindUnix {
		return strings.TrimSuffix(filepath.Base(path), ".sock") + user
	}
	return kind + user
}

// driver is a source that can say whether its kind of API answers.
type driver interface {
	inuse.Source
	Probe(ctx context.Context) error
}

func open(kind, path, name string, log *slog.Logger) (driver, error) {
	switch kind {
	case kindContainerd:
		return containerd.New(containerd.Options{Path: path, Name: name, Log: log})
	case kindCRI:
		return cri.New(cri.Options{Path: path, Name: name, Log: log})
	default:
		return docker.New(docker.Options{Path: path, Name: name, Log: log})
	}
}
