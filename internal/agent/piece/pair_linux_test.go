package piece_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairway-registry/fairway/internal/agent/index"
	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/sqldb/sqldbtest"
)

// filled makes a closed cache with so many blobs.
func filled(t *testing.T, dir string, seeds ...uint64) (all []oci.Digest) {
	t.Helper()
	c := openAt(t, dir, piece.Options{})
	for _, seed := range seeds {
		b, d := content(seed, 1000)
		put(t, c, b, d)
		all = append(all, d)
	}
	c.close(t)
	return all
}

// tryOpen opens a cache whose index and pieces may not belong together.
func tryOpen(t *testing.T, dir string) (*cache, error) {
	t.Helper()
	x, err := index.Open(t.Context(), index.Options{Path: filepath.Join(dir, "index.db")})
	if err != nil {
		t.Fatal(err)
	}
	s, err := piece.Open(context.Background(), piece.Options{Dir: dir, Index: x})
	if err != nil {
		return nil, errors.Join(err, x.Close())
	}
	return &cache{Store: s, index: x, dir: dir}, nil
}

// refusesPair tells that a start is refused with a clear message and changes neither side.
func refusesPair(t *testing.T, what, dir string, rows, files []oci.Digest) {
	t.Helper()
	for range 2 { // nor does the first refusal change what the second start finds
		c, err := tryOpen(t, dir)
		if err == nil {
			c.close(t)
		}
		if !errors.Is(err, piece.ErrMismatch) || !strings.Contains(err.Error(), filepath.Join(dir, "blobs")) || !strings.Contains(err.Error(), "index.db away") {
			t.Fatalf("%s: %v", what, err)
		}
	}
	for _, d := range files {
		if _, err := os.Stat(filepath.Join(dir, "blobs", "sha256", d.Encoded()[:2], d.Encoded())); err != nil {
			t.Errorf("%s: a file is gone: %v", what, err)
		}
	}
	x, err := index.Open(t.Context(), index.Options{Path: filepath.Join(dir, "index.db")})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = x.Close() }()
	for _, d := range rows {
		if _, err := x.Blob(t.Context(), d); err != nil {
			t.Errorf("%s: a row is gone: %v", what, err)
		}
	}
}

