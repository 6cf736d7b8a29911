package meta_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/meta"
)

// longest counts the rows that each transaction is given in lists.
type longest struct {
	mu   sync.Mutex
	rows map[string]int // of the transaction under way, by statement
	most map[string]int
}

func (l *longest) trace(query string, args []any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if query == "BEGIN IMMEDIATE" || l.rows == nil {
		l.rows = map[string]int{}
	}
	if !strings.Contains(query, "json_each") || strings.HasPrefix(query, "SELECT") {
		return
	}
	for _, a := range args {
		var list []json.RawMessage
		if s, ok := a.(string); ok && strings.HasPrefix(s, "[") && json.Unmarshal([]byte(s), &list) == nil {
			l.rows[query] += len(list)
			l.most[query] = max(l.most[query], l.rows[query])
		}
	}
}

// check fails for each statement that one transaction has given more rows.
func (l *longest) check(t *testing.T, what string, limit int) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, query := range slices.Sorted(maps.Keys(l.most)) {
		if n := l.most[query]; n > limit {
			t.Errorf("%s: one transaction has %d rows in: %s", what, n, strings.Join(strings.Fields(query), " "))
		}
	}
	clear(l.most)
}

func images(n int) (raws [][]byte) {
	for i := range n {
		raws = append(raws, image(fmt.Sprint("child", i)))
	}
	return raws
}

func (d *db) served(repo oci.Name, raws ...[]byte) (n int) {
	d.Helper()
	for _, raw := range raws {
		_, err := d.Manifest(context.Background(), repo, oci.Reference{Digest: digest.FromBytes(raw)})
		if err == nil {
			n++
		} else if !errors.Is(err, fault.NotFound) {
			d.Error(err)
		}
	}
	return n
}

func (d *db) delete(repo oci.Name, raw []byte) {
	d.Helper()
	d.must(d.DeleteManifest(context.Background(), repo, digest.FromBytes(raw), "x"))
}

func (d *db) trash(repo string) (items []meta.TrashItem) {
	d.Helper()
	items, _, err := d.Trash(context.Background(), meta.TrashPage{Pattern: repo, N: -1})
	d.must(err)
	return items
}

func TestR5_ALargeIndexIsPushedDeletedAndRestoredInBoundedTransactions(t *testing.T) {
	l := &longest{most: map[string]int{}}
	d, _ := traced(t, l.trace)
	const n, limit = 1200, 300
	d.upload("a", "{}")
	children := images(n)
	d.pushAll("a", children)
	index := indexOf("i", children...)
	clear(l.most)

	d.push("a", index, "v1")
	l.check(t, "push", limit)
	d.push("a", index, "v2")
	l.check(t, "second push", limit)
	if got := orphans(d); got != 0 {
		t.Errorf("%d orphans after the push", got)
	}

	d.delete("a", index)
	l.check(t, "deletion", limit)
	if got := orphans(d); got != n {
		t.Errorf("%d orphans after the deletion, want %d", got, n)
	}

	for _, c := range children {
		d.delete("a", c)
	}
	clear(l.most)
	out, err := d.Restore(t.Context(), "a", digest.FromBytes(index), "x")
	d.must(err)
	l.check(t, "restore", limit)
	if got := d.served("a", children...); got != n || len(out.Along) != n || len(out.NotRestored) != 0 || len(out.Tags) != 2 {
		t.Errorf("the restore brought %d of %d children back, and names %d; tags %v", got, n, len(out.Along), out.Tags)
	}

	for _, c := range children {
		d.delete("a", c)
	}
	d.clock.Add(1000)
	clear(l.most)
	d.delete("a", index) // which kept them in the trash
	l.check(t, "deletion above the trash", limit)
	for _, it := range d.trash("a") {
		if it.TrashedAt.UnixMilli() != d.clock.Load() {
			t.Fatalf("the time in the trash of %s does not begin anew", it.Digest)
		}
	}

	d.push("a", index)
	l.check(t, "push that brings children back", limit)
	if got := d.served("a", children...); got != n {
		t.Errorf("the push brought %d of %d children back", got, n)
	}
}

// TestR5_ImagesBelowInnerIndexesAreRestoredInBoundedTransactions: what a transaction
// restores is bounded by the blobs that it needs, wherever in a tree it is found.
func TestR5_ImagesBelowInnerIndexesAreRestoredInBoundedTransactions(t *testing.T) {
	l := &longest{most: map[string]int{}}
	d, _ := traced(t, l.trace)
	d.upload("a", "{}")
	var layers []string
	for i := range 240 {
		layers = append(layers, fmt.Sprint("layer", i))
		d.upload("a", layers[i])
	}
	const n = 30
	var leaves, inner [][]byte
	for i := range n {
		leaves = append(leaves, image(fmt.Sprint("leaf", i), layers...))
		inner = append(inner, indexOf(fmt.Sprint("inner", i), leaves[i]))
	}
	for name, tc := range map[string]struct {
		top   []byte
		inner [][]byte
	}{"flat": {indexOf("flat", leaves...), nil}, "deep": {indexOf("deep", inner...), inner}} {
		d.pushAll("a", slices.Concat(leaves, tc.inner))
		d.push("a", tc.top)
		for _, raw := range slices.Concat(leaves, tc.inner, [][]byte{tc.top}) {
			d.delete("a", raw)
		}
		clear(l.most)
		must(d.Restore(t.Context(), "a", digest.FromBytes(tc.top), "x"))
		if got := d.served("a", leaves...); got != n {
			t.Errorf("%s: %d of %d images are back", name, got, n)
		}
		for query, rows := range l.most {
			if strings.HasPrefix(query, "UPDATE manifests SET trashed_at = NULL") && rows > 1+len(tc.inner)+10 {
				t.Errorf("%s: one transaction restores %d manifests", name, rows)
			}
		}
		d.delete("a", tc.top)
	}
}

