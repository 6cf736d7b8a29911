package mirror

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/agent/index"
	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
)

const (
	testTTL   = 10 * time.Minute
	testStale = 24 * time.Hour
)

// words is what upstreams have said, with a clock that the test moves.
type words struct {
	*testing.T
	*rights
	at     time.Time
	marked []oci.Digest
}

func newWords(t *testing.T) *words {
	ix, err := index.Open(t.Context(), index.Options{Path: filepath.Join(t.TempDir(), "index.db"), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ix.Close() })
	w := &words{T: t, at: time.Unix(1_700_000_000, 0)}
	w.rights = newRights(ix, func(d oci.Digest) { w.marked = append(w.marked, d) }, testTTL, testStale, func() time.Time { return w.at })
	return w
}

func (w *words) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

func (w *words) pass(d time.Duration) { w.at = w.at.Add(d) }

// says compares what is known of a's right to d.
func (w *words) says(what string, a access, d oci.Digest, want facts, size int64) {
	w.Helper()
	f, gotSize, _, err := w.about(context.Background(), a, d)
	w.must(err)
	if f != want || gotSize != size {
		w.Errorf("%s: %+v of %d bytes, want %+v of %d", what, f, gotSize, want, size)
	}
}

func by(who string) access { return access{ns: "up", repo: "r", who: principal(who)} }

var testDigest, testManifest = digest.FromString("layer"), digest.FromString("manifest")

func TestN11_HowLongAWordCounts(t *testing.T) {
	w := newWords(t)
	for _, tt := range []struct {
		age               time.Duration
		node, heard, user standing
	}{
		{0, fresh, fresh, fresh},
		{testTTL - 1, fresh, fresh, fresh},
		{1 - testTTL, fresh, fresh, fresh}, // a clock that was set back
		{testTTL, past, never, never},
		{-testTTL, past, never, never},
		{testStale - 1, past, never, never},
		{testStale, never, never, never},
	} {
		at := w.at.Add(-tt.age)
		node, heard, user := w.standing(by(""), grant{at: at}), w.standing(by(""), grant{at: at, heard: true}), w.standing(by("user"), grant{at: at})
		if node != tt.node || heard != tt.heard || user != tt.user {
			t.Errorf("after %v: %v for the node, %v if heard, %v for a client, want %v, %v, %v", tt.age, node, heard, user, tt.node, tt.heard, tt.user)
		}
	}
	for age, want := range map[time.Duration]standing{0: fresh, testTTL - time.Millisecond: fresh, testTTL: past, time.Millisecond - testTTL: fresh, 100 * testStale: past} {
		if got := w.since(w.at.Add(-age).UnixMilli()); got != want {
			t.Errorf("everybody's right after %v: %v, want %v", age, got, want)
		}
	}
	if w.since(0) != never {
		t.Error("what nobody said counts")
	}
}

func TestR12_WhatAnUpstreamGaveIsKnownOfWhoAsked(t *testing.T) {
	w := newWords(t)
	w.says("nothing was said", by("user"), testDigest, facts{}, -1)
	w.must(w.grant(t.Context(), by("user"), testDigest, false, 7))
	w.says("the client's", by("user"), testDigest, facts{direct: fresh}, 7)
	w.says("another client's", by("other"), testDigest, facts{}, -1)
	w.says("the node's", by(""), testDigest, facts{}, -1)
	w.says("in another repository", access{ns: "up", repo: "s", who: "user"}, testDigest, facts{}, -1)
	w.says("at another upstream", access{ns: "down", repo: "r", who: "user"}, testDigest, facts{}, -1)
	w.pass(testTTL)
	w.says("the client's, of a while ago", by("user"), testDigest, facts{}, -1)

	w.must(w.grant(t.Context(), by(""), testDigest, true, 8))
	w.says("everybody's", by(""), testDigest, facts{direct: fresh, public: true}, 8)
	w.says("everybody's, for a client", by("user"), testDigest, facts{direct: fresh, public: true}, -1)
	w.pass(testTTL)
	w.says("everybody's, of a while ago", by("user"), testDigest, facts{direct: past, public: true}, -1)
}

