package main

import (
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/fairway-registry/fairway/internal/adminclient"
	"github.com/fairway-registry/fairway/internal/registry/adminapi"
	"github.com/fairway-registry/fairway/internal/registry/gc"
	"github.com/fairway-registry/fairway/internal/registry/meta"
	"github.com/fairway-registry/fairway/internal/unit"
)

func (a *app) gcCommand() *cobra.Command {
	return a.group(&cobra.Command{
		Use:   "gc",
		Short: "Collect garbage, and see what collections did",
		Example: `  fairway gc run --dry-run
  fairway gc status`,
	}, a.gcRunCommand(), a.gcStatusCommand(), a.gcHistoryCommand(), a.gcShowCommand(), a.gcStopCommand(), a.gcScheduleCommand())
}

func (a *app) gcStatusCommand() *cobra.Command {
	return a.asks(&cobra.Command{
		Use:     "status",
		Short:   "Show what the collector is doing, its policy and its queues",
		Example: `  fairway gc status --server https://registry.example.com`,
		Args:    exactly(),
	}, func(cmd *cobra.Command, _ []string, q *asking, c *adminclient.Client) error {
		var s gc.Status
		if err := c.Call(cmd.Context(), "GET", "/gc/status", nil, &s); err != nil {
			return err
		}
		if q.json {
			return a.stdout.json(s)
		}
		a.printStatus(s)
		return nil
	})
}

func (a *app) printStatus(s gc.Status) {
	t := a.stdout
	running := "no"
	if len(s.Running) > 0 {
		var ids []string
		for _, r := range s.Running {
			ids = append(ids, fmt.Sprintf("run %d (%s, %d of %d examined)", r.ID, r.Trigger, r.Examined, r.Total))
		}
		running = strings.Join(ids, ", ")
	}
	last := "-"
	if s.Last != nil {
		last = fmt.Sprintf("run %d, %s, %s: %s", s.Last.ID, s.Last.State, t.whenever(s.Last.FinishedAt), runSentence(*s.Last))
	}
	oldest := "-"
	if s.Queue.OldestReview > 0 {
		oldest = roughly(time.Duration(s.Queue.OldestReview) * time.Millisecond)
	}
	purges := fmt.Sprintf("%s, %s", count(s.Queue.Purges, "object", "objects"), unit.Size(s.Queue.PurgeBytes))
	if s.Queue.PurgesStuck > 0 {
		purges += ", " + t.red(fmt.Sprintf("%d failing", s.Queue.PurgesStuck))
	}
	if s.ClockBehindMS > 0 {
		t.fields([2]string{"clock", t.red(fmt.Sprintf("%s behind the machine's, which had jumped ahead at the start and is not believed; see trust_clock",
			roughly(time.Duration(s.ClockBehindMS)*time.Millisecond)))})
	}
	t.fields([][2]string{
		{"running", running},
		{"last run", last},
		{"next run", t.whenever(s.NextAt)},
		{"policy", policyText(s.Policy)},
		{"waiting for review", strconv.FormatInt(s.Queue.Reviews, 10)},
		{"oldest review", oldest},
		{"waiting for purge", purges},
		{"trash", count(s.Queue.Trash, "manifest", "manifests")},
		{"uploads", strconv.FormatInt(s.Queue.Uploads, 10)},
		{"leases", strconv.FormatInt(s.Queue.Leases, 10)},
		{"repositories", strconv.FormatInt(s.Queue.Repositories, 10)},
	}...)
}

func policyText(p meta.Policy) string {
	text := fmt.Sprintf("window %s, trash %s, untagged %s, uploads %s",
		unit.Duration(p.Window), unit.Duration(p.Trash), orNever(p.Untagged), unit.Duration(p.Uploads))
	if p.Uploads == 0 {
		text = strings.TrimSuffix(text, "0") + "as window"
	}
	if p.Stranded != 0 {
		text += fmt.Sprintf(", stranded %s", unit.Duration(p.Stranded))
	}
	if p.Repository != "" {
		text += ", repository " + p.Repository
	}
	return text
}

func orNever(d meta.Duration) string {
	if d == 0 {
		return "never"
	}
	return unit.Duration(d).String()
}

