package mirror

import (
	"context"
	"fmt"
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

// TestN11_ALimitIsOfWhoeverItIsAbout, and ends with an answer to them; a failure at once
// spares nobody a wait.
func TestN11_ALimitIsOfWhoeverItIsAbout(t *testing.T) {
	o := outages{last: map[outageKey]outage{}}
	at := time.Unix(1_700_000_000, 0)
	her, him := access{ns: "u", who: "her"}, access{ns: "u", who: "him"}
	o.note(her, ociclient.RateLimited, at, 0)
	if !o.now(her, at) || o.now(him, at) {
		t.Errorf("limited: her %v, him %v", o.now(her, at), o.now(him, at))
	}
	if o.over(him); !o.now(her, at) {
		t.Error("her limit ended with an answer to him")
	}
	if o.over(her); o.now(her, at) {
		t.Error("her limit outlasts an answer to her")
	}
	o.note(her, ociclient.Failed, at, time.Millisecond)
	if o.now(her, at) {
		t.Error("a failure at once counts as an outage")
	}
	o.note(her, ociclient.Failed, at, 2*time.Second)
	if !o.now(him, at) {
		t.Error("a failure that took its time does not count")
	}
}

func TestR16_OutagesThatAreRememberedAreBounded(t *testing.T) {
	o := outages{last: map[outageKey]outage{}}
	for i := range 2 * outagesMax {
		o.note(access{ns: "u", who: principal(fmt.Sprint(i))}, ociclient.RateLimited, time.Now(), 0)
		if len(o.last) > outagesMax {
			t.Fatalf("%d are remembered", len(o.last))
		}
	}
}

// TestOnce_TheAnswerOutlivesWhoAskedFirst: others wait for it too.
func TestOnce_TheAnswerOutlivesWhoAskedFirst(t *testing.T) {
	m := &Mirror{metrics: newMetrics(nil)}
	first, leave := context.WithCancel(t.Context())
	asked, goOn := make(chan struct{}), make(chan struct{})
	question := func(ctx context.Context) (string, error) {
		close(asked)
		<-goOn
		return "answer", ctx.Err()
	}
	left := make(chan error, 1)
	go func() {
		_, err := once(first, m, "key", question)
		left <- err
	}()
	<-asked
	leave()
	if err := <-left; err == nil {
		t.Error("who left got an answer")
	}
	answers := m.questions.DoChan("key", func() (any, error) { return "another", nil })
	close(goOn)
	if a := <-answers; a.Err != nil || a.Val != "answer" {
		t.Errorf("who waits got %v, %v", a.Val, a.Err)
	}
}
