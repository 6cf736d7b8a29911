package oci

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

const (
	d1 = Digest("sha256:1111111111111111111111111111111111111111111111111111111111111111")
	d2 = Digest("sha256:2222222222222222222222222222222222222222222222222222222222222222")
	d3 = Digest("sha256:3333333333333333333333333333333333333333333333333333333333333333")
)

func desc(mediaType string, d Digest, size int) string {
	return fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d}`, mediaType, d, size)
}

func image(extra string) string {
	return `{"schemaVersion":2,"mediaType":"` + MediaTypeImage + `","config":` + desc("application/x.config", d1, 10) +
		`,"layers":[` + desc("application/x.layer", d2, 20) + `]` + extra + `}`
}

func parse(t *testing.T, mediaType, content string) Manifest {
	t.Helper()
	m, err := ParseManifest(mediaType, []byte(content))
	if err != nil {
		t.Fatalf("ParseManifest(%s): %v", content, err)
	}
	return m
}

func TestParseManifest_Image(t *testing.T) {
	m := parse(t, MediaTypeImage+"; charset=utf-8", image(`,"subject":`+desc(MediaTypeImage, d3, 5)+`,"annotations":{"a":"b"}`))
	if m.MediaType != MediaTypeImage || m.Subject != d3 || m.Annotations["a"] != "b" {
		t.Errorf("got %+v", m)
	}
	want := []Descriptor{{MediaType: "application/x.config", Digest: d1, Size: 10, Exact: true}, {MediaType: "application/x.layer", Digest: d2, Size: 20, Exact: true}}
	if !slices.Equal(m.Blobs, want) || len(m.Children) != 0 {
		t.Errorf("blobs %+v, children %+v; want %+v and none", m.Blobs, m.Children, want)
	}
}

func TestSpec_ListingReferrers_ArtifactType(t *testing.T) {
	for _, c := range []struct{ mediaType, content, want string }{
		{MediaTypeImage, image(`,"artifactType":"application/x.sbom"`), "application/x.sbom"},
		{MediaTypeImage, image(``), "application/x.config"},
		{MediaTypeImage, image(`,"artifactType":""`), "application/x.config"},
		{MediaTypeIndex, `{"schemaVersion":2,"manifests":[]}`, ""},
		{MediaTypeIndex, `{"schemaVersion":2,"artifactType":"application/x.sbom","manifests":[]}`, "application/x.sbom"},
	} {
		if got := parse(t, c.mediaType, c.content).ArtifactType; got != c.want {
			t.Errorf("%s: artifact type %q, want %q", c.content, got, c.want)
		}
	}
}

func TestParseManifest_IndexHasChildrenEachOnce(t *testing.T) {
	for _, mediaType := range []string{MediaTypeIndex, MediaTypeDockerList} {
		m := parse(t, mediaType, `{"schemaVersion":2,"manifests":[`+desc(MediaTypeImage, d1, 1)+`,`+desc(MediaTypeImage, d1, 1)+`,`+desc(MediaTypeImage, d2, 2)+`]}`)
		if len(m.Children) != 2 || len(m.Blobs) != 0 {
			t.Errorf("%s: children %+v, blobs %+v", mediaType, m.Children, m.Blobs)
		}
	}
}

func TestParseManifest_ForeignLayersMayBeMissing(t *testing.T) {
	for mediaType, foreign := range map[string]bool{
		"application/vnd.oci.image.layer.nondistributable.v1.tar":        true,
		"application/vnd.oci.image.layer.nondistributable.v1.tar+gzip":   true,
		"application/vnd.oci.image.layer.nondistributable.v1.tar+zstd":   true,
		"application/vnd.OCI.image.layer.nondistributable.v1.tar+gzip":   true,
		"application/vnd.docker.image.rootfs.foreign.diff.tar":           true,
		"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip":      true,
		"application/vnd.docker.image.rootfs.foreign.diff.tar.zstd":      true,
		"application/vnd.oci.image.layer.v1.tar+gzip":                    false,
		"application/vnd.docker.image.rootfs.diff.tar.gzip":              false,
		"application/vnd.oci.image.layer.nondistributable.v1.target":     false,
		"application/vnd.docker.image.rootfs.foreign.diff.tarball":       false,
		"x/application/vnd.oci.image.layer.nondistributable.v1.tar+gzip": false,
	} {
		m := parse(t, MediaTypeImage, strings.Replace(image(""), "application/x.layer", mediaType, 1))
		if m.Blobs[1].Optional != foreign || m.Blobs[0].Optional {
			t.Errorf("%s: %+v", mediaType, m.Blobs)
		}
		// A config is needed, whatever it calls itself.
		m = parse(t, MediaTypeImage, strings.Replace(image(""), "application/x.config", mediaType, 1))
		if m.Blobs[0].Optional {
			t.Errorf("a config of the type %s may be missing", mediaType)
		}
	}
}

func TestParseManifest_DigestThatIsForeignAndOrdinaryIsNeeded(t *testing.T) {
	foreign := desc("application/vnd.oci.image.layer.nondistributable.v1.tar", d2, 20)
	for _, layers := range []string{foreign + "," + desc("x", d2, 20), desc("x", d2, 20) + "," + foreign, foreign + "," + foreign + "," + desc("x", d2, 20)} {
		m := parse(t, MediaTypeImage, `{"schemaVersion":2,"config":`+desc("x", d1, 1)+`,"layers":[`+layers+`]}`)
		if len(m.Blobs) != 2 || m.Blobs[1].Optional || !m.Blobs[1].Exact {
			t.Errorf("%s: %+v", layers, m.Blobs)
		}
	}
	config := `{"schemaVersion":2,"config":` + desc("x", d2, 20) + `,"layers":[` + foreign + `]}`
	if m := parse(t, MediaTypeImage, config); len(m.Blobs) != 1 || m.Blobs[0].Optional {
		t.Errorf("%s: %+v", config, m.Blobs)
	}
}

func TestParseManifest_UnknownTypesBindWhatTheyName(t *testing.T) {
	m := parse(t, "application/x.other", `{"layers":[`+desc("x", d1, 1)+`,{"digest":"nonsense"}],"fsLayers":[{"blobSum":"`+string(d2)+`"}],"subject":{"digest":"x"}}`)
	if len(m.Blobs) != 2 || !m.Blobs[0].Optional || !m.Blobs[1].Optional || m.Subject != "" {
		t.Errorf("got %+v", m)
	}
	for _, opaque := range []string{"", "no JSON", `["a"]`, "\x00\xff", `{"config":7}`} {
		if m := parse(t, "application/x.other", opaque); len(m.Blobs) != 0 || m.MediaType != "application/x.other" {
			t.Errorf("%q: %+v", opaque, m)
		}
	}
}

func TestParseManifest_WithoutContentTypeTheDocumentDecides(t *testing.T) {
	for content, want := range map[string]string{
		image(""): MediaTypeImage,
		`{"schemaVersion":2,"config":` + desc("x", d1, 1) + `,"layers":[]}`: MediaTypeImage,
		`{"schemaVersion":2,"manifests":[]}`:                                MediaTypeIndex,
		`{"mediaType":"application/x.other"}`:                               "application/x.other",
		`{"schemaVersion":1,"fsLayers":[]}`:                                 MediaTypeDockerSchema1,
		`{"schemaVersion":1,"fsLayers":[],"signatures":[]}`:                 MediaTypeDockerSchema1Signed,
	} {
		if got := parse(t, "", content).MediaType; got != want {
			t.Errorf("%s: media type %q, want %q", content, got, want)
		}
		if got, err := DetectType([]byte(content)); got != want || err != nil {
			t.Errorf("%s: detected %q, %v; want %q", content, got, err, want)
		}
	}
	for _, content := range []string{`{}`, ``, `[]`, `"x"`, `null`, `{"mediaType":null}`, `{"schemaVersion":"2","manifests":[]}`} {
		_, err := ParseManifest("", []byte(content))
		wantInvalid(t, err, CodeManifestInvalid)
	}
}

func TestR16_TheBodyDeterminesTheType(t *testing.T) {
	bare := strings.Replace(image(""), `"mediaType":"`+MediaTypeImage+`",`, "", 1)
	index := `{"schemaVersion":2,"manifests":[]}`
	schema1 := `{"schemaVersion":1,"fsLayers":[]}`
	for _, c := range []struct{ contentType, content, want string }{ // "" is refused
		{MediaTypeImage, image(""), MediaTypeImage},
		{strings.ToUpper(MediaTypeImage), image(""), MediaTypeImage},
		{MediaTypeImage + " ; q=1", image(""), MediaTypeImage},
		{" ", image(""), MediaTypeImage},
		{"application/x-www-form-urlencoded", image(""), ""},
		{"application/json", image(""), ""},
		{MediaTypeDockerImage, image(""), ""},
		{"application/x.other", image(`,"annotations":{"a":1}`), ""}, // a mistake elsewhere hides nothing
		{"application/x.other", strings.Replace(image(""), `"schemaVersion":2`, `"schemaVersion":"x"`, 1), ""},
		{"application/x.other", strings.Replace(image(""), "oci.image.manifest", "OCI.image.manifest", 1), ""},
		{"", strings.Replace(image(""), "oci.image.manifest", "OCI.image.manifest", 1), ""},
		{"application/x.other", strings.Replace(image(""), `"mediaType":"`+MediaTypeImage, `"MediaType":"`+MediaTypeImage, 1), ""},
		{"application/x.other", strings.TrimSuffix(image(""), "}") + `,"mediaType":"application/x.other"}`, ""},
		{"application/x.other", `{"mediaType":7}`, ""},

		{MediaTypeImage, bare, MediaTypeImage},
		{MediaTypeDockerImage, bare, MediaTypeDockerImage},
		{strings.ToUpper(MediaTypeDockerImage), bare, MediaTypeDockerImage},
		{MediaTypeIndex, bare, ""},
		{"application/x.other", bare, ""},
		{"application/x.other", strings.Replace(bare, `"schemaVersion":2`, `"schemaVersion":2.0`, 1), ""},
		{"application/x.other", bare[:len(bare)-1] + `,"annotations":{"a":1}}`, ""},
		{MediaTypeIndex, index, MediaTypeIndex},
		{MediaTypeDockerList, index, MediaTypeDockerList},
		{MediaTypeImage, index, ""},
		{"text/plain", index, ""},
		{MediaTypeDockerSchema1Signed, schema1, MediaTypeDockerSchema1Signed},
		{MediaTypeImage, schema1, ""},

		{"application/x.other", `{"layers":[]}`, "application/x.other"},
		{"application/x.other", "no JSON", "application/x.other"},
		{"application/x-www-form-urlencoded", "no JSON", ""},
		{"multipart/form-data; boundary=x", `{"layers":[]}`, ""},
		{"image", `{"layers":[]}`, ""},
		{"/x", `{"layers":[]}`, ""},
		{"a/b/c", `{"layers":[]}`, ""},
	} {
		m, err := ParseManifest(c.contentType, []byte(c.content))
		if m.MediaType != c.want {
			t.Errorf("%q with %s: media type %q, want %q; error %v", c.contentType, c.content, m.MediaType, c.want, err)
		}
		if c.want == "" {
			wantInvalid(t, err, CodeManifestInvalid)
		}
	}
}

func TestReadManifest_TheContentCountsAndNotTheHeader(t *testing.T) {
	for _, contentType := range []string{"", "application/json", MediaTypeIndex, "nonsense", MediaTypeImage} {
		m, err := ReadManifest(contentType, []byte(image("")))
		if err != nil || m.MediaType != MediaTypeImage || len(m.Blobs) != 2 {
			t.Errorf("%q: %+v, %v", contentType, m, err)
		}
	}
	if m, err := ReadManifest("application/x.other", []byte("opaque")); err != nil || m.MediaType != "application/x.other" {
		t.Errorf("opaque content: %+v, %v", m, err)
	}
}

func badManifests() []string {
	config := `"config":` + desc("x", d1, 1)
	return []string{
		``, `{`, `[]`, `7`, `"x"`, `null`, `{} {}`,
		`{"schemaVersion":1,` + config + `}`,
		`{"schemaVersion":2}`,
		`{"schemaVersion":2,"config":null,"layers":[]}`,
		`{"schemaVersion":2,"config":"x"}`,
		`{"schemaVersion":2,"config":` + desc("x", "sha256:short", 1) + `}`,
		`{"schemaVersion":2,"config":` + desc("x", d1, -1) + `}`,
		`{"schemaVersion":2,` + config + `,"layers":[` + desc("x", d1, 2) + `]}`,
		`{"schemaVersion":2,` + config + `,"layers":[],"manifests":[]}`,
		`{"schemaVersion":2,"mediaType":"application/x.other",` + config + `}`,
		`{"schemaVersion":2,` + config + `,` + config + `}`,
		`{"schemaVersion":2,` + config + `,"Layers":[]}`,
		`{"schemaVersion":2,"config":{"digest":"` + string(d1) + `","size":1,"Digest":"` + string(d2) + `"}}`,
		`{"schemaVersion":2,"config":{"digest":"` + string(d1) + `","size":1,"digest":"` + string(d2) + `"}}`,
		`{"schemaVersion":2,` + config + `,"layers":[{"digest":"` + string(d1) + `","size":1,"SIZE":2}]}`,
		`{"schemaVersion":2,` + config + `,"annotations":{"a":"b","a":"c"}}`,
		`{"schemaVersion":2,` + config + `,"annotations":{"a":1}}`,
		`{"schemaVersion":2,` + config + `,"subject":{}}`,
	}
}

func TestBadInput_ParseManifest(t *testing.T) {
	for _, content := range badManifests() {
		m, err := ParseManifest(MediaTypeImage, []byte(content))
		if err == nil {
			t.Errorf("%s is accepted as %+v", content, m)
			continue
		}
		wantInvalid(t, err, CodeManifestInvalid)
	}
	_, err := ParseManifest(MediaTypeIndex, []byte(image("")))
	wantInvalid(t, err, CodeManifestInvalid)
	for _, mediaType := range []string{"a\nb", "a b", "a\x00", "ä/b", strings.Repeat("a", 256), `a"b`} {
		_, err = ParseManifest(mediaType, []byte(`{}`))
		wantInvalid(t, err, CodeManifestInvalid)
		_, err = ParseManifest("", []byte(fmt.Sprintf(`{"mediaType":%q}`, mediaType)))
		wantInvalid(t, err, CodeManifestInvalid)
	}
	_, err = ParseManifest(MediaTypeImage, make([]byte, ManifestMax+1))
	wantInvalid(t, err, CodeManifestInvalid)
}

