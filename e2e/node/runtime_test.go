package node

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fairway-registry/fairway/internal/crowd"
	"github.com/fairway-registry/fairway/internal/daemon"
)

// versions of containerd that are tested: the one of the system (1.6 on Debian
// 12), and 2.x from scripts/tools.sh.
var versions = []string{"1", "2"}

// ctrd is a containerd with a root, a state and a socket of its own. The state
// of runc is the one thing it shares with others, so names of containers are
// unique.
type ctrd struct {
	t      testing.TB
	dir    string
	sock   string
	bin    string // folder of containerd, ctr and the shim; "" is the PATH
	config string
	hosts  string      // certs.d: where to pull from
	host   *crowd.Host // the machine that it runs on; nil: this one
	log    *logBuffer
	proc   *daemon.Process
	names  []name // of containers that were made
}

type name struct{ namespace, id string }

// startContainerd starts a containerd of a major version. It and everything it
// started end with the test.
func startContainerd(t testing.TB, version string) *ctrd {
	t.Helper()
	return startContainerdOn(t, version, nil)
}

func startContainerdOn(t testing.TB, version string, host *crowd.Host) *ctrd {
	t.Helper()
	dir, err := os.MkdirTemp(scratch, "c"+version+"-")
	if err != nil {
		t.Fatal(err)
	}
	c := &ctrd{t: t, dir: dir, host: host, sock: filepath.Join(dir, "c.sock"), hosts: filepath.Join(dir, "certs.d"), log: newLog(t, "containerd "+version)}
	text := configV1
	if version == "2" {
		text = configV2
		if c.bin, err = filepath.Abs("../../.tools/containerd2"); err != nil {
			t.Fatal(err)
		}
	}
	need(t, c.program("containerd"))
	need(t, "runc")
	c.config = filepath.Join(dir, "config.toml")
	writeFile(t, c.config, []byte(strings.ReplaceAll(text, "DIR", dir)))
	for _, d := range []string{c.hosts, filepath.Join(dir, "cni")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		c.t = t // a suite may have lent it to a test that has ended
		c.end()
	})
	c.start()
	return c
}

// configV1 and configV2: restrict_oom_score_adj because a test may run where
// nobody may lower that score; cgroups and networks are as they are found.
const configV1 = `version = 2
root = "DIR/root"
state = "DIR/state"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper"]
[grpc]
  address = "DIR/c.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  stream_server_address = "127.0.0.1"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    conf_dir = "DIR/cni"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "DIR/certs.d"
`

const configV2 = `version = 3
root = "DIR/root"
state = "DIR/state"
[grpc]
  address = "DIR/c.sock"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "localhost/pause:1"
[plugins.'io.containerd.cri.v1.images'.registry]
  config_path = "DIR/certs.d"
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
  conf_dir = "DIR/cni"
[plugins.'io.containerd.grpc.v1.cri']
  stream_server_address = "127.0.0.1"
`

func (c *ctrd) program(name string) string {
	if c.bin == "" {
		return name
	}
	return filepath.Join(c.bin, name)
}

func (c *ctrd) start() {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 30*time.Second)
	defer cancel()
	var env []string
	if c.bin != "" {
		env = []string{"PATH=" + c.bin + ":" + os.Getenv("PATH")} // for its shim
	}
	path, args := c.inside(need(c.t, c.program("containerd")), "--config", c.config)
	p, err := daemon.Start(ctx, daemon.Options{Path: path, Args: args, Env: env, Log: c.log, Ready: c.sock})
	if err != nil {
		c.t.Fatalf("%v\n%s", err, c.log)
	}
	c.proc = p
}

// stop ends containerd as an upgrade does: its containers run on.
func (c *ctrd) stop() {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := c.proc.Stop(ctx); err != nil && ctx.Err() != nil {
		c.t.Errorf("containerd: %v", err)
	}
	c.proc = nil
}

// end stops the containers, containerd, and what of its shims is left.
func (c *ctrd) end() {
	if c.proc != nil {
		for _, n := range c.names {
			_, _, _ = c.tryIn(n.namespace, "t", "rm", "-f", n.id) // most are gone already
		}
		c.stop()
	}
	c.endShims()
	removeTree(c.t, c.dir)
}

// removeTree removes a runtime's directory, in which what it started may clean
// up for a moment longer.
func removeTree(t testing.TB, dir string) {
	t.Helper()
	eventually(t, "clean up", func() (bool, string) {
		unmountBelow(t, dir)
		err := os.RemoveAll(dir)
		return err == nil, fmt.Sprint(err)
	})
}

