package node

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// TestN4_ContainerStartedBetweenJudgementAndRemoval: the judge has chosen the
// blobs and claimed them; while the agent asks the runtime again, a container
// starts from them.
func TestN4_ContainerStartedBetweenJudgementAndRemoval(t *testing.T) {
	u, c := startUpstream(t), startContainerd(t, "2")
	g := newGate(t, c.sock)
	a := startAgent(t, u, "--runtime", "containerd://"+g.path, "--quota", "50MiB")
	c.mirror(u.host, a.host)
	im, ref := u.runnable("lib/late:1", 10)
	c.pull(ref)
	a.settled()
	a.arrives("the image", im.all()...)

	// It is to go: a quota that is smaller than the image. What the agent asks the
	// runtime from then on gets through bit by bit, until the layer is claimed. On
	// a machine that is so slow that the agent gives up asking before, it is asked
	// to try again.
	a.holdOnceClaimed(g)
	id := c.run(ref)
	g.hold(false)
	eventually(t, "the race is noticed", func() (bool, string) {
		return strings.Contains(a.log.String(), "a blob was wanted before it was evicted"), ""
	})
	a.settled()
	a.gc()
	a.keeps("a container started in time", im.all()...)

	c.remove("default", id)
	c.removeImage(ref)
	a.loses("without the container", im.layers[1].Digest)
}

// holdOnceClaimed lowers the quota to nearly nothing and returns when victims are
// claimed and the runtime is being asked again, which the gate holds up.
func (a *agent) holdOnceClaimed(g *gate) {
	a.t.Helper()
	for range 5 {
		g.hold(true)
		a.limits("--quota", "1MiB")
		for began := time.Now(); time.Since(began) < 5*time.Second; {
			if a.metric("fairway_node_cache_claimed_bytes") > 0 {
				return
			}
			g.step(3)
		}
		a.limits("--quota", "50MiB")
		g.hold(false)
		a.settled()
	}
	a.t.Fatal("nothing is ever claimed")
}

// TestN3_RuntimeGone: what the runtime cannot be asked about stays, before it
// ever answered, while it is away, and after it came back.
func TestN3_RuntimeGone_BeforeDuringAfter(t *testing.T) {
	u, c := startUpstream(t), startContainerd(t, "2")
	g := newGate(t, c.sock)
	im, ref := u.runnable("lib/busybox:1", 6)

	g.refuse(true)
	a := startAgent(t, u, "--runtime", "containerd://"+g.path, "--quota", "50MiB")
	holds := a.watchQuota(50 << 20)
	c.mirror(u.host, a.host)
	c.pull(ref)
	id := c.run(ref)
	fill := func(answers bool) (last image) {
		for range 5 {
			last, ref = u.filler(10)
			c.pull(ref)
			c.removeImage(ref)
			if answers {
				a.isCold(last) // or the next may find no room: all would be as new as the answer
			}
		}
		return last
	}
	before := fill(false)
	first := a.digests()
	a.keeps("before the runtime ever answered", im.all()...)
	if gone := a.missing(before.layers[0].Digest); len(gone) == 0 {
		t.Error("the last one was cached: something must have been evicted for it")
	}
	if st := a.status(); len(st.Runtimes) != 1 || st.Runtimes[0].Answers {
		t.Errorf("the runtime is said to answer: %+v", st.Runtimes)
	}
	for _, d := range first {
		if gone := a.missing(d); len(gone) > 0 {
			t.Errorf("%s was evicted although nobody could be asked", d)
		}
	}

	g.refuse(false)
	a.settled()
	after := fill(true)
	a.keeps("the runtime answers", im.all()...)
	a.arrives("what fits again", after.layers[0].Digest)

	g.refuse(true)
	a.unsettled()
	held := a.digests()
	fill(false)
	for _, d := range held {
		if gone := a.missing(d); len(gone) > 0 {
			t.Errorf("%s was evicted although the runtime is away", d)
		}
	}

	g.refuse(false)
	a.settled()
	fill(true)
	a.keeps("the runtime is back", im.all()...)
	c.remove("default", id)
	c.removeImage(u.host + "/" + im.repo)
	a.limits("--quota", "1MiB")
	a.loses("nobody uses it", im.layers[1].Digest)
	holds()
}

// TestN3_EventsLost: a container starts while the agent hears nothing.
func TestN3_EventsLost(t *testing.T) {
	u, c := startUpstream(t), startContainerd(t, "2")
	g := newGate(t, c.sock)
	a := startAgent(t, u, "--runtime", "containerd://"+g.path, "--quota", "50MiB")
	c.mirror(u.host, a.host)
	im, ref := u.runnable("lib/busybox:1", 6)
	c.pull(ref)
	a.settled()
	g.refuse(true)
	c.run(ref)
	g.refuse(false)
	for range 6 {
		_, ref := u.filler(10)
		c.pull(ref)
		c.removeImage(ref)
		a.keeps("it started unheard", im.all()...)
	}
}

