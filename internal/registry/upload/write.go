package upload

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/blob"
	"github.com/fairway-registry/fairway/internal/registry/meta"
)

// Append adds a chunk to a session and returns the session's state with the
// bytes durable. Of a chunk that breaks off, what has arrived is kept, and the
// error is Invalid; a chunk whose length is not what its header says adds
// nothing. The state is returned with an error too, as far as it is known.
func (s *Sessions) Append(ctx context.Context, repo oci.Name, id string, c Chunk) (meta.Upload, error) {
	u, release, err := s.begin(ctx, repo, id)
	if err != nil {
		return u, err
	}
	defer release()
	limit, err := c.fits(u)
	if err != nil || c.empty() {
		return u, err
	}
	h, err := s.hasher(ctx, u, u.Algorithm)
	if err != nil {
		return u, err
	}
	a, got, err := s.receive(ctx, u, h, c, limit)
	if err != nil && !keeps(err, got) {
		return u, err
	}
	u.Whole = false
	if aerr := s.advance(ctx, &u, a, h, got, u.Algorithm); aerr != nil {
		return u, aerr
	}
	return u, err
}

// Finish adds the last chunk, if there is one, and turns the session into a
// blob of its repository. If the digest does not match, the session is over
// too. A client that asks again, because the answer was lost on its way, gets it
// again: a session that is over is no mistake if the repository has the blob.
func (s *Sessions) Finish(ctx context.Context, repo oci.Name, id string, d oci.Digest, c Chunk) (meta.Blob, error) {
	u, release, err := s.begin(ctx, repo, id)
	if errors.Is(err, fault.NotFound) {
		b, cerr := s.store.ConfirmBlob(ctx, repo, d)
		if errors.Is(cerr, fault.NotFound) {
			return meta.Blob{}, err
		}
		return b, cerr
	}
	if err != nil {
		return meta.Blob{}, err
	}
	defer release()
	return s.finish(ctx, u, d, c)
}

// finish is Finish for a session that the caller has claimed.
func (s *Sessions) finish(ctx context.Context, u meta.Upload, d oci.Digest, c Chunk) (meta.Blob, error) {
	limit, err := c.fits(u)
	if err != nil {
		return meta.Blob{}, err
	}
	if u.Whole && !c.Ranged && !c.empty() {
		version, err := s.store.RestartUpload(ctx, u)
		if err != nil {
			return meta.Blob{}, s.disown(ctx, u, u.Size, err)
		}
		u.Version, u.Size, u.Whole, u.HashState = version, 0, false, nil
	}
	h, err := s.hasher(ctx, u, string(d.Algorithm()))
	if err != nil {
		return meta.Blob{}, err
	}
	size := u.Size
	if !c.empty() || size == 0 { // the empty blob is an object too
		got, err := s.lastChunk(ctx, u, h, d, c, limit)
		if err != nil {
			return meta.Blob{}, err
		}
		size += got
	} else if err := s.verify(ctx, u, h, d, size, c.Actor); err != nil {
		return meta.Blob{}, err
	}
	// All bytes are durable: a client that leaves now need not send them again.
	ctx = context.WithoutCancel(ctx)
	damaged, err := s.damaged(ctx, d, size)
	if err != nil {
		return meta.Blob{}, err
	}
	b, err := s.store.FinishUploadOver(ctx, u, d, size, damaged)
	return b, s.disown(ctx, u, size, err)
}

// damaged returns the key of the bytes that a digest has already if they are
// missing or not of their size, which new ones that were verified should
// replace; "" otherwise. A store that fails to tell is not taken for damage.
func (s *Sessions) damaged(ctx context.Context, d oci.Digest, size int64) (key string, err error) {
	b, held, err := s.store.HeldBlob(ctx, d)
	if err != nil || !held {
		return "", err
	}
	r, err := s.blobs.Open(ctx, b.Key)
	if errors.Is(err, blob.ErrNotFound) {
		return b.Key, nil
	}
	if err != nil {
		return "", nil //nolint:nilerr // the upload does not need the old bytes
	}
	defer func() { _ = r.Close() }() // nothing was written
	if r.Size() != size || b.Size != size {
		return b.Key, nil
	}
	return "", nil
}

