package setup

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode"

	"github.com/fairway-registry/fairway/internal/fault"
)

const dockerConfig = "etc/docker/daemon.json"

// docker adds the agent to the mirrors of docker.io, the only registry for which
// Docker knows mirrors.
func (p *Plan) docker(o Options) error {
	flags, err := p.dockerFlags()
	if err != nil {
		return err
	}
	if f, ok := flags["registry-mirror"]; ok {
		return fault.New(fault.Conflict, "%s starts dockerd with --registry-mirror, beside which it allows no %s in daemon.json and would not start; add --registry-mirror=http://%s before it there, or move it to daemon.json and try again",
			f.where, mirrorsKey, o.Docker)
	}
	path := dockerConfig
	if f, ok := flags["config-file"]; ok {
		if !filepath.IsAbs(f.value) {
			return fault.New(fault.Conflict, "%s starts dockerd with --config-file %q, which is not the path of a file", f.where, f.value)
		}
		path = strings.TrimPrefix(filepath.Clean(f.value), "/")
	}
	before, mode, err := p.read(path)
	if err != nil {
		return err
	}
	after, err := addMirror(before, "http://"+o.Docker)
	if err != nil {
		return fmt.Errorf("%s: %w", p.where(path), err)
	}
	p.change(path, before, mode, after)
	if len(p.Changes) > 0 {
		p.note("Have Docker read it: systemctl reload docker.")
	}
	p.note("The agent must listen there: fairway node --docker-listen %s", o.Docker)
	for _, u := range o.Upstreams {
		switch {
		case u.Name == "docker.io":
		case u.ipv6():
			p.note("%s is skipped: Docker knows mirrors of docker.io only, and has no way to name a registry with an IPv6 address behind the agent. Its images are pulled from there directly.", u.Name)
		default:
			p.note("Docker knows mirrors of docker.io only: images of %s are pulled from there directly, or as %s/%s/NAME from the agent.", u.Name, o.Listen, strings.ReplaceAll(u.Name, ":", "_"))
		}
	}
	return nil
}

// flag is one that dockerd is started with, and which file says so.
type flag struct{ value, where string }

// Where systemd looks for units and their drop-ins, the first counting most, and
// where scripts that start services have options.
var (
	unitDirs    = []string{"etc/systemd/system", "run/systemd/system", "usr/local/lib/systemd/system", "usr/lib/systemd/system", "lib/systemd/system"}
	optionFiles = []string{"etc/default/docker", "etc/sysconfig/docker", "etc/conf.d/docker"}
)

// dockerFlags finds the flags that dockerd is started with: Docker does not start
// where the same is set in daemon.json too. On a doubt a flag counts.
func (p *Plan) dockerFlags() (map[string]flag, error) {
	found := map[string]flag{}
	collect := func(text, where string) {
		words := strings.FieldsFunc(text, func(r rune) bool { return unicode.IsSpace(r) || r == '"' || r == '\'' || r == '\\' })
		for i, w := range words {
			name, value, given := strings.Cut(strings.TrimLeft(w, "-"), "=")
			if !strings.HasPrefix(w, "-") || name != "registry-mirror" && name != "config-file" {
				continue
			}
			if !given && i+1 < len(words) {
				value = words[i+1]
			}
			found[name] = flag{value, where}
		}
	}
	files, err := p.dockerUnits()
	if err != nil {
		return nil, err
	}
	for _, path := range append(files, optionFiles...) {
		content, _, err := p.read(path)
		if err != nil {
			return nil, err
		}
		text := strings.ReplaceAll(string(content), "\\\n", " ") // lines that go on
		for line := range strings.Lines(text) {
			line = strings.TrimSpace(line)
			if strings.HasPrefix(line, "#") || strings.HasPrefix(line, ";") {
				continue
			}
			if key, value, _ := strings.Cut(line, "="); strings.TrimSpace(key) == "ExecStart" && strings.TrimSpace(value) == "" {
				clear(found) // what the files before said no longer holds
			}
			collect(line, p.where(path))
		}
	}
	if p.root == "/" {
		p.runningDocker(collect)
	}
	return found, nil
}

