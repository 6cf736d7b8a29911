// Package gc owns garbage collection: what is garbage, when it goes, and why.
//
// One shape: a judge, which is pure, gives each thing a verdict with a reason
// from facts, a policy and the time; a runner reads what is due, has it judged
// and applies the verdicts in batches. Each act is checked a second time by the
// metadata store, whose claim repeats the judge's conditions against what is
// there by then (R4). A dry run judges with the same judge and stops before
// applying.
//
//	           DELETE, untagged for D,            trash time over
//	           index or subject deleted           no lease, no living index
//	manifest ──────────────────────────▶ trashed ─────────────────────────▶ gone
//	(living) ◀────────────────────────── restore, or PUT again
//
//	           no manifest, living or trashed,    no link left, window over
//	           for the window
//	link ──────────────────────────────▶ gone;  blob ──────────▶ purge queue ──▶ bytes deleted
//
//	upload ── idle for the window ─────▶ gone, its key to the purge queue
//
// What a run looks at is what events have put into queues: the review queue
// (links, blobs, orphaned manifests), the trash, the index of untagged
// manifests, the uploads by age and the purge queue. Cost follows the garbage
// and never the registry (R8).
//
// A run works in passes. The first takes what was due when the run began; each
// further one takes only what the pass before has uncovered (a manifest leaves
// the trash, so its links come up; a link goes, so its blob comes up). So a run
// ends, however busy the registry is, and what it uncovers goes in the same run.
//
// It refuses: to hold a lock or a transaction across storage I/O (R5), to retry
// a lost claim (R4), to count bytes that the store has not confirmed (R9), and
// to delete on any doubt (R14).
package gc
