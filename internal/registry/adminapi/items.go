package adminapi

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/jsonface"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/gc"
	"github.com/fairway-registry/fairway/internal/registry/meta"
	"github.com/fairway-registry/fairway/internal/unit"
)

func (a *API) explain(c *call) (any, error) {
	q := c.Query("subject")
	if q.Err == nil && q.Text("subject") == "" {
		q.Failf("subject: REPOSITORY, REPOSITORY:TAG, REPOSITORY@DIGEST or DIGEST is wanted")
	}
	if q.Err != nil {
		return nil, q.Err
	}
	subject := q.Text("subject")
	e, err := a.Collector.Explain(c.Context(), subject)
	if errors.Is(err, fault.NotFound) && (strings.HasPrefix(subject, "sha256:") || strings.HasPrefix(subject, "sha512:")) {
		// No repository of that name is there, so that a digest was meant.
		if _, invalid := oci.ParseDigest(subject); invalid != nil {
			err = invalid
		}
	}
	return spelledOut(e), err
}

// spelledOut makes the empty lists of an explanation lists in JSON too.
func spelledOut(e gc.Explanation) gc.Explanation {
	e.Reasons = jsonface.List(e.Reasons)
	for i := range e.Reasons {
		e.Reasons[i].Path = jsonface.List(e.Reasons[i].Path)
	}
	for i := range e.Parts {
		e.Parts[i] = spelledOut(e.Parts[i])
	}
	return e
}

// TrashList lists what can be restored.
type TrashList struct {
	Items []TrashItem `json:"items"`
	// Next is what to give as after for the next page; "" at the end.
	Next string `json:"next,omitempty"`
}

// TrashItem is a deleted manifest, and when the server's policy of now lets it
// go, at the earliest: a lease or an index may keep it longer.
type TrashItem struct {
	meta.TrashItem
	ExpiresAt time.Time `json:"expires_at"`
}

// ItemRequest names a manifest in the trash.
type ItemRequest struct {
	Repository string `json:"repository"`
	Digest     string `json:"digest"`
}

// PurgeRequest asks to empty the trash.
type PurgeRequest struct {
	Repository string `json:"repository,omitempty"` // pattern; "" = all
}

func (a *API) listTrash(c *call) (any, error) {
	q := c.Query("repository", "n", "after")
	p := meta.TrashPage{Pattern: q.Text("repository"), N: q.N(trashMax, trashMax)}
	if after := q.Text("after"); after != "" {
		at, id, _ := strings.Cut(after, ".")
		var err1, err2 error
		p.After.At, err1 = strconv.ParseInt(at, 10, 64)
		p.After.ID, err2 = strconv.ParseInt(id, 10, 64)
		if err1 != nil || err2 != nil || p.After.At < 0 || p.After.ID < 1 {
			q.Failf("after: want what a page gave as next, not %q", jsonface.Clip(after))
		}
	}
	if q.Err != nil {
		return nil, q.Err
	}
	items, next, err := a.Store.Trash(c.Context(), p)
	if err != nil {
		return nil, err
	}
	list, keep := make([]TrashItem, len(items)), time.Duration(a.Collector.Policy().Trash)
	for i, item := range items {
		item.Tags = jsonface.List(item.Tags)
		list[i] = TrashItem{TrashItem: item, ExpiresAt: item.TrashedAt.Add(keep)}
	}
	t := TrashList{Items: list}
	if next != (meta.TrashCursor{}) {
		t.Next = fmt.Sprintf("%d.%d", next.At, next.ID)
	}
	return t, nil
}

func (a *API) restore(c *call) (any, error) {
	var req ItemRequest
	if err := c.Decode(&req); err != nil {
		return nil, err
	}
	repo, err := oci.ParseName(req.Repository)
	if err != nil {
		return nil, err
	}
	d, err := oci.ParseDigest(req.Digest)
	if err != nil {
		return nil, err
	}
	r, err := a.admin.Restore(c.Context(), c.who, repo, d)
	r.Tags, r.TagsTaken, r.Along = jsonface.List(r.Tags), jsonface.List(r.TagsTaken), jsonface.List(r.Along)
	return r, err
}

func (a *API) purgeTrash(c *call) (any, error) {
	var req PurgeRequest
	if err := c.Decode(&req); err != nil {
		return nil, err
	}
	r, err := a.admin.PurgeTrash(c.Context(), c.who, req.Repository)
	if err != nil {
		return nil, err
	}
	return c.Accepted(filled(r), "/gc/runs/%d", r.ID), nil
}

// LeaseRequest asks to keep digests, and all below them, for a time.
type LeaseRequest struct {
	Holder  string         `json:"holder,omitempty"` // may be in the path instead
	Digests []string       `json:"digests"`
	TTL     *unit.Duration `json:"ttl"`
}

// LeaseList lists leases.
type LeaseList struct {
	Leases []meta.Lease `json:"leases"`
	// Next is what to give as after for the next page; "" at the end.
	Next string `json:"next,omitempty"`
}

// leaseDigestsListed is how many digests of each lease a list shows.
const leaseDigestsListed = 100

func (a *API) putLease(c *call) (any, error) {
	var req LeaseRequest
	if err := c.Decode(&req); err != nil {
		return nil, err
	}
	holder := c.PathValue("holder")
	switch {
	case holder == "":
		holder = req.Holder
	case req.Holder != "" && req.Holder != holder:
		return nil, fault.New(fault.Invalid, "holder: the path says %q and the body %q", holder, jsonface.Clip(req.Holder))
	}
	switch {
	case len(req.Digests) == 0:
		return nil, fault.New(fault.Invalid, "digests: at least one is wanted")
	case req.TTL == nil:
		return nil, fault.New(fault.Invalid, "ttl: it is missing; want a text such as \"2h\", or a number of seconds")
	}
	digests := make([]oci.Digest, len(req.Digests))
	for i, text := range req.Digests {
		d, err := oci.ParseDigest(text)
		if err != nil {
			return nil, err
		}
		digests[i] = d
	}
	return a.admin.PutLease(c.Context(), c.who, holder, digests, time.Duration(*req.TTL))
}

func (a *API) listLeases(c *call) (any, error) {
	q := c.Query("holder", "after", "n")
	p := meta.LeasePage{Holder: q.Text("holder"), After: q.Text("after"), N: q.N(pageStandard, pageMax), Digests: leaseDigestsListed}
	if q.Err != nil {
		return nil, q.Err
	}
	list, more, err := a.Store.Leases(c.Context(), p)
	l := LeaseList{Leases: jsonface.List(list)}
	if more {
		l.Next = list[len(list)-1].Holder
	}
	return l, err
}

func (a *API) getLease(c *call) (any, error) {
	holder := c.PathValue("holder")
	list, _, err := a.Store.Leases(c.Context(), meta.LeasePage{Holder: holder, N: 1, Digests: math.MaxInt32})
	if err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, fault.New(fault.NotFound, "%q holds no lease", jsonface.Clip(holder))
	}
	return list[0], nil
}

func (a *API) deleteLease(c *call) (any, error) {
	return nil, a.admin.DeleteLease(c.Context(), c.who, c.PathValue("holder"))
}
