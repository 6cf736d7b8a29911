package inuse_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairway-registry/fairway/internal/agent/inuse"
	"github.com/fairway-registry/fairway/internal/agent/inuse/inusetest"
	"github.com/fairway-registry/fairway/internal/fault"
)

// TestN13_OnlyARuntimeThatIsGoneIsForgotten: one that answers is not, nor one of which
// the finder is not sure.
func TestN13_OnlyARuntimeThatIsGoneIsForgotten(t *testing.T) {
	var f finder
	b := inusetest.NewFake("b")
	b.SetContainer(container("x", one))
	f.appear(inusetest.NewFake("a"), b)
	tracker := inuse.NewTracker(nil, inuse.Options{Finder: &f, AskTimeout: time.Minute})
	stays := func(what string, kind error, unknown int) {
		t.Helper()
		if err := tracker.Forget(t.Context(), "b"); !errors.Is(err, kind) {
			t.Errorf("%s: %v, want %v", what, err, kind)
		}
		if u := tracker.Usage(); ids(u) != "x" || len(u.Sources) != 2 || len(u.Unknown) != unknown {
			t.Errorf("%s: %+v, want all as it was", what, u)
		}
	}
	stays("it answers", fault.Conflict, 0)
	b.Kill()
	f.keeps = errors.New("its socket is there")
	stays("the finder is not sure", f.keeps, 1)
	f.keeps = nil
	if err := tracker.Forget(t.Context(), "c"); !errors.Is(err, fault.NotFound) {
		t.Errorf("one that does not exist: %v", err)
	}
	changed := tracker.Changed()
	if err := tracker.Forget(t.Context(), "b"); err != nil {
		t.Fatal(err)
	}
	if u := tracker.Usage(); ids(u) != "" || len(u.Sources) != 1 || len(u.Unknown) != 0 {
		t.Errorf("after it was forgotten: %+v", u)
	}
	select {
	case <-changed:
	default:
		t.Error("no event was sent")
	}
	if tracker.Source("b") != nil || tracker.Source("a") == nil {
		t.Error("it has a source, or the other has none")
	}
	// The same runtime is installed again. Reports identify a runtime by its name.
	again := inusetest.NewFake("b")
	f.appear(again)
	if u := ask(t, tracker); len(u.Sources) != 2 || u.Sources[1].Name != "b" {
		t.Errorf("after it was installed again: %+v", u.Sources)
	}
}

// TestN13_ANamedRuntimeIsNotForgotten: the setting would bring it back.
func TestN13_ANamedRuntimeIsNotForgotten(t *testing.T) {
	f := inusetest.NewFake("a")
	f.Kill()
	tracker := inuse.NewTracker([]inuse.Source{f}, inuse.Options{})
	if err := tracker.Forget(t.Context(), "a"); !errors.Is(err, fault.Conflict) || len(tracker.Usage().Unknown) != 1 {
		t.Errorf("%v, %+v", err, tracker.Usage())
	}
}

// TestN13_WhatIsForgottenIsNotAskedAgain, nor does it disturb a question that was asked before.
func TestN13_WhatIsForgottenIsNotAskedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f finder
		b, slow := inusetest.NewFake("b"), inusetest.NewFake("slow")
		f.appear(b, slow)
		tracker := run(t, inuse.Options{Finder: &f})
		tracker.Look()
		synctest.Wait()
		b.Kill()
		after(time.Minute)
		slow.Hang()
		forgotten := make(chan error, 1)
		go func() { forgotten <- tracker.Forget(t.Context(), "b") }() // slow delays it
		synctest.Wait()
		after(time.Second)
		u := ask(t, tracker) // was asked before b was forgotten, and is answered afterwards
		if err := <-forgotten; err != nil {
			t.Fatal(err)
		}
		if len(u.Sources) != 1 || len(u.Unknown) != 1 || u.Unknown[0].Name != "slow" {
			t.Errorf("%+v, want slow alone, and that it has not answered", u)
		}
		slow.Unhang()
		before := b.Readings()
		b.Restart()
		b.SetContainer(container("x", one))
		after(time.Hour)
		if n := b.Readings() - before; n != 0 || ids(tracker.Usage()) != "" {
			t.Errorf("it was asked %d times after it was forgotten: %+v", n, tracker.Usage())
		}
	})
}
