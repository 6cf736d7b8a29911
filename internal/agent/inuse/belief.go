package inuse

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/fairway-registry/fairway/internal/oci"
)

// held is something believed. missing is when the first reading that did not
// have it was begun; zero: the last one had it. One that does not have it either
// ends the belief, if it was begun apart from that or more.
type held[T any] struct {
	value   T
	missing time.Time
}

// belief is what is believed of one source. It is pure: apply takes readings
// in the order in which they were asked for, each begun after the one before
// had ended.
type belief struct {
	apart      time.Duration // see Options.Confirm
	containers map[string]held[Container]
	images     map[string]held[Image]
	busy       map[oci.Digest]held[oci.Digest]
}

// apply takes one full reading, begun at the given time, and reports whether
// something that it lacks is still believed, so that another reading has to
// confirm the loss.
func (b *belief) apply(s Snapshot, at time.Time) (doubt bool) {
	containers := make(map[string]Container, len(s.Containers))
	for _, c := range s.Containers {
		key := containerKey(c)
		if was, ok := b.containers[key]; ok {
			c = remember(c, was.value)
		}
		containers[key] = c
	}
	images := make(map[string]Image, len(s.Images))
	for _, i := range s.Images {
		images[imageKey(i)] = i
	}
	busy := make(map[oci.Digest]oci.Digest, len(s.Busy))
	for _, d := range s.Busy {
		busy[d] = d
	}
	var c, i, d bool
	b.containers, c = merge(b.containers, containers, at, b.apart)
	b.images, i = merge(b.images, images, at, b.apart)
	b.busy, d = merge(b.busy, busy, at, b.apart)
	return c || i || d
}

// interrupted forgets which losses were seen once: readings before and after a
// time without answers do not confirm one another.
func (b *belief) interrupted() {
	seen(b.containers)
	seen(b.images)
	seen(b.busy)
}

func seen[K comparable, T any](m map[K]held[T]) {
	for k, h := range m {
		h.missing = time.Time{}
		m[k] = h
	}
}

func merge[K comparable, T any](was map[K]held[T], now map[K]T, at time.Time, apart time.Duration) (next map[K]held[T], doubt bool) {
	next = make(map[K]held[T], len(now))
	for k, v := range now {
		next[k] = held[T]{value: v}
	}
	for k, h := range was {
		if _, ok := now[k]; ok {
			continue
		}
		switch {
		case h.missing.IsZero():
			h.missing = at
		case at.Sub(h.missing) >= apart:
			continue
		}
		next[k], doubt = h, true
	}
	return next, doubt
}

// remember keeps what was known of the same container before: what its root
// file system was made of cannot change, although a runtime that has lost the
// image's manifest may no longer know it.
func remember(now, before Container) Container {
	now.Digests = union(now.Digests, before.Digests)
	now.ChainIDs = union(now.ChainIDs, before.ChainIDs)
	now.Blobs = union(now.Blobs, before.Blobs)
	return now
}

func union(a, b []oci.Digest) []oci.Digest {
	all := slices.Clip(a)
	for _, d := range b {
		if !slices.Contains(a, d) {
			all = append(all, d)
		}
	}
	return all
}

// containerKey tells a container from another that was made later under the
// same ID.
func containerKey(c Container) string {
	return c.Namespace + "\x00" + c.ID + "\x00" + c.Since.UTC().Format("20060102150405.000000000")
}

// imageKey contains what the image consists of: a name that leads elsewhere
// now is a loss of what it led to.
func imageKey(i Image) string {
	var k strings.Builder
	k.WriteString(i.Namespace + "\x00" + i.Name)
	for _, list := range [][]oci.Digest{i.Digests, i.Blobs} {
		k.WriteByte(0)
		for _, d := range slices.Sorted(slices.Values(list)) {
			k.WriteString(string(d))
		}
	}
	return k.String()
}

func sortedValues[K ~string, T any](m map[K]held[T]) []T {
	all := make([]T, 0, len(m))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		all = append(all, m[k].value)
	}
	return all
}

// trace lets what one source knows of a container serve another source that
// sees the same container and cannot trace it: Docker's and CRI's containers
// are containerd's, too. Only IDs that are made at random say that it is the same.
func trace(all []Container) {
	traced := map[string]Container{}
	for _, c := range all {
		if len(c.ID) >= 32 && (len(c.Digests) > 0 || len(c.ChainIDs) > 0) {
			traced[c.ID] = c
		}
	}
	for i, c := range all {
		if known, ok := traced[c.ID]; ok && len(c.Digests) == 0 && len(c.ChainIDs) == 0 {
			all[i] = remember(c, known)
		}
	}
}