func TestR5_AManifestWithManyLayersIsPushedInBoundedTransactions(t *testing.T) {
	l := &longest{most: map[string]int{}}
	d, _ := traced(t, l.trace)
	d.upload("a", "{}")
	var layers []string
	for i := range 600 {
		layers = append(layers, fmt.Sprint("layer", i))
		if i > 0 && i < 599 {
			d.upload("a", layers[i])
		}
	}
	clear(l.most)
	raw := image("many", layers...)
	_, err := d.put("a", raw, "v1")
	var f *fault.Error
	if !errors.As(err, &f) || f.Code != oci.CodeManifestBlobUnknown ||
		fmt.Sprint(f.Detail) != fmt.Sprintf("[map[digest:%s] map[digest:%s]]", digest.FromString("layer0"), digest.FromString("layer599")) {
		t.Fatalf("a push without two layers: %v, %+v", err, f)
	}
	d.upload("a", "layer0")
	d.upload("a", "layer599")
	d.push("a", raw, "v1")
	l.check(t, "push", 300)
	for _, layer := range layers {
		if err := d.DeleteBlob(t.Context(), "a", digest.FromString(layer), "x"); !errors.Is(err, fault.Conflict) {
			t.Fatalf("DELETE of a layer: %v", err)
		}
	}
	// Pushed again out of the trash, it needs its blobs as before.
	d.delete("a", raw)
	d.push("a", raw, "v1")
	for _, layer := range layers {
		if err := d.DeleteBlob(t.Context(), "a", digest.FromString(layer), "x"); !errors.Is(err, fault.Conflict) {
			t.Fatalf("DELETE of a layer after the second push: %v", err)
		}
	}
}

// halfPushed is what a crash leaves of the push of an index and of an image, before
// they are served.
func halfPushed(t *testing.T, raw []byte, prepare func(*db)) *db {
	t.Helper()
	return killedAfter(t, "INSERT OR IGNORE INTO manifest", prepare, func(d *db) { d.push("a", raw, "v1") })
}

func TestR5_AHalfPushedManifestIsNotServedAndIsRemoved(t *testing.T) {
	children := images(600)
	var layers []string
	for i := range 600 {
		layers = append(layers, fmt.Sprint("layer", i))
	}
	for name, raw := range map[string][]byte{"index": indexOf("i", children...), "image": image("many", layers...)} {
		t.Run(name, func(t *testing.T) {
			d := halfPushed(t, raw, func(d *db) {
				d.upload("a", "{}")
				d.pushAll("a", children)
				for _, layer := range layers {
					d.upload("a", layer)
				}
			})
			if d.served("a", raw) != 0 || len(d.trash("a")) != 0 || len(d.trash("")) != 0 {
				t.Error("what was half pushed is served, or in the trash")
			}
			if _, err := d.Restore(t.Context(), "a", digest.FromBytes(raw), "x"); !errors.Is(err, fault.NotFound) {
				t.Errorf("what was half pushed can be restored: %v", err)
			}
			if err := d.DeleteManifest(t.Context(), "a", digest.FromBytes(raw), "x"); !errors.Is(err, fault.NotFound) {
				t.Errorf("what was half pushed can be deleted: %v", err)
			}
			due := must(d.CountDue(t.Context(), meta.Cutoffs{Now: d.Now(), Window: meta.NoLimit}, must(d.RepoScope(t.Context(), "")), 10_000))
			// A HEAD takes what it names for needed; the window begins when it goes.
			_, err := d.ConfirmBlob(t.Context(), "a", digest.FromString("layer1"))
			d.must(err)
			d.clock.Add(100_000)
			d.must(d.FinishKin(t.Context()))
			if ms := must(d.FindManifests(t.Context(), "a", digest.FromBytes(raw), 1)); len(ms) != 0 {
				t.Errorf("it is still there: %+v", ms)
			}
			if got := must(d.CountDue(t.Context(), meta.Cutoffs{Now: d.Now(), Window: meta.NoLimit}, must(d.RepoScope(t.Context(), "")), 10_000)); got < due || got < 600 {
				t.Errorf("%d things are under review, before it went %d", got, due)
			}
			ls, err := d.Links(t.Context(), meta.Due{Before: meta.NoLimit, Scope: must(d.RepoScope(t.Context(), "")), Limit: 10_000})
			d.must(err)
			renewed := 0
			for _, l := range ls {
				if l.TouchedAt == d.clock.Load() {
					renewed++
				}
			}
			if name == "image" && renewed < 200 {
				t.Errorf("the window of %d blobs begins when the manifest that needed them goes", renewed)
			}
			if name == "image" {
				d.clock.Add(50_000)
				_, err := d.ConfirmBlob(t.Context(), "a", digest.FromString("layer1"))
				d.must(err)
				found, _, err := d.FindLinks(t.Context(), "a", digest.FromString("layer1"), 1)
				d.must(err)
				if f := must(d.Links(t.Context(), meta.Due{IDs: []int64{found[0].ID}})); f[0].TouchedAt < d.clock.Load() {
					t.Error("a HEAD of a blob that nothing needs any more is not written down")
				}
			}
			d.push("a", raw, "v1")
			if d.served("a", raw) != 1 || d.served("a", children...) != len(children) {
				t.Error("it cannot be pushed again")
			}
		})
	}
}

// TestR3_AClientThatLeavesALargePushLeavesNothing: its blobs are under review again,
// and their window begins.
func TestR3_AClientThatLeavesALargePushLeavesNothing(t *testing.T) {
	ctx, leave := context.WithCancel(t.Context())
	parts, armed := 0, false
	d, _ := traced(t, func(query string, _ []any) {
		if armed && strings.HasPrefix(query, "INSERT OR IGNORE INTO manifest_blobs") {
			if parts++; parts == 2 {
				leave()
			}
		}
	})
	raw, upload := manyLayers()
	upload(d)
	armed = true
	d.clock.Add(100_000)
	p := meta.Push{Repo: "a", Tags: []oci.Tag{"v1"}, Digest: digest.FromBytes(raw), Manifest: must(oci.ParseManifest("", raw)), Content: raw}
	if _, err := d.PutManifest(ctx, p); !errors.Is(err, context.Canceled) {
		t.Fatalf("the push of a client that leaves: %v", err)
	}
	if ms := must(d.FindManifests(t.Context(), "a", digest.FromBytes(raw), 1)); len(ms) != 0 {
		t.Errorf("the manifest is still there: %+v", ms)
	}
	ls := must(d.Links(t.Context(), meta.Due{Before: meta.NoLimit, Scope: must(d.RepoScope(t.Context(), "")), Limit: 10_000}))
	renewed := 0
	for _, l := range ls {
		if l.TouchedAt >= d.clock.Load() {
			renewed++
		}
	}
	if len(ls) != 601 || renewed < 500 {
		t.Errorf("%d of 601 blobs are under review, the window of %d begins", len(ls), renewed)
	}
}

