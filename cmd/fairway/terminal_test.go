package main

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry"
	"github.com/fairway-registry/fairway/internal/registry/adminapi"
	"github.com/fairway-registry/fairway/internal/registry/gc"
	"github.com/fairway-registry/fairway/internal/registry/meta"
)

// startRegistry runs a registry in this process until the test ends.
func startRegistry(t *testing.T, change func(*registry.Config)) string {
	t.Helper()
	cfg := registry.Default()
	cfg.Data, cfg.Listen, cfg.GC.Interval = t.TempDir(), "127.0.0.1:0", 0
	if change != nil {
		change(&cfg)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r, err := registry.Open(ctx, cfg, slog.New(slog.DiscardHandler), adminapi.Version{})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return "http://" + r.Addr().String()
}

// onTerminal runs a command as a person at a terminal would.
func onTerminal(colour bool, args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	now := func() time.Time { return time.Now().Add(time.Hour) } // an hour after what the server stores
	a := &app{
		stdout: &terminal{Writer: &out, tty: true, colour: colour, now: now},
		stderr: &terminal{Writer: &errs, tty: true, colour: colour, now: now},
	}
	code = run(context.Background(), a, args)
	return code, out.String(), errs.String()
}

func TestTerminal_TablesAreAlignedUnderAHeader(t *testing.T) {
	server := startRegistry(t, nil)
	for range 2 {
		if code, _, errs := onTerminal(false, "gc", "run", "--server", server); code != 0 {
			t.Fatal(errs)
		}
	}
	_, out, _ := onTerminal(false, "gc", "history", "--server", server)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if len(lines) != 3 {
		t.Fatalf("history:\n%s", out)
	}
	at := strings.Index(lines[0], "TRIGGER")
	for _, line := range lines[1:] {
		if !strings.HasPrefix(line[at:], "manual") || !strings.Contains(line, "1h ago") {
			t.Errorf("not aligned, or without a time for people:\n%s", out)
		}
	}
}

func TestTerminal_ColourIsForTerminalsThatWantIt(t *testing.T) {
	server := startRegistry(t, nil)
	if _, out, _ := onTerminal(true, "gc", "run", "--server", server); !strings.Contains(out, "\x1b[32mdone\x1b[0m") {
		t.Errorf("no colour: %q", out)
	}
	if _, out, _ := onTerminal(false, "gc", "run", "--server", server); strings.Contains(out, "\x1b[3") {
		t.Errorf("colour: %q", out)
	}
	pipe, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	if term := newTerminal(pipe, nil); term.tty || term.colour {
		t.Error("a file is taken for a terminal")
	}
	for _, environ := range [][]string{{"NO_COLOR=1"}, {"TERM=dumb"}} {
		if wantsColour(true, environ) {
			t.Errorf("colour with %q", environ)
		}
	}
	if !wantsColour(true, []string{"NO_COLOR=", "TERM=xterm"}) || wantsColour(false, nil) {
		t.Error("an empty NO_COLOR counts, or a pipe is coloured")
	}
}

func TestTerminal_LongWorkShowsAProgressBar(t *testing.T) {
	server := startRegistry(t, nil)
	_, _, errs := onTerminal(false, "check", "--server", server, "--json")
	if !strings.Contains(errs, "\r") || strings.Contains(errs, "{") || strings.Contains(errs, "1000") {
		t.Errorf("no bar, or counts of nothing, or JSON on its stream: %q", errs)
	}
	var out bytes.Buffer
	bar := (&app{stderr: &terminal{Writer: &out, tty: true}}).newProgress(true)
	bar.show(0, 0, "nothing to count yet")
	if out.Len() > 0 {
		t.Errorf("a bar without a total: %q", out.String())
	}
	for i := range int64(5) {
		bar.show(i*100, 1000+i, "7 removed, 1 MiB freed")
	}
	bar.clear()
	for _, part := range []string{"7 removed, 1 MiB freed", "400/1004", "items/", "39%"} {
		if !strings.Contains(out.String(), part) {
			t.Errorf("the bar does not show %q: %q", part, out.String())
		}
	}
	var none bytes.Buffer
	pipe := (&app{stderr: &terminal{Writer: &none}}).newProgress(true)
	pipe.show(1, 2, "x")
	if pipe.clear(); none.Len() > 0 || pipe.interval() < time.Second {
		t.Errorf("a bar in a pipe: %q", none.String())
	}
}

func TestTerminal_AnExplanationReadsAsAPath(t *testing.T) {
	digest := "sha256:" + strings.Repeat("ab", 32)
	goes := time.Now().Add(3 * time.Hour)
	var out bytes.Buffer
	a := &app{stdout: &terminal{Writer: &out, tty: true, now: time.Now}}
	a.printExplanation(gc.Explanation{
		Subject: "team/app@" + digest, Kind: "blob", Digest: digest, Verdict: "kept", Summary: "it is needed", GoesAt: &goes,
		Reasons: []gc.Reason{
			{Code: "referenced", Path: []string{"tag team/app:v1", "index team/app@" + digest, "blob " + digest}},
			{Code: "window", Path: []string{"blob " + digest}, Text: "it was confirmed lately", Until: &goes},
		},
		History: []meta.Deletion{{Kind: "link", Act: "removed", Actor: "me", Reason: "because", At: time.Now().Add(-49 * time.Hour)}},
		Parts:   []gc.Explanation{{Subject: "other", Kind: "manifest", Verdict: "gone"}},
	}, "")
	want := `kept: blob team/app@sha256:abababababab
  it is needed
  goes in 3h, if nothing happens
  referenced: tag team/app:v1 -> index team/app@sha256:abababababab -> blob sha256:abababababab
  window: it was confirmed lately (until in 3h)
  2d ago: link removed by me (because)
  gone: manifest other
`
	if out.String() != want {
		t.Errorf("got:\n%s\nwant:\n%s", out.String(), want)
	}
}

func TestTerminal_TrashLsSaysWhatToType(t *testing.T) {
	digest := oci.Digest("sha256:" + strings.Repeat("cd", 32))
	var out bytes.Buffer
	a := &app{stdout: &terminal{Writer: &out, tty: true, now: time.Now}}
	now := time.Now()
	item := meta.TrashItem{Repo: "team/app", Digest: digest, Tags: []string{"v1", "v2"}, Size: 3 << 20, TrashedAt: now.Add(-2 * time.Minute), Actor: "me", Reason: "deleted"}
	for want, at := range map[string]time.Time{"in 5h": now.Add(5 * time.Hour), "with the next run": now.Add(-time.Minute)} {
		out.Reset()
		a := &app{stdout: &terminal{Writer: &out, tty: true, now: func() time.Time { return now }}}
		a.printTrash([]adminapi.TrashItem{{TrashItem: item, ExpiresAt: at}})
		if got := out.String(); !strings.HasPrefix(got, "RESTORE WITH") || !strings.Contains(got, "\nteam/app@sha256:cdcdcdcdcdcd  v1,v2  3 MiB  2m ago   "+want+"  ") {
			t.Errorf("got:\n%s", got)
		}
	}
	item.Holder = "cluster"
	if got := a.expiry(adminapi.TrashItem{TrashItem: item, ExpiresAt: now}); got != "after its lease" {
		t.Errorf("what a lease keeps expires %s", got)
	}
	out.Reset()
	if a.printTrash(nil); out.String() != "The trash is empty.\n" {
		t.Errorf("got %q", out.String())
	}
}

func TestTerminal_TimesForPeople(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	term := &terminal{Writer: io.Discard, tty: true, now: func() time.Time { return now }}
	for ago, want := range map[time.Duration]string{
		0: "now", 5 * time.Second: "5s ago", 90 * time.Second: "1m30s ago", 20 * time.Minute: "20m ago",
		90 * time.Minute: "1h30m ago", 26 * time.Hour: "26h ago", 72 * time.Hour: "3d ago", -2 * time.Hour: "in 2h", -30 * time.Second: "in 30s",
	} {
		if got := term.when(now.Add(-ago)); got != want {
			t.Errorf("%s ago is %q, want %q", ago, got, want)
		}
	}
	term.tty = false
	if got := term.when(now); got != "2026-01-02T03:04:05Z" {
		t.Errorf("in a pipe: %q", got)
	}
	if got := term.when(time.Time{}); got != "-" {
		t.Errorf("no time: %q", got)
	}
}

// lines is a writer for several goroutines.
type lines struct {
	mu sync.Mutex
	b  *bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// TestServe_GreetsAPerson starts a registry on a terminal and ends it.
func TestServe_GreetsAPerson(t *testing.T) {
	var errs bytes.Buffer
	ctx, cancel := context.WithCancel(t.Context())
	a := &app{stdout: &terminal{Writer: io.Discard}, stderr: &terminal{Writer: &lines{b: &errs}, tty: true, now: time.Now}}
	addr, err := freeAddress()
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan int)
	go func() { ended <- run(ctx, a, []string{"serve", "--data", t.TempDir(), "--listen", addr}) }()
	for deadline := time.Now().Add(20 * time.Second); ; <-time.After(5 * time.Millisecond) {
		if res, err := http.Get("http://" + addr + "/readyz"); err == nil {
			_ = res.Body.Close()
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("not ready in time")
		}
	}
	cancel()
	if code := <-ended; code != exitOK {
		t.Errorf("exit status %d", code)
	}
	for _, part := range []string{"Fairway serves on " + addr, "Push:", "fairway gc run --server http://" + addr, "msg=ended"} {
		if !strings.Contains(errs.String(), part) {
			t.Errorf("it does not say %q:\n%s", part, errs.String())
		}
	}
}

func TestTerminal_TextThatOthersChoseCommandsNothing(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"subject":"a","kind":"repository","verdict":"kept","summary":"held by x\u001b[2J\ny","reasons":[]}`)
	}))
	defer server.Close()
	code, out, errs := onTerminal(false, "explain", "a", "--server", server.URL)
	if code != 0 || strings.Contains(out, "\x1b") || !strings.Contains(out, `held by x\x1b[2J\ny`) {
		t.Errorf("status %d, %q, %q", code, out, errs)
	}
	if _, out, _ = onTerminal(false, "explain", "a", "--json", "--server", server.URL); !strings.Contains(out, `held by x\u001b[2J\ny"`) {
		t.Errorf("for programs: %q", out)
	}
}
