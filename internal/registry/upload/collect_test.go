package upload_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"io"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/blob"
	"github.com/fairway-registry/fairway/internal/registry/blob/blobtest"
	"github.com/fairway-registry/fairway/internal/registry/meta"
	"github.com/fairway-registry/fairway/internal/registry/upload"
)

// collector is a collection with window 0 of another process, which does not
// know what is busy here.
type collector struct {
	t     *testing.T
	store *meta.Store
	run   int64
}

func collecting(t *testing.T, store *meta.Store) *collector {
	t.Helper()
	run, err := store.StartRun(t.Context(), "manual", "test", meta.Policy{})
	if err != nil {
		t.Fatal(err)
	}
	return &collector{t: t, store: store, run: run.ID}
}

// judge returns claims for all sessions.
func (c *collector) judge() (claims []meta.UploadClaim) {
	c.t.Helper()
	all, err := c.store.RepoScope(c.t.Context(), "")
	if err != nil {
		c.t.Fatal(err)
	}
	facts, err := c.store.IdleUploads(c.t.Context(), meta.NoLimit, all, meta.UploadFacts{}, 10)
	if err != nil {
		c.t.Fatal(err)
	}
	for _, f := range facts {
		claims = append(claims, meta.UploadClaim{ID: f.ID, Version: f.Version, Before: f.TouchedAt, Reason: "test"})
	}
	return claims
}

// act makes claims and wants to win so many.
func (c *collector) act(claims []meta.UploadClaim, win int64) {
	c.t.Helper()
	done, err := c.store.Collect(c.t.Context(), meta.Work{Run: c.run, Actor: "test", Abandon: claims})
	if err != nil || done.Collected != win || len(claims) == 0 {
		c.t.Fatalf("of %d sessions %d were taken away, error %v; want %d", len(claims), done.Collected, err, win)
	}
}

// purge does what is due and returns how many objects that was.
func (c *collector) purge(b *bench) int {
	c.t.Helper()
	due, err := c.store.DuePurges(c.t.Context(), 0, 0, "", 10)
	if err != nil {
		c.t.Fatal(err)
	}
	var done []meta.Purged
	for _, p := range due {
		if _, err := b.files.Delete(c.t.Context(), p.Key); err != nil && !errors.Is(err, blob.ErrNotFound) {
			c.t.Fatal(err)
		}
		done = append(done, meta.Purged{Key: p.Key})
	}
	if _, err := c.store.FinishPurges(c.t.Context(), c.run, done); err != nil {
		c.t.Fatal(err)
	}
	return len(due)
}

// writes are the requests that write to a session.
func (b *bench) writes() map[string]func(u meta.Upload, body io.Reader, want []byte) error {
	return map[string]func(meta.Upload, io.Reader, []byte) error{
		"PATCH": func(u meta.Upload, body io.Reader, _ []byte) error {
			_, err := b.Append(context.Background(), repo, u.ID, streamed(body))
			return err
		},
		"PUT": func(u meta.Upload, body io.Reader, want []byte) error {
			_, err := b.Finish(context.Background(), repo, u.ID, digest.FromBytes(want), streamed(body))
			return err
		},
	}
}

func TestR4_ARequestBeatsACollectorThatJudgedBefore(t *testing.T) {
	b := open(t)
	c := collecting(t, b.store)
	for name, write := range b.writes() {
		p := random(100)
		u := b.start("")
		claims := c.judge()
		body, client := io.Pipe()
		done := make(chan error, 1)
		go func() { done <- write(u, body, p) }()
		if _, err := client.Write(p[:50]); err != nil { // returns when it is being read
			t.Fatal(err)
		}
		c.act(claims, 0)
		if _, err := client.Write(p[50:]); err != nil {
			t.Fatal(err)
		}
		_ = client.Close()
		if err := <-done; err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if name == "PATCH" {
			b.wantSize(u.ID, 100)
			claims = c.judge() // between two requests it is fair game
			c.act(claims, 1)
		} else {
			b.wantBlob(digest.FromBytes(p), p)
		}
	}
}

