package admin

import (
	"context"
	"log/slog"

	"github.com/fairway-registry/fairway/internal/nodeapi"
)

// ReportNode takes in what a node says of itself. A report that says nothing
// new is only audited at the level of debugging: each node sends one every few
// minutes.
func (a *Admin) ReportNode(ctx context.Context, who Caller, r nodeapi.Report) (nodeapi.Accepted, error) {
	accepted, changed, err := a.nodes.Report(ctx, r)
	level := slog.LevelInfo
	if !changed {
		level = slog.LevelDebug
	}
	a.audit(ctx, who, level, "node.report", r.Node, err)
	return accepted, err
}

// ForgetNode ends the lease of a node.
func (a *Admin) ForgetNode(ctx context.Context, who Caller, name string) error {
	_, err := act(a, ctx, who, "node.forget", name, func() (none, error) {
		return none{}, a.nodes.Forget(ctx, name)
	})
	return err
}