// disown sees to the size bytes of a session that ended while they came: the purge
// of its key may have looked before they were there. err is what the session's
// end was found by, and is returned.
func (s *Sessions) disown(ctx context.Context, u meta.Upload, size int64, err error) error {
	if !errors.Is(err, fault.NotFound) && !errors.Is(err, fault.Conflict) {
		return err
	}
	if derr := s.store.DisownUpload(context.WithoutCancel(ctx), u.Key, size); derr != nil {
		return errors.Join(err, derr)
	}
	return err
}

// lastChunk writes and verifies the last chunk and makes it durable.
func (s *Sessions) lastChunk(ctx context.Context, u meta.Upload, h hash.Hash, d oci.Digest, c Chunk, limit int64) (int64, error) {
	a, got, err := s.receive(ctx, u, h, c, limit)
	if err != nil {
		// A client that counts offsets goes on where it was cut off. One that
		// sends the whole in one PUT may send the whole again.
		if keeps(err, got) {
			u.Whole = u.Size == 0 && !c.Ranged
			if aerr := s.advance(ctx, &u, a, h, got, string(d.Algorithm())); aerr != nil {
				return 0, aerr
			}
		}
		return 0, err
	}
	if err := s.verify(ctx, u, h, d, u.Size+got, c.Actor); err != nil {
		_ = a.Close() // the bytes are not wanted
		return 0, err
	}
	if err := a.Commit(); err != nil {
		return 0, s.storeFailed(ctx, u, err)
	}
	return got, nil
}

// begin claims the session for writing, here and in the database: from then on
// the collector keeps its hands off the key.
func (s *Sessions) begin(ctx context.Context, repo oci.Name, id string) (meta.Upload, func(), error) {
	if err := checkID(id); err != nil {
		return meta.Upload{}, nil, err
	}
	release, err := s.claim(ctx, id)
	if errors.Is(err, fault.Conflict) {
		err = fault.Wrap(fault.Conflict, errors.Join(ErrOffset, err), fault.Public(err).Public+"; ask for its status and go on from there").WithCode(oci.CodeBlobUploadInvalid)
	}
	if err != nil {
		return meta.Upload{}, nil, err
	}
	u, err := s.store.OpenUpload(ctx, repo, id)
	if err != nil {
		release()
		return u, nil, err
	}
	return u, release, nil
}

// fits checks what the chunk's header says against the session, and returns
// how many bytes are to come; −1 if that is not known. No manifest may name a
// blob of more than oci.SizeMax bytes, so none is taken in.
func (c Chunk) fits(u meta.Upload) (limit int64, err error) {
	limit, err = c.announced(u)
	if err == nil && limit > oci.SizeMax-u.Size {
		err = fault.New(fault.Invalid, "the request announces %d bytes, but a blob has at most %d", limit, oci.SizeMax).WithCode(oci.CodeSizeInvalid)
	}
	return limit, err
}

// announced is fits without a bound.
func (c Chunk) announced(u meta.Upload) (limit int64, err error) {
	if !c.Ranged {
		return c.Length, nil
	}
	if c.First != u.Size {
		return 0, fault.Wrap(fault.Conflict, ErrOffset,
			fmt.Sprintf("the chunk begins at offset %d, but the upload stands at %d", c.First, u.Size)).WithCode(oci.CodeBlobUploadInvalid)
	}
	limit = c.Last - c.First + 1
	if c.Length >= 0 && c.Length != limit {
		return 0, fault.New(fault.Invalid, "Content-Range announces %d bytes, but Content-Length %d", limit, c.Length).WithCode(oci.CodeSizeInvalid)
	}
	return limit, nil
}

