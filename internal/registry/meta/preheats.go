package meta

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/nodeapi"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/sqldb"
)

// States of a Preheat.
const (
	PreheatRunning = "running" // some node is not at its end
	PreheatDone    = "done"    // every node has the image
	PreheatFailed  = "failed"  // every node is at its end, and some have it not
)

// PreheatImage is what nodes are to have.
type PreheatImage struct {
	Upstream     string // as runtimes call it; "": this registry
	Repo         oci.Name
	Tag          oci.Tag    // "" where only a digest was given
	Digest       oci.Digest // "" where another registry knows it
	AllPlatforms bool
}

// Reference is the image as people write it.
func (i PreheatImage) Reference() string {
	text := string(i.Repo)
	if i.Upstream != "" {
		text = i.Upstream + "/" + text
	}
	if i.Tag != "" {
		return text + ":" + string(i.Tag)
	}
	return text + "@" + string(i.Digest)
}

// Preheat is an image that nodes fetch ahead.
type Preheat struct {
	ID           int64         `json:"id"`
	Reference    string        `json:"reference"`
	Digest       oci.Digest    `json:"digest,omitempty"`
	AllPlatforms bool          `json:"all_platforms"`
	State        string        `json:"state"`
	Rule         int64         `json:"rule,omitempty"` // whose push began it; 0: somebody asked for it
	Actor        string        `json:"actor"`
	CreatedAt    time.Time     `json:"created_at"`
	FinishedAt   *time.Time    `json:"finished_at,omitempty"`
	Nodes        []PreheatNode `json:"nodes"`
}

// PreheatNode is one node's part of a preheat.
type PreheatNode struct {
	Node       string     `json:"node"`
	State      string     `json:"state"` // nodeapi.TaskWaiting, …
	DoneBytes  int64      `json:"done_bytes"`
	TotalBytes int64      `json:"total_bytes"` // 0 until the node knows
	Error      string     `json:"error,omitempty"`
	UpdatedAt  time.Time  `json:"updated_at"`
	StartedAt  *time.Time `json:"started_at,omitempty"`
	FinishedAt *time.Time `json:"finished_at,omitempty"`
}

// preheatSignals wake those who wait: nodes for tasks, and people for an end.
type preheatSignals struct{ begun, ended *signal }

func newPreheatSignals() preheatSignals { return preheatSignals{newSignal(), newSignal()} }

// signal wakes all who wait for it at once.
type signal struct {
	mu sync.Mutex
	ch chan struct{}
}

func newSignal() *signal { return &signal{ch: make(chan struct{})} }

// next is closed at the next wake.
func (s *signal) next() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ch
}

func (s *signal) wake() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.ch)
	s.ch = make(chan struct{})
}

// PreheatBegun is closed when the next preheat begins: take it before looking.
func (s *Store) PreheatBegun() <-chan struct{} { return s.preheats.begun.next() }

// PreheatEnded is closed when the next node comes to its end.
func (s *Store) PreheatEnded() <-chan struct{} { return s.preheats.ended.next() }

// StartPreheat asks the nodes of a choice to fetch an image. The error is
// NotFound where no fresh node matches.
func (s *Store) StartPreheat(ctx context.Context, image PreheatImage, c NodeChoice, actor string) (p Preheat, err error) {
	err = s.db.Write(ctx, func(tx *sqldb.Tx) error {
		names, err := c.choose(tx, image)
		if err != nil {
			return err
		}
		if len(names) == 0 {
			return fault.New(fault.NotFound, "no node that reports to this registry matches; \"fairway nodes\" lists them")
		}
		id, err := s.writePreheat(tx, image, names, 0, actor)
		if err != nil {
			return err
		}
		p, err = readPreheat(tx, id)
		return err
	})
	if err != nil {
		return Preheat{}, told(fmt.Errorf("start a preheat of %s: %w", image.Reference(), err))
	}
	return p, nil
}

func (s *Store) writePreheat(tx *sqldb.Tx, i PreheatImage, nodes []string, rule int64, actor string) (id int64, err error) {
	err = tx.Row("INSERT INTO preheats (upstream, repository, tag, digest, all_platforms, rule_id, actor, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?) RETURNING id",
		i.Upstream, string(i.Repo), string(i.Tag), string(i.Digest), i.AllPlatforms, rule, actor, tx.Now()).Scan(&id)
	if err != nil {
		return 0, fmt.Errorf("write the preheat: %w", err)
	}
	_, err = tx.Exec("INSERT INTO preheat_nodes (preheat_id, node, state, updated_at) SELECT ?, a, ?, ? FROM "+sqldb.Each, id, nodeapi.TaskWaiting, tx.Now(), sqldb.List(nodes))
	if err != nil {
		return 0, fmt.Errorf("write the nodes of the preheat: %w", err)
	}
	tx.OnCommit(s.preheats.begun.wake)
	return id, nil
}

