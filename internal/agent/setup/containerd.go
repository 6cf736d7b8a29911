package setup

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
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
	roots, err := p.configPath()
	if err != nil {
		return err
	}
	restart := len(p.Changes) > 0
	for _, u := range o.Upstreams {
		if err := p.hosts(roots, u, "http://"+o.Listen); err != nil {
			return err
		}
	}
	if restart {
		p.note("Restart containerd for it to look into %s: systemctl restart containerd. Running containers go on.", roots[0])
	} else if len(p.Changes) > 0 {
		p.note("Nothing needs a restart: containerd reads %s with each pull.", roots[0])
	}
	p.note("ctr looks there only if it is told to: ctr images pull --hosts-dir %s NAME", roots[0])
	return nil
}

// hosts has containerd ask the agent first for what it pulls of an upstream. What
// it goes by for that upstream now still counts after it: containerd takes the first directory that there
// is, and in it hosts.toml before certificates, and looks no further.
func (p *Plan) hosts(roots []string, u Upstream, mirror string) error {
	dir, own, err := p.hostDirectory(roots, u.Name)
	if err != nil {
		return err
	}
	target := dir
	if !own { // all registries that have no directory of their own go by this one
		target = filepath.Join(roots[0], u.Name)
		if dir != "" {
			target = filepath.Join(filepath.Dir(dir), u.Name)
		}
	}
	path := filepath.Join(strings.TrimPrefix(target, "/"), hostsFile)
	before, mode, err := p.read(path)
	if err != nil {
		return err
	}
	base := before
	if dir != "" && !own {
		if base, mode, err = p.read(filepath.Join(strings.TrimPrefix(dir, "/"), hostsFile)); err != nil {
			return err
		}
		if base, err = adopted(base, dir, u); err != nil {
			return fmt.Errorf("%s: %w", p.where(filepath.Join(dir, hostsFile)), err)
		}
	}
	certs := ""
	if dir != "" && len(strings.TrimSpace(string(base))) == 0 {
		if certs, err = p.certificates(dir, !own); err != nil {
			return err
		}
	}
	after, err := addHost(base, u, mirror, certs)
	if err != nil {
		return fmt.Errorf("%s: %w", p.where(path), err)
	}
	if own || dir == "" {
		p.change(path, before, mode, after)
		return nil
	}
	p.change(path, nil, mode, after)
	return nil
}

const (
	hostsFile  = "hosts.toml"
	defaultDir = "_default"
)

// hostDirectory is what containerd goes by for a registry now, "" for nothing,
// and whether it is of that registry alone.
func (p *Plan) hostDirectory(roots []string, name string) (dir string, own bool, err error) {
	names := []string{name, defaultDir}
	if i := strings.LastIndexByte(name, ':'); i > 0 {
		// As where no name of a file may have a colon.
		names = append([]string{strings.ReplaceAll(name[:i]+"_"+name[i+1:]+"_", ":", "")}, names...)
	}
	for _, root := range roots {
		for _, name := range names {
			dir := filepath.Join(root, name)
			_, err := os.Stat(p.where(dir))
			if err == nil {
				return dir, name != defaultDir, nil
			}
			if !errors.Is(err, fs.ErrNotExist) {
				return "", false, fmt.Errorf("read the configuration: %w", err)
			}
		}
	}
	return "", false, nil
}

// certificates renders what containerd takes from the files of a directory without
// a hosts.toml, as Docker does: authorities, and certificates of clients with their
// keys. Paths are absolute for a file elsewhere.
func (p *Plan) certificates(dir string, elsewhere bool) (string, error) {
	entries, err := os.ReadDir(p.where(dir))
	if err != nil {
		return "", fmt.Errorf("read the configuration: %w", err)
	}
	at := func(name string) string {
		if elsewhere {
			name = filepath.Join(dir, name)
		}
		return fmt.Sprintf("%q", name)
	}
	var ca, client []string
	for _, e := range entries {
		name := e.Name()
		switch filepath.Ext(name) {
		case ".crt":
			ca = append(ca, at(name))
		case ".cert":
			client = append(client, "["+at(name)+", "+at(strings.TrimSuffix(name, ".cert")+".key")+"]")
		}
	}
	text := ""
	if len(ca) > 0 {
		text += "ca = [" + strings.Join(ca, ", ") + "]\n"
	}
	if len(client) > 0 {
		text += "client = [" + strings.Join(client, ", ") + "]\n"
	}
	return text, nil
}

