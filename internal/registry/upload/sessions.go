package upload

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/blob"
	"github.com/fairway-registry/fairway/internal/registry/meta"
)

// ErrOffset is in the chain of an error about a chunk that does not fit on to
// the session, or that came while another request worked on it: the client is
// to ask for the session's status and go on from there.
var ErrOffset = errors.New("chunk does not fit on to the session")

// Options tunes Sessions.
type Options struct {
	// Wait is how long a request waits for another one on the same session,
	// which may be a connection that has died unnoticed; 0 = 1 s.
	Wait time.Duration
	// Touch is how often a long transfer tells the database that it is alive; 0 = 30 s.
	Touch time.Duration
}

// Sessions are the upload sessions of this process.
type Sessions struct {
	store *meta.Store
	blobs blob.Store
	opts  Options
	large *largeBuffers

	mu   sync.Mutex
	busy map[string]chan struct{} // closed when the request that works on the session is over
}

// New returns Sessions that keep rows in store and bytes in blobs.
func New(store *meta.Store, blobs blob.Store, o Options) *Sessions {
	if o.Wait <= 0 {
		o.Wait = time.Second
	}
	if o.Touch <= 0 {
		o.Touch = 30 * time.Second
	}
	return &Sessions{store: store, blobs: blobs, opts: o, busy: map[string]chan struct{}{}, large: newLargeBuffers(buffersMax)}
}

// Chunk is a piece of a blob on its way in.
type Chunk struct {
	Body   io.Reader // nil: none
	Length int64     // bytes, as the client announced; −1: it did not say
	Ranged bool      // First and Last come from a Content-Range header
	First  int64     // offset of the first byte
	Last   int64     // offset of the last byte
	Actor  string    // who sends it, for the log of what becomes of a failed session
}

// empty reports that no byte is to be expected.
func (c Chunk) empty() bool { return c.Body == nil || c.Length == 0 && !c.Ranged }

// Start begins a session in repo that hashes with algorithm ("" = sha256).
// An unknown algorithm is Invalid with DIGEST_INVALID.
func (s *Sessions) Start(ctx context.Context, repo oci.Name, algorithm string) (meta.Upload, error) {
	if algorithm == "" {
		algorithm = "sha256"
	}
	if err := known(algorithm); err != nil {
		return meta.Upload{}, err
	}
	return s.store.CreateUpload(ctx, repo, algorithm)
}

func known(algorithm string) error {
	if newHash(algorithm) == nil {
		return fault.New(fault.Invalid, "unsupported digest algorithm %.32q: want sha256 or sha512", algorithm).WithCode(oci.CodeDigestInvalid)
	}
	return nil
}

// Put uploads a whole blob in one session that is over when it returns, one
// way or the other. The session is busy before it is there.
func (s *Sessions) Put(ctx context.Context, repo oci.Name, d oci.Digest, c Chunk) (meta.Blob, error) {
	algorithm := string(d.Algorithm())
	if err := known(algorithm); err != nil {
		return meta.Blob{}, err
	}
	id := uuid.NewString()
	release, err := s.claim(ctx, id)
	if err != nil {
		return meta.Blob{}, err
	}
	defer release()
	u, err := s.store.CreateUploadAs(ctx, repo, algorithm, id)
	if err != nil {
		return meta.Blob{}, err
	}
	b, err := s.finish(ctx, u, d, c)
	if err != nil {
		err = s.giveUp(ctx, u, c.Actor, 0, err)
	}
	return b, err
}

// giveUp cancels a session that failed for cause and returns cause. The bytes
// would wait for the session's expiry otherwise, on a disk that may be full.
// There are size of them, or as many as the session has recorded if that is more.
func (s *Sessions) giveUp(ctx context.Context, u meta.Upload, actor string, size int64, cause error) error {
	err := s.store.CancelUploadOf(context.WithoutCancel(ctx), u.Repo, u.ID, actor, size)
	if err != nil && !errors.Is(err, fault.NotFound) {
		return errors.Join(cause, fmt.Errorf("give up upload %s: %w", u.ID, err))
	}
	return cause
}

// Status returns a session's state: Size bytes are durable.
func (s *Sessions) Status(ctx context.Context, repo oci.Name, id string) (meta.Upload, error) {
	if err := checkID(id); err != nil {
		return meta.Upload{}, err
	}
	return s.store.Upload(ctx, repo, id)
}

// Cancel ends a session and hands its bytes to the purge queue. A request that
// works on it is waited for, but not long: then the error is Conflict.
func (s *Sessions) Cancel(ctx context.Context, repo oci.Name, id, actor string) error {
	if err := checkID(id); err != nil {
		return err
	}
	release, err := s.claim(ctx, id)
	if err != nil {
		return err
	}
	defer release()
	return s.store.CancelUpload(ctx, repo, id, actor)
}

// Busy reports whether a request works on the session right now. The
// collector does not give up such a session, however long it may be idle.
func (s *Sessions) Busy(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.busy[id]
	return ok
}

// claim makes the caller the one request that works on the session. The error
// is Conflict where another one stays too long.
func (s *Sessions) claim(ctx context.Context, id string) (release func(), err error) {
	var deadline <-chan time.Time
	for {
		s.mu.Lock()
		over, taken := s.busy[id]
		if !taken {
			over = make(chan struct{})
			s.busy[id] = over
			s.mu.Unlock()
			return func() {
				s.mu.Lock()
				delete(s.busy, id)
				s.mu.Unlock()
				close(over)
			}, nil
		}
		s.mu.Unlock()
		if deadline == nil {
			timer := time.NewTimer(s.opts.Wait)
			defer timer.Stop()
			deadline = timer.C
		}
		select {
		case <-over:
		case <-deadline:
			return nil, fault.New(fault.Conflict, "another request is sending data to this upload").WithCode(oci.CodeBlobUploadInvalid)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// checkID spares the database what cannot be an id.
func checkID(id string) error {
	if len(id) == 36 && uuid.Validate(id) == nil {
		return nil
	}
	return fault.New(fault.NotFound, "there is no upload %.64q", id).WithCode(oci.CodeBlobUploadUnknown)
}
