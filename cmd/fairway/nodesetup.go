package main

import (
	"bufio"
	"net"
	"strings"

	"github.com/spf13/cobra"

	"github.com/fairway-registry/fairway/internal/agent/setup"
)

func (a *app) nodeSetupCommand() *cobra.Command {
	var o setup.Options
	var undo, yes bool
	var upstreams []string
	cmd := &cobra.Command{
		Use:   "setup containerd|crio|docker|podman",
		Short: "Have a container runtime pull through this node",
		Long: `Have a container runtime pull through this node. What would change is shown
first, and asked about on a terminal; into a pipe it needs --yes. What was there
is kept as a backup, and --undo brings it back. The runtime still pulls from the
registry itself whenever the agent is down or refuses. Nothing is restarted: what
is needed for the runtime to take notice is printed.`,
		Example: `  fairway node setup containerd --upstream registry.example:5000=http://registry.example:5000
  fairway node setup docker --yes
  fairway node setup containerd --undo`,
		Args: exactly("the name of a runtime"),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Runtime = args[0]
			var err error
			if o.Upstreams, err = readUpstreams(upstreams); err != nil {
				return err
			}
			p, err := planSetup(o, undo)
			if err != nil {
				return err
			}
			return a.setUp(cmd, p, yes)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&undo, "undo", false, "bring back what was there before")
	f.BoolVar(&yes, "yes", false, "do not ask")
	f.StringVar(&o.Listen, "listen", "127.0.0.1:5001", "`HOST:PORT` that the agent listens on")
	f.StringVar(&o.Docker, "docker-listen", "127.0.0.1:5002", "`HOST:PORT` that the agent listens on for Docker")
	f.StringArrayVar(&upstreams, "upstream", nil, "`NAME[=URL]` of a registry to pull through the agent, with the URL where it is not https://NAME; can be given more than once (default docker.io)")
	f.StringVar(&o.Root, "root", "/", "`DIR` that the runtime's configuration is below")
	return cmd
}

func readUpstreams(texts []string) ([]setup.Upstream, error) {
	if len(texts) == 0 {
		return []setup.Upstream{{Name: "docker.io"}}, nil
	}
	var list []setup.Upstream
	for _, text := range texts {
		name, url, given := strings.Cut(text, "=")
		if name == "" || given && url == "" {
			return nil, usagef("--upstream %q: want NAME or NAME=URL, for example docker.io", text)
		}
		list = append(list, setup.Upstream{Name: name, Server: url})
	}
	return list, nil
}

func planSetup(o setup.Options, undo bool) (setup.Plan, error) {
	if undo {
		return setup.Undo(o.Runtime, o.Root)
	}
	// What the agent listens on everywhere is reached by the runtime on this machine.
	for _, address := range []*string{&o.Listen, &o.Docker} {
		if host, port, err := net.SplitHostPort(*address); err == nil && (host == "" || net.ParseIP(host).IsUnspecified()) {
			*address = net.JoinHostPort("127.0.0.1", port)
		}
	}
	return setup.Make(o)
}

// setUp shows a plan, asks, and does it.
func (a *app) setUp(cmd *cobra.Command, p setup.Plan, yes bool) error {
	t := a.stdout
	if len(p.Changes) == 0 {
		t.printf("Nothing is to be changed.\n")
	}
	for line := range strings.Lines(p.Diff()) {
		t.printf("%s", diffLine(t, line))
	}
	if len(p.Changes) > 0 && !yes {
		if !t.tty {
			return usagef("nobody can be asked here; --yes makes these changes without")
		}
		t.printf("Make these changes? [y/N] ")
		answer, err := bufio.NewReader(cmd.InOrStdin()).ReadString('\n')
		if answer = strings.ToLower(strings.TrimSpace(answer)); err != nil || answer != "y" && answer != "yes" {
			t.printf("Nothing was changed.\n")
			return errTold
		}
	}
	if err := p.Apply(); err != nil {
		return err
	}
	if len(p.Changes) > 0 {
		t.printf("%s Backups are in %s.\n", t.green("Done."), p.Backups())
	}
	for _, n := range p.Notes {
		t.printf("%s\n", n)
	}
	return nil
}

func diffLine(t *terminal, line string) string {
	text := strings.TrimSuffix(line, "\n")
	switch {
	case strings.HasPrefix(text, "+++"), strings.HasPrefix(text, "---"):
		return t.bold(text) + "\n"
	case strings.HasPrefix(text, "+"):
		return t.green(text) + "\n"
	case strings.HasPrefix(text, "-"):
		return t.red(text) + "\n"
	}
	return line
}