// dockerUnits lists docker.service and its drop-ins in the order in which they
// count.
func (p *Plan) dockerUnits() ([]string, error) {
	var units []string
	dropIns := map[string]string{} // by name: the first directory that has one wins
	for _, dir := range unitDirs {
		unit := filepath.Join(dir, "docker.service")
		if _, err := os.Stat(p.where(unit)); err == nil && len(units) == 0 {
			units = append(units, unit)
		}
		entries, err := os.ReadDir(p.where(unit + ".d"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("read how Docker is started: %w", err)
		}
		for _, e := range entries {
			if _, ok := dropIns[e.Name()]; !ok && strings.HasSuffix(e.Name(), ".conf") {
				dropIns[e.Name()] = filepath.Join(unit+".d", e.Name())
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(dropIns)) {
		units = append(units, dropIns[name])
	}
	return units, nil
}

// runningDocker collects the flags of a dockerd that runs, whoever started it.
func (p *Plan) runningDocker(collect func(text, where string)) {
	found, _ := filepath.Glob("/proc/[0-9]*/cmdline") // of a pattern that is right
	for _, path := range found {
		content, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		words := strings.Split(string(content), "\x00")
		if filepath.Base(words[0]) == "dockerd" {
			collect(strings.Join(words[1:], " "), "whoever started the dockerd that runs with the process ID "+filepath.Base(filepath.Dir(path)))
		}
	}
}

const mirrorsKey = "registry-mirrors"

// addMirror puts a mirror first, and leaves all else in the file byte for byte.
func addMirror(before []byte, mirror string) ([]byte, error) {
	if len(bytes.TrimSpace(before)) == 0 {
		return fmt.Appendf(nil, "{\n  %q: [%q]\n}\n", mirrorsKey, mirror), nil
	}
	var doc map[string]json.RawMessage
	if err := json.Unmarshal(before, &doc); err != nil || doc == nil {
		return nil, fault.New(fault.Conflict, "it is no JSON object that can be read: %v", err)
	}
	value, there := doc[mirrorsKey]
	if !there {
		open := bytes.IndexByte(before, '{') + 1
		end := ","
		if len(doc) == 0 {
			end = "\n"
		}
		return slices.Concat(before[:open], fmt.Appendf(nil, "\n  %q: [%q]%s", mirrorsKey, mirror, end), before[open:]), nil
	}
	var mirrors []string
	if err := json.Unmarshal(value, &mirrors); err != nil {
		return nil, fault.New(fault.Conflict, "%s is no list of texts", mirrorsKey)
	}
	if slices.ContainsFunc(mirrors, func(m string) bool { return strings.TrimSuffix(m, "/") == mirror }) {
		return before, nil
	}
	from, to, err := valueOf(before, mirrorsKey)
	if err != nil {
		return nil, err
	}
	list := []byte("[")
	for i, m := range append([]string{mirror}, mirrors...) {
		if i > 0 {
			list = append(list, ", "...)
		}
		list = fmt.Appendf(list, "%q", m)
	}
	return slices.Concat(before[:from], append(list, ']'), before[to:]), nil
}

// valueOf finds where the value of a key of the outermost object is.
func valueOf(content []byte, key string) (from, to int64, err error) {
	dec := json.NewDecoder(bytes.NewReader(content))
	if _, err := dec.Token(); err != nil { // the opening brace
		return 0, 0, fmt.Errorf("read JSON: %w", err)
	}
	for dec.More() {
		name, err := dec.Token()
		if err != nil {
			return 0, 0, fmt.Errorf("read JSON: %w", err)
		}
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return 0, 0, fmt.Errorf("read JSON: %w", err)
		}
		if name == key {
			to := dec.InputOffset()
			return to - int64(len(value)), to, nil
		}
	}
	return 0, 0, fmt.Errorf("read JSON: %q is not there", key)
}
