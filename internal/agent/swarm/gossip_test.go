package swarm_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fairway-registry/fairway/internal/agent/swarm"
	"github.com/fairway-registry/fairway/internal/agent/swarm/plan"
	"github.com/fairway-registry/fairway/internal/agent/swarm/swarmtest"
)

func gossip(t *testing.T, name, secret string, join func() []string) *swarm.Gossip {
	t.Helper()
	return gossipTo(t, io.Discard, name, secret, join)
}

func gossipTo(t *testing.T, log io.Writer, name, secret string, join func() []string) *swarm.Gossip {
	t.Helper()
	keys, err := swarm.NewKeys([]byte(secret), name)
	if err != nil {
		t.Fatal(err)
	}
	g, err := swarm.NewGossip(swarm.GossipOptions{
		Self: swarm.Peer{Node: plan.Node(name), Addr: "127.0.0.1:1", Zone: "z"}, Keys: keys, Bind: "127.0.0.1:0",
		Join:  func(context.Context) ([]string, error) { return join(), nil },
		Every: 200 * time.Millisecond, Log: slog.New(slog.NewTextHandler(log, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return g
}

func TestGossip_MembersFindEachOtherAndStrangersDoNot(t *testing.T) {
	first := gossip(t, "node-0", swarmtest.Secret, func() []string { return nil })
	to := func() []string { return []string{first.Addr()} }
	all := []*swarm.Gossip{first}
	for i := 1; i < 4; i++ {
		all = append(all, gossip(t, fmt.Sprintf("node-%d", i), swarmtest.Secret, to))
	}
	stranger := gossip(t, "stranger", "another secret, also long enough", to)
	for _, g := range all {
		eventually(t, "all members are known", func() bool { return len(g.Members()) == 4 })
	}
	for _, m := range first.Members() {
		if m.Zone != "z" || m.Addr != "127.0.0.1:1" || m.Node == "stranger" {
			t.Errorf("a member says of itself: %+v", m)
		}
	}
	if n := len(stranger.Members()); n != 1 {
		t.Errorf("the stranger sees %d members", n)
	}
}

// lines is a log that tests read while it is written.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), text)
}

// TestGossip_SaysWhatOnlyItsOwnerCanMend does so at the usual level, and once.
func TestGossip_SaysWhatOnlyItsOwnerCanMend(t *testing.T) {
	var first, strange, twin lines
	a := gossipTo(t, &first, "a", swarmtest.Secret, func() []string { return nil })
	to := func() []string { return []string{a.Addr()} }
	gossip(t, "b", swarmtest.Secret, to)
	eventually(t, "b is a member", func() bool { return len(a.Members()) == 2 })
	gossipTo(t, &strange, "stranger", "another secret, also long enough", to)
	eventually(t, "the stranger says that it is alone", func() bool { return strange.count("no other agent could be joined") > 0 })
	eventually(t, "the member says that somebody has another secret", func() bool { return first.count("another secret") == 1 })
	gossipTo(t, &twin, "b", swarmtest.Secret, to)
	eventually(t, "the member says that two have one name", func() bool { return first.count("the same name") == 1 })
}

func TestKeys_RefuseAWeakSecret(t *testing.T) {
	if _, err := swarm.NewKeys([]byte("  short  \n"), "n"); err == nil {
		t.Error("a short secret was taken")
	}
}