func (a *app) gcHistoryCommand() *cobra.Command {
	var n int
	var before int64
	cmd := a.asks(&cobra.Command{
		Use:     "history",
		Short:   "List collections, newest first",
		Example: `  fairway gc history -n 5`,
		Args:    exactly(),
	}, func(cmd *cobra.Command, _ []string, q *asking, c *adminclient.Client) error {
		query := url.Values{"n": {strconv.Itoa(n)}}
		if cmd.Flags().Changed("before") {
			query.Set("before", strconv.FormatInt(before, 10))
		}
		var list adminapi.RunList
		if err := c.Call(cmd.Context(), "GET", "/gc/runs?"+query.Encode(), nil, &list); err != nil {
			return err
		}
		if q.json {
			return a.stdout.json(list)
		}
		var rows [][]string
		for _, r := range list.Runs {
			rows = append(rows, []string{
				strconv.FormatInt(r.ID, 10), r.State, r.Trigger, a.stdout.when(r.StartedAt), took(r),
				fmt.Sprint(r.Examined), fmt.Sprint(r.Collected), fmt.Sprint(r.Trashed), a.stdout.size(r.FreedBytes), fmt.Sprint(r.Failed),
			})
		}
		a.stdout.table([]string{"RUN", "STATE", "TRIGGER", "STARTED", "TOOK", "EXAMINED", "COLLECTED", "TRASHED", "FREED", "FAILED"}, rows)
		return nil
	})
	cmd.Flags().IntVarP(&n, "number", "n", 20, "show at most this many")
	cmd.Flags().Int64Var(&before, "before", 0, "only runs before the one with this `ID`")
	return cmd
}

// took is how long a run has taken, so far or in all.
func took(r meta.Run) string {
	if r.FinishedAt == nil {
		return "-"
	}
	return r.FinishedAt.Sub(r.StartedAt).Round(time.Millisecond).String()
}

// shownRun is what "gc show --json" prints.
type shownRun struct {
	meta.Run
	Events    []meta.RunEvent `json:"events"`
	Deletions []meta.Deletion `json:"deletions"`
}

func (a *app) gcShowCommand() *cobra.Command {
	var n int
	cmd := a.asks(&cobra.Command{
		Use:     "show ID",
		Short:   "Show one collection with its log and what it removed",
		Example: `  fairway gc show 12`,
		Args:    exactly("the ID of a run, as \"fairway gc history\" lists it"),
	}, func(cmd *cobra.Command, args []string, q *asking, c *adminclient.Client) error {
		path, err := runPath(args[0])
		if err != nil {
			return err
		}
		var (
			shown  shownRun
			events adminapi.EventList
			gone   adminapi.DeletionList
		)
		if err := c.Call(cmd.Context(), "GET", path, nil, &shown.Run); err != nil {
			return err
		}
		if err := c.Call(cmd.Context(), "GET", path+"/events", nil, &events); err != nil {
			return err
		}
		if err := c.Call(cmd.Context(), "GET", path+"/deletions?n="+strconv.Itoa(n), nil, &gone); err != nil {
			return err
		}
		shown.Events, shown.Deletions = events.Events, gone.Deletions
		if q.json {
			return a.stdout.json(shown)
		}
		a.printRun(shown, n)
		return nil
	})
	cmd.Flags().IntVarP(&n, "number", "n", 100, "show at most this many removed items")
	return cmd
}

func (a *app) printRun(r shownRun, n int) {
	t := a.stdout
	a.printSummary(r.Run)
	t.fields([][2]string{
		{"trigger", r.Trigger}, {"started", t.when(r.StartedAt)}, {"finished", t.whenever(r.FinishedAt)}, {"policy", policyText(r.Policy)},
	}...)
	if len(r.Events) > 0 {
		t.printf("\n%s\n", t.bold("Log"))
		for _, e := range r.Events {
			t.printf("%s  %-5s  %s\n", e.At.UTC().Format(time.RFC3339), e.Level, e.Text)
		}
	}
	if len(r.Deletions) > 0 {
		t.printf("\n%s\n", t.bold("Removed"))
		a.printDeletions(r.Deletions)
		if len(r.Deletions) == n {
			t.printf("%s\n", t.dim("There may be more; -n shows them."))
		}
	}
}

