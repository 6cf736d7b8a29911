package setup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/fairway-registry/fairway/internal/fault"
)

const (
	containersMain = "etc/containers/registries.conf"
	containersDir  = "etc/containers/registries.conf.d"
	containersOurs = containersDir + "/50-fairway.conf"
)

// registriesFile is what matters here of a registries.conf.
type registriesFile struct {
	Registries []struct {
		Prefix   string `toml:"prefix"`
		Location string `toml:"location"`
	} `toml:"registry"`
}

// containers writes a file of its own for Podman and CRI-O, which read the same
// directory.
func (p *Plan) containers(o Options) error {
	before, mode, err := p.read(containersOurs)
	if err != nil {
		return err
	}
	if before != nil && !strings.HasPrefix(string(before), ours()) {
		return fault.New(fault.Conflict, "%s was not written by setup; move it away, and try again", p.where(containersOurs))
	}
	others, err := p.otherRegistries()
	if err != nil {
		return err
	}
	var b strings.Builder
	b.WriteString(ours())
	set := 0
	for _, u := range o.Upstreams {
		if u.ipv6() {
			p.note("%s is skipped: %s has no way to name a mirror of a registry with an IPv6 address. Its images are pulled from there directly; give the registry a name to have them mirrored.", u.Name, o.Runtime)
			continue
		}
		mirror := o.Listen + "/" + strings.ReplaceAll(u.Name, ":", "_")
		if file, taken := others[u.Name]; taken {
			p.note("%s is configured in %s, which stays as it is. Add this to it there:\n  [[registry.mirror]]\n  location = %q\n  insecure = true", u.Name, file, mirror)
			continue
		}
		set++
		fmt.Fprintf(&b, "\n[[registry]]\nprefix = %q\nlocation = %q\n", u.Name, u.Name)
		if strings.HasPrefix(u.Server, "http://") {
			b.WriteString("insecure = true\n")
		}
		fmt.Fprintf(&b, "\n[[registry.mirror]]\nlocation = %q\ninsecure = true\n", mirror)
	}
	if set == 0 {
		return fault.New(fault.Conflict, "there is nothing that could be set up. %s", strings.Join(p.Notes, "\n"))
	}
	p.change(containersOurs, before, mode, []byte(b.String()))
	switch {
	case len(p.Changes) == 0:
	case o.Runtime == CRIO:
		p.note("Have CRI-O read it: systemctl reload crio.")
	default:
		p.note("Nothing needs a restart: Podman reads it with each command. Its service, if one runs: systemctl restart podman.")
	}
	return nil
}

// otherRegistries finds which registries other files configure, and in which
// file: a second entry for a prefix would take the place of theirs.
func (p *Plan) otherRegistries() (map[string]string, error) {
	paths := []string{containersMain}
	entries, err := os.ReadDir(filepath.Join(p.root, containersDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	for _, e := range entries {
		if path := containersDir + "/" + e.Name(); strings.HasSuffix(path, ".conf") && path != containersOurs {
			paths = append(paths, path)
		}
	}
	slices.Sort(paths)
	found := map[string]string{}
	for _, path := range paths {
		content, _, err := p.read(path)
		if err != nil {
			return nil, err
		}
		var f registriesFile
		if err := toml.Unmarshal(content, &f); err != nil {
			return nil, fault.New(fault.Conflict, "%s is no TOML that can be read: %v", p.where(path), err)
		}
		for _, r := range f.Registries {
			name := r.Prefix
			if name == "" {
				name = r.Location
			}
			found[name] = p.where(path)
		}
	}
	return found, nil
}
