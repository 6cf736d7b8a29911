package main

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/fairway-registry/fairway/internal/registry"
	"github.com/fairway-registry/fairway/internal/unit"
)

// load reads a registry's configuration from a file, an environment and a
// command line.
func load(t testing.TB, file string, environ []string, args ...string) (registry.Config, []string, error) {
	t.Helper()
	return loadHouse(t, registryHouse(), file, environ, args...)
}

func loadHouse[C interface{ Validate() error }](t testing.TB, h house[C], file string, environ []string, args ...string) (C, []string, error) {
	t.Helper()
	path := ""
	if file != "" {
		path = filepath.Join(t.TempDir(), "f.yaml")
		if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var warnings []string
	flags := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	h.flags(flags)
	if err := flags.Parse(args); err != nil {
		t.Fatal(err)
	}
	cfg, err := h.load(path, environ, flags, func(w string) { warnings = append(warnings, w) })
	return cfg, warnings, err
}

func TestConfig_NothingGivenIsTheDefault(t *testing.T) {
	cfg, warnings, err := load(t, "", nil)
	if err != nil || len(warnings) > 0 || !reflect.DeepEqual(cfg, registry.Default()) {
		t.Errorf("got %+v, warnings %q, error %v", cfg, warnings, err)
	}
}

func TestConfig_FlagsWinOverEnvironmentOverFileOverDefaults(t *testing.T) {
	const file = "data: of-file\nlisten: 127.0.0.1:1\ngc:\n  window: 3h\n  trash: 7200\n"
	environ := []string{"FAIRWAY_LISTEN=127.0.0.1:2", "FAIRWAY_GC_WINDOW=4h", "PATH=/bin"}
	cfg, _, err := load(t, file, environ, "--gc-window=5h")
	if err != nil {
		t.Fatal(err)
	}
	for name, pair := range map[string][2]string{
		"default, nothing else":      {cfg.GC.Interval.String(), "1m"},
		"file over default":          {cfg.Data, "of-file"},
		"bare number counts seconds": {cfg.GC.Trash.String(), "2h"},
		"environment over file":      {cfg.Listen, "127.0.0.1:2"},
		"flag over all":              {cfg.GC.Window.String(), "5h"},
	} {
		if pair[0] != pair[1] {
			t.Errorf("%s: %q, want %q", name, pair[0], pair[1])
		}
	}
}

// TestConfig_EverySettingGoesEveryWay sets each setting by each source to a
// value of its own and finds it in the struct.
func TestConfig_EverySettingGoesEveryWay(t *testing.T) {
	texts := map[string]string{
		"data": "d", "listen": "127.0.0.1:7", "allow_anyone_on_the_network": "true", "hosts": "a.test,b.test", "cors_origins": "https://a.test,*",
		"database": "sqlite:x.db", "storage": "file:y", "pprof": "true", "trust_clock": "true", "reserve": "1MiB", "min_free": "2MiB", "shutdown_grace": "7s",
		"check_interval": "9h", "gc.window": "1d", "gc.trash": "0", "gc.interval": "5s", "gc.untagged": "2w", "gc.stranded": "3w", "gc.uploads": "6h", "gc.workers": "9", "gc.rate": "1.5", "gc.node_grace": "3d",
		"log.format": "json", "log.level": "debug", "log.requests": "all",
	}
	everyWay(t, registryHouse(), texts)
}

func TestConfig_EverySettingOfANodeGoesEveryWay(t *testing.T) {
	everyWay(t, nodeHouse(), map[string]string{
		"registry": "http://r.test:5000", "name": "n1", "data": "d", "listen": "127.0.0.1:7", "docker_listen": "127.0.0.1:8",
		"allow_anyone_on_the_network": "true", "hosts": "a.test,b.test", "admin_socket": "/s/a.sock",
		"quota": "1MiB", "high": "95%", "low": "60.5%", "margin": "2MiB", "floor": "3MiB", "warm": "2h", "deleted_ttl": "3h",
		"runtime": "containerd:///a.sock,cri:///b.sock", "upstreams": "docker.io,r.test=http://10.0.0.1:5000", "credentials": "/c.json", "ca": "/ca.pem",
		"tag_ttl": "1s", "stale_max": "1h", "grant_ttl": "2s", "lease_ttl": "3s", "lease_grace": "4s", "labels": "zone=a,rack=b",
		"swarm.secret": "/s/secret", "swarm.listen": "127.0.0.1:9", "swarm.gossip": "127.0.0.1:10", "swarm.advertise": "10.0.0.1",
		"swarm.join": "a.test:7946,b.test", "swarm.join_registry": "true", "swarm.zone": "z1", "swarm.upload": "1MiB", "swarm.download": "2MiB",
		"swarm.peer_upload": "3MiB", "swarm.peer_download": "4MiB", "swarm.small": "5MiB",
		"log.format": "json", "log.level": "debug", "log.requests": "all", "pprof": "true", "shutdown_grace": "7s",
	})
}

func everyWay[C interface{ Validate() error }](t *testing.T, h house[C], texts map[string]string) {
	t.Helper()
	base := h.defaults()
	for _, s := range h.settings(&base) {
		text, ok := texts[s.key]
		if !ok {
			t.Errorf("the test has no value for %s", s.key)
			continue
		}
		if s.doc == "" {
			t.Errorf("%s has no doc tag", s.key)
		}
		file := s.key + ": " + text
		if section, key, ok := strings.Cut(s.key, "."); ok {
			file = section + ":\n  " + key + ": " + text
		}
		for way, give := range map[string]func() (C, []string, error){
			"flag":        func() (C, []string, error) { return loadHouse(t, h, "", nil, "--"+s.flag()+"="+text) },
			"environment": func() (C, []string, error) { return loadHouse(t, h, "", []string{s.env() + "=" + text}) },
			"file":        func() (C, []string, error) { return loadHouse(t, h, file, nil) },
		} {
			cfg, warnings, err := give()
			if err != nil || len(warnings) > 0 {
				t.Errorf("%s by %s: error %v, warnings %q", s.key, way, err, warnings)
				continue
			}
			want := text
			if err := s.Set(text); err == nil {
				want = s.String() // 1d is rendered as 24h
			}
			if got := settingOf(h, cfg, s.key); got != want || got == settingOf(h, h.defaults(), s.key) {
				t.Errorf("%s by %s is %q, want %q and not the default", s.key, way, got, want)
			}
		}
	}
}

func settingOf[C interface{ Validate() error }](h house[C], cfg C, key string) string {
	for _, s := range h.settings(&cfg) {
		if s.key == key {
			return s.String()
		}
	}
	return "?"
}

// TestConfig_OnlyAListIsSetByAList: [1] is not one second.
func TestConfig_OnlyAListIsSetByAList(t *testing.T) {
	base := registry.Default()
	for _, s := range registryHouse().settings(&base) {
		file := s.key + ": [a.test]"
		if section, key, ok := strings.Cut(s.key, "."); ok {
			file = section + ":\n  " + key + ": [1]"
		}
		_, _, err := load(t, file, nil)
		list := s.key == "hosts" || s.key == "cors_origins"
		if wanted := err != nil && strings.Contains(err.Error(), "wants a single value"); wanted == list {
			t.Errorf("%s: %v", file, err)
		}
	}
}

func TestConfig_WorkersAreBounded(t *testing.T) {
	for n, ok := range map[string]bool{"0": false, "1": true, "1024": true, "1025": false, "100000000": false} {
		_, _, err := load(t, "", nil, "--gc-workers="+n)
		if (err == nil) != ok || err != nil && !strings.Contains(err.Error(), "1 to 1024") {
			t.Errorf("--gc-workers %s: %v", n, err)
		}
	}
}

func TestConfig_ARuntimeBesidesNoneIsNamed(t *testing.T) {
	_, _, err := loadHouse(t, nodeHouse(), "", nil, "--registry=http://r.test", "--runtime=none", "--runtime=containerd://")
	if err == nil || !strings.Contains(err.Error(), `"none" says that this node has no runtime, and "containerd://" is named too`) {
		t.Errorf("error %v", err)
	}
}

func TestConfig_ListsOnTheCommandLineGrow(t *testing.T) {
	cfg, _, err := loadHouse(t, nodeHouse(), "runtime: docker:///of/file.sock\n", nil, "--runtime=cri:///a.sock", "--runtime", "docker:///b.sock", "--quota=1", "--quota=2")
	if err != nil || cfg.Runtime.String() != "cri:///a.sock,docker:///b.sock" || cfg.Quota != 2 {
		t.Errorf("runtimes %q, quota %s, error %v", cfg.Runtime, cfg.Quota, err)
	}
}

func TestConfig_MistakesOfANodeAreNamedWithTheirPlace(t *testing.T) {
	for name, c := range map[string]struct {
		file, environ string
		args          []string
		want          []string
	}{
		"low above high":              {args: []string{"--high=50%", "--low=60%"}, want: []string{"--low", "60% is not below high, which is 50%"}},
		"low as high":                 {environ: "FAIRWAY_NODE_HIGH=80%", want: []string{"80% is not below high"}},
		"over the whole":              {environ: "FAIRWAY_NODE_HIGH=101%", want: []string{"FAIRWAY_NODE_HIGH", "more than the whole"}},
		"high of nothing":             {args: []string{"--high=0", "--low=0"}, want: []string{"--high", "not between"}},
		"a fraction":                  {file: "high: 0.9\n", want: []string{"f.yaml:1", "hundredths", "90%"}},
		"a runtime and none":          {args: []string{"--runtime=none", "--runtime=cri:///x"}, want: []string{"--runtime", "no runtime"}},
		"a registry that is no URL":   {args: []string{"--registry=ftp://h"}, want: []string{"--registry", "http://127.0.0.1:5000"}},
		"an upstream with a path":     {environ: "FAIRWAY_NODE_UPSTREAMS=docker.io/library", want: []string{"FAIRWAY_NODE_UPSTREAMS", "docker.io"}},
		"an upstream at nothing":      {args: []string{"--upstreams=a.test=x"}, want: []string{"--upstreams", "http://HOST"}},
		"open to the network":         {args: []string{"--listen=0.0.0.0:5001"}, want: []string{"--listen", "--allow-anyone-on-the-network"}},
		"open to it for Docker":       {args: []string{"--docker-listen=:5002"}, want: []string{"--docker-listen", "--allow-anyone-on-the-network"}},
		"a name of two words":         {args: []string{"--name=a b"}, want: []string{"--name", "no name of a node"}},
		"a lease of nothing":          {args: []string{"--lease-ttl=0"}, want: []string{"--lease-ttl"}},
		"a setting of the registry's": {file: "gc:\n  window: 1h\n", want: []string{"f.yaml:1", `no setting "gc"`}},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := loadHouse(t, nodeHouse(), c.file, strings.Fields(c.environ), c.args...)
			if err == nil || exitCode(err) != exitUsage {
				t.Fatalf("error %v, want one of usage", err)
			}
			for _, part := range c.want {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("error %q does not say %q", err, part)
				}
			}
		})
	}
}

