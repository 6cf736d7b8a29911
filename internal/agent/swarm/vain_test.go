package swarm

import (
	"testing"
	"time"

	"golang.org/x/time/rate"
)

func TestR17_WhatIsWaitedInVainIsBounded(t *testing.T) {
	var v vain
	now := time.Now()
	if left := v.left(now, 3*time.Second); left != 3*time.Second {
		t.Errorf("at first %v are left", left)
	}
	v.spend(now, vainMost-time.Second)
	if left := v.left(now, 3*time.Second); left != time.Second {
		t.Errorf("then %v are left", left)
	}
	v.spend(now, time.Hour)
	if left := v.left(now, 3*time.Second); left != vainLeast {
		t.Errorf("in the end %v are left", left)
	}
	if left := v.left(now, time.Millisecond); left != time.Millisecond {
		t.Errorf("%v are left of a millisecond", left)
	}
	if left := v.left(now.Add(vainBack*2*time.Second), time.Minute); left != 2*time.Second {
		t.Errorf("%v are left later", left)
	}
	if left := v.left(now.Add(time.Hour), time.Minute); left != vainMost {
		t.Errorf("much later %v are left", left)
	}
	if left := v.left(now, time.Minute); left != vainMost {
		t.Errorf("%v are left after a step back of the clock", left)
	}
}

func TestR16_ANeighbourSaysNoMoreThanThereIs(t *testing.T) {
	const pieces = 20
	bitmap, gain, alive := frame{kind: kindBitmap, size: 3}, frame{kind: kindGained, size: 4 * 10}, frame{kind: kindAlive}
	repeat := func(n int, f ...frame) (all []frame) {
		for range n {
			all = append(all, f...)
		}
		return all
	}
	for name, c := range map[string]struct {
		says []frame
		ok   bool
	}{
		"each piece once":               {[]frame{bitmap, gain, alive, gain}, true},
		"and again after another round": {[]frame{bitmap, gain, gain, bitmap, gain, gain}, true},
		"as often as one may":           {repeat(hearBitmaps, bitmap), true},
		"pieces twice":                  {[]frame{bitmap, gain, gain, gain}, false},
		"a bitmap of a larger blob":     {[]frame{{kind: kindBitmap, size: 4}}, false},
		"rounds without an end":         {repeat(hearBitmaps+1, bitmap), false},
		"that it is there, for ever":    {repeat(2*hearFrames+hearFrames, alive), false},
	} {
		h := hearing{frames: rate.NewLimiter(1e-9, 2*hearFrames), pieces: pieces}
		var err error
		for _, f := range c.says {
			if err == nil {
				err = h.take(f)
			}
		}
		if (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}
