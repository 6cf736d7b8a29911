package sim

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/meta"
	"github.com/fairway-registry/fairway/internal/registry/upload"
)

// pool is what histories are made of: few of each, so that they meet often.
type pool struct {
	repos     []oci.Name
	tags      []oci.Tag
	blobs     []oci.Digest
	content   map[oci.Digest][]byte
	manifests []*content
}

func newPool() *pool {
	p := &pool{repos: []oci.Name{"a/x", "a/y", "b"}, tags: []oci.Tag{"1", "2", "latest"}, content: map[oci.Digest][]byte{}}
	for i := range 7 {
		b := bytes.Repeat([]byte{byte('a' + i)}, i*i*i) // from the empty blob to 216 bytes
		d := digest.FromBytes(b)
		p.blobs, p.content[d] = append(p.blobs, d), b
	}
	again := digest.SHA512.FromBytes(p.content[p.blobs[3]])
	p.blobs, p.content[again] = append(p.blobs, again), p.content[p.blobs[3]]
	return p
}

func (p *pool) descriptor(d oci.Digest) map[string]any {
	return map[string]any{"mediaType": "application/octet-stream", "digest": d, "size": len(p.content[d])}
}

// size returns the size of a blob or manifest of the pool.
func (p *pool) size(d oci.Digest) int {
	for _, c := range p.manifests {
		if c.digest == d {
			return len(c.raw)
		}
	}
	return len(p.content[d])
}

func (p *pool) add(mediaType string, doc map[string]any) *content {
	raw, err := json.Marshal(doc)
	if err != nil {
		panic(err) // strings and numbers only
	}
	d := digest.FromBytes(raw)
	for _, c := range p.manifests {
		if c.digest == d {
			return c
		}
	}
	parsed, err := oci.ParseManifest(mediaType, raw)
	if err != nil {
		panic(err) // written above by the rules
	}
	c := &content{digest: d, raw: raw, parsed: parsed}
	p.manifests = append(p.manifests, c)
	return c
}

// image makes an image or artifact manifest out of the pool's blobs.
func (p *pool) image(mediaType string, config oci.Digest, layers []oci.Digest, subject oci.Digest, nonce int) *content {
	ds := make([]any, len(layers))
	for i, l := range layers {
		ds[i] = p.descriptor(l)
	}
	doc := map[string]any{"schemaVersion": 2, "mediaType": mediaType, "config": p.descriptor(config), "layers": ds,
		"annotations": map[string]string{"nonce": fmt.Sprint(nonce)}}
	if subject != "" {
		doc["subject"] = map[string]any{"mediaType": oci.MediaTypeImage, "digest": subject, "size": 1}
		doc["artifactType"] = "application/x-sim"
	}
	return p.add(mediaType, doc)
}

func (p *pool) index(children []oci.Digest, subject oci.Digest, nonce int) *content {
	ds := make([]any, len(children))
	for i, c := range children {
		ds[i] = map[string]any{"mediaType": oci.MediaTypeImage, "digest": c, "size": p.size(c)}
	}
	doc := map[string]any{"schemaVersion": 2, "mediaType": oci.MediaTypeIndex, "manifests": ds, "annotations": map[string]string{"nonce": fmt.Sprint(nonce)}}
	if subject != "" {
		doc["subject"] = map[string]any{"mediaType": oci.MediaTypeImage, "digest": subject, "size": 1}
	}
	return p.add(oci.MediaTypeIndex, doc)
}

// opaque is of a type that the registry does not know: it binds what is there.
const opaque = "application/vnd.sim.unknown+json"

// someManifest makes a new manifest or takes an old one.
func (s *sim) someManifest() *content {
	p := s.pool
	if len(p.manifests) > 0 && s.chance(0.4) {
		return pick(s, p.manifests...)
	}
	var subject oci.Digest
	if len(p.manifests) > 0 && s.chance(0.25) {
		subject = pick(s, p.manifests...).digest
	}
	if len(p.manifests) > 1 && s.chance(0.35) {
		var children []oci.Digest
		for range 1 + s.rng.IntN(3) {
			if c := pick(s, p.manifests...).digest; !slices.Contains(children, c) {
				children = append(children, c)
			}
		}
		if s.chance(0.15) {
			children = append(children, digest.FromString("a child that never comes"))
		}
		if s.chance(0.15) { // a build cache is an index of layers
			children = append(children, pick(s, p.blobs...))
		}
		return p.index(children, subject, s.rng.IntN(2))
	}
	var layers []oci.Digest
	for range s.rng.IntN(4) {
		layers = append(layers, pick(s, p.blobs...))
	}
	mediaType := pick(s, oci.MediaTypeImage, oci.MediaTypeImage, oci.MediaTypeImage, oci.MediaTypeDockerImage, opaque)
	return p.image(mediaType, pick(s, p.blobs...), layers, subject, s.rng.IntN(2))
}

