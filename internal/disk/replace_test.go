package disk

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// TestR7_ReplaceSyncsTheFileBeforeItsNameAndThenTheName: a loss of power at any moment
// finds all of the old content, or all of the new one.
func TestR7_ReplaceSyncsTheFileBeforeItsNameAndThenTheName(t *testing.T) {
	failed := errors.New("input/output error")
	for failing, want := range []string{"old", "new", "new"} { // the sync that fails, and what is there then
		dir := t.TempDir()
		path := filepath.Join(dir, "file")
		if err := os.WriteFile(path, []byte("old"), 0o600); err != nil {
			t.Fatal(err)
		}
		var synced []string // and what the name led to meanwhile
		err := replace(path, []byte("new"), 0o600, func(f *os.File) error {
			at, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			what := "directory"
			if f.Name() != dir {
				b, err := os.ReadFile(f.Name())
				if err != nil {
					return err
				}
				what = "file with " + string(b)
			}
			synced = append(synced, what+", "+string(at))
			if len(synced) == failing+1 {
				return failed
			}
			return f.Sync()
		})
		if all := []string{"file with new, old", "directory, new"}; !slices.Equal(synced, all[:min(failing+1, 2)]) {
			t.Errorf("synced: %q", synced)
		}
		if (failing < 2) != errors.Is(err, failed) {
			t.Errorf("sync %d fails: error %v", failing, err)
		}
		if b, err := os.ReadFile(path); err != nil || string(b) != want {
			t.Errorf("sync %d fails: content %q, %v; want %q", failing, b, err, want)
		}
		if there, err := os.ReadDir(dir); err != nil || len(there) != 1 {
			t.Errorf("sync %d fails: %v, %v; want one file", failing, there, err)
		}
	}
}
