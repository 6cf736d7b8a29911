package index

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/fairway-registry/fairway/internal/disk"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/sqldb"
)

// Anew reports that the index is being rebuilt beside a cache that may have files:
// they are to be indexed again rather than removed. It holds, across restarts, until
// Adopted.
func (x *Index) Anew() bool {
	_, err := os.Lstat(x.anew)
	return err == nil
}

// beginAnew leaves the mark that Anew looks for, on the disk: the rows go next, and a
// loss of power must not take the mark and leave that.
func (x *Index) beginAnew() error {
	if err := disk.Replace(x.anew, nil, 0o600); err != nil {
		return fmt.Errorf("begin to rebuild the cache's index: %w", err)
	}
	return nil
}

// Adopted says that all files have their rows again, and the manifests their
// edges. These are on the disk before the mark goes: files without rows would be
// removed. Where the disk is full it stays, and the next start does all of it again.
func (x *Index) Adopted(ctx context.Context) error {
	if x.leftOut.Load() || !x.Anew() {
		return nil
	}
	if err := x.db.Sync(ctx); sqldb.IsFull(err) {
		x.log.Warn("the cache's index was rebuilt, but not noted as that, since the disk is full; the next start rebuilds it again", "err", err)
		return nil
	} else if err != nil {
		return fmt.Errorf("finish rebuilding the cache's index: %w", err)
	}
	if err := os.Remove(x.anew); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("finish rebuilding the cache's index: %w", err)
	}
	return nil
}

// LeftOut says that some files have no rows yet, for the disk is full: the next start
// has another look for them, whatever is adopted by then.
func (x *Index) LeftOut() { x.leftOut.Store(true) }

// pinsFile is beside the database and has a copy of the pins, which are the one
// thing in it that nobody can fetch again.
const pinsFile = "pins.json"

// savedPin is a pin in that file.
type savedPin struct {
	Ref   string       `json:"ref"`
	Roots []oci.Digest `json:"roots"`
}

// savePins writes the copy, all of it or nothing.
func (x *Index) savePins(ctx context.Context) error {
	x.saving.Lock()
	defer x.saving.Unlock()
	pins, err := x.Pins(ctx)
	if err != nil {
		return err
	}
	list := make([]savedPin, 0, len(pins))
	for _, p := range pins {
		list = append(list, savedPin{p.Ref, p.Roots})
	}
	content, err := json.MarshalIndent(list, "", "  ")
	if err == nil {
		err = disk.Replace(x.pins, append(content, '\n'), 0o600)
	}
	if err != nil {
		return fmt.Errorf("keep a copy of the pins: %w", err)
	}
	return nil
}

// recallPins makes the pins and their copy agree: an index that is begun anew
// has them from there.
func (x *Index) recallPins(ctx context.Context) error {
	content, err := os.ReadFile(x.pins)
	if errors.Is(err, fs.ErrNotExist) {
		return x.firstPins(ctx)
	}
	if err != nil || !x.Anew() {
		return err
	}
	var list []savedPin
	if err := json.Unmarshal(content, &list); err != nil {
		x.log.Error("the copy of the pins cannot be read, so they are lost; pin again what has to stay", "path", x.pins, "error", err)
		return nil
	}
	for _, p := range list {
		if err := x.pin(ctx, p.Ref, p.Roots); err != nil {
			return err
		}
	}
	if len(list) > 0 {
		x.log.Warn("the pins were taken back from their copy", "pins", len(list))
	}
	return nil
}

// firstPins makes the copy for an index that is older than it. A disk that is
// full must not keep the cache from being opened.
func (x *Index) firstPins(ctx context.Context) error {
	roots, err := x.PinnedRoots(ctx)
	if err != nil || len(roots) == 0 {
		return err
	}
	if err := x.savePins(ctx); err != nil {
		x.log.Warn("the pins have no copy", "error", err)
	}
	return nil
}
