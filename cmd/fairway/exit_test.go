package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spf13/cobra"

	"github.com/fairway-registry/fairway/internal/adminclient"
)

func TestExit_StatusAndWordsForEachKindOfEnd(t *testing.T) {
	away := &adminclient.Unreachable{Server: "http://h", Err: errors.New("refused")}
	for name, c := range map[string]struct {
		err  error
		code int
		says string
	}{
		"done":               {nil, 0, ""},
		"failed":             {errors.New("no luck"), 1, "no luck"},
		"failed and told":    {errTold, 1, ""},
		"refused":            {&adminclient.Error{Status: 409, Message: "taken"}, 1, "taken"},
		"the server's fault": {&adminclient.Error{Status: 500, Message: "internal", RequestID: "r1"}, 1, "request r1"},
		"wrong usage":        {usagef("what is %q", "x"), 2, "--help"},
		"help shown":         {errHelped, 2, ""},
		"nobody there":       {fmt.Errorf("ask: %w", away), 3, "fairway serve"},
		"not found":          {&adminclient.Error{Status: 404, Message: "there is no run 7"}, 4, "no run 7"},
		"a value refused":    {&adminclient.Error{Status: 400, Message: "n: too many"}, 2, "n: too many"},
		"unknown and told":   {errUnknown, 4, ""},
		"partly":             {errPartly, 5, ""},
		"stopped by Ctrl-C":  {errInterrupted, 130, "interrupted"},
		"cut by Ctrl-C":      {fmt.Errorf("ask: %w", context.Canceled), 130, "interrupted"},
	} {
		var out bytes.Buffer
		a := &app{stderr: &terminal{Writer: &out}}
		if code := a.report(&cobra.Command{Use: "fairway"}, c.err); code != c.code {
			t.Errorf("%s: exit status %d, want %d", name, code, c.code)
		}
		if c.says == "" && out.Len() > 0 || !strings.Contains(out.String(), c.says) {
			t.Errorf("%s: it says %q, want %q", name, out.String(), c.says)
		}
		if c.code != 1 && !strings.Contains(exitCodes, fmt.Sprintf("\n  %-3d ", c.code)) {
			t.Errorf("status %d is not documented", c.code)
		}
	}
}

func TestWatch_AServerThatRestartsIsWaitedFor(t *testing.T) {
	away := &adminclient.Unreachable{Server: "http://h", Err: errors.New("refused")}
	synctest.Test(t, func(t *testing.T) {
		begin, asked := time.Now(), 0
		got, err := watch(t.Context(), 0, func(context.Context, time.Duration) (int, error) {
			if asked++; asked%5 == 0 {
				return asked, nil
			}
			return 0, away
		}, func(n int) bool { return n >= 50 }, time.Second)
		if err != nil || got != 50 {
			t.Errorf("got %d, error %v", got, err)
		}
		if time.Since(begin) < unreachableMax {
			t.Error("the time away was counted from the first failure of all, not of each")
		}
	})
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		_, err := watch(t.Context(), 0, func(context.Context, time.Duration) (int, error) { return 0, away }, func(int) bool { return false }, time.Second)
		if took := time.Since(begin); !errors.Is(err, error(away)) || took < unreachableMax || took > 2*unreachableMax {
			t.Errorf("gave up after %s with %v", took, err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := watch(ctx, 0, func(context.Context, time.Duration) (int, error) { return 0, away }, func(int) bool { return false }, time.Second)
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
	})
}
