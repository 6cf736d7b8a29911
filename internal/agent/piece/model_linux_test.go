package piece_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"pgregory.net/rapid"

	"github.com/fairway-registry/fairway/internal/agent/index"
	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
)

// modelBlob is what a blob must be like.
type modelBlob struct {
	all, lie []byte
	d        oci.Digest
	here     bool
	have     map[int]bool
	lies     map[int]bool // pieces that are here and wrong
	complete bool
	handles  []*piece.Blob
	claim    piece.Claim
	claimed  bool
	promised bool // it was admitted and has been open since
	doomed   bool // there was no room for a piece of it
}

func (b *modelBlob) present() (n int64) {
	for k := range b.have {
		n += int64(len(part(b.all, k)))
	}
	return n
}

// cost is what it takes with n more bytes.
func (b *modelBlob) cost(n int64) int64 {
	if !b.here && n == 0 {
		return 0
	}
	return piece.CostOf(int64(len(b.all)), b.present()+n)
}

func (b *modelBlob) whole() int64 { return piece.Cost(int64(len(b.all))) }

// model runs a store beside a picture of it.
type model struct {
	c     *cache
	root  string
	n     int // of the directory
	quota int64
	blobs []*modelBlob
}

func newModel(t testing.TB, root string) *model {
	m := &model{root: root, quota: piece.Cost(3*piece.Size) + 2*piece.Cost(piece.Size+1)}
	for i, size := range []int{0, 10, piece.Size, piece.Size + 1, 2 * piece.Size, 3 * piece.Size} {
		all, d := content(uint64(i+1), size)
		lie := bytes.Clone(all)
		for k := range lie {
			lie[k] ^= 0xff
		}
		m.blobs = append(m.blobs, &modelBlob{all: all, lie: lie, d: d, have: map[int]bool{}, lies: map[int]bool{}})
	}
	m.reopen(t)
	return m
}

func (m *model) dir() string { return filepath.Join(m.root, fmt.Sprint(m.n)) }

func (m *model) reopen(t testing.TB) {
	m.c = openAt(t, m.dir(), piece.Options{Limits: piece.Limits{Quota: m.quota}})
}

func (m *model) used() (used, claimed, promised int64) {
	for _, b := range m.blobs {
		used += b.cost(0)
		if b.claimed {
			claimed += b.cost(0)
		}
		if b.promised {
			promised += b.whole() - b.cost(0)
		}
	}
	return used, claimed, promised
}

func (m *model) pick(t *rapid.T) *modelBlob { return rapid.SampledFrom(m.blobs).Draw(t, "blob") }

