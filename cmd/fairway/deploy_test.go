package main

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// knownVariables are those of both houses.
func knownVariables(t *testing.T) []string {
	t.Helper()
	content, err := os.ReadFile("../../docs/config.md")
	if err != nil {
		t.Fatal(err)
	}
	return regexp.MustCompile(`FAIRWAY_[A-Z_]+`).FindAllString(string(content), -1)
}

// checkArgs demands that the command line in args is one of this program's.
func checkArgs(t *testing.T, args []string) {
	t.Helper()
	root := newRoot(&app{stdout: &terminal{Writer: io.Discard}, stderr: &terminal{Writer: io.Discard}})
	cmd, rest, err := root.Find(args)
	if err != nil || cmd == root {
		t.Errorf("%q is no command: %v", args, err)
		return
	}
	if err := cmd.ParseFlags(rest); err != nil {
		t.Errorf("%q: %v", args, err)
	}
}

// TestN13_TheUnitReachesEveryRuntime: it starts after the runtimes, and nothing
// hides the sockets of users.
func TestN13_TheUnitReachesEveryRuntime(t *testing.T) {
	content, err := os.ReadFile("../../deploy/systemd/fairway-node.service")
	if err != nil {
		t.Fatal(err)
	}
	var after []string
	settings := map[string]string{}
	for line := range strings.Lines(string(content)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		if key == "After" {
			after = append(after, strings.Fields(value)...)
		}
		settings[key] = value
	}
	for _, unit := range []string{
		"containerd.service", "crio.service", "docker.service", "docker.socket", "podman.socket", "k3s.service", "k3s-agent.service",
		"rke2-server.service", "rke2-agent.service", "k0scontroller.service", "k0sworker.service", "snap.microk8s.daemon-containerd.service",
	} {
		if !slices.Contains(after, unit) {
			t.Errorf("the agent may start before %s", unit)
		}
	}
	if settings["ProtectHome"] != "" || !strings.Contains(settings["CapabilityBoundingSet"], "CAP_DAC_OVERRIDE") {
		t.Errorf("ProtectHome=%s and CapabilityBoundingSet=%s hide the sockets of users", settings["ProtectHome"], settings["CapabilityBoundingSet"])
	}
}

func TestDeploy_UnitsAreWhole(t *testing.T) {
	units, err := filepath.Glob("../../deploy/systemd/*.service")
	if err != nil || len(units) < 2 {
		t.Fatalf("units %q, %v", units, err)
	}
	variables := knownVariables(t)
	for _, path := range units {
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		section, seen := "", map[string][]string{}
		for n, line := range strings.Split(string(content), "\n") {
			key, value, ok := strings.Cut(line, "=")
			switch {
			case line == "" || strings.HasPrefix(line, "#"):
			case strings.HasPrefix(line, "["):
				section = line
			case !ok || section == "":
				t.Errorf("%s:%d: %q is no setting", path, n+1, line)
			default:
				seen[section+key] = append(seen[section+key], value)
			}
		}
		for _, key := range []string{"[Unit]Description", "[Service]ExecStart", "[Service]NoNewPrivileges", "[Service]ProtectSystem", "[Service]StateDirectory", "[Install]WantedBy"} {
			if len(seen[key]) != 1 {
				t.Errorf("%s: %s is there %d times", path, key, len(seen[key]))
			}
		}
		if len(seen["[Service]ExecStart"]) == 1 {
			checkArgs(t, strings.Fields(seen["[Service]ExecStart"][0])[1:])
		}
		for _, name := range regexp.MustCompile(`FAIRWAY_[A-Z_]+`).FindAllString(string(content), -1) {
			if !slices.Contains(variables, name) {
				t.Errorf("%s: nothing reads %s", path, name)
			}
		}
	}
}

// manifest is what is looked at of a Kubernetes object.
type manifest struct {
	Kind     string
	Metadata struct{ Name, Namespace string }
	Data     map[string]string
	Spec     struct {
		ClusterIP string `yaml:"clusterIP"`
		Selector  yaml.Node
		Template  struct {
			Metadata struct{ Labels map[string]string }
			Spec     struct {
				HostNetwork    bool           `yaml:"hostNetwork"`
				InitContainers []podContainer `yaml:"initContainers"`
				Containers     []podContainer
				Volumes        []podVolume
			}
		}
	}
}

type podVolume struct {
	Name   string
	Secret struct {
		SecretName  string `yaml:"secretName"`
		DefaultMode int    `yaml:"defaultMode"`
	}
}

