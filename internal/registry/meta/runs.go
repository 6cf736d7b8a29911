package meta

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/sqldb"
)

// How many runs the history holds; older ones go as new ones come. Runs that
// did nothing have a share of their own, so that they do not push out those that
// mattered. The deletion log is apart from it and is never cut.
const (
	runsKept     = 10_000
	idleRunsKept = 1_000
)

// idleRun selects runs that ended well and did nothing. The index runs_idle has
// the same terms.
const idleRun = "state = 'done' AND collected = 0 AND trashed = 0 AND unlinked = 0 AND purged = 0 AND failed = 0"

// trimRuns forgets the oldest runs beyond what the history holds. It counts
// runs and not ids: a run that is forgotten at once has taken an id.
func trimRuns(tx *sqldb.Tx) error {
	if _, err := tx.Exec("DELETE FROM runs WHERE "+idleRun+" AND id <= (SELECT id FROM runs WHERE "+idleRun+" ORDER BY id DESC LIMIT 1 OFFSET ?)", idleRunsKept); err != nil {
		return err
	}
	_, err := tx.Exec("DELETE FROM runs WHERE state <> 'running' AND id <= (SELECT id FROM runs ORDER BY id DESC LIMIT 1 OFFSET ?)", runsKept)
	return err
}

// StartRun records a run and returns it.
func (s *Store) StartRun(ctx context.Context, trigger, actor string, p Policy) (Run, error) {
	policy, err := json.Marshal(p)
	if err != nil {
		return Run{}, err
	}
	r := Run{Trigger: trigger, State: RunRunning, Policy: p, Counts: Counts{Kept: map[string]int64{}}}
	err = s.db.Maintain(ctx, func(tx *sqldb.Tx) error {
		r.StartedAt = Time(tx.Now())
		err := tx.Row("INSERT INTO runs (trigger, state, actor, policy, started_at) VALUES (?, ?, ?, ?, ?) RETURNING id",
			trigger, RunRunning, actor, string(policy), tx.Now()).Scan(&r.ID)
		if err != nil {
			return err
		}
		return trimRuns(tx)
	})
	if err != nil {
		return Run{}, fmt.Errorf("start a run: %w", err)
	}
	return r, nil
}

// FinishRun records how a run ended.
func (s *Store) FinishRun(ctx context.Context, id int64, state, problem string) error {
	err := s.db.Maintain(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec("UPDATE runs SET state = ?, error = ?, finished_at = ? WHERE id = ?", state, problem, tx.Now(), id)
		return err
	})
	if err != nil {
		return fmt.Errorf("finish run %d: %w", id, err)
	}
	return nil
}

// ForgetRun removes a run that found nothing to do.
func (s *Store) ForgetRun(ctx context.Context, id int64) error {
	err := s.db.Maintain(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec("DELETE FROM runs WHERE id = ?", id)
		return err
	})
	if err != nil {
		return fmt.Errorf("forget run %d: %w", id, err)
	}
	return nil
}

// interruptRuns closes the runs that a crash left open. Nothing else is to be
// repaired: their counts were written with each batch, and what they did not
// reach is still in the queues.
func (s *Store) interruptRuns(ctx context.Context) error {
	var open bool
	err := s.db.Read(ctx, func(tx *sqldb.Tx) error {
		return tx.Row("SELECT EXISTS (SELECT 1 FROM runs WHERE state = 'running')").Scan(&open)
	})
	if err != nil || !open {
		return err
	}
	return s.db.Maintain(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec("UPDATE runs SET state = ?, finished_at = ?, error = 'the server ended while it ran' WHERE state = 'running'", RunInterrupted, tx.Now())
		return err
	})
}

func addCounts(tx *sqldb.Tx, run int64, c Counts) error {
	if run == 0 {
		return nil
	}
	if _, err := tx.Exec(`UPDATE runs SET total = total + ?, examined = examined + ?, collected = collected + ?, trashed = trashed + ?,
		unlinked = unlinked + ?, freed_bytes = freed_bytes + ?, purged = purged + ?, failed = failed + ? WHERE id = ?`,
		c.Total, c.Examined, c.Collected, c.Trashed, c.Unlinked, c.FreedBytes, c.Purged, c.Failed, run); err != nil {
		return fmt.Errorf("count: %w", err)
	}
	for reason, n := range c.Kept {
		if _, err := tx.Exec(`INSERT INTO run_kept (run_id, reason, n) SELECT ?1, ?2, ?3 WHERE EXISTS (SELECT 1 FROM runs WHERE id = ?1)
			ON CONFLICT (run_id, reason) DO UPDATE SET n = n + excluded.n`, run, reason, n); err != nil {
			return fmt.Errorf("count: %w", err)
		}
	}
	return nil
}

// AddRunCounts adds to a run's counts outside a batch.
func (s *Store) AddRunCounts(ctx context.Context, run int64, c Counts) error {
	return s.db.Maintain(ctx, func(tx *sqldb.Tx) error { return addCounts(tx, run, c) })
}

