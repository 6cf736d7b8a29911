package agent

import (
	"maps"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fairway-registry/fairway/internal/agent/inuse/endpoint"
	"github.com/fairway-registry/fairway/internal/nodeapi"
	"github.com/fairway-registry/fairway/internal/ociclient"
	"github.com/fairway-registry/fairway/internal/setting"
	"github.com/fairway-registry/fairway/internal/unit"
)

// Config is everything that can be set about a node. The tags are those of
// registry.Config; variables in the environment begin with FAIRWAY_NODE_.
type Config struct {
	Registry     string           `key:"registry" arg:"URL" doc:"The Fairway registry that this node belongs to: it is told what runs here, and images named without a registry are pulled from it. Empty: none."`
	Name         string           `key:"name" arg:"NAME" doc:"The node's name at the registry. Empty: the host name."`
	Labels       setting.List     `key:"labels" arg:"KEY=VALUE,..." doc:"Labels of this node, by which a preheat chooses nodes."`
	Data         string           `key:"data" arg:"DIR" doc:"Directory of the cache and its index. It is created if it is missing. One agent at a time may use it."`
	Listen       string           `key:"listen" arg:"HOST:PORT" doc:"Address of the mirror that the runtimes pull through. An address that is not loopback needs allow_anyone_on_the_network."`
	DockerListen string           `key:"docker_listen" arg:"HOST:PORT" doc:"Second address of the mirror, for Docker's registry-mirrors: images named without a registry are those of docker.io there. Empty: none."`
	AllowAnyone  bool             `key:"allow_anyone_on_the_network" doc:"Listen on a network address although everybody who can reach it may then pull whatever this node may pull."`
	Hosts        setting.HostList `key:"hosts" arg:"NAME,..." doc:"Host names, besides localhost and IP addresses, under which this node may be called on loopback. Any other name is refused there, since a web page could have pointed it here."`
	AdminSocket  string           `key:"admin_socket" arg:"PATH" doc:"Unix socket of the admin API, for fairway cache and fairway node status. Only the user of the agent may use it; the API is served nowhere else. Empty: admin.sock in the data directory."`

	Quota   unit.Size     `key:"quota" doc:"How much the cache may keep. 0: 80 % of the file system."`
	High    unit.Percent  `key:"high" doc:"Eviction starts when the cache is this full, of its quota or of the file system."`
	Low     unit.Percent  `key:"low" doc:"Eviction ends when the cache is only this full. It must be below high."`
	Margin  unit.Size     `key:"margin" doc:"Space kept free on the file system: nothing is taken into the cache that would leave less. 0: 64 MiB, or 2 % of the file system if that is less."`
	Floor   unit.Size     `key:"floor" doc:"When other programs fill the disk, eviction leaves at least this much in the cache. Its own quota goes below it."`
	Warm    unit.Duration `key:"warm" doc:"Data used within this time is warm: it goes after the cold and before nothing. 0: only images that a runtime has are."`
	Deleted unit.Duration `key:"deleted_ttl" doc:"How long data stays whose image was deleted at the registry, unless something here uses it."`

	Runtime     setting.List  `key:"runtime" arg:"ENDPOINT" doc:"Runtimes to ask what runs, as containerd:///PATH, cri:///PATH or docker:///PATH of their sockets, or just unix:///PATH; it can be given more than once. Empty: those whose sockets are in the usual places, also when they appear later. none: there is no runtime, and nothing is in use."`
	Upstreams   setting.List  `key:"upstreams" arg:"NAME[=URL],..." doc:"Registries, besides the one of registry, that may be pulled from through this node, with the URL where it is not https://NAME. Any other is refused, and the runtime pulls directly."`
	Credentials string        `key:"credentials" arg:"FILE" doc:"Credentials for upstreams, in the format of Docker's config.json or Podman's auth.json, with the credential helpers that it names. It is read again when it changes. Who may pull from this node may pull what these may."`
	CA          string        `key:"ca" arg:"FILE" doc:"Certificates of authorities to trust for upstreams, besides the system's, in PEM."`
	TagTTL      unit.Duration `key:"tag_ttl" doc:"How long a tag is taken to name what it named when the upstream was last asked."`
	StaleMax    unit.Duration `key:"stale_max" doc:"How old the last known digest of a tag may be when the upstream does not answer. 0: it is never used."`
	GrantTTL    unit.Duration `key:"grant_ttl" doc:"How long the upstream's word that somebody may pull something counts before it is asked again."`
	LeaseTTL    unit.Duration `key:"lease_ttl" doc:"How long the registry believes the last report of this node. It is renewed three times in that."`
	LeaseGrace  unit.Duration `key:"lease_grace" doc:"How much longer the registry keeps what ran here when this node has vanished."`

	Swarm Swarm `key:"swarm"`

	Log           setting.Log   `key:"log"`
	Pprof         bool          `key:"pprof" doc:"Serve Go's profiling endpoints under /debug/pprof/."`
	ShutdownGrace unit.Duration `key:"shutdown_grace" doc:"How long pulls that are under way may take after the agent was told to end. Downloads cut off then are resumed."`

	root       string        // below which runtimes are detected; "" is /
	evictEvery time.Duration // between two looks at the watermarks; 0 is evict's default
}

