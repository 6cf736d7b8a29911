package evict

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/fairway-registry/fairway/internal/agent/index"
	"github.com/fairway-registry/fairway/internal/agent/inuse"
	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
)

// gathered is what a judgement goes by.
type gathered struct {
	facts     []Facts // in order of the digest
	versions  []int64 // of the same blobs
	deleted   []int   // facts whose rows say that their image was deleted
	situation Situation
	usage     *inuse.Usage
	began     time.Time
	traced    map[string]bool // by holder.key, whether it leads to content of the cache
	all       *gathered       // of the first judgement, where this is of the claimed only
}

// gather asks the runtimes, and then reads the cache: a blob that is newer than
// the answer shows as such.
func (e *Evictor) gather(ctx context.Context, need int64) (*gathered, error) {
	began := e.o.Now()
	u, err := e.o.Tracker.Ask(ctx)
	if err != nil {
		return nil, fmt.Errorf("ask the runtimes: %w", err)
	}
	return e.read(ctx, need, u, began)
}

// gatherSoon is gather for a person who looks. A runtime that does not answer is
// not waited for: what was believed of it holds, and its age is told.
func (e *Evictor) gatherSoon(ctx context.Context) (*gathered, error) {
	began, u := e.o.Now(), e.o.Tracker.Usage()
	if !slices.ContainsFunc(u.Unknown, inuse.SourceStatus.Silent) {
		soon, cancel := context.WithTimeout(ctx, e.patience)
		defer cancel()
		if now, err := e.o.Tracker.Ask(soon); err == nil {
			u = now
		} else if ctx.Err() != nil {
			return nil, fmt.Errorf("ask the runtimes: %w", err)
		}
	}
	return e.read(ctx, 0, u, began)
}

