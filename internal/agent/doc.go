// Package agent assembles a node out of its parts: the cache and its index, the
// drivers that ask the runtimes what runs, the mirror they pull through, the
// eviction, the reports to the registry, and the admin API.
//
// It owns their order: the map from containers to blobs is rebuilt and the
// runtimes have answered before anything is evicted, and what pulls need is
// closed last. It refuses to open a cache that another process has open, and to
// listen where strangers could reach it unless the configuration says so.
package agent
