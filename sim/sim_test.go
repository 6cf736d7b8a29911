// Package sim proves by simulation what the registry promises: random
// histories of operations, collections and crashes run against the real
// metadata store, the real blob store and the real collector, and against a
// model of maps and loops. After each step both are compared (R1–R7).
//
// A history is a function of its seed. A failing one prints its operations and
// the command that replays it.
package sim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/blob/blobtest"
	"github.com/fairway-registry/fairway/internal/registry/check"
	"github.com/fairway-registry/fairway/internal/registry/gc"
	"github.com/fairway-registry/fairway/internal/registry/meta"
)

// sim is one history under way.
type sim struct {
	w     *world
	model *model
	rng   *rand.Rand
	pool  *pool
	log   []string

	crashes float64 // probability that an operation is cut off
	armed   string  // the crash that waits, for the log
	disturb float64 // probability that clients work in the middle of a run
	busy    bool    // they do now
	hold    func()  // not nil: the test arms crashes, and is told of the end of each operation
}

// violation ends a history.
type violation struct{ error }

func (s *sim) fail(format string, args ...any) { panic(violation{fmt.Errorf(format, args...)}) }

func (s *sim) note(format string, args ...any) {
	s.log = append(s.log, fmt.Sprintf("%d  ", s.now()-1_700_000_000_000)+fmt.Sprintf(format, args...))
}

func (s *sim) now() int64 { return s.w.clock.Load() }

func (s *sim) chance(p float64) bool { return s.rng.Float64() < p }

func pick[T any](s *sim, from ...T) T { return from[s.rng.IntN(len(from))] }

// arm has the process end at a random point of the next operation.
func (s *sim) arm(long bool) {
	s.armed = ""
	if s.hold != nil || !s.chance(s.crashes) {
		return
	}
	statements, objects := 14, 4
	if long {
		statements, objects = 60, 8
	}
	if s.chance(0.6) {
		n, after := 1+s.rng.IntN(statements), s.chance(0.5)
		s.w.fuse.arm(n, after)
		s.armed = fmt.Sprintf(" [ends at database statement %d, after it: %v]", n, after)
		return
	}
	n, fate := 1+s.rng.IntN(objects), pick(s, blobtest.CrashBefore, blobtest.CrashMid, blobtest.CrashAfter)
	from := s.w.faulty.Count()
	s.w.faulty.Plan(blobtest.Nth(from+n, fate))
	s.armed = fmt.Sprintf(" [ends at storage operation %d, fate %d]", n, fate)
}

func (s *sim) disarm() {
	if s.busy {
		return // the plan in force is the one that has brought us here
	}
	if s.hold != nil {
		s.hold()
		return
	}
	s.w.fuse.arm(0, false)
	s.w.faulty.Plan(nil)
	s.armed = ""
}

// do carries out one operation of a client. apply tells the model of its
// success and returns the kind of error that is due instead, if one is. The
// result says whether the client got the answer that it hoped for.
func (s *sim) do(what string, act func(context.Context) error, apply func(*model) fault.Kind) bool {
	s.arm(false)
	s.note("%s%s", what, s.armed)
	after := s.model.clone()
	want := apply(after)
	err := act(context.Background())
	if s.w.crashed() {
		s.survive(err, want, after)
		return false
	}
	s.disarm()
	switch {
	case want == "" && err != nil:
		s.fail("R4, R5: %s: unexpected error: %v", what, err)
	case want != "" && !errors.Is(err, want):
		s.fail("%s: the error is %v, want %s", what, err, want)
	}
	if want == "" {
		s.model = after
	}
	s.model.forget()
	s.check()
	return want == ""
}

