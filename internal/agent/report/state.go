package report

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// state is what the agent must know after a restart: who it is to the registry,
// and what it last found to be in use.
type state struct {
	Format   int      `json:"format"`
	Node     string   `json:"node"`            // as configured
	Alias    string   `json:"alias,omitempty"` // under which it reports where another has taken the name
	Instance string   `json:"instance"`
	Seq      int64    `json:"seq"`
	Sources  []string `json:"sources"` // that have ever answered
	Uses     []use    `json:"uses"`
}

const stateFormat = 1

func newInstance() string { return rand.Text() }

// readState reads the file. One that cannot be understood is the same as none:
// the registry keeps what a former installation had in use.
func readState(path, node string) (st state, problem error) {
	fresh := state{Format: stateFormat, Node: node, Instance: newInstance()}
	content, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fresh, nil
	}
	if err != nil {
		return fresh, fmt.Errorf("read the last report: %w", err)
	}
	if err := json.Unmarshal(content, &st); err != nil {
		return fresh, fmt.Errorf("read the last report %s: %w", path, err)
	}
	if st.Format != stateFormat || st.Instance == "" {
		return fresh, fmt.Errorf("read the last report %s: its format is %d, and only %d is known", path, st.Format, stateFormat)
	}
	if st.Node != node {
		st.Node, st.Alias = node, ""
	}
	st.Uses = slices.DeleteFunc(st.Uses, func(u use) bool { return len(u.Digests) == 0 })
	return st, nil
}

// writeState replaces the file so that a crash leaves the old one or the new.
func writeState(path string, st state) error {
	content, err := json.Marshal(st)
	if err != nil {
		return fmt.Errorf("encode the report: %w", err)
	}
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".report-*")
	if err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	_, err = f.Write(append(content, '\n'))
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write the report: %w", err), os.Remove(f.Name()))
	}
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	return errors.Join(d.Sync(), d.Close())
}
