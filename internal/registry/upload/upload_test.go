package upload_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/blob/blobtest"
	"github.com/fairway-registry/fairway/internal/registry/blob/fsblob"
	"github.com/fairway-registry/fairway/internal/registry/meta"
	"github.com/fairway-registry/fairway/internal/registry/upload"
)

// bench is upload sessions over a real database and real files, with faults
// where a test wants them.
type bench struct {
	t     *testing.T
	dir   string
	store *meta.Store
	files *fsblob.Store
	blobs *blobtest.Faulty
	*upload.Sessions
}

const repo = oci.Name("a/b")

func open(t *testing.T) *bench {
	t.Helper()
	b := &bench{t: t, dir: t.TempDir()}
	b.open()
	t.Cleanup(b.close)
	return b
}

func (b *bench) open() {
	b.t.Helper()
	var err error
	if b.files, err = fsblob.Open(b.dir, fsblob.Options{Reserve: -1, MinFree: -1}); err != nil {
		b.t.Fatal(err)
	}
	if b.store, err = meta.Open(context.Background(), meta.Options{Path: filepath.Join(b.dir, "fairway.db")}); err != nil {
		b.t.Fatal(err)
	}
	b.blobs = blobtest.NewFaulty(b.files)
	b.Sessions = upload.New(b.store, b.blobs, upload.Options{Wait: 20 * time.Millisecond})
}

func (b *bench) close() {
	if err := errors.Join(b.store.Close(), b.files.Close()); err != nil {
		b.t.Error(err)
	}
}

func (b *bench) restart() {
	b.t.Helper()
	b.close()
	b.open()
}

func (b *bench) start(algorithm string) meta.Upload {
	b.t.Helper()
	u, err := b.Start(b.t.Context(), repo, algorithm)
	if err != nil {
		b.t.Fatal(err)
	}
	return u
}

// whole is a chunk of a client that says how much it sends.
func whole(p []byte) upload.Chunk {
	return upload.Chunk{Body: bytes.NewReader(p), Length: int64(len(p)), Actor: "test"}
}

// at is a chunk with a Content-Range.
func at(offset int, p []byte) upload.Chunk {
	c := whole(p)
	c.Ranged, c.First, c.Last = true, int64(offset), int64(offset+len(p)-1)
	return c
}

// streamed is a chunk of a client that does not say how much it sends.
func streamed(r io.Reader) upload.Chunk { return upload.Chunk{Body: r, Length: -1, Actor: "test"} }

// cutOff is a body that announces n bytes and breaks off after p.
func cutOff(p []byte, n int) upload.Chunk {
	return upload.Chunk{Body: io.MultiReader(bytes.NewReader(p), iotest.ErrReader(io.ErrUnexpectedEOF)), Length: int64(n), Actor: "test"}
}

func (b *bench) wantBlob(d oci.Digest, want []byte) {
	b.t.Helper()
	row, err := b.store.Blob(b.t.Context(), repo, d)
	if err != nil {
		b.t.Fatalf("blob %s: %v", d, err)
	}
	if row.Size != int64(len(want)) {
		b.t.Errorf("blob %s has size %d, want %d", d, row.Size, len(want))
	}
	got, err := blobtest.Get(b.files, row.Key)
	if err != nil || !bytes.Equal(got, want) {
		b.t.Errorf("blob %s: %d bytes, error %v; want the %d uploaded", d, len(got), err, len(want))
	}
}

func (b *bench) wantNoBlob(d oci.Digest) {
	b.t.Helper()
	if _, err := b.store.Blob(b.t.Context(), repo, d); !errors.Is(err, fault.NotFound) {
		b.t.Errorf("blob %s: error %v, want NotFound", d, err)
	}
}

// wantSize checks where a session stands; −1: it is over.
func (b *bench) wantSize(id string, size int64) {
	b.t.Helper()
	u, err := b.Status(b.t.Context(), repo, id)
	switch {
	case size < 0 && !errors.Is(err, fault.NotFound):
		b.t.Errorf("the session is not over: %+v, error %v", u, err)
	case size >= 0 && (err != nil || u.Size != size):
		b.t.Errorf("the session stands at %d, error %v; want %d", u.Size, err, size)
	}
}

