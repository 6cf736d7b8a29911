package meta

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/sqldb"
	"github.com/fairway-registry/fairway/internal/unit"
)

// PreheatRule has a push begin a preheat.
type PreheatRule struct {
	ID           int64        `json:"id"`
	Repository   string       `json:"repository"` // pattern, as of RepoScope, but never ""
	Tag          string       `json:"tag"`        // pattern, of path.Match
	Nodes        string       `json:"nodes"`      // NodeChoice
	Share        unit.Percent `json:"share"`
	AllPlatforms bool         `json:"all_platforms"`
	Actor        string       `json:"actor"`
	CreatedAt    time.Time    `json:"created_at"`
}

// AddPreheatRule stores a rule, which the caller has checked.
func (s *Store) AddPreheatRule(ctx context.Context, r PreheatRule) (PreheatRule, error) {
	err := s.db.Write(ctx, func(tx *sqldb.Tx) error {
		r.CreatedAt = Time(tx.Now())
		return tx.Row("INSERT INTO preheat_rules (repository, tag, nodes, share, all_platforms, actor, created_at) VALUES (?, ?, ?, ?, ?, ?, ?) RETURNING id",
			r.Repository, r.Tag, r.Nodes, float64(r.Share), r.AllPlatforms, r.Actor, tx.Now()).Scan(&r.ID)
	})
	if err != nil {
		return PreheatRule{}, told(fmt.Errorf("add a rule for preheats: %w", err))
	}
	return r, nil
}

// PreheatRules lists the rules.
func (s *Store) PreheatRules(ctx context.Context) (rules []PreheatRule, err error) {
	err = s.db.Read(ctx, func(tx *sqldb.Tx) error {
		rules, err = preheatRules(tx)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list the rules for preheats: %w", err)
	}
	return rules, nil
}

func preheatRules(tx *sqldb.Tx) (rules []PreheatRule, err error) {
	err = tx.All(func(rows *sql.Rows) error {
		var r PreheatRule
		var share float64
		var at int64
		err := rows.Scan(&r.ID, &r.Repository, &r.Tag, &r.Nodes, &share, &r.AllPlatforms, &r.Actor, &at)
		r.Share, r.CreatedAt = unit.Percent(share), Time(at)
		rules = append(rules, r)
		return err
	}, "SELECT id, repository, tag, nodes, share, all_platforms, actor, created_at FROM preheat_rules ORDER BY id")
	return rules, err
}

// DeletePreheatRule removes a rule. What it has begun goes on. The error is
// NotFound.
func (s *Store) DeletePreheatRule(ctx context.Context, id int64) error {
	err := s.db.Relieve(ctx, func(tx *sqldb.Tx) error {
		n, err := tx.Exec("DELETE FROM preheat_rules WHERE id = ?", id)
		if err == nil && n == 0 {
			return fault.New(fault.NotFound, "there is no rule %d", id)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("delete rule %d: %w", id, err)
	}
	return nil
}

// preheatPushed begins what the rules want of a push, in its transaction: who
// hears of the push finds the preheat, and a crash loses both or none. Only a
// push with a tag is the end of an image's; what it is made of comes by digest.
func (s *Store) preheatPushed(tx *sqldb.Tx, p Push) error {
	if len(p.Tags) == 0 {
		return nil
	}
	rules, err := preheatRules(tx)
	if err != nil {
		return fmt.Errorf("read the rules for preheats: %w", err)
	}
	for _, r := range rules {
		tag, ok := matchTag(r.Tag, p.Tags)
		if !ok || !matchRepo(r.Repository, string(p.Repo)) {
			continue
		}
		if err := s.fire(tx, r, PreheatImage{Repo: p.Repo, Tag: tag, Digest: p.Digest, AllPlatforms: r.AllPlatforms}); err != nil {
			return fmt.Errorf("preheat by rule %d: %w", r.ID, err)
		}
	}
	return nil
}

// fire begins the preheat of a rule, unless the same is under way or no node is
// there to do it.
func (s *Store) fire(tx *sqldb.Tx, r PreheatRule, image PreheatImage) error {
	var running bool
	err := tx.Row(`SELECT EXISTS (SELECT 1 FROM preheats p CROSS JOIN preheat_nodes n ON n.preheat_id = p.id
		WHERE p.rule_id = ? AND p.rule_id <> 0 AND p.repository = ? AND p.digest = ? AND n.finished_at IS NULL)`, r.ID, string(image.Repo), string(image.Digest)).Scan(&running)
	if err != nil || running {
		return err
	}
	names, err := NodeChoice{Nodes: r.Nodes, Share: r.Share}.choose(tx, image)
	if err != nil || len(names) == 0 {
		return err
	}
	_, err = s.writePreheat(tx, image, names, r.ID, r.Actor)
	return err
}
