package mirror

import (
	"errors"
	"io/fs"
	"net"
	"net/http"

	"github.com/fairway-registry/fairway/internal/agent/fetch"
	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/ociclient"
)

// around answers a request, of which nothing is written yet, without the cache,
// if what failed was this node itself: its index may be damaged, or its disk
// (N8). The upstream then decides who may have what, by the client's own
// Authorization or the node's.
func (m *Mirror) around(w http.ResponseWriter, r *http.Request, a access, e endpoint, last string, failed error) error {
	if failed == nil || !m.ownTrouble(r, failed) {
		return failed
	}
	m.troubled(failed)
	for key := range w.Header() {
		if key != "X-Content-Type-Options" && key != "Docker-Distribution-Api-Version" {
			w.Header().Del(key)
		}
	}
	ref, err := oci.ParseReference(last)
	if err != nil {
		return err
	}
	if e == apiManifest {
		doc, _, err := m.receive(r.Context(), a, last, ref.Digest, r.Header.Values("Accept"))
		if err == nil {
			m.sendManifest(w, r, doc)
		}
		return err
	}
	p := &pull{m: m, w: w, r: r, a: a, began: m.o.Now(), n: -1, around: true, from: map[string]int64{}}
	p.want = fetch.Want{Digest: ref.Digest, Size: -1, Namespace: a.ns, Repo: a.repo, Authorization: a.auth, Private: true, Unchecked: true}
	if r.Method == http.MethodHead {
		return p.head(r.Context())
	}
	return p.get(r.Context())
}

func (m *Mirror) troubled(failed error) {
	m.metrics.around.Inc()
	m.trouble.Do(func() {
		m.o.Log.Error("the cache has trouble, and pulls go around it; a restart mends a damaged index", "err", failed)
	})
}

// diskTrouble reports whether the cache's files ended a pull: what was handed out of it is
// as good as what comes now.
func (m *Mirror) diskTrouble(r *http.Request, err error) bool {
	var file *fs.PathError
	return errors.As(err, &file) && m.ownTrouble(r, err)
}

// ownTrouble tells an error of this node from those of clients and upstreams.
func (m *Mirror) ownTrouble(r *http.Request, err error) bool {
	var (
		refusal *ociclient.StatusError
		method  *methodError
		rng     *rangeError
		late    interface{ Timeout() bool }
		network *net.OpError
	)
	switch {
	case r.Context().Err() != nil, fault.KindOf(err) != fault.Internal, fetch.IsWrongContent(err), fetch.IsStalled(err):
		return false
	case errors.As(err, &refusal), errors.As(err, &method), errors.As(err, &rng), errors.As(err, &network):
		return false
	case errors.As(err, &late) && late.Timeout(): // an error of the disk has the method too
		return false
	}
	return true
}
