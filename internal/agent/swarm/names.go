package swarm

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/agent/fetch"
	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/agent/swarm/plan"
	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
)

// Beside large blobs, nodes give each other what they need of an image when the
// registry is down: its manifests, its config, and what a tag was last known to
// stand for. They are found through the same directories, under keys of their
// own, and then asked for by name.

// Names is what a node knows of images.
type Names interface {
	// Named returns what the upstream said that a tag stands for, and how long
	// ago; only if anybody may pull it. fault.NotFound if it never did.
	Named(ctx context.Context, ns string, repo oci.Name, tag oci.Tag) (Named, error)
	// Given returns small content. What is private is denied, unless the asker
	// says that it has a right of its own and this node has one too (N10).
	Given(ctx context.Context, ns string, repo oci.Name, d oci.Digest, own bool) (Given, error)
	// Each calls f for the tags that Named may know.
	Each(ctx context.Context, f func(ns string, repo oci.Name, tag oci.Tag)) error
}

// Named is what a tag stood for.
type Named struct {
	Digest oci.Digest    `json:"digest"`
	Age    time.Duration `json:"age_ns"` // since the upstream said so; clocks differ, so no time
}

// Given is small content with what its holder knows of it.
type Given struct {
	Content   []byte `json:"content"`
	MediaType string `json:"media_type"`
	Public    bool   `json:"public"` // the upstream gives it, under this name, to everybody
}

// question asks for a tag or for content.
type question struct {
	Namespace string     `json:"namespace"`
	Repo      oci.Name   `json:"repository"`
	Tag       oci.Tag    `json:"tag,omitempty"`
	Digest    oci.Digest `json:"digest,omitempty"`
	Grant     grant      `json:"grant,omitzero"`
}

func (q question) check() error {
	if _, err := oci.ParseName(string(q.Repo)); err != nil {
		return err
	}
	var err error
	if q.Tag != "" {
		_, err = oci.ParseTag(string(q.Tag))
	} else {
		_, err = oci.ParseDigest(string(q.Digest))
	}
	return err
}

// key is under which directories know who could answer.
func (q question) key() string {
	if q.Tag != "" {
		return string(digest.FromString("fairway tag v1\x00" + q.Namespace + "\x00" + string(q.Repo) + "\x00" + string(q.Tag)))
	}
	return contentKey(q.Digest)
}

func contentKey(d oci.Digest) string {
	return string(digest.FromString("fairway content v1\x00" + string(d)))
}

const (
	// answersMost bounds the nodes that are asked one question.
	answersMost   = 8
	answerTimeout = 3 * time.Second
	// givenMax bounds the JSON of one answer: content in base64 and the rest.
	givenMax = oci.ManifestMax/3*4 + 4096
	// givenAtOnce bounds how many are given content at once, of more than 64 KiB until
	// they have taken it. The others wait for givenWait.
	givenAtOnce = 8
	givenWait   = time.Second
	givenTime   = 5 * time.Second
)

// SetNames says what this node knows. Call it before Run.
func (e *Engine) SetNames(n Names) { e.names = n }

func (e *Engine) serveTag(w http.ResponseWriter, r *http.Request, _ plan.Node) error {
	q, err := e.asked(w, r)
	if err != nil {
		return err
	}
	if q.Tag == "" {
		return fault.New(fault.Invalid, "a question for a tag without one")
	}
	n, err := e.names.Named(r.Context(), q.Namespace, q.Repo, q.Tag)
	if err != nil {
		return err
	}
	return answer(w, n)
}

func (e *Engine) serveContent(w http.ResponseWriter, r *http.Request, peer plan.Node) error {
	q, err := e.asked(w, r)
	if err != nil {
		return err
	}
	if q.Tag != "" {
		return fault.New(fault.Invalid, "a question for content by a tag")
	}
	leave, err := e.enter(r.Context())
	if err != nil {
		return err
	}
	defer leave()
	g, err := e.names.Given(r.Context(), q.Namespace, q.Repo, q.Digest, q.Grant.covers(q.Namespace))
	if err != nil {
		if errors.Is(err, fault.Denied) {
			e.metrics.refused.Inc()
		}
		return err
	}
	if len(g.Content) <= grain {
		leave() // however slowly it is read
	}
	for left := len(g.Content); left > 0; left -= grain {
		if err := e.up.wait(r.Context(), peer, min(left, grain)); err != nil {
			return abort(err)
		}
	}
	e.tallySent(peer, len(g.Content))
	return g.answer(w)
}

