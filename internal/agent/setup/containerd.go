package setup

import (
	"fmt"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/fairway-registry/fairway/internal/fault"
)

const (
	containerdConfig = "etc/containerd/config.toml"
	containerdCerts  = "/etc/containerd/certs.d"
	// dockerCerts is looked into by containerd 2 where config_path is not set.
	dockerCerts = "/etc/docker/certs.d"
)

// containerd has the runtime look for hosts.toml files, and writes those.
func (p *Plan) containerd(o Options) error {
	before, mode, err := p.read(containerdConfig)
	if err != nil {
		return err
	}
	after, certs, err := setConfigPath(before)
	if err != nil {
		return fmt.Errorf("%s: %w", p.where(containerdConfig), err)
	}
	p.change(containerdConfig, before, mode, after)
	restart := len(p.Changes) > 0
	for _, u := range o.Upstreams {
		path := filepath.Join(strings.TrimPrefix(certs, "/"), u.Name, "hosts.toml")
		before, mode, err := p.read(path)
		if err != nil {
			return err
		}
		after, err := addHost(before, u, "http://"+o.Listen)
		if err != nil {
			return fmt.Errorf("%s: %w", p.where(path), err)
		}
		p.change(path, before, mode, after)
	}
	if restart {
		p.note("Restart containerd for it to look into %s: systemctl restart containerd. Running containers go on.", certs)
	} else if len(p.Changes) > 0 {
		p.note("Nothing needs a restart: containerd reads %s with each pull.", certs)
	}
	p.note("ctr looks there only if it is told to: ctr images pull --hosts-dir %s NAME", certs)
	return nil
}

// registryTable is the table of config.toml that has config_path, by the
// version of the file.
func registryTable(version int64) []string {
	switch {
	case version < 2:
		return []string{"plugins", "cri", "registry"}
	case version == 2:
		return []string{"plugins", "io.containerd.grpc.v1.cri", "registry"}
	}
	return []string{"plugins", "io.containerd.cri.v1.images", "registry"}
}

// setConfigPath has config.toml name a directory of hosts.toml files, and
// returns which.
func setConfigPath(before []byte) (after []byte, certs string, err error) {
	const setting = "config_path"
	if len(strings.TrimSpace(string(before))) == 0 {
		table := registryTable(2)
		return fmt.Appendf(before, "version = 2\n\n[%s]\n  %s = %q\n", header(table), setting, containerdCerts), containerdCerts, nil
	}
	var doc map[string]any
	if err := toml.Unmarshal(before, &doc); err != nil {
		return nil, "", fault.New(fault.Conflict, "it is no TOML that can be read: %v", err)
	}
	version, _ := doc["version"].(int64)
	path := registryTable(version)
	table, _ := at(doc, path).(map[string]any)
	if set, _ := table[setting].(string); set != "" {
		return before, filepath.SplitList(set)[0], nil
	}
	if old := oldSettings(table); old != "" {
		return nil, "", fault.New(fault.Conflict, "it has %s, which containerd does not allow beside %s; move them to hosts.toml files below %s, set %s there, and try again",
			header(append(slices.Clone(path), old)), setting, containerdCerts, setting)
	}
	want := containerdCerts
	if version > 2 {
		want += ":" + dockerCerts
	}
	after = insertSetting(before, path, setting, want)
	var now map[string]any
	if err := toml.Unmarshal(after, &now); err != nil || !onlyAdds(doc, now, path, setting, want) {
		return nil, "", fault.New(fault.Conflict, "it is written in a way that cannot be changed safely; add %s = %q to the table [%s] by hand, and try again", setting, want, header(path))
	}
	return after, containerdCerts, nil
}

// oldSettings names what containerd refuses to start with beside config_path.
func oldSettings(table map[string]any) string {
	if mirrors, _ := table["mirrors"].(map[string]any); len(mirrors) > 0 {
		return "mirrors"
	}
	configs, _ := table["configs"].(map[string]any)
	for _, c := range configs {
		if c, _ := c.(map[string]any); c["tls"] != nil {
			return "configs"
		}
	}
	return ""
}

func at(doc map[string]any, path []string) any {
	var v any = doc
	for _, key := range path {
		m, _ := v.(map[string]any)
		v = m[key]
	}
	return v
}

