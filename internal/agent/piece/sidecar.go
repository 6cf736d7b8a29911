package piece

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
)

// The .pieces file of a blob is a header and a record per piece, little endian:
//
//	header   "FWpiece1", size of the blob (8), size of a piece (4), crc32c of the 20 bytes before (4)
//	record   crc32c of the piece (4), mark (4)
//
// A record that is all zeros is a piece that is not here. The mark is a crc32c
// of the piece's number and checksum, so that no other eight bytes pass for a
// record, wherever they stand.
const (
	sidecarMagic = "FWpiece1"
	headerLen    = 24
	recordLen    = 8
)

var errSidecar = errors.New("the file of checksums is not one of this blob")

// castagnoli is hardware on every machine that matters; the table is built once
// by the library.
func checksum(p []byte) uint32 { return crc32.Checksum(p, crc32.MakeTable(crc32.Castagnoli)) }

// pieces is the number of pieces of a blob of size bytes.
func pieces(size int64) int { return int((size + Size - 1) / Size) }

// pieceLen is the length of piece i of a blob of size bytes.
func pieceLen(size int64, i int) int { return int(min(Size, size-int64(i)*Size)) }

func sidecarLen(size int64) int64 { return headerLen + recordLen*int64(pieces(size)) }

func recordAt(i int) int64 { return headerLen + recordLen*int64(i) }

func header(size int64) []byte {
	b := make([]byte, 0, headerLen)
	b = append(b, sidecarMagic...)
	b = binary.LittleEndian.AppendUint64(b, uint64(size))
	b = binary.LittleEndian.AppendUint32(b, Size)
	return binary.LittleEndian.AppendUint32(b, checksum(b))
}

// sizeIn is the size of the blob that a header is of.
func sizeIn(head []byte) (size int64, ok bool) {
	if len(head) < headerLen {
		return 0, false
	}
	size = int64(binary.LittleEndian.Uint64(head[len(sidecarMagic):]))
	return size, size >= 0 && string(head[:headerLen]) == string(header(size))
}

func record(i int, crc uint32) []byte {
	b := make([]byte, 0, recordLen)
	b = binary.LittleEndian.AppendUint32(b, crc)
	return binary.LittleEndian.AppendUint32(b, mark(i, crc))
}

// mark is never zero, so that no record is.
func mark(i int, crc uint32) uint32 {
	var b [recordLen]byte
	binary.LittleEndian.PutUint32(b[:], uint32(i))
	binary.LittleEndian.PutUint32(b[4:], crc)
	return checksum(b[:]) | 1
}

// sidecar is what a .pieces file says.
type sidecar struct {
	crc  []uint32
	have bitmap
	n    int // pieces that are here
	bad  int // records that are none: torn, or written over
}

func newSidecar(size int64) sidecar {
	n := pieces(size)
	return sidecar{crc: make([]uint32, n), have: newBitmap(n)}
}

// parseSidecar reads the .pieces file of a blob of size bytes. A file that is
// too short lacks the pieces at its end; one with a wrong header says nothing,
// which is errSidecar, and all its pieces are missing.
func parseSidecar(b []byte, size int64) (sidecar, error) {
	sc := newSidecar(size)
	if len(b) < headerLen || string(b[:headerLen]) != string(header(size)) {
		sc.bad = len(sc.crc)
		return sc, errSidecar
	}
	for i := range sc.crc {
		if int64(len(b)) < recordAt(i+1) {
			sc.bad += len(sc.crc) - i
			break
		}
		r := b[recordAt(i):recordAt(i+1)]
		crc, m := binary.LittleEndian.Uint32(r), binary.LittleEndian.Uint32(r[4:])
		switch {
		case m == mark(i, crc):
			sc.crc[i] = crc
			sc.have.set(i)
			sc.n++
		case crc != 0 || m != 0:
			sc.bad++
		}
	}
	return sc, nil
}

// present is the number of bytes in the pieces that are here.
func (sc *sidecar) present(size int64) int64 {
	all := int64(sc.n) * Size
	if last := len(sc.crc) - 1; last >= 0 && sc.have.has(last) {
		all -= Size - int64(pieceLen(size, last))
	}
	return all
}

// bitmap has a bit per piece: bit i&7, from the lowest, of byte i>>3.
type bitmap []byte

func newBitmap(n int) bitmap    { return make(bitmap, (n+7)/8) }
func (m bitmap) has(i int) bool { return i>>3 < len(m) && m[i>>3]&(1<<(i&7)) != 0 }
func (m bitmap) set(i int)      { m[i>>3] |= 1 << (i & 7) }
func (m bitmap) clear(i int)    { m[i>>3] &^= 1 << (i & 7) }
func (m bitmap) none()          { clear(m) }
