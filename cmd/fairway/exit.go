package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/spf13/cobra"

	"github.com/fairway-registry/fairway/internal/adminclient"
	"github.com/fairway-registry/fairway/internal/fault"
)

// Exit codes, documented in exitCodes.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitUnreachable = 3
	exitNotFound    = 4
	exitPartly      = 5
	exitInterrupted = 130
)

// exitCodes is the text about them in help and in docs/cli.md.
const exitCodes = `Exit status:
  0    done
  1    failed
  2    wrong usage: a command, flag or value that does not exist
  3    no server answers
  4    the thing named does not exist
  5    partly failed: a run is over, but some items could not be handled
  130  interrupted`

// usageError is a mistake in what was typed.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error {
	return &usageError{fmt.Errorf(format, args...)}
}

var (
	// errHelped ends a command that has shown its help instead of acting.
	errHelped = &usageError{errors.New("a command is wanted")}
	// errPartly ends a command whose output has told of items that failed.
	errPartly = errors.New("partly failed")
	// errInterrupted ends a command that a signal has cut short.
	errInterrupted = errors.New("interrupted")
	// errTold ends a command that failed and has said all about it.
	errTold = errors.New("failed")
	// errUnknown ends a command whose output has told that there is no such thing.
	errUnknown = errors.New("unknown")
)

// exitCode is the exit status for err.
func exitCode(err error) int {
	var (
		usage       *usageError
		unreachable *adminclient.Unreachable
		answer      *adminclient.Error
	)
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &usage):
		return exitUsage
	case errors.Is(err, errPartly):
		return exitPartly
	case errors.Is(err, errInterrupted), errors.Is(err, context.Canceled):
		return exitInterrupted
	case errors.As(err, &unreachable):
		return exitUnreachable
	case errors.Is(err, errUnknown), errors.Is(err, fault.NotFound), errors.As(err, &answer) && answer.Status == http.StatusNotFound:
		return exitNotFound
	case errors.As(err, &answer) && answer.Status == http.StatusBadRequest:
		return exitUsage // a value that the server has to know the rules of
	case errors.Is(err, fault.Invalid):
		return exitUsage
	}
	return exitFailed
}

// report tells the person at the keyboard about err and returns the exit
// status.
func (a *app) report(cmd *cobra.Command, err error) int {
	code := exitCode(err)
	var unreachable *adminclient.Unreachable
	switch {
	case err == nil, errors.Is(err, errHelped), errors.Is(err, errTold), errors.Is(err, errUnknown), errors.Is(err, errPartly):
	case code == exitInterrupted:
		a.stderr.printf("interrupted\n")
	case errors.As(err, &unreachable):
		a.stderr.printf("%s %v\n", a.stderr.red("fairway:"), unreachable)
		if cmd.Flags().Lookup("node") != nil {
			a.stderr.printf("Start one with \"fairway node\", or name another with --node URL or %s.\n", envNode)
		} else {
			a.stderr.printf("Start one with \"fairway serve\", or name another with --server URL or %s.\n", envServer)
		}
	default:
		a.stderr.printf("%s %s\n", a.stderr.red("fairway:"), strings.TrimSpace(err.Error()))
		if code == exitUsage {
			a.stderr.printf("Run \"%s --help\" for what there is.\n", cmd.CommandPath())
		}
	}
	return code
}