func short(d oci.Digest) string { return d.Encoded()[:8] }

func (s *sim) someRepo() oci.Name { return pick(s, s.pool.repos...) }

// present returns a manifest that a repository has living or in the trash, or any.
func (s *sim) present(repo oci.Name, living bool) (oci.Digest, bool) {
	var ds []oci.Digest
	for _, c := range s.pool.manifests {
		if x := s.model.look(repo).manifests[c.digest]; x != nil && x.living == living {
			ds = append(ds, c.digest)
		}
	}
	switch {
	case len(ds) > 0 && s.chance(0.9):
		return pick(s, ds...), true
	case len(s.pool.manifests) > 0:
		return pick(s, s.pool.manifests...).digest, true
	}
	return "", false
}

func (s *sim) head(repo oci.Name, d oci.Digest) bool {
	return s.do(fmt.Sprintf("HEAD %s blob %s", repo, short(d)), func(ctx context.Context) error {
		_, err := s.w.store.ConfirmBlob(ctx, repo, d)
		return err
	}, func(m *model) fault.Kind { return m.confirm(repo, d, s.now()) })
}

func (s *sim) mount(repo, from oci.Name, d oci.Digest) bool {
	return s.do(fmt.Sprintf("mount %s from %q to %s", short(d), from, repo), func(ctx context.Context) error {
		_, err := s.w.store.MountBlob(ctx, repo, from, d)
		return err
	}, func(m *model) fault.Kind { return m.mount(repo, from, d, s.now()) })
}

func (s *sim) put(repo oci.Name, c *content, tags ...oci.Tag) bool {
	return s.do(fmt.Sprintf("PUT %s manifest %s tags %v (blobs %s children %s subject %.15s)", repo, short(c.digest), tags, shorts(c.parsed.Blobs), shorts(c.parsed.Children), c.parsed.Subject),
		func(ctx context.Context) error {
			_, err := s.w.store.PutManifest(ctx, meta.Push{Repo: repo, Tags: tags, Digest: c.digest, Manifest: c.parsed, Content: c.raw})
			return err
		}, func(m *model) fault.Kind { return m.put(repo, c, tags, s.now()) })
}

func shorts(ds []oci.Descriptor) (out []string) {
	for _, d := range ds {
		out = append(out, short(d.Digest))
	}
	return out
}

// start begins an upload session. Its id is the server's choice, so the model
// learns it: of a session that was begun and not acknowledged, too.
func (s *sim) start(repo oci.Name, algorithm string) (id string, ok bool) {
	s.arm(false)
	s.note("start an upload in %s (%s)%s", repo, algorithm, s.armed)
	u, err := s.w.sessions.Start(context.Background(), repo, algorithm)
	crashed := s.w.crashed()
	if crashed {
		s.note("  crashed; the client saw: %v", err)
		s.reopen(true)
	} else {
		s.disarm()
		if err != nil {
			s.fail("R4, R5: start an upload: %v", err)
		}
	}
	seen := s.observe()
	for other, v := range seen.uploads {
		if s.model.uploads[other] == nil && (v.repo != repo || v.size != 0 || !crashed && other != u.ID) {
			s.fail("upload %s is there", other)
		}
		if s.model.uploads[other] == nil {
			s.model.uploads[other] = &uploadModel{repo: repo, touched: s.now()}
		}
	}
	if err == nil && s.model.uploads[u.ID] == nil {
		s.fail("R7: upload %s was acknowledged and is not there", u.ID)
	}
	s.check()
	return u.ID, err == nil && !crashed
}

// chunk appends the next n bytes of b to a session, and perhaps breaks off.
func (s *sim) chunk(repo oci.Name, id string, b []byte, broken bool) bool {
	u := s.model.uploads[id]
	if u == nil {
		return false
	}
	u.asked = s.now()
	from := int64(len(u.data))
	var body io.Reader = bytes.NewReader(b)
	c := upload.Chunk{Length: int64(len(b)), Ranged: true, First: from, Last: from + int64(len(b)) - 1, Actor: "sim"}
	if broken {
		body = io.MultiReader(bytes.NewReader(b[:len(b)/2]), errReader{})
		c.Ranged = false
	}
	c.Body = body
	got := b
	if broken {
		got = b[:len(b)/2]
	}
	want := fault.Kind("")
	return s.do(fmt.Sprintf("PATCH %s at %d with %d bytes, broken %v", id, from, len(b), broken), func(ctx context.Context) error {
		_, err := s.w.sessions.Append(ctx, repo, id, c)
		if broken && errors.Is(err, fault.Invalid) && !s.w.crashed() {
			return nil // what came is kept
		}
		return err
	}, func(m *model) fault.Kind {
		v := m.uploads[id]
		if len(got) > 0 {
			v.data, v.touched = append(slices.Clone(v.data), got...), s.now()
		}
		return want
	})
}