func addEvent(tx *sqldb.Tx, run int64, level, text string) error {
	if run == 0 {
		return nil
	}
	_, err := tx.Exec(`INSERT INTO run_events (run_id, at, level, text)
		SELECT ?1, ?2, CASE n WHEN ?5 THEN 'warn' ELSE ?3 END, CASE n WHEN ?5 THEN 'more happened than is recorded here; the counts have all of it' ELSE ?4 END
		FROM (SELECT count(*) AS n FROM run_events WHERE run_id = ?1) WHERE n <= ?5 AND EXISTS (SELECT 1 FROM runs WHERE id = ?1)`,
		run, tx.Now(), level, text, runEventsMax)
	return err
}

// runEventsMax is how many lines a run's log has; one more says that there were others.
const runEventsMax = 1_000

// RunEvents lists a run's log, oldest first, at most n lines.
func (s *Store) RunEvents(ctx context.Context, run int64, n int) (es []RunEvent, err error) {
	err = s.db.Read(ctx, func(tx *sqldb.Tx) error {
		es = []RunEvent{}
		return tx.All(func(rows *sql.Rows) error {
			var e RunEvent
			var at int64
			err := rows.Scan(&at, &e.Level, &e.Text)
			e.At = Time(at)
			es = append(es, e)
			return err
		}, "SELECT at, level, text FROM run_events WHERE run_id = ? ORDER BY id LIMIT ?", run, n)
	})
	if err != nil {
		return nil, fmt.Errorf("list events of run %d: %w", run, err)
	}
	return es, nil
}

const runColumns = `id, trigger, state, policy, total, examined, collected, trashed, unlinked, freed_bytes, purged, failed, error, started_at, finished_at,
	coalesce((SELECT json_group_object(reason, n) FROM run_kept k WHERE k.run_id = runs.id), '{}')`

func scanRun(scan func(...any) error) (Run, error) {
	var r Run
	var policy, kept string
	var started int64
	var finished sql.NullInt64
	err := scan(&r.ID, &r.Trigger, &r.State, &policy, &r.Total, &r.Examined, &r.Collected, &r.Trashed, &r.Unlinked, &r.FreedBytes,
		&r.Purged, &r.Failed, &r.Error, &started, &finished, &kept)
	if err != nil {
		return Run{}, err
	}
	r.StartedAt, r.FinishedAt = Time(started), timePtr(finished)
	if err := json.Unmarshal([]byte(policy), &r.Policy); err != nil {
		return Run{}, err
	}
	return r, json.Unmarshal([]byte(kept), &r.Kept)
}

// Run returns a run. The error is NotFound for an unknown id.
func (s *Store) Run(ctx context.Context, id int64) (r Run, err error) {
	err = s.db.Read(ctx, func(tx *sqldb.Tx) error {
		r, err = scanRun(tx.Row("SELECT "+runColumns+" FROM runs WHERE id = ?", id).Scan)
		return err
	})
	if errors.Is(err, sql.ErrNoRows) {
		return Run{}, fault.New(fault.NotFound, "there is no run %d", id)
	}
	if err != nil {
		return Run{}, fmt.Errorf("look up run %d: %w", id, err)
	}
	return r, nil
}

// Runs lists runs, newest first, with ids below before (0 = from the end), n at most.
func (s *Store) Runs(ctx context.Context, before int64, n int) (rs []Run, err error) {
	err = s.db.Read(ctx, func(tx *sqldb.Tx) error {
		rs = []Run{}
		return tx.All(func(rows *sql.Rows) error {
			r, err := scanRun(rows.Scan)
			rs = append(rs, r)
			return err
		}, "SELECT "+runColumns+" FROM runs WHERE id < ? ORDER BY id DESC LIMIT ?", orLast(before), n)
	})
	if err != nil {
		return nil, fmt.Errorf("list runs: %w", err)
	}
	return rs, nil
}

// LatestRuns returns the runs under way, newest first, and the newest of those
// that are over, nil for none.
func (s *Store) LatestRuns(ctx context.Context) (running []Run, last *Run, err error) {
	err = s.db.Snapshot(ctx, func(tx *sqldb.Tx) error {
		running, last = []Run{}, nil
		if err := tx.All(func(rows *sql.Rows) error {
			r, err := scanRun(rows.Scan)
			running = append(running, r)
			return err
		}, "SELECT "+runColumns+" FROM runs WHERE state = 'running' ORDER BY id DESC"); err != nil {
			return err
		}
		r, err := scanRun(tx.Row("SELECT " + runColumns + " FROM runs WHERE state <> 'running' ORDER BY id DESC LIMIT 1").Scan)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		last = &r
		return err
	})
	if err != nil {
		return nil, nil, fmt.Errorf("look up the latest runs: %w", err)
	}
	return running, last, nil
}

// Cutoffs are a policy's time limits, applied to the database's clock.
type Cutoffs struct {
	Now                              int64
	Window, Trash, Untagged, Uploads int64 // at or before which things are due; Untagged 0: never
	Stranded                         int64 // 0: never
}