// Preheat reads one preheat. The error is NotFound.
func (s *Store) Preheat(ctx context.Context, id int64) (p Preheat, err error) {
	err = s.db.Snapshot(ctx, func(tx *sqldb.Tx) error {
		p, err = readPreheat(tx, id)
		return err
	})
	if err != nil {
		return Preheat{}, fmt.Errorf("read preheat %d: %w", id, err)
	}
	return p, nil
}

const preheatColumns = "id, upstream, repository, tag, digest, all_platforms, rule_id, actor, created_at"

func readPreheat(tx *sqldb.Tx, id int64) (p Preheat, err error) {
	p, err = scanPreheat(tx.Row("SELECT "+preheatColumns+" FROM preheats WHERE id = ?", id).Scan)
	if errors.Is(err, sql.ErrNoRows) {
		return p, preheatUnknown(id)
	}
	if err != nil {
		return p, err
	}
	return p, p.readNodes(tx)
}

func preheatUnknown(id int64) error {
	return fault.New(fault.NotFound, "there is no preheat %d", id)
}

func scanPreheat(scan func(...any) error) (p Preheat, err error) {
	var i PreheatImage
	var at int64
	if err := scan(&p.ID, &i.Upstream, &i.Repo, &i.Tag, &i.Digest, &i.AllPlatforms, &p.Rule, &p.Actor, &at); err != nil {
		return p, err
	}
	p.Reference, p.Digest, p.AllPlatforms, p.CreatedAt, p.Nodes = i.Reference(), i.Digest, i.AllPlatforms, Time(at), []PreheatNode{}
	return p, nil
}

// readNodes fills in the nodes and what follows from them.
func (p *Preheat) readNodes(tx *sqldb.Tx) error {
	p.State = PreheatDone
	var last int64
	open := false
	err := tx.All(func(rows *sql.Rows) error {
		var n PreheatNode
		var updated int64
		var started, finished sql.NullInt64
		if err := rows.Scan(&n.Node, &n.State, &n.DoneBytes, &n.TotalBytes, &n.Error, &updated, &started, &finished); err != nil {
			return err
		}
		n.UpdatedAt, n.StartedAt, n.FinishedAt = Time(updated), timePtr(started), timePtr(finished)
		open = open || !finished.Valid
		if n.State != nodeapi.TaskDone {
			p.State = PreheatFailed
		}
		last = max(last, finished.Int64)
		p.Nodes = append(p.Nodes, n)
		return nil
	}, "SELECT node, state, done, total, error, updated_at, started_at, finished_at FROM preheat_nodes WHERE preheat_id = ? ORDER BY node", p.ID)
	if open {
		p.State = PreheatRunning
	} else {
		at := Time(last)
		p.FinishedAt = &at
	}
	return err
}

