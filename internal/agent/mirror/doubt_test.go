package mirror

import (
	"context"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fairway-registry/fairway/internal/agent/index"
	"github.com/fairway-registry/fairway/internal/oci"
)

// TestR12_WhatCannotBeLookedUpIsPrivate: an index that fails gives nothing away.
func TestR12_WhatCannotBeLookedUpIsPrivate(t *testing.T) {
	x, err := index.Open(t.Context(), index.Options{Path: filepath.Join(t.TempDir(), "index.db")})
	if err != nil {
		t.Fatal(err)
	}
	m := &Mirror{o: Options{Index: x}}
	d := oci.Digest("sha256:" + strings.Repeat("0", 64))
	if m.isPrivate(t.Context(), d) {
		t.Error("what is not here is private")
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := x.Close(); err != nil {
		t.Fatal(err)
	}
	if !m.isPrivate(ended, d) {
		t.Error("what cannot be looked up is everybody's")
	}
}
