package meta_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/nodeapi"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/meta"
)

// traced opens a store whose statements a function sees.
func traced(t *testing.T, trace func(query string, args []any)) (*db, string) {
	t.Helper()
	d := &db{T: t}
	d.clock.Store(1_700_000_000_000)
	path := filepath.Join(t.TempDir(), "fairway.db")
	var err error
	d.Store, err = meta.Open(t.Context(), meta.Options{Path: path, Now: d.clock.Load, Trace: trace})
	d.must(err)
	t.Cleanup(func() { d.must(d.Close()) })
	return d, path
}

func TestR17_ListingsLeaveConnectionsToLookUps(t *testing.T) {
	listings := map[string]func(*db) error{
		"catalog":   func(d *db) error { _, _, err := d.Repositories(context.Background(), "", 10); return err },
		"tags":      func(d *db) error { _, _, err := d.Tags(context.Background(), "a", "", -1); return err },
		"referrers": func(d *db) error { return referrers(d) },
		"trash":     func(d *db) error { _, _, err := d.Trash(context.Background(), meta.TrashPage{N: 10}); return err },
		"leases":    func(d *db) error { _, _, err := d.Leases(context.Background(), meta.LeasePage{N: 10}); return err },
		"nodes":     func(d *db) error { _, _, err := d.Nodes(context.Background(), "", 10); return err },
		"deletions": func(d *db) error { _, err := d.Deletions(context.Background(), "", 0, 0, 10); return err },
		"preheats":  func(d *db) error { _, err := d.Preheats(context.Background(), 0, 10); return err },
		"queues":    func(d *db) error { _, err := d.Stats(context.Background()); return err },
		"pattern":   func(d *db) error { _, err := d.RepoScope(context.Background(), "a*"); return err },
	}
	for name, list := range listings {
		t.Run(name, func(t *testing.T) {
			var holding atomic.Bool // statements but those of the look-up wait
			hold, held := make(chan struct{}), make(chan struct{}, 8)
			d, _ := traced(t, func(query string, _ []any) {
				if holding.Load() && !strings.Contains(query, "JOIN blobs b ON b.digest = ?2") {
					select {
					case held <- struct{}{}:
					default:
					}
					<-hold
				}
			})
			d.upload("a", "{}")
			d.push("a", image("x"), "v1")
			holding.Store(true)
			var wg sync.WaitGroup
			for range 8 {
				wg.Go(func() {
					if err := list(d); err != nil {
						t.Error(err)
					}
				})
			}
			release := sync.OnceFunc(func() { close(hold) })
			t.Cleanup(release)
			<-held
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			for i := range 200 { // none of which the cache has
				if _, err := d.Blob(ctx, "a", digest.FromString(fmt.Sprint(i))); !errors.Is(err, fault.NotFound) {
					t.Fatalf("a look-up beside 8 listings: %v", err)
				}
			}
			release()
			wg.Wait()
		})
	}
}

func referrers(d *db) error {
	for _, err := range d.Referrers(context.Background(), "a", digest.FromString("x"), "", "") {
		if err != nil {
			return err
		}
	}
	return nil
}

// family is a subject with many referrers.
func family(d *db, n int) (subject oci.Digest) {
	d.Helper()
	d.upload("a", "{}")
	raw := image("subject")
	subject = d.push("a", raw, "v1")
	var subs [][]byte
	for i := range n {
		subs = append(subs, sub(subject, fmt.Sprint(i)))
	}
	d.pushAll("a", subs)
	return subject
}

func orphans(d *db) int {
	d.Helper()
	fs, err := d.Orphans(context.Background(), meta.Due{Before: d.Now() + 10_000, Scope: must(d.RepoScope(context.Background(), "")), Limit: 10_000})
	d.must(err)
	return len(fs)
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestR5_KinOfOneManifestAreSettledInBoundedTransactions(t *testing.T) {
	var mu sync.Mutex
	inTransaction, most := 0, 0
	d, _ := traced(t, func(query string, args []any) {
		mu.Lock()
		defer mu.Unlock()
		switch {
		case query == "BEGIN IMMEDIATE":
			inTransaction = 0
		case strings.HasPrefix(query, "UPDATE manifests AS m SET version = version + 1,"):
			var ids []int64
			if err := json.Unmarshal([]byte(args[1].(string)), &ids); err != nil {
				t.Error(err)
			}
			inTransaction += len(ids)
			most = max(most, inTransaction)
		}
	})
	const n = 700
	subject := family(d, n)
	most = 0
	d.must(d.DeleteManifest(t.Context(), "a", subject, "x"))
	if got := orphans(d); got != n {
		t.Errorf("%d orphans, want %d", got, n)
	}
	d.push("a", image("subject"), "v1")
	if got := orphans(d); got != 0 {
		t.Errorf("%d orphans after the subject is back, want none", got)
	}
	var children [][]byte
	for i := range n {
		children = append(children, image(fmt.Sprint("child", i)))
	}
	d.pushAll("a", children)
	most = 0
	index := d.push("a", indexOf("i", children...), "i")
	d.must(d.DeleteManifest(t.Context(), "a", index, "x"))
	if got := orphans(d); got != n {
		t.Errorf("%d orphans, want %d", got, n)
	}
	mu.Lock()
	defer mu.Unlock()
	if most > 250 {
		t.Errorf("one transaction settles %d manifests", most)
	}
}

// killedAfter does something, and opens what a kill -9 would leave after the
// transaction in which a statement is run that begins so.
func killedAfter(t *testing.T, statement string, prepare func(*db), do func(*db)) *db {
	t.Helper()
	dead := t.TempDir()
	var path string
	var armed, left, taken bool
	d, path := traced(t, func(query string, _ []any) {
		switch {
		case armed && strings.HasPrefix(query, statement):
			left = true
		case left && !taken && query == "BEGIN IMMEDIATE": // the next transaction after it
			taken = true
			for _, f := range []string{"", "-wal"} {
				b, err := os.ReadFile(path + f)
				if err != nil {
					t.Error(err)
				}
				if err := os.WriteFile(filepath.Join(dead, "fairway.db"+f), b, 0o600); err != nil {
					t.Error(err)
				}
			}
		}
	})
	prepare(d)
	d.must(d.Sync(t.Context())) // and so the writer is at rest
	armed = true
	do(d)
	if !taken {
		t.Fatalf("there was no transaction after %q", statement)
	}
	killed := &db{T: t}
	killed.clock.Store(d.clock.Load())
	var err error
	killed.path = filepath.Join(dead, "fairway.db")
	killed.Store, err = meta.Open(t.Context(), meta.Options{Path: killed.path, Now: killed.clock.Load})
	killed.must(err)
	t.Cleanup(func() { killed.must(killed.Close()) })
	return killed
}

// killedBeforeKinAreSettled deletes a manifest that has more kin than one
// transaction settles, and opens what a kill -9 after the first one would leave.
func killedBeforeKinAreSettled(t *testing.T, prepare func(*db) (deleted oci.Digest)) *db {
	t.Helper()
	var deleted oci.Digest
	return killedAfter(t, "INSERT INTO kin", func(d *db) { deleted = prepare(d) }, func(d *db) { d.must(d.DeleteManifest(t.Context(), "a", deleted, "x")) })
}

func TestR7_KinThatACrashLeavesAreSettledLater(t *testing.T) {
	const n = 700
	killed := killedBeforeKinAreSettled(t, func(d *db) oci.Digest { return family(d, n) })
	if got := orphans(killed); got == 0 || got == n {
		t.Fatalf("%d orphans after the crash, want some of %d", got, n)
	}
	// While kin are left, their subject is not removed: they would never be found.
	ts, err := killed.Trashed(t.Context(), meta.Due{Before: killed.Now(), Scope: must(killed.RepoScope(t.Context(), "")), Limit: 10})
	killed.must(err)
	counts, err := killed.Collect(t.Context(), meta.Work{Actor: "x", Remove: []meta.Claim{{ID: ts[0].ID, Version: ts[0].Version, Before: meta.NoLimit}}})
	if err != nil || counts.Collected != 0 {
		t.Errorf("a subject with kin left is removed: %+v, %v", counts, err)
	}
	killed.must(killed.FinishKin(t.Context()))
	if got := orphans(killed); got != n {
		t.Errorf("%d orphans, want %d", got, n)
	}
}

// TestR2_WhatComesBeforeKinAreSettledIsNoOrphan: a child that is pushed or restored
// after its index was deleted is there for its own sake.
func TestR2_WhatComesBeforeKinAreSettledIsNoOrphan(t *testing.T) {
	var children [][]byte
	var last oci.Digest // is settled last
	var content []byte
	for i := range 300 {
		c := image(fmt.Sprint("child", i))
		children = append(children, c)
		if d := digest.FromBytes(c); d > last {
			last, content = d, c
		}
	}
	for name, tc := range map[string]struct {
		before, after func(*db)
	}{
		"pushed":   {func(*db) {}, func(d *db) { d.push("a", content) }},
		"restored": {func(d *db) { d.must(d.DeleteManifest(t.Context(), "a", last, "x")) }, func(d *db) { must(d.Restore(t.Context(), "a", last, "x")) }},
	} {
		t.Run(name, func(t *testing.T) {
			killed := killedBeforeKinAreSettled(t, func(d *db) oci.Digest {
				d.upload("a", "{}")
				d.pushAll("a", children)
				index := d.push("a", indexOf("i", children...), "i")
				tc.before(d)
				return index
			})
			killed.clock.Add(1000)
			tc.after(killed)
			killed.must(killed.FinishKin(t.Context()))
			killed.clock.Add(1000)
			due, err := killed.Orphans(t.Context(), meta.Due{Before: killed.Now(), Scope: must(killed.RepoScope(t.Context(), "")), Limit: 10_000})
			killed.must(err)
			for _, f := range due {
				if f.Digest == last {
					t.Error("it is an orphan of the index that was deleted before")
				}
			}
			if len(due) != len(children)-1 {
				t.Errorf("%d orphans, want all of the %d others", len(due), len(children)-1)
			}
		})
	}
}

func TestR17_PagesOfTheTrashJoinUp(t *testing.T) {
	d := open(t)
	want := map[string]int{}
	for _, repo := range []oci.Name{"a", "b", "a/c"} {
		d.upload(repo, "{}")
		for i := range 7 {
			m := d.push(repo, image(fmt.Sprint(repo, i)), "v1")
			if i%2 == 0 {
				d.clock.Add(1)
			}
			d.must(d.DeleteManifest(t.Context(), repo, m, "x"))
			want[string(repo)+"@"+string(m)]++
		}
	}
	for pattern, n := range map[string]int{"": 21, "a": 7, "a*": 7, "**": 21} {
		for size := 1; size <= 22; size++ {
			got := map[string]int{}
			last := int64(1 << 62)
			p := meta.TrashPage{Pattern: pattern, N: size}
			for {
				items, next, err := d.Trash(t.Context(), p)
				d.must(err)
				for _, it := range items {
					got[string(it.Repo)+"@"+string(it.Digest)]++
					if at := it.TrashedAt.UnixMilli(); at > last {
						t.Errorf("pages of %d of %q: newer after older", size, pattern)
					} else {
						last = at
					}
				}
				if p.After = next; next == (meta.TrashCursor{}) {
					break
				}
			}
			if len(got) != n {
				t.Errorf("pages of %d of %q: %d items, want %d", size, pattern, len(got), n)
			}
			for k, times := range got {
				if times != want[k] {
					t.Errorf("pages of %d of %q: %s is listed %d times", size, pattern, k, times)
				}
			}
		}
	}
}

func TestR17_PagesOfLeasesAndNodesJoinUp(t *testing.T) {
	d := open(t)
	for i := range 9 {
		_, err := d.PutLease(t.Context(), fmt.Sprint("h", i), []oci.Digest{digest.FromString("x"), digest.FromString("y")}, 1000)
		d.must(err)
		_, _, err = d.PutNode(t.Context(), nodeapi.Report{Node: fmt.Sprint("n", i), Instance: "i", Seq: 1, Complete: true, TTLSeconds: 60, InUse: []nodeapi.InUse{}}, time.Hour)
		d.must(err)
	}
	for size := 1; size < 20; size++ {
		var holders, nodes []string
		p := meta.LeasePage{N: size, Digests: 1}
		for {
			ls, more, err := d.Leases(t.Context(), p)
			d.must(err)
			for _, l := range ls {
				holders = append(holders, l.Holder)
				if strings.HasPrefix(l.Holder, "h") && (len(l.Digests) != 1 || !l.Cut) {
					t.Errorf("%s: %d digests, cut %v", l.Holder, len(l.Digests), l.Cut)
				}
			}
			if !more {
				break
			}
			p.After = ls[len(ls)-1].Holder
		}
		for after := ""; ; {
			ns, more, err := d.Nodes(t.Context(), after, size)
			d.must(err)
			for _, n := range ns {
				nodes = append(nodes, n.Name)
			}
			if !more {
				break
			}
			after = ns[len(ns)-1].Name
		}
		if got, want := strings.Join(holders, " "), "h0 h1 h2 h3 h4 h5 h6 h7 h8 node:n0 node:n1 node:n2 node:n3 node:n4 node:n5 node:n6 node:n7 node:n8"; got != want {
			t.Errorf("pages of %d: %s", size, got)
		}
		if got, want := strings.Join(nodes, " "), "n0 n1 n2 n3 n4 n5 n6 n7 n8"; got != want {
			t.Errorf("pages of %d: %s", size, got)
		}
	}
}

func TestN3_IncompleteReportsKeepForTheirGraceAndDoNotPileUp(t *testing.T) {
	written := 0 // bytes of what the node runs
	d, _ := traced(t, func(query string, args []any) {
		if strings.HasPrefix(query, "INSERT INTO node_runs") {
			written = len(args[1].(string))
		}
	})
	const grace = time.Hour
	uses := func(from, to int) (in []nodeapi.InUse) {
		for i := from; i < to; i++ {
			in = append(in, nodeapi.InUse{Digests: []oci.Digest{digest.FromString(fmt.Sprint(i))}, Containers: 1})
		}
		return in
	}
	held := func() (n nodeapi.Node) {
		n, err := d.Node(t.Context(), "n")
		d.must(err)
		return n
	}
	const each, reports = 10, 100
	const runBytes = 250
	for i := range reports {
		d.clock.Add((10 * time.Minute).Milliseconds())
		_, _, err := d.PutNode(t.Context(), nodeapi.Report{Node: "n", Instance: "i", Seq: int64(i + 1), TTLSeconds: 60, InUse: uses(each*i, each*(i+1))}, grace)
		d.must(err)
		// What the last report before did not name is kept: a runtime may be silent.
		if n := held(); i > 0 && (n.Digests < 2*each || n.Images < 2*each) {
			t.Fatalf("report %d: %d digests and %d images are kept", i, n.Digests, n.Images)
		}
	}
	// Grace, its slack and the time to live are 69 minutes: 7 reports.
	if n := held(); n.Digests > 8*each || n.Images > 8*each {
		t.Errorf("after %d incomplete reports %d digests and %d images are kept", reports, n.Digests, n.Images)
	}
	if written > 8*each*runBytes {
		t.Errorf("after %d incomplete reports %d bytes are written", reports, written)
	}
	// What is named again and again stays, however long.
	if us, err := d.LeasesOn(t.Context(), 0, digest.FromString(fmt.Sprint(each*reports-1)), 10); err != nil || len(us) != 1 || us[0].Containers != 1 {
		t.Errorf("what the last report names: %+v, %v", us, err)
	}
}