func TestConfig_MistakesAreNamedWithTheirPlace(t *testing.T) {
	for name, c := range map[string]struct {
		file, environ string
		args          []string
		want          []string
	}{
		"unknown key":                     {file: "data: x\ngc:\n  windw: 1h\n", want: []string{"f.yaml:3", `no setting "gc.windw"`, "did you mean gc.window?"}},
		"unknown section":                 {file: "\nlogs: {level: info}\n", want: []string{"f.yaml:2", `"logs"`}},
		"value where a section is":        {file: "gc: 1h\n", want: []string{"f.yaml:1", "wants settings below it"}},
		"section where a value is":        {file: "data:\n  dir: x\n", want: []string{"f.yaml:1", "single value"}},
		"bad duration in the file":        {file: "gc:\n  window: soon\n", want: []string{"f.yaml:2", "gc.window", `"soon" is no duration`}},
		"negative duration":               {file: "gc:\n  window: -1h\n", want: []string{"f.yaml:2", "negative"}},
		"no value":                        {file: "data:\n", want: []string{"f.yaml:1", "has no value"}},
		"set twice":                       {file: "data: x\ndata: y\n", want: []string{"f.yaml:2", "set twice"}},
		"no YAML":                         {file: "a: [", want: []string{"f.yaml"}},
		"two documents":                   {file: "data: x\n---\ndata: y\n", want: []string{"one YAML document"}},
		"bad value in the environment":    {environ: "FAIRWAY_GC_WORKERS=many", want: []string{"FAIRWAY_GC_WORKERS", "no whole number"}},
		"bad value that a flag overrides": {environ: "FAIRWAY_GC_WINDOW=x", args: []string{"--gc-window=1h"}, want: []string{"FAIRWAY_GC_WINDOW"}},
		"not one of the choices":          {environ: "FAIRWAY_LOG_FORMAT=xml", want: []string{"FAIRWAY_LOG_FORMAT", "auto, text, json"}},
		"a list where one value is":       {file: "gc:\n  workers: [1, 2]\n", want: []string{"f.yaml:2", "wants a single value"}},
		"address without port":            {args: []string{"--listen=localhost"}, want: []string{"--listen", "HOST:PORT"}},
		"address open to the network":     {environ: "FAIRWAY_LISTEN=0.0.0.0:5000", want: []string{"FAIRWAY_LISTEN", "--allow-anyone-on-the-network"}},
		"address without host":            {args: []string{"--listen=:5000"}, want: []string{"--allow-anyone-on-the-network"}},
		"a name may be any address":       {args: []string{"--listen=registry.test:5000"}, want: []string{"--allow-anyone-on-the-network"}},
		"database of a later version":     {args: []string{"--database=postgres://h/db"}, want: []string{"--database", "sqlite:PATH"}},
		"database without its slash":      {args: []string{"--database=sqlite://x.db"}, want: []string{"sqlite:PATH"}},
		"storage of a later version":      {file: "storage: s3://bucket", want: []string{"f.yaml:1", "file:DIR"}},
		"no workers":                      {args: []string{"--gc-workers=0"}, want: []string{"--gc-workers", "1 to 1024"}},
		"no data directory":               {args: []string{"--data="}, want: []string{"--data"}},
		"a host with a port":              {environ: "FAIRWAY_HOSTS=a.test:80", want: []string{"FAIRWAY_HOSTS", "without scheme and port"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := load(t, c.file, strings.Fields(c.environ), c.args...)
			if err == nil || exitCode(err) != exitUsage {
				t.Fatalf("error %v, want one of usage", err)
			}
			for _, part := range c.want {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("error %q does not say %q", err, part)
				}
			}
		})
	}
}