// Default is the configuration of a node started without any.
func Default() Config {
	return Config{
		Registry:      "http://127.0.0.1:5000",
		Data:          "fairway-node",
		Listen:        "127.0.0.1:5001",
		Quota:         10 << 30,
		High:          90,
		Low:           80,
		Floor:         1 << 30,
		Warm:          unit.Duration(24 * time.Hour),
		Deleted:       unit.Duration(24 * time.Hour),
		TagTTL:        unit.Duration(30 * time.Second),
		StaleMax:      unit.Duration(24 * time.Hour),
		GrantTTL:      unit.Duration(5 * time.Minute),
		LeaseTTL:      unit.Duration(5 * time.Minute),
		LeaseGrace:    unit.Duration(24 * time.Hour),
		Swarm:         Swarm{Listen: "0.0.0.0:5003", Gossip: "0.0.0.0:7946", Small: 1 << 20},
		Log:           setting.DefaultLog(),
		ShutdownGrace: unit.Duration(30 * time.Second),
	}
}

// Validate returns a *setting.Error for the first value that cannot be used.
func (c Config) Validate() error {
	if c.Data == "" {
		return setting.Errorf("data", "a directory is needed")
	}
	if err := c.validateListeners(); err != nil {
		return err
	}
	if err := ValidWatermarks(c.High, c.Low); err != nil {
		return err
	}
	if c.Registry != "" {
		if _, err := registryURL(c.Registry); err != nil {
			return err
		}
	}
	if _, _, err := c.upstreams(); err != nil {
		return err
	}
	if c.Name != "" && !nodeapi.IsName(c.Name) {
		return setting.Errorf("name", "%q is no name of a node; want letters, digits, '.', '_' and '-', with a letter or digit first", c.Name)
	}
	if _, err := c.labels(); err != nil {
		return err
	}
	if c.LeaseTTL < unit.Duration(time.Second) {
		return setting.Errorf("lease_ttl", "at least 1s is needed")
	}
	if c.LeaseTTL > unit.Duration(nodeapi.TTLMax) {
		return setting.Errorf("lease_ttl", "a registry takes %s at most", unit.Duration(nodeapi.TTLMax))
	}
	if c.LeaseGrace > unit.Duration(nodeapi.GraceMax) {
		return setting.Errorf("lease_grace", "a registry takes %s at most", unit.Duration(nodeapi.GraceMax))
	}
	if err := c.validateSwarm(); err != nil {
		return err
	}
	for i, e := range c.Runtime {
		if slices.Contains(c.Runtime[:i], e) {
			return setting.Errorf("runtime", "%s is given twice", e)
		}
	}
	if len(c.Runtime) > 1 && slices.Contains(c.Runtime, endpoint.None) {
		others := slices.DeleteFunc(slices.Clone(c.Runtime), func(e string) bool { return e == endpoint.None })
		return setting.Errorf("runtime", "%q says that this node has no runtime, and %q is named too; give one or the other", endpoint.None, others[0])
	}
	return nil
}

func (c Config) validateListeners() error {
	for _, l := range []struct{ key, address, example string }{
		{"listen", c.Listen, "127.0.0.1:5001"}, {"docker_listen", c.DockerListen, "127.0.0.1:5002"},
	} {
		if l.address == "" && l.key == "docker_listen" {
			continue
		}
		host, err := setting.Listen(l.key, l.address, l.example)
		if err != nil {
			return err
		}
		if !setting.IsLoopback(host) && !c.AllowAnyone {
			return setting.Errorf(l.key, "%s can be reached from the network, where everybody could pull what this node may pull. "+
				"Listen on 127.0.0.1, or accept that with --allow-anyone-on-the-network", l.address)
		}
	}
	return nil
}

