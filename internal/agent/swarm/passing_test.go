package swarm_test

import (
	"bytes"
	"io"
	"math"
	"sync/atomic"
	"testing"

	"github.com/fairway-registry/fairway/internal/agent/fetch"
	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/agent/swarm"
	"github.com/fairway-registry/fairway/internal/agent/swarm/plan"
	"github.com/fairway-registry/fairway/internal/agent/swarm/swarmtest"
	"github.com/fairway-registry/fairway/internal/oci"
)

func TestPassing_ReadsAnyRangeFromPeersAndKeepsNothing(t *testing.T) {
	c := swarmtest.New(t, swarmtest.NewOrigin(0))
	const size = 5*mb + 12345
	d := c.Origin.Make(size, 1)
	w := fetch.Want{Digest: d, Size: size}
	reader := c.Start("reader", nil)
	if rc, err := reader.Passing(true).Range(t.Context(), w, 0, -1); err == nil {
		_ = rc.Close()
		t.Error("what nobody has can be read")
	}
	holdingNode(t, c, "holder", w, nil)
	for _, part := range [][2]int64{{0, -1}, {0, 1}, {300_000, 900_000}, {size - 1, -1}} {
		to := part[1]
		if to < 0 {
			to = size
		}
		rc, err := reader.Passing(false).Range(t.Context(), w, part[0], part[1])
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(rc)
		if err != nil || !bytes.Equal(got, c.Origin.Content(d)[part[0]:to]) {
			t.Errorf("%v: %d bytes, %v", part, len(got), err)
		}
		_ = rc.Close()
	}
	if b, err := reader.Store.Open(t.Context(), d); err == nil {
		b.Close()
		t.Error("it is in the cache")
	}
}

// TestGather_WhoReadsAPieceSaysWhatComes, so that single packets do not wake it.
func TestGather_WhoReadsAPieceSaysWhatComes(t *testing.T) {
	c := swarmtest.New(t, swarmtest.NewOrigin(0))
	w := fetch.Want{Digest: c.Origin.Make(2*mb, 1), Size: 2 * mb}
	holdingNode(t, c, "holder", w, nil)
	reader := c.Start("reader", nil)
	var gathered atomic.Int32
	swarm.CountGathered(reader.Engine, &gathered)
	c.Origin.Stop()
	if err := c.Pull(t.Context(), reader, w); err != nil {
		t.Fatal(err)
	}
	if gathered.Load() == 0 {
		t.Error("nothing was gathered")
	}
}

// TestR16_ASizeThatCannotBeIsNotAskedFor of anybody, nor computed with.
func TestR16_ASizeThatCannotBeIsNotAskedFor(t *testing.T) {
	c := swarmtest.New(t, swarmtest.NewOrigin(0))
	node := c.Start("node", nil)
	g := startRogue(t, c, "peer", nil)
	eventually(t, "the peer is a member", func() bool { return len(node.Status().Members) == 2 })
	d := c.Origin.Make(1000, 1)
	for _, size := range []int64{math.MaxInt64, math.MaxInt64 - piece.Size, piece.SizeMax + 1, plan.MaxPieces*piece.Size + 1, 0, -1} {
		if rc, err := node.Passing(true).Range(t.Context(), fetch.Want{Digest: d, Size: size}, 0, -1); err == nil {
			_ = rc.Close()
			t.Errorf("a blob of %d bytes can be read", size)
		}
		if n := g.askedFor(""); n > 0 {
			t.Fatalf("of %d bytes: the peer was asked %d times", size, n)
		}
	}
}

// TestN10_PrivateContentPassesThroughWithARightOnly asks for what is private at
// the holder, with and without a right of the asker's own.
func TestN10_PrivateContentPassesThroughWithARightOnly(t *testing.T) {
	c := swarmtest.New(t, swarmtest.NewOrigin(0))
	const size = 2 * mb
	d := c.Origin.Make(size, 1)
	w := fetch.Want{Digest: d, Size: size, Namespace: "a", Private: true}
	may := func(o *swarm.Options) { o.Allowed = func(ns string, _ oci.Digest) bool { return ns == "a" } }
	with, without := c.Start("with", may), c.Start("without", nil)
	holdingNode(t, c, "holder", w, may)
	for _, private := range []bool{true, false} {
		asked := w
		asked.Private = private // it may be wrong in this: the holder knows
		if rc, err := without.Passing(true).Range(t.Context(), asked, 0, -1); err == nil {
			_ = rc.Close()
			t.Errorf("private content without a right, asked for as private: %v", private)
		}
	}
	rc, err := with.Passing(false).Range(t.Context(), w, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	if got, err := io.ReadAll(rc); err != nil || len(got) != size {
		t.Errorf("with a right: %d bytes, %v", len(got), err)
	}
}
