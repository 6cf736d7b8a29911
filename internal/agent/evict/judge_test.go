package evict

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"pgregory.net/rapid"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
)

const (
	mib  = 1 << 20
	hour = int64(time.Hour / time.Millisecond)
	day  = 24 * hour
	// noon is the time of the judgements below.
	noon = 1_800_000_000_000
)

func blobName(n int) oci.Digest { return digest.FromString(fmt.Sprint(n)) }

func usual() Limits {
	return Limits{Quota: 100 * mib, High: 0.9, Low: 0.8, Warm: 24 * time.Hour, DeletedTTL: time.Hour, Abandoned: time.Hour}
}

// known is a situation in which the runtimes have just answered.
func known(used int64) Situation {
	return Situation{Now: noon, Runtimes: true, Asked: noon, Usage: Usage{Used: used}}
}

// idle is a complete blob that nothing has used for so long.
func idle(n int, size, ms int64) Facts {
	return Facts{Digest: blobName(n), Size: size, CreatedAt: noon - ms, UsedAt: noon - ms, Uses: 1}
}

func sum(facts []Facts) (n int64) {
	for _, f := range facts {
		n += f.Size
	}
	return n
}

func freed(j Judgement) (n int64) {
	for _, i := range j.Victims {
		n += j.Verdicts[i].Size
	}
	return n
}

// The oracle says in other words than the judge what must hold of a judgement.

func anyFacts(t *rapid.T, n int) Facts {
	at := rapid.SampledFrom([]int64{0, 500, 5000, hour, 23 * hour, 2 * day, 40 * day, -2 * hour})
	f := Facts{
		Digest: blobName(n), Size: rapid.SampledFrom([]int64{0, 1, mib, 3 * mib, 7 * mib, 20 * mib}).Draw(t, "size"),
		CreatedAt: noon - 41*day, UsedAt: noon - at.Draw(t, "used"), Uses: rapid.Int64Range(0, 9).Draw(t, "uses"),
		Open: rare(t, "open"), Partial: rare(t, "partial"), Claimed: rare(t, "claimed"), Orphan: rare(t, "orphan"),
	}
	if rare(t, "deleted?") {
		f.DeletedAt = noon - at.Draw(t, "deleted")
	}
	if rapid.IntRange(0, 3).Draw(t, "used?") == 0 {
		f.Use = &Use{Why: rapid.SampledFrom([]string{Container, Pull, Pin, Image, Image}).Draw(t, "why"), Text: "somebody has it"}
	}
	return f
}

func rare(t *rapid.T, name string) bool { return rapid.IntRange(0, 7).Draw(t, name) == 0 }

func anySituation(t *rapid.T, held int64) Situation {
	s := Situation{Now: noon, Runtimes: !rare(t, "none"), Asked: noon - rapid.SampledFrom([]int64{0, 100, 7000}).Draw(t, "asked"), Stepped: rare(t, "stepped")}
	s.Usage = Usage{Used: held, FSTotal: rapid.SampledFrom([]int64{0, 200 * mib, 1000 * mib}).Draw(t, "disk")}
	s.Usage.FSFree = int64(rapid.Float64Range(0, 1).Draw(t, "free") * float64(s.Usage.FSTotal))
	if rare(t, "unknown") {
		s.Unknown = "it does not answer"
	}
	if rare(t, "untraced") {
		s.Untraced = "somebody's"
	}
	if rare(t, "untraceable") {
		s.Untraceable = "somebody's"
	}
	if rapid.Bool().Draw(t, "need?") {
		s.Need = rapid.SampledFrom([]int64{1, mib, 30 * mib, 90 * mib}).Draw(t, "need")
	}
	return s
}

func anyLimits(t *rapid.T) Limits {
	l := usual()
	l.Quota = rapid.SampledFrom([]int64{0, 10 * mib, 60 * mib, 500 * mib}).Draw(t, "quota")
	l.MinFree = rapid.SampledFrom([]int64{0, 0, 20 * mib}).Draw(t, "margin")
	l.Floor = rapid.SampledFrom([]int64{0, 15 * mib}).Draw(t, "floor")
	return l
}

// untouchable is every reason for which a blob may not go, whatever else is so.
func untouchable(f Facts, s Situation) bool {
	named := f.Use != nil && (f.Use.Why == Container || f.Use.Why == Pull || f.Use.Why == Pin)
	newer := s.Runtimes && f.UsedAt+1000 >= s.Asked && (f.UsedAt <= s.Now || s.Stepped)
	return f.Claimed || named || f.Open || s.Unknown != "" || newer || s.Untraceable != "" || f.Orphan && s.Untraced != ""
}

