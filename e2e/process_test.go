package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fairway-registry/fairway/internal/daemon"
)

func TestServe_SecondServerOnOneDataDirectoryIsRefused(t *testing.T) {
	s := serve(t)
	addr, err := daemon.FreeAddr()
	if err != nil {
		t.Fatal(err)
	}
	_, errs, err := try(t, fairway, "serve", "--data", s.data, "--listen", addr)
	if err == nil {
		t.Fatal("it ended with status 0")
	}
	if !strings.Contains(errs, s.data) || !strings.Contains(errs, "another") {
		t.Errorf("it does not say why: %q", errs)
	}
	if got := s.status("GET", "/readyz"); got != 200 {
		t.Errorf("the first server answers %d afterwards", got)
	}
}

func TestServe_AddressOnTheNetworkIsRefused(t *testing.T) {
	_, errs, err := try(t, fairway, "serve", "--data", t.TempDir(), "--listen", "0.0.0.0:0")
	if err == nil || !strings.Contains(errs, "authentication") {
		t.Errorf("got %v, %q", err, errs)
	}
}

// TestServe_StartsIn50msOfCPU takes the median of several starts on a data
// directory that holds an image. It counts the processor's time and not the
// clock's, which depends on what else the machine does; bench measures that one.
func TestServe_StartsIn50msOfCPU(t *testing.T) {
	im, s := theImages(t), serve(t)
	run(t, "crane", "push", im.busybox, s.host+"/shop/busybox:1")
	var took []time.Duration
	for range 9 {
		s.stop()
		s.start()
		u, err := s.proc.Usage()
		if err != nil {
			t.Fatal(err)
		}
		took = append(took, u.CPU)
	}
	slices.Sort(took)
	t.Logf("start-up: median %v of CPU of %v", took[len(took)/2], took)
	if median := took[len(took)/2]; median >= 50*time.Millisecond {
		t.Errorf("start-up takes %v of CPU, want < 50 ms", median)
	}
}

// TestServe_IdlesBelow50MiB looks after a push and a pull of the larger image.
func TestServe_IdlesBelow50MiB(t *testing.T) {
	im, s := theImages(t), serve(t)
	run(t, "crane", "push", im.debianPerl, s.host+"/shop/debian:perl")
	s.whole("shop/debian:perl")
	u, err := s.proc.Usage()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("resident after a push and a pull: %.1f MiB", float64(u.RSS)/(1<<20))
	if u.RSS >= 50<<20 {
		t.Errorf("resident %d bytes, want < 50 MiB", u.RSS)
	}
}

// TestDemo_IsTrue runs what the README promises.
func TestDemo_IsTrue(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "../scripts/demo.sh", fairway)
	cmd.Env = append(os.Environ(), "TMPDIR="+t.TempDir())
	began := time.Now()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("demo: %v\n%s", err, out)
	}
	if took := time.Since(began); took > time.Minute {
		t.Errorf("it took %v, promised is less than a minute", took)
	}
	for _, want := range []string{"restored", "freed", "verified"} {
		if !strings.Contains(strings.ToLower(string(out)), want) {
			t.Errorf("its output does not say %q:\n%s", want, out)
		}
	}
	if left, err := filepath.Glob(filepath.Join(os.TempDir(), "fairway-demo.*")); err == nil && len(left) > 0 {
		t.Errorf("it left %v behind", left)
	}
}
