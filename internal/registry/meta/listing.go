package meta

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"

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

// listChunk is how many rows a listing looks at in one go. After that it gives
// its connection to the next listing.
const listChunk = 2000

// pages reads n names after last (n < 0: all) by calls of read, which reads on
// from last, looks at so many rows at most, and returns where the next call goes
// on, "" at the end.
func (s *Store) pages(ctx context.Context, n int, last string, read func(tx *sqldb.Tx, last string, n int) ([]string, string, error)) (names []string, more bool, err error) {
	names = []string{}
	for {
		chunk := listChunk
		if n >= 0 {
			chunk = min(listChunk, n+1)
		}
		err := s.db.List(ctx, func(tx *sqldb.Tx) error {
			found, next, err := read(tx, last, chunk)
			names, last = append(names, found...), next
			return err
		})
		switch {
		case err != nil:
			return nil, false, err
		case n >= 0 && len(names) > n:
			return names[:n], true, nil
		case last == "":
			return names, false, nil
		}
	}
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
// (n < 0: all). The list is shared with the cache: read only. It reads
// listChunk rows at a time, so a long list is not of one moment, as if the
// client had asked for pages. The error is NotFound for an unknown repository.
func (s *Store) Tags(ctx context.Context, repo oci.Name, last string, n int) (tags []string, more bool, err error) {
	key := string(repo)
	l, ok, token := s.tags.get(key)
	if ok && !l.many {
		tags, more = l.page(last, n)
		return tags, more, nil
	}
	const query = "SELECT name FROM tags WHERE repo_id = ? AND name > ? ORDER BY name LIMIT ?"
	var id int64
	err = s.db.List(ctx, func(tx *sqldb.Tx) error {
		id, err = repoID(tx, repo)
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
		return nil
	})
	if err == nil && l.many {
		tags, more, err = s.pages(ctx, n, last, func(tx *sqldb.Tx, last string, n int) (names []string, next string, err error) {
			names, more, err := page(tx, n, query, id, last)
			if more {
				next = names[len(names)-1]
			}
			return names, next, err
		})
	} else if err == nil {
		tags, more = l.page(last, n)
	}
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
	names, more, err = s.pages(ctx, n, last, func(tx *sqldb.Tx, last string, n int) (names []string, next string, err error) {
		// The limit is on the repositories that are looked at, not on those found.
		looked := 0
		err = tx.All(func(rows *sql.Rows) error {
			var living bool
			if err := rows.Scan(&next, &living); err != nil {
				return err
			}
			looked++
			if living {
				names = append(names, next)
			}
			return nil
		}, `SELECT r.name, EXISTS (SELECT 1 FROM manifests m WHERE m.repo_id = r.id AND m.trashed_at IS NULL)
			FROM repositories r WHERE r.name > ? ORDER BY r.name LIMIT ?`, last, n)
		if looked < n {
			next = ""
		}
		return names, next, err
	})
	if err != nil {
		return nil, false, fmt.Errorf("list repositories: %w", err)
	}
	return names, more, nil
}

// Referrer is a manifest that refers to a subject, as a descriptor in JSON.
type Referrer struct {
	MediaType    string          `json:"mediaType"`
	Digest       oci.Digest      `json:"digest"`
	Size         int64           `json:"size"` // bytes
	ArtifactType string          `json:"artifactType,omitempty"`
	Annotations  json.RawMessage `json:"annotations,omitempty"` // an object of texts
}

// Referrers yields the living manifests whose subject is d, by digest after
// last; artifactType "" selects all types. It holds one of them at a time, since
// their annotations may have megabytes each, and these are valid until the next. The caller must not keep a connection
// waiting: yield neither blocks nor asks this store.
func (s *Store) Referrers(ctx context.Context, repo oci.Name, d oci.Digest, artifactType string, last oci.Digest) iter.Seq2[Referrer, error] {
	return func(yield func(Referrer, error) bool) {
		for more := true; more; {
			looked := 0
			err := s.db.List(ctx, func(tx *sqldb.Tx) error {
				return tx.All(func(rows *sql.Rows) error {
					var r Referrer
					var living bool
					var annotations sql.RawBytes
					if err := rows.Scan(&r.MediaType, &r.Digest, &r.Size, &r.ArtifactType, &living, &annotations); err != nil {
						return err
					}
					looked, last = looked+1, r.Digest
					if !living || artifactType != "" && r.ArtifactType != artifactType {
						return nil
					}
					r.Annotations = json.RawMessage(annotations)
					if !yield(r, nil) {
						return errEnough
					}
					return nil
				}, `SELECT m.media_type, m.digest, m.size, m.artifact_type, m.trashed_at IS NULL, m.annotations FROM repositories r CROSS JOIN manifests m INDEXED BY manifests_subject ON m.repo_id = r.id
					WHERE r.name = ? AND m.subject = ? AND m.digest > ? ORDER BY m.digest LIMIT ?`, string(repo), string(d), string(last), listChunk)
			})
			if errors.Is(err, errEnough) {
				return
			}
			if err != nil {
				yield(Referrer{}, fmt.Errorf("list referrers of %s in %s: %w", d, repo, err))
				return
			}
			more = looked == listChunk
		}
	}
}

// errEnough ends a listing whose caller wants no more.
var errEnough = errors.New("enough")
