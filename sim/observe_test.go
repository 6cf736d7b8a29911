package sim

import (
	"bytes"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/fairway-registry/fairway/internal/oci"
)

// observed is what the database holds, read from outside.
type observed struct {
	repos   map[oci.Name]*observedRepo
	blobs   map[oci.Digest]observedBlob
	uploads map[string]observedUpload
	leases  map[string]leaseModel
	purges  map[string]int64 // key → size
	reviews int
	failing int // purges that failed at least once
}

type observedRepo struct {
	manifests map[oci.Digest]*observedManifest
	tags      map[oci.Tag]oci.Digest
	links     map[oci.Digest]bool // → hidden
}

type observedManifest struct {
	content   []byte
	edges     map[oci.Digest]bool
	trashed   bool
	loose     bool
	orphan    bool
	trashedAt int64
	trashTags []string
	cause     oci.Digest
}

type observedBlob struct {
	key  string
	size int64
}

type observedUpload struct {
	repo oci.Name
	key  string
	size int64
}

func (w *world) observe() (*observed, error) {
	o := &observed{repos: map[oci.Name]*observedRepo{}, blobs: map[oci.Digest]observedBlob{}, uploads: map[string]observedUpload{},
		leases: map[string]leaseModel{}, purges: map[string]int64{}}
	manifests := map[int64]*observedManifest{}
	return o, errors.Join(
		w.audit.each("SELECT name FROM repositories", nil, func(r *sql.Rows) error {
			var name oci.Name
			err := r.Scan(&name)
			o.repos[name] = &observedRepo{manifests: map[oci.Digest]*observedManifest{}, tags: map[oci.Tag]oci.Digest{}, links: map[oci.Digest]bool{}}
			return err
		}),
		w.audit.each("SELECT digest, key, size FROM blobs WHERE lost_at IS NULL", nil, func(r *sql.Rows) error {
			var d oci.Digest
			var b observedBlob
			err := r.Scan(&d, &b.key, &b.size)
			o.blobs[d] = b
			return err
		}),
		w.audit.each("SELECT r.name, b.digest, l.hidden FROM links l JOIN repositories r ON r.id = l.repo_id JOIN blobs b ON b.id = l.blob_id", nil, func(r *sql.Rows) error {
			var name oci.Name
			var d oci.Digest
			var hidden bool
			err := r.Scan(&name, &d, &hidden)
			o.repos[name].links[d] = hidden
			return err
		}),
		w.audit.each(`SELECT m.id, r.name, m.digest, m.content, m.trashed_at IS NOT NULL, m.loose_at IS NOT NULL, m.orphaned_at IS NOT NULL,
				coalesce(t.trashed_at, 0), coalesce(t.tags, ''), coalesce(t.cause, ''), coalesce(t.trashed_at, 0) = coalesce(m.trashed_at, 0)
			FROM manifests m JOIN repositories r ON r.id = m.repo_id LEFT JOIN trash t ON t.manifest_id = m.id`, nil, func(r *sql.Rows) error {
			var id int64
			var name oci.Name
			var d oci.Digest
			var tags string
			var agree bool
			m := &observedManifest{edges: map[oci.Digest]bool{}}
			if err := r.Scan(&id, &name, &d, &m.content, &m.trashed, &m.loose, &m.orphan, &m.trashedAt, &tags, &m.cause, &agree); err != nil {
				return err
			}
			if !agree {
				return fmt.Errorf("manifest %s and its row in the trash disagree", d)
			}
			o.repos[name].manifests[d], manifests[id] = m, m
			if m.trashed {
				return json.Unmarshal([]byte(tags), &m.trashTags)
			}
			return nil
		}),
		w.audit.each("SELECT e.manifest_id, b.digest FROM manifest_blobs e JOIN links l ON l.id = e.link_id JOIN blobs b ON b.id = l.blob_id", nil, func(r *sql.Rows) error {
			var id int64
			var d oci.Digest
			err := r.Scan(&id, &d)
			manifests[id].edges[d] = true
			return err
		}),
		w.audit.each("SELECT r.name, t.name, m.digest FROM tags t JOIN repositories r ON r.id = t.repo_id JOIN manifests m ON m.id = t.manifest_id", nil, func(r *sql.Rows) error {
			var name oci.Name
			var t oci.Tag
			var d oci.Digest
			err := r.Scan(&name, &t, &d)
			o.repos[name].tags[t] = d
			return err
		}),
		w.audit.each("SELECT u.id, r.name, u.key, u.size FROM uploads u JOIN repositories r ON r.id = u.repo_id", nil, func(r *sql.Rows) error {
			var id string
			var u observedUpload
			err := r.Scan(&id, &u.repo, &u.key, &u.size)
			o.uploads[id] = u
			return err
		}),
		w.audit.each("SELECT key, size FROM purges", nil, func(r *sql.Rows) error {
			var key string
			var size int64
			err := r.Scan(&key, &size)
			o.purges[key] = size
			return err
		}),
		w.audit.each("SELECT l.holder, l.expires_at, coalesce(d.digest, '') FROM leases l LEFT JOIN lease_digests d ON d.holder = l.holder AND d.expires_at = l.expires_at ORDER BY 1, 3", nil, func(r *sql.Rows) error {
			var holder string
			var l leaseModel
			var d oci.Digest
			err := r.Scan(&holder, &l.expires, &d)
			l.digests = append(o.leases[holder].digests, d)
			o.leases[holder] = l
			return err
		}),
		w.audit.each("SELECT count(*) FROM reviews", nil, func(r *sql.Rows) error { return r.Scan(&o.reviews) }),
		w.audit.each("SELECT count(*) FROM purges WHERE attempts > 0", nil, func(r *sql.Rows) error { return r.Scan(&o.failing) }),
	)
}

