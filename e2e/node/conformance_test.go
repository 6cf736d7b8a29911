package node

import (
	"context"
	"log/slog"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/fairway-registry/fairway/internal/agent/inuse"
	"github.com/fairway-registry/fairway/internal/agent/inuse/endpoint"
	"github.com/fairway-registry/fairway/internal/agent/inuse/inusetest"
)

// TestInUse_Conformance runs the suite of inuse.Source against the real things.
func TestInUse_Conformance(t *testing.T) {
	for _, version := range versions {
		t.Run("containerd"+version, func(t *testing.T) {
			u, c := startUpstream(t), startContainerd(t, version)
			c.mirror(u.host, u.host)
			one, two := contents(t, u)
			// runc keeps the names of containers by namespace, whichever containerd asks.
			r := containerdRuntime(c, "one-"+filepath.Base(c.dir), one, two)
			r.Elsewhere = containerdRuntime(c, "other-"+filepath.Base(c.dir), one, two)
			inusetest.Run(t, *r)
		})
		t.Run("CRI of containerd"+version, func(t *testing.T) {
			u, c := startUpstream(t), startContainerd(t, version)
			c.mirror(u.host, u.host)
			one, two := contents(t, u)
			r := criRuntime(startKubelet(t, c, u), one, two)
			r.NoEvents = version == "1" // which 1.7 brought
			inusetest.Run(t, *r)
		})
	}
	t.Run("podman", func(t *testing.T) {
		u := startUpstream(t)
		one, two := contents(t, u)
		p := startPodman(t, "[[registry]]\nlocation = \""+u.host+"\"\ninsecure = true\n")
		inusetest.Run(t, *podmanRuntime(p, one, two))
	})
}

// contents makes two images that share their first layer.
func contents(t testing.TB, u *upstream) (one, two inusetest.Content) {
	content := func(repo string, layers ...layer) inusetest.Content {
		im := buildImage(t, repo, nil, layers...)
		c := inusetest.Content{
			Name: u.push(im), Index: im.index.Digest, Manifest: im.manifest.Digest, Config: im.config.Digest,
		}
		var diffIDs []digest.Digest
		for _, l := range layers {
			c.Layers, diffIDs = append(c.Layers, l.desc.Digest), append(diffIDs, l.diffID)
		}
		c.ChainID = identity.ChainID(diffIDs)
		return c
	}
	base := busyboxLayer(t)
	return content("lib/one:1", base, randomLayer(t, 1, mib)), content("lib/two:1", base, randomLayer(t, 2, mib))
}

