package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"

	"github.com/fairway-registry/fairway/internal/adminclient"
	"github.com/fairway-registry/fairway/internal/registry/adminapi"
	"github.com/fairway-registry/fairway/internal/registry/meta"
	"github.com/fairway-registry/fairway/internal/unit"
)

// policyFlags are the settings of the server that a run or a schedule can
// override.
type policyFlags struct {
	window, trash, untagged, stranded, uploads unit.Duration
	repository                                 string
}

func (p *policyFlags) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.Var(&p.window, "window", "collect what nobody has needed for this long, instead of what the server is set to")
	f.Var(&p.trash, "trash", "keep deleted manifests restorable for this long, instead of what the server is set to")
	f.Var(&p.untagged, "untagged", "collect manifests without a tag for this long, 0 for never, instead of what the server is set to")
	f.Var(&p.stranded, "stranded", "collect signatures whose image was deleted this long ago, 0 for never, instead of what the server is set to")
	f.Var(&p.uploads, "uploads", "give up uploads idle for this long, instead of what the server is set to")
	f.StringVar(&p.repository, "repository", "", "only repositories that match `PATTERN`, as in \"team/*\"")
}

// request holds those that were given.
func (p *policyFlags) request(cmd *cobra.Command) adminapi.PolicyRequest {
	given := func(name string, d *unit.Duration) *unit.Duration {
		if !cmd.Flags().Changed(name) {
			return nil
		}
		return d
	}
	return adminapi.PolicyRequest{
		Window: given("window", &p.window), Trash: given("trash", &p.trash),
		Untagged: given("untagged", &p.untagged), Stranded: given("stranded", &p.stranded), Uploads: given("uploads", &p.uploads), Repository: p.repository,
	}
}

func (a *app) gcRunCommand() *cobra.Command {
	var policy policyFlags
	var dryRun bool
	cmd := a.asks(&cobra.Command{
		Use:   "run",
		Short: "Collect now, and return when it is over",
		Long: `Collect now, and return when it is over. Clients can push and pull meanwhile.

Durations are written as 90s, 2h, 30d or 2w; a bare number counts seconds.
Ctrl-C stops the run on the server; a second Ctrl-C leaves at once. What a
stopped run has done stays done, and the next one takes the rest.`,
		Example: `  fairway gc run --dry-run                 # what would go, and why
  fairway gc run --window 10m --repository 'team/*'
  fairway gc run --json | jq .freed_bytes`,
		Args: exactly(),
	}, func(cmd *cobra.Command, _ []string, q *asking, c *adminclient.Client) error {
		req := adminapi.RunRequest{PolicyRequest: policy.request(cmd), DryRun: dryRun}
		if dryRun {
			return a.dryRun(cmd.Context(), c, q, req)
		}
		var r meta.Run
		if err := begin(cmd.Context(), c, "/gc/runs", req, &r); err != nil {
			return err
		}
		return a.follow(cmd.Context(), c, q, r)
	})
	policy.register(cmd)
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "change nothing; tell what a run would do now")
	return cmd
}

// begin starts work on the server. Ctrl-C does not cut this short, for then
// the work would go on with nobody who knows its id and could stop it.
func begin(ctx context.Context, c *adminclient.Client, path string, in, out any) error {
	return c.Call(context.WithoutCancel(ctx), "POST", path, in, out)
}

func (a *app) dryRun(ctx context.Context, c *adminclient.Client, q *asking, req adminapi.RunRequest) error {
	var r adminapi.DryRun
	if err := c.Call(ctx, "POST", "/gc/runs", req, &r); err != nil {
		return err
	}
	if q.json {
		return a.stdout.json(r)
	}
	if len(r.Items) > 0 {
		a.printDeletions(r.Items)
	}
	if r.ItemsTruncated {
		a.stdout.printf("%s\n", a.stdout.dim("Only the first "+strconv.Itoa(len(r.Items))+" are shown."))
	}
	a.printSummary(r.Run) // last, where it is seen under a long list
	return nil
}