func (a *app) printDeletions(ds []meta.Deletion) {
	var rows [][]string
	for _, d := range ds {
		rows = append(rows, []string{d.Act, d.Kind, orDash(d.Repo), a.stdout.digest(d.Digest), a.stdout.size(d.Bytes), d.Reason})
	}
	a.stdout.table([]string{"ACT", "KIND", "REPOSITORY", "DIGEST", "SIZE", "REASON"}, rows)
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func runPath(id string) (string, error) {
	n, err := strconv.ParseInt(id, 10, 64)
	if err != nil || n < 1 {
		return "", usagef("%q is no ID of a run; \"fairway gc history\" lists them", id)
	}
	return "/gc/runs/" + strconv.FormatInt(n, 10), nil
}

func (a *app) gcStopCommand() *cobra.Command {
	return a.asks(&cobra.Command{
		Use:     "stop ID",
		Short:   "Stop a collection that is under way",
		Long:    "Stop a collection that is under way. What it has done stays done; the next one takes the rest.",
		Example: `  fairway gc stop 12`,
		Args:    exactly("the ID of a run"),
	}, func(cmd *cobra.Command, args []string, q *asking, c *adminclient.Client) error {
		path, err := runPath(args[0])
		if err != nil {
			return err
		}
		var r meta.Run
		if err := c.Call(cmd.Context(), "POST", path+"/stop", nil, &r); err != nil {
			return err
		}
		if q.json {
			return a.stdout.json(r)
		}
		a.printSummary(r)
		return nil
	})
}

// printSummary tells in a few lines what a run did.
func (a *app) printSummary(r meta.Run) {
	t := a.stdout
	switch {
	case r.DryRun:
		t.printf("%s A run now would report: %s.\n", t.bold("Dry run."), runSentence(r))
	case r.State == meta.RunRunning:
		t.printf("%s so far: %s.\n", t.bold(fmt.Sprintf("Run %d is under way,", r.ID)), runSentence(r))
	default:
		t.printf("%s after %s: %s.\n", t.bold(fmt.Sprintf("Run %d %s", r.ID, stateText(t, r.State))), took(r), runSentence(r))
	}
	if kept := keptText(r.Kept); kept != "" {
		t.printf("Kept: %s.\n", kept)
	}
	if r.Error != "" {
		t.printf("%s %s\n", t.red("Error:"), r.Error)
	}
	if r.Failed > 0 {
		t.printf("%s\n", t.yellow(count(r.Failed, "item", "items")+fmt.Sprintf(" could not be handled and will be tried again; see: fairway gc show %d", r.ID)))
	}
}

func stateText(t *terminal, state string) string {
	switch state {
	case meta.RunDone:
		return t.green("done")
	case meta.RunFailed:
		return t.red("failed")
	case meta.RunInterrupted:
		return t.yellow("was cut short by the end of the server")
	}
	return t.yellow(state)
}

func runSentence(r meta.Run) string {
	parts := []string{
		fmt.Sprintf("examined %d", r.Examined),
		fmt.Sprintf("collected %d", r.Collected),
		fmt.Sprintf("trashed %d", r.Trashed),
	}
	if r.Unlinked > 0 {
		parts = append(parts, fmt.Sprintf("unlinked %d", r.Unlinked))
	}
	parts = append(parts, "freed "+unit.Size(r.FreedBytes).String())
	if r.Failed > 0 {
		parts = append(parts, fmt.Sprintf("failed %d", r.Failed))
	}
	return strings.Join(parts, ", ")
}

// keptText lists reasons, the most frequent first.
func keptText(kept map[string]int64) string {
	reasons := make([]string, 0, len(kept))
	for reason := range kept {
		reasons = append(reasons, reason)
	}
	slices.SortFunc(reasons, func(x, y string) int {
		if kept[x] != kept[y] {
			return int(kept[y] - kept[x])
		}
		return strings.Compare(x, y)
	})
	for i, reason := range reasons {
		reasons[i] = fmt.Sprintf("%d by %s", kept[reason], reason)
	}
	return strings.Join(reasons, ", ")
}
