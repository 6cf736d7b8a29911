package fsblob

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/fairway-registry/fairway/internal/disk"
	"github.com/fairway-registry/fairway/internal/registry/blob"
)

// IdentityPath is the file of the store's mark. It lies among the objects, so
// that it comes and goes with the disk that they are on, and is in each copy.
func (s *Store) IdentityPath() string { return filepath.Join(s.objects(), "identity") }

// identityMax bounds what is read of the mark, in bytes.
const identityMax = 4096

// identityNote explains the file to whoever finds it.
const identityNote = `# The line above is the identity of this storage. The database that knows it
# is the only one that may use these objects. Keep this file with them.
`

// Identity implements blob.Store.
func (s *Store) Identity(_ context.Context, give string) (string, error) {
	found, err := s.readIdentity()
	if err != nil || found != "" || give == "" {
		return found, err
	}
	if !blob.ValidIdentity(give) {
		return "", fmt.Errorf("mark the storage: %q cannot be an identity", give)
	}
	s.identityMu.Lock()
	defer s.identityMu.Unlock()
	if found, err := s.readIdentity(); err != nil || found != "" {
		return found, err
	}
	if err := disk.Replace(s.IdentityPath(), []byte(give+"\n"+identityNote), 0o600); err != nil {
		return "", fmt.Errorf("mark the storage: %w", full(err))
	}
	return give, nil
}

func (s *Store) readIdentity() (string, error) {
	f, err := os.Open(s.IdentityPath())
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read the storage's identity: %w", err)
	}
	b, err := io.ReadAll(io.LimitReader(f, identityMax))
	if err = errors.Join(err, f.Close()); err != nil {
		return "", fmt.Errorf("read the storage's identity: %w", err)
	}
	line, _, _ := strings.Cut(string(b), "\n")
	if id := strings.TrimSpace(line); blob.ValidIdentity(id) {
		return id, nil
	}
	return "", fmt.Errorf("read the storage's identity: the first line of %s is not one", s.IdentityPath())
}
