package fetch

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/opencontainers/image-spec/identity"

	"github.com/fairway-registry/fairway/internal/agent/index"
	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/oci"
)

// configMax bounds a config that is read for its layers, in bytes.
const configMax = 8 << 20

// learn notes what the layers of a config add up to: all that some runtimes
// tell of a container is the chain ID of its root file system.
func (f *Fetcher) learn(ctx context.Context, b *piece.Blob) error {
	if b.Size() > configMax {
		return nil
	}
	if b.Size() <= oci.ManifestMax {
		// Runtimes may ask for a manifest as a blob. Without its edges nobody knows
		// what its layers belong to.
		if is, err := f.recognise(ctx, b.Digest()); is || err != nil {
			return err
		}
	}
	parents, err := f.o.Index.ManifestsOfConfig(ctx, b.Digest())
	if err != nil || len(parents) == 0 {
		return err
	}
	content, err := whole(b)
	if err != nil {
		return err
	}
	chain, ok := chainOf(content)
	if !ok {
		return nil // an artifact's config
	}
	return f.o.Index.SetChain(ctx, b.Digest(), chain)
}

// whole reads a small blob that is complete. Unlike a reader of b it never waits for
// what is missing: of a blob that turns out to be damaged nobody may be bringing
// the rest, at the start of the agent in particular.
func whole(b *piece.Blob) ([]byte, error) {
	if !b.Complete() {
		return nil, fmt.Errorf("read %s: it is damaged, and will be fetched again", b.Digest())
	}
	content := make([]byte, b.Size())
	for i := range b.Pieces() {
		if _, err := b.ReadPiece(i, content[int64(i)*piece.Size:]); err != nil {
			return nil, err
		}
	}
	return content, nil
}

// chainOf is the chain ID (image-spec v1.1 §Layer ChainID) of a config's layers.
func chainOf(config []byte) (oci.Digest, bool) {
	var c struct {
		RootFS struct {
			DiffIDs []string `json:"diff_ids"`
		} `json:"rootfs"`
	}
	if json.Unmarshal(config, &c) != nil || len(c.RootFS.DiffIDs) == 0 {
		return "", false
	}
	ids := make([]oci.Digest, len(c.RootFS.DiffIDs))
	for i, s := range c.RootFS.DiffIDs {
		d, err := oci.ParseDigest(s)
		if err != nil {
			return "", false
		}
		ids[i] = d
	}
	return identity.ChainID(ids), true
}

// Relearn notes of the configs in the cache what an end in mid download has
// kept from being noted, and of all of it what was lost with an index. Do it before the first eviction: a container that is
// known by its layers only leads to its image by nothing else.
func (f *Fetcher) Relearn(ctx context.Context) error {
	if err := f.readopt(ctx); err != nil {
		return err
	}
	var configs []oci.Digest
	err := f.o.Index.Edges(ctx, func(e index.Edge) error {
		if e.Role == index.RoleConfig {
			configs = append(configs, e.Child)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, d := range configs {
		info, err := f.o.Store.Info(ctx, d)
		if err != nil || info.State == index.Partial || info.ChainID != "" {
			continue // a config that is not here cannot be read
		}
		b, err := f.o.Store.Open(ctx, d)
		if err != nil {
			continue
		}
		err = f.learn(ctx, b)
		b.Close()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			f.o.Log.Warn("a config in the cache cannot be read", "digest", d, "err", err)
		}
	}
	return nil
}
