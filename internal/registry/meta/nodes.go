package meta

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/nodeapi"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/sqldb"
)

// What a node has in use is kept by a lease, whose holder is nodeHolder and the
// node's name. The lease of an installation that another one has taken the
// name of goes on until its end under that holder, nodeFormer and the
// installation.
const (
	nodeHolder = "node:"
	nodeFormer = "#"
)

// NodeOf reads the name of a node from the holder of a lease.
func NodeOf(holder string) (name string, ok bool) {
	rest, ok := strings.CutPrefix(holder, nodeHolder)
	name, _, _ = strings.Cut(rest, nodeFormer)
	return name, ok
}

const (
	// nodeChunk bounds the digests of a report that one transaction adds, so that
	// a large one holds up no client for long (R5). Between two of them clients have
	// nodeRestFactor times as long, nodeRestMax at most, and in all nodeRestTotal, for
	// which the node waits.
	nodeChunk      = 200
	nodeRestFactor = 4
	nodeRestMax    = 100 * time.Millisecond
	nodeRestTotal  = 3 * time.Second
	// nodeFormerMax bounds the installations whose late reports are known as such.
	nodeFormerMax = 16
	// nodeSlack is the part of the grace, one in so many, that a node's lease is
	// made longer, so that a renewal that finds it still long enough writes one
	// row and not one for each digest.
	nodeSlack = 8
	// nodeHeldMax bounds the images that incomplete reports have not named and that
	// are still shown. The leases of what is not shown stay until their end.
	nodeHeldMax = 20_000
	// nodeRunsListed is how many images of a node a list shows.
	nodeRunsListed = 5
	// nodeMemory is how long a node is remembered whose lease is over, in ms.
	nodeMemory = 30 * 24 * 3600 * 1000
)

// nodeRow is what a report is judged by.
type nodeRow struct {
	found                bool
	instance, print      string
	superseded           []string
	seq, kept, firstSeen int64
	digests              int64 // that its lease is on
}

// heldRun is an image that a node has, or had, in use. An incomplete report
// does not let go of what it does not name, but does not renew it either: that
// stays for a grace after the last report that named it, as if the node had been
// silent. So reports that stay incomplete do not pile up all that ever ran.
type heldRun struct {
	nodeapi.Running
	Kept int64 `json:"kept"` // when what it names may go, in ms
}

// nodeReport is a report on its way in.
type nodeReport struct {
	nodeapi.Report
	holder  string
	digests []oci.Digest
	use     map[oci.Digest]nodeUse
	runs    []nodeapi.Running
	print   string
	keepMS  int64 // from now, at least
	slackMS int64
	kept    int64 // when what it names may go, if the lease is written anew
}

// nodeUse is what a node says of a digest, of all that it runs by it.
type nodeUse struct {
	containers int
	since      int64 // ms
}

func newNodeReport(r nodeapi.Report, grace time.Duration, now int64) (nodeReport, error) {
	n := nodeReport{Report: r, holder: nodeHolder + r.Node, keepMS: r.TTLSeconds*1000 + grace.Milliseconds(), slackMS: grace.Milliseconds() / nodeSlack}
	n.kept = now + n.keepMS + n.slackMS
	n.Runtimes = append([]nodeapi.Runtime{}, r.Runtimes...)
	plain := make([]nodeapi.Running, len(r.InUse))
	for i, u := range r.InUse {
		plain[i] = nodeapi.Running{Digests: u.Digests, Image: u.Image, Containers: u.Containers, Pinned: u.Pinned}
		n.digests = append(n.digests, u.Digests...)
	}
	content, err := json.Marshal(plain)
	if err != nil {
		return nodeReport{}, fmt.Errorf("encode what node %s runs: %w", r.Node, err)
	}
	sum := sha256.Sum256(fmt.Appendf(content, " %t", r.Complete))
	n.print = hex.EncodeToString(sum[:])
	for i, u := range r.InUse {
		plain[i].Since = Time(now - u.ForSeconds*1000)
	}
	n.runs, n.use = plain, map[oci.Digest]nodeUse{}
	for _, r := range plain {
		for _, d := range r.Digests {
			use, twice := n.use[d]
			if since := r.Since.UnixMilli(); !twice || since < use.since {
				use.since = since
			}
			use.containers = max(use.containers, r.Containers)
			n.use[d] = use
		}
	}
	slices.Sort(n.digests)
	n.digests = slices.Compact(n.digests)
	return n, nil
}

