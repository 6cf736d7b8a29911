package meta

import (
	"context"
	"database/sql"
	"fmt"
	"sync"

	"github.com/fairway-registry/fairway/internal/sqldb"
)

// Counting what is in a table reads all of it. So it is done in bounded steps,
// and when a count has taken many of them, its result serves for statsAge.
const (
	countChunk = 20_000
	statsAge   = 10_000 // ms
)

// statsMemory is the last count that took many steps.
type statsMemory[T any] struct {
	mu    sync.Mutex // held while one counts: the others want the same
	stats T
	at    int64 // ms; 0: none
}

func (m *statsMemory[T]) get(now func() int64, count func() (st T, long bool, err error)) (T, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.at != 0 && now() < m.at+statsAge {
		return m.stats, nil
	}
	st, long, err := count()
	if m.at = 0; long && err == nil {
		m.stats, m.at = st, now()
	}
	return st, err
}

// Stats reads the sizes of the queues. They are exact while the queues are
// short; those of long ones may be some seconds old.
func (s *Store) Stats(ctx context.Context) (Stats, error) {
	st, err := s.stats.get(s.Now, func() (Stats, bool, error) { return s.countQueues(ctx) })
	if err != nil {
		return Stats{}, fmt.Errorf("read the sizes of the queues: %w", err)
	}
	return st, nil
}

// tally counts the rows of a table in order of a key. query selects count(*),
// the last key, and further columns of the n rows after a key.
type tally struct {
	query string
	first any
	chunk int64
	into  []*int64
}

func (s *Store) countQueues(ctx context.Context) (st Stats, long bool, err error) {
	now := s.Now()
	tallies := []tally{
		{"SELECT count(*), max(id) FROM (SELECT id FROM repositories WHERE id > ? ORDER BY id LIMIT ?)", 0, countChunk, []*int64{&st.Repositories}},
		{"SELECT count(*), max(target) FROM (SELECT target FROM reviews WHERE kind = 'link' AND target > ? ORDER BY target LIMIT ?)", 0, countChunk, []*int64{&st.Reviews}},
		{"SELECT count(*), max(target) FROM (SELECT target FROM reviews WHERE kind = 'blob' AND target > ? ORDER BY target LIMIT ?)", 0, countChunk, []*int64{&st.Reviews}},
		{"SELECT count(*), max(target) FROM (SELECT target FROM reviews WHERE kind = 'manifest' AND target > ? ORDER BY target LIMIT ?)", 0, countChunk, []*int64{&st.Reviews}},
		{"SELECT count(*), max(key), coalesce(sum(size), 0), coalesce(sum(attempts > 0), 0) FROM (SELECT key, size, attempts FROM purges WHERE key > ? ORDER BY key LIMIT ?)", "", countChunk, []*int64{&st.Purges, &st.PurgeBytes, &st.PurgesStuck}},
		{"SELECT count(*), max(manifest_id) FROM (SELECT manifest_id FROM trash WHERE manifest_id > ? ORDER BY manifest_id LIMIT ?)", 0, countChunk, []*int64{&st.Trash}},
		{"SELECT count(*), max(id) FROM (SELECT id FROM uploads WHERE id > ? ORDER BY id LIMIT ?)", "", countChunk, []*int64{&st.Uploads}},
		{"SELECT count(*), max(holder), coalesce(sum(expires_at > ?3), 0) FROM (SELECT holder, expires_at FROM leases WHERE holder > ?1 ORDER BY holder LIMIT ?2)", "", countChunk, []*int64{nil, &st.Leases}},
	}
	for _, t := range tallies {
		more, err := s.count(ctx, t, now)
		if err != nil {
			return Stats{}, false, err
		}
		long = long || more
	}
	err = s.db.List(ctx, func(tx *sqldb.Tx) error {
		var oldest sql.NullInt64
		err := tx.Row(`SELECT min(at) FROM (SELECT min(event_at) AS at FROM reviews WHERE kind = 'link'
			UNION ALL SELECT min(event_at) FROM reviews WHERE kind = 'blob' UNION ALL SELECT min(event_at) FROM reviews WHERE kind = 'manifest')`).Scan(&oldest)
		if oldest.Valid {
			st.OldestReview = max(0, tx.Now()-oldest.Int64)
		}
		return err
	})
	return st, long, err
}

// nodeDigests counts the digests that nodes have leases on. However many nodes
// have one, it is found by one look-up.
const nodeDigests = `WITH RECURSIVE each_digest (d) AS (
		SELECT (SELECT min(digest) FROM lease_digests WHERE digest > ?1)
		UNION ALL SELECT (SELECT min(digest) FROM lease_digests WHERE digest > each_digest.d) FROM each_digest WHERE each_digest.d IS NOT NULL LIMIT ?2)
	SELECT count(d), max(d), coalesce(sum(EXISTS (SELECT 1 FROM lease_digests l WHERE l.digest = d AND l.expires_at > ?3 AND l.holder >= 'node:' AND l.holder < 'node;')), 0)
	FROM each_digest WHERE d IS NOT NULL`

// nodeDigestsChunk is how many of them one step counts.
const nodeDigestsChunk = 2000

// count adds up a tally. long reports that it took more than one step.
func (s *Store) count(ctx context.Context, t tally, now int64) (long bool, err error) {
	for after := t.first; ; long = true {
		var n int64
		err := s.db.List(ctx, func(tx *sqldb.Tx) error {
			sums := make([]int64, len(t.into)) // the first is n
			dest := []any{&n, &after}
			for i := range sums[1:] {
				dest = append(dest, &sums[i+1])
			}
			args := []any{after, t.chunk}
			if t.into[0] == nil {
				args = append(args, now)
			}
			if err := tx.Row(t.query, args...).Scan(dest...); err != nil {
				return err
			}
			sums[0] = n
			for i, into := range t.into {
				if into != nil {
					*into += sums[i]
				}
			}
			return nil
		})
		if err != nil || n < t.chunk {
			return long, err
		}
	}
}
