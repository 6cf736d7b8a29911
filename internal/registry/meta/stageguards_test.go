package meta_test

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/meta"
	"github.com/fairway-registry/fairway/internal/sqldb"
	"github.com/fairway-registry/fairway/internal/sqldb/sqldbtest"
)

// unknown renders a manifest of a type that is not known here, which mentions some
// digests, and the push of it.
func unknown(subject oci.Digest, mentions ...oci.Digest) meta.Push {
	raw := fmt.Appendf(nil, `{"mentions":["%s"]`, strings.Join(asStrings(mentions), `","`))
	if subject != "" {
		raw = fmt.Appendf(raw, `,"subject":{"digest":%q}`, subject)
	}
	raw = append(raw, '}')
	return meta.Push{Repo: "a", Digest: digest.FromBytes(raw), Manifest: must(oci.ParseManifest("application/x", raw)), Content: raw}
}

func asStrings(ds []oci.Digest) (out []string) {
	for _, d := range ds {
		out = append(out, string(d))
	}
	return out
}

// TestR5_AManifestIsStagedFromWhatOneTransactionIsToDoOn: what names so much and no more
// is one transaction.
func TestR5_AManifestIsStagedFromWhatOneTransactionIsToDoOn(t *testing.T) {
	staged, armed := 0, false
	d, _ := traced(t, func(query string, _ []any) {
		if armed && strings.HasPrefix(query, "INSERT INTO staged") {
			staged++
		}
	})
	d.upload("a", "{}")
	d.uploadAll("a", layersOf(0, meta.StageMax))
	for name, push := range map[string]func(n int) meta.Push{
		"layers":   func(n int) meta.Push { return pushOf("a", image(fmt.Sprint(n), layersOf(0, n-1)...)) }, // and a config
		"children": func(n int) meta.Push { return pushOf("a", indexOf("i", images(n)...)) },
		"mentions": func(n int) meta.Push {
			var mentions []oci.Digest
			for i := range n {
				mentions = append(mentions, digest.FromString(fmt.Sprint("mention", i)))
			}
			return unknown("", mentions...)
		},
	} {
		for n, want := range map[int]int{meta.StageMax: 0, meta.StageMax + 1: 1} {
			staged, armed = 0, true
			if _, err := d.PutManifest(t.Context(), push(n)); err != nil || staged != want {
				t.Errorf("a push of %d %s is staged %d times, want %d; %v", n, name, staged, want, err)
			}
			armed = false
		}
	}
}

// TestR1_AllThatALargeManifestWantsIsNoted: a staged push notes it in the parts in which
// it looks for what it names.
func TestR1_AllThatALargeManifestWantsIsNoted(t *testing.T) {
	d := open(t)
	d.upload("a", "{}")
	var mentions []oci.Digest
	for i := range 2 * meta.StageMax {
		mentions = append(mentions, digest.FromString(fmt.Sprint("mention", i)))
	}
	for name, p := range map[string]meta.Push{"mentions": unknown("", mentions...), "children": pushOf("a", indexOf("i", images(2*meta.StageMax+1)...))} {
		refs, wanted := meta.Parts(p)
		_, err := d.PutManifest(t.Context(), p)
		d.must(err)
		m := must(d.FindManifests(t.Context(), "a", p.Digest, 1))[0]
		if n := must(d.CountWanted(t.Context(), m.ID)); n != wanted {
			t.Errorf("%s: %d of %d digests are noted; it looks for %d", name, n, wanted, refs)
		}
	}
}

// TestR9_ALookForBrokenPushesThatFailsEnds: it is reported, and the next run looks again.
func TestR9_ALookForBrokenPushesThatFailsEnds(t *testing.T) {
	d, path := traced(t, nil)
	outside(t, path, "ALTER TABLE staged RENAME TO away")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := d.FinishKin(ctx); err == nil || ctx.Err() != nil || !strings.Contains(err.Error(), "no such table") {
		t.Errorf("a look that fails: %v, %v", err, ctx.Err())
	}
	outside(t, path, "ALTER TABLE away RENAME TO staged")
	d.must(d.FinishKin(t.Context()))
}

// TestR7_APushWhoseFirstCommitFailsIsNotUnderWay: a row with its id, which is given out
// again, is removed when its push breaks off.
func TestR7_APushWhoseFirstCommitFailsIsNotUnderWay(t *testing.T) {
	disk := sqldbtest.NewDisk(t)
	d := &db{T: t}
	d.clock.Store(1_700_000_000_000)
	var err error
	d.Store, err = meta.Open(t.Context(), meta.Options{Path: filepath.Join(t.TempDir(), "fairway.db"), Now: d.clock.Load, Driver: disk.Driver()})
	d.must(err)
	t.Cleanup(func() { d.must(d.Close()) })
	d.upload("a", "{}")
	raw := indexOf("i", images(300)...)
	disk.Fill()
	if _, err := d.PutManifest(t.Context(), pushOf("a", raw)); !sqldb.IsFull(err) {
		t.Fatalf("a push on a full disk: %v", err)
	}
	disk.Empty()
	_, end := d.stage("a", raw)
	if end(); d.there("a", raw) {
		t.Error("what nobody pushes any more is still there")
	}
}

// TestR5_ALargePushDoesNotBeginAgainForWhatItCanDoWithout: what was lost in the very
// millisecond in which the push began looks as if it had been lost after that. The push
// would begin again as long as that millisecond lasts.
func TestR5_ALargePushDoesNotBeginAgainForWhatItCanDoWithout(t *testing.T) {
	var mentions []oci.Digest
	for i := range 300 {
		mentions = append(mentions, digest.FromString(fmt.Sprint("mention", i)))
	}
	child := image("child", "layer")
	cache := append([][]byte{[]byte("layer")}, images(300)...) // a build cache is an index of layers
	for name, tc := range map[string]struct {
		push    meta.Push
		prepare func(*db)
	}{
		"index":              {pushOf("a", indexOf("i", cache...)), func(*db) {}},
		"mentions":           {unknown("", append(mentions, digest.FromString("layer"))...), func(*db) {}},
		"mention of deleted": {unknown("", append(mentions, digest.FromBytes(child))...), func(d *db) { d.push("a", child); d.delete("a", child) }},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, give := context.WithCancel(t.Context())
			begun := 0
			d, path := traced(t, func(query string, _ []any) {
				if strings.HasPrefix(query, "SELECT m.id, x.manifest_id IS NOT NULL") {
					if begun++; begun == 3 {
						give()
					}
				}
			})
			d.upload("a", "{}")
			d.upload("a", "layer")
			tc.prepare(d)
			outside(t, path, fmt.Sprintf("UPDATE blobs SET lost_at = %d WHERE digest = '%s'", d.clock.Load(), digest.FromString("layer")))
			if _, err := d.PutManifest(ctx, tc.push); err != nil || begun != 1 {
				t.Errorf("it begins %d times: %v", begun, err)
			}
		})
	}
}
