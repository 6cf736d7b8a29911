// Package node drives a real `fairway node` beside real container runtimes:
// containerd 1.6 and 2.x with runc, their CRI plugin, and Podman's service, each
// started here with a root, a state and a socket of its own, and images made of
// Debian's busybox and of random bytes.
//
// It needs root, as runtimes do. Nothing here is skipped: a part that is missing
// is a failure that says how to install it. FAIRWAY_BIN names a binary to test
// instead of a fresh build.
package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// fairway is the binary under test, scratch a directory for the whole run. Its
// path is short, since the address of a unix socket may have 107 bytes.
var fairway, scratch string

func TestMain(m *testing.M) { os.Exit(runAll(m)) }

func runAll(m *testing.M) int {
	if err := prepare(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(scratch) }() // it is in a directory for temporary files
	defer func() {
		if shared.proc != nil {
			shared.proc.Kill()
		}
	}()
	return m.Run()
}

func prepare() error {
	if os.Geteuid() != 0 {
		return errors.New("container runtimes need root: run these tests as root")
	}
	var err error
	if scratch, err = os.MkdirTemp("", "fwn-"); err != nil {
		return err
	}
	tools, err := filepath.Abs("../../.tools/bin")
	if err != nil {
		return err
	}
	if err := os.Setenv("PATH", tools+":"+os.Getenv("PATH")+":/usr/sbin:/sbin"); err != nil {
		return err
	}
	if fairway = os.Getenv("FAIRWAY_BIN"); fairway != "" {
		return nil
	}
	fairway = filepath.Join(scratch, "fairway")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", fairway, "../../cmd/fairway")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build: %w\n%s", err, out)
	}
	return nil
}

// need returns the path of a program, or fails naming what installs it.
func need(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%s is needed: run make e2e-tools", name)
	}
	return path
}

// try runs a program with a home of its own and returns what it printed.
func try(t testing.TB, name string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	return tryCtx(t.Context(), t, name, args...)
}

func tryCtx(ctx context.Context, t testing.TB, name string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	path := need(t, name)
	ctx, cancel := context.WithTimeout(ctx, 90*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(os.Environ(), "HOME="+filepath.Join(scratch, "home"), "TMPDIR="+scratch)
	cmd.WaitDelay = 5 * time.Second // a container's process may keep the pipes open
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	return out.String(), errs.String(), err
}

// run is try for what must succeed.
func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, errs, err := try(t, name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out, errs)
	}
	return out
}

// eventually polls until ok says yes, and fails with the last word of why when
// that takes too long.
func eventually(t testing.TB, what string, ok func() (bool, string)) {
	t.Helper()
	deadline := time.NewTimer(30 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		yes, why := ok()
		if yes {
			return
		}
		select {
		case <-deadline.C:
			t.Fatalf("waited in vain: %s: %s", what, why)
		case <-tick.C:
		}
	}
}

// logBuffer is a log that a process writes while a test reads. It shows its end
// when the test fails.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func newLog(t testing.TB, of string) *logBuffer {
	l := new(logBuffer)
	t.Cleanup(func() {
		if s := l.String(); t.Failed() && s != "" {
			t.Logf("end of the log of %s:\n%s", of, s[max(0, len(s)-3<<10):])
		}
	})
	return l
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
