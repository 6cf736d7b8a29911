package swarm

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairway-registry/fairway/internal/agent/swarm/plan"
	"github.com/fairway-registry/fairway/internal/oci"
)

// TestR16_EvictionsThatWaitToBeToldAreBounded: a leader that does not answer must not make
// a node remember all that it ever evicted.
func TestR16_EvictionsThatWaitToBeToldAreBounded(t *testing.T) {
	e := bareEngine()
	e.telling = true // somebody is at it, and slow
	e.leaving = make([]oci.Digest, leavingMax-1)
	e.Evicted("sha256:a")
	e.Evicted("sha256:b")
	if n := len(e.leaving); n != leavingMax || e.leaving[n-1] != "sha256:a" {
		t.Errorf("%d wait, the last is %s; want %d and the first that fits", n, e.leaving[n-1], leavingMax)
	}
}

// stuck is a download of which the origin gives nothing, since the time began.
func stuck(t *testing.T, e *Engine) (d *download, began time.Duration) {
	t.Helper()
	d = bareDownload(e, 64)
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // nobody is really watched
	d.ctx, d.searched, d.refusal = ctx, true, errLeft
	began = e.now()
	d.plan.Announce(began)
	d.plan.Replied(began, plan.Reply{Members: 1, Lease: []int{0}})
	d.plan.Next(began)
	d.plan.Failed(began, 0, plan.Origin, plan.Broken)
	d.plan.RunEnded()
	if _, is := d.plan.Stuck(began); !is {
		t.Fatal("the download is not stuck: this shows nothing")
	}
	return d, began
}

// TestN8_AMemberThatIsAskedLateHasItsTime: the download had brought nothing for long before.
func TestN8_AMemberThatIsAskedLateHasItsTime(t *testing.T) {
	e := bareEngine()
	e.view = viewOf(Peer{Node: "self"}, []Peer{{Node: "b"}})
	d, began := stuck(t, e)
	asked := began + 2*patience
	for _, tc := range []struct {
		at   time.Duration
		want error
	}{{asked, nil}, {asked + patience, nil}, {asked + patience + 1, errLeft}} {
		if err := d.hopeless(tc.at); !errors.Is(err, tc.want) {
			t.Errorf("%v after the member was asked: %v, want %v", tc.at-asked, err, tc.want)
		}
	}
}

// TestR17_MembersAreAskedForABoundedTime, also where new ones come all the time.
func TestR17_MembersAreAskedForABoundedTime(t *testing.T) {
	e := bareEngine()
	e.view = viewOf(Peer{Node: "self"}, []Peer{{Node: "b"}})
	d, began := stuck(t, e)
	if !d.askMembers(began) || !d.begged["b"] {
		t.Fatalf("asked: %v", d.begged)
	}
	e.view = viewOf(Peer{Node: "self"}, []Peer{{Node: "b"}, {Node: "c"}})
	if d.askMembers(began+patience+1) || d.begged["c"] {
		t.Errorf("after %v members were asked still: %v", patience, d.begged)
	}
	if !d.askMembers(began+patience) || !d.begged["c"] {
		t.Errorf("after %v none was asked any more: %v", patience, d.begged)
	}
}

func TestR16_TheLimitOfANodeThatHasLeftIsForgotten(t *testing.T) {
	b := newBuckets()
	b.set(0, 1<<20)
	for _, n := range []plan.Node{"a", "b"} {
		take(t, b, n, 1)
	}
	b.forget("a")
	if _, kept := b.peers["b"]; len(b.peers) != 1 || !kept {
		t.Errorf("left: %v", b.peers)
	}
}

// TestLimits_HoldForAPeerThatIsServedAlready: neither a higher nor a lower one waits for
// the next time that the peer comes.
func TestLimits_HoldForAPeerThatIsServedAlready(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBuckets()
		for _, mib := range []int{2, 8, 1} {
			b.set(0, int64(mib)<<20)
			took := take(t, b, "a", mib*10<<20)
			if took < 9*time.Second || took > 10*time.Second {
				t.Errorf("%d MiB at %d MiB/s took %v", mib*10, mib, took)
			}
		}
	})
}