func TestR12_AManifestThatNamesItIsALooserWord(t *testing.T) {
	w := newWords(t)
	w.must(w.index.PutEdges(t.Context(), testManifest, []index.Edge{{Child: testDigest, Role: index.RoleLayer, Size: 9, MediaType: "layer"}}))
	about := digest.FromString("about")
	w.must(w.index.PutEdges(t.Context(), about, []index.Edge{{Child: testDigest, Role: index.RoleSubject, Size: 5, MediaType: "manifest"}}))
	w.must(w.grant(t.Context(), by("user"), about, false, 1))
	w.says("a manifest about it", by("user"), testDigest, facts{}, -1)
	w.must(w.grant(t.Context(), by("user"), testManifest, false, 1))
	w.says("a private manifest", by("user"), testDigest, facts{loose: fresh}, 9)
	w.says("a private manifest of another", by("other"), testDigest, facts{}, -1)
	w.pass(testTTL)
	w.says("a private manifest of a while ago", by("user"), testDigest, facts{}, -1)
	w.must(w.grant(t.Context(), by(""), testManifest, false, 1))
	w.pass(testTTL)
	w.says("the node's of a while ago", by(""), testDigest, facts{loose: past}, 9)
	w.must(w.grant(t.Context(), by("user"), testManifest, true, 1))
	w.says("everybody's manifest", by("other"), testDigest, facts{loose: fresh, public: true}, 9)
	w.pass(testTTL)
	w.says("everybody's manifest of a while ago", by("other"), testDigest, facts{loose: past, public: true}, 9)

	// The size that a manifest states is not the one that an upstream has sent.
	w.must(w.grant(t.Context(), by("user"), testDigest, false, 8))
	w.says("the upstream's word beside it", by("user"), testDigest, facts{direct: fresh}, 8)
	w.must(w.index.PutEdges(t.Context(), testManifest, []index.Edge{{Child: testDigest, Role: index.RoleLayer}}))
	w.says("a manifest that does not say how large it is", by("other"), testDigest, facts{loose: past, public: true}, -1)
	for _, e := range []index.Edge{{Size: 0, MediaType: "empty"}, {Size: 4}} {
		e.Child, e.Role = testDigest, index.RoleLayer
		w.must(w.index.PutEdges(t.Context(), testManifest, []index.Edge{e}))
		w.says("a manifest that does", by("other"), testDigest, facts{loose: past, public: true}, e.Size)
	}
}

