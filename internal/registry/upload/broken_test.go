package upload_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/blob"
	"github.com/fairway-registry/fairway/internal/registry/blob/blobtest"
	"github.com/fairway-registry/fairway/internal/registry/meta"
	"github.com/fairway-registry/fairway/internal/registry/upload"
)

// broken begins a session and breaks a PUT of the whole of p off after n bytes.
func (b *bench) broken(p []byte, n int) meta.Upload {
	b.t.Helper()
	u := b.start("")
	_, err := b.Finish(b.t.Context(), repo, u.ID, digest.FromBytes(p), cutOff(p[:n], len(p)))
	wantFault(b.t, err, fault.Invalid, oci.CodeBlobUploadInvalid)
	b.wantSize(u.ID, int64(n))
	return u
}

// wantQueued compares the bytes that the purge queue says to hold with those
// that are there.
func (b *bench) wantQueued(want int64) {
	b.t.Helper()
	st, err := b.store.Stats(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	if stored := b.stored(); st.PurgeBytes != want || stored != want {
		b.t.Errorf("the queue says %d bytes, the store has %d, want %d", st.PurgeBytes, stored, want)
	}
}

// stored is how many bytes the store has.
func (b *bench) stored() (sum int64) {
	b.t.Helper()
	err := b.files.Walk(b.t.Context(), "", func(i blob.Info) error { sum += i.Size; return nil })
	if err != nil {
		b.t.Fatal(err)
	}
	return sum
}

const brokenAt = 3 << 20

func TestR9_WhatABrokenPutLeavesIsInTheQueuesBytes(t *testing.T) {
	p := random(5 << 20)
	d := digest.FromBytes(p)
	for name, leave := range map[string]func(b *bench){
		"the session is cancelled": func(b *bench) {
			u := b.broken(p, brokenAt)
			if err := b.Cancel(t.Context(), repo, u.ID, "test"); err != nil {
				t.Fatal(err)
			}
		},
		"in one request": func(b *bench) {
			_, err := b.Put(t.Context(), repo, d, cutOff(p[:brokenAt], len(p)))
			wantFault(t, err, fault.Invalid, oci.CodeBlobUploadInvalid)
		},
		"with another digest": func(b *bench) {
			_, err := b.Finish(t.Context(), repo, b.start("").ID, d, whole(p[:brokenAt]))
			wantFault(t, err, fault.Invalid, oci.CodeDigestInvalid)
		},
		"with another digest after a chunk": func(b *bench) {
			u := b.start("")
			if _, err := b.Append(t.Context(), repo, u.ID, whole(p[:1<<20])); err != nil {
				t.Fatal(err)
			}
			_, err := b.Finish(t.Context(), repo, u.ID, d, whole(p[1<<20:brokenAt]))
			wantFault(t, err, fault.Invalid, oci.CodeDigestInvalid)
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := open(t)
			leave(b)
			b.wantQueued(brokenAt)
		})
	}
}

func TestR9_AChunkThatDoesNotCountLeavesNothing(t *testing.T) {
	b := open(t)
	u := b.start("")
	p := random(1 << 20)
	if _, err := b.Append(t.Context(), repo, u.ID, whole(p)); err != nil {
		t.Fatal(err)
	}
	c := whole(random(2 << 20))
	c.Length-- // longer than announced
	_, err := b.Append(t.Context(), repo, u.ID, c)
	wantFault(t, err, fault.Invalid, oci.CodeSizeInvalid)
	b.wantSize(u.ID, 1<<20)
	if stored := b.stored(); stored != 1<<20 {
		t.Errorf("%d bytes are stored, want those of the session", stored)
	}
}

func TestR7_ABrokenPutIsGoneOnWithOrSentAgain(t *testing.T) {
	p := random(5 << 20)
	d := digest.FromBytes(p)
	for name, again := range map[string]func(b *bench, u meta.Upload) error{
		"the rest with a range": func(b *bench, u meta.Upload) error {
			_, err := b.Finish(t.Context(), repo, u.ID, d, at(brokenAt, p[brokenAt:]))
			return err
		},
		"the whole": func(b *bench, u meta.Upload) error {
			_, err := b.Finish(t.Context(), repo, u.ID, d, whole(p))
			return err
		},
		"the whole, after it broke off earlier": func(b *bench, u meta.Upload) error {
			_, err := b.Finish(t.Context(), repo, u.ID, d, cutOff(p[:1000], len(p)))
			wantFault(t, err, fault.Invalid, oci.CodeBlobUploadInvalid)
			b.wantSize(u.ID, 1000)
			_, err = b.Finish(t.Context(), repo, u.ID, d, whole(p))
			return err
		},
		"the whole, after the process died as it was cut": func(b *bench, u meta.Upload) error {
			b.blobs.Plan(blobtest.NthOf(blobtest.OpAppend, 1, blobtest.CrashAfter))
			if _, err := b.Finish(t.Context(), repo, u.ID, d, whole(p)); !errors.Is(err, blobtest.ErrCrashed) {
				t.Fatalf("error %v", err)
			}
			b.restart()
			b.wantSize(u.ID, 0)
			_, err := b.Finish(t.Context(), repo, u.ID, d, whole(p))
			return err
		},
		"a chunk, and then the rest": func(b *bench, u meta.Upload) error {
			if _, err := b.Append(t.Context(), repo, u.ID, whole(p[brokenAt:brokenAt+1000])); err != nil {
				return err
			}
			_, err := b.Finish(t.Context(), repo, u.ID, d, whole(p[brokenAt+1000:]))
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := open(t)
			u := b.broken(p, brokenAt)
			b.restart()
			if err := again(b, u); err != nil {
				t.Fatal(err)
			}
			b.wantBlob(d, p)
		})
	}
}

func TestSpec_PushingABlob_ARepeatedClosingPutIsCreated(t *testing.T) {
	s, store, now := clocked(t, upload.Options{})
	p := random(1000)
	d := digest.FromBytes(p)
	u, err := s.Start(t.Context(), repo, "")
	if err != nil {
		t.Fatal(err)
	}
	put := func(repo oci.Name, d oci.Digest) error {
		_, err := s.Finish(t.Context(), repo, u.ID, d, whole(p))
		return err
	}
	if err := put(repo, d); err != nil {
		t.Fatal(err)
	}
	later := now.Add(time.Hour.Milliseconds())
	if err := put(repo, d); err != nil {
		t.Fatalf("the same again: %v", err)
	}
	// It was confirmed, so its window starts again (R3).
	all, err := store.RepoScope(context.Background(), "")
	if err != nil {
		t.Fatal(err)
	}
	links, err := store.Links(context.Background(), meta.Due{Scope: all, Before: later, Limit: 10})
	if err != nil || len(links) != 1 || links[0].TouchedAt < later {
		t.Errorf("links %+v, %v; want one that was touched at %d", links, err, later)
	}
	wantFault(t, put("other/repo", d), fault.NotFound, oci.CodeBlobUploadUnknown)
	wantFault(t, put(repo, digest.FromString("another")), fault.NotFound, oci.CodeBlobUploadUnknown)
}