// TestR1_ALargeManifestThatIsServedStaysWhenAPushOfItBreaksOff, also beside one that is
// on its way in.
func TestR1_ALargeManifestThatIsServedStaysWhenAPushOfItBreaksOff(t *testing.T) {
	ctx, leave := context.WithCancel(t.Context())
	parts, armed := 0, false
	d, path := traced(t, func(query string, _ []any) {
		if armed && strings.HasPrefix(query, "INSERT OR IGNORE INTO manifest_blobs") {
			if parts++; parts == 2 {
				leave()
			}
		}
	})
	raw, upload := manyLayers()
	upload(d)
	d.push("a", raw, "v1")
	d.push("a", image("other"))
	d.delete("a", image("other"))
	other := must(d.FindManifests(t.Context(), "a", digest.FromBytes(image("other")), 1))[0]
	pool, err := sql.Open("sqlite", "file:"+path+"?_pragma=busy_timeout(10000)")
	d.must(err)
	_, err = pool.Exec("INSERT INTO staged (manifest_id) VALUES (?)", other.ID)
	d.must(errors.Join(err, pool.Close()))
	armed = true
	p := meta.Push{Repo: "a", Digest: digest.FromBytes(raw), Manifest: must(oci.ParseManifest("", raw)), Content: raw}
	if _, err := d.PutManifest(ctx, p); !errors.Is(err, context.Canceled) {
		t.Fatalf("the push of a client that leaves: %v", err)
	}
	d.must(d.FinishKin(t.Context()))
	if ms := must(d.FindManifests(t.Context(), "a", other.Digest, 1)); len(ms) != 0 {
		t.Errorf("what a process has left that is gone is still there: %+v", ms)
	}
	if d.served("a", raw) != 1 {
		t.Error("the manifest is not served any more")
	}
	for i := range 600 {
		if err := d.DeleteBlob(t.Context(), "a", digest.FromString(fmt.Sprint("layer", i)), "x"); !errors.Is(err, fault.Conflict) {
			t.Fatalf("DELETE of layer %d: %v", i, err)
		}
	}
}

// TestR12_ALargePushConcernsItsRepositoryAlone: neither the same manifest elsewhere nor
// bytes that were lost before are in its way.
func TestR12_ALargePushConcernsItsRepositoryAlone(t *testing.T) {
	d := open(t)
	raw, upload := manyLayers()
	upload(d)
	d.upload("b", "lost")
	bs := must(d.CheckBlobs(t.Context(), 0, 1000))
	c := must(d.CreateCheck(t.Context(), meta.CheckRow{State: "running"}))
	d.must(d.SaveCheck(t.Context(), meta.CheckActs{Actor: "x", Lost: bs[len(bs)-1:]}, func(meta.CheckDone) (meta.CheckRow, error) { return c, nil }))
	d.clock.Add(1000)
	d.push("a", raw, "v1")
	for i := range 600 {
		_, err := d.MountBlob(t.Context(), "b", "a", digest.FromString(fmt.Sprint("layer", i)))
		d.must(err)
	}
	d.upload("b", "{}")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	p := meta.Push{Repo: "b", Tags: []oci.Tag{"v1"}, Digest: digest.FromBytes(raw), Manifest: must(oci.ParseManifest("", raw)), Content: raw}
	if created, err := d.PutManifest(ctx, p); err != nil || !created {
		t.Fatalf("created %v, %v", created, err)
	}
	d.must(d.FinishKin(t.Context()))
	d.needs("b", layersOf(0, 600))
	d.delete("b", raw)
	if d.served("a", raw) != 1 || d.served("b", raw) != 0 {
		t.Error("a deletion in one repository is not of that repository")
	}
	d.needs("a", layersOf(0, 600))
}

func pushOf(repo oci.Name, raw []byte) meta.Push {
	return meta.Push{Repo: repo, Tags: []oci.Tag{"v1"}, Digest: digest.FromBytes(raw), Manifest: must(oci.ParseManifest("", raw)), Content: raw}
}

func layersOf(from, to int) (layers []string) {
	for i := from; i < to; i++ {
		layers = append(layers, fmt.Sprint("layer", i))
	}
	return layers
}

// needs fails where a client can delete one of these blobs.
func (d *db) needs(repo oci.Name, layers []string) {
	d.Helper()
	for _, l := range layers {
		if err := d.DeleteBlob(context.Background(), repo, digest.FromString(l), "x"); !errors.Is(err, fault.Conflict) {
			d.Fatalf("DELETE of %s in %s: %v, want a refusal", l, repo, err)
		}
	}
}

// stage prepares the push of a large manifest, up to the moment when it is served.
func (d *db) stage(repo oci.Name, raw []byte) (id int64, unstage func()) {
	d.Helper()
	id, end, err := meta.Stage(d.Store, pushOf(repo, raw))
	d.must(err)
	return id, func() {
		d.Helper()
		done := make(chan struct{})
		go func() { end(); close(done) }()
		select {
		case <-done:
		case <-time.After(2 * time.Minute):
			d.Fatal("the end of a push takes for ever")
		}
	}
}

func (d *db) there(repo oci.Name, raw []byte) bool {
	d.Helper()
	return len(must(d.FindManifests(context.Background(), repo, digest.FromBytes(raw), 1))) == 1
}