// wantFault checks kind and code of an error.
func wantFault(t *testing.T, err error, kind fault.Kind, code string) {
	t.Helper()
	if !errors.Is(err, kind) || fault.Public(err).Code != code {
		t.Errorf("error %v, want kind %q with code %s", err, kind, code)
	}
}

func random(n int) []byte {
	return blobtest.Bytes(n, n)
}

// sizes around the length of a buffer, and of all buffers of a large body.
var sizes = []int{0, 1, 32<<10 - 1, 32 << 10, 512 << 10, 512<<10 - 1, 512<<10 + 1, 1536 << 10, 3<<20 + 7}

func TestPut_AnySizeAndAlgorithm(t *testing.T) {
	b := open(t)
	for _, n := range sizes {
		p := random(n)
		for _, alg := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
			for name, c := range map[string]upload.Chunk{
				"announced":    whole(p),
				"streamed":     streamed(bytes.NewReader(p)),
				"byte by byte": streamed(iotest.HalfReader(bytes.NewReader(p))),
				"data and EOF": streamed(iotest.DataErrReader(bytes.NewReader(p))),
			} {
				d := alg.FromBytes(p)
				if _, err := b.Put(t.Context(), repo, d, c); err != nil {
					t.Fatalf("%d bytes, %s, %s: %v", n, alg, name, err)
				}
				b.wantBlob(d, p)
			}
		}
	}
}

func TestAppend_ChunksOfAnySizeAcrossRestarts(t *testing.T) {
	for _, alg := range []string{"sha256", "sha512"} {
		b := open(t)
		p := random(3 << 20)
		u := b.start(alg)
		offset := 0
		for _, n := range []int{1, 700 << 10, 0, 1<<20 + 3, len(p) - (1 + 700<<10 + 1<<20 + 3)} {
			u, err := b.Append(t.Context(), repo, u.ID, whole(p[offset:offset+n]))
			if err != nil {
				t.Fatal(err)
			}
			if offset += n; u.Size != int64(offset) {
				t.Errorf("after %d bytes the session stands at %d", offset, u.Size)
			}
			b.restart()
			b.wantSize(u.ID, int64(offset))
		}
		// No byte is read again: the state of the hash survived.
		b.blobs.Plan(blobtest.Always(blobtest.OpOpen, blobtest.Fail))
		d := digest.Algorithm(alg).FromBytes(p)
		if _, err := b.Finish(t.Context(), repo, u.ID, d, upload.Chunk{}); err != nil {
			t.Fatal(err)
		}
		b.wantBlob(d, p)
	}
}

func TestFinish_WithAnotherAlgorithmThanTheSessions(t *testing.T) {
	b := open(t)
	p := random(1 << 20)
	for _, split := range []int{0, 1000, len(p)} {
		u := b.start("sha256")
		if _, err := b.Append(t.Context(), repo, u.ID, whole(p[:split])); err != nil {
			t.Fatal(err)
		}
		d := digest.SHA512.FromBytes(p)
		if _, err := b.Finish(t.Context(), repo, u.ID, d, whole(p[split:])); err != nil {
			t.Fatal(err)
		}
		b.wantBlob(d, p)
	}
}

func TestStart_UnknownAlgorithmIsInvalid(t *testing.T) {
	b := open(t)
	for _, alg := range []string{"md5", "SHA256", "sha384", strings.Repeat("x", 1000)} {
		_, err := b.Start(t.Context(), repo, alg)
		wantFault(t, err, fault.Invalid, oci.CodeDigestInvalid)
	}
}