type podContainer struct {
	Name, Image    string
	Args           []string
	LivenessProbe  *yaml.Node `yaml:"livenessProbe"`
	ReadinessProbe *yaml.Node `yaml:"readinessProbe"`
	Resources      struct{ Requests, Limits map[string]string }
	Ports          []struct {
		ContainerPort int `yaml:"containerPort"`
		HostPort      int `yaml:"hostPort"`
		Protocol      string
	}
	Env          []struct{ Name, Value string }
	VolumeMounts []struct {
		Name      string
		MountPath string `yaml:"mountPath"`
	} `yaml:"volumeMounts"`
}

func TestDeploy_ManifestsAreWhole(t *testing.T) {
	content, err := os.ReadFile("../../deploy/kubernetes/node.yaml")
	if err != nil {
		t.Fatal(err)
	}
	variables, kinds := knownVariables(t), map[string]manifest{}
	dec := yaml.NewDecoder(bytes.NewReader(content))
	for {
		var m manifest
		if err := dec.Decode(&m); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if m.Kind == "" || m.Metadata.Name == "" || m.Kind != "Namespace" && m.Metadata.Namespace == "" {
			t.Errorf("an object without kind, name or namespace: %+v", m.Metadata)
		}
		kinds[m.Kind] = m
		for name := range m.Data {
			if !slices.Contains(variables, name) {
				t.Errorf("nothing reads %s", name)
			}
		}
	}
	if kinds["Service"].Spec.ClusterIP != "None" {
		t.Error("the service is not headless")
	}
	pod := kinds["DaemonSet"].Spec.Template.Spec
	if !pod.HostNetwork || len(pod.Containers) != 1 || pod.Containers[0].LivenessProbe == nil || pod.Containers[0].ReadinessProbe == nil {
		t.Errorf("pod %+v", pod)
	}
	var volumes []string
	for _, v := range pod.Volumes {
		volumes = append(volumes, v.Name)
	}
	checkSwarm(t, kinds["Service"], kinds["DaemonSet"])
	for _, c := range append(pod.InitContainers, pod.Containers...) {
		checkArgs(t, c.Args)
		if c.Resources.Limits["memory"] == "" || c.Resources.Requests["cpu"] == "" {
			t.Errorf("container %s has no bounds", c.Name)
		}
		for _, m := range c.VolumeMounts {
			if !slices.Contains(volumes, m.Name) {
				t.Errorf("container %s: there is no volume %s", c.Name, m.Name)
			}
		}
		for _, e := range c.Env {
			if !slices.Contains(variables, e.Name) {
				t.Errorf("container %s: nothing reads %s", c.Name, e.Name)
			}
		}
	}
}

// checkSwarm demands that the agents of a cluster find and reach each other: the
// ports of the settings' defaults, the name of the service, the secret as a file
// that others cannot read.
func checkSwarm(t *testing.T, service, set manifest) {
	t.Helper()
	pod := set.Spec.Template.Spec
	node, env := pod.Containers[0], map[string]string{}
	for _, e := range node.Env {
		env[e.Name] = e.Value
	}
	if env["FAIRWAY_NODE_SWARM_JOIN"] != service.Metadata.Name+"."+service.Metadata.Namespace {
		t.Errorf("the agents look for each other at %q", env["FAIRWAY_NODE_SWARM_JOIN"])
	}
	cfg, ports := nodeHouse().defaults(), map[string]bool{}
	for _, p := range node.Ports {
		ports[p.Protocol+":"+strconv.Itoa(p.ContainerPort)] = p.ContainerPort == p.HostPort
	}
	for _, want := range []string{":" + portOf(t, cfg.Swarm.Listen), ":" + portOf(t, cfg.Swarm.Gossip), "UDP:" + portOf(t, cfg.Swarm.Gossip)} {
		if !ports[want] {
			t.Errorf("port %s of the swarm is not one of %v", want, ports)
		}
	}
	secret := env["FAIRWAY_NODE_SWARM_SECRET"]
	i := slices.IndexFunc(pod.Volumes, func(v podVolume) bool { return v.Secret.SecretName != "" })
	if i < 0 || pod.Volumes[i].Secret.DefaultMode != 0o400 {
		t.Fatalf("no secret is mounted for its owner only: %+v", pod.Volumes)
	}
	for _, m := range node.VolumeMounts {
		if m.Name == pod.Volumes[i].Name && m.MountPath == filepath.Dir(secret) {
			return
		}
	}
	t.Errorf("the secret %q is not mounted", secret)
}

func portOf(t *testing.T, address string) string {
	t.Helper()
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	return port
}
