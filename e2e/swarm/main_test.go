// Package swarm drives real swarms: `fairway serve` behind a link that counts
// every byte, `fairway node` processes with links of their own, by token buckets
// on loopback or by tbf in network namespaces on a bridge, and clients that pull
// through them and recompute every digest.
//
// Every scenario asserts that all who can complete do, what left the registry,
// that no wrong byte was handed out, and a bound on time as a multiple of the
// fluid limit (crowd.Bound). These bounds are there to notice a swarm that has
// stopped to be one, on a machine that does other things too; how near the limit
// it comes is for `make bench-swarm` to say.
//
// It needs root for the namespaces and the small disk. FAIRWAY_BIN names a binary
// to test instead of a fresh build.
package swarm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/fairway-registry/fairway/internal/crowd"
)

const (
	mib = 1 << 20
	// mbps is a link's rate: slow enough for the CPU not to be what limits.
	mbps = 1_000_000
)

// fairway is the binary under test, scratch a directory for the whole run. Its
// path is short, since the address of a unix socket may have 107 bytes.
var fairway, scratch string

func TestMain(m *testing.M) { os.Exit(runAll(m)) }

func runAll(m *testing.M) int {
	if err := prepare(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(scratch) }() // it is in a directory for temporary files
	return m.Run()
}

func prepare() error {
	if os.Geteuid() != 0 {
		return errors.New("network namespaces need root: run these tests as root")
	}
	if err := os.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin"); err != nil {
		return err
	}
	for _, p := range []string{"ip", "tc", "nsenter"} {
		if _, err := exec.LookPath(p); err != nil {
			return fmt.Errorf("%s is needed: run make e2e-tools", p)
		}
	}
	var err error
	if scratch, err = os.MkdirTemp("", "fws-"); err != nil {
		return err
	}
	if fairway = os.Getenv("FAIRWAY_BIN"); fairway != "" {
		return nil
	}
	fairway = filepath.Join(scratch, "fairway")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", fairway, "../../cmd/fairway")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build: %w\n%s", err, out)
	}
	return nil
}

// logBuffer is a log that a process writes while a test reads. It shows its end
// when the test fails.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func newLog(t testing.TB, of string) io.Writer {
	l := &logBuffer{}
	t.Cleanup(func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if s := l.b.String(); t.Failed() && s != "" {
			t.Logf("end of the log of %s:\n%s", of, s[max(0, len(s)-3<<10):])
		}
	})
	return l
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// scene is one scenario's registry, image and crowd.
type scene struct {
	t      *testing.T
	ctx    context.Context
	dir    string
	origin *crowd.Origin
	crowd  *crowd.Crowd
	im     crowd.Image
	o      setting
}

// setting says what a scene is like. Rates are in bytes a second.
type setting struct {
	nodes int
	size  int // of the image, in bytes
	up    int64
	link  crowd.Link
	net   *crowd.Net
	args  []string
}

// patience is how long a scenario may take before it counts as hung.
const patience = 2 * time.Minute

func newScene(t *testing.T, o setting) *scene {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	dir, err := os.MkdirTemp(scratch, "s-")
	if err != nil {
		t.Fatal(err)
	}
	s := &scene{t: t, ctx: ctx, dir: dir, o: o}
	origin := crowd.OriginOptions{Fairway: fairway, Dir: dir, Rate: o.up, Log: newLog(t, "the registry")}
	if o.net != nil {
		origin.Rate = 0 // its link is tbf's
		if origin.Listen, err = o.net.Host(0).Listen(ctx, o.net.Host(0).IP+":5000"); err != nil {
			t.Fatal(err)
		}
	}
	if s.origin, err = crowd.StartOrigin(ctx, origin); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.origin.Close)
	// Two layers, as an image has several; a fresh seed is not needed, since
	// nothing outlives a scene.
	if s.im, err = s.origin.Push(ctx, "crowd/app", "1", crowd.Noise(o.size/4*3, 1), crowd.Noise(o.size/4, 2)); err != nil {
		t.Fatal(err)
	}
	s.crowd, err = crowd.NewCrowd(crowd.Options{
		Fairway: fairway, Dir: dir, Origin: s.origin, Net: o.net, Link: o.link, Args: o.args,
		Log: func(name string) io.Writer { return newLog(t, name) },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.crowd.Close)
	for range o.nodes {
		s.start(nil)
	}
	s.gather(o.nodes)
	return s
}

