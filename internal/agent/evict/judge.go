package evict

import (
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/fairway-registry/fairway/internal/oci"
)

// Tier is how near to use a blob is. Only its order matters: cold goes first,
// active never.
type Tier uint8

// The tiers, in the order in which they go.
const (
	Cold Tier = iota
	Warm
	Active
)

// String returns the tier's name.
func (t Tier) String() string {
	switch t {
	case Cold:
		return "cold"
	case Warm:
		return "warm"
	default:
		return "active"
	}
}

// MarshalText renders the tier's name.
func (t Tier) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// Why a blob stays or goes; one word, for metrics and counts.
const (
	Container = "container" // a container that is not exited uses it
	Pull      = "pull"      // a runtime pulls or leases it
	Open      = "open"      // a reader or a writer has it open
	Pin       = "pin"       // somebody pinned it
	Fresh     = "fresh"     // it is newer than the runtimes' answer
	Unknown   = "unknown"   // a runtime cannot be asked
	Untraced  = "untraced"  // it may belong to a container whose image is not known
	Claimed   = "claimed"   // it is on its way out already
	Image     = "image"     // an image in a runtime has it
	Recent    = "recent"    // it was used within the warm time
	Idle      = "idle"      // nothing uses it
	Partial   = "abandoned" // a download that nobody went on with
	Stepped   = "stepped"   // the clock has jumped, so nobody can say how long it is idle
	Expired   = "deleted"   // its image was deleted upstream, long enough ago
)

// Use is who uses a blob outside of the cache. One Use is shared by all the
// blobs of an image.
type Use struct {
	Why  string // Container, Pull, Pin or Image
	Text string // for people, such as "container web (k8s.io/abc, running) of docker.io/library/nginx:1"
}

// Facts are what is known of one blob. Times are in ms.
type Facts struct {
	Digest    oci.Digest
	Size      int64 // bytes that go with it
	CreatedAt int64
	UsedAt    int64
	DeletedAt int64 // when upstream said that every image it belongs to is gone; 0: not
	Uses      int64
	FetchMS   int64 // what it took to get
	Use       *Use  // the strongest, nil for none
	Manifest  bool  // or an index
	Open      bool  // has readers or writers
	Partial   bool
	Claimed   bool
	Orphan    bool // no known manifest names it, and it is none itself
	Rare      bool // no other node of the swarm has it
}

// Step is a jump of the wall clock: times up to At were By before what they
// seem to be now.
type Step struct{ At, By int64 }

// Situation is what is the same for all blobs at one judgement.
type Situation struct {
	Now   int64 // ms
	Usage Usage
	Need  int64 // bytes of an admission that does not fit; 0: none
	// ColdOnly says that the admission is nobody's who waits, so that nothing warm
	// goes for it.
	ColdOnly bool

	Asked    int64  // when the oldest answer about the runtimes was asked for; 0 if there is none or no runtime
	Runtimes bool   // there are runtimes to ask
	Unknown  string // why not all of them are known, "" if they are
	Untraced string // a container that leads to no known manifest, "" for none
	// Untraceable is a container of which not even a digest is known, "" for none:
	// its layers may be those of any image, also of one that the cache knows.
	Untraceable string

	Stepped bool   // the clock jumped since the pass before
	Steps   []Step // forward jumps that this process has seen
}

// Verdict is what the judge says of one blob.
type Verdict struct {
	Digest oci.Digest `json:"digest"`
	Size   int64      `json:"size"`
	Tier   Tier       `json:"tier"`
	Go     bool       `json:"go"`
	Why    string     `json:"why"`    // one of the constants
	Reason string     `json:"reason"` // one clause for people
	Value  float64    `json:"value"`  // of keeping it, see value; the least goes first
	Idle   int64      `json:"idle_ms"`
}

// Total counts blobs and their bytes.
type Total struct {
	Blobs int64 `json:"blobs"`
	Bytes int64 `json:"bytes"`
}

func (t *Total) add(bytes int64) { t.Blobs++; t.Bytes += bytes }

// Judgement is the verdicts on all blobs.
type Judgement struct {
	Verdicts []Verdict // one for each of the facts, in their order
	Victims  []int     // of these, in the order in which they go
	Trigger  string    // what started an eviction, "" if nothing did
	Target   int64     // bytes to free
	Short    int64     // of these, how many cannot go: they are active, or the floor
	Refused  bool      // an admission was asked for that can get no room
	Tiers    [3]Total  // by Tier; claimed blobs are in none
}

