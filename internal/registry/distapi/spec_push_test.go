package distapi_test

import (
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/fairway-registry/fairway/internal/oci"
)

var uuidInLocation = regexp.MustCompile(`/[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)

func TestSpec_PostThenPut_LocationHasAUUIDAndBlobIsPullable(t *testing.T) {
	s := serve(t)
	loc := s.begin("a/b")
	if !uuidInLocation.MatchString(loc) {
		t.Errorf("Location %q has no UUID", loc)
	}
	b := content("blob", 70000)
	a := s.do("PUT", loc+"?digest="+string(sha256Of(b)), b, "Content-Type", "application/octet-stream").want(201).
		wantHeader("Docker-Content-Digest", string(sha256Of(b)))
	s.do("GET", a.location(), nil).want(200).wantBody(b)
	s.do("GET", loc, nil).wantError(404, oci.CodeBlobUploadUnknown)
}

func TestSpec_PostThenPut_PathWithoutTrailingSlash(t *testing.T) {
	s := serve(t)
	s.do("POST", "/v2/a/blobs/uploads", nil).want(202)
}

func TestSpec_SinglePost(t *testing.T) {
	s := serve(t)
	for _, b := range [][]byte{nil, []byte("x"), content("large", 3<<20+17)} {
		for _, d := range []oci.Digest{sha256Of(b), sha512Of(b)} {
			a := s.do("POST", "/v2/a/blobs/uploads/?digest="+string(d), b).want(201).wantHeader("Docker-Content-Digest", string(d))
			s.do("GET", a.location(), nil).want(200).wantBody(b)
		}
	}
}

func TestSpec_SinglePost_WrongDigestIs400AndLeavesNoSession(t *testing.T) {
	s := serve(t)
	d := sha256Of([]byte("announced"))
	s.do("POST", "/v2/a/blobs/uploads/?digest="+string(d), []byte("sent")).wantError(400, oci.CodeDigestInvalid)
	s.do("HEAD", "/v2/a/blobs/"+string(d), nil).want(404)
	s.wantUploads(0)
}

// wantUploads checks how many sessions are open.
func (s *server) wantUploads(n int64) {
	s.t.Helper()
	st, err := s.store.Stats(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	if st.Uploads != n {
		s.t.Errorf("%d upload sessions are open, want %d", st.Uploads, n)
	}
}

func TestSpec_PushingBlobs_InvalidOrUnsupportedDigestIs400(t *testing.T) {
	s := serve(t)
	for _, d := range []string{"", "sha256:short", "md5:d41d8cd98f00b204e9800998ecf8427e", "sha384:" + strings.Repeat("a", 96), "sha256-" + strings.Repeat("a", 64), "nonsense"} {
		s.do("POST", "/v2/a/blobs/uploads/?digest="+d, []byte("x")).wantError(400, oci.CodeDigestInvalid)
		s.do("PUT", s.begin("a")+"?digest="+d, []byte("x")).wantError(400, oci.CodeDigestInvalid)
		s.do("POST", "/v2/a/blobs/uploads/?mount="+d+"&from=b", nil).wantError(400, oci.CodeDigestInvalid)
	}
	s.do("PUT", s.begin("a"), []byte("x")).wantError(400, oci.CodeDigestInvalid)
	s.do("POST", "/v2/a/blobs/uploads/?digest-algorithm=md5", nil).wantError(400, oci.CodeDigestInvalid)
}

func TestSpec_PostThenPut_WrongDigestIs400AndEndsTheSession(t *testing.T) {
	s := serve(t)
	loc := s.begin("a")
	d := sha256Of([]byte("announced"))
	s.do("PUT", loc+"?digest="+string(d), []byte("sent")).wantError(400, oci.CodeDigestInvalid)
	s.do("HEAD", "/v2/a/blobs/"+string(d), nil).want(404)
	s.do("GET", loc, nil).wantError(404, oci.CodeBlobUploadUnknown)
}

func TestSpec_PushingBlobsInChunks(t *testing.T) {
	for _, alg := range []string{"", "sha256", "sha512"} {
		for _, last := range []string{"in a PATCH", "in the PUT"} {
			t.Run(alg+" last chunk "+last, func(t *testing.T) {
				s := serve(t)
				b := content("chunks"+alg, 2500)
				d := sha256Of(b)
				query := ""
				if alg != "" {
					query = "?digest-algorithm=" + alg
				}
				if alg == "sha512" {
					d = sha512Of(b)
				}
				loc := s.do("POST", "/v2/a/blobs/uploads/"+query, nil).want(202).location()
				for _, at := range []int{0, 1000} {
					loc = s.do("PATCH", loc, b[at:at+1000], "Content-Range", rangeOf(at, 1000)).want(202).
						wantHeader("Range", "0-"+strconv.Itoa(at+999)).location()
				}
				var tail any = b[2000:]
				header := []string{"Content-Range", rangeOf(2000, 500)}
				if last == "in a PATCH" {
					loc = s.do("PATCH", loc, tail, header...).want(202).wantHeader("Range", "0-2499").location()
					tail, header = nil, nil
				}
				a := s.do("PUT", loc+"?digest="+string(d), tail, header...).want(201)
				s.do("GET", a.location(), nil).want(200).wantBody(b)
			})
		}
	}
}

func TestSpec_PushingBlobsInChunks_StreamedPatchWithoutRange(t *testing.T) {
	s := serve(t)
	b := content("stream", 2<<20)
	loc := s.do("PATCH", s.begin("a"), io.MultiReader(strings.NewReader(string(b)))).want(202).
		wantHeader("Range", "0-"+strconv.Itoa(len(b)-1)).location()
	s.do("PUT", loc+"?digest="+string(sha256Of(b)), nil).want(201)
	s.do("GET", "/v2/a/blobs/"+string(sha256Of(b)), nil).want(200).wantBody(b)
}

func TestSpec_PushingBlobsInChunks_OutOfOrderIs416(t *testing.T) {
	s := serve(t)
	b := content("order", 3000)
	d := string(sha256Of(b))
	loc := s.begin("a")
	s.do("PATCH", loc, b[1000:2000], "Content-Range", rangeOf(1000, 1000)).wantError(416, oci.CodeBlobUploadInvalid)
	s.do("PATCH", loc, b[:1000], "Content-Range", rangeOf(0, 1000)).want(202)
	for _, at := range []int{0, 500, 1001, 2000} {
		for _, method := range []string{"PATCH", "PUT"} {
			query := ""
			if method == "PUT" {
				query = "?digest=" + d
			}
			s.do(method, loc+query, b[at:at+1000], "Content-Range", rangeOf(at, 1000)).wantError(416, oci.CodeBlobUploadInvalid).
				wantHeader("Range", "0-999").wantHeader("Location", loc)
			s.do("GET", loc, nil).want(204).wantHeader("Range", "0-999").wantHeader("Location", loc)
		}
	}
	s.do("PUT", loc+"?digest="+d, b[1000:], "Content-Range", rangeOf(1000, 2000)).want(201)
}

func TestSpec_PushingBlobsInChunks_StatusIs204WithRangeAndLocation(t *testing.T) {
	s := serve(t)
	loc := s.begin("a")
	s.do("GET", loc, nil).want(204).wantHeader("Location", loc).wantHeader("Range", "0-0")
	s.do("PATCH", loc, []byte("12345")).want(202)
	s.do("GET", loc, nil).want(204).wantHeader("Location", loc).wantHeader("Range", "0-4")
	s.do("HEAD", loc, nil).want(204).wantHeader("Range", "0-4")
}

func TestSpec_PushingBlobsInChunks_MalformedContentRangeIs416(t *testing.T) {
	s := serve(t)
	loc := s.begin("a")
	for _, r := range []string{"x", "0", "-", "0-", "-5", "5-0", "0-x", "+0-4", "0-99999999999999999999", "0--4"} {
		s.do("PATCH", loc, []byte("12345"), "Content-Range", r).wantError(416, oci.CodeBlobUploadInvalid)
		s.do("PUT", loc+"?digest="+string(sha256Of([]byte("12345"))), []byte("12345"), "Content-Range", r).wantError(416, oci.CodeBlobUploadInvalid)
	}
	s.do("PATCH", loc, []byte("12345"), "Content-Range", "0-4", "Content-Range", "5-9").wantError(416, oci.CodeBlobUploadInvalid)
	s.do("PATCH", loc, []byte("12345"), "Content-Range", "bytes 0-4/*").want(202)
}

func TestSpec_PushingBlobsInChunks_UnknownSessionIs404(t *testing.T) {
	s := serve(t)
	mine := s.begin("a")
	id := mine[strings.LastIndexByte(mine, '/')+1:]
	for _, loc := range []string{"/v2/b/blobs/uploads/" + id, "/v2/a/blobs/uploads/no-uuid", "/v2/a/blobs/uploads/00000000-0000-0000-0000-000000000000"} {
		s.do("GET", loc, nil).wantError(404, oci.CodeBlobUploadUnknown)
		s.do("PATCH", loc, []byte("x")).wantError(404, oci.CodeBlobUploadUnknown)
		s.do("PUT", loc+"?digest="+string(sha256Of([]byte("x"))), []byte("x")).wantError(404, oci.CodeBlobUploadUnknown)
		s.do("DELETE", loc, nil).wantError(404, oci.CodeBlobUploadUnknown)
	}
}

func TestSpec_CancelABlobUpload(t *testing.T) {
	s := serve(t)
	loc := s.begin("a")
	s.do("PATCH", loc, []byte("12345")).want(202)
	s.do("DELETE", loc, nil).want(204)
	s.do("GET", loc, nil).wantError(404, oci.CodeBlobUploadUnknown)
	s.do("DELETE", loc, nil).wantError(404, oci.CodeBlobUploadUnknown)
	s.wantUploads(0)
}

func TestSpec_MountingABlob_From(t *testing.T) {
	s := serve(t)
	b := content("mount", 400)
	d := s.push("a", b)
	a := s.do("POST", "/v2/b/blobs/uploads/?mount="+string(d)+"&from=a", nil).want(201).
		wantHeader("Docker-Content-Digest", string(d))
	if want := "/v2/b/blobs/" + string(d); a.location() != want {
		t.Errorf("Location is %s, want %s", a.location(), want)
	}
	s.do("GET", a.location(), nil).want(200).wantBody(b)
}

func TestSpec_MountingABlob_WithoutFromFindsIt(t *testing.T) {
	s := serve(t)
	b := content("mount", 400)
	d := s.push("a", b)
	a := s.do("POST", "/v2/b/blobs/uploads/?mount="+string(d), nil).want(201)
	s.do("GET", a.location(), nil).want(200).wantBody(b)
}

func TestSpec_MountingABlob_ThatCannotBeMountedBeginsASession(t *testing.T) {
	s := serve(t)
	b := content("mount", 400)
	d := string(sha256Of(b))
	s.push("a", b)
	for _, from := range []string{"&from=nobody", "&from=c"} {
		s.pushImage("c", "v1", "other", "")
		loc := s.do("POST", "/v2/b/blobs/uploads/?mount="+d+from, nil).want(202).location()
		s.do("GET", "/v2/b/blobs/"+d, nil).want(404)
		s.do("DELETE", loc, nil).want(204)
	}
	absent := content("absent", 10)
	loc := s.do("POST", "/v2/b/blobs/uploads/?mount="+string(sha256Of(absent)), nil).want(202).location()
	s.do("PUT", loc+"?digest="+string(sha256Of(absent)), absent).want(201)
	s.do("POST", "/v2/b/blobs/uploads/?mount="+d+"&from=UPPER", nil).wantError(400, oci.CodeNameInvalid)
}

func TestSpec_PushingManifests_ByTagAndByDigest(t *testing.T) {
	s := serve(t)
	i := s.pushImage("a", "v1", "one", "")
	for _, ref := range []string{"v2", string(i.digest)} {
		a := s.putManifest("a", ref, oci.MediaTypeImage, i.content).want(201).wantHeader("Docker-Content-Digest", string(i.digest))
		s.do("GET", a.location(), nil).want(200).wantBody(i.content)
	}
	s.do("GET", "/v2/a/manifests/v2", nil).want(200).wantBody(i.content)
}

func TestSpec_PushingManifests_ExactBytes(t *testing.T) {
	s := serve(t)
	i := s.pushImage("a", "v1", "one", "")
	spaced := append([]byte(" \n"), append(i.content, '\n', '\t')...)
	s.putManifest("a", "v2", oci.MediaTypeImage, spaced).want(201).wantHeader("Docker-Content-Digest", string(sha256Of(spaced)))
	s.do("GET", "/v2/a/manifests/v2", nil).want(200).wantBody(spaced)
}

func TestSpec_PushingManifests_Sha512(t *testing.T) {
	s := serve(t)
	i := s.pushImage("a", "v1", "one", "")
	d := string(sha512Of(i.content))
	s.putManifest("a", d+"?tag=long", oci.MediaTypeImage, i.content).want(201).wantHeader("Docker-Content-Digest", d)
	s.do("GET", "/v2/a/manifests/"+d, nil).want(200).wantBody(i.content).wantHeader("Docker-Content-Digest", d)
	s.do("GET", "/v2/a/manifests/long", nil).want(200).wantHeader("Docker-Content-Digest", d)
}

func TestSpec_PushingManifests_DigestThatDiffersIs400(t *testing.T) {
	s := serve(t)
	i := s.pushImage("a", "v1", "one", "")
	s.putManifest("a", string(sha256Of([]byte("other"))), oci.MediaTypeImage, i.content).wantError(400, oci.CodeDigestInvalid)
	s.putManifest("a", "sha256:baddigeststring", oci.MediaTypeImage, i.content).wantError(400, oci.CodeDigestInvalid)
	s.putManifest("a", ".bad", oci.MediaTypeImage, i.content).wantError(400, oci.CodeTagInvalid)
}

func TestSpec_PushingManifests_MissingBlobsAreNamed(t *testing.T) {
	s := serve(t)
	config, layer := []byte("config"), []byte("layer")
	a := s.putManifest("a", "v1", oci.MediaTypeImage, manifestOf(config, layer, "")).wantError(400, oci.CodeManifestBlobUnknown)
	for _, b := range [][]byte{config, layer} {
		if !strings.Contains(string(a.body), string(sha256Of(b))) {
			t.Errorf("the error does not name %s: %s", sha256Of(b), a.body)
		}
	}
	// A blob of another repository is as good as missing.
	s.push("b", config)
	s.push("b", layer)
	s.putManifest("a", "v1", oci.MediaTypeImage, manifestOf(config, layer, "")).wantError(400, oci.CodeManifestBlobUnknown)
}

func TestSpec_PushingManifests_TheListOfLayersMayBeEmpty(t *testing.T) {
	s := serve(t)
	config := s.push("a", []byte("{}"))
	for _, layers := range []string{`,"layers":[]`, ``} {
		body := []byte(fmt.Sprintf(`{"schemaVersion":2,"config":{"mediaType":"x/y","digest":%q,"size":2}%s}`, config, layers))
		s.putManifest("a", "v1", oci.MediaTypeImage, body).want(201)
		s.do("GET", "/v2/a/manifests/v1", nil).want(200).wantBody(body)
	}
}

func TestSpec_PushingManifests_SparseIndexIsAllowed(t *testing.T) {
	s := serve(t)
	i := s.pushImage("a", "v1", "one", "")
	absent := image{digest: sha256Of([]byte("absent")), content: []byte("absent")}
	body := indexOf(i, absent)
	s.putManifest("a", "multi", oci.MediaTypeIndex, body).want(201)
	s.do("GET", "/v2/a/manifests/multi", nil).want(200).wantBody(body)
}

func TestSpec_PushingManifests_TagParameters(t *testing.T) {
	s := serve(t)
	i := s.pushImage("a", "", "one", "")
	var tags, params []string
	for n := range 12 {
		tags = append(tags, fmt.Sprintf("t%d", n))
		params = append(params, fmt.Sprintf("tag=t%d", n))
	}
	a := s.putManifest("a", string(i.digest)+"?"+strings.Join(params, "&"), oci.MediaTypeImage, i.content).want(201)
	if got := a.header.Values("OCI-Tag"); !slices.Equal(got, tags) {
		t.Errorf("OCI-Tag is %q, want %q", got, tags)
	}
	for _, tag := range tags {
		s.do("GET", "/v2/a/manifests/"+tag, nil).want(200).wantBody(i.content)
	}
}

func TestSpec_PushingManifests_BadOrTooManyTagParameters(t *testing.T) {
	s := serve(t)
	i := s.pushImage("a", "", "one", "")
	s.putManifest("a", string(i.digest)+"?tag=ok&tag=.bad", oci.MediaTypeImage, i.content).wantError(400, oci.CodeTagInvalid)
	s.do("GET", "/v2/a/manifests/ok", nil).want(404)
	s.putManifest("a", string(i.digest)+"?"+strings.Repeat("tag=x&", 101), oci.MediaTypeImage, i.content).wantError(414, oci.CodeTagInvalid)
	s.putManifest("a", string(i.digest)+"?tag=%zz", oci.MediaTypeImage, i.content).wantError(400, oci.CodeUnsupported)
}

// padded makes an image manifest of exactly n bytes.
func (s *server) padded(n int) []byte {
	config, layer := []byte("{}"), []byte("layer")
	s.push("a", config)
	s.push("a", layer)
	bare := len(manifestOf(config, layer, `,"annotations":{"p":""}`))
	return manifestOf(config, layer, `,"annotations":{"p":"`+strings.Repeat("x", n-bare)+`"}`)
}

func TestSpec_PushingManifests_FourMegabytesAreAcceptedAndMoreIs413(t *testing.T) {
	s := serve(t)
	full := s.padded(4 << 20)
	s.putManifest("a", "full", oci.MediaTypeImage, full).want(201)
	s.do("GET", "/v2/a/manifests/full", nil).want(200).wantBody(full)
	over := s.padded(4<<20 + 1)
	s.putManifest("a", "over", oci.MediaTypeImage, over).wantError(413, oci.CodeManifestInvalid)
	s.do("PUT", "/v2/a/manifests/over", io.MultiReader(strings.NewReader(string(over))), "Content-Type", oci.MediaTypeImage).
		wantError(413, oci.CodeManifestInvalid)
	s.do("GET", "/v2/a/manifests/over", nil).want(404)
}

func TestSpec_PushingManifestsWithSubject_HeaderAndMissingSubject(t *testing.T) {
	s := serve(t)
	subject := sha256Of([]byte("not pushed"))
	extra := fmt.Sprintf(`,"subject":{"mediaType":%q,"digest":%q,"size":10}`, oci.MediaTypeImage, subject)
	i := s.pushImage("a", "sig", "one", extra)
	s.putManifest("a", "sig", oci.MediaTypeImage, i.content).want(201).wantHeader("OCI-Subject", string(subject))
	plain := s.pushImage("a", "plain", "two", "")
	s.putManifest("a", "plain", oci.MediaTypeImage, plain.content).want(201).wantHeader("OCI-Subject", "")
}

func TestSpec_PushingManifests_DockerTypesAndUnknownTypes(t *testing.T) {
	s := serve(t)
	config, layer := []byte("{}"), []byte("layer")
	s.push("a", config)
	s.push("a", layer)
	docker := []byte(strings.Replace(string(manifestOf(config, layer, "")), oci.MediaTypeImage, oci.MediaTypeDockerImage, 1))
	s.putManifest("a", "docker", oci.MediaTypeDockerImage, docker).want(201)
	list := []byte(fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[{"mediaType":%q,"digest":%q,"size":%d}]}`,
		oci.MediaTypeDockerList, oci.MediaTypeDockerImage, sha256Of(docker), len(docker)))
	s.putManifest("a", "list", oci.MediaTypeDockerList, list).want(201)
	s.putManifest("a", "blobby", "application/x-unknown", []byte{0, 1, 2, 255}).want(201)
	for tag, body := range map[string][]byte{"docker": docker, "list": list, "blobby": {0, 1, 2, 255}} {
		s.do("GET", "/v2/a/manifests/"+tag, nil).want(200).wantBody(body)
	}
}

