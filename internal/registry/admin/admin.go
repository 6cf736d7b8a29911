// Package admin owns the verbs that change something about a registry at
// somebody's wish: authorize, act, audit. Faces call it for every change;
// questions they put to the collector and the store themselves.
//
// Every verb leaves one line in the audit log, whether it succeeded or not,
// with who, what, on which target and how it ended.
package admin

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/check"
	"github.com/fairway-registry/fairway/internal/registry/gc"
	"github.com/fairway-registry/fairway/internal/registry/meta"
	"github.com/fairway-registry/fairway/internal/registry/nodes"
	"github.com/fairway-registry/fairway/internal/registry/preheat"
)

// Options is what the verbs act on.
type Options struct {
	Store     *meta.Store
	Collector *gc.Collector
	Checker   *check.Checker
	Nodes     *nodes.Nodes
	Preheats  *preheat.Preheats
	Log       *slog.Logger
}

// Admin carries out verbs.
type Admin struct {
	store     *meta.Store
	collector *gc.Collector
	checker   *check.Checker
	nodes     *nodes.Nodes
	preheats  *preheat.Preheats
	log       *slog.Logger
}

// New returns an Admin.
func New(o Options) *Admin {
	return &Admin{store: o.Store, collector: o.Collector, checker: o.Checker, nodes: o.Nodes, preheats: o.Preheats, log: o.Log}
}

// Caller is who wishes for a change, and in which request.
type Caller struct {
	Actor     string
	Remote    string // address
	RequestID string
}

// Limits of a lease.
const (
	HolderMax  = 255 // bytes
	DigestsMax = 5_000
	TTLMax     = 366 * 24 * time.Hour
)

// act is the frame of every verb. Where authorization has its place is before
// fn; today whoever reaches the server may do everything (see Config.Listen).
func act[T any](a *Admin, ctx context.Context, who Caller, verb, target string, fn func() (T, error)) (T, error) {
	result, err := fn()
	a.audit(ctx, who, slog.LevelInfo, verb, target, err)
	return result, err
}

// audit tells how a verb ended; level is for one that succeeded.
func (a *Admin) audit(ctx context.Context, who Caller, level slog.Level, verb, target string, err error) {
	attrs := []slog.Attr{
		slog.String("verb", verb), slog.String("target", target), slog.String("actor", who.Actor),
		slog.String("remote", who.Remote), slog.String("request", who.RequestID),
	}
	outcome := "done"
	if err != nil {
		level, outcome = slog.LevelWarn, "refused"
		if fault.KindOf(err) == fault.Internal {
			outcome = "failed"
		}
		attrs = append(attrs, slog.String("why", fault.Public(err).Public))
	}
	a.log.LogAttrs(ctx, level, "audit", append(attrs, slog.String("outcome", outcome))...)
}

// none is the result of verbs that have none.
type none struct{}

// StartRun begins a collection.
func (a *Admin) StartRun(ctx context.Context, who Caller, p meta.Policy) (meta.Run, error) {
	return act(a, ctx, who, "gc.run", p.Repository, func() (meta.Run, error) {
		return a.collector.Start(ctx, p, gc.TriggerManual, who.Actor)
	})
}

// StopRun stops a collection and returns when it has stopped.
func (a *Admin) StopRun(ctx context.Context, who Caller, id int64) (meta.Run, error) {
	return act(a, ctx, who, "gc.stop", fmt.Sprint(id), func() (meta.Run, error) {
		return a.collector.Stop(ctx, id)
	})
}

// PurgeTrash begins a collection that gives the trash no time.
func (a *Admin) PurgeTrash(ctx context.Context, who Caller, pattern string) (meta.Run, error) {
	return act(a, ctx, who, "trash.purge", pattern, func() (meta.Run, error) {
		p := a.collector.Policy()
		p.Trash, p.Repository = 0, pattern
		return a.collector.Start(ctx, p, gc.TriggerManual, who.Actor)
	})
}

// AddSchedule makes collections run at the times that cron says.
func (a *Admin) AddSchedule(ctx context.Context, who Caller, spec string, p meta.Policy) (meta.Schedule, error) {
	return act(a, ctx, who, "schedule.add", spec, func() (meta.Schedule, error) {
		if _, err := gc.ParseCron(spec); err != nil {
			return meta.Schedule{}, err
		}
		// A repository that is not there yet may come before the schedule's time.
		if _, err := a.store.RepoScope(ctx, p.Repository); err != nil && fault.KindOf(err) != fault.NotFound {
			return meta.Schedule{}, err
		}
		return a.store.AddSchedule(ctx, spec, p)
	})
}

// DeleteSchedule ends a schedule.
func (a *Admin) DeleteSchedule(ctx context.Context, who Caller, id int64) error {
	_, err := act(a, ctx, who, "schedule.delete", fmt.Sprint(id), func() (none, error) {
		return none{}, a.store.DeleteSchedule(ctx, id)
	})
	return err
}

// Restore brings a deleted manifest back with its tags.
func (a *Admin) Restore(ctx context.Context, who Caller, repo oci.Name, d oci.Digest) (meta.Restored, error) {
	return act(a, ctx, who, "trash.restore", string(repo)+"@"+string(d), func() (meta.Restored, error) {
		return a.store.Restore(ctx, repo, d, who.Actor)
	})
}

// PutLease makes, renews or changes the lease of a holder.
func (a *Admin) PutLease(ctx context.Context, who Caller, holder string, digests []oci.Digest, ttl time.Duration) (meta.Lease, error) {
	return act(a, ctx, who, "lease.put", holder, func() (meta.Lease, error) {
		switch {
		case holder == "" || len(holder) > HolderMax:
			return meta.Lease{}, fault.New(fault.Invalid, "holder: a name of 1 to %d bytes is wanted", HolderMax)
		case !utf8.ValidString(holder) || strings.ContainsFunc(holder, func(r rune) bool { return !unicode.IsPrint(r) }):
			return meta.Lease{}, fault.New(fault.Invalid, "holder: a name of printable characters is wanted, not %q", holder)
		case ofNode(holder):
			return meta.Lease{}, nodeLease(holder)
		case len(digests) > DigestsMax:
			return meta.Lease{}, fault.New(fault.Invalid, "digests: at most %d are allowed, these are %d", DigestsMax, len(digests))
		case ttl < time.Millisecond || ttl > TTLMax:
			return meta.Lease{}, fault.New(fault.Invalid, "ttl: more than 0 and at most 366d is wanted")
		}
		return a.store.PutLease(ctx, holder, digests, ttl.Milliseconds())
	})
}

// DeleteLease ends the lease of a holder.
func (a *Admin) DeleteLease(ctx context.Context, who Caller, holder string) error {
	_, err := act(a, ctx, who, "lease.delete", holder, func() (none, error) {
		if ofNode(holder) {
			return none{}, nodeLease(holder)
		}
		return none{}, a.store.DeleteLease(ctx, holder)
	})
	return err
}

func ofNode(holder string) bool {
	_, ok := meta.NodeOf(holder)
	return ok
}

func nodeLease(holder string) error {
	return fault.New(fault.Invalid, "holder: %q is the lease of a node, which its reports change; DELETE /api/v1/nodes/{name} forgets a node", holder)
}
