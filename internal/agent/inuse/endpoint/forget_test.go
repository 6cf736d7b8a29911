package endpoint_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fairway-registry/fairway/internal/agent/inuse"
	"github.com/fairway-registry/fairway/internal/agent/inuse/endpoint"
	"github.com/fairway-registry/fairway/internal/fault"
)

// remembering is a detector of a machine where two runtimes have answered; the first
// is gone.
func remembering(t *testing.T) (d *endpoint.Detector, gone inuse.Source, o endpoint.DetectorOptions, at string) {
	t.Helper()
	root := machine(t)
	at = filepath.Join(root, "run/docker.sock")
	o = endpoint.DetectorOptions{Root: root, File: filepath.Join(root, "data", "runtimes")}
	if err := os.Mkdir(filepath.Dir(o.File), 0o750); err != nil {
		t.Fatal(err)
	}
	lines := "docker://" + at + " 2026-11-30T09:00:00Z\ndocker://" + root + "/run/podman/podman.sock\n"
	if err := os.WriteFile(o.File, []byte(lines), 0o600); err != nil {
		t.Fatal(err)
	}
	d = detector(t, o)
	found := d.Find()
	if len(found) != 2 {
		t.Fatalf("found %v, want what is remembered", names(found))
	}
	return d, found[0], o, at
}

func TestN13_AForgottenRuntimeIsNotKnownAfterARestart(t *testing.T) {
	d, gone, o, at := remembering(t)
	if e, seen := d.Endpoint(gone); e != "docker://"+at || !seen.Equal(time.Date(2026, 11, 30, 9, 0, 0, 0, time.UTC)) {
		t.Errorf("it is at %q and was seen %v", e, seen)
	}
	if err := d.Forget(gone); err != nil {
		t.Fatal(err)
	}
	if all := d.Endpoints(); len(all) != 1 || !strings.Contains(all[0], "podman") || len(d.Sources()) != 1 {
		t.Errorf("known are %v", all)
	}
	d.Answered(gone) // an answer that was on its way
	if e, seen := d.Endpoint(gone); e != "" || !seen.IsZero() {
		t.Errorf("its source is still at %q, seen %v", e, seen)
	}
	if found := detector(t, o).Find(); len(found) != 1 || found[0].Name() != "podman" {
		t.Errorf("after a restart %v is known", names(found))
	}
	listen(t, at)
	if found := d.Find(); len(found) != 1 || found[0].Name() != "docker" {
		t.Errorf("it was installed again, and %v was found", names(found))
	}
}

func TestN13_ARuntimeWhoseSocketIsThereIsNotForgotten(t *testing.T) {
	d, gone, _, at := remembering(t)
	l := listen(t, at)
	if err := d.Forget(gone); !errors.Is(err, fault.Conflict) || !strings.Contains(err.Error(), at) || len(d.Endpoints()) != 2 {
		t.Errorf("%v, known are %v", err, d.Endpoints())
	}
	_ = l.Close() // its socket goes with it
	// A link to itself cannot be resolved.
	if err := os.Symlink(at, at); err != nil {
		t.Fatal(err)
	}
	if err := d.Forget(gone); !errors.Is(err, fault.Conflict) || len(d.Endpoints()) != 2 {
		t.Errorf("its place cannot be looked at: %v, known are %v", err, d.Endpoints())
	}
}

// TestN13_WhatCannotBeWrittenDownIsNotForgotten: the next start would know it again.
func TestN13_WhatCannotBeWrittenDownIsNotForgotten(t *testing.T) {
	d, gone, o, _ := remembering(t)
	if err := os.Rename(filepath.Dir(o.File), filepath.Dir(o.File)+".away"); err != nil {
		t.Fatal(err)
	}
	if err := d.Forget(gone); err == nil || len(d.Endpoints()) != 2 {
		t.Errorf("%v, known are %v", err, d.Endpoints())
	}
}

// TestN13_TracesOfRuntimesAreNotForgotten: they end with what has left them.
func TestN13_TracesOfRuntimesAreNotForgotten(t *testing.T) {
	root := machine(t)
	if err := os.MkdirAll(filepath.Join(root, "run/docker/runtime-runc"), 0o750); err != nil {
		t.Fatal(err)
	}
	d := detector(t, endpoint.DetectorOptions{Root: root})
	found := d.Find()
	if len(found) != 1 || found[0].Name() != "detection" {
		t.Fatalf("found %v", names(found))
	}
	if err := d.Forget(found[0]); !errors.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "node status") {
		t.Error(err)
	}
}