func TestBadInput_Manifests(t *testing.T) {
	s := serve(t)
	i := s.pushImage("a", "v1", "one", "")
	d := string(i.config)
	cfg := fmt.Sprintf(`{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":14}`, d)
	for name, body := range map[string]string{
		"empty":                   ``,
		"no JSON":                 `{`,
		"array":                   `[]`,
		"null":                    `null`,
		"number":                  `7`,
		"two documents":           `{} {}`,
		"schemaVersion 1":         `{"schemaVersion":1,"config":` + cfg + `,"layers":[]}`,
		"no config":               `{"schemaVersion":2,"layers":[]}`,
		"config is a string":      `{"schemaVersion":2,"config":"x","layers":[]}`,
		"digest in upper case":    `{"schemaVersion":2,"config":` + strings.Replace(cfg, d, "sha256:"+strings.Repeat("A", 64), 1) + `,"layers":[]}`,
		"negative size":           `{"schemaVersion":2,"config":` + strings.Replace(cfg, ":14", ":-14", 1) + `,"layers":[]}`,
		"size beyond int64":       `{"schemaVersion":2,"config":` + strings.Replace(cfg, ":14", ":99999999999999999999", 1) + `,"layers":[]}`,
		"size that disagrees":     `{"schemaVersion":2,"config":` + strings.Replace(cfg, ":14", ":15", 1) + `,"layers":[]}`,
		"blob twice, two sizes":   `{"schemaVersion":2,"config":` + cfg + `,"layers":[` + strings.Replace(cfg, ":14", ":15", 1) + `]}`,
		"other mediaType":         `{"schemaVersion":2,"mediaType":"application/x","config":` + cfg + `,"layers":[]}`,
		"index fields":            `{"schemaVersion":2,"config":` + cfg + `,"layers":[],"manifests":[]}`,
		"key twice":               `{"schemaVersion":2,"config":` + cfg + `,"layers":[],"layers":[]}`,
		"key in another case":     `{"schemaVersion":2,"config":` + cfg + `,"Config":` + cfg + `,"layers":[]}`,
		"subject without digest":  `{"schemaVersion":2,"config":` + cfg + `,"layers":[],"subject":{"size":1}}`,
		"annotations are numbers": `{"schemaVersion":2,"config":` + cfg + `,"layers":[],"annotations":{"a":1}}`,
		"deep nesting":            strings.Repeat(`{"a":`, 100000) + `1` + strings.Repeat(`}`, 100000),
	} {
		t.Run(name, func(t *testing.T) {
			s.t = t
			s.putManifest("a", "bad", oci.MediaTypeImage, []byte(body)).wantError(400, oci.CodeManifestInvalid)
			s.do("GET", "/v2/a/manifests/bad", nil).want(404)
		})
	}
	s.t = t
	s.putManifest("a", "bad", "", []byte(`{"schemaVersion":2}`)).wantError(400, oci.CodeManifestInvalid)
	s.putManifest("a", "bad", oci.MediaTypeIndex, i.content).wantError(400, oci.CodeManifestInvalid)
}

