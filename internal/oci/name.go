package oci

import (
	_ "crypto/sha256" // the digest algorithms that a registry must know
	_ "crypto/sha512"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/fault"
)

// Digest is a content digest in its canonical form, algorithm:hex.
type Digest = digest.Digest

// Name is a repository name that has passed ParseName.
type Name string

// Tag is a tag that has passed ParseTag.
type Tag string

// Reference is what follows /manifests/ in a URL: a tag or a digest, never both.
type Reference struct {
	Tag    Tag
	Digest Digest
}

// String returns the tag or the digest.
func (r Reference) String() string {
	if r.Digest != "" {
		return string(r.Digest)
	}
	return string(r.Tag)
}

// NameMax and TagMax bound names and tags in bytes. 255 is the limit that
// clients share (dist-spec v1.1 §Pulling manifests, implementers note).
const (
	NameMax = 255
	TagMax  = 128
)

// ParseName checks s against the grammar of dist-spec v1.1 §Pulling manifests:
// path components of [a-z0-9]+ joined by ".", "_", "__" or any number of "-",
// and separated by "/".
func ParseName(s string) (Name, error) {
	if len(s) > NameMax {
		return "", nameError(s[:32]+"…", "it is longer than 255 bytes")
	}
	if s == "" {
		return "", nameError(s, "it is empty")
	}
	alnum := false // the byte before is a letter or digit
	for i := 0; i < len(s); {
		c := s[i]
		switch {
		case 'a' <= c && c <= 'z' || '0' <= c && c <= '9':
			alnum = true
			i++
			continue
		case !alnum:
			return "", nameError(s, "each part must begin and end with a lower-case letter or a digit")
		case c == '-':
			for i < len(s) && s[i] == '-' {
				i++
			}
		case c == '_':
			i++
			if i < len(s) && s[i] == '_' {
				i++
			}
		case c == '.' || c == '/':
			i++
		default:
			return "", nameError(s, "only lower-case letters, digits, '.', '_', '-' and '/' are allowed")
		}
		alnum = false
	}
	if !alnum {
		return "", nameError(s, "each part must begin and end with a lower-case letter or a digit")
	}
	return Name(s), nil
}

func nameError(s, why string) error {
	return fault.New(fault.Invalid, "invalid repository name %q: %s", s, why).WithCode(CodeNameInvalid)
}

// ParseTag checks s against [a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}.
func ParseTag(s string) (Tag, error) {
	if s == "" || len(s) > TagMax {
		return "", tagError(s, "a tag has 1 to 128 characters")
	}
	for i := 0; i < len(s); i++ {
		c := s[i]
		word := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_'
		if !word && (i == 0 || c != '.' && c != '-') {
			return "", tagError(s, "a tag has letters, digits, '_', '.' and '-', and does not begin with '.' or '-'")
		}
	}
	return Tag(s), nil
}

func tagError(s, why string) error {
	if len(s) > 64 {
		s = s[:64] + "…"
	}
	return fault.New(fault.Invalid, "invalid tag %q: %s", s, why).WithCode(CodeTagInvalid)
}

// ParseDigest checks s: a registered algorithm that is supported here (sha256
// or sha512) and lower-case hex of its length.
func ParseDigest(s string) (Digest, error) {
	alg, hex, ok := strings.Cut(s, ":")
	want := 0
	switch alg {
	case "sha256":
		want = 64
	case "sha512":
		want = 128
	}
	if !ok || want == 0 {
		return "", digestError(s, "want sha256:<64 hex digits> or sha512:<128 hex digits>")
	}
	if len(hex) != want {
		return "", digestError(s, "its hex part has the wrong length")
	}
	for i := 0; i < len(hex); i++ {
		if c := hex[i]; !('0' <= c && c <= '9' || 'a' <= c && c <= 'f') {
			return "", digestError(s, "its hex part must be lower-case hex digits")
		}
	}
	return Digest(s), nil
}

func digestError(s, why string) error {
	if len(s) > 140 {
		s = s[:140] + "…"
	}
	return fault.New(fault.Invalid, "invalid digest %q: %s", s, why).WithCode(CodeDigestInvalid)
}

// ParseReference reads a tag or a digest. Anything with a ':' is meant as a digest.
func ParseReference(s string) (Reference, error) {
	if strings.IndexByte(s, ':') >= 0 {
		d, err := ParseDigest(s)
		return Reference{Digest: d}, err
	}
	t, err := ParseTag(s)
	return Reference{Tag: t}, err
}
