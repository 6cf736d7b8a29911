package evict

import (
	"time"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/unit"
)

// Limits of the cache. The watermarks are fractions, of the quota and of the
// file system; whichever is passed first starts an eviction.
type Limits struct {
	Quota   int64   // bytes the cache may hold; 0: only the file system limits it
	High    float64 // where eviction starts, at or above
	Low     float64 // where it ends, at or below
	MinFree int64   // bytes kept free on the file system
	// Floor is what the cache keeps, in bytes, however full others make the file
	// system. The quota is not bound by it.
	Floor int64

	Warm       time.Duration // used within it: warm
	DeletedTTL time.Duration // an image's blobs go so long after it was deleted upstream; 0: only under pressure
	Abandoned  time.Duration // a partial download that nobody went on with for so long is cold
}

// Defaults of the durations, for who has no opinion.
const (
	DefaultWarm       = 24 * time.Hour
	DefaultDeletedTTL = 24 * time.Hour
	DefaultAbandoned  = time.Hour
)

// Validate refuses limits by which eviction would flap, never start or never
// end.
func (l Limits) Validate() error {
	// A comparison with NaN is false, hence the conditions say what is wanted.
	if !(l.High > 0 && l.High <= 1) {
		return fault.New(fault.Invalid, "the high watermark is %s; want more than 0%% and no more than 100%%", percent(l.High))
	}
	if !(l.Low >= 0 && l.Low < l.High) {
		return fault.New(fault.Invalid, "the low watermark is %s; want at least 0%% and less than the high one, which is %s", percent(l.Low), percent(l.High))
	}
	for _, s := range []struct {
		name  string
		value int64
	}{{"quota", l.Quota}, {"margin", l.MinFree}, {"floor", l.Floor}} {
		if s.value < 0 {
			return fault.New(fault.Invalid, "the %s is negative", s.name)
		}
	}
	if l.Warm < 0 || l.DeletedTTL < 0 || l.Abandoned < 0 {
		return fault.New(fault.Invalid, "a duration of the cache is negative")
	}
	return nil
}

// Usage is how full the cache and its file system are, in bytes.
type Usage struct {
	Used    int64 // held or reserved by the cache, claimed bytes included
	Claimed int64 // of these, on their way out
	FSFree  int64
	FSTotal int64 // 0: not known, so that the file system starts nothing
}

// spare are the limits of an admission after which no watermark may be passed.
func (l Limits) spare(total int64) Limits {
	if l.Quota > 0 {
		l.Quota = part(l.High, l.Quota) - 1
	}
	if total > 0 {
		l.MinFree = max(l.MinFree, total-part(l.High, total)+1)
	}
	l.High, l.Low = 1, l.Low/l.High
	return l
}

// excess is how much has to go, and why.
type excess struct {
	quota int64 // bytes over the target, as the quota sees it
	disk  int64 // as the file system sees it, cut at the floor
	// Without so many bytes the admission that was asked for does not fit.
	mustQuota, mustDisk int64
	why                 string
}

func (e excess) target() int64 { return max(e.quota, e.disk) }

// excessOf measures. need is the size of an admission that did not fit, 0 for a
// pass without one. Claimed bytes are gone as far as it is concerned, on the
// disk as well.
func (l Limits) excessOf(u Usage, need int64) excess {
	var e excess
	have, free := u.Used-u.Claimed, u.FSFree+u.Claimed
	if l.Quota > 0 {
		over := have + need - l.Quota
		switch {
		case have >= part(l.High, l.Quota):
			e.why = "the cache holds " + size(have) + ", at or over " + percent(l.High) + " of its quota of " + size(l.Quota)
		case need > 0 && over > 0:
			e.why = "the cache holds " + size(have) + " of " + size(l.Quota) + " and is to take " + size(need)
		}
		if e.why != "" {
			e.quota = max(have-part(l.Low, l.Quota), over, 0)
		}
		if need > 0 {
			e.mustQuota = max(over, 0)
		}
	}
	if u.FSTotal <= 0 {
		return e
	}
	disk, why := l.diskExcess(u, free, need)
	if need > 0 {
		e.mustDisk = max(l.MinFree+need-free, 0)
	}
	// What others write must not drive the cache to nothing.
	e.disk = max(min(disk, have-l.Floor), 0)
	if e.why == "" {
		e.why = why
	}
	return e
}

func (l Limits) diskExcess(u Usage, free, need int64) (bytes int64, why string) {
	used := u.FSTotal - free
	if used >= part(l.High, u.FSTotal) {
		bytes = used - part(l.Low, u.FSTotal)
		why = "the file system is filled with " + size(used) + ", at or over " + percent(l.High) + " of " + size(u.FSTotal)
	}
	if free-need < l.MinFree {
		// Some room beyond the margin, or each small admission would start a pass
		// of its own.
		base := l.Quota
		if base == 0 {
			base = u.FSTotal
		}
		bytes = max(bytes, l.MinFree+max(need, part(l.High-l.Low, base))-free)
		if why == "" {
			why = "the file system has " + size(free) + " free and is to keep a margin of " + size(l.MinFree)
		}
	}
	return bytes, why
}

func part(fraction float64, of int64) int64 { return int64(fraction * float64(of)) }

func size(n int64) string { return unit.Size(max(n, 0)).String() }
