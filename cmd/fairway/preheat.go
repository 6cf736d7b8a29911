package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/fairway-registry/fairway/internal/adminclient"
	"github.com/fairway-registry/fairway/internal/nodeapi"
	"github.com/fairway-registry/fairway/internal/registry/adminapi"
	"github.com/fairway-registry/fairway/internal/registry/meta"
	"github.com/fairway-registry/fairway/internal/unit"
)

// choiceFlags say which nodes, and what of an index.
type choiceFlags struct {
	nodes string
	share unit.Percent
	all   bool
}

func (f *choiceFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.nodes, "nodes", "", "only nodes with `LABEL=VALUE`, or whose name matches a pattern; joined by commas, all must hold")
	cmd.Flags().Var(&f.share, "share", "only this share of them, rounded up, as in 50%")
	cmd.Flags().BoolVar(&f.all, "all-platforms", false, "fetch all images of an index, and not the one for the node")
}

// check refuses a share of nothing, which the API takes for no choice at all.
func (f *choiceFlags) check(cmd *cobra.Command) error {
	if f.share == 0 && cmd.Flags().Changed("share") {
		return usagef("--share 0%% chooses no node; leave it out to choose all")
	}
	return nil
}

func (a *app) preheatCommand() *cobra.Command {
	var choice choiceFlags
	var wait bool
	cmd := a.asks(&cobra.Command{
		Use:   "preheat REF...",
		Short: "Have nodes fetch images before they are needed",
		Long: `Have nodes fetch images before they are needed: all nodes that report to the
registry, or those that --nodes and --share choose. REF is an image of the
registry, as in team/app:v1, or of another one that the nodes mirror, as in
docker.io/library/alpine. A node whose cache has no room for an image says so;
nothing makes way for it but what is cold.

With --wait the command shows how far each node is and ends when all are
through, with status 0 if every node has every image. Ctrl-C ends the wait only;
"fairway preheat rm" ends a preheat.`,
		Example: `  fairway preheat team/app:v2 --wait
  fairway preheat team/app:v2 --nodes zone=a --share 50%
  fairway preheat ls`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("%s needs an image, as in team/app:v1", cmd.CommandPath())
			}
			return nil
		},
	}, func(cmd *cobra.Command, args []string, q *asking, c *adminclient.Client) error {
		if err := choice.check(cmd); err != nil {
			return err
		}
		var begun []meta.Preheat
		for _, ref := range args {
			var p meta.Preheat
			req := adminapi.PreheatRequest{Reference: ref, Nodes: choice.nodes, Share: choice.share, AllPlatforms: choice.all}
			if err := begin(cmd.Context(), c, "/preheats", req, &p); err != nil {
				return fmt.Errorf("%s: %w", ref, err)
			}
			begun = append(begun, p)
		}
		if wait {
			return a.followPreheats(cmd.Context(), c, q, begun)
		}
		if q.json {
			return a.stdout.json(adminapi.PreheatList{Preheats: begun})
		}
		for _, p := range begun {
			a.stdout.printf("Preheat %d: %s on %s.\n", p.ID, p.Reference, count(int64(len(p.Nodes)), "node", "nodes"))
		}
		return nil
	})
	choice.register(cmd)
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until all nodes are through")
	cmd.AddCommand(a.preheatListCommand(), a.preheatRemoveCommand(), a.preheatRulesCommand())
	return cmd
}