// survive reopens after a crash. What was acknowledged must be there; what was
// not may be there, and the model learns which.
func (s *sim) survive(err error, want fault.Kind, after *model) {
	s.note("  crashed; the client saw: %v", err)
	s.reopen(true)
	seen := s.observe()
	before := s.model
	before.forget()
	after.forget()
	if err == nil && want == "" {
		before = after // it was acknowledged
	}
	if first := before.differs(seen); first != nil {
		if second := after.differs(seen); want != "" || second != nil {
			s.fail("R7: after a crash neither as before (%v) nor as after (%v)", first, second)
		}
		before = after
	}
	s.model = before
	s.check()
	s.checkAll()
	s.checkDisk()
}

// checkDisk holds what is really there to what was recorded.
func (s *sim) checkDisk() map[string]int64 {
	found, err := s.w.walk()
	if err != nil {
		s.fail("walk: %v", err)
	}
	keys := map[string]bool{}
	for _, key := range s.w.objects.keys() {
		keys[key] = true
	}
	if err := sameKeys("object", keys, found); err != nil {
		s.fail("the disk is not as recorded: %v", err)
	}
	return found
}

func (s *sim) reopen(crash bool) {
	loss := crash && s.chance(0.5)
	s.note("  reopen (crash %v, power loss %v)", crash, loss)
	if err := s.w.restart(crash, loss); err != nil {
		s.fail("R7: reopen: %v", err)
	}
	s.armed = ""
}

func (s *sim) observe() *observed {
	o, err := s.w.observe()
	if err != nil {
		s.fail("read the database: %v", err)
	}
	return o
}

// check is what holds after each step, as far as it is cheap.
func (s *sim) check() {
	if err := s.w.objects.violation(); err != nil {
		s.fail("%v", err)
	}
	seen := s.observe()
	if err := s.model.differs(seen); err != nil {
		s.fail("%v", err)
	}
	s.checkKeys(seen)
	for range 4 {
		s.probeBlob(pick(s, s.pool.repos...), pick(s, s.pool.blobs...))
		if len(s.pool.manifests) > 0 {
			s.probeManifest(pick(s, s.pool.repos...), pick(s, s.pool.manifests...).digest)
		}
		s.probeTag(pick(s, s.pool.repos...), pick(s, s.pool.tags...))
	}
}

// checkKeys holds storage to R1, R6 and R7: each object has exactly one row,
// and each blob its object.
func (s *sim) checkKeys(seen *observed) {
	named := map[string]string{}
	name := func(key, by string) {
		if other, twice := named[key]; twice {
			s.fail("R6: key %s is named by %s and by %s", key, other, by)
		}
		named[key] = by
	}
	for d, b := range seen.blobs {
		name(b.key, "blob "+string(d))
	}
	for id, u := range seen.uploads {
		name(u.key, "upload "+id)
	}
	for key := range seen.purges {
		name(key, "a purge")
	}
	there := map[string]bool{}
	for _, key := range s.w.objects.keys() {
		there[key] = true
		if named[key] == "" {
			s.fail("R7: object %s is named by no row", key)
		}
	}
	for d, b := range seen.blobs {
		if !there[b.key] {
			s.fail("R1: blob %s has no bytes under %s", d, b.key)
		}
	}
}

// checkAll is what costs more: the bytes of every blob, every answer.
func (s *sim) checkAll() {
	seen := s.observe()
	for d, b := range seen.blobs {
		got, err := s.w.read(b.key)
		if err != nil || !bytes.Equal(got, s.pool.content[d]) || b.size != int64(len(got)) {
			s.fail("R1: blob %s: %d bytes under %s, size %d, want %q: %v", d, len(got), b.key, b.size, s.pool.content[d], err)
		}
	}
	for id, u := range s.model.uploads {
		got, err := s.w.read(seen.uploads[id].key)
		if len(u.data) > 0 && (err != nil || !bytes.HasPrefix(got, u.data)) {
			s.fail("R7: upload %s: %q, want %q: %v", id, got, u.data, err)
		}
	}
	for _, repo := range s.pool.repos {
		for _, d := range s.pool.blobs {
			s.probeBlob(repo, d)
		}
		for _, c := range s.pool.manifests {
			s.probeManifest(repo, c.digest)
		}
		for _, t := range s.pool.tags {
			s.probeTag(repo, t)
		}
		s.probeLists(repo)
	}
	runs, err := s.w.store.Runs(context.Background(), 0, 100)
	if err != nil {
		s.fail("list runs: %v", err)
	}
	for _, r := range runs {
		if r.State == meta.RunRunning {
			s.fail("R7: run %d is left running", r.ID)
		}
	}
}