func TestR12_AManifestsWordReplacesNoBetterOne(t *testing.T) {
	edge := index.Edge{Child: testDigest, Role: index.RoleLayer, Size: 9, MediaType: "layer"}
	for name, tt := range map[string]struct {
		before *grant
		age    time.Duration
		edge   index.Edge
		public bool
		heard  bool
		want   facts
		size   int64
	}{
		"nothing":                            {edge: edge, want: facts{loose: fresh}, size: 9},
		"nothing, and it is everybody's":     {edge: edge, public: true, want: facts{loose: fresh, public: true}, size: 9},
		"nothing, and another node says so":  {edge: edge, public: true, heard: true, want: facts{heard: true, public: true}, size: 9},
		"its own word":                       {before: &grant{direct: true, size: 7}, edge: edge, public: true, want: facts{direct: fresh}, size: 7},
		"its own word of a while ago":        {before: &grant{direct: true, size: 7}, age: testTTL, edge: edge, want: facts{loose: fresh}, size: 9},
		"an upstream's, and hearsay":         {before: &grant{size: 7}, edge: edge, public: true, heard: true, want: facts{loose: fresh}, size: 7},
		"an upstream's, and an upstream's":   {before: &grant{size: 7}, edge: edge, public: true, want: facts{loose: fresh, public: true}, size: 9},
		"hearsay, and an upstream's":         {before: &grant{heard: true, public: true, size: 7}, edge: edge, want: facts{loose: fresh}, size: 9},
		"hearsay, and hearsay":               {before: &grant{heard: true, public: true, size: 7}, edge: edge, public: true, heard: true, want: facts{heard: true, public: true}, size: 9},
		"nothing, and it is about it":        {edge: index.Edge{Child: testDigest, Role: index.RoleSubject, Size: 9}, size: -1},
		"nothing, and no size":               {edge: index.Edge{Child: testDigest, Role: index.RoleLayer}, want: facts{loose: fresh}, size: -1},
		"nothing, and an empty layer":        {edge: index.Edge{Child: testDigest, Role: index.RoleLayer, MediaType: "layer"}, want: facts{loose: fresh}, size: 0},
		"nothing, and a size without a type": {edge: index.Edge{Child: testDigest, Role: index.RoleLayer, Size: 3}, want: facts{loose: fresh}, size: 3},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWords(t)
			if tt.before != nil {
				tt.before.at = w.at
				w.grants.Add(grantKey{"user", "up", "r", testDigest}, *tt.before)
			}
			w.pass(tt.age)
			w.children(by("user"), []index.Edge{tt.edge}, tt.public, tt.heard)
			w.says(name, by("user"), testDigest, tt.want, tt.size)
		})
	}
}

// What is known in memory does not hide what the index knows, unless that could
// add nothing.
func TestR12_BothMemoryAndTheIndexCount(t *testing.T) {
	w := newWords(t)
	edges := []index.Edge{{Child: testDigest, Role: index.RoleLayer, Size: 9, MediaType: "layer"}}
	now := func() int64 { return w.at.UnixMilli() }
	w.children(by("user"), edges, true, true)
	w.must(w.index.GrantPublic(t.Context(), "up", "r", testDigest, now()))
	w.says("hearsay, and everybody's right", by("user"), testDigest, facts{direct: fresh, public: true}, 9)
	w.children(by("other"), edges, false, false)
	w.says("a client's manifest, and everybody's right", by("other"), testDigest, facts{direct: fresh, loose: fresh, public: true}, 9)

	w = newWords(t)
	w.must(w.index.PutEdges(t.Context(), testManifest, edges))
	w.must(w.grant(t.Context(), by(""), testManifest, false, 1))
	w.pass(testTTL)
	w.must(w.index.GrantPublic(t.Context(), "up", "r", testManifest, now()))
	w.says("the node's manifest of a while ago, and everybody's", by(""), testDigest, facts{loose: fresh, public: true}, 9)

	// An index above the manifest is enough, and the manifest says how large it is.
	w = newWords(t)
	above, second := digest.FromString("index"), digest.FromString("manifest 2")
	w.must(w.index.PutEdges(t.Context(), testManifest, edges))
	w.must(w.index.PutEdges(t.Context(), above, []index.Edge{{Child: testManifest, Role: index.RoleManifest, Size: 5}}))
	w.must(w.index.GrantPublic(t.Context(), "up", "r", above, now()))
	w.says("everybody's index", by("user"), testDigest, facts{loose: fresh, public: true}, 9)

	// The strongest of several manifests counts, and no size replaces the upstream's.
	for _, size := range []int64{7, 0} {
		for _, late := range []oci.Digest{testManifest, second} {
			w = newWords(t)
			w.must(w.index.PutEdges(t.Context(), testManifest, edges))
			w.must(w.index.PutEdges(t.Context(), second, edges))
			for _, d := range []oci.Digest{testManifest, second, testDigest} {
				w.must(w.grant(t.Context(), by(""), d, false, size))
			}
			w.pass(testTTL)
			w.must(w.grant(t.Context(), by(""), late, false, 1))
			w.says("one of two manifests", by(""), testDigest, facts{direct: past, loose: fresh}, size)
		}
	}

	before := w.grants.Len()
	w.must(w.age(t.Context(), by("user"), second))
	if w.grants.Len() != before {
		t.Error("a doubt about what nobody gave is remembered as a word")
	}
	w.children(by("user"), edges, true, false)
	w.must(w.grant(t.Context(), by("other"), testDigest, false, 9))
	w.must(w.index.Close())
	w.says("the manifest that was just given", by("user"), testDigest, facts{loose: fresh, public: true}, 9)
	w.says("what the upstream just gave", by("other"), testDigest, facts{direct: fresh}, 9)
	if _, _, _, err := w.about(t.Context(), by("none"), testDigest); err == nil {
		t.Error("an index that fails means no right, not an error")
	}
}

