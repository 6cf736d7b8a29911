package admin

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/fairway-registry/fairway/internal/agent/evict"
	"github.com/fairway-registry/fairway/internal/agent/index"
	"github.com/fairway-registry/fairway/internal/agent/inuse"
	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/jsonface"
	"github.com/fairway-registry/fairway/internal/nodeapi"
	"github.com/fairway-registry/fairway/internal/oci"
)

func (a *API) list(c *jsonface.Call) (any, error) {
	ctx := c.Context()
	p, err := a.Evictor.Plan(ctx)
	if err != nil {
		return nil, err
	}
	verdicts := make(map[oci.Digest]*evict.Verdict, len(p.Verdicts))
	for i := range p.Verdicts {
		verdicts[p.Verdicts[i].Digest] = &p.Verdicts[i]
	}
	images, err := a.images(ctx)
	if err != nil {
		return nil, err
	}
	pins, err := a.pinned(ctx)
	if err != nil {
		return nil, err
	}
	items := make([]nodeapi.CacheItem, 0, len(p.Verdicts))
	err = a.Store.Each(ctx, func(i piece.Info) error {
		items = append(items, itemOf(&i, verdicts[i.Digest], images.of(i.Digest), pins[i.Digest]))
		return nil
	})
	return nodeapi.CacheList{Items: items, RuntimesAge: age(p.Answered)}, err
}

// age is in seconds; −1 for what never was.
func age(at time.Time) int64 {
	if at.IsZero() {
		return -1
	}
	return int64(max(time.Since(at), 0).Seconds())
}

// itemOf describes a blob. One that came after the judgement has no verdict; it
// is new, and so active.
func itemOf(i *piece.Info, v *evict.Verdict, images, pins []string) nodeapi.CacheItem {
	item := nodeapi.CacheItem{
		Digest: i.Digest, SizeBytes: i.Size, PresentBytes: i.Present, State: i.State, MediaType: i.MediaType,
		Tier: nodeapi.TierActive, Images: images, PinnedBy: []string{}, Readers: i.Readers, Writers: i.Writers,
		Source: i.Source, Uses: i.Uses, CreatedAt: time.UnixMilli(i.CreatedAt).UTC(), UsedAt: time.UnixMilli(max(i.UsedAt, i.CreatedAt)).UTC(),
	}
	if v != nil {
		item.Tier = v.Tier.String()
		if v.Tier == evict.Active && v.Why != evict.Pin {
			item.PinnedBy = append(item.PinnedBy, v.Reason)
		}
	}
	for _, ref := range pins {
		item.PinnedBy = append(item.PinnedBy, "pin "+ref)
	}
	return item
}

func (a *API) plan(ctx context.Context) (any, error) {
	p, err := a.Evictor.Plan(ctx)
	if err != nil {
		return nil, err
	}
	images, err := a.images(ctx)
	if err != nil {
		return nil, err
	}
	pins, err := a.pinned(ctx)
	if err != nil {
		return nil, err
	}
	plan := nodeapi.Plan{
		Reason: orNothing(p.Trigger), UsedBytes: p.Usage.Used - p.Usage.Claimed, QuotaBytes: p.Quota, TargetBytes: p.Usage.Used - p.Usage.Claimed - p.Target,
		Unknown: jsonface.List(p.Unknown), Verdicts: make([]nodeapi.Verdict, 0, len(p.Verdicts)),
	}
	for i := range p.Verdicts {
		v := verdictOf(&p.Verdicts[i], p.At, images.of(p.Verdicts[i].Digest), pins[p.Verdicts[i].Digest])
		if v.Evict {
			plan.FreeBytes += v.SizeBytes
		}
		plan.Verdicts = append(plan.Verdicts, v)
	}
	// What goes comes first, in the order in which it goes.
	slices.SortStableFunc(plan.Verdicts, func(x, y nodeapi.Verdict) int {
		switch {
		case x.Evict == y.Evict:
			return 0
		case x.Evict:
			return -1
		}
		return 1
	})
	return plan, nil
}

// verdictOf renders a verdict of the time now, in ms.
func verdictOf(v *evict.Verdict, now int64, images, pins []string) nodeapi.Verdict {
	out := nodeapi.Verdict{
		Digest: v.Digest, SizeBytes: v.Size, Tier: v.Tier.String(), Evict: v.Go, Why: v.Why, Reason: v.Reason, Value: v.Value,
		Images: images, PinnedBy: []string{}, UsedAt: time.UnixMilli(now - v.Idle).UTC(),
	}
	for _, ref := range pins {
		out.PinnedBy = append(out.PinnedBy, "pin "+ref)
	}
	return out
}