// TestR1_ThePushThatBreaksOffTakesNothingOfOthers: other manifests need some of the same
// blobs and children, whether they are served or on their way in.
func TestR1_ThePushThatBreaksOffTakesNothingOfOthers(t *testing.T) {
	d := open(t)
	d.upload("a", "{}")
	for _, l := range layersOf(0, 900) {
		d.upload("a", l)
	}
	children := images(300)
	d.pushAll("a", children)
	d.push("a", image("trashed"))
	d.delete("a", image("trashed"))
	served, left, other := image("served", layersOf(0, 300)...), image("left", layersOf(200, 600)...), image("other", layersOf(500, 900)...)
	leftIndex, otherIndex := indexOf("left", children...), indexOf("other", children...)
	d.push("a", served, "v1")
	d.upload("a", "bare")
	_, endLeft := d.stage("a", left)
	_, endLeftIndex := d.stage("a", leftIndex)
	_, endOther := d.stage("a", other)
	_, endOtherIndex := d.stage("a", otherIndex)
	d.needs("a", layersOf(0, 900))

	d.clock.Add(100_000)
	endLeft()
	endLeftIndex()
	if d.there("a", left) || d.there("a", leftIndex) || !d.there("a", other) || !d.there("a", otherIndex) {
		t.Error("what was left is still there, or what was not is gone")
	}
	d.needs("a", slices.Concat(layersOf(0, 300), layersOf(500, 900)))
	for i, l := range append(layersOf(0, 900), "bare") {
		ls, _, err := d.FindLinks(t.Context(), "a", digest.FromString(l), 1)
		d.must(err)
		f := must(d.Links(t.Context(), meta.Due{IDs: []int64{ls[0].ID}}))[0]
		if begins, want := f.TouchedAt == d.clock.Load(), i >= 300 && i < 500; begins != want {
			t.Fatalf("the window of %s begins: %v, want %v", l, begins, want)
		}
	}

	d.push("a", other, "v2")
	d.push("a", otherIndex, "v3")
	d.needs("a", slices.Concat(layersOf(0, 300), layersOf(500, 900)))
	d.delete("a", otherIndex)
	if got := orphans(d); got != len(children) {
		t.Errorf("the other index had %d children, want %d", got, len(children))
	}
	endOther() // which has come to be served
	endOtherIndex()
	if d.served("a", served, other) != 2 {
		t.Error("what is served is not any more")
	}
}

// TestR9_ABrokenPushThatCannotBeRemovedStopsNoOther: it is reported, and removed later.
func TestR9_ABrokenPushThatCannotBeRemovedStopsNoOther(t *testing.T) {
	d, path := traced(t, nil)
	pool, err := sql.Open("sqlite", "file:"+path+"?_pragma=busy_timeout(10000)")
	d.must(err)
	defer func() { d.must(pool.Close()) }()
	exec := func(query string) {
		t.Helper()
		_, err := pool.Exec(query)
		d.must(err)
	}
	below := func(id int64) (n int) {
		t.Helper()
		d.must(pool.QueryRow("SELECT count(*) FROM manifest_children WHERE manifest_id = ?", id).Scan(&n))
		return n
	}
	children := images(1200) // that nobody pushes
	stuck, next, going := indexOf("stuck", children[:600]...), indexOf("next", children[:600]...), indexOf("going", children[600:]...)
	goingID, endGoing := d.stage("going", going)
	id, endStuck := d.stage("stuck", stuck)
	_, endNext := d.stage("next", next)
	exec(fmt.Sprintf("CREATE TRIGGER failing BEFORE DELETE ON manifest_children WHEN old.manifest_id = %d BEGIN SELECT RAISE(ABORT, 'injected'); END", id))
	endStuck()
	endNext()
	if !d.there("stuck", stuck) || d.there("next", next) || !d.there("going", going) {
		t.Error("a push that cannot be removed keeps another one, or takes it with it")
	}
	if err := d.FinishKin(t.Context()); err == nil || !strings.Contains(err.Error(), "injected") {
		t.Errorf("the run that cannot remove it reports %v", err)
	}
	// One that is going on is not removed, whatever else waits for that.
	d.must(meta.RemovePart(d.Store, goingID))
	if n := below(goingID); n != 600 {
		t.Errorf("of a push that goes on %d of 600 children are left", n)
	}
	exec("DROP TRIGGER failing")
	d.must(meta.RemovePart(d.Store, id))
	if n := below(id); n == 0 || n == 600 || !d.there("stuck", stuck) {
		t.Errorf("after one transaction %d of 600 children are left", n)
	}
	d.must(d.FinishKin(t.Context()))
	for _, repo := range []string{"stuck", "next"} {
		if _, err := d.RepoScope(t.Context(), repo); !errors.Is(err, fault.NotFound) {
			t.Errorf("the repository %s, which has nothing, is still there: %v", repo, err)
		}
	}
	endGoing()
	if d.there("going", going) {
		t.Error("the last one was not removed when its client left")
	}
}

// TestR7_APushThatIsTakenOverFromAProcessThatIsGoneHasOneUser: when that one leaves
// too, nothing stays.
func TestR7_APushThatIsTakenOverFromAProcessThatIsGoneHasOneUser(t *testing.T) {
	children := images(600)
	raw := indexOf("i", children...)
	d := halfPushed(t, raw, func(d *db) { d.upload("a", "{}"); d.pushAll("a", children) })
	_, end := d.stage("a", raw)
	if end(); d.there("a", raw) {
		t.Error("what nobody pushes any more is still there")
	}
}

// TestR5_BlobsOfALargePushAreLookedUpInBoundedTransactions, also beside things in the trash.
func TestR5_BlobsOfALargePushAreLookedUpInBoundedTransactions(t *testing.T) {
	writing, looked, most := false, 0, 0
	d, _ := traced(t, func(query string, args []any) {
		switch {
		case query == "BEGIN IMMEDIATE":
			writing, looked = true, 0
		case query == "COMMIT":
			writing = false
		case writing && strings.HasPrefix(query, "SELECT b.digest, l.id, b.size, b.lost_at IS NOT NULL FROM"):
			var list []json.RawMessage
			if err := json.Unmarshal([]byte(args[0].(string)), &list); err != nil {
				t.Error(err)
			}
			looked += len(list)
			most = max(most, looked)
		}
	})
	raw, upload := manyLayers()
	upload(d)
	d.push("a", image("other"))
	d.delete("a", image("other"))
	d.push("a", raw, "v1")
	d.push("a", raw, "v2")
	if most == 0 || most > 300 {
		t.Errorf("one transaction looks for %d blobs", most)
	}
}

// TestR5_AHalfPushedManifestIsPushedAgain: the client does not wait for the next run.
func TestR5_AHalfPushedManifestIsPushedAgain(t *testing.T) {
	children := images(600)
	raw := indexOf("i", children...)
	d := halfPushed(t, raw, func(d *db) { d.upload("a", "{}"); d.pushAll("a", children) })
	d.push("a", raw, "v1")
	if d.served("a", raw) != 1 {
		t.Error("it is not served")
	}
	d.must(d.FinishKin(t.Context()))
	d.delete("a", raw)
	if got := orphans(d); got != len(children) {
		t.Errorf("it had %d children, want %d", got, len(children))
	}
}