func TestBadInput_OddButAllowedManifests(t *testing.T) {
	s := serve(t)
	config := []byte("{}")
	empty := s.push("a", nil)
	s.push("a", config)
	twice := fmt.Sprintf(`{"mediaType":"x/y","digest":%q,"size":0}`, empty)
	body := fmt.Sprintf(`{"schemaVersion":2,"config":{"mediaType":"x/y","digest":%q,"size":2},"layers":[%s,%s]}`, sha256Of(config), twice, twice)
	s.putManifest("a", "twice", oci.MediaTypeImage, []byte(body)).want(201)

	// An index in an index, and one that comes back to itself by a detour:
	// its own digest it cannot know, but it may name what is pushed later.
	inner := s.pushImage("a", "", "inner", "")
	level1 := indexOf(inner)
	s.putManifest("a", "level1", oci.MediaTypeIndex, level1).want(201)
	level2 := indexOf(image{content: level1, digest: sha256Of(level1)}, inner, inner)
	s.putManifest("a", "level2", oci.MediaTypeIndex, level2).want(201)
	s.do("GET", "/v2/a/manifests/level2", nil).want(200).wantBody(level2)

	// A referrer to itself cannot be, but two subjects in a row can.
	sub := fmt.Sprintf(`,"subject":{"mediaType":%q,"digest":%q,"size":%d}`, oci.MediaTypeIndex, sha256Of(level2), len(level2))
	first := s.pushImage("a", "first", "first", sub)
	s.pushImage("a", "second", "second", fmt.Sprintf(`,"subject":{"mediaType":%q,"digest":%q,"size":%d}`, oci.MediaTypeImage, first.digest, len(first.content)))
	s.do("DELETE", "/v2/a/manifests/"+string(sha256Of(level2)), nil).want(202)
	s.do("DELETE", "/v2/a/manifests/"+string(first.digest), nil).want(202)
}

