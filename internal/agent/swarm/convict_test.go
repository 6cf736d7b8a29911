package swarm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/agent/fetch"
	"github.com/fairway-registry/fairway/internal/agent/index"
	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/agent/swarm/plan"
)

// trial is a download of a blob whose pieces the test brings, as if from peers or
// from the origin, and an origin that counts what it is asked for.
type trial struct {
	*testing.T
	e       *Engine
	d       *download
	content []byte
	asked   []int // pieces that were compared with the origin's
	answer  func(p []byte) (io.ReadCloser, error)
	lies    []Lie
}

func (x *trial) Range(_ context.Context, _ fetch.Want, from, to int64) (io.ReadCloser, error) {
	x.asked = append(x.asked, int(from/piece.Size))
	return x.answer(x.content[from:to])
}

func newTrial(t *testing.T, pieces int) *trial {
	x := &trial{T: t, content: make([]byte, pieces*piece.Size)}
	_, _ = rand.NewChaCha8([32]byte{1}).Read(x.content) // never fails
	x.answer = func(p []byte) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(p)), nil }
	dir, log := t.TempDir(), slog.New(slog.DiscardHandler)
	ix, err := index.Open(t.Context(), index.Options{Path: filepath.Join(dir, "index.db"), Log: log})
	x.must(err)
	t.Cleanup(func() { _ = ix.Close() })
	store, err := piece.Open(t.Context(), piece.Options{Dir: dir, Index: ix, Log: log})
	x.must(err)
	t.Cleanup(func() { _ = store.Close() })
	keys, err := NewKeys([]byte("the secret of a test's cluster, long enough"), "self")
	x.must(err)
	x.e, err = New(Options{Self: Peer{Node: "self"}, Keys: keys, Store: store, Index: ix, Origin: x, Log: log,
		Report: func(l Lie) { x.lies = append(x.lies, l) }})
	x.must(err)
	t.Cleanup(x.e.cancel)
	b, err := store.Create(t.Context(), digest.FromBytes(x.content), int64(len(x.content)), piece.Meta{})
	x.must(err)
	t.Cleanup(b.Close)
	x.d, err = x.e.begin(t.Context(), fetch.Want{Digest: b.Digest(), Size: -1}, b)
	x.must(err)
	return x
}

func (x *trial) must(err error) {
	x.Helper()
	if err != nil {
		x.Fatal(err)
	}
}

// bring stores every piece that is missing. from says who sends it, and whether
// it is wrong.
func (x *trial) bring(from func(i int) (plan.Node, bool)) {
	x.Helper()
	for _, i := range x.d.b.Missing() {
		p := slices.Clone(x.content[i*piece.Size : (i+1)*piece.Size])
		who, wrong := from(i)
		if wrong {
			p[0] ^= 1
		}
		x.d.got(i, p, who, false)
	}
}

// convict has the download find that the whole is wrong, and reports whether it
// goes on, and how: with peers or with the origin alone.
func (x *trial) convict() (swarm bool, err error) {
	x.Helper()
	x.asked = nil
	var wrong *piece.MismatchError
	if failure := x.d.failure; !errors.As(failure, &wrong) {
		x.Fatalf("the blob is wrong, and the download ended with %v", failure)
	}
	x.d.failure = nil
	if err := x.d.convict(wrong); err != nil {
		return false, err
	}
	const witness = "witness"
	x.d.plan.AddPeer(witness, plan.Elsewhere)
	x.d.plan.Holds(witness, plan.FullBits(x.d.b.Pieces()))
	orders, _ := x.d.plan.Next(x.e.now())
	return slices.ContainsFunc(orders, func(o plan.Order) bool { return o.From == witness }), nil
}

