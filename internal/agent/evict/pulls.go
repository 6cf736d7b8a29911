package evict

import (
	"context"
	"fmt"
	"maps"

	"github.com/fairway-registry/fairway/internal/agent/index"
	"github.com/fairway-registry/fairway/internal/oci"
)

// All in ms.
const (
	// pullMax is how long after its manifest was last asked for an image may
	// still be pulled.
	pullMax = 2 * 3600_000
	// pullIdle is for how long nothing of it may be asked for meanwhile.
	pullIdle = 5 * 60_000
	// pullBegin is how long a runtime has to ask for the first of its blobs.
	pullBegin = 30_000
)

// pulls has what is being pulled used by its pull (N1), for runtimes that do not
// tell: an image that no runtime has yet, and of which not everything was asked
// for since its manifest was. A pull that nobody goes on with ends by its time,
// as does one of which the runtime had the rest already.
func (e *Evictor) pulls(ctx context.Context, g *gathered) error {
	if !g.situation.Runtimes || !g.usage.PullsUnseen {
		return nil
	}
	now := g.situation.Now
	maps.DeleteFunc(e.gone, func(_ oci.Digest, at int64) bool { return now-at > pullMax })
	pull := &Use{Why: Pull, Text: "it is being pulled: not all of its image was asked for yet"}
	for i := range g.facts {
		f := &g.facts[i]
		if !f.Manifest || f.Use != nil || f.Claimed || g.situation.age(f.UsedAt) > pullMax {
			continue
		}
		needs, err := e.o.Index.Children(ctx, f.Digest)
		if err != nil {
			return fmt.Errorf("find what is being pulled: %w", err)
		}
		if !e.pulled(g, f, needs) {
			continue
		}
		tree, err := e.o.Index.Tree(ctx, []oci.Digest{f.Digest})
		if err != nil {
			return fmt.Errorf("find what is being pulled: %w", err)
		}
		for _, d := range tree {
			g.use(d, pull)
		}
	}
	return nil
}

// pulled reports whether an image's manifest was followed by some of what it
// needs, lately, and not by all of it.
func (e *Evictor) pulled(g *gathered, manifest *Facts, needs []index.Edge) bool {
	waits, goes := false, g.situation.age(manifest.UsedAt) <= pullBegin
	for _, n := range needs {
		if n.Role != index.RoleConfig && n.Role != index.RoleLayer {
			continue
		}
		at := g.find(n.Child)
		if at < 0 {
			waits = waits || e.gone[n.Child] < manifest.UsedAt
			continue
		}
		b := &g.facts[at]
		since := b.UsedAt >= manifest.UsedAt
		waits = waits || !since || b.Open || b.Partial
		goes = goes || b.Open || since && g.situation.age(b.UsedAt) <= pullIdle
	}
	return waits && goes
}
