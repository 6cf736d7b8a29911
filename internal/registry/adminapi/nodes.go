package adminapi

import (
	"encoding/json"
	"errors"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/jsonface"
	"github.com/fairway-registry/fairway/internal/nodeapi"
	"github.com/fairway-registry/fairway/internal/registry/nodes"
)

func (a *API) listNodes(c *call) (any, error) {
	q := c.Query("after", "n")
	after, n := q.Text("after"), q.N(nodesMax, nodesMax)
	if q.Err != nil {
		return nil, q.Err
	}
	list, more, err := a.Nodes.List(c.Context(), after, n)
	l := nodeapi.NodeList{Nodes: list}
	if more {
		l.Next = list[len(list)-1].Name
	}
	return l, err
}

func (a *API) getNode(c *call) (any, error) {
	n, err := a.Nodes.Get(c.Context(), c.PathValue("name"))
	return n, err
}

// reportNode takes a report. Unlike other bodies it may have fields that are
// not known here, since agents may be newer than the registry.
func (a *API) reportNode(c *call) (any, error) {
	content, err := c.Content(nodes.BodyMax)
	if err != nil {
		return nil, err
	}
	var r nodeapi.Report
	if err := json.Unmarshal(content, &r); err != nil {
		var wrong *json.UnmarshalTypeError
		if errors.As(err, &wrong) && wrong.Field != "" {
			return nil, fault.New(fault.Invalid, "%s: a %s is not what is wanted", jsonface.Clip(wrong.Field), wrong.Value)
		}
		return nil, fault.Wrap(fault.Invalid, err, "the body is no JSON of a report")
	}
	name := c.PathValue("name")
	if r.Node == "" {
		r.Node = name
	}
	if r.Node != name {
		return nil, fault.New(fault.Invalid, "node: the path says %q and the body %q", jsonface.Clip(name), jsonface.Clip(r.Node))
	}
	return a.admin.ReportNode(c.Context(), c.who, r)
}

func (a *API) forgetNode(c *call) (any, error) {
	return nil, a.admin.ForgetNode(c.Context(), c.who, c.PathValue("name"))
}
