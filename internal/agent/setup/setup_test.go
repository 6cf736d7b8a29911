package setup_test

import (
	"errors"
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/fairway-registry/fairway/internal/agent/setup"
	"github.com/fairway-registry/fairway/internal/fault"
)

var update = flag.Bool("update", false, "write what comes out into testdata instead of comparing with it")

// root is a file system of its own.
type root struct {
	*testing.T
	dir string
}

func newRoot(t *testing.T) root { return root{t, t.TempDir()} }

func (r root) write(path, content string) {
	r.Helper()
	at := filepath.Join(r.dir, path)
	if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
		r.Fatal(err)
	}
	if err := os.WriteFile(at, []byte(content), 0o640); err != nil {
		r.Fatal(err)
	}
}

// tree reads all files and directories, but for setup's own record.
func (r root) tree() map[string]string {
	r.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(r.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(r.dir, path)
		switch {
		case err != nil:
			return err
		case rel == "var":
			return filepath.SkipDir
		case d.IsDir():
			all[rel+"/"] = ""
			return nil
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		content, err := os.ReadFile(path)
		all[rel] = string(content)
		all[rel+" mode"] = fi.Mode().String()
		return err
	})
	if err != nil {
		r.Fatal(err)
	}
	return all
}

func (r root) same(what string, before, after map[string]string) {
	r.Helper()
	for path, content := range before {
		if got, ok := after[path]; !ok || got != content {
			r.Errorf("%s: %s is %q, want %q", what, path, got, content)
		}
	}
	for path := range after {
		if _, ok := before[path]; !ok {
			r.Errorf("%s: there is %s, which was not", what, path)
		}
	}
}

func (r root) options(runtime string, upstreams ...string) setup.Options {
	o := setup.Options{Runtime: runtime, Root: r.dir, Listen: "127.0.0.1:5001", Docker: "127.0.0.1:5002"}
	for _, u := range upstreams {
		name, url, _ := strings.Cut(u, "=")
		o.Upstreams = append(o.Upstreams, setup.Upstream{Name: name, Server: url})
	}
	return o
}

func (r root) setUp(o setup.Options) setup.Plan {
	r.Helper()
	p, err := setup.Make(o)
	if err != nil {
		r.Fatal(err)
	}
	if err := p.Apply(); err != nil {
		r.Fatal(err)
	}
	return p
}

func (r root) undo(runtime string) setup.Plan {
	r.Helper()
	p, err := setup.Undo(runtime, r.dir)
	if err != nil {
		r.Fatal(err)
	}
	if err := p.Apply(); err != nil {
		r.Fatal(err)
	}
	return p
}

// TestGolden sets up each runtime over what testdata says is there. A file has
// the runtime and upstreams in its first line, what is there below in/, what
// comes of it below out/, the diff, the notes, or the error. Each is done twice,
// which changes nothing more, and undone.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("testdata: %q, %v", files, err)
	}
	for _, path := range files {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) { golden(t, path) })
	}
}

func golden(t *testing.T, path string) {
	a, err := txtar.ParseFile(path)
	if err != nil {
		t.Fatal(err)
	}
	r := newRoot(t)
	var in []txtar.File
	for _, f := range a.Files {
		if name, ok := strings.CutPrefix(f.Name, "in/"); ok {
			in = append(in, f)
			r.write(name, string(f.Data))
		}
	}
	words := strings.Fields(string(a.Comment))
	before := r.tree()
	o := r.options(words[0], words[1:]...)
	out := in
	show := func(name, content string) {
		if content != "" {
			out = append(out, txtar.File{Name: name, Data: []byte(strings.ReplaceAll(content, r.dir, ""))})
		}
	}
	p, err := setup.Make(o)
	if err != nil {
		if !errors.Is(err, fault.Conflict) {
			t.Errorf("the error is no conflict: %v", err)
		}
		show("error", err.Error()+"\n")
	} else {
		show("diff", p.Diff())
		show("notes", strings.Join(p.Notes, "\n")+"\n")
		r.same("planned", before, r.tree())
		if err := p.Apply(); err != nil {
			t.Fatal(err)
		}
		after := r.tree()
		for _, name := range slices.Sorted(mapKeys(after)) {
			if content := after[name]; !strings.HasSuffix(name, "/") && !strings.HasSuffix(name, " mode") && content != before[name] {
				show("out/"+name, content)
			}
		}
		if again := r.setUp(o); len(again.Changes) != 0 {
			t.Errorf("done again it changes:\n%s", again.Diff())
		}
		r.same("done again", after, r.tree())
		r.undo(words[0])
	}
	r.same("undone", before, r.tree())
	got := txtar.Format(&txtar.Archive{Comment: a.Comment, Files: out})
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Errorf("%s is not what comes out (go test -update writes it):\n%s", path, got)
	}
}

func mapKeys(m map[string]string) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

func TestUndo_BringsBackWhatWasThereBeforeSeveralSetups(t *testing.T) {
	r := newRoot(t)
	r.write("etc/docker/daemon.json", "{\n\t\"debug\": true\n}")
	before := r.tree()
	o := r.options(setup.Docker, "docker.io")
	r.setUp(o)
	o.Docker = "127.0.0.1:7000"
	r.setUp(o)
	r.undo(setup.Docker)
	r.same("undone", before, r.tree())
	if _, err := setup.Undo(setup.Docker, r.dir); !errors.Is(err, fault.NotFound) {
		t.Errorf("undone twice: %v", err)
	}
}

