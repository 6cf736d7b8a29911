package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

//go:generate go test -run TestDocs -update .

var update = flag.Bool("update", false, "write docs/config.md, docs/cli.md and testdata/help instead of comparing with them")

// current compares a generated file with the committed one.
func current(t *testing.T, path string, want []byte) {
	t.Helper()
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, want, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s is not current; run: go generate ./cmd/fairway\nwant:\n%s", path, want)
	}
}

func TestDocs_ConfigIsCurrent(t *testing.T) {
	var b bytes.Buffer
	b.WriteString(`# Configuration

Generated from the code; ` + "`go generate ./cmd/fairway`" + ` renews it.

Every setting of ` + "`fairway serve`" + ` and of ` + "`fairway node`" + ` can be given in three ways. A flag wins over the
environment, the environment over the file of ` + "`--config`" + ` (or ` + "`$FAIRWAY_CONFIG`, `$FAIRWAY_NODE_CONFIG`" + `), the file over the
default. A key that does not exist, or a value that cannot be read, is an error that names its place. A ` + "`FAIRWAY_`" + `
variable that no command reads is a warning. Those of a node begin with ` + "`FAIRWAY_NODE_`" + `, so that a registry and a node
on one machine can share an environment; ` + "`FAIRWAY_NODE`" + ` itself is what ` + "`fairway cache`" + ` asks.

- Durations: ` + "`90s`, `2h`, `1h30m`, `30d`, `2w`" + `, or a number of seconds.
- Sizes: ` + "`64MiB`, `10GB`" + `, or a number of bytes. ` + "`K Ki KiB`, `M Mi MiB` and so on to `P`" + ` are powers of 1024, ` + "`KB MB GB TB PB`" + ` of 1000.
- Shares: ` + "`90%`" + `. Lists: items separated by commas, a list in the file, or the flag once for each item.

# The registry: fairway serve
`)
	describe(&b, registryHouse())
	b.WriteString("\n# The node: fairway node\n")
	describe(&b, nodeHouse())
	current(t, "../../docs/config.md", b.Bytes())
}

func describe[C interface{ Validate() error }](b *bytes.Buffer, h house[C]) {
	cfg := h.defaults()
	b.WriteString("\n| key in the file | flag | environment | default |\n|---|---|---|---|\n")
	for _, s := range h.settings(&cfg) {
		flag := strings.TrimSuffix("--"+s.flag()+" "+strings.ReplaceAll(s.Type(), "|", `\|`), " bool")
		fmt.Fprintf(b, "| `%s` | `%s` | `%s` | %s |\n", s.key, flag, s.env(), orNone(s.String()))
	}
	b.WriteString("\n## What they do\n\n")
	for _, s := range h.settings(&cfg) {
		fmt.Fprintf(b, "**`%s`** %s\n\n", s.key, s.doc)
	}
	b.WriteString("## The file\n\nAll defaults, as a file:\n\n```yaml\n")
	section := ""
	for _, s := range h.settings(&cfg) {
		indent, key := "", s.key
		if head, rest, nested := strings.Cut(s.key, "."); nested {
			if head != section {
				fmt.Fprintf(b, "%s:\n", head)
			}
			section, indent, key = head, "  ", rest
		} else {
			section = ""
		}
		text := s.String()
		if text == "" {
			text = `""`
		}
		fmt.Fprintf(b, "%s%s: %s\n", indent, key, text)
	}
	b.WriteString("```\n")
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return "`" + s + "`"
}

// TestDocs_TheFileInConfigIsTheDefault reads the example back.
func TestDocs_TheFileInConfigIsTheDefault(t *testing.T) {
	content, err := os.ReadFile("../../docs/config.md")
	if err != nil {
		t.Fatal(err)
	}
	serve, node, _ := strings.Cut(string(content), "# The node")
	readBack(t, registryHouse(), serve)
	readBack(t, nodeHouse(), node)
}

