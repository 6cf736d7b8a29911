package upload_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/blob"
	"github.com/fairway-registry/fairway/internal/registry/blob/blobtest"
	"github.com/fairway-registry/fairway/internal/registry/meta"
	"github.com/fairway-registry/fairway/internal/registry/upload"
)

// damages are ways for an object to be no longer what was written.
var damages = map[string]func(path string) error{
	"missing": os.Remove,
	"cut":     func(path string) error { return os.Truncate(path, 10) },
	"emptied": func(path string) error { return os.Truncate(path, 0) },
	"longer":  func(path string) error { return os.Truncate(path, 6000) },
}

// put uploads p and returns what the repository serves now.
func (b *bench) put(repo oci.Name, p []byte) meta.Blob {
	b.t.Helper()
	d := digest.FromBytes(p)
	finished, err := b.Put(b.t.Context(), repo, d, whole(p))
	if err != nil {
		b.t.Fatal(err)
	}
	row, err := b.store.Blob(b.t.Context(), repo, d)
	if err != nil || row != finished {
		b.t.Fatalf("the repository serves %+v, error %v; the upload's end told of %+v", row, err, finished)
	}
	return row
}

func (b *bench) path(key string) string { return filepath.Join(b.dir, filepath.FromSlash(key)) }

// purges are the keys in the purge queue.
func (b *bench) purges() map[string]bool {
	b.t.Helper()
	due, err := b.store.DuePurges(b.t.Context(), 0, 0, "", 100)
	if err != nil {
		b.t.Fatal(err)
	}
	keys := map[string]bool{}
	for _, p := range due {
		keys[p.Key] = true
	}
	return keys
}

func TestFinish_VerifiedBytesReplaceDamagedOnes(t *testing.T) {
	for name, damage := range damages {
		for how, again := range map[string]func(b *bench, d oci.Digest, p []byte) error{
			"in one piece": func(b *bench, d oci.Digest, p []byte) error {
				_, err := b.Put(t.Context(), "c/d", d, whole(p))
				return err
			},
			"in chunks": func(b *bench, d oci.Digest, p []byte) error {
				u, err := b.Start(t.Context(), "c/d", "")
				if err != nil {
					return err
				}
				_, err = b.Append(t.Context(), "c/d", u.ID, whole(p))
				_, ferr := b.Finish(t.Context(), "c/d", u.ID, d, upload.Chunk{})
				return errors.Join(err, ferr)
			},
		} {
			t.Run(name+" "+how, func(t *testing.T) {
				b := open(t)
				p := random(5000)
				old := b.put(repo, p) // looked up, so that the cache has it
				if err := damage(b.path(old.Key)); err != nil {
					t.Fatal(err)
				}
				if err := again(b, old.Digest, p); err != nil {
					t.Fatal(err)
				}
				b.wantBlob(old.Digest, p)
				if purges := b.purges(); len(purges) != 1 || !purges[old.Key] {
					t.Errorf("the purge queue has %v, want the damaged %s", purges, old.Key)
				}
			})
		}
	}
}

func TestFinish_HealthyBytesKeepTheirKey(t *testing.T) {
	b := open(t)
	for _, n := range []int{0, 1, 5000} {
		p := random(n)
		old := b.put(repo, p)
		for _, in := range []oci.Name{repo, "c/d"} {
			if now := b.put(in, p); now != old {
				t.Errorf("%d bytes: the blob is %+v after another upload, want %+v", n, now, old)
			}
		}
		b.wantBlob(old.Digest, p)
		if b.purges()[old.Key] {
			t.Errorf("%d bytes: the blob's key is in the purge queue", n)
		}
	}
}

func TestFinish_AStoreThatFailsIsNotTakenForDamage(t *testing.T) {
	b := open(t)
	p := random(5000)
	old := b.put(repo, p)
	b.blobs.Plan(blobtest.Always(blobtest.OpOpen, blobtest.Fail))
	if now := b.put(repo, p); now != old {
		t.Errorf("the blob is %+v, want %+v", now, old)
	}
	if b.purges()[old.Key] {
		t.Error("the blob's key is in the purge queue")
	}
}

// together is a store whose n first readers open only when all of them do.
type together struct {
	blob.Store
	all *sync.WaitGroup
}

func (s together) Open(ctx context.Context, key string) (blob.Reader, error) {
	r, err := s.Store.Open(ctx, key)
	s.all.Done()
	s.all.Wait()
	return r, err
}

func TestFinish_OfUploadsThatFindTheSameDamageOneReplacesIt(t *testing.T) {
	for name, damage := range damages {
		t.Run(name, func(t *testing.T) {
			const n = 4
			b := open(t)
			p := random(5000)
			old := b.put(repo, p)
			if err := damage(b.path(old.Key)); err != nil {
				t.Fatal(err)
			}
			var all sync.WaitGroup
			all.Add(n)
			sessions := upload.New(b.store, together{b.files, &all}, upload.Options{Wait: time.Second})
			finished := make(chan meta.Blob, n)
			for range n {
				go func() {
					row, err := sessions.Put(t.Context(), repo, old.Digest, whole(p))
					if err != nil {
						t.Error(err)
					}
					finished <- row
				}()
			}
			now := <-finished
			for range n - 1 {
				if row := <-finished; row != now {
					t.Errorf("one upload ended with %+v, another with %+v: the bytes were replaced twice", now, row)
				}
			}
			b.wantBlob(old.Digest, p)
			if purges := b.purges(); len(purges) != n || !purges[old.Key] || purges[now.Key] {
				t.Errorf("the purge queue has %v; want the damaged %s and all new keys but %s", purges, old.Key, now.Key)
			}
		})
	}
}
