package endpoint

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
)

// place is where a runtime may be.
type place struct {
	kind   string
	socket string // USER stands for the ID of each user who is logged in
	// sign is a pattern of what a runtime keeps below /run, and so since the machine
	// was booted: without its socket it says that what it runs cannot be known. In it
	// * stands for one name, or a part of one.
	sign string
	hint string // what to do where there is a sign without a socket
}

// Signs of the runtimes. A containerd has a folder for its tasks in its state
// directory; /run/containerd itself says nothing, since the shims of every
// containerd have their sockets there.
const (
	tasks   = "/io.containerd.runtime.*"
	conmons = "/*-containers/*/userdata/conmon.pid"

	startIt      = "start it, or name the runtimes with the setting runtime"
	enableSocket = "enable podman.socket, or name the runtimes with the setting runtime"

	users = "/run/user/"
)

// places are where packages and installers put sockets. RKE2 uses those of k3s.
// A name that links to another place is one socket with it.
var places = []place{
	{kind: kindContainerd, socket: "/run/containerd/containerd.sock", sign: "/run/containerd" + tasks, hint: startIt},
	{kind: kindContainerd, socket: "/run/k3s/containerd/containerd.sock", sign: "/run/k3s/containerd" + tasks, hint: startIt},
	{kind: kindContainerd, socket: "/run/k0s/containerd.sock", sign: "/run/k0s/containerd" + tasks, hint: startIt},
	{kind: kindContainerd, socket: "/var/snap/microk8s/common/run/containerd.sock", sign: "/var/snap/microk8s/common/run/containerd" + tasks, hint: startIt},
	{kind: kindCRI, socket: "/run/crio/crio.sock", sign: "/run/crio/*", hint: startIt},
	{kind: kindCRI, socket: "/var/run/crio/crio.sock"},
	{kind: kindDocker, socket: "/run/docker.sock", sign: "/run/docker/runtime-*", hint: startIt},
	{kind: kindDocker, socket: "/var/run/docker.sock"},
	{kind: kindDocker, socket: "/run/podman/podman.sock", sign: "/run/containers/storage" + conmons, hint: enableSocket},
	{kind: kindDocker, socket: users + "USER/docker.sock"},
	{kind: kindDocker, socket: users + "USER/podman/podman.sock", sign: users + "USER/containers" + conmons, hint: enableSocket},
}

// instances returns the places below root, those of users once for each.
func instances(root string) (all []place, err error) {
	entries, err := os.ReadDir(filepath.Join(root, users))
	if absent(err) {
		err = nil
	}
	for _, p := range places {
		if !strings.Contains(p.socket, "USER") {
			all = append(all, p)
			continue
		}
		for _, e := range entries {
			one := p
			one.socket, one.sign = strings.ReplaceAll(p.socket, "USER", e.Name()), strings.ReplaceAll(p.sign, "USER", e.Name())
			all = append(all, one)
		}
	}
	return all, err
}

// without returns the places that are not below a directory.
func without(dir string) (all []place) {
	for _, p := range places {
		if !strings.HasPrefix(p.socket, dir) {
			all = append(all, p)
		}
	}
	return all
}

// absent reports that there is no such file, which is all that an error may be
// taken for.
func absent(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR)
}

// exists reports whether a path below root matches pattern. It is an error if
// that cannot be found out.
func exists(root, pattern string) (bool, error) {
	found := []string{root}
	var errs []error
	for part := range strings.SplitSeq(strings.Trim(pattern, "/"), "/") {
		var next []string
		for _, dir := range found {
			if !strings.Contains(part, "*") {
				next = append(next, filepath.Join(dir, part))
				continue
			}
			entries, err := os.ReadDir(dir)
			if err != nil && !absent(err) {
				errs = append(errs, err)
			}
			for _, e := range entries {
				if ok, err := path.Match(part, e.Name()); ok && err == nil {
					next = append(next, filepath.Join(dir, e.Name()))
				}
			}
		}
		found = next
	}
	for _, at := range found {
		_, err := os.Lstat(at)
		if err == nil {
			return true, nil
		}
		if !absent(err) {
			errs = append(errs, err)
		}
	}
	return false, errors.Join(errs...)
}

// socket is one that somebody may listen at.
type socket struct {
	kind, path string
	real       string // without links
}

// sight is what one look at the places has found.
type sight struct {
	sockets []socket
	doubts  []error // why there may be runtimes besides
}

// look looks at one place. It waits for the file system, which may be a user's.
func (p place) look(root string) (s sight) {
	doubt := func(err error) {
		if err != nil {
			s.doubts = append(s.doubts, err)
		}
	}
	at := filepath.Join(root, p.socket)
	real, err := filepath.EvalSymlinks(at)
	var st fs.FileInfo
	if err == nil {
		st, err = os.Stat(real)
	}
	switch {
	case err != nil && !absent(err):
		doubt(err)
		return s
	case err == nil && st.Mode().Type() == fs.ModeSocket:
		s.sockets = append(s.sockets, socket{kind: p.kind, path: at, real: real})
		return s
	case p.sign == "":
		return s
	}
	signed, err := exists(root, p.sign)
	doubt(err)
	if signed {
		doubt(fmt.Errorf("%s runs here or did, but does not listen at %s: %s", name(p.kind, p.socket), at, p.hint))
	}
	return s
}

// directories returns those below root in which the socket may appear, or a directory
// on the way to it. It waits as look does.
func (p place) directories(root string) (dirs []string) {
	for dir := path.Dir(p.socket); ; dir = path.Dir(dir) {
		at := filepath.Join(root, dir)
		if st, err := os.Stat(at); err == nil && st.IsDir() {
			dirs = append(dirs, at)
		}
		if dir == "/" {
			return dirs
		}
	}
}
