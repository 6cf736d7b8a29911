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
	t    *testing.T
	dir  string
	sock string
	env  []string
	proc *daemon.Process
}

// startPodman starts the service. Registries are pulled from as registries says,
// the text of a registries.conf.
func startPodman(t *testing.T, registries string) *podman {
	t.Helper()
	dir, err := os.MkdirTemp(scratch, "p-")
	if err != nil {
		t.Fatal(err)
	}
	p := &podman{t: t, dir: dir, sock: filepath.Join(dir, "p.sock")}
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
	t.Cleanup(p.end)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	log := newLog(t, "podman")
	p.proc, err = daemon.Start(ctx, daemon.Options{
		Path: need(t, "podman"), Args: []string{"system", "service", "-t", "0", "unix://" + p.sock}, Env: p.env, Log: log, Ready: p.sock,
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, log)
	}
	return p
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
