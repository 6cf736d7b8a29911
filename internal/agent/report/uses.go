package report

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/fairway-registry/fairway/internal/agent/index"
	"github.com/fairway-registry/fairway/internal/agent/inuse"
	"github.com/fairway-registry/fairway/internal/nodeapi"
	"github.com/fairway-registry/fairway/internal/oci"
)

// use is an image in use as one source tells it. It is kept in a file.
type use struct {
	Source     string       `json:"source"` // of inuse, or sourcePins
	Image      string       `json:"image,omitempty"`
	Roots      []oci.Digest `json:"roots"`            // as the source names it
	Chains     []oci.Digest `json:"chains,omitempty"` // of layers, where that is how the source names it
	Digests    []oci.Digest `json:"digests"`          // what a registry may know it by
	Containers int          `json:"containers"`
	Since      time.Time    `json:"since"`

	carried bool // only a former life of the agent knew of it
}

// sourcePins is the Source of what is pinned. No runtime has that name.
const sourcePins = "pins"

// key tells uses of one source apart by what they are of.
func (u use) key() string { return u.Source + " " + joined(u.Roots) + "," + joined(u.Chains) }

func joined(ds []oci.Digest) string {
	var b strings.Builder
	for _, d := range ds {
		b.WriteString(string(d))
		b.WriteByte(' ')
	}
	return b.String()
}

// gathered is what one look at the runtimes gave.
type gathered struct {
	uses     []use
	untraced int // containers that lead to nothing
	guessed  int // of all containers, those of which no digest is known
}

// gather makes uses of what the runtimes say and of the pins. known is what
// roots were found to be before.
func gather(ctx context.Context, usage *inuse.Usage, x *index.Index, known map[string]use, now time.Time) (gathered, error) {
	var g gathered
	at := map[string]int{}
	add := func(u use) {
		u.Roots, u.Chains = sorted(u.Roots), sorted(u.Chains)
		if was, ok := known[u.key()]; ok && u.Since.IsZero() {
			u.Since = was.Since
		}
		if u.Since.IsZero() {
			u.Since = now
		}
		i, ok := at[u.key()]
		if !ok {
			at[u.key()] = len(g.uses)
			g.uses = append(g.uses, u)
			return
		}
		g.uses[i].Containers += u.Containers
		if u.Since.Before(g.uses[i].Since) {
			g.uses[i].Since = u.Since
		}
	}
	for _, c := range usage.Containers {
		u := use{Source: c.Runtime, Image: c.Image, Roots: slices.Clone(c.Digests), Chains: slices.Clone(c.ChainIDs), Containers: 1, Since: c.Since}
		if len(u.Roots)+len(u.Chains) == 0 {
			u.Roots = slices.Clone(c.Blobs) // on doubt, what it may run
			if !c.Imageless && c.State.Active() {
				g.guessed++
			}
		}
		if len(u.Roots)+len(u.Chains) == 0 {
			g.untraced++
			continue
		}
		add(u)
	}
	pins, err := x.Pins(ctx)
	if err != nil {
		return g, err
	}
	for _, p := range pins {
		if len(p.Roots) > 0 {
			add(use{Source: sourcePins, Image: p.Ref, Roots: slices.Clone(p.Roots), Since: time.UnixMilli(p.CreatedAt)})
		}
	}
	byChains := map[string][]oci.Digest{}
	for _, u := range known {
		if len(u.Chains) > 0 {
			key := joined(u.Chains)
			byChains[key] = append(byChains[key], u.Digests...)
		}
	}
	for i := range g.uses {
		u := &g.uses[i]
		if u.Digests, err = atRegistry(ctx, x, u.Roots, u.Chains); err != nil {
			return g, err
		}
		// What content belongs to cannot change, while the index may be lost.
		u.Digests = sorted(append(u.Digests, known[u.key()].Digests...))
		if len(u.Digests) == 0 {
			// After a restart all that a runtime tells of a container whose image was
			// removed since may be its layers.
			u.Digests = sorted(byChains[joined(u.Chains)])
		}
	}
	g.uses = slices.DeleteFunc(g.uses, func(u use) bool {
		if len(u.Digests) == 0 {
			g.untraced += u.Containers
		}
		return len(u.Digests) == 0
	})
	return g, nil
}