func TestR12_AnUpstreamsWordTakesThePlaceOfHearsay(t *testing.T) {
	hearsay := grant{heard: true, public: true}
	var f facts
	f.add(hearsay, never, false)
	if f != (facts{}) {
		t.Errorf("hearsay that does not count: %+v", f)
	}
	f.add(hearsay, fresh, false)
	if f != (facts{heard: true, public: true}) {
		t.Errorf("hearsay: %+v", f)
	}
	f.add(grant{}, fresh, false)
	if f != (facts{loose: fresh}) {
		t.Errorf("then a word for one client: %+v", f)
	}
	f.add(hearsay, fresh, true)
	f.add(grant{}, past, false)
	f.add(grant{}, past, true)
	if f != (facts{loose: fresh, direct: past}) {
		t.Errorf("then weaker ones: %+v", f)
	}
	f.add(grant{public: true}, fresh, true)
	f.add(grant{}, past, true)
	if f != (facts{loose: fresh, direct: fresh, public: true}) {
		t.Errorf("then everybody's: %+v", f)
	}
	f = facts{loose: past}
	if f.add(hearsay, fresh, false); f != (facts{loose: past}) {
		t.Errorf("hearsay beside a word about its manifest: %+v", f)
	}
	f = facts{}
	if f.add(grant{heard: true}, fresh, false); f != (facts{heard: true}) {
		t.Errorf("hearsay about what is not everybody's: %+v", f)
	}
	f = facts{direct: past}
	if f.add(hearsay, fresh, false); f != (facts{direct: past}) {
		t.Errorf("hearsay beside a word about it: %+v", f)
	}
}

