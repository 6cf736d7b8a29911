package swarm

import (
	"bytes"
	"encoding/json"
	"io"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/agent/swarm/plan"
)

func TestFrame_SurvivesTheWire(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := frame{
			kind: byte(rapid.IntRange(kindPiece, kindEnd).Draw(t, "kind")), flags: rapid.Byte().Draw(t, "flags"),
			load: rapid.IntRange(0, 1<<16-1).Draw(t, "load"), piece: rapid.IntRange(0, plan.MaxPieces-1).Draw(t, "piece"),
		}
		switch f.kind {
		case kindPiece:
			f.size = rapid.IntRange(0, piece.Size).Draw(t, "size")
		case kindGained:
			f.size = 4 * rapid.IntRange(0, 100).Draw(t, "count")
		}
		var h [headerLen]byte
		f.put(&h)
		got, err := readFrame(bytes.NewReader(h[:]), &h)
		if err != nil || got != f {
			t.Fatalf("%+v became %+v, %v", f, got, err)
		}
	})
}

// FuzzFrames reads whatever a peer may send, as a watcher and an asker do.
func FuzzFrames(f *testing.F) {
	var h [headerLen]byte
	for _, fr := range []frame{
		{kind: kindPiece, piece: 3, size: 5}, {kind: kindBusy, piece: 1 << 19}, {kind: kindBitmap, size: 2}, {kind: kindGained, size: 8}, {kind: kindEnd}, {kind: 99},
		{kind: kindPiece, size: 1 << 30}, {kind: kindGained, size: 3},
	} {
		fr.put(&h)
		f.Add(append(slices.Clone(h[:]), "12345678"...))
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		d := plan.NewDownload(plan.Options{Blob: "b", Self: "s", Pieces: 37})
		d.AddPeer("p", plan.Elsewhere)
		r := bytes.NewReader(p)
		var h [headerLen]byte
		for {
			fr, err := readFrame(r, &h)
			if err != nil {
				return
			}
			payload := make([]byte, fr.size)
			if _, err := io.ReadFull(r, payload); err != nil {
				return
			}
			switch fr.kind {
			case kindBitmap:
				d.Holds("p", plan.BitsOf(payload, 37))
			case kindGained:
				eachGained(payload, func(i int) { d.Gained("p", i) })
			case kindBusy, kindGone:
				d.Failed(0, fr.piece, "p", plan.Missing)
			case kindPiece:
				d.Got(0, fr.piece, "p")
			}
			d.Loaded("p", fr.load)
		}
	})
}

// FuzzMessages reads whatever a peer may post.
func FuzzMessages(f *testing.F) {
	f.Add(`{"pieces":[0,5,1],"progress":3,"grant":{"kind":"own"}}`)
	f.Add(`{"pieces":[-1]}`)
	f.Add(`{"blobs":{"sha256:x":5},"zone":"z"}`)
	f.Fuzz(func(t *testing.T, s string) {
		var r request
		if err := decode(strings.NewReader(s), maxAnnounce, &r); err == nil && r.check(100) == nil {
			for _, i := range r.Pieces {
				if i < 0 || i >= 100 {
					t.Fatalf("piece %d passed", i)
				}
			}
			back, err := json.Marshal(r)
			if err != nil || len(back) == 0 {
				t.Fatal(err)
			}
		}
		var h holding
		_ = decode(strings.NewReader(s), maxAnnounce, &h)
		var w watchRequest
		_ = decode(strings.NewReader(s), maxAnnounce, &w)
	})
}

func TestDecode_RefusesWhatIsTooLong(t *testing.T) {
	var r request
	if err := decode(strings.NewReader(`{"pieces":[`+strings.Repeat("1,", 100)+`1]}`), 50, &r); err == nil {
		t.Error("read beyond the limit")
	}
}
