package node

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
)

// The story of DESIGN: a cache directory of 50 MB that lost its running BusyBox.
const storyQuota = 50 << 20

var seeds atomic.Uint64

// fillers are images that only take room, by size and number, with the registry
// that they have been pushed to.
var fillers sync.Map

// filler gives an image that only takes room, another one each time, and the
// name to pull it by.
func (u *upstream) filler(mibs int) (image, string) {
	u.t.Helper()
	u.fillers++
	key := fmt.Sprintf("%s/%d/%d", u.admin, mibs, u.fillers)
	if im, ok := fillers.Load(key); ok {
		im := im.(image)
		return im, u.host + "/" + im.repo
	}
	seed := uint64(1000*mibs + u.fillers)
	im := buildImage(u.t, fmt.Sprintf("shop/filler-%d:1", seed), nil, randomLayer(u.t, seed, mibs*mib))
	ref := u.push(im)
	fillers.Store(key, im)
	return im, ref
}

// runnable makes an image with busybox and a layer of its own, and pushes it.
func (u *upstream) runnable(repo string, mibs int) (image, string) {
	u.t.Helper()
	im := buildImage(u.t, repo, nil, busyboxLayer(u.t), randomLayer(u.t, seeds.Add(1)<<32, mibs*mib))
	return im, u.push(im)
}

// scene is a registry, a containerd and an agent that know each other.
type scene struct {
	u *upstream
	c *ctrd
	a *agent
}

func newScene(t testing.TB, version string, args ...string) *scene {
	t.Helper()
	return newSceneAt(t, startUpstream(t), version, args...)
}

func newSceneAt(t testing.TB, u *upstream, version string, args ...string) *scene {
	t.Helper()
	s := &scene{u: u, c: startContainerd(t, version)}
	s.a = startAgent(t, s.u, append([]string{"--runtime", "containerd://" + s.c.sock}, args...)...)
	s.c.mirror(s.u.host, s.a.host)
	return s
}

// flood pulls images that nobody runs until the cache has been filled once more,
// and makes the runtime forget them. Each is cold before the next one comes: the
// agent believes that an image is gone when two readings agree, and takes nothing
// for idle that was used in the last second.
func (s *scene) flood(each func()) []image {
	var ims []image
	for range 6 {
		im, ref := s.u.filler(10)
		s.c.pull(ref)
		s.c.removeImage(ref)
		s.a.isCold(im)
		ims = append(ims, im)
		if each != nil {
			each()
		}
	}
	return ims
}

// isCold waits until nothing that the cache has of an image is more than cold.
func (a *agent) isCold(im image) {
	a.t.Helper()
	eventually(a.t, "the image is cold", func() (bool, string) {
		items := a.ls()
		for _, d := range im.all() {
			if i, ok := items[d]; ok && i.Tier != "cold" {
				return false, fmt.Sprintf("%s is %s", d, i.Tier)
			}
		}
		return true, ""
	})
}

// count is how many of the images have their last layer in the cache.
func (a *agent) count(ims []image) (n int) {
	a.t.Helper()
	for _, im := range ims {
		if len(a.missing(im.layers[len(im.layers)-1].Digest)) == 0 {
			n++
		}
	}
	return n
}

