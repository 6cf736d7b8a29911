package fsblob_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

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
	for name, make := range map[string]func(path string) error{
		"a loop of links": func(path string) error { return os.Symlink(path, path) },
		"a directory":     func(path string) error { return os.Mkdir(path, 0o700) },
	} {
		if err := errors.Join(os.Remove(s.IdentityPath()), make(s.IdentityPath())); err != nil {
			t.Fatal(err)
		}
		for _, give := range []string{"", blobtest.Identity(1)} {
			if id, err := s.Identity(t.Context(), give); err == nil {
				t.Errorf("%s: identity %q", name, id)
			}
		}
	}
	if err := os.Remove(s.IdentityPath()); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.IdentityPath(), []byte("  by-hand-1234\r\nmore"), 0o600); err != nil {
		t.Fatal(err)
	}
	if id, err := s.Identity(t.Context(), ""); id != "by-hand-1234" || err != nil {
		t.Errorf("written by hand: %q, %v", id, err)
	}
}

// TestR15_AStorageGetsOneMark: of several that give one at once, all learn which it is.
func TestR15_AStorageGetsOneMark(t *testing.T) {
	for range 20 {
		s := open(t, t.TempDir(), fsblob.Options{Reserve: -1})
		const givers = 16
		var ids [givers]string
		var wg sync.WaitGroup
		begin := make(chan struct{})
		for i := range givers {
			wg.Go(func() {
				<-begin
				var err error
				if ids[i], err = s.Identity(context.Background(), blobtest.Identity(i)); err != nil {
					t.Error(err)
				}
			})
		}
		close(begin)
		wg.Wait()
		found, err := s.Identity(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		for i, id := range ids {
			if id != found {
				t.Fatalf("giver %d is told %s, the storage has %s", i, id, found)
			}
		}
	}
}

// TestR16_OfAMarkOnlyItsBeginningIsRead, however long the file is.
func TestR16_OfAMarkOnlyItsBeginningIsRead(t *testing.T) {
	s := open(t, t.TempDir(), fsblob.Options{Reserve: -1})
	if err := unix.Mkfifo(s.IdentityPath(), 0o600); err != nil { // a file without an end
		t.Fatal(err)
	}
	read, written := make(chan struct{}), make(chan error, 1)
	go func() {
		f, err := os.OpenFile(s.IdentityPath(), os.O_WRONLY, 0)
		if err == nil {
			_, err = f.WriteString(blobtest.Identity(1) + "\n" + strings.Repeat("x", 8192))
		}
		select {
		case <-read:
		case <-time.After(time.Minute):
			err = errors.Join(err, errors.New("the whole of the mark is read"))
		}
		written <- errors.Join(err, f.Close())
	}()
	id, err := s.Identity(t.Context(), "")
	close(read)
	if err := errors.Join(err, <-written); id != blobtest.Identity(1) || err != nil {
		t.Errorf("identity %q, %v", id, err)
	}
}
