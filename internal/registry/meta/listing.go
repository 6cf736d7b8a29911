package meta

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/sqldb"
)

// page reads n names and whether there are more; n < 0 reads all. They come as
// one text with a line for each: a row for each costs several times as much.
// query selects a column name, in order, and takes the limit as its last
// parameter.
func page(tx *sqldb.Tx, n int, query string, args ...any) (names []string, more bool, err error) {
	limit := -1
	if n >= 0 {
		limit = n + 1
	}
	var lines sql.NullString
	if err := tx.Row("SELECT group_concat(name, char(10)) FROM ("+query+")", append(args, limit)...).Scan(&lines); err != nil {
		return nil, false, err
	}
	names = []string{}
	if lines.Valid {
		names = strings.Split(lines.String, "\n")
		if !slices.IsSorted(names) { // an aggregate keeps the order of its input, but need not
			slices.Sort(names)
		}
	}
	if n >= 0 && len(names) > n {
		return names[:n], true, err
	}
	return names, false, err
}

// tagList is what the cache knows of a repository's tags: all of them, or that
// they are too many for it.
type tagList struct {
	names []string // in byte order
	many  bool
}

// tagListMax is how many tags of a repository are kept in the cache.
const tagListMax = 2000

func (l *tagList) cost() int {
	n := 64
	for _, name := range l.names {
		n += len(name) + 16
	}
	return n
}

// page returns n names after last, and whether there are more.
func (l *tagList) page(last string, n int) (names []string, more bool) {
	i, found := slices.BinarySearch(l.names, last)
	if found {
		i++
	}
	names = l.names[i:len(l.names):len(l.names)]
	if n >= 0 && len(names) > n {
		return names[:n:n], true
	}
	return names, false
}

// Tags lists a repository's tags in byte order after last, n of them at most
// (n < 0: all). The list is shared with the cache: read only. The error is
// NotFound for an unknown repository.
func (s *Store) Tags(ctx context.Context, repo oci.Name, last string, n int) (tags []string, more bool, err error) {
	key := string(repo)
	l, ok, token := s.tags.get(key)
	if ok && !l.many {
		tags, more = l.page(last, n)
		return tags, more, nil
	}
	err = s.db.Read(ctx, func(tx *sqldb.Tx) error {
		const query = "SELECT name FROM tags WHERE repo_id = ? AND name > ? ORDER BY name LIMIT ?"
		id, err := repoID(tx, repo)
		if err != nil {
			return err
		}
		if !ok {
			l = &tagList{}
			if l.names, l.many, err = page(tx, tagListMax, query, id, ""); err != nil {
				return err
			}
			if l.many {
				l.names = nil
			}
			s.tags.put(key, l, token)
		}
		if l.many {
			tags, more, err = page(tx, n, query, id, last)
			return err
		}
		tags, more = l.page(last, n)
		return nil
	})
	if err != nil {
		return nil, false, fmt.Errorf("list tags of %s: %w", repo, err)
	}
	return tags, more, nil
}

// dropTags drops a repository's list of tags from the cache.
func (s *Store) dropTags(tx *sqldb.Tx, repo oci.Name) {
	tx.OnCommit(func() { s.tags.drop(string(repo)) })
}

// Repositories lists the repositories that hold a living manifest, in byte
// order after last, n of them at most (n < 0: all).
func (s *Store) Repositories(ctx context.Context, last string, n int) (names []string, more bool, err error) {
	err = s.db.Read(ctx, func(tx *sqldb.Tx) error {
		var err error
		names, more, err = page(tx, n, `SELECT r.name AS name FROM repositories r WHERE r.name > ?
			AND EXISTS (SELECT 1 FROM manifests m WHERE m.repo_id = r.id AND m.trashed_at IS NULL) ORDER BY r.name LIMIT ?`, last)
		return err
	})
	if err != nil {
		return nil, false, fmt.Errorf("list repositories: %w", err)
	}
	return names, more, nil
}

// Referrers lists the living manifests whose subject is d, by digest after
// last, n of them at most (n < 0: all); artifactType "" lists all types.
func (s *Store) Referrers(ctx context.Context, repo oci.Name, d oci.Digest, artifactType string, last oci.Digest, n int) (rs []v1.Descriptor, more bool, err error) {
	limit := -1
	if n >= 0 {
		limit = n + 1
	}
	err = s.db.Read(ctx, func(tx *sqldb.Tx) error {
		rs = []v1.Descriptor{}
		return tx.All(func(rows *sql.Rows) error {
			var r v1.Descriptor
			var annotations sql.NullString
			if err := rows.Scan(&r.MediaType, &r.Digest, &r.Size, &r.ArtifactType, &annotations); err != nil {
				return err
			}
			if annotations.Valid {
				if err := json.Unmarshal([]byte(annotations.String), &r.Annotations); err != nil {
					return fmt.Errorf("annotations of %s: %w", r.Digest, err)
				}
			}
			rs = append(rs, r)
			return nil
		}, `SELECT m.media_type, m.digest, m.size, m.artifact_type, m.annotations FROM repositories r CROSS JOIN manifests m INDEXED BY manifests_subject ON m.repo_id = r.id
			WHERE r.name = ?1 AND m.subject = ?2 AND m.trashed_at IS NULL AND m.digest > ?3 AND (?4 = '' OR m.artifact_type = ?4)
			ORDER BY m.digest LIMIT ?5`, string(repo), string(d), string(last), artifactType, limit)
	})
	if err != nil {
		return nil, false, fmt.Errorf("list referrers of %s in %s: %w", d, repo, err)
	}
	if n >= 0 && len(rs) > n {
		return rs[:n], true, nil
	}
	return rs, false, nil
}