// skewMS covers that a blob's time and the runtimes' answer are taken by two
// readings of the clock, and steps too small to be seen as such.
const skewMS = 1000

// eraMS is how far in the future a time may be that this clock has given.
const eraMS = 60_000

// lookahead is among how many of the next candidates the last victim is chosen.
const lookahead = 32

// Judge decides about all blobs of the cache at once.
func Judge(facts []Facts, s Situation, l Limits) Judgement {
	j := Judgement{Verdicts: make([]Verdict, len(facts))}
	for i := range facts {
		v := &j.Verdicts[i]
		*v = tierOf(&facts[i], &s, &l)
		if v.Why != Claimed {
			j.Tiers[v.Tier].add(v.Size)
		}
	}
	j.choose(&s, &l)
	return j
}

// tierOf says how near to use one blob is. Go is set where it goes whether
// there is room or not.
func tierOf(f *Facts, s *Situation, l *Limits) Verdict {
	idle := idleOf(f, s)
	v := Verdict{Digest: f.Digest, Size: f.Size, Idle: idle, Value: value(f, idle)}
	v.Tier = Active
	latest := max(f.UsedAt, f.CreatedAt)
	switch {
	case f.Claimed:
		v.Tier, v.Why, v.Reason = Cold, Claimed, "it is being removed"
	case f.Use != nil && f.Use.Why != Image:
		v.Why, v.Reason = f.Use.Why, f.Use.Text
	case f.Open:
		v.Why, v.Reason = Open, "it is being read or written"
	case s.Unknown != "":
		v.Why, v.Reason = Unknown, s.Unknown
	case s.Runtimes && (s.Asked == 0 || s.Asked > s.Now+eraMS):
		v.Why, v.Reason = Unknown, "the runtimes have not been asked yet"
	case s.Runtimes && latest >= s.Asked-skewMS && (s.Stepped || latest <= s.Now+eraMS):
		// A time far in the future is of a clock before it was set back, and so of
		// before the question, unless that may have been meanwhile.
		v.Why, v.Reason = Fresh, "it was used after the runtimes were asked"
	case s.Untraceable != "":
		v.Why, v.Reason = Untraced, s.Untraceable
	case f.Orphan && s.Untraced != "":
		v.Why, v.Reason = Untraced, s.Untraced
	default:
		inactive(&v, f, s, l)
	}
	return v
}

// inactive tells warm and cold apart, and what has expired.
func inactive(v *Verdict, f *Facts, s *Situation, l *Limits) {
	ttl := l.DeletedTTL.Milliseconds()
	switch v.Tier = Warm; {
	case f.DeletedAt != 0 && ttl > 0 && !s.Stepped && s.age(f.DeletedAt) >= ttl:
		v.Tier, v.Go, v.Why, v.Reason = Cold, true, Expired, "its image was deleted upstream"
	case f.Use != nil:
		v.Why, v.Reason = f.Use.Why, f.Use.Text
	case s.Stepped:
		v.Why, v.Reason = Stepped, "the clock has jumped, so how long it is idle is not known"
	case f.Partial && v.Idle >= l.Abandoned.Milliseconds():
		v.Tier, v.Why, v.Reason = Cold, Partial, "nobody went on with the download"
	case v.Idle < l.Warm.Milliseconds():
		v.Why, v.Reason = Recent, "it was used within the warm time"
	default:
		v.Tier, v.Why, v.Reason = Cold, Idle, "nothing on this node uses it"
	}
}

// idleOf is for how many ms nobody has used the blob.
func idleOf(f *Facts, s *Situation) int64 { return s.age(max(f.UsedAt, f.CreatedAt)) }

// age is how long ago a time was, without the jumps of the clock since. A time
// in the future is now.
func (s *Situation) age(at int64) int64 {
	d := s.Now - at
	for _, step := range s.Steps {
		if at <= step.At {
			d -= step.By
		}
	}
	return max(d, 0)
}

// halfLifeMS is in which idle time a use comes to count for half of one.
const halfLifeMS = 24 * 3600 * 1000

