package agent

import (
	"net"
	"testing"
)

// TestReachable_IsOfTheFamilyThatGossipListensOn dials the address that others
// would be told, at a socket bound to all of the family's.
func TestReachable_IsOfTheFamilyThatGossipListensOn(t *testing.T) {
	for network, v6 := range map[string]bool{"tcp4": false, "tcp": true} {
		ip := reachable(v6)
		if ip == "" {
			t.Fatalf("%s: this machine has no address but loopback", network)
		}
		ln, err := net.Listen(network, ":0")
		if err != nil {
			t.Fatal(err)
		}
		_, port, _ := net.SplitHostPort(ln.Addr().String())
		c, err := net.Dial("tcp", net.JoinHostPort(ip, port))
		if err != nil {
			t.Errorf("%s: nobody reaches it: %v", network, err)
		} else {
			_ = c.Close()
		}
		_ = ln.Close()
	}
}