// differs says where the database is not what the model has.
func (m *model) differs(o *observed) error {
	for name := range o.repos {
		if !m.exists(name) {
			return fmt.Errorf("repository %s is there, the model has none", name)
		}
	}
	for name, r := range m.repos {
		if !m.exists(name) {
			continue
		}
		if o.repos[name] == nil {
			return fmt.Errorf("repository %s is missing", name)
		}
		if err := r.differs(o.repos[name]); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	if err := sameKeys("blob", m.blobs, o.blobs); err != nil {
		return err
	}
	if err := sameKeys("upload", m.uploads, o.uploads); err != nil {
		return err
	}
	for id, u := range m.uploads {
		if got := o.uploads[id]; got.repo != u.repo || got.size != int64(len(u.data)) {
			return fmt.Errorf("upload %s of %s has %d durable bytes, want %s with %d", id, got.repo, got.size, u.repo, len(u.data))
		}
	}
	if err := sameKeys("lease", m.leases, o.leases); err != nil {
		return err
	}
	for holder, l := range m.leases {
		want := slices.Clone(l.digests)
		slices.Sort(want)
		if got := o.leases[holder]; got.expires != l.expires || !slices.Equal(got.digests, slices.Compact(want)) {
			return fmt.Errorf("lease of %s is %+v, want %+v", holder, got, l)
		}
	}
	return nil
}

func (r *repoModel) differs(o *observedRepo) error {
	if err := sameKeys("manifest", r.manifests, o.manifests); err != nil {
		return err
	}
	for d, x := range r.manifests {
		if err := x.differs(o.manifests[d]); err != nil {
			return fmt.Errorf("manifest %s: %w", d, err)
		}
	}
	if err := sameKeys("tag", r.tags, o.tags); err != nil {
		return err
	}
	for t, d := range r.tags {
		if o.tags[t] != d {
			return fmt.Errorf("tag %s names %s, want %s", t, o.tags[t], d)
		}
	}
	if err := sameKeys("link", r.links, o.links); err != nil {
		return err
	}
	for d, l := range r.links {
		if o.links[d] != l.hidden {
			return fmt.Errorf("link of %s: hidden is %v, want %v", d, o.links[d], l.hidden)
		}
	}
	return nil
}

func (x *manifestModel) differs(o *observedManifest) error {
	switch {
	case !bytes.Equal(o.content, x.content.raw):
		return errors.New("its content is another")
	case o.trashed == x.living:
		return fmt.Errorf("in the trash: %v, want living: %v", o.trashed, x.living)
	case o.loose != (x.loose != 0):
		return fmt.Errorf("loose: %v, want since %d", o.loose, x.loose)
	case o.orphan != (x.orphanAt != 0):
		return fmt.Errorf("orphan: %v, want since %d", o.orphan, x.orphanAt)
	case o.trashedAt != x.trashedAt || o.cause != x.cause || !slices.Equal(o.trashTags, x.trashTags):
		return fmt.Errorf("in the trash since %d because of %q with %v, want %d, %q, %v", o.trashedAt, o.cause, o.trashTags, x.trashedAt, x.cause, x.trashTags)
	}
	return sameKeys("blob bound to it", x.edges, o.edges)
}

func sameKeys[K ~string, A, B any](what string, want map[K]A, got map[K]B) error {
	for k := range want {
		if _, ok := got[k]; !ok {
			return fmt.Errorf("%s %s is missing", what, k)
		}
	}
	for k := range got {
		if _, ok := want[k]; !ok {
			return fmt.Errorf("%s %s should not be there", what, k)
		}
	}
	return nil
}
