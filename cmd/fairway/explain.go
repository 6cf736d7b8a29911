package main

import (
	"fmt"
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
			if err := a.stdout.json(e); err != nil {
				return err
			}
		} else {
			a.printExplanation(e, "")
		}
		if e.Verdict == gc.VerdictUnknown {
			return errUnknown
		}
		return nil
	})
}

// printExplanation prints e and, further to the right, its parts.
func (a *app) printExplanation(e gc.Explanation, indent string) {
	t := a.stdout
	name := e.Subject
	if e.Digest != "" && !strings.Contains(name, e.Digest) {
		name += " = " + e.Digest
	}
	line := func(format string, args ...any) {
		t.printf("%s%s\n", indent, t.shortened(fmt.Sprintf(format, args...)))
	}
	line("%s: %s %s", verdictText(t, e), e.Kind, t.bold(name))
	if e.Summary != "" {
		line("  %s", e.Summary)
	}
	if e.GoesAt != nil {
		line("  goes %s, if nothing happens", t.when(*e.GoesAt))
	}
	for _, r := range e.Reasons {
		text := r.Code + ": " + strings.Join(r.Path, " -> ")
		switch {
		case len(r.Path) < 2:
			text = r.Code + ": " + r.Text
		case r.Code == gc.KeptLease:
			text += ": " + r.Text
		}
		if r.Until != nil {
			text += " (until " + t.when(*r.Until) + ")"
		}
		line("  %s", text)
	}
	for _, d := range e.History {
		line("  %s", t.dim(fmt.Sprintf("%s: %s %s by %s (%s)", t.when(d.At), d.Kind, d.Act, d.Actor, d.Reason)))
	}
	for _, part := range e.Parts {
		a.printExplanation(part, indent+"  ")
	}
}

func verdictText(t *terminal, e gc.Explanation) string {
	switch e.Verdict {
	case gc.VerdictKept:
		return t.green(e.Verdict)
	case gc.VerdictGone, gc.VerdictUnknown:
		return t.red(e.Verdict)
	}
	return t.yellow(e.Verdict)
}
