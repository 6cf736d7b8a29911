package inuse_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairway-registry/fairway/internal/agent/inuse"
	"github.com/fairway-registry/fairway/internal/agent/inuse/inusetest"
)

// TestN3_ReadingsAroundAFailureDoNotConfirmALoss: they are far enough apart to do
// so, had the runtime answered in between.
func TestN3_ReadingsAroundAFailureDoNotConfirmALoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := inusetest.NewFake("a")
		f.SetContainer(container("x", one))
		tracker := inuse.NewTracker([]inuse.Source{f}, inuse.Options{Confirm: time.Second})
		read := func(what, want string) {
			t.Helper()
			after(2 * time.Second)
			if u := ask(t, tracker); ids(u) != want {
				t.Errorf("%s: %q, want %q", what, ids(u), want)
			}
		}
		read("the first reading", "x")
		f.Lie(inuse.Snapshot{})
		read("one that lacks it", "x")
		f.Kill()
		read("a failure", "x")
		f.Restart()
		f.Lie(inuse.Snapshot{})
		read("one that lacks it after the failure", "x")
		f.Lie(inuse.Snapshot{})
		read("another that lacks it", "")
	})
}
