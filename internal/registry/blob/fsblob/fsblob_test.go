package fsblob_test

import (
	"testing"

	"github.com/fairway-registry/fairway/internal/registry/blob"
	"github.com/fairway-registry/fairway/internal/registry/blob/blobtest"
	"github.com/fairway-registry/fairway/internal/registry/blob/fsblob"
)

func open(t testing.TB, dir string, o fsblob.Options) *fsblob.Store {
	t.Helper()
	s, err := fsblob.Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func TestConformance(t *testing.T) {
	blobtest.Run(t, func(t *testing.T) blob.Store {
		return open(t, t.TempDir(), fsblob.Options{Reserve: 1 << 20})
	})
}
