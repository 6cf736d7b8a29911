package swarm

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fairway-registry/fairway/internal/crowd"
)

// The first of all, who has begun to fetch everything, is killed at 30 %. What it
// alone had is fetched again.
func TestN8_FirstFetcherKilledAt30Percent(t *testing.T) {
	s := newScene(t, setting{nodes: 6, size: 16 * mib, up: 8 * mbps, link: even(8 * mbps)})
	first, others := s.crowd.All()[0], s.crowd.All()[1:]
	s.pull([]*crowd.Node{first}, nil)
	s.awaitSent(0.1)
	wait := s.pull(others, nil)
	s.awaitSent(0.3)
	first.Proc.Kill()
	pulls := wait()
	s.complete(pulls)
	s.within(1.35) // at worst all that the killed one had had
	// A node that dies without a word is found out by what it was asked for.
	s.inTime("the survivors", slowest(pulls), s.bound(5), 2.5)
}

func TestN8_HalfOfTheNodesKilled(t *testing.T) {
	s := newScene(t, setting{nodes: 8, size: 16 * mib, up: 8 * mbps, link: even(8 * mbps)})
	doomed, others := s.crowd.All()[:4], s.crowd.All()[4:]
	s.pull(doomed, nil)
	wait := s.pull(others, nil)
	s.awaitSent(0.5)
	for _, n := range doomed {
		go n.Proc.Kill() // all at once
	}
	pulls := wait()
	s.complete(pulls)
	s.within(1.55) // what only the killed had is fetched again
	s.inTime("the survivors", slowest(pulls), s.bound(4), 3)
}

// The registry can send a copy in a third of the time that a node takes to get
// one, and is killed when it has: the nodes have half of it each, and all of it
// together.
func TestN8_RegistryKilledWhenEveryPieceIsSomewhere(t *testing.T) {
	s := newScene(t, setting{nodes: 6, size: 16 * mib, up: 24 * mbps, link: even(8 * mbps)})
	wait := s.pull(s.crowd.All(), nil)
	s.awaitSent(1)
	s.origin.Kill()
	pulls := wait()
	s.complete(pulls)
	s.within(1.05)
	for _, p := range pulls {
		if p.Tries > 1 {
			t.Errorf("%s had to try %d times", p.Node.Name, p.Tries)
		}
	}
	s.inTime("the crowd", slowest(pulls), s.bound(6), 2.2)
}

func TestN8_RegistryKilledAt30PercentAndBack(t *testing.T) {
	s := newScene(t, setting{nodes: 5, size: 16 * mib, up: 8 * mbps, link: even(8 * mbps)})
	wait := s.pull(s.crowd.All(), nil)
	s.awaitSent(0.3)
	s.origin.Kill()
	const away = 3 * time.Second
	time.AfterFunc(away, func() {
		if err := s.origin.Start(s.ctx); err != nil {
			t.Error(err)
		}
	})
	pulls := wait()
	s.complete(pulls)
	s.within(1.1)
	// Whoever waits for the registry asks it again within seconds.
	s.inTime("the crowd", slowest(pulls)-away, s.bound(5), 5)
}

// A node whose disk is too small for the image hands it through (N6) and holds up
// nobody.
func TestN6_DiskFullOnOneNode(t *testing.T) {
	s := newScene(t, setting{nodes: 4, size: 16 * mib, up: 8 * mbps, link: even(8 * mbps)})
	var disk string
	full := s.start(func(n *crowd.Node) {
		disk = filepath.Join(n.Dir, "data")
		if err := os.MkdirAll(disk, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, "size=9m"); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() {
		full.Proc.Kill()
		if err := syscall.Unmount(disk, 0); err != nil {
			t.Error(err)
		}
	})
	s.gather(5)
	last := s.pull([]*crowd.Node{full}, nil)
	pulls := s.pull(s.crowd.All()[:4], nil)()
	s.complete(pulls)
	s.complete(last())
	s.within(2.1) // one for the swarm, one through the full node
	// Two copies have to leave the registry now.
	s.inTime("the others", slowest(pulls), 2*s.bound(4), loose)
}

// Private content goes between nodes only where the upstream has let both pull.
func TestN10_PrivateImageWithoutTheRight(t *testing.T) {
	s := newScene(t, setting{nodes: 4, size: 8 * mib, up: 8 * mbps, link: even(8 * mbps)})
	const password = "a password of this test"
	s.origin.Private(password)
	nodes := s.crowd.All()
	for _, n := range nodes[:3] { // one after the other, so that the second could get it from the first
		s.complete([]crowd.Pull{n.Pull(s.ctx, s.im, password)})
	}
	before := s.sent()
	for _, pass := range []string{"", "the wrong one"} {
		for _, n := range nodes {
			if p := n.PullOnce(s.ctx, s.im, pass); p.Err == nil {
				t.Errorf("%s gave a private image for the password %q", n.Name, pass)
			} else if !strings.Contains(p.Err.Error(), "401") {
				t.Errorf("%s: %v; a client needs 401 to know that it has to log in", n.Name, p.Err)
			}
		}
	}
	if after := s.sent(); after != before {
		t.Errorf("the refused pulls took %.2f copies", after-before)
	}
	if got, err := nodes[3].Metric(s.ctx, "fairway_node_swarm_received_bytes_total", ""); err == nil && got > 0 {
		t.Errorf("a node without the right took %.0f bytes from the swarm", got)
	}
	s.within(1.05) // those with the right shared one copy
}