func TestSpec_ErrorCodes_JSONForm(t *testing.T) {
	s := serve(t)
	a := s.do("GET", "/v2/nobody/manifests/x", nil).want(404)
	var body map[string][]map[string]json.RawMessage
	a.json(&body)
	code := regexp.MustCompile(`^"[A-Z_]+"$`)
	if len(body) != 1 || len(body["errors"]) != 1 || !code.Match(body["errors"][0]["code"]) {
		t.Errorf("body %s is not of the form {errors:[{code}]}", a.body)
	}
}

func TestR16_TypeOfADigestNeverChanges(t *testing.T) {
	s := serve(t)
	i := s.pushImage("a", "v1", "one", "")
	other := manifestOf([]byte("absent"), []byte("absent too"), "")
	served := func() {
		t.Helper()
		for _, ref := range []string{"v1", string(i.digest)} {
			s.do("GET", "/v2/a/manifests/"+ref, nil).want(200).wantHeader("Content-Type", oci.MediaTypeImage).wantBody(i.content)
		}
	}
	for _, mediaType := range []string{"application/x-www-form-urlencoded", "application/json", oci.MediaTypeDockerImage, oci.MediaTypeIndex, "text/plain"} {
		for _, ref := range []string{"v2", string(i.digest)} {
			s.putManifest("a", ref, mediaType, i.content).wantError(400, oci.CodeManifestInvalid)
		}
		s.putManifest("a", "v2", mediaType, other).wantError(400, oci.CodeManifestInvalid)
		served()
	}
	s.do("PUT", "/v2/a/manifests/v2", i.content, "Content-Type", "text/plain", "Content-Type", oci.MediaTypeImage).wantError(400, oci.CodeManifestInvalid)
	s.do("PUT", "/v2/a/manifests/v2", i.content, "Content-Type", "").want(201)
	s.do("PUT", "/v2/a/manifests/v2", other, "Content-Type", "").wantError(400, oci.CodeManifestBlobUnknown)
	served()

	// Nothing but the first push says what opaque bytes are.
	opaque := []byte("opaque")
	s.putManifest("a", "o1", "application/x.one", opaque).want(201)
	s.putManifest("a", "o2", "application/x.two", opaque).wantError(400, oci.CodeManifestInvalid)
	s.putManifest("a", "o2", "Application/X.one", opaque).want(201)
	for _, ref := range []string{"o1", "o2", string(sha256Of(opaque))} {
		s.do("GET", "/v2/a/manifests/"+ref, nil).want(200).wantHeader("Content-Type", "application/x.one")
	}
	s.do("DELETE", "/v2/a/manifests/"+string(sha256Of(opaque)), nil).want(202)
	s.putManifest("a", "o3", "application/x.two", opaque).want(201)
	s.do("GET", "/v2/a/manifests/o3", nil).want(200).wantHeader("Content-Type", "application/x.two")
}

