package index

import (
	"context"
	"database/sql"
	"errors"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/sqldb"
)

const blobColumns = "digest, size, state, was, media_type, version, created_at, used_at, uses, fetch_ms, source, chain_id, deleted_at, private"

func scanBlob(scan func(...any) error, b *Blob) error {
	return scan(&b.Digest, &b.Size, &b.State, &b.Was, &b.MediaType, &b.Version, &b.CreatedAt, &b.UsedAt, &b.Uses,
		&b.FetchMS, &b.Source, &b.ChainID, &b.DeletedAt, &b.Private)
}

// PutBlob makes the row of a blob that is about to have bytes. CreatedAt and
// UsedAt are now unless set. Conflict where there is a row already.
func (x *Index) PutBlob(ctx context.Context, b Blob) (Blob, error) {
	err := x.note(ctx, "put the row of "+string(b.Digest), func(tx *sqldb.Tx) error {
		if b.CreatedAt == 0 {
			b.CreatedAt = tx.Now()
		}
		if b.UsedAt == 0 {
			b.UsedAt = b.CreatedAt
		}
		b.Version = 1
		n, err := tx.Exec("INSERT INTO blobs (digest, size, state, media_type, version, created_at, used_at, uses, fetch_ms, source, chain_id, deleted_at, private) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?) ON CONFLICT DO NOTHING",
			string(b.Digest), b.Size, b.State, b.MediaType, b.Version, b.CreatedAt, b.UsedAt, b.Uses, b.FetchMS, b.Source, string(b.ChainID), b.DeletedAt, b.Private)
		if err == nil && n == 0 {
			return fault.New(fault.Conflict, "the cache has %s already", b.Digest)
		}
		return err
	})
	return b, err
}

// Blob returns a row; NotFound if there is none.
func (x *Index) Blob(ctx context.Context, d oci.Digest) (b Blob, err error) {
	err = x.read(ctx, "read the row of "+string(d), func(tx *sqldb.Tx) error {
		err := scanBlob(tx.Row("SELECT "+blobColumns+" FROM blobs WHERE digest = ?", string(d)).Scan, &b)
		if errors.Is(err, sql.ErrNoRows) {
			return unknown(d)
		}
		return err
	})
	return b, err
}

func unknown(d oci.Digest) error {
	return fault.New(fault.NotFound, "the cache has no %s", d).WithCode(oci.CodeBlobUnknown)
}

// Blobs calls fn for every row, in order of the digest. fn must not write.
func (x *Index) Blobs(ctx context.Context, fn func(Blob) error) error {
	return x.blobs(ctx, fn, "SELECT "+blobColumns+" FROM blobs ORDER BY digest")
}

// BlobsFrom is Blobs for the digests that begin with prefix, which ends in a hex digit.
func (x *Index) BlobsFrom(ctx context.Context, prefix string, fn func(Blob) error) error {
	return x.blobs(ctx, fn, "SELECT "+blobColumns+" FROM blobs WHERE digest >= ? AND digest < ? ORDER BY digest", prefix, prefix+"g")
}

func (x *Index) blobs(ctx context.Context, fn func(Blob) error, query string, args ...any) error {
	// A few media types and sources stand in all rows.
	same := map[string]string{}
	one := func(s string) string {
		if t, ok := same[s]; ok {
			return t
		}
		if len(same) < 1000 {
			same[s] = s
		}
		return s
	}
	return x.read(ctx, "list the cache", func(tx *sqldb.Tx) error {
		return tx.All(func(rows *sql.Rows) error {
			if err := ctx.Err(); err != nil {
				return err
			}
			var b Blob
			if err := scanBlob(rows.Scan, &b); err != nil {
				return err
			}
			b.State, b.Was, b.MediaType, b.Source = one(b.State), one(b.Was), one(b.MediaType), one(b.Source)
			return fn(b)
		}, query, args...)
	})
}

// Touch counts uses of blobs. Each raises the blob's version.
func (x *Index) Touch(ctx context.Context, uses []Use) error {
	if len(uses) == 0 {
		return nil
	}
	rows := make([][3]any, len(uses))
	for i, u := range uses {
		rows[i] = [3]any{string(u.Digest), u.At, u.Uses}
	}
	// The judge needs them, on a full disk above all.
	return x.relieve(ctx, "count uses", func(tx *sqldb.Tx) error {
		_, err := tx.Exec("UPDATE blobs SET used_at = max(used_at, u.b), uses = uses + u.c, version = version + 1 FROM "+sqldb.Each3+" AS u WHERE digest = u.a", sqldb.List(rows))
		return err
	})
}

// Become says that a blob, which is open, is partial or complete now. A claim that
// is left in its row is over: the blob could be opened. A source other than "" is
// noted with what it cost to get, in ms.
func (x *Index) Become(ctx context.Context, d oci.Digest, state string, fetchMS int64, source string) error {
	return x.relieve(ctx, "set the state of "+string(d), func(tx *sqldb.Tx) error {
		_, err := tx.Exec(`UPDATE blobs SET state = ?1, version = version + 1, fetch_ms = iif(?3 = '', fetch_ms, ?2), source = iif(?3 = '', source, ?3)
			WHERE digest = ?4`, state, fetchMS, source, string(d))
		return err
	})
}

func changed(d oci.Digest) error {
	return fault.New(fault.Conflict, "%s has changed since it was looked at", d)
}

// SetFetched notes what a blob cost to get, and from where it came.
func (x *Index) SetFetched(ctx context.Context, d oci.Digest, ms int64, source string) error {
	return x.note(ctx, "note the cost of "+string(d), func(tx *sqldb.Tx) error {
		_, err := tx.Exec("UPDATE blobs SET fetch_ms = ?, source = ? WHERE digest = ?", ms, source, string(d))
		return err
	})
}

// SetPrivate notes that a blob comes from a repository that asks for credentials.
func (x *Index) SetPrivate(ctx context.Context, d oci.Digest) error {
	return x.note(ctx, "note that "+string(d)+" is private", func(tx *sqldb.Tx) error {
		_, err := tx.Exec("UPDATE blobs SET private = ? WHERE digest = ?", true, string(d))
		return err
	})
}

// SetDeleted notes when the upstream said that the image of these blobs is
// deleted; 0 takes it back.
func (x *Index) SetDeleted(ctx context.Context, all []oci.Digest, at int64) error {
	return x.note(ctx, "note deleted images", func(tx *sqldb.Tx) error {
		_, err := tx.Exec("UPDATE blobs SET deleted_at = ? WHERE digest IN "+sqldb.Each, at, sqldb.List(all))
		return err
	})
}

// SetMediaType says what a blob turned out to be.
func (x *Index) SetMediaType(ctx context.Context, d oci.Digest, mediaType string) error {
	return x.note(ctx, "note what "+string(d)+" is", func(tx *sqldb.Tx) error {
		_, err := tx.Exec("UPDATE blobs SET media_type = ? WHERE digest = ?", mediaType, string(d))
		return err
	})
}
