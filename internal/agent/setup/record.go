package setup

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/fairway-registry/fairway/internal/fault"
)

// recordDir is where what was changed is remembered, and backups are.
const recordDir = "var/lib/fairway-node/setup"

// record is what was done to a runtime, the latest step last. A second setup with
// other options is a step of its own.
type record struct {
	Steps []step `json:"steps"`
}

type step struct {
	Files []file `json:"files"`
}

// file is one that was changed. Its contents are in here, and what was before as
// a file of its own too, for people.
type file struct {
	Path    string      `json:"path"`
	Backup  string      `json:"backup,omitempty"`
	Before  []byte      `json:"before"` // null: there was none
	After   []byte      `json:"after"`
	Mode    fs.FileMode `json:"mode"`
	NewDirs []string    `json:"new_dirs,omitempty"`
}

func (p Plan) recordPath() string { return filepath.Join(p.root, recordDir, p.Runtime+".json") }

func (p Plan) readRecord() (r record, err error) {
	content, err := os.ReadFile(p.recordPath())
	if errors.Is(err, fs.ErrNotExist) {
		return record{}, nil
	}
	if err != nil {
		return record{}, fmt.Errorf("read what was set up: %w", err)
	}
	if err := json.Unmarshal(content, &r); err != nil {
		return record{}, fmt.Errorf("read what was set up, %s: %w", p.recordPath(), err)
	}
	return r, nil
}

func (p Plan) writeRecord(r record) error {
	if len(r.Steps) == 0 {
		if err := os.Remove(p.recordPath()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("forget what was set up: %w", err)
		}
		return nil
	}
	content, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("encode what is set up: %w", err)
	}
	return replace(p.recordPath(), append(content, '\n'), 0o600)
}

// Apply does what the plan says. What a plan that sets up overwrites is on disk
// as a backup before anything changes.
func (p Plan) Apply() error {
	r, err := p.readRecord()
	if err != nil {
		return err
	}
	if p.undo > 0 {
		if err := p.write(); err != nil {
			return err
		}
		return p.writeRecord(record{Steps: r.Steps[:len(r.Steps)-p.undo]})
	}
	if len(p.Changes) == 0 {
		return nil
	}
	if err := os.MkdirAll(filepath.Join(p.root, recordDir), 0o700); err != nil {
		return fmt.Errorf("make a place for backups: %w", err)
	}
	s := step{}
	for _, c := range p.Changes {
		f := file{Path: c.Path, Before: c.Before, After: c.After, Mode: c.Mode, NewDirs: c.newDirs}
		if c.Before != nil {
			f.Backup = filepath.Join(recordDir, fmt.Sprintf("%s-%d", p.Runtime, len(r.Steps)+1), c.Path)
			if err := os.MkdirAll(filepath.Dir(filepath.Join(p.root, f.Backup)), 0o700); err != nil {
				return fmt.Errorf("back up %s: %w", c.Path, err)
			}
			if err := replace(filepath.Join(p.root, f.Backup), c.Before, 0o600); err != nil {
				return fmt.Errorf("back up %s: %w", c.Path, err)
			}
		}
		s.Files = append(s.Files, f)
	}
	r.Steps = append(r.Steps, s)
	if err := p.writeRecord(r); err != nil {
		return err
	}
	return p.write()
}

// Backups are where the files that the plan overwrites are kept as they were.
func (p Plan) Backups() string { return filepath.Join(p.root, recordDir) }

// write makes the changes, each file at once, if it is still as it was planned
// from.
func (p Plan) write() error {
	for _, c := range p.Changes {
		now, _, err := p.read(c.Path)
		if err != nil {
			return err
		}
		if !same(now, c.Before) {
			return fault.New(fault.Conflict, "%s was changed in the meantime; try again", p.where(c.Path))
		}
		at, err := p.real(c.Path)
		if err != nil {
			return err
		}
		if c.After == nil {
			err = os.Remove(at)
			for _, dir := range slices.Backward(c.newDirs) {
				_ = os.Remove(filepath.Join(p.root, dir)) // fails where somebody uses it, and then it stays
			}
		} else if err = os.MkdirAll(filepath.Dir(at), 0o755); err == nil {
			err = replace(at, c.After, c.Mode)
		}
		if err != nil {
			return fmt.Errorf("write %s: %w", p.where(c.Path), err)
		}
	}
	return nil
}