func TestParseManifest_KeysThatMeanNothingHereAreFree(t *testing.T) {
	parse(t, MediaTypeImage, image(`,"annotations":{"Config":"x","config":"y","mediatype":"z"},"vendor":{"Digest":1,"digest":2,"list":[{"Size":1}]}`))
}

func FuzzParseManifest(f *testing.F) {
	for _, content := range badManifests() {
		f.Add(MediaTypeImage, []byte(content))
	}
	f.Add(MediaTypeImage, []byte(image("")))
	f.Add("", []byte(image("")))
	f.Add(MediaTypeIndex, []byte(`{"schemaVersion":2,"manifests":[`+desc(MediaTypeImage, d1, 1)+`]}`))
	f.Add("application/x.other", []byte(`{"fsLayers":[{"blobSum":"`+string(d1)+`"}]}`))
	f.Add(";", []byte(`{}`))
	f.Fuzz(func(t *testing.T, mediaType string, content []byte) {
		m, err := ParseManifest(mediaType, content)
		if err != nil {
			wantInvalid(t, err, CodeManifestInvalid)
			return
		}
		if m.MediaType == "" || len(m.MediaType) > 255 || strings.ContainsAny(m.MediaType, ";\r\n") {
			t.Errorf("media type %q", m.MediaType)
		}
		seen := map[Digest]bool{}
		for _, list := range [][]Descriptor{m.Blobs, m.Children} {
			clear(seen)
			for _, d := range list {
				if _, err := ParseDigest(string(d.Digest)); err != nil || seen[d.Digest] || d.Size < 0 {
					t.Errorf("descriptor %+v: digest error %v, seen before: %v", d, err, seen[d.Digest])
				}
				seen[d.Digest] = true
			}
		}
		if m.Subject != "" {
			if _, err := ParseDigest(string(m.Subject)); err != nil {
				t.Errorf("subject: %v", err)
			}
		}
	})
}

