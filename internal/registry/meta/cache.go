package meta

import (
	"hash/maphash"
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// cache is exact: what it answers is what the database would answer. That
// works because one process owns the database and every commit, before anyone
// hears of it, drops the keys that it changed.
//
// A reader that misses takes a token before it asks the database and stores
// what it found with put, which refuses if anything in the shard was dropped
// since: the answer may be older than that commit.
type cache[V any] struct {
	seed   maphash.Seed
	shards [cacheShards]cacheShard[V]
	cost   func(V) int
}

const cacheShards = 32

type cacheShard[V any] struct {
	mu    sync.Mutex
	epoch uint64
	lru   *simplelru.LRU[string, V]
	bytes int
	max   int
}

// cacheKey addresses one thing in one repository.
func cacheKey[A, B ~string](repo A, what B) string { return string(repo) + "\x00" + string(what) }

func newCache[V any](maxBytes int, cost func(V) int) *cache[V] {
	c := &cache[V]{seed: maphash.MakeSeed(), cost: cost}
	for i := range c.shards {
		s := &c.shards[i]
		s.max = maxBytes / cacheShards
		lru, err := simplelru.NewLRU(1<<30, func(k string, v V) { s.bytes -= len(k) + cost(v) })
		if err != nil {
			panic(err) // only for a size below 1
		}
		s.lru = lru
	}
	return c
}

func (c *cache[V]) shard(key string) *cacheShard[V] {
	return &c.shards[maphash.String(c.seed, key)%cacheShards]
}

// get returns the value for key, or a token for put.
func (c *cache[V]) get(key string) (v V, ok bool, token uint64) {
	s := c.shard(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	v, ok = s.lru.Get(key)
	return v, ok, s.epoch
}

func (c *cache[V]) put(key string, v V, token uint64) {
	s := c.shard(key)
	size := len(key) + c.cost(v)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.epoch != token || size > s.max/4 {
		return
	}
	s.lru.Remove(key)
	s.lru.Add(key, v)
	s.bytes += size
	for s.bytes > s.max {
		if _, _, ok := s.lru.RemoveOldest(); !ok {
			return
		}
	}
}

// dropAll is drop for every key.
func (c *cache[V]) dropAll() {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		s.epoch++
		s.lru.Purge()
		s.mu.Unlock()
	}
}

// drop is called after a commit and before its success is told.
func (c *cache[V]) drop(keys ...string) {
	for _, key := range keys {
		s := c.shard(key)
		s.mu.Lock()
		s.epoch++
		s.lru.Remove(key)
		s.mu.Unlock()
	}
}