// ValidWatermarks returns a *setting.Error for watermarks between which
// eviction could not work.
func ValidWatermarks(high, low unit.Percent) error {
	switch {
	case high <= 0 || high > 100:
		return setting.Errorf("high", "%s is not between 0%% and 100%%", high)
	case low < 0 || low >= high:
		return setting.Errorf("low", "%s is not below high, which is %s: eviction would start and never end", low, high)
	}
	return nil
}

func registryURL(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.RawQuery != "" || u.Fragment != "" || strings.Trim(u.Path, "/") != "" {
		return nil, setting.Errorf("registry", "%q is not the URL of a registry; want for example http://127.0.0.1:5000", ociclient.Redact(text))
	}
	u.Path = ""
	return u, nil
}

// dockerHub is what is meant by images without a registry at docker_listen.
const dockerHub = "docker.io"

// upstreams are the registries that may be pulled from, by the names that
// runtimes give them, and the name of the one of requests without.
func (c Config) upstreams() (bases map[string]*url.URL, standard string, err error) {
	bases = map[string]*url.URL{}
	if c.Registry != "" {
		u, err := registryURL(c.Registry)
		if err != nil {
			return nil, "", err
		}
		standard = strings.ToLower(u.Host)
		bases[standard] = u
	}
	given := map[string]string{}
	for _, text := range c.Upstreams {
		name, u, err := ociclient.ParseUpstream(text)
		if err != nil {
			return nil, "", setting.Errorf("upstreams", "%v", err)
		}
		if first, twice := given[name]; twice {
			return nil, "", setting.Errorf("upstreams", "%s is given twice, as %q and as %q; give it once", name, first, text)
		}
		if own := bases[name]; own != nil && own.String() != strings.TrimSuffix(u.String(), "/") {
			return nil, "", setting.Errorf("upstreams", "%q gives another URL for the registry %s; change the setting registry, or leave it out here", text, own)
		}
		given[name], bases[name] = text, u
	}
	if _, ok := bases[dockerHub]; !ok && c.DockerListen != "" {
		name, u, err := ociclient.ParseUpstream(dockerHub)
		if err != nil {
			return nil, "", setting.Errorf("docker_listen", "%v", err)
		}
		bases[name] = u
	}
	return bases, standard, nil
}

// Mirrors lists the registries that may be pulled from, by name. A user in a URL
// is nobody else's business.
func (c Config) Mirrors() ([]nodeapi.Mirrored, error) {
	bases, _, err := c.upstreams()
	if err != nil {
		return nil, err
	}
	all := make([]nodeapi.Mirrored, 0, len(bases))
	for _, name := range slices.Sorted(maps.Keys(bases)) {
		at := *bases[name]
		at.User = nil
		all = append(all, nodeapi.Mirrored{Name: name, URL: at.String()})
	}
	return all, nil
}

func (c Config) labels() (map[string]string, error) {
	all := map[string]string{}
	for _, pair := range c.Labels {
		key, value, ok := strings.Cut(pair, "=")
		if _, twice := all[key]; !ok || twice || !nodeapi.IsLabel(key, value) {
			return nil, setting.Errorf("labels", "%q is no label, or the second of its key; want for example zone=a", pair)
		}
		all[key] = value
	}
	if len(all) > nodeapi.LabelsMax {
		return nil, setting.Errorf("labels", "at most %d are allowed", nodeapi.LabelsMax)
	}
	return all, nil
}

func (c Config) adminSocket() string {
	if c.AdminSocket != "" {
		return c.AdminSocket
	}
	return filepath.Join(c.Data, "admin.sock")
}

// Limits are those of the settings that hold without a restart.
func (c Config) Limits() nodeapi.LimitsRequest {
	quota, margin, high, low := int64(c.Quota), int64(c.Margin), float64(c.High), float64(c.Low)
	r := nodeapi.LimitsRequest{QuotaBytes: &quota, HighPercent: &high, LowPercent: &low, MarginBytes: &margin}
	if c.Swarm.Secret != "" {
		r.SwarmLimitsRequest = c.Swarm.limits()
	}
	return r
}
