package oci

import "strings"

// subjectHex is how much of a digest's hexadecimal form the tag of its referrers
// has. A SHA-512 is cut short there (dist-spec v1.1 §Referrers Tag Schema).
const subjectHex = 64

// subjectSuffixes are what follows the digest in a tag: nothing in the fallback
// tag of an index of referrers, the others by the convention of cosign.
var subjectSuffixes = []string{"", ".sig", ".att", ".sbom"}

// Subject returns the beginning of the digest that t belongs to by its name, as
// sha256-….sig does: all of a SHA-256, and the first 64 digits of a SHA-512.
func (t Tag) Subject() (prefix string, ok bool) {
	algorithm, rest, _ := strings.Cut(string(t), "-")
	if algorithm != "sha256" && algorithm != "sha512" || len(rest) < subjectHex {
		return "", false
	}
	hex, suffix := rest[:subjectHex], rest[subjectHex:]
	if strings.Trim(hex, "0123456789abcdef") != "" {
		return "", false
	}
	for _, s := range subjectSuffixes {
		if suffix == s {
			return algorithm + ":" + hex, true
		}
	}
	return "", false
}

// SubjectTags returns the tags that belong to d by their names, and what
// Tag.Subject returns of each.
func SubjectTags(d Digest) (tags []Tag, prefix string) {
	hex := d.Encoded()
	hex = hex[:min(subjectHex, len(hex))]
	for _, s := range subjectSuffixes {
		tags = append(tags, Tag(string(d.Algorithm())+"-"+hex+s))
	}
	return tags, string(d.Algorithm()) + ":" + hex
}
