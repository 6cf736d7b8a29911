package preheat

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/fairway-registry/fairway/internal/agent/fetch"
	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/nodeapi"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/ociclient"
)

// work is a task under way.
type work struct {
	p    *Preheater
	task nodeapi.Task

	mu          sync.Mutex
	total, done int64 // bytes of all blobs, and of those that are here
	active      map[oci.Digest]*piece.Blob
}

// progress says how far it is.
func (w *work) progress(state string) nodeapi.Progress {
	w.mu.Lock()
	defer w.mu.Unlock()
	done := w.done
	for _, b := range w.active {
		done += present(b)
	}
	return nodeapi.Progress{State: state, DoneBytes: done, TotalBytes: w.total}
}

// present is how many bytes of a blob are here.
func present(b *piece.Blob) int64 {
	n := b.Size()
	for _, i := range b.Missing() {
		n -= int64(b.PieceLen(i))
	}
	return n
}

// run tries until the image is here, or trying again is of no use.
func (w *work) run(ctx context.Context) error {
	pause := w.p.o.Retry
	for attempt := 1; ; attempt++ {
		before := w.progress("").DoneBytes
		err := w.attempt(ctx)
		if err == nil || ctx.Err() != nil || !passing(err) {
			return err
		}
		if w.progress("").DoneBytes > before {
			attempt, pause = 1, w.p.o.Retry
		}
		if attempt >= attemptsMax {
			return err
		}
		w.p.o.Log.Debug("an image could not be fetched ahead; it is tried again", "preheat", w.task.ID, "attempt", attempt, "err", err)
		if !sleep(ctx, jittered(pause)) {
			return ctx.Err()
		}
		pause = min(2*pause, retryMax)
	}
}

// passing reports that the same may end better in a while.
func passing(err error) bool {
	var status *ociclient.StatusError
	if errors.As(err, &status) {
		return !status.Outcome().Verdict()
	}
	return errors.Is(err, fault.Busy) || fetch.IsStalled(err)
}

// reason is what people are told of an error.
func reason(err error) string {
	var status *ociclient.StatusError
	var public *fault.Error
	switch {
	case errors.As(err, &status):
		return status.Error()
	case errors.As(err, &public):
		return public.Public
	}
	return err.Error()
}

// attempt goes through the image once.
func (w *work) attempt(ctx context.Context) error {
	wants, err := w.plan(ctx)
	if err != nil {
		return err
	}
	var total, done int64
	var missing []fetch.Want
	var sizes []int64 // of those that have no room yet
	for _, want := range wants {
		total += want.Size
		here, begun, err := w.here(ctx, want)
		switch {
		case err != nil:
			return err
		case here:
			done += want.Size
			continue
		case !begun:
			sizes = append(sizes, want.Size)
		}
		missing = append(missing, want)
	}
	w.mu.Lock()
	w.total, w.done = total, done
	w.mu.Unlock()
	if err := w.p.o.Store.Fits(ctx, sizes); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(atOnce)
	for _, want := range missing {
		g.Go(func() error { return w.bring(ctx, want) })
	}
	return g.Wait()
}

// here reports whether a blob is on this machine, which counts as a use of it, or
// is at least begun and so has its room.
func (w *work) here(ctx context.Context, want fetch.Want) (here, begun bool, err error) {
	b, err := w.p.o.Store.Open(ctx, want.Digest)
	if err == nil {
		defer b.Close()
		return b.Complete(), true, nil
	}
	if !errors.Is(err, fault.NotFound) {
		return false, false, err
	}
	held, _, ok := w.p.o.Fetch.Held(ctx, want.Digest)
	if ok {
		_ = held.Close() // nothing was read
	}
	return ok, false, nil
}

// bring fetches one blob.
func (w *work) bring(ctx context.Context, want fetch.Want) error {
	b, err := w.p.o.Fetch.Get(ctx, want)
	if err != nil {
		return err
	}
	defer b.Close()
	w.mu.Lock()
	w.active[want.Digest] = b
	w.mu.Unlock()
	if !b.Complete() {
		err = b.Wait(ctx, b.Pieces()-1)
	}
	w.mu.Lock()
	delete(w.active, want.Digest)
	w.done += present(b)
	w.mu.Unlock()
	return err
}