func TestSpec_PushingABlobInChunks_OffsetMustFit(t *testing.T) {
	b := open(t)
	u := b.start("")
	p := random(100)
	if _, err := b.Append(t.Context(), repo, u.ID, at(0, p[:50])); err != nil {
		t.Fatal(err)
	}
	for _, offset := range []int{0, 49, 51} {
		_, err := b.Append(t.Context(), repo, u.ID, at(offset, p[50:]))
		wantFault(t, err, fault.Conflict, oci.CodeBlobUploadInvalid)
		if !errors.Is(err, upload.ErrOffset) {
			t.Errorf("error %v is not ErrOffset", err)
		}
		_, err = b.Finish(t.Context(), repo, u.ID, digest.FromBytes(p), at(offset, p[50:]))
		if !errors.Is(err, upload.ErrOffset) {
			t.Errorf("error %v is not ErrOffset", err)
		}
	}
	b.wantSize(u.ID, 50)
	if _, err := b.Finish(t.Context(), repo, u.ID, digest.FromBytes(p), at(50, p[50:])); err != nil {
		t.Fatal(err)
	}
	b.wantBlob(digest.FromBytes(p), p)
}

func TestBadInput_LengthThatIsNotTheAnnouncedOne(t *testing.T) {
	b := open(t)
	p := random(1 << 20)
	for name, c := range map[string]upload.Chunk{
		"two headers disagree": {Body: bytes.NewReader(p), Length: 7, Ranged: true, First: 0, Last: 99},
		"longer than range":    {Body: bytes.NewReader(p), Length: -1, Ranged: true, First: 0, Last: 99},
		"one byte longer":      {Body: bytes.NewReader(p), Length: -1, Ranged: true, First: 0, Last: int64(len(p)) - 2},
		"shorter than range":   {Body: bytes.NewReader(p), Length: -1, Ranged: true, First: 0, Last: int64(len(p))},
		"empty":                {Body: bytes.NewReader(nil), Length: -1, Ranged: true, First: 0, Last: 0},
	} {
		c.Actor = "test"
		u := b.start("")
		d := digest.FromBytes(p)
		again := func() upload.Chunk { c := c; c.Body = bytes.NewReader(p); return c }
		if name == "empty" {
			again = func() upload.Chunk { return c }
		}
		_, err := b.Append(t.Context(), repo, u.ID, again())
		wantFault(t, err, fault.Invalid, oci.CodeSizeInvalid)
		b.wantSize(u.ID, 0)
		_, err = b.Finish(t.Context(), repo, u.ID, d, again())
		wantFault(t, err, fault.Invalid, oci.CodeSizeInvalid)
		_, err = b.Put(t.Context(), repo, d, again())
		wantFault(t, err, fault.Invalid, oci.CodeSizeInvalid)
		b.wantNoBlob(d)
		// The session is as it was.
		if _, err := b.Finish(t.Context(), repo, u.ID, d, whole(p)); err != nil {
			t.Errorf("%s: the right body afterwards: %v", name, err)
		}
		if err := b.store.DeleteBlob(t.Context(), repo, d, "test"); err != nil {
			t.Fatal(err)
		}
	}
	b.wantUploads(0)
}

// A length is what the client says: neither its sum with one more byte nor that
// with what the session has may overflow.
func TestR16_AnAnnouncedLengthThatCannotBeIsRefused(t *testing.T) {
	b := open(t)
	u := b.start("")
	p := random(10)
	if _, err := b.Append(t.Context(), repo, u.ID, whole(p)); err != nil {
		t.Fatal(err)
	}
	d := digest.FromBytes(p)
	for _, n := range []int64{math.MaxInt64, math.MaxInt64 - 5, oci.SizeMax - 9} {
		last := min(n, math.MaxInt64-10) + 9 // the largest that a Content-Range may have, less one or more
		for _, c := range []upload.Chunk{{Length: n}, {Length: -1, Ranged: true, First: 10, Last: last}} {
			c.Body = bytes.NewReader(p)
			_, err := b.Append(t.Context(), repo, u.ID, c)
			wantFault(t, err, fault.Invalid, oci.CodeSizeInvalid)
			_, err = b.Finish(t.Context(), repo, u.ID, d, c)
			wantFault(t, err, fault.Invalid, oci.CodeSizeInvalid)
		}
	}
	for _, n := range []int64{math.MaxInt64, oci.SizeMax + 1} {
		_, err := b.Put(t.Context(), repo, d, upload.Chunk{Body: bytes.NewReader(p), Length: n})
		wantFault(t, err, fault.Invalid, oci.CodeSizeInvalid)
	}
	b.wantSize(u.ID, 10)
	b.wantUploads(1)
}

