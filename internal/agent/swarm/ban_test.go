package swarm_test

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairway-registry/fairway/internal/agent/fetch"
	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/agent/swarm"
	"github.com/fairway-registry/fairway/internal/agent/swarm/swarmtest"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/ociclient"
)

// sendPieces answers a request for pieces with flags, and flips a bit where flips says so.
func sendPieces(w http.ResponseWriter, content []byte, pieces []int, flags byte, flips func(i int) bool) {
	for _, i := range pieces {
		p := slices.Clone(pieceOf(content, i))
		if flips(i) {
			p[len(p)/2] ^= 1
		}
		h := frameOf(1, i, len(p))
		h[1] = flags
		_, _ = w.Write(append(h, p...))
	}
}

func all(int) bool { return true }

var errRefused = errors.New("refused")

// refusing is an origin that refuses some reads.
type refusing struct {
	*swarmtest.Origin
	refuses func() error
}

func (o refusing) Range(ctx context.Context, w fetch.Want, from, to int64) (io.ReadCloser, error) {
	if err := o.refuses(); err != nil {
		return nil, err
	}
	return o.Origin.Range(ctx, w, from, to)
}

// TestN7_ALieThatNoSampleFindsIsFoundOnTheWay has the origin refuse the samples.
// Then nobody else is trusted with this blob (plan.Solo), and what the origin
// brings is compared with what the peer gave before.
func TestN7_ALieThatNoSampleFindsIsFoundOnTheWay(t *testing.T) {
	const samples = 4
	told := &lies{}
	c := swarmtest.New(t, swarmtest.NewOrigin(0))
	var lied atomic.Bool
	var refused, askedAgain atomic.Int32
	refuses := func() error {
		if lied.Load() && refused.Add(1) <= samples {
			return errRefused
		}
		return nil
	}
	node := c.Start("honest", func(o *swarm.Options) {
		told.options(o)
		o.Origin = refusing{c.Origin, refuses}
	})
	g := startRogue(t, c, "liar", func(w http.ResponseWriter, _ *http.Request, content []byte, pieces []int) {
		if refused.Load() > 0 {
			askedAgain.Add(1)
		}
		sendPieces(w, content, pieces, 0, func(i int) bool { return i == 7 })
		if slices.Contains(pieces, 7) {
			lied.Store(true)
		}
	})
	d := c.Origin.Make(4*mb, 1)
	holdsAll(t, c, g, d, []*swarmtest.Node{node})
	if err := c.Pull(t.Context(), node, fetch.Want{Digest: d, Size: -1}); err != nil {
		t.Fatal(err)
	}
	if n := askedAgain.Load(); n > 0 {
		t.Errorf("the liar was asked %d times after the blob was found wrong", n)
	}
	told.mu.Lock()
	defer told.mu.Unlock()
	if len(told.all) != 1 || told.all[0].Peer != "liar" || told.all[0].Piece != 7 {
		t.Errorf("reported: %+v", told.all)
	}
	if bannedOf(node, "liar") == nil {
		t.Error("the liar is not banned")
	}
}

// anotherSize is what an upstream's word about the size of a blob comes to, where it
// is not what was believed.
func anotherSize(t *testing.T) error {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Range", "bytes 0-0/5")
		w.WriteHeader(http.StatusPartialContent)
		_, _ = w.Write([]byte("x"))
	}))
	t.Cleanup(srv.Close)
	base, err := url.Parse(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	up := fetch.NewUpstream(fetch.UpstreamOptions{Log: log, Upstreams: ociclient.NewUpstreams(ociclient.UpstreamsOptions{
		Bases: map[string]*url.URL{"r": base}, Log: log, Transport: http.DefaultTransport,
	}), Gave: func(fetch.Want, bool) {}})
	_, err = up.Range(t.Context(), fetch.Want{Digest: "sha256:" + oci.Digest(strings.Repeat("0", 64)), Size: 10, Namespace: "r", Repo: "r"}, 0, 1)
	if _, ok := fetch.SizeOf(err); !ok {
		t.Fatalf("the upstream's word is %v", err)
	}
	return err
}

// TestR16_ASampleThatShowsAnotherSizeIsTheLast: the blob was begun with a size that a
// manifest claims, so what came from peers cannot match, and nobody lied.
func TestR16_ASampleThatShowsAnotherSizeIsTheLast(t *testing.T) {
	c := swarmtest.New(t, swarmtest.NewOrigin(0))
	var wrong atomic.Bool
	var reads atomic.Int32
	size := anotherSize(t)
	node := c.Start("honest", func(o *swarm.Options) {
		o.Origin = refusing{c.Origin, func() error {
			if !wrong.Load() {
				return nil
			}
			reads.Add(1)
			return size
		}}
	})
	g := startRogue(t, c, "peer", func(w http.ResponseWriter, _ *http.Request, content []byte, pieces []int) {
		sendPieces(w, content, pieces, 0, all)
		if slices.Contains(pieces, 7) {
			wrong.Store(true)
		}
	})
	d := c.Origin.Make(4*mb, 1)
	holdsAll(t, c, g, d, []*swarmtest.Node{node})
	err := c.Pull(t.Context(), node, fetch.Want{Digest: d, Size: -1})
	if _, ok := fetch.SizeOf(err); !ok {
		t.Errorf("the pull ended with %v", err)
	}
	if n := reads.Load(); n != 1 {
		t.Errorf("the origin was read %d times after the blob was found wrong", n)
	}
	if bannedOf(node, "peer") != nil {
		t.Error("the peer is banned")
	}
}

