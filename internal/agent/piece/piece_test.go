package piece_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/agent/index"
	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/disk"
	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
)

const mib = 1 << 20

// cache is a store with its index.
type cache struct {
	*piece.Store
	index *index.Index
	dir   string
}

func (c *cache) close(t testing.TB) {
	t.Helper()
	if err := errors.Join(c.Store.Close(), c.index.Close()); err != nil {
		t.Error(err)
	}
}

func openAt(t testing.TB, dir string, o piece.Options) *cache {
	t.Helper()
	x, err := index.Open(context.Background(), index.Options{Path: filepath.Join(dir, "index.db")})
	if err != nil {
		t.Fatal(err)
	}
	o.Dir, o.Index = dir, x
	s, err := piece.Open(context.Background(), o)
	if err != nil {
		_ = x.Close()
		t.Fatal(err)
	}
	return &cache{Store: s, index: x, dir: dir}
}

func open(t testing.TB, o piece.Options) *cache {
	t.Helper()
	c := openAt(t, t.TempDir(), o)
	t.Cleanup(func() { c.close(t) })
	return c
}

// content makes bytes that are the same for the same seed, and their digest.
func content(seed uint64, size int) ([]byte, oci.Digest) {
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)})
	b := make([]byte, size)
	_, _ = r.Read(b)
	return b, digest.FromBytes(b)
}

func part(b []byte, i int) []byte { return b[i*piece.Size : min(len(b), (i+1)*piece.Size)] }