// probeBlob asks as a pull does, which confirms nothing.
func (s *sim) probeBlob(repo oci.Name, d oci.Digest) {
	b, err := s.w.store.Blob(context.Background(), repo, d)
	if !s.model.look(repo).serves(d) {
		if !errors.Is(err, fault.NotFound) {
			s.fail("R12: %s answers for blob %s, which it must not serve: %v", repo, d, err)
		}
		return
	}
	if err != nil {
		s.fail("R3: %s does not serve blob %s: %v", repo, d, err)
	}
	if got, err := s.w.read(b.Key); err != nil || !bytes.Equal(got, s.pool.content[d]) {
		s.fail("R1: %s serves blob %s with wrong bytes %q: %v", repo, d, got, err)
	}
}

// probeManifest and probeTag ask where the answer confirms nothing: for what
// something keeps, and for what there is not.
func (s *sim) probeManifest(repo oci.Name, d oci.Digest) {
	r := s.model.look(repo)
	if r.lives(d) && r.manifests[d].loose != 0 {
		return
	}
	var want *content
	if r.lives(d) {
		want = r.manifests[d].content
	}
	s.probe(repo, oci.Reference{Digest: d}, want)
}

func (s *sim) probeTag(repo oci.Name, t oci.Tag) {
	r := s.model.look(repo)
	var want *content
	if d, ok := r.tags[t]; ok {
		want = r.manifests[d].content
	}
	s.probe(repo, oci.Reference{Tag: t}, want)
}

func (s *sim) probe(repo oci.Name, ref oci.Reference, want *content) {
	got, err := s.w.store.Manifest(context.Background(), repo, ref)
	switch {
	case want == nil && !errors.Is(err, fault.NotFound):
		s.fail("%s answers for manifest %s, which is deleted or never was: %v", repo, ref, err)
	case want == nil:
	case err != nil:
		s.fail("R2: %s does not serve manifest %s: %v", repo, ref, err)
	case got.Digest != want.digest || !bytes.Equal(got.Content, want.raw):
		s.fail("R2: %s serves %s for %s, want %s", repo, got.Digest, ref, want.digest)
	}
	if want == nil {
		return
	}
	// What lives pulls whole, but for what a client has deleted on purpose.
	r := s.model.look(repo)
	for _, b := range want.parsed.Blobs {
		if !b.Optional && !r.serves(b.Digest) {
			s.fail("R2: %s has manifest %s, and not its blob %s", repo, want.digest, b.Digest)
		}
	}
}

func (s *sim) probeLists(repo oci.Name) {
	ctx := context.Background()
	r := s.model.look(repo)
	tags, _, err := s.w.store.Tags(ctx, repo, "", -1)
	if err != nil && !errors.Is(err, fault.NotFound) {
		s.fail("list tags of %s: %v", repo, err)
	}
	if len(tags) != len(r.tags) {
		s.fail("%s lists the tags %v, want %v", repo, tags, r.tags)
	}
	for _, subject := range s.pool.manifests {
		var want []string
		for d, x := range r.manifests {
			if x.living && x.content.parsed.Subject == subject.digest {
				want = append(want, string(d))
			}
		}
		slices.Sort(want)
		got := []string{}
		for d, err := range s.w.store.Referrers(ctx, repo, subject.digest, "", "") {
			if err != nil {
				s.fail("list referrers: %v", err)
			}
			got = append(got, string(d.Digest))
		}
		if !slices.Equal(got, want) {
			s.fail("%s lists the referrers %v of %s, want %v", repo, got, subject.digest, want)
		}
	}
}

