package piece_test

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/fairway-registry/fairway/internal/agent/piece"
)

// TestR12_WhoseDownloadFailedReadsNothingPrivateThatAnotherBrings looks at
// readers that come to it only when the next download is done.
func TestR12_WhoseDownloadFailedReadsNothingPrivateThatAnotherBrings(t *testing.T) {
	for name, private := range map[string]bool{"private": true, "public": false} {
		t.Run(name, func(t *testing.T) {
			c := open(t, piece.Options{})
			all, d := content(1, piece.Size+1000)
			theirs := create(t, c, d, len(all))
			defer theirs.Close()
			theirs.Attend()
			others, err := c.Open(t.Context(), d)
			if err != nil {
				t.Fatal(err)
			}
			defer others.Close()
			if private {
				if err := others.MarkPrivate(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			refusal := errors.New("refused")
			theirs.Failed(refusal)
			release, ok := others.Filling()
			if !ok {
				t.Fatal("the next download cannot begin")
			}
			others.Attend()
			write(t, others, all, 0, 1)
			release()
			right := others.NewReader(t.Context(), 0, -1)
			defer right.Close()
			var got bytes.Buffer
			if _, err := io.Copy(&got, right); err != nil || !bytes.Equal(got.Bytes(), all) {
				t.Errorf("who came afterwards reads %d bytes, %v", got.Len(), err)
			}
			want, n := error(nil), len(all)
			if private {
				want, n = refusal, 0
			}
			if err := theirs.Wait(t.Context(), 0); !errors.Is(err, want) {
				t.Errorf("waiting for the first piece: %v, want %v", err, want)
			}
			if err := theirs.Barred(); !errors.Is(err, want) {
				t.Errorf("barred: %v, want %v", err, want)
			}
			// Piece by piece, and by parts of the file.
			for _, dst := range []io.Writer{struct{ io.Writer }{new(bytes.Buffer)}, new(bytes.Buffer)} {
				r := theirs.NewReader(t.Context(), 0, -1)
				if m, err := io.Copy(dst, r); !errors.Is(err, want) || m != int64(n) {
					t.Errorf("%T: whose download failed reads %d bytes, %v; want %d, %v", dst, m, err, n, want)
				}
				_ = r.Close()
			}
		})
	}
}