// header renders a path as between the brackets of a table.
func header(path []string) string {
	var parts []string
	for _, key := range path {
		if strings.ContainsAny(key, ".:") {
			key = fmt.Sprintf("%q", key)
		}
		parts = append(parts, key)
	}
	return strings.Join(parts, ".")
}

// insertSetting writes a setting into the table's lines, or the table to the end.
func insertSetting(before []byte, path []string, key, value string) []byte {
	var quoted []string
	for _, k := range path {
		q := regexp.QuoteMeta(k)
		quoted = append(quoted, `\s*(?:"`+q+`"|'`+q+`'|`+q+`)\s*`)
	}
	table := regexp.MustCompile(`^\s*\[` + strings.Join(quoted, `\.`) + `\]\s*(?:#.*)?$`)
	empty := regexp.MustCompile(`^\s*` + key + `\s*=\s*(?:""|'')\s*(?:#.*)?$`)
	any := regexp.MustCompile(`^\s*\[`)
	ls := lines(before)
	for i, l := range ls {
		if !table.MatchString(strings.TrimRight(l, "\r\n")) {
			continue
		}
		indent := l[:len(l)-len(strings.TrimLeft(l, " \t"))] + "  "
		line := fmt.Sprintf("%s%s = %q\n", indent, key, value)
		for j := i + 1; j < len(ls) && !any.MatchString(ls[j]); j++ {
			if empty.MatchString(strings.TrimRight(ls[j], "\r\n")) {
				return joinLines(slices.Replace(ls, j, j+1, line))
			}
		}
		if !strings.HasSuffix(l, "\n") {
			ls[i] += "\n"
		}
		return joinLines(slices.Insert(ls, i+1, line))
	}
	text := string(before)
	if !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	return fmt.Appendf([]byte(text), "\n[%s]\n  %s = %q\n", header(path), key, value)
}

func joinLines(ls []string) []byte { return []byte(strings.Join(ls, "")) }

// onlyAdds reports that after is before with the one setting.
func onlyAdds(before, after map[string]any, path []string, key, value string) bool {
	table, _ := at(after, path).(map[string]any)
	if table[key] != value {
		return false
	}
	delete(table, key)
	if was, ok := at(before, path).(map[string]any); ok {
		delete(was, key) // an empty one
	}
	return reflect.DeepEqual(prune(before), prune(after))
}

// prune leaves out empty tables, which mean nothing.
func prune(doc map[string]any) map[string]any {
	for k, v := range doc {
		if m, ok := v.(map[string]any); ok && len(prune(m)) == 0 {
			delete(doc, k)
		}
	}
	return doc
}

// addHost has a hosts.toml ask the agent first. Where there is none, the server
// of the upstream comes after it: without one containerd would take https for
// granted.
func addHost(before []byte, u Upstream, mirror string) ([]byte, error) {
	host := fmt.Sprintf("[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n", mirror)
	if len(strings.TrimSpace(string(before))) == 0 {
		return fmt.Appendf(nil, "%s%sserver = %q\n\n%s", before, ours(), u.server(), host), nil
	}
	var doc map[string]any
	if err := toml.Unmarshal(before, &doc); err != nil {
		return nil, fault.New(fault.Conflict, "it is no TOML that can be read: %v", err)
	}
	hosts, _ := doc["host"].(map[string]any)
	if _, there := hosts[mirror]; there {
		return before, nil
	}
	table := regexp.MustCompile(`^\s*\[\s*host\b`)
	ls := lines(before)
	i := slices.IndexFunc(ls, func(l string) bool { return table.MatchString(l) })
	after := append([]byte{}, before...)
	switch {
	case i >= 0:
		after = joinLines(slices.Insert(ls, i, host+"\n"))
	case !strings.HasSuffix(string(before), "\n"):
		after = append(after, "\n\n"+host...)
	default:
		after = append(after, "\n"+host...)
	}
	var now map[string]any
	if err := toml.Unmarshal(after, &now); err == nil {
		added, _ := now["host"].(map[string]any)
		_, there := added[mirror]
		delete(added, mirror)
		if there && reflect.DeepEqual(prune(doc), prune(now)) {
			return after, nil
		}
	}
	return nil, fault.New(fault.Conflict, "it is written in a way that cannot be changed safely; add these lines before its first host by hand, and try again:\n%s", host)
}

// ours begins a file that is setup's own.
func ours() string { return "# Written by \"fairway node setup\"; \"--undo\" takes it away again.\n" }