func (b *bench) wantUploads(n int64) {
	b.t.Helper()
	st, err := b.store.Stats(b.t.Context())
	if err != nil || st.Uploads != n {
		b.t.Errorf("%d sessions are open, error %v; want %d", st.Uploads, err, n)
	}
}

func TestClientGone_AppendKeepsWhatArrived(t *testing.T) {
	for _, n := range []int{1, 1000, 2<<20 + 5} {
		b := open(t)
		p := random(3 << 20)
		u := b.start("")
		ctx, gone := context.WithCancel(t.Context())
		c := cutOff(p[:n], len(p))
		c.Body = &onEnd{c.Body, gone} // net/http ends the context when the connection breaks
		_, err := b.Append(ctx, repo, u.ID, c)
		wantFault(t, err, fault.Invalid, oci.CodeBlobUploadInvalid)
		b.wantSize(u.ID, int64(n))
		b.restart()
		if _, err := b.Finish(t.Context(), repo, u.ID, digest.FromBytes(p), at(n, p[n:])); err != nil {
			t.Fatal(err)
		}
		b.wantBlob(digest.FromBytes(p), p)
	}
}

// onEnd calls fn when the body ends or breaks off.
type onEnd struct {
	io.Reader
	fn func()
}

func (r *onEnd) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if err != nil {
		r.fn()
	}
	return n, err
}

func TestClientGone_FinishOfAWholeBlobCanBeSentAgain(t *testing.T) {
	b := open(t)
	p := random(2 << 20)
	d := digest.FromBytes(p)
	u := b.start("")
	_, err := b.Finish(t.Context(), repo, u.ID, d, cutOff(p[:1<<20], len(p)))
	wantFault(t, err, fault.Invalid, oci.CodeBlobUploadInvalid)
	b.wantSize(u.ID, 1<<20)
	b.wantNoBlob(d)
	if _, err := b.Finish(t.Context(), repo, u.ID, d, whole(p)); err != nil {
		t.Fatal(err)
	}
	b.wantBlob(d, p)
}

func TestClientGone_FinishOfALastChunkGoesOn(t *testing.T) {
	for _, alg := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
		b := open(t)
		p := random(2 << 20)
		d := alg.FromBytes(p)
		u := b.start("sha256")
		if _, err := b.Append(t.Context(), repo, u.ID, whole(p[:1000])); err != nil {
			t.Fatal(err)
		}
		_, err := b.Finish(t.Context(), repo, u.ID, d, cutOff(p[1000:5000], len(p)-1000))
		wantFault(t, err, fault.Invalid, oci.CodeBlobUploadInvalid)
		b.wantSize(u.ID, 5000)
		if _, err := b.Finish(t.Context(), repo, u.ID, d, at(5000, p[5000:])); err != nil {
			t.Fatal(err)
		}
		b.wantBlob(d, p)
	}
}

func TestClientGone_PutLeavesNoSession(t *testing.T) {
	b := open(t)
	p := random(2 << 20)
	_, err := b.Put(t.Context(), repo, digest.FromBytes(p), cutOff(p[:1<<20], len(p)))
	wantFault(t, err, fault.Invalid, oci.CodeBlobUploadInvalid)
	b.wantNoBlob(digest.FromBytes(p))
	b.wantUploads(0)
}

func TestWrongDigestEndsTheSession(t *testing.T) {
	b := open(t)
	d := digest.FromString("announced")
	for _, before := range []string{"", "se"} {
		u := b.start("")
		if _, err := b.Append(t.Context(), repo, u.ID, whole([]byte(before))); err != nil {
			t.Fatal(err)
		}
		_, err := b.Finish(t.Context(), repo, u.ID, d, whole([]byte("nt")))
		wantFault(t, err, fault.Invalid, oci.CodeDigestInvalid)
		b.wantSize(u.ID, -1)
	}
	u := b.start("")
	if _, err := b.Append(t.Context(), repo, u.ID, whole([]byte("sent"))); err != nil {
		t.Fatal(err)
	}
	_, err := b.Finish(t.Context(), repo, u.ID, d, upload.Chunk{})
	wantFault(t, err, fault.Invalid, oci.CodeDigestInvalid)
	b.wantNoBlob(d)
	b.wantUploads(0)
}

