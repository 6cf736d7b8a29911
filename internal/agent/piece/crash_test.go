package piece_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/fairway-registry/fairway/internal/agent/index"
	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
)

const (
	crashDir = "FAIRWAY_TEST_CRASH_DIR"
	crashAt  = "FAIRWAY_TEST_CRASH_AT"
)

// blobs of the workload that is killed.
var (
	crashSizes = []int{100, 3*piece.Size + 5, 2 * piece.Size, 4 * piece.Size}
)

func crashBlob(i int) ([]byte, oci.Digest) { return content(uint64(1000+i), crashSizes[i]) }

// TestCrashChild is the process that is killed; without the environment that
// says where, it does nothing.
func TestCrashChild(t *testing.T) {
	dir := os.Getenv(crashDir)
	if dir == "" {
		return
	}
	at, err := strconv.Atoi(os.Getenv(crashAt))
	if err != nil {
		t.Fatal(err)
	}
	c := openAt(t, dir, piece.Options{})
	n := 0
	c.SetStep(func(name string) {
		if n++; n == at {
			fmt.Println("killed at", name)
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	})
	for i := range crashSizes {
		all, d := crashBlob(i)
		b := create(t, c, d, len(all))
		if i == 2 { // a lie first
			write(t, b, all, 0)
			if err := b.WritePiece(context.Background(), 1, make([]byte, piece.Size), "liar"); err == nil {
				t.Fatal("a lie passed")
			}
		}
		for k := range b.Pieces() {
			write(t, b, all, (k+1)%b.Pieces())
		}
		b.Close()
		fmt.Println("complete", i)
	}
	for _, i := range []int{1, 3} {
		_, d := crashBlob(i)
		fmt.Println("removing", i)
		if _, err := c.Remove(context.Background(), claim(t, c, d)); err != nil {
			t.Fatal(err)
		}
		fmt.Println("removed", i)
	}
	c.close(t)
	fmt.Println("end")
}

// TestN7_KilledAnywhere kills a process between any two changes of the disk. The
// next one finds what was promised, keeps nothing that is not accounted for, and
// can bring everything to its end.
func TestN7_KilledAnywhere(t *testing.T) {
	places := map[string]bool{}
	for at := 1; ; at++ {
		dir := t.TempDir()
		said, killed := runChild(t, dir, at)
		if !killed {
			if !said["end"] {
				t.Fatalf("the child neither ended nor was killed: %v", said)
			}
			break
		}
		for line := range said {
			if place, ok := strings.CutPrefix(line, "killed at "); ok {
				places[place] = true
			}
		}
		c := openAt(t, dir, piece.Options{})
		checkWhole(t, c, -1)
		for i := range crashSizes {
			checkAfterCrash(t, c, i, said)
		}
		checkWhole(t, c, -1)
		c.close(t)
		if t.Failed() {
			t.Fatalf("killed at step %d: %v", at, said)
		}
	}
	for _, place := range []string{"row put", "sidecar made", "data made", "piece written", "record written", "verified", "synced", "completed", "claimed", "row removed", "data removed"} {
		if !places[place] {
			t.Errorf("nobody was killed at %q", place)
		}
	}
}

func checkAfterCrash(t *testing.T, c *cache, i int, said map[string]bool) {
	t.Helper()
	all, d := crashBlob(i)
	complete, removing, removed := said[fmt.Sprint("complete ", i)], said[fmt.Sprint("removing ", i)], said[fmt.Sprint("removed ", i)]
	in, err := c.Info(t.Context(), d)
	switch {
	case err != nil && !errors.Is(err, fault.NotFound):
		t.Error(err)
	case complete && !removing && (err != nil || in.State != index.Complete):
		t.Errorf("blob %d was complete and is %q, %v", i, in.State, err)
	case removed && err == nil:
		t.Errorf("blob %d was removed and is here", i)
	case err == nil && in.State == index.Claimed:
		t.Errorf("blob %d is claimed by nobody", i)
	}
	if err == nil && in.State == index.Complete {
		if got, err := get(c, d, 0, -1); err != nil || !bytes.Equal(got, all) {
			t.Errorf("blob %d: %d bytes, %v", i, len(got), err)
		}
	}
	b := create(t, c, d, len(all))
	defer b.Close()
	write(t, b, all, b.Missing()...)
	if got, err := readAll(t, b); err != nil || !bytes.Equal(got, all) {
		t.Errorf("blob %d brought to its end: %d bytes, %v", i, len(got), err)
	}
}

// runChild returns the lines that the child said.
func runChild(t *testing.T, dir string, at int) (said map[string]bool, killed bool) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestCrashChild$")
	cmd.Env = append(os.Environ(), crashDir+"="+dir, crashAt+"="+strconv.Itoa(at))
	out, err := cmd.Output()
	said = map[string]bool{}
	for sc := bufio.NewScanner(bytes.NewReader(out)); sc.Scan(); {
		said[sc.Text()] = true
	}
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL) {
		t.Fatalf("child: %v\n%s", err, out)
	}
	return said, err != nil
}
