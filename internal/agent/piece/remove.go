package piece

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"

	"github.com/fairway-registry/fairway/internal/agent/index"
	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
)

// Judged is a blob with the version that was judged.
type Judged = index.Judged

// Claim begins the removal of a blob that has the version which was judged.
// Conflict if it has a handle, or a use that is younger than the judgement, or
// a pin, or another claim.
func (s *Store) Claim(ctx context.Context, d oci.Digest, version int64) (Claim, error) {
	claims, errs := s.ClaimAll(ctx, []Judged{{Digest: d, Version: version}})
	return claims[0], errs[0]
}

// ClaimAll is Claim for many blobs at once. Each has its claim or its error, and
// none stops the others.
func (s *Store) ClaimAll(ctx context.Context, all []Judged) (claims []Claim, errs []error) {
	claims, errs = make([]Claim, len(all)), make([]error, len(all))
	fail := func(err error) ([]Claim, []error) {
		for i, b := range all {
			if errs[i] == nil {
				errs[i] = fmt.Errorf("claim %s: %w", b.Digest, err)
			}
		}
		return claims, errs
	}
	// No use may be on its way to the row: it would raise the version of the claim.
	s.flushMu.Lock()
	defer s.flushMu.Unlock()
	// On a full disk it may stay in memory, where seize sees it.
	if err := s.flushLocked(ctx); err != nil && !errors.Is(err, fault.Full) {
		return fail(err)
	}
	var seized []Judged
	var at, void []int // in all: of these, and of those whose rows have a claim that is over
	for i, b := range all {
		e, err := s.seize(b.Digest, true)
		if err != nil {
			errs[i] = fmt.Errorf("claim %s: %w", b.Digest, err)
			continue
		}
		defer s.free(e)
		if s.isClaimedUnnoted(b.Digest) {
			errs[i] = fault.New(fault.Conflict, "%s is claimed already", b.Digest)
			continue
		}
		if s.isVoid(b.Digest) { // its end could not be written just now
			void = append(void, i)
			continue
		}
		seized, at = append(seized, b), append(at, i)
	}
	done, err := s.index.ClaimAll(ctx, seized)
	if errors.Is(err, fault.Full) {
		void, done, err = append(void, at...), nil, nil
	}
	if err != nil {
		return fail(err)
	}
	for _, i := range void {
		claims[i], errs[i] = s.claimUnnoted(ctx, all[i])
	}
	for i, one := range done {
		if errs[at[i]] = one.Err; one.Err == nil {
			claims[at[i]] = s.claimed(one.Blob, true)
		}
	}
	return claims, errs
}

// claimUnnoted claims a blob in memory only.
func (s *Store) claimUnnoted(ctx context.Context, b Judged) (Claim, error) {
	row, err := s.index.Removable(ctx, b.Digest, b.Version)
	if err != nil {
		return Claim{}, err
	}
	if s.mu.Lock(); s.real(row).State == index.Claimed {
		err = fault.New(fault.Conflict, "%s is claimed already", b.Digest)
	}
	if s.mu.Unlock(); err != nil {
		return Claim{}, err
	}
	return s.claimed(row, false), nil
}

// claimed counts a claim. One that is not noted in its row is in memory only.
func (s *Store) claimed(b index.Blob, noted bool) Claim {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !noted {
		s.unnoted[b.Digest] = b.Version
	}
	s.totals.Claimed += s.takes(b.Digest, b.Size)
	s.step("claimed")
	return Claim{Digest: b.Digest, Version: b.Version}
}

// Remove removes a blob whose claim stands, and returns the bytes of disk that
// came free. Conflict if somebody opened it since, or pinned it. The row goes
// before the bytes.
func (s *Store) Remove(ctx context.Context, c Claim) (freed int64, err error) {
	one, err := s.RemoveAll(ctx, []Claim{c}, func() bool { return true })
	if err != nil {
		return 0, err
	}
	return one[0].Freed, one[0].Err
}

// Removed is what became of a claim: the bytes of disk that came free, and why the
// blob, or a part of its files or its row, stays.
type Removed struct {
	Freed int64
	Err   error
}

