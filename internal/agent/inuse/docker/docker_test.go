package docker_test

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"

	"github.com/fairway-registry/fairway/internal/agent/inuse"
	"github.com/fairway-registry/fairway/internal/agent/inuse/docker"
	"github.com/fairway-registry/fairway/internal/oci"
)

var (
	config, manifest = digest.FromString("config"), digest.FromString("manifest")
	other            = digest.FromString("the tag's present target")
	layers           = []oci.Digest{digest.FromString("1"), digest.FromString("2")}
)

type object = map[string]any

// engine answers what an engine of API 1.41 does, as Podman 4 and Docker 20.10
// are; answers are by path after the version.
func engine(t *testing.T, answers object) *docker.Source {
	t.Helper()
	path := filepath.Join(t.TempDir(), "d.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := &httptest.Server{Listener: l, Config: &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Api-Version", "1.41")
		w.Header().Set("Content-Type", "application/json")
		if r.URL.Path == "/_ping" {
			return
		}
		answer, ok := answers[strings.TrimPrefix(r.URL.Path, "/v1.41")]
		if !ok {
			w.WriteHeader(http.StatusNotFound)
			answer = object{"message": "no such thing"}
		}
		if cut, ok := answer.(string); ok {
			// Half of an answer, and the connection is gone.
			w.Header().Set("Content-Length", "10000")
			_, _ = w.Write([]byte(cut))
			panic(http.ErrAbortHandler)
		}
		_ = json.NewEncoder(w).Encode(answer)
	})}}
	srv.Start()
	t.Cleanup(srv.Close)
	s, err := docker.New(docker.Options{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func read(t *testing.T, s *docker.Source) inuse.Snapshot {
	t.Helper()
	got, err := s.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestContainerLeadsToConfigManifestAndChain(t *testing.T) {
	for _, id := range []string{string(config), strings.TrimPrefix(string(config), "sha256:")} {
		got := read(t, engine(t, object{
			"/images/json":            []object{{"Id": id, "RepoTags": []string{"app:1"}, "RepoDigests": []string{"app@" + string(manifest)}}},
			"/images/" + id + "/json": object{"Id": id, "RootFS": object{"Type": "layers", "Layers": layers}},
			"/containers/json":        []object{{"Id": "c", "Names": []string{"/web"}, "Image": "app:1", "ImageID": id, "State": "paused", "Created": 1700000000}},
		})).Containers[0]
		want := []oci.Digest{config, manifest}
		slices.Sort(want)
		if !slices.Equal(got.Digests, want) || !slices.Equal(got.ChainIDs, []oci.Digest{identity.ChainID(slices.Clone(layers))}) {
			t.Errorf("image ID %.16s…: digests %v, chains %v", id, got.Digests, got.ChainIDs)
		}
		if got.Name != "web" || got.State != inuse.Paused || got.Since.Unix() != 1700000000 {
			t.Errorf("got %+v", got)
		}
	}
}

// TestTrap_AMovedTagIsNeverLookedUp: the container's name leads to another
// image now, and its own was removed by force.
func TestTrap_AMovedTagIsNeverLookedUp(t *testing.T) {
	got := read(t, engine(t, object{
		"/images/json":     []object{{"Id": other, "RepoTags": []string{"app:1"}, "RepoDigests": []string{"app@" + string(other)}}},
		"/containers/json": []object{{"Id": "c", "Image": "app:1", "ImageID": config, "State": "running"}},
	})).Containers[0]
	if !slices.Equal(got.Digests, []oci.Digest{config}) {
		t.Errorf("it runs %v, want the image ID only", got.Digests)
	}
}

// TestTrap_HalfAListIsAnError: a connection that breaks in the middle of an
// answer is no shorter list.
func TestTrap_HalfAListIsAnError(t *testing.T) {
	images, containers := []object{}, []object{}
	for name, answers := range map[string]object{
		"images cut":     {"/images/json": `[{"Id":"` + string(config) + `"}`, "/containers/json": containers},
		"containers cut": {"/images/json": images, "/containers/json": `[{"Id":"c","State":"running"}`},
		"no containers":  {"/images/json": images},
		"no images":      {"/containers/json": containers},
	} {
		if got, err := engine(t, answers).Snapshot(t.Context()); err == nil {
			t.Errorf("%s: got %+v without an error", name, got)
		}
	}
}

// TestR16_AnAnswerWithoutEndIsAnError: the socket may be one of a user.
func TestR16_AnAnswerWithoutEndIsAnError(t *testing.T) {
	name := strings.Repeat("x", 1<<20)
	images := []object{}
	for range 33 {
		images = append(images, object{"Id": config, "RepoTags": []string{name}})
	}
	_, err := engine(t, object{"/images/json": images, "/containers/json": []object{}}).Snapshot(t.Context())
	if err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("33 MiB of images: error %v", err)
	}
}

func TestStates(t *testing.T) {
	for from, want := range map[string]inuse.State{
		"running": inuse.Running, "restarting": inuse.Running, "paused": inuse.Paused, "created": inuse.Created,
		"exited": inuse.Exited, "dead": inuse.Exited, "stopped": inuse.Exited,
		"removing": inuse.Unsure, "stopping": inuse.Unsure, "": inuse.Unsure, "something new": inuse.Unsure,
	} {
		got := read(t, engine(t, object{"/images/json": []object{}, "/containers/json": []object{{"Id": "c", "State": from}}})).Containers[0]
		if got.State != want {
			t.Errorf("%q is read as %v, want %v", from, got.State, want)
		}
	}
}

func TestN3_NobodyThereIsAnError(t *testing.T) {
	s, err := docker.New(docker.Options{Path: filepath.Join(t.TempDir(), "nobody.sock")})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if got, err := s.Snapshot(ctx); err == nil || ctx.Err() != nil {
		t.Errorf("Snapshot: %+v, %v, context %v; want an error at once", got, err, ctx.Err())
	}
	if err := s.Watch(ctx, func() {}); err == nil || ctx.Err() != nil {
		t.Errorf("Watch: %v, context %v; want an error at once", err, ctx.Err())
	}
}
