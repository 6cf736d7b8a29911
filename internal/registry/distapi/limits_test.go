package distapi

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/blob"
)

func manifestReader(budget int64) *Handler {
	return &Handler{manifests: semaphore.NewWeighted(budget), manifestWait: time.Millisecond, spool: systemTemp}
}

func putOf(body io.Reader, length int64) *http.Request {
	r := httptest.NewRequestWithContext(context.Background(), http.MethodPut, "/", body)
	r.ContentLength = length
	return r
}

// first reports the size of the buffer that a body is first read into.
type first struct{ got *int }

func (f first) Read(p []byte) (int, error) {
	*f.got = len(p)
	return 0, errors.New("broken")
}

func TestR16_StatedLengthOfAManifestReservesNothing(t *testing.T) {
	for _, length := range []int64{oci.ManifestMax, -1} {
		var got int
		_, release, err := manifestReader(0).readManifest(putOf(first{&got}, length))
		release()
		if err == nil || got == 0 || got > manifestSmall {
			t.Errorf("a stated length of %d: a buffer of %d bytes, error %v", length, got, err)
		}
	}
}

func TestR17_LargeManifestsShareABudget(t *testing.T) {
	h := manifestReader(512 << 10)
	large := bytes.Repeat([]byte("x"), 300<<10)
	for _, length := range []int64{int64(len(large)), -1} {
		content, release, err := h.readManifest(putOf(bytes.NewReader(large), length))
		if err != nil || !bytes.Equal(content, large) {
			t.Fatalf("%d bytes, error %v", len(content), err)
		}
		_, again, err := h.readManifest(putOf(bytes.NewReader(large), length))
		again()
		if !errors.Is(err, fault.Busy) {
			t.Errorf("a manifest beyond the budget: %v, want Busy", err)
		}
		small, done, err := h.readManifest(putOf(bytes.NewReader(large[:manifestSmall]), manifestSmall))
		done()
		if err != nil || len(small) != manifestSmall {
			t.Errorf("a small manifest beside it: %d bytes, error %v", len(small), err)
		}
		release()
	}
	if !h.manifests.TryAcquire(512 << 10) {
		t.Error("the budget was not given back")
	}
}

// TestR17_SlowClientsDoNotHoldTheBudgetOfLargeManifests: whatever the pace of clients, the
// memory of large manifests is for those that have come.
func TestR17_SlowClientsDoNotHoldTheBudgetOfLargeManifests(t *testing.T) {
	h := manifestReader(manifestBudget)
	var files []*os.File
	h.spool = func() (*os.File, error) {
		f, err := systemTemp()
		files = append(files, f)
		return f, err
	}
	large := bytes.Repeat([]byte("x"), oci.ManifestMax)
	const clients = 2 * manifestBudget / oci.ManifestMax
	var bodies []*io.PipeWriter
	ended := make(chan error, clients)
	for range clients {
		body, w := io.Pipe()
		bodies = append(bodies, w)
		go func() {
			_, release, err := h.readManifest(putOf(body, oci.ManifestMax))
			release()
			ended <- err
		}()
		if _, err := w.Write(large[:len(large)-1]); err != nil { // returns when it is taken
			t.Fatal(err)
		}
	}
	content, release, err := h.readManifest(putOf(bytes.NewReader(large), oci.ManifestMax))
	if err != nil || !bytes.Equal(content, large) {
		t.Errorf("a large manifest beside them: %d bytes, error %v", len(content), err)
	}
	release()
	if !h.manifests.TryAcquire(manifestBudget) {
		t.Error("they hold a part of the budget")
	}
	for _, w := range bodies {
		_ = w.CloseWithError(errors.New("gone"))
		if err := <-ended; !errors.Is(err, fault.Invalid) {
			t.Errorf("a client that leaves: %v", err)
		}
	}
	for _, f := range files {
		if err := f.Close(); !errors.Is(err, os.ErrClosed) {
			t.Fatalf("its file is not closed: %v", err)
		}
	}
}

// TestR7_ALargeManifestOnAFullDiskIsRefusedAsSuch: and one that is small is not affected.
func TestR7_ALargeManifestOnAFullDiskIsRefusedAsSuch(t *testing.T) {
	h := manifestReader(manifestBudget)
	body := bytes.Repeat([]byte("x"), manifestSmall+1)
	for _, full := range []error{blob.ErrFull, &os.PathError{Op: "open", Err: syscall.ENOSPC}, syscall.EDQUOT} {
		h.spool = func() (*os.File, error) { return nil, full }
		_, release, err := h.readManifest(putOf(bytes.NewReader(body), -1))
		release()
		if !errors.Is(err, fault.Full) || fault.Public(err).Code != oci.CodeStorageFull {
			t.Errorf("%v: %v", full, err)
		}
		if _, _, err := h.readManifest(putOf(bytes.NewReader(body[:manifestSmall-1]), -1)); err != nil {
			t.Errorf("a small manifest: %v", err)
		}
	}
	h.spool = func() (*os.File, error) { return os.Open(os.DevNull) } // takes no writes
	if _, _, err := h.readManifest(putOf(bytes.NewReader(body), -1)); err == nil || errors.Is(err, fault.Full) || errors.Is(err, fault.Invalid) {
		t.Errorf("a file that cannot be written: %v", err)
	}
}

func TestReadManifest_AnyLengthUpToTheLargest(t *testing.T) {
	h := manifestReader(manifestBudget)
	most := bytes.Repeat([]byte("0123456789abcde"), oci.ManifestMax/15+1)[:oci.ManifestMax]
	for _, size := range []int{0, 1, 4 << 10, 4<<10 + 1, manifestSmall, manifestSmall + 1, oci.ManifestMax - 1, oci.ManifestMax} {
		for _, length := range []int64{int64(size), -1} {
			content, release, err := h.readManifest(putOf(bytes.NewReader(most[:size]), length))
			if err != nil || !bytes.Equal(content, most[:size]) {
				t.Errorf("%d bytes, stated %d: %d bytes, error %v", size, length, len(content), err)
			}
			release()
		}
	}
	for _, c := range []struct{ size, length int64 }{{oci.ManifestMax + 1, -1}, {oci.ManifestMax + 1, oci.ManifestMax + 1}, {3, 4}} {
		_, release, err := h.readManifest(putOf(io.LimitReader(bytes.NewReader(append(most, 'x')), c.size), c.length))
		release()
		if err == nil {
			t.Errorf("%d bytes, stated %d: accepted", c.size, c.length)
		}
	}
	if !h.manifests.TryAcquire(manifestBudget) {
		t.Error("the budget was not given back")
	}
}
