package sim

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/blob/blobtest"
	"github.com/fairway-registry/fairway/internal/registry/meta"
)

// script is a short fixed history that writes in every way there is. Its
// clients go on after a crash as far as they can.
func script(s *sim) {
	p := s.pool
	base, big, small, config := p.blobs[4], p.blobs[6], p.blobs[2], p.blobs[0]
	one := p.image(oci.MediaTypeImage, config, []oci.Digest{base, big}, "", 1)
	two := p.image(oci.MediaTypeImage, config, []oci.Digest{base, small}, "", 2)
	index := p.index([]oci.Digest{one.digest, two.digest}, "", 3)
	signature := p.image(oci.MediaTypeImage, config, []oci.Digest{small}, two.digest, 4)

	upload := func(repo oci.Name, d oci.Digest) {
		b := p.content[d]
		id, ok := s.start(repo, "sha256")
		if ok && len(b) > 1 {
			s.chunk(repo, id, b[:len(b)/2], false)
		}
		if u := s.model.uploads[id]; u != nil {
			s.complete(repo, id, d, b[len(u.data):])
		}
	}
	image := func(repo oci.Name, c *content, tags ...oci.Tag) {
		for _, b := range c.parsed.Blobs {
			if !s.head(repo, b.Digest) && !s.mount(repo, "", b.Digest) {
				upload(repo, b.Digest)
			}
		}
		s.put(repo, c, tags...)
	}
	remove := func(repo oci.Name, c *content) {
		s.do("delete "+short(c.digest), func(ctx context.Context) error { return s.w.store.DeleteManifest(ctx, repo, c.digest, "sim") },
			func(m *model) fault.Kind { return m.deleteManifest(repo, c.digest, s.now()) })
	}
	pass := func(ms int64) { s.w.clock.Add(ms) }

	image("a/x", one, "1")
	image("b", two, "1", "2") // shares layers
	image("a/x", two)
	image("a/x", signature)
	s.put("a/x", index, "latest")
	s.lease()
	if id, ok := s.start("a/y", "sha256"); ok { // abandoned
		s.chunk("a/y", id, []byte("never finished"), false)
	}
	remove("a/x", one)
	remove("a/x", index)
	pass(3600_000)
	s.collect(meta.Policy{Window: meta.Duration(60e9), Trash: meta.Duration(2 * 3600e9)}, false)
	s.restoreOne("a/x", index.digest)
	remove("b", two)
	pass(3 * 3600_000)
	s.collect(meta.Policy{Window: meta.Duration(60e9), Trash: meta.Duration(1e9)}, false)
	image("b", two, "1") // its old bytes may wait for their purge
	s.do("delete tag", func(ctx context.Context) error { return s.w.store.DeleteTag(ctx, "b", "1", "sim") },
		func(m *model) fault.Kind { return m.deleteTag("b", "1", s.now()) })
	pass(10_000)
	s.collect(meta.Policy{Untagged: meta.Duration(1e9)}, false)
}

// TestR7_KilledAtEveryFailpoint ends the process at every statement of a
// writing transaction and around every commit, and at every storage operation,
// one history each; then it opens the data again, goes on, settles and looks
// for leaks. SIM_STRIDE leaves out all but each n-th.
func TestR7_KilledAtEveryFailpoint(t *testing.T) {
	b := newBench(t)
	statements, operations, tried, ended := 0, 0, 0, 0
	var commits []int
	run := func(what string, prepare func(*sim)) {
		log, err := b.history(1, func(s *sim) {
			s.rng = rand.New(rand.NewPCG(1, 1))
			prepare(s)
			script(s)
			tried, ended = tried+1, ended+s.w.lives
			s.finish()
		})
		if err != nil {
			t.Fatalf("%s:\n%s\n%v", what, strings.Join(log, "\n"), err)
		}
	}
	run("", func(s *sim) {
		s.hold = func() {
			statements, commits = s.w.fuse.counted()
			operations = s.w.faulty.Count()
		}
	})
	stride := environ(t, "SIM_STRIDE", stride)
	for n := 1; n <= statements; n += stride {
		for _, after := range []bool{false, true} {
			if after && !slices.Contains(commits, n) {
				continue // that is before the next one
			}
			run(fmt.Sprintf("database statement %d, after its effect: %v", n, after), func(s *sim) {
				s.hold = func() {}
				s.w.fuse.arm(n, after)
			})
		}
	}
	for n := 1; n <= operations; n += stride {
		for _, fate := range []blobtest.Fate{blobtest.CrashBefore, blobtest.CrashMid, blobtest.CrashAfter} {
			run(fmt.Sprintf("storage operation %d, fate %d", n, fate), func(s *sim) {
				s.hold = func() {}
				s.w.faulty.Plan(blobtest.Nth(n, fate))
			})
		}
	}
	t.Logf("%d database statements, %d commits among them, %d storage operations", statements, len(commits), operations)
	// The first was not to end. A run takes its steps by the clock on the wall, so
	// the last statements may not be there each time.
	if ended < (tried-1)*95/100 {
		t.Errorf("of %d histories %d were cut off", tried-1, ended)
	}
	if len(commits) < 20 || operations < 20 {
		t.Error("that is less than the script does: the failpoints are not seen")
	}
}

// TestR7_CrashInMidManifestPut ends the process at each statement of a manifest
// PUT in turn. What the client was not told of is not there, or whole; the
// model sees which, and that nothing else changed.
func TestR7_CrashInMidManifestPut(t *testing.T) {
	b := newBench(t)
	for n := 1; ; n++ {
		if n > 100 {
			t.Fatal("a PUT has no end")
		}
		ended := false
		log, err := b.history(1, func(s *sim) {
			s.rng = rand.New(rand.NewPCG(1, 1))
			s.hold = func() {}
			p := s.pool
			image := p.image(oci.MediaTypeImage, p.blobs[0], []oci.Digest{p.blobs[4], p.blobs[2]}, "", 1)
			for _, d := range []oci.Digest{p.blobs[0], p.blobs[4], p.blobs[2]} {
				if id, ok := s.start("a/x", "sha256"); ok {
					s.complete("a/x", id, d, p.content[d])
				}
			}
			lives := s.w.lives
			s.w.fuse.arm(n, false)
			s.put("a/x", image, "v1")
			ended = s.w.lives > lives
			s.finish()
		})
		if err != nil {
			t.Fatalf("statement %d:\n%s\n%v", n, strings.Join(log, "\n"), err)
		}
		if !ended {
			if n < 8 {
				t.Errorf("a PUT had only %d statements: the failpoints are not seen", n-1)
			}
			return
		}
	}
}
