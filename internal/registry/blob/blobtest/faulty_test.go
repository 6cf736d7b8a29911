package blobtest_test

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/fairway-registry/fairway/internal/registry/blob"
	"github.com/fairway-registry/fairway/internal/registry/blob/blobtest"
	"github.com/fairway-registry/fairway/internal/registry/blob/fsblob"
)

func open(t *testing.T) blob.Store {
	t.Helper()
	s, err := fsblob.Open(t.TempDir(), fsblob.Options{Reserve: -1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func TestFaultyConformsWhileNothingIsPlanned(t *testing.T) {
	blobtest.Run(t, func(t *testing.T) blob.Store { return blobtest.NewFaulty(open(t)) })
}

// work is append, write, commit, open, read…, delete of one object.
func work(s blob.Store) error {
	if err := blobtest.Append(s, blobtest.Key(1), 0, []byte("0123456789")); err != nil {
		return err
	}
	if _, err := blobtest.Get(s, blobtest.Key(1)); err != nil {
		return err
	}
	_, err := s.Delete(context.Background(), blobtest.Key(1))
	return err
}

func TestFaultyCrashAtEachOperationStopsAllLaterEffects(t *testing.T) {
	counting := blobtest.NewFaulty(open(t))
	if err := work(counting); err != nil {
		t.Fatal(err)
	}
	for n := 1; n <= counting.Count(); n++ {
		for _, fate := range []blobtest.Fate{blobtest.CrashBefore, blobtest.CrashMid, blobtest.CrashAfter} {
			real := open(t)
			f := blobtest.NewFaulty(real)
			f.Plan(blobtest.Nth(n, fate))
			if err := work(f); !errors.Is(err, blobtest.ErrCrashed) || !f.Crashed() {
				t.Fatalf("operation %d, fate %d: %v", n, fate, err)
			}
			before := blobtest.Keys(t, real, "")
			if err := work(f); !errors.Is(err, blobtest.ErrCrashed) {
				t.Fatalf("operation %d, fate %d: after the crash: %v", n, fate, err)
			}
			if f.Count() != n {
				t.Fatalf("%d operations after a crash at %d", f.Count(), n)
			}
			after := blobtest.Keys(t, real, "")
			if len(before) != len(after) {
				t.Fatalf("operation %d, fate %d: the store changed after the crash", n, fate)
			}
		}
	}
}

func TestFaultyFatesOfAWrite(t *testing.T) {
	for _, tt := range []struct {
		fate blobtest.Fate
		err  error
		left string
	}{
		{blobtest.Fail, blobtest.ErrFault, ""},
		{blobtest.FailAfter, blobtest.ErrFault, "0123456789"},
		{blobtest.Full, blob.ErrFull, "01234"},
		{blobtest.CrashBefore, blobtest.ErrCrashed, ""},
		{blobtest.CrashMid, blobtest.ErrCrashed, "01234"},
		{blobtest.CrashAfter, blobtest.ErrCrashed, "0123456789"},
	} {
		real := open(t)
		f := blobtest.NewFaulty(real)
		f.Plan(blobtest.NthOf(blobtest.OpWrite, 1, tt.fate))
		if err := work(f); !errors.Is(err, tt.err) {
			t.Errorf("fate %d: %v", tt.fate, err)
		}
		if got, err := blobtest.Get(real, blobtest.Key(1)); string(got) != tt.left || err != nil {
			t.Errorf("fate %d: %q is left, %v", tt.fate, got, err)
		}
	}
}

func TestFaultyCommitFailsAfterAFailedWrite(t *testing.T) {
	f := blobtest.NewFaulty(open(t))
	f.Plan(blobtest.Always(blobtest.OpWrite, blobtest.Full))
	a, err := f.Append(t.Context(), blobtest.Key(1), 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Write([]byte("x")); !errors.Is(err, blob.ErrFull) {
		t.Fatal(err)
	}
	if err := a.Commit(); err == nil {
		t.Fatal("commit after a failed write succeeded")
	}
}

func TestFaultyPowerLossTakesWhatNoCommitCovered(t *testing.T) {
	real := open(t)
	f := blobtest.NewFaulty(real)
	whole := blobtest.Bytes(1, 1000)
	blobtest.Put(t, f, blobtest.Key(1), whole)
	blobtest.Put(t, f, blobtest.Key(2), whole[:300])
	for key, offset := range map[string]int64{blobtest.Key(2): 300, blobtest.Key(3): 0} {
		a, err := f.Append(t.Context(), key, offset)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := a.Write(whole[offset:]); err != nil {
			t.Fatal(err)
		}
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.PowerLoss(t.Context()); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string][]byte{blobtest.Key(1): whole, blobtest.Key(2): whole[:300]} {
		if got, err := blobtest.Get(real, key); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d of %d bytes, %v", key, len(got), len(want), err)
		}
	}
	if _, err := blobtest.Get(real, blobtest.Key(3)); !errors.Is(err, blob.ErrNotFound) {
		t.Errorf("an object that was never committed: %v", err)
	}
}
