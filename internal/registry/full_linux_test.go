package registry

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/fairway-registry/fairway/internal/registry/blob/blobtest"
	"github.com/fairway-registry/fairway/internal/unit"
)

// TestR7_TheFirstStartOfAnOlderPairOnAFullDiskUsesTheReserve: its storage has no mark
// yet, and nothing can be collected before it has one.
func TestR7_TheFirstStartOfAnOlderPairOnAFullDiskUsesTheReserve(t *testing.T) {
	cfg := testConfig(t)
	cfg.Data = blobtest.SmallDisk(t, 8<<20)
	cfg.Database = "sqlite:" + filepath.Join(t.TempDir(), "fairway.db")
	cfg.Reserve, cfg.MinFree = unit.Size(1<<20), unit.Size(1<<20)
	r := mustOpen(t, cfg)
	mustPush(t, r, "x")
	mustClose(t, r)
	unpair(t, cfg)
	f, err := os.Create(filepath.Join(cfg.Data, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	for part := make([]byte, 4096); err == nil; {
		_, err = f.Write(part)
	}
	if closed := f.Close(); !errors.Is(err, syscall.ENOSPC) || closed != nil {
		t.Fatal(err, closed)
	}
	if id := identityOf(t, mustOpen(t, cfg)); !id.Paired {
		t.Error("the pair is not marked")
	}
}
