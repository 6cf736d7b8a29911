package meta_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/meta"
)

// outside runs statements on a database beside the store.
func outside(t *testing.T, path string, statements ...string) {
	t.Helper()
	pool, err := sql.Open("sqlite", "file:"+path+"?_pragma=busy_timeout(10000)")
	for _, s := range statements {
		if err == nil {
			_, err = pool.Exec(s)
		}
	}
	if err = errors.Join(err, pool.Close()); err != nil {
		t.Error(err)
	}
}

func countOf(t *testing.T, path, query string) (n int) {
	t.Helper()
	pool, err := sql.Open("sqlite", "file:"+path+"?_pragma=busy_timeout(10000)")
	if err == nil {
		err = pool.QueryRow(query).Scan(&n)
	}
	if err = errors.Join(err, pool.Close()); err != nil {
		t.Error(err)
	}
	return n
}

// mustBeNone are queries for what a database has none of at rest.
var mustBeNone = map[string]string{
	"pushes that broke off":              "SELECT count(*) FROM staged",
	"kin":                                "SELECT count(*) FROM kin",
	"manifests of no state":              "SELECT count(*) FROM manifests m WHERE trashed_at IS NOT NULL AND NOT EXISTS (SELECT 1 FROM trash t WHERE t.manifest_id = m.id)",
	"references of another state":        "SELECT count(*) FROM manifest_blobs e JOIN manifests m ON m.id = e.manifest_id WHERE e.living <> (m.trashed_at IS NULL)",
	"links without manifest and review":  "SELECT count(*) FROM links l WHERE NOT EXISTS (SELECT 1 FROM manifest_blobs e WHERE e.link_id = l.id) AND NOT EXISTS (SELECT 1 FROM reviews v WHERE v.kind = 'link' AND v.target = l.id)",
	"references of manifests not there":  "SELECT count(*) FROM manifest_children c WHERE NOT EXISTS (SELECT 1 FROM manifests m WHERE m.id = c.manifest_id)",
	"blobs that are wanted and not kept": "SELECT count(*) FROM manifest_children c JOIN blobs b ON b.digest = c.child_digest JOIN links l ON l.repo_id = c.repo_id AND l.blob_id = b.id WHERE l.hidden = 0 AND NOT EXISTS (SELECT 1 FROM manifest_blobs e WHERE e.manifest_id = c.manifest_id AND e.link_id = l.id)",
}

// TestR7_ALargePushThatACrashEndsAnywhere: whichever transaction a crash comes before,
// the manifest is served whole or, after the next start, nothing of it is left.
func TestR7_ALargePushThatACrashEndsAnywhere(t *testing.T) {
	children := images(260)
	var layers []string
	for i := range 260 {
		layers = append(layers, fmt.Sprint("layer", i))
	}
	for name, raw := range map[string][]byte{"index": indexOf("i", children...), "image": image("many", layers...)} {
		t.Run(name, func(t *testing.T) {
			dead := t.TempDir()
			var path string
			armed, n := false, 0
			d, path := traced(t, func(query string, _ []any) {
				if !armed || query != "BEGIN IMMEDIATE" {
					return
				}
				for _, f := range []string{"", "-wal"} {
					b, err := os.ReadFile(path + f)
					if err == nil {
						err = os.WriteFile(filepath.Join(dead, fmt.Sprint(n, ".db", f)), b, 0o600)
					}
					if err != nil {
						t.Error(err)
					}
				}
				n++
			})
			d.upload("a", "{}")
			if name == "index" {
				d.pushAll("a", children)
				for _, c := range children[:120] {
					d.delete("a", c)
				}
			} else {
				d.uploadAll("a", layers)
			}
			d.must(d.Sync(t.Context()))
			armed = true
			d.push("a", raw, "v1")
			d.must(d.Sync(t.Context()))
			armed = false
			if n < 4 {
				t.Fatalf("it has %d transactions", n)
			}
			for i := range n {
				at := filepath.Join(dead, fmt.Sprint(i, ".db"))
				k := &db{T: t}
				k.clock.Store(d.clock.Load())
				var err error
				k.Store, err = meta.Open(t.Context(), meta.Options{Path: at, Now: k.clock.Load})
				k.must(err)
				k.must(k.FinishKin(t.Context()))
				served := k.served("a", raw) == 1
				if ms := must(k.FindManifests(t.Context(), "a", digest.FromBytes(raw), 1)); served != (len(ms) == 1) {
					t.Errorf("crash %d: served %v, found %+v", i, served, ms)
				}
				for what, query := range mustBeNone {
					if c := countOf(t, at, query); c != 0 {
						t.Errorf("crash %d leaves %d %s", i, c, what)
					}
				}
				if u := must(k.Unreviewed(t.Context(), "manifest", 0, 10_000)); len(u.IDs) != 0 {
					t.Errorf("crash %d: what keeps %d manifests is not recorded as it is", i, len(u.IDs))
				}
				if served && name == "index" && k.served("a", children...) != len(children) {
					t.Errorf("crash %d: it is served without its children", i)
				}
				k.push("a", raw, "v1")
				if name == "index" && k.served("a", children...) != len(children) {
					t.Errorf("crash %d: it is pushed again, and served without its children", i)
				}
				k.must(k.Close())
			}
		})
	}
}