// collect runs a collection, perhaps with a prediction right before it, and
// takes in what it has done.
func (s *sim) collect(p meta.Policy, predict bool) {
	ctx := context.Background()
	var predicted meta.Run
	var items []meta.Deletion
	s.note("collect %s, predict %v", policyText(p), predict)
	if predict {
		before := s.observe()
		var err error
		if predicted, items, err = s.w.gc.DryRun(ctx, p, 1_000_000, nil); err != nil {
			s.fail("dry run: %v", err)
		}
		if err := unchanged(before, s.observe()); err != nil {
			s.fail("a dry run has changed something: %v", err)
		}
	}
	s.w.objects.takeFreed()
	s.arm(true)
	// Now and then a disk that does not delete: that is told, and made up for.
	flaky := s.armed == "" && s.hold == nil && s.crashes > 0 && !predict && s.chance(0.1)
	if flaky {
		s.note("  the first delete of bytes fails")
		s.w.faulty.Plan(blobtest.NthOf(blobtest.OpDelete, 1, blobtest.Fail))
	}
	if s.armed != "" {
		s.note("  %s", s.armed)
	}
	inScope := s.scope(p.Repository)
	var interrupted error
	disturbed := false
	if s.armed == "" && !flaky && !predict && s.hold == nil && !s.busy && s.chance(s.disturb) {
		disturbed = true
		s.interleave(p, inScope, &interrupted)
	}
	run, err := s.w.gc.Start(ctx, p, gc.TriggerManual, "sim")
	if err == nil {
		run, err = s.w.gc.Wait(ctx, run.ID)
	}
	if s.w.crashed() {
		s.note("  crashed in the run: %v", err)
		s.reopen(true)
		freed := s.w.objects.takeFreed()
		if run, err = s.w.store.Run(ctx, run.ID); err == nil && run.FreedBytes > freed {
			s.fail("R9: the run that was cut off counts %d bytes freed, the store gave back %d", run.FreedBytes, freed)
		}
		s.learn(p, inScope, false)
		s.checkAll()
		s.checkDisk()
		return
	}
	s.disarm()
	s.w.fuse.judged(nil)
	if interrupted != nil {
		panic(violation{interrupted})
	}
	if err != nil || run.State != meta.RunDone || run.Failed > 1 || run.Failed == 1 && !flaky {
		s.fail("R4, R5: the run ended as %+v: %v", run, err)
	}
	if failing := s.observe().failing; run.Failed == 1 && failing == 0 {
		s.fail("R9: a delete failed, and nobody will try again")
	}
	if freed := s.w.objects.takeFreed(); freed != run.FreedBytes {
		s.fail("R9: the run counts %d bytes freed, the store gave back %d", run.FreedBytes, freed)
	}
	if predict {
		s.compare(predicted, items, run)
	}
	s.learn(p, inScope, !disturbed)
	if s.chance(0.3) {
		s.checkAll()
	}
}

// interleave has clients at work in the middle of a run: between a judgement
// and its claim, or between a claim and the deletion of the bytes. It is the
// run's own goroutine that waits for them, so a history stays a sequence.
func (s *sim) interleave(p meta.Policy, inScope func(oci.Name) bool, wrong *error) {
	kind, at, n := pick(s, "l", "l", "b", "m", "m", "delete"), pick(s, 1, 1, 1, 2, 3), 0
	clients := func(of, where string) {
		if s.busy || of != kind {
			return
		}
		if n++; n != at {
			return
		}
		s.busy = true
		crashes := s.crashes
		s.crashes = 0
		defer func() {
			s.busy, s.crashes = false, crashes
			if v := recover(); v != nil {
				*wrong = fmt.Errorf("in the middle of a run: %v", v)
			}
		}()
		s.note("  in the middle of the run (%s):", where)
		s.learn(p, inScope, false)
		s.rescue()
		if s.chance(0.5) {
			s.step(true)
		}
		s.note("  the run goes on")
	}
	s.w.fuse.judged(func(of string) { clients(of, "after facts were read of "+of) })
	s.w.faulty.Plan(func(op blobtest.Op) blobtest.Fate {
		if op.Kind == blobtest.OpDelete {
			clients("delete", "before bytes are deleted")
		}
		return blobtest.Pass
	})
}