// follow shows a run until it is over and turns its end into the command's.
func (a *app) follow(ctx context.Context, c *adminclient.Client, q *asking, r meta.Run) error {
	path := "/gc/runs/" + strconv.FormatInt(r.ID, 10)
	bar := a.newProgress(true)
	r, err := watch(ctx, r, func(ctx context.Context, wait time.Duration) (meta.Run, error) {
		var now meta.Run
		err := c.Call(ctx, "GET", path+"?wait="+wait.String(), nil, &now)
		return now, err
	}, func(r meta.Run) bool {
		bar.show(r.Examined, r.Total, fmt.Sprintf("%d removed, %s freed", r.Collected+r.Trashed, unit.Size(r.FreedBytes)))
		return r.State != meta.RunRunning
	}, bar.interval())
	bar.clear()
	interrupted := errors.Is(err, context.Canceled)
	if interrupted {
		a.stderr.printf("Stopping run %d; Ctrl-C again leaves at once.\n", r.ID)
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
		a.printSummary(r)
	}
	switch {
	case interrupted:
		return errInterrupted
	case r.State != meta.RunDone:
		return errTold
	case r.Failed > 0:
		return errPartly
	}
	return nil
}

const (
	// answerWait is how long one request waits for the end of a run where
	// nobody watches its progress.
	answerWait = 20 * time.Second
	// barInterval is the time between two looks for the progress bar.
	barInterval = 200 * time.Millisecond
	// unreachableMax is how long a server may be away, as for a restart, before
	// the command gives up on it.
	unreachableMax = 5 * time.Second
	// unreachablePause is the time between two tries meanwhile.
	unreachablePause = 200 * time.Millisecond
)

// watch polls with get until over says that it is enough, and returns the last
// state seen.
func watch[T any](ctx context.Context, last T, get func(context.Context, time.Duration) (T, error), over func(T) bool, wait time.Duration) (T, error) {
	var away time.Time
	for !over(last) {
		now, err := get(ctx, wait)
		var unreachable *adminclient.Unreachable
		switch {
		case err == nil:
			last, away = now, time.Time{}
			continue
		case !errors.As(err, &unreachable):
			return last, err
		case away.IsZero():
			away = time.Now()
		case time.Since(away) > unreachableMax:
			return last, err
		}
		select {
		case <-time.After(unreachablePause):
		case <-ctx.Done():
			return last, ctx.Err()
		}
	}
	return last, nil
}

// progress is a bar on a terminal, and nothing elsewhere.
type progress struct {
	out     *terminal
	counted bool                     // what is shown are items, and not parts of a whole
	bar     *progressbar.ProgressBar // nil until there is something to show
	max     int64
	waiting bool
}

func (a *app) newProgress(counted bool) *progress { return &progress{out: a.stderr, counted: counted} }

// interval is how long a look at the server may wait for the end.
func (p *progress) interval() time.Duration {
	if !p.out.tty {
		return answerWait
	}
	return barInterval
}

func (p *progress) show(done, total int64, text string) {
	total = max(total, done)
	if !p.out.tty || total == 0 {
		return
	}
	if p.bar == nil {
		// A bar that begins without a total would draw itself from a goroutine of
		// its own, which nothing ends.
		p.bar, p.max = p.newBar(total), total
	}
	if total != p.max {
		p.max = total
		p.bar.ChangeMax64(total)
	}
	p.bar.Describe(text)
	_ = p.bar.Set64(done) // a terminal that cannot be written to shows no bar
}

func (p *progress) newBar(total int64) *progressbar.ProgressBar {
	options := []progressbar.Option{
		progressbar.OptionSetWriter(p.out),
		progressbar.OptionEnableColorCodes(p.out.colour),
		progressbar.OptionSetWidth(24),
		progressbar.OptionSetPredictTime(true),
		progressbar.OptionClearOnFinish(),
	}
	if p.counted {
		options = append(options, progressbar.OptionShowCount(), progressbar.OptionShowIts(), progressbar.OptionSetItsString("items"))
	}
	return progressbar.NewOptions64(total, options...)
}

// wait shows that something goes on whose end is not known.
func (p *progress) wait(text string) {
	if p.out.tty {
		p.out.printf("%s …\r", text)
		p.waiting = true
	}
}

func (p *progress) clear() {
	if p.waiting {
		p.out.printf("\x1b[2K\r") // a terminal that this means nothing to is a rare thing
	}
	if p.bar != nil {
		_ = p.bar.Clear() // as above
	}
}

// share shows a progress that is known as a part of one.
func (p *progress) share(part float64, text string) {
	const whole = 1000
	p.show(int64(part*whole), whole, text)
}