// endShims kills the shims that name this containerd's socket, and the
// containers below them.
func (c *ctrd) endShims() {
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		c.t.Error(err)
	}
	for _, path := range lines {
		b, err := os.ReadFile(path)
		if err != nil || !strings.Contains(string(b), "\x00"+c.sock+"\x00") {
			continue // ended meanwhile, or not ours
		}
		pid := filepath.Base(filepath.Dir(path))
		children, _ := os.ReadFile(filepath.Join("/proc", pid, "task", pid, "children")) // none if it has ended
		for _, p := range append(strings.Fields(string(children)), pid) {
			if n, err := strconv.Atoi(p); err == nil {
				_ = syscall.Kill(n, syscall.SIGKILL) // an error says that it has ended
			}
		}
	}
}

func unmountBelow(t testing.TB, dir string) {
	b, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Error(err)
	}
	lines := strings.Split(string(b), "\n")
	slices.Reverse(lines) // what was mounted last comes off first
	for _, line := range lines {
		if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[1], dir+"/") {
			_ = syscall.Unmount(f[1], syscall.MNT_DETACH) // removing the tree tells whether it helped
		}
	}
}

func (c *ctrd) tryIn(namespace string, args ...string) (stdout, stderr string, err error) {
	c.t.Helper()
	// Its own context: the clean-up of a test runs when the test's has ended.
	path, args := c.inside(c.program("ctr"), append([]string{"--address", c.sock, "-n", namespace}, args...)...)
	return tryCtx(context.Background(), c.t, path, args...)
}

// inside is a command as it is run on containerd's machine.
func (c *ctrd) inside(path string, args ...string) (string, []string) {
	if c.host == nil {
		return path, args
	}
	return c.host.Command(path, args...)
}

// ctr runs ctr in a namespace.
func (c *ctrd) ctr(namespace string, args ...string) string {
	c.t.Helper()
	out, errs, err := c.tryIn(namespace, args...)
	if err != nil {
		c.t.Fatalf("ctr -n %s %s: %v\n%s%s", namespace, strings.Join(args, " "), err, out, errs)
	}
	return out
}

// mirror writes the hosts.toml that an operator would for a registry on plain
// HTTP: the mirror first, then the registry itself.
func (c *ctrd) mirror(registry, mirror string) {
	c.t.Helper()
	writeFile(c.t, filepath.Join(c.hosts, registry, "hosts.toml"), fmt.Appendf(nil, `server = "http://%s"
[host."http://%s"]
  capabilities = ["pull", "resolve"]
`, registry, mirror))
}

func (c *ctrd) pullIn(namespace, ref string) {
	c.t.Helper()
	c.ctr(namespace, "i", "pull", "--hosts-dir", c.hosts, ref)
}

func (c *ctrd) pull(ref string) { c.t.Helper(); c.pullIn("default", ref) }

// removeImage makes the runtime forget an image, layers and all.
func (c *ctrd) removeImage(ref string) {
	c.t.Helper()
	c.ctr("default", "i", "rm", "--sync", ref)
}

// newContainer names a container that is to be made.
func (c *ctrd) newContainer(namespace, what string) string {
	id := fmt.Sprintf("%s-%s-%d", what, filepath.Base(c.dir), len(c.names))
	c.names = append(c.names, name{namespace, id})
	return id
}

// runIn starts a container that sleeps.
func (c *ctrd) runIn(namespace, ref string) (id string) {
	c.t.Helper()
	id = c.newContainer(namespace, "run")
	c.ctr(namespace, "run", "-d", ref, id, "/bin/sleep", "100000")
	return id
}

func (c *ctrd) run(ref string) string { c.t.Helper(); return c.runIn("default", ref) }

// create makes a container without a task.
func (c *ctrd) create(ref string) (id string) {
	c.t.Helper()
	id = c.newContainer("default", "made")
	c.ctr("default", "c", "create", ref, id, "/bin/sleep", "100000")
	return id
}

// kill ends the task of a container; the container stays, exited.
func (c *ctrd) kill(namespace, id string) {
	c.t.Helper()
	c.ctr(namespace, "t", "kill", "-s", "KILL", id)
	eventually(c.t, id+" has stopped", func() (bool, string) {
		out := c.ctr(namespace, "t", "ls")
		for line := range strings.Lines(out) {
			if f := strings.Fields(line); len(f) == 3 && f[0] == id {
				return f[2] == "STOPPED", out
			}
		}
		return true, ""
	})
}

// remove ends a container and removes it.
func (c *ctrd) remove(namespace, id string) {
	c.t.Helper()
	_, _, _ = c.tryIn(namespace, "t", "rm", "-f", id) // there may be no task
	c.ctr(namespace, "c", "rm", id)
}
