package meta_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/nodeapi"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/meta"
	"github.com/fairway-registry/fairway/internal/sqldb/sqldbtest"
)

// dump is all that a database holds, table by table.
func dump(t *testing.T, path string) (tables []string) {
	t.Helper()
	pool, err := sql.Open("sqlite", "file:"+path+"?_pragma=busy_timeout(10000)")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = pool.Close() }()
	for _, table := range columnsOf(t, pool, "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT IN ('clock', 'sqlite_stat1') ORDER BY name") {
		rows := columnsOf(t, pool, "SELECT * FROM "+table[0])
		slices.SortFunc(rows, slices.Compare[[]string])
		tables = append(tables, fmt.Sprint(table[0], rows))
	}
	return tables
}

func columnsOf(t *testing.T, pool *sql.DB, query string) (all [][]string) {
	t.Helper()
	rows, err := pool.Query(query)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = rows.Close() }()
	names, err := rows.Columns()
	if err != nil {
		t.Fatal(err)
	}
	for rows.Next() {
		row, into := make([]sql.NullString, len(names)), make([]any, len(names))
		for i := range row {
			into[i] = &row[i]
		}
		if err := rows.Scan(into...); err != nil {
			t.Fatal(err)
		}
		var text []string
		for _, v := range row {
			text = append(text, v.String)
		}
		all = append(all, text)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return all
}

var errInjected = errors.New("injected")

