package endpoint_test

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fairway-registry/fairway/internal/agent/inuse"
	"github.com/fairway-registry/fairway/internal/agent/inuse/endpoint"
)

// machine is a root directory with a path that is short enough for sockets.
func machine(t *testing.T) string {
	t.Helper()
	root, err := os.MkdirTemp("", "m")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(root) })
	return root
}

func detector(t *testing.T, o endpoint.DetectorOptions) *endpoint.Detector {
	t.Helper()
	d, err := endpoint.NewDetector(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func names(sources []inuse.Source) []string {
	all := []string{}
	for _, s := range sources {
		all = append(all, s.Name())
	}
	return all
}

// engine serves an empty Docker engine at a socket.
func engine(t *testing.T, path string) *http.Server {
	t.Helper()
	srv := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Api-Version", "1.41")
		w.Header().Set("Content-Type", "application/json")
		if strings.HasSuffix(r.URL.Path, "/json") {
			_, _ = w.Write([]byte("[]"))
		}
	})}
	l := listen(t, path)
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close() })
	return srv
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); <-time.After(2 * time.Millisecond) {
		if is() {
			return
		}
	}
	t.Fatalf("within a minute it was not so that %s", what)
}

func TestN13_EveryUsualSocketIsFound(t *testing.T) {
	for path, want := range map[string]string{
		"run/containerd/containerd.sock":               "containerd",
		"run/k3s/containerd/containerd.sock":           "k3s", // RKE2 too
		"run/k0s/containerd.sock":                      "k0s",
		"var/snap/microk8s/common/run/containerd.sock": "microk8s",
		"run/crio/crio.sock":                           "cri-o",
		"var/run/crio/crio.sock":                       "cri-o",
		"run/docker.sock":                              "docker",
		"var/run/docker.sock":                          "docker",
		"run/podman/podman.sock":                       "podman",
		"run/user/1000/podman/podman.sock":             "podman-1000",
		"run/user/1001/docker.sock":                    "docker-1001",
	} {
		root := machine(t)
		d := detector(t, endpoint.DetectorOptions{Root: root})
		if got := d.Find(); len(got) != 0 {
			t.Errorf("nothing is there: %v", names(got))
		}
		listen(t, filepath.Join(root, path))
		if got := names(d.Find()); !slices.Equal(got, []string{want}) {
			t.Errorf("%s: found %v, want %s", path, got, want)
		}
		if got := d.Find(); len(got) != 0 {
			t.Errorf("%s: found again: %v", path, names(got))
		}
		if got := d.Endpoints(); len(got) != 1 || !strings.HasSuffix(got[0], "://"+root+"/"+path) {
			t.Errorf("%s: endpoints %v", path, got)
		}
	}
}