func (s *sim) learn(p meta.Policy, inScope func(oci.Name) bool, complete bool) {
	if err := s.model.learn(s.observe(), p, inScope, s.now(), complete); err != nil {
		s.fail("%v", err)
	}
	s.model.forget()
	s.check()
}

func (s *sim) scope(pattern string) func(oci.Name) bool {
	return func(name oci.Name) bool {
		return pattern == "" || string(name) == pattern || pattern == "a/*" && strings.HasPrefix(string(name), "a/")
	}
}

func policyText(p meta.Policy) string {
	text := func(d meta.Duration) string { b, _ := d.MarshalText(); return string(b) }
	return fmt.Sprintf("window %s trash %s untagged %s uploads %s in %q", text(p.Window), text(p.Trash), text(p.Untagged), text(p.Uploads), p.Repository)
}

// unchanged compares two looks at the database.
func unchanged(a, b *observed) error {
	switch {
	case len(a.purges) != len(b.purges):
		return errors.New("the purge queue")
	case a.reviews != b.reviews:
		return errors.New("the review queue")
	}
	if err := sameKeys("repository", a.repos, b.repos); err != nil {
		return err
	}
	for name, r := range a.repos {
		if err := errors.Join(sameKeys("link", r.links, b.repos[name].links), sameKeys("manifest", r.manifests, b.repos[name].manifests)); err != nil {
			return err
		}
	}
	return errors.Join(sameKeys("blob", a.blobs, b.blobs), sameKeys("upload", a.uploads, b.uploads))
}

// compare holds a dry run to what the real run right after it did.
func (s *sim) compare(dry meta.Run, items []meta.Deletion, run meta.Run) {
	type figures struct {
		examined, collected, trashed, unlinked, freed, purged, failed int64
		kept                                                          string
	}
	// Total is left out: it is for an estimate of the time that is left.
	of := func(c meta.Counts) figures {
		return figures{c.Examined, c.Collected, c.Trashed, c.Unlinked, c.FreedBytes, c.Purged, c.Failed, fmt.Sprint(c.Kept)}
	}
	if want, got := of(dry.Counts), of(run.Counts); want != got {
		s.fail("dry run: it said %+v, the run did %+v", want, got)
	}
	done, err := s.w.store.Deletions(context.Background(), "", run.ID, 0, 1_000_000)
	if err != nil {
		s.fail("deletions: %v", err)
	}
	text := func(ds []meta.Deletion) []string {
		var out []string
		for _, d := range ds {
			if d.Kind == "link" && s.hidden(oci.Name(d.Repo), oci.Digest(d.Digest)) {
				continue // its record is the client's DELETE
			}
			out = append(out, fmt.Sprintf("%s %s %s@%s %d", d.Kind, d.Act, d.Repo, d.Digest, d.Bytes))
		}
		slices.Sort(out)
		return out
	}
	if want, got := text(items), text(done); !slices.Equal(want, got) {
		s.fail("dry run: it named\n%s\nthe run did\n%s", strings.Join(want, "\n"), strings.Join(got, "\n"))
	}
}

func (s *sim) hidden(repo oci.Name, d oci.Digest) bool {
	l := s.model.look(repo).links[d]
	return l != nil && l.hidden
}

