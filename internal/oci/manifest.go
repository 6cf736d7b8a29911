package oci

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/fairway-registry/fairway/internal/fault"
)

// Media types that decide how a manifest is read. Any other type is kept byte
// for byte and read leniently.
const (
	MediaTypeImage       = v1.MediaTypeImageManifest
	MediaTypeIndex       = v1.MediaTypeImageIndex
	MediaTypeDockerImage = "application/vnd.docker.distribution.manifest.v2+json"
	MediaTypeDockerList  = "application/vnd.docker.distribution.manifest.list.v2+json"
)

// ManifestMax is the largest manifest accepted, in bytes (dist-spec v1.1 §Pushing Manifests).
const ManifestMax = 4 << 20

// SizeMax bounds what a manifest may state as the size of one of its descriptors,
// and as the sum of them, in bytes. A size is a claim; sums of many such claims
// stay far below what an int64 holds.
const SizeMax int64 = 1 << 44

// Descriptor is one reference out of a manifest.
type Descriptor struct {
	MediaType string
	Digest    Digest
	Size      int64 // bytes, as the manifest claims, at most SizeMax; 0 where it does not say (Docker schema 1)
	// Optional descriptors bind what exists in the repository and may be
	// missing: foreign layers, and all references of a type not known here.
	Optional bool
	// Exact descriptors state the size of what they name. One of a type not known
	// here may mean anything by its size.
	Exact bool
}

// Manifest is what the registry needs to know of a manifest's bytes.
type Manifest struct {
	MediaType    string
	ArtifactType string            // of the manifest, or else of its config (dist-spec v1.1 §Listing Referrers)
	Blobs        []Descriptor      // config and layers, each digest once
	Children     []Descriptor      // manifests of an index, each digest once; they may be missing
	Subject      Digest            // "" where there is none
	Annotations  map[string]string // as in the manifest
	Mentions     []Digest          // all digests in a manifest of a type not known here
}

type document struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     string            `json:"mediaType"`
	ArtifactType  string            `json:"artifactType"`
	Config        *rawDescriptor    `json:"config"`
	Layers        []rawDescriptor   `json:"layers"`
	Blobs         []rawDescriptor   `json:"blobs"` // artifact manifests before image-spec v1.1
	Manifests     []rawDescriptor   `json:"manifests"`
	Subject       *rawDescriptor    `json:"subject"`
	Annotations   map[string]string `json:"annotations"`
	FSLayers      []struct {
		BlobSum string `json:"blobSum"`
	} `json:"fsLayers"` // Docker schema 1
}

type rawDescriptor struct {
	MediaType string   `json:"mediaType"`
	Digest    string   `json:"digest"`
	Size      int64    `json:"size"`
	URLs      []string `json:"urls"`
}

// ParseManifest reads content, which a client sent with contentType (its
// parameters are ignored; "" where it sent none). The content decides what it
// is: a contentType that contradicts its mediaType field or its form is refused.
// Only where it says nothing of itself contentType decides.
// Errors are Invalid with the code MANIFEST_INVALID.
func ParseManifest(contentType string, content []byte) (Manifest, error) {
	if len(content) > ManifestMax {
		return Manifest{}, manifestError("it has %d bytes, more than the %d allowed", len(content), ManifestMax)
	}
	contentType, err := settleType(contentType, content)
	if err != nil {
		return Manifest{}, err
	}
	var doc document
	jsonErr := json.Unmarshal(content, &doc)
	strict := isStrict(contentType)
	if strict {
		if jsonErr != nil {
			return Manifest{}, jsonError(jsonErr)
		}
		if err := checkKeys(content); err != nil {
			return Manifest{}, err
		}
		if doc.SchemaVersion != 2 {
			return Manifest{}, manifestError("its schemaVersion is %d, want 2", doc.SchemaVersion)
		}
	} else if jsonErr != nil {
		doc = document{} // opaque bytes, kept as they are
	}

	m := Manifest{MediaType: contentType, ArtifactType: doc.ArtifactType, Annotations: doc.Annotations}
	if err := m.collect(&doc, strict); err != nil {
		return Manifest{}, err
	}
	if !strict {
		m.Mentions = mentions(content)
	}
	return m, nil
}

