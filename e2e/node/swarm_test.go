package node

import (
	"io"
	"net/url"
	"os"
	"sync"
	"testing"

	"github.com/fairway-registry/fairway/internal/crowd"
)

// Two machines on a switch, each with a containerd and an agent, pull one image at
// the same time. Each byte of its layers leaves the registry once, and both run
// the container.
func TestN9_TwoContainerdsShareOneImage(t *testing.T) {
	net, err := crowd.NewNet(3, 10_000_000)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := net.Close(); err != nil {
			t.Error(err)
		}
	})
	dir, err := os.MkdirTemp(scratch, "s-")
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Host(0).Listen(t.Context(), net.Host(0).IP+":5000")
	if err != nil {
		t.Fatal(err)
	}
	origin, err := crowd.StartOrigin(t.Context(), crowd.OriginOptions{Fairway: fairway, Dir: dir, Listen: ln, Log: newLog(t, "the registry")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(origin.Close)
	im := buildImage(t, "crowd/app:1", []string{"/bin/sh"}, busyboxLayer(t), randomLayer(t, 41, 12*mib), randomLayer(t, 42, 4*mib))
	direct, err := url.Parse(origin.Admin)
	if err != nil {
		t.Fatal(err)
	}
	run(t, "crane", "push", "--insecure", "--index", im.dir, direct.Host+"/"+im.repo)

	nodes, err := crowd.NewCrowd(crowd.Options{
		Fairway: fairway, Dir: dir, Origin: origin, Net: net, Log: func(name string) io.Writer { return newLog(t, name) },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nodes.Close)
	var runtimes []*ctrd
	for i, version := range versions {
		n, err := nodes.Start(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		c := startContainerdOn(t, version, net.Host(i+1))
		c.mirror(origin.Host, n.Mirror)
		runtimes = append(runtimes, c)
	}
	if err := nodes.Gather(t.Context(), len(versions)); err != nil {
		t.Fatal(err)
	}

	ref := origin.Host + "/" + im.repo
	var pulls sync.WaitGroup
	for _, c := range runtimes {
		pulls.Go(func() {
			if _, errs, err := c.tryIn("default", "i", "pull", "--hosts-dir", c.hosts, ref); err != nil {
				t.Errorf("pull: %v: %s", err, errs)
			}
		})
	}
	pulls.Wait()
	if t.Failed() {
		t.FailNow()
	}
	for _, l := range im.layers {
		// A piece may be fetched twice where two nodes hurry for the last ones.
		if sent := origin.Sent(l.Digest.String()); sent < l.Size || sent > l.Size+l.Size/50 {
			t.Errorf("%d bytes of a layer of %d have left the registry", sent, l.Size)
		}
	}
	for i, c := range runtimes {
		id := c.run(ref)
		if out := c.ctr("default", "t", "exec", "--exec-id", "look", id, "/bin/busybox", "sha256sum", "/noise-41"); out == "" {
			t.Errorf("containerd %s: the container does not have its file", versions[i])
		}
		peers, err := nodes.All()[i].Metric(t.Context(), "fairway_node_swarm_received_bytes_total", `source="peer"`)
		if err != nil || peers == 0 {
			t.Errorf("%s got nothing from the other: %v", nodes.All()[i].Name, err)
		}
	}
}