func TestUndo_RefusesWhatSomebodyHasChangedSince(t *testing.T) {
	r := newRoot(t)
	r.write("etc/docker/daemon.json", `{"debug": true}`)
	r.setUp(r.options(setup.Docker, "docker.io"))
	r.write("etc/docker/daemon.json", `{"debug": false}`)
	before := r.tree()
	_, err := setup.Undo(setup.Docker, r.dir)
	if !errors.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "docker-1/etc/docker/daemon.json") {
		t.Fatalf("error %v", err)
	}
	r.same("refused", before, r.tree())
	backup, err := os.ReadFile(filepath.Join(r.dir, "var/lib/fairway-node/setup/docker-1/etc/docker/daemon.json"))
	if err != nil || string(backup) != `{"debug": true}` {
		t.Errorf("backup %q, %v", backup, err)
	}
}

func TestUndo_GoesBackToWhereSomebodyChangedAFileBetweenTwoSetups(t *testing.T) {
	r := newRoot(t)
	r.write("etc/docker/daemon.json", `{"debug": true}`)
	o := r.options(setup.Docker, "docker.io")
	r.setUp(o)
	r.write("etc/docker/daemon.json", `{"registry-mirrors": ["http://127.0.0.1:5002"], "debug": false}`)
	between := r.tree()
	o.Docker = "127.0.0.1:7000"
	r.setUp(o)
	p := r.undo(setup.Docker)
	r.same("undone", between, r.tree())
	if !strings.Contains(strings.Join(p.Notes, "\n"), "somebody else") {
		t.Errorf("notes %q", p.Notes)
	}
}

func TestUndo_AfterACrashInTheMiddle(t *testing.T) {
	r := newRoot(t)
	r.write("etc/containerd/config.toml", "version = 2\n")
	before := r.tree()
	r.setUp(r.options(setup.Containerd, "docker.io"))
	// The record is there, and only the first file was written.
	r.write("etc/containerd/config.toml", "version = 2\n")
	if err := os.Remove(filepath.Join(r.dir, "etc/containerd/certs.d/docker.io/hosts.toml")); err != nil {
		t.Fatal(err)
	}
	r.undo(setup.Containerd)
	after := r.tree()
	delete(after, "etc/containerd/certs.d/docker.io/") // the crash left it
	delete(after, "etc/containerd/certs.d/")
	r.same("undone", before, after)
}

func TestUndo_KeepsDirectoriesThatSomebodyUses(t *testing.T) {
	r := newRoot(t)
	r.setUp(r.options(setup.Containerd, "docker.io"))
	r.write("etc/containerd/certs.d/other/hosts.toml", "x = 1\n")
	r.undo(setup.Containerd)
	after := r.tree()
	if _, left := after["etc/containerd/config.toml"]; left || after["etc/containerd/certs.d/other/hosts.toml"] != "x = 1\n" {
		t.Errorf("left: %v", after)
	}
}

func TestApply_RefusesAFileThatChangedSinceThePlan(t *testing.T) {
	r := newRoot(t)
	p, err := setup.Make(r.options(setup.Docker, "docker.io"))
	if err != nil {
		t.Fatal(err)
	}
	r.write("etc/docker/daemon.json", `{"debug": false}`)
	before := r.tree()
	if err := p.Apply(); !errors.Is(err, fault.Conflict) {
		t.Errorf("error %v", err)
	}
	r.same("refused", before, r.tree())
}

func TestMake_FollowsSymbolicLinksWithinTheRoot(t *testing.T) {
	r := newRoot(t)
	r.write("srv/daemon.json", `{}`)
	r.write("etc/docker/x", "")
	link := filepath.Join(r.dir, "etc/docker/daemon.json")
	if err := os.Symlink("../../srv/daemon.json", link); err != nil {
		t.Fatal(err)
	}
	r.setUp(r.options(setup.Docker, "docker.io"))
	if fi, err := os.Lstat(link); err != nil || fi.Mode()&fs.ModeSymlink == 0 || !strings.Contains(r.tree()["srv/daemon.json"], "5002") {
		t.Errorf("the link is %v, %v; its target %q", fi, err, r.tree()["srv/daemon.json"])
	}
	if err := errors.Join(os.Remove(link), os.Symlink("/etc/hostname", link)); err != nil {
		t.Fatal(err)
	}
	if _, err := setup.Make(r.options(setup.Docker, "docker.io")); !errors.Is(err, fault.Conflict) {
		t.Errorf("a link out of the root: %v", err)
	}
}

func TestMake_RefusesOptionsThatCannotBe(t *testing.T) {
	r := newRoot(t)
	for name, o := range map[string]setup.Options{
		"no such runtime":     r.options("rkt", "docker.io"),
		"a path as upstream":  r.options(setup.Podman, "../../etc"),
		"a quote in it":       r.options(setup.Podman, `a"b`),
		"an upstream twice":   r.options(setup.Podman, "docker.io", "docker.io"),
		"no URL of a server":  r.options(setup.Podman, "docker.io=ftp://x"),
		"a quote in a server": r.options(setup.Podman, "docker.io=http://x\"y"),
		"no address":          {Runtime: setup.Docker, Root: r.dir, Listen: "5001", Docker: "127.0.0.1:5002"},
	} {
		if _, err := setup.Make(o); !errors.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