// value is what keeping a blob is worth, as a logarithm to base 2: its uses,
// halved for each day that it is idle, times the tenth root of what a byte of
// it costs to get again. docs/eviction.md has it against others on a trace. The
// index counts uses since the blob came, so nothing else has to be remembered.
func value(f *Facts, idleMS int64) float64 {
	cost := float64(f.FetchMS)
	if f.FetchMS <= 0 {
		cost = 50 + float64(f.Size)/20_000 // not known: a registry that is not near
	}
	v := math.Log2(float64(max(f.Uses, 1))) - float64(idleMS)/halfLifeMS +
		math.Log2(cost/float64(max(f.Size, 1)))/10
	if f.Rare {
		v += rareWorth
	}
	return v
}

// rareWorth is what being the swarm's only copy adds to a blob's value: it
// stays for a day longer, as if it had been used twice as often, and no more. It
// changes no tier.
const rareWorth = 1

// candidate is a blob that may go, small so that sorting many is fast.
type candidate struct {
	value float64
	at    int32 // in the verdicts
	tier  Tier
}

// choose picks the victims: what has expired, and then, cold before warm and
// least valuable first, no more than is needed.
func (j *Judgement) choose(s *Situation, l *Limits) {
	have := s.Usage.Used - s.Usage.Claimed
	var gone, room int64
	order := make([]candidate, 0, len(j.Verdicts))
	for i := range j.Verdicts {
		switch v := &j.Verdicts[i]; {
		case v.Go:
			j.Victims = append(j.Victims, i)
			gone += v.Size
			room += v.Size
		case v.Tier != Active && v.Why != Claimed && (v.Tier == Cold || !s.ColdOnly):
			order = append(order, candidate{value: v.Value, at: int32(i), tier: v.Tier})
			room += v.Size
		}
	}
	e := l.excessOf(s.Usage, s.Need)
	if room < e.mustQuota || min(room, max(have-l.Floor, gone)) < e.mustDisk {
		// Nothing is gained by evicting for what will not fit all the same.
		j.Refused = true
		e = l.excessOf(s.Usage, 0)
	}
	j.Trigger, j.Target = e.why, e.target()
	if j.Target > gone {
		slices.SortFunc(order, func(a, b candidate) int {
			switch {
			case a.tier != b.tier:
				return int(a.tier) - int(b.tier)
			case a.value < b.value:
				return -1
			case a.value > b.value:
				return 1
			}
			return strings.Compare(string(j.Verdicts[a.at].Digest), string(j.Verdicts[b.at].Digest))
		})
		gone = j.take(order, gone, have, e, l.Floor)
	}
	j.Short = max(j.Target-gone, 0)
}

// take adds victims from order until gone reaches the target.
func (j *Judgement) take(order []candidate, gone, have int64, e excess, floor int64) int64 {
	expired := len(j.Victims)
	blocked := Active // the tier in which the floor was met
	for n := 0; n < len(order) && gone < j.Target; n++ {
		i := j.last(order[n:], j.Target-gone)
		v := &j.Verdicts[i]
		if v.Tier > blocked {
			break // warm never goes while cold stays
		}
		if gone >= e.quota && have-gone-v.Size < floor {
			blocked = v.Tier // only the file system wants more, and the floor is in its way
			continue
		}
		v.Go = true
		j.Victims = append(j.Victims, i)
		gone += v.Size
	}
	if len(j.Victims) == expired {
		return gone
	}
	// A large victim may have made earlier ones of its tier needless. The most
	// valuable of them stay.
	tier := j.Verdicts[j.Victims[len(j.Victims)-1]].Tier
	for n := len(j.Victims) - 1; n >= expired; n-- {
		v := &j.Verdicts[j.Victims[n]]
		if v.Tier == tier && gone-v.Size >= j.Target {
			v.Go = false
			gone -= v.Size
		}
	}
	j.Victims = slices.DeleteFunc(j.Victims, func(i int) bool { return !j.Verdicts[i].Go })
	return gone
}

// last returns the first of order, or, where it alone frees all that is left,
// whichever of the next of its tier does so with the fewest bytes.
func (j *Judgement) last(order []candidate, left int64) int {
	best := int(order[0].at)
	if j.Verdicts[best].Size < left {
		return best
	}
	for _, c := range order[:min(lookahead, len(order))] {
		i := int(c.at)
		v := &j.Verdicts[i]
		if v.Tier != j.Verdicts[best].Tier {
			break
		}
		if v.Size >= left && v.Size < j.Verdicts[best].Size {
			best = i
		}
	}
	return best
}

func percent(fraction float64) string {
	return strconv.FormatFloat(math.Round(fraction*1000)/10, 'f', -1, 64) + "%"
}
