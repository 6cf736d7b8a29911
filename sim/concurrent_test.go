package sim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/gc"
	"github.com/fairway-registry/fairway/internal/registry/meta"
	"github.com/fairway-registry/fairway/internal/registry/upload"
)

// crowd is clients and collectors at work at once, with the real clock and a
// window hardly longer than a push.
type crowd struct {
	w       *world
	content map[oci.Digest][]byte
	ctx     context.Context
	window  time.Duration // the shortest of any run

	mu    sync.Mutex
	acked map[place]*content // acknowledged and not deleted since
	wrong []error

	pushes, relied, pulls, runs atomic.Int64
}

type place struct {
	repo   oci.Name
	digest oci.Digest
}

func (c *crowd) violated(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wrong = append(c.wrong, fmt.Errorf(format, args...))
}

func (c *crowd) over() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ctx.Err() != nil || len(c.wrong) > 0
}

func (c *crowd) ack(repo oci.Name, m *content) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.acked[place{repo, m.digest}] = m
}

func (c *crowd) unack(repo oci.Name, ds ...oci.Digest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, d := range ds {
		delete(c.acked, place{repo, d})
	}
}

func (c *crowd) isAcked(p place) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.acked[p]
	return ok
}

// pusher is one client, which pushes, tags, deletes and restores what is its own.
type pusher struct {
	*crowd
	s    *sim // for its random source and its pool
	name string
	n    int
	mine []place
	gone []place
}

func (p *pusher) work() {
	for !p.over() {
		switch {
		case len(p.mine) > 6 || len(p.mine) > 1 && p.s.chance(0.3):
			p.remove()
		case len(p.gone) > 0 && p.s.chance(0.2):
			p.bringBack()
		case len(p.mine) > 1 && p.s.chance(0.2):
			p.pushIndex()
		default:
			p.pushOne()
		}
	}
}

// obtain has the repository serve a blob and returns since when at the latest
// the client may rely on it.
func (p *pusher) obtain(repo oci.Name, d oci.Digest) (since time.Time, err error) {
	ctx := context.Background()
	since = time.Now()
	if _, err = p.w.store.ConfirmBlob(ctx, repo, d); err == nil {
		return since, nil
	}
	if !errors.Is(err, fault.NotFound) {
		return since, err
	}
	if p.s.chance(0.3) {
		since = time.Now()
		if _, err = p.w.store.MountBlob(ctx, repo, "", d); err == nil || !errors.Is(err, fault.NotFound) {
			return since, err
		}
	}
	b := p.content[d]
	u, err := p.w.sessions.Start(ctx, repo, string(d.Algorithm()))
	if err != nil {
		return since, err
	}
	half := len(b) / 2
	if half > 0 {
		if _, err := p.w.sessions.Append(ctx, repo, u.ID, upload.Chunk{Body: bytes.NewReader(b[:half]), Length: int64(half)}); err != nil {
			return since, err
		}
	}
	since = time.Now()
	_, err = p.w.sessions.Finish(ctx, repo, u.ID, d, upload.Chunk{Body: bytes.NewReader(b[half:]), Length: int64(len(b) - half)})
	return since, err
}

func (p *pusher) pushOne() {
	repo := pick(p.s, p.s.pool.repos...)
	var layers []oci.Digest
	for range 1 + p.s.rng.IntN(3) {
		layers = append(layers, pick(p.s, p.s.pool.blobs...))
	}
	p.n++
	m := p.s.pool.image(oci.MediaTypeImage, pick(p.s, p.s.pool.blobs...), layers, "", p.n)
	for !p.over() {
		var first time.Time
		for _, b := range m.parsed.Blobs {
			since, err := p.obtain(repo, b.Digest)
			if err != nil {
				p.violated("R4, R5: %s brings blob %s to %s: %w", p.name, short(b.Digest), repo, err)
				return
			}
			if first.IsZero() || since.Before(first) {
				first = since
			}
		}
		if p.put(repo, m, first) {
			return
		}
	}
}

func (p *pusher) put(repo oci.Name, m *content, first time.Time) bool {
	tag := oci.Tag(fmt.Sprintf("%s-%d", p.name, p.n%3))
	_, err := p.w.store.PutManifest(context.Background(), meta.Push{Repo: repo, Tags: []oci.Tag{tag}, Digest: m.digest, Manifest: m.parsed, Content: m.raw})
	within := time.Since(first) < p.window
	switch {
	case err == nil:
		p.ack(repo, m)
		p.mine = append(p.mine, place{repo, m.digest})
		p.pushes.Add(1)
		if within {
			p.relied.Add(1)
		}
		return true
	case within || !errors.Is(err, fault.Invalid):
		p.violated("R3: %s pushes %s to %s, %v after its first blob was confirmed: %w", p.name, short(m.digest), repo, time.Since(first), err)
	}
	return false // it took longer than the window: all over again
}