// TestR1_ARemovalThatIsUnderWaySparesWhatIsTakenOver: a run has found what a crash has
// left of a push, and then a client sends the same manifest again.
func TestR1_ARemovalThatIsUnderWaySparesWhatIsTakenOver(t *testing.T) {
	children := images(600)
	raw := indexOf("i", children...)
	d := halfPushed(t, raw, func(d *db) { d.upload("a", "{}"); d.pushAll("a", children) })
	left := func() int {
		m := must(d.FindManifests(t.Context(), "a", digest.FromBytes(raw), 1))[0]
		_, below, _, err := d.Below(t.Context(), m.RepoID, m.ID, m.Digest)
		d.must(err)
		return len(below)
	}
	before := left()
	d.must(meta.TakeOverAndRemovePart(d.Store, meta.Push{Repo: "a", Digest: digest.FromBytes(raw), Manifest: must(oci.ParseManifest("", raw)), Content: raw}))
	if got := left(); before == 0 || got != before {
		t.Errorf("%d of %d children are left", got, before)
	}
}

// TestR1_ChildrenOfAnIndexOnItsWayInAreSpared: neither those that a policy would send
// to the trash go there, nor do those leave it that are there.
func TestR1_ChildrenOfAnIndexOnItsWayInAreSpared(t *testing.T) {
	children := images(600)
	first := slices.MinFunc(children, func(a, b []byte) int { // in the part that is written
		return strings.Compare(digest.FromBytes(a).String(), digest.FromBytes(b).String())
	})
	i := slices.IndexFunc(children, func(c []byte) bool { return &c[0] == &first[0] })
	children[0], children[i] = children[i], children[0]
	for _, deleted := range []bool{false, true} {
		d := halfPushed(t, indexOf("i", children...), func(d *db) {
			d.upload("a", "{}")
			d.pushAll("a", children)
			d.upload("b", "{}")
			d.push("b", first)
			d.push("a", image("other"))
			d.push("a", indexOf("above", image("other"))) // has come in, and gone
			d.delete("a", indexOf("above", image("other")))
			if deleted {
				d.delete("a", first)
				d.delete("b", first)
				d.delete("a", image("other"))
			}
		})
		d.clock.Add(100_000)
		claim := func(repo oci.Name, raw []byte) meta.Counts {
			m := must(d.FindManifests(t.Context(), repo, digest.FromBytes(raw), 1))[0]
			w := meta.Work{Actor: "x"}
			if deleted {
				f := must(d.Trashed(t.Context(), meta.Due{IDs: []int64{m.ID}}))[0]
				w.Remove = []meta.Claim{{ID: f.ID, Version: f.Version, Before: meta.NoLimit}}
			} else {
				f := must(d.Orphans(t.Context(), meta.Due{IDs: []int64{m.ID}}))[0]
				w.Trash = []meta.TrashClaim{{Claim: meta.Claim{ID: f.ID, Version: f.Version, Before: meta.NoLimit}, Repo: repo, RepoID: f.RepoID, Digest: f.Digest}}
			}
			return must(d.Collect(t.Context(), w))
		}
		if c := claim("b", first); c.Trashed+c.Collected != 1 {
			t.Errorf("a manifest (deleted: %v) of another repository stays: %+v", deleted, c)
		}
		if c := claim("a", image("other")); c.Trashed+c.Collected != 1 {
			t.Errorf("a manifest (deleted: %v) that nothing names stays: %+v", deleted, c)
		}
		if c := claim("a", first); c.Trashed+c.Collected != 0 {
			t.Errorf("a child (deleted: %v) of an index on its way in goes: %+v", deleted, c)
		}
		d.must(d.FinishKin(t.Context()))
		if c := claim("a", first); c.Trashed+c.Collected != 1 {
			t.Errorf("a child (deleted: %v) of an index that never came stays: %+v", deleted, c)
		}
	}
}

// TestR1_ABlobThatComesForAManifestOnItsWayInIsNeeded: it is bound as one that was
// there before.
func TestR1_ABlobThatComesForAManifestOnItsWayInIsNeeded(t *testing.T) {
	children := append([][]byte{[]byte("layer")}, images(600)...) // a build cache is an index of layers
	d := halfPushed(t, indexOf("i", children...), func(d *db) { d.upload("a", "{}"); d.pushAll("a", children[1:]) })
	d.upload("a", "layer")
	if err := d.DeleteBlob(t.Context(), "a", digest.FromString("layer"), "x"); !errors.Is(err, fault.Conflict) {
		t.Errorf("DELETE of a blob that an index on its way in names: %v", err)
	}
}

// TestR5_TwoPushesOfOneLargeManifest: one leaves, the other goes on.
func TestR5_TwoPushesOfOneLargeManifest(t *testing.T) {
	children := images(600)
	raw := indexOf("i", children...)
	ctx, leave := context.WithCancel(t.Context())
	begun, second := make(chan struct{}), make(chan error, 1)
	var once sync.Once
	var d *db
	n := 0
	d, _ = traced(t, func(query string, _ []any) {
		if strings.HasPrefix(query, "SELECT m.id, x.manifest_id IS NOT NULL") {
			if n++; n == 2 { // both are at it
				leave()
			}
			once.Do(func() { close(begun) })
		}
	})
	d.upload("a", "{}")
	d.pushAll("a", children)
	p := meta.Push{Repo: "a", Tags: []oci.Tag{"v1"}, Digest: digest.FromBytes(raw), Manifest: must(oci.ParseManifest("", raw)), Content: raw}
	go func() {
		<-begun
		_, err := d.PutManifest(t.Context(), p)
		second <- err
	}()
	if _, err := d.PutManifest(ctx, p); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("the push that is left: %v", err)
	}
	if err := <-second; err != nil {
		t.Errorf("the push that goes on: %v", err)
	}
	if n > 2 {
		t.Error("the push that goes on had to begin again")
	}
	d.must(d.FinishKin(t.Context()))
	if d.served("a", raw) != 1 || d.served("a", children...) != len(children) {
		t.Error("the index is not served as a whole")
	}
	d.delete("a", raw)
	if got := orphans(d); got != len(children) {
		t.Errorf("it had %d children, want %d", got, len(children))
	}
}