func create(t testing.TB, c *cache, d oci.Digest, size int) *piece.Blob {
	t.Helper()
	b, err := c.Create(context.Background(), d, int64(size), piece.Meta{MediaType: "application/test"})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func write(t testing.TB, b *piece.Blob, all []byte, pieces ...int) {
	t.Helper()
	for _, i := range pieces {
		if err := b.WritePiece(context.Background(), i, part(all, i), "test"); err != nil {
			t.Fatalf("write piece %d: %v", i, err)
		}
	}
}

func put(t testing.TB, c *cache, all []byte, d oci.Digest) {
	t.Helper()
	if err := c.Put(context.Background(), d, all, piece.Meta{}); err != nil {
		t.Fatal(err)
	}
}

// get reads a blob by Read, or by WriteTo into something that is no file.
func get(c *cache, d oci.Digest, off, n int64) ([]byte, error) {
	b, err := c.Open(context.Background(), d)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	r := b.NewReader(context.Background(), off, n)
	defer r.Close()
	var buf bytes.Buffer
	_, err = io.Copy(&buf, r)
	return buf.Bytes(), err
}

func info(t testing.TB, c *cache, d oci.Digest) piece.Info {
	t.Helper()
	i, err := c.Info(context.Background(), d)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func TestBlob_IsWhatWasWrittenInAnyOrderAndSurvivesARestart(t *testing.T) {
	dir := t.TempDir()
	c := openAt(t, dir, piece.Options{})
	all, d := content(1, 5*piece.Size+77)
	b := create(t, c, d, len(all))
	write(t, b, all, 3, 0, 5, 4, 1)
	if b.Complete() || !b.Has(3) || b.Has(2) || len(b.Missing()) != 1 {
		t.Fatalf("complete %v, missing %v", b.Complete(), b.Missing())
	}
	write(t, b, all, 1, 2) // 1 a second time
	if !b.Complete() {
		t.Fatal("it is not complete")
	}
	b.Close()
	for range 2 {
		for _, r := range [][2]int64{{0, -1}, {5, 10}, {piece.Size - 3, 7}, {int64(len(all)) - 1, 9}, {int64(len(all)), 1}, {piece.Size, 3 * piece.Size}} {
			got, err := get(c, d, r[0], r[1])
			want := all[r[0]:]
			if r[1] >= 0 {
				want = want[:min(int64(len(want)), r[1])]
			}
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("bytes %d+%d: %d bytes, want %d, %v", r[0], r[1], len(got), len(want), err)
			}
		}
		if i := info(t, c, d); i.State != index.Complete || i.Present != int64(len(all)) || i.Source != "test" || i.MediaType != "application/test" {
			t.Errorf("%+v", i)
		}
		if u := c.Usage(); u.Used != piece.Cost(int64(len(all))) || u.Blobs != 1 || c.Pending() != 0 {
			t.Errorf("%+v, pending %d", u, c.Pending())
		}
		c.close(t)
		c = openAt(t, dir, piece.Options{})
	}
	c.close(t)
}

func TestBlob_SmallestOnes(t *testing.T) {
	c := open(t, piece.Options{})
	for _, n := range []int{0, 1, piece.Size, piece.Size + 1} {
		all, d := content(9, n)
		put(t, c, all, d)
		if got, err := get(c, d, 0, -1); err != nil || !bytes.Equal(got, all) {
			t.Errorf("%d bytes: got %d, %v", n, len(got), err)
		}
	}
	all, d := content(1, 10)
	if err := c.Put(context.Background(), d, all[:9], piece.Meta{}); err == nil {
		t.Error("content that does not match its digest was put")
	}
	_, other := content(2, 10)
	if _, err := c.Create(context.Background(), other, 0, piece.Meta{}); err == nil {
		t.Error("an empty blob with the digest of another was made")
	}
	if _, err := get(c, oci.Digest("sha256:"+strings.Repeat("0", 64)), 0, -1); !errors.Is(err, fault.NotFound) {
		t.Errorf("a blob that is not here: %v", err)
	}
}

func TestBlob_Sha512(t *testing.T) {
	dir := t.TempDir()
	c := openAt(t, dir, piece.Options{})
	all, _ := content(3, 2*piece.Size+5)
	d := digest.SHA512.FromBytes(all)
	b := create(t, c, d, len(all))
	write(t, b, all, 2, 0)
	b.Close()
	c.close(t)
	c = openAt(t, dir, piece.Options{})
	defer c.close(t)
	b = create(t, c, d, len(all))
	defer b.Close()
	write(t, b, all, b.Missing()...)
	if got, err := get(c, d, 0, -1); err != nil || !bytes.Equal(got, all) || !b.Complete() {
		t.Fatalf("got %d bytes, %v", len(got), err)
	}
}

func TestN7_LastPieceIsHeldBackUntilTheWholeMatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := open(t, piece.Options{})
		all, d := content(1, 3*piece.Size)
		b := create(t, c, d, len(all))
		defer b.Close()
		write(t, b, all, 0, 2) // the last one is here, and one before is not
		r := b.NewReader(t.Context(), 2*piece.Size, -1)
		defer r.Close()
		got := make(chan error, 1)
		go func() {
			p, err := io.ReadAll(r)
			if err == nil && !bytes.Equal(p, part(all, 2)) {
				err = errors.New("other bytes")
			}
			got <- err
		}()
		synctest.Wait()
		select {
		case err := <-got:
			t.Fatalf("the last piece was handed out before the whole was there: %v", err)
		default:
		}
		write(t, b, all, 1)
		if err := <-got; err != nil {
			t.Fatal(err)
		}
	})
}

// TestN7_PartOfABlobThatIsStillComingEndsWhenTheWholeMatches: an answer to a
// Range that ended before would be complete and not verified.
func TestN7_PartOfABlobThatIsStillComingEndsWhenTheWholeMatches(t *testing.T) {
	all, d := content(1, 4*piece.Size)
	for _, part := range [][2]int64{{0, 1000}, {5, 1}, {0, piece.Size}, {0, piece.Size + 1}, {100, 2 * piece.Size}, {piece.Size, piece.Size}} {
		for _, honest := range []bool{true, false} {
			synctest.Test(t, func(t *testing.T) {
				c := open(t, piece.Options{})
				b := create(t, c, d, len(all))
				defer b.Close()
				came := bytes.Clone(all)
				if !honest {
					came[0] ^= 1
				}
				write(t, b, came, 0, 1, 2)
				r := b.NewReader(t.Context(), part[0], part[1])
				defer r.Close()
				var got bytes.Buffer
				read := make(chan error, 1)
				go func() { _, err := io.Copy(&got, r); read <- err }()
				synctest.Wait()
				if whole := (part[0]+part[1]-1)/piece.Size - part[0]/piece.Size; int64(got.Len()) > whole*piece.Size {
					t.Errorf("bytes %d+%d: %d were handed out of what is not verified", part[0], part[1], got.Len())
				}
				if err := b.WritePiece(t.Context(), 3, came[3*piece.Size:], "test"); honest != (err == nil) {
					t.Errorf("the last piece, honest %v: %v", honest, err)
				}
				if !honest {
					write(t, b, all, 0, 1, 2, 3) // a reader that was given nothing begins anew
				}
				err := <-read
				if right := bytes.Equal(got.Bytes(), all[part[0]:part[0]+part[1]]); right != (err == nil) || honest && !right {
					t.Errorf("bytes %d+%d, honest %v: right %v, %v", part[0], part[1], honest, right, err)
				}
			})
		}
	}
}

