package upload

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"testing"
	"time"
)

// A stalled client keeps the large buffer that it has, but no other client from
// its upload.
func TestR17_StalledUploadsTakeABoundedNumberOfBuffers(t *testing.T) {
	s := &Sessions{large: newLargeBuffers(2), opts: Options{Touch: time.Hour}}
	stalled := make(chan error, 4)
	var clients []*io.PipeWriter
	for range cap(stalled) {
		r, w := io.Pipe()
		clients = append(clients, w)
		go func() {
			_, err := s.transfer(t.Context(), "", io.Discard, sha256.New(), r, -1)
			stalled <- err
		}()
		if _, err := w.Write(make([]byte, smallSize+1)); err != nil { // it returns when the last byte was read
			t.Fatal(err)
		}
	}
	if got := len(s.large.lent); got != 2 {
		t.Errorf("%d large buffers are lent, want 2", got)
	}
	want := bytes.Repeat([]byte("content "), 3<<20/8)
	var got bytes.Buffer
	h := sha256.New()
	n, err := s.transfer(t.Context(), "", &got, h, bytes.NewReader(want), int64(len(want)))
	if err != nil || n != int64(len(want)) || !bytes.Equal(got.Bytes(), want) || [32]byte(h.Sum(nil)) != sha256.Sum256(want) {
		t.Errorf("an upload beside stalled ones: %d bytes, error %v", n, err)
	}
	broken := errors.New("broken")
	for _, w := range clients {
		w.CloseWithError(broken)
		if err := <-stalled; !errors.Is(err, broken) {
			t.Error(err)
		}
	}
	if got := len(s.large.lent); got != 0 {
		t.Errorf("%d large buffers are lent when all is over", got)
	}
}

func TestTransfer_AnyLengthArrivesWhole(t *testing.T) {
	for _, size := range []int{0, 1, smallSize - 1, smallSize, smallSize + 1, bufferSize - 1, bufferSize, bufferSize + 1, smallSize + bufferSize, 5*bufferSize + 7} {
		for _, limit := range []int64{-1, int64(size)} {
			for _, large := range []int{0, 1, 9} {
				s := &Sessions{large: newLargeBuffers(large), opts: Options{Touch: time.Hour}}
				want := bytes.Repeat([]byte("0123456789abcde"), size/15+1)[:size]
				var got bytes.Buffer
				h := sha256.New()
				n, err := s.transfer(t.Context(), "", &got, h, bytes.NewReader(want), limit)
				if err != nil || n != int64(size) || !bytes.Equal(got.Bytes(), want) || [32]byte(h.Sum(nil)) != sha256.Sum256(want) || len(s.large.lent) != 0 {
					t.Errorf("%d bytes, limit %d, %d buffers: %d, %v; %d buffers lent", size, limit, large, n, err, len(s.large.lent))
				}
			}
		}
	}
}
