package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/fairway-registry/fairway/internal/adminclient"
	"github.com/fairway-registry/fairway/internal/registry/adminapi"
	"github.com/fairway-registry/fairway/internal/registry/check"
	"github.com/fairway-registry/fairway/internal/registry/meta"
	"github.com/fairway-registry/fairway/internal/unit"
)

func (a *app) checkCommand() *cobra.Command {
	var req adminapi.CheckRequest
	var grace unit.Duration
	cmd := a.asks(&cobra.Command{
		Use:   "check",
		Short: "Compare storage and metadata",
		Long: `Compare storage and metadata while the server serves: objects that nothing
names, blobs whose bytes are missing or of the wrong size and the manifests
that need them and, with --deep, bytes that do not have their digest.

Without --repair nothing is changed. With it, objects that nothing names are
purged, and a blob whose bytes are lost answers "not found", so that clients
push it again. Ctrl-C stops the check; --resume goes on with it.

The exit status is 1 if something is wrong that was not repaired, or if bytes
are lost.`,
		Example: `  fairway check
  fairway check --deep --json
  fairway check --repair`,
		Args: exactly(),
	}, func(cmd *cobra.Command, _ []string, q *asking, c *adminclient.Client) error {
		if cmd.Flags().Changed("grace") {
			req.Grace = &grace
		}
		var r check.Report
		if err := begin(cmd.Context(), c, "/checks", req, &r); err != nil {
			return err
		}
		return a.followCheck(cmd.Context(), c, q, r)
	})
	cmd.Flags().BoolVar(&req.Repair, "repair", false, "act on what is found")
	cmd.Flags().BoolVar(&req.Deep, "deep", false, "read all bytes and compare their digests")
	cmd.Flags().BoolVar(&req.Resume, "resume", false, "go on with the check that was stopped last")
	cmd.Flags().Var(&grace, "grace", "leave objects alone that are younger than this, instead of the server's window")
	return cmd
}

func (a *app) followCheck(ctx context.Context, c *adminclient.Client, q *asking, r check.Report) error {
	path := "/checks/" + strconv.FormatInt(r.ID, 10)
	bar := a.newProgress(false)
	r, err := watch(ctx, r, func(ctx context.Context, wait time.Duration) (check.Report, error) {
		var now check.Report
		err := c.Call(ctx, "GET", path+"?wait="+wait.String(), nil, &now)
		return now, err
	}, func(r check.Report) bool {
		bar.share(r.Progress, fmt.Sprintf("%s: %d objects, %d blobs, %s hashed", r.Phase, r.Objects, r.Blobs, unit.Size(r.BytesHashed)))
		return r.State != check.StateRunning
	}, bar.interval())
	bar.clear()
	interrupted := errors.Is(err, context.Canceled)
	if interrupted {
		a.stderr.printf("Stopping check %d; Ctrl-C again leaves at once.\n", r.ID)
		err = c.Call(context.WithoutCancel(ctx), "POST", path+"/stop", nil, &r)
	}
	if err != nil {
		return err
	}
	if q.json {
		if err := a.stdout.json(r); err != nil {
			return err
		}
	} else {
		a.printReport(r)
	}
	switch {
	case interrupted:
		return errInterrupted
	case r.State != check.StateDone, r.LostCount > 0, len(r.Database) > 0, r.Orphans.Count+r.Missed > 0 && !r.Request.Repair:
		return errTold
	case r.Failed > 0:
		return errPartly
	}
	return nil
}

func (a *app) printReport(r check.Report) {
	t := a.stdout
	took := "-"
	if r.FinishedAt != nil {
		took = r.FinishedAt.Sub(r.StartedAt).Round(time.Millisecond).String()
	}
	t.printf("%s after %s: %d objects, %d blobs", t.bold(fmt.Sprintf("Check %d %s", r.ID, r.State)), took, r.Objects, r.Blobs)
	if r.Request.Deep {
		t.printf(", %d manifests, %s hashed", r.Manifests, unit.Size(r.BytesHashed))
	}
	t.printf(".\n")
	if r.Clean() {
		t.printf("%s\n", t.green("Nothing is wrong."))
	}
	if r.Orphans.Count > 0 {
		what := "--repair would purge them"
		if r.Request.Repair {
			what = "they will be purged"
		}
		t.printf("%s with %s; %s\n", t.yellow(count(r.Orphans.Count, "object that nothing names", "objects that nothing names")), unit.Size(r.Orphans.Bytes), what)
		a.printSome("orphan", r.Orphans.Keys, r.Orphans.Count)
	}
	if r.Missed > 0 {
		t.printf("%s the collector should have been told of\n", t.yellow(count(r.Missed, "thing", "things")))
	}
	if r.Orphans.Young > 0 {
		t.printf("%s too young to judge\n", count(r.Orphans.Young, "object", "objects"))
	}
	a.printLost(r)
	a.printSome("database", r.Database, int64(len(r.Database)))
	a.printSome("failed", r.Failures, r.Failed)
	if r.Error != "" {
		t.printf("%s %s\n", t.red("Error:"), r.Error)
	}
}

func (a *app) printLost(r check.Report) {
	t := a.stdout
	if r.LostCount > 0 {
		t.printf("%s\n", t.red(count(r.LostCount, "blob has lost its bytes", "blobs have lost their bytes")))
	}
	for _, l := range r.Lost {
		t.printf("  %s  %s  %s\n", l.Digest, unit.Size(l.Size), l.Problem)
		for _, m := range l.Affected {
			t.printf("    needed by %s\n", affectedText(m))
		}
		if more := l.AffectedCount - int64(len(l.Affected)); more > 0 {
			t.printf("    and by %d more\n", more)
		}
	}
}

func affectedText(m meta.Affected) string {
	text := string(m.Repo)
	if m.Digest != "" {
		text += "@" + string(m.Digest)
	}
	if len(m.Tags) > 0 {
		text += " (" + strings.Join(m.Tags, ", ") + ")"
	}
	if m.Trash {
		text += ", in the trash"
	}
	return text
}

// printSome lists what a report shows of something, and how much it does not.
func (a *app) printSome(what string, shown []string, all int64) {
	for _, s := range shown {
		a.stdout.printf("  %s  %s\n", what, s)
	}
	if more := all - int64(len(shown)); more > 0 {
		a.stdout.printf("  %s  and %d more\n", what, more)
	}
}
