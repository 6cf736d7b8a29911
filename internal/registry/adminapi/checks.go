package adminapi

import (
	"github.com/fairway-registry/fairway/internal/jsonface"
	"github.com/fairway-registry/fairway/internal/registry/check"
	"github.com/fairway-registry/fairway/internal/registry/meta"
	"github.com/fairway-registry/fairway/internal/unit"
)

// CheckRequest asks for a comparison of storage and metadata.
type CheckRequest struct {
	Repair bool `json:"repair,omitempty"`
	Deep   bool `json:"deep,omitempty"`
	Resume bool `json:"resume,omitempty"`
	// Grace is the age below which an object without a row is left alone. Not
	// given: the server's. 0: none.
	Grace *unit.Duration `json:"grace,omitempty"`
	// Limits of the load. Not given: the server's. 0: none.
	ObjectsPerSecond *rate `json:"objects_per_second,omitempty"`
	BytesPerSecond   *rate `json:"bytes_per_second,omitempty"`
}

// CheckList is a page of the history of checks.
type CheckList struct {
	Checks []check.Report `json:"checks"`
}

func (r CheckRequest) request() check.Request {
	req := check.Request{
		Repair: r.Repair, Deep: r.Deep, Resume: r.Resume,
		ObjectsPerSecond: r.ObjectsPerSecond.limit(), BytesPerSecond: r.BytesPerSecond.limit(),
	}
	if r.Grace != nil {
		if req.Grace = meta.Duration(*r.Grace); req.Grace == 0 {
			req.Grace = -1
		}
	}
	return req
}

func (a *API) startCheck(c *call) (any, error) {
	var req CheckRequest
	if err := c.Decode(&req); err != nil {
		return nil, err
	}
	r, err := a.admin.StartCheck(c.Context(), c.who, req.request())
	if err != nil {
		return nil, err
	}
	return c.Accepted(whole(r), "/checks/%d", r.ID), nil
}

// whole makes the empty lists of a report lists in JSON too.
func whole(r check.Report) check.Report {
	r.Lost, r.Database, r.Failures = jsonface.List(r.Lost), jsonface.List(r.Database), jsonface.List(r.Failures)
	r.Orphans.Keys = jsonface.List(r.Orphans.Keys)
	for i := range r.Lost {
		r.Lost[i].Affected = jsonface.List(r.Lost[i].Affected)
	}
	return r
}

func (a *API) listChecks(c *call) (any, error) {
	q := c.Query("before", "n")
	before, n := q.ID("before"), q.N(pageStandard, pageMax)
	if q.Err != nil {
		return nil, q.Err
	}
	list, err := a.Checker.History(c.Context(), before, n)
	for i := range list {
		list[i] = whole(list[i])
	}
	return CheckList{jsonface.List(list)}, err
}

func (a *API) getCheck(c *call) (any, error) {
	id, err := c.ID()
	if err != nil {
		return nil, err
	}
	q := c.Query("wait")
	wait := q.Duration("wait")
	if q.Err != nil {
		return nil, q.Err
	}
	r, err := waitFor(c.Context(), id, wait, a.Checker.Wait, a.Checker.Get)
	return whole(r), err
}

func (a *API) stopCheck(c *call) (any, error) {
	id, err := c.ID()
	if err != nil {
		return nil, err
	}
	if err := c.NoBody(); err != nil {
		return nil, err
	}
	r, err := a.admin.StopCheck(c.Context(), c.who, id)
	return whole(r), err
}