// TestR7_ALargePushWhoseRemovalFailsIsRemovedByTheNextRun: it need not wait for a restart.
func TestR7_ALargePushWhoseRemovalFailsIsRemovedByTheNextRun(t *testing.T) {
	raw, upload := manyLayers()
	for name, trigger := range map[string]string{
		"nothing can be deleted": "BEFORE DELETE ON manifest_blobs",
		"no review can be begun": "BEFORE INSERT ON reviews",
		"the manifest must stay": "BEFORE DELETE ON manifests",
	} {
		t.Run(name, func(t *testing.T) {
			ctx, leave := context.WithCancel(t.Context())
			parts, armed := 0, false
			d, path := traced(t, func(query string, _ []any) {
				if armed && strings.HasPrefix(query, "INSERT OR IGNORE INTO manifest_blobs") {
					if parts++; parts == 2 {
						leave()
					}
				}
			})
			upload(d)
			outside(t, path, "CREATE TRIGGER broken "+trigger+" BEGIN SELECT RAISE(FAIL, 'broken'); END")
			armed = true
			p := meta.Push{Repo: "a", Digest: digest.FromBytes(raw), Manifest: must(oci.ParseManifest("", raw)), Content: raw}
			if _, err := d.PutManifest(ctx, p); !errors.Is(err, context.Canceled) {
				t.Fatalf("the push of a client that leaves: %v", err)
			}
			outside(t, path, "DROP TRIGGER broken")
			d.must(d.FinishKin(t.Context()))
			for what, query := range mustBeNone {
				if c := countOf(t, path, query); c != 0 {
					t.Errorf("%d %s are left", c, what)
				}
			}
		})
	}
}

// TestR5_ALargePushDoesNotBeginAgainForTheLossesOfOthers: beside a check that finds one
// loss after the other it would never end.
func TestR5_ALargePushDoesNotBeginAgainForTheLossesOfOthers(t *testing.T) {
	raw, upload := manyLayers()
	begun, armed := 0, false
	var d *db
	var path string
	d, path = traced(t, func(query string, _ []any) {
		if !armed {
			return
		}
		if query == "BEGIN IMMEDIATE" {
			outside(t, path, fmt.Sprintf("UPDATE blobs SET lost_at = %d WHERE digest IN ('%s', '%s')", d.clock.Load(), digest.FromString("other"), digest.FromString("layer1 elsewhere")))
			d.clock.Add(1)
		}
		if strings.HasPrefix(query, "SELECT m.id, x.manifest_id IS NOT NULL") {
			begun++
			armed = begun < 10
		}
	})
	upload(d)
	d.upload("a", "other") // under no manifest
	d.upload("a", "layer1 elsewhere")
	d.push("a", image("neighbour", "layer1 elsewhere"))
	d.push("a", image("deleted", "layer1 elsewhere"))
	d.delete("a", image("deleted", "layer1 elsewhere"))
	armed = true
	d.push("a", raw)
	if begun != 1 {
		t.Errorf("the push began %d times", begun)
	}
}

// TestR2_AnIndexWhoseDeletedChildIsLostDuringItsPushIsRefused: the child cannot come back.
func TestR2_AnIndexWhoseDeletedChildIsLostDuringItsPushIsRefused(t *testing.T) {
	children := append([][]byte{image("needs", "layer")}, images(600)...)
	index := indexOf("i", children...)
	parts, armed := 0, false
	var d *db
	var path string
	d, path = traced(t, func(query string, _ []any) {
		switch {
		case armed && strings.HasPrefix(query, "INSERT OR IGNORE INTO manifest_children"):
			parts++
		case parts == 3 && query == "BEGIN IMMEDIATE":
			parts++
			outside(t, path, fmt.Sprintf("UPDATE blobs SET lost_at = %d WHERE digest = '%s'", d.clock.Load(), digest.FromString("layer")))
		}
	})
	d.upload("a", "{}")
	d.upload("a", "layer")
	d.pushAll("a", children)
	d.delete("a", children[0])
	armed = true
	_, err := d.put("a", index, "v1")
	if parts < 4 {
		t.Fatalf("the push has written %d parts", parts)
	}
	if err == nil || fault.Public(err).Code != oci.CodeManifestBlobUnknown || d.served("a", index) != 0 {
		t.Errorf("a push of an index whose child cannot come back: %v", err)
	}
}

func TestR1_WhatIsWantedIsNotedByTheTimeThatItIsLookedFor(t *testing.T) {
	var layers []string
	for i := range 300 { // which a look at the bytes does not find
		layers = append(layers, fmt.Sprintf(`{"digest":"sha256\u003a%s"}`, digest.FromString(fmt.Sprint("layer", i)).Encoded()))
	}
	for i := range 300 {
		layers = append(layers, fmt.Sprintf(`{"digest":%q}`, digest.FromString(fmt.Sprint("more", i))))
	}
	var children [][]byte
	for i := range 300 {
		children = append(children, fmt.Append(nil, i))
	}
	index := indexOf("i", children...)
	for name, m := range map[string]oci.Manifest{
		"of an unknown type": must(oci.ParseManifest("application/x", []byte(`{"layers":[`+strings.Join(layers, ",")+`],"subject":{"digest":"`+digest.FromString("s").String()+`"}}`))),
		"index":              must(oci.ParseManifest("", index)),
	} {
		if late := meta.NotedTooLate(meta.Push{Manifest: m}); len(late) != 0 {
			t.Errorf("%s: %d digests", name, len(late))
		}
	}
}

