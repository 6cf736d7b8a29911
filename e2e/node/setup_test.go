package node

import (
	"os"
	"path/filepath"
	"testing"
)

// TestN8_SetUpRuntimesPullThroughTheAgentAndWithoutIt has "fairway node setup"
// write what the runtimes read.
func TestN8_SetUpRuntimesPullThroughTheAgentAndWithoutIt(t *testing.T) {
	setUp := func(t *testing.T, runtime string, a *agent) (root string) {
		root = t.TempDir()
		args := []string{"node", "setup", runtime, "--root", root, "--yes", "--listen", a.host, "--upstreams", a.u.host + "=" + a.u.url}
		run(t, fairway, args...)
		return root
	}
	// pulls pulls twice: through the agent, then with the agent down.
	pulls := func(t *testing.T, a *agent, pull func(ref string)) {
		im, ref := a.u.filler(1)
		pull(ref)
		a.keeps("it was pulled", im.layers[0].Digest)
		a.stop()
		_, ref = a.u.filler(1)
		pull(ref)
	}
	for _, version := range versions {
		t.Run("containerd"+version, func(t *testing.T) {
			u, c := startUpstream(t), startContainerd(t, version)
			a := startAgent(t, u, "--runtime", "none")
			c.hosts = filepath.Join(setUp(t, "containerd", a), "etc/containerd/certs.d")
			pulls(t, a, c.pull)
		})
	}
	t.Run("podman", func(t *testing.T) {
		u := startUpstream(t)
		a := startAgent(t, u, "--runtime", "none")
		conf, err := os.ReadFile(filepath.Join(setUp(t, "podman", a), "etc/containers/registries.conf.d/50-fairway.conf"))
		if err != nil {
			t.Fatal(err)
		}
		p := startPodman(t, string(conf))
		pulls(t, a, func(ref string) { p.run("pull", "-q", ref) })
	})
}