func TestR7_NoRowSaysMoreThanIsDurable(t *testing.T) {
	p := random(2 << 20)
	d := digest.FromBytes(p)
	for n := 1; ; n++ {
		b := open(t)
		u := b.start("")
		b.blobs.Plan(blobtest.Nth(n, blobtest.CrashMid))
		_, aerr := b.Append(t.Context(), repo, u.ID, whole(p[:1<<20]))
		_, ferr := b.Finish(t.Context(), repo, u.ID, d, at(1<<20, p[1<<20:]))
		if !b.blobs.Crashed() {
			if aerr != nil || ferr != nil {
				t.Fatalf("without a crash: %v, %v", aerr, ferr)
			}
			if n < 6 {
				t.Fatalf("only %d failpoints were met", n-1)
			}
			return
		}
		if err := b.blobs.PowerLoss(t.Context()); err != nil {
			t.Fatal(err)
		}
		b.restart()
		if ferr == nil {
			b.wantBlob(d, p)
			continue
		}
		now, err := b.Status(t.Context(), repo, u.ID)
		if err != nil {
			t.Fatalf("crash at %d: %v", n, err)
		}
		if aerr == nil && now.Size != 1<<20 {
			t.Errorf("crash at %d: the acknowledged chunk is not in the row: %d", n, now.Size)
		}
		if _, err := b.Finish(t.Context(), repo, u.ID, d, at(int(now.Size), p[now.Size:])); err != nil {
			t.Fatalf("crash at %d: go on from %d: %v", n, now.Size, err)
		}
		b.wantBlob(d, p)
	}
}

func TestDiskFull_IsToldInWordsAndTheSessionGoesOn(t *testing.T) {
	b := open(t)
	p := random(2 << 20)
	d := digest.FromBytes(p)
	u := b.start("")
	if _, err := b.Append(t.Context(), repo, u.ID, whole(p[:1000])); err != nil {
		t.Fatal(err)
	}
	for _, kind := range []blobtest.Kind{blobtest.OpWrite, blobtest.OpCommit} {
		b.blobs.Plan(blobtest.Always(kind, blobtest.Full))
		_, err := b.Append(t.Context(), repo, u.ID, whole(p[1000:]))
		wantFault(t, err, fault.Full, oci.CodeStorageFull)
		_, err = b.Finish(t.Context(), repo, u.ID, d, whole(p[1000:]))
		wantFault(t, err, fault.Full, oci.CodeStorageFull)
		_, err = b.Put(t.Context(), repo, d, whole(p))
		wantFault(t, err, fault.Full, oci.CodeStorageFull)
		if !strings.Contains(fault.Public(err).Public, "run a collection") {
			t.Errorf("the text does not say what to do: %q", fault.Public(err).Public)
		}
	}
	b.blobs.Plan(blobtest.Always(blobtest.OpAppend, blobtest.Full))
	_, err := b.Append(t.Context(), repo, u.ID, whole(p[1000:]))
	wantFault(t, err, fault.Full, oci.CodeStorageFull)
	b.blobs.Plan(nil)
	b.wantSize(u.ID, 1000)
	b.wantNoBlob(d)
	b.wantUploads(1)
	// What did not count was given back at once.
	if got, err := blobtest.Get(b.files, u.Key); err != nil || len(got) != 1000 {
		t.Errorf("the object has %d bytes, error %v; want the 1000 durable ones", len(got), err)
	}
	if _, err := b.Finish(t.Context(), repo, u.ID, d, at(1000, p[1000:])); err != nil {
		t.Fatal(err)
	}
	b.wantBlob(d, p)
}

func TestStoreFailure_IsInternalAndPrivate(t *testing.T) {
	b := open(t)
	p := random(1000)
	for _, kind := range []blobtest.Kind{blobtest.OpAppend, blobtest.OpWrite, blobtest.OpCommit} {
		b.blobs.Plan(blobtest.Always(kind, blobtest.Fail))
		_, err := b.Put(t.Context(), repo, digest.FromBytes(p), whole(p))
		if !errors.Is(err, blobtest.ErrFault) || fault.KindOf(err) != fault.Internal {
			t.Errorf("%s fails: error %v, want an internal one with the cause", kind, err)
		}
	}
	b.wantUploads(0)
}

