package agent

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"net"
	"os"
	"time"

	"github.com/hashicorp/go-sockaddr"

	"github.com/fairway-registry/fairway/internal/agent/swarm"
	"github.com/fairway-registry/fairway/internal/agent/swarm/plan"
	"github.com/fairway-registry/fairway/internal/setting"
)

// addresses says who this node is to others, where it listens for gossip, and
// how others reach that; "" is where it listens.
func (a *Agent) addresses(ctx context.Context, ln net.Listener) (self swarm.Peer, bind, advertise string, err error) {
	cfg := a.cfg.Swarm
	self = swarm.Peer{Node: plan.Node(a.name), Addr: ln.Addr().String(), Zone: cfg.Zone, Host: machine(), Born: time.Now().UnixMilli()}
	host, port, err := net.SplitHostPort(cfg.Gossip)
	if err != nil {
		return self, "", "", setting.Errorf("swarm.gossip", "%v", err)
	}
	if host == "" {
		host = "0.0.0.0"
	}
	if host, err = addressOf(ctx, "swarm.gossip", host); err != nil {
		return self, "", "", err
	}
	bind = net.JoinHostPort(host, port)
	if cfg.Advertise != "" {
		known, err := addressOf(ctx, "swarm.advertise", cfg.Advertise)
		if err != nil {
			return self, "", "", err
		}
		advertise = net.JoinHostPort(known, port)
		_, listens, _ := net.SplitHostPort(self.Addr) // of a listener
		self.Addr = net.JoinHostPort(known, listens)
	} else if ip := net.ParseIP(host); ip.IsUnspecified() {
		known := reachable(ip.To4() == nil)
		if known == "" {
			return self, "", "", setting.Errorf("swarm.advertise", "this machine has no address that other nodes could reach; name one, or have gossip and listen use a certain one")
		}
		advertise = net.JoinHostPort(known, port)
	}
	return self, bind, advertise, nil
}

// reachable returns the address of this machine that other nodes most likely reach:
// a private one, or else the one from which it would talk to the world. v6 says that
// one of IPv6 will do. Empty: there is none.
func reachable(v6 bool) string {
	if ip, err := sockaddr.GetPrivateIP(); err == nil && ip != "" && (v6 || net.ParseIP(ip).To4() != nil) {
		return ip
	}
	// Addresses of documentation (RFC 5737, RFC 3849). Nothing is sent there.
	to := []string{"192.0.2.1:9"}
	if v6 {
		to = append(to, "[2001:db8::1]:9")
	}
	for _, far := range to {
		c, err := net.Dial("udp", far)
		if err != nil {
			continue // no way there
		}
		ip := c.LocalAddr().(*net.UDPAddr).IP
		_ = c.Close() // nothing was sent
		if !ip.IsLoopback() {
			return ip.String()
		}
	}
	return ""
}

// addressOf is the address of a host: gossip goes between addresses.
func addressOf(ctx context.Context, key, host string) (string, error) {
	if net.ParseIP(host) != nil {
		return host, nil
	}
	found, err := net.DefaultResolver.LookupHost(ctx, host)
	if err != nil {
		return "", setting.Errorf(key, "%v", err)
	}
	return found[0], nil
}

// machine tells machines apart. Containers on one machine see the same, other
// than with its name.
func machine() string {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil || len(id) == 0 {
		name, err := os.Hostname()
		if err != nil {
			return "" // as far from itself as from others
		}
		id = []byte(name)
	}
	sum := sha256.Sum256(id)
	return hex.EncodeToString(sum[:8])
}