// ErrOutdated is index.ErrOutdated.
var ErrOutdated = index.ErrOutdated

// RemoveAll is Remove for many blobs at once, none of which stops the others. No
// blob is removed, and the error is ErrOutdated, if still is false when all of
// them are about to go; it is that of each if others of them went before.
func (s *Store) RemoveAll(ctx context.Context, all []Claim, still func() bool) ([]Removed, error) {
	if err := s.paired(); err != nil {
		return nil, err
	}
	removed := make([]Removed, len(all))
	var seized []index.Judged
	var entries []*entry
	var at []int // of these in all
	gone := false
	defer func() {
		for _, e := range entries {
			if e != nil {
				s.free(e)
			}
		}
	}()
	for i, c := range all {
		e, err := s.seize(c.Digest, false)
		switch {
		case err != nil:
			removed[i].Err = fmt.Errorf("remove %s: %w", c.Digest, err)
		case s.isOver(c):
			removed[i].Err = fault.New(fault.Conflict, "the claim on %s was given up", c.Digest)
			s.free(e)
		case s.isUnnoted(c):
			removed[i] = s.removeBytesFirst(ctx, c, false, still)
			gone = gone || removed[i].Err == nil
			s.free(e)
		default:
			seized, entries, at = append(seized, index.Judged(c)), append(entries, e), append(at, i)
		}
	}
	if len(seized) == 0 {
		return removed, nil
	}
	done, err := s.index.RemoveAll(ctx, seized, still)
	if errors.Is(err, fault.Full) {
		for i, b := range seized {
			removed[at[i]] = s.removeBytesFirst(ctx, Claim(b), true, still)
			s.free(entries[i])
			entries[i] = nil
		}
		return removed, nil
	}
	if err != nil && !gone {
		return nil, err
	}
	if err != nil {
		for _, i := range at {
			removed[i].Err = err
		}
		return removed, nil
	}
	var unlinks errgroup.Group
	unlinks.SetLimit(unlinksMax)
	for i, one := range done {
		r, e := &removed[at[i]], entries[i]
		entries[i] = nil
		if r.Err = one.Err; one.Err != nil {
			s.free(e)
			continue
		}
		unlinks.Go(func() error {
			r.Freed, r.Err = s.removeBytes(seized[i].Digest, one.Blob.Size)
			s.free(e)
			return nil
		})
	}
	return removed, unlinks.Wait()
}

// unlinksMax is how many blobs' files are removed at once. To unlink a file whose content is
// on the disk takes ten times as long as its row, most of it a wait.
const unlinksMax = 4

// removeBytes removes the files of a blob whose row is gone.
func (s *Store) removeBytes(d oci.Digest, size int64) (freed int64, err error) {
	s.step("row removed")
	if freed, err = s.freeFiles(d); err != nil {
		// Without a row nobody takes them for a blob. They count as used until the
		// next start removes them, and not as claimed: for the judge that is gone.
		s.unclaimed(d, size)
		return freed, err
	}
	s.removed(d, size, true)
	return freed, nil
}

// removeBytesFirst removes a blob whose row cannot be changed before there is room,
// for the disk is full. A crash in between leaves a row without files, which the
// next start drops. noted says whether the claim is in the row.
func (s *Store) removeBytesFirst(ctx context.Context, c Claim, noted bool, still func() bool) (r Removed) {
	b, err := s.index.Removable(ctx, c.Digest, c.Version)
	if err != nil {
		return Removed{Err: err}
	}
	if !still() {
		return Removed{Err: ErrOutdated}
	}
	freed, err := s.freeFiles(c.Digest)
	if err != nil {
		return Removed{Freed: freed, Err: err}
	}
	s.step("data removed first")
	if !noted {
		s.forgetUnnoted(c.Digest, b.Size)
	}
	if err := s.index.Forget(ctx, c.Digest); err != nil {
		// Whoever opens it finds its files gone, and has the row go then.
		s.emptied(c.Digest, b.Size, noted)
		return Removed{Freed: freed, Err: err}
	}
	s.removed(c.Digest, b.Size, noted)
	return Removed{Freed: freed}
}