func (m *model) create(t *rapid.T) {
	b := m.pick(t)
	used, _, promised := m.used()
	h, err := m.c.Create(context.Background(), b.d, int64(len(b.all)), piece.Meta{})
	fresh := !b.here && len(b.handles) == 0
	if b.doomed || fresh && used+promised+b.whole() > m.quota {
		if !errors.Is(err, piece.ErrNoRoom) {
			t.Fatalf("create past the quota: %v", err)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	b.claimed, b.promised = false, b.promised || fresh && len(b.all) > 0
	if len(b.all) == 0 {
		b.here, b.complete = true, true
	}
	b.handles = append(b.handles, h)
}

func (m *model) open(t *rapid.T) {
	b := m.pick(t)
	h, err := m.c.Open(context.Background(), b.d)
	if !b.here && len(b.handles) == 0 {
		if !errors.Is(err, fault.NotFound) {
			t.Fatalf("open of what is not here: %v", err)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	b.claimed = false
	b.handles = append(b.handles, h)
}

// opened picks a blob that has a handle; nil if none has.
func (m *model) opened(t *rapid.T) *modelBlob {
	var some []*modelBlob
	for _, b := range m.blobs {
		if len(b.handles) > 0 {
			some = append(some, b)
		}
	}
	if len(some) == 0 {
		return nil
	}
	return rapid.SampledFrom(some).Draw(t, "open blob")
}

func (m *model) write(t *rapid.T) {
	b := m.opened(t)
	if b == nil || len(b.all) == 0 {
		return
	}
	i := rapid.IntRange(0, b.handles[0].Pieces()-1).Draw(t, "piece")
	lie := rapid.IntRange(0, 9).Draw(t, "lie") == 0
	from := b.all
	if lie {
		from = b.lie
	}
	used, _, _ := m.used()
	tooMuch := !b.have[i] && used-b.cost(0)+b.cost(int64(len(part(from, i)))) > m.quota
	err := b.handles[0].WritePiece(context.Background(), i, part(from, i), fmt.Sprint(lie))
	if b.doomed || tooMuch {
		if !errors.Is(err, fault.Full) {
			t.Fatalf("a piece past the quota: %v", err)
		}
		b.doomed = true
		return
	}
	b.here = true
	if !b.have[i] {
		b.have[i] = true
		if lie {
			b.lies[i] = true
		}
	}
	var wrong *piece.MismatchError
	switch all := len(b.have) == b.handles[0].Pieces(); {
	case all && len(b.lies) > 0:
		if !errors.As(err, &wrong) {
			t.Fatalf("the last piece of a lie: %v", err)
		}
		clear(b.have)
		clear(b.lies)
	case err != nil:
		t.Fatal(err)
	default:
		b.complete = all
		b.promised = b.promised && !all
	}
}

func (m *model) read(t *rapid.T) {
	b := m.opened(t)
	if b == nil {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel() // what is missing is not waited for
	if b.complete {
		ctx = context.Background()
	}
	r := b.handles[0].NewReader(ctx, 0, -1)
	got, err := io.ReadAll(r)
	_ = r.Close()
	if b.complete {
		if err != nil || !bytes.Equal(got, b.all) {
			t.Fatalf("read %d of %d bytes: %v", len(got), len(b.all), err)
		}
		return
	}
	if !errors.Is(err, context.Canceled) && !(b.doomed && errors.Is(err, fault.Full)) || len(got) >= len(b.all) {
		t.Fatalf("read %d of %d bytes of what is not complete: %v", len(got), len(b.all), err)
	}
}

func (m *model) close(t *rapid.T) {
	if b := m.opened(t); b != nil {
		b.handles[0].Close()
		b.handles = b.handles[1:]
		b.left()
	}
}

// left is what becomes of a blob whose last handle was closed.
func (b *modelBlob) left() {
	if len(b.handles) > 0 {
		return
	}
	b.promised = false
	if b.doomed {
		b.here, b.doomed = false, false
		clear(b.have)
		clear(b.lies)
	}
}

func (m *model) claim(t *rapid.T) {
	b := m.pick(t)
	in, err := m.c.Info(context.Background(), b.d)
	if !b.here {
		if !errors.Is(err, fault.NotFound) {
			t.Fatal(err)
		}
		return
	}
	cl, err := m.c.Claim(context.Background(), b.d, in.Version)
	if len(b.handles) > 0 || b.claimed {
		if !errors.Is(err, fault.Conflict) {
			t.Fatalf("claim of what has %d handles and is claimed %v: %v", len(b.handles), b.claimed, err)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	b.claim, b.claimed = cl, true
}

func (m *model) remove(t *rapid.T) {
	b := m.pick(t)
	_, err := m.c.Remove(context.Background(), b.claim)
	if !b.claimed {
		if !errors.Is(err, fault.Conflict) {
			t.Fatalf("removal without a claim: %v", err)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	b.here, b.claimed, b.complete = false, false, false
	clear(b.have)
	clear(b.lies)
}

func (m *model) unclaim(t *rapid.T) {
	b := m.pick(t)
	if err := m.c.Unclaim(context.Background(), b.claim); err != nil {
		t.Fatal(err)
	}
	b.claimed = false
}

// restart ends the process, in order or by a kill: then what is on disk at this
// moment, in whatever log it stands, is all that the next one finds.
func (m *model) restart(t *rapid.T, tt testing.TB) {
	if rapid.Bool().Draw(t, "killed") {
		old := m.dir()
		m.n++
		if err := os.CopyFS(m.dir(), os.DirFS(old)); err != nil {
			t.Fatal(err)
		}
		m.end(tt)
		if err := os.RemoveAll(old); err != nil {
			t.Fatal(err)
		}
		for _, b := range m.blobs {
			b.doomed = false // of which the disk knows nothing
		}
	} else {
		m.end(tt)
	}
	for _, b := range m.blobs {
		b.claimed = false
		b.left()
	}
	m.reopen(tt)
}

func (m *model) end(t testing.TB) {
	for _, b := range m.blobs {
		for _, h := range b.handles {
			h.Close()
		}
		b.handles = nil
	}
	m.c.close(t)
}

func (m *model) check(t *rapid.T) {
	used, claimed, promised := m.used()
	if u := m.c.Usage(); u.Used != used || u.Claimed != claimed || u.Used > m.quota || m.c.Promised() != promised {
		t.Fatalf("%+v, promised %d, want used %d, claimed %d, promised %d", u, m.c.Promised(), used, claimed, promised)
	}
	list, err := m.c.List(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	byDigest := map[oci.Digest]piece.Info{}
	for _, i := range list {
		byDigest[i.Digest] = i
	}
	for _, b := range m.blobs {
		i, ok := byDigest[b.d]
		state := map[bool]string{true: index.Complete, false: index.Partial}[b.complete]
		if b.claimed {
			state = index.Claimed
		}
		present := b.present()
		if ok != b.here || ok && (i.State != state || i.Readers != len(b.handles) || i.Present != present) {
			t.Fatalf("%+v (%v), want here %v, %s, %d handles, %d bytes", i, ok, b.here, state, len(b.handles), present)
		}
	}
}

func TestStore_BehavesLikeItsModel(t *testing.T) {
	root := smallDisk(t, 64*mib)
	rapid.Check(t, func(r *rapid.T) {
		m := newModel(t, filepath.Join(root, fmt.Sprint(rapid.Uint64().Draw(r, "directory"))))
		defer func() {
			m.end(t)
			if err := os.RemoveAll(m.root); err != nil {
				t.Fatal(err)
			}
		}()
		r.Repeat(map[string]func(*rapid.T){
			"create": m.create, "create again": m.create, "open": m.open, "write": m.write, "write more": m.write, "write on": m.write,
			"read": m.read, "close": m.close, "claim": m.claim, "remove": m.remove, "unclaim": m.unclaim,
			"restart": func(r *rapid.T) { m.restart(r, t) }, "": m.check,
		})
	})
}
