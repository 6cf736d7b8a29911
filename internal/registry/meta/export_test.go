package meta

import (
	"context"
	"errors"

	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/sqldb"
)

// TakeOverAndRemovePart is what a run does that has found a broken push, if the push
// is taken over before the run writes.
func TakeOverAndRemovePart(s *Store, p Push) error {
	ctx := context.Background()
	st, err := s.beginStage(ctx, p)
	if err != nil {
		return err
	}
	defer s.pushes.remove(st.id)
	return s.db.Maintain(ctx, func(tx *sqldb.Tx) error { return s.dropStagedPart(tx, st.id) })
}

// Stage prepares the push of a large manifest, and returns the manifest's id and what
// ends the push before it is served.
func Stage(s *Store, p Push) (id int64, unstage func(), err error) {
	st, err := s.beginStage(context.Background(), p)
	if err == nil {
		err = s.writeStage(context.Background(), p, st, p.refs())
	}
	return st.id, func() { s.endStage(context.Background(), st) }, err
}

// RemovePart is one transaction of the removal of a broken push.
func RemovePart(s *Store, id int64) error {
	return s.db.Maintain(context.Background(), func(tx *sqldb.Tx) error { return s.dropStagedPart(tx, id) })
}

// UnderWay has a push or a restore of a manifest count as under way until leave.
func UnderWay(s *Store, id int64) (leave func()) {
	s.roots.add(id)
	return func() { s.roots.remove(id) }
}

// LeavesKin finds no kin left and then leaves some, of a manifest, in one commit. It
// returns whether the store knows of them.
func LeavesKin(s *Store, repo, id int64) (known bool, err error) {
	err = s.db.Write(context.Background(), func(tx *sqldb.Tx) error {
		return errors.Join(s.noKinLeft(tx), s.queueKinOf(tx, kinship{repoID: repo}, sqldb.List([]int64{id})))
	})
	return s.kinLeft.Load(), err
}

// NotedTooLate lists the digests that a staged push notes as wanted in a later part
// than that in which it looks for them.
func NotedTooLate(p Push) (late []oci.Digest) {
	noted := map[string]int{}
	for i, d := range p.wanted() {
		if _, twice := noted[d]; !twice {
			noted[d] = i / stageMax
		}
	}
	looked := map[oci.Digest]int{} // for the last time
	for i, r := range p.refs() {
		looked[r.Digest] = i / stageMax
	}
	for d, i := range looked {
		if part, wanted := noted[string(d)]; wanted && part > i {
			late = append(late, d)
		}
	}
	return late
}

// StageMax is how many digests a manifest names that is pushed in one transaction.
const StageMax = stageMax

// Parts is how much a staged push looks for, and how much it notes.
func Parts(p Push) (refs, wanted int) { return len(p.refs()), len(p.wanted()) }

// CountWanted is how many digests are noted that a manifest wants.
func (s *Store) CountWanted(ctx context.Context, id int64) (n int, err error) {
	err = s.db.Read(ctx, func(tx *sqldb.Tx) error {
		return tx.Row("SELECT count(*) FROM manifest_children WHERE manifest_id = ?", id).Scan(&n)
	})
	return n, err
}

// ListChunk is how many rows a listing looks at in one go.
const ListChunk = listChunk

// ClientsWait reports that a client's write waits for its turn.
func (s *Store) ClientsWait() bool { clients, _ := s.db.Waiting(); return clients > 0 }
