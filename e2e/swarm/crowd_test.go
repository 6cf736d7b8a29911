package swarm

import (
	"context"
	"testing"
	"time"

	"github.com/fairway-registry/fairway/internal/crowd"
)

// even is a link that is as fast in both directions.
func even(rate int64) crowd.Link { return crowd.Link{Upload: rate, Download: rate} }

// loose is the factor over the fluid limit that is allowed where nothing goes
// wrong: measured are 1.1 to 1.3; a scheduler that lets half of the links idle
// has 2, pulls from the registry have as many as there are nodes.
const loose = 1.8

func TestN9_FlashCrowdCostsOneCopy(t *testing.T) {
	s := newScene(t, setting{nodes: 6, size: 16 * mib, up: 8 * mbps, link: even(8 * mbps)})
	pulls := s.pull(s.crowd.All(), nil)()
	s.complete(pulls)
	s.within(1.05)
	s.inTime("the crowd", slowest(pulls), s.bound(6), loose)
}

// Arrivals over ten seconds: early nodes are done before late ones begin. Time
// counts from the last arrival, and by then most of it is all over the place.
func TestN9_StaggeredArrivals(t *testing.T) {
	s := newScene(t, setting{nodes: 6, size: 20 * mib, up: 5 * mbps, link: even(5 * mbps)})
	pulls := s.pull(s.crowd.All(), func(i int) time.Duration { return time.Duration(i) * 2 * time.Second })()
	s.complete(pulls)
	s.within(1.05)
	s.inTime("the last to arrive", pulls[5].Took, s.bound(6), loose)
	s.inTime("the first", pulls[0].Took, s.bound(6), loose)
}

func TestN9_SecondWaveCostsNothing(t *testing.T) {
	s := newScene(t, setting{nodes: 7, size: 16 * mib, up: 8 * mbps, link: even(8 * mbps)})
	first, second := s.crowd.All()[:3], s.crowd.All()[3:]
	pulls := s.pull(first, nil)()
	s.complete(pulls)
	s.within(1.05)
	before := s.sent()
	pulls = s.pull(second, nil)()
	s.complete(pulls)
	if more := s.sent() - before; more > 0.05 {
		t.Errorf("the second wave took %.2f copies from the registry although three nodes have it", more)
	}
	// Three seeds and the registry upload, so the nodes' downloads are the limit.
	s.inTime("the second wave", slowest(pulls), crowd.Bound(s.im.Size(), 8*mbps, []crowd.Link{s.o.link}), loose)
}

// A node joins the cluster and pulls, every second.
func TestN9_ANewNodeEverySecond(t *testing.T) {
	s := newScene(t, setting{nodes: 1, size: 16 * mib, up: 5 * mbps, link: even(5 * mbps)})
	waits := []func() []crowd.Pull{s.pull(s.crowd.All(), nil)}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for range 5 {
		<-tick.C
		n := s.start(nil)
		waits = append(waits, s.pull([]*crowd.Node{n}, nil))
	}
	for i, wait := range waits {
		pulls := wait()
		s.complete(pulls)
		// Who comes before its gossip has spread begins at the registry.
		s.inTime("node "+string(rune('1'+i)), pulls[0].Took, s.bound(1), 2)
	}
	s.within(1.3)
}

// One node has a tenth of everybody's link and begins first. It must hold up
// nobody else.
func TestN9_ATenthOfTheSpeedSlowsNobodyElse(t *testing.T) {
	crowded := setting{nodes: 5, size: 32 * mib, up: 5 * mbps, link: even(5 * mbps)}
	// A busy machine is slower than the links. How much, the same crowd without the slow one shows.
	var without time.Duration
	t.Run("without it", func(t *testing.T) {
		s := newScene(t, crowded)
		s.gather(5)
		pulls := s.pull(s.crowd.All(), nil)()
		s.complete(pulls)
		without = slowest(pulls)
		t.Logf("%.2f s without a slow one", without.Seconds())
	})
	s := newScene(t, crowded)
	slow := s.start(func(n *crowd.Node) { n.Link = even(500_000) })
	s.gather(6)
	began := time.Now()
	s.pull([]*crowd.Node{slow}, nil)
	pulls := s.pull(s.crowd.All()[:5], nil)()
	s.complete(pulls)
	s.inTime("the others", slowest(pulls), max(s.bound(5), without*5/6), loose)
	s.within(1.15)
	// At such a rate one piece takes half a second, so much of what it asks for
	// comes too late to count. But it is not starved for good.
	ctx, cancel := context.WithTimeout(s.ctx, 30*time.Second)
	defer cancel()
	var got float64
	err := crowd.Await(ctx, func() bool {
		var err error
		got, err = slow.Metric(ctx, "fairway_node_swarm_received_bytes_total", "content")
		return err == nil && got > 0
	})
	if err != nil {
		t.Errorf("the slow one was starved: %v", err)
	}
	link := time.Since(began).Seconds() * float64(slow.Link.Download)
	t.Logf("by then the slow one took %.0f %% of what its link carries", 100*got/link)
}
