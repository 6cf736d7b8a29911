package node

import (
	"fmt"
	"strings"
	"testing"
)

// TestParts_Run starts each runtime and a container in it, without a node: what
// fails here is not the node's fault.
func TestParts_Run(t *testing.T) {
	for _, version := range versions {
		t.Run("containerd"+version, func(t *testing.T) {
			u, c := startUpstream(t), startContainerd(t, version)
			im := buildImage(t, "lib/busybox:1", nil, busyboxLayer(t), randomLayer(t, 1, mib))
			ref := u.push(im)
			c.mirror(u.host, u.host)
			c.pull(ref)
			id := c.run(ref)
			if out := c.ctr("default", "t", "ls"); !strings.Contains(out, id) || !strings.Contains(out, "RUNNING") {
				t.Errorf("it does not run:\n%s", out)
			}
			c.kill("default", id)
			c.remove("default", id)
			c.create(ref)

			k := startKubelet(t, c, u)
			if got := k.pull(ref); got != im.config.Digest.String() {
				t.Errorf("CRI calls the image %s, its config is %s", got, im.config.Digest)
			}
			k.run(ref)
		})
	}
	t.Run("podman", func(t *testing.T) {
		u := startUpstream(t)
		ref := u.push(buildImage(t, "lib/busybox:1", nil, busyboxLayer(t), randomLayer(t, 1, mib)))
		p := startPodman(t, fmt.Sprintf("[[registry]]\nlocation = %q\ninsecure = true\n", u.host))
		p.run("pull", "-q", ref)
		p.run("run", "-d", ref, "/bin/sleep", "100000")
		if out := p.run("ps", "-q"); out == "" {
			t.Error("it does not run")
		}
	})
}
