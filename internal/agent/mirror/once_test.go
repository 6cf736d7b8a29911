package mirror

import (
	"testing"
	"time"

	"github.com/fairway-registry/fairway/internal/ociclient"
)

func TestOutages_ASilenceIsTrustedTwiceAsLongAsItTook(t *testing.T) {
	o := outages{last: map[outageKey]outage{}}
	at := time.Unix(1_700_000_000, 0)
	o.note(access{ns: "refuses"}, ociclient.Unreachable, at, time.Millisecond)
	o.note(access{ns: "hangs"}, ociclient.Unreachable, at, 10*time.Second)
	for _, tc := range []struct {
		ns    string
		after time.Duration
		down  bool
	}{
		{"refuses", 4 * time.Second, true},
		{"refuses", 6 * time.Second, false},
		{"hangs", 19 * time.Second, true},
		{"hangs", 21 * time.Second, false},
		{"hangs", -time.Hour, false}, // the clock was set back
		{"another", 0, false},
	} {
		if got := o.now(access{ns: tc.ns}, at.Add(tc.after)); got != tc.down {
			t.Errorf("%s after %v: down %v, want %v", tc.ns, tc.after, got, tc.down)
		}
	}
	if o.over(access{ns: "hangs"}); o.now(access{ns: "hangs"}, at) {
		t.Error("it has answered since")
	}
}
