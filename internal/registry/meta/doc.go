// Package meta owns the registry's metadata: every SQL statement of the
// registry is here, and so are the rules that tie references, reviews and
// deletions together in one transaction each.
//
//	repositories ─┬─ links ──── blobs            a link makes a repository serve a blob (R12)
//	              │    ▲
//	              │    └── manifest_blobs        edges: a manifest needs a link; the foreign key
//	              ├─ manifests ─┘                refuses to remove a link that an edge names
//	              │    ├── manifest_children     edges index → child, by digest: children may be missing
//	              │    ├── (subject)             edge referrer → subject, by digest
//	              │    └── trash                 one row for each trashed manifest, with its tags' names
//	              ├─ tags ─ manifests
//	              └─ uploads                     each owns a storage key until it hands it on
//
//	stranded ── tags                             tags named after a manifest that was deleted (sha256-….sig)
//	leases ── lease_digests                      digests that stay, with all below them
//	nodes ─┬─ node_uses                          what agents have reported; each node holds a lease
//	       └─ node_runs                          the images of it, apart since they may be megabytes
//	preheats ── preheat_nodes; preheat_rules     images that nodes fetch ahead, and what pushes begin one
//	kin                                          manifests some of whose children and referrers are to be settled or restored
//	staged                                       manifests on their way in that name too much for one transaction
//	unread                                       manifests of an earlier version whose mentions are to be noted at the start
//	reviews                                      what an event has put at risk: link, blob or manifest
//	purges                                       storage keys that no row names any more
//	runs ── run_kept, run_events; deletions      what was done, by whom and why
//	schedules, checks, clock
//	identity                                     the mark that the storage has too (R15)
//
// Invariants that hold after every commit:
//
//   - A blob's bytes are named by exactly one of uploads.key, blobs.key and
//     purges.key. The row is there before the first byte and until the last
//     (but a loss of power may forget the row of an upload).
//   - manifest_blobs names links of the manifest's own repository only, and a
//     living manifest's links are visible and have their bytes.
//   - A link with no living and no trashed manifest has a review, and so has a
//     blob with no link, and a living manifest whose index or subject was
//     deleted (an orphan) and that nothing else keeps. A push, an index or a
//     subject makes an orphan one no longer; a tag does not.
//   - manifest_blobs.living says whether the manifest is out of the trash, or staged.
//   - A manifest is served, has a row in trash, or has one in staged.
//     trashed_at is NULL exactly where it is served.
//   - touched_at of a link or blob is not before the last time its presence was
//     confirmed to a client while nothing referenced it, nor before it lost its
//     last living reference. The window counts from it (R3).
//   - loose_at of a manifest is NULL exactly while a tag, a living index or its
//     living subject keeps it, or while it is in the trash. Only children and
//     referrers that a row of kin has yet to reach may lag behind: see kinMax.
//
// No statement reads all of a table that grows, and no transaction of a request
// or of a collection does work without a bound. Listings have connections of
// their own and read in pieces (R17).
//
// version columns are the optimistic lock (R4): everything that confirms,
// references or revives a row raises its version, and the collector's claim
// names the version that was judged and repeats the judgement's conditions in
// the same statement.
//
// It refuses: to answer from a cache that a commit has made stale, to count as
// removed what the claim did not match, and any clock but the database's (R11).
package meta