func TestN7_WrongBytesAreAllDroppedAndTheirSourcesNamed(t *testing.T) {
	c := open(t, piece.Options{})
	all, d := content(1, 3*piece.Size+1)
	b := create(t, c, d, len(all))
	defer b.Close()
	ctx := t.Context()
	begun := b.NewReader(ctx, 0, -1)
	defer begun.Close()
	fresh := b.NewReader(ctx, 0, -1) // hands nothing out before the bytes turn out wrong
	defer fresh.Close()
	lie := bytes.Clone(all)
	lie[piece.Size] ^= 1
	for i, from := range []string{"honest", "liar", "honest"} {
		if err := b.WritePiece(ctx, i, part(lie, i), from); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := io.ReadFull(begun, make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	err := b.WritePiece(ctx, 3, part(lie, 3), "honest")
	var wrong *piece.MismatchError
	if !errors.As(err, &wrong) || len(wrong.From["liar"]) != 1 || wrong.From["liar"][0] != 1 || len(wrong.From["honest"]) != 3 {
		t.Fatalf("%v: %+v", err, wrong)
	}
	if len(b.Missing()) != 4 || b.Complete() {
		t.Fatalf("missing %v", b.Missing())
	}
	write(t, b, all, 0, 1, 2, 3)
	if p, err := io.ReadAll(begun); !errors.As(err, &wrong) {
		t.Errorf("a reader that was given wrong bytes got %d more and %v", len(p), err)
	}
	if p, err := io.ReadAll(fresh); err != nil || !bytes.Equal(p, all) {
		t.Errorf("a reader that was given nothing yet got %d bytes, %v", len(p), err)
	}
	if u := c.Usage(); u.Used != piece.Cost(int64(len(all))) || c.Pending() != 0 {
		t.Errorf("%+v, pending %d", u, c.Pending())
	}
}

// TestN7_WhatComesAfterItsRoundIsNotStored: a source that was found wrong may still
// be sending, also a piece that another has brought meanwhile.
func TestN7_WhatComesAfterItsRoundIsNotStored(t *testing.T) {
	c := open(t, piece.Options{})
	all, d := content(1, 2*piece.Size)
	b := create(t, c, d, len(all))
	defer b.Close()
	lie := bytes.Clone(all)
	lie[0] ^= 1
	round := b.Round()
	if err := b.WritePieceOf(t.Context(), round, 0, part(lie, 0), "liar"); err != nil {
		t.Fatal(err)
	}
	var writers sync.WaitGroup
	for range 8 { // all but one of them wait for another, or come after the end
		writers.Go(func() {
			err := b.WritePieceOf(t.Context(), round, 1, part(lie, 1), "liar")
			if wrong := (*piece.MismatchError)(nil); !errors.As(err, &wrong) {
				t.Errorf("a writer was told: %v", err)
			}
		})
	}
	writers.Wait()
	if missing := b.Missing(); len(missing) != 2 || b.Round() == round {
		t.Fatalf("missing: %v, round %d after %d", missing, b.Round(), round)
	}
	write(t, b, all, 0, 1)
	if !b.Complete() {
		t.Error("the next round is not right")
	}
}

func TestBlob_ManyWritersAndReadersAtOnce(t *testing.T) {
	c := open(t, piece.Options{})
	all, d := content(5, 40*piece.Size+3)
	var wg sync.WaitGroup
	for w := range 4 {
		b := create(t, c, d, len(all))
		wg.Go(func() {
			defer b.Close()
			for _, i := range rand.New(rand.NewPCG(uint64(w), 0)).Perm(b.Pieces()) {
				if err := b.WritePiece(t.Context(), i, part(all, i), "w"); err != nil {
					t.Errorf("writer %d, piece %d: %v", w, i, err)
				}
			}
		})
		wg.Go(func() {
			if got, err := get(c, d, int64(w), -1); err != nil || !bytes.Equal(got, all[w:]) {
				t.Errorf("reader %d: %d bytes, %v", w, len(got), err)
			}
		})
	}
	wg.Wait()
	if i := info(t, c, d); i.State != index.Complete || i.Readers != 0 {
		t.Errorf("%+v", i)
	}
}

func TestBlob_FailedWakesThoseWhoWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := open(t, piece.Options{})
		all, d := content(1, 3*piece.Size)
		b := create(t, c, d, len(all))
		defer b.Close()
		release, ok := b.Filling()
		if _, twice := b.Filling(); !ok || twice {
			t.Fatalf("filling: %v, a second time: %v", ok, twice)
		}
		write(t, b, all, 0)
		got := make(chan error, 1)
		go func() { got <- b.Wait(t.Context(), 1) }()
		synctest.Wait()
		gone := errors.New("the upstream is gone")
		b.Failed(gone)
		if err := <-got; !errors.Is(err, gone) {
			t.Errorf("who waited got %v", err)
		}
		if err := b.Wait(t.Context(), 0); err != nil {
			t.Errorf("a piece that is here: %v", err)
		}
		release()
		release, ok = b.Filling()
		if !ok {
			t.Fatal("nobody fills, and nobody may")
		}
		go func() { got <- b.Wait(t.Context(), 1) }()
		synctest.Wait()
		release() // without a word
		if err := <-got; err == nil {
			t.Error("the one who filled left, and waiting was no error")
		}
		go func() { _, err := io.Copy(io.Discard, b.NewReader(t.Context(), 0, -1)); got <- err }()
		if err := <-got; err == nil {
			t.Error("a half blob ended as if it were whole")
		}
	})
}