// wanted is how much the watermarks and the margin ask for, as the documentation puts it.
func wanted(l Limits, u Usage, need int64) (quota, disk float64) {
	have, free := float64(u.Used-u.Claimed), float64(u.FSFree+u.Claimed)
	q, n, total := float64(l.Quota), float64(need), float64(u.FSTotal)
	if l.Quota > 0 && (have >= math.Floor(l.High*q) || need > 0 && have+n > q) {
		quota = max(have-math.Floor(l.Low*q), have+n-q, 0)
	}
	if total > 0 {
		if total-free >= math.Floor(l.High*total) {
			disk = total - free - math.Floor(l.Low*total)
		}
		if free-n < float64(l.MinFree) {
			base := q
			if l.Quota == 0 {
				base = total
			}
			disk = max(disk, float64(l.MinFree)+max(n, math.Floor((l.High-l.Low)*base))-free)
		}
		disk = max(0, min(disk, have-float64(l.Floor)))
	}
	return quota, disk
}

func TestN5_JudgeAgainstAnOracle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var facts []Facts
		var claimed int64
		for n := range rapid.IntRange(0, 14).Draw(t, "blobs") {
			f := anyFacts(t, n)
			facts = append(facts, f)
			if f.Claimed {
				claimed += f.Size
			}
		}
		s, l := anySituation(t, sum(facts)), anyLimits(t)
		s.Usage.Claimed = claimed
		before := slices.Clone(facts)
		j := Judge(facts, s, l)
		if !slices.Equal(before, facts) {
			t.Fatal("the judge changed the facts")
		}
		checkVictims(t, facts, s, l, j)
		checkAmount(t, facts, s, l, j)
	})
}

// checkVictims: who may go, and in which order.
func checkVictims(t *rapid.T, facts []Facts, s Situation, l Limits, j Judgement) {
	goes := map[int]bool{}
	for _, i := range j.Victims {
		if goes[i] {
			t.Fatalf("%d goes twice", i)
		}
		goes[i] = true
	}
	warmGoes, coldStays := false, false
	for i, v := range j.Verdicts {
		f := facts[i]
		expired := f.DeletedAt != 0 && !s.Stepped && noon-f.DeletedAt >= hour && !untouchable(f, s)
		switch {
		case v.Digest != f.Digest || v.Reason == "" || v.Why == "" || v.Go != goes[i]:
			t.Fatalf("verdict %+v on %+v; goes: %v", v, f, goes[i])
		case v.Go && untouchable(f, s):
			t.Fatalf("%+v goes in %+v", f, s)
		case untouchable(f, s) && !f.Claimed && v.Tier != Active:
			t.Fatalf("%+v is %s in %+v", f, v.Tier, s)
		case expired && !v.Go:
			t.Fatalf("%+v has expired and stays", f)
		case v.Go && !expired && j.Trigger == "":
			t.Fatalf("%+v goes though nothing asks for it", f)
		}
		warmGoes = warmGoes || v.Go && v.Tier == Warm
		coldStays = coldStays || !v.Go && v.Tier == Cold && !f.Claimed
	}
	if warmGoes && coldStays {
		t.Fatal("warm goes and cold stays")
	}
}

