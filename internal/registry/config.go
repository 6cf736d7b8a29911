package registry

import (
	"path/filepath"
	"strings"
	"time"

	"github.com/fairway-registry/fairway/internal/nodeapi"
	"github.com/fairway-registry/fairway/internal/ociclient"
	"github.com/fairway-registry/fairway/internal/registry/meta"
	"github.com/fairway-registry/fairway/internal/setting"
	"github.com/fairway-registry/fairway/internal/unit"
)

// Config is everything that can be set about a registry. The tags feed the
// flags, the environment, the file and docs/config.md:
//
//	key    name in the file; nested keys are joined with "." there, with "-" in
//	       flags and with "_" in FAIRWAY_… variables
//	doc    what it does, in one or two sentences
//	arg    what the value is called in help texts, where the type does not tell
//	oneof  the values it may have
type Config struct {
	Data        string             `key:"data" arg:"DIR" doc:"Directory of the database and the blobs. It is created if it is missing. One server at a time may use it."`
	Listen      string             `key:"listen" arg:"HOST:PORT" doc:"Address to listen on. An address that is not loopback needs allow_anyone_on_the_network, because neither authentication nor TLS is built in yet."`
	AllowAnyone bool               `key:"allow_anyone_on_the_network" doc:"Listen on a network address although everybody who can reach it may then push, delete and collect."`
	Hosts       setting.HostList   `key:"hosts" arg:"NAME,..." doc:"Host names, besides localhost and IP addresses, under which this server may be called while it listens on loopback: those of a proxy in front of it. Any other name is refused there, since a web page could have pointed it here."`
	CORSOrigins setting.OriginList `key:"cors_origins" arg:"ORIGIN,..." doc:"Origins of web pages that may use the OCI API from a browser, as https://HOST[:PORT]. '*' lets all pages read. Empty: none."`
	Database    string             `key:"database" arg:"URL" doc:"Where the metadata is kept: sqlite:PATH. Empty: fairway.db in the data directory."`
	Storage     string             `key:"storage" arg:"URL" doc:"Where the blobs are kept: file:DIR. Empty: in the data directory."`
	GC          GC                 `key:"gc"`
	TrustClock  bool               `key:"trust_clock" doc:"Believe the machine's clock at the start even if it has gone on by more than the longest period (window, trash, untagged, stranded, uploads, node_grace, or a week) since the server last ran. Without this the server takes such a clock for wrong, goes on from the time at which it ended, and says so: otherwise the trash, the window and all leases would end at once. Set it for one start after the server was really down for that long."`
	Log         setting.Log        `key:"log"`
	Pprof       bool               `key:"pprof" doc:"Serve Go's profiling endpoints under /debug/pprof/."`

	Reserve       unit.Size     `key:"reserve" doc:"Disk space held back in a file of the data directory. When the disk is full the file is given up, so that the collector can still write what it needs to free space. 0: 16 MiB, or a sixteenth of the disk if that is less."`
	MinFree       unit.Size     `key:"min_free" doc:"Uploads are refused when the disk has less free space than this, so that the database can still write. 0: 64 MiB, or 2 % of the disk if that is less."`
	CheckInterval unit.Duration `key:"check_interval" doc:"How often storage and metadata are compared in the background, slowly. 0: only on demand."`
	ShutdownGrace unit.Duration `key:"shutdown_grace" doc:"How long requests that are under way may take after the server was told to end. Uploads cut off then can be resumed."`
}

// GC is the collector's part of Config.
type GC struct {
	Window   unit.Duration `key:"window" doc:"Time window: a blob stays at least this long after a client was told that it is here, or after it lost its last reference. It must be longer than a push takes."`
	Trash    unit.Duration `key:"trash" doc:"How long a deleted manifest can be restored. 0: deleted for good at once."`
	Interval unit.Duration `key:"interval" doc:"How often the background collection looks for work. 0: only on demand and on schedules."`
	Untagged unit.Duration `key:"untagged" doc:"Collect manifests that have had no tag for this long, unless an index, a subject or a lease keeps them. Values below the time window count as the window. 0: never."`
	Stranded unit.Duration `key:"stranded" doc:"Collect signatures, attestations, SBOMs and indexes of referrers under a tag such as sha256-….sig whose image was deleted from the repository this long ago and cannot be restored any more. Values below the time window count as the window. 0: never."`
	Uploads  unit.Duration `key:"uploads" doc:"Give up an upload after this long without a byte. 0: the time window."`
	Workers  int           `key:"workers" arg:"N" doc:"How many blobs are removed from storage at a time."`
	Node     unit.Duration `key:"node_grace" doc:"How long what ran on a node stays when nothing is heard of the node any more: it may have vanished with its containers still running. An agent may ask for another time."`
	Rate     float64       `key:"rate" arg:"N" doc:"Items a second that the collector judges at most. 0: no limit."`
}

