package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/blob/fsblob"
	"github.com/fairway-registry/fairway/internal/registry/meta"
)

// itemsPerImage: a config, a layer and a manifest.
const itemsPerImage = 3

// seed fills a data directory with images of three items each, spread over
// repositories of a hundred tagged images. Rows are made by the metadata store
// itself, as pushes make them, but in memory, where a commit costs little; of
// the blobs there is a row and no file, since the collector does not look at
// what it keeps.
func seed(ctx context.Context, data string, items int) (err error) {
	memory := "/dev/shm"
	if _, err := os.Stat(memory); err != nil {
		memory = ""
	}
	dir, err := os.MkdirTemp(memory, "fairway-seed-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := seedRows(ctx, filepath.Join(dir, "fairway.db"), items); err != nil {
		return err
	}
	return os.CopyFS(data, os.DirFS(dir))
}

func seedRows(ctx context.Context, path string, items int) (err error) {
	store, err := meta.Open(ctx, meta.Options{Path: path})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()

	const writers = 64 // they share commits
	var wg sync.WaitGroup
	errs := make([]error, writers)
	for w := range writers {
		wg.Go(func() {
			for i := w; i < items/itemsPerImage; i += writers {
				if errs[w] = seedImage(ctx, store, i); errs[w] != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(errors.Join(errs...), pairSeed(ctx, store, filepath.Dir(path)))
}

// pairSeed marks the storage beside the database as its own: a server would not
// take one in which it finds none of its blobs.
func pairSeed(ctx context.Context, store *meta.Store, dir string) error {
	id, err := store.Identity(ctx)
	if err != nil {
		return err
	}
	files, err := fsblob.Open(dir, fsblob.Options{Reserve: -1, MinFree: -1})
	if err != nil {
		return err
	}
	_, err = files.Identity(ctx, id.ID)
	return errors.Join(err, files.Close(), store.MarkPaired(ctx))
}

func seedImage(ctx context.Context, store *meta.Store, i int) error {
	repo := oci.Name(fmt.Sprintf("seed/repo-%05d", i/100))
	im := newImage(16)
	for d, size := range map[digest.Digest]int{im.configDigest: len(im.config), im.layerDigest: len(im.layer)} {
		u, err := store.CreateUpload(ctx, repo, "sha256")
		if err != nil {
			return err
		}
		if _, err := store.FinishUpload(ctx, u, d, int64(size)); err != nil {
			return err
		}
	}
	m, err := oci.ParseManifest(oci.MediaTypeImage, im.manifest)
	if err != nil {
		return err
	}
	_, err = store.PutManifest(ctx, meta.Push{
		Repo: repo, Tags: []oci.Tag{oci.Tag(fmt.Sprintf("v%d", i%100))}, Digest: im.digest, Manifest: m, Content: im.manifest,
	})
	return err
}

// garbage pushes images over HTTP and deletes them again, the manifests only:
// what was theirs alone is what a collection finds.
func garbage(s *server, images, layerSize int) error {
	const clients = 16
	var wg sync.WaitGroup
	errs := make([]error, clients)
	repo := "garbage/" + unique()
	for w := range clients {
		wg.Go(func() {
			c, err := dial(s.addr)
			if err != nil {
				errs[w] = err
				return
			}
			defer c.close()
			for i := w; i < images; i += clients {
				im := newImage(layerSize)
				if errs[w] = c.push(repo, fmt.Sprintf("g%d", i), im); errs[w] != nil {
					return
				}
				if errs[w] = c.delete(repo, im.digest); errs[w] != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}
