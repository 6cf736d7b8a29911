package admin

import (
	"context"
	"fmt"

	"github.com/fairway-registry/fairway/internal/registry/check"
)

// StartCheck begins a comparison of storage and metadata.
func (a *Admin) StartCheck(ctx context.Context, who Caller, r check.Request) (check.Report, error) {
	target := fmt.Sprintf("repair=%t deep=%t resume=%t", r.Repair, r.Deep, r.Resume)
	return act(a, ctx, who, "check.run", target, func() (check.Report, error) {
		return a.checker.Start(ctx, r)
	})
}

// StopCheck stops a check and returns when it has stopped.
func (a *Admin) StopCheck(ctx context.Context, who Caller, id int64) (check.Report, error) {
	return act(a, ctx, who, "check.stop", fmt.Sprint(id), func() (check.Report, error) {
		return a.checker.Stop(ctx, id)
	})
}
