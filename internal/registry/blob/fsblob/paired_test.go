package fsblob_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/registry/blob"
	"github.com/fairway-registry/fairway/internal/registry/blob/blobtest"
	"github.com/fairway-registry/fairway/internal/registry/blob/fsblob"
)

// pairedStore is a store of one database, with an object, and the directory of
// its objects.
func pairedStore(t *testing.T) (s *fsblob.Store, p *blob.Paired, objects string) {
	t.Helper()
	s = open(t, t.TempDir(), fsblob.Options{Reserve: -1, MinFree: -1})
	id, err := s.Identity(t.Context(), blobtest.Identity(1))
	if err != nil {
		t.Fatal(err)
	}
	blobtest.Put(t, s, blobtest.Key(1), blobtest.Bytes(1, 1000))
	return s, blob.Pair(s, id), filepath.Join(s.Dir(), "blobs")
}

// unmount takes the objects away and leaves what a mount point is without its
// disk, or with the disk of another storage.
func unmount(t *testing.T, objects, identity string) (mount func()) {
	t.Helper()
	if err := errors.Join(os.Rename(objects, objects+".away"), os.Mkdir(objects, 0o700)); err != nil {
		t.Fatal(err)
	}
	if identity != "" {
		if err := os.WriteFile(filepath.Join(objects, "identity"), []byte(identity+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return func() {
		t.Helper()
		if err := errors.Join(os.RemoveAll(objects), os.Rename(objects+".away", objects)); err != nil {
			t.Fatal(err)
		}
	}
}

func wantUnproven(t *testing.T, what string, err error) {
	t.Helper()
	if !errors.Is(err, blob.ErrUnproven) || errors.Is(err, blob.ErrNotFound) || !errors.Is(err, fault.Busy) {
		t.Errorf("%s: error %v, want ErrUnproven that says to try again", what, err)
	}
}

func TestR15_WithoutItsMarkAStorageSaysNothing(t *testing.T) {
	for name, identity := range map[string]string{"unmounted": "", "another storage": blobtest.Identity(2), "damaged": "?"} {
		t.Run(name, func(t *testing.T) {
			s, p, objects := pairedStore(t)
			under, err := p.Append(t.Context(), blobtest.Key(2), 0)
			if err != nil {
				t.Fatal(err)
			}
			mount := unmount(t, objects, identity)
			blobtest.Put(t, s, "blobs/ff/of-both", []byte("x")) // as a copy of this storage would have it
			wantUnproven(t, "prove", p.Prove(t.Context()))
			_, err = p.Open(t.Context(), blobtest.Key(1))
			wantUnproven(t, "open", err)
			_, err = p.Delete(t.Context(), blobtest.Key(1))
			wantUnproven(t, "delete", err)
			_, err = p.Append(t.Context(), blobtest.Key(3), 0)
			wantUnproven(t, "append", err)
			shard := filepath.Dir(filepath.Join(s.Dir(), blobtest.Key(2)))
			if err := os.Mkdir(shard, 0o700); err != nil { // so that nothing else fails the commit
				t.Fatal(err)
			}
			wantUnproven(t, "commit of what began before", under.Commit())
			if err := os.Remove(shard); err != nil {
				t.Fatal(err)
			}
			wantUnproven(t, "walk", p.Walk(t.Context(), "", func(blob.Info) error { t.Error("an object was seen"); return nil }))
			_, err = p.Delete(t.Context(), "blobs/ff/of-both")
			wantUnproven(t, "delete of what is there too", err)
			if found, _ := filepath.Glob(filepath.Join(objects, "??", "*")); len(found) != 1 {
				t.Errorf("in the wrong storage: %q, want what was there", found)
			}
			mount()
			if freed, err := p.Delete(t.Context(), blobtest.Key(1)); freed != 1000 || err != nil {
				t.Errorf("delete when the storage is back: freed %d, %v", freed, err)
			}
			if _, err := p.Delete(t.Context(), blobtest.Key(1)); !errors.Is(err, blob.ErrNotFound) {
				t.Errorf("second delete: %v", err)
			}
		})
	}
}

// swapping is a store whose disk disappears in the middle of an operation.
type swapping struct {
	blob.Store
	swap func()
}

func (s *swapping) Delete(ctx context.Context, key string) (int64, error) {
	s.swap()
	return s.Store.Delete(ctx, key)
}

func (s *swapping) Append(ctx context.Context, key string, offset int64) (blob.Appender, error) {
	s.swap()
	return s.Store.Append(ctx, key, offset)
}

func (s *swapping) Walk(ctx context.Context, after string, fn func(blob.Info) error) error {
	s.swap()
	return s.Store.Walk(ctx, after, fn)
}

func TestR15_ADiskThatDisappearsInTheMiddleLosesNothing(t *testing.T) {
	for name, do := range map[string]func(context.Context, blob.Store) error{
		"delete": func(ctx context.Context, s blob.Store) error { _, err := s.Delete(ctx, blobtest.Key(1)); return err },
		"append": func(ctx context.Context, s blob.Store) error {
			_, err := s.Append(ctx, blobtest.Key(1), 500)
			return err
		},
		"walk": func(ctx context.Context, s blob.Store) error {
			return s.Walk(ctx, "", func(blob.Info) error { return nil })
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, _, objects := pairedStore(t)
			p := blob.Pair(&swapping{Store: s, swap: func() { unmount(t, objects, "") }}, blobtest.Identity(1))
			wantUnproven(t, name, do(t.Context(), p))
		})
	}
}

func TestR15_TheMarkIsFoundAgain(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, fsblob.Options{Reserve: -1})
	if _, err := s.Identity(t.Context(), blobtest.Identity(1)); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, fsblob.Options{Reserve: -1})
	for _, give := range []string{"", blobtest.Identity(2)} {
		if id, err := s.Identity(t.Context(), give); id != blobtest.Identity(1) || err != nil {
			t.Fatalf("identity %q, %v", id, err)
		}
	}
}

func TestR15_AMarkThatCannotBeReadIsNotNone(t *testing.T) {
	s := open(t, t.TempDir(), fsblob.Options{Reserve: -1})
	for _, content := range []string{"", "\n", "../../x", strings.Repeat("x", 100_000), "a b c d e f g h", "\x00\x00\x00\x00\x00\x00\x00\x00"} {
		if err := os.WriteFile(s.IdentityPath(), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, give := range []string{"", blobtest.Identity(1)} {
			if id, err := s.Identity(t.Context(), give); err == nil {
				t.Errorf("%.20q: identity %q", content, id)
			}
		}
		if b, err := os.ReadFile(s.IdentityPath()); err != nil || string(b) != content {
			t.Errorf("%.20q was overwritten with %q, %v", content, b, err)
		}
	}
	if err := os.WriteFile(s.IdentityPath(), []byte("  by-hand-1234\r\nmore"), 0o600); err != nil {
		t.Fatal(err)
	}
	if id, err := s.Identity(t.Context(), ""); id != "by-hand-1234" || err != nil {
		t.Errorf("written by hand: %q, %v", id, err)
	}
}
