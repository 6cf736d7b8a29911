package admin

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/fairway-registry/fairway/internal/nodeapi"
	"github.com/fairway-registry/fairway/internal/registry/meta"
	"github.com/fairway-registry/fairway/internal/registry/preheat"
)

// StartPreheat has nodes fetch an image ahead.
func (a *Admin) StartPreheat(ctx context.Context, who Caller, r preheat.Request) (meta.Preheat, error) {
	return act(a, ctx, who, "preheat.start", r.Reference, func() (meta.Preheat, error) {
		return a.preheats.Start(ctx, r, who.Actor)
	})
}

// DeletePreheat ends and forgets a preheat.
func (a *Admin) DeletePreheat(ctx context.Context, who Caller, id int64) error {
	_, err := act(a, ctx, who, "preheat.delete", fmt.Sprint(id), func() (none, error) {
		return none{}, a.store.DeletePreheat(ctx, id)
	})
	return err
}

// AddPreheatRule has pushes begin preheats.
func (a *Admin) AddPreheatRule(ctx context.Context, who Caller, r meta.PreheatRule) (meta.PreheatRule, error) {
	return act(a, ctx, who, "preheat.rule.add", r.Repository+":"+r.Tag, func() (meta.PreheatRule, error) {
		r.Actor = who.Actor
		return a.preheats.AddRule(ctx, r)
	})
}

// DeletePreheatRule ends that.
func (a *Admin) DeletePreheatRule(ctx context.Context, who Caller, id int64) error {
	_, err := act(a, ctx, who, "preheat.rule.delete", fmt.Sprint(id), func() (none, error) {
		return none{}, a.store.DeletePreheatRule(ctx, id)
	})
	return err
}

// ReportTask takes in how far a node is with a task. Only its end is audited
// above the level of debugging.
func (a *Admin) ReportTask(ctx context.Context, who Caller, node string, id int64, p nodeapi.Progress) error {
	err := a.preheats.Progress(ctx, node, id, p)
	level := slog.LevelInfo
	if p.State == nodeapi.TaskRunning {
		level = slog.LevelDebug
	}
	a.audit(ctx, who, level, "preheat.progress", fmt.Sprintf("%d@%s", id, node), err)
	return err
}