// ReadManifest is ParseManifest for what a registry serves: a Content-Type that
// contradicts the content is the registry's mistake, and counts for nothing.
func ReadManifest(contentType string, content []byte) (Manifest, error) {
	if said, err := DetectType(content); err == nil && said != "" {
		contentType = ""
	}
	return ParseManifest(contentType, content)
}

// Salvage is what a document names that ReadManifest refuses. It has no type, and
// what it says of itself and of sizes is not to be believed.
func Salvage(content []byte) Manifest {
	if len(content) > ManifestMax {
		return Manifest{}
	}
	m := Manifest{Mentions: mentions(content)}
	var doc document
	if json.Unmarshal(content, &doc) != nil {
		return m
	}
	_ = m.collect(&doc, false) // refuses nothing that is not strict
	return m
}

// mentions finds the digests in content, whatever its form, each once.
func mentions(content []byte) (found []Digest) {
	seen := map[Digest]bool{}
	for _, alg := range []string{"sha256:", "sha512:"} {
		for rest := content; ; {
			i := bytes.Index(rest, []byte(alg))
			if i < 0 {
				break
			}
			rest = rest[i:]
			n := len(alg)
			for n < len(rest) && (rest[n] >= '0' && rest[n] <= '9' || rest[n] >= 'a' && rest[n] <= 'f') {
				n++
			}
			if d, err := ParseDigest(string(rest[:min(n, 256)])); err == nil && !seen[d] {
				seen[d] = true
				found = append(found, d)
			}
			rest = rest[n:]
		}
	}
	return found
}

func isStrict(mediaType string) bool {
	switch mediaType {
	case MediaTypeImage, MediaTypeIndex, MediaTypeDockerImage, MediaTypeDockerList:
		return true
	}
	return false
}

// IsIndex reports whether mediaType is an OCI index or a Docker manifest list.
func IsIndex(mediaType string) bool {
	return mediaType == MediaTypeIndex || mediaType == MediaTypeDockerList
}

func (m *Manifest) collect(doc *document, strict bool) error {
	image := m.MediaType == MediaTypeImage || m.MediaType == MediaTypeDockerImage
	index := IsIndex(m.MediaType)
	if image && doc.Config == nil {
		return manifestError("it has no config")
	}
	if index && (doc.Config != nil || doc.Layers != nil) {
		return manifestError("an index has neither config nor layers")
	}
	if image && doc.Manifests != nil {
		return manifestError("an image manifest has no manifests")
	}

	blobs := newCollector(strict)
	if doc.Config != nil {
		blobs.add(fieldConfig, *doc.Config)
		if m.ArtifactType == "" && !index {
			m.ArtifactType = doc.Config.MediaType
		}
	}
	for i, l := range doc.Layers {
		blobs.add(fmt.Sprintf("layers[%d]", i), l)
	}
	for i, l := range doc.Blobs {
		blobs.add(fmt.Sprintf("blobs[%d]", i), l)
	}
	for _, l := range doc.FSLayers {
		blobs.add("fsLayers", rawDescriptor{Digest: l.BlobSum})
	}
	children := newCollector(strict)
	for i, c := range doc.Manifests {
		children.add(fmt.Sprintf("manifests[%d]", i), c)
	}
	if err := errorsOf(blobs, children); err != nil {
		return err
	}
	m.Blobs, m.Children = blobs.out, children.out

	subject := newCollector(strict)
	if doc.Subject != nil {
		subject.add("subject", *doc.Subject)
	}
	if subject.err != nil {
		return subject.err
	}
	for _, s := range subject.out {
		m.Subject = s.Digest
	}
	if total := blobs.total + children.total + subject.total; strict && total > SizeMax {
		return manifestError("the sizes that it states add up to %d bytes, more than the %d allowed", total, SizeMax)
	}
	return nil
}

// collector gathers descriptors, each digest once.
type collector struct {
	strict bool
	seen   map[Digest]int // digest → index in out
	out    []Descriptor
	total  int64 // of the sizes in out; bounded as ManifestMax bounds their number
	err    error
}

