package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/fairway-registry/fairway/internal/registry"
	houses "github.com/fairway-registry/fairway/internal/setting"
)

func (a *app) serveCommand() *cobra.Command {
	var path *string
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the registry",
		Long: `Run the registry until it is told to end (SIGTERM, Ctrl-C). Requests under way
may finish; an upload that is cut off can be resumed.

Every flag can also be set in the environment (--gc-window as ` + envPrefix + `GC_WINDOW)
and in the file of --config (gc.window). A flag wins over the environment, the
environment over the file.

Without any configuration it listens on loopback and lets anyone on the machine
in. Durations are written as 90s, 2h, 30d or 2w; a bare number counts seconds.`,
		Example: `  fairway serve
  fairway serve --data /var/lib/fairway --gc-window 1h --gc-untagged 30d
  fairway serve --config /etc/fairway.yaml`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, log, err := configured(a, registryHouse(), *path, cmd.Flags(), func(c registry.Config) houses.Log { return c.Log })
			if err != nil {
				return err
			}
			return a.serve(cmd.Context(), cfg, log)
		},
	}
	path = registryHouse().flags(cmd.Flags())
	return cmd
}

// configured reads a server's configuration and makes its log.
func configured[C interface{ Validate() error }](a *app, h house[C], path string, flags *pflag.FlagSet, logOf func(C) houses.Log) (C, *slog.Logger, error) {
	if path == "" {
		path = a.env(h.envConfig())
	}
	var warnings []string
	cfg, err := h.load(path, a.environ, flags, func(w string) { warnings = append(warnings, w) })
	if err != nil {
		return cfg, nil, err
	}
	log := newLogger(a.stderr, logOf(cfg))
	for _, w := range warnings {
		log.Warn(w)
	}
	return cfg, log, nil
}

func (a *app) serve(ctx context.Context, cfg registry.Config, log *slog.Logger) error {
	v := programVersion()
	r, err := registry.Open(ctx, cfg, log, v)
	switch {
	case err != nil && ctx.Err() != nil:
		return nil // told to end before it had begun
	case err != nil:
		return startError(cfg.Listen, err)
	}
	a.greet(cfg, r.Addr().String())
	log.Info("serving", "address", r.Addr().String(), "data", cfg.Data, "version", v.Version)
	err = r.Run(ctx)
	log.Info("ended")
	return errors.Join(err, r.Close())
}

// startError says what to do about a server that does not start.
func startError(listen string, err error) error {
	var bad *houses.Error
	switch {
	case errors.As(err, &bad):
		return usagef("%w", err)
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("%s is in use by another program; end it, or choose another address with --listen", listen)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("%s is no address of this machine; choose another with --listen", listen)
	}
	return err
}

// greet helps a person who has just started a registry.
func (a *app) greet(cfg registry.Config, addr string) {
	if !a.stderr.tty {
		return
	}
	data, err := filepath.Abs(cfg.Data)
	if err != nil {
		data = cfg.Data
	}
	t := a.stderr
	t.printf("%s on %s, data in %s\n", t.bold("Fairway serves"), addr, data)
	t.printf("Push:     skopeo copy --dest-tls-verify=false docker://docker.io/library/busybox docker://%s/busybox\n", addr)
	t.printf("Cache:    fairway node --registry http://%s     on each machine that pulls\n", addr)
	t.printf("Collect:  fairway gc run --server http://%s     End: Ctrl-C\n", addr)
}

// newLogger logs as text for a person and as JSON for programs.
func newLogger(t *terminal, cfg houses.Log) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(cfg.Level)); err != nil {
		level = slog.LevelInfo // the settings allow known levels only
	}
	opts := &slog.HandlerOptions{Level: level}
	if cfg.Format == "text" || cfg.Format == "auto" && t.tty {
		return slog.New(slog.NewTextHandler(io.Writer(t), opts))
	}
	return slog.New(slog.NewJSONHandler(io.Writer(t), opts))
}