func TestN13_ALinkToASocketIsTheSameRuntime(t *testing.T) {
	root := machine(t)
	listen(t, filepath.Join(root, "run/podman/podman.sock"))
	for _, err := range []error{
		os.Mkdir(filepath.Join(root, "var"), 0o750),
		os.Symlink(filepath.Join(root, "run"), filepath.Join(root, "var/run")),
		os.MkdirAll(filepath.Join(root, "run/user/1000"), 0o750),
		os.Symlink(filepath.Join(root, "run/podman/podman.sock"), filepath.Join(root, "run/user/1000/docker.sock")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	d := detector(t, endpoint.DetectorOptions{Root: root})
	if got := d.Find(); len(got) != 1 {
		t.Errorf("found %v, want one source", names(got))
	}
	// And one that comes later, where it is looked for first.
	late := filepath.Join(root, "run/docker.sock")
	if err := os.Symlink(filepath.Join(root, "run/podman/podman.sock"), late); err != nil {
		t.Fatal(err)
	}
	if got := d.Find(); len(got) != 0 {
		t.Errorf("found %v behind a link", names(got))
	}
}

// TestN13_ARuntimeThatDoesNotListenIsUnknown: what a runtime leaves below /run
// says that its containers may run.
func TestN13_ARuntimeThatDoesNotListenIsUnknown(t *testing.T) {
	for sign, socket := range map[string]string{
		"run/containerd/io.containerd.runtime.v2.task":                          "run/containerd/containerd.sock",
		"run/k3s/containerd/io.containerd.runtime.v2.task":                      "run/k3s/containerd/containerd.sock",
		"run/k0s/containerd/io.containerd.runtime.v2.task":                      "run/k0s/containerd.sock",
		"var/snap/microk8s/common/run/containerd/io.containerd.runtime.v2.task": "var/snap/microk8s/common/run/containerd.sock",
		"run/crio/version":        "run/crio/crio.sock",
		"run/docker/runtime-runc": "run/docker.sock",
		"run/containers/storage/overlay-containers/0123/userdata/conmon.pid":   "run/podman/podman.sock",
		"run/user/1000/containers/overlay-containers/0123/userdata/conmon.pid": "run/user/1000/podman/podman.sock",
	} {
		root := machine(t)
		if err := os.MkdirAll(filepath.Join(root, sign), 0o750); err != nil {
			t.Fatal(err)
		}
		d := detector(t, endpoint.DetectorOptions{Root: root})
		got := d.Find()
		if len(got) != 1 {
			t.Errorf("%s: found %v, want a source that cannot be asked", sign, names(got))
			continue
		}
		if _, err := got[0].Snapshot(t.Context()); err == nil || !strings.Contains(err.Error(), filepath.Join(root, socket)) {
			t.Errorf("%s: it answers %v, want that nobody listens at %s", sign, err, socket)
		}
		listen(t, filepath.Join(root, socket))
		if more := d.Find(); len(more) != 1 {
			t.Errorf("%s: when it listens, %v was found", sign, names(more))
		}
		if _, err := got[0].Snapshot(t.Context()); err != nil {
			t.Errorf("%s: when it listens: %v", sign, err)
		}
	}
}

// TestN13_TheShimsOfAnotherContainerdAreNoSign: all of them have their sockets
// in /run/containerd.
func TestN13_TheShimsOfAnotherContainerdAreNoSign(t *testing.T) {
	root := machine(t)
	listen(t, filepath.Join(root, "run/containerd/s/0123"))
	listen(t, filepath.Join(root, "run/k3s/containerd/containerd.sock"))
	if got := names(detector(t, endpoint.DetectorOptions{Root: root}).Find()); !slices.Equal(got, []string{"k3s"}) {
		t.Errorf("found %v, want k3s only", got)
	}
}

func TestN13_AnotherUsersPodmanIsStillUnknown(t *testing.T) {
	root := machine(t)
	listen(t, filepath.Join(root, "run/user/1000/podman/podman.sock"))
	if err := os.MkdirAll(filepath.Join(root, "run/user/1001/containers/vfs-containers/0123/userdata/conmon.pid"), 0o750); err != nil {
		t.Fatal(err)
	}
	if got := names(detector(t, endpoint.DetectorOptions{Root: root}).Find()); !slices.Equal(got, []string{"podman-1000", "detection"}) {
		t.Errorf("found %v, want the one who listens, and a doubt about the other", got)
	}
}

// TestN13_APlaceThatCannotBeLookedAtIsUnknown takes a loop of links, which stops
// root too, for a directory that may not be entered.
func TestN13_APlaceThatCannotBeLookedAtIsUnknown(t *testing.T) {
	for _, at := range []string{"run/docker.sock", "run/user", "run/user/1000/podman", "run/containers/storage"} {
		root := machine(t)
		loop := filepath.Join(root, at)
		if err := os.MkdirAll(filepath.Dir(loop), 0o750); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(loop, loop); err != nil {
			t.Fatal(err)
		}
		got := detector(t, endpoint.DetectorOptions{Root: root}).Find()
		if len(got) != 1 {
			t.Errorf("%s: found %v, want a source that cannot be asked", at, names(got))
			continue
		}
		if _, err := got[0].Snapshot(t.Context()); err == nil {
			t.Errorf("%s: it answers", at)
		}
		if err := os.Remove(loop); err != nil {
			t.Fatal(err)
		}
		if _, err := got[0].Snapshot(t.Context()); err != nil {
			t.Errorf("%s: when it can be looked at: %v", at, err)
		}
	}
}

func watch(t *testing.T, d *endpoint.Detector) (found func() []string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	sources, ended := make(chan inuse.Source, 100), make(chan struct{})
	looks := make(chan struct{}, 1)
	go func() {
		defer close(ended)
		d.Watch(ctx, func() {
			for _, s := range d.Find() {
				sources <- s
			}
			select {
			case looks <- struct{}{}:
			default:
			}
		})
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	<-looks
	var all []string
	return func() []string {
		for {
			select {
			case s := <-sources:
				all = append(all, s.Name())
			default:
				return all
			}
		}
	}
}

func TestN13_ASocketThatAppearsIsFoundByItsEvent(t *testing.T) {
	root := machine(t)
	found := watch(t, detector(t, endpoint.DetectorOptions{Root: root, Every: 24 * time.Hour}))
	var want []string
	for _, at := range [][2]string{{"run/containerd/containerd.sock", "containerd"}, {"run/user/1000/podman/podman.sock", "podman-1000"}, {"run/docker.sock", "docker"}} {
		want = append(want, at[1])
		listen(t, filepath.Join(root, at[0]))
		eventually(t, at[0]+" is found", func() bool { return slices.Equal(found(), want) })
	}
}

func TestN13_ASocketThatAppearsWithoutAnEventIsFoundInTime(t *testing.T) {
	root, elsewhere := machine(t), machine(t)
	if err := os.MkdirAll(filepath.Join(root, "run"), 0o750); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(elsewhere, "d.sock"), filepath.Join(root, "run/docker.sock")); err != nil {
		t.Fatal(err)
	}
	found := watch(t, detector(t, endpoint.DetectorOptions{Root: root, Every: 10 * time.Millisecond}))
	if got := found(); len(got) != 0 {
		t.Fatalf("found %v behind a link that leads nowhere", got)
	}
	listen(t, filepath.Join(elsewhere, "d.sock"))
	eventually(t, "it is found", func() bool { return len(found()) == 1 })
}

// TestN13_WhatHasAnsweredIsKnownAfterARestart: the agent may be restarted while
// a runtime is away.
func TestN13_WhatHasAnsweredIsKnownAfterARestart(t *testing.T) {
	root := machine(t)
	o := endpoint.DetectorOptions{Root: root, File: filepath.Join(root, "runtimes")}
	silent := listen(t, filepath.Join(root, "run/docker.sock"))
	srv := engine(t, filepath.Join(root, "run/podman/podman.sock"))
	tracker := inuse.NewTracker(nil, inuse.Options{Finder: detector(t, o), AskTimeout: time.Minute})
	// Nothing answers at the first socket, and Ask would wait for it.
	go func() { _, _ = tracker.Ask(t.Context()) }()
	eventually(t, "podman has answered, and that is written down", func() bool {
		content, err := os.ReadFile(o.File)
		return err == nil && len(content) > 0
	})
	if err := srv.Close(); err != nil {
		t.Fatal(err)
	}
	_ = silent.Close() // its socket goes with it
	again := detector(t, o).Find()
	if got := names(again); !slices.Equal(got, []string{"podman"}) {
		t.Fatalf("after a restart %v is known, want what had answered", got)
	}
	if _, err := again[0].Snapshot(t.Context()); err == nil {
		t.Error("it is away and answers")
	}
}

// TestN13_ARememberedRuntimeIsOneAlsoBehindALink that was not there at the start.
func TestN13_ARememberedRuntimeIsOneAlsoBehindALink(t *testing.T) {
	root, elsewhere := machine(t), machine(t)
	at := filepath.Join(root, "run/docker.sock")
	file := filepath.Join(root, "runtimes")
	if err := os.WriteFile(file, []byte("docker://"+at+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	d := detector(t, endpoint.DetectorOptions{Root: root, File: file})
	if got := d.Find(); len(got) != 1 {
		t.Fatalf("found %v, want what is remembered", names(got))
	}
	listen(t, filepath.Join(elsewhere, "d.sock"))
	if err := os.MkdirAll(filepath.Dir(at), 0o750); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(elsewhere, "d.sock"), at); err != nil {
		t.Fatal(err)
	}
	if got := d.Find(); len(got) != 0 {
		t.Errorf("found again: %v", names(got))
	}
}

func TestN13_AFileThatCannotBeReadIsRefused(t *testing.T) {
	dir := t.TempDir()
	for text, want := range map[string]string{
		"containerd:///run/containerd/containerd.sock\nrkt:///run/x.sock\n": "rkt:///run/x.sock",
		"docker://run/x.sock":                         "docker://run/x.sock",
		"unix:///run/x.sock":                          "unix:///run/x.sock",
		"docker:///run/x.sock docker:///run/y.sock":   "docker:///run/y.sock",
		"docker:///run/x.sock 2026-11-30T09:00:00Z z": "2026-11-30T09:00:00Z z",
	} {
		file := filepath.Join(dir, "runtimes")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := endpoint.NewDetector(endpoint.DetectorOptions{Root: dir, File: file}); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), file) {
			t.Errorf("%q: %v, want it refused with the file and the line", text, err)
		}
	}
	if _, err := endpoint.NewDetector(endpoint.DetectorOptions{Root: dir, File: dir}); err == nil {
		t.Error("a directory in the place of the file was taken for none")
	}
}

// TestN13_AFileThatCannotBeWrittenIsWrittenLater as on a full disk.
func TestN13_AFileThatCannotBeWrittenIsWrittenLater(t *testing.T) {
	root := machine(t)
	file := filepath.Join(root, "data", "runtimes")
	listen(t, filepath.Join(root, "run/docker.sock"))
	d := detector(t, endpoint.DetectorOptions{Root: root, File: file})
	d.Answered(d.Find()[0])
	if err := os.Mkdir(filepath.Dir(file), 0o750); err != nil {
		t.Fatal(err)
	}
	d.Find()
	if got, err := os.ReadFile(file); err != nil || !strings.HasPrefix(string(got), "docker://"+root+"/run/docker.sock 20") {
		t.Errorf("the file has %q, %v", got, err)
	}
}
