// Package blobtest owns what every blob.Store must keep: the conformance suite
// that drivers and wrappers run, and Faulty, a wrapper that makes a real store
// fail or die at a chosen operation.
package blobtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/fairway-registry/fairway/internal/registry/blob"
)

// Run runs the suite. open returns an empty store for each test and cleans up
// through t.
func Run(t *testing.T, open func(t *testing.T) blob.Store) {
	tests := []struct {
		name string
		fn   func(*testing.T, blob.Store)
	}{
		{"CommittedBytesReadBack", committedBytesReadBack},
		{"EmptyObjectExists", emptyObjectExists},
		{"AppendGoesOnAtOffset", appendGoesOnAtOffset},
		{"AppendCutsOffWhatADeadWriterLeft", appendCutsOff},
		{"AppendFromZeroStartsOver", appendFromZeroStartsOver},
		{"AppendBeyondTheEndFails", appendBeyondTheEndFails},
		{"AppenderIsOverAfterCommit", appenderIsOverAfterCommit},
		{"MissingIsErrNotFound", missingIsErrNotFound},
		{"DeleteReturnsFreedBytesOnce", deleteReturnsFreedBytesOnce},
		{"OpenReaderOutlivesDelete", openReaderOutlivesDelete},
		{"ReaderSeeks", readerSeeks},
		{"WalkIsInKeyOrderAndResumes", walkInOrder},
		{"WalkPassesOnErrors", walkPassesOnErrors},
		{"WalkAllowsDeletes", walkAllowsDeletes},
		{"OddKeysAreRefused", oddKeysAreRefused},
		{"WritersOfDifferentKeysDoNotMeet", concurrentWriters},
		{"IdentityIsGivenOnce", identityIsGivenOnce},
		{"IdentityIsNotAnObject", identityIsNotAnObject},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { tt.fn(t, open(t)) })
	}
	for _, tt := range tests {
		t.Run("Paired/"+tt.name, func(t *testing.T) { tt.fn(t, paired(t, open(t))) })
	}
}

// paired marks a store and returns it as its database has it.
func paired(t *testing.T, s blob.Store) blob.Store {
	t.Helper()
	id, err := s.Identity(t.Context(), Identity(0))
	if err != nil {
		t.Fatal(err)
	}
	return blob.Pair(s, id)
}

// Identity returns a well-formed mark, the same one for the same seed.
func Identity(seed int) string { return fmt.Sprintf("identity-%08d", seed) }

// Key returns a well-formed key, the same one for the same seed. Keys of
// different seeds lie in different directories for the most part.
func Key(seed int) string {
	r := rand.New(rand.NewPCG(uint64(seed), 1))
	id := fmt.Sprintf("%08x-%04x-%04x", r.Uint32(), r.Uint32()&0xffff, seed&0xffff)
	return "blobs/" + id[:2] + "/" + id
}

// Bytes returns n bytes, the same ones for the same seed.
func Bytes(seed, n int) []byte {
	var s [32]byte
	s[0], s[1] = byte(seed), byte(seed>>8)
	b := make([]byte, n)
	_, _ = rand.NewChaCha8(s).Read(b) // never fails
	return b
}

// Put commits an object.
func Put(t testing.TB, s blob.Store, key string, content []byte) {
	t.Helper()
	if err := Append(s, key, 0, content); err != nil {
		t.Fatalf("put: %v", err)
	}
}

// Append writes content at offset and commits.
func Append(s blob.Store, key string, offset int64, content []byte) error {
	a, err := s.Append(context.Background(), key, offset)
	if err != nil {
		return err
	}
	if _, err := a.Write(content); err != nil {
		return errors.Join(err, a.Close())
	}
	return a.Commit()
}

// Get reads an object whole.
func Get(s blob.Store, key string) ([]byte, error) {
	r, err := s.Open(context.Background(), key)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(r)
	if err == nil && int64(len(b)) != r.Size() {
		err = fmt.Errorf("read %d bytes, Size says %d", len(b), r.Size())
	}
	return b, errors.Join(err, r.Close())
}

