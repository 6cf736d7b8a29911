// Package daemon runs a server as a child process and looks at it from outside,
// as an operator would: is it ready, what does it cost, does it end when told.
// The end-to-end tests and the benchmarks use it; no part of Fairway does.
//
// It ends only processes that it started, and they end with it.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Options says what to start.
type Options struct {
	Path  string
	Args  []string
	Env   []string  // added to this process's own
	Dir   string    // "" = here
	Log   io.Writer // of both outputs; nil = discarded
	Ready string    // a URL that answers 200 when the server is ready, or the path of a unix socket that is listened on then
}

// Process is a running server.
type Process struct {
	cmd     *exec.Cmd
	startup time.Duration
	ended   chan struct{}
	err     error // of Wait, once ended is closed
}

// readyPoll is how often readiness is looked at: it bounds the error of Startup.
const readyPoll = 500 * time.Microsecond

// Start starts a server and returns when it is ready. If it ends before, or ctx
// does, that is the error, and nothing is left running.
func Start(ctx context.Context, o Options) (*Process, error) {
	p := &Process{cmd: exec.Command(o.Path, o.Args...), ended: make(chan struct{})}
	p.cmd.Env = append(p.cmd.Environ(), o.Env...)
	p.cmd.Dir, p.cmd.Stdout, p.cmd.Stderr = o.Dir, o.Log, o.Log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	began := time.Now()
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", o.Path, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.ended)
	}()
	if err := p.awaitReady(ctx, probe(o.Ready)); err != nil {
		p.Kill()
		return nil, fmt.Errorf("%s: %w", o.Path, err)
	}
	p.startup = time.Since(began)
	return p, nil
}

// probe returns what looks once whether a server is ready.
func probe(ready string) func() bool {
	if strings.HasPrefix(ready, "/") {
		return func() bool {
			conn, err := net.DialTimeout("unix", ready, 2*time.Second)
			if err != nil {
				return false
			}
			_ = conn.Close() // that it could be opened was all that is asked for
			return true
		}
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 2 * time.Second}
	return func() bool {
		resp, err := client.Get(ready)
		if err != nil {
			return false
		}
		_ = resp.Body.Close() // its status was all that is asked for
		return resp.StatusCode == http.StatusOK
	}
}

func (p *Process) awaitReady(ctx context.Context, ready func() bool) error {
	tick := time.NewTicker(readyPoll)
	defer tick.Stop()
	for {
		if ready() {
			return nil
		}
		select {
		case <-p.ended:
			return fmt.Errorf("ended before it was ready: %w", exitError(p.err))
		case <-ctx.Done():
			return fmt.Errorf("not ready: %w", ctx.Err())
		case <-tick.C:
		}
	}
}

func exitError(err error) error {
	if err == nil {
		return errors.New("exit status 0")
	}
	return err
}

// Startup is the time from the start of the process to its first 200.
func (p *Process) Startup() time.Duration { return p.startup }

// PID is the process's id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Signal sends a signal.
func (p *Process) Signal(s os.Signal) error { return p.cmd.Process.Signal(s) }

// Ended is closed when the process has ended.
func (p *Process) Ended() <-chan struct{} { return p.ended }

// Wait waits for the process to end and returns how it did.
func (p *Process) Wait(ctx context.Context) error {
	select {
	case <-p.ended:
		return p.err
	case <-ctx.Done():
		return fmt.Errorf("process %d has not ended: %w", p.PID(), ctx.Err())
	}
}

// Stop asks the process to end, waits, and kills it when ctx ends first.
func (p *Process) Stop(ctx context.Context) error {
	_ = p.Signal(syscall.SIGTERM) // an error says that it has ended, which Wait tells better
	err := p.Wait(ctx)
	p.Kill()
	return err
}

// Kill kills the process and waits until it is gone.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill() // an error says that it has ended
	<-p.ended
}

// Usage is what a process and its children have used.
type Usage struct {
	CPU time.Duration // user and system time, in steps of 10 ms
	RSS int64         // bytes resident now
}

// Usage reads what the process and its direct children (nginx serves with
// those) have used.
func (p *Process) Usage() (Usage, error) {
	pids := []string{strconv.Itoa(p.PID())}
	children, err := os.ReadFile("/proc/" + pids[0] + "/task/" + pids[0] + "/children")
	if err == nil {
		pids = append(pids, strings.Fields(string(children))...)
	}
	var sum Usage
	for _, pid := range pids {
		u, err := usage(pid)
		if err != nil {
			return Usage{}, fmt.Errorf("process %s: %w", pid, err)
		}
		sum.CPU += u.CPU
		sum.RSS += u.RSS
	}
	return sum, nil
}

func usage(pid string) (Usage, error) {
	stat, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return Usage{}, err
	}
	// proc(5): the name in brackets may hold anything; utime and stime are the
	// 12th and 13th field after it, rss in pages the 22nd.
	_, rest, ok := strings.Cut(string(stat), ") ")
	f := strings.Fields(rest)
	if !ok || len(f) < 22 {
		return Usage{}, errors.New("unreadable stat")
	}
	var ticks, pages int64
	for _, i := range []int{11, 12} {
		n, err := strconv.ParseInt(f[i], 10, 64)
		if err != nil {
			return Usage{}, err
		}
		ticks += n
	}
	if pages, err = strconv.ParseInt(f[21], 10, 64); err != nil {
		return Usage{}, err
	}
	const ticksPerSecond = 100 // USER_HZ, fixed in the kernel's interface
	return Usage{CPU: time.Duration(ticks) * time.Second / ticksPerSecond, RSS: pages * int64(os.Getpagesize())}, nil
}

// FreeAddr returns a loopback address that nobody listens on at the moment.
func FreeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}