func TestParseManifest_ErrorsSayWhatIsWantedWithoutGoTypes(t *testing.T) {
	for content, want := range map[string]string{
		`[]`:                      "the document must be an object, and is of the kind array",
		`"a"`:                     "the document must be an object, and is of the kind string",
		`{"schemaVersion":"2"}`:   "its field schemaVersion must be a whole number, and is of the kind string",
		`{"schemaVersion":2.5}`:   "its field schemaVersion must be a whole number, and is number 2.5",
		`{"layers":{}}`:           "its field layers must be an array, and is of the kind object",
		`{"layers":[{"size":[]`:   "it is no valid JSON: the mistake is at byte 21",
		`{"layers":[{"size":1]}`:  "it is no valid JSON: the mistake is at byte 21",
		`{"config":7}`:            "its field config must be an object, and is of the kind number",
		`{"mediaType":[]}`:        "its field mediaType must be a string, and is of the kind array",
		`{"annotations":{"a":1}}`: "must be a string",
	} {
		_, err := ParseManifest(MediaTypeImage, []byte(content))
		if err == nil {
			t.Errorf("%s: accepted", content)
			continue
		}
		text := err.Error()
		if !strings.Contains(text, want) {
			t.Errorf("%s: %q, want %q in it", content, text, want)
		}
		for _, internal := range []string{"Go ", "oci.", "json:", "struct"} {
			if strings.Contains(text, internal) {
				t.Errorf("%s: %q has internal text %q", content, text, internal)
			}
		}
	}
}