// complete ends a session with its last bytes.
func (s *sim) complete(repo oci.Name, id string, d oci.Digest, b []byte) bool {
	u := s.model.uploads[id]
	if u == nil {
		return false
	}
	u.asked = s.now()
	whole := append(slices.Clone(u.data), b...)
	return s.do(fmt.Sprintf("PUT %s with %d bytes more as %s", id, len(b), short(d)), func(ctx context.Context) error {
		_, err := s.w.sessions.Finish(ctx, repo, id, d, upload.Chunk{Body: bytes.NewReader(b), Length: int64(len(b)), Actor: "sim"})
		if d.Algorithm().FromBytes(whole) != d && errors.Is(err, fault.Invalid) && !s.w.crashed() {
			return nil // refused, and the session is over
		}
		return err
	}, func(m *model) fault.Kind {
		delete(m.uploads, id)
		if d.Algorithm().FromBytes(whole) != d {
			return ""
		}
		if _, ok := m.blobs[d]; !ok {
			m.blobs[d] = s.now()
		}
		m.link(repo, d, s.now())
		return ""
	})
}

// push uploads a blob in one session, in one to three requests.
func (s *sim) push(repo oci.Name, d oci.Digest) bool {
	b := s.pool.content[d]
	id, ok := s.start(repo, string(pick(s, d.Algorithm(), digest.SHA256)))
	if !ok {
		return false
	}
	for len(b) > 1 && s.chance(0.4) {
		n := 1 + s.rng.IntN(len(b)-1)
		broken := s.chance(0.2)
		if !s.chunk(repo, id, b[:n], broken) {
			if s.model.uploads[id] == nil {
				return false
			}
		}
		b = s.pool.content[d][len(s.model.uploads[id].data):] // where the server says
		s.between()
	}
	if s.model.uploads[id] == nil {
		return false
	}
	return s.complete(repo, id, d, s.pool.content[d][len(s.model.uploads[id].data):])
}

// between is what others do while a client is at work.
func (s *sim) between() {
	switch {
	case s.busy:
	case s.chance(0.1):
		s.collectAny()
	case s.chance(0.1):
		s.advance()
	case s.chance(0.03):
		s.reopen(s.chance(0.5))
	}
}

// pushImage is a client's whole push: ask for each blob, bring what is missing,
// then the manifest. It begins again where a crash has cut it off, or gives up.
func (s *sim) pushImage() {
	repo, c := s.someRepo(), s.someManifest()
	for _, b := range c.parsed.Blobs {
		have := s.head(repo, b.Digest)
		if !have && s.chance(0.3) {
			from := pick(s, append(slices.Clone(s.pool.repos), "")...)
			have = s.mount(repo, from, b.Digest)
		}
		if !have {
			have = s.push(repo, b.Digest)
		}
		if !have && s.chance(0.3) {
			return
		}
		s.between()
	}
	var tags []oci.Tag
	for range s.rng.IntN(3) {
		if t := pick(s, s.pool.tags...); !slices.Contains(tags, t) {
			tags = append(tags, t)
		}
	}
	s.put(repo, c, tags...)
}

func (s *sim) advance() {
	d := pick(s, 1, 300, 1000, 1500, 10_000, 61_000, 600_000, 3*3600_000)
	s.note("%d ms pass", d)
	s.w.clock.Add(int64(d))
}

func (s *sim) collectAny() { s.collect(s.anyPolicy(), s.chance(0.5)) }

func (s *sim) anyPolicy() meta.Policy {
	ms := func(choices ...time.Duration) meta.Duration { return meta.Duration(pick(s, choices...)) }
	p := meta.Policy{
		Window:   ms(0, time.Second, 10*time.Second, time.Minute, 2*time.Hour),
		Trash:    ms(0, 0, time.Second, time.Minute, 24*time.Hour),
		Untagged: ms(0, 0, 0, time.Millisecond, time.Second, time.Minute),
		Uploads:  ms(0, 0, time.Second, time.Hour),
	}
	if s.chance(0.25) {
		p.Repository = pick(s, "a/*", "a/x", "b")
		if p.Repository != "a/*" && !s.model.exists(oci.Name(p.Repository)) {
			p.Repository = "a/*"
		}
	}
	return p
}

