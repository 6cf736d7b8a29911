package endpoint_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairway-registry/fairway/internal/agent/inuse"
	"github.com/fairway-registry/fairway/internal/agent/inuse/endpoint"
)

// hang mounts a FUSE file system without a server: a process that opens it blocks
// until answer is called.
func hang(t *testing.T, dir string) (answer func()) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	fuse, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		t.Fatalf("FUSE is needed: %v", err)
	}
	err = unix.Mount("hang", dir, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fuse.Fd()))
	if err != nil {
		t.Fatalf("mount a file system that hangs on %s: %v (run the tests as root, or under `unshare --user --map-root-user --mount`)", dir, err)
	}
	answer = sync.OnceFunc(func() {
		_ = unix.Unmount(dir, unix.MNT_DETACH) // once only
		_ = fuse.Close()                       // blocked processes get an error
	})
	t.Cleanup(answer)
	return answer
}

// inTime fails the test if do does not return.
func inTime(t *testing.T, what string, do func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); do() }()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatalf("%s: it waits for a mount that hangs", what)
	}
}

// TestR17_AMountThatHangsDelaysNoLook: its place is unknown, with the reason, all others are
// looked at, and it is waited for once.
func TestR17_AMountThatHangsDelaysNoLook(t *testing.T) {
	root := machine(t)
	at := filepath.Join(root, "run/user/1000/podman")
	answer := hang(t, at)
	listen(t, filepath.Join(root, "run/docker.sock"))
	listen(t, filepath.Join(root, "run/user/1001/docker.sock"))
	d := detector(t, endpoint.DetectorOptions{Root: root})
	d.SetWait(50 * time.Millisecond)
	var found []inuse.Source
	inTime(t, "the first look", func() { found = d.Find() })
	eventually(t, "all others are found", func() bool { // each in its own time, on a busy machine
		found = append(found, d.Find()...)
		return slices.Contains(names(found), "docker") && slices.Contains(names(found), "docker-1001")
	})
	i := slices.Index(names(found), "detection")
	if i < 0 {
		t.Fatalf("found %v, without a doubt", names(found))
	}
	d.SetWait(time.Hour)
	inTime(t, "the second look", func() { d.Find() })
	inTime(t, "the question", func() {
		if _, err := found[i].Snapshot(t.Context()); err == nil || !strings.Contains(err.Error(), at) || !strings.Contains(err.Error(), "has not answered since") {
			t.Errorf("the place counts as looked at, or is not named: %v", err)
		}
	})
	answer()
	eventually(t, "nothing is in doubt", func() bool {
		_, err := found[i].Snapshot(t.Context())
		return err == nil
	})
	listen(t, filepath.Join(at, "podman.sock"))
	inTime(t, "a look after all", func() {
		if got := names(d.Find()); !slices.Equal(got, []string{"podman-1000"}) {
			t.Errorf("found %v", got)
		}
	})
}

// TestR17_AMountThatHangsStopsNoEvents, nor the start of an agent that remembers a socket in it.
func TestR17_AMountThatHangsStopsNoEvents(t *testing.T) {
	root := machine(t)
	at := filepath.Join(root, "run/user/1000/podman")
	if err := os.MkdirAll(filepath.Join(root, "run/podman"), 0o700); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(root, "runtimes")
	if err := os.WriteFile(file, []byte("docker://"+filepath.Join(at, "podman.sock")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	hang(t, at)
	var d *endpoint.Detector
	inTime(t, "the start", func() { d = detector(t, endpoint.DetectorOptions{Root: root, File: file, Every: time.Hour}) })
	if got := names(d.Sources()); !slices.Equal(got, []string{"podman-1000"}) {
		t.Errorf("remembered %v", got)
	}
	d.SetWait(50 * time.Millisecond)
	ctx, cancel := context.WithCancel(t.Context())
	looked := make(chan struct{}, 100)
	ended := make(chan struct{})
	go func() { defer close(ended); d.Watch(ctx, func() { looked <- struct{}{} }) }()
	inTime(t, "the first look", func() { <-looked })
	listen(t, filepath.Join(root, "run/podman/podman.sock"))
	inTime(t, "the look that an event asks for", func() { <-looked })
	cancel()
	inTime(t, "the end", func() { <-ended })
}

// TestR17_AMountThatHangsHidesNoOtherPlace: not even that of the list of users.
func TestR17_AMountThatHangsHidesNoOtherPlace(t *testing.T) {
	root := machine(t)
	at := filepath.Join(root, "run/user")
	hang(t, at)
	listen(t, filepath.Join(root, "run/docker.sock"))
	d := detector(t, endpoint.DetectorOptions{Root: root})
	d.SetWait(50 * time.Millisecond)
	var found []inuse.Source
	eventually(t, "the machine's own runtime is found", func() bool {
		inTime(t, "a look", func() { found = append(found, d.Find()...) })
		return slices.Contains(names(found), "docker") && slices.Contains(names(found), "detection")
	})
	_, err := found[slices.Index(names(found), "detection")].Snapshot(t.Context())
	if err == nil || !strings.Contains(err.Error(), at) {
		t.Errorf("the users' places count as looked at: %v", err)
	}
}

// TestN13_LooksAtOnceDisturbNobody: who is being looked at for somebody else does not hang.
func TestN13_LooksAtOnceDisturbNobody(t *testing.T) {
	root := machine(t)
	tasks := filepath.Join(root, "run/containerd/io.containerd.runtime.v2.task")
	if err := os.MkdirAll(tasks, 0o700); err != nil {
		t.Fatal(err)
	}
	d := detector(t, endpoint.DetectorOptions{Root: root})
	found := d.Find()
	if err := os.RemoveAll(tasks); err != nil || len(found) != 1 {
		t.Fatalf("%v, %v", names(found), err)
	}
	d.SetWait(time.Minute)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 30 {
				if _, err := found[0].Snapshot(t.Context()); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
}

// TestR17_AMountThatHangsStopsNoWatch: nor where the directory of all users is in it.
func TestR17_AMountThatHangsStopsNoWatch(t *testing.T) {
	root := machine(t)
	hang(t, filepath.Join(root, "run"))
	d := detector(t, endpoint.DetectorOptions{Root: root, Every: time.Hour})
	d.SetWait(50 * time.Millisecond)
	ctx, cancel := context.WithCancel(t.Context())
	looked, ended := make(chan struct{}, 100), make(chan struct{})
	go func() { defer close(ended); d.Watch(ctx, func() { looked <- struct{}{} }) }()
	inTime(t, "the first look", func() { <-looked })
	cancel()
	inTime(t, "the end", func() { <-ended })
	inTime(t, "a look", func() { d.Find() })
}