func TestConfig_AnyoneOnTheNetworkIsAFlagThatSaysSo(t *testing.T) {
	cfg, _, err := load(t, "", nil, "--listen=0.0.0.0:5000", "--allow-anyone-on-the-network=true")
	if err != nil || !cfg.AllowAnyone {
		t.Errorf("config %+v, error %v", cfg, err)
	}
}

func TestConfig_UnknownVariablesWarn(t *testing.T) {
	_, warnings, err := load(t, "", []string{"FAIRWAY_GC_WINDOWS=1h", "FAIRWAY_SERVER=x", "FAIRWAY_CONFIG=", "OTHER=1"})
	if err != nil || len(warnings) != 1 || !strings.Contains(warnings[0], "FAIRWAY_GC_WINDOWS; did you mean FAIRWAY_GC_WINDOW?") {
		t.Errorf("warnings %q, error %v", warnings, err)
	}
}

// TestConfig_HousesShareAnEnvironment has a registry and a node on one machine.
func TestConfig_HousesShareAnEnvironment(t *testing.T) {
	environ := []string{"FAIRWAY_DATA=r", "FAIRWAY_NODE_DATA=n", "FAIRWAY_NODE=x", "FAIRWAY_NODE_CONFIG=", "FAIRWAY_NODE_QUOTE=1"}
	r, ofRegistry, err := load(t, "", environ)
	if err != nil || r.Data != "r" {
		t.Errorf("the registry's data are in %q, error %v", r.Data, err)
	}
	n, ofNode, err := loadHouse(t, nodeHouse(), "", environ)
	if err != nil || n.Data != "n" {
		t.Errorf("the node's data are in %q, error %v", n.Data, err)
	}
	for _, warnings := range [][]string{ofRegistry, ofNode} {
		if len(warnings) != 1 || !strings.Contains(warnings[0], "FAIRWAY_NODE_QUOTE; did you mean FAIRWAY_NODE_QUOTA?") {
			t.Errorf("warnings %q", warnings)
		}
	}
	seen := map[string]bool{}
	for _, name := range environment() {
		if seen[name] {
			t.Errorf("%s means two things", name)
		}
		seen[name] = true
	}
}

