// Package setup owns what is written into a container runtime's configuration to
// have it pull through the agent: it plans changes, shows them, applies them with
// a backup, and undoes them.
//
// What holds:
//
//   - With the agent down or refusing, the runtime goes on to the registry itself
//     (N8): the agent is only ever added as a mirror before it.
//   - What somebody else wrote stays, comments and order too. A file that cannot
//     be changed without a loss is left alone, and the error says what to write.
//   - Done twice is the same as done once.
//   - The backup is on disk before a file changes; each file is replaced at once.
//   - Undo brings back exactly what was there, and refuses where somebody has
//     changed the file since.
//
// It refuses to restart a runtime: it says how that is done.
package setup

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/fairway-registry/fairway/internal/fault"
)

// Runtimes that can be set up.
const (
	Containerd = "containerd"
	CRIO       = "crio"
	Docker     = "docker"
	Podman     = "podman"
)

// Runtimes lists them.
func Runtimes() []string { return []string{Containerd, CRIO, Docker, Podman} }

// Upstream is a registry that is pulled from through the agent.
type Upstream struct {
	Name   string // as in names of images: docker.io, registry.example:5000
	Server string // URL; "" is https://Name
}

// Options says what to set up.
type Options struct {
	Runtime   string
	Root      string // of the file system; "" is /
	Listen    string // address of the mirror
	Docker    string // address of the mirror whose images without a registry are docker.io's
	Upstreams []Upstream
}

// Change is a file that is to be made, changed, or, for After nil, removed.
type Change struct {
	Path    string // below Root
	Before  []byte // nil: there is none
	After   []byte
	Mode    fs.FileMode
	newDirs []string // that are made for it, outermost first
}

// Plan is what setting up a runtime, or undoing that, would change.
type Plan struct {
	Runtime string
	Changes []Change
	Notes   []string // what else is to be done, and what could not be

	root string
	undo int // how many steps of the record it undoes; 0 for a plan that sets up
}

// Make plans to set a runtime up. The error is Invalid for options that cannot
// be, Conflict for configuration that cannot be changed without a loss.
func Make(o Options) (Plan, error) {
	if o.Root == "" {
		o.Root = "/"
	}
	if err := o.check(); err != nil {
		return Plan{}, err
	}
	p := &Plan{Runtime: o.Runtime, root: o.Root}
	var err error
	switch o.Runtime {
	case Containerd:
		err = p.containerd(o)
	case CRIO, Podman:
		err = p.containers(o)
	case Docker:
		err = p.docker(o)
	default:
		err = fault.New(fault.Invalid, "%q is no runtime that can be set up; there are %s", o.Runtime, strings.Join(Runtimes(), ", "))
	}
	if err != nil {
		return Plan{}, err
	}
	return *p, nil
}

func (o Options) check() error {
	for _, address := range []string{o.Listen, o.Docker} {
		if _, port, err := net.SplitHostPort(address); err != nil || port == "" {
			return fault.New(fault.Invalid, "%q is no address of a mirror; want HOST:PORT", address)
		}
	}
	seen := map[string]bool{}
	for _, u := range o.Upstreams {
		if u.Name == "" || strings.ContainsAny(u.plain(), "/\\\"'[]{} \t\r\n") || strings.HasPrefix(u.Name, ".") || seen[u.Name] {
			return fault.New(fault.Invalid, "%q is no name of a registry, or is given twice; want for example docker.io or registry.example:5000", u.Name)
		}
		seen[u.Name] = true
		if at, err := url.Parse(u.server()); err != nil || at.Host == "" || at.Scheme != "http" && at.Scheme != "https" || strings.ContainsAny(u.Server, "\"\\ \r\n") {
			return fault.New(fault.Invalid, "%q is no URL of a registry", u.Server)
		}
	}
	return nil
}

var ipv6 = regexp.MustCompile(`^\[[0-9A-Fa-f:.]+\](:[0-9]+)?$`)

// ipv6 reports whether the upstream is named by an IPv6 address, [::1]:5000. No
// name of an image, nor a part of one, can be made of that but by containerd.
func (u Upstream) ipv6() bool { return ipv6.MatchString(u.Name) }

// plain is the name without the brackets of an address.
func (u Upstream) plain() string {
	if u.ipv6() {
		return strings.NewReplacer("[", "", "]", "").Replace(u.Name)
	}
	return u.Name
}

// server is where the upstream's registry really is.
func (u Upstream) server() string {
	switch {
	case u.Server != "":
		return strings.TrimSuffix(u.Server, "/")
	case u.Name == "docker.io":
		return "https://registry-1.docker.io"
	}
	return "https://" + u.Name
}

// read reads a file below the root; nil: there is none.
func (p *Plan) read(path string) ([]byte, fs.FileMode, error) {
	real, err := p.real(path)
	if err != nil {
		return nil, 0, err
	}
	fi, err := os.Stat(real)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0o644, nil
	}
	if err != nil {
		return nil, 0, fmt.Errorf("read the configuration: %w", err)
	}
	content, err := os.ReadFile(real)
	if err != nil {
		return nil, 0, fmt.Errorf("read the configuration: %w", err)
	}
	if content == nil {
		content = []byte{}
	}
	return content, fi.Mode().Perm(), nil
}

// real is where the file at a path below the root is, through symbolic links.
func (p *Plan) real(path string) (string, error) {
	at := filepath.Join(p.root, path)
	real, err := filepath.EvalSymlinks(at)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Lstat(at); err == nil {
			return "", fault.New(fault.Conflict, "%s is a symbolic link that leads nowhere", at)
		}
		return at, nil
	}
	if err != nil {
		return "", fmt.Errorf("find the configuration: %w", err)
	}
	root, err := filepath.EvalSymlinks(p.root)
	if err != nil {
		return "", fmt.Errorf("find the root: %w", err)
	}
	if rel, err := filepath.Rel(root, real); err != nil || strings.HasPrefix(rel, "..") {
		return "", fault.New(fault.Conflict, "%s is a symbolic link that leads out of %s", at, p.root)
	}
	return real, nil
}

// change adds a change, if it is one.
func (p *Plan) change(path string, before []byte, mode fs.FileMode, after []byte) {
	if before != nil && string(before) == string(after) {
		return
	}
	c := Change{Path: path, Before: before, After: after, Mode: mode}
	for dir := filepath.Dir(path); ; dir = filepath.Dir(dir) {
		if _, err := os.Lstat(filepath.Join(p.root, dir)); err == nil || dir == filepath.Dir(dir) {
			break
		}
		c.newDirs = append(c.newDirs, dir)
	}
	slices.Reverse(c.newDirs)
	p.Changes = append(p.Changes, c)
}

func (p *Plan) note(format string, args ...any) {
	p.Notes = append(p.Notes, fmt.Sprintf(format, args...))
}

// where is a path as it is shown to people.
func (p *Plan) where(path string) string { return filepath.Join(p.root, path) }