func newCollector(strict bool) *collector {
	return &collector{strict: strict, seen: map[Digest]int{}}
}

func (c *collector) add(field string, d rawDescriptor) {
	dg, err := ParseDigest(d.Digest)
	switch {
	case c.err != nil:
		return
	case err != nil && !c.strict:
		return
	case err != nil:
		c.err = manifestError("%s: %w", field, err)
		return
	case d.Size < 0 && c.strict:
		c.err = manifestError("%s: its size is negative", field)
		return
	case d.Size > SizeMax && c.strict:
		c.err = manifestError("%s: its size is %d bytes, more than the %d allowed", field, d.Size, SizeMax)
		return
	case d.Size < 0 || d.Size > SizeMax:
		d.Size = 0 // the document is of a type not known here: what its field says may be anything
	}
	optional := !c.strict || field != fieldConfig && isForeign(d.MediaType)
	if i, ok := c.seen[dg]; ok {
		c.out[i].Optional = c.out[i].Optional && optional // whoever needs it here decides
		if c.strict && c.out[i].Size != d.Size {
			c.err = manifestError("%s: %s is named twice, with sizes %d and %d", field, dg, c.out[i].Size, d.Size)
		}
		return
	}
	c.seen[dg] = len(c.out)
	c.total += d.Size
	c.out = append(c.out, Descriptor{MediaType: d.MediaType, Digest: dg, Size: d.Size, Optional: optional, Exact: c.strict})
}

// isForeign reports a layer that lives at the URLs it names and not
// necessarily here (image-spec v1.1 §Non-Distributable Layers; Docker schema 2
// "foreign" layers), however it is compressed.
func isForeign(mediaType string) bool {
	mediaType = strings.ToLower(mediaType)
	for _, base := range []string{"application/vnd.oci.image.layer.nondistributable.v1.tar", "application/vnd.docker.image.rootfs.foreign.diff.tar"} {
		if rest, ok := strings.CutPrefix(mediaType, base); ok && (rest == "" || rest[0] == '+' || rest[0] == '.') {
			return true
		}
	}
	return false
}

// fieldConfig is the config's field: a config is never foreign, whatever its type.
const fieldConfig = "config"

func errorsOf(cs ...*collector) error {
	for _, c := range cs {
		if c.err != nil {
			return c.err
		}
	}
	return nil
}

// jsonError says in words what encoding/json found, whose own text names the
// types of this program.
func jsonError(err error) error {
	var syntax *json.SyntaxError
	var wrongType *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		return manifestError("it is no valid JSON: the mistake is at byte %d", syntax.Offset)
	case errors.As(err, &wrongType):
		field := "the document"
		if wrongType.Field != "" {
			field = "its field " + wrongType.Field
		}
		return wrongKind(field, wrongType)
	}
	return manifestError("it is no valid JSON")
}

// jsonErrorIn is jsonError for the value of one field that was read by itself.
func jsonErrorIn(field string, err error) error {
	var wrongType *json.UnmarshalTypeError
	if errors.As(err, &wrongType) {
		return wrongKind("its field "+field, wrongType)
	}
	return jsonError(err)
}

func wrongKind(what string, err *json.UnmarshalTypeError) error {
	if given, _, number := strings.Cut(err.Value, " "); !number {
		return manifestError("%s must be %s, and is of the kind %s", what, wanted(err.Type), given)
	}
	return manifestError("%s must be %s, and is %.64s", what, wanted(err.Type), err.Value)
}

// wanted names what t is called in JSON.
func wanted(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Pointer:
		return wanted(t.Elem())
	case reflect.String:
		return "a string"
	case reflect.Slice:
		return "an array"
	case reflect.Struct, reflect.Map:
		return "an object"
	}
	return "a whole number"
}

func manifestError(format string, args ...any) error {
	e := fault.New(fault.Invalid, format, args...)
	e.Public = "invalid manifest: " + e.Public
	return e.WithCode(CodeManifestInvalid)
}
