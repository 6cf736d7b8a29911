package swarm

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"

	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/agent/swarm/plan"
	"github.com/fairway-registry/fairway/internal/fault"
)

// Between agents: JSON where it is rare, frames where it is not. A frame is a
// header of 12 bytes, big-endian, and a payload:
//
//	0  kind
//	1  flags
//	2  load: pieces in the sender's queue (2 bytes)
//	4  piece (4 bytes), where the kind has one
//	8  length of the payload (4 bytes)
const headerLen = 12

// Kinds of frame.
const (
	kindPiece  = 1 // payload: the piece
	kindBusy   = 2 // the piece will not be sent now
	kindGone   = 3 // the piece is not here
	kindBitmap = 4 // payload: everything that is here, in place of what was said before
	kindGained = 5 // payload: pieces that have come, 4 bytes each
	kindAlive  = 6 // nothing new, and the load
	kindEnd    = 7 // nothing more will come
)

// flagRelayed marks a piece of a blob that the sender could not verify yet and
// that it had from another peer.
const flagRelayed = 1

type frame struct {
	kind, flags byte
	load        int
	piece       int
	size        int // of the payload
}

func (f frame) put(h *[headerLen]byte) {
	h[0], h[1] = f.kind, f.flags
	binary.BigEndian.PutUint16(h[2:], uint16(min(f.load, 1<<16-1)))
	binary.BigEndian.PutUint32(h[4:], uint32(f.piece))
	binary.BigEndian.PutUint32(h[8:], uint32(f.size))
}

// readFrame reads a header. A payload longer than its kind may have is an error.
func readFrame(r io.Reader, h *[headerLen]byte) (frame, error) {
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return frame{}, err
	}
	f := frame{
		kind: h[0], flags: h[1], load: int(binary.BigEndian.Uint16(h[2:])),
		piece: int(binary.BigEndian.Uint32(h[4:])), size: int(binary.BigEndian.Uint32(h[8:])),
	}
	limit := 0
	switch f.kind {
	case kindPiece:
		limit = piece.Size
	case kindBitmap:
		limit = plan.MaxPieces / 8
	case kindGained:
		limit = 4 * plan.MaxPieces
	case kindBusy, kindGone, kindAlive, kindEnd:
	default:
		return f, fmt.Errorf("a peer sent a frame of the unknown kind %d", f.kind)
	}
	if f.size > limit || f.piece >= plan.MaxPieces || f.kind == kindGained && f.size%4 != 0 {
		return f, fmt.Errorf("a peer sent a frame of kind %d with %d bytes for piece %d", f.kind, f.size, f.piece)
	}
	return f, nil
}

// gained renders pieces as the payload of kindGained.
func gained(pieces []int) []byte {
	p := make([]byte, 0, 4*len(pieces))
	for _, i := range pieces {
		p = binary.BigEndian.AppendUint32(p, uint32(i))
	}
	return p
}

func eachGained(p []byte, f func(i int)) {
	for ; len(p) >= 4; p = p[4:] {
		f(int(binary.BigEndian.Uint32(p)))
	}
}

// askPieces is the most pieces of one request.
const askPieces = 64

// request asks for pieces.
type request struct {
	Pieces   []int `json:"pieces"`
	Progress int   `json:"progress,omitempty"` // what the asker has, in 32nds
	Low      bool  `json:"low,omitempty"`      // a preheat
	Size     int64 `json:"size,omitempty"`     // bytes of the blob, as the asker believes; 0: not stated
	Grant    grant `json:"grant,omitzero"`
}

// grant says by what right private content is asked for. Today there is one
// kind: the asker states that the upstream of that name has let it pull the blob a
// short while ago. A grant that the registry signs goes into Token.
//
// Members of an earlier version ask with the kind "own", which names no upstream.
// That is refused, and they refuse this kind, so that between two versions no
// private piece moves.
type grant struct {
	Kind      string `json:"kind,omitempty"`      // "" none, grantUpstream
	Namespace string `json:"namespace,omitempty"` // the upstream, as runtimes call it
	Token     string `json:"token,omitempty"`
}

const grantUpstream = "upstream"

// covers reports whether private content of an upstream may be given by it.
func (g grant) covers(ns string) bool { return g.Kind == grantUpstream && g.Namespace == ns }

// holding tells a leader which blobs a node has, many at a time.
type holding struct {
	Zone  string         `json:"zone,omitempty"`
	Blobs map[string]int `json:"blobs"` // digest → pieces
}

// holders answers a holding: digest → nodes that hold it, as far as is known.
type holders struct {
	Holders map[string]int `json:"holders"`
}

// Limits of JSON bodies, in bytes.
const (
	maxAnnounce = 1 << 20
	maxHolding  = 512 // blobs of one message
)

// decode reads one JSON value of at most limit bytes.
func decode(r io.Reader, limit int64, v any) error {
	p, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return fmt.Errorf("read a peer's message: %w", err)
	}
	if int64(len(p)) > limit {
		return fault.New(fault.Invalid, "a message of more than %d bytes", limit)
	}
	if err := json.Unmarshal(p, v); err != nil {
		return fault.Wrap(fault.Invalid, err, "a message that is not what was expected")
	}
	return nil
}

// sameSize refuses a peer that takes a blob for one of another size: one of the two
// believes a manifest, and the pieces would not make up its blob.
func sameSize(stated int64, b *piece.Blob) error {
	if stated != 0 && stated != b.Size() {
		return fault.New(fault.Conflict, "%s has %d bytes here, and not %d", b.Digest(), b.Size(), stated)
	}
	return nil
}

func (r request) check(pieces int) error {
	if len(r.Pieces) == 0 || len(r.Pieces) > askPieces {
		return fault.New(fault.Invalid, "a request for %d pieces; 1 to %d are allowed", len(r.Pieces), askPieces)
	}
	for _, i := range r.Pieces {
		if i < 0 || i >= pieces {
			return fault.New(fault.Invalid, "a request for piece %d of %d", i, pieces)
		}
	}
	return nil
}