func (s *scene) start(change func(*crowd.Node), more ...string) *crowd.Node {
	s.t.Helper()
	n, err := s.crowd.Start(s.ctx, change, more...)
	if err != nil {
		s.t.Fatal(err)
	}
	return n
}

func (s *scene) gather(members int) {
	s.t.Helper()
	if err := s.crowd.Gather(s.ctx, members); err != nil {
		s.t.Fatal(err)
	}
}

// await polls until ok.
func (s *scene) await(what string, ok func() bool) {
	s.t.Helper()
	if err := crowd.Await(s.ctx, ok); err != nil {
		s.t.Fatalf("%s: %v", what, err)
	}
}

// sent is how many copies of the image's layers have left the registry.
func (s *scene) sent() float64 {
	var n int64
	for _, l := range s.im.Layers {
		n += s.origin.Sent(l.Digest.String())
	}
	return float64(n) / float64(s.im.Size())
}

// awaitSent waits until so many copies have left the registry.
func (s *scene) awaitSent(copies float64) {
	s.t.Helper()
	s.await(fmt.Sprintf("%.2f copies leave the registry", copies), func() bool { return s.sent() >= copies })
}

// pull begins pulls through nodes and returns what waits for them.
func (s *scene) pull(nodes []*crowd.Node, when func(i int) time.Duration) (wait func() []crowd.Pull) {
	done := make(chan []crowd.Pull, 1)
	go func() { done <- crowd.PullAll(s.ctx, nodes, s.im, when) }()
	return func() []crowd.Pull { return <-done }
}

// complete fails unless every pull gave every byte.
func (s *scene) complete(pulls []crowd.Pull) {
	s.t.Helper()
	for _, p := range pulls {
		if p.Err != nil {
			s.t.Errorf("%s has not pulled after %d tries in %s: %v", p.Node.Name, p.Tries, p.Took.Round(time.Millisecond), p.Err)
		}
	}
}

// within fails when what left the registry is more than so many copies.
func (s *scene) within(copies float64) {
	s.t.Helper()
	sent := s.sent()
	s.t.Logf("%.3f copies left the registry", sent)
	if sent > copies {
		s.t.Errorf("%.3f copies left the registry; at most %.2f should", sent, copies)
	}
	if sent < 0.999 {
		s.t.Errorf("only %.3f copies left the registry: what counts them is broken", sent)
	}
}

// slowest is the time from the first request to the last byte of the last node.
func slowest(pulls []crowd.Pull) time.Duration {
	first, last := pulls[0].Began, pulls[0].Began
	for _, p := range pulls {
		if p.Began.Before(first) {
			first = p.Began
		}
		if end := p.Began.Add(p.Took); end.After(last) {
			last = end
		}
	}
	return last.Sub(first)
}

// inTime fails when what took so long took more than factor times its bound.
func (s *scene) inTime(what string, took, bound time.Duration, factor float64) {
	s.t.Helper()
	ratio := took.Seconds() / bound.Seconds()
	s.t.Logf("%s: %.2f s, %.2f times the fluid limit of %.2f s", what, took.Seconds(), ratio, bound.Seconds())
	if ratio > factor {
		s.t.Errorf("%s took %.2f times the fluid limit; at most %.1f times is allowed", what, ratio, factor)
	}
}

// bound is the fluid limit of n of the scene's nodes.
func (s *scene) bound(n int) time.Duration {
	links := make([]crowd.Link, n)
	for i := range links {
		links[i] = s.o.link
	}
	return crowd.Bound(s.im.Size(), s.o.up, links)
}
