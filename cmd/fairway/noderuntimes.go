package main

import (
	"net/url"

	"github.com/spf13/cobra"

	"github.com/fairway-registry/fairway/internal/adminclient"
	"github.com/fairway-registry/fairway/internal/nodeapi"
)

func (a *app) nodeRuntimesCommand() *cobra.Command {
	cmd := a.asksNode(&cobra.Command{
		Use:   "runtimes",
		Short: "List the container runtimes that the agent knows",
		Long: `List the container runtimes that the agent knows: those that the setting runtime
names, or else those that it has found on this machine, also those that have
disappeared. While one of them does not answer, nothing is evicted.`,
		Example: `  fairway node runtimes
  fairway node runtimes forget podman`,
		Args: exactly(),
	}, func(cmd *cobra.Command, _ []string, q *asking, c *adminclient.Client) error {
		var list nodeapi.RuntimeList
		if err := c.Call(cmd.Context(), "GET", "/runtimes", nil, &list); err != nil {
			return err
		}
		if q.json {
			return a.stdout.json(list)
		}
		a.printRuntimes(list.Runtimes)
		return nil
	})
	cmd.AddCommand(a.nodeForgetRuntimeCommand())
	return cmd
}

func (a *app) printRuntimes(list []nodeapi.KnownRuntime) {
	t := a.stdout
	if len(list) == 0 && t.tty {
		t.printf("The agent knows no runtime.\n")
		return
	}
	var rows [][]string
	for _, r := range list {
		state := t.green(r.State)
		if r.State != nodeapi.RuntimeAnswers {
			state = t.red(r.State)
		}
		seen := "-"
		if r.SeenAt != nil {
			seen = t.when(*r.SeenAt)
		}
		rows = append(rows, []string{r.Name, orDash(r.Endpoint), state, seen, t.shortened(orDash(r.Error))})
	}
	t.table([]string{"NAME", "SOCKET", "STATE", "SEEN", "ERROR"}, rows)
}

func (a *app) nodeForgetRuntimeCommand() *cobra.Command {
	return a.asksNode(&cobra.Command{
		Use:   "forget NAME",
		Short: "Forget a container runtime that was removed for good",
		Long: `Forget a container runtime that was removed from this machine for good. What it may
use is then no longer kept, in the cache and at the registry. A runtime that
answers, whose socket is still there, or that the setting runtime names cannot be
forgotten. One that is installed again is found again.`,
		Example: `  fairway node runtimes forget podman`,
		Args:    exactly("NAME, as \"fairway node runtimes\" lists it"),
	}, func(cmd *cobra.Command, args []string, q *asking, c *adminclient.Client) error {
		var r nodeapi.KnownRuntime
		if err := c.Call(cmd.Context(), "DELETE", "/runtimes?"+url.Values{"name": {args[0]}}.Encode(), nil, &r); err != nil {
			return err
		}
		if q.json {
			return a.stdout.json(r)
		}
		a.stdout.printf("Forgot %s at %s.\n", r.Name, orDash(r.Endpoint))
		return nil
	})
}
