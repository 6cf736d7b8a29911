package meta_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/nodeapi"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/meta"
	"github.com/fairway-registry/fairway/internal/sqldb/sqldbtest"
)

// TestR5_ACollectionMakesWayForAClientThatWaits: after the portion that it is at. What is
// left is work for another transaction, and nothing is done twice or left out.
func TestR5_ACollectionMakesWayForAClientThatWaits(t *testing.T) {
	var d *db
	var meanwhile func() // runs during the first removal of links
	d = &db{T: t}
	d.clock.Store(1_700_000_000_000)
	var err error
	d.Store, err = meta.Open(t.Context(), meta.Options{Path: filepath.Join(t.TempDir(), "fairway.db"), Now: d.clock.Load, Trace: func(query string, _ []any) {
		if fn := meanwhile; fn != nil && strings.HasPrefix(query, "DELETE FROM links AS l") {
			meanwhile = nil
			fn()
		}
	}})
	d.must(err)
	t.Cleanup(func() { d.must(d.Close()) })
	const n = 300
	for i := range n {
		d.upload("a", fmt.Sprint(i))
	}
	links := must(d.Links(t.Context(), meta.Due{Before: meta.NoLimit, Scope: must(d.RepoScope(t.Context(), "")), Limit: n}))
	var w meta.Work
	for _, l := range links {
		w.Unlink = append(w.Unlink, meta.Claim{ID: l.ID, Version: l.Version, Before: meta.NoLimit, Reason: "r"})
	}
	w.Counts.Examined = n

	pushed := make(chan error, 1)
	meanwhile = func() {
		go func() {
			_, err := d.CreateUpload(context.Background(), "b", "sha256")
			pushed <- err
		}()
		for !d.ClientsWait() { // the test's own deadline ends this
			time.Sleep(time.Millisecond)
		}
	}
	counts, left, err := d.CollectSome(t.Context(), w, 2)
	d.must(err)
	if counts.Unlinked != 2 || counts.Examined != n || len(left.Unlink) != n-2 || left.Counts.Examined != 0 {
		t.Errorf("with a client that waits a transaction did %+v and leaves %d of %d", counts, len(left.Unlink), n)
	}
	d.must(<-pushed)
	// Without one it goes on, up to a bound.
	counts, left, err = d.CollectSome(t.Context(), left, 2)
	d.must(err)
	if counts.Unlinked <= 2 || counts.Unlinked > 100 || counts.Examined != 0 {
		t.Errorf("without a client a transaction did %+v", counts)
	}
	done := counts.Unlinked
	for !left.Empty() {
		counts, left, err = d.CollectSome(t.Context(), left, 64)
		d.must(err)
		done += counts.Unlinked
	}
	if done != n-2 {
		t.Errorf("%d links were removed after the first two, want %d", done, n-2)
	}
}

