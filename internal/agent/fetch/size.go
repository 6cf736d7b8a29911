package fetch

import (
	"context"
	"errors"
	"fmt"

	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/ociclient"
)

// A size that a manifest states is a claim: anybody can write a manifest. The
// upstream's own word about the blob is preferred to it, and the digest decides in
// the end.

// Claimed is a stated size that may be used until better is known: −1 for one that
// cannot be the blob's.
func Claimed(d oci.Digest, size int64) int64 {
	if size < 0 || size > oci.SizeMax || size == 0 && d != d.Algorithm().FromBytes(nil) {
		return -1
	}
	return size
}

// sizeError is ErrWrongLength where the upstream says how many bytes the blob has.
type sizeError struct {
	size, claimed int64
}

func (e *sizeError) Error() string {
	return fmt.Sprintf("the blob has %d bytes by the word of the upstream, and not %d", e.size, e.claimed)
}

func (e *sizeError) Is(target error) bool { return target == ErrWrongLength }

// SizeOf returns the size that the upstream stated where a download ended because
// it had begun with another one. It may be asked for again with this size.
func SizeOf(err error) (int64, bool) {
	var e *sizeError
	if errors.As(err, &e) {
		return e.size, true
	}
	return 0, false
}

// checkTotal compares the upstream's word with the claim; either may be −1.
func checkTotal(res *ociclient.Response, claimed int64) error {
	if total := res.Total(); total >= 0 && total <= oci.SizeMax && claimed >= 0 && total != claimed {
		return &sizeError{size: total, claimed: claimed}
	}
	return nil
}

// settle decides between two sizes of a blob, w's and that of what is here of it,
// by asking the upstream. After nil the blob may be used, unless it is superseded.
// A download that is under way is left to the word of its own upstream: another
// one must not be able to end it.
func (f *Fetcher) settle(ctx context.Context, w Want, b *piece.Blob) error {
	other := fmt.Errorf("fetch %s: its download is for %d bytes and not %d: %w", w.Digest, b.Size(), w.Size, ErrWrongLength)
	if f.o.Origin == nil {
		return other
	}
	size := int64(-1)
	src, err := f.o.Origin.Range(ctx, w, 0, min(w.Size, 1))
	if err == nil {
		if sized, ok := src.(*body); ok {
			size = sized.size
		}
		_ = src.Close() // its header was enough
	} else if stated, ok := SizeOf(err); ok {
		size = stated
	}
	switch {
	case size < 0:
		return errors.Join(other, err)
	case size == b.Size():
		return nil
	case f.Source(w) != "":
		return other
	}
	b.Supersede(&sizeError{size: size, claimed: b.Size()})
	if size != w.Size {
		return &sizeError{size: size, claimed: w.Size}
	}
	return nil
}