// read reads the cache, after the runtimes gave the answer u.
func (e *Evictor) read(ctx context.Context, need int64, u *inuse.Usage, began time.Time) (*gathered, error) {
	g := &gathered{began: began, traced: map[string]bool{}}
	g.situation = Situation{Usage: e.usage(), Need: need}
	var latest int64
	err := e.o.Store.Each(ctx, func(i piece.Info) error {
		if i.DeletedAt != 0 {
			g.deleted = append(g.deleted, len(g.facts))
		}
		latest = max(latest, i.UsedAt, i.CreatedAt)
		f := factsOf(&i)
		f.Rare = e.o.Rare(i.Digest)
		g.facts = append(g.facts, f)
		g.versions = append(g.versions, i.Version)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the cache: %w", err)
	}
	if err := e.situate(ctx, g, u, latest); err != nil {
		return nil, err
	}
	return g, e.pulls(ctx, g)
}

// situate fills in what the runtimes' answer means for the facts. latest is
// when a blob was used last, 0 where that is not known.
func (e *Evictor) situate(ctx context.Context, g *gathered, u *inuse.Usage, latest int64) error {
	g.usage = u
	e.ask(&g.situation, u)
	g.situation.Stepped, g.situation.Steps = e.clock.look(g.situation.Now, e.o.Now(), latest)
	if err := e.holders(ctx, g); err != nil {
		return fmt.Errorf("find what is in use: %w", err)
	}
	if err := e.expired(ctx, g); err != nil {
		return fmt.Errorf("find deleted images: %w", err)
	}
	return nil
}

func factsOf(i *piece.Info) Facts {
	return Facts{Digest: i.Digest, Size: i.Cost, CreatedAt: i.CreatedAt, UsedAt: i.UsedAt, Uses: i.Uses, FetchMS: i.FetchMS,
		Manifest: isManifest(i.MediaType), Open: i.Readers+i.Writers > 0, Partial: i.Present < i.Size, Claimed: i.State == index.Claimed}
}

func isManifest(mediaType string) bool {
	return oci.IsIndex(mediaType) || strings.Contains(mediaType, ".manifest.")
}

// ask fills in what the runtimes' answer means for the whole.
func (e *Evictor) ask(s *Situation, u *inuse.Usage) {
	s.Now = e.o.Index.Now()
	s.Runtimes = !e.o.NoRuntimes || len(u.Sources) > 0
	if s.Asked = 0; !u.At.IsZero() {
		s.Asked = s.Now - e.o.Now().Sub(u.At).Milliseconds()
	}
	if s.Unknown = ""; s.Runtimes && len(u.Unknown) > 0 {
		s.Unknown = unknownText(u.Unknown[0])
	}
}

func unknownText(s inuse.SourceStatus) string {
	switch {
	case s.Name == "":
		return s.Error
	case s.Error == "":
		return s.Name + " cannot be asked what it runs"
	}
	return s.Name + " cannot be asked what it runs: " + s.Error
}

// find returns where a blob's facts are, -1 if the cache has it not.
func (g *gathered) find(d oci.Digest) int {
	if i, ok := slices.BinarySearchFunc(g.facts, d, func(f Facts, d oci.Digest) int { return strings.Compare(string(f.Digest), string(d)) }); ok {
		return i
	}
	return -1
}

// holder is something that uses content.
type holder struct {
	use      *Use
	roots    []oci.Digest // whose trees it uses
	blobs    []oci.Digest // what else
	tracing  bool         // it is a container that is not exited: it must lead somewhere
	anything bool         // it is one of an image that nobody can name: its blobs are a guess
}

// traced reports whether the holder is known to use content: what leads to the
// cache's, or what its runtime lists besides the roots.
func (h *holder) traced(leads bool) bool {
	return leads || slices.ContainsFunc(h.blobs, func(d oci.Digest) bool { return !slices.Contains(h.roots, d) })
}

// key is the same for holders with the same roots.
func (h *holder) key() string {
	roots := slices.Clone(h.roots)
	slices.Sort(roots)
	var b strings.Builder
	for _, d := range roots {
		b.WriteString(string(d))
		b.WriteByte(' ')
	}
	return b.String()
}

// strength orders the kinds of use: the strongest is what a blob is said to be
// used by.
func strength(why string) int {
	return slices.Index([]string{Image, Pin, Pull, Container}, why)
}

func containerText(c *inuse.Container) string {
	name, id := c.Name, c.ID
	if len(id) > 12 {
		id = id[:12]
	}
	if name == "" {
		name = id
	}
	where := strings.TrimPrefix(c.Namespace+"/"+id, "/")
	t := fmt.Sprintf("container %s (%s, %s)", name, where, c.State)
	if c.Image != "" {
		t += " of " + c.Image
	}
	return t
}

// holdersOf lists who uses content.
func holdersOf(u *inuse.Usage, pins []index.Pin) []holder {
	var all []holder
	for i := range u.Containers {
		c := &u.Containers[i]
		h := holder{use: &Use{Why: Container, Text: containerText(c)}, roots: slices.Concat(c.Digests, c.ChainIDs), blobs: c.Blobs, tracing: true}
		h.anything = len(h.roots) == 0 && !c.Imageless
		if !c.State.Active() {
			h.use.Why, h.tracing, h.anything = Image, false, false
		}
		all = append(all, h)
	}
	if len(u.Busy) > 0 {
		all = append(all, holder{use: &Use{Why: Pull, Text: "a runtime pulls or leases it"}, roots: u.Busy, blobs: u.Busy})
	}
	for _, p := range pins {
		all = append(all, holder{use: &Use{Why: Pin, Text: "it is pinned by " + p.Ref}, roots: p.Roots, blobs: p.Roots})
	}
	for i := range u.Images {
		m := &u.Images[i]
		all = append(all, holder{use: &Use{Why: Image, Text: "image " + m.Name + " in " + m.Runtime}, roots: m.Digests, blobs: m.Blobs})
	}
	return all
}

// holders marks what is used, and by whom. In the second judgement holders
// that the first one knew are looked up together.
func (e *Evictor) holders(ctx context.Context, g *gathered) error {
	pins, err := e.o.Index.Pins(ctx)
	if err != nil {
		return err
	}
	known := map[string]*holder{} // by why
	done := map[string]struct{}{} // why and key
	for _, h := range holdersOf(g.usage, pins) {
		key := h.key()
		leads, traced := g.traced[key]
		if traced && g.all != nil {
			k := known[h.use.Why]
			if k == nil {
				k = &holder{use: h.use}
				known[h.use.Why] = k
			}
			k.roots, k.blobs = append(k.roots, h.roots...), append(k.blobs, h.blobs...)
		} else if _, ok := done[h.use.Why+key]; !ok || len(h.blobs) > 0 {
			if leads, err = e.hold(ctx, g, &h); err != nil {
				return err
			}
			g.traced[key] = leads
			done[h.use.Why+key] = struct{}{}
		}
		if h.anything {
			g.situation.Untraceable = "it may belong to " + h.use.Text + ", and nobody knows what that consists of"
		}
		if h.tracing && !h.traced(leads) {
			g.situation.Untraced = "it may belong to " + h.use.Text + ", whose image is not known here"
		}
	}
	for _, h := range known {
		if _, err := e.hold(ctx, g, h); err != nil {
			return err
		}
	}
	return e.orphans(ctx, g)
}

// hold has a holder use what is below it, and reports whether that leads
// further than to manifests: to layers or configs that the cache has.
func (e *Evictor) hold(ctx context.Context, g *gathered, h *holder) (leads bool, err error) {
	tree, err := e.o.Index.Tree(ctx, h.roots)
	if err != nil {
		return false, err
	}
	all := g
	if g.all != nil {
		all = g.all
	}
	for _, d := range tree {
		if i := all.find(d); i >= 0 && !all.facts[i].Manifest && !slices.Contains(h.roots, d) {
			leads = true
		}
		g.use(d, h.use)
	}
	for _, d := range h.blobs {
		g.use(d, h.use)
	}
	return leads, nil
}

func (g *gathered) use(d oci.Digest, u *Use) {
	i := g.find(d)
	if i < 0 {
		return
	}
	if f := &g.facts[i]; f.Use == nil || strength(u.Why) > strength(f.Use.Why) {
		f.Use = u
	}
}

// orphans finds, if a container cannot be traced, the blobs that no manifest is
// known to name: one of them may be its.
func (e *Evictor) orphans(ctx context.Context, g *gathered) error {
	if g.situation.Untraced == "" {
		return nil
	}
	for i := range g.facts {
		g.facts[i].Orphan = true
	}
	return e.o.Index.Edges(ctx, func(edge index.Edge) error {
		for _, d := range []oci.Digest{edge.Parent, edge.Child} {
			if i := g.find(d); i >= 0 {
				g.facts[i].Orphan = false
			}
		}
		return nil
	})
}

// expired works out since when all images of a blob are deleted: a layer that
// another image shares has not gone with one of them.
func (e *Evictor) expired(ctx context.Context, g *gathered) error {
	if len(g.deleted) == 0 {
		return nil
	}
	var roots []oci.Digest
	for _, i := range g.deleted {
		roots = append(roots, g.facts[i].Digest)
	}
	below, err := e.o.Index.Tree(ctx, roots)
	if err != nil {
		return err
	}
	known := map[oci.Digest]int64{}
	for _, d := range below {
		if i := g.find(d); i >= 0 {
			if g.facts[i].DeletedAt, err = e.deletedAt(ctx, d, known); err != nil {
				return err
			}
		}
	}
	return nil
}

// deletedAt is when the last image that a blob belongs to was deleted, 0 if one
// of them was not.
func (e *Evictor) deletedAt(ctx context.Context, d oci.Digest, known map[oci.Digest]int64) (int64, error) {
	if at, ok := known[d]; ok {
		return at, nil
	}
	known[d] = 0 // ends a circle
	parents, err := e.o.Index.Parents(ctx, d)
	if err != nil {
		return 0, err
	}
	var latest int64
	for _, p := range parents {
		if p.Role == index.RoleSubject {
			continue
		}
		at, err := e.deletedAt(ctx, p.Parent, known)
		if err != nil || at == 0 {
			return 0, err
		}
		latest = max(latest, at)
	}
	if latest == 0 {
		b, err := e.o.Index.Blob(ctx, d)
		if err != nil && !errors.Is(err, fault.NotFound) {
			return 0, err
		}
		latest = b.DeletedAt
	}
	known[d] = latest
	return latest, nil
}
