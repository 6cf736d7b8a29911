package agent

import (
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fairway-registry/fairway/internal/setting"
)

// engine serves a Docker engine with nothing in it at a socket.
func engine(t *testing.T, path string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Api-Version", "1.41")
		w.Header().Set("Content-Type", "application/json")
		if strings.HasSuffix(r.URL.Path, "/json") {
			_, _ = w.Write([]byte("[]"))
		}
	})}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close() })
}

// answering lists the runtimes that answer, by name.
func (a *Agent) answering() []string {
	names := []string{}
	for _, r := range a.runtimes() {
		if r.Answers {
			names = append(names, r.Name)
		}
	}
	slices.Sort(names)
	return names
}

func TestN13_ARuntimeThatStartsLaterIsWatched(t *testing.T) {
	root, err := os.MkdirTemp("", "m") // whose path is short enough for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(root) })
	cfg := testConfig(t)
	cfg.Runtime, cfg.root = nil, root
	engine(t, filepath.Join(root, "run/podman/podman.sock"))
	a, stop := start(t, cfg)
	eventually(t, "podman answers", func() bool { return slices.Equal(a.answering(), []string{"podman"}) })
	engine(t, filepath.Join(root, "run/docker.sock"))
	both := []string{"docker", "podman"}
	eventually(t, "docker is watched too", func() bool { return slices.Equal(a.answering(), both) })
	if got := a.Runtimes(); len(got) != 2 || !strings.HasPrefix(got[1], "docker://") {
		t.Errorf("endpoints %v", got)
	}
	stop()

	// While it is away it is known after a restart.
	if err := os.Remove(filepath.Join(root, "run/docker.sock")); err != nil {
		t.Fatal(err)
	}
	a, _ = start(t, cfg)
	eventually(t, "podman answers", func() bool { return slices.Equal(a.answering(), []string{"podman"}) })
	d := put(t, a, "perhaps a layer of a container of docker")
	if v, err := a.evictor.Explain(t.Context(), d); err != nil || v.Why != "unknown" || !strings.Contains(v.Reason, "docker") {
		t.Errorf("%+v, %v; want that docker cannot be asked", v, err)
	}
}

func TestN13_WhereRuntimesAreNamedNoneIsDetected(t *testing.T) {
	root, err := os.MkdirTemp("", "m")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(root) })
	engine(t, filepath.Join(root, "run/docker.sock"))
	cfg := testConfig(t)
	cfg.Runtime, cfg.root = setting.List{"none"}, root
	a, _ := start(t, cfg)
	if u, err := a.tracker.Ask(t.Context()); err != nil || len(u.Sources) != 1 || len(u.Unknown) != 0 {
		t.Errorf("with runtime none: %+v, %v", u, err)
	}
}
