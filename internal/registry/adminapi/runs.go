package adminapi

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/fairway-registry/fairway/internal/jsonface"
	"github.com/fairway-registry/fairway/internal/registry/meta"
	"github.com/fairway-registry/fairway/internal/unit"
)

// Bounds of lists.
const (
	pageStandard = 100
	pageMax      = 1000
	trashMax     = 10_000
	nodesMax     = 10_000
	// dryRunItems is how many predicted acts a dry run lists at most.
	dryRunItems = 1000
	// waitMax is how long an answer may wait for the end of something. It is
	// below the time after which proxies give up.
	waitMax = 30 * time.Second
)

// PolicyRequest overrides parts of the server's policy.
type PolicyRequest struct {
	Window     *unit.Duration `json:"window,omitempty"`
	Trash      *unit.Duration `json:"trash,omitempty"`
	Untagged   *unit.Duration `json:"untagged,omitempty"`
	Stranded   *unit.Duration `json:"stranded,omitempty"`
	Uploads    *unit.Duration `json:"uploads,omitempty"`
	Repository string         `json:"repository,omitempty"` // pattern; "" = all
}

// policy is the server's with the overrides.
func (r PolicyRequest) policy(p meta.Policy) meta.Policy {
	for _, o := range []struct {
		given *unit.Duration
		field *meta.Duration
	}{{r.Window, &p.Window}, {r.Trash, &p.Trash}, {r.Untagged, &p.Untagged}, {r.Stranded, &p.Stranded}, {r.Uploads, &p.Uploads}} {
		if o.given != nil {
			*o.field = meta.Duration(*o.given)
		}
	}
	p.Repository = r.Repository
	return p
}

// RunRequest asks for a collection.
type RunRequest struct {
	PolicyRequest
	DryRun bool `json:"dry_run,omitempty"`
}

// DryRun is a prediction: the acts and their sum.
type DryRun struct {
	meta.Run
	Items          []meta.Deletion `json:"items"`
	ItemsTruncated bool            `json:"items_truncated"` // there are more than the items show
}

// RunList is a page of the history of collections.
type RunList struct {
	Runs []meta.Run `json:"runs"`
}

// EventList is the log of a run.
type EventList struct {
	Events []meta.RunEvent `json:"events"`
}

// DeletionList is a page of the deletion log.
type DeletionList struct {
	Deletions []meta.Deletion `json:"deletions"`
}

func (a *API) startRun(c *call) (any, error) {
	var req RunRequest
	if err := c.Decode(&req); err != nil {
		return nil, err
	}
	p := req.policy(a.Collector.Policy())
	if req.DryRun {
		return a.dryRun(c, p)
	}
	r, err := a.admin.StartRun(c.Context(), c.who, p)
	if err != nil {
		return nil, err
	}
	return c.Accepted(r, "/gc/runs/%d", r.ID), nil
}

func (a *API) dryRun(c *call, p meta.Policy) (any, error) {
	r, items, err := a.Collector.DryRun(c.Context(), p, dryRunItems+1, nil)
	if err != nil {
		return nil, err
	}
	return DryRun{Run: filled(r), Items: jsonface.List(items[:min(len(items), dryRunItems)]), ItemsTruncated: len(items) > dryRunItems}, nil
}

// filled gives a run that has kept nothing an empty object instead of null.
func filled(r meta.Run) meta.Run {
	if r.Kept == nil {
		r.Kept = map[string]int64{}
	}
	return r
}

func (a *API) listRuns(c *call) (any, error) {
	q := c.Query("before", "n")
	before, n := q.ID("before"), q.N(pageStandard, pageMax)
	if q.Err != nil {
		return nil, q.Err
	}
	runs, err := a.Collector.History(c.Context(), before, n)
	for i := range runs {
		runs[i] = filled(runs[i])
	}
	return RunList{jsonface.List(runs)}, err
}

