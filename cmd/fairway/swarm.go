package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/fairway-registry/fairway/internal/adminclient"
	"github.com/fairway-registry/fairway/internal/nodeapi"
	"github.com/fairway-registry/fairway/internal/unit"
)

func (a *app) swarmCommand() *cobra.Command {
	cmd := a.asksNode(&cobra.Command{
		Use:   "swarm",
		Short: "Show who shares with a node, what is under way, and what it saved",
		Long: `Show the swarm as a node sees it: its members with the bytes that went to and came
from each, the blobs that are being brought, and where the bytes came from. Saved is
the share of them that no upstream had to send. Bytes count from the agent's start;
blobs below the setting swarm.small, which nodes fetch from the upstream, are not in
them. The exit status is 4 if the node is in no swarm.`,
		Example: `  fairway swarm
  fairway swarm trace sha256:0a1b2c3d4e5f --json`,
		Args: exactly(),
	}, func(cmd *cobra.Command, _ []string, q *asking, c *adminclient.Client) error {
		var s nodeapi.Swarm
		if err := c.Call(cmd.Context(), "GET", "/swarm", nil, &s); err != nil {
			return err
		}
		if q.json {
			return a.stdout.json(s)
		}
		a.printSwarm(s)
		return nil
	})
	cmd.AddCommand(a.swarmTraceCommand())
	return cmd
}

func (a *app) printSwarm(s nodeapi.Swarm) {
	t := a.stdout
	t.fields([][2]string{
		{"node", s.Self.Node},
		{"address", s.Self.Address},
		{"members", fmt.Sprint(len(s.Members))},
		{"from peers", t.size(s.FromPeers)},
		{"from upstreams", t.size(s.FromOrigin)},
		{"saved", unit.Percent(float64(int64(s.Saved*1000+0.5)) / 10).String()},
		{"sent to peers", t.size(s.Sent)},
		{"to runtimes", fmt.Sprintf("%s from the cache, %s from peers, %s from upstreams", t.size(s.Handed.Cache), t.size(s.Handed.Peers), t.size(s.Handed.Upstreams))},
		{"upload queue", count(int64(s.UploadQueue), "piece", "pieces")},
		{"directory", count(int64(s.DirectoryBlobs), "blob", "blobs")},
	}...)
	var rows [][]string
	for _, m := range s.Members {
		state := t.green(nodeapi.PeerAlive)
		if m.BannedUntil != nil {
			state = t.red("banned until " + t.when(*m.BannedUntil))
		}
		rows = append(rows, []string{m.Node, m.Address, orDash(m.Zone), t.size(m.Sent), t.size(m.Received), state})
	}
	t.section("member", []string{"MEMBER", "ADDRESS", "ZONE", "SENT TO IT", "FROM IT", "STATE"}, rows)
	rows = nil
	for _, d := range s.Transfers {
		rows = append(rows, []string{
			t.digest(string(d.Digest)), t.size(d.SizeBytes), fmt.Sprintf("%d of %d", d.Pieces-d.Missing, d.Pieces), t.size(d.FromPeers), t.size(d.FromOrigin),
			fmt.Sprintf("%d of %d", d.Holders, d.Members), t.some(d.Neighbours, ","),
		})
	}
	t.section("transfer", []string{"TRANSFER", "SIZE", "PIECES", "FROM PEERS", "FROM UPSTREAM", "HOLDERS", "EXCHANGED WITH"}, rows)
}

// section is a table below others: for a person after an empty line, if there is
// anything in it; for a program with its kind in front of each row.
func (t *terminal) section(kind string, header []string, rows [][]string) {
	if !t.tty {
		for i := range rows {
			rows[i] = append([]string{kind}, rows[i]...)
		}
	} else if len(rows) > 0 {
		t.printf("\n")
	}
	if len(rows) > 0 {
		t.table(header, rows)
	}
}

func (a *app) swarmTraceCommand() *cobra.Command {
	return a.asksNode(&cobra.Command{
		Use:   "trace [DIGEST]",
		Short: "Show the course of a node's last pulls",
		Long: `Show the last pulls of a node that the swarm had a part in, the latest first: from
whom their bytes came and how long they took. With --json each comes with its pieces
in the order of their arrival (milliseconds, piece, index of the source), for
plotting. DIGEST chooses the pulls of one blob, and may be cut short. The exit
status is 4 if there is none, or the node is in no swarm.`,
		Example: `  fairway swarm trace
  fairway swarm trace sha256:0a1b2c3d4e5f --json`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usagef("%s does not know what to do with %q", cmd.CommandPath(), args[1])
			}
			return nil
		},
	}, func(cmd *cobra.Command, args []string, q *asking, c *adminclient.Client) error {
		var list nodeapi.SwarmTraces
		if err := c.Call(cmd.Context(), "GET", "/swarm/traces", nil, &list); err != nil {
			return err
		}
		if len(args) == 1 {
			list.Traces = slices.DeleteFunc(list.Traces, func(p nodeapi.SwarmTrace) bool { return !strings.HasPrefix(string(p.Digest), args[0]) })
			if len(list.Traces) == 0 {
				return &adminclient.Error{Status: 404, Message: "none of the last pulls was of " + args[0] + "; \"fairway swarm trace\" lists them"}
			}
		}
		if q.json {
			return a.stdout.json(list)
		}
		a.printTraces(list.Traces)
		return nil
	})
}

func (a *app) printTraces(traces []nodeapi.SwarmTrace) {
	t := a.stdout
	if len(traces) == 0 && t.tty {
		t.printf("The swarm has brought nothing yet.\n")
		return
	}
	var rows [][]string
	for _, p := range traces {
		pieces := map[int]int{} // by source
		for _, at := range p.Pieces {
			pieces[at[2]]++
		}
		var sources []string
		for i, s := range p.Sources {
			sources = append(sources, fmt.Sprintf("%s:%d", s, pieces[i]))
		}
		rows = append(rows, []string{
			t.digest(string(p.Digest)), t.size(p.SizeBytes), fmt.Sprintf("%.2fs", p.Seconds), t.size(p.FromPeers), t.size(p.FromOrigin), t.some(sources, ","),
		})
	}
	t.table([]string{"DIGEST", "SIZE", "TOOK", "FROM PEERS", "FROM UPSTREAM", "PIECES BY SOURCE"}, rows)
}
