package node

import (
	"os"
	"path/filepath"
	"testing"
)

// startDetecting starts an agent that looks for runtimes below run, which is
// /run for it alone.
func startDetecting(t testing.TB, u *upstream, run string, args ...string) *agent {
	t.Helper()
	need(t, "unshare")
	dir, err := os.MkdirTemp(scratch, "n-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeTree(t, dir) })
	a := newAgent(t, u, dir, args...)
	a.args = append([]string{"--mount", "--propagation", "slave", "sh", "-c", `mount --bind "$0" /run && exec "$@"`, run, fairway}, a.args...)
	a.path = "unshare"
	a.start()
	return a
}

// TestN13_ARuntimeThatStartsLaterIsWatched: Podman's socket is there when the
// agent starts, and containerd comes later. What its container uses stays, while
// containerd is away again too.
func TestN13_ARuntimeThatStartsLaterIsWatched(t *testing.T) {
	run, err := os.MkdirTemp(scratch, "r-")
	if err != nil {
		t.Fatal(err)
	}
	u := startUpstream(t)
	p := startPodman(t, "")
	link := func(socket, at string) {
		at = filepath.Join(run, at)
		if err := os.MkdirAll(filepath.Dir(at), 0o750); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(socket, at); err != nil {
			t.Fatal(err)
		}
	}
	link(p.sock, "podman/podman.sock")
	a := startDetecting(t, u, run, "--quota", "50MiB")
	a.settled()

	c := startContainerd(t, "2")
	link(c.sock, "containerd/containerd.sock")
	c.mirror(u.host, a.host)
	im, ref := u.runnable("lib/late-runtime:1", 10)
	c.pull(ref)
	id := c.run(ref)
	s := &scene{u: u, c: c, a: a}
	s.flood(nil)
	a.settled()
	a.keeps("a container of a runtime that started later", im.all()...)

	c.stop()
	if err := os.Remove(filepath.Join(run, "containerd/containerd.sock")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "containerd is unknown", func() (bool, string) {
		for _, r := range a.status().Runtimes {
			if r.Name == "containerd" {
				return !r.Answers, ""
			}
		}
		return false, "it is not there"
	})
	a.limits("--quota", "1MiB")
	a.gc()
	a.keeps("its runtime has disappeared", im.all()...)
	a.restart()
	a.limits("--quota", "1MiB")
	a.gc()
	a.keeps("its runtime has disappeared, and the agent was restarted", im.all()...)

	c.start()
	link(c.sock, "containerd/containerd.sock")
	a.settled()
	a.gc()
	a.keeps("its runtime is back", im.all()...)
	c.remove("default", id)
	c.removeImage(ref)
	a.loses("without the container", im.layers[1].Digest)
}

// TestN13_AGuessOnlyProtects: the runtime has lost its record of a container's
// root file system, and the tag leads to another image now.
func TestN13_AGuessOnlyProtects(t *testing.T) {
	for _, version := range versions {
		t.Run("containerd"+version, func(t *testing.T) {
			s := newScene(t, version, "--quota", "50MiB")
			im, ref := s.u.runnable("lib/moved:1", 10)
			_, other := s.u.runnable("lib/moved-to:1", 1)
			s.c.pull(ref)
			id := s.c.create(ref)
			s.c.pull(other)
			s.c.ctr("default", "snapshots", "rm", id)
			s.c.ctr("default", "i", "tag", "--force", other, ref)
			s.a.restart() // or what it knew of the container before would help it
			s.a.settled()
			s.a.limits("--quota", "1MiB")
			s.a.gc()
			s.a.keeps("a container of nobody knows what", im.all()...)
			s.c.remove("default", id)
			s.a.loses("without the container", im.layers[1].Digest)
		})
	}
}

// TestN13_AContainerWithoutAnImageKeepsEverything: containerd names neither image nor snapshot
// of what somebody mounted, as BuildKit does for each step of a build. While it runs
// nothing is evicted. A record without a root and without a task is of no image for certain.
func TestN13_AContainerWithoutAnImageKeepsEverything(t *testing.T) {
	for _, version := range versions {
		t.Run("containerd"+version, func(t *testing.T) {
			s := newScene(t, version, "--quota", "50MiB")
			im, ref := s.u.runnable("lib/mounted:1", 10)
			s.c.pull(ref)
			root := filepath.Join(t.TempDir(), "root")
			if err := os.Mkdir(root, 0o755); err != nil {
				t.Fatal(err)
			}
			s.c.ctr("default", "i", "mount", "--rw", ref, root)
			t.Cleanup(func() { unmountBelow(t, filepath.Dir(root)) })
			id := s.c.newContainer("builder", "step")
			s.c.ctr("builder", "run", "-d", "--rootfs", root, id, "/bin/sleep", "100000")

			spec := filepath.Join(t.TempDir(), "spec.json")
			if err := os.WriteFile(spec, []byte(`{"ociVersion":"1.0.2","process":{"args":["/bin/sleep"],"cwd":"/"},"root":{"path":"rootfs"}}`), 0o600); err != nil {
				t.Fatal(err)
			}
			left := s.c.newContainer("builder", "left")
			s.c.ctr("builder", "c", "create", "--config", spec, left)
			s.c.removeImage(ref)
			s.a.settled()
			s.a.limits("--quota", "1MiB")
			s.a.gc()
			s.a.keeps("a container of nobody knows what", im.all()...)
			s.c.remove("builder", id)
			s.c.ctr("default", "i", "unmount", "--rm", root)
			s.a.loses("beside a record without a root", im.layers[1].Digest)
			s.c.remove("builder", left)
		})
	}
}