func TestSpec_PushingManifests_DockerSchema1IsRefused(t *testing.T) {
	s := serve(t)
	layer := s.push("a", []byte("layer"))
	body := []byte(fmt.Sprintf(`{"schemaVersion":1,"name":"a","tag":"v1","fsLayers":[{"blobSum":%q}],"signatures":[]}`, layer))
	for _, mediaType := range []string{oci.MediaTypeDockerSchema1, oci.MediaTypeDockerSchema1Signed, ""} {
		a := s.do("PUT", "/v2/a/manifests/v1", body, "Content-Type", mediaType).wantError(400, oci.CodeManifestInvalid)
		if !strings.Contains(string(a.body), "schema 1") {
			t.Errorf("%s: %s", mediaType, a.body)
		}
	}
	s.do("GET", "/v2/a/manifests/v1", nil).want(404)
}

func TestSpec_PushingManifests_ForeignLayersMayBeMissingAndAreCheckedIfPresent(t *testing.T) {
	s := serve(t)
	config, layer := []byte("{}"), []byte("layer")
	s.push("a", config)
	body := func(configType string, size int, layerTypes ...string) []byte {
		var layers []string
		for _, mediaType := range layerTypes {
			layers = append(layers, fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d,"urls":["https://example.com/layer"]}`, mediaType, sha256Of(layer), size))
		}
		return []byte(fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":%q,"digest":%q,"size":2},"layers":[%s]}`,
			oci.MediaTypeImage, configType, sha256Of(config), strings.Join(layers, ",")))
	}
	const ordinary = "application/vnd.oci.image.layer.v1.tar+gzip"
	for _, foreign := range []string{
		"application/vnd.oci.image.layer.nondistributable.v1.tar", "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
		"application/vnd.oci.image.layer.nondistributable.v1.tar+zstd", "application/vnd.docker.image.rootfs.foreign.diff.tar",
		"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
	} {
		s.putManifest("a", "foreign", oci.MediaTypeImage, body("x/y", 5, foreign)).want(201)
		s.putManifest("a", "both", oci.MediaTypeImage, body("x/y", 5, foreign, ordinary)).wantError(400, oci.CodeManifestBlobUnknown)
		s.putManifest("a", "both", oci.MediaTypeImage, body("x/y", 5, ordinary, foreign)).wantError(400, oci.CodeManifestBlobUnknown)
		s.putManifest("b", "config", oci.MediaTypeImage, body(foreign, 5, foreign)).wantError(400, oci.CodeManifestBlobUnknown)
	}
	s.push("a", layer)
	s.putManifest("a", "both", oci.MediaTypeImage, body("x/y", 5, "application/vnd.docker.image.rootfs.foreign.diff.tar", ordinary)).want(201)
	s.putManifest("a", "wrong", oci.MediaTypeImage, body("x/y", 6, "application/vnd.docker.image.rootfs.foreign.diff.tar")).wantError(400, oci.CodeManifestInvalid)
}

func TestR16_SizesOfPresentChildrenAreChecked(t *testing.T) {
	s := serve(t)
	i := s.pushImage("a", "", "one", "")
	layer := []byte("layer of a build cache")
	s.push("a", layer)
	index := func(d oci.Digest, size int) []byte {
		return []byte(fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[{"mediaType":"x/y","digest":%q,"size":%d}]}`, oci.MediaTypeIndex, d, size))
	}
	for d, size := range map[oci.Digest]int{i.digest: len(i.content), sha256Of(layer): len(layer)} {
		s.putManifest("a", "index", oci.MediaTypeIndex, index(d, size)).want(201)
		for _, wrong := range []int{0, size - 1, size + 1, 1 << 40} {
			s.putManifest("a", "index", oci.MediaTypeIndex, index(d, wrong)).wantError(400, oci.CodeManifestInvalid)
		}
		s.putManifest("elsewhere", "index", oci.MediaTypeIndex, index(d, size+1)).want(201) // what is absent has no size
	}
}
