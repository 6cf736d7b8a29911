package meta

import (
	"context"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/fairway-registry/fairway/internal/oci"
)

// Store … (signatures first; bodies are being written)
type Store struct{}

// Options …
type Options struct {
	Path    string       // SQLite file
	Driver  string       // "" = sqlite
	Now     func() int64 // ms; nil = the database's own clock
	Release func() bool  // frees reserved disk space for Maintain writes
}

func Open(ctx context.Context, o Options) (*Store, error) { panic("stub") }
func (s *Store) Close() error                             { panic("stub") }
func (s *Store) Now() int64                               { panic("stub") }
func (s *Store) Ping(ctx context.Context) error           { panic("stub") }

// Manifest resolves a tag or digest to a living manifest: from the exact cache, or with one indexed query.
// It confirms the presence of a manifest at risk of collection (R3). NotFound: NAME_UNKNOWN / MANIFEST_UNKNOWN.
func (s *Store) Manifest(ctx context.Context, repo oci.Name, ref oci.Reference) (*Manifest, error) {
	panic("stub")
}

// PutManifest: one transaction writes manifest, references, tags, and checks each blob (R2).
// created is false where the same manifest was living already. MANIFEST_BLOB_UNKNOWN lists all missing digests.
func (s *Store) PutManifest(ctx context.Context, p Push) (created bool, err error) { panic("stub") }
func (s *Store) DeleteTag(ctx context.Context, repo oci.Name, tag oci.Tag, actor string) error {
	panic("stub")
}

// DeleteManifest moves the manifest with its tags to the trash.
func (s *Store) DeleteManifest(ctx context.Context, repo oci.Name, d oci.Digest, actor string) error {
	panic("stub")
}

// Blob looks up a blob for GET: no confirmation. BLOB_UNKNOWN where the repo has no such blob.
func (s *Store) Blob(ctx context.Context, repo oci.Name, d oci.Digest) (Blob, error) { panic("stub") }

// ConfirmBlob is Blob for HEAD: the answer is a confirmation that counts (R3).
func (s *Store) ConfirmBlob(ctx context.Context, repo oci.Name, d oci.Digest) (Blob, error) {
	panic("stub")
}

// MountBlob links a blob of from into repo. from "" = any repository. NotFound when it cannot.
func (s *Store) MountBlob(ctx context.Context, repo, from oci.Name, d oci.Digest) (Blob, error) {
	panic("stub")
}

// DeleteBlob: 404 at once afterwards; Conflict where a living manifest of the repository needs it.
func (s *Store) DeleteBlob(ctx context.Context, repo oci.Name, d oci.Digest, actor string) error {
	panic("stub")
}

// Tags lists in ASCII order after last ("" = from the start), at most n (n < 0: all). more says that there are others.
func (s *Store) Tags(ctx context.Context, repo oci.Name, last string, n int) (tags []string, more bool, err error) {
	panic("stub")
}

// Repositories lists names of repositories that hold something.
func (s *Store) Repositories(ctx context.Context, last string, n int) (names []string, more bool, err error) {
	panic("stub")
}

// Referrers lists descriptors of living manifests whose subject is d, ordered by digest, after last, n < 0: all.
func (s *Store) Referrers(ctx context.Context, repo oci.Name, d oci.Digest, artifactType string, last oci.Digest, n int) (rs []v1.Descriptor, more bool, err error) {
	panic("stub")
}

// Upload sessions. The row exists, durably, before the blob store is given a byte for u.Key;
// whatever ends a session (finish, cancel, expiry) hands the key on in the same transaction: to a blob or to the purge queue.
func (s *Store) CreateUpload(ctx context.Context, repo oci.Name, algorithm string) (Upload, error) {
	panic("stub")
}
func (s *Store) Upload(ctx context.Context, repo oci.Name, id string) (Upload, error) { panic("stub") }

// AdvanceUpload records that size bytes are durable. Conflict when u.Version is no longer current.
// The new version is returned.
func (s *Store) AdvanceUpload(ctx context.Context, u Upload, size int64, hashState []byte) (version int64, err error) {
	panic("stub")
}

// TouchUpload keeps a long transfer alive.
func (s *Store) TouchUpload(ctx context.Context, id string) error { panic("stub") }

// FinishUpload turns the session into a blob linked to its repository. The bytes under u.Key are durable and match d.
// Where the blob exists already its own bytes stay, and u.Key goes to the purge queue.
func (s *Store) FinishUpload(ctx context.Context, u Upload, d oci.Digest, size int64) (Blob, error) {
	panic("stub")
}
func (s *Store) CancelUpload(ctx context.Context, repo oci.Name, id, actor string) error {
	panic("stub")
}

// Trash.
func (s *Store) Trash(ctx context.Context, pattern string, n int) ([]TrashItem, error) { panic("stub") }
func (s *Store) Restore(ctx context.Context, repo oci.Name, d oci.Digest, actor string) (Restored, error) {
	panic("stub")
}

// Leases. ttlMS counts from the database's now.
func (s *Store) PutLease(ctx context.Context, holder string, digests []oci.Digest, ttlMS int64) (Lease, error) {
	panic("stub")
}
func (s *Store) DeleteLease(ctx context.Context, holder string) error       { panic("stub") }
func (s *Store) Leases(ctx context.Context, holder string) ([]Lease, error) { panic("stub") } // "" = all

// Deletions lists the log, newest first, before id (0 = from the end); filters may be empty.
func (s *Store) Deletions(ctx context.Context, digest string, run int64, before int64, n int) ([]Deletion, error) {
	panic("stub")
}
func (s *Store) Stats(ctx context.Context) (Stats, error) { panic("stub") }

// Schedules.
func (s *Store) Schedules(ctx context.Context) ([]Schedule, error) { panic("stub") }
func (s *Store) AddSchedule(ctx context.Context, cron string, p Policy) (Schedule, error) {
	panic("stub")
}
func (s *Store) DeleteSchedule(ctx context.Context, id int64) error { panic("stub") }
