package adminapi

import (
	"encoding/json"
	"net/http"
	"time"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/jsonface"
	"github.com/fairway-registry/fairway/internal/nodeapi"
	"github.com/fairway-registry/fairway/internal/registry/meta"
	"github.com/fairway-registry/fairway/internal/registry/preheat"
	"github.com/fairway-registry/fairway/internal/unit"
)

// PreheatRequest asks nodes to fetch an image ahead.
type PreheatRequest struct {
	Reference    string       `json:"reference"`               // [REGISTRY/]REPOSITORY[:TAG][@DIGEST]
	Nodes        string       `json:"nodes,omitempty"`         // meta.NodeChoice; "" is all
	Share        unit.Percent `json:"share,omitempty"`         // of those; 0 is all
	AllPlatforms bool         `json:"all_platforms,omitempty"` // and not each node's own only
}

// PreheatRuleRequest asks for that after each push that matches.
type PreheatRuleRequest struct {
	Repository   string       `json:"repository"`
	Tag          string       `json:"tag"`
	Nodes        string       `json:"nodes,omitempty"`
	Share        unit.Percent `json:"share,omitempty"`
	AllPlatforms bool         `json:"all_platforms,omitempty"`
}

// PreheatList is a page of the history of preheats.
type PreheatList struct {
	Preheats []meta.Preheat `json:"preheats"`
}

// PreheatRuleList lists rules.
type PreheatRuleList struct {
	Rules []meta.PreheatRule `json:"rules"`
}

func (a *API) startPreheat(c *call) (any, error) {
	var req PreheatRequest
	if err := c.Decode(&req); err != nil {
		return nil, err
	}
	p, err := a.admin.StartPreheat(c.Context(), c.who, preheat.Request{
		Reference: req.Reference, Host: c.Host, AllPlatforms: req.AllPlatforms, NodeChoice: meta.NodeChoice{Nodes: req.Nodes, Share: req.Share},
	})
	if err != nil {
		return nil, err
	}
	return c.Accepted(p, "/preheats/%d", p.ID), nil
}

func (a *API) listPreheats(c *call) (any, error) {
	q := c.Query("before", "n")
	before, n := q.ID("before"), q.N(pageStandard, pageMax)
	if q.Err != nil {
		return nil, q.Err
	}
	list, err := a.Store.Preheats(c.Context(), before, n)
	return PreheatList{jsonface.List(list)}, err
}

func (a *API) getPreheat(c *call) (any, error) {
	id, err := c.ID()
	if err != nil {
		return nil, err
	}
	wait, err := c.wait()
	if err != nil {
		return nil, err
	}
	p, err := a.Preheats.Wait(c.Context(), id, wait)
	return p, err
}

// wait reads for how long an answer may be waited for.
func (c *call) wait() (time.Duration, error) {
	q := c.Query("wait")
	wait := q.Duration("wait")
	return min(time.Duration(wait), waitMax), q.Err
}

func (a *API) deletePreheat(c *call) (any, error) {
	id, err := c.ID()
	if err != nil {
		return nil, err
	}
	return nil, a.admin.DeletePreheat(c.Context(), c.who, id)
}

func (a *API) listPreheatRules(c *call) (any, error) {
	list, err := a.Store.PreheatRules(c.Context())
	return PreheatRuleList{jsonface.List(list)}, err
}

func (a *API) addPreheatRule(c *call) (any, error) {
	var req PreheatRuleRequest
	if err := c.Decode(&req); err != nil {
		return nil, err
	}
	r, err := a.admin.AddPreheatRule(c.Context(), c.who, meta.PreheatRule{
		Repository: req.Repository, Tag: req.Tag, Nodes: req.Nodes, Share: req.Share, AllPlatforms: req.AllPlatforms,
	})
	c.Status = http.StatusCreated
	return r, err
}

func (a *API) deletePreheatRule(c *call) (any, error) {
	id, err := c.ID()
	if err != nil {
		return nil, err
	}
	return nil, a.admin.DeletePreheatRule(c.Context(), c.who, id)
}

// nodeTasks is what an agent waits at for something to do.
func (a *API) nodeTasks(c *call) (any, error) {
	wait, err := c.wait()
	if err != nil {
		return nil, err
	}
	list, err := a.Preheats.Task(c.Context(), c.PathValue("name"), wait)
	list.Tasks = jsonface.List(list.Tasks)
	if c.Context().Err() != nil {
		return list, nil // the agent has ended or lost patience: nobody reads the answer
	}
	return list, err
}

// progressMax bounds the body of a node's progress, in bytes.
const progressMax = 16 << 10

// reportTask takes a node's progress. As a report it may have fields that are
// not known here.
func (a *API) reportTask(c *call) (any, error) {
	id, err := c.ID()
	if err != nil {
		return nil, err
	}
	content, err := c.Content(progressMax)
	if err != nil {
		return nil, err
	}
	var p nodeapi.Progress
	if err := json.Unmarshal(content, &p); err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "the body is no JSON of a progress")
	}
	return nil, a.admin.ReportTask(c.Context(), c.who, c.PathValue("name"), id, p)
}