func (a *API) explain(c *jsonface.Call) (any, error) {
	d, err := digestOf(c.Query("digest"))
	if err != nil {
		return nil, err
	}
	ctx := c.Context()
	p, err := a.Evictor.Plan(ctx)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(p.Verdicts, func(v evict.Verdict) bool { return v.Digest == d })
	if i < 0 {
		return nil, fault.New(fault.NotFound, "the cache has no %s", d)
	}
	images, err := a.images(ctx)
	if err != nil {
		return nil, err
	}
	out := verdictOf(&p.Verdicts[i], p.At, images.of(d), nil)
	out.PinnedBy, err = a.holders(ctx, d)
	return out, err
}

// holders lists everything that keeps a blob active: containers, pins, pulls,
// open handles.
func (a *API) holders(ctx context.Context, d oci.Digest) ([]string, error) {
	held := []string{}
	u := a.Tracker.Usage()
	for i := range u.Containers {
		c := &u.Containers[i]
		if !c.State.Active() {
			continue
		}
		in, err := a.within(ctx, d, slices.Concat(c.Digests, c.ChainIDs), c.Blobs)
		if err != nil {
			return nil, err
		}
		if in {
			held = append(held, containerText(c))
		}
	}
	if in, err := a.within(ctx, d, u.Busy, u.Busy); err != nil {
		return nil, err
	} else if in {
		held = append(held, "a pull or a lease of a runtime")
	}
	pins, err := a.pinned(ctx)
	if err != nil {
		return nil, err
	}
	for _, ref := range pins[d] {
		held = append(held, "pin "+ref)
	}
	info, err := a.Store.Info(ctx, d)
	switch {
	case errors.Is(err, fault.NotFound):
	case err != nil:
		return nil, err
	case info.Readers+info.Writers > 0:
		held = append(held, fmt.Sprintf("%d open readers and writers", info.Readers+info.Writers))
	}
	return held, nil
}

// within reports whether d is one of blobs or in the tree of roots.
func (a *API) within(ctx context.Context, d oci.Digest, roots, blobs []oci.Digest) (bool, error) {
	if slices.Contains(blobs, d) {
		return true, nil
	}
	tree, err := a.Index.Tree(ctx, roots)
	return slices.Contains(tree, d), err
}

func containerText(c *inuse.Container) string {
	name := c.Name
	if name == "" {
		name = c.ID
	}
	text := fmt.Sprintf("container %s (%s, %s)", name, strings.Trim(c.Runtime+" "+c.Namespace, " "), c.State)
	if c.Image != "" {
		text += " of " + c.Image
	}
	return text
}

// images finds the images that blobs belong to.
type images struct {
	parents map[oci.Digest][]oci.Digest
	names   map[oci.Digest][]string
}

func (a *API) images(ctx context.Context) (*images, error) {
	m := &images{parents: map[oci.Digest][]oci.Digest{}, names: map[oci.Digest][]string{}}
	names, err := a.Index.AllNames(ctx)
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		m.names[n.Digest] = append(m.names[n.Digest], n.Namespace+"/"+string(n.Repository)+":"+string(n.Tag))
	}
	return m, a.Index.Edges(ctx, func(e index.Edge) error {
		if e.Role != index.RoleSubject {
			m.parents[e.Child] = append(m.parents[e.Child], e.Parent)
		}
		return nil
	})
}

// of lists the names of what leads to d. A way up that ends without a name is
// told by the digest at its end.
func (m *images) of(d oci.Digest) []string {
	found, seen := []string{}, map[oci.Digest]bool{}
	var climb func(oci.Digest)
	climb = func(at oci.Digest) {
		if seen[at] {
			return
		}
		seen[at] = true
		found = append(found, m.names[at]...)
		if len(m.parents[at]) == 0 && len(m.names[at]) == 0 && at != d {
			found = append(found, string(at))
		}
		for _, p := range m.parents[at] {
			climb(p)
		}
	}
	climb(d)
	slices.Sort(found)
	return slices.Compact(found)
}

// pinned tells of each pinned blob which pins it is in.
func (a *API) pinned(ctx context.Context) (map[oci.Digest][]string, error) {
	pins, err := a.Index.Pins(ctx)
	if err != nil {
		return nil, err
	}
	refs := map[oci.Digest][]string{}
	for _, p := range pins {
		tree, err := a.Index.Tree(ctx, p.Roots)
		if err != nil {
			return nil, err
		}
		for _, d := range tree {
			refs[d] = append(refs[d], p.Ref)
		}
	}
	return refs, nil
}