// adopted is a hosts.toml of the default directory as one of an upstream's own:
// relative paths are absolute, and the server is the upstream's.
func adopted(content []byte, dir string, u Upstream) ([]byte, error) {
	if len(strings.TrimSpace(string(content))) == 0 {
		return nil, nil
	}
	var doc map[string]any
	if err := toml.Unmarshal(content, &doc); err != nil {
		return nil, fault.New(fault.Conflict, "it is no TOML that can be read: %v", err)
	}
	relative := map[string]bool{}
	anchor(doc, dir, relative)
	hosts, _ := doc["host"].(map[string]any)
	for _, h := range hosts {
		if h, ok := h.(map[string]any); ok {
			anchor(h, dir, relative)
		}
	}
	text := string(content)
	for path := range relative {
		for _, quote := range []string{`"`, "'"} {
			text = strings.ReplaceAll(text, quote+path+quote, quote+filepath.Join(dir, path)+quote)
		}
	}
	if doc["server"] == nil {
		doc["server"] = u.server()
		text = fmt.Sprintf("server = %q\n", u.server()) + text
	}
	text = ours() + text
	var now map[string]any
	if err := toml.Unmarshal([]byte(text), &now); err != nil || !reflect.DeepEqual(doc, now) {
		return nil, fault.New(fault.Conflict, "it names files by relative paths in a way that cannot be changed safely; write absolute ones, and try again")
	}
	return []byte(text), nil
}

// anchor makes the paths of certificates in a table absolute, and notes them.
func anchor(table map[string]any, dir string, relative map[string]bool) {
	var walk func(v any) any
	walk = func(v any) any {
		switch v := v.(type) {
		case string:
			if v != "" && !filepath.IsAbs(v) {
				relative[v] = true
				return filepath.Join(dir, v)
			}
		case []any:
			for i := range v {
				v[i] = walk(v[i])
			}
		}
		return v
	}
	for _, key := range []string{"ca", "client"} {
		if v, ok := table[key]; ok {
			table[key] = walk(v)
		}
	}
}

// configPath has config.toml name directories of hosts.toml files, or one of the
// files that it imports, and returns which these are.
func (p *Plan) configPath() ([]string, error) {
	files, err := p.imported()
	if err != nil {
		return nil, err
	}
	// What is imported counts more, the last file most: all of the plugin's table in
	// old versions, key by key in new ones.
	chosen := 0
	for i, f := range files {
		if f.err != nil {
			return nil, fmt.Errorf("%s: %w", p.where(f.path), f.err)
		}
		if i == 0 || f.plugin {
			chosen = i
		}
		if old := oldSettings(f.table); old != "" {
			return nil, fmt.Errorf("%s: %w", p.where(f.path), oldConflict(f.tablePath, old))
		}
	}
	want := ""
	for i, f := range files {
		if set, _ := f.table[configPathKey].(string); set != "" {
			if want = set; i >= chosen {
				chosen = -1
			}
		}
	}
	if chosen < 0 {
		return directories(want), nil
	}
	f := files[chosen]
	after, set, err := setConfigPath(f, want)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", p.where(f.path), err)
	}
	p.change(f.path, f.content, f.mode, after)
	return directories(set), nil
}

func directories(list string) (all []string) {
	for _, dir := range filepath.SplitList(list) {
		if dir != "" {
			all = append(all, dir)
		}
	}
	if len(all) == 0 {
		all = []string{containerdCerts}
	}
	return all
}