// takenBack tells that a start keeps the files of all blobs, as private ones.
func takenBack(t *testing.T, what, dir string, all ...oci.Digest) {
	t.Helper()
	c, err := tryOpen(t, dir)
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	defer c.close(t)
	for _, d := range all {
		if b, err := c.Open(t.Context(), d); err != nil || !b.Complete() || !b.Private() {
			t.Errorf("%s: %v", what, err)
		} else {
			b.Close()
		}
	}
	if n := c.Usage().Blobs; n != int64(len(all)) {
		t.Errorf("%s: %d blobs, want %d", what, n, len(all))
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func rename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

// unmark makes a cache that a former version has left.
func unmark(t *testing.T, dir string) {
	t.Helper()
	forget(t, dir)
	if err := os.Remove(filepath.Join(dir, "blobs", "identity")); err != nil {
		t.Fatal(err)
	}
}

// forget makes an index say what one of a former version does.
func forget(t *testing.T, dir string) {
	t.Helper()
	change(t, dir, "UPDATE pair SET identity = '', run = '', next = ''")
}

// change changes the index of a closed cache.
func change(t *testing.T, dir, query string, args ...any) {
	t.Helper()
	db, err := sql.Open("sqlite", filepath.Join(dir, "index.db"))
	if err == nil {
		_, err = db.Exec(query, args...)
		err = errors.Join(err, db.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestR15_TheDirectoryOfAnotherCacheIsRefused, before anything of it is removed.
func TestR15_TheDirectoryOfAnotherCacheIsRefused(t *testing.T) {
	a, b := t.TempDir(), t.TempDir()
	ours, theirs := filled(t, a, 1), filled(t, b, 2)
	aside := filepath.Join(t.TempDir(), "blobs")
	rename(t, filepath.Join(a, "blobs"), aside)
	rename(t, filepath.Join(b, "blobs"), filepath.Join(a, "blobs"))
	refusesPair(t, "another cache's directory", a, ours, theirs)
	rename(t, filepath.Join(a, "blobs"), filepath.Join(b, "blobs"))
	rename(t, aside, filepath.Join(a, "blobs"))
	c := openAt(t, a, piece.Options{})
	defer c.close(t)
	if i := info(t, c, ours[0]); i.Private || i.State != index.Complete {
		t.Errorf("with its own directory again: %+v", i)
	}
	rename(t, filepath.Join(b, "index.db"), filepath.Join(b, "gone"))
	_ = os.Remove(filepath.Join(b, "index.db-wal"))
	takenBack(t, "the index was moved away, as the message says", b, theirs...)
}

// TestR15_AnIndexOfAnotherTimeRemovesNothing: a copy of it was restored, or one of the pieces.
func TestR15_AnIndexOfAnotherTimeRemovesNothing(t *testing.T) {
	dir := t.TempDir()
	first := filled(t, dir, 1)
	copyFile(t, filepath.Join(dir, "index.db"), filepath.Join(dir, "backup"))
	copyFile(t, filepath.Join(dir, "blobs", "identity"), filepath.Join(dir, "mark"))
	second := filled(t, dir, 2)
	copyFile(t, filepath.Join(dir, "backup"), filepath.Join(dir, "index.db"))
	_ = os.Remove(filepath.Join(dir, "index.db-wal")) // it was closed well, so there is none
	all := append(first, second...)
	takenBack(t, "an index of a backup", dir, all...)
	copyFile(t, filepath.Join(dir, "mark"), filepath.Join(dir, "blobs", "identity"))
	takenBack(t, "pieces of a backup", dir, all...)
	copyFile(t, filepath.Join(dir, "backup"), filepath.Join(dir, "index.db"))
	_ = os.Remove(filepath.Join(dir, "index.db-wal"))
	forget(t, dir)
	takenBack(t, "an index of a former version", dir, all...)
}

// TestR15_ACacheOfAFormerVersionIsMarked if its two parts know each other.
func TestR15_ACacheOfAFormerVersionIsMarked(t *testing.T) {
	a, b := t.TempDir(), t.TempDir()
	ours, theirs := filled(t, a, 1, 2), filled(t, b, 3)
	unmark(t, a)
	unmark(t, b)
	c := openAt(t, a, piece.Options{})
	if i := info(t, c, ours[0]); i.Private || i.State != index.Complete {
		t.Errorf("%+v", i)
	}
	c.close(t)
	if _, err := os.Stat(filepath.Join(a, "blobs", "identity")); err != nil {
		t.Error(err)
	}
	unmark(t, a)
	rename(t, filepath.Join(a, "blobs"), filepath.Join(a, "aside"))
	rename(t, filepath.Join(b, "blobs"), filepath.Join(a, "blobs"))
	refusesPair(t, "parts that do not know each other", a, ours, theirs)
}

// TestR15_ADirectoryThatLostItsMarkIsMarkedAgain if the index knows a file of it; where the
// index knows nothing, the files are taken back.
func TestR15_ADirectoryThatLostItsMarkIsMarkedAgain(t *testing.T) {
	dir := t.TempDir()
	all := filled(t, dir, 1)
	for _, broken := range []string{"", "nonsense", "a b c"} {
		if err := os.WriteFile(filepath.Join(dir, "blobs", "identity"), []byte(broken), 0o600); err != nil {
			t.Fatal(err)
		}
		c := openAt(t, dir, piece.Options{})
		if i := info(t, c, all[0]); i.Private || i.State != index.Complete {
			t.Errorf("%q: %+v", broken, i)
		}
		c.close(t)
	}
	unmark(t, dir)
	change(t, dir, "DELETE FROM blobs")
	takenBack(t, "an index that knows nothing", dir, all...)
}

// TestR16_StartsWithAnEmptyDirectory, and with the pieces when their disk is mounted again.
func TestR16_StartsWithAnEmptyDirectory(t *testing.T) {
	dir := t.TempDir()
	all := filled(t, dir, 1)
	rename(t, filepath.Join(dir, "blobs"), filepath.Join(dir, "aside"))
	filled(t, dir)
	if err := os.RemoveAll(filepath.Join(dir, "blobs")); err != nil {
		t.Fatal(err)
	}
	rename(t, filepath.Join(dir, "aside"), filepath.Join(dir, "blobs"))
	takenBack(t, "its disk is there again", dir, all...)
}

// TestR15_ADirectoryThatDisappearsLosesNothing: neither a row nor what is in its place.
func TestR15_ADirectoryThatDisappearsLosesNothing(t *testing.T) {
	dir := t.TempDir()
	c := openAt(t, dir, piece.Options{})
	defer c.close(t)
	var all []oci.Digest
	for i := range 2 {
		b, d := content(uint64(i), 1000)
		put(t, c, b, d)
		all = append(all, d)
	}
	other := t.TempDir()
	filled(t, other, 0, 1)
	part, dp := content(5, 2*piece.Size)
	begun := create(t, c, dp, len(part))
	write(t, begun, part, 0)
	claims := []piece.Claim{claim(t, c, all[0]), claim(t, c, all[1])}
	blobs, aside := filepath.Join(dir, "blobs"), filepath.Join(dir, "aside")
	for name, place := range map[string]string{"nothing": t.TempDir(), "another cache's": filepath.Join(other, "blobs")} {
		rename(t, blobs, aside)
		rename(t, place, blobs)
		if _, err := c.RemoveAll(t.Context(), claims, func() bool { return true }); !errors.Is(err, piece.ErrMismatch) {
			t.Errorf("%s is in its place: %v", name, err)
		}
		if begun.Supersede(errors.New("it has another size")); name == "another cache's" {
			begun.Close() // what is doomed goes with its last handle
		}
		if name == "nothing" {
			if _, err := c.Open(t.Context(), all[0]); !errors.Is(err, fault.NotFound) {
				t.Errorf("a blob whose disk is gone: %v", err)
			}
			if _, err := c.Create(t.Context(), all[0], 1000, piece.Meta{}); !errors.Is(err, piece.ErrNoRoom) {
				t.Errorf("a blob whose disk is gone is fetched into the cache: %v", err)
			}
		}
		rename(t, blobs, place)
		rename(t, aside, blobs)
	}
	for i, d := range all {
		want, _ := content(uint64(i), 1000)
		if got, err := get(c, d, 0, -1); err != nil || !bytes.Equal(got, want) {
			t.Errorf("with its own directory again: %d bytes, %v", len(got), err)
		}
	}
	if _, err := c.index.Blob(t.Context(), dp); err != nil {
		t.Errorf("what could not be removed lost its row: %v", err)
	}
	d := openAt(t, other, piece.Options{})
	defer d.close(t)
	checkWhole(t, d, 2)
}

// TestR15_NothingIsWrittenIntoAnotherDirectory that has taken the place of the cache's own:
// what is fetched meanwhile passes through (N8).
func TestR15_NothingIsWrittenIntoAnotherDirectory(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	c := openAt(t, dir, piece.Options{})
	defer c.close(t)
	theirs, empty := filled(t, other, 1), t.TempDir()
	want, d := content(1, 1000)
	part, dp := content(2, 2*piece.Size)
	b := create(t, c, dp, len(part))
	write(t, b, part, 0)
	b.Close()
	if _, err := c.Claim(t.Context(), dp, info(t, c, dp).Version); err != nil { // and it is not open any more
		t.Fatal(err)
	}
	blobs, aside := filepath.Join(dir, "blobs"), filepath.Join(dir, "aside")
	for _, place := range []string{empty, filepath.Join(other, "blobs")} {
		rename(t, blobs, aside)
		rename(t, place, blobs)
		if err := c.Put(t.Context(), d, want, piece.Meta{}); !errors.Is(err, piece.ErrNoRoom) || !errors.Is(err, piece.ErrMismatch) {
			t.Errorf("a new blob: %v", err)
		}
		if _, err := c.Create(t.Context(), dp, piece.Size, piece.Meta{}); !errors.Is(err, piece.ErrNoRoom) || !errors.Is(err, piece.ErrMismatch) {
			t.Errorf("a blob that has another size: %v", err)
		}
		rename(t, blobs, place)
		rename(t, aside, blobs)
	}
	if found, err := os.ReadDir(empty); err != nil || len(found) > 0 {
		t.Errorf("%v, %v", found, err)
	}
	o := openAt(t, other, piece.Options{})
	defer o.close(t)
	if got, err := get(o, theirs[0], 0, -1); err != nil || !bytes.Equal(got, want) {
		t.Errorf("another cache's blob: %d bytes, %v", len(got), err)
	}
	put(t, c, want, d)
	checkWhole(t, c, 2)
}

// TestR15_AFullDiskOfPiecesKeepsTheirMark: the index may be on another disk.
func TestR15_AFullDiskOfPiecesKeepsTheirMark(t *testing.T) {
	dir, small := t.TempDir(), smallDisk(t, 16*mib)
	if err := os.Symlink(small, filepath.Join(dir, "blobs")); err != nil {
		t.Fatal(err)
	}
	all := filled(t, dir, 1)
	content, err := os.ReadFile(filepath.Join(small, "identity"))
	if err != nil {
		t.Fatal(err)
	}
	change(t, dir, "UPDATE pair SET run = 'old', next = ?", strings.Fields(string(content))[1]) // a start was cut off
	filler := fillDisk(t, small, 0)
	for range 2 {
		unchanged(t, dir, all[0])
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	unchanged(t, dir, all[0])
}

// unchanged tells that a start leaves a public blob as it is.
func unchanged(t *testing.T, dir string, d oci.Digest) {
	t.Helper()
	c := openAt(t, dir, piece.Options{})
	defer c.close(t)
	if i := info(t, c, d); i.Private || i.State != index.Complete {
		t.Errorf("%+v", i)
	}
}

// TestR15_ACrashBetweenTheTwoSidesIsGoneOnWith, and so is a disk that is full.
func TestR15_ACrashBetweenTheTwoSidesIsGoneOnWith(t *testing.T) {
	dir := t.TempDir()
	all := filled(t, dir, 1)
	mark := filepath.Join(dir, "blobs", "identity")
	public := func(when string, disk *sqldbtest.Disk) {
		t.Helper()
		o := index.Options{Path: filepath.Join(dir, "index.db")}
		if disk != nil {
			o.Driver = disk.Driver()
		}
		x, err := index.Open(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		s, err := piece.Open(t.Context(), piece.Options{Dir: dir, Index: x})
		if err != nil {
			t.Fatalf("%s: %v", when, err)
		}
		c := &cache{Store: s, index: x, dir: dir}
		if i := info(t, c, all[0]); i.Private || i.State != index.Complete {
			t.Errorf("%s: %+v", when, i)
		}
		c.close(t)
	}
	set := func(run, next string) {
		t.Helper()
		change(t, dir, "UPDATE pair SET run = ?, next = ?", run, next)
	}
	said := func() string {
		b, err := os.ReadFile(mark)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Fields(string(b))[1]
	}
	set(said(), "new") // the directory has not been marked yet
	public("before the mark", nil)
	set("old", said()) // it has, and the index does not know
	public("after the mark", nil)
	disk := sqldbtest.NewDisk(t)
	disk.Fill()
	before := said()
	public("on a full disk", disk)
	if said() != before {
		t.Error("the directory was marked with what the index does not know")
	}
	public("with room again", nil)
	if said() == before {
		t.Error("each start is a new run")
	}
}

// TestR7_AStartOnAFullDiskTakesBackWhatItCan, and the next one the rest: nothing is removed
// because there was no room for its row.
func TestR7_AStartOnAFullDiskTakesBackWhatItCan(t *testing.T) {
	disk, dir := sqldbtest.NewDisk(t), t.TempDir()
	c, all := onDisk(t, disk, dir, 3)
	c.close(t)
	change(t, dir, "DELETE FROM blobs")
	x, err := index.Open(t.Context(), index.Options{Path: filepath.Join(dir, "index.db"), Driver: disk.Driver()})
	if err == nil {
		err = x.TakeBack()
	}
	if err != nil {
		t.Fatal(err)
	}
	disk.Fill()
	s, err := piece.Open(t.Context(), piece.Options{Dir: dir, Index: x})
	if err != nil {
		t.Fatal(errors.Join(err, x.Close()))
	}
	disk.Empty()
	if err := x.Adopted(t.Context()); err != nil || !x.Anew() {
		t.Errorf("it counts as rebuilt: %v", err)
	}
	if err := errors.Join(s.Close(), x.Close()); err != nil {
		t.Error(err)
	}
	takenBack(t, "with room again", dir, all...)
}

// TestR15_ADirectoryThatDisappearsIsReported while nothing is removed or made: by a metric,
// and by one line of the log when it begins and when it ends.
func TestR15_ADirectoryThatDisappearsIsReported(t *testing.T) {
	for name, change := range map[string]func(t *testing.T, dir string) (undo func()){
		"nothing": func(t *testing.T, dir string) func() {
			rename(t, dir, dir+".aside")
			return func() { rename(t, dir+".aside", dir) }
		},
		"another": func(t *testing.T, dir string) func() {
			copyFile(t, filepath.Join(dir, "identity"), filepath.Join(dir, "mine"))
			if err := os.WriteFile(filepath.Join(dir, "identity"), []byte("another run\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			return func() { rename(t, filepath.Join(dir, "mine"), filepath.Join(dir, "identity")) }
		},
	} {
		var log bytes.Buffer
		reg, dir := prometheus.NewRegistry(), t.TempDir()
		synctest.Test(t, func(t *testing.T) {
			c := openAt(t, dir, piece.Options{Metrics: reg, Log: slog.New(slog.NewTextHandler(&log, nil))})
			defer c.close(t)
			reports := func(when, text string, n int) {
				t.Helper()
				synctest.Wait()
				if got := strings.Count(log.String(), text); got != n {
					t.Errorf("%s is there, %s: %d lines say %q, want %d: %s", name, when, got, text, n, log.String())
				}
			}
			value := func(when string, want float64) {
				t.Helper()
				all, err := reg.Gather()
				if err != nil {
					t.Fatal(err)
				}
				for _, f := range all {
					if f.GetName() == "fairway_node_cache_identity_mismatch" && f.GetMetric()[0].GetGauge().GetValue() == want {
						return
					}
				}
				t.Errorf("%s is there, %s: the metric is not %v", name, when, want)
			}
			value("at first", 0)
			undo := change(t, filepath.Join(dir, "blobs"))
			time.Sleep(time.Minute)
			reports("after a minute", "is not the one that was opened", 1)
			value("then", 1)
			undo()
			time.Sleep(time.Minute)
			reports("after another", "is there again", 1)
			value("in the end", 0)
			reports("in the end", "is not the one that was opened", 1)
		})
	}
}