// CountDue counts what a run with these limits has before it, at most limit of each kind.
func (s *Store) CountDue(ctx context.Context, c Cutoffs, scope Scope, limit int64) (n int64, err error) {
	err = s.db.List(ctx, func(tx *sqldb.Tx) error {
		list := scope.list()
		return tx.Row(`SELECT
			(SELECT count(*) FROM (SELECT 1 FROM reviews WHERE kind = 'manifest' AND event_at <= ?1 AND (?5 OR repo_id IN (SELECT value FROM json_each(?6))) LIMIT ?7)) +
			(SELECT count(*) FROM (SELECT 1 FROM reviews WHERE kind = 'link' AND event_at <= ?1 AND (?5 OR repo_id IN (SELECT value FROM json_each(?6))) LIMIT ?7)) +
			(SELECT count(*) FROM (SELECT 1 FROM reviews WHERE kind = 'blob' AND event_at <= ?1 AND (?5 OR repo_id IN (SELECT value FROM json_each(?6))) LIMIT ?7)) +
			(SELECT count(*) FROM (SELECT 1 FROM trash t WHERE t.trashed_at <= ?2 AND (?5 OR (SELECT m.repo_id FROM manifests m WHERE m.id = t.manifest_id) IN (SELECT value FROM json_each(?6))) LIMIT ?7)) +
			(SELECT count(*) FROM (SELECT 1 FROM manifests WHERE ?3 > 0 AND loose_at <= ?3 AND orphaned_at IS NULL AND (?5 OR repo_id IN (SELECT value FROM json_each(?6))) LIMIT ?7)) +
			(SELECT count(*) FROM (SELECT 1 FROM uploads WHERE touched_at <= ?4 AND (?5 OR repo_id IN (SELECT value FROM json_each(?6))) LIMIT ?7)) +
			(SELECT count(*) FROM (SELECT 1 FROM stranded WHERE ?8 > 0 AND since <= ?8 AND (?5 OR repo_id IN (SELECT value FROM json_each(?6))) LIMIT ?7))`,
			c.Window, c.Trash, c.Untagged, c.Uploads, scope.all, list, limit, c.Stranded).Scan(&n)
	})
	if err != nil {
		return 0, fmt.Errorf("count what is due: %w", err)
	}
	return n, nil
}

// PurgesDue reports whether the purge queue has something due.
func (s *Store) PurgesDue(ctx context.Context) (due bool, err error) {
	err = s.db.Read(ctx, func(tx *sqldb.Tx) error {
		return tx.Row("SELECT EXISTS (SELECT 1 FROM purges WHERE due_at <= ?)", tx.Now()).Scan(&due)
	})
	return due, err
}

// Schedules lists the cron schedules.
func (s *Store) Schedules(ctx context.Context) (ss []Schedule, err error) {
	err = s.db.Read(ctx, func(tx *sqldb.Tx) error {
		ss = []Schedule{}
		return tx.All(func(rows *sql.Rows) error {
			var sc Schedule
			var policy string
			var last sql.NullInt64
			if err := rows.Scan(&sc.ID, &sc.Cron, &policy, &last); err != nil {
				return err
			}
			sc.LastRun = timePtr(last)
			err := json.Unmarshal([]byte(policy), &sc.Policy)
			ss = append(ss, sc)
			return err
		}, "SELECT id, cron, policy, last_run FROM schedules ORDER BY id")
	})
	if err != nil {
		return nil, fmt.Errorf("list schedules: %w", err)
	}
	return ss, nil
}

// AddSchedule stores a schedule; the caller has parsed cron.
func (s *Store) AddSchedule(ctx context.Context, cron string, p Policy) (sc Schedule, err error) {
	policy, err := json.Marshal(p)
	if err != nil {
		return Schedule{}, err
	}
	err = s.db.Write(ctx, func(tx *sqldb.Tx) error {
		sc = Schedule{Cron: cron, Policy: p}
		return tx.Row("INSERT INTO schedules (cron, policy, created_at) VALUES (?, ?, ?) RETURNING id", cron, string(policy), tx.Now()).Scan(&sc.ID)
	})
	if err != nil {
		return Schedule{}, fmt.Errorf("add a schedule: %w", err)
	}
	return sc, nil
}

// DeleteSchedule removes a schedule. The error is NotFound for an unknown id.
func (s *Store) DeleteSchedule(ctx context.Context, id int64) error {
	err := s.db.Relieve(ctx, func(tx *sqldb.Tx) error {
		n, err := tx.Exec("DELETE FROM schedules WHERE id = ?", id)
		if err == nil && n == 0 {
			return fault.New(fault.NotFound, "there is no schedule %d", id)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("delete schedule %d: %w", id, err)
	}
	return nil
}

// MarkScheduled records that a schedule has begun a run.
func (s *Store) MarkScheduled(ctx context.Context, id int64) error {
	return s.db.Maintain(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec("UPDATE schedules SET last_run = ? WHERE id = ?", tx.Now(), id)
		return err
	})
}