// enter waits for a place among those who are given content, of which each may hold 4
// MiB. leave may be called twice.
func (e *Engine) enter(ctx context.Context) (leave func(), err error) {
	wait := time.NewTimer(givenWait)
	defer wait.Stop()
	select {
	case e.giving <- struct{}{}:
		return sync.OnceFunc(func() { <-e.giving }), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-wait.C:
		return nil, fault.New(fault.Busy, "too many members are given content at once")
	}
}

// answer writes g as JSON, without another copy of the content. Who takes it more slowly
// than it would wait for is not waited for.
func (g Given) answer(w http.ResponseWriter) error {
	kind, err := json.Marshal(g.MediaType)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(givenTime)) // of a test it may have none
	if _, err := io.WriteString(w, `{"content":"`); err != nil {
		return abort(err)
	}
	b := base64.NewEncoder(base64.StdEncoding, w)
	if _, err := b.Write(g.Content); err != nil {
		return abort(err)
	}
	if err := b.Close(); err != nil {
		return abort(err)
	}
	if _, err := fmt.Fprintf(w, `","media_type":%s,"public":%t}`, kind, g.Public); err != nil {
		return abort(err)
	}
	return nil
}

func (e *Engine) asked(w http.ResponseWriter, r *http.Request) (question, error) {
	var q question
	if err := e.receive(w, r, &q); err != nil {
		return q, err
	}
	if e.names == nil {
		return q, fault.New(fault.NotFound, "this node knows no names")
	}
	return q, q.check()
}

// Tag asks other nodes what a tag stood for when the upstream last told one of
// them. The newest answer wins. fault.NotFound: none of those asked knows it.
func (e *Engine) Tag(ctx context.Context, ns string, repo oci.Name, tag oci.Tag) (Named, error) {
	q := question{Namespace: ns, Repo: repo, Tag: tag}
	var best Named
	for _, n := range askAll(ctx, e, q, "/swarm/v1/tags", answersMost, func(Named) bool { return false }) {
		if _, err := oci.ParseDigest(string(n.Digest)); err == nil && n.Age >= 0 && (best.Digest == "" || n.Age < best.Age) {
			best = n
		}
	}
	if best.Digest == "" {
		return best, fault.New(fault.NotFound, "no other node knows %s:%s", repo, tag)
	}
	return best, nil
}

// Content asks other nodes for small content, and checks it against its digest.
// Public is set if one of them says so. fault.NotFound: none of those asked has
// it, or may give it.
func (e *Engine) Content(ctx context.Context, ns string, repo oci.Name, d oci.Digest) (Given, error) {
	q := question{Namespace: ns, Repo: repo, Digest: d, Grant: e.grantFor(ns, d)}
	right := func(g Given) bool { return d.Algorithm().FromBytes(g.Content) == d }
	var got Given
	found := false
	for _, g := range askAll(ctx, e, q, "/swarm/v1/contents", 2, func(g Given) bool { return (g.Public || q.Grant.Kind != "") && right(g) }) {
		if !right(g) {
			e.metrics.mismatches.Inc()
			continue
		}
		if !found || g.Public && !got.Public {
			got, found = g, true
		}
	}
	if !found {
		return got, fault.New(fault.NotFound, "no other node has %s", d)
	}
	return got, nil
}

// grantFor states this node's right to d as content of an upstream, if it has one.
func (e *Engine) grantFor(ns string, d oci.Digest) grant {
	if e.o.Allowed(ns, d) {
		return grant{Kind: grantUpstream, Namespace: ns}
	}
	return grant{}
}

