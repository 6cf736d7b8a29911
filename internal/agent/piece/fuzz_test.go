package piece_test

import (
	"bytes"
	"testing"

	"github.com/fairway-registry/fairway/internal/agent/piece"
)

// FuzzSidecar feeds the parser files that were cut, mixed up and made up: what
// it takes for a record must be one, in its place.
func FuzzSidecar(f *testing.F) {
	whole := piece.Header(2*piece.Size + 1)
	for i := range 3 {
		whole = append(whole, piece.Record(i, uint32(i)*77)...)
	}
	f.Add(whole, int64(2*piece.Size+1))
	f.Add(whole[:len(whole)-3], int64(2*piece.Size+1))
	f.Add(whole, int64(1))
	f.Add(append(bytes.Clone(whole[:24]), make([]byte, 24)...), int64(2*piece.Size+1))
	f.Add([]byte{}, int64(0))
	f.Fuzz(func(t *testing.T, b []byte, size int64) {
		if size < 0 || size > 64*piece.Size {
			return
		}
		have, crc, n, err := piece.Sidecar(b, size)
		pieces := int((size + piece.Size - 1) / piece.Size)
		if len(crc) != pieces || len(have) != (pieces+7)/8 {
			t.Fatalf("%d checksums, %d bytes of bitmap for %d pieces", len(crc), len(have), pieces)
		}
		found := 0
		for i := range pieces {
			if have[i>>3]&(1<<(i&7)) == 0 {
				continue
			}
			found++
			if at := 24 + 8*i; err != nil || !bytes.HasPrefix(b, piece.Header(size)) || !bytes.Equal(b[at:at+8], piece.Record(i, crc[i])) {
				t.Fatalf("piece %d was taken to be here", i)
			}
		}
		if found != n {
			t.Fatalf("%d pieces, said to be %d", found, n)
		}
	})
}