func TestN7_AMarkedLieIsBannedBriefly(t *testing.T) {
	told := &lies{}
	c := swarmtest.New(t, swarmtest.NewOrigin(0))
	node := c.Start("honest", told.options)
	g := startRogue(t, c, "relay", func(w http.ResponseWriter, _ *http.Request, content []byte, pieces []int) {
		sendPieces(w, content, pieces, 1, all)
	})
	d := c.Origin.Make(4*mb, 1)
	holdsAll(t, c, g, d, []*swarmtest.Node{node})
	if err := c.Pull(t.Context(), node, fetch.Want{Digest: d, Size: -1}); err != nil {
		t.Fatal(err)
	}
	told.mu.Lock()
	defer told.mu.Unlock()
	if len(told.all) == 0 || !told.all[0].Relayed || time.Until(told.all[0].Until) > time.Minute {
		t.Errorf("reported: %+v", told.all)
	}
}

// TestN7_ABannedPeerIsAskedForNothing goes through every way in which a node
// comes to ask another: named by a leader, for a blob that passes through, at
// random when nobody else has a blob, and for a manifest.
func TestN7_ABannedPeerIsAskedForNothing(t *testing.T) {
	c := swarmtest.New(t, swarmtest.NewOrigin(0))
	node := c.Start("honest", nil)
	nodes := []*swarmtest.Node{node}
	g := startRogue(t, c, "liar", func(w http.ResponseWriter, _ *http.Request, content []byte, pieces []int) {
		sendPieces(w, content, pieces, 0, all)
	})
	first := c.Origin.Make(2*mb, 1)
	holdsAll(t, c, g, first, nodes)
	if err := c.Pull(t.Context(), node, fetch.Want{Digest: first, Size: -1}); err != nil {
		t.Fatal(err)
	}
	before := g.askedFor("pieces")
	if before == 0 || bannedOf(node, "liar") == nil {
		t.Fatal("the liar was not asked, or is not banned: this shows nothing")
	}

	second := c.Origin.Make(2*mb, 2)
	holdsAll(t, c, g, second, nodes)
	if err := c.Pull(t.Context(), node, fetch.Want{Digest: second, Size: -1}); err != nil {
		t.Error(err)
	}
	third := c.Origin.Make(2*mb, 3)
	holdsAll(t, c, g, third, nodes)
	if rc, err := node.Passing(true).Range(t.Context(), fetch.Want{Digest: third, Size: 2 * mb}, 0, -1); err == nil {
		_ = rc.Close()
		t.Error("a blob passes through that only the liar has")
	}
	if n := g.askedFor("pieces") - before; n > 0 {
		t.Errorf("it was asked for pieces %d times", n)
	}
	fourth := c.Origin.Make(2*mb, 4)
	c.Origin.Stop()
	if err := c.Pull(t.Context(), node, fetch.Want{Digest: fourth, Size: -1}); err == nil {
		t.Error("a blob came out of nowhere")
	}
	if n := g.askedFor(string(fourth)); n > 0 {
		t.Errorf("it was asked at random for what nobody has %d times", n)
	}
	if _, err := node.Content(t.Context(), "test", "r", fourth); err == nil {
		t.Error("content came out of nowhere")
	}
	if n := g.askedFor("contents"); n > 0 {
		t.Errorf("it was asked for a manifest %d times", n)
	}
}

// TestN7_WhatCannotBeVerifiedYetIsMarked: only such pieces, and not any more once
// the whole is here.
func TestN7_WhatCannotBeVerifiedYetIsMarked(t *testing.T) {
	c := swarmtest.New(t, swarmtest.NewOrigin(0))
	more := make(chan struct{})
	middle := c.Start("middle", func(o *swarm.Options) { o.Origin = refusing{c.Origin, func() error { return errRefused }} })
	nodes := []*swarmtest.Node{middle}
	g := startRogue(t, c, "source", func(w http.ResponseWriter, r *http.Request, content []byte, pieces []int) {
		last := len(content)/piece.Size - 1
		sendPieces(w, content, slices.DeleteFunc(slices.Clone(pieces), func(i int) bool { return i == last }), 0, func(int) bool { return false })
		if !slices.Contains(pieces, last) {
			return
		}
		_ = http.NewResponseController(w).Flush()
		select {
		case <-more:
			sendPieces(w, content, []int{last}, 0, func(int) bool { return false })
		case <-r.Context().Done():
		}
	})
	d := c.Origin.Make(2*mb, 1)
	content := c.Origin.Content(d)
	holdsAll(t, c, g, d, nodes)
	b, err := middle.Store.Create(t.Context(), d, int64(len(content)), piece.Meta{})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if err := b.WritePiece(t.Context(), 1, pieceOf(content, 1), "earlier"); err != nil {
		t.Fatal(err)
	}
	end := make(chan error, 1)
	go func() { end <- middle.Fill(t.Context(), fetch.Want{Digest: d, Size: -1}, b) }()
	eventually(t, "piece 0 has come", func() bool { return b.Has(0) })
	client := clientAs(t, "asker", nodes)
	marked := func(i string) bool {
		res, err := client.Post("https://"+swarm.HostOf("middle")+"/swarm/v1/blobs/"+string(d)+"/pieces", "", strings.NewReader(`{"pieces":[`+i+`]}`))
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		h := make([]byte, 12)
		if _, err := io.ReadFull(res.Body, h); err != nil || h[0] != 1 || binary.BigEndian.Uint32(h[8:]) != piece.Size {
			t.Fatalf("piece %s: frame %v, %v", i, h, err)
		}
		return h[1]&1 == 1
	}
	if !marked("0") {
		t.Error("a piece of a peer that cannot be verified yet is sent without a mark")
	}
	if marked("1") {
		t.Error("a piece that was here before is marked")
	}
	close(more)
	if err := <-end; err != nil {
		t.Fatal(err)
	}
	if marked("0") {
		t.Error("a piece is still marked although the whole was verified")
	}
}
