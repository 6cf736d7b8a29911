package crowd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Net is a switch with machines: network namespaces, each with one link to a
// bridge in a namespace of its own, limited by tbf in both directions.
type Net struct {
	prefix string
	hosts  []*Host
}

// Host is a machine of a Net.
type Host struct {
	Name string // of the namespace
	IP   string
	n    *Net
	i    int
}

// NewNet makes a switch with n machines whose links carry rate bytes a second.
// It needs root. Close it in any case.
func NewNet(n int, rate int64) (*Net, error) {
	w := &Net{prefix: "fw" + strconv.Itoa(os.Getpid()) + "-"}
	sw := w.prefix + "sw"
	lines := []string{
		"netns add " + sw,
		"-n " + sw + " link add br0 type bridge", "-n " + sw + " link set br0 up",
		"-n " + sw + " link add br1 type bridge", "-n " + sw + " link set br1 up",
	}
	for i := 1; i <= n; i++ {
		h := &Host{Name: w.prefix + strconv.Itoa(i), IP: fmt.Sprintf("10.77.0.%d", i), n: w, i: i}
		w.hosts = append(w.hosts, h)
		lines = append(lines,
			"netns add "+h.Name,
			fmt.Sprintf("link add v0 netns %s type veth peer name p%d netns %s", h.Name, i, sw),
			fmt.Sprintf("-n %s link set p%d master br0 up", sw, i),
			fmt.Sprintf("-n %s addr add %s/24 dev v0", h.Name, h.IP),
			fmt.Sprintf("-n %s link set v0 up", h.Name), fmt.Sprintf("-n %s link set lo up", h.Name),
		)
	}
	for _, l := range lines {
		if err := ip(l); err != nil {
			return nil, errors.Join(err, w.Close())
		}
	}
	for _, h := range w.hosts {
		if err := h.Limit(rate, rate); err != nil {
			return nil, errors.Join(err, w.Close())
		}
	}
	return w, nil
}

// Host returns machine i, from 0.
func (w *Net) Host(i int) *Host { return w.hosts[i] }

// Close removes the machines and the switch. What still runs in them keeps
// its namespace until it ends.
func (w *Net) Close() error {
	var errs []error
	for _, h := range w.hosts {
		if _, err := os.Stat(h.path()); err == nil {
			errs = append(errs, ip("netns del "+h.Name))
		}
	}
	if _, err := os.Stat(filepath.Join(netnsDir, w.prefix+"sw")); err == nil {
		errs = append(errs, ip("netns del "+w.prefix+"sw"))
	}
	return errors.Join(errs...)
}

// Limit sets what the machine's link carries, in bytes a second.
func (h *Host) Limit(up, down int64) error {
	for _, l := range []struct {
		ns, dev string
		rate    int64
	}{{h.Name, "v0", up}, {h.n.prefix + "sw", "p" + strconv.Itoa(h.i), down}} {
		// A burst of 64 KiB or what a kernel tick of 4 ms carries, whichever is more.
		burst := max(64<<10, l.rate/250)
		err := command("tc", "-n", l.ns, "qdisc", "replace", "dev", l.dev, "root", "tbf",
			"rate", strconv.FormatInt(l.rate*8, 10)+"bit", "burst", strconv.FormatInt(burst, 10), "latency", "50ms")
		if err != nil {
			return err
		}
	}
	return nil
}

// Part moves machines to a switch of their own; Heal moves them back.
func (w *Net) Part(hosts ...*Host) error { return w.move("br1", hosts) }

// Heal joins all machines to one switch.
func (w *Net) Heal() error { return w.move("br0", w.hosts) }

func (w *Net) move(bridge string, hosts []*Host) error {
	for _, h := range hosts {
		if err := ip(fmt.Sprintf("-n %ssw link set p%d master %s", w.prefix, h.i, bridge)); err != nil {
			return err
		}
	}
	return nil
}

const netnsDir = "/run/netns"

func (h *Host) path() string { return filepath.Join(netnsDir, h.Name) }

// Command is a program and its arguments as they are started on the machine.
func (h *Host) Command(path string, args ...string) (string, []string) {
	// Not `ip netns exec`, which hides the cgroups from container runtimes.
	return "nsenter", append([]string{"--net=" + h.path(), path}, args...)
}

// Dial connects to a numeric address from the machine.
func (h *Host) Dial(ctx context.Context, network, addr string) (conn net.Conn, err error) {
	err = h.inside(func() error {
		conn, err = new(net.Dialer).DialContext(ctx, network, addr)
		return err
	})
	return conn, err
}

// Listen listens on the machine.
func (h *Host) Listen(ctx context.Context, addr string) (ln net.Listener, err error) {
	err = h.inside(func() error {
		ln, err = new(net.ListenConfig).Listen(ctx, "tcp", addr)
		return err
	})
	return ln, err
}

// inside runs f on a thread that is in the machine's namespace: a socket belongs
// to the namespace of the thread that made it, whoever uses it later. The thread
// comes back; were it to end, so would the processes that it has started, as
// package daemon asks of the kernel.
func (h *Host) inside(f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer func() { _ = home.Close() }() // it was only looked at
	ns, err := os.Open(h.path())
	if err != nil {
		return err
	}
	defer func() { _ = ns.Close() }() // it was only looked at
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter %s: %w", h.Name, err)
	}
	defer func() {
		if err := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); err != nil {
			panic(err) // nothing else may run on this thread
		}
	}()
	return f()
}

func ip(line string) error { return command("ip", strings.Fields(line)...) }

func command(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return nil
}