func TestConfig_EmptyFilesAndSectionsAreFine(t *testing.T) {
	for _, file := range []string{"\n", "# nothing\n", "gc:\n", "---\n", "{}", "hosts: [a.test, B.test]", "a: &x 1\n"} {
		cfg, _, err := load(t, file, nil)
		switch file {
		case "a: &x 1\n":
			if err == nil {
				t.Errorf("%q was accepted", file)
			}
		case "hosts: [a.test, B.test]":
			if err != nil || cfg.Hosts.String() != "a.test,b.test" {
				t.Errorf("%q: hosts %q, error %v", file, cfg.Hosts, err)
			}
		default:
			if err != nil {
				t.Errorf("%q: %v", file, err)
			}
		}
	}
}

func TestConfig_MissingFileIsAMistake(t *testing.T) {
	flags := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	if _, err := registryHouse().load(filepath.Join(t.TempDir(), "none.yaml"), nil, flags, nil); err == nil || exitCode(err) != exitUsage {
		t.Errorf("error %v", err)
	}
}

func FuzzConfig(f *testing.F) {
	for _, seed := range [][2]string{
		{"gc:\n  window: 2h\n", "1h"}, {"a: &a [*a]", "30d"}, {"gc: &g\n  window: *g", ""}, {"? {x: y}\n: z", "0"},
		{"hosts: [a, b]\n---\n", "64MiB"}, {"data: !!binary aGk=\n", "true"}, {"<<: {data: x}\n", "-1"}, {"listen: 1\n", "NaN"},
	} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, file, text string) {
		r := fuzzHouse(t, registryHouse(), file, text)
		if r.GC.Window < 0 || r.Reserve < 0 || r.GC.Trash > unit.Duration(time.Duration(1<<63-1)) {
			t.Fatalf("%q gave %+v", text, r)
		}
		if n := fuzzHouse(t, nodeHouse(), file, text); n.Quota < 0 || n.High < 0 || n.High > 100 {
			t.Fatalf("%q gave %+v", text, n)
		}
	})
}

func fuzzHouse[C interface{ Validate() error }](t *testing.T, h house[C], file, text string) C {
	cfg := h.defaults()
	known := h.settings(&cfg)
	l, err := parseFile("f", []byte(file), known)
	if err != nil && exitCode(err) != exitUsage {
		t.Fatalf("%q: error %v is not one of usage", file, err)
	}
	for key := range l {
		if settingOf(h, cfg, key) == "?" {
			t.Fatalf("%q set %q, which there is not", file, key)
		}
	}
	for _, s := range known {
		if s.Set(text) != nil {
			continue
		}
		// What was accepted reads back as the same.
		first := s.String()
		if err := s.Set(first); err != nil || s.String() != first {
			t.Fatalf("%s: %q renders as %q, which reads as %q, %v", s.key, text, first, s, err)
		}
	}
	_ = cfg.Validate()
	return cfg
}
