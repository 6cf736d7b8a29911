package main

import (
	"cmp"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/fairway-registry/fairway/internal/adminclient"
	"github.com/fairway-registry/fairway/internal/agent"
)

func newRoot(a *app) *cobra.Command {
	root := a.group(&cobra.Command{
		Use:   "fairway",
		Short: "An OCI registry whose garbage collection never gets in the way",
		Long: `Fairway is an OCI registry that collects its garbage while clients push and
pull: it blocks nobody, removes nothing that is in use, and can explain and undo
what it did. Its agent caches images beside a container runtime, and never evicts
what runs.`,
		Example: `  fairway serve                          # a registry on 127.0.0.1:5000
  fairway node                           # a cache for this machine on 127.0.0.1:5001
  fairway gc run                         # collect now
  fairway explain team/app:v1            # what keeps this image?`,
		SilenceErrors: true,
		SilenceUsage:  true,
	})
	root.SetFlagErrorFunc(flagError)
	root.SetHelpTemplate(root.HelpTemplate() + "\n" + exitCodes + "\n")
	root.AddCommand(a.serveCommand(), a.gcCommand(), a.explainCommand(), a.trashCommand(), a.checkCommand(),
		a.nodesCommand(), a.preheatCommand(), a.nodeCommand(), a.cacheCommand(), a.swarmCommand(), a.versionCommand())
	for _, cmd := range everyCommand(root) {
		if cmd.Long == "" {
			cmd.Long = cmd.Short + "."
		}
		cmd.Flags().SortFlags = false
	}
	return root
}

func everyCommand(cmd *cobra.Command) []*cobra.Command {
	all := []*cobra.Command{cmd}
	for _, sub := range cmd.Commands() {
		all = append(all, everyCommand(sub)...)
	}
	return all
}

// group makes cmd a command that only has others below it.
func (a *app) group(cmd *cobra.Command, subs ...*cobra.Command) *cobra.Command {
	cmd.Args = cobra.ArbitraryArgs
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			_ = cmd.Help() // can only fail where the output has gone
			return errHelped
		}
		var names []string
		for _, sub := range cmd.Commands() {
			names = append(names, sub.Name())
		}
		return usagef("there is no command %q%s", cmd.CommandPath()+" "+args[0], didYouMean(args[0], names))
	}
	cmd.AddCommand(subs...)
	return cmd
}

// flagError turns a mistyped flag into a sentence that names the nearest one.
func flagError(cmd *cobra.Command, err error) error {
	text := err.Error()
	if name, ok := strings.CutPrefix(text, "unknown flag: "); ok {
		var known []string
		cmd.Flags().VisitAll(func(f *pflag.Flag) { known = append(known, "--"+f.Name) })
		return usagef("there is no flag %s%s", name, didYouMean(name, known))
	}
	return usagef("%w", err)
}

// exactly checks that the arguments named are there, and nothing else.
func exactly(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < len(names):
			return usagef("%s needs %s", cmd.CommandPath(), strings.Join(names[len(args):], " and "))
		case len(args) > len(names):
			return usagef("%s does not know what to do with %q", cmd.CommandPath(), args[len(names)])
		}
		return nil
	}
}

// asking is a command that asks a server or a node.
type asking struct {
	app  *app
	url  string
	json bool
}

type acting func(cmd *cobra.Command, args []string, q *asking, c *adminclient.Client) error

// asks gives cmd the flags of a command that asks a server.
func (a *app) asks(cmd *cobra.Command, act acting) *cobra.Command {
	return a.asksAt(cmd, "server", envServer, defaultServer, func() string { return defaultServer }, act)
}

// asksNode gives cmd the flags of a command that asks a node.
func (a *app) asksNode(cmd *cobra.Command, act acting) *cobra.Command {
	return a.asksAt(cmd, "node", envNode, "the agent's socket, or what listens on "+defaultNode, nodeAtHand, act)
}

// nodeAtHand is the agent of this machine: by its socket where that is in the data
// directory of the unit or of an agent started here, or else by its address, where
// it names the socket.
func nodeAtHand() string {
	for _, dir := range []string{"/var/lib/fairway-node", agent.Default().Data} {
		path, err := filepath.Abs(filepath.Join(dir, "admin.sock"))
		if err != nil {
			continue
		}
		if adminclient.Trusted(path) == nil {
			return "unix://" + path
		}
	}
	return defaultNode
}

func (a *app) asksAt(cmd *cobra.Command, who, variable, standard string, atHand func() string, act acting) *cobra.Command {
	q := &asking{app: a}
	cmd.Flags().StringVar(&q.url, who, "", "`URL` of the "+who+" (default "+standard+", or $"+variable+")")
	cmd.Flags().BoolVar(&q.json, "json", false, "print JSON for programs")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		url := cmp.Or(q.url, a.env(variable))
		if url == "" {
			url = atHand()
		}
		c, err := adminclient.New(url)
		if err != nil {
			return usagef("--%s %w", who, err)
		}
		c.Raw = q.json
		return act(cmd, args, q, c)
	}
	return cmd
}

const (
	defaultServer = "http://127.0.0.1:5000"
	defaultNode   = "http://127.0.0.1:5001"
)
