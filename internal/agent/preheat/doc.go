// Package preheat owns images that this node fetches before anybody needs them,
// because the registry asks for it.
//
// It waits at the registry for a task, does it, says how far it is, and waits
// for the next: one image at a time, a few blobs of it at once. It remembers
// nothing. The registry tells of a task again until it has heard that it is
// over, and what a life before has brought is in the cache.
//
// Manifests come by way of the mirror and blobs by the one download that a
// runtime would share, so that a pull finds all that it needs, the right to it
// included. Of an index it is the image that a runtime here would choose, unless
// all are asked for. What is fetched counts as used once, which keeps it warm.
//
// Nothing that anybody may need makes way: the image has to fit below the high
// watermarks of the cache, for which cold data alone is evicted. Where it does
// not fit, the task is skipped before the first byte.
package preheat