// atRegistry is what a registry may know roots and chains of layers by: the roots
// themselves, the configs of the chains, the manifests of configs, and the
// indexes above all these.
func atRegistry(ctx context.Context, x *index.Index, roots, chains []oci.Digest) ([]oci.Digest, error) {
	var all []oci.Digest
	seen := map[oci.Digest]bool{}
	add := func(ds ...oci.Digest) {
		for _, d := range ds {
			if !seen[d] {
				seen[d] = true
				all = append(all, d)
			}
		}
	}
	add(roots...)
	for _, c := range chains {
		configs, err := x.ConfigsOfChain(ctx, c)
		if err != nil {
			return nil, err
		}
		add(configs...)
	}
	for i := 0; i < len(all); i++ { // which grows
		manifests, err := x.ManifestsOfConfig(ctx, all[i])
		if err != nil {
			return nil, err
		}
		add(manifests...)
		parents, err := x.Parents(ctx, all[i])
		if err != nil {
			return nil, err
		}
		for _, e := range parents {
			if e.Role == index.RoleManifest {
				add(e.Parent)
			}
		}
	}
	return slices.DeleteFunc(all, func(d oci.Digest) bool {
		_, err := oci.ParseDigest(string(d)) // a runtime may use what no registry here does
		return err != nil
	}), nil
}

func sorted(ds []oci.Digest) []oci.Digest {
	slices.Sort(ds)
	return slices.Compact(ds)
}

// inUse makes of uses what the registry is told: one item for what is the same
// there, whatever sources name it.
func inUse(uses []use, now time.Time) []nodeapi.InUse {
	type item struct {
		nodeapi.InUse
		since    time.Time
		bySource map[string]int
	}
	items := map[string]*item{}
	for _, u := range uses {
		key := joined(u.Digests)
		it, ok := items[key]
		if !ok {
			it = &item{InUse: nodeapi.InUse{Digests: u.Digests}, since: u.Since, bySource: map[string]int{}}
			items[key] = it
		}
		it.bySource[u.Source] += u.Containers
		// Docker's containers are containerd's too.
		it.Containers = max(it.Containers, it.bySource[u.Source])
		it.Pinned = it.Pinned || u.Source == sourcePins
		if it.Image == "" || u.Image != "" && u.Image < it.Image {
			it.Image = u.Image
		}
		if u.Since.Before(it.since) {
			it.since = u.Since
		}
	}
	list := make([]nodeapi.InUse, 0, len(items))
	for _, it := range items {
		it.ForSeconds = int64(max(0, now.Sub(it.since)) / time.Second)
		list = append(list, it.InUse)
	}
	slices.SortFunc(list, func(a, b nodeapi.InUse) int { return strings.Compare(joined(a.Digests), joined(b.Digests)) })
	return list
}

// fit leaves out what a report has no room for, and returns how many uses that
// is. What runs has precedence over what is pinned, and that over what only a
// former life of the agent knew: sources that never confirm what runs must not
// let that grow until the registry refuses all of it.
func fit(uses []use) (kept []use, cut int) {
	rank := func(u use) int {
		switch {
		case u.Source == sourcePins:
			return 1
		case u.carried:
			return 2
		}
		return 0
	}
	slices.SortStableFunc(uses, func(a, b use) int { return rank(a) - rank(b) })
	images, digests, bytes := map[string]bool{}, 0, 0
	for _, u := range uses {
		key := joined(u.Digests)
		more, size := 0, 0
		if !images[key] {
			more, size = len(u.Digests), len(key)+len(u.Image)+useBytes
		}
		if len(images) == nodeapi.ImagesMax && more > 0 || digests+more > nodeapi.DigestsMax || bytes+size > nodeapi.BodyMax/2 {
			cut++
			continue
		}
		images[key] = true
		digests, bytes = digests+more, bytes+size
		kept = append(kept, u)
	}
	return kept, cut
}

// useBytes is what the JSON of a use has besides its texts, or more.
const useBytes = 200
