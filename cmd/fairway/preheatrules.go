package main

import (
	"strconv"

	"github.com/spf13/cobra"

	"github.com/fairway-registry/fairway/internal/adminclient"
	"github.com/fairway-registry/fairway/internal/registry/adminapi"
	"github.com/fairway-registry/fairway/internal/registry/meta"
)

func (a *app) preheatRulesCommand() *cobra.Command {
	return a.group(&cobra.Command{
		Use:   "rules",
		Short: "List, add and remove rules by which a push begins a preheat",
		Example: `  fairway preheat rules add 'team/*' 'v*'
  fairway preheat rules ls`,
	}, a.ruleListCommand(), a.ruleAddCommand(), a.ruleRemoveCommand())
}

func (a *app) ruleListCommand() *cobra.Command {
	return a.asks(&cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List rules",
		Example: `  fairway preheat rules ls`,
		Args:    exactly(),
	}, func(cmd *cobra.Command, _ []string, q *asking, c *adminclient.Client) error {
		var list adminapi.PreheatRuleList
		if err := c.Call(cmd.Context(), "GET", "/preheat-rules", nil, &list); err != nil {
			return err
		}
		if q.json {
			return a.stdout.json(list)
		}
		var rows [][]string
		for _, r := range list.Rules {
			rows = append(rows, []string{strconv.FormatInt(r.ID, 10), r.Repository, r.Tag, ruleNodes(r), r.Actor, a.stdout.when(r.CreatedAt)})
		}
		a.stdout.table([]string{"ID", "REPOSITORY", "TAG", "NODES", "BY", "SINCE"}, rows)
		return nil
	})
}

func ruleNodes(r meta.PreheatRule) string {
	text := r.Share.String() + " of all"
	if r.Share == 100 {
		text = "all"
	}
	if r.Nodes != "" {
		text += " with " + r.Nodes
	}
	return text
}

func (a *app) ruleAddCommand() *cobra.Command {
	var choice choiceFlags
	cmd := a.asks(&cobra.Command{
		Use:   "add REPOSITORY TAG",
		Short: "Have pushes of matching tags begin preheats",
		Long: `Have pushes of matching tags begin preheats: REPOSITORY and TAG are patterns, in
which * stands for anything but a slash, and ** for any number of parts of a
repository's name. The nodes are chosen anew at each push. A push is never held
up or refused for it.`,
		Example: `  fairway preheat rules add 'team/*' 'v*'
  fairway preheat rules add team/app latest --nodes zone=a --share 25%`,
		Args: exactly("a pattern of repositories, in quotes", "a pattern of tags, in quotes"),
	}, func(cmd *cobra.Command, args []string, q *asking, c *adminclient.Client) error {
		if err := choice.check(cmd); err != nil {
			return err
		}
		var r meta.PreheatRule
		req := adminapi.PreheatRuleRequest{Repository: args[0], Tag: args[1], Nodes: choice.nodes, Share: choice.share, AllPlatforms: choice.all}
		if err := c.Call(cmd.Context(), "POST", "/preheat-rules", req, &r); err != nil {
			return err
		}
		if q.json {
			return a.stdout.json(r)
		}
		a.stdout.printf("Rule %d: a push of %s:%s is fetched by nodes: %s.\n", r.ID, r.Repository, r.Tag, ruleNodes(r))
		return nil
	})
	choice.register(cmd)
	return cmd
}

func (a *app) ruleRemoveCommand() *cobra.Command {
	return a.asks(&cobra.Command{
		Use:     "rm ID",
		Aliases: []string{"remove"},
		Short:   "Remove a rule",
		Example: `  fairway preheat rules rm 2`,
		Args:    exactly("the ID of a rule, as \"fairway preheat rules ls\" lists it"),
	}, func(cmd *cobra.Command, args []string, q *asking, c *adminclient.Client) error {
		return a.removeByID(cmd.Context(), c, q, args[0], "rule", "/preheat-rules/", "fairway preheat rules ls")
	})
}