// afterParts runs statements when all parts of a large push are written, before the
// transaction that has it served.
func afterParts(t *testing.T, raw []byte, prepare func(*db), statements ...string) (*db, error) {
	t.Helper()
	var path string
	parts, want := 0, -1
	d, path := traced(t, func(query string, _ []any) {
		if strings.HasPrefix(query, "INSERT OR IGNORE INTO manifest_blobs (manifest_id, link_id, living) SELECT ?, a, ?") {
			parts++
		}
		if query != "BEGIN IMMEDIATE" || parts != want { // at BEGIN no transaction is open
			return
		}
		parts++
		pool, err := sql.Open("sqlite", "file:"+path)
		for _, s := range statements {
			if err == nil {
				_, err = pool.Exec(s)
			}
		}
		if err = errors.Join(err, pool.Close()); err != nil {
			t.Error(err)
		}
	})
	prepare(d)
	parts, want = 0, 3
	_, err := d.put("a", raw, "v1")
	if parts < 4 {
		t.Fatalf("the push has written %d parts", parts)
	}
	return d, err
}

func manyLayers() (raw []byte, upload func(*db)) {
	var layers []string
	for i := range 600 {
		layers = append(layers, fmt.Sprint("layer", i))
	}
	return image("many", layers...), func(d *db) {
		d.upload("a", "{}")
		d.uploadAll("a", layers)
	}
}

// uploadAll uploads blobs that share commits.
func (d *db) uploadAll(repo oci.Name, contents []string) {
	d.Helper()
	var wg sync.WaitGroup
	for part := range slices.Chunk(contents, (len(contents)+31)/32) {
		wg.Go(func() {
			for _, c := range part {
				d.upload(repo, c)
			}
		})
	}
	wg.Wait()
}

// TestR2_BlobsThatAreLostDuringALargePush: what was found for a part of a manifest is
// looked at again if bytes were found missing before the manifest is served.
func TestR2_BlobsThatAreLostDuringALargePush(t *testing.T) {
	raw, upload := manyLayers()
	d, err := afterParts(t, raw, upload, fmt.Sprintf("UPDATE blobs SET lost_at = %d WHERE digest = '%s'", int64(1_700_000_000_000), digest.FromString("layer1")))
	if err == nil || fault.Public(err).Code != oci.CodeManifestBlobUnknown || d.served("a", raw) != 0 {
		t.Errorf("a push whose blob is lost meanwhile: %v", err)
	}
	if ms := must(d.FindManifests(t.Context(), "a", digest.FromBytes(raw), 1)); len(ms) != 0 {
		t.Errorf("a push that was refused leaves %+v", ms)
	}
}

// TestR2_ALargePushWhosePartsAreRemovedBeginsAgain: it is never served without them,
// whichever row has its id or its digest by then.
func TestR2_ALargePushWhosePartsAreRemovedBeginsAgain(t *testing.T) {
	raw, upload := manyLayers()
	for name, last := range map[string]string{
		"removed":                "DELETE FROM manifests",
		"another row has it":     "UPDATE manifests SET id = id + 1000",
		"the row is another's":   "UPDATE manifests SET digest = '" + string(digest.FromString("x")) + "'",
		"the row is elsewhere's": "UPDATE manifests SET repo_id = (SELECT id FROM repositories WHERE name = 'b')",
	} {
		t.Run(name, func(t *testing.T) {
			d, err := afterParts(t, raw, func(d *db) { upload(d); d.upload("b", "{}") }, "DELETE FROM manifest_blobs", "DELETE FROM manifest_children", "DELETE FROM staged", last)
			if err != nil {
				t.Fatal(err)
			}
			d.needs("a", layersOf(0, 600))
		})
	}
}

// TestR2_ABlobThatIsDeletedDuringALargePushOutOfTheTrash: a manifest in the trash does
// not keep a client from deleting its blobs, so what was found of them is looked at
// again before it is served.
func TestR2_ABlobThatIsDeletedDuringALargePushOutOfTheTrash(t *testing.T) {
	raw, upload := manyLayers()
	hide := fmt.Sprintf("UPDATE links SET hidden = 1 WHERE blob_id = (SELECT id FROM blobs WHERE digest = '%s')", digest.FromString("layer1"))
	d, err := afterParts(t, raw, func(d *db) { upload(d); d.push("a", raw); d.delete("a", raw) }, hide)
	if err == nil || fault.Public(err).Code != oci.CodeManifestBlobUnknown || d.served("a", raw) != 0 {
		t.Errorf("a push whose blob is deleted meanwhile: %v", err)
	}
}

// TestR3_APushOutOfTheTrashThatBreaksOffNeedsNothing: what it has written needs no
// blob while its manifest is in the trash.
func TestR3_APushOutOfTheTrashThatBreaksOffNeedsNothing(t *testing.T) {
	ctx, leave := context.WithCancel(t.Context())
	armed := false
	d, _ := traced(t, func(query string, _ []any) {
		if armed && strings.HasPrefix(query, "INSERT OR IGNORE INTO manifest_blobs") {
			leave()
		}
	})
	content := []byte(`{"schemaVersion":2,"mentioned":[`)
	for i := range 300 {
		content = fmt.Appendf(content, "%q,", d.upload("a", fmt.Sprint("blob", i)))
	}
	content = append(content[:len(content)-1], "]}"...)
	put := func(ctx context.Context, mediaType string) error {
		m := must(oci.ParseManifest(mediaType, content))
		_, err := d.PutManifest(ctx, meta.Push{Repo: "a", Digest: digest.FromBytes(content), Manifest: m, Content: content})
		return err
	}
	d.must(put(t.Context(), oci.MediaTypeIndex)) // read so, it needs none of them
	d.delete("a", content)
	armed = true
	if err := put(ctx, "application/x"); !errors.Is(err, context.Canceled) {
		t.Fatalf("the push of a client that leaves: %v", err)
	}
	for i := range 300 {
		d.must(d.DeleteBlob(t.Context(), "a", digest.FromString(fmt.Sprint("blob", i)), "x"))
	}
}