// Default is the configuration of a registry started without any.
func Default() Config {
	return Config{
		Data:   "fairway-data",
		Listen: "127.0.0.1:5000",
		GC: GC{
			Window:   unit.Duration(2 * time.Hour),
			Trash:    unit.Duration(24 * time.Hour),
			Interval: unit.Duration(time.Minute),
			Workers:  4,
			Node:     unit.Duration(24 * time.Hour),
		},
		Log:           setting.DefaultLog(),
		CheckInterval: unit.Duration(24 * time.Hour),
		ShutdownGrace: unit.Duration(30 * time.Second),
	}
}

// Policy is the collector's policy that c sets.
func (c Config) Policy() meta.Policy {
	return meta.Policy{
		Window:   meta.Duration(c.GC.Window),
		Trash:    meta.Duration(c.GC.Trash),
		Untagged: meta.Duration(c.GC.Untagged),
		Stranded: meta.Duration(c.GC.Stranded),
		Uploads:  meta.Duration(c.GC.Uploads),
	}
}

// jumpMax is by how much the machine's clock may have gone on between the end
// of the server and its next start, to be believed; 0: any time.
func (c Config) jumpMax() time.Duration {
	if c.TrustClock {
		return 0
	}
	longest := time.Duration(meta.LeaseMemory) * time.Millisecond
	for _, d := range []unit.Duration{c.GC.Window, c.GC.Trash, c.GC.Untagged, c.GC.Stranded, c.GC.Uploads, c.GC.Node} {
		longest = max(longest, time.Duration(d))
	}
	return longest
}

// workersMax bounds how many blobs are removed at a time: each takes a thread while its
// file system works.
const workersMax = 1024

// Validate returns a *setting.Error for the first value that cannot be used.
func (c Config) Validate() error {
	if c.Data == "" {
		return setting.Errorf("data", "a directory is needed")
	}
	host, err := setting.Listen("listen", c.Listen, "127.0.0.1:5000")
	if err != nil {
		return err
	}
	if !setting.IsLoopback(host) && !c.AllowAnyone {
		return setting.Errorf("listen", "%s can be reached from the network, where everybody could push, delete and collect: "+
			"there is no authentication and no TLS yet. Listen on 127.0.0.1, or accept that with --allow-anyone-on-the-network", c.Listen)
	}
	if _, err := c.databasePath(); err != nil {
		return err
	}
	if _, err := c.storageDir(); err != nil {
		return err
	}
	switch {
	case c.GC.Workers < 1 || c.GC.Workers > workersMax:
		return setting.Errorf("gc.workers", "%d is not possible; use 1 to %d", c.GC.Workers, workersMax)
	case time.Duration(c.GC.Node) > nodeapi.GraceMax:
		return setting.Errorf("gc.node_grace", "at most %s is possible; to keep images for longer, tag them or give them a lease", unit.Duration(nodeapi.GraceMax))
	case c.GC.Rate < 0:
		return setting.Errorf("gc.rate", "it cannot be negative")
	}
	return nil
}

func (c Config) databasePath() (string, error) {
	if c.Database == "" {
		return filepath.Join(c.Data, "fairway.db"), nil
	}
	path, ok := localPath(c.Database, "sqlite")
	if !ok {
		return "", setting.Errorf("database", "%q is not supported; this version knows sqlite:PATH, or nothing for fairway.db in the data directory", ociclient.Redact(c.Database))
	}
	return path, nil
}

func (c Config) storageDir() (string, error) {
	if c.Storage == "" {
		return c.Data, nil
	}
	path, ok := localPath(c.Storage, "file")
	if !ok {
		return "", setting.Errorf("storage", "%q is not supported; this version knows file:DIR, or nothing for the data directory", ociclient.Redact(c.Storage))
	}
	return path, nil
}

// localPath reads scheme:PATH and scheme:///PATH. A host part is refused, as
// in sqlite://fairway.db, where a path was meant.
func localPath(url, scheme string) (string, bool) {
	path, ok := strings.CutPrefix(url, scheme+":")
	if rest, slashes := strings.CutPrefix(path, "//"); slashes {
		path = rest
		ok = ok && strings.HasPrefix(rest, "/")
	}
	return path, ok && path != ""
}