// TestR10_WhatIsOnItsWayInIsNotInTheTrash: nothing that lists or counts the trash, or
// what a lost blob affects, has a manifest that is not served yet.
func TestR10_WhatIsOnItsWayInIsNotInTheTrash(t *testing.T) {
	raw, upload := manyLayers()
	d := halfPushed(t, raw, func(d *db) {
		upload(d)
		d.push("a", image("small", "layer1"))
	})
	bs := must(d.CheckBlobs(t.Context(), 0, 1000))
	for _, b := range bs {
		as, _, err := d.AffectedBy(t.Context(), b.ID, 10)
		d.must(err)
		want := digest.Digest("") // the repository has it, and no manifest needs it
		if b.Digest == digest.FromString("layer1") || b.Digest == digest.FromString("{}") {
			want = digest.FromBytes(image("small", "layer1"))
		}
		if len(as) != 1 || as[0].Digest != want || as[0].Trash {
			t.Fatalf("the loss of %s affects %+v, want %s", b.Digest, as, want)
		}
	}
	ms, _, _, err := d.AtRisk(t.Context(), "a", 10)
	d.must(err)
	if len(ms) != 1 || ms[0].Digest != digest.FromBytes(image("small", "layer1")) {
		t.Errorf("untagged or in the trash are %+v", ms)
	}
}

// TestR10_AnIndexThatWasNotDeletedIsNotRestored: its push has broken off.
func TestR10_AnIndexThatWasNotDeletedIsNotRestored(t *testing.T) {
	children := images(350)
	index := indexOf("i", children...)
	d := killedAfter(t, "INSERT INTO kin", func(d *db) {
		d.upload("a", "{}")
		d.pushAll("a", children)
		for _, c := range children {
			d.delete("a", c)
		}
	}, func(d *db) { d.push("a", index, "v1") })
	if d.served("a", index) != 1 || d.served("a", children...) == len(children) {
		t.Fatal("the push had no second transaction")
	}
	if _, err := d.Restore(t.Context(), "a", digest.FromBytes(index), "x"); !errors.Is(err, fault.NotFound) {
		t.Errorf("restore: %v", err)
	}
	d.must(d.FinishKin(t.Context()))
	if d.served("a", children...) != len(children) {
		t.Error("the next run does not go on with it")
	}
}

// TestR7_KinOfAnEarlierVersionAreSettled: rows that were written before there were
// modes are of deletions and pushes, whose trash nothing leaves until they are done.
func TestR7_KinOfAnEarlierVersionAreSettled(t *testing.T) {
	const n = 350
	old := killedBeforeKinAreSettled(t, func(d *db) oci.Digest { return family(d, n) })
	path := filepath.Join(t.TempDir(), "fairway.db")
	for _, f := range []string{"", "-wal"} {
		b, err := os.ReadFile(old.path + f)
		old.must(err)
		old.must(os.WriteFile(path+f, b, 0o600))
	}
	outside(t, path, "DROP INDEX kin_repo", "DROP INDEX kin_root", "DROP INDEX blobs_lost", "DROP TABLE staged", "DROP TABLE unread",
		"ALTER TABLE kin DROP COLUMN repo_id", "ALTER TABLE kin DROP COLUMN mode", "ALTER TABLE kin DROP COLUMN root", "ALTER TABLE kin DROP COLUMN renewed_at", "ALTER TABLE kin DROP COLUMN actor",
		"DELETE FROM goose_db_version WHERE version_id >= 10")
	d := &db{T: t}
	d.clock.Store(old.clock.Load() + 1000)
	var err error
	d.Store, err = meta.Open(t.Context(), meta.Options{Path: path, Now: d.clock.Load})
	d.must(err)
	t.Cleanup(func() { d.must(d.Close()) })
	ts := must(d.Trashed(t.Context(), meta.Due{Before: meta.NoLimit, Scope: must(d.RepoScope(t.Context(), "")), Limit: 10}))
	remove := meta.Work{Actor: "x", Remove: []meta.Claim{{ID: ts[0].ID, Version: ts[0].Version, Before: meta.NoLimit}}}
	if c := must(d.Collect(t.Context(), remove)); len(ts) != 1 || c.Collected != 0 {
		t.Errorf("of %d in the trash, %d leave it while its kin are not settled", len(ts), c.Collected)
	}
	d.must(d.FinishKin(t.Context()))
	if got := orphans(d); got != n {
		t.Errorf("%d orphans, want %d", got, n)
	}
	if c := must(d.Collect(t.Context(), remove)); c.Collected != 1 {
		t.Errorf("when they are settled, it stays: %+v", c)
	}
}