// TestN1_TagMoved: a container runs what its tag named once.
func TestN1_TagMoved(t *testing.T) {
	for _, version := range versions {
		t.Run("containerd"+version, func(t *testing.T) {
			s := newScene(t, version, "--quota", "50MiB")
			old, ref := s.u.runnable("lib/app:1", 6)
			s.c.pull(ref)
			s.c.run(ref)
			now, _ := s.u.runnable("lib/app:1", 6)
			s.c.pull(ref)
			s.a.arrives("pulled under the same tag", now.layers[1].Digest)
			s.a.restart() // it has to find out from the runtime alone
			s.flood(nil)
			s.a.keeps("the tag has moved", old.manifest.Digest, old.config.Digest, old.layers[0].Digest, old.layers[1].Digest)
		})
	}
}

// settled waits until every runtime answers, unsettled until one does not.
func (a *agent) settled()   { a.t.Helper(); a.answers(true) }
func (a *agent) unsettled() { a.t.Helper(); a.answers(false) }

func (a *agent) answers(yes bool) {
	a.t.Helper()
	eventually(a.t, fmt.Sprintf("runtimes answer: %v", yes), func() (bool, string) {
		st := a.status()
		for _, r := range st.Runtimes {
			if r.Answers != yes {
				return false, fmt.Sprintf("%+v", r)
			}
		}
		return len(st.Runtimes) > 0, "there are none"
	})
}

// TestN7_SIGKILLInMidDownload: the agent dies while a layer comes in. Started
// again it goes on from what it has, and what it serves is right.
func TestN7_SIGKILLInMidDownload(t *testing.T) {
	u := startUpstream(t)
	a := startAgent(t, u, "--runtime", "none", "--quota", "100MiB")
	im, _ := u.filler(20)
	d := im.layers[0].Digest
	path := "/v2/" + u.repoOf(im) + "/blobs/" + d.String()
	reached, release := make(chan struct{}), make(chan struct{})
	u.breaks(blobFault(d, stallAfter(12*mib, reached, release)))
	ended := make(chan error, 1)
	go func() {
		_, _, err := a.get(path)
		ended <- err
	}()
	<-reached
	eventually(t, "a good part is on disk", func() (bool, string) {
		n := a.ls()[d].PresentBytes
		return n >= 10*mib, fmt.Sprint(n)
	})
	a.sigkill()
	close(release)
	if err := <-ended; err == nil {
		t.Error("the runtime was told that it has all")
	}

	u.breaks(nil)
	a.start()
	if n := a.ls()[d].PresentBytes; n < 10*mib {
		t.Errorf("%d bytes are left of the download", n)
	}
	u.forget()
	a.serves(u.repoOf(im), d)
	if sent := u.bodyBytes(d); sent > 12*mib {
		t.Errorf("the upstream sent %d bytes again", sent)
	}
	a.arrives("resumed", d)
}

// TestN7_SIGKILLInMidEviction: the agent dies while it removes many blobs. What
// is in use is there, nothing is half there, and the next eviction goes on.
func TestN7_SIGKILLInMidEviction(t *testing.T) {
	s := newScene(t, "2", "--quota", "50MiB")
	busybox, ref := s.u.runnable("lib/busybox:1", 6)
	s.c.pull(ref)
	s.c.run(ref)
	var all []digest.Digest
	var layers []layer
	for range 120 {
		layers = append(layers, randomLayer(t, seeds.Add(1)<<32, 256<<10))
		all = append(all, layers[len(layers)-1].desc.Digest)
	}
	im := buildImage(t, "shop/many:1", nil, layers...)
	s.u.push(im)
	s.a.settled()
	if resp, _, err := s.a.get("/v2/shop/many/manifests/1"); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%v, %v", resp, err)
	}
	for _, d := range all {
		s.a.serves("shop/many", d)
	}
	present := func() (n int) {
		for _, d := range all {
			if _, err := os.Stat(s.a.file(d)); err == nil {
				n++
			}
		}
		return n
	}
	s.a.limits("--quota", "12MiB")
	eventually(t, "the eviction has begun", func() (bool, string) {
		n := present()
		return n < len(all), fmt.Sprint(n)
	})
	s.a.sigkill()
	t.Logf("killed when %d of %d were left", present(), len(all))

	s.a.args = append(s.a.args, "--quota", "12MiB")
	s.a.start()
	s.a.keeps("it runs", busybox.all()...)
	s.a.agreesWithDisk()
	s.a.settled()
	s.a.gc()
	s.a.keeps("it runs", busybox.all()...)
	s.a.agreesWithDisk()
	for d := range s.a.ls() {
		if slices.Contains(all, d) {
			s.a.serves("shop/many", d)
		}
	}
}

// agreesWithDisk fails when a file of the cache has no row or a row no file.
func (a *agent) agreesWithDisk() {
	a.t.Helper()
	items := a.ls()
	files, err := filepath.Glob(filepath.Join(a.data, "blobs", "sha256", "??", "????????????????????????????????????????????????????????????????"))
	if err != nil {
		a.t.Fatal(err)
	}
	for _, f := range files {
		if d := digest.Digest("sha256:" + filepath.Base(f)); items[d].Digest != d {
			a.t.Errorf("the file %s belongs to nothing", f)
		}
	}
	for d := range items {
		if _, err := os.Stat(a.file(d)); err != nil {
			a.t.Errorf("%s has no file: %v", d, err)
		}
	}
}