func (a *API) getRun(c *call) (any, error) {
	id, err := c.ID()
	if err != nil {
		return nil, err
	}
	q := c.Query("wait")
	wait := q.Duration("wait")
	if q.Err != nil {
		return nil, q.Err
	}
	r, err := waitFor(c.Context(), id, wait, a.Collector.Wait, a.Collector.Get)
	return filled(r), err
}

// waitFor answers with the state of something at its end or, if that takes too
// long, with the state it has then.
func waitFor[T any](ctx context.Context, id int64, wait unit.Duration, end, now func(context.Context, int64) (T, error)) (T, error) {
	if wait == 0 {
		return now(ctx, id)
	}
	limited, cancel := context.WithTimeout(ctx, min(time.Duration(wait), waitMax))
	defer cancel()
	v, err := end(limited, id)
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		return now(ctx, id)
	}
	return v, err
}

func (a *API) runEvents(c *call) (any, error) {
	id, err := a.existingRun(c)
	if err != nil {
		return nil, err
	}
	events, err := a.Collector.Events(c.Context(), id)
	return EventList{jsonface.List(events)}, err
}

// existingRun reads the id of a run that there is, so that the lists below it
// are not empty for a run that there never was.
func (a *API) existingRun(c *call) (int64, error) {
	id, err := c.ID()
	if err != nil {
		return 0, err
	}
	r, err := a.Collector.Get(c.Context(), id)
	return r.ID, err
}

func (a *API) runDeletions(c *call) (any, error) {
	id, err := a.existingRun(c)
	if err != nil {
		return nil, err
	}
	q := c.Query("before", "n")
	before, n := q.ID("before"), q.N(pageStandard, pageMax)
	if q.Err != nil {
		return nil, q.Err
	}
	list, err := a.Store.Deletions(c.Context(), "", id, before, n)
	return DeletionList{jsonface.List(list)}, err
}

func (a *API) listDeletions(c *call) (any, error) {
	q := c.Query("digest", "run", "before", "n")
	run, before, n := q.ID("run"), q.ID("before"), q.N(pageStandard, pageMax)
	if q.Err != nil {
		return nil, q.Err
	}
	list, err := a.Store.Deletions(c.Context(), q.Text("digest"), run, before, n)
	return DeletionList{jsonface.List(list)}, err
}

func (a *API) stopRun(c *call) (any, error) {
	id, err := c.ID()
	if err != nil {
		return nil, err
	}
	if err := c.NoBody(); err != nil {
		return nil, err
	}
	r, err := a.admin.StopRun(c.Context(), c.who, id)
	return filled(r), err
}

func (a *API) status(c *call) (any, error) {
	s, err := a.Collector.Status(c.Context())
	s.Running = jsonface.List(s.Running)
	for i := range s.Running {
		s.Running[i] = filled(s.Running[i])
	}
	if s.Last != nil {
		last := filled(*s.Last)
		s.Last = &last
	}
	return s, err
}

// ScheduleRequest asks for collections at the times that Cron says. The parts
// of the server's policy that it does not override are those of now.
type ScheduleRequest struct {
	PolicyRequest
	Cron string `json:"cron"`
}

// ScheduleList lists schedules.
type ScheduleList struct {
	Schedules []meta.Schedule `json:"schedules"`
}

func (a *API) listSchedules(c *call) (any, error) {
	list, err := a.Store.Schedules(c.Context())
	return ScheduleList{jsonface.List(list)}, err
}

func (a *API) addSchedule(c *call) (any, error) {
	var req ScheduleRequest
	if err := c.Decode(&req); err != nil {
		return nil, err
	}
	s, err := a.admin.AddSchedule(c.Context(), c.who, req.Cron, req.policy(a.Collector.Policy()))
	c.Status = http.StatusCreated
	return s, err
}

func (a *API) deleteSchedule(c *call) (any, error) {
	id, err := c.ID()
	if err != nil {
		return nil, err
	}
	return nil, a.admin.DeleteSchedule(c.Context(), c.who, id)
}
