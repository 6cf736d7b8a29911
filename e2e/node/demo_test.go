package node

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestDemo_NodeIsTrue runs the second half of `make demo`.
func TestDemo_NodeIsTrue(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "../../scripts/demo-node.sh", fairway)
	cmd.Env = append(os.Environ(), "TMPDIR="+scratch)
	began := time.Now()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("demo: %v\n%s", err, out)
	}
	if took := time.Since(began); took > 90*time.Second {
		t.Errorf("it took %v, promised is less than a minute and a half", took)
	}
	for _, want := range []string{"it runs", "went instead", "freed"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("its output does not say %q:\n%s", want, out)
		}
	}
	if left, err := filepath.Glob(filepath.Join(scratch, "fairway-demo.*")); err != nil || len(left) > 0 {
		t.Errorf("it left %v behind (%v)", left, err)
	}
}