// Keys walks the whole store.
func Keys(t testing.TB, s blob.Store, after string) []string {
	t.Helper()
	var keys []string
	err := s.Walk(context.Background(), after, func(i blob.Info) error {
		keys = append(keys, i.Key)
		return nil
	})
	if err != nil {
		t.Fatalf("walk: %v", err)
	}
	return keys
}

func wantContent(t *testing.T, s blob.Store, key string, want []byte) {
	t.Helper()
	got, err := Get(s, key)
	if err != nil {
		t.Fatalf("get: %v", err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("read %d bytes that differ from the %d written", len(got), len(want))
	}
}

func identityIsGivenOnce(t *testing.T, s blob.Store) {
	if _, ok := s.(*blob.Paired); !ok {
		if id, err := s.Identity(t.Context(), ""); id != "" || err != nil {
			t.Fatalf("identity of an empty store: %q, %v", id, err)
		}
		if id, err := s.Identity(t.Context(), "../"); err == nil {
			t.Fatalf("marked with what is not an identity: %q", id)
		}
	}
	ids := make([]string, 16)
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() {
			var err error
			if ids[i], err = s.Identity(t.Context(), Identity(i)); err != nil {
				t.Errorf("identity: %v", err)
			}
		})
	}
	wg.Wait()
	for _, give := range []string{"", Identity(99)} {
		id, err := s.Identity(t.Context(), give)
		if err != nil || !blob.ValidIdentity(id) || len(slices.Compact(slices.Concat(ids, []string{id}))) != 1 {
			t.Fatalf("identities %q, then %q, %v; want one that stays", ids, id, err)
		}
	}
}

func identityIsNotAnObject(t *testing.T, s blob.Store) {
	if _, err := s.Identity(t.Context(), Identity(1)); err != nil {
		t.Fatal(err)
	}
	if keys := Keys(t, s, ""); len(keys) != 0 {
		t.Fatalf("keys of a store with nothing but its mark: %q", keys)
	}
}

func committedBytesReadBack(t *testing.T, s blob.Store) {
	content := Bytes(1, 3<<20+17)
	a, err := s.Append(t.Context(), Key(1), 0)
	if err != nil {
		t.Fatal(err)
	}
	for part := range slices.Chunk(content, 100_000) {
		if n, err := a.Write(part); err != nil || n != len(part) {
			t.Fatalf("write: %d of %d bytes, %v", n, len(part), err)
		}
	}
	if err := a.Commit(); err != nil {
		t.Fatal(err)
	}
	wantContent(t, s, Key(1), content)
	if keys := Keys(t, s, ""); !slices.Equal(keys, []string{Key(1)}) {
		t.Fatalf("keys %q", keys)
	}
}

func emptyObjectExists(t *testing.T, s blob.Store) {
	Put(t, s, Key(1), nil)
	wantContent(t, s, Key(1), nil)
	if freed, err := s.Delete(t.Context(), Key(1)); freed != 0 || err != nil {
		t.Fatalf("delete: freed %d, %v", freed, err)
	}
}

func appendGoesOnAtOffset(t *testing.T, s blob.Store) {
	content := Bytes(1, 1<<20)
	for i, at := 0, 0; at < len(content); i++ {
		end := min(len(content), at+100_000+i)
		if err := Append(s, Key(1), int64(at), content[at:end]); err != nil {
			t.Fatal(err)
		}
		at = end
	}
	wantContent(t, s, Key(1), content)
}

func appendCutsOff(t *testing.T, s blob.Store) {
	content := Bytes(1, 5000)
	Put(t, s, Key(1), content[:2000])
	dead, err := s.Append(t.Context(), Key(1), 2000)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := dead.Write(Bytes(2, 9000)); err != nil {
		t.Fatal(err)
	}
	if err := dead.Close(); err != nil {
		t.Fatal(err)
	}
	if err := Append(s, Key(1), 2000, content[2000:]); err != nil {
		t.Fatal(err)
	}
	wantContent(t, s, Key(1), content)
}

