package piece_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"testing"

	"github.com/fairway-registry/fairway/internal/agent/piece"
)

// TestR12_WhoeverWasRefusedReadsNothingThatComesAfterwards looks at readers that
// come to it only when the next download is done.
func TestR12_WhoeverWasRefusedReadsNothingThatComesAfterwards(t *testing.T) {
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
	refusal := errors.New("refused")
	theirs.Refused(refusal)
	release, ok := others.Filling()
	if !ok {
		t.Fatal("the next download cannot begin")
	}
	others.Attend()
	write(t, others, all, 0, 1)
	release()
	if err := theirs.Wait(t.Context(), 0); !errors.Is(err, refusal) {
		t.Errorf("waiting for the first piece: %v, want %v", err, refusal)
	}
	r := theirs.NewReader(t.Context(), 0, -1)
	defer r.Close()
	var got bytes.Buffer
	if _, err := io.Copy(&got, r); !errors.Is(err, refusal) || got.Len() > 0 {
		t.Errorf("whoever was refused reads %d bytes, %v", got.Len(), err)
	}
	file, err := os.Create(t.TempDir() + "/out") // takes parts of a file
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if n, err := r.(io.WriterTo).WriteTo(file); !errors.Is(err, refusal) || n > 0 {
		t.Errorf("whoever was refused is sent %d bytes, %v", n, err)
	}
	right := others.NewReader(t.Context(), 0, -1)
	defer right.Close()
	got.Reset()
	if _, err := io.Copy(&got, right); err != nil || !bytes.Equal(got.Bytes(), all) {
		t.Errorf("who came afterwards reads %d bytes, %v", got.Len(), err)
	}
}