// freeFiles removes the files of a blob and returns the bytes of disk that came free,
// also if one of them stays.
func (s *Store) freeFiles(d oci.Digest) (freed int64, err error) {
	before := s.onDisk(d)
	if err = s.removeFiles(d); err != nil {
		err = fmt.Errorf("remove the files of %s: %w", d, err)
	}
	return max(before-s.onDisk(d), 0), err
}

// emptied takes the bytes of a blob whose files are gone out of the accounts. Its row
// is still there.
func (s *Store) emptied(d oci.Digest, size int64, claimed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if claimed {
		s.totals.Claimed -= s.takes(d, size)
	}
	s.totals.Used -= s.takes(d, size)
	s.partial[d] = held{}
}

// removed takes a blob that is gone out of the accounts.
func (s *Store) removed(d oci.Digest, size int64, claimed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if claimed {
		s.totals.Claimed -= s.takes(d, size)
	}
	s.unreserve(d, size)
}

func (s *Store) isUnnoted(c Claim) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	version, ok := s.unnoted[c.Digest]
	return ok && version == c.Version
}

func (s *Store) isClaimedUnnoted(d oci.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.unnoted[d]
	return ok
}

// forgetUnnoted ends a claim that is not in the row, if there is one.
func (s *Store) forgetUnnoted(d oci.Digest, size int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.unnoted[d]; ok {
		delete(s.unnoted, d)
		s.totals.Claimed -= s.takes(d, size)
	}
}

// Unclaim gives a claim up. It is no error if the claim does not stand any more.
func (s *Store) Unclaim(ctx context.Context, c Claim) error {
	if s.isUnnoted(c) {
		if b, err := s.index.Blob(ctx, c.Digest); err == nil {
			s.forgetUnnoted(c.Digest, b.Size)
		}
		return nil
	}
	b, err := s.index.Unclaim(ctx, c.Digest, c.Version)
	switch {
	case err == nil:
		s.unclaimed(c.Digest, b.Size)
	case errors.Is(err, fault.Conflict):
		return nil
	case errors.Is(err, fault.Full):
		return s.unclaimFull(ctx, c)
	}
	return err
}

// winBack returns a row without the claim that may be on it.
func (s *Store) winBack(ctx context.Context, row index.Blob) (index.Blob, error) {
	s.forgetUnnoted(row.Digest, row.Size)
	for {
		s.mu.Lock()
		row = s.real(row)
		s.mu.Unlock()
		if row.State != index.Claimed {
			return row, nil
		}
		back, err := s.index.Unclaim(ctx, row.Digest, row.Version)
		switch {
		case err == nil:
			s.unclaimed(row.Digest, row.Size)
			return back, nil
		case errors.Is(err, fault.Full):
			s.avoid(row)
			continue
		case !errors.Is(err, fault.Conflict):
			return row, err
		}
		// Whoever claimed it has just given it up.
		if row, err = s.index.Blob(ctx, row.Digest); err != nil {
			return row, err
		}
	}
}

// seize occupies the place of a blob that nobody has open, so that nobody opens
// it until free. idle says whether one that was left a short while ago may be
// closed for it; a claimed blob cannot be such a one.
func (s *Store) seize(d oci.Digest, idle bool) (*entry, error) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil, ErrClosed
	}
	e := s.open[d]
	_, used := s.touched[d]
	if e != nil && (e.busy != nil || e.refs > 0 || !idle) || used {
		s.mu.Unlock()
		return nil, fault.New(fault.Conflict, "%s is in use", d)
	}
	if e == nil {
		e = s.occupy(d)
	} else {
		s.takeIdle(e)
	}
	s.mu.Unlock()
	if err := e.files.close(); err != nil {
		s.log.Error("a cached blob was not closed well", "digest", d, "error", err)
	}
	return e, nil
}

func (s *Store) free(e *entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, e.d)
	s.vacate(e)
}