// pushIndex makes an index of two images that it has in one repository.
func (p *pusher) pushIndex() {
	a := pick(p.s, p.mine...)
	for _, b := range p.mine {
		if b.repo != a.repo || b == a {
			continue
		}
		p.n++
		m := p.s.pool.index([]oci.Digest{a.digest, b.digest}, "", p.n*100+p.s.rng.IntN(100))
		p.put(a.repo, m, time.Now())
		return
	}
}

func (p *pusher) remove() {
	i := p.s.rng.IntN(len(p.mine))
	it := p.mine[i]
	p.mine = slices.Delete(p.mine, i, i+1)
	p.mu.Lock()
	m := p.acked[it]
	p.mu.Unlock()
	// With an index go the children that nothing else keeps.
	p.unack(it.repo, it.digest)
	for _, c := range m.parsed.Children {
		p.unack(it.repo, c.Digest)
		p.mine = slices.DeleteFunc(p.mine, func(q place) bool { return q == place{it.repo, c.Digest} })
	}
	if err := p.w.store.DeleteManifest(context.Background(), it.repo, it.digest, p.name); err != nil {
		p.violated("R2: %s deletes %s of %s, which it pushed: %w", p.name, short(it.digest), it.repo, err)
	}
	if len(m.parsed.Children) == 0 {
		p.gone = append(p.gone, it)
	}
}

func (p *pusher) bringBack() {
	it := p.gone[len(p.gone)-1]
	p.gone = p.gone[:len(p.gone)-1]
	_, err := p.w.store.Restore(context.Background(), it.repo, it.digest, p.name)
	switch {
	case err == nil:
		for _, m := range p.s.pool.manifests {
			if m.digest == it.digest {
				p.ack(it.repo, m)
			}
		}
		p.mine = append(p.mine, it)
	case !errors.Is(err, fault.NotFound):
		p.violated("R10: %s restores %s of %s: %w", p.name, short(it.digest), it.repo, err)
	}
}

// pull pulls an image whole and says what is missing.
func (c *crowd) pull(at place, m *content) error {
	ctx := context.Background()
	got, err := c.w.store.Manifest(ctx, at.repo, oci.Reference{Digest: at.digest})
	if err != nil {
		return err
	}
	if !bytes.Equal(got.Content, m.raw) {
		return errors.New("its content is another")
	}
	for _, d := range m.parsed.Blobs {
		b, err := c.w.store.Blob(ctx, at.repo, d.Digest)
		if err != nil {
			return err
		}
		r, err := c.w.disk.Open(ctx, b.Key)
		if err != nil {
			return fmt.Errorf("blob %s: %w", short(d.Digest), err)
		}
		bytesRead, err := io.ReadAll(r)
		if err = errors.Join(err, r.Close()); err != nil || !bytes.Equal(bytesRead, c.content[d.Digest]) {
			return fmt.Errorf("blob %s has %d bytes, want %d: %w", short(d.Digest), len(bytesRead), len(c.content[d.Digest]), err)
		}
	}
	return nil
}

func (c *crowd) read() {
	for !c.over() {
		c.mu.Lock()
		var at place
		var m *content
		for at, m = range c.acked { // any
			break
		}
		c.mu.Unlock()
		if m == nil {
			continue
		}
		if err := c.pull(at, m); err != nil && c.isAcked(at) {
			c.violated("R2: %s@%s does not pull whole: %w", at.repo, short(at.digest), err)
		}
		c.pulls.Add(1)
	}
}

func (c *crowd) collect(seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 99))
	for !c.over() {
		p := meta.Policy{Window: meta.Duration(c.window), Trash: meta.Duration(rng.IntN(2)) * meta.Duration(50*time.Millisecond), Uploads: meta.Duration(time.Second)}
		if rng.IntN(4) == 0 {
			p.Repository = "a/*"
		}
		if rng.IntN(4) == 0 {
			if _, _, err := c.w.gc.DryRun(context.Background(), p, 10, nil); err != nil {
				c.violated("dry run: %w", err)
			}
		}
		run, err := c.w.gc.Start(context.Background(), p, gc.TriggerManual, "sim")
		if err == nil {
			run, err = c.w.gc.Wait(context.Background(), run.ID)
		}
		if err != nil || run.State != meta.RunDone || run.Failed != 0 {
			c.violated("R5: a run ended as %+v: %w", run, err)
		}
		c.runs.Add(1)
	}
}

