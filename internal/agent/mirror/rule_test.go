package mirror

import (
	"fmt"
	"testing"

	"github.com/fairway-registry/fairway/internal/ociclient"
)

// TestR12_TheRuleOfRights is the table of docs/rights.md.
func TestR12_TheRuleOfRights(t *testing.T) {
	const none = ociclient.Outcome(255) // it was not asked
	private, mine, open := facts{present: true}, facts{present: true, origin: true}, facts{present: true, open: true}
	for _, tc := range []struct {
		name    string
		f       facts // what of the bytes is here
		direct  standing
		loose   standing
		outcome ociclient.Outcome
		want    decision
	}{
		{"nothing is known", facts{}, never, never, none, ask},
		{"nothing is known of what is here", open, never, never, none, ask},
		{"a right to what is not here", facts{}, fresh, never, none, serve},
		{"a right to what is here", mine, fresh, never, none, serve},
		{"a right that is past", mine, past, never, none, ask},
		{"a right to what came from elsewhere", private, fresh, never, none, relay},
		{"a right to what anybody may have", open, fresh, never, none, serve},
		{"a manifest names what anybody may have", open, never, fresh, none, serve},
		{"a manifest names what is private", mine, never, fresh, none, ask},
		{"a manifest names what is not here", facts{}, never, fresh, none, serve},
		{"a manifest names what another node may have", facts{shares: true}, never, fresh, none, ask},
		{"a manifest of everybody's names it", facts{shares: true, public: true}, never, fresh, none, serve},
		{"a manifest of long ago", open, never, past, none, ask},

		{"yes", mine, never, never, ociclient.OK, serve},
		{"yes, and nothing is here", facts{}, never, never, ociclient.OK, serve},
		{"yes, of what came from elsewhere", private, never, fresh, ociclient.OK, relay},
		{"no, whatever was known", mine, fresh, fresh, ociclient.Denied, refuse},
		{"no, of what is everybody's elsewhere", open, never, fresh, ociclient.Denied, refuse},
		{"gone", open, fresh, fresh, ociclient.NotFound, refuse},
	} {
		f := tc.f
		f.direct, f.loose = tc.direct, tc.loose
		if f.asked = tc.outcome != none; f.asked {
			f.outcome = tc.outcome
		}
		if got := decide(f); got != tc.want {
			t.Errorf("%s: %s, want %s", tc.name, got, tc.want)
		}
	}
}

// TestN11_WithoutAVerdictNothingChanges goes through all facts: whatever decides
// nothing leaves a right as it was, and gives none.
func TestN11_WithoutAVerdictNothingChanges(t *testing.T) {
	for _, outcome := range []ociclient.Outcome{ociclient.RateLimited, ociclient.Failed, ociclient.Unreachable, ociclient.Stalled} {
		each(func(f facts) {
			f.asked, f.outcome = true, outcome
			may := f.direct > never || (f.loose > never || f.heard) && (f.open || !f.present)
			want := refuse
			if may {
				want = serve
				if f.present && !f.open && !f.origin {
					want = relay
				}
			}
			if got := decide(f); got != want {
				t.Errorf("%s: %+v: %s, want %s", outcome, f, got, want)
			}
		})
	}
}

// TestR12_PrivateBytesTakeAWordAboutThem goes through all facts: private content is never
// served because something names it, nor under an upstream that it did not come from.
func TestR12_PrivateBytesTakeAWordAboutThem(t *testing.T) {
	each(func(f facts) {
		for asked := range 2 {
			for outcome := ociclient.OK; outcome <= ociclient.Stalled; outcome++ {
				f.asked, f.outcome = asked == 1, outcome
				word := f.direct > never || f.asked && f.outcome == ociclient.OK
				if f.present && !f.open && decide(f) == serve && !(word && f.origin) {
					t.Errorf("served: %+v", f)
				}
				if f.asked && decide(f) == ask {
					t.Errorf("asked for ever: %+v", f)
				}
			}
		}
	})
}

func each(do func(facts)) {
	for i := range 3 * 3 * 64 {
		bit := func(n int) bool { return i>>n&1 == 1 }
		f := facts{heard: bit(0), public: bit(1), present: bit(2), shares: bit(5), direct: standing((i >> 6) % 3), loose: standing((i >> 6) / 3)}
		if f.present {
			f.open, f.origin = bit(3), bit(4)
		}
		do(f)
	}
}

func Example_decision() {
	fmt.Println(refuse, ask, serve, relay)
	// Output: refuse ask serve relay
}
