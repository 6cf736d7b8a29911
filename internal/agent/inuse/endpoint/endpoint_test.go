package endpoint_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	criapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/fairway-registry/fairway/internal/agent/inuse/endpoint"
	"github.com/fairway-registry/fairway/internal/fault"
)

var quiet = slog.New(slog.DiscardHandler)

func TestOpen_NeedsNobodyThere(t *testing.T) {
	for text, name := range map[string]string{
		"containerd:///run/containerd/containerd.sock":               "containerd",
		"cri:///run/crio/crio.sock":                                  "cri-o",
		"cri:///run/containerd/containerd.sock":                      "cri",
		"docker:///var/run/docker.sock":                              "docker",
		"docker:///run/podman/podman.sock":                           "podman",
		"unix:///run/crio/crio.sock":                                 "cri-o",
		"/run/podman/podman.sock":                                    "podman",
		"/run/somewhere/containerd.sock":                             "containerd",
		"containerd:///run/k3s/containerd/containerd.sock":           "k3s",
		"containerd:///run/k0s/containerd.sock":                      "k0s",
		"containerd:///var/snap/microk8s/common/run/containerd.sock": "microk8s",
		"docker:///run/user/1000/podman/podman.sock":                 "podman-1000",
		"unix:///run/user/1000/docker.sock":                          "docker-1000",
		"none":                                                       "none",
	} {
		s, err := endpoint.Open(t.Context(), text, quiet)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if s.Name() != name {
			t.Errorf("%s is called %q, want %q", text, s.Name(), name)
		}
		if err := s.Close(); err != nil {
			t.Errorf("%s: close: %v", text, err)
		}
	}
}

func TestOpen_Refuses(t *testing.T) {
	for _, text := range []string{"", "containerd", "containerd://", "containerd://run/c.sock", "tcp://127.0.0.1:2375", "run/c.sock", "rkt:///run/x.sock", "None"} {
		if _, err := endpoint.Open(t.Context(), text, quiet); !errors.Is(err, fault.Invalid) {
			t.Errorf("%q: %v, want it refused as invalid", text, err)
		}
	}
}

func listen(t *testing.T, path string) net.Listener {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// within gives a guess time enough for all kinds.
func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func TestGuess_Docker(t *testing.T) {
	path := filepath.Join(t.TempDir(), "engine.sock")
	s, err := endpoint.Open(t.Context(), path, quiet)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	if _, err := s.Snapshot(within(t)); err == nil {
		t.Error("nobody is there, and it answered")
	}
	srv := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Api-Version", "1.41")
		w.Header().Set("Content-Type", "application/json")
		if strings.HasSuffix(r.URL.Path, "/json") {
			_, _ = w.Write([]byte("[]"))
		}
	})}
	l := listen(t, path)
	go func() { _ = srv.Serve(l) }()
	defer func() { _ = srv.Close() }()
	if _, err := s.Snapshot(within(t)); err != nil {
		t.Errorf("an engine was started later: %v", err)
	}
}

// onlyCRI speaks the CRI and nothing of containerd's own API.
type onlyCRI struct {
	criapi.UnimplementedRuntimeServiceServer
	criapi.UnimplementedImageServiceServer
}

func (onlyCRI) Version(context.Context, *criapi.VersionRequest) (*criapi.VersionResponse, error) {
	return &criapi.VersionResponse{RuntimeName: "test"}, nil
}

func (onlyCRI) ListImages(context.Context, *criapi.ListImagesRequest) (*criapi.ListImagesResponse, error) {
	return &criapi.ListImagesResponse{Images: []*criapi.Image{{Id: "sha256:" + strings.Repeat("a", 64), RepoTags: []string{"app:1"}}}}, nil
}

func (onlyCRI) ListContainers(context.Context, *criapi.ListContainersRequest) (*criapi.ListContainersResponse, error) {
	return &criapi.ListContainersResponse{}, nil
}

func (onlyCRI) ListPodSandbox(context.Context, *criapi.ListPodSandboxRequest) (*criapi.ListPodSandboxResponse, error) {
	return &criapi.ListPodSandboxResponse{}, nil
}

func TestGuess_CRI(t *testing.T) {
	path := filepath.Join(t.TempDir(), "runtime.sock")
	srv := grpc.NewServer()
	criapi.RegisterRuntimeServiceServer(srv, onlyCRI{})
	criapi.RegisterImageServiceServer(srv, onlyCRI{})
	l := listen(t, path)
	go func() { _ = srv.Serve(l) }()
	defer srv.Stop()
	s, err := endpoint.Open(t.Context(), "unix://"+path, quiet)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	got, err := s.Snapshot(within(t))
	if err != nil || len(got.Images) != 1 || got.Images[0].Runtime != "runtime" {
		t.Errorf("got %+v, %v; want the image, of the runtime named for its socket", got, err)
	}
}

// TestGuess_SilentServer: one that accepts and says nothing is an error in time.
func TestGuess_SilentServer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "silent.sock")
	listen(t, path)
	s, err := endpoint.Open(t.Context(), path, quiet)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	ctx := within(t)
	if _, err := s.Snapshot(ctx); err == nil || ctx.Err() != nil {
		t.Errorf("Snapshot: %v, context %v; want an error before the deadline", err, ctx.Err())
	}
}
