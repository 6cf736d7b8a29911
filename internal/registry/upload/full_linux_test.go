package upload_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/blob/blobtest"
	"github.com/fairway-registry/fairway/internal/registry/blob/fsblob"
	"github.com/fairway-registry/fairway/internal/registry/meta"
	"github.com/fairway-registry/fairway/internal/registry/upload"
	"github.com/fairway-registry/fairway/internal/sqldb"
)

const mib = 1 << 20

// fill takes what is left of a disk.
func fill(t *testing.T, dir string) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(dir, "filler"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	for part := make([]byte, 4096); err == nil; {
		_, err = f.Write(part)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestR7_AnUploadIsCancelledOnAFullDisk(t *testing.T) {
	dir := blobtest.SmallDisk(t, 24*mib)
	files, err := fsblob.Open(dir, fsblob.Options{Reserve: 2 * mib, MinFree: 1 * mib})
	if err != nil {
		t.Fatal(err)
	}
	store, err := meta.Open(t.Context(), meta.Options{Path: filepath.Join(dir, "fairway.db"), Release: files.Release})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(store.Close(), files.Close()); err != nil {
			t.Error(err)
		}
	})
	s := upload.New(store, files, upload.Options{})
	var cancel, disown meta.Upload
	for _, u := range []*meta.Upload{&cancel, &disown} {
		if *u, err = s.Start(t.Context(), repo, ""); err != nil {
			t.Fatal(err)
		}
		if *u, err = s.Append(t.Context(), repo, u.ID, whole(blobtest.Bytes(1, mib))); err != nil {
			t.Fatal(err)
		}
	}
	exhaust := func() {
		t.Helper()
		fill(t, dir)
		for i := 0; err == nil; i++ { // what is left in the log
			_, err = store.CreateUpload(t.Context(), oci.Name(fmt.Sprintf("repository/%d", i)), "sha256")
		}
		if !sqldb.IsFull(err) {
			t.Fatalf("the database still writes to a full disk: %v", err)
		}
		err = nil
	}
	exhaust()
	if err := s.Cancel(t.Context(), repo, cancel.ID, "test"); err != nil {
		t.Fatalf("cancel an upload on a full disk: %v", err)
	}
	if sp, err := files.Space(); err != nil || sp.Reserve != 0 {
		t.Fatalf("the reserve was not needed: the test tests nothing: %+v, %v", sp, err)
	}
	if _, err := s.Status(t.Context(), repo, cancel.ID); err == nil {
		t.Error("the upload is still there")
	}
	// Its bytes are free to go, and the reserve comes back with the next upload.
	for _, key := range []string{cancel.Key, disown.Key} {
		if _, err := files.Delete(t.Context(), key); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Truncate(filepath.Join(dir, "filler"), 4*mib); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Put(t.Context(), repo, digest.FromBytes([]byte("x")), whole([]byte("x"))); err != nil {
		t.Fatalf("upload when there is room again: %v", err)
	}
	if sp, err := files.Space(); err != nil || sp.Reserve != 2*mib {
		t.Fatalf("the reserve is not back: %+v, %v", sp, err)
	}
	exhaust()
	if err := store.DisownUpload(t.Context(), blobtest.Key(9), 1); err != nil {
		t.Fatalf("disown a key on a full disk: %v", err)
	}
}

// unread is a body that must not be read.
type unread struct{ t *testing.T }

func (u unread) Read([]byte) (int, error) {
	u.t.Error("the body is read")
	return 0, io.ErrUnexpectedEOF
}

// TestR7_AChunkThatTheDiskHasNoRoomForIsRefusedUnread: its client would send all that the
// disk takes, and others would find it full. What was there stays.
func TestR7_AChunkThatTheDiskHasNoRoomForIsRefusedUnread(t *testing.T) {
	dir := blobtest.SmallDisk(t, 24*mib)
	files, err := fsblob.Open(dir, fsblob.Options{Reserve: 2 * mib, MinFree: 8 * mib})
	if err != nil {
		t.Fatal(err)
	}
	store, err := meta.Open(t.Context(), meta.Options{Path: filepath.Join(t.TempDir(), "fairway.db")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(store.Close(), files.Close()); err != nil {
			t.Error(err)
		}
	})
	s := upload.New(store, files, upload.Options{})
	u, err := s.Start(t.Context(), repo, "")
	if err != nil {
		t.Fatal(err)
	}
	part := blobtest.Bytes(1, 2*mib)
	if _, err := s.Append(t.Context(), repo, u.ID, whole(part[:mib])); err != nil {
		t.Fatal(err)
	}
	d := digest.FromBytes(part)
	for _, n := range []int64{14 * mib, 1 << 40} { // 13 are free, 8 of these to be kept
		announced := upload.Chunk{Body: unread{t}, Length: n}
		_, patch := s.Append(t.Context(), repo, u.ID, announced)
		_, finish := s.Finish(t.Context(), repo, u.ID, d, announced)
		_, put := s.Put(t.Context(), repo, d, announced)
		for what, err := range map[string]error{"PATCH": patch, "PUT": finish, "POST": put} {
			if !errors.Is(err, fault.Full) {
				t.Errorf("%s of %d bytes: %v", what, n, err)
			}
		}
	}
	ranged := upload.Chunk{Body: unread{t}, Length: -1, Ranged: true, First: mib, Last: 20 * mib}
	if _, err := s.Append(t.Context(), repo, u.ID, ranged); !errors.Is(err, fault.Full) {
		t.Errorf("PATCH with a range: %v", err)
	}
	if _, err := s.Finish(t.Context(), repo, u.ID, d, whole(part[mib:])); err != nil {
		t.Errorf("what there is room for: %v", err)
	}
}