// receive writes the chunk behind the durable bytes. Where it returns an
// Appender, the caller commits or closes it: that is on success, and with an
// error for which keeps is true.
func (s *Sessions) receive(ctx context.Context, u meta.Upload, h hash.Hash, c Chunk, limit int64) (blob.Appender, int64, error) {
	a, err := s.blobs.Append(ctx, u.Key, u.Size)
	if err != nil {
		return nil, 0, full(fmt.Errorf("append to upload %s: %w", u.ID, err))
	}
	if err := a.Announce(max(limit, 0)); err != nil {
		_ = a.Close() // nothing was written
		return nil, 0, s.storeFailed(ctx, u, err)
	}
	body := c.Body
	if body == nil {
		body = strings.NewReader("")
	}
	got, err := s.transfer(ctx, u.ID, a, h, body, limit)
	var broken errBody
	switch {
	case errors.As(err, &broken):
		err = fault.Wrap(fault.Invalid, interrupted{broken.err}, fmt.Sprintf("the body broke off after %d bytes", got)).WithCode(oci.CodeBlobUploadInvalid)
		if keeps(err, got) {
			return a, got, err
		}
	case err != nil:
		_ = a.Close() // the write's error is the one that matters
		return nil, 0, s.storeFailed(ctx, u, err)
	case limit >= 0 && got != limit:
		err = fault.New(fault.Invalid, "the body's length is not the %d bytes announced", limit).WithCode(oci.CodeSizeInvalid)
	default:
		return a, got, nil
	}
	_ = a.Close() // nothing of the chunk counts
	if terr := s.trim(context.WithoutCancel(ctx), u); terr != nil {
		return nil, 0, errors.Join(err, fmt.Errorf("trim upload %s: %w", u.ID, terr))
	}
	return nil, 0, err
}

// interrupted marks a chunk that broke off in the cause of an error.
type interrupted struct{ error }

func (e interrupted) Unwrap() error { return e.error }

// keeps reports whether what came of a chunk before err is to be kept.
func keeps(err error, got int64) bool {
	var i interrupted
	return got > 0 && errors.As(err, &i)
}

// advance makes got more bytes durable and then says so in the row. h is the
// hash over all of them, by algorithm.
func (s *Sessions) advance(ctx context.Context, u *meta.Upload, a blob.Appender, h hash.Hash, got int64, algorithm string) error {
	ctx = context.WithoutCancel(ctx) // the client may be gone; the bytes are here
	if err := a.Commit(); err != nil {
		return s.storeFailed(ctx, *u, err)
	}
	var state []byte
	if algorithm == u.Algorithm {
		var err error
		if state, err = hashState(h); err != nil {
			return fmt.Errorf("keep the hash of upload %s: %w", u.ID, err)
		}
	}
	version, err := s.store.AdvanceUpload(ctx, *u, u.Size+got, state)
	if err != nil {
		return s.disown(ctx, *u, u.Size+got, err)
	}
	u.Version, u.Size, u.HashState = version, u.Size+got, state
	return nil
}

// verify ends the session if its size bytes do not have the digest d.
func (s *Sessions) verify(ctx context.Context, u meta.Upload, h hash.Hash, d oci.Digest, size int64, actor string) error {
	if found := digest.NewDigest(d.Algorithm(), h); found != d {
		return s.giveUp(ctx, u, actor, size, fault.New(fault.Invalid, "the content has the digest %s, not %s; the upload is over", found, d).WithCode(oci.CodeDigestInvalid))
	}
	return nil
}

// storeFailed returns the error of a failed write after the bytes that do not
// count were given back: the disk may be full.
func (s *Sessions) storeFailed(ctx context.Context, u meta.Upload, err error) error {
	err = full(fmt.Errorf("write upload %s: %w", u.ID, err))
	if terr := s.trim(context.WithoutCancel(ctx), u); terr != nil {
		return errors.Join(err, fmt.Errorf("trim upload %s: %w", u.ID, terr))
	}
	return err
}

// full tells a client in words that the disk is full.
func full(err error) error {
	if !errors.Is(err, blob.ErrFull) {
		return err
	}
	return fault.Wrap(fault.Full, err, "the registry's disk is full: delete images that are not needed and run a collection, or add space, then push again").WithCode(oci.CodeStorageFull)
}
