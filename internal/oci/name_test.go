package oci

import (
	"errors"
	"regexp"
	"strings"
	"testing"

	"github.com/fairway-registry/fairway/internal/fault"
)

// The grammars as the specification prints them (dist-spec v1.1 §Pulling manifests).
var (
	specName   = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)
	specTag    = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
	specDigest = regexp.MustCompile(`^(sha256:[a-f0-9]{64}|sha512:[a-f0-9]{128})$`)
)

var (
	hex64  = strings.Repeat("0123456789abcdef", 4)
	hex128 = hex64 + hex64
)

// wantInvalid fails the test unless err is Invalid, with the code, and has a
// text that a client may read.
func wantInvalid(t *testing.T, err error, code string) {
	t.Helper()
	var e *fault.Error
	if !errors.As(err, &e) || e.Kind != fault.Invalid || e.Code != code || e.Public == "" {
		t.Errorf("error is %#v, want Invalid with code %s and a text", err, code)
	} else if len(e.Public) > 1000 {
		t.Errorf("the public text has %d bytes", len(e.Public))
	}
}

func nameSeeds() []string {
	return []string{"", "a", "a/b", "library/busy-box", "a.b_c__d---e/f", "a___b", "a..b", "a.", ".a", "a//b", "/a", "a/", "A", "ä", "a b", "a\x00", "a:b",
		"_catalog", "a_-b", "a-_b", "a._b", "a/-b", "a/b-", strings.Repeat("a", 255), strings.Repeat("a", 256), strings.Repeat("a/", 127) + "b", "\xff"}
}

func TestSpec_PullingManifests_Names(t *testing.T) {
	for _, s := range nameSeeds() {
		checkName(t, s)
	}
}

func checkName(t *testing.T, s string) {
	t.Helper()
	want := specName.MatchString(s) && len(s) <= NameMax
	n, err := ParseName(s)
	if (err == nil) != want {
		t.Fatalf("ParseName(%q): error %v, want accepted: %v", s, err, want)
	}
	if err != nil {
		wantInvalid(t, err, CodeNameInvalid)
	} else if string(n) != s {
		t.Errorf("ParseName(%q) = %q", s, n)
	}
}

func FuzzParseName(f *testing.F) {
	for _, s := range nameSeeds() {
		f.Add(s)
	}
	f.Fuzz(checkName)
}

func tagSeeds() []string {
	return []string{"", "latest", "v1.2.3", "_x", "-x", ".x", "a b", "a:b", "ü", "A_b.c-d", strings.Repeat("x", 128), strings.Repeat("x", 129), "a\n", "a/b", "\xff"}
}

func TestSpec_PullingManifests_Tags(t *testing.T) {
	for _, s := range tagSeeds() {
		checkTag(t, s)
	}
}

func checkTag(t *testing.T, s string) {
	t.Helper()
	// In Go $ matches at the end of the text only.
	want := specTag.MatchString(s)
	tag, err := ParseTag(s)
	if (err == nil) != want {
		t.Fatalf("ParseTag(%q): error %v, want accepted: %v", s, err, want)
	}
	if err != nil {
		wantInvalid(t, err, CodeTagInvalid)
	} else if string(tag) != s {
		t.Errorf("ParseTag(%q) = %q", s, tag)
	}
}

func FuzzParseTag(f *testing.F) {
	for _, s := range tagSeeds() {
		f.Add(s)
	}
	f.Fuzz(checkTag)
}

func digestSeeds() []string {
	return []string{"", "sha256:" + hex64, "sha512:" + hex128, "sha256:" + hex128, "sha512:" + hex64, "sha256:", "sha256", ":", "md5:" + hex64[:32],
		"sha384:" + hex64 + hex64[:32], "SHA256:" + hex64, "sha256:" + strings.ToUpper(hex64), "sha256:" + hex64[:63] + "g", "sha256:" + hex64 + " ", "sha256:" + hex64[:63] + ":", "a+b:c", strings.Repeat("x", 500)}
}

func TestSpec_Digests(t *testing.T) {
	for _, s := range digestSeeds() {
		checkDigest(t, s)
	}
}

func checkDigest(t *testing.T, s string) {
	t.Helper()
	want := specDigest.MatchString(s)
	d, err := ParseDigest(s)
	if (err == nil) != want {
		t.Fatalf("ParseDigest(%q): error %v, want accepted: %v", s, err, want)
	}
	if err != nil {
		wantInvalid(t, err, CodeDigestInvalid)
		return
	}
	if string(d) != s {
		t.Errorf("ParseDigest(%q) = %q", s, d)
	}
	if err := d.Validate(); err != nil { // go-digest must be able to work with it
		t.Errorf("%q does not validate: %v", s, err)
	}
}

func FuzzParseDigest(f *testing.F) {
	for _, s := range digestSeeds() {
		f.Add(s)
	}
	f.Fuzz(checkDigest)
}

func TestSpec_ReferenceIsATagOrADigest(t *testing.T) {
	for _, s := range append(tagSeeds(), digestSeeds()...) {
		checkReference(t, s)
	}
}

func checkReference(t *testing.T, s string) {
	t.Helper()
	ref, err := ParseReference(s)
	isTag, isDigest := specTag.MatchString(s), specDigest.MatchString(s)
	switch {
	case err != nil && (isTag || isDigest):
		t.Errorf("ParseReference(%q): %v", s, err)
	case err != nil:
		if !errors.Is(err, fault.Invalid) {
			t.Errorf("ParseReference(%q): error %v is not Invalid", s, err)
		}
	case (ref.Tag != "") != isTag, (ref.Digest != "") != isDigest, ref.String() != s:
		t.Errorf("ParseReference(%q) = %+v; tag %v, digest %v", s, ref, isTag, isDigest)
	}
}

func FuzzParseReference(f *testing.F) {
	for _, s := range append(tagSeeds(), digestSeeds()...) {
		f.Add(s)
	}
	f.Fuzz(checkReference)
}
