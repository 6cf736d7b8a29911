package swarm

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestDemo_SwarmIsTrue runs the last part of `make demo`.
func TestDemo_SwarmIsTrue(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "../../scripts/demo-swarm.sh", fairway)
	cmd.Env = append(os.Environ(), "TMPDIR="+scratch)
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "copies left the registry for four nodes") {
		t.Fatalf("demo: %v\n%s", err, out)
	}
}