func readBack[C interface{ Validate() error }](t *testing.T, h house[C], page string) {
	t.Helper()
	_, example, _ := strings.Cut(page, "```yaml\n")
	example, _, _ = strings.Cut(example, "```")
	cfg, _, err := loadHouse(t, h, example, nil)
	if err != nil || fmt.Sprint(cfg) != fmt.Sprint(h.defaults()) {
		t.Errorf("config %+v, error %v", cfg, err)
	}
}

func commands(t *testing.T) []*cobra.Command {
	t.Helper()
	root := newRoot(&app{stdout: &terminal{Writer: new(bytes.Buffer)}, stderr: &terminal{Writer: new(bytes.Buffer)}})
	return everyCommand(root)
}

func TestDocs_CommandsAreCurrent(t *testing.T) {
	var b bytes.Buffer
	b.WriteString("# The command line\n\nGenerated from the code; `go generate ./cmd/fairway` renews it.\n\n" +
		"Commands that ask a server take `--server URL` or `$FAIRWAY_SERVER`, those that ask a node `--node URL` or `$FAIRWAY_NODE`\n" +
		"(`http://…`, or `unix:///PATH` of its socket). All print JSON with `--json`. On a terminal they print tables, in colour\n" +
		"unless `NO_COLOR` is set; into a pipe, lines separated by tabs, with times and sizes in full. Long work shows a progress\n" +
		"bar on a terminal. `fairway completion SHELL` prints a completion script.\n\n```\n" + exitCodes + "\n```\n")
	for _, cmd := range commands(t)[1:] {
		fmt.Fprintf(&b, "\n## %s\n\n%s\n\n```\n%s\n```\n", cmd.CommandPath(), cmd.Long, cmd.Example)
		if p := cmd.CommandPath(); p == "fairway serve" || p == "fairway node" {
			b.WriteString("\nThe flags are the settings in [config.md](config.md).\n")
			continue
		}
		if flags := table(cmd); flags != "" {
			b.WriteString("\n" + flags)
		}
	}
	current(t, "../../docs/cli.md", b.Bytes())
}

// table lists a command's flags. Those that all have are told of once.
func table(cmd *cobra.Command) string {
	var b strings.Builder
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if f.Name == "server" || f.Name == "node" || f.Name == "json" || f.Name == "help" {
			return
		}
		arg, usage := pflag.UnquoteUsage(f)
		name := "--" + f.Name
		if f.Shorthand != "" {
			name = "-" + f.Shorthand + ", " + name
		}
		fmt.Fprintf(&b, "| `%s` | %s |\n", strings.TrimSpace(name+" "+arg), usage)
	})
	if b.Len() == 0 {
		return ""
	}
	return "| flag | |\n|---|---|\n" + b.String()
}

// TestDocs_HelpIsGolden keeps every help text as people see it.
func TestDocs_HelpIsGolden(t *testing.T) {
	for _, cmd := range commands(t) {
		path := strings.Fields(cmd.CommandPath())[1:]
		var out bytes.Buffer
		a := &app{stdout: &terminal{Writer: &out}, stderr: &terminal{Writer: &out}}
		if code := run(t.Context(), a, append(path, "--help")); code != exitOK {
			t.Errorf("%s --help: exit status %d", cmd.CommandPath(), code)
		}
		current(t, filepath.Join("testdata", "help", strings.Join(append([]string{"fairway"}, path...), "-")+".txt"), out.Bytes())
	}
}

func TestHelp_EveryCommandHasAnExampleAndASentence(t *testing.T) {
	for _, cmd := range commands(t) {
		if cmd.Example == "" || cmd.Short == "" || strings.HasSuffix(cmd.Short, ".") {
			t.Errorf("%s: short %q, example %q", cmd.CommandPath(), cmd.Short, cmd.Example)
		}
		if cmd.RunE == nil {
			t.Errorf("%s does nothing", cmd.CommandPath())
		}
	}
}