// TestR9_AStatementThatFailsChangesNothing: whichever statement of a request or of the
// collector's work fails, its caller hears of it and nothing is changed. Each is tried
// with its first statement failing, then its second, and so on until it succeeds.
func TestR9_AStatementThatFailsChangesNothing(t *testing.T) {
	all := func(d *db) meta.Scope { return must(d.RepoScope(context.Background(), "")) }
	for name, tc := range map[string]struct {
		prepare func(d *db)
		do      func(d *db, ctx context.Context) error
		least   int  // statements
		parts   bool // it is more than one transaction, and what is done stays
	}{
		"push": {func(d *db) {
			d.push("a", image("other"), "v1")
		}, func(d *db, ctx context.Context) error {
			_, err := d.put("a", image("x", "layer"), "v1", "v2")
			return err
		}, 10, false},
		"push into a new repository": {nil, func(d *db, ctx context.Context) error {
			_, err := d.put("new", indexOf("i"), "v1")
			return err
		}, 5, false},
		"push of what is there": {func(d *db) {
			d.push("a", image("x", "layer"), "v1")
			d.push("a", image("other"), "v2")
		}, func(d *db, ctx context.Context) error {
			_, err := d.put("a", image("x", "layer"), "v2")
			return err
		}, 5, false},
		"push of what is in the trash": {func(d *db) {
			x := d.push("a", image("x", "layer"), "v1")
			tags, _ := oci.SubjectTags(x)
			d.push("a", image("signature"), tags[0])
			d.delete("a", image("x", "layer"))
		}, func(d *db, ctx context.Context) error {
			_, err := d.put("a", image("x", "layer"), "v2")
			return err
		}, 10, false},
		"push of a signature whose subject is gone": {func(d *db) {
			d.push("a", image("x", "layer"), "v1")
			d.delete("a", image("x", "layer"))
		}, func(d *db, ctx context.Context) error {
			tags, _ := oci.SubjectTags(digest.FromBytes(image("x", "layer")))
			_, err := d.put("a", image("signature"), tags[0])
			return err
		}, 5, false},
		"push of a referrer": {func(d *db) {
			d.push("a", image("x"))
		}, func(d *db, ctx context.Context) error {
			_, err := d.put("a", sub(digest.FromBytes(image("x")), "s"))
			return err
		}, 5, false},
		"push of an index": {func(d *db) {
			d.push("a", image("x", "layer"), "v1")
			d.push("a", indexOf("inner", image("x", "layer")))
			d.push("a", sub(digest.FromBytes(image("x", "layer")), "s"))
			d.delete("a", indexOf("inner", image("x", "layer")))
			d.delete("a", image("x", "layer"))
		}, func(d *db, ctx context.Context) error {
			_, err := d.put("a", indexOf("i", indexOf("inner", image("x", "layer"))), "v2")
			return err
		}, 20, false},
		"push by another type": {func(d *db) {
			raw := []byte(`{"untyped":true}`)
			_, err := d.PutManifest(d.Context(), meta.Push{Repo: "a", Tags: []oci.Tag{"v1"}, Digest: digest.FromBytes(raw), Manifest: must(oci.ParseManifest("application/x.one", raw)), Content: raw})
			d.must(err)
			d.must(d.DeleteManifest(d.Context(), "a", digest.FromBytes(raw), "x"))
		}, func(d *db, ctx context.Context) error {
			raw := []byte(`{"untyped":true}`)
			_, err := d.PutManifest(ctx, meta.Push{Repo: "a", Digest: digest.FromBytes(raw), Manifest: must(oci.ParseManifest("application/x.two", raw)), Content: raw})
			return err
		}, 10, false},
		"push that begins a preheat": {func(d *db) {
			must(d.AddPreheatRule(d.Context(), meta.PreheatRule{Repository: "a", Tag: "p*"}))
		}, func(d *db, ctx context.Context) error {
			_, err := d.put("a", image("x"), "p1")
			return err
		}, 10, false},
		"deletion of a tag": {func(d *db) {
			d.push("a", image("x"), "v1")
		}, func(d *db, ctx context.Context) error { return d.DeleteTag(ctx, "a", "v1", "x") }, 5, false},
		"deletion of an image": {func(d *db) {
			x := d.push("a", image("x", "layer"), "v1", "v2")
			tags, _ := oci.SubjectTags(x)
			d.push("a", image("signature"), tags[0])
			d.push("a", sub(x, "s"))
		}, func(d *db, ctx context.Context) error {
			return d.DeleteManifest(ctx, "a", digest.FromBytes(image("x", "layer")), "x")
		}, 15, false},
		"deletion of an index": {func(d *db) {
			d.push("a", image("x", "layer"))
			d.push("a", image("y"))
			d.push("a", indexOf("inner", image("x", "layer")))
			d.push("a", indexOf("i", indexOf("inner", image("x", "layer")), image("y")), "v1")
			d.delete("a", image("x", "layer"))
			d.delete("a", indexOf("inner", image("x", "layer")))
			d.clock.Add(1)
		}, func(d *db, ctx context.Context) error {
			return d.DeleteManifest(ctx, "a", digest.FromBytes(indexOf("i", indexOf("inner", image("x", "layer")), image("y"))), "x")
		}, 15, false},
		"restore": {func(d *db) {
			x := d.push("a", image("x", "layer"))
			tags, _ := oci.SubjectTags(x)
			d.push("a", image("signature"), tags[0])
			d.push("a", indexOf("inner", image("x", "layer")))
			d.push("a", indexOf("i", indexOf("inner", image("x", "layer")), image("gone")), "v1", "v2")
			d.delete("a", image("x", "layer"))
			d.delete("a", indexOf("inner", image("x", "layer")))
			d.delete("a", indexOf("i", indexOf("inner", image("x", "layer")), image("gone")))
			d.push("a", image("y"), "v2")
		}, func(d *db, ctx context.Context) error {
			_, err := d.Restore(ctx, "a", digest.FromBytes(indexOf("i", indexOf("inner", image("x", "layer")), image("gone"))), "x")
			return err
		}, 30, false},
		"restore under a tag of a signature": {func(d *db) {
			d.push("a", image("x"))
			tags, _ := oci.SubjectTags(digest.FromBytes(image("x")))
			d.push("a", image("signature"), tags[0])
			d.delete("a", image("signature"))
			d.delete("a", image("x"))
		}, func(d *db, ctx context.Context) error {
			_, err := d.Restore(ctx, "a", digest.FromBytes(image("signature")), "x")
			return err
		}, 12, false},
		"what a crash has left": {func(d *db) {
			d.push("a", image("x"))
			d.push("a", indexOf("i", image("x")), "v1")
			i := must(d.FindManifests(d.Context(), "a", digest.FromBytes(indexOf("i", image("x"))), 1))[0]
			must(meta.LeavesKin(d.Store, i.RepoID, i.ID))
		}, func(d *db, ctx context.Context) error { return d.FinishKin(ctx) }, 3, true},
		"deletion of a blob": {func(d *db) { d.upload("b", "layer") }, func(d *db, ctx context.Context) error {
			return d.DeleteBlob(ctx, "b", digest.FromString("layer"), "x")
		}, 4, false},
		"mount": {nil, func(d *db, ctx context.Context) error {
			_, err := d.MountBlob(ctx, "b", "a", digest.FromString("layer"))
			return err
		}, 5, false},
		"confirmation of a blob": {nil, func(d *db, ctx context.Context) error {
			_, err := d.ConfirmBlob(ctx, "a", digest.FromString("layer"))
			return err
		}, 2, false},
		"confirmation of a manifest": {func(d *db) {
			d.push("a", image("x"))
			d.clock.Add(10_000)
		}, func(d *db, ctx context.Context) error {
			_, err := d.Manifest(ctx, "a", oci.Reference{Digest: digest.FromBytes(image("x"))})
			return err
		}, 2, false},
		"look-up of a tag that is not there": {nil, func(d *db, ctx context.Context) error {
			if _, err := d.Manifest(ctx, "a", tag("none")); !errors.Is(err, fault.NotFound) {
				return err
			}
			return nil
		}, 2, false},
		"upload": {nil, func(d *db, ctx context.Context) error { _, err := d.CreateUpload(ctx, "c", "sha256"); return err }, 3, false},
		"what an upload writes meanwhile": {func(d *db) {
			must(d.CreateUploadAs(d.Context(), "c", "sha256", "upload1"))
			d.clock.Add(10_000)
		}, func(d *db, ctx context.Context) error {
			u, err := d.Upload(ctx, "c", "upload1")
			if err != nil {
				return err
			}
			u.Version, err = d.AdvanceUpload(ctx, u, 3, nil)
			return err
		}, 2, false},
		"a look at an upload": {func(d *db) {
			must(d.CreateUploadAs(d.Context(), "c", "sha256", "upload1"))
			d.clock.Add(10_000)
		}, func(d *db, ctx context.Context) error { _, err := d.OpenUpload(ctx, "c", "upload1"); return err }, 1, false},
		"an upload that begins again": {func(d *db) {
			must(d.CreateUploadAs(d.Context(), "c", "sha256", "upload1"))
		}, func(d *db, ctx context.Context) error {
			u, err := d.Upload(ctx, "c", "upload1")
			if err == nil {
				_, err = d.RestartUpload(ctx, u)
			}
			return err
		}, 2, false},
		"end of an upload": {func(d *db) {
			must(d.CreateUploadAs(d.Context(), "c", "sha256", "upload1"))
		}, func(d *db, ctx context.Context) error {
			u, err := d.Upload(ctx, "c", "upload1")
			if err == nil {
				_, err = d.FinishUpload(ctx, u, digest.FromString("new"), 3)
			}
			return err
		}, 6, false},
		"end of an upload of what is there": {func(d *db) {
			must(d.CreateUploadAs(d.Context(), "c", "sha256", "upload1"))
		}, func(d *db, ctx context.Context) error {
			u, err := d.Upload(ctx, "c", "upload1")
			if err == nil {
				_, err = d.FinishUpload(ctx, u, digest.FromString("layer"), 5)
			}
			return err
		}, 6, false},
		"end of an upload of what is damaged": {func(d *db) {
			must(d.CreateUploadAs(d.Context(), "c", "sha256", "upload1"))
		}, func(d *db, ctx context.Context) error {
			b, _, err := d.HeldBlob(ctx, digest.FromString("layer"))
			if err != nil {
				return err
			}
			u, err := d.Upload(ctx, "c", "upload1")
			if err == nil {
				_, err = d.FinishUploadOver(ctx, u, b.Digest, b.Size, b.Key)
			}
			return err
		}, 8, false},
		"an upload that is cancelled": {func(d *db) {
			must(d.CreateUploadAs(d.Context(), "c", "sha256", "upload1"))
		}, func(d *db, ctx context.Context) error { return d.CancelUpload(ctx, "c", "upload1", "x") }, 3, false},
		"purges": {func(d *db) {
			for _, id := range []string{"upload1", "upload2"} {
				must(d.CreateUploadAs(d.Context(), "c", "sha256", id))
				d.must(d.CancelUpload(d.Context(), "c", id, "x"))
			}
			must(d.StartRun(d.Context(), "manual", "x", meta.Policy{}))
		}, func(d *db, ctx context.Context) error {
			ps, err := d.DuePurges(ctx, 0, 0, "", 10)
			if err == nil {
				_, err = d.FinishPurges(ctx, 1, []meta.Purged{{Key: ps[0].Key}, {Key: ps[1].Key, Problem: "p"}})
			}
			return err
		}, 5, false},
		"what a check repairs": {func(d *db) {
			must(d.CreateCheck(d.Context(), meta.CheckRow{State: "running"}))
			d.push("a", image("x", "layer"))
		}, func(d *db, ctx context.Context) error {
			bs, err := d.CheckBlobs(ctx, 0, 10)
			if err != nil {
				return err
			}
			acts := meta.CheckActs{Actor: "x", Orphans: []meta.Orphan{{Key: "blobs/aa/none", Size: 1}}, Lost: bs,
				Missed: []meta.Unreviewed{{Kind: "link", IDs: []int64{1}}, {Kind: "blob", IDs: []int64{1}}, {Kind: "manifest", IDs: []int64{1}}}}
			return d.SaveCheck(ctx, acts, func(meta.CheckDone) (meta.CheckRow, error) { return meta.CheckRow{ID: 1, State: "running"}, nil })
		}, 6, false},
		"what a check finds again": {func(d *db) {
			must(d.CreateCheck(d.Context(), meta.CheckRow{State: "running"}))
			outside(d.T, d.path, "UPDATE blobs SET lost_at = 1")
		}, func(d *db, ctx context.Context) error {
			bs, err := d.CheckBlobs(ctx, 0, 10)
			if err != nil {
				return err
			}
			return d.SaveCheck(ctx, meta.CheckActs{Actor: "x", Found: bs}, func(meta.CheckDone) (meta.CheckRow, error) { return meta.CheckRow{ID: 1, State: "running"}, nil })
		}, 3, false},
		"report of a node": {func(d *db) {
			r := nodeapi.Report{Node: "n", Instance: "i", Seq: 1, Complete: true, TTLSeconds: 60, InUse: []nodeapi.InUse{{Digests: []oci.Digest{digest.FromString("1")}, Containers: 1}}}
			_, _, err := d.PutNode(d.Context(), r, time.Hour)
			d.must(err)
		}, func(d *db, ctx context.Context) error {
			r := nodeapi.Report{Node: "n", Instance: "i", Seq: 2, Complete: true, TTLSeconds: 60, InUse: []nodeapi.InUse{{Digests: []oci.Digest{digest.FromString("2")}, Containers: 1}}}
			_, _, err := d.PutNode(ctx, r, time.Hour)
			return err
		}, 6, false},
		"incomplete report of a node": {func(d *db) {
			r := nodeapi.Report{Node: "n", Instance: "i", Seq: 1, Complete: true, TTLSeconds: 60, InUse: []nodeapi.InUse{{Digests: []oci.Digest{digest.FromString("1")}, Containers: 1}}}
			_, _, err := d.PutNode(d.Context(), r, time.Hour)
			d.must(err)
		}, func(d *db, ctx context.Context) error {
			r := nodeapi.Report{Node: "n", Instance: "i", Seq: 2, TTLSeconds: 60, InUse: []nodeapi.InUse{{Digests: []oci.Digest{digest.FromString("2")}, Containers: 1}}}
			_, _, err := d.PutNode(ctx, r, time.Hour)
			return err
		}, 5, false},
		"removal of a node": {func(d *db) {
			r := nodeapi.Report{Node: "n", Instance: "i", Seq: 1, Complete: true, TTLSeconds: 60, InUse: []nodeapi.InUse{{Digests: []oci.Digest{digest.FromString("1")}, Containers: 1}}}
			_, _, err := d.PutNode(d.Context(), r, time.Hour)
			d.must(err)
		}, func(d *db, ctx context.Context) error { return d.DeleteNode(ctx, "n") }, 3, false},
		"run": {func(d *db) {
			must(d.StartRun(d.Context(), "manual", "x", meta.Policy{}))
		}, func(d *db, ctx context.Context) error {
			return d.AddRunCounts(ctx, 1, meta.Counts{Examined: 1, Kept: map[string]int64{"tag": 1}})
		}, 2, false},
		"work that failed": {func(d *db) {
			must(d.StartRun(d.Context(), "manual", "x", meta.Policy{}))
		}, func(d *db, ctx context.Context) error {
			return d.CollectFailed(ctx, meta.Work{Run: 1, Trash: []meta.TrashClaim{{}}, Unlink: []meta.Claim{{ID: 1}}, Collect: []meta.Claim{{ID: 1}}}, "failed")
		}, 5, false},
		"lease": {func(d *db) {
			must(d.PutLease(d.Context(), "h", []oci.Digest{digest.FromString("1"), digest.FromString("2")}, 1000))
		}, func(d *db, ctx context.Context) error {
			_, err := d.PutLease(ctx, "h", []oci.Digest{digest.FromString("2"), digest.FromString("3")}, 1000)
			return err
		}, 3, false},
		"end of a lease": {func(d *db) {
			must(d.PutLease(d.Context(), "h", []oci.Digest{digest.FromString("1")}, 1000))
		}, func(d *db, ctx context.Context) error { return d.DeleteLease(ctx, "h") }, 2, false},
		"facts": {func(d *db) {
			d.push("a", image("x"))
			d.delete("a", image("x"))
		}, func(d *db, ctx context.Context) error {
			due := meta.Due{Before: meta.NoLimit, Scope: all(d), Limit: 10}
			var errs []error
			note := func(err error) { errs = append(errs, err) }
			_, err := d.Orphans(ctx, due)
			note(err)
			_, err = d.Loose(ctx, due)
			note(err)
			_, err = d.Trashed(ctx, due)
			note(err)
			_, err = d.Links(ctx, due)
			note(err)
			_, err = d.Blobs(ctx, due)
			note(err)
			_, err = d.IdleUploads(ctx, meta.NoLimit, due.Scope, meta.UploadFacts{}, 10)
			note(err)
			_, err = d.Stranded(ctx, due, meta.StrandedFacts{})
			note(err)
			_, _, err = d.StrandedManifest(ctx, 1, 0)
			note(err)
			_, _, _, err = d.Below(ctx, 1, 1, digest.FromString("x"))
			note(err)
			_, err = d.TrashedBelow(ctx, 1)
			note(err)
			_, err = d.NeededByMore(ctx, 1, 1)
			note(err)
			_, _, err = d.Above(ctx, 1)
			note(err)
			_, err = d.NamedByStaged(ctx, 1)
			note(err)
			_, err = d.RepoScope(ctx, "a")
			note(err)
			_, err = d.RepoScope(ctx, "a*")
			note(err)
			_, _, err = d.Trash(ctx, meta.TrashPage{N: 10})
			note(err)
			_, _, err = d.Trash(ctx, meta.TrashPage{Pattern: "a*", N: 10})
			note(err)
			return errors.Join(errs...)
		}, 20, false},
	} {
		t.Run(name, func(t *testing.T) {
			disk := sqldbtest.NewDisk(t)
			d := &db{T: t, path: filepath.Join(t.TempDir(), "fairway.db")}
			d.clock.Store(1_700_000_000_000)
			var err error
			d.Store, err = meta.Open(t.Context(), meta.Options{Path: d.path, Now: d.clock.Load, Driver: disk.Driver()})
			d.must(err)
			t.Cleanup(func() { d.must(d.Close()) })
			d.upload("a", "{}")
			d.upload("a", "layer")
			if tc.prepare != nil {
				tc.prepare(d)
			}
			before := dump(t, d.path)
			for fail := int64(1); ; fail++ {
				var n atomic.Int64
				var failed atomic.Value
				disk.Break(func(query string) error {
					if n.Add(1) != fail {
						return nil
					}
					failed.Store(query)
					return errInjected
				})
				err := tc.do(d, t.Context())
				disk.Break(nil)
				if n.Load() < fail {
					d.must(err)
					if int(fail) <= tc.least {
						t.Errorf("it has %d statements, want %d or more", fail-1, tc.least)
					}
					return
				}
				if !errors.Is(err, errInjected) {
					t.Errorf("statement %d fails, and the answer is %v: %s", fail, err, failed.Load())
				}
				if tc.parts {
					continue
				}
				after := dump(t, d.path)
				for i, was := range before {
					if after[i] != was {
						t.Fatalf("statement %d fails, %s, and leaves\n%s\nwhich was\n%s", fail, failed.Load(), after[i], was)
					}
				}
			}
		})
	}
}
