package swarm

import (
	"testing"
	"time"

	"github.com/fairway-registry/fairway/internal/crowd"
)

// newNet makes machines on a switch whose links carry rate bytes a second.
func newNet(t *testing.T, machines int, rate int64) *crowd.Net {
	t.Helper()
	n, err := crowd.NewNet(machines, rate)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

// wire is how much more than the bytes of an image links carry for it: headers of
// TCP, IP and Ethernet, TLS, and what nodes say to each other.
const wire = 1.1

func TestN9_FlashCrowdOnASwitch(t *testing.T) {
	const rate = 8 * mbps
	s := newScene(t, setting{nodes: 6, size: 16 * mib, up: rate, link: crowd.Link{}, net: newNet(t, 7, rate)})
	pulls := s.pull(s.crowd.All(), nil)()
	s.complete(pulls)
	s.within(1.05)
	s.o.link = even(rate)
	s.inTime("the crowd", slowest(pulls), s.bound(6), wire*loose)
}

// Half of the machines are cut off from the registry and from the others in
// mid-pull. The others complete; these do when the cut is healed.
func TestN8_PartitionAndHeal(t *testing.T) {
	const rate = 4 * mbps
	net := newNet(t, 7, rate)
	s := newScene(t, setting{nodes: 6, size: 16 * mib, up: rate, link: crowd.Link{}, net: net})
	s.o.link = even(rate)
	nodes := s.crowd.All()
	waitCut := s.pull(nodes[3:], nil)
	wait := s.pull(nodes[:3], nil)
	s.awaitSent(0.4)
	if err := net.Part(net.Host(4), net.Host(5), net.Host(6)); err != nil {
		t.Fatal(err)
	}
	pulls := wait()
	s.complete(pulls)
	s.inTime("the side of the registry", slowest(pulls), s.bound(3), 3)
	if err := net.Heal(); err != nil {
		t.Fatal(err)
	}
	healed := time.Now()
	cut := waitCut()
	s.complete(cut)
	last := healed
	for _, p := range cut {
		if end := p.Began.Add(p.Took); end.After(last) {
			last = end
		}
	}
	s.within(2.5)
	// Gossip takes up to half a minute to find that the other side is back; the
	// registry is asked again long before.
	s.inTime("those that were cut off, from then on", last.Sub(healed), s.bound(3), 5)
}