// checkAmount: as much as is wanted if there is as much, and no blob too many.
func checkAmount(t *rapid.T, facts []Facts, s Situation, l Limits, j Judgement) {
	var room, expired int64
	smallest := int64(math.MaxInt64)
	var lastTier Tier
	for i, v := range j.Verdicts {
		switch {
		case v.Why == Expired:
			expired += v.Size
			room += v.Size
		case !untouchable(facts[i], s):
			room += v.Size
		}
		if v.Go && v.Why != Expired {
			lastTier = max(lastTier, v.Tier)
		}
	}
	for _, i := range j.Victims {
		if v := j.Verdicts[i]; v.Why != Expired && v.Tier == lastTier {
			smallest = min(smallest, v.Size)
		}
	}
	need := s.Need
	if j.Refused {
		need = 0
	}
	quota, disk := wanted(l, s.Usage, need)
	target, gone := int64(max(quota, disk)), freed(j)
	if j.Target != target {
		t.Fatalf("target %d, want %d", j.Target, target)
	}
	if gone > expired && gone-smallest >= target {
		t.Fatalf("%d bytes go where %d are wanted, though a victim has but %d", gone, target, smallest)
	}
	if j.Short != max(target-gone, 0) {
		t.Fatalf("short of %d, want %d", j.Short, target-gone)
	}
	floorFree := float64(gone) >= quota && disk > quota
	if j.Short > 0 && gone < room && (!floorFree || l.Floor == 0) {
		t.Fatalf("%d bytes go, %d could, %d are wanted", gone, room, target)
	}
	have := s.Usage.Used - s.Usage.Claimed
	if left := have - gone; gone > expired && left < l.Floor && float64(gone-smallest) >= quota {
		t.Fatalf("only %d bytes are left, the floor is %d", left, l.Floor)
	}
	if j.Refused && (s.Need == 0 || room >= have+s.Need-l.Quota && (s.Usage.FSTotal == 0 || min(room, have-l.Floor) >= l.MinFree+s.Need-s.Usage.FSFree-s.Usage.Claimed)) {
		t.Fatalf("refused with %d bytes of room", room)
	}
}

func TestLimits_Validate(t *testing.T) {
	for _, c := range []struct {
		high, low float64
		ok        bool
	}{
		{0.9, 0.8, true}, {1, 0.99, true}, {0.5, 0, true},
		{0.8, 0.8, false}, {0.7, 0.8, false}, {1.01, 0.8, false}, {90, 80, false}, {0, 0, false}, {0.9, -0.1, false},
		{math.NaN(), 0.8, false}, {0.9, math.NaN(), false}, {math.Inf(1), 0.8, false},
	} {
		l := usual()
		l.High, l.Low = c.high, c.low
		err := l.Validate()
		if (err == nil) != c.ok {
			t.Errorf("high %v, low %v: %v", c.high, c.low, err)
		}
		if err != nil && fault.KindOf(err) != fault.Invalid {
			t.Errorf("high %v, low %v: the error is %v", c.high, c.low, fault.KindOf(err))
		}
	}
	l := usual()
	l.Floor = -1
	if l.Validate() == nil {
		t.Error("a negative floor is taken")
	}
}

func TestN5_StartsAtHighAndEndsAtLow(t *testing.T) {
	var facts []Facts
	for n := range 95 {
		facts = append(facts, idle(n, mib, 2*day+int64(n)*hour))
	}
	if j := Judge(facts[:89], known(89*mib), usual()); len(j.Victims) > 0 || j.Trigger != "" {
		t.Errorf("below the high watermark %d go: %s", len(j.Victims), j.Trigger)
	}
	j := Judge(facts[:90], known(90*mib), usual())
	if freed(j) != 10*mib || j.Short != 0 {
		t.Errorf("at the high watermark %d bytes go", freed(j))
	}
	if first := j.Victims[0]; first != 89 {
		t.Errorf("blob %d goes first, want the one idle for longest", first)
	}
	// What is left starts nothing: no flapping.
	var left []Facts
	for i, v := range j.Verdicts {
		if !v.Go {
			left = append(left, facts[i])
		}
	}
	if j = Judge(left, known(sum(left)), usual()); len(j.Victims) > 0 {
		t.Errorf("a second pass takes %d more", len(j.Victims))
	}
}

func TestN5_ClaimedBytesAreNoExcess(t *testing.T) {
	var facts []Facts
	for n := range 95 {
		f := idle(n, mib, 2*day)
		f.Claimed = n < 15
		facts = append(facts, f)
	}
	s := known(95 * mib)
	s.Usage.Claimed = 15 * mib
	if j := Judge(facts, s, usual()); len(j.Victims) > 0 {
		t.Errorf("%d more go while 15 are on their way out", len(j.Victims))
	}
	s.Usage.FSTotal, s.Usage.FSFree = 100*mib, 5*mib
	l := usual()
	l.Quota = 0
	if j := Judge(facts, s, l); len(j.Victims) > 0 {
		t.Errorf("%d more go by the file system while 15 are on their way out", len(j.Victims))
	}
}

