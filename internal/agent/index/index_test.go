package index_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/agent/index"
	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
)

func openAt(t testing.TB, path string) *index.Index {
	t.Helper()
	x, err := index.Open(context.Background(), index.Options{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func open(t testing.TB) *index.Index {
	t.Helper()
	x := openAt(t, filepath.Join(t.TempDir(), "node", "index.db"))
	t.Cleanup(func() {
		if err := x.Close(); err != nil {
			t.Error(err)
		}
	})
	return x
}

func must(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func dig(s string) oci.Digest { return digest.FromString(s) }

func put(t testing.TB, x *index.Index, names ...string) {
	t.Helper()
	for _, n := range names {
		_, err := x.PutBlob(context.Background(), index.Blob{Digest: dig(n), Size: 100, State: index.Complete})
		must(t, err)
	}
}

func edges(parent, role string, children ...string) (all []index.Edge) {
	for _, c := range children {
		all = append(all, index.Edge{Parent: dig(parent), Child: dig(c), Role: role, Size: 100, MediaType: "m"})
	}
	return all
}

// image puts index → manifest → config, layers.
func image(t testing.TB, x *index.Index, idx, manifest, config string, layers ...string) {
	t.Helper()
	ctx := context.Background()
	must(t, x.PutEdges(ctx, dig(manifest), append(edges(manifest, index.RoleConfig, config), edges(manifest, index.RoleLayer, layers...)...)))
	if idx != "" {
		children, err := x.Children(ctx, dig(idx))
		must(t, err, x.PutEdges(ctx, dig(idx), append(children, edges(idx, index.RoleManifest, manifest)...)))
	}
}

func TestBlob_RowsAreWhatWasPut(t *testing.T) {
	x := open(t)
	ctx := t.Context()
	want := index.Blob{Digest: dig("a"), Size: 7, State: index.Partial, MediaType: "m", CreatedAt: 5, UsedAt: 6, Uses: 1, FetchMS: 2, Source: "s", ChainID: dig("c"), DeletedAt: 3, Private: true}
	_, err := x.PutBlob(ctx, want)
	must(t, err)
	if _, err := x.PutBlob(ctx, want); !errors.Is(err, fault.Conflict) {
		t.Errorf("a second row: %v", err)
	}
	want.Version = 1
	if got, err := x.Blob(ctx, dig("a")); err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	must(t, x.Touch(ctx, []index.Use{{Digest: dig("a"), At: 10, Uses: 3}, {Digest: dig("none"), At: 1, Uses: 1}}))
	must(t, x.Become(ctx, dig("a"), index.Complete, 99, "upstream"))
	must(t, x.SetDeleted(ctx, []oci.Digest{dig("a")}, 0))
	want.Version, want.UsedAt, want.Uses, want.State, want.FetchMS, want.Source, want.DeletedAt = 3, 10, 4, index.Complete, 99, "upstream", 0
	if got, err := x.Blob(ctx, dig("a")); err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	must(t, x.Touch(ctx, []index.Use{{Digest: dig("a"), At: 4, Uses: 1}}))
	if got, _ := x.Blob(ctx, dig("a")); got.UsedAt != 10 {
		t.Errorf("a use that was noted late turned the time back to %d", got.UsedAt)
	}
	if _, err := x.Blob(ctx, dig("none")); !errors.Is(err, fault.NotFound) {
		t.Errorf("a row that is not there: %v", err)
	}
}

func TestBlobs_StreamsInOrderAndByPrefix(t *testing.T) {
	x := open(t)
	put(t, x, "a", "b", "c", "d", "e", "f")
	var all []string
	must(t, x.Blobs(t.Context(), func(b index.Blob) error { all = append(all, string(b.Digest)); return nil }))
	if len(all) != 6 || !slices.IsSorted(all) {
		t.Errorf("%v", all)
	}
	for _, d := range all {
		n := 0
		must(t, x.BlobsFrom(t.Context(), d[:len("sha256:ab")], func(b index.Blob) error { n++; return nil }))
		if n == 0 || n == 6 {
			t.Errorf("%d rows begin like %s", n, d)
		}
	}
	stop := errors.New("stop")
	if err := x.Blobs(t.Context(), func(index.Blob) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("%v", err)
	}
}

func TestTree_FollowsEveryWayToAnImage(t *testing.T) {
	x := open(t)
	ctx := t.Context()
	image(t, x, "idx", "m1", "c1", "base", "l1")
	image(t, x, "idx", "m2", "c2", "base", "l2")
	image(t, x, "", "m3", "c3", "base", "l3")
	must(t, x.PutEdges(ctx, dig("sig"), append(edges("sig", index.RoleSubject, "m3"), edges("sig", index.RoleLayer, "s")...)))
	must(t, x.SetChain(ctx, dig("c1"), dig("chain1")))
	for _, tc := range []struct{ root, want []string }{
		{[]string{"idx"}, []string{"idx", "m1", "m2", "c1", "c2", "base", "l1", "l2"}},
		{[]string{"m1"}, []string{"idx", "m1", "c1", "base", "l1"}},
		{[]string{"c1"}, []string{"idx", "m1", "c1", "base", "l1"}},
		{[]string{"chain1"}, []string{"chain1", "idx", "m1", "c1", "base", "l1"}},
		{[]string{"base"}, []string{"base"}},
		{[]string{"m3", "l1"}, []string{"m3", "c3", "base", "l3", "l1"}},
		{[]string{"sig"}, []string{"sig", "s", "m3", "c3", "base", "l3"}},
		{[]string{"unknown"}, []string{"unknown"}},
		{nil, nil},
	} {
		var roots, want []oci.Digest
		for _, r := range tc.root {
			roots = append(roots, dig(r))
		}
		for _, w := range tc.want {
			want = append(want, dig(w))
		}
		slices.Sort(want)
		got, err := x.Tree(ctx, roots)
		slices.Sort(got)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("tree of %v: %d digests, want %v; %v", tc.root, len(got), tc.want, err)
		}
	}
	if ms, err := x.ManifestsOfConfig(ctx, dig("c2")); err != nil || len(ms) != 1 || ms[0] != dig("m2") {
		t.Errorf("%v, %v", ms, err)
	}
	if cs, err := x.ConfigsOfChain(ctx, dig("chain1")); err != nil || len(cs) != 1 || cs[0] != dig("c1") {
		t.Errorf("%v, %v", cs, err)
	}
	ps, err := x.Parents(ctx, dig("base"))
	if err != nil || len(ps) != 3 {
		t.Errorf("%v, %v", ps, err)
	}
}

// remove takes a blob away as the store does.
func remove(t testing.TB, x *index.Index, name string) {
	t.Helper()
	b, err := x.Blob(context.Background(), dig(name))
	must(t, err)
	cl, err := x.Claim(context.Background(), dig(name), b.Version)
	must(t, err)
	_, err = x.Remove(context.Background(), dig(name), cl.Version)
	must(t, err)
}

// TestRemove_KeepsTheWayFromContainersToLayers: a container is traced to what it
// needs by edges, which therefore outlive the manifest, and go with the last
// blob below it.
func TestRemove_KeepsTheWayFromContainersToLayers(t *testing.T) {
	x := open(t)
	ctx := t.Context()
	put(t, x, "idx", "m", "c", "l1", "l2")
	image(t, x, "idx", "m", "c", "l1", "l2")
	must(t, x.SetChain(ctx, dig("c"), dig("chain")), x.GrantPublic(ctx, "ns", "r", dig("m"), 1))
	for _, name := range []string{"idx", "m", "c", "l1"} {
		remove(t, x, name)
		for _, root := range []string{"idx", "m", "c", "chain"} {
			if got, err := x.Tree(ctx, []oci.Digest{dig(root)}); err != nil || !slices.Contains(got, dig("l2")) {
				t.Fatalf("after %s went, %s does not lead to the layer that is left: %v", name, root, err)
			}
		}
	}
	remove(t, x, "l2")
	n := 0
	must(t, x.Edges(ctx, func(index.Edge) error { n++; return nil }))
	cs, err := x.ConfigsOfChain(ctx, dig("chain"))
	_, public, err2 := x.Public(ctx, "ns", "r", dig("m"))
	if n != 0 || len(cs) != 0 || public || err != nil || err2 != nil {
		t.Errorf("%d edges, %d chains, granted %v: nothing of the image is left, %v %v", n, len(cs), public, err, err2)
	}
}

func TestClaim_IsACompareAndSwap(t *testing.T) {
	x := open(t)
	ctx := t.Context()
	put(t, x, "a")
	if _, err := x.Claim(ctx, dig("a"), 2); !errors.Is(err, fault.Conflict) {
		t.Errorf("another version: %v", err)
	}
	cl, err := x.Claim(ctx, dig("a"), 1)
	if err != nil || cl.Version != 2 || cl.State != index.Claimed {
		t.Fatalf("%+v, %v", cl, err)
	}
	if _, err := x.Claim(ctx, dig("a"), 2); !errors.Is(err, fault.Conflict) {
		t.Errorf("a second claim: %v", err)
	}
	if _, err := x.Remove(ctx, dig("a"), 1); !errors.Is(err, fault.Conflict) {
		t.Errorf("removal by an older claim: %v", err)
	}
	if b, err := x.Unclaim(ctx, dig("a"), 2); err != nil || b.State != index.Complete || b.Version != 3 {
		t.Errorf("%+v, %v", b, err)
	}
	if _, err := x.Remove(ctx, dig("a"), 2); !errors.Is(err, fault.Conflict) {
		t.Errorf("removal after the claim was given up: %v", err)
	}
	if _, err := x.Claim(ctx, dig("a"), 3); err != nil {
		t.Fatal(err)
	}
	must(t, x.UnclaimAll(ctx))
	if b, err := x.Blob(ctx, dig("a")); err != nil || b.State != index.Complete {
		t.Errorf("%+v, %v", b, err)
	}
}

func TestNames_AndGrants(t *testing.T) {
	x := open(t)
	ctx := t.Context()
	must(t, x.PutName(ctx, "docker.io", "library/a", "1", dig("old"), 1), x.PutName(ctx, "docker.io", "library/a", "1", dig("m"), 2), x.PutName(ctx, "quay.io", "a", "1", dig("m"), 3))
	if n, err := x.ResolveName(ctx, "docker.io", "library/a", "1"); err != nil || n.Digest != dig("m") || n.At != 2 {
		t.Errorf("%+v, %v", n, err)
	}
	if _, err := x.ResolveName(ctx, "quay.io", "library/a", "1"); !errors.Is(err, fault.NotFound) {
		t.Errorf("a name of another upstream: %v", err)
	}
	if ns, err := x.Names(ctx, dig("m")); err != nil || len(ns) != 2 {
		t.Errorf("%+v, %v", ns, err)
	}
	must(t, x.DeleteName(ctx, "quay.io", "a", "1"))
	if ns, err := x.AllNames(ctx); err != nil || len(ns) != 1 {
		t.Errorf("%+v, %v", ns, err)
	}

	image(t, x, "idx", "m", "c", "l")
	must(t, x.GrantPublic(ctx, "docker.io", "library/a", dig("idx"), 7))
	for _, name := range []string{"idx", "m", "c", "l"} {
		if at, ok, err := x.Public(ctx, "docker.io", "library/a", dig(name)); err != nil || !ok || at != 7 {
			t.Errorf("%s of a repository that anybody may pull: %v %v %v", name, at, ok, err)
		}
		if _, ok, err := x.Public(ctx, "docker.io", "library/b", dig(name)); err != nil || ok {
			t.Errorf("%s by another repository: %v %v", name, ok, err)
		}
	}
	must(t, x.RevokePublic(ctx, "docker.io", "library/a", dig("idx")))
	if _, ok, err := x.Public(ctx, "docker.io", "library/a", dig("l")); err != nil || ok {
		t.Errorf("after it was taken back: %v %v", ok, err)
	}
}

func TestPins(t *testing.T) {
	x := open(t)
	ctx := t.Context()
	must(t, x.Pin(ctx, "b:1", []oci.Digest{dig("x")}), x.Pin(ctx, "a:1", []oci.Digest{dig("y"), dig("z"), dig("y")}), x.Pin(ctx, "b:1", []oci.Digest{dig("z")}))
	ps, err := x.Pins(ctx)
	if err != nil || len(ps) != 2 || ps[0].Ref != "a:1" || len(ps[0].Roots) != 2 || ps[1].Roots[0] != dig("z") || ps[0].CreatedAt == 0 {
		t.Errorf("%+v, %v", ps, err)
	}
	if roots, err := x.PinnedRoots(ctx); err != nil || len(roots) != 2 {
		t.Errorf("%v, %v", roots, err)
	}
	must(t, x.Unpin(ctx, "a:1"))
	if err := x.Unpin(ctx, "a:1"); !errors.Is(err, fault.NotFound) {
		t.Errorf("a pin that is not there: %v", err)
	}
	if roots, err := x.PinnedRoots(ctx); err != nil || len(roots) != 1 {
		t.Errorf("%v, %v", roots, err)
	}
}

// TestOpen_BeginsAnewWhenTheDatabaseIsCorrupt damages it in several places.
func TestOpen_BeginsAnewWhenTheDatabaseIsCorrupt(t *testing.T) {
	for name, damage := range map[string]func(b []byte) []byte{
		"no database":    func([]byte) []byte { return []byte("these are no tables, and more than a page of it must not matter") },
		"a page of junk": func(b []byte) []byte { clear(b[3*4096+8 : 6*4096]); b[3*4096] = 0xff; return b },
		"cut off":        func(b []byte) []byte { return b[:len(b)/2+100] },
		"the header":     func(b []byte) []byte { clear(b[:100]); return b },
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "index.db")
			x := openAt(t, path)
			put(t, x, "a", "b", "c")
			must(t, x.Close())
			b, err := os.ReadFile(path)
			must(t, err, os.WriteFile(path, damage(b), 0o600))
			x = openAt(t, path)
			put(t, x, "a")
			must(t, x.Close())
			if found, err := filepath.Glob(path + ".corrupt-1"); err != nil || len(found) != 1 {
				t.Errorf("what was corrupt was not moved aside: %v, %v", found, err)
			}
			x = openAt(t, path)
			if _, err := x.Blob(t.Context(), dig("a")); err != nil {
				t.Errorf("the new one: %v", err)
			}
			must(t, x.Close())
		})
	}
}

func TestOpen_LeavesAloneWhatItMayNotJudge(t *testing.T) {
	path := filepath.Join(t.TempDir(), "index.db")
	must(t, os.Mkdir(path, 0o700)) // no database can be made, and none is corrupt
	if x, err := index.Open(t.Context(), index.Options{Path: path}); err == nil {
		_ = x.Close()
		t.Fatal("a directory was opened as a database")
	}
	if found, err := filepath.Glob(path + ".corrupt*"); err != nil || len(found) != 0 {
		t.Errorf("it was moved aside: %v, %v", found, err)
	}
	must(t, os.Remove(path))
	x := openAt(t, path) // and the lock was given back
	must(t, x.Close())
}