// PutNode takes in a report: what it names stays for its TTL and grace from
// now, and what the node had in use before and this one does not name is let
// go, if the report is complete. changed tells whether it says anything new. The
// error is Conflict for a report that is not newer than what is known.
func (s *Store) PutNode(ctx context.Context, r nodeapi.Report, grace time.Duration) (a nodeapi.Accepted, changed bool, err error) {
	n, err := newNodeReport(r, grace, s.Now())
	if err != nil {
		return a, false, err
	}
	// What is new goes first, some at a time; a report that is refused in the end
	// has then kept something for longer than needed, which harms nothing.
	if len(n.digests) > nodeChunk { // or all goes in with the rest
		if err := s.addNodeUses(ctx, n); err != nil {
			return a, false, nodeError(r.Node, err)
		}
	}
	err = s.db.Relieve(ctx, func(tx *sqldb.Tx) error {
		var err error
		a, changed, err = n.accept(tx)
		return err
	})
	return a, changed, nodeError(r.Node, err)
}

func nodeError(name string, err error) error {
	if err != nil {
		return told(fmt.Errorf("take in the report of node %s: %w", name, err))
	}
	return nil
}

// addNodeUses leases what a report names, some at a time.
func (s *Store) addNodeUses(ctx context.Context, n nodeReport) error {
	rested := time.Duration(0)
	for chunk := range slices.Chunk(n.digests, nodeChunk) {
		began := time.Now()
		known, err := s.addSomeUses(ctx, n, chunk)
		if err != nil || known {
			return err
		}
		pause := min(nodeRestFactor*time.Since(began), nodeRestMax, nodeRestTotal-rested)
		rested += pause
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
	return nil
}

// addSomeUses leases some of what a report names, unless that is known, or needs
// more than a lease.
func (s *Store) addSomeUses(ctx context.Context, n nodeReport, chunk []oci.Digest) (known bool, err error) {
	err = s.db.Relieve(ctx, func(tx *sqldb.Tx) error {
		row, err := readNode(tx, n.Node)
		if err != nil {
			return err
		}
		if err := row.judge(n.Report); err != nil {
			return err
		}
		if row.found && row.instance != n.Instance || row.reaches(n, tx.Now()) {
			known = true // accept sees to it
			return nil
		}
		if err := leaseAlso(tx, n.holder, chunk, n.kept); err != nil {
			return err
		}
		return n.putUses(tx, chunk)
	})
	return known, err
}

// putUses notes what the report says of these digests. Since when is what was
// heard first: later ages are rounded.
func (n nodeReport) putUses(tx *sqldb.Tx, digests []oci.Digest) error {
	uses := make([][3]any, len(digests))
	for i, d := range digests {
		uses[i] = [3]any{d, n.use[d].containers, n.use[d].since}
	}
	_, err := tx.Exec("INSERT INTO node_uses (holder, digest, containers, since) SELECT ?, a, b, c FROM "+sqldb.Each3+
		" WHERE true ON CONFLICT (holder, digest) DO UPDATE SET containers = excluded.containers WHERE containers <> excluded.containers", n.holder, sqldb.List(uses))
	return err
}

// readNode reads what a report is judged by, without what the node runs, which
// may be much.
func readNode(tx *sqldb.Tx, name string) (row nodeRow, err error) {
	var superseded string
	err = tx.Row("SELECT instance, print, superseded, seq, kept_until, first_seen, digests FROM nodes WHERE name = ?", name).
		Scan(&row.instance, &row.print, &superseded, &row.seq, &row.kept, &row.firstSeen, &row.digests)
	if errors.Is(err, sql.ErrNoRows) {
		return nodeRow{firstSeen: tx.Now()}, nil
	}
	if err != nil {
		return row, err
	}
	row.found = true
	return row, json.Unmarshal([]byte(superseded), &row.superseded)
}

func readRuns(tx *sqldb.Tx, name string, kept int64) (held []heldRun, err error) {
	var text string
	err = tx.Row("SELECT runs FROM node_runs WHERE name = ?", name).Scan(&text)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal([]byte(text), &held); err != nil {
		return nil, fmt.Errorf("read what node %s runs: %w", name, err)
	}
	for i := range held {
		if held[i].Kept == 0 { // written before there was this field
			held[i].Kept = kept
		}
	}
	return held, nil
}

// judge refuses what is older than what is known. Who is newer is never told by
// a clock: an installation that was never heard of is, and one that another has
// taken the name of is not.
func (row nodeRow) judge(r nodeapi.Report) error {
	switch {
	case slices.Contains(row.superseded, r.Instance):
		return fault.New(fault.Conflict, "another installation of the agent reports as node %q by now; give each node a name of its own", r.Node).WithCode(nodeapi.CodeNameTaken)
	case row.instance == r.Instance && r.Seq <= row.seq:
		return fault.New(fault.Conflict, "report %d of node %q is not newer than report %d, which is known", r.Seq, r.Node, row.seq).WithCode(nodeapi.CodeNotNewer)
	}
	return nil
}

// reaches reports that the lease says all that n does, and for long enough.
func (row nodeRow) reaches(n nodeReport, now int64) bool {
	return row.found && row.instance == n.Instance && row.print == n.print && row.kept >= now+n.keepMS && row.kept <= now+n.keepMS+n.slackMS
}

func (n nodeReport) accept(tx *sqldb.Tx) (a nodeapi.Accepted, changed bool, err error) {
	row, err := readNode(tx, n.Node)
	if err != nil {
		return a, false, err
	}
	if err := row.judge(n.Report); err != nil {
		return a, false, err
	}
	changed = !row.found || row.instance != n.Instance || row.print != n.print
	hold := !row.reaches(n, tx.Now())
	var old []heldRun
	if row.found && row.instance != n.Instance {
		if err := supersede(tx, n.holder, row.instance); err != nil {
			return a, false, err
		}
		row.superseded = append(row.superseded, row.instance)
		row.superseded = row.superseded[max(0, len(row.superseded)-nodeFormerMax):]
	} else if hold && !n.Complete {
		if old, err = readRuns(tx, n.Node, row.kept); err != nil {
			return a, false, err
		}
	}
	var runs []heldRun // nil: as they are
	if hold {
		row.kept = n.kept
		if runs, err = n.hold(tx, old); err != nil {
			return a, false, err
		}
		if err := tx.Row("SELECT count(*) FROM lease_digests WHERE holder = ? AND expires_at > ?", n.holder, tx.Now()).Scan(&row.digests); err != nil {
			return a, false, err
		}
	}
	if err := n.write(tx, row, runs); err != nil {
		return a, false, err
	}
	return nodeapi.Accepted{Node: n.Node, Seq: n.Seq, Digests: row.digests, FreshUntil: Time(tx.Now() + n.TTLSeconds*1000), KeptUntil: Time(row.kept)}, changed, nil
}

// supersede gives the lease of an installation a holder of its own, under which
// it goes on until its end: whether that node was reinstalled or two have the
// same name cannot be told from here (R14).
func supersede(tx *sqldb.Tx, holder, instance string) error {
	former := holder + nodeFormer + instance
	for _, query := range []string{
		"UPDATE leases SET holder = ? WHERE holder = ?",
		"UPDATE lease_digests SET holder = ? WHERE holder = ?",
		"UPDATE node_uses SET holder = ? WHERE holder = ?",
		"UPDATE reviews SET holder = ? WHERE holder = ?",
	} {
		if _, err := tx.Exec(query, former, holder); err != nil {
			return fmt.Errorf("set the lease of %s aside: %w", former, err)
		}
	}
	return nil
}

// hold makes the lease what the report says, and returns what the node runs by
// it. old is what it ran before, if the report is incomplete.
func (n nodeReport) hold(tx *sqldb.Tx, old []heldRun) ([]heldRun, error) {
	before, err := setLease(tx, n.holder, n.kept)
	if err != nil {
		return nil, err
	}
	if err := n.lease(tx); err != nil {
		return nil, err
	}
	dropped := int64(0)
	if n.Complete {
		// All that is named ends at n.kept by now.
		if dropped, err = tx.Exec("UPDATE lease_digests SET expires_at = ?1 WHERE holder = ?2 AND expires_at > ?1 AND expires_at <> ?3", tx.Now(), n.holder, n.kept); err != nil {
			return nil, err
		}
	}
	if dropped > 0 || n.kept < before {
		if err := leaseEnds(tx, n.holder); err != nil {
			return nil, err
		}
	}
	if _, err := tx.Exec(`DELETE FROM node_uses WHERE holder = ?1
		AND NOT EXISTS (SELECT 1 FROM lease_digests d WHERE d.holder = ?1 AND d.digest = node_uses.digest AND d.expires_at > ?2)`, n.holder, tx.Now()); err != nil {
		return nil, err
	}
	return n.withOld(old, tx.Now()), nil
}

// lease has the lease cover what the report names, unless addNodeUses has seen
// to that.
func (n nodeReport) lease(tx *sqldb.Tx) error {
	if len(n.digests) > nodeChunk {
		var have int
		if err := tx.Row("SELECT count(*) FROM lease_digests WHERE holder = ? AND expires_at = ?", n.holder, n.kept).Scan(&have); err != nil || have == len(n.digests) {
			return err
		}
	}
	if err := leaseAlso(tx, n.holder, n.digests, n.kept); err != nil {
		return err
	}
	return n.putUses(tx, n.digests)
}

// withOld is what the report says, and of what was there before what it does not
// speak of and what has not ended.
func (n nodeReport) withOld(old []heldRun, now int64) []heldRun {
	named := map[oci.Digest]bool{}
	for _, d := range n.digests {
		named[d] = true
	}
	runs := make([]heldRun, 0, len(n.runs))
	for _, r := range n.runs {
		runs = append(runs, heldRun{r, n.kept})
	}
	most := len(runs) + nodeHeldMax
	for _, r := range old {
		if r.Kept > now && len(runs) < most && slices.ContainsFunc(r.Digests, func(d oci.Digest) bool { return !named[d] }) {
			runs = append(runs, r)
		}
	}
	return runs
}

// write writes the node's row, and what it runs unless runs is nil.
func (n nodeReport) write(tx *sqldb.Tx, row nodeRow, runs []heldRun) error {
	values := []any{n.Node, n.Instance, nil, n.Seq, n.Version, n.Complete, nil, nil, nil, n.print, row.firstSeen, tx.Now(), tx.Now() + n.TTLSeconds*1000, row.kept, nil, n.Swarm, row.digests, len(runs)}
	labels := n.Labels
	if labels == nil {
		labels = map[string]string{}
	}
	listed := append([]heldRun{}, runs[:min(len(runs), nodeRunsListed)]...)
	for i, v := range map[int]any{2: append([]string{}, row.superseded...), 6: n.Runtimes, 7: n.Cache, 8: listed, 14: labels} {
		content, err := json.Marshal(v)
		if err != nil {
			return err
		}
		values[i] = string(content)
	}
	_, err := tx.Exec(`INSERT INTO nodes (name, instance, superseded, seq, version, complete, runtimes, cache, runs, print, first_seen, seen_at, fresh_until, kept_until, labels, swarm, digests, images)
		VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18)
		ON CONFLICT (name) DO UPDATE SET instance = excluded.instance, superseded = excluded.superseded, seq = excluded.seq, version = excluded.version,
			complete = excluded.complete, runtimes = excluded.runtimes, cache = excluded.cache, print = excluded.print, seen_at = excluded.seen_at,
			fresh_until = excluded.fresh_until, kept_until = excluded.kept_until, labels = excluded.labels, swarm = excluded.swarm, digests = excluded.digests,
			runs = iif(?19, excluded.runs, runs), images = iif(?19, excluded.images, images)`, append(values, runs != nil)...)
	if err != nil || runs == nil {
		return err
	}
	content, err := json.Marshal(runs)
	if err != nil {
		return err
	}
	_, err = tx.Exec("INSERT INTO node_runs (name, runs) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET runs = excluded.runs", n.Node, string(content))
	return err
}

// DeleteNode forgets a node and ends its leases. What they kept stays for a
// window from now. The error is NotFound.
func (s *Store) DeleteNode(ctx context.Context, name string) error {
	err := s.db.Relieve(ctx, func(tx *sqldb.Tx) error {
		n, err := tx.Exec("DELETE FROM nodes WHERE name = ?", name)
		if err != nil {
			return err
		}
		if n == 0 {
			return nodeUnknown(name)
		}
		var holders []string
		former := nodeHolder + name + nodeFormer
		if err := tx.All(scanInto(&holders), "SELECT holder FROM leases WHERE holder = ? UNION ALL SELECT holder FROM leases WHERE holder > ? AND holder < ?",
			nodeHolder+name, former, former+"\U0010ffff"); err != nil {
			return err
		}
		for _, h := range holders {
			if _, err := endLease(tx, h); err != nil {
				return err
			}
			if _, err := tx.Exec("DELETE FROM node_uses WHERE holder = ?", h); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return told(fmt.Errorf("forget node %s: %w", name, err))
	}
	return nil
}

func nodeUnknown(name string) error {
	return fault.New(fault.NotFound, "no node %q has reported", name)
}

// dropGoneNodes forgets nodes that nothing has been heard of for long after
// their lease ended.
func dropGoneNodes(tx *sqldb.Tx) error {
	_, err := tx.Exec("DELETE FROM nodes WHERE kept_until < ?", tx.Now()-nodeMemory)
	return err
}

const nodeColumns = "SELECT name, instance, seq, version, labels, complete, runtimes, cache, runs, first_seen, seen_at, fresh_until, kept_until, swarm, digests, images FROM nodes "

// Nodes lists n nodes that have reported, by name after the given one, each
// with the first few of what it runs, and whether there are more.
func (s *Store) Nodes(ctx context.Context, after string, n int) (ns []nodeapi.Node, more bool, err error) {
	ns = []nodeapi.Node{}
	for len(ns) <= n {
		found := 0
		err = s.db.List(ctx, func(tx *sqldb.Tx) error {
			return tx.All(func(rows *sql.Rows) error {
				node, _, err := scanNode(rows.Scan, tx.Now())
				found, ns, after = found+1, append(ns, node), node.Name
				return err
			}, nodeColumns+"WHERE name > ? ORDER BY name LIMIT ?", after, min(nodesChunk, n+1-len(ns)))
		})
		if err != nil {
			return nil, false, fmt.Errorf("list nodes: %w", err)
		}
		if found == 0 {
			return ns, false, nil
		}
	}
	return ns[:n], true, nil
}

// nodesChunk is how many nodes a list reads in one go.
const nodesChunk = 500

// Node reads a node, with all that it runs. The error is NotFound.
func (s *Store) Node(ctx context.Context, name string) (n nodeapi.Node, err error) {
	err = s.db.ListSnapshot(ctx, func(tx *sqldb.Tx) error {
		var kept int64
		n, kept, err = scanNode(tx.Row(nodeColumns+"WHERE name = ?", name).Scan, tx.Now())
		if errors.Is(err, sql.ErrNoRows) {
			return nodeUnknown(name)
		}
		if err != nil {
			return err
		}
		held, err := readRuns(tx, name, kept)
		n.Runs = make([]nodeapi.Running, 0, len(held))
		for _, r := range held {
			if r.Kept > tx.Now() || r.Kept >= kept {
				n.Runs = append(n.Runs, r.Running)
			}
		}
		n.Images = int64(len(n.Runs))
		return err
	})
	if err != nil {
		return nodeapi.Node{}, fmt.Errorf("read node %s: %w", name, err)
	}
	return n, nil
}

func scanNode(scan func(...any) error, now int64) (n nodeapi.Node, kept int64, err error) {
	var labels, runtimes, cache, runs string
	var first, seen, fresh int64
	if err := scan(&n.Name, &n.Instance, &n.Seq, &n.Version, &labels, &n.Complete, &runtimes, &cache, &runs, &first, &seen, &fresh, &kept, &n.Swarm, &n.Digests, &n.Images); err != nil {
		return n, 0, err
	}
	if err := errors.Join(json.Unmarshal([]byte(labels), &n.Labels), json.Unmarshal([]byte(runtimes), &n.Runtimes), json.Unmarshal([]byte(cache), &n.Cache), json.Unmarshal([]byte(runs), &n.Runs)); err != nil {
		return n, 0, fmt.Errorf("read node %s: %w", n.Name, err)
	}
	n.FirstSeen, n.SeenAt, n.FreshUntil, n.KeptUntil = Time(first), Time(seen), Time(fresh), Time(kept)
	switch {
	case now < fresh:
		n.State = nodeapi.StateFresh
	case now < kept:
		n.State = nodeapi.StateLate
	default:
		n.State, n.Digests = nodeapi.StateGone, 0
	}
	return n, kept, nil
}

// NodeStats are the numbers of nodes by state, and of digests that stay for
// them.
type NodeStats struct{ Fresh, Late, Gone, Digests int64 }

// NodeStats reads them. Of many nodes they may be some seconds old.
func (s *Store) NodeStats(ctx context.Context) (NodeStats, error) {
	st, err := s.nodeStats.get(s.Now, func() (NodeStats, bool, error) { return s.countNodes(ctx) })
	if err != nil {
		return NodeStats{}, fmt.Errorf("count nodes: %w", err)
	}
	return st, nil
}

func (s *Store) countNodes(ctx context.Context) (st NodeStats, long bool, err error) {
	for after, more := "", true; more; {
		err := s.db.List(ctx, func(tx *sqldb.Tx) error {
			more = false
			return tx.All(func(rows *sql.Rows) error {
				more = true
				var fresh, kept int64
				if err := rows.Scan(&after, &fresh, &kept); err != nil {
					return err
				}
				switch now := tx.Now(); {
				case now < fresh:
					st.Fresh++
				case now < kept:
					st.Late++
				default:
					st.Gone++
				}
				return nil
			}, "SELECT name, fresh_until, kept_until FROM nodes WHERE name > ? ORDER BY name LIMIT ?", after, listChunk)
		})
		if err != nil {
			return st, false, err
		}
	}
	long, err = s.count(ctx, tally{nodeDigests, "", nodeDigestsChunk, []*int64{nil, &st.Digests}}, s.Now())
	return st, long || st.Fresh+st.Late+st.Gone > listChunk, err
}

// LeaseUse is a lease in force on a digest or on what is above it.
type LeaseUse struct {
	Holder    string
	ExpiresAt int64
	Direct    bool // it names the digest itself
	// Of a node's lease:
	Containers         int64
	Since              int64 // 0: not known
	SeenAt, FreshUntil int64 // of its last report; 0 where another installation has taken its name
}

// LeasesOn lists the leases in force on a manifest or on what is above it; for
// repoID 0, those on a blob of that digest. It reads n rows at most, and lists
// holders by name.
func (s *Store) LeasesOn(ctx context.Context, repoID int64, d oci.Digest, n int) (us []LeaseUse, err error) {
	err = s.db.List(ctx, func(tx *sqldb.Tx) error {
		us = nil
		return tx.All(func(rows *sql.Rows) error {
			var u LeaseUse
			err := rows.Scan(&u.Holder, &u.ExpiresAt, &u.Direct, &u.Containers, &u.Since, &u.SeenAt, &u.FreshUntil)
			us = append(us, u)
			return err
		}, `WITH RECURSIVE up (digest) AS (
				SELECT ?1
				UNION SELECT a.digest FROM up CROSS JOIN manifest_children c ON c.repo_id = ?2 AND c.child_digest = up.digest CROSS JOIN manifests a ON a.id = c.manifest_id
				UNION SELECT a.subject FROM up CROSS JOIN manifests a ON a.repo_id = ?2 AND a.digest = up.digest WHERE a.subject IS NOT NULL
				LIMIT ?5),
			held AS (SELECT ld.holder, ld.digest, ld.expires_at FROM up CROSS JOIN lease_digests ld ON ld.digest = up.digest WHERE ld.expires_at > ?4 LIMIT ?5)
			SELECT ld.holder, max(ld.expires_at), max(ld.digest = ?1), coalesce(max(u.containers), 0), coalesce(min(u.since), 0), coalesce(max(n.seen_at), 0), coalesce(max(n.fresh_until), 0)
			FROM held ld LEFT JOIN node_uses u ON u.holder = ld.holder AND u.digest = ld.digest
				LEFT JOIN nodes n ON n.name = substr(ld.holder, length(?3) + 1) AND substr(ld.holder, 1, length(?3)) = ?3
			GROUP BY ld.holder ORDER BY ld.holder`, string(d), repoID, nodeHolder, tx.Now(), n)
	})
	return us, wrapFind(err)
}
