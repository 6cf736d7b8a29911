package oci

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
)

// TestR16_SizesThatAManifestStatesAreBounded: they are claims, which are added up
// and allocated for by whoever reads them.
func TestR16_SizesThatAManifestStatesAreBounded(t *testing.T) {
	sized := func(d Digest, size int64) string {
		return fmt.Sprintf(`{"mediaType":"application/x","digest":%q,"size":%d}`, d, size)
	}
	manifest := func(config, layer, subject int64) string {
		return `{"schemaVersion":2,"mediaType":"` + MediaTypeImage + `","config":` + sized(d1, config) + `,"layers":[` + sized(d2, layer) + `],"subject":` + sized(d3, subject) + `}`
	}
	index := func(child, subject int64) string {
		return `{"schemaVersion":2,"mediaType":"` + MediaTypeIndex + `","manifests":[` + sized(d1, child) + `],"subject":` + sized(d3, subject) + `}`
	}
	for _, bad := range []int64{math.MaxInt64, math.MaxInt64 - 300000, SizeMax + 1, -1, math.MinInt64} {
		for name, content := range map[string]string{
			"config": manifest(bad, 1, 1), "layer": manifest(1, bad, 1), "subject": manifest(1, 1, bad),
			"child": index(bad, 1), "subject of an index": index(1, bad),
		} {
			if m, err := ParseManifest("", []byte(content)); err == nil {
				t.Errorf("a %s of %d bytes was taken: %+v", name, bad, m)
			}
			unknown := strings.NewReplacer(MediaTypeImage, "application/x.unknown", MediaTypeIndex, "application/x.unknown").Replace(content)
			m, err := ParseManifest("application/x.unknown", []byte(unknown))
			if err != nil {
				t.Errorf("a %s of %d bytes in a document of an unknown type: %v", name, bad, err)
			}
			salvaged := Salvage([]byte(content))
			if len(salvaged.Blobs)+len(salvaged.Children) == 0 || salvaged.Subject != d3 {
				t.Errorf("a %s of %d bytes: %+v is all that is known of what it names", name, bad, salvaged)
			}
			for _, d := range slices.Concat(m.Blobs, m.Children, salvaged.Blobs, salvaged.Children) {
				if d.Size < 0 || d.Size > SizeMax {
					t.Errorf("a %s of %d bytes: %d is handed on", name, bad, d.Size)
				}
			}
		}
	}
	for _, good := range []string{manifest(SizeMax-2, 1, 1), index(SizeMax, 0)} {
		if _, err := ParseManifest("", []byte(good)); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for _, bad := range []string{manifest(SizeMax, 1, 0), manifest(1, SizeMax, 0), manifest(1, 1, SizeMax), index(SizeMax, 1)} {
		if _, err := ParseManifest("", []byte(bad)); err == nil || !strings.Contains(err.Error(), "add up") {
			t.Errorf("a sum past the bound: %v", err)
		}
	}
}