func opener(endpointURL string) func(t testing.TB) inuse.Source {
	return func(t testing.TB) inuse.Source {
		t.Helper()
		s, err := endpoint.Open(t.Context(), endpointURL, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		return s
	}
}

func containerdRuntime(c *ctrd, namespace string, one, two inusetest.Content) *inusetest.Runtime {
	// Each act reports to the test that asks for it.
	ctr := func(t testing.TB, args ...string) {
		t.Helper()
		c.t = t
		c.ctr(namespace, args...)
	}
	return &inusetest.Runtime{
		Open: opener("containerd://" + c.sock), One: one, Two: two, ListsBlobs: true,
		Pull:        func(t testing.TB, name string) { ctr(t, "i", "pull", "--hosts-dir", c.hosts, name) },
		RemoveImage: func(t testing.TB, name string) { ctr(t, "i", "rm", "--sync", name) },
		Move:        func(t testing.TB, from, to inusetest.Content) { ctr(t, "i", "tag", "--force", to.Name, from.Name) },
		Create: func(t testing.TB, container, image string) {
			c.names = append(c.names, name{namespace, container})
			ctr(t, "c", "create", image, container, "/bin/sleep", "100000")
		},
		LoseSnapshot: func(t testing.TB, container string) { ctr(t, "snapshots", "rm", container) },

		Start:  func(t testing.TB, container string) { ctr(t, "t", "start", "-d", container) },
		Pause:  func(t testing.TB, container string) { ctr(t, "t", "pause", container) },
		Resume: func(t testing.TB, container string) { ctr(t, "t", "resume", container) },
		Stop: func(t testing.TB, container string) {
			c.t = t
			c.kill(namespace, container)
		},
		Remove: func(t testing.TB, container string) {
			c.t = t
			c.remove(namespace, container)
		},
		Kill:    func(testing.TB) { c.proc.Kill() },
		Restart: func(t testing.TB) { c.t = t; c.start() },
	}
}

// criRuntime lets a kubelet act. A container is known by its name in a pod of
// its own.
func criRuntime(k *kubelet, one, two inusetest.Content) *inusetest.Runtime {
	pods := map[string]pod{}
	do := func(t testing.TB, act func(ctx context.Context) error) {
		t.Helper()
		ctx, cancel := k.ctx()
		defer cancel()
		if err := act(ctx); err != nil {
			t.Fatalf("CRI: %v", err)
		}
	}
	ctr := func(t testing.TB, args ...string) { k.c.t = t; k.c.ctr("k8s.io", args...) }
	return &inusetest.Runtime{
		Open: opener("cri://" + k.c.sock), One: one, Two: two, NoPaused: true,
		Pull: func(t testing.TB, name string) { k.c.t = t; k.pull(name) },
		RemoveImage: func(t testing.TB, name string) {
			do(t, func(ctx context.Context) error {
				_, err := k.images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: name}})
				return err
			})
		},
		Move:   func(t testing.TB, from, to inusetest.Content) { ctr(t, "i", "tag", "--force", to.Name, from.Name) },
		Create: func(t testing.TB, container, image string) { k.c.t = t; pods[container] = k.create(container, image) },
		Start:  func(t testing.TB, container string) { k.c.t = t; k.startContainer(pods[container]) },
		Pause:  func(t testing.TB, container string) { ctr(t, "t", "pause", pods[container].container) },
		Resume: func(t testing.TB, container string) { ctr(t, "t", "resume", pods[container].container) },
		Stop: func(t testing.TB, container string) {
			do(t, func(ctx context.Context) error {
				_, err := k.runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: pods[container].container})
				return err
			})
		},
		Remove:  func(t testing.TB, container string) { k.c.t = t; k.end(pods[container]) },
		Kill:    func(testing.TB) { k.c.proc.Kill() },
		Restart: func(t testing.TB) { k.c.t = t; k.c.start() },
		Sandbox: func(t testing.TB) func() {
			k.c.t = t
			p, _ := k.sandbox("empty")
			return func() { k.end(p) }
		},
	}
}

func podmanRuntime(p *podman, one, two inusetest.Content) *inusetest.Runtime {
	do := func(t testing.TB, args ...string) {
		t.Helper()
		p.t = t
		p.run(args...)
	}
	return &inusetest.Runtime{
		Open: opener("docker://" + p.sock), One: one, Two: two,
		Pull: func(t testing.TB, name string) { do(t, "pull", "-q", name) },
		// Podman does not remove what a container uses, but it can lose its name.
		RemoveImage: func(t testing.TB, name string) { do(t, "untag", name) },
		Move:        func(t testing.TB, from, to inusetest.Content) { do(t, "tag", to.Name, from.Name) },
		Create: func(t testing.TB, container, image string) {
			do(t, "create", "--name", container, image, "/bin/sleep", "100000")
		},
		Start:   func(t testing.TB, container string) { do(t, "start", container) },
		Pause:   func(t testing.TB, container string) { do(t, "pause", container) },
		Resume:  func(t testing.TB, container string) { do(t, "unpause", container) },
		Stop:    func(t testing.TB, container string) { do(t, "kill", container); do(t, "wait", container) },
		Remove:  func(t testing.TB, container string) { do(t, "rm", "-f", "-t", "0", container) },
		Kill:    func(testing.TB) { p.proc.Kill() },
		Restart: func(t testing.TB) { p.t = t; p.start() },
	}
}