func TestPut_IsBusyAsLongAsItsSessionIsThere(t *testing.T) {
	b := open(t)
	c := collecting(t, b.store)
	looked := 0
	b.blobs.Plan(func(blobtest.Op) blobtest.Fate {
		for _, claim := range c.judge() {
			looked++
			if !b.Busy(claim.ID) {
				t.Error("the collector sees the session idle while its bytes come")
			}
		}
		return blobtest.Pass
	})
	p := random(100)
	if _, err := b.Put(t.Context(), repo, digest.FromBytes(p), whole(p)); err != nil {
		t.Fatal(err)
	}
	if looked < 3 { // at the object's creation, a write and the commit
		t.Errorf("the session was seen %d times", looked)
	}
}

func TestR6_BytesThatCameAfterTheirPurgeArePurgedAgain(t *testing.T) {
	b := open(t)
	c := collecting(t, b.store)
	for name, write := range b.writes() {
		p := random(100)
		u := b.start("")
		body, client := io.Pipe()
		done := make(chan error, 1)
		held, release := make(chan struct{}), make(chan struct{})
		b.blobs.Plan(func(op blobtest.Op) blobtest.Fate {
			if op.Kind == blobtest.OpAppend {
				close(held)
				<-release
			}
			return blobtest.Pass
		})
		go func() { done <- write(u, body, p) }()
		<-held // before its first byte
		c.act(c.judge(), 1)
		if n := c.purge(b); n != 1 {
			t.Fatalf("%s: %d objects were to be purged, want the session's", name, n)
		}
		close(release)
		if _, err := client.Write(p); err != nil {
			t.Fatal(err)
		}
		_ = client.Close()
		if err := <-done; !errors.Is(err, fault.NotFound) && !errors.Is(err, fault.Conflict) {
			t.Errorf("%s to a session that is gone: %v", name, err)
		}
		b.blobs.Plan(nil)
		if keys := blobtest.Keys(t, b.files, ""); len(keys) != 1 {
			t.Fatalf("%s: the test wants bytes that came after the purge, there is %q", name, keys)
		}
		if n := c.purge(b); n != 1 {
			t.Errorf("%s: %d objects were to be purged after the bytes came, want them", name, n)
		}
		if keys := blobtest.Keys(t, b.files, ""); len(keys) != 0 {
			t.Errorf("%s left bytes that nobody owns: %q", name, keys)
		}
	}
}

func TestClientGone_KeepsWhatArrivedBeyondASignOfLife(t *testing.T) {
	b := open(t)
	b.Sessions = upload.New(b.store, b.blobs, upload.Options{Touch: time.Nanosecond})
	p := random(4 << 20)
	u := b.start("")
	ctx, gone := context.WithCancel(t.Context())
	c := cutOff(nil, len(p))
	// net/http ends the context as soon as the connection breaks, with bytes in
	// its buffer that are yet to be read.
	c.Body = io.MultiReader(&onEnd{bytes.NewReader(p[:1<<20]), gone}, bytes.NewReader(p[1<<20:3<<20]), c.Body)
	_, err := b.Append(ctx, repo, u.ID, c)
	wantFault(t, err, fault.Invalid, oci.CodeBlobUploadInvalid)
	b.wantSize(u.ID, 3<<20)
}

func TestASignOfLifeThatFailsEndsNoTransfer(t *testing.T) {
	b := open(t)
	b.Sessions = upload.New(b.store, b.blobs, upload.Options{Touch: time.Nanosecond})
	p := random(4 << 20)
	u := b.start("")
	db, err := sql.Open("sqlite", "file:"+filepath.Join(b.dir, "fairway.db")+"?_pragma=busy_timeout(10000)")
	if err == nil {
		_, err = db.Exec(`CREATE TRIGGER refuse BEFORE UPDATE ON uploads WHEN NEW.version = OLD.version BEGIN SELECT RAISE(ABORT, 'no'); END`)
	}
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	if err := b.store.TouchUpload(t.Context(), u.ID); err == nil {
		t.Fatal("the touch did not fail")
	}
	if _, err := b.Append(t.Context(), repo, u.ID, streamed(bytes.NewReader(p))); err != nil {
		t.Fatal(err)
	}
	b.wantSize(u.ID, int64(len(p)))
}