// crowdPool has more blobs than newPool: many that come back about when their
// window ends.
func crowdPool() *pool {
	p := newPool()
	for i := range 60 {
		b := fmt.Appendf(nil, "cold %d", i)
		d := digest.FromBytes(b)
		p.blobs, p.content[d] = append(p.blobs, d), b
	}
	return p
}

// TestR1toR5_EverythingAtOnce runs for SIM_SECONDS. Run it under -race.
func TestR1toR5_EverythingAtOnce(t *testing.T) {
	b := newBench(t)
	seed := uint64(environ(t, "SIM_SEED", int(time.Now().UnixNano()%1_000_000)))
	t.Logf("seed %d (it decides what is done, and not in which order)", seed)
	w, err := newWorld(filepath.Join(b.root), b.driver, b.template, true)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Duration(environ(t, "SIM_SECONDS", 5))*time.Second)
	defer cancel()
	c := &crowd{w: w, ctx: ctx, content: crowdPool().content, window: 250 * time.Millisecond, acked: map[place]*content{}}
	var wg sync.WaitGroup
	for i := range 4 {
		s := &sim{w: w, pool: crowdPool(), rng: rand.New(rand.NewPCG(seed, uint64(i)))}
		p := &pusher{crowd: c, s: s, name: fmt.Sprintf("pusher%d", i), n: i * 1_000_000}
		wg.Go(p.work)
	}
	for i := range 2 {
		wg.Go(func() { c.collect(seed + uint64(i)) })
	}
	wg.Go(c.read)
	wg.Wait()
	if err := w.objects.violation(); err != nil {
		c.violated("%w", err)
	}
	for at, m := range c.acked {
		if err := c.pull(at, m); err != nil {
			c.violated("R2: at the end %s@%s does not pull whole: %w", at.repo, short(at.digest), err)
		}
	}
	t.Logf("%d pushes, %d of them within the window, %d pulls, %d runs, %d images are left", c.pushes.Load(), c.relied.Load(), c.pulls.Load(), c.runs.Load(), len(c.acked))
	if c.relied.Load() == 0 || c.pulls.Load() == 0 || c.runs.Load() == 0 {
		t.Error("that proves nothing: this machine is too slow")
	}
	c.settle()
	for _, err := range c.wrong {
		t.Error(err)
	}
	if err := w.close(); err != nil {
		t.Error(err)
	}
}

// settle collects what is garbage, holds the disk to what is needed, deletes
// all and looks again.
func (c *crowd) settle() {
	s := &sim{w: c.w, pool: crowdPool()}
	for round := range 2 {
		for range 3 {
			run, err := c.w.gc.Start(context.Background(), meta.Policy{}, gc.TriggerManual, "sim")
			if err == nil {
				run, err = c.w.gc.Wait(context.Background(), run.ID)
			}
			if err != nil || run.State != meta.RunDone {
				c.violated("settle: %+v: %w", run, err)
			}
		}
		seen, err := c.w.observe()
		if err != nil {
			c.violated("observe: %w", err)
			return
		}
		needed := map[oci.Digest]bool{}
		for name, r := range seen.repos {
			for d, m := range r.manifests {
				for e := range m.edges {
					needed[e] = true
				}
				switch {
				case m.trashed && r.named(d):
				case m.trashed:
					c.violated("no leak: %s is in the trash of %s", short(d), name)
				case round == 0:
					if err := c.w.store.DeleteManifest(context.Background(), name, d, "sim"); err != nil {
						c.violated("delete %s of %s: %w", short(d), name, err)
					}
				}
			}
		}
		if round == 1 && len(seen.repos) != 0 {
			c.violated("no leak: repositories are left: %v", seen.repos)
		}
		if err := sameKeys("no leak: blob", needed, seen.blobs); err != nil {
			c.violated("%w", err)
		}
		found, err := c.w.walk()
		if err != nil || len(found) != len(needed) || len(seen.purges)+seen.reviews+len(seen.uploads) != 0 {
			c.violated("no leak: %d objects, needed are %d; %d purges, %d reviews, %d uploads: %w", len(found), len(needed), len(seen.purges), seen.reviews, len(seen.uploads), err)
		}
		func() {
			defer func() {
				if p := recover(); p != nil {
					c.violated("%v", p)
				}
			}()
			s.checkKeys(seen)
		}()
	}
}

// named reports whether a living manifest has a digest in its text, or that of
// a manifest in the trash that does, at whatever depth.
func (r *observedRepo) named(d oci.Digest) bool {
	up := []oci.Digest{d}
	for i := 0; i < len(up); i++ {
		for p, m := range r.manifests {
			switch {
			case !bytes.Contains(m.content, []byte(up[i])):
			case !m.trashed:
				return true
			case !slices.Contains(up, p):
				up = append(up, p)
			}
		}
	}
	return false
}
