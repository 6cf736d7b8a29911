package piece_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairway-registry/fairway/internal/agent/index"
	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/fault"
)

func patch(t testing.TB, path string, off int64, p []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(p, off); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestN7_DamageIsFoundDroppedAndMended damages the files of a blob while it is
// closed, open, and after a restart.
func TestN7_DamageIsFoundDroppedAndMended(t *testing.T) {
	const size = 4*piece.Size + 100
	all, d := content(1, size)
	for name, tc := range map[string]struct {
		damage func(t *testing.T, path string)
		pieces int // that are missing afterwards
	}{
		"a bit": {func(t *testing.T, path string) { patch(t, path, 2*piece.Size+9, []byte{all[2*piece.Size+9] ^ 1}) }, 1},
		"truncated": {func(t *testing.T, path string) {
			if err := os.Truncate(path, piece.Size+1); err != nil {
				t.Fatal(err)
			}
		}, 4},
		"emptied": {func(t *testing.T, path string) {
			if err := os.Truncate(path, 0); err != nil {
				t.Fatal(err)
			}
		}, 5},
		"a record": {func(t *testing.T, path string) { patch(t, path+".pieces", 24+8*3, []byte{1, 2, 3}) }, 1},
		"records cut off": {func(t *testing.T, path string) {
			if err := os.Truncate(path+".pieces", 24+8*2+3); err != nil {
				t.Fatal(err)
			}
		}, 3},
		"the header": {func(t *testing.T, path string) { patch(t, path+".pieces", 0, []byte{0}) }, 5},
	} {
		t.Run(name, func(t *testing.T) {
			for _, restart := range []bool{false, true} {
				dir, reg := t.TempDir(), prometheus.NewRegistry()
				c := openAt(t, dir, piece.Options{Metrics: reg})
				put(t, c, all, d)
				if _, err := get(c, d, 0, -1); err != nil {
					t.Fatal(err)
				}
				sidecarHit := tc.damage
				if restart {
					path := c.Path(d)
					c.close(t)
					sidecarHit(t, path)
					reg = prometheus.NewRegistry()
					c = openAt(t, dir, piece.Options{Metrics: reg})
				} else if sidecarHit(t, c.Path(d)); tc.pieces == 3 || name == "a record" || name == "the header" {
					c.close(t) // what is in memory does not need that file
					continue
				}
				mend(t, c, reg, all, tc.pieces)
				c.close(t)
			}
		})
	}
}

// mend reads until the damage is found, fetches what is missing, and reads again.
func mend(t *testing.T, c *cache, reg *prometheus.Registry, all []byte, missing int) {
	t.Helper()
	_, d := content(1, len(all))
	b, err := c.Open(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	found := !b.Complete()
	for b.Complete() {
		got, err := readAll(t, b)
		if err == nil {
			t.Fatalf("damaged bytes were read as if they were right: %v", bytes.Equal(got, all))
		}
		if !errors.Is(err, piece.ErrCorrupt) || !bytes.Equal(got, all[:len(got)]) {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
		found = true
	}
	for i := range b.Pieces() { // as a filler would, or a peer
		_, _ = b.ReadPiece(i, make([]byte, piece.Size))
	}
	if !found || len(b.Missing()) != missing {
		t.Fatalf("missing pieces: %v, want %d", b.Missing(), missing)
	}
	if i := info(t, c, d); i.State != index.Partial || i.Present == int64(len(all)) {
		t.Errorf("%+v", i)
	}
	if got := metric(t, reg, "fairway_node_cache_corrupt_pieces_total"); got < float64(missing) {
		t.Errorf("%v pieces were counted", got)
	}
	write(t, b, all, b.Missing()...)
	if got, err := readAll(t, b); err != nil || !bytes.Equal(got, all) {
		t.Fatalf("after it was mended: %d bytes, %v", len(got), err)
	}
	if i := info(t, c, d); i.State != index.Complete || c.Pending() != 0 {
		t.Errorf("%+v, pending %d", i, c.Pending())
	}
}

func readAll(t *testing.T, b *piece.Blob) ([]byte, error) {
	t.Helper()
	r := b.NewReader(t.Context(), 0, -1)
	defer r.Close()
	var buf bytes.Buffer
	_, err := io.Copy(struct{ io.Writer }{&buf}, r)
	return buf.Bytes(), err
}

// TestN7_PieceOfALiarDoesNotPassWhenItsFirstCopyIsLost: what a reader was given
// of a blob that is not verified may have been wrong.
func TestN7_ReaderOfWhatWasNeverVerifiedFailsWhenAPieceIsLost(t *testing.T) {
	c := open(t, piece.Options{})
	all, d := content(1, 3*piece.Size)
	b := create(t, c, d, len(all))
	defer b.Close()
	lie := bytes.Clone(all)
	lie[5] ^= 1
	write(t, b, lie, 0)
	r := b.NewReader(t.Context(), 0, -1)
	defer r.Close()
	if _, err := io.ReadFull(r, make([]byte, piece.Size)); err != nil {
		t.Fatal(err)
	}
	patch(t, c.Path(d), 7, []byte{all[7] ^ 1})
	if _, err := b.ReadPiece(0, make([]byte, piece.Size)); !errors.Is(err, piece.ErrCorrupt) {
		t.Fatal(err)
	}
	write(t, b, all, 0, 1, 2)
	if !b.Complete() {
		t.Fatal("it is not complete")
	}
	// ErrCorrupt would have it followed by a reader that goes on after the wrong bytes.
	if _, err := io.ReadAll(r); !errors.Is(err, piece.ErrDoubt) || errors.Is(err, piece.ErrCorrupt) {
		t.Errorf("a reader that was given wrong bytes: %v", err)
	}
}

func TestN7_FilesThatVanishAreNotFound(t *testing.T) {
	c := open(t, piece.Options{})
	all, d := content(1, 100)
	cl := func() {
		put(t, c, all, d)
		if err := c.Unclaim(t.Context(), claim(t, c, d)); err != nil { // closes it
			t.Fatal(err)
		}
		if err := os.Remove(c.Path(d)); err != nil {
			t.Fatal(err)
		}
	}
	cl()
	if _, err := c.Open(t.Context(), d); !errors.Is(err, fault.NotFound) {
		t.Errorf("open: %v", err)
	}
	if u := c.Usage(); u.Used != 0 || u.Blobs != 0 || c.Pending() != 0 {
		t.Errorf("%+v", u)
	}
	cl()
	put(t, c, all, d) // is made anew
	if got, err := get(c, d, 0, -1); err != nil || !bytes.Equal(got, all) {
		t.Errorf("%v", err)
	}
}
