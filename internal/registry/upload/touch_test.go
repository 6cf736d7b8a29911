package upload_test

import (
	"bytes"
	"context"
	"io"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairway-registry/fairway/internal/registry/blob/fsblob"
	"github.com/fairway-registry/fairway/internal/registry/meta"
	"github.com/fairway-registry/fairway/internal/registry/upload"
)

// clocked is sessions whose database has a clock that the test sets.
func clocked(t *testing.T, o upload.Options) (s *upload.Sessions, store *meta.Store, now *atomic.Int64) {
	t.Helper()
	dir := t.TempDir()
	now = &atomic.Int64{}
	now.Store(1_000_000)
	files, err := fsblob.Open(dir, fsblob.Options{Reserve: -1, MinFree: -1})
	if err != nil {
		t.Fatal(err)
	}
	store, err = meta.Open(t.Context(), meta.Options{Path: filepath.Join(dir, "fairway.db"), Now: now.Load})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
		if err := files.Close(); err != nil {
			t.Error(err)
		}
	})
	return upload.New(store, files, o), store, now
}

// idleSince reports whether the session had no sign of life since before ms.
func idleSince(t *testing.T, store *meta.Store, ms int64) bool {
	t.Helper()
	all, err := store.RepoScope(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	idle, err := store.IdleUploads(t.Context(), ms, all, meta.UploadFacts{}, 10)
	if err != nil {
		t.Fatal(err)
	}
	return len(idle) > 0
}

func TestLongTransfer_KeepsItsSessionAlive(t *testing.T) {
	s, store, now := clocked(t, upload.Options{Touch: time.Nanosecond})
	u, err := s.Start(t.Context(), repo, "")
	if err != nil {
		t.Fatal(err)
	}
	body, client := io.Pipe()
	done := make(chan error, 1)
	go func() {
		_, err := s.Append(context.Background(), repo, u.ID, streamed(body))
		done <- err
	}()
	piece := bytes.Repeat([]byte("x"), 512<<10)
	// The first piece is taken after the session was opened, which is a sign of
	// life of its own. Only what the transfer does counts from here on.
	if _, err := client.Write(piece); err != nil {
		t.Fatal(err)
	}
	later := now.Add(3_600_000)
	for range 4 { // more than all buffers: the first ones are written when the last is taken
		if _, err := client.Write(piece); err != nil {
			t.Fatal(err)
		}
	}
	if idleSince(t, store, later-1) {
		t.Error("a session that receives bytes counts as idle")
	}
	_ = client.Close()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestRequestOnAnOldSession_MakesItFreshBeforeItWrites(t *testing.T) {
	s, store, now := clocked(t, upload.Options{})
	u, err := s.Start(t.Context(), repo, "")
	if err != nil {
		t.Fatal(err)
	}
	s = upload.New(store, nil, upload.Options{}) // another process, which has seen nothing of the session
	later := now.Add(3_600_000)
	if !idleSince(t, store, later-1) {
		t.Fatal("the session is not idle to begin with")
	}
	// A chunk that does not fit is refused after the session was opened and
	// before a byte is written.
	if _, err := s.Append(t.Context(), repo, u.ID, at(7, []byte("x"))); err == nil {
		t.Fatal("no error")
	}
	if idleSince(t, store, later-1) {
		t.Error("the collector may take the session away while it is written to")
	}
}