func TestR7_AHalfRestoredIndexIsFinished(t *testing.T) {
	const n = 350
	children := images(n)
	index := indexOf("i", children...)
	var subs [][]byte
	for i := range n {
		subs = append(subs, sub(digest.FromBytes(index), fmt.Sprint(i)))
	}
	prepare := func(d *db) {
		d.upload("a", "{}")
		d.pushAll("a", children)
		d.push("a", index, "v1")
		d.pushAll("a", subs)
		d.delete("a", index)
		// All follow, and are the collector's to restore.
		d.clock.Add(10_000)
		var w meta.Work
		for _, f := range must(d.Orphans(context.Background(), meta.Due{Before: meta.NoLimit, Scope: must(d.RepoScope(context.Background(), "")), Limit: 10_000})) {
			w.Trash = append(w.Trash, meta.TrashClaim{Claim: meta.Claim{ID: f.ID, Version: f.Version, Before: meta.NoLimit}, Repo: "a", RepoID: f.RepoID, Digest: f.Digest, Cause: digest.FromBytes(index)})
		}
		if c := must(d.Collect(context.Background(), w)); c.Trashed != 2*n {
			d.Fatalf("%+v", c)
		}
	}
	restore := func(d *db) { must(d.Restore(context.Background(), "a", digest.FromBytes(index), "x")) }
	for name, finish := range map[string]func(*db) error{
		"by a run": func(d *db) error { return d.FinishKin(t.Context()) },
		"by a run after a push": func(d *db) error {
			d.push("a", index)
			return d.FinishKin(t.Context())
		},
		"by the run after one beside the request": func(d *db) error {
			leave := meta.UnderWay(d.Store, must(d.FindManifests(t.Context(), "a", digest.FromBytes(index), 1))[0].ID)
			err := d.FinishKin(t.Context())
			leave()
			return errors.Join(err, d.FinishKin(t.Context()))
		},
		"by the same request": func(d *db) error { _, err := d.Restore(t.Context(), "a", digest.FromBytes(index), "x"); return err },
	} {
		t.Run(name, func(t *testing.T) {
			d := killedAfter(t, "INSERT INTO kin", prepare, restore)
			if got := d.served("a", children...); d.served("a", index) != 1 || got == 0 || got == n {
				t.Fatalf("%d children after the crash, want some of %d", got, n)
			}
			// What is left in the trash stays there, however long ago it was deleted.
			d.clock.Add(1_000_000)
			var w meta.Work
			for _, f := range must(d.Trashed(t.Context(), meta.Due{Before: meta.NoLimit, Scope: must(d.RepoScope(t.Context(), "")), Limit: 10_000})) {
				w.Remove = append(w.Remove, meta.Claim{ID: f.ID, Version: f.Version, Before: meta.NoLimit})
			}
			if c := must(d.Collect(t.Context(), w)); c.Collected != 0 {
				t.Errorf("a collection takes %d of what is to be restored", c.Collected)
			}
			d.must(finish(d))
			if got := d.served("a", children...); got != n {
				t.Errorf("%d children, want %d", got, n)
			}
			if got := d.served("a", subs...); got != n {
				t.Errorf("%d referrers, want %d", got, n)
			}
			if len(d.trash("a")) != 0 || orphans(d) != 0 {
				t.Errorf("%d items in the trash, %d orphans", len(d.trash("a")), orphans(d))
			}
		})
	}
}

// TestR7_WhatIsLeftOfARequestIsDoneWhenItsClientLeaves: the first transaction has
// carried it out.
func TestR7_WhatIsLeftOfARequestIsDoneWhenItsClientLeaves(t *testing.T) {
	const n = 350
	var leave func()
	d, _ := traced(t, func(query string, _ []any) {
		if strings.HasPrefix(query, "INSERT INTO kin") && leave != nil {
			leave()
		}
	})
	children := images(n)
	index := indexOf("i", children...)
	d.upload("a", "{}")
	d.pushAll("a", children)
	d.push("a", index, "v1")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	leave = cancel
	d.must(d.DeleteManifest(ctx, "a", digest.FromBytes(index), "x"))
	if got := orphans(d); got != n || ctx.Err() == nil {
		t.Errorf("after a deletion whose client has left %d of %d children are orphans", got, n)
	}
	leave = nil
	for _, c := range children {
		d.delete("a", c)
	}
	ctx, cancel = context.WithCancel(t.Context())
	defer cancel()
	leave = cancel
	if out := must(d.Restore(ctx, "a", digest.FromBytes(index), "x")); len(out.Along) != n || ctx.Err() == nil {
		t.Errorf("a restore whose client has left brings %d of %d children back", len(out.Along), n)
	}
	if got := d.served("a", children...); got != n {
		t.Errorf("%d of %d children are served", got, n)
	}
}

// TestR10_ARestoreReportsAllThatItBringsBack: a run leaves it to finish its work.
func TestR10_ARestoreReportsAllThatItBringsBack(t *testing.T) {
	const n = 350
	children := images(n)
	index := indexOf("i", children...)
	d := killedAfter(t, "INSERT INTO kin", func(d *db) {
		d.upload("a", "{}")
		d.pushAll("a", children)
		d.push("a", index, "v1")
		d.delete("a", index)
		for _, c := range children {
			d.delete("a", c)
		}
	}, func(d *db) { must(d.Restore(context.Background(), "a", digest.FromBytes(index), "x")) })
	back := d.served("a", children...)
	leave := meta.UnderWay(d.Store, must(d.FindManifests(t.Context(), "a", digest.FromBytes(index), 1))[0].ID)
	d.must(d.FinishKin(t.Context()))
	leave()
	if out := must(d.Restore(t.Context(), "a", digest.FromBytes(index), "x")); len(out.Along) != n-back {
		t.Errorf("the restore reports %d of %d manifests", len(out.Along), n-back)
	}
}

// TestR7_KinThatComeAsTheLastAreDoneAreNotForgotten: one commit has the look that
// finds no kin left, and a write after it that leaves some.
func TestR7_KinThatComeAsTheLastAreDoneAreNotForgotten(t *testing.T) {
	d := open(t)
	d.upload("a", "{}")
	d.push("a", image("child"))
	d.push("a", indexOf("i", image("child")))
	m := must(d.FindManifests(t.Context(), "a", digest.FromBytes(indexOf("i", image("child"))), 1))[0]
	if !must(meta.LeavesKin(d.Store, m.RepoID, m.ID)) {
		t.Error("nobody will go on with kin that are left")
	}
}