// followPreheats shows preheats until all are over, and turns their end into the
// command's.
func (a *app) followPreheats(ctx context.Context, c *adminclient.Client, q *asking, ps []meta.Preheat) error {
	board := &board{out: a.stderr}
	wait := answerWait
	if board.out.tty && !q.json {
		wait = barInterval
	}
	for i := range ps {
		for first := true; ps[i].State == meta.PreheatRunning || first; first = false {
			now, err := watch(ctx, meta.Preheat{}, func(ctx context.Context, _ time.Duration) (meta.Preheat, error) {
				var now meta.Preheat
				err := c.Call(ctx, "GET", fmt.Sprintf("/preheats/%d?wait=%s", ps[i].ID, wait), nil, &now)
				return now, err
			}, func(p meta.Preheat) bool { return p.ID != 0 }, wait)
			if err != nil {
				board.clear()
				if errors.Is(err, context.Canceled) {
					a.stderr.printf("The nodes go on; \"fairway preheat ls\" shows how far they are.\n")
				}
				return err
			}
			before := ps[i]
			switch ps[i] = now; {
			case q.json:
			case board.out.tty:
				board.draw(preheatRows(a.stderr, ps))
			default:
				a.tellSteps(before, now, first)
			}
		}
	}
	board.clear()
	if q.json {
		if err := a.stdout.json(adminapi.PreheatList{Preheats: ps}); err != nil {
			return err
		}
	} else {
		a.stdout.table(preheatHeader, preheatRows(a.stdout, ps))
	}
	return preheatEnd(ps)
}

// tellSteps writes a line for each node that is in another state than before.
func (a *app) tellSteps(before, now meta.Preheat, first bool) {
	states := map[string]string{}
	for _, n := range before.Nodes {
		states[n.Node] = n.State
	}
	for _, n := range now.Nodes {
		if first || states[n.Node] != n.State {
			a.stderr.printf("%s on %s: %s, %s\n", now.Reference, n.Node, n.State, shareBar(a.stderr, n))
		}
	}
}

// preheatEnd is nil where every node has every image.
func preheatEnd(ps []meta.Preheat) error {
	done, nodes := 0, 0
	for _, p := range ps {
		for _, n := range p.Nodes {
			if nodes++; n.State == nodeapi.TaskDone {
				done++
			}
		}
	}
	switch {
	case done == nodes:
		return nil
	case done > 0:
		return errPartly
	}
	return errTold
}

var preheatHeader = []string{"ID", "IMAGE", "NODE", "STATE", "PROGRESS", "DONE", "TOTAL", "ERROR"}

func preheatRows(t *terminal, ps []meta.Preheat) (rows [][]string) {
	for _, p := range ps {
		for _, n := range p.Nodes {
			rows = append(rows, []string{strconv.FormatInt(p.ID, 10), p.Reference, n.Node, taskState(t, n.State), shareBar(t, n), t.size(n.DoneBytes), t.size(n.TotalBytes), orDash(n.Error)})
		}
	}
	return rows
}

func taskState(t *terminal, state string) string {
	switch state {
	case nodeapi.TaskDone:
		return t.green(state)
	case nodeapi.TaskFailed:
		return t.red(state)
	case nodeapi.TaskSkipped:
		return t.yellow(state)
	}
	return state
}

// shareBar is how far a node is: a bar for a person, a number for a program.
func shareBar(t *terminal, n meta.PreheatNode) string {
	const width = 20
	part := 0.0
	switch {
	case n.State == nodeapi.TaskDone:
		part = 1
	case n.TotalBytes > 0:
		part = min(float64(n.DoneBytes)/float64(n.TotalBytes), 1)
	}
	percent := fmt.Sprintf("%d%%", int(part*100))
	if !t.tty {
		return percent
	}
	full := int(part * width)
	return "[" + strings.Repeat("=", full) + strings.Repeat(" ", width-full) + "] " + fmt.Sprintf("%4s", percent)
}

// board is a table on a terminal that is drawn again and again in its place.
type board struct {
	out   *terminal
	lines int
}

// draw shows rows. Of more than the terminal has lines, those at their end are
// left out first.
func (b *board) draw(rows [][]string) {
	b.clear()
	most := 24
	if f, ok := b.out.Writer.(*os.File); ok {
		if _, height, err := term.GetSize(int(f.Fd())); err == nil && height > 3 {
			most = height
		}
	}
	hidden := 0
	if room := most - 3; len(rows) > room {
		hidden = len(rows) - room
		rows = rows[len(rows)-room:]
	}
	b.out.table(preheatHeader, rows)
	b.lines = len(rows) + 1
	if hidden > 0 {
		b.out.printf("and %d more\n", hidden)
		b.lines++
	}
}

