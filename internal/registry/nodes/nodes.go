// Package nodes owns what agents report to be in use on their nodes, and makes
// leases of it: the lease of a node ends a grace after the last report that
// named what it is on, at once for what a complete report does not name any
// more, and never because a node is silent. Vanished is not stopped.
//
// It goes by the clock of the database alone: a report says for how long
// something has been in use, never since when by a node's clock.
//
// It refuses a report that is older than what it knows, one of an installation
// whose name another has taken, and one with anything in it that it cannot read:
// to take in half of a report would be to let go the other half.
package nodes

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/nodeapi"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/meta"
)

// Limits of a report.
const (
	NameMax     = 200 // bytes of a node's name, and of an instance's
	ImagesMax   = nodeapi.ImagesMax
	DigestsMax  = nodeapi.DigestsMax
	BodyMax     = nodeapi.BodyMax
	RuntimesMax = 100
	TextMax     = 512 // bytes of an image's name or an error; longer ones are cut
)

// Options says how.
type Options struct {
	// Grace is for how long what a node had in use stays when nothing is heard of
	// it and it asked for no grace itself.
	Grace   time.Duration
	Metrics prometheus.Registerer // nil: none
}

// Nodes takes in reports and tells of nodes.
type Nodes struct {
	store   *meta.Store
	grace   time.Duration
	reports *prometheus.CounterVec
}

// New returns Nodes.
func New(store *meta.Store, o Options) *Nodes {
	n := &Nodes{store: store, grace: o.Grace, reports: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "fairway", Subsystem: "nodes", Name: "reports_total",
		Help: "Reports of agents: changed and renewed ones that were accepted, refused ones, and failed ones."}, []string{"result"})}
	if o.Metrics != nil {
		o.Metrics.MustRegister(n.reports, &collector{store})
	}
	return n
}

// Report takes in what a node says of itself. changed tells whether it said
// anything new. The error is Invalid for what cannot be read, Conflict for what
// is not newer than what is known.
func (n *Nodes) Report(ctx context.Context, r nodeapi.Report) (a nodeapi.Accepted, changed bool, err error) {
	defer func() { n.reports.WithLabelValues(result(changed, err)).Inc() }()
	if err := check(&r); err != nil {
		return a, false, err
	}
	grace := n.grace
	if r.GraceSeconds > 0 {
		grace = time.Duration(r.GraceSeconds) * time.Second
	}
	return n.store.PutNode(ctx, r, grace)
}

func result(changed bool, err error) string {
	switch {
	case err != nil && fault.KindOf(err) == fault.Internal:
		return "failed"
	case err != nil:
		return "refused"
	case changed:
		return "changed"
	}
	return "renewed"
}

// List returns most nodes by name after the given one, with a few of the images
// that each has in use, and whether there are more.
func (n *Nodes) List(ctx context.Context, after string, most int) (list []nodeapi.Node, more bool, err error) {
	return n.store.Nodes(ctx, after, most)
}

// Get tells all of one node. The error is NotFound.
func (n *Nodes) Get(ctx context.Context, name string) (nodeapi.Node, error) {
	if err := CheckName(name); err != nil {
		return nodeapi.Node{}, err
	}
	return n.store.Node(ctx, name)
}

// Forget ends the lease of a node now. The error is NotFound.
func (n *Nodes) Forget(ctx context.Context, name string) error {
	if err := CheckName(name); err != nil {
		return err
	}
	return n.store.DeleteNode(ctx, name)
}

// CheckName demands what can be the name of a node.
func CheckName(name string) error {
	if !nodeapi.IsName(name) {
		return fault.New(fault.Invalid, "node: a name of 1 to %d letters, digits, '.', '_' and '-' is wanted, with a letter or digit first, not %q", nodeapi.NameMax, clip(name))
	}
	return nil
}

// check refuses what cannot be read and puts in order what can: texts are for
// people, so that a strange one is mended and not refused.
func check(r *nodeapi.Report) error {
	if err := CheckName(r.Node); err != nil {
		return err
	}
	switch {
	case !nodeapi.IsName(r.Instance):
		return fault.New(fault.Invalid, "instance: an id of 1 to %d letters, digits, '.', '_' and '-' is wanted", nodeapi.NameMax)
	case r.Seq < 1:
		return fault.New(fault.Invalid, "seq: a number of 1 or more is wanted")
	case r.TTLSeconds < 1 || r.TTLSeconds > int64(nodeapi.TTLMax/time.Second):
		return fault.New(fault.Invalid, "ttl_seconds: a number from 1 to %d is wanted, not %d", int64(nodeapi.TTLMax/time.Second), r.TTLSeconds)
	case r.GraceSeconds < 0 || r.GraceSeconds > int64(nodeapi.GraceMax/time.Second):
		return fault.New(fault.Invalid, "grace_seconds: a number from 0 to %d is wanted, not %d", int64(nodeapi.GraceMax/time.Second), r.GraceSeconds)
	case len(r.Runtimes) > RuntimesMax:
		return fault.New(fault.Invalid, "runtimes: at most %d are allowed, these are %d", RuntimesMax, len(r.Runtimes))
	case r.InUse == nil:
		return fault.New(fault.Invalid, "in_use: it is missing; only an empty list says that nothing is in use")
	case len(r.InUse) > ImagesMax:
		return fault.New(fault.Invalid, "in_use: at most %d are allowed, these are %d", ImagesMax, len(r.InUse))
	}
	r.Version = text(r.Version)
	r.Labels, r.Swarm = labels(r.Labels), address(r.Swarm)
	r.Runtimes = slices.Clone(r.Runtimes)
	for i := range r.Runtimes {
		r.Runtimes[i].Name, r.Runtimes[i].Error = text(r.Runtimes[i].Name), text(r.Runtimes[i].Error)
	}
	return checkUses(r)
}

// labels leaves out what can be no label: nothing hangs on it but a choice of
// nodes, and what runs on the node hangs on the report.
func labels(given map[string]string) map[string]string {
	kept := map[string]string{}
	for _, key := range slices.Sorted(maps.Keys(given)) {
		if nodeapi.IsLabel(key, given[key]) && len(kept) < nodeapi.LabelsMax {
			kept[key] = given[key]
		}
	}
	return kept
}

// address leaves out what other nodes could not join: what runs on the node
// hangs on the report.
func address(given string) string {
	if at, err := netip.ParseAddrPort(given); err != nil || at.Port() == 0 || at.Addr().IsUnspecified() {
		return ""
	}
	return given
}

// ageMax bounds for how long something has been in use, in seconds.
const ageMax = 20 * 366 * 24 * 3600

func checkUses(r *nodeapi.Report) error {
	r.InUse = slices.Clone(r.InUse)
	digests := 0
	for i := range r.InUse {
		u := &r.InUse[i]
		if len(u.Digests) == 0 {
			return fault.New(fault.Invalid, "in_use: item %d names no digest", i)
		}
		if digests += len(u.Digests); digests > DigestsMax {
			return fault.New(fault.Invalid, "in_use: at most %d digests are allowed", DigestsMax)
		}
		for _, d := range u.Digests {
			if _, err := oci.ParseDigest(string(d)); err != nil {
				return err
			}
		}
		u.Image = text(u.Image)
		u.Containers = max(u.Containers, 0)
		u.ForSeconds = min(max(u.ForSeconds, 0), ageMax)
	}
	return nil
}

// text makes a text one that prints.
func text(s string) string {
	s = strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, s)
	return clip(s)
}

func clip(s string) string {
	if len(s) > TextMax {
		return strings.ToValidUTF8(s[:TextMax], "") + "…"
	}
	return s
}
