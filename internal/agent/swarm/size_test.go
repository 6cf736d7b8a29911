package swarm_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/fairway-registry/fairway/internal/agent/fetch"
	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/agent/swarm"
	"github.com/fairway-registry/fairway/internal/agent/swarm/swarmtest"
	"github.com/fairway-registry/fairway/internal/oci"
)

// sizing is an origin of which only the size of a blob can be heard at once.
type sizing struct {
	*swarmtest.Origin
	says  error         // to who asks for one byte; nil: that byte
	rest  chan struct{} // once closed, the rest comes too
	asked atomic.Int32
}

func (o *sizing) Range(ctx context.Context, w fetch.Want, from, to int64) (io.ReadCloser, error) {
	if to-from == 1 {
		o.asked.Add(1)
		if o.says != nil {
			return nil, o.says
		}
	} else {
		select {
		case <-o.rest:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return o.Origin.Range(ctx, w, from, to)
}

// holdsPieces tells nodes that one of them has all of a blob, of so many pieces.
func holdsPieces(t *testing.T, holder string, d oci.Digest, pieces int, nodes ...*swarmtest.Node) {
	t.Helper()
	client := clientAs(t, holder, nodes)
	for _, n := range nodes {
		res, err := client.Post("https://"+swarm.HostOf(n.Peer.Node)+"/swarm/v1/announce", "",
			strings.NewReader(fmt.Sprintf(`{"blob":%q,"node":%q,"pieces":%d,"done":true}`, d, holder, pieces)))
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
	}
}

// TestR16_PiecesOfABlobOfAnotherSizeAreNotTaken: whoever believes a manifest hears
// from the first peer that it is wrong, before it has a byte to hand out.
func TestR16_PiecesOfABlobOfAnotherSizeAreNotTaken(t *testing.T) {
	c := swarmtest.New(t, swarmtest.NewOrigin(0))
	holder := c.Start("holder", nil)
	d := c.Origin.Make(4*mb, 1)
	if err := c.Pull(t.Context(), holder, fetch.Want{Digest: d, Size: -1}); err != nil {
		t.Fatal(err)
	}
	for name, claimed := range map[string]int64{"more": 5 * mb, "less": 3 * mb, "the same number of pieces": 4*mb - 1} {
		t.Run(name, func(t *testing.T) {
			o := &sizing{Origin: c.Origin, says: anotherSize(t)}
			n := c.Start(strings.Fields(name)[0], func(x *swarm.Options) { x.Origin = o })
			defer c.Stop(n)
			eventually(t, "they know each other", func() bool { return len(n.Status().Members) == 2 && len(holder.Status().Members) == 2 })
			holdsPieces(t, "holder", d, int((claimed+piece.Size-1)/piece.Size), n, holder)
			b, err := n.Store.Create(t.Context(), d, claimed, piece.Meta{})
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			err = n.Fill(t.Context(), fetch.Want{Digest: d, Size: claimed}, b)
			if _, ok := fetch.SizeOf(err); !ok || o.asked.Load() != 1 {
				t.Errorf("the download ended with %v, the origin was asked %d times", err, o.asked.Load())
			}
			if len(b.Missing()) != b.Pieces() {
				t.Errorf("%d of %d pieces have come", b.Pieces()-len(b.Missing()), b.Pieces())
			}
		})
	}
}

// TestR16_APeerThatIsWrongAboutTheSizeCostsOneQuestion.
func TestR16_APeerThatIsWrongAboutTheSizeCostsOneQuestion(t *testing.T) {
	c := swarmtest.New(t, swarmtest.NewOrigin(0))
	wrong := c.Start("wrong", nil)
	o := &sizing{Origin: c.Origin, rest: make(chan struct{})}
	close(o.rest)
	n := c.Start("right", func(x *swarm.Options) { x.Origin = o })
	eventually(t, "they know each other", func() bool { return len(n.Status().Members) == 2 && len(wrong.Status().Members) == 2 })
	d := c.Origin.Make(4*mb, 1)
	b, err := wrong.Store.Create(t.Context(), d, 5*mb, piece.Meta{})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	for i := range 8 {
		if err := b.WritePiece(t.Context(), i, make([]byte, piece.Size), "somebody"); err != nil {
			t.Fatal(err)
		}
	}
	holdsPieces(t, "wrong", d, 4*mb/piece.Size, n, wrong)
	if err := c.Pull(t.Context(), n, fetch.Want{Digest: d, Size: -1}); err != nil {
		t.Fatal(err)
	}
	if n := o.asked.Load(); n > 1 {
		t.Errorf("the origin was asked for the size %d times", n)
	}
	if got := n.Status().FromPeers; got != 0 {
		t.Errorf("%d bytes were taken from a peer that has another blob", got)
	}
	if bannedOf(n, "wrong") != nil {
		t.Error("the peer is banned")
	}
}

// TestR16_APeerThatStatesAnotherSizeGetsNothing, neither pieces nor word of them.
func TestR16_APeerThatStatesAnotherSizeGetsNothing(t *testing.T) {
	c := swarmtest.New(t, swarmtest.NewOrigin(0))
	n := c.Start("holder", nil)
	d := c.Origin.Make(4*mb, 1)
	if err := c.Pull(t.Context(), n, fetch.Want{Digest: d, Size: -1}); err != nil {
		t.Fatal(err)
	}
	client := clientAs(t, "asker", []*swarmtest.Node{n})
	for size, want := range map[int]int{0: 200, 4 * mb: 200, 4*mb - 1: 409, 5 * mb: 409, -1: 409} {
		for path, body := range map[string]string{"watch": `{"size":%d}`, "pieces": `{"pieces":[0],"size":%d}`} {
			res, err := client.Post("https://"+swarm.HostOf("holder")+"/swarm/v1/blobs/"+string(d)+"/"+path, "", strings.NewReader(fmt.Sprintf(body, size)))
			if err != nil {
				t.Fatal(err)
			}
			res.Body.Close()
			if res.StatusCode != want {
				t.Errorf("%s for a blob of %d bytes: %s, want %d", path, size, res.Status, want)
			}
		}
	}
}

// TestR16_APeerThatRefusesPiecesForTheirSizeIsReasonToAsk, also where it has told of
// what it has.
func TestR16_APeerThatRefusesPiecesForTheirSizeIsReasonToAsk(t *testing.T) {
	c := swarmtest.New(t, swarmtest.NewOrigin(0))
	o := &sizing{Origin: c.Origin, says: anotherSize(t)}
	n := c.Start("node", func(x *swarm.Options) { x.Origin = o })
	g := startRogue(t, c, "peer", func(w http.ResponseWriter, _ *http.Request, _ []byte, _ []int) { w.WriteHeader(http.StatusConflict) })
	d := c.Origin.Make(4*mb, 1)
	holdsAll(t, c, g, d, []*swarmtest.Node{n})
	err := c.Pull(t.Context(), n, fetch.Want{Digest: d, Size: -1})
	if _, ok := fetch.SizeOf(err); !ok || o.asked.Load() != 1 {
		t.Errorf("the download ended with %v, the origin was asked %d times", err, o.asked.Load())
	}
}

// TestR16_TheUpstreamIsAskedOnceHoweverManyDisagree.
func TestR16_TheUpstreamIsAskedOnceHoweverManyDisagree(t *testing.T) {
	c := swarmtest.New(t, swarmtest.NewOrigin(0))
	o := &sizing{Origin: c.Origin, rest: make(chan struct{})}
	n := c.Start("node", func(x *swarm.Options) { x.Origin = o })
	d := c.Origin.Make(4*mb, 1)
	var refused sync.WaitGroup
	for _, name := range []string{"a", "b", "c"} {
		refused.Add(1)
		once := sync.OnceFunc(refused.Done)
		g := startRogue(t, c, name, func(w http.ResponseWriter, _ *http.Request, _ []byte, _ []int) {
			w.WriteHeader(http.StatusConflict)
			once()
		})
		holdsAll(t, c, g, d, []*swarmtest.Node{n})
	}
	go func() { refused.Wait(); close(o.rest) }()
	if err := c.Pull(t.Context(), n, fetch.Want{Digest: d, Size: -1}); err != nil {
		t.Fatal(err)
	}
	if got := o.asked.Load(); got != 1 {
		t.Errorf("the origin was asked for the size %d times", got)
	}
}