// liars are the peers that were reported.
func (x *trial) liars() (names []plan.Node) {
	for _, l := range x.lies {
		names = append(names, l.Peer)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func TestN7_AFewPiecesOfEachSuspectConvictALiarAndTheSwarmGoesOn(t *testing.T) {
	x := newTrial(t, 32)
	x.bring(func(i int) (plan.Node, bool) {
		switch {
		case i < 16:
			return "honest", false
		case i < 30:
			return "liar", true
		}
		return "brief", false // gave fewer than are compared
	})
	swarm, err := x.convict()
	x.must(err)
	if !swarm {
		t.Error("the liar is known, and peers are not asked any more")
	}
	if got := x.liars(); !slices.Equal(got, []plan.Node{"liar"}) || len(x.lies) != 1 || x.lies[0].Relayed || x.e.bannedUntil("liar") == 0 {
		t.Errorf("reported: %+v", x.lies)
	}
	if len(x.asked) != checkEach+1+2 {
		t.Errorf("compared %v, want %d of the honest one, one of the liar's and both of the third", x.asked, checkEach)
	}
	for _, i := range x.asked { // they are not fetched again
		if slices.Contains(x.d.b.Missing(), i) {
			t.Errorf("piece %d was fetched for the comparison and not stored", i)
		}
	}
	// Another liar remains. Nothing is compared a second time.
	first := x.d.b.Missing()[0]
	x.bring(func(i int) (plan.Node, bool) { return "other", i == first })
	if swarm, err = x.convict(); err != nil || swarm || len(x.asked) != 0 {
		t.Errorf("after the second round: %v, peers asked again %v, compared %v", err, swarm, x.asked)
	}
	x.bring(func(int) (plan.Node, bool) { return plan.Origin, false })
	if got := x.liars(); x.d.failure != nil || !x.d.b.Complete() || !slices.Equal(got, []plan.Node{"liar", "other"}) {
		t.Errorf("the third round ended with %v, reported %v", x.d.failure, got)
	}
}

func TestN7_ALiarThatWasNotFoundIsFoundWhenTheOriginSendsEverything(t *testing.T) {
	// The origin's own answer was wrong on the way: no peer is to blame.
	y := newTrial(t, 8)
	y.bring(func(i int) (plan.Node, bool) {
		if i == 0 {
			return plan.Origin, true
		}
		return plan.Node(fmt.Sprintf("honest-%d", i)), false
	})
	swarm, err := y.convict()
	y.must(err)
	if swarm || len(y.lies) != 0 {
		t.Errorf("no liar was found: peers asked again %v, reported %+v", swarm, y.lies)
	}
	// Now one lies in a piece that is not among those compared.
	z := newTrial(t, 64)
	for {
		hidden := rand.IntN(64)
		z.bring(func(i int) (plan.Node, bool) { return "liar", i == hidden })
		swarm, err := z.convict()
		z.must(err)
		if len(z.lies) == 0 {
			if swarm {
				t.Error("the liar is not known, and peers are asked again")
			}
			break
		}
		z = newTrial(t, 64) // found by chance
	}
	z.bring(func(int) (plan.Node, bool) { return plan.Origin, false })
	if got := z.liars(); !slices.Equal(got, []plan.Node{"liar"}) || !z.d.b.Complete() {
		t.Errorf("reported %v, complete %v", got, z.d.b.Complete())
	}
}

func TestN7_OnlySomeSuspectsAreCompared(t *testing.T) {
	x := newTrial(t, maxSuspect+4)
	x.bring(func(i int) (plan.Node, bool) {
		if i == 0 {
			return plan.Origin, true
		}
		return plan.Node(fmt.Sprintf("honest-%d", i)), false
	})
	_, err := x.convict()
	x.must(err)
	if len(x.asked) != maxSuspect {
		t.Errorf("%d suspects were compared, want %d", len(x.asked), maxSuspect)
	}
}

// An origin that does not answer, or breaks off, proves nothing against a peer.
func TestN7_NobodyIsConvictedByAnOriginThatFails(t *testing.T) {
	for name, answer := range map[string]func(p []byte) (io.ReadCloser, error){
		"refuses":    func([]byte) (io.ReadCloser, error) { return nil, errors.New("refused") },
		"breaks off": func(p []byte) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(p[:len(p)/2])), nil },
	} {
		t.Run(name, func(t *testing.T) {
			x := newTrial(t, 8)
			x.answer = answer
			x.bring(func(i int) (plan.Node, bool) {
				if i == 0 {
					return plan.Origin, true
				}
				return "honest", false
			})
			swarm, err := x.convict()
			x.must(err)
			if swarm || len(x.lies) != 0 {
				t.Errorf("reported %+v, peers asked again %v", x.lies, swarm)
			}
		})
	}
}

func TestN7_RoundsEnd(t *testing.T) {
	x := newTrial(t, 8)
	for round := 1; ; round++ {
		first := x.d.b.Missing()[0]
		x.bring(func(i int) (plan.Node, bool) { return plan.Node(fmt.Sprintf("peer-%d", round)), i == first })
		_, err := x.convict()
		if round > 1 && len(x.asked) > 0 {
			t.Errorf("round %d: compared %v; the origin sends everything by now", round, x.asked)
		}
		if err != nil {
			var wrong *piece.MismatchError
			if round != maxRounds || !errors.As(err, &wrong) {
				t.Errorf("round %d ended the download: %v", round, err)
			}
			break
		}
		if round == maxRounds {
			t.Fatalf("round %d goes on", round)
		}
	}

	y := newTrial(t, 8)
	y.bring(func(i int) (plan.Node, bool) { return plan.Origin, i == 3 })
	if _, err := y.convict(); err == nil {
		t.Error("everything came from the origin and is wrong, and the download goes on")
	}

	z := newTrial(t, 8)
	z.bring(func(int) (plan.Node, bool) { return "honest", false })
	if err := z.d.convict(&piece.MismatchError{From: map[string][]int{nameOf("honest"): {0}}}); err == nil {
		t.Error("nothing is missing, and the download goes on")
	}
}

// The pieces that are compared are drawn, so that no place in a blob is safe for a lie.
func TestN7_ALieIsFoundWhereverItIs(t *testing.T) {
	for name, wrong := range map[string]func(i int) bool{
		"first half":  func(i int) bool { return i < 16 },
		"second half": func(i int) bool { return i >= 16 },
	} {
		t.Run(name, func(t *testing.T) {
			for range 20 { // each finds it in 15 of 16 cases
				x := newTrial(t, 32)
				x.bring(func(i int) (plan.Node, bool) { return "liar", wrong(i) })
				_, err := x.convict()
				x.must(err)
				if len(x.lies) > 0 {
					return
				}
			}
			t.Error("never found")
		})
	}
}
