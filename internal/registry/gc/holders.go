package gc

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/meta"
)

// How many leases, and how many names of nodes, an explanation shows.
const (
	explainLeases = 1000
	explainNodes  = 10
)

// leases tells of the leases in force on a manifest, a blob for repoID 0, or on
// what is above it: one reason for all nodes that use it, one for each other
// holder. path leads from what the leases are on down to the subject.
func (e *explainer) leases(repoID int64, d oci.Digest, path ...string) ([]Reason, error) {
	uses, err := e.store.LeasesOn(e.ctx, repoID, d, explainLeases)
	if err != nil {
		return nil, err
	}
	var nodes []meta.LeaseUse
	var rs []Reason
	for _, u := range uses {
		if _, ok := meta.NodeOf(u.Holder); ok {
			nodes = append(nodes, u)
			continue
		}
		if len(rs) < explainHolders {
			rs = append(rs, Reason{Code: KeptLease, Path: append([]string{"lease " + u.Holder}, path...), Until: at(u.ExpiresAt),
				Text: fmt.Sprintf("%s holds a lease on it or on what is above it", u.Holder)})
		}
	}
	if len(nodes) > 0 {
		rs = append([]Reason{e.inUse(nodes, path)}, rs...)
	}
	return rs, nil
}

// inUse is the reason that nodes are.
func (e *explainer) inUse(nodes []meta.LeaseUse, path []string) Reason {
	var names, silent []string
	var since, until, containers int64
	direct := false
	for _, u := range nodes {
		name, _ := meta.NodeOf(u.Holder)
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
		if u.Since != 0 && (since == 0 || u.Since < since) {
			since = u.Since
		}
		until, containers, direct = max(until, u.ExpiresAt), containers+u.Containers, direct || u.Direct
		switch {
		case u.SeenAt == 0:
			silent = append(silent, fmt.Sprintf("another installation reports as %s by now; what the former one ran stays until %s", name, moment(u.ExpiresAt)))
		case u.FreshUntil <= e.limits.Now:
			silent = append(silent, fmt.Sprintf("%s was last heard of on %s; what it ran stays until %s", name, moment(u.SeenAt), moment(u.ExpiresAt)))
		}
	}
	verb := "running"
	if containers == 0 {
		verb = "needed"
	}
	text := verb + " on " + nodeNames(names)
	if !direct {
		text = "what is above it is " + text
	}
	if since != 0 {
		text += " since " + moment(since)
	}
	if more := len(silent) - explainHolders; more > 0 {
		silent = append(silent[:explainHolders], fmt.Sprintf("%d more are silent", more))
	}
	return Reason{Code: KeptLease, Path: append([]string{nodeNames(names)}, path...), Until: at(until), Text: strings.Join(append([]string{text}, silent...), "; ")}
}

func nodeNames(names []string) string {
	if len(names) == 1 {
		return "node " + names[0]
	}
	if more := len(names) - explainNodes; more > 0 {
		return fmt.Sprintf("nodes %s and %d more", strings.Join(names[:explainNodes], ", "), more)
	}
	return "nodes " + strings.Join(names, ", ")
}

func moment(ms int64) string { return meta.Time(ms).Format(time.DateTime) }