// plan finds the blobs of the image. The manifests are in the cache afterwards.
func (w *work) plan(ctx context.Context) ([]fetch.Want, error) {
	repo, err := oci.ParseName(w.task.Repository)
	if err != nil {
		return nil, err
	}
	p := &plan{work: w, repo: repo, seen: map[oci.Digest]bool{}}
	err = p.add(ctx, oci.Reference{Tag: oci.Tag(w.task.Tag), Digest: w.task.Digest}, 0)
	return p.wants, err
}

// plan gathers what an image is made of.
type plan struct {
	*work
	repo  oci.Name
	seen  map[oci.Digest]bool
	wants []fetch.Want
}

// depthMax bounds how deep indexes may name one another.
const depthMax = 4

func (p *plan) add(ctx context.Context, ref oci.Reference, depth int) error {
	m, err := p.p.o.Manifest(ctx, p.task.Upstream, p.repo, ref)
	if err != nil {
		return err
	}
	parsed, err := oci.ReadManifest(m.MediaType, m.Content)
	if err != nil {
		return err
	}
	if oci.IsIndex(parsed.MediaType) {
		return p.addIndex(ctx, m, depth)
	}
	for _, b := range parsed.Blobs {
		// What is optional, such as layers that are elsewhere, may not be there.
		if !b.Optional {
			p.want(m, b)
		}
	}
	return nil
}

// want adds a blob that a manifest names.
func (p *plan) want(m Manifest, b oci.Descriptor) {
	if p.seen[b.Digest] {
		return
	}
	p.seen[b.Digest] = true
	p.wants = append(p.wants, fetch.Want{
		Digest: b.Digest, Size: b.Size, MediaType: b.MediaType, Namespace: m.Namespace, Repo: p.repo, Private: m.Private, Background: true,
	})
}

// isManifest reports whether an entry of an index is asked for as a manifest: if
// it does not say what it is, and if its type says so. A build cache is an index
// of layers and of its own configuration, which are blobs.
func isManifest(mediaType string) bool {
	mediaType, _, _ = strings.Cut(strings.ToLower(mediaType), ";")
	return strings.TrimSpace(mediaType) == "" || oci.IsIndex(mediaType) || strings.Contains(mediaType, ".manifest.") || strings.Contains(mediaType, ".index.")
}

func (p *plan) addIndex(ctx context.Context, m Manifest, depth int) error {
	var index ocispec.Index
	if err := json.Unmarshal(m.Content, &index); err != nil {
		return fmt.Errorf("read index %s: %w", m.Digest, err)
	}
	if depth >= depthMax {
		return fault.New(fault.Invalid, "the image has indexes in more than %d layers", depthMax)
	}
	children := index.Manifests
	if !p.task.AllPlatforms {
		if children = p.chosen(children); len(children) == 0 {
			return fault.New(fault.NotFound, "the image is of no platform that this node runs")
		}
	}
	for _, c := range children {
		d, err := oci.ParseDigest(string(c.Digest))
		if err != nil {
			return err
		}
		if p.seen[d] {
			continue
		}
		if !isManifest(c.MediaType) {
			p.want(m, oci.Descriptor{Digest: d, Size: c.Size, MediaType: c.MediaType})
			continue
		}
		p.seen[d] = true
		err = p.add(ctx, oci.Reference{Digest: d}, depth+1)
		var status *ociclient.StatusError
		if p.task.AllPlatforms && errors.As(err, &status) && status.Outcome() == ociclient.NotFound {
			continue // an index may name what was never pushed
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// chosen is the one that a runtime here would run or, where none says what it is
// for, all that do not.
func (p *plan) chosen(children []ocispec.Descriptor) (chosen []ocispec.Descriptor) {
	best := -1
	for i, c := range children {
		switch {
		case c.Platform == nil:
			chosen = append(chosen, c)
		case p.p.o.Platform.Match(*c.Platform) && (best < 0 || p.p.o.Platform.Less(*c.Platform, *children[best].Platform)):
			best = i
		}
	}
	if best >= 0 {
		return slices.Clone(children[best : best+1])
	}
	return chosen
}