func TestOpen_OneProcessPerDirectory(t *testing.T) {
	c := open(t, piece.Options{})
	if _, err := index.Open(t.Context(), index.Options{Path: filepath.Join(c.dir, "index.db")}); !errors.Is(err, disk.ErrInUse) {
		t.Errorf("a second index: %v", err)
	}
	if _, err := piece.Open(t.Context(), piece.Options{Dir: c.dir, Index: c.index}); !errors.Is(err, disk.ErrInUse) {
		t.Errorf("a second store: %v", err)
	}
}

func TestOpen_RemovesFilesWithoutRowsAndRowsWithoutFiles(t *testing.T) {
	dir := t.TempDir()
	c := openAt(t, dir, piece.Options{})
	var ds []oci.Digest
	for i := range 4 {
		all, d := content(uint64(i), 1000)
		put(t, c, all, d)
		ds = append(ds, d)
	}
	for _, path := range []string{c.Path(ds[0]), c.Path(ds[1]) + ".pieces"} {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.index.Forget(t.Context(), ds[2]); err != nil {
		t.Fatal(err)
	}
	strange := filepath.Join(filepath.Dir(c.Path(ds[3])), "notes.txt")
	if err := os.WriteFile(strange, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c.close(t)
	c = openAt(t, dir, piece.Options{})
	defer c.close(t)
	list, err := c.List(t.Context())
	if err != nil || len(list) != 1 || list[0].Digest != ds[3] {
		t.Fatalf("%+v, %v", list, err)
	}
	if u := c.Usage(); u.Blobs != 1 || u.Used != piece.Cost(1000) {
		t.Errorf("%+v", u)
	}
	for _, d := range ds[:3] {
		for _, suffix := range []string{"", ".pieces"} {
			if _, err := os.Stat(c.Path(d) + suffix); !os.IsNotExist(err) {
				t.Errorf("%s%s is still there: %v", d, suffix, err)
			}
		}
	}
	if _, err := os.Stat(strange); err != nil {
		t.Errorf("a file of somebody else: %v", err)
	}
}
