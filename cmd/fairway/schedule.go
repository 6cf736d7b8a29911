package main

import (
	"strconv"

	"github.com/spf13/cobra"

	"github.com/fairway-registry/fairway/internal/adminclient"
	"github.com/fairway-registry/fairway/internal/registry/adminapi"
	"github.com/fairway-registry/fairway/internal/registry/meta"
)

func (a *app) gcScheduleCommand() *cobra.Command {
	return a.group(&cobra.Command{
		Use:   "schedule",
		Short: "List, add and remove times at which collections run",
		Example: `  fairway gc schedule add '30 3 * * *'
  fairway gc schedule ls`,
	}, a.scheduleListCommand(), a.scheduleAddCommand(), a.scheduleRemoveCommand())
}

func (a *app) scheduleListCommand() *cobra.Command {
	return a.asks(&cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List schedules",
		Example: `  fairway gc schedule ls`,
		Args:    exactly(),
	}, func(cmd *cobra.Command, _ []string, q *asking, c *adminclient.Client) error {
		var list adminapi.ScheduleList
		if err := c.Call(cmd.Context(), "GET", "/gc/schedules", nil, &list); err != nil {
			return err
		}
		if q.json {
			return a.stdout.json(list)
		}
		var rows [][]string
		for _, s := range list.Schedules {
			rows = append(rows, []string{strconv.FormatInt(s.ID, 10), s.Cron, policyText(s.Policy), a.stdout.whenever(s.LastRun)})
		}
		a.stdout.table([]string{"ID", "CRON", "POLICY", "LAST RUN"}, rows)
		return nil
	})
}

func (a *app) scheduleAddCommand() *cobra.Command {
	var policy policyFlags
	cmd := a.asks(&cobra.Command{
		Use:   "add CRON",
		Short: "Let a collection run at the times that CRON says",
		Long: `Let a collection run at the times that CRON says: minute, hour, day of the
month, month and day of the week, or @hourly, @daily, @weekly, @every 6h (a
minute at least). What the flags do not override is fixed to the server's policy
of now. A repository that is not there when its time comes is an error in the
server's log, and the schedule stays.`,
		Example: `  fairway gc schedule add '30 3 * * *' --untagged 30d
  fairway gc schedule add @weekly --repository 'team/*'`,
		Args: exactly("a cron schedule, in quotes"),
	}, func(cmd *cobra.Command, args []string, q *asking, c *adminclient.Client) error {
		var s meta.Schedule
		req := adminapi.ScheduleRequest{PolicyRequest: policy.request(cmd), Cron: args[0]}
		if err := c.Call(cmd.Context(), "POST", "/gc/schedules", req, &s); err != nil {
			return err
		}
		if q.json {
			return a.stdout.json(s)
		}
		a.stdout.printf("Schedule %d: collections run at %q with %s.\n", s.ID, s.Cron, policyText(s.Policy))
		return nil
	})
	policy.register(cmd)
	return cmd
}

func (a *app) scheduleRemoveCommand() *cobra.Command {
	return a.asks(&cobra.Command{
		Use:     "rm ID",
		Aliases: []string{"remove"},
		Short:   "Remove a schedule",
		Example: `  fairway gc schedule rm 2`,
		Args:    exactly("the ID of a schedule, as \"fairway gc schedule ls\" lists it"),
	}, func(cmd *cobra.Command, args []string, q *asking, c *adminclient.Client) error {
		id, err := strconv.ParseInt(args[0], 10, 64)
		if err != nil || id < 1 {
			return usagef("%q is no ID of a schedule; \"fairway gc schedule ls\" lists them", args[0])
		}
		if err := c.Call(cmd.Context(), "DELETE", "/gc/schedules/"+strconv.FormatInt(id, 10), nil, nil); err != nil {
			return err
		}
		if q.json {
			return a.stdout.json(map[string]int64{"removed": id})
		}
		a.stdout.printf("Schedule %d is removed.\n", id)
		return nil
	})
}
