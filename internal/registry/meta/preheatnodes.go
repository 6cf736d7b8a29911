package meta

import (
	"cmp"
	"crypto/sha256"
	"database/sql"
	"encoding/json"
	"fmt"
	"math"
	"path"
	"slices"
	"strings"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/nodeapi"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/sqldb"
	"github.com/fairway-registry/fairway/internal/unit"
)

// NodeChoice says which nodes preheat an image: of the fresh ones that match
// Nodes a share.
type NodeChoice struct {
	// Nodes is terms joined by commas, all of which must hold: LABEL=VALUE, or a
	// pattern of names with * and ?. "" is all nodes.
	Nodes string
	Share unit.Percent // 0: all of them
}

// Validate refuses a choice that cannot be read.
func (c NodeChoice) Validate() error {
	if len(c.Nodes) > choiceMax {
		return fault.New(fault.Invalid, "nodes: %d bytes at most are allowed", choiceMax)
	}
	for term := range strings.SplitSeq(c.Nodes, ",") {
		if key, value, ok := strings.Cut(term, "="); ok && !nodeapi.IsLabel(key, value) {
			return fault.New(fault.Invalid, "nodes: %.64q is no label; want for example zone=a", term)
		}
		if _, err := path.Match(term, ""); err != nil || c.Nodes != "" && term == "" {
			return fault.New(fault.Invalid, "nodes: %.64q is no pattern; want LABEL=VALUE or a name with * or ?, and commas between them", term)
		}
	}
	if c.Share < 0 || c.Share > 100 {
		return fault.New(fault.Invalid, "share: %s is not between 0%% and 100%%", c.Share)
	}
	return nil
}

const choiceMax = 1000

// matches reports that a node is one of those meant.
func (c NodeChoice) matches(name string, labels map[string]string) bool {
	if c.Nodes == "" {
		return true
	}
	for term := range strings.SplitSeq(c.Nodes, ",") {
		if key, value, ok := strings.Cut(term, "="); ok {
			if got, has := labels[key]; !has || got != value {
				return false
			}
			continue
		}
		if ok, err := path.Match(term, name); err != nil || !ok {
			return false
		}
	}
	return true
}

// part takes the share of the nodes. Rendezvous hashing by the repository has
// the same nodes take its next image, whose layers they have for the most part,
// and other nodes those of another one; a node that comes or goes changes the
// part of no other.
func (c NodeChoice) part(names []string, image PreheatImage) []string {
	if c.Share == 0 || c.Share == 100 {
		return names
	}
	n := int(math.Ceil(c.Share.Fraction()*float64(len(names)) - 1e-9))
	rank := map[string]string{}
	for _, name := range names {
		sum := sha256.Sum256([]byte(image.Upstream + "\x00" + string(image.Repo) + "\x00" + name))
		rank[name] = string(sum[:])
	}
	slices.SortFunc(names, func(a, b string) int { return cmp.Compare(rank[a], rank[b]) })
	names = names[:n]
	slices.Sort(names)
	return names
}

// choose finds the nodes by what they last reported.
func (c NodeChoice) choose(tx *sqldb.Tx, image PreheatImage) (names []string, err error) {
	err = tx.All(func(rows *sql.Rows) error {
		var name, text string
		if err := rows.Scan(&name, &text); err != nil {
			return err
		}
		var labels map[string]string
		if err := json.Unmarshal([]byte(text), &labels); err != nil {
			return fmt.Errorf("read the labels of node %s: %w", name, err)
		}
		if c.matches(name, labels) {
			names = append(names, name)
		}
		return nil
	}, "SELECT name, labels FROM nodes INDEXED BY nodes_fresh WHERE fresh_until > ? ORDER BY name", tx.Now())
	if err != nil {
		return nil, fmt.Errorf("choose nodes: %w", err)
	}
	return c.part(names, image), nil
}

// matchTag reports that one of the tags matches a pattern.
func matchTag(pattern string, tags []oci.Tag) (tag oci.Tag, ok bool) {
	for _, t := range tags {
		if ok, err := path.Match(pattern, string(t)); err == nil && ok {
			return t, true
		}
	}
	return "", false
}
