package distapi_test

import (
	"io"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/gc"
	"github.com/fairway-registry/fairway/internal/registry/meta"
)

func TestSpec_DeletingTags(t *testing.T) {
	s := serve(t)
	i := s.pushImage("a", "v1", "one", "")
	s.putManifest("a", "v2", oci.MediaTypeImage, i.content).want(201)
	s.do("DELETE", "/v2/a/manifests/v1", nil).want(202)
	s.do("GET", "/v2/a/manifests/v1", nil).wantError(404, oci.CodeManifestUnknown)
	s.do("GET", "/v2/a/manifests/v2", nil).want(200)
	s.do("GET", "/v2/a/manifests/"+string(i.digest), nil).want(200)
	s.do("DELETE", "/v2/a/manifests/v1", nil).wantError(404, oci.CodeManifestUnknown)
}

func TestSpec_DeletingManifests(t *testing.T) {
	s := serve(t)
	i := s.pushImage("a", "v1", "one", "")
	s.pushImage("a", "keep", "two", "")
	s.do("DELETE", "/v2/a/manifests/"+string(i.digest), nil).want(202)
	for _, ref := range []string{"v1", string(i.digest)} {
		s.do("GET", "/v2/a/manifests/"+ref, nil).wantError(404, oci.CodeManifestUnknown)
		s.do("HEAD", "/v2/a/manifests/"+ref, nil).want(404)
	}
	s.do("GET", "/v2/a/tags/list", nil).want(200).wantBody([]byte(`{"name":"a","tags":["keep"]}`))
	s.do("DELETE", "/v2/a/manifests/"+string(i.digest), nil).wantError(404, oci.CodeManifestUnknown)
}

func TestSpec_DeletingManifests_UnknownRepositoryIs404(t *testing.T) {
	s := serve(t)
	s.do("DELETE", "/v2/nobody/manifests/"+string(sha256Of(nil)), nil).wantError(404, oci.CodeManifestUnknown)
	s.do("DELETE", "/v2/nobody/manifests/v1", nil).wantError(404, oci.CodeManifestUnknown)
	s.do("DELETE", "/v2/nobody/manifests/v1", nil).want(404)
}

func TestSpec_DeletingBlobs(t *testing.T) {
	s := serve(t)
	d := s.push("a", []byte("blob"))
	other := s.push("b", []byte("blob"))
	s.do("DELETE", "/v2/a/blobs/"+string(d), nil).want(202)
	s.do("GET", "/v2/a/blobs/"+string(d), nil).wantError(404, oci.CodeBlobUnknown)
	s.do("HEAD", "/v2/a/blobs/"+string(d), nil).want(404)
	s.do("GET", "/v2/b/blobs/"+string(other), nil).want(200)
	s.do("DELETE", "/v2/a/blobs/"+string(d), nil).wantError(404, oci.CodeBlobUnknown)
}

func TestR1_DeletingABlobThatALivingManifestNeedsIsRefused(t *testing.T) {
	s := serve(t)
	i := s.pushImage("a", "v1", "one", "")
	s.do("DELETE", "/v2/a/blobs/"+string(i.layer), nil).wantError(405, oci.CodeDenied).wantHeader("Allow", "GET, HEAD")
	s.do("GET", "/v2/a/blobs/"+string(i.layer), nil).want(200)
	s.do("DELETE", "/v2/a/manifests/"+string(i.digest), nil).want(202)
	s.do("DELETE", "/v2/a/blobs/"+string(i.layer), nil).want(202)
	s.do("GET", "/v2/a/blobs/"+string(i.layer), nil).want(404)
}

func TestActor_IsTheRemoteHostByDefault(t *testing.T) {
	s := serve(t)
	d := s.push("a", []byte("blob"))
	s.do("DELETE", "/v2/a/blobs/"+string(d), nil).want(202)
	log, err := s.store.Deletions(t.Context(), string(d), 0, 0, 10)
	if err != nil {
		t.Fatal(err)
	}
	if len(log) != 1 || log[0].Actor != "anonymous@127.0.0.1" {
		t.Errorf("deletion log: %+v, want one entry by anonymous@127.0.0.1", log)
	}
}

func TestR3_HeadOfABlobIsAConfirmationAndGetIsNone(t *testing.T) {
	var now atomic.Int64
	now.Store(1_000_000)
	s := serveWith(t, options{now: now.Load})
	collector := gc.New(s.store, s.files, gc.Options{Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	due := func() int64 {
		t.Helper()
		run, _, err := collector.DryRun(t.Context(), meta.Policy{Window: meta.Duration(30 * time.Minute)}, 10, nil)
		if err != nil {
			t.Fatal(err)
		}
		return run.Unlinked
	}
	path := "/v2/a/blobs/" + string(s.push("a", []byte("blob")))
	now.Add(time.Hour.Milliseconds())
	s.do("GET", path, nil).want(200)
	if n := due(); n != 1 {
		t.Errorf("after a GET %d links are due, want the one", n)
	}
	s.do("HEAD", path, nil).want(200)
	if n := due(); n != 0 {
		t.Errorf("after a HEAD %d links are due, want none", n)
	}
}