func same(a, b []byte) bool { return (a == nil) == (b == nil) && string(a) == string(b) }

// replace writes a file so that whoever reads it sees the old one or the new. It
// keeps the owner.
func replace(path string, content []byte, mode fs.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".fairway-setup-*")
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	err = errors.Join(err, f.Chmod(mode))
	if fi, statErr := os.Stat(path); statErr == nil {
		if st, ok := fi.Sys().(*syscall.Stat_t); ok {
			err = errors.Join(err, f.Chown(int(st.Uid), int(st.Gid)))
		}
	}
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// Undo plans to bring back what was there before a runtime was set up. The error
// is NotFound where it was not, Conflict where a file was changed since.
func Undo(runtime, root string) (Plan, error) {
	if root == "" {
		root = "/"
	}
	p := Plan{Runtime: runtime, root: root}
	if !slices.Contains(Runtimes(), runtime) {
		return p, fault.New(fault.Invalid, "%q is no runtime that can be set up", runtime)
	}
	r, err := p.readRecord()
	if err != nil {
		return p, err
	}
	if len(r.Steps) == 0 {
		return p, fault.New(fault.NotFound, "%s was not set up here, so that there is nothing to undo", runtime)
	}
	at := map[string]int{} // path → in p.Changes
	for _, s := range slices.Backward(r.Steps) {
		ok, err := p.undoStep(s, at)
		if err != nil {
			return p, err
		}
		if !ok {
			p.note("What was set up before that stays, since files were changed by somebody else in between. Backups are in %s.", p.Backups())
			break
		}
		p.undo++
	}
	p.Changes = slices.DeleteFunc(p.Changes, func(c Change) bool { return same(c.Before, c.After) })
	p.undoNotes()
	return p, nil
}

func (p *Plan) undoNotes() {
	switch p.Runtime {
	case Containerd:
		p.note("Restart containerd if its config.toml changes: systemctl restart containerd. Running containers go on.")
	case Docker:
		p.note("Have Docker read it: systemctl reload docker.")
	case CRIO:
		p.note("Have CRI-O read it: systemctl reload crio.")
	}
}

// undoStep adds the undoing of one step, if the files are as the step left them,
// or as they were before it, which a crash may have left. It is false where that
// is not so for a step that later ones were done upon.
func (p *Plan) undoStep(s step, at map[string]int) (bool, error) {
	first := p.undo == 0
	plan := map[string]Change{}
	for _, f := range s.Files {
		now, mode, err := p.read(f.Path)
		if err != nil {
			return false, err
		}
		was := now
		if i, ok := at[f.Path]; ok {
			was = p.Changes[i].After
		}
		if !same(was, f.After) && !same(was, f.Before) {
			if first {
				return false, fault.New(fault.Conflict, "%s was changed after it was set up, and that would be lost; its backup is %s", p.where(f.Path), p.where(orNone(f.Backup)))
			}
			return false, nil
		}
		if now == nil {
			mode = f.Mode
		}
		plan[f.Path] = Change{Path: f.Path, Before: now, After: f.Before, Mode: mode, newDirs: f.NewDirs}
	}
	for _, f := range s.Files {
		c := plan[f.Path]
		if i, ok := at[f.Path]; ok {
			p.Changes[i].After, p.Changes[i].newDirs = c.After, c.newDirs
			continue
		}
		at[f.Path] = len(p.Changes)
		p.Changes = append(p.Changes, c)
	}
	return true, nil
}

func orNone(backup string) string {
	if backup == "" {
		return "(there was no file)"
	}
	return backup
}