// configFile is config.toml, or a file that it imports.
type configFile struct {
	path      string // below the root
	content   []byte
	mode      fs.FileMode
	doc       map[string]any
	tablePath []string
	table     map[string]any // that may have config_path
	plugin    bool           // it has something of the plugin whose table that is
	err       error
}

func (p *Plan) configFile(path string, version int64) (f configFile, err error) {
	f.path = path
	if f.content, f.mode, err = p.read(path); err != nil {
		return f, err
	}
	if err := toml.Unmarshal(f.content, &f.doc); err != nil {
		f.err = fault.New(fault.Conflict, "it is no TOML that can be read: %v", err)
	}
	if own, ok := f.doc["version"].(int64); ok {
		version = own
	}
	f.tablePath = registryTable(version)
	f.table, _ = at(f.doc, f.tablePath).(map[string]any)
	_, f.plugin = at(f.doc, f.tablePath[:2]).(map[string]any)
	return f, nil
}

// imported reads config.toml and, after it, what it imports, in order.
func (p *Plan) imported() (all []configFile, err error) {
	queue, seen := []string{containerdConfig}, map[string]bool{}
	version := int64(0)
	for len(queue) > 0 {
		path := queue[0]
		queue = queue[1:]
		if seen[path] {
			continue
		}
		seen[path] = true
		f, err := p.configFile(path, version)
		if err != nil {
			return nil, err
		}
		if len(all) == 0 {
			version, _ = f.doc["version"].(int64)
		}
		all = append(all, f)
		list, _ := f.doc["imports"].([]any)
		for _, v := range list {
			pattern, _ := v.(string)
			if !filepath.IsAbs(pattern) {
				pattern = filepath.Join("/", filepath.Dir(path), pattern)
			}
			found, err := filepath.Glob(p.where(pattern))
			if err != nil {
				return nil, fault.New(fault.Conflict, "%s: it imports %q, which is no pattern", p.where(path), pattern)
			}
			for _, at := range found {
				rel, err := filepath.Rel(p.root, at)
				if err != nil {
					return nil, fmt.Errorf("find what is imported: %w", err)
				}
				queue = append(queue, rel)
			}
		}
	}
	return all, nil
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

const configPathKey = "config_path"

// setConfigPath has a file name directories of hosts.toml files, those of want or
// the usual ones, and returns which.
func setConfigPath(f configFile, want string) (after []byte, set string, err error) {
	if len(strings.TrimSpace(string(f.content))) == 0 {
		table := registryTable(2)
		want = cmp.Or(want, containerdCerts)
		return fmt.Appendf(f.content, "version = 2\n\n[%s]\n  %s = %q\n", header(table), configPathKey, want), want, nil
	}
	if want == "" {
		if want = containerdCerts; f.tablePath[1] == registryTable(3)[1] {
			want += ":" + dockerCerts
		}
	}
	after = insertSetting(f.content, f.tablePath, configPathKey, want)
	var now map[string]any
	if err := toml.Unmarshal(after, &now); err != nil || !onlyAdds(f.doc, now, f.tablePath, configPathKey, want) {
		return nil, "", fault.New(fault.Conflict, "it is written in a way that cannot be changed safely; add %s = %q to the table [%s] by hand, and try again", configPathKey, want, header(f.tablePath))
	}
	return after, want, nil
}

func oldConflict(path []string, old string) error {
	return fault.New(fault.Conflict, "it has %s, which containerd does not allow beside %s; move them to hosts.toml files below %s, set %s there, and try again",
		header(append(slices.Clone(path), old)), configPathKey, containerdCerts, configPathKey)
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
// of the upstream comes after it, with certificates if there are some: without
// one containerd would take https for granted.
func addHost(before []byte, u Upstream, mirror, certs string) ([]byte, error) {
	host := fmt.Sprintf("[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n", mirror)
	if len(strings.TrimSpace(string(before))) == 0 {
		return fmt.Appendf(nil, "%s%sserver = %q\n%s\n%s", before, ours(), u.server(), certs, host), nil
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
