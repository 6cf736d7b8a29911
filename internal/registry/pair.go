package registry

import (
	"context"
	"errors"
	"fmt"

	"github.com/fairway-registry/fairway/internal/registry/blob"
	"github.com/fairway-registry/fairway/internal/registry/blob/fsblob"
	"github.com/fairway-registry/fairway/internal/registry/meta"
)

// ErrMismatch says that a database and a storage do not belong together.
var ErrMismatch = errors.New("the database and the storage do not belong together")

// pairing decides whether a database and a storage belong together.
type pairing struct {
	store    *meta.Store
	files    *fsblob.Store
	database string // path, for messages
}

// pair returns the storage of the database, or ErrMismatch (invariant R15). A
// pair that has never been marked is marked if nothing speaks against it. The
// storage is marked before the database records that: a crash in between leaves
// a storage with the database's own mark, which the next start recognizes.
func (p pairing) pair(ctx context.Context) (*blob.Paired, error) {
	own, err := p.store.Identity(ctx)
	if err != nil {
		return nil, err
	}
	found, err := p.files.Identity(ctx, "")
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w, as far as can be seen: database %s, storage %s: %w; mend or restore the file %s",
			ErrMismatch, p.database, p.files.Dir(), err, p.files.IdentityPath())
	case found == own.ID && own.Paired:
		return blob.Pair(p.files, own.ID), nil
	case found == own.ID:
	case found != "":
		return nil, p.mismatch(own.ID, fmt.Sprintf("it has the identity %s and belongs to another database", found))
	case own.Paired:
		return nil, p.mismatch(own.ID, "it has no identity: it is empty, not mounted, or not a storage of this version")
	default:
		if err := p.adoptable(ctx, own.ID); err != nil {
			return nil, err
		}
		if err := p.mark(ctx, own.ID); err != nil {
			return nil, err
		}
	}
	if err := p.store.MarkPaired(ctx); err != nil {
		return nil, err
	}
	return blob.Pair(p.files, own.ID), nil
}

func (p pairing) mark(ctx context.Context, id string) error {
	_, err := p.files.Identity(ctx, id)
	if errors.Is(err, blob.ErrFull) && p.files.Release() {
		_, err = p.files.Identity(ctx, id)
	}
	return err
}

func (p pairing) mismatch(id, why string) error {
	return fmt.Errorf("%w: database %s has the identity %s; storage %s: %s. "+
		"Mount the right disk, or correct --storage, --database or --data. Nothing was changed. "+
		"Only if this storage is to take the place of a lost one: write %s into the first line of %s, start, and run `fairway check --repair`",
		ErrMismatch, p.database, id, p.files.Dir(), why, id, p.files.IdentityPath())
}

// kin is how many of the oldest and of the newest blobs are looked for, and how
// many objects.
const kin = 100

// adoptable looks at a pair without marks, as a former version left it or as it
// is at the first start. A database that has blobs must find one of them; one
// that has none must not find the objects of somebody else. Keys are random, so
// that a single one proves that the two belong together.
func (p pairing) adoptable(ctx context.Context, id string) error {
	keys, err := p.store.SomeBlobs(ctx, kin)
	if err != nil {
		return err
	}
	for _, key := range keys {
		r, err := p.files.Open(ctx, key)
		if err == nil {
			return r.Close()
		}
		if !errors.Is(err, blob.ErrNotFound) {
			return fmt.Errorf("look for a blob of the database in the storage: %w", err)
		}
	}
	if len(keys) > 0 {
		return p.mismatch(id, fmt.Sprintf("none of %d blobs of the database that were looked for is there", len(keys)))
	}
	objects, err := p.someObjects(ctx)
	if err != nil || len(objects) == 0 {
		return err
	}
	unnamed, err := p.store.Unnamed(ctx, objects)
	if err != nil {
		return err
	}
	if len(unnamed) == len(objects) {
		return p.mismatch(id, fmt.Sprintf("it has objects, and the database knows none of %d of them", len(objects)))
	}
	return nil
}

func (p pairing) someObjects(ctx context.Context) (keys []string, err error) {
	enough := errors.New("enough")
	err = p.files.Walk(ctx, "", func(i blob.Info) error {
		if keys = append(keys, i.Key); len(keys) == kin {
			return enough
		}
		return nil
	})
	if err != nil && !errors.Is(err, enough) {
		return nil, fmt.Errorf("look for objects in the storage: %w", err)
	}
	return keys, nil
}
