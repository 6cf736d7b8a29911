package agent

import (
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fairway-registry/fairway/internal/adminclient"
	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/nodeapi"
	"github.com/fairway-registry/fairway/internal/setting"
)

// engine serves a Docker engine with nothing in it at a socket, which goes with it.
func engine(t *testing.T, path string) *http.Server {
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
	return srv
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

// TestN13_ARuntimeThatIsGoneForGoodIsForgotten on the socket alone. Nothing is kept for
// it any more, after a restart neither.
func TestN13_ARuntimeThatIsGoneForGoodIsForgotten(t *testing.T) {
	root, err := os.MkdirTemp("", "m")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(root) })
	cfg := testConfig(t)
	cfg.Runtime, cfg.root = nil, root
	docker := filepath.Join(root, "run/docker.sock")
	engine(t, filepath.Join(root, "run/podman/podman.sock"))
	srv := engine(t, docker)
	a, stop := start(t, cfg)
	both := []string{"docker", "podman"}
	eventually(t, "both answer", func() bool { return slices.Equal(a.answering(), both) })
	c, err := adminclient.New("unix://" + cfg.adminSocket())
	if err != nil {
		t.Fatal(err)
	}
	forget := func() (forgotten nodeapi.KnownRuntime, err error) {
		return forgotten, c.Call(t.Context(), "DELETE", "/runtimes?name=docker", nil, &forgotten)
	}
	var refusal *adminclient.Error
	if _, err := forget(); !errors.As(err, &refusal) || refusal.Status != http.StatusConflict || !strings.Contains(refusal.Message, "docker answers") {
		t.Errorf("one that answers: %v", err)
	}
	if err := srv.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "docker does not answer", func() bool { return a.asks(t) && slices.Equal(a.answering(), []string{"podman"}) })
	if status, body := get(t, "http://"+a.Addr().String()+"/api/v1/runtimes"); status != http.StatusForbidden {
		t.Errorf("on TCP: %d %s", status, body)
	}
	var list nodeapi.RuntimeList
	if err := c.Call(t.Context(), "GET", "/runtimes", nil, &list); err != nil || len(list.Runtimes) != 2 {
		t.Fatalf("%+v, %v", list, err)
	}
	for _, r := range list.Runtimes {
		state := map[string]string{"docker": nodeapi.RuntimeSilent, "podman": nodeapi.RuntimeAnswers}[r.Name]
		if r.State != state || r.SeenAt == nil || !strings.Contains(r.Endpoint, root) {
			t.Errorf("%+v, want it %s", r, state)
		}
	}
	d := put(t, a, "perhaps a layer of a container of docker")
	if v, err := a.evictor.Explain(t.Context(), d); err != nil || v.Why != "unknown" {
		t.Errorf("before: %+v, %v", v, err)
	}
	if r, err := forget(); err != nil || r.Name != "docker" || r.Endpoint != "docker://"+docker {
		t.Fatalf("%+v, %v", r, err)
	}
	if v, err := a.evictor.Explain(t.Context(), d); err != nil || v.Why == "unknown" {
		t.Errorf("afterwards: %+v, %v", v, err)
	}
	if _, err := forget(); !errors.As(err, &refusal) || refusal.Status != http.StatusNotFound {
		t.Errorf("a second time: %v", err)
	}
	stop()
	a, _ = start(t, cfg)
	if got := a.Runtimes(); len(got) != 1 || !strings.Contains(got[0], "podman") {
		t.Errorf("after a restart %v are known", got)
	}
}

// asks has the runtimes asked, for tests that do not wait for the next question.
func (a *Agent) asks(t *testing.T) bool {
	t.Helper()
	_, err := a.tracker.Ask(t.Context())
	return err == nil
}

// TestRuntimes_NamedOnesAreListedWithTheirEndpoints, and stay.
func TestRuntimes_NamedOnesAreListedWithTheirEndpoints(t *testing.T) {
	cfg := testConfig(t)
	cfg.Runtime = setting.List{"docker:///nowhere/docker.sock"}
	a, _ := start(t, cfg)
	a.asks(t)
	list := a.knownRuntimes()
	if len(list) != 1 || list[0].Endpoint != cfg.Runtime[0] || list[0].State != nodeapi.RuntimeSilent || list[0].SeenAt != nil {
		t.Errorf("%+v", list)
	}
	if _, err := a.forgetRuntime(t.Context(), "docker"); !errors.Is(err, fault.Conflict) || len(a.knownRuntimes()) != 1 {
		t.Errorf("%v, %+v", err, a.knownRuntimes())
	}
}
