package main

import (
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"github.com/fairway-registry/fairway/internal/adminclient"
	"github.com/fairway-registry/fairway/internal/registry/gc"
)

func (a *app) explainCommand() *cobra.Command {
	return a.asks(&cobra.Command{
		Use:   "explain REPOSITORY[:TAG|@DIGEST] | DIGEST",
		Short: "Tell what keeps something, or when it will go and why",
		Long: `Tell what keeps a manifest, a blob or a whole repository: tags, indexes, a
subject, a lease, the time window, the trash. Or when it will go and why, or
when it went.`,
		Example: `  fairway explain team/app:v1
  fairway explain sha256:0a1b…`,
		Args: exactly("REPOSITORY, REPOSITORY:TAG, REPOSITORY@DIGEST or DIGEST"),
	}, func(cmd *cobra.Command, args []string, q *asking, c *adminclient.Client) error {
		var e gc.Explanation
		if err := c.Call(cmd.Context(), "GET", "/explain?"+url.Values{"subject": {args[0]}}.Encode(), nil, &e); err != nil {
			return err
		}
		if q.json {
			return a.stdout.json(e)
		}
		a.printExplanation(e, "")
		return nil
	})
}

func (a *app) printExplanation(e gc.Explanation, indent string) {
	t := a.stdout
	name := e.Subject
	if e.Digest != "" && !strings.Contains(name, e.Digest) {
		name += " (" + e.Digest + ")"
	}
	t.printf("%s%s: %s %s\n", indent, verdictText(t, e), e.Kind, t.bold(name))
	if e.GoesAt != nil {
		t.printf("%s  goes %s\n", indent, t.when(*e.GoesAt))
	}
	for _, r := range e.Reasons {
		t.printf("%s  %s: %s", indent, r.Code, r.Text)
		if r.Until != nil {
			t.printf(" (until %s)", t.when(*r.Until))
		}
		t.printf("\n")
		if len(r.Path) > 0 {
			t.printf("%s    %s\n", indent, t.dim(strings.Join(append(r.Path, "this "+e.Kind), " -> ")))
		}
	}
	for _, d := range e.History {
		t.printf("%s  %s %s: %s by %s (%s)\n", indent, t.when(d.At), d.Act, d.Kind, d.Actor, d.Reason)
	}
	for _, part := range e.Parts {
		a.printExplanation(part, indent+"  ")
	}
}

func verdictText(t *terminal, e gc.Explanation) string {
	switch e.Verdict {
	case "kept":
		return t.green("kept")
	case "due":
		return t.yellow("due")
	case "trash":
		return t.yellow("in the trash")
	}
	return t.red(e.Verdict)
}