// someBlob prefers one that only the trash needs.
func (s *sim) someBlob(repo oci.Name) oci.Digest {
	r := s.model.look(repo)
	for _, d := range s.pool.blobs {
		if r.serves(d) && r.needed(d) && !r.neededByLiving(d) && s.chance(0.6) {
			return d
		}
	}
	return pick(s, s.pool.blobs...)
}

// step does one random thing; or only one that a client does.
func (s *sim) step(client bool) {
	repo := s.someRepo()
	type step struct {
		weight int
		do     func()
	}
	steps := []step{
		{18, s.pushImage},
		{8, func() { s.put(repo, s.someManifest(), pick(s, nil, nil, []oci.Tag{pick(s, s.pool.tags...)})...) }},
		{4, func() { s.push(repo, pick(s, s.pool.blobs...)) }},
		{5, s.sessionStep},
		{5, func() { s.head(repo, pick(s, s.pool.blobs...)) }},
		{4, func() {
			s.mount(repo, pick(s, append(slices.Clone(s.pool.repos), "")...), pick(s, s.pool.blobs...))
		}},
		{6, func() { s.get(repo) }},
		{5, func() {
			t := pick(s, s.pool.tags...)
			s.do(fmt.Sprintf("delete tag %s of %s", t, repo), func(ctx context.Context) error { return s.w.store.DeleteTag(ctx, repo, t, "sim") },
				func(m *model) fault.Kind { return m.deleteTag(repo, t, s.now()) })
		}},
		{8, func() {
			if d, ok := s.present(repo, true); ok {
				s.deleteManifest(repo, d)
			}
		}},
		{4, func() { s.deleteBlob(repo, s.someBlob(repo)) }},
		{5, func() { s.restore(repo) }},
		{4, s.lease},
		{3, func() { s.regret(repo) }},
	}
	if !client {
		steps = append(steps, []step{
			{14, s.collectAny},
			{12, s.advance},
			{1, s.checker},
			{2, func() { s.reopen(s.chance(0.5)) }},
		}...)
	}
	total := 0
	for _, st := range steps {
		total += st.weight
	}
	n := s.rng.IntN(total)
	for _, st := range steps {
		if n -= st.weight; n < 0 {
			st.do()
			return
		}
	}
}

// sessionStep does something to an upload session that somebody has left.
func (s *sim) sessionStep() {
	var ids []string
	for id := range s.model.uploads {
		ids = append(ids, id)
	}
	if len(ids) == 0 || s.chance(0.3) {
		s.start(s.someRepo(), "sha256")
		return
	}
	slices.Sort(ids)
	id := pick(s, ids...)
	u := s.model.uploads[id]
	u.asked = s.now()
	switch s.rng.IntN(4) {
	case 0:
		s.chunk(u.repo, id, []byte("some bytes"), s.chance(0.3))
	case 1:
		s.do("cancel upload "+id, func(ctx context.Context) error { return s.w.sessions.Cancel(ctx, u.repo, id, "sim") },
			func(m *model) fault.Kind { delete(m.uploads, id); return "" })
	case 2:
		s.complete(u.repo, id, pick(s, s.pool.blobs...), []byte("the wrong end"))
	case 3:
		from := int64(len(u.data)) + 1
		s.do("PATCH with a gap "+id, func(ctx context.Context) error {
			_, err := s.w.sessions.Append(ctx, u.repo, id, upload.Chunk{Body: bytes.NewReader([]byte("x")), Length: 1, Ranged: true, First: from, Last: from})
			return err
		}, func(*model) fault.Kind { return fault.Conflict })
	}
}

func (s *sim) get(repo oci.Name) {
	ref := oci.Reference{Tag: pick(s, s.pool.tags...)}
	if d, ok := s.present(repo, true); ok && s.chance(0.6) {
		ref = oci.Reference{Digest: d}
	}
	s.getOne(repo, ref)
}

func (s *sim) getOne(repo oci.Name, ref oci.Reference) {
	var got *meta.Manifest
	var want *content
	if s.do(fmt.Sprintf("GET %s manifest %.15s", repo, ref), func(ctx context.Context) (err error) {
		got, err = s.w.store.Manifest(ctx, repo, ref)
		return err
	}, func(m *model) (kind fault.Kind) {
		want, kind = m.get(repo, ref, s.now())
		return kind
	}) && !bytes.Equal(got.Content, want.raw) {
		s.fail("R2: GET of %s in %s answers with %s, want %s", ref, repo, got.Digest, want.digest)
	}
}