func TestR12_ARefusalEndsWhatItIsAbout(t *testing.T) {
	a, other, elsewhere := by("user"), by("other"), access{ns: "up", repo: "s", who: "user"}
	abroad := access{ns: "down", repo: "r", who: "user"}
	second := digest.FromString("second")
	begin := func(t *testing.T) *words {
		w := newWords(t)
		for _, who := range []access{a, other, elsewhere, abroad, by("")} {
			for _, d := range []oci.Digest{testDigest, second} {
				w.must(w.grant(t.Context(), who, d, false, 7))
			}
		}
		w.must(w.index.GrantPublic(t.Context(), "up", "public", testDigest, w.at.UnixMilli()))
		w.must(w.index.GrantPublic(t.Context(), "up", "r", testManifest, w.at.UnixMilli()))
		return w
	}
	stays := func(w *words, who access, d oci.Digest) {
		w.Helper()
		w.says(fmt.Sprintf("what %+v has", who), who, d, facts{direct: fresh}, 7)
	}
	public := facts{direct: fresh, public: true}
	t.Run("of one digest", func(t *testing.T) {
		w := begin(t)
		w.must(w.revoke(t.Context(), a, testDigest))
		w.must(w.revoke(t.Context(), a, testManifest))
		w.says("what was refused", a, testDigest, facts{}, -1)
		w.says("everybody's, which a client does not end", by(""), testManifest, public, -1)
		for _, who := range []access{other, elsewhere, abroad, by("")} {
			stays(w, who, testDigest)
		}
		stays(w, a, second)
		w.must(w.revoke(t.Context(), by(""), testManifest))
		w.says("everybody's, which the node ends", by(""), testManifest, facts{}, -1)
	})
	t.Run("of a repository", func(t *testing.T) {
		w := begin(t)
		w.must(w.denied(t.Context(), a))
		w.says("what was refused", a, testDigest, facts{}, -1)
		w.says("what was refused with it", a, second, facts{}, -1)
		w.says("everybody's, which a client does not end", by(""), testManifest, public, -1)
		for _, who := range []access{other, elsewhere, abroad, by("")} {
			stays(w, who, testDigest)
		}
		w.must(w.denied(t.Context(), by("")))
		w.says("everybody's, which the node ends", by(""), testManifest, facts{}, -1)
		if len(w.marked) != 1 || w.marked[0] != testManifest {
			t.Errorf("marked as private: %v", w.marked)
		}
		stays(w, other, testDigest)
	})
	t.Run("a doubt", func(t *testing.T) {
		w := begin(t)
		w.must(w.age(t.Context(), a, testDigest))
		w.must(w.age(t.Context(), a, testManifest))
		w.says("the client's", a, testDigest, facts{}, -1)
		w.says("everybody's, which a client does not age", by(""), testManifest, public, -1)
		w.must(w.age(t.Context(), by(""), testDigest))
		w.says("the node's", by(""), testDigest, facts{direct: past}, 7)
		w.must(w.age(t.Context(), by(""), testManifest))
		w.says("everybody's", by(""), testManifest, facts{direct: past, public: true}, -1)
		stays(w, other, testDigest)
	})
}

func TestN10_WhoMayHaveAPrivateBlobIsForgottenWithItsRight(t *testing.T) {
	w := newWords(t)
	may := func(what string, want bool) {
		t.Helper()
		if w.allowed("up", testDigest) != want {
			t.Errorf("%s: it is given away %v, want %v", what, !want, want)
		}
	}
	may("nobody has it", false)
	w.given(by("user"), testDigest, true, 7)
	may("everybody may have it", false) // nothing private
	w.given(by("user"), testDigest, false, 7)
	w.given(by("other"), testDigest, false, 7)
	may("two may have it", true)
	if w.allowed("down", testDigest) {
		t.Error("it is given away as content of another upstream")
	}
	w.must(w.revoke(t.Context(), by("other"), testDigest))
	may("one of them still may", true)
	w.pass(testTTL - 1)
	may("until its last moment", true)
	w.pass(1)
	may("not any more", false)
	w.pass(-2 * testTTL)
	may("the clock was set back", false)
	w.pass(1)
	may("a little less", true)
	w.must(w.revoke(t.Context(), by("user"), testDigest))
	may("none of them may", false)

	for i := range holdersMax {
		w.given(by(fmt.Sprint(i)), testDigest, false, 7)
	}
	for i := range holdersMax {
		may(fmt.Sprint(holdersMax-i, " may have it"), true)
		w.must(w.revoke(t.Context(), by(fmt.Sprint(i)), testDigest))
	}
	may("none of the many may", false)
	for i := range 3 * holdersMax {
		w.given(by(fmt.Sprint(i)), testDigest, false, 7)
		if holders, _ := w.private.Get(testDigest); len(holders) > holdersMax {
			t.Fatalf("%d are remembered", len(holders))
		}
	}
	may("more than are remembered may have it", true)
}

func TestUnlessFull_ForgivesAFullDiskOnly(t *testing.T) {
	other := errors.New("other")
	if err := unlessFull(fault.New(fault.Full, "the disk is full")); err != nil {
		t.Error(err)
	}
	if err := unlessFull(other); !errors.Is(err, other) {
		t.Errorf("%v", err)
	}
}