// Preheats lists preheats, newest first: n with an id below before (0 = from the
// end).
func (s *Store) Preheats(ctx context.Context, before int64, n int) (ps []Preheat, err error) {
	err = s.db.ListSnapshot(ctx, func(tx *sqldb.Tx) error {
		ps = []Preheat{}
		err := tx.All(func(rows *sql.Rows) error {
			p, err := scanPreheat(rows.Scan)
			ps = append(ps, p)
			return err
		}, "SELECT "+preheatColumns+" FROM preheats WHERE id < ? ORDER BY id DESC LIMIT ?", orLast(before), n)
		for i := range ps {
			if err == nil {
				err = ps[i].readNodes(tx)
			}
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list preheats: %w", err)
	}
	return ps, nil
}

// DeletePreheat forgets a preheat. Nodes that are at it end when they next say
// how far they are. The error is NotFound.
func (s *Store) DeletePreheat(ctx context.Context, id int64) error {
	err := s.db.Relieve(ctx, func(tx *sqldb.Tx) error {
		n, err := tx.Exec("DELETE FROM preheats WHERE id = ?", id)
		if err == nil && n == 0 {
			return preheatUnknown(id)
		}
		tx.OnCommit(s.preheats.ended.wake)
		return err
	})
	if err != nil {
		return fmt.Errorf("delete preheat %d: %w", id, err)
	}
	return nil
}

// NextTask returns the oldest open task of a node, if there is one. It stays
// open until the node says that it is over.
func (s *Store) NextTask(ctx context.Context, node string) (tasks []nodeapi.Task, err error) {
	err = s.db.Read(ctx, func(tx *sqldb.Tx) error {
		tasks = []nodeapi.Task{}
		return tx.All(func(rows *sql.Rows) error {
			var t nodeapi.Task
			err := rows.Scan(&t.ID, &t.Upstream, &t.Repository, &t.Tag, &t.Digest, &t.AllPlatforms)
			tasks = append(tasks, t)
			return err
		}, `SELECT p.id, p.upstream, p.repository, p.tag, p.digest, p.all_platforms FROM preheat_nodes n CROSS JOIN preheats p ON p.id = n.preheat_id
			WHERE n.node = ? AND n.finished_at IS NULL ORDER BY n.preheat_id LIMIT 1`, node)
	})
	if err == nil && len(tasks) > 0 {
		// A loss of power would give the number to another task, which the node would
		// report on then.
		err = s.db.Durable(ctx, s.db.Seen())
	}
	if err != nil {
		return nil, fmt.Errorf("look for a task of node %s: %w", node, err)
	}
	return tasks, nil
}

// PutProgress notes how far a node is with a task. The error is NotFound where
// there is no such task, Conflict where it is over.
func (s *Store) PutProgress(ctx context.Context, node string, id int64, p nodeapi.Progress) error {
	over := p.State != nodeapi.TaskRunning
	write := s.db.Note // the next one says it again
	if over {
		write = s.db.Write
	}
	err := write(ctx, func(tx *sqldb.Tx) error {
		n, err := tx.Exec(`UPDATE preheat_nodes SET state = ?1, done = ?2, total = ?3, error = ?4, updated_at = ?5, started_at = coalesce(started_at, ?5),
				finished_at = iif(?6, ?5, NULL) WHERE preheat_id = ?7 AND node = ?8 AND finished_at IS NULL`,
			p.State, p.DoneBytes, p.TotalBytes, p.Error, tx.Now(), over, id, node)
		if err != nil || n > 0 {
			if over {
				tx.OnCommit(s.preheats.ended.wake)
			}
			return err
		}
		var state string
		err = tx.Row("SELECT state FROM preheat_nodes WHERE preheat_id = ? AND node = ?", id, node).Scan(&state)
		if errors.Is(err, sql.ErrNoRows) {
			return fault.New(fault.NotFound, "node %q has no task %d", node, id)
		}
		if err == nil {
			err = fault.New(fault.Conflict, "task %d of node %q is over: %s", id, node, state)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("note the progress of node %s: %w", node, err)
	}
	return nil
}

// preheatMemory is how long a preheat is remembered, in ms.
const preheatMemory = 30 * 24 * 3600 * 1000

// ExpirePreheats gives up the tasks of nodes of whose tasks nothing was heard
// for so many ms, and forgets what is long over. It returns how many it gave up.
func (s *Store) ExpirePreheats(ctx context.Context, silentMS int64) (expired int64, err error) {
	err = s.db.Maintain(ctx, func(tx *sqldb.Tx) error {
		expired, err = tx.Exec(`UPDATE preheat_nodes AS p SET state = ?1, updated_at = ?2, finished_at = ?2,
				error = iif(state = ?3, 'the node did not begin in time', 'nothing was heard of the node for too long')
			WHERE finished_at IS NULL AND updated_at < ?4
				AND NOT EXISTS (SELECT 1 FROM preheat_nodes o WHERE o.node = p.node AND o.updated_at >= ?4)`,
			nodeapi.TaskFailed, tx.Now(), nodeapi.TaskWaiting, tx.Now()-silentMS)
		if err != nil {
			return err
		}
		if expired > 0 {
			tx.OnCommit(s.preheats.ended.wake)
		}
		_, err = tx.Exec(`DELETE FROM preheats WHERE created_at < ? AND NOT EXISTS (
			SELECT 1 FROM preheat_nodes n WHERE n.preheat_id = preheats.id AND n.finished_at IS NULL)`, tx.Now()-preheatMemory)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("expire preheats: %w", err)
	}
	return expired, nil
}
