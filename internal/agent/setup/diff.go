package setup

import (
	"fmt"
	"strings"
)

// diffContext is how many lines around a change are shown.
const diffContext = 3

// Diff shows what the plan changes, as a unified diff.
func (p Plan) Diff() string {
	var b strings.Builder
	for _, c := range p.Changes {
		from, to := p.where(c.Path), p.where(c.Path)
		if c.Before == nil {
			from = "/dev/null"
		}
		if c.After == nil {
			to = "/dev/null"
		}
		fmt.Fprintf(&b, "--- %s\n+++ %s\n", from, to)
		hunk(&b, lines(c.Before), lines(c.After))
	}
	return b.String()
}

func lines(content []byte) []string {
	if len(content) == 0 {
		return nil
	}
	ls := strings.SplitAfter(string(content), "\n")
	if ls[len(ls)-1] == "" {
		ls = ls[:len(ls)-1]
	}
	return ls
}

// hunk shows all from the first line that differs to the last: setup writes in
// one place of a file.
func hunk(b *strings.Builder, before, after []string) {
	head := 0
	for head < len(before) && head < len(after) && before[head] == after[head] {
		head++
	}
	tail := 0
	for tail < len(before)-head && tail < len(after)-head && before[len(before)-1-tail] == after[len(after)-1-tail] {
		tail++
	}
	from := max(0, head-diffContext)
	toBefore, toAfter := min(len(before), len(before)-tail+diffContext), min(len(after), len(after)-tail+diffContext)
	fmt.Fprintf(b, "@@ -%s +%s @@\n", span(from, toBefore), span(from, toAfter))
	write := func(sign string, ls []string) {
		for _, l := range ls {
			b.WriteString(sign + strings.TrimSuffix(l, "\n") + "\n")
			if !strings.HasSuffix(l, "\n") {
				b.WriteString("\\ No newline at end of file\n")
			}
		}
	}
	write(" ", before[from:head])
	write("-", before[head:len(before)-tail])
	write("+", after[head:len(after)-tail])
	write(" ", after[len(after)-tail:toAfter])
}

func span(from, to int) string {
	if to == from {
		return fmt.Sprintf("%d,0", from)
	}
	return fmt.Sprintf("%d,%d", from+1, to-from)
}
