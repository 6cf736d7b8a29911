package main

import (
	"context"
	"fmt"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"github.com/fairway-registry/fairway/internal/adminclient"
	"github.com/fairway-registry/fairway/internal/nodeapi"
)

func (a *app) nodesCommand() *cobra.Command {
	cmd := a.asks(&cobra.Command{
		Use:   "nodes [NODE]",
		Short: "List the nodes that report to the registry, and what they run",
		Long: `List the nodes that report to the registry, or tell all of one. What runs on a
node stays in the registry, even deleted or untagged: while the node is fresh,
and while it is late, until KEPT UNTIL, since a node that is silent may have its
containers running. Nothing stays for a node that is gone.`,
		Example: `  fairway nodes
  fairway nodes worker-1`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usagef("%s does not know what to do with %q", cmd.CommandPath(), args[1])
			}
			return nil
		},
	}, func(cmd *cobra.Command, args []string, q *asking, c *adminclient.Client) error {
		if len(args) == 1 {
			return a.showNode(cmd, args[0], q, c)
		}
		list, err := allNodes(cmd.Context(), c)
		if err != nil {
			return err
		}
		if q.json {
			return a.stdout.json(list)
		}
		a.printNodes(list.Nodes)
		return nil
	})
	cmd.AddCommand(a.nodesForgetCommand())
	return cmd
}

// allNodes reads the list of nodes page by page.
func allNodes(ctx context.Context, c *adminclient.Client) (list nodeapi.NodeList, err error) {
	list.Nodes = []nodeapi.Node{}
	for {
		var page nodeapi.NodeList
		if err := c.Call(ctx, "GET", "/nodes?"+url.Values{"after": {list.Next}}.Encode(), nil, &page); err != nil {
			return list, err
		}
		list.Nodes, list.Next = append(list.Nodes, page.Nodes...), page.Next
		if page.Next == "" {
			return list, nil
		}
	}
}

func (a *app) nodesForgetCommand() *cobra.Command {
	return a.asks(&cobra.Command{
		Use:   "forget NODE",
		Short: "Let go what a node ran that will not come back",
		Long: `Let go what a node ran that will not come back, without waiting for the end of
its grace. A node that is alive is known again with its next report.`,
		Example: `  fairway nodes forget worker-1`,
		Args:    exactly("the name of a node, as \"fairway nodes\" lists it"),
	}, func(cmd *cobra.Command, args []string, q *asking, c *adminclient.Client) error {
		if err := c.Call(cmd.Context(), "DELETE", "/nodes/"+url.PathEscape(args[0]), nil, nil); err != nil {
			return err
		}
		if q.json {
			return a.stdout.json(map[string]string{"forgotten": args[0]})
		}
		a.stdout.printf("Forgot node %s.\n", args[0])
		return nil
	})
}

func (a *app) printNodes(nodes []nodeapi.Node) {
	t := a.stdout
	if len(nodes) == 0 && t.tty {
		t.printf("No node has reported.\n")
		return
	}
	var rows [][]string
	for _, n := range nodes {
		rows = append(rows, []string{n.Name, nodeState(t, n), runtimesText(n), cacheText(t, n.Cache), runsText(n), t.when(n.SeenAt), t.when(n.KeptUntil)})
	}
	t.table([]string{"NODE", "STATE", "RUNTIMES", "CACHE", "RUNS", "LAST SEEN", "KEPT UNTIL"}, rows)
}

func nodeState(t *terminal, n nodeapi.Node) string {
	switch n.State {
	case nodeapi.StateFresh:
		return t.green(n.State)
	case nodeapi.StateLate:
		return t.yellow(n.State)
	}
	return t.red(n.State)
}

func runtimesText(n nodeapi.Node) string {
	var names []string
	for _, r := range n.Runtimes {
		name := r.Name
		if !r.Answers {
			name += " (silent)"
		}
		names = append(names, name)
	}
	return orDash(strings.Join(names, ","))
}

func cacheText(t *terminal, c nodeapi.Cache) string {
	return t.size(c.UsedBytes) + "/" + t.size(c.QuotaBytes)
}

// runsText names a few of the images that a node has in use.
func runsText(n nodeapi.Node) string {
	if len(n.Runs) == 0 {
		return "-"
	}
	first := imageText(n.Runs[0])
	if n.Images == 1 {
		return first
	}
	return fmt.Sprintf("%s and %d more", first, n.Images-1)
}

// imageText is an image as people call it, or its digest.
func imageText(r nodeapi.Running) string {
	if r.Image != "" {
		return r.Image
	}
	return string(r.Digests[0])
}

func (a *app) showNode(cmd *cobra.Command, name string, q *asking, c *adminclient.Client) error {
	var n nodeapi.Node
	if err := c.Call(cmd.Context(), "GET", "/nodes/"+url.PathEscape(name), nil, &n); err != nil {
		return err
	}
	if q.json {
		return a.stdout.json(n)
	}
	t := a.stdout
	t.fields([2]string{"node", n.Name}, [2]string{"state", nodeState(t, n)}, [2]string{"version", orDash(n.Version)}, [2]string{"runtimes", runtimesText(n)},
		[2]string{"cache", cacheText(t, n.Cache)}, [2]string{"first seen", t.when(n.FirstSeen)}, [2]string{"last seen", t.when(n.SeenAt)},
		[2]string{"kept until", t.when(n.KeptUntil)})
	for _, r := range n.Runtimes {
		if r.Error != "" {
			t.printf("%s\n", t.yellow(fmt.Sprintf("%s does not answer: %s", r.Name, r.Error)))
		}
	}
	var rows [][]string
	for _, r := range n.Runs {
		what := count(int64(r.Containers), "container", "containers")
		if r.Pinned {
			what += ", pinned"
		}
		for i, d := range r.Digests {
			if i > 0 {
				what = "the same"
			}
			rows = append(rows, []string{t.digest(string(d)), orDash(r.Image), what, t.when(r.Since)})
		}
	}
	if len(rows) > 0 {
		t.printf("\n")
		t.table([]string{"DIGEST", "IMAGE", "USED BY", "SINCE"}, rows)
	}
	return nil
}
