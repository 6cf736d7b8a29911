package oci

import (
	"encoding/json"
	"slices"
	"strings"
)

// Media types of Docker image manifest version 2, schema 1. Registries after
// Distribution 2 refuse them: the digest of such a manifest is computed over a
// part of its bytes.
const (
	MediaTypeDockerSchema1       = "application/vnd.docker.distribution.manifest.v1+json"
	MediaTypeDockerSchema1Signed = "application/vnd.docker.distribution.manifest.v1+prettyjws"
)

// IsSchema1 reports whether mediaType is a Docker schema 1 manifest.
func IsSchema1(mediaType string) bool {
	return mediaType == MediaTypeDockerSchema1 || mediaType == MediaTypeDockerSchema1Signed
}

// DetectType returns what the document itself says that it is: its mediaType
// field or else the type that its form implies, "" where it says nothing. The
// error is Invalid where readers may disagree about the answer.
func DetectType(content []byte) (string, error) {
	said, err := detect(content)
	return said.first(), err
}

// saying is what a document says of its own type.
type saying struct {
	declared string   // the mediaType field
	implied  []string // the types that its form allows, the likeliest first
}

func (s saying) first() string {
	switch {
	case s.declared != "":
		return s.declared
	case len(s.implied) > 0:
		return s.implied[0]
	}
	return ""
}

// detect reads the keys at the top of a document. Content that is not one JSON
// object says nothing. It does not depend on the values of other fields: a
// mistake in one of them must not hide what the document is.
func detect(content []byte) (s saying, err error) {
	var top map[string]json.RawMessage
	if json.Unmarshal(content, &top) != nil || top == nil {
		return s, nil
	}
	if err := checkTypeKey(content); err != nil {
		return s, err
	}
	if raw, ok := top["mediaType"]; ok {
		if err := json.Unmarshal(raw, &s.declared); err != nil {
			return s, jsonErrorIn("mediaType", err)
		}
		for _, known := range knownTypes {
			if s.declared != known && strings.EqualFold(s.declared, known) {
				return s, manifestError("its mediaType %q must be written %q", s.declared, known)
			}
		}
	}
	if s.declared == "" {
		s.implied = implied(top)
	}
	return s, nil
}

var knownTypes = []string{MediaTypeImage, MediaTypeIndex, MediaTypeDockerImage, MediaTypeDockerList, MediaTypeDockerSchema1, MediaTypeDockerSchema1Signed}

// implied lists the types that a document without a mediaType may have by its form.
func implied(top map[string]json.RawMessage) []string {
	has := func(key string) bool {
		v, ok := top[key]
		return ok && string(v) != "null"
	}
	var version float64 // 2.0 is the same number as 2 to other readers
	if json.Unmarshal(top["schemaVersion"], &version) != nil {
		return nil
	}
	switch {
	case version == 2 && has("manifests"):
		return []string{MediaTypeIndex, MediaTypeDockerList}
	case version == 2 && has("config"):
		return []string{MediaTypeImage, MediaTypeDockerImage}
	case version == 1 && has("fsLayers") && has("signatures"):
		return []string{MediaTypeDockerSchema1Signed, MediaTypeDockerSchema1}
	case version == 1 && has("fsLayers"):
		return []string{MediaTypeDockerSchema1, MediaTypeDockerSchema1Signed}
	}
	return nil
}

// settleType returns the type of a document that came with contentType, which
// is "" where the sender gave none.
func settleType(contentType string, content []byte) (string, error) {
	said, err := detect(content)
	if err != nil {
		return "", err
	}
	contentType, _, _ = strings.Cut(contentType, ";")
	contentType = strings.TrimSpace(contentType)
	switch {
	case contentType == "" && said.first() == "":
		return "", manifestError("neither a Content-Type header nor a mediaType field says what it is")
	case contentType == "":
		contentType = said.first()
	case said.declared != "":
		if !strings.EqualFold(said.declared, contentType) {
			return "", manifestError("its mediaType is %.128q, but the Content-Type header says %.128q", said.declared, contentType)
		}
		contentType = said.declared
	}
	if !isMediaType(contentType) {
		return "", manifestError("%.64q is not a media type", contentType)
	}
	for _, known := range knownTypes { // media types have no case (RFC 6838 §4.2)
		if strings.EqualFold(contentType, known) {
			contentType = known
		}
	}
	switch {
	case said.declared != "" || isStrict(contentType):
		return contentType, nil
	case len(said.implied) > 0 && !slices.Contains(said.implied, contentType):
		return "", manifestError("it has the form of %s, but the Content-Type header says %.128q", said.implied[0], contentType)
	case isForm(contentType):
		return "", manifestError("the Content-Type header says %q, which is what some HTTP clients send by default; name the manifest's media type", contentType)
	}
	return contentType, nil
}

func isForm(mediaType string) bool {
	return strings.EqualFold(mediaType, "application/x-www-form-urlencoded") || strings.EqualFold(mediaType, "multipart/form-data")
}

// isMediaType checks that s can be sent as a Content-Type again: two tokens of
// RFC 9110 §5.6.2 around a slash, and not too long.
func isMediaType(s string) bool {
	const mediaTypeMax = 255 // RFC 6838 §4.2 allows 127 on either side of the slash
	kind, sub, ok := strings.Cut(s, "/")
	return ok && len(s) <= mediaTypeMax && isToken(kind) && isToken(sub)
}

func isToken(s string) bool {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c <= ' ' || c >= 0x7f || strings.IndexByte(`"(),/:;<=>?@[\]{}`, c) >= 0 {
			return false
		}
	}
	return s != ""
}
