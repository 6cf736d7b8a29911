package node

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fairway-registry/fairway/internal/daemon"
)

// podman is Podman's service with the API of Docker, on a storage of its own.
type podman struct {
	t    testing.TB
	dir  string
	sock string
	env  []string
	log  *logBuffer
	proc *daemon.Process
}

// startPodman starts the service. Registries are pulled from as registries says,
// the text of a registries.conf.
func startPodman(t testing.TB, registries string) *podman {
	t.Helper()
	return startPodmanIn(t, podmanDir(t), registries)
}

func podmanDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp(scratch, "p-")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func podmanSocket(dir string) string { return filepath.Join(dir, "p.sock") }

func startPodmanIn(t testing.TB, dir, registries string) *podman {
	t.Helper()
	p := &podman{t: t, dir: dir, sock: podmanSocket(dir)}
	for name, text := range map[string]string{
		"containers.conf": "[containers]\ndefault_ulimits = [\"nofile=20000:20000\", \"nproc=20000:20000\"]\nnetns = \"host\"\n" +
			"[engine]\nruntime = \"runc\"\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\ntmp_dir = \"" + dir + "/tmp\"\n",
		"storage.conf":    "[storage]\ndriver = \"vfs\"\nrunroot = \"" + dir + "/run\"\ngraphroot = \"" + dir + "/root\"\n",
		"registries.conf": registries,
		"policy.json":     `{"default":[{"type":"insecureAcceptAnything"}]}`,
	} {
		writeFile(t, filepath.Join(dir, name), []byte(text))
	}
	p.env = []string{
		"CONTAINERS_CONF=" + dir + "/containers.conf", "CONTAINERS_STORAGE_CONF=" + dir + "/storage.conf",
		"CONTAINERS_REGISTRIES_CONF=" + dir + "/registries.conf", "HOME=" + dir, "XDG_RUNTIME_DIR=" + dir,
	}
	t.Cleanup(func() {
		p.t = t // a suite may have lent it to a test that has ended
		p.end()
	})
	p.log = newLog(t, "podman")
	p.start()
	return p
}

func (p *podman) start() {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), 30*time.Second)
	defer cancel()
	var err error
	p.proc, err = daemon.Start(ctx, daemon.Options{
		Path: need(p.t, "podman"), Args: []string{"system", "service", "-t", "0", "unix://" + p.sock}, Env: p.env, Log: p.log, Ready: p.sock,
	})
	if err != nil {
		p.t.Fatalf("%v\n%s", err, p.log)
	}
}

func (p *podman) try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "podman", args...)
	cmd.Env = append(os.Environ(), p.env...)
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("podman %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out)), nil
}

func (p *podman) run(args ...string) string {
	p.t.Helper()
	out, err := p.try(args...)
	if err != nil {
		p.t.Fatal(err)
	}
	return out
}

func (p *podman) end() {
	if p.proc != nil {
		if _, err := p.try("rm", "-af", "-t", "0"); err != nil {
			p.t.Error(err)
		}
		p.proc.Kill()
	}
	removeTree(p.t, p.dir)
}