func TestN5_OnlyAPercentageConfigured(t *testing.T) {
	l := usual()
	l.Quota = 0
	facts := []Facts{idle(1, 10*mib, 2*day), idle(2, 10*mib, 3*day), idle(3, 10*mib, 4*day)}
	s := known(30 * mib)
	for _, c := range []struct{ free, want int64 }{{500 * mib, 0}, {101 * mib, 0}, {185 * mib, 0}, {90 * mib, 30 * mib}, {195 * mib, 0}} {
		s.Usage.FSTotal, s.Usage.FSFree = 1000*mib, c.free
		if j := Judge(facts, s, l); freed(j) != c.want {
			t.Errorf("with %s of 1000 MiB free %s go, want %s", size(c.free), size(freed(j)), size(c.want))
		}
	}
	s.Usage.FSTotal, s.Usage.FSFree = 1000*mib, 100*mib
	l.Low = 0.895 // 5 MiB are enough
	if j := Judge(facts, s, l); freed(j) != 10*mib {
		t.Errorf("%s go where one blob is enough", size(freed(j)))
	}
	s.Usage = Usage{Used: 30 * mib} // the size of the file system cannot be had
	if j := Judge(facts, s, l); len(j.Victims) > 0 {
		t.Errorf("%d go though nothing is known of the file system", len(j.Victims))
	}
}

func TestN5_TheFloorStaysWhenOthersFillTheDisk(t *testing.T) {
	l := usual()
	l.Floor, l.MinFree = 25*mib, 50*mib
	var facts []Facts
	for n := range 40 {
		facts = append(facts, idle(n, mib, 2*day))
	}
	s := known(40 * mib)
	s.Usage.FSTotal, s.Usage.FSFree = 1000*mib, 0
	j := Judge(facts, s, l)
	if left := 40*mib - freed(j); left != 25*mib {
		t.Errorf("%s are left, want the floor of 25 MiB", size(left))
	}
	if s.Need = 60 * mib; !Judge(facts, s, l).Refused {
		t.Error("an admission that only the floor could make room for is not refused")
	}
}

func TestN5_TheQuotaMayBeBelowTheFloor(t *testing.T) {
	l := usual()
	l.Floor = 1 << 30
	facts := []Facts{idle(1, 60*mib, 2*day), idle(2, 40*mib, 3*day)}
	if j := Judge(facts, known(100*mib), l); freed(j) != 40*mib {
		t.Errorf("%s go, want 40 MiB", size(freed(j)))
	}
}

func TestN5_QuotaLoweredAtRunTime(t *testing.T) {
	var facts []Facts
	for n := range 80 {
		facts = append(facts, idle(n, mib, 2*day))
	}
	l := usual()
	l.Quota = 40 * mib
	if j := Judge(facts, known(80*mib), l); 80*mib-freed(j) != 32*mib {
		t.Errorf("%s stay, want 80 %% of 40 MiB", size(80*mib-freed(j)))
	}
}

func TestN5_TheLastVictimIsNotLargerThanNeeded(t *testing.T) {
	facts := []Facts{idle(1, 80*mib, 9*day), idle(2, 11*mib, 8*day), idle(3, 2*mib, 2*day)}
	if j := Judge(facts, known(93*mib), usual()); freed(j) != 80*mib && freed(j) != 13*mib {
		t.Errorf("%s go", size(freed(j)))
	} else if freed(j) != 80*mib {
		t.Errorf("the one of the right size is out of reach, and %s go", size(freed(j)))
	}
	facts = []Facts{idle(1, 60*mib, 9*day), idle(2, 14*mib, 8*day), idle(3, 19*mib, 7*day)}
	if j := Judge(facts, known(93*mib), usual()); freed(j) != 14*mib {
		t.Errorf("%s go where 13 MiB are wanted and a blob has 14", size(freed(j)))
	}
}

func TestN3_UnknownCountsAsInUse(t *testing.T) {
	facts := []Facts{idle(1, 100*mib, 90*day)}
	facts[0].DeletedAt = noon - 80*day
	s := known(100 * mib)
	for name, change := range map[string]func(s *Situation){
		"a runtime does not answer":     func(s *Situation) { s.Unknown = "it is down" },
		"nobody has ever answered":      func(s *Situation) { s.Asked = 0 },
		"the answer is of another time": func(s *Situation) { s.Asked = s.Now + day },
		"the answer is older":           func(s *Situation) { s.Asked = facts[0].UsedAt - 1 },
	} {
		s := s
		change(&s)
		if j := Judge(facts, s, usual()); len(j.Victims) > 0 || j.Verdicts[0].Tier != Active {
			t.Errorf("%s: %+v", name, j.Verdicts[0])
		}
	}
	s.Runtimes, s.Asked = false, 0
	if j := Judge(facts, s, usual()); len(j.Victims) != 1 {
		t.Error("where there is no runtime nobody has to be asked")
	}
}

