package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/fairway-registry/fairway/internal/nodeapi"
)

const (
	// joinEvery is how often a node that has company looks for nodes that it does
	// not know: two halves of a cluster that was cut find each other so.
	joinEvery = 30 * time.Second
	// joinMost bounds the nodes that are spoken to each time. Of many a few do,
	// since they know the rest.
	joinMost    = 8
	joinTimeout = 5 * time.Second
	nodesMax    = 64 << 20 // bytes of the registry's list
)

// joiner returns the function that says where other nodes may be.
func (a *Agent) joiner(s *swarming) func(context.Context) ([]string, error) {
	var last time.Time
	var listed []string // by the registry, when it last answered
	return func(ctx context.Context) ([]string, error) {
		if s.gossip == nil || len(s.gossip.Members()) > 1 && time.Since(last) < joinEvery {
			return nil, nil
		}
		last = time.Now()
		ctx, cancel := context.WithTimeout(ctx, joinTimeout)
		defer cancel()
		found := a.named(ctx)
		if a.cfg.Swarm.JoinRegistry {
			now, err := a.registered(ctx)
			if err != nil {
				a.log.Debug("the registry does not say which nodes there are", "err", err)
			} else {
				listed = now
			}
			found = append(found, listed...)
		}
		rand.Shuffle(len(found), func(i, j int) { found[i], found[j] = found[j], found[i] })
		return found[:min(joinMost, len(found))], nil
	}
}

// named are the addresses of the setting join. A name may stand for many nodes.
func (a *Agent) named(ctx context.Context) []string {
	_, standard, _ := net.SplitHostPort(a.cfg.Swarm.Gossip) // validated
	var found []string
	for _, text := range a.cfg.Swarm.Join {
		host, port, err := net.SplitHostPort(text)
		if err != nil {
			host, port = strings.Trim(text, "[]"), standard
		}
		ips, err := net.DefaultResolver.LookupHost(ctx, host)
		if err != nil {
			a.log.Debug("a name of other nodes does not resolve", "name", host, "err", err)
			continue
		}
		for _, ip := range ips {
			found = append(found, net.JoinHostPort(ip, port))
		}
	}
	return found
}

// found is where the registry lets other nodes find this one; "" is nowhere.
func (a *Agent) found() string {
	if a.swarm == nil || !a.cfg.Swarm.JoinRegistry {
		return ""
	}
	return a.swarm.gossip.Addr()
}

// registered are the addresses that other nodes have told the registry.
func (a *Agent) registered(ctx context.Context) ([]string, error) {
	var found []string
	for after := ""; ; {
		list, err := a.listed(ctx, after)
		if err != nil {
			return nil, err
		}
		for _, n := range list.Nodes {
			if n.Swarm != "" && n.State == nodeapi.StateFresh && n.Name != a.name {
				found = append(found, n.Swarm)
			}
		}
		if list.Next <= after {
			return found, nil
		}
		after = list.Next
	}
}

// listed is a page of the registry's list of nodes.
func (a *Agent) listed(ctx context.Context, after string) (list nodeapi.NodeList, err error) {
	target := strings.TrimSuffix(a.cfg.Registry, "/") + "/api/v1/nodes"
	if after != "" {
		target += "?after=" + url.QueryEscape(after)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return list, err
	}
	res, err := a.upstreams.transport.RoundTrip(req)
	if err != nil {
		return list, fmt.Errorf("ask the registry for its nodes: %w", err)
	}
	defer func() { _ = res.Body.Close() }() // it was only read
	if res.StatusCode != http.StatusOK {
		return list, fmt.Errorf("ask the registry for its nodes: it answers %s", res.Status)
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, nodesMax)).Decode(&list); err != nil {
		return list, fmt.Errorf("read the registry's list of nodes: %w", err)
	}
	return list, nil
}