// TestR3_AConfirmationWaitsForThePushThatItRestsOn: what another client has pushed a moment
// ago may still be lost with the machine's power.
func TestR3_AConfirmationWaitsForThePushThatItRestsOn(t *testing.T) {
	var hold atomic.Bool
	inside, end := make(chan struct{}), make(chan struct{})
	d := &db{T: t}
	d.clock.Store(1_700_000_000_000)
	var err error
	d.Store, err = meta.Open(t.Context(), meta.Options{Path: filepath.Join(t.TempDir(), "fairway.db"), Now: d.clock.Load, Sync: func(f *os.File) error {
		if hold.Load() {
			inside <- struct{}{}
			<-end
		}
		return f.Sync()
	}})
	d.must(err)
	t.Cleanup(func() { d.must(d.Close()) })
	d.upload("a", "{}")
	d.upload("a", "layer")
	raw := image("x", "layer")
	id := digest.FromBytes(raw)
	_, _, err = d.PutNode(t.Context(), nodeapi.Report{Node: "n", Instance: "i", Seq: 1, Complete: true, TTLSeconds: 60, InUse: []nodeapi.InUse{}}, time.Hour)
	d.must(err)
	for _, tc := range []struct {
		name    string
		push    func(ctx context.Context) error
		see     func(ctx context.Context) error // confirms nothing
		confirm func(ctx context.Context) error
	}{
		{name: "blob", // that a manifest keeps, so that it needs no write
			push: func(ctx context.Context) error {
				_, err := d.PutManifest(ctx, pushOf("a", image("y", "layer")))
				return err
			},
			see: func(ctx context.Context) error { _, err := d.Blob(ctx, "a", digest.FromString("layer")); return err },
			confirm: func(ctx context.Context) error {
				_, err := d.ConfirmBlob(ctx, "a", digest.FromString("layer"))
				return err
			},
		},
		{name: "manifest",
			push: func(ctx context.Context) error { _, err := d.PutManifest(ctx, pushOf("a", raw)); return err },
			see:  func(ctx context.Context) error { _, _, err := d.Tags(ctx, "a", "", 10); return err },
			confirm: func(ctx context.Context) error {
				_, err := d.Manifest(ctx, "a", oci.Reference{Digest: id})
				return err
			},
		},
		{name: "task", // whose number another one gets if it is lost
			push: func(ctx context.Context) error {
				_, err := d.StartPreheat(ctx, meta.PreheatImage{Repo: "a", Digest: id}, meta.NodeChoice{}, "x")
				return err
			},
			see: func(ctx context.Context) error { _, err := d.Preheat(ctx, 1); return err },
			confirm: func(ctx context.Context) error {
				tasks, err := d.NextTask(ctx, "n")
				if err == nil && len(tasks) != 1 {
					err = fmt.Errorf("%d tasks", len(tasks))
				}
				return err
			},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			hold.Store(true)
			pushed := make(chan error, 1)
			go func() { pushed <- tc.push(context.Background()) }()
			<-inside
			if err := tc.see(t.Context()); err != nil {
				t.Errorf("what is being pushed cannot be seen: %v", err)
			}
			hurried, leave := context.WithTimeout(t.Context(), 20*time.Millisecond)
			defer leave()
			if err := tc.confirm(hurried); err == nil {
				t.Error("it is confirmed before it is durable")
			}
			hold.Store(false)
			end <- struct{}{}
			d.must(<-pushed)
			d.must(tc.confirm(t.Context()))
		})
	}
}

// TestR7_PullsGoOnWhereTheLogCannotBeSynced: a push fails, and what needs no write is served.
func TestR7_PullsGoOnWhereTheLogCannotBeSynced(t *testing.T) {
	var broken atomic.Bool
	d := &db{T: t}
	d.clock.Store(1_700_000_000_000)
	path := filepath.Join(t.TempDir(), "fairway.db")
	disk := sqldbtest.NewDisk(t)
	disk.Break(func(query string) error {
		if query == sqldbtest.MoveAll && broken.Load() {
			return syscall.EIO
		}
		return nil
	})
	options := meta.Options{Path: path, Driver: disk.Driver(), Now: d.clock.Load, Sync: func(f *os.File) error {
		if broken.Load() {
			return &os.PathError{Op: "sync", Path: f.Name(), Err: syscall.EIO}
		}
		return f.Sync()
	}}
	var err error
	d.Store, err = meta.Open(t.Context(), options)
	d.must(err)
	t.Cleanup(func() { d.must(d.Close()) })
	for _, content := range []string{"{}", "layer"} {
		d.upload("a", content)
	}
	if _, err := d.put("a", image("x", "layer"), "v1"); err != nil {
		t.Fatal(err)
	}
	broken.Store(true)
	if _, err := d.MountBlob(t.Context(), "b", "a", digest.FromString("layer")); err == nil {
		t.Error("a mount succeeds though the log cannot be synced")
	}
	if _, err := d.Manifest(t.Context(), "a", tag("v1")); err != nil {
		t.Errorf("a pull of an older image, of which nothing is in the cache: %v", err)
	}
	if _, err := d.Blob(t.Context(), "a", digest.FromString("layer")); err != nil {
		t.Errorf("a pull of its layer: %v", err)
	}
	if _, err := d.ConfirmBlob(t.Context(), "a", digest.FromString("{}")); err == nil {
		t.Error("a blob is confirmed, so that a client does not upload it, though what it rests on may be lost")
	}
	broken.Store(false)
	if _, err := d.MountBlob(t.Context(), "b", "a", digest.FromString("layer")); err != nil {
		t.Errorf("a mount after the log could be synced again: %v", err)
	}
}