// TestR7_AHalfRestoredIndexThatIsDeletedIsNotRestored: the last word counts.
func TestR7_AHalfRestoredIndexThatIsDeletedIsNotRestored(t *testing.T) {
	const n = 350
	children := images(n)
	index := indexOf("i", children...)
	d := killedAfter(t, "INSERT INTO kin", func(d *db) {
		d.upload("a", "{}")
		d.pushAll("a", children)
		d.push("a", index, "v1")
		d.delete("a", index)
		for _, c := range children {
			d.delete("a", c)
		}
	}, func(d *db) { must(d.Restore(context.Background(), "a", digest.FromBytes(index), "x")) })
	back := d.served("a", children...)
	d.delete("a", index)
	d.must(d.FinishKin(t.Context()))
	if got := d.served("a", children...); got != back || orphans(d) != back {
		t.Errorf("%d children are served and %d are orphans, want %d", got, orphans(d), back)
	}
}

// TestR2_AnIndexBringsItsChildrenBack: a 201 says that the children are served which
// the repository has, also those in the trash; their tags are not part of it.
func TestR2_AnIndexBringsItsChildrenBack(t *testing.T) {
	for name, times := range map[string]int{"new": 1, "pushed again": 2} {
		t.Run(name, func(t *testing.T) {
			d := open(t)
			d.upload("a", "{}")
			child, other := image("child"), image("other")
			d.push("a", child, "v1")
			d.push("a", other)
			inner := indexOf("inner", child)
			d.push("a", inner)
			outer := indexOf("outer", inner, other)
			if times == 2 {
				d.push("a", outer, "v2")
			}
			for _, raw := range [][]byte{child, inner, other} {
				d.delete("a", raw)
			}
			d.push("a", outer, "v2")
			if got := d.served("a", outer, inner, child, other); got != 4 {
				t.Errorf("%d of 4 manifests are served", got)
			}
			if _, err := d.Manifest(t.Context(), "a", tag("v1")); !errors.Is(err, fault.NotFound) {
				t.Errorf("a tag that was deleted is back: %v", err)
			}
			if got := len(d.trash("a")); got != 0 {
				t.Errorf("%d items are in the trash", got)
			}
			d.delete("a", outer)
			if got := orphans(d); got != 2 { // and one below
				t.Errorf("%d orphans, want 2", got)
			}
		})
	}
}

func TestR2_AnIndexWhoseDeletedChildCannotComeBackIsRefused(t *testing.T) {
	d := open(t)
	d.upload("a", "{}")
	d.upload("a", "layer")
	child := image("child", "layer")
	d.push("a", child)
	d.delete("a", child)
	c := must(d.CreateCheck(t.Context(), meta.CheckRow{State: "running"}))
	bs := must(d.CheckBlobs(t.Context(), 0, 10))
	d.must(d.SaveCheck(t.Context(), meta.CheckActs{Actor: "x", Lost: bs[1:2]}, func(meta.CheckDone) (meta.CheckRow, error) { return c, nil }))
	index := indexOf("i", child)
	_, err := d.put("a", index, "v1")
	var f *fault.Error
	if !errors.As(err, &f) || f.Code != oci.CodeManifestBlobUnknown || fmt.Sprint(f.Detail) != fmt.Sprintf("[map[digest:%s]]", digest.FromBytes(child)) {
		t.Errorf("PUT: %v, %+v; want a refusal that names the child", err, f)
	}
	if d.served("a", index) != 0 {
		t.Error("the index is served")
	}
	// A manifest of a type not known here brings nothing back.
	unknown := fmt.Appendf(nil, `{"manifests":[{"mediaType":%q,"digest":%q,"size":%d}]}`, oci.MediaTypeImage, digest.FromBytes(child), len(child))
	_, err = d.PutManifest(t.Context(), meta.Push{Repo: "a", Digest: digest.FromBytes(unknown), Manifest: must(oci.ParseManifest("application/x", unknown)), Content: unknown})
	d.must(err)
	if d.served("a", child) != 0 {
		t.Error("a manifest of an unknown type brings a child back")
	}
	d.upload("a", "layer")
	d.push("a", index, "v1")
	if d.served("a", index, child) != 2 {
		t.Error("when the bytes are back, it is not served as a whole")
	}
}

// TestR10_TheTimeInTheTrashBeginsAnewAtEveryDepth: it does so with the answer to the
// deletion, of what little there is.
func TestR10_TheTimeInTheTrashBeginsAnewAtEveryDepth(t *testing.T) {
	d := open(t)
	d.upload("a", "{}")
	child := image("child")
	inner := indexOf("inner", child)
	outer := indexOf("outer", inner)
	signature := sub(digest.FromBytes(inner), "signature")
	for _, raw := range [][]byte{child, inner, outer, signature} {
		d.push("a", raw)
	}
	for _, raw := range [][]byte{signature, child, inner} {
		d.delete("a", raw)
	}
	d.clock.Add(1000)
	d.delete("a", outer)
	for _, it := range d.trash("a") {
		if it.TrashedAt.UnixMilli() != d.clock.Load() {
			t.Errorf("the time in the trash of %s does not begin anew", it.Digest)
		}
	}
}

// TestR2_ATimeInTheTrashThatBeginsAnewMarksNobody: a child that was pushed again since
// its index went is there for its own sake.
func TestR2_ATimeInTheTrashThatBeginsAnewMarksNobody(t *testing.T) {
	d := open(t)
	d.upload("a", "{}")
	child := image("child")
	inner := indexOf("inner", child)
	d.pushAll("a", [][]byte{child, inner, indexOf("outer", inner)})
	d.delete("a", inner)
	d.push("a", child)
	d.clock.Add(1000)
	d.delete("a", indexOf("outer", inner))
	if got := orphans(d); got != 0 {
		t.Errorf("%d orphans, want none", got)
	}
}

// TestR16_AnIndexOfItsOwnSubjectIsDeleted: what is above is below, and the time in the
// trash begins anew once.
func TestR16_AnIndexOfItsOwnSubjectIsDeleted(t *testing.T) {
	d := open(t)
	d.upload("a", "{}")
	child := image("child")
	descriptor := fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d}`, oci.MediaTypeImage, digest.FromBytes(child), len(child))
	index := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"manifests":[%s],"subject":%s}`, oci.MediaTypeIndex, descriptor, descriptor)
	d.push("a", child)
	d.push("a", index)
	d.delete("a", child)
	d.clock.Add(1000)
	d.delete("a", index)
	for _, it := range d.trash("a") {
		if it.TrashedAt.UnixMilli() != d.clock.Load() {
			t.Errorf("the time in the trash of %s does not begin anew", it.Digest)
		}
	}
}