func TestOneRequestAtATimeWorksOnASession(t *testing.T) {
	b := open(t)
	u := b.start("")
	if b.Busy(u.ID) {
		t.Error("an idle session is busy")
	}
	body, client := io.Pipe()
	first := make(chan error, 1)
	go func() {
		_, err := b.Append(context.Background(), repo, u.ID, streamed(body))
		first <- err
	}()
	if _, err := client.Write([]byte("hello")); err != nil { // returns when it is being read
		t.Fatal(err)
	}
	if !b.Busy(u.ID) {
		t.Error("a session that is being written is not busy")
	}
	_, err := b.Append(t.Context(), repo, u.ID, whole([]byte("x")))
	wantFault(t, err, fault.Conflict, oci.CodeBlobUploadInvalid)
	if !errors.Is(err, upload.ErrOffset) {
		t.Errorf("error %v is not ErrOffset", err)
	}
	_, err = b.Finish(t.Context(), repo, u.ID, digest.FromString("x"), whole([]byte("x")))
	wantFault(t, err, fault.Conflict, oci.CodeBlobUploadInvalid)
	wantFault(t, b.Cancel(t.Context(), repo, u.ID, "test"), fault.Conflict, oci.CodeBlobUploadInvalid)
	b.wantSize(u.ID, 0) // asking is always allowed
	_ = client.Close()
	if err := <-first; err != nil {
		t.Fatal(err)
	}
	if b.Busy(u.ID) {
		t.Error("the session is busy after the request")
	}
	b.wantSize(u.ID, 5)
}

func TestARequestWaitsForOneThatIsAboutToEnd(t *testing.T) {
	b := open(t)
	b.Sessions = upload.New(b.store, b.blobs, upload.Options{Wait: time.Minute})
	u := b.start("")
	body, client := io.Pipe()
	first := make(chan error, 1)
	go func() {
		_, err := b.Append(context.Background(), repo, u.ID, streamed(body))
		first <- err
	}()
	if _, err := client.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	second := make(chan error, 1)
	go func() { second <- b.Cancel(context.Background(), repo, u.ID, "test") }()
	_ = client.CloseWithError(io.ErrUnexpectedEOF)
	wantFault(t, <-first, fault.Invalid, oci.CodeBlobUploadInvalid)
	if err := <-second; err != nil {
		t.Errorf("the second request: %v", err)
	}
	b.wantSize(u.ID, -1)
}

func TestCancel_HandsTheBytesToThePurgeQueue(t *testing.T) {
	b := open(t)
	u := b.start("")
	if _, err := b.Append(t.Context(), repo, u.ID, whole([]byte("hello"))); err != nil {
		t.Fatal(err)
	}
	if err := b.Cancel(t.Context(), repo, u.ID, "test"); err != nil {
		t.Fatal(err)
	}
	b.wantSize(u.ID, -1)
	st, err := b.store.Stats(t.Context())
	if err != nil || st.Purges != 1 || st.PurgeBytes != 5 {
		t.Errorf("purge queue: %+v, error %v; want one object of 5 bytes", st, err)
	}
}

func TestUnknownSessionIsNotFound(t *testing.T) {
	b := open(t)
	u := b.start("")
	for _, c := range []struct {
		repo oci.Name
		id   string
	}{{"other", u.ID}, {repo, "x"}, {repo, strings.ToUpper(u.ID) + "x"}, {repo, "urn:uuid:" + u.ID}, {repo, "00000000-0000-0000-0000-000000000000"}} {
		_, err := b.Status(t.Context(), c.repo, c.id)
		wantFault(t, err, fault.NotFound, oci.CodeBlobUploadUnknown)
		_, err = b.Append(t.Context(), c.repo, c.id, whole([]byte("x")))
		wantFault(t, err, fault.NotFound, oci.CodeBlobUploadUnknown)
		_, err = b.Finish(t.Context(), c.repo, c.id, digest.FromString("x"), whole([]byte("x")))
		wantFault(t, err, fault.NotFound, oci.CodeBlobUploadUnknown)
		wantFault(t, b.Cancel(t.Context(), c.repo, c.id, "test"), fault.NotFound, oci.CodeBlobUploadUnknown)
	}
}

