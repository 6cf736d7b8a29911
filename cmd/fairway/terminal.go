package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/term"

	"github.com/fairway-registry/fairway/internal/unit"
)

// terminal is an output that knows whether a person reads it.
type terminal struct {
	io.Writer
	tty    bool
	colour bool
	now    func() time.Time
}

// newTerminal looks at what f is.
func newTerminal(f *os.File, environ []string) *terminal {
	tty := term.IsTerminal(int(f.Fd()))
	return &terminal{Writer: f, tty: tty, colour: wantsColour(tty, environ), now: time.Now}
}

// wantsColour follows NO_COLOR (https://no-color.org) and TERM=dumb.
func wantsColour(tty bool, environ []string) bool {
	for _, entry := range environ {
		name, value, _ := strings.Cut(entry, "=")
		if name == "NO_COLOR" && value != "" || name == "TERM" && value == "dumb" {
			return false
		}
	}
	return tty
}

// printf writes to the terminal. A reader that has gone away, as in
// "| head", is no error of the command.
func (t *terminal) printf(format string, args ...any) {
	_, _ = fmt.Fprintf(t, format, args...)
}

func (t *terminal) paint(code, s string) string {
	if !t.colour || s == "" {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

func (t *terminal) bold(s string) string   { return t.paint("1", s) }
func (t *terminal) dim(s string) string    { return t.paint("2", s) }
func (t *terminal) red(s string) string    { return t.paint("31", s) }
func (t *terminal) green(s string) string  { return t.paint("32", s) }
func (t *terminal) yellow(s string) string { return t.paint("33", s) }

// json prints v for programs.
func (t *terminal) json(v any) error {
	enc := json.NewEncoder(t)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("write the answer: %w", err)
	}
	return nil
}

// table prints rows: aligned under a header for a person, separated by tabs
// and without a header for a program.
func (t *terminal) table(header []string, rows [][]string) {
	if !t.tty {
		for _, row := range rows {
			t.printf("%s\n", strings.Join(row, "\t"))
		}
		return
	}
	widths := make([]int, len(header))
	for _, row := range append([][]string{header}, rows...) {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	t.printf("%s\n", t.bold(aligned(header, widths)))
	for _, row := range rows {
		t.printf("%s\n", aligned(row, widths))
	}
}

func aligned(row []string, widths []int) string {
	var b strings.Builder
	for i, cell := range row {
		b.WriteString(cell)
		if i < len(row)-1 {
			b.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)+2))
		}
	}
	return b.String()
}

// fields prints names with values below each other.
func (t *terminal) fields(pairs ...[2]string) {
	width := 0
	for _, p := range pairs {
		width = max(width, len(p[0]))
	}
	for _, p := range pairs {
		if t.tty {
			t.printf("%s%s  %s\n", t.bold(p[0]), strings.Repeat(" ", width-len(p[0])), p[1])
		} else {
			t.printf("%s\t%s\n", p[0], p[1])
		}
	}
}

// when renders a time: how far away for a person, in full for a program.
func (t *terminal) when(at time.Time) string {
	if at.IsZero() {
		return "-"
	}
	if !t.tty {
		return at.UTC().Format(time.RFC3339)
	}
	d := t.now().Sub(at)
	switch {
	case d < -time.Second:
		return "in " + roughly(-d)
	case d < time.Second:
		return "now"
	}
	return roughly(d) + " ago"
}

// whenever is when for a time that may be missing.
func (t *terminal) whenever(at *time.Time) string {
	if at == nil {
		return "-"
	}
	return t.when(*at)
}

// roughly renders a duration with the one or two units that matter.
func roughly(d time.Duration) string {
	switch {
	case d < 10*time.Minute:
		return unit.Duration(d.Round(time.Second)).String()
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Round(time.Minute).Minutes()))
	case d < 48*time.Hour:
		return unit.Duration(d.Round(time.Minute)).String()
	}
	return fmt.Sprintf("%dd", int(d.Round(time.Hour).Hours()/24))
}

// digest keeps of a digest what a person can compare; programs get all of it.
func (t *terminal) digest(d string) string {
	alg, hex, ok := strings.Cut(d, ":")
	if !t.tty || !ok || len(hex) <= shortHex {
		return d
	}
	return alg + ":" + hex[:shortHex]
}

const shortHex = 12

// shortened does so with every digest in a text.
func (t *terminal) shortened(s string) string {
	if !t.tty {
		return s
	}
	return longDigest.ReplaceAllString(s, "$1")
}

var longDigest = regexp.MustCompile(fmt.Sprintf(`(sha(?:256|512):[0-9a-f]{%d})[0-9a-f]+`, shortHex))

// count renders a number with its noun.
func count(n int64, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// size renders bytes: rounded for a person, exactly for a program.
func (t *terminal) size(n int64) string {
	if !t.tty {
		return strconv.FormatInt(n, 10)
	}
	return unit.Size(n).String()
}