func TestN6_AllActiveAndOverQuotaDeletesNothing(t *testing.T) {
	facts := []Facts{idle(1, 100*mib, 90*day), idle(2, 50*mib, 90*day)}
	for i := range facts {
		facts[i].Use = &Use{Why: Container, Text: "container web"}
	}
	s := known(150 * mib)
	s.Need = mib
	j := Judge(facts, s, usual())
	if len(j.Victims) > 0 || !j.Refused || j.Short != 70*mib {
		t.Errorf("%d go, refused: %v, short of %s", len(j.Victims), j.Refused, size(j.Short))
	}
}

func TestN6_NothingGoesForWhatDoesNotFitAllTheSame(t *testing.T) {
	facts := []Facts{idle(1, 50*mib, 90*day), idle(2, 30*mib, 90*day)}
	facts[0].Use = &Use{Why: Container, Text: "container web"}
	s := known(80 * mib)
	s.Need = 60 * mib
	if j := Judge(facts, s, usual()); len(j.Victims) > 0 || !j.Refused {
		t.Errorf("%d go for 60 MiB beside 50 that are active", len(j.Victims))
	}
	s.Need = 50 * mib
	if j := Judge(facts, s, usual()); len(j.Victims) != 1 || j.Refused {
		t.Errorf("%d go for 50 MiB, refused: %v", len(j.Victims), j.Refused)
	}
}

func TestDeletedImagesExpireButNotWhileActive(t *testing.T) {
	f := idle(1, mib, 2*hour)
	f.DeletedAt = noon - hour
	s := known(mib)
	if v := Judge([]Facts{f}, s, usual()).Verdicts[0]; !v.Go || v.Why != Expired {
		t.Errorf("below the watermark, after its time: %+v", v)
	}
	f.DeletedAt++
	if v := Judge([]Facts{f}, s, usual()).Verdicts[0]; v.Go {
		t.Errorf("before its time: %+v", v)
	}
	f.DeletedAt, f.Use = noon-9*hour, &Use{Why: Container, Text: "container web"}
	if v := Judge([]Facts{f}, s, usual()).Verdicts[0]; v.Go || v.Tier != Active {
		t.Errorf("of a container: %+v", v)
	}
	f.Use = nil
	l := usual()
	l.DeletedTTL = 0
	if v := Judge([]Facts{f}, s, l).Verdicts[0]; v.Go {
		t.Errorf("without a time: %+v", v)
	}
}

func TestTiers(t *testing.T) {
	image := &Use{Why: Image, Text: "image nginx in containerd"}
	for _, c := range []struct {
		name   string
		change func(f *Facts, s *Situation)
		tier   Tier
		why    string
	}{
		{"idle", func(*Facts, *Situation) {}, Cold, Idle},
		{"in a runtime", func(f *Facts, _ *Situation) { f.Use = image }, Warm, Image},
		{"used lately", func(f *Facts, _ *Situation) { f.UsedAt = noon - 23*hour }, Warm, Recent},
		{"used in the future", func(f *Facts, _ *Situation) { f.UsedAt = noon + 900*day }, Warm, Recent},
		{"begun and left", func(f *Facts, _ *Situation) { f.Partial, f.UsedAt = true, noon-2*hour }, Cold, Partial},
		{"begun lately", func(f *Facts, _ *Situation) { f.Partial, f.UsedAt = true, noon-hour/2 }, Warm, Recent},
		{"being read", func(f *Facts, _ *Situation) { f.Open = true }, Active, Open},
		{"of a container", func(f *Facts, _ *Situation) { f.Use = &Use{Why: Container, Text: "web"} }, Active, Container},
		{"being pulled", func(f *Facts, _ *Situation) { f.Use = &Use{Why: Pull, Text: "pull"} }, Active, Pull},
		{"pinned", func(f *Facts, _ *Situation) { f.Use = &Use{Why: Pin, Text: "pin"} }, Active, Pin},
		{"newer than the answer", func(f *Facts, s *Situation) { f.UsedAt = s.Asked + 1 }, Active, Fresh},
		{"nobody's, beside a container of who knows what", func(f *Facts, s *Situation) { f.Orphan, s.Untraced = true, "web's" }, Active, Untraced},
		{"known, beside a container that may use anything", func(_ *Facts, s *Situation) { s.Untraceable = "web's" }, Active, Untraced},
		{"known, beside a container of who knows what", func(_ *Facts, s *Situation) { s.Untraced = "web's" }, Cold, Idle},
		{"idle by a clock that has jumped", func(_ *Facts, s *Situation) { s.Stepped = true }, Warm, Stepped},
	} {
		f, s := idle(1, mib, 40*day), known(mib)
		c.change(&f, &s)
		if v := Judge([]Facts{f}, s, usual()).Verdicts[0]; v.Tier != c.tier || v.Why != c.why || v.Go {
			t.Errorf("%s: %+v, want %s as %s", c.name, v, c.tier, c.why)
		}
	}
}

