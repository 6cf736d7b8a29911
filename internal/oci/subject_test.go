package oci

import (
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

func TestTagSubject(t *testing.T) {
	hex := strings.Repeat("0123456789abcdef", 4)
	for tag, want := range map[string]string{
		"sha256-" + hex: "sha256:" + hex, "sha256-" + hex + ".sig": "sha256:" + hex, "sha256-" + hex + ".att": "sha256:" + hex,
		"sha512-" + hex + ".sbom": "sha512:" + hex,
		"sha256-" + hex + ".txt":  "", "sha256-" + hex + "0": "", "sha256-" + hex[1:]: "", "sha256-" + strings.ToUpper(hex): "",
		"sha1-" + hex: "", "latest": "", "sha256-": "", "": "", "sha256" + hex + ".sig": "",
	} {
		got, ok := Tag(tag).Subject()
		if got != want || ok != (want != "") {
			t.Errorf("tag %q belongs to %q, %v; want %q", tag, got, ok, want)
		}
	}
}

func TestSubjectTags(t *testing.T) {
	for _, d := range []Digest{digest.FromString("x"), digest.SHA512.FromString("x")} {
		tags, prefix := SubjectTags(d)
		if len(tags) != 4 || !strings.HasPrefix(string(d), prefix) {
			t.Errorf("tags of %s: %v, %q", d, tags, prefix)
		}
		for _, tag := range tags {
			if _, err := ParseTag(string(tag)); err != nil {
				t.Error(err)
			}
			if got, ok := tag.Subject(); !ok || got != prefix {
				t.Errorf("tag %s belongs to %q, want %q", tag, got, prefix)
			}
		}
	}
}