func (b *board) clear() {
	if b.lines > 0 {
		b.out.printf("\x1b[%dA\x1b[J", b.lines) // up, and all below away
		b.lines = 0
	}
}

func (a *app) preheatListCommand() *cobra.Command {
	var n int
	cmd := a.asks(&cobra.Command{
		Use:     "ls [ID]",
		Aliases: []string{"list"},
		Short:   "List preheats, newest first, or the nodes of one",
		Example: `  fairway preheat ls -n 5
  fairway preheat ls 7`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usagef("%s does not know what to do with %q", cmd.CommandPath(), args[1])
			}
			return nil
		},
	}, func(cmd *cobra.Command, args []string, q *asking, c *adminclient.Client) error {
		if len(args) == 1 {
			return a.showPreheat(cmd.Context(), c, q, args[0])
		}
		var list adminapi.PreheatList
		if err := c.Call(cmd.Context(), "GET", "/preheats?n="+strconv.Itoa(n), nil, &list); err != nil {
			return err
		}
		if q.json {
			return a.stdout.json(list)
		}
		var rows [][]string
		for _, p := range list.Preheats {
			by := p.Actor
			if p.Rule != 0 {
				by = fmt.Sprintf("rule %d", p.Rule)
			}
			done := 0
			for _, n := range p.Nodes {
				if n.State == nodeapi.TaskDone {
					done++
				}
			}
			rows = append(rows, []string{strconv.FormatInt(p.ID, 10), p.Reference, taskState(a.stdout, p.State), fmt.Sprintf("%d/%d", done, len(p.Nodes)), by, a.stdout.when(p.CreatedAt)})
		}
		a.stdout.table([]string{"ID", "IMAGE", "STATE", "NODES", "BY", "BEGAN"}, rows)
		return nil
	})
	cmd.Flags().IntVarP(&n, "n", "n", 20, "list `N` at most")
	return cmd
}

func (a *app) showPreheat(ctx context.Context, c *adminclient.Client, q *asking, arg string) error {
	id, err := strconv.ParseInt(arg, 10, 64)
	if err != nil || id < 1 {
		return usagef("%q is no ID of a preheat; \"fairway preheat ls\" lists them", arg)
	}
	var p meta.Preheat
	if err := c.Call(ctx, "GET", fmt.Sprintf("/preheats/%d", id), nil, &p); err != nil {
		return err
	}
	if q.json {
		return a.stdout.json(p)
	}
	a.stdout.table(preheatHeader, preheatRows(a.stdout, []meta.Preheat{p}))
	return nil
}

func (a *app) preheatRemoveCommand() *cobra.Command {
	return a.asks(&cobra.Command{
		Use:     "rm ID",
		Aliases: []string{"remove"},
		Short:   "End and forget a preheat; what was fetched stays cached",
		Example: `  fairway preheat rm 7`,
		Args:    exactly("the ID of a preheat, as \"fairway preheat ls\" lists it"),
	}, func(cmd *cobra.Command, args []string, q *asking, c *adminclient.Client) error {
		return a.removeByID(cmd.Context(), c, q, args[0], "preheat", "/preheats/", "fairway preheat ls")
	})
}

// removeByID removes what is a noun at a path, and listed by another command.
func (a *app) removeByID(ctx context.Context, c *adminclient.Client, q *asking, arg, noun, path, lists string) error {
	id, err := strconv.ParseInt(arg, 10, 64)
	if err != nil || id < 1 {
		return usagef("%q is no ID of a %s; %q lists them", arg, noun, lists)
	}
	if err := c.Call(ctx, "DELETE", path+strconv.FormatInt(id, 10), nil, nil); err != nil {
		return err
	}
	if q.json {
		return a.stdout.json(map[string]int64{"removed": id})
	}
	a.stdout.printf("%s %d is removed.\n", strings.ToUpper(noun[:1])+noun[1:], id)
	return nil
}
