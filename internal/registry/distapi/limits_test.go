package distapi

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
)

func manifestReader(budget int64) *Handler {
	return &Handler{manifests: semaphore.NewWeighted(budget), manifestWait: time.Millisecond}
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