func TestFinish_ADigestThatIsHereAlready(t *testing.T) {
	b := open(t)
	p := random(1000)
	d := digest.FromBytes(p)
	for range 2 {
		if _, err := b.Put(t.Context(), repo, d, whole(p)); err != nil {
			t.Fatal(err)
		}
	}
	b.wantBlob(d, p)
}

func BenchmarkPut(bench *testing.B) {
	for _, n := range []int{2 << 10, 64 << 20} {
		bench.Run(fmt.Sprintf("%dKiB", n>>10), func(bench *testing.B) {
			dir := bench.TempDir()
			files, err := fsblob.Open(dir, fsblob.Options{Reserve: -1, MinFree: -1})
			if err != nil {
				bench.Fatal(err)
			}
			store, err := meta.Open(bench.Context(), meta.Options{Path: filepath.Join(dir, "fairway.db")})
			if err != nil {
				bench.Fatal(err)
			}
			defer func() { _ = errors.Join(store.Close(), files.Close()) }()
			s := upload.New(store, files, upload.Options{})
			p := random(n)
			bench.SetBytes(int64(n))
			for i := 0; bench.Loop(); i++ {
				copy(p, fmt.Sprint(i, "."))
				if _, err := s.Put(bench.Context(), repo, digest.FromBytes(p), whole(p)); err != nil {
					bench.Fatal(err)
				}
			}
		})
	}
}

// TestR17_AChunkWhoseHeadersDisagreeIsRefusedBeforeItsBytes: nobody sends a gigabyte to
// learn that.
func TestR17_AChunkWhoseHeadersDisagreeIsRefusedBeforeItsBytes(t *testing.T) {
	b := open(t)
	u := b.start("")
	for name, c := range map[string]upload.Chunk{
		"two lengths":  {Length: 7, Ranged: true, First: 0, Last: 99},
		"wrong offset": {Length: 100, Ranged: true, First: 5, Last: 104},
	} {
		body := strings.NewReader(strings.Repeat("x", 100))
		c.Body = body
		if _, err := b.Append(t.Context(), u.Repo, u.ID, c); err == nil {
			t.Errorf("%s: Append succeeded", name)
		}
		if _, err := b.Finish(t.Context(), u.Repo, u.ID, digest.FromString("x"), c); err == nil {
			t.Errorf("%s: Finish succeeded", name)
		}
		if body.Len() != 100 {
			t.Errorf("%s: %d of 100 bytes were read", name, 100-body.Len())
		}
	}
}

// leaver is a body whose client leaves when all of it has come.
type leaver struct {
	io.Reader
	leave func()
}

func (l leaver) Read(p []byte) (int, error) {
	n, err := l.Reader.Read(p)
	if err != nil {
		l.leave()
	}
	return n, err
}

// TestR7_AWholeBlobWhoseClientLeavesIsThere: it need not be sent again.
func TestR7_AWholeBlobWhoseClientLeavesIsThere(t *testing.T) {
	b := open(t)
	for i := range 10 {
		p := random(1000 + i)
		for name, finish := range map[string]func(context.Context, upload.Chunk) error{
			"Finish": func(ctx context.Context, c upload.Chunk) error {
				_, err := b.Finish(ctx, repo, b.start("").ID, digest.FromBytes(p), c)
				return err
			},
			"Put": func(ctx context.Context, c upload.Chunk) error {
				_, err := b.Put(ctx, repo, digest.FromBytes(p), c)
				return err
			},
		} {
			ctx, leave := context.WithCancel(t.Context())
			c := whole(p)
			c.Body = leaver{bytes.NewReader(p), leave}
			if err := finish(ctx, c); err != nil || ctx.Err() == nil {
				t.Fatalf("%s: %v", name, err)
			}
			b.wantBlob(digest.FromBytes(p), p)
		}
	}
}
