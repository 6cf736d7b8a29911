// Command fairway is the registry, the node's agent, the command line of both,
// and the one place that reads files, flags and environment.
package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, cancel := interruptible()
	code := run(ctx, &app{
		stdout: newTerminal(os.Stdout, os.Environ()), stderr: newTerminal(os.Stderr, os.Environ()),
		environ: os.Environ(),
	}, os.Args[1:])
	cancel()
	os.Exit(code)
}

// app is what the commands work with in place of the process's globals.
type app struct {
	stdout, stderr *terminal
	environ        []string
}

func run(ctx context.Context, a *app, args []string) int {
	root := newRoot(a)
	root.SetArgs(args)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	cmd, err := root.ExecuteContextC(ctx)
	return a.report(cmd, err)
}

// interruptible returns a context that ends at the first SIGINT or SIGTERM. A
// second one ends the process, for people who mean it.
func interruptible() (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-signals
		cancel()
		<-signals
		os.Exit(exitInterrupted)
	}()
	return ctx, cancel
}

// onHangup calls f, one call at a time, whenever a SIGHUP comes, until stop.
func onHangup(f func()) (stop func()) {
	signals, done := make(chan os.Signal, 1), make(chan struct{})
	signal.Notify(signals, syscall.SIGHUP)
	go func() {
		defer close(done)
		for range signals {
			f()
		}
	}()
	return func() {
		signal.Stop(signals)
		close(signals)
		<-done
	}
}

// env returns the value of a variable, "" if it is not set.
func (a *app) env(name string) string {
	for _, entry := range a.environ {
		if len(entry) > len(name) && entry[len(name)] == '=' && entry[:len(name)] == name {
			return entry[len(name)+1:]
		}
	}
	return ""
}

var _ io.Writer = (*terminal)(nil)