// checker has `fairway check` look: it must find nothing.
func (s *sim) checker() {
	s.note("check")
	ctx := context.Background()
	c := check.New(s.w.store, s.w.faulty, check.Options{})
	r, err := c.Start(ctx, check.Request{Deep: true, Grace: -1, ObjectsPerSecond: -1, BytesPerSecond: -1})
	if err == nil {
		r, err = c.Wait(ctx, r.ID)
	}
	if err != nil || !r.Clean() {
		s.fail("R7: the check is not clean: %+v: %v", r, err)
	}
}

// finish brings the history to rest and holds it to account: what is left is
// what is needed, to the byte.
func (s *sim) finish() {
	s.crashes, s.disturb, s.hold = 0, 0, nil
	s.disarm()
	s.collect(s.anyPolicy(), true) // each history compares a dry run with its run
	s.note("settle")
	s.w.clock.Store(max(s.now(), s.model.leaseEnd) + 3*3600_000)
	for holder := range s.model.leases {
		if !s.do("delete lease of "+holder, func(ctx context.Context) error { return s.w.store.DeleteLease(ctx, holder) },
			func(m *model) fault.Kind { return m.deleteLease(holder, s.now()) }) {
			s.fail("lease of %s cannot be deleted", holder)
		}
	}
	s.rest()
	s.checker()
	for _, repo := range s.pool.repos {
		for _, c := range s.pool.manifests {
			if s.model.look(repo).lives(c.digest) {
				s.do(fmt.Sprintf("delete %s@%s", repo, c.digest), func(ctx context.Context) error {
					return s.w.store.DeleteManifest(ctx, repo, c.digest, "sim")
				}, func(m *model) fault.Kind { return m.deleteManifest(repo, c.digest, s.now()) })
			}
		}
	}
	s.rest()
	if len(s.model.repos)+len(s.model.blobs) != 0 {
		s.fail("no leak: after everything was deleted there is left %+v %+v", s.model.repos, s.model.blobs)
	}
}

// rest collects with no window and no trash until nothing changes.
func (s *sim) rest() {
	p := meta.Policy{}
	for i := 0; ; i++ {
		before := fmt.Sprint(s.tally())
		s.collect(p, true)
		if fmt.Sprint(s.tally()) == before {
			break
		}
		if i == 10 {
			s.fail("no leak: ten runs without an end")
		}
	}
	seen := s.observe()
	if len(seen.purges) != 0 || seen.reviews != 0 || len(seen.uploads) != 0 {
		s.fail("no leak: at rest there are %d purges, %d reviews, %d uploads", len(seen.purges), seen.reviews, len(seen.uploads))
	}
	// What is needed, by the model alone.
	needed := map[oci.Digest]bool{}
	for name, r := range s.model.repos {
		for d, x := range r.manifests {
			if !x.living && !r.indexed(d) || x.orphanAt != 0 && x.loose != 0 {
				s.fail("no leak: manifest %s of %s is left: %+v", d, name, x)
			}
			for b := range x.edges {
				needed[b] = true
			}
		}
		for d := range r.links {
			if !r.needed(d) {
				s.fail("no leak: %s still has blob %s", name, d)
			}
		}
	}
	if err := sameKeys("no leak: blob", needed, seen.blobs); err != nil {
		s.fail("%v", err)
	}
	s.checkAll()
	found := s.checkDisk()
	var want, got int64
	for d := range needed {
		want += int64(len(s.pool.content[d]))
	}
	for _, size := range found {
		got += size
	}
	if len(found) != len(needed) || got != want {
		s.fail("no leak: %d objects with %d bytes are on disk, needed are %d with %d", len(found), got, len(needed), want)
	}
}

// tally is what a run can change.
func (s *sim) tally() []int {
	seen := s.observe()
	t := []int{len(seen.repos), len(seen.blobs), len(seen.uploads), len(seen.purges), seen.reviews}
	for _, r := range seen.repos {
		t = append(t, len(r.links), len(r.manifests))
	}
	slices.Sort(t[5:])
	return t
}
