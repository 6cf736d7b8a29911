package plan

import (
	"encoding/base64"
	"fmt"
	"math/bits"
)

// MaxPieces bounds the pieces of a blob, and so what a bitmap from a stranger
// may cost: 2^20 pieces of 256 KiB are a blob of 256 GiB.
const MaxPieces = 1 << 20

// Bits is a set of pieces: piece i is bit i%64 of word i/64.
type Bits []uint64

// NewBits returns an empty set for n pieces.
func NewBits(n int) Bits { return make(Bits, (n+63)/64) }

// FullBits returns the set of all n pieces.
func FullBits(n int) Bits {
	b := NewBits(n)
	for i := range b {
		b[i] = ^uint64(0)
	}
	b.trim(n)
	return b
}

// BitsOf reads a bitmap whose piece i is bit i%8 of byte i/8; what lies beyond n is dropped.
func BitsOf(p []byte, n int) Bits {
	b := NewBits(n)
	for i, c := range p {
		if i/8 >= len(b) {
			break
		}
		b[i/8] |= uint64(c) << (8 * (i % 8))
	}
	b.trim(n)
	return b
}

func (b Bits) trim(n int) {
	if n%64 != 0 && len(b) > 0 {
		b[len(b)-1] &= 1<<(n%64) - 1
	}
}

// Has reports whether piece i is in the set.
func (b Bits) Has(i int) bool { return i>>6 < len(b) && b[i>>6]>>(i&63)&1 == 1 }

// Set puts piece i into the set.
func (b Bits) Set(i int) { b[i>>6] |= 1 << (i & 63) }

// Clear takes piece i out of the set.
func (b Bits) Clear(i int) { b[i>>6] &^= 1 << (i & 63) }

// Count returns how many pieces are in the set.
func (b Bits) Count() (n int) {
	for _, w := range b {
		n += bits.OnesCount64(w)
	}
	return n
}

// Clone returns a copy.
func (b Bits) Clone() Bits { return append(Bits(nil), b...) }

// Each calls f for each piece of the set, in order.
func (b Bits) Each(f func(i int)) {
	for k, w := range b {
		for w != 0 {
			f(k<<6 + bits.TrailingZeros64(w))
			w &= w - 1
		}
	}
}

// Bytes returns the bitmap that BitsOf reads, for n pieces.
func (b Bits) Bytes(n int) []byte {
	p := make([]byte, (n+7)/8)
	for i := range p {
		if i/8 < len(b) {
			p[i] = byte(b[i/8] >> (8 * (i % 8)))
		}
	}
	return p
}

// MarshalText renders the set for JSON: base64 of its bytes without the zeroes at the end.
func (b Bits) MarshalText() ([]byte, error) {
	p := b.Bytes(len(b) * 64)
	for len(p) > 0 && p[len(p)-1] == 0 {
		p = p[:len(p)-1]
	}
	return base64.RawStdEncoding.AppendEncode(nil, p), nil
}

// UnmarshalText reads what MarshalText wrote. The set holds at most MaxPieces.
func (b *Bits) UnmarshalText(text []byte) error {
	if base64.RawStdEncoding.DecodedLen(len(text)) > MaxPieces/8 {
		return fmt.Errorf("a bitmap of %d characters is too long", len(text))
	}
	p, err := base64.RawStdEncoding.AppendDecode(nil, text)
	if err != nil {
		return fmt.Errorf("read bitmap: %w", err)
	}
	*b = BitsOf(p, len(p)*8)
	return nil
}

// fit returns the set with room for exactly n pieces.
func (b Bits) fit(n int) Bits {
	want := (n + 63) / 64
	if len(b) < want {
		b = append(b.Clone(), make(Bits, want-len(b))...)
	}
	b = b[:want]
	b.trim(n)
	return b
}