func (s *sim) restore(repo oci.Name) {
	if d, ok := s.present(repo, false); ok {
		s.restoreOne(repo, d)
	}
}

func (s *sim) restoreOne(repo oci.Name, d oci.Digest) {
	var got, want meta.Restored
	if s.do(fmt.Sprintf("restore %s of %s", short(d), repo), func(ctx context.Context) (err error) {
		got, err = s.w.store.Restore(ctx, repo, d, "sim")
		return err
	}, func(m *model) (kind fault.Kind) {
		want, kind = m.restore(repo, d, s.now())
		return kind
	}) {
		for _, r := range []*meta.Restored{&got, &want} {
			slices.Sort(r.Tags)
			slices.Sort(r.TagsTaken)
			slices.Sort(r.Along)
			slices.SortFunc(r.NotRestored, func(a, b meta.NotRestored) int { return cmp.Compare(a.Digest, b.Digest) })
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			s.fail("restore brought back %v, want %v", got, want)
		}
	}
}

// regret deletes a manifest and a blob of it, and pushes or restores it.
func (s *sim) regret(repo oci.Name) {
	d, ok := s.present(repo, true)
	if !ok || !s.model.look(repo).lives(d) {
		return
	}
	c := s.model.look(repo).manifests[d].content
	s.deleteManifest(repo, d)
	if len(c.parsed.Blobs) > 0 {
		s.deleteBlob(repo, pick(s, c.parsed.Blobs...).Digest)
	}
	s.between()
	if s.chance(0.5) {
		s.put(repo, c)
	} else {
		s.restoreOne(repo, d)
	}
}

func (s *sim) deleteManifest(repo oci.Name, d oci.Digest) {
	s.do(fmt.Sprintf("delete manifest %s of %s", short(d), repo), func(ctx context.Context) error { return s.w.store.DeleteManifest(ctx, repo, d, "sim") },
		func(m *model) fault.Kind { return m.deleteManifest(repo, d, s.now()) })
}

func (s *sim) deleteBlob(repo oci.Name, d oci.Digest) {
	s.do(fmt.Sprintf("delete blob %s of %s", short(d), repo), func(ctx context.Context) error { return s.w.store.DeleteBlob(ctx, repo, d, "sim") },
		func(m *model) fault.Kind { return m.deleteBlob(repo, d, s.now()) })
}

// rescue has a client lay its hand on something that a run may be about to take.
func (s *sim) rescue() {
	var some []func()
	for _, repo := range s.pool.repos {
		r := s.model.look(repo)
		for _, d := range s.pool.blobs {
			if r.serves(d) && !r.needed(d) {
				only := s.pool.image(oci.MediaTypeImage, d, nil, "", 0)
				some = append(some, func() { s.head(repo, d) }, func() { s.mount(s.someRepo(), repo, d) }, func() { s.put(repo, only) })
			}
		}
		for _, c := range s.pool.manifests {
			x := r.manifests[c.digest]
			switch {
			case x == nil:
			case !x.living:
				some = append(some, func() { s.restoreOne(repo, c.digest) }, func() { s.put(repo, c) })
			case x.loose != 0:
				some = append(some, func() { s.put(repo, c, pick(s, s.pool.tags...)) }, func() { s.getOne(repo, oci.Reference{Digest: c.digest}) },
					func() { s.put(repo, s.pool.index([]oci.Digest{c.digest}, "", 0)) })
			}
		}
	}
	if len(some) == 0 {
		s.step(true)
		return
	}
	pick(s, some...)()
}

func (s *sim) lease() {
	holder := pick(s, "node-1", "node-2")
	if s.chance(0.3) {
		s.do("delete lease of "+holder, func(ctx context.Context) error { return s.w.store.DeleteLease(ctx, holder) },
			func(m *model) fault.Kind { return m.deleteLease(holder, s.now()) })
		return
	}
	var ds []oci.Digest
	for range 1 + s.rng.IntN(2) {
		if len(s.pool.manifests) > 0 && s.chance(0.8) {
			ds = append(ds, pick(s, s.pool.manifests...).digest)
		} else {
			ds = append(ds, pick(s, s.pool.blobs...))
		}
	}
	ttl := pick[int64](s, 1000, 60_000, 24*3600_000)
	s.do(fmt.Sprintf("lease of %s on %.15s for %d ms", holder, ds, ttl), func(ctx context.Context) error {
		_, err := s.w.store.PutLease(ctx, holder, ds, ttl)
		return err
	}, func(m *model) fault.Kind { m.putLease(holder, ds, s.now()+ttl, s.now()); return "" })
}

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }
