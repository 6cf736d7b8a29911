package meta_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"math"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	_ "modernc.org/sqlite"

	"github.com/fairway-registry/fairway/internal/nodeapi"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/meta"
)

// recorder notes each statement with its arguments, and the lines of this
// package that it came from.
type recorder struct {
	mu    sync.Mutex
	args  map[string][]any
	lines map[string]map[string]bool // file:line → statements
}

func (r *recorder) trace(query string, args []any) {
	pcs := make([]uintptr, 32)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(2, pcs)])
	r.mu.Lock()
	defer r.mu.Unlock()
	r.args[query] = args
	for {
		f, more := frames.Next()
		if strings.HasSuffix(filepath.Dir(f.File), "registry/meta") && !strings.HasSuffix(f.File, "_test.go") {
			key := fmt.Sprintf("%s:%d", filepath.Base(f.File), f.Line)
			if r.lines[key] == nil {
				r.lines[key] = map[string]bool{}
			}
			r.lines[key][query] = true
		}
		if !more {
			return
		}
	}
}

// TestR8_NoStatementScansAGrowingTable plans every statement of the package. It
// finds them by running them: a call of the database that everyStatement does
// not reach is a failure too, so that none can be added that is not planned.
func TestR8_NoStatementScansAGrowingTable(t *testing.T) {
	rec := &recorder{args: map[string][]any{}, lines: map[string]map[string]bool{}}
	d := &db{T: t}
	d.clock.Store(1_700_000_000_000)
	path := filepath.Join(t.TempDir(), "fairway.db")
	var err error
	d.Store, err = meta.Open(t.Context(), meta.Options{Path: path, Now: d.clock.Load, Trace: func(query string, args []any) {
		rec.trace(query, args)
		if d.onStage != nil && strings.HasPrefix(query, "INSERT INTO staged") {
			d.onStage()
		}
	}})
	d.must(err)
	everyStatement(d)
	leaveStaged(d, path)
	d.must(d.FinishKin(t.Context()))
	outside(t, path, "INSERT INTO unread (manifest_id) SELECT id FROM manifests LIMIT 5")
	d.must(d.Close())
	d.Store, err = meta.Open(t.Context(), meta.Options{Path: path, Now: d.clock.Load, Trace: rec.trace}) // for what a start does about an open run, and about an earlier version
	d.must(err)
	d.must(d.Close())

	for _, site := range statements(t) {
		found := map[string]bool{}
		for line := site.from; line <= site.to; line++ {
			for q := range rec.lines[fmt.Sprintf("%s:%d", site.file, line)] {
				found[q] = true
			}
		}
		if len(found) == 0 {
			t.Errorf("%s:%d: everyStatement does not run this statement; have it do so", site.file, site.from)
		}
	}
	pool, err := sql.Open("sqlite", "file:"+path)
	d.must(err)
	defer func() { d.must(pool.Close()) }()
	for query, args := range rec.args {
		for _, problem := range plan(t, pool, query, args) {
			t.Errorf("%s\n\tin: %s", problem, strings.Join(strings.Fields(query), " "))
		}
	}
}

type site struct {
	file     string
	from, to int
}

// statements finds the calls by which the package gives statements to the
// database.
func statements(t *testing.T) (sites []site) {
	fset := token.NewFileSet()
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(fset, name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			method, ok := call.Fun.(*ast.SelectorExpr)
			if !ok || !slices.Contains([]string{"Exec", "Query", "Row", "All"}, method.Sel.Name) || strings.HasPrefix(render(method.X), "scope") {
				return true
			}
			sites = append(sites, site{name, fset.Position(method.Sel.Pos()).Line, fset.Position(call.End()).Line})
			return true
		})
	}
	if len(sites) < 150 {
		t.Fatalf("found %d statements only", len(sites))
	}
	return sites
}

func render(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return render(e.X) + "." + e.Sel.Name
	}
	return ""
}

// small are the tables that do not grow with what a registry stores or who uses
// it: their rows are made by hand, or their number has a limit.
var small = []string{"clock", "schedules", "preheat_rules", "goose_db_version", "identity"}

// bounded are scans that end at once, by the part of the statement that they are
// in and the line of its plan.
var bounded = []struct{ in, line, why string }{
	{"EXISTS (SELECT 1 FROM lease_digests)", "SCAN lease_digests", "it stops at the first row"},
	{"SELECT EXISTS (SELECT 1 FROM kin)", "SCAN kin", "it stops at the first row"},
	{"FROM kin k CROSS JOIN manifests", "SCAN k", "it has LIMIT 1 in the order of the key"},
	{"DELETE FROM runs WHERE state", "SCAN runs", "it stops where the history is full, and the table is no longer than the history"},
	{"WHERE state <> 'running' ORDER BY id DESC LIMIT 1", "SCAN runs", "it stops at the newest run that is over"},
	{"PRAGMA ", "", "a check of the database reads all of it, part by part"},
}

// sorts are what is sorted before the first row: all have few rows.
var sorts = []struct{ in, why string }{
	{"WHERE m.id IN (SELECT id FROM manifests", "a page, or places of a digest up to a limit"},
	{"WHERE l.id IN (SELECT id FROM links", "places of a blob up to a limit"},
	{"WHERE m.id IN (SELECT manifest_id FROM manifest_blobs", "users of a link up to a limit"},
	{"WHERE m.id IN (SELECT p.id FROM manifests k", "indexes above a manifest up to a limit"},
	{"WITH RECURSIVE place (id)", "manifests that a blob affects, up to a limit"},
	{"held AS (SELECT ld.holder", "leases on a digest, up to a limit"},
	{"ORDER BY ld.expires_at DESC LIMIT 1", "the leases on one digest and on what is above it"},
	{"SELECT name, labels FROM nodes", "the nodes that a preheat chooses from"},
	{"t.cause <> ''", "what a restore brings back along with one manifest"},
}

// wide are searches by an index of which one value may have any number of rows:
// all repositories with a blob, and all of a repository. They must stop at the
// first row, or at a limit.
var wide = regexp.MustCompile(`^SEARCH (\w+) .*INDEX (links_blob \(blob_id=\?(?: AND hidden=\?)?|manifests_state \(repo_id=\?|sqlite_autoindex_(tags|links|manifests)_1 \(repo_id=\?)( AND trashed_at=\?)?\)`)

var wideBounded = []struct{ in, why string }{
	{"FROM links l JOIN repositories r ON r.id = l.repo_id WHERE l.blob_id = ? LIMIT ?", "it has a limit"},
	{"(SELECT id FROM links WHERE blob_id = ? LIMIT ?)", "it has a limit"},
	{"(SELECT id FROM links WHERE blob_id = ?1 LIMIT ?2)", "it has a limit"},
	{"(SELECT 1 FROM manifests WHERE repo_id = ?1 AND trashed_at IS NULL LIMIT ?2)", "it has a limit"},
	{"WHERE ol.blob_id = b.id AND ol.id <> l.id", "the first or the second row is another one"},
	{"(SELECT count(*) FROM links l WHERE l.blob_id = b.id)", "a blob under review has lost its last repository, and got few since"},
}

var (
	scanned = regexp.MustCompile(`^SCAN (\w+)`)
	aliases = regexp.MustCompile(`(?i)\b(?:FROM|JOIN|UPDATE|INTO)\s+(\w+)(?:\s+AS)?(?:\s+(\w+))?`)
)

// plan asks SQLite how it would run a statement, and returns what is wrong.
func plan(t *testing.T, pool *sql.DB, query string, args []any) (problems []string) {
	for _, b := range bounded {
		if b.line == "" && strings.HasPrefix(query, b.in) {
			return nil
		}
	}
	switch query {
	case "BEGIN", "BEGIN IMMEDIATE", "COMMIT", "ROLLBACK", "SAVEPOINT op", "RELEASE op", "ROLLBACK TO op":
		return nil
	}
	tables := map[string]string{}
	for _, m := range aliases.FindAllStringSubmatch(query, -1) {
		tables[m[1]] = m[1]
		if m[2] != "" {
			tables[m[2]] = m[1]
		}
	}
	rows, err := pool.Query("EXPLAIN QUERY PLAN "+query, args...)
	if err != nil {
		t.Fatalf("plan %s: %v", query, err)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var id, parent, unused int
		var line string
		if err := rows.Scan(&id, &parent, &unused, &line); err != nil {
			t.Fatal(err)
		}
		switch {
		case strings.Contains(line, "AUTOMATIC"):
			problems = append(problems, "an index is made for one statement: "+line)
		case strings.Contains(line, "USE TEMP B-TREE FOR ORDER BY"):
			if !slices.ContainsFunc(sorts, func(s struct{ in, why string }) bool { return strings.Contains(query, s.in) }) {
				problems = append(problems, "all is read to be sorted: "+line)
			}
		case wide.MatchString(line):
			table := tables[wide.FindStringSubmatch(line)[1]]
			if !stopsAtOne(query, table, line) && !slices.ContainsFunc(wideBounded, func(w struct{ in, why string }) bool { return strings.Contains(query, w.in) }) {
				problems = append(problems, "all of a blob or of a repository is read: "+line)
			}
		case strings.HasPrefix(line, "SCAN "):
			m := scanned.FindStringSubmatch(line)
			table, known := "", false
			if m != nil {
				table, known = tables[m[1]]
			}
			ok := !known || slices.Contains(small, table) || table == "json_each" || strings.HasPrefix(table, "pragma_") || common(query, table)
			for _, b := range bounded {
				ok = ok || strings.Contains(query, b.in) && strings.HasPrefix(line, b.line)
			}
			if !ok {
				problems = append(problems, "all rows of "+table+" are read: "+line)
			}
		}
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return problems
}

// stopsAtOne reports that a search is for whether there is any row, and that the
// index has all that is asked of it.
func stopsAtOne(query, table, line string) bool {
	for _, m := range regexp.MustCompile(`EXISTS \(SELECT 1 FROM `+table+`(?: \w+)? WHERE ([^()]*)\)`).FindAllStringSubmatch(query, -1) {
		if strings.Count(m[1], " AND ") <= strings.Count(line, " AND ") {
			return true
		}
	}
	return false
}

// common reports that a name is that of a common table expression.
func common(query, name string) bool {
	return regexp.MustCompile(`(?i)(?:WITH|RECURSIVE|,)\s+` + name + `\s*(?:\(\w+\)\s*)?AS\b`).MatchString(query)
}

// everyStatement runs each statement of the package in each of its forms.
func everyStatement(d *db) {
	manifests(d)
	deletions(d)
	leasesAndNodes(d)
	preheatsOf(d)
	collection(d)
	checks(d)
	lists(d)
}

// leaveStaged makes a manifest one whose push a crash has broken off.
func leaveStaged(d *db, path string) {
	d.Helper()
	d.upload("staged", "{}")
	d.push("staged", indexOf("child"))
	d.push("staged", image("staged"))
	pool, err := sql.Open("sqlite", "file:"+path+"?_pragma=busy_timeout(10000)")
	d.must(err)
	_, err = pool.Exec("UPDATE manifests SET trashed_at = 1 WHERE digest = ?", string(digest.FromBytes(image("staged"))))
	d.must(err)
	_, err = pool.Exec("INSERT INTO staged (manifest_id) SELECT id FROM manifests WHERE digest = ?", string(digest.FromBytes(image("staged"))))
	d.must(err)
	d.must(pool.Close())
}

// sub makes a manifest with a subject.
func sub(subject oci.Digest, name string) []byte {
	return fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"artifactType":"a/b","annotations":{"name":%q},"config":{"mediaType":"c","digest":%q,"size":2},"layers":[],"subject":{"mediaType":%q,"digest":%q,"size":1}}`,
		oci.MediaTypeImage, name, digest.FromString("{}"), oci.MediaTypeImage, subject)
}

func indexOf(name string, children ...[]byte) []byte {
	var ms []string
	for _, c := range children {
		ms = append(ms, fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d}`, oci.MediaTypeImage, digest.FromBytes(c), len(c)))
	}
	return fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"annotations":{"name":%q},"manifests":[%s]}`, oci.MediaTypeIndex, name, strings.Join(ms, ","))
}

func (d *db) push(repo oci.Name, raw []byte, tags ...oci.Tag) oci.Digest {
	d.Helper()
	_, err := d.put(repo, raw, tags...)
	d.must(err)
	return digest.FromBytes(raw)
}

// pushAll pushes manifests that share commits.
func (d *db) pushAll(repo oci.Name, raws [][]byte) {
	d.Helper()
	var wg sync.WaitGroup
	for part := range slices.Chunk(raws, (len(raws)+31)/32) {
		wg.Go(func() {
			for _, raw := range part {
				if _, err := d.put(repo, raw); err != nil {
					d.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

func manifests(d *db) {
	ctx := d.Context()
	layer := d.upload("a", "layer")
	d.upload("a", "{}")
	image1, image2 := image("1", "layer"), image("2")
	d.push("a", image1, "v1", "v2")
	d.push("a", image2, "v1")
	for _, repo := range []oci.Name{"a", "none"} {
		_, _ = d.Manifest(ctx, repo, oci.Reference{Digest: digest.FromBytes(image1)})
		_, _ = d.Manifest(ctx, repo, tag("v1"))
	}
	d.push("a", image("loose"))
	d.clock.Add(10_000)
	_, err := d.Manifest(ctx, "a", oci.Reference{Digest: digest.FromBytes(image("loose"))})
	d.must(err)
	for _, from := range []oci.Name{"", "a"} {
		_, err := d.MountBlob(ctx, "b", from, layer)
		d.must(err)
	}
	_, err = d.Blob(ctx, "a", layer)
	d.must(err)
	d.clock.Add(10_000)
	_, err = d.ConfirmBlob(ctx, "b", layer)
	d.must(err)
	index := indexOf("i", image1, image2)
	d.push("a", index, "i")
	d.push("a", sub(digest.FromBytes(index), "sig"))
	d.push("a", image1) // again
	// More kin than one transaction settles.
	var many [][]byte
	for i := range 500 {
		many = append(many, image(fmt.Sprint("many", i)))
	}
	d.pushAll("a", many)
	d.push("a", indexOf("many", many...), "many")
	// More than one transaction takes in, whose client leaves.
	many = append(many, image("one more"))
	left, leave := context.WithCancel(ctx)
	m, err := oci.ParseManifest("", indexOf("more", many...))
	d.must(err)
	d.onStage = leave
	if _, err := d.PutManifest(left, meta.Push{Repo: "a", Digest: digest.FromString("more"), Manifest: m, Content: indexOf("more", many...)}); !errors.Is(err, context.Canceled) {
		d.Errorf("the push of a client that has left: %v", err)
	}
	d.onStage = nil
	d.push("a", indexOf("more", many...))
	// The upload of what exists, of what is cancelled, and of what is disowned.
	d.upload("a", "layer")
	u, err := d.CreateUpload(ctx, "c", "sha256")
	d.must(err)
	_, err = d.Upload(ctx, "c", u.ID)
	d.must(err)
	u, err = d.OpenUpload(ctx, "c", u.ID)
	d.must(err)
	u.Version, err = d.AdvanceUpload(ctx, u, 3, nil)
	d.must(err)
	u.Version, err = d.RestartUpload(ctx, u)
	d.must(err)
	d.must(d.TouchUpload(ctx, u.ID))
	d.must(d.CancelUpload(ctx, "c", u.ID, "x"))
	d.must(d.DisownUpload(ctx, "blobs/aa/"+u.ID+"x", 1))
	_, err = d.Identity(ctx)
	d.must(err)
	d.must(d.MarkPaired(ctx))
	_, err = d.SomeBlobs(ctx, 10)
	d.must(err)
	b, _, err := d.HeldBlob(ctx, layer)
	d.must(err)
	u, err = d.CreateUpload(ctx, "a", "sha256")
	d.must(err)
	_, err = d.FinishUploadOver(ctx, u, layer, b.Size, b.Key)
	d.must(err)
	d.must(d.Ping(ctx))
}

func deletions(d *db) {
	ctx := d.Context()
	for _, mediaType := range []string{"application/x.one", "application/x.two"} { // out of the trash by another type
		raw := []byte(`{"untyped":true}`)
		m, err := oci.ParseManifest(mediaType, raw)
		d.must(err)
		_, err = d.PutManifest(ctx, meta.Push{Repo: "a", Digest: digest.FromBytes(raw), Manifest: m, Content: raw})
		d.must(err)
		d.must(d.DeleteManifest(ctx, "a", digest.FromBytes(raw), "x"))
	}
	d.must(d.DeleteTag(ctx, "a", "v2", "x"))
	d.must(d.DeleteBlob(ctx, "b", digest.FromString("layer"), "x"))
	index := digest.FromBytes(indexOf("i", image("1", "layer"), image("2")))
	d.must(d.DeleteManifest(ctx, "a", digest.FromBytes(image("1", "layer")), "x"))
	d.clock.Add(1)
	d.must(d.DeleteManifest(ctx, "a", index, "x"))
	part := d.push("a", indexOf("part", image("missing")))
	d.must(d.DeleteManifest(ctx, "a", part, "x"))
	for range 2 {
		_, _ = d.Restore(ctx, "a", part, "x")
	}
	_, err := d.Restore(ctx, "a", index, "x")
	d.must(err)
	d.must(d.DeleteManifest(ctx, "a", index, "x"))
	d.push("a", indexOf("i", image("1", "layer"), image("2")), "i") // revived
	d.must(d.DeleteManifest(ctx, "a", index, "x"))
	var many [][]byte
	for i := range 500 {
		many = append(many, image(fmt.Sprint("many", i)))
	}
	d.must(d.DeleteManifest(ctx, "a", digest.FromBytes(indexOf("many", many...)), "x"))
}

func leasesAndNodes(d *db) {
	ctx := d.Context()
	ds := []oci.Digest{digest.FromBytes(image("2")), digest.FromString("x")}
	_, err := d.PutLease(ctx, "h", ds, 1000)
	d.must(err)
	_, err = d.PutLease(ctx, "h", ds[:1], 1000)
	d.must(err)
	_, err = d.PutLease(ctx, "gone", ds, 1000)
	d.must(err)
	d.must(d.DeleteLease(ctx, "gone"))
	report := func(instance string, seq int64, complete bool, digests ...oci.Digest) {
		d.Helper()
		r := nodeapi.Report{Node: "n", Instance: instance, Seq: seq, Complete: complete, TTLSeconds: 60, InUse: []nodeapi.InUse{}}
		for _, x := range digests {
			r.InUse = append(r.InUse, nodeapi.InUse{Digests: []oci.Digest{x}, Containers: 1})
		}
		_, _, err := d.PutNode(ctx, r, time.Hour)
		d.must(err)
	}
	report("i1", 1, true, ds...)
	report("i1", 2, false, ds[:1]...)
	report("i1", 3, true, ds[:1]...)
	report("i2", 1, true, ds...)
	var many []oci.Digest
	for i := range 500 {
		many = append(many, digest.FromString(fmt.Sprint(i)))
	}
	report("i2", 2, true, many...)
	for _, repo := range []int64{0, 1} {
		_, err = d.LeasesOn(ctx, repo, ds[0], 10)
		d.must(err)
	}
	_, _, err = d.Leases(ctx, meta.LeasePage{N: 10, Digests: 10})
	d.must(err)
	_, _, err = d.Leases(ctx, meta.LeasePage{Holder: "h", N: 1, Digests: 10})
	d.must(err)
	_, _, err = d.Nodes(ctx, "", 10)
	d.must(err)
	_, err = d.Node(ctx, "n")
	d.must(err)
	_, err = d.NodeStats(ctx)
	d.must(err)
}

func preheatsOf(d *db) {
	ctx := d.Context()
	rule, err := d.AddPreheatRule(ctx, meta.PreheatRule{Repository: "a", Tag: "p*"})
	d.must(err)
	_, err = d.PreheatRules(ctx)
	d.must(err)
	d.push("a", image("p"), "p1")
	p, err := d.StartPreheat(ctx, meta.PreheatImage{Repo: "a", Tag: "p1"}, meta.NodeChoice{}, "x")
	d.must(err)
	_, err = d.Preheat(ctx, p.ID)
	d.must(err)
	_, err = d.Preheats(ctx, 0, 10)
	d.must(err)
	_, err = d.NextTask(ctx, "n")
	d.must(err)
	d.must(d.PutProgress(ctx, "n", p.ID, nodeapi.Progress{State: nodeapi.TaskDone}))
	_ = d.PutProgress(ctx, "n", p.ID, nodeapi.Progress{State: nodeapi.TaskDone})
	_, err = d.ExpirePreheats(ctx, 1000)
	d.must(err)
	d.must(d.DeletePreheat(ctx, p.ID))
	d.must(d.DeletePreheatRule(ctx, rule.ID))
	d.must(d.DeleteNode(ctx, "n"))
}

// collection reads and applies each kind of work.
func collection(d *db) {
	ctx := d.Context()
	d.upload("alone", "alone")
	d.upload("untagged", "{}")
	d.push("untagged", image("child"))
	d.push("untagged", indexOf("untagged", image("child"))) // whose children go with it
	idle, err := d.CreateUpload(ctx, "alone", "sha256")
	d.must(err)
	_, err = d.StartRun(ctx, "interval", "x", meta.Policy{})
	d.must(err)
	run, err := d.StartRun(ctx, "manual", "x", meta.Policy{})
	d.must(err)
	d.must(d.AddRunCounts(ctx, run.ID, meta.Counts{Kept: map[string]int64{"tag": 1}}))
	now := d.Now() + 1_000_000
	d.clock.Store(now)
	d.must(d.FinishKin(ctx))
	_, err = d.ForgetLeases(ctx, 0)
	d.must(err)
	_, _, err = d.LatestRuns(ctx)
	d.must(err)
	signed := d.push("signed", indexOf("signed"), "v1")
	tags, _ := oci.SubjectTags(signed)
	signature := d.push("signed", indexOf("signature"), tags[0])
	d.must(d.DeleteManifest(ctx, "signed", signed, "x"))
	m, err := d.FindTag(ctx, "signed", tags[0])
	d.must(err)
	f, found, err := d.StrandedManifest(ctx, m.ID, 0)
	d.must(err)
	if !found {
		d.Errorf("signature %s is not stranded", signature)
	}
	_, err = d.Collect(ctx, meta.Work{Policy: meta.Policy{Stranded: 1}, Trash: []meta.TrashClaim{{Claim: meta.Claim{ID: f.ID, Version: f.Version}, Repo: f.Repo, RepoID: f.RepoID, Digest: f.Digest, Stranded: true}}})
	d.must(err)
	for _, pattern := range []string{"", "signed"} {
		scope, err := d.RepoScope(ctx, pattern)
		d.must(err)
		_, err = d.Stranded(ctx, meta.Due{Before: now, Scope: scope, Limit: 10}, meta.StrandedFacts{})
		d.must(err)
		_, err = d.CountStranded(ctx, scope)
		d.must(err)
	}
	var scopes []meta.Scope
	for _, pattern := range []string{"", "alone", "a*"} {
		s, err := d.RepoScope(ctx, pattern)
		d.must(err)
		scopes = append(scopes, s)
	}
	for _, scope := range scopes {
		_, err := d.CountDue(ctx, meta.Cutoffs{Now: now, Window: now, Trash: now, Untagged: now, Uploads: now}, scope, 100)
		d.must(err)
	}
	// Twice: a run takes up what it has itself uncovered.
	for _, id := range []int64{0, run.ID} {
		for _, scope := range scopes {
			due := meta.Due{Before: now, Run: id, Scope: scope, Limit: 1000}
			w := meta.Work{Run: run.ID, Actor: "x"}
			claim := func(id, version int64) meta.Claim {
				return meta.Claim{ID: id, Version: version, Before: meta.NoLimit, Reason: "r"}
			}
			ms, err := d.Orphans(ctx, due)
			d.must(err)
			loose, err := d.Loose(ctx, due)
			d.must(err)
			for _, m := range append(ms, loose...) {
				w.Trash = append(w.Trash, meta.TrashClaim{Claim: claim(m.ID, m.Version), Repo: m.Repo, RepoID: m.RepoID, Digest: m.Digest})
			}
			ts, err := d.Trashed(ctx, due)
			d.must(err)
			for _, m := range ts {
				w.Remove = append(w.Remove, claim(m.ID, m.Version))
			}
			ls, err := d.Links(ctx, due)
			d.must(err)
			for _, l := range ls {
				w.Unlink = append(w.Unlink, claim(l.ID, l.Version))
			}
			bs, err := d.Blobs(ctx, due)
			d.must(err)
			for _, b := range bs {
				w.Collect = append(w.Collect, claim(b.ID, b.Version))
			}
			us, err := d.IdleUploads(ctx, now, scope, meta.UploadFacts{}, 10)
			d.must(err)
			for _, u := range us {
				w.Abandon = append(w.Abandon, meta.UploadClaim{ID: u.ID, Version: u.Version, Before: now, Reason: "r"})
			}
			w.Unlink = append(w.Unlink, claim(math.MaxInt32, 1)) // a lost claim
			w.Settled = []meta.Settled{{Kind: "link", Target: math.MaxInt32, Version: 1}}
			w.Postponed = []meta.Postponed{{Settled: meta.Settled{Kind: "link", Target: math.MaxInt32, Version: 1}, EventAt: now}}
			_, err = d.Collect(ctx, w)
			d.must(err)
			d.must(d.CollectFailed(ctx, meta.Work{Run: run.ID, Unlink: []meta.Claim{claim(math.MaxInt32, 1)}}, "failed"))
		}
	}
	for _, due := range []meta.Due{{IDs: []int64{1}}} {
		_, err := d.Orphans(ctx, due)
		d.must(err)
		_, err = d.Trashed(ctx, due)
		d.must(err)
		_, err = d.Links(ctx, due)
		d.must(err)
		_, err = d.Blobs(ctx, due)
		d.must(err)
	}
	for _, id := range []int64{0, run.ID} {
		ps, err := d.DuePurges(ctx, id, 0, "", 10)
		d.must(err)
		if len(ps) < 2 {
			continue
		}
		_, err = d.FinishPurges(ctx, run.ID, []meta.Purged{{Key: ps[0].Key}, {Key: ps[1].Key, Problem: "p"}})
		d.must(err)
	}
	_, err = d.PurgesDue(ctx)
	d.must(err)
	_, _, _, err = d.Below(ctx, 1, 1, digest.FromString("x"))
	d.must(err)
	_, err = d.TrashedBelow(ctx, 1)
	d.must(err)
	_, err = d.NeededByMore(ctx, 1, 1)
	d.must(err)
	_, err = d.NamedByStaged(ctx, 1)
	d.must(err)
	_, _, err = d.Above(ctx, 1)
	d.must(err)
	d.must(d.FinishRun(ctx, run.ID, meta.RunDone, ""))
	other, err := d.StartRun(ctx, "manual", "x", meta.Policy{})
	d.must(err)
	d.must(d.ForgetRun(ctx, other.ID))
	sc, err := d.AddSchedule(ctx, "@daily", meta.Policy{})
	d.must(err)
	_, err = d.Schedules(ctx)
	d.must(err)
	d.must(d.MarkScheduled(ctx, sc.ID))
	d.must(d.DeleteSchedule(ctx, sc.ID))
	_ = idle
}

func checks(d *db) {
	ctx := d.Context()
	c, err := d.CreateCheck(ctx, meta.CheckRow{State: "running"})
	d.must(err)
	d.upload("lost", "lost")
	bs, err := d.CheckBlobs(ctx, 0, 1000)
	d.must(err)
	lost := bs[len(bs)-1:]
	acts := meta.CheckActs{Actor: "x", Orphans: []meta.Orphan{{Key: "blobs/aa/none", Size: 1}}, Lost: lost}
	for _, kind := range []string{"link", "blob", "manifest"} {
		_, err := d.Unreviewed(ctx, kind, 0, 10)
		d.must(err)
		acts.Missed = append(acts.Missed, meta.Unreviewed{Kind: kind, IDs: []int64{1, 2, 3, 4, 5}})
	}
	save := func(meta.CheckDone) (meta.CheckRow, error) { return c, nil }
	d.must(d.SaveCheck(ctx, acts, save))
	d.must(d.SaveCheck(ctx, meta.CheckActs{Found: lost}, save))
	_, err = d.Unnamed(ctx, []string{"blobs/aa/none"})
	d.must(err)
	_, err = d.Named(ctx, lost[0])
	d.must(err)
	d.upload("a", "{}")
	_, _, err = d.AffectedBy(ctx, 2, 10)
	d.must(err)
	for _, b := range bs {
		_, _, err = d.AffectedBy(ctx, b.ID, 10)
		d.must(err)
	}
	_, err = d.CheckManifests(ctx, 0, 10)
	d.must(err)
	_, err = d.CheckExtent(ctx)
	d.must(err)
	_, err = d.Check(ctx, c.ID)
	d.must(err)
	for _, part := range meta.DatabaseChecks() {
		_, err := d.CheckDatabase(ctx, part, 10)
		d.must(err)
	}
}

func lists(d *db) {
	ctx := d.Context()
	for i := range 21 { // more than the cache takes
		var tags []oci.Tag
		for j := range 100 {
			tags = append(tags, oci.Tag(fmt.Sprintf("t%d", 100*i+j)))
		}
		d.push("tags", indexOf("t"), tags...)
	}
	_, _, err := d.Tags(ctx, "tags", "", -1)
	d.must(err)
	_, _, err = d.Repositories(ctx, "", 10)
	d.must(err)
	for _, err := range d.Referrers(ctx, "a", digest.FromString("x"), "", "") {
		d.must(err)
	}
	for _, pattern := range []string{"", "a", "a*"} {
		_, _, err = d.Trash(ctx, meta.TrashPage{Pattern: pattern, N: 10})
		d.must(err)
	}
	for _, x := range []string{"", "sha256:x"} {
		for _, run := range []int64{0, 1} {
			_, err := d.Deletions(ctx, x, run, 0, 10)
			d.must(err)
		}
	}
	_, err = d.Store.Run(ctx, 1)
	d.must(err)
	_, err = d.Runs(ctx, 0, 10)
	d.must(err)
	_, err = d.RunEvents(ctx, 1, 10)
	d.must(err)
	_, err = d.Stats(ctx)
	d.must(err)
	layer := d.upload("a", "layer")
	id := d.push("a", image("1", "layer"), "found")
	for _, repo := range []oci.Name{"", "a"} {
		_, err := d.FindManifests(ctx, repo, id, 10)
		d.must(err)
		_, _, err = d.FindLinks(ctx, repo, layer, 10)
		d.must(err)
	}
	m, err := d.FindTag(ctx, "a", "found")
	d.must(err)
	_, _, _, err = d.AtRisk(ctx, "a", 10)
	d.must(err)
	_, err = d.LinkUsers(ctx, 1, 10)
	d.must(err)
	_, err = d.Holders(ctx, m.ID, 10)
	d.must(err)
}
