package endpoint

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/fairway-registry/fairway/internal/agent/inuse"
)

// guess is a source at a socket whose kind is found by asking. Once an API has
// answered, the kind is known for good.
type guess struct {
	path, name string
	log        *slog.Logger

	mu     sync.Mutex
	found  driver
	closed bool
}

func newGuess(path string, log *slog.Logger) *guess {
	return &guess{path: path, name: name(kindUnix, path), log: log}
}

// Name is of inuse.Source.
func (g *guess) Name() string { return g.name }

// probeTime bounds the asking for one kind: a server that speaks another
// protocol may say nothing at all.
const probeTime = time.Second

// driver finds the driver. containerd comes before CRI, which it answers too.
func (g *guess) driver(ctx context.Context) (driver, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil, errors.New("the source is closed")
	}
	if g.found != nil {
		return g.found, nil
	}
	kinds := []string{kindContainerd, kindCRI, kindDocker}
	if strings.Contains(g.path, "docker") || strings.Contains(g.path, "podman") {
		kinds = []string{kindDocker, kindContainerd, kindCRI}
	}
	var all []error
	for _, kind := range kinds {
		d, err := open(kind, g.path, g.name, g.log)
		if err != nil {
			return nil, err
		}
		probe, cancel := context.WithTimeout(ctx, probeTime)
		err = d.Probe(probe)
		cancel()
		if err == nil {
			g.found = d
			return d, nil
		}
		all = append(all, fmt.Errorf("as %s: %w", kind, err), d.Close())
	}
	return nil, fmt.Errorf("no kind of container runtime answers at %s: %w", g.path, errors.Join(all...))
}

// Snapshot is of inuse.Source.
func (g *guess) Snapshot(ctx context.Context) (inuse.Snapshot, error) {
	d, err := g.driver(ctx)
	if err != nil {
		return inuse.Snapshot{}, err
	}
	return d.Snapshot(ctx)
}

// Watch is of inuse.Source.
func (g *guess) Watch(ctx context.Context, changed func()) error {
	d, err := g.driver(ctx)
	if err != nil {
		return err
	}
	return d.Watch(ctx, changed)
}

// Close is of inuse.Source.
func (g *guess) Close() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	if g.found == nil {
		return nil
	}
	return g.found.Close()
}