// TestN1_TheStory_50MB is the acceptance test: BusyBox runs from an image that
// was pulled through the agent, several more images are pulled, far past the
// quota. All of BusyBox stays, whatever state its container is in, what is warm
// stays as long as there is something cold, and the quota holds. When nobody
// uses it any more, and only then, it may go.
func TestN1_TheStory_50MB(t *testing.T) {
	use := map[string]func(s *scene, ref string) (end func()){
		"running": func(s *scene, ref string) func() {
			s.c.pull(ref)
			id := s.c.run(ref)
			return func() { s.c.remove("default", id) }
		},
		"paused": func(s *scene, ref string) func() {
			s.c.pull(ref)
			id := s.c.run(ref)
			s.c.ctr("default", "t", "pause", id)
			return func() {
				s.c.ctr("default", "t", "resume", id)
				s.c.remove("default", id)
			}
		},
		"created but not started": func(s *scene, ref string) func() {
			s.c.pull(ref)
			id := s.c.create(ref)
			return func() { s.c.remove("default", id) }
		},
		"restarted": func(s *scene, ref string) func() {
			s.c.pull(ref)
			id := s.c.run(ref)
			s.c.kill("default", id)
			s.c.ctr("default", "t", "rm", id)
			s.c.stop()
			s.c.start()
			s.c.ctr("default", "t", "start", "-d", id)
			s.a.restart()
			return func() { s.c.remove("default", id) }
		},
		"in another namespace": func(s *scene, ref string) func() {
			s.c.pullIn("elsewhere", ref)
			id := s.c.runIn("elsewhere", ref)
			return func() {
				s.c.remove("elsewhere", id)
				s.c.ctr("elsewhere", "i", "rm", "--sync", ref)
			}
		},
	}
	for _, version := range versions {
		for _, state := range []string{"running", "paused", "created but not started", "restarted", "in another namespace"} {
			t.Run("containerd"+version+"/"+state, func(t *testing.T) {
				s := newScene(t, version, "--quota", "50MiB")
				holds := s.a.watchQuota(storyQuota)
				busybox, ref := s.u.runnable("lib/busybox:1", 6)
				end := use[state](s, ref)
				s.a.arrives("BusyBox", busybox.all()...)
				warm, warmRef := s.u.filler(6)
				s.c.pull(warmRef)
				s.a.arrives("what is warm", warm.manifest.Digest, warm.layers[0].Digest)

				flood := s.flood(func() { s.a.keeps("BusyBox, "+state, busybox.all()...) })
				s.a.keeps("what is warm, while there is something cold", warm.manifest.Digest, warm.layers[0].Digest)
				if n := s.a.count(flood); n == 0 || n > 3 {
					t.Errorf("%d of the cold ones are left; there is room for three of six", n)
				}
				if n := s.u.asked("GET", "/blobs/"+busybox.layers[1].Digest.String()); n != 1 {
					t.Errorf("the layer of BusyBox was fetched %d times, want once", n)
				}

				// At any pressure: there is no room for anything else.
				s.a.limits("--quota", "1MiB")
				s.a.loses("what is warm", warm.layers[0].Digest)
				s.a.gc()
				s.a.keeps("BusyBox, "+state+", larger than the quota", busybox.all()...)

				end()
				_, _, _ = s.c.tryIn("default", "i", "rm", "--sync", ref)
				s.a.loses("BusyBox, which nobody uses", busybox.layers[1].Digest)
				holds()
			})
		}
	}
}

// TestN1_TwoContainersShareALayer: one stops, and what the other needs stays.
func TestN1_TwoContainersShareALayer(t *testing.T) {
	for _, version := range versions {
		t.Run("containerd"+version, func(t *testing.T) {
			s := newScene(t, version, "--quota", "50MiB")
			base := randomLayer(t, seeds.Add(1)<<32, 6*mib)
			one := buildImage(t, "lib/one:1", nil, busyboxLayer(t), base, randomLayer(t, seeds.Add(1)<<32, 4*mib))
			two := buildImage(t, "lib/two:1", nil, busyboxLayer(t), base, randomLayer(t, seeds.Add(1)<<32, 4*mib))
			oneRef, twoRef := s.u.push(one), s.u.push(two)
			s.c.pull(oneRef)
			s.c.pull(twoRef)
			idOne, idTwo := s.c.run(oneRef), s.c.run(twoRef)
			both := append(one.all(), two.all()...)
			s.a.arrives("both", both...)
			s.flood(func() { s.a.keeps("both run", both...) })
			s.a.limits("--quota", "1MiB")
			s.a.gc()
			s.a.keeps("both run, at any pressure", both...)

			s.c.remove("default", idOne)
			s.c.removeImage(oneRef)
			s.a.loses("what only the first had", one.layers[2].Digest)
			s.a.keeps("the second runs", two.all()...)

			s.c.remove("default", idTwo)
			s.c.removeImage(twoRef)
			s.a.loses("what nobody has", two.layers[1].Digest)
		})
	}
}

// TestN6_EveryBlobActive: what runs is larger than the quota. Pulls go on
// without being cached, nothing is deleted, and the owner is told.
func TestN6_EveryBlobActive(t *testing.T) {
	s := newScene(t, "2", "--quota", "20MiB")
	holds := s.a.watchQuota(20 << 20)
	var held [][]string
	for i := range 4 {
		im, ref := s.u.runnable(fmt.Sprintf("lib/app-%d:1", i), 6)
		s.c.pull(ref)
		s.c.run(ref)
		if i == 0 {
			s.a.arrives("the first", im.all()...)
		}
		held = append(held, s.a.missing(im.layers[1].Digest))
	}
	before := s.a.digests()
	im, ref := s.u.runnable("lib/one-more:1", 12)
	s.c.pull(ref)
	s.c.run(ref)
	after := s.a.ls()
	for _, d := range before {
		if _, ok := after[d]; !ok {
			t.Errorf("%s was deleted although a container uses it", d)
		}
	}
	if _, ok := after[im.layers[1].Digest]; ok {
		t.Error("a layer was taken in for which there is no room")
	}
	t.Log("not cached, by image:", held)
	s.a.hasEvent("full")
	holds()
}
