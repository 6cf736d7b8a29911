package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/fairway-registry/fairway/internal/adminclient"
	"github.com/fairway-registry/fairway/internal/agent"
	"github.com/fairway-registry/fairway/internal/nodeapi"
	houses "github.com/fairway-registry/fairway/internal/setting"
	"github.com/fairway-registry/fairway/internal/unit"
)

func (a *app) nodeCommand() *cobra.Command {
	var path *string
	cmd := &cobra.Command{
		Use:   "node",
		Short: "Run the agent beside a container runtime",
		Long: `Run the agent beside a container runtime until it is told to end (SIGTERM,
Ctrl-C): a mirror that the runtime pulls through, and a cache that is kept within
its quota and never evicts what a container on this machine uses.

Every flag can also be set in the environment (--quota as ` + envNodePrefix + `QUOTA) and
in the file of --config. A flag wins over the environment, the environment over
the file. On SIGHUP quota, high, low and margin are read again,
and the rates of the swarm.

Without any configuration it listens on loopback and asks the runtimes whose
sockets are in the usual places. "fairway node setup" has a runtime pull through
it.`,
		Example: `  fairway node --registry http://registry.example:5000
  fairway node --data /var/lib/fairway-node --quota 50GB --runtime containerd:///run/containerd/containerd.sock
  fairway node status`,
		Args: exactly(),
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, log, err := configured(a, nodeHouse(), *path, cmd.Flags(), func(c agent.Config) houses.Log { return c.Log })
		if err != nil {
			return err
		}
		again := func() (agent.Config, error) {
			c, _, err := configured(a, nodeHouse(), *path, cmd.Flags(), func(c agent.Config) houses.Log { return c.Log })
			return c, err
		}
		return a.node(cmd.Context(), cfg, log, again)
	}
	path = nodeHouse().flags(cmd.Flags())
	cmd.AddCommand(a.nodeStatusCommand(), a.nodeSetupCommand(), a.nodeRuntimesCommand())
	return cmd
}

const (
	// nodeGC has the collector of Go run when the heap has grown by half. What is
	// alive in an agent is small, and what it streams is short-lived: memory
	// matters more beside containers than the CPU that this takes.
	nodeGC = 50
	// nodeMemory is above what an agent needs at work. Beyond it Go collects
	// harder, before it takes more from the containers.
	nodeMemory = 192 << 20
)

func (a *app) node(ctx context.Context, cfg agent.Config, log *slog.Logger, again func() (agent.Config, error)) error {
	if a.env("GOGC") == "" {
		debug.SetGCPercent(nodeGC)
	}
	if a.env("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(nodeMemory)
	}
	v := programVersion()
	n, err := agent.Open(ctx, cfg, log, v.Version)
	switch {
	case err != nil && ctx.Err() != nil:
		return nil // told to end before it had begun
	case err != nil:
		return startError(cfg.Listen, err)
	}
	a.greetNode(cfg, n)
	log.Info("serving", "address", n.Addr().String(), "data", cfg.Data, "version", v.Version)
	stop := onHangup(func() {
		c, err := again()
		if err == nil {
			_, err = n.SetLimits(c.Limits())
		}
		if err != nil {
			log.Error("the limits stay as they were", "err", err)
		}
	})
	err = n.Run(ctx)
	stop()
	log.Info("ended")
	return errors.Join(err, n.Close())
}

// greetNode helps a person who has just started an agent.
func (a *app) greetNode(cfg agent.Config, n *agent.Agent) {
	if !a.stderr.tty {
		return
	}
	data, err := filepath.Abs(cfg.Data)
	if err != nil {
		data = cfg.Data
	}
	t := a.stderr
	runtimes := strings.Join(n.Runtimes(), ", ")
	if runtimes == "" {
		runtimes = "none"
	}
	t.printf("%s on %s, cache in %s, runtimes: %s\n", t.bold("Fairway's node serves"), n.Addr(), data, runtimes)
	t.printf("Connect:  fairway node setup containerd|crio|docker|podman\n")
	t.printf("Look:     fairway cache ls --node http://%s     End: Ctrl-C\n", n.Addr())
}

func (a *app) nodeStatusCommand() *cobra.Command {
	return a.asksNode(&cobra.Command{
		Use:   "status",
		Short: "Show the agent's runtimes, its cache and what the registry knows",
		Example: `  fairway node status
  fairway node status --node unix:///var/lib/fairway-node/admin.sock`,
		Args: exactly(),
	}, func(cmd *cobra.Command, _ []string, q *asking, c *adminclient.Client) error {
		var s nodeapi.Status
		if err := c.Call(cmd.Context(), "GET", "/status", nil, &s); err != nil {
			return err
		}
		if q.json {
			return a.stdout.json(s)
		}
		a.printNodeStatus(s)
		return nil
	})
}

func (a *app) printNodeStatus(s nodeapi.Status) {
	t := a.stdout
	fields := [][2]string{
		{"node", s.Node},
		{"version", s.Version},
		{"running since", t.when(s.StartedAt)},
		{"listens on", s.Listen},
		{"upstreams", orDash(strings.Join(s.Upstreams, ", "))},
		{"cache", usedText(t, s.Cache)},
		{"in use", t.size(s.Cache.ActiveBytes)},
		{"disk", fmt.Sprintf("%s free of %s", t.size(s.Cache.DiskFreeBytes), t.size(s.Cache.DiskBytes))},
		{"registry", registryText(t, s)},
	}
	for _, r := range s.Runtimes {
		fields = append(fields, [2]string{"runtime", runtimeText(t, r)})
	}
	if len(s.Runtimes) == 0 {
		fields = append(fields, [2]string{"runtime", "none"})
	}
	for _, p := range s.Peers {
		fields = append(fields, [2]string{"peer", p.Name + " " + p.Address + " " + p.State})
	}
	if e := s.LastEvent; e != nil {
		fields = append(fields, [2]string{"last event", t.when(e.At) + ": " + e.Text})
	}
	t.fields(fields...)
}

func usedText(t *terminal, c nodeapi.Cache) string {
	text := fmt.Sprintf("%s of %s, %s", t.size(c.UsedBytes), t.size(c.QuotaBytes), count(c.Blobs, "blob", "blobs"))
	if c.QuotaBytes > 0 && c.UsedBytes > c.QuotaBytes {
		text += ", " + t.red("over its quota")
	}
	return text
}

func registryText(t *terminal, s nodeapi.Status) string {
	if s.Registry == "" {
		return "none"
	}
	r := s.Report
	text := s.Registry
	switch {
	case r.AcceptedAt != nil:
		text += fmt.Sprintf(", told %s of %s in use", t.when(*r.AcceptedAt), count(int64(r.Digests), "digest", "digests"))
	default:
		text += ", not told yet"
	}
	if r.Pending {
		text += ", " + t.yellow("there is news for it")
	}
	if r.Error != "" {
		text += ", " + t.red(r.Error)
	}
	return text
}

func runtimeText(t *terminal, r nodeapi.Runtime) string {
	text := fmt.Sprintf("%s: %s, %s", r.Name, count(int64(r.Containers), "container", "containers"), count(int64(r.Images), "image", "images"))
	switch {
	case r.AgeSeconds < 0:
		text += ", never answered"
	default:
		text += ", " + unit.Duration(time.Duration(r.AgeSeconds)*time.Second).String() + " old"
	}
	if !r.Answers {
		text += ", " + t.red("does not answer; what it may use stays")
		if r.Error != "" {
			text += ": " + r.Error
		}
	}
	return text
}
