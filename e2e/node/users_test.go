package node

import (
	"fmt"
	"strings"
	"testing"
)

// TestN1_CRI: a pod runs, and CRI calls its image by the digest of the config:
// the agent has to find the manifest and the layers, and again after a restart.
func TestN1_CRI(t *testing.T) {
	for _, version := range versions {
		t.Run("containerd"+version, func(t *testing.T) {
			u, c := startUpstream(t), startContainerd(t, version)
			a := startAgent(t, u, "--runtime", "cri://"+c.sock, "--quota", "50MiB")
			holds := a.watchQuota(50 << 20)
			c.mirror(u.host, a.host)
			k := startKubelet(t, c, u)
			im, ref := u.runnable("lib/pod:1", 6)
			k.pull(ref)
			p := k.run(ref)
			a.arrives("the pod's image", im.all()...)
			s := &scene{u, c, a}
			s.flood(func() { a.keeps("the pod runs", im.all()...) })
			a.restart()
			s.flood(func() { a.keeps("the pod runs, and the agent is new", im.all()...) })
			k.end(p)
			c.ctr("k8s.io", "i", "rm", "--sync", ref, im.config.Digest.String(), u.host+"/lib/pod@"+im.index.Digest.String())
			a.limits("--quota", "1MiB")
			a.loses("the pod is gone", im.layers[1].Digest)
			holds()
		})
	}
}

// TestN1_Podman: the same through registries.conf and the API of Docker.
func TestN1_Podman(t *testing.T) {
	u := startUpstream(t)
	// Podman's configuration needs the agent's address, the agent Podman's socket,
	// which need not be there yet.
	dir := podmanDir(t)
	a := startAgent(t, u, "--runtime", "docker://"+podmanSocket(dir), "--quota", "50MiB")
	p := startPodmanIn(t, dir, fmt.Sprintf("[[registry]]\nlocation = %q\ninsecure = true\n[[registry.mirror]]\nlocation = %q\ninsecure = true\n", u.host, a.host))
	holds := a.watchQuota(50 << 20)
	im, ref := u.runnable("lib/app:1", 6)
	p.run("pull", "-q", ref)
	id := p.run("run", "-d", ref, "/bin/sleep", "100000")
	flood := func() {
		for range 6 {
			_, ref := u.filler(10)
			p.run("pull", "-q", ref)
			p.run("rmi", ref)
		}
	}
	flood()
	a.keeps("it runs", im.manifest.Digest, im.config.Digest, im.layers[0].Digest, im.layers[1].Digest)
	p.run("rm", "-f", "-t", "0", id)
	p.run("rmi", ref)
	a.limits("--quota", "1MiB")
	a.loses("nobody uses it", im.layers[1].Digest)
	holds()
}

// TestRegistry_KeepsWhatRunsOnANode: the image is deleted and collected with
// neither window nor trash while a container runs, and its bytes stay. The
// container stops, and they go.
func TestRegistry_KeepsWhatRunsOnANode(t *testing.T) {
	s := newSceneAt(t, startOwnUpstream(t), "2", "--quota", "100MiB")
	im, ref := s.u.runnable("lib/app:1", 3)
	gone, goneRef := s.u.filler(3)
	s.c.pull(ref)
	id := s.c.run(ref)
	eventually(t, "the registry hears of it", func() (bool, string) {
		out, errs, err := try(t, fairway, "explain", "lib/app:1", "--server", s.u.admin)
		return strings.Contains(out, "node-1"), fmt.Sprint(out, errs, err)
	})
	if out := run(t, fairway, "nodes", "--server", s.u.admin); !strings.Contains(out, "node-1") {
		t.Errorf("fairway nodes: %s", out)
	}
	run(t, "crane", "delete", "--insecure", s.u.host+"/lib/app@"+im.index.Digest.String())
	run(t, "crane", "delete", "--insecure", goneRef[:strings.LastIndex(goneRef, ":")]+"@"+gone.index.Digest.String())
	s.u.collect()
	for _, d := range im.layers {
		if !s.u.stores(d) {
			t.Errorf("the registry removed %s, which runs on a node", d.Digest)
		}
	}
	if s.u.stores(gone.layers[0]) {
		t.Error("what nobody runs is still there: the collection did nothing")
	}

	s.c.remove("default", id)
	s.c.removeImage(ref)
	eventually(t, "the bytes go once it has stopped", func() (bool, string) {
		s.u.collect()
		return !s.u.stores(im.layers[1]), run(t, fairway, "explain", im.layers[1].Digest.String(), "--server", s.u.admin)
	})
}
