// Package endpoint owns the grammar of runtime endpoints and the places where
// the sockets of container runtimes usually are. It opens the driver for an
// endpoint; it never decides that there is no runtime: an endpoint that does
// not answer becomes a source that is unknown until it does.
package endpoint

import (
	"context"
	"log/slog"
	"os"
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

// name is short where the path says who is there.
func name(kind, path string) string {
	switch {
	case strings.Contains(path, "crio"):
		return "cri-o"
	case strings.Contains(path, "podman"):
		return "podman"
	case kind == kindUnix:
		return strings.TrimSuffix(filepath.Base(path), ".sock")
	default:
		return kind
	}
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

// usual are the places where packages and installers put sockets. A name that
// links to another place is one socket with it.
var usual = []string{
	"containerd:///run/containerd/containerd.sock",
	"containerd:///run/k3s/containerd/containerd.sock",
	"cri:///run/crio/crio.sock",
	"cri:///var/run/crio/crio.sock",
	"docker:///var/run/docker.sock",
	"docker:///run/docker.sock",
	"docker:///run/podman/podman.sock",
}

// Detect returns the endpoints of the sockets that exist in the usual places
// under root, "/" for the machine's own.
func Detect(root string) []string {
	var found []string
	seen := map[string]bool{}
	for _, e := range usual {
		kind, path, _ := strings.Cut(e, "://")
		real, err := filepath.EvalSymlinks(filepath.Join(root, path))
		if err != nil || seen[real] {
			continue
		}
		if st, err := os.Stat(real); err != nil || st.Mode().Type() != os.ModeSocket {
			continue
		}
		seen[real] = true
		found = append(found, kind+"://"+filepath.Join(root, path))
	}
	return found
}
