// Package index owns every SQL statement of the node: which blobs the cache
// has, which manifest needs which blob, what names were resolved to, what is
// pinned, and what an upstream lets anybody read.
//
//	blobs      a row per blob that the cache has bytes of, or is about to have
//	           (the row comes before the bytes and goes before them);
//	           state: partial → complete, either → claimed and back;
//	           version counts every change of state and every use
//	edges      parent → child: index → "manifest", manifest → "config", "layer",
//	           any → "subject"; kept until nothing below the parent is cached,
//	           so that what a container runs is traced to its layers even when
//	           the manifest itself has left the cache
//	chains     chain ID of a config's root file system → config
//	names      (namespace, repository, tag) → digest, as last resolved
//	pins       what a person pinned, by reference; pin_roots: its digests
//	grants     (namespace, repository, digest) that needed no credentials, and
//	           when that was last confirmed
//	origins    (digest, namespace): the upstreams on whose behalf, and as whose
//	           content, the bytes of a blob came here
//
// The cache can be fetched again and so can all that is here: a database that
// cannot be read is moved aside and rebuilt. It refuses: a second process on
// the same directory, a claim on a blob that changed since it was judged or
// that a pin needs, and the removal of a row whose claim does not stand.
package index
