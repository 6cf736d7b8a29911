package main

import (
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/fairway-registry/fairway/internal/registry/adminapi"
)

// version and commit are set with -ldflags "-X main.version=… -X main.commit=…".
// Without, what the Go tool recorded in the program is used.
var (
	version string
	commit  string
)

// programVersion tells which program this is.
func programVersion() adminapi.Version {
	v := adminapi.Version{Version: version, Commit: commit, Go: runtime.Version()}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		info = &debug.BuildInfo{}
	}
	if v.Version == "" {
		v.Version = info.Main.Version
	}
	if v.Version == "" || v.Version == "(devel)" {
		v.Version = "dev"
	}
	modified := false
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			if v.Commit == "" {
				v.Commit = s.Value
			}
		case "vcs.modified":
			modified = s.Value == "true"
		}
	}
	if v.Commit == "" {
		v.Commit = "unknown"
	} else if modified && commit == "" {
		v.Commit += "+changes"
	}
	return v
}

func (a *app) versionCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Tell which program this is",
		Example: `  fairway version --json`,
		Args:    exactly(),
		RunE: func(*cobra.Command, []string) error {
			v := programVersion()
			if asJSON {
				return a.stdout.json(v)
			}
			a.stdout.printf("fairway %s (commit %s, %s)\n", v.Version, v.Commit, v.Go)
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON for programs")
	return cmd
}