func TestClock_AJumpByYearsExpiresNothing(t *testing.T) {
	start := time.Now()
	var c clock
	if stepped, _ := c.look(noon, start, noon-hour); stepped {
		t.Error("the first look is a jump")
	}
	stepped, steps := c.look(noon+1000*day+5000, start.Add(5*time.Second), 0)
	if !stepped {
		t.Fatal("a jump by 1000 days is not seen")
	}
	f, recent := idle(1, mib, 30*day), idle(2, mib, hour)
	f.DeletedAt, recent.DeletedAt = noon-hour/2, noon-hour/2
	s := known(2 * mib)
	s.Now, s.Asked, s.Stepped, s.Steps = noon+1000*day+5000, noon+1000*day+5000, true, steps
	for _, v := range Judge([]Facts{f, recent}, s, usual()).Verdicts {
		if v.Go || v.Tier != Warm {
			t.Errorf("in the pass of the jump: %+v", v)
		}
	}
	c.seen()
	if s.Stepped, s.Steps = c.look(s.Now, start.Add(5*time.Second), 0); s.Stepped {
		t.Error("the jump is seen twice")
	}
	j := Judge([]Facts{f, recent}, s, usual())
	if len(j.Victims) > 0 || j.Verdicts[0].Tier != Cold || j.Verdicts[1].Tier != Warm {
		t.Errorf("in the pass after the jump: %+v", j.Verdicts)
	}
	s.Now += hour
	s.Asked = s.Now
	if j = Judge([]Facts{f, recent}, s, usual()); len(j.Victims) != 2 {
		t.Errorf("when their time is really over %d go", len(j.Victims))
	}
}

func TestClock_TimeWithoutAnAgentDoesNotCount(t *testing.T) {
	var c clock
	stepped, steps := c.look(noon, time.Now(), noon-1000*day)
	s := Situation{Now: noon, Steps: steps}
	if !stepped || s.age(noon-1000*day-hour) != hour {
		t.Errorf("jump seen: %v; what was used an hour before the last use is %v old", stepped, s.age(noon-1000*day-hour))
	}
}

func TestClock_RemembersSoManyJumps(t *testing.T) {
	var c clock
	at := time.Now()
	var now int64 = noon
	for range stepsMax + 10 {
		c.look(now, at, 0)
		now += day
	}
	s := Situation{Now: now, Steps: c.steps}
	if len(c.steps) != stepsMax || s.age(noon) > 2*day {
		t.Errorf("%d jumps, age %d days", len(c.steps), s.age(noon)/day)
	}
}

func TestReasonsOfPercentages(t *testing.T) {
	j := Judge([]Facts{idle(1, 95*mib, 2*day)}, known(95*mib), usual())
	if want := "the cache holds 95 MiB, at or over 90% of its quota of 100 MiB"; j.Trigger != want {
		t.Errorf("trigger %q, want %q", j.Trigger, want)
	}
	if !strings.Contains(j.Verdicts[0].Reason, "nothing on this node uses it") {
		t.Errorf("reason %q", j.Verdicts[0].Reason)
	}
}

func BenchmarkJudge100000(b *testing.B) {
	var facts []Facts
	for n := range 100_000 {
		facts = append(facts, idle(n, int64(n%997)*4096, int64(n)*1000))
	}
	s, l := known(sum(facts)), usual()
	l.Quota = sum(facts)
	b.ReportAllocs()
	for b.Loop() {
		if j := Judge(facts, s, l); len(j.Victims) == 0 {
			b.Fatal("nothing goes")
		}
	}
}