func appendFromZeroStartsOver(t *testing.T, s blob.Store) {
	a, err := s.Append(t.Context(), Key(1), 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Write(Bytes(1, 9000)); err != nil {
		t.Fatal(err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	Put(t, s, Key(1), Bytes(2, 10))
	wantContent(t, s, Key(1), Bytes(2, 10))
}

func appendBeyondTheEndFails(t *testing.T, s blob.Store) {
	Put(t, s, Key(1), Bytes(1, 10))
	if _, err := s.Append(t.Context(), Key(1), 11); err == nil || errors.Is(err, blob.ErrNotFound) {
		t.Fatalf("append at 11 of 10 bytes: %v", err)
	}
	wantContent(t, s, Key(1), Bytes(1, 10))
	if _, err := s.Append(t.Context(), Key(2), 1); !errors.Is(err, blob.ErrNotFound) {
		t.Fatalf("append at 1 of nothing: %v", err)
	}
	if _, err := s.Append(t.Context(), Key(1), -1); err == nil {
		t.Fatal("append at -1 succeeded")
	}
	if keys := Keys(t, s, ""); len(keys) != 1 {
		t.Fatalf("keys %q", keys)
	}
}

func appenderIsOverAfterCommit(t *testing.T, s blob.Store) {
	a, err := s.Append(t.Context(), Key(1), 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := a.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := a.Close(); err != nil {
		t.Fatalf("close after commit: %v", err)
	}
	if _, err := a.Write([]byte("y")); err == nil {
		t.Fatal("write after commit succeeded")
	}
	if err := a.Commit(); err == nil {
		t.Fatal("second commit succeeded")
	}
	wantContent(t, s, Key(1), []byte("x"))
}

func missingIsErrNotFound(t *testing.T, s blob.Store) {
	if _, err := s.Open(t.Context(), Key(1)); !errors.Is(err, blob.ErrNotFound) {
		t.Fatalf("open: %v", err)
	}
	if _, err := s.Delete(t.Context(), Key(1)); !errors.Is(err, blob.ErrNotFound) {
		t.Fatalf("delete: %v", err)
	}
}

func deleteReturnsFreedBytesOnce(t *testing.T, s blob.Store) {
	Put(t, s, Key(1), Bytes(1, 12345))
	if freed, err := s.Delete(t.Context(), Key(1)); freed != 12345 || err != nil {
		t.Fatalf("delete: freed %d, %v", freed, err)
	}
	if freed, err := s.Delete(t.Context(), Key(1)); freed != 0 || !errors.Is(err, blob.ErrNotFound) {
		t.Fatalf("second delete: freed %d, %v", freed, err)
	}
	if _, err := s.Open(t.Context(), Key(1)); !errors.Is(err, blob.ErrNotFound) {
		t.Fatalf("open after delete: %v", err)
	}
}

func openReaderOutlivesDelete(t *testing.T, s blob.Store) {
	content := Bytes(1, 1<<20)
	Put(t, s, Key(1), content)
	r, err := s.Open(t.Context(), Key(1))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	if _, err := s.Delete(t.Context(), Key(1)); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, content) {
		t.Fatalf("read %d of %d bytes after delete, %v", len(got), len(content), err)
	}
}

func readerSeeks(t *testing.T, s blob.Store) {
	content := Bytes(1, 100_000)
	Put(t, s, Key(1), content)
	r, err := s.Open(t.Context(), Key(1))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	if r.Size() != int64(len(content)) {
		t.Fatalf("size %d", r.Size())
	}
	if end, err := r.Seek(0, io.SeekEnd); end != int64(len(content)) || err != nil {
		t.Fatalf("seek to the end: %d, %v", end, err)
	}
	if _, err := r.Seek(77_777, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, content[77_777:]) {
		t.Fatalf("read %d bytes from 77777, %v", len(got), err)
	}
}

func walkInOrder(t *testing.T, s blob.Store) {
	var want []string
	for i := range 300 {
		Put(t, s, Key(i), Bytes(i, i))
		want = append(want, Key(i))
	}
	slices.Sort(want)
	if got := Keys(t, s, ""); !slices.Equal(got, want) {
		t.Fatalf("walk saw %d keys, %d are there; in order: %t", len(got), len(want), slices.IsSorted(got))
	}
	for _, i := range []int{0, 1, 150, 298, 299} {
		if got := Keys(t, s, want[i]); !slices.Equal(got, want[i+1:]) {
			t.Fatalf("walk after the %dth of %d keys saw %d", i, len(want), len(got))
		}
	}
	if got := Keys(t, s, want[10]+"0"); !slices.Equal(got, want[11:]) {
		t.Fatalf("walk after a key that is not there saw %d", len(got))
	}
	sizes := map[string]int64{}
	err := s.Walk(t.Context(), "", func(i blob.Info) error {
		sizes[i.Key] = i.Size
		if i.Modified <= 0 {
			t.Errorf("%s: modified %d", i.Key, i.Modified)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 300 {
		if sizes[Key(i)] != int64(i) {
			t.Fatalf("size of %s is %d, want %d", Key(i), sizes[Key(i)], i)
		}
	}
}

func walkPassesOnErrors(t *testing.T, s blob.Store) {
	for i := range 5 {
		Put(t, s, Key(i), nil)
	}
	stop := errors.New("stop")
	calls := 0
	err := s.Walk(t.Context(), "", func(blob.Info) error {
		if calls++; calls == 3 {
			return stop
		}
		return nil
	})
	if !errors.Is(err, stop) || calls != 3 {
		t.Fatalf("walk: %v after %d calls", err, calls)
	}
	ctx, cancel := context.WithCancel(t.Context())
	calls = 0
	err = s.Walk(ctx, "", func(blob.Info) error {
		calls++
		cancel()
		return nil
	})
	if !errors.Is(err, context.Canceled) || calls != 1 {
		t.Fatalf("cancelled walk: %v after %d calls", err, calls)
	}
}

func walkAllowsDeletes(t *testing.T, s blob.Store) {
	for i := range 20 {
		Put(t, s, Key(i), nil)
	}
	err := s.Walk(t.Context(), "", func(i blob.Info) error {
		_, err := s.Delete(t.Context(), i.Key)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if keys := Keys(t, s, ""); len(keys) != 0 {
		t.Fatalf("left: %q", keys)
	}
}

func oddKeysAreRefused(t *testing.T, s blob.Store) {
	for _, key := range []string{
		"", "blobs", "blobs/", "blobs/ab", "blobs/ab/", "blobs/ab/..", "blobs/ab/.", "blobs/ab/.x",
		"blobs/../lock", "blobs/ab/../../lock", "blobs/ab/../ab/x", "/blobs/ab/x", "blobs//ab/x", "blobs/ab/x/y",
		"blobs/ab/x/", "blobs/AB/x", "blobs/zz/x", "blobs/a/x", "blobs/abc/x", "blobs/ab/x\x00", "blobs/ab/x y",
		`blobs\ab\x`, "lock", "reserve", "blobs/lock", "blobs/identity", "../blobs/ab/x", "blobs/ab/" + string(bytes.Repeat([]byte("x"), 300)),
	} {
		if _, err := s.Append(t.Context(), key, 0); err == nil {
			t.Errorf("append to %q succeeded", key)
		}
		if _, err := s.Open(t.Context(), key); err == nil {
			t.Errorf("open of %q succeeded", key)
		}
		if _, err := s.Delete(t.Context(), key); err == nil {
			t.Errorf("delete of %q succeeded", key)
		}
	}
	if keys := Keys(t, s, ""); len(keys) != 0 {
		t.Fatalf("left: %q", keys)
	}
}

func concurrentWriters(t *testing.T, s blob.Store) {
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			if err := Append(s, Key(i), 0, Bytes(i, 10_000)); err != nil {
				t.Errorf("append: %v", err)
			}
		})
	}
	wg.Wait()
	for i := range 64 {
		wantContent(t, s, Key(i), Bytes(i, 10_000))
	}
}
