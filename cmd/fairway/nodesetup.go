package main

import (
	"bufio"
	"cmp"
	"context"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/fairway-registry/fairway/internal/adminclient"
	"github.com/fairway-registry/fairway/internal/agent"
	"github.com/fairway-registry/fairway/internal/agent/setup"
	"github.com/fairway-registry/fairway/internal/nodeapi"
	houses "github.com/fairway-registry/fairway/internal/setting"
)

func (a *app) nodeSetupCommand() *cobra.Command {
	var o setup.Options
	var undo, yes bool
	var path *string
	cmd := &cobra.Command{
		Use:   "setup containerd|crio|docker|podman",
		Short: "Have a container runtime pull through this node",
		Long: `Have a container runtime pull through this node, from the registries that the
node mirrors and no others. Which these are is asked of the agent that listens
here, or, before it runs, read from the same flags, variables (` + envNodePrefix + `REGISTRY)
and file that "fairway node" has.

What would change is shown first, and asked about on a terminal; into a pipe it
needs --yes. What was there is kept as a backup, and --undo brings it back. The
runtime still pulls from the registry itself whenever the agent is down or refuses.
Nothing is restarted: what is needed for the runtime to take notice is printed.`,
		Example: `  fairway node setup containerd
  fairway node setup containerd --registry http://registry.example:5000 --upstreams docker.io
  fairway node setup docker --yes
  fairway node setup containerd --undo`,
		Args: exactly("the name of a runtime"),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Runtime = args[0]
			var p setup.Plan
			var err error
			if undo {
				p, err = setup.Undo(o.Runtime, o.Root)
			} else {
				p, err = a.planSetup(cmd, o, *path)
			}
			if err != nil {
				return err
			}
			return a.setUp(cmd, p, yes)
		},
	}
	f := cmd.Flags()
	path = setupHouse().flagsOf(f, "registry", "upstreams", "listen", "docker_listen", "data")
	f.BoolVar(&undo, "undo", false, "bring back what was there before")
	f.BoolVar(&yes, "yes", false, "do not ask")
	f.StringVar(&o.Root, "root", "/", "`DIR` that the runtime's configuration is below")
	return cmd
}

// setupHouse has the settings of a node, of which only what somebody has said
// counts, and which nothing is going to listen by.
func setupHouse() house[agent.Config] {
	return house[agent.Config]{envNodePrefix, func() agent.Config {
		c := agent.Default()
		c.Registry, c.AllowAnyone = "", true
		return c
	}}
}

// planSetup plans for what the agent mirrors.
func (a *app) planSetup(cmd *cobra.Command, o setup.Options, path string) (setup.Plan, error) {
	if !slices.Contains(setup.Runtimes(), o.Runtime) {
		return setup.Plan{}, usagef("%q is no runtime that can be set up; there are %s", o.Runtime, strings.Join(setup.Runtimes(), ", "))
	}
	cfg, _, err := configured(a, setupHouse(), path, cmd.Flags(), func(c agent.Config) houses.Log { return c.Log })
	if err != nil {
		return setup.Plan{}, err
	}
	o.Listen, o.Docker = onThisMachine(cfg.Listen), onThisMachine(cmp.Or(cfg.DockerListen, "127.0.0.1:5002"))
	said, err := cfg.Mirrors()
	if err != nil {
		return setup.Plan{}, err
	}
	mirrors, running := askMirrors(cmd.Context(), o.Listen, filepath.Join(cfg.Data, "admin.sock"))
	switch {
	case running:
		for _, m := range said {
			if !slices.ContainsFunc(mirrors, func(n nodeapi.Mirrored) bool { return n.Name == m.Name }) {
				return setup.Plan{}, usagef("the agent on %s does not mirror %s, but %s; start it with --upstreams %s first", o.Listen, m.Name, names(mirrors), m.Name)
			}
		}
	case len(said) > 0:
		mirrors = said
	case o.Runtime == setup.Docker: // which knows mirrors of one registry only
		mirrors = []nodeapi.Mirrored{{Name: "docker.io", URL: "https://registry-1.docker.io"}}
	default:
		return setup.Plan{}, usagef("no agent answers on %s, and nothing else says what it mirrors; start it first (fairway node), or give --registry and --upstreams as it will have them", o.Listen)
	}
	if len(mirrors) == 0 {
		return setup.Plan{}, usagef("the agent on %s mirrors no registry; start it with --registry or --upstreams first", o.Listen)
	}
	for _, m := range mirrors {
		o.Upstreams = append(o.Upstreams, setup.Upstream{Name: m.Name, Server: m.URL})
	}
	return setup.Make(o)
}

func names(mirrors []nodeapi.Mirrored) string {
	var all []string
	for _, m := range mirrors {
		all = append(all, m.Name)
	}
	return cmp.Or(strings.Join(all, ", "), "nothing")
}

// onThisMachine is an address where the runtime on this machine reaches what
// listens everywhere.
func onThisMachine(address string) string {
	if host, port, err := net.SplitHostPort(address); err == nil && (host == "" || net.ParseIP(host).IsUnspecified()) {
		return net.JoinHostPort("127.0.0.1", port)
	}
	return address
}

// askTimeout bounds the question to an agent that may hang.
const askTimeout = 5 * time.Second

// askMirrors asks the agent that listens at an address what it mirrors, by its
// socket, which is in its data directory or named at the address. An answer at the
// address itself does not count: anybody may listen there while no agent does, and
// the runtime would pull from where that says.
func askMirrors(ctx context.Context, listen, socket string) (mirrors []nodeapi.Mirrored, running bool) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	at := []string{"http://" + listen}
	if abs, err := filepath.Abs(socket); err == nil {
		at = append([]string{"unix://" + abs}, at...)
	}
	for _, url := range at {
		c, err := adminclient.New(url)
		if err != nil {
			continue
		}
		var s nodeapi.Status
		err = c.Call(ctx, "GET", "/status", nil, &s)
		if onSocket := strings.HasPrefix(url, "unix:") || c.Socket() != ""; err == nil && onSocket && samePort(s.Listen, listen) {
			return s.Mirrors, true
		}
	}
	return nil, false
}

func samePort(a, b string) bool {
	_, p, err := net.SplitHostPort(a)
	_, q, again := net.SplitHostPort(b)
	return err == nil && again == nil && p == q
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