// askAll puts a question to those who should know, so many at once, until an
// answer is enough, and returns the answers.
func askAll[T any](ctx context.Context, e *Engine, q question, path string, atOnce int, enough func(T) bool) []T {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	var mu sync.Mutex
	var answers []T
	for some := range slices.Chunk(e.whoKnows(ctx, q), atOnce) {
		var all sync.WaitGroup
		for _, n := range some {
			all.Go(func() {
				got, err := askOne[T](ctx, e, n, q, path)
				if err != nil {
					e.log.Debug("a node does not know", "peer", n, "repository", q.Repo, "tag", q.Tag, "digest", q.Digest, "err", err)
					return
				}
				mu.Lock()
				defer mu.Unlock()
				answers = append(answers, got)
			})
		}
		all.Wait()
		if slices.ContainsFunc(answers, enough) {
			break
		}
	}
	return answers
}

func askOne[T any](ctx context.Context, e *Engine, n plan.Node, q question, path string) (got T, err error) {
	body, err := e.post(ctx, n, path, q)
	if err != nil {
		return got, err
	}
	defer body.Close()
	return got, decode(body, givenMax, &got)
}

// whoKnows are the nodes that said so to the directory, and others at random
// where those are few: in a small cluster everybody is asked.
func (e *Engine) whoKnows(ctx context.Context, q question) []plan.Node {
	return e.known(ctx, q.key(), 1, answersMost)
}

// known are nodes that the first ranks of a key name, and others at random until
// there are so many.
func (e *Engine) known(ctx context.Context, key string, pieces, atLeast int) []plan.Node {
	view := e.seen()
	self := e.o.Self.Node
	var found []plan.Node
	for _, leader := range plan.Rank(key, view.list, plan.Ranks) {
		reply, err := e.tell(ctx, leader, plan.Announce{Blob: key, Node: self, Zone: e.o.Self.Zone, Pieces: pieces, Peers: answersMost, Whole: pieces == 1})
		if err != nil {
			continue // the next one may know as much
		}
		for _, m := range reply.Peers {
			if _, member := view.peers[m.Node]; member && m.Node != self && !slices.Contains(found, m.Node) {
				found = append(found, m.Node)
			}
		}
		if len(found) >= answersMost/2 {
			break
		}
	}
	for _, i := range rand.Perm(len(view.list)) {
		if len(found) >= atLeast {
			break
		}
		if n := view.list[i]; n != self && !slices.Contains(found, n) {
			found = append(found, n)
		}
	}
	return slices.DeleteFunc(found[:min(len(found), answersMost)], func(n plan.Node) bool { return e.bannedUntil(n) > 0 })
}

// KnowsTag lets others find out here what a tag stands for.
func (e *Engine) KnowsTag(ns string, repo oci.Name, tag oci.Tag) {
	e.knows(question{Namespace: ns, Repo: repo, Tag: tag}.key())
}

// KnowsContent lets others find content here that is too small for Fill.
func (e *Engine) KnowsContent(d oci.Digest) { e.knows(contentKey(d)) }

// knows tells the first two ranks, so that one of them may leave.
func (e *Engine) knows(key string) {
	if e.stop.Err() != nil {
		return
	}
	e.work.Go(func() {
		for _, to := range plan.Rank(key, e.seen().list, 2) {
			if _, err := e.tell(e.stop, to, plan.Announce{Blob: key, Node: e.o.Self.Node, Zone: e.o.Self.Zone, Pieces: 1, Done: true}); err != nil {
				e.log.Debug("a leader was not told what is known here", "leader", to, "err", err)
			}
		}
	})
}

// Rest is the source of last resort for blobs that Fill leaves to the upstream.
// It belongs behind the upstream.
func (e *Engine) Rest() fetch.Filler { return rest{e} }

type rest struct{ e *Engine }

// Name is the source's label.
func (r rest) Name() string { return r.e.Name() }

// Fill brings all of a small blob.
func (r rest) Fill(ctx context.Context, w fetch.Want, b *piece.Blob) error {
	if b.Size() >= r.e.o.Small || b.Size() > oci.ManifestMax {
		return errLeft
	}
	if (w.Private || b.Private()) && !r.e.o.Allowed(w.Namespace, w.Digest) {
		r.e.metrics.refused.Inc()
		return errLeft
	}
	g, err := r.e.Content(ctx, w.Namespace, w.Repo, w.Digest)
	if err != nil {
		return err
	}
	if err := writeSmall(ctx, b, g, r.Name()); err != nil {
		return fmt.Errorf("fetch %s from another node: %w", w.Digest, err)
	}
	return nil
}
