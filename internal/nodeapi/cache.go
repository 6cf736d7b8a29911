package nodeapi

import (
	"time"

	"github.com/opencontainers/go-digest"
)

// SocketHeader names, in the refusal of an admin API that is asked for on TCP, the
// path of the socket where it is served.
const SocketHeader = "Fairway-Admin-Socket"

// The agent's admin API, below /api/v1 on its socket, and on its listener where
// that is loopback:
//
//	GET    /status                  Status
//	GET    /cache                   CacheList
//	GET    /cache/explain?digest=D  Verdict: why it stays or would go
//	POST   /cache/gc                GCRequest → Evicted, or Plan of a dry run
//	GET    /events                  EventList
//	GET    /pins                    PinList
//	PUT    /pins                    PinRequest → Pin
//	DELETE /pins?ref=REF            204
//	GET    /limits                  Limits
//	PUT    /limits                  LimitsRequest → Limits
//	GET    /swarm                   Swarm; 404 where the node is in none
//	GET    /swarm/traces            SwarmTraces

// Tiers of a blob.
const (
	TierActive = "active"
	TierWarm   = "warm"
	TierCold   = "cold"
)

// CacheItem is a blob of the cache.
type CacheItem struct {
	Digest       digest.Digest `json:"digest"`
	SizeBytes    int64         `json:"size_bytes"`
	PresentBytes int64         `json:"present_bytes"` // verified and on disk
	State        string        `json:"state"`         // partial, complete, claimed
	MediaType    string        `json:"media_type,omitempty"`
	Tier         string        `json:"tier"`
	Images       []string      `json:"images"` // that it belongs to, as names or digests
	PinnedBy     []string      `json:"pinned_by"`
	Readers      int           `json:"readers"`
	Writers      int           `json:"writers"`
	Source       string        `json:"source,omitempty"` // where it came from
	Uses         int64         `json:"uses"`
	CreatedAt    time.Time     `json:"created_at"`
	UsedAt       time.Time     `json:"used_at"`
}

// CacheList is what the cache has.
type CacheList struct {
	Items []CacheItem `json:"items"`
	// RuntimesAge is how old the oldest answer of a runtime is that the tiers go
	// by, in seconds; −1: one has never answered.
	RuntimesAge int64 `json:"runtimes_age_seconds"`
}

// Verdict is what the judge says of a blob.
type Verdict struct {
	Digest    digest.Digest `json:"digest"`
	SizeBytes int64         `json:"size_bytes"` // that its eviction would free
	Tier      string        `json:"tier"`
	Evict     bool          `json:"evict"`
	Why       string        `json:"why"`    // one word
	Reason    string        `json:"reason"` // one sentence
	Value     float64       `json:"value"`  // the least valuable of a tier goes first
	Images    []string      `json:"images"`
	PinnedBy  []string      `json:"pinned_by"`
	UsedAt    time.Time     `json:"used_at"`
}

// GCRequest asks for an eviction, or what it would do.
type GCRequest struct {
	DryRun bool `json:"dry_run,omitempty"`
}

// Limits bound the cache, until the agent is started again or told others.
type Limits struct {
	QuotaBytes  int64   `json:"quota_bytes"` // that holds; a share of the file system where the setting is 0
	HighPercent float64 `json:"high_percent"`
	LowPercent  float64 `json:"low_percent"`
	MarginBytes int64   `json:"margin_bytes"`
	// Swarm is nil where the node is in no swarm.
	Swarm *SwarmLimits `json:"swarm,omitempty"`
}

// SwarmLimits bound what a node exchanges with others, in bytes a second; 0: no limit.
type SwarmLimits struct {
	Upload       int64 `json:"upload_bytes_per_second"`
	Download     int64 `json:"download_bytes_per_second"` // the upstream's share included
	PeerUpload   int64 `json:"peer_upload_bytes_per_second"`
	PeerDownload int64 `json:"peer_download_bytes_per_second"`
}

// LimitsRequest changes limits. What is not given stays.
type LimitsRequest struct {
	QuotaBytes  *int64   `json:"quota_bytes,omitempty"` // 0: a share of the file system
	HighPercent *float64 `json:"high_percent,omitempty"`
	LowPercent  *float64 `json:"low_percent,omitempty"`
	MarginBytes *int64   `json:"margin_bytes,omitempty"`
	SwarmLimitsRequest
}

// SwarmLimitsRequest changes limits of the swarm.
type SwarmLimitsRequest struct {
	Upload       *int64 `json:"upload_bytes_per_second,omitempty"`
	Download     *int64 `json:"download_bytes_per_second,omitempty"`
	PeerUpload   *int64 `json:"peer_upload_bytes_per_second,omitempty"`
	PeerDownload *int64 `json:"peer_download_bytes_per_second,omitempty"`
}

// Plan is an eviction that has not been done.
type Plan struct {
	Reason      string    `json:"reason"` // why there would be one, or why not
	UsedBytes   int64     `json:"used_bytes"`
	QuotaBytes  int64     `json:"quota_bytes"`
	TargetBytes int64     `json:"target_bytes"` // at which it would end
	FreeBytes   int64     `json:"free_bytes"`   // that it would free
	Unknown     []string  `json:"unknown"`      // runtimes that do not answer
	Verdicts    []Verdict `json:"verdicts"`
}

// Evicted is an eviction that has been done.
type Evicted struct {
	Examined   int            `json:"examined"`
	Evicted    int            `json:"evicted"`
	FreedBytes int64          `json:"freed_bytes"`
	Kept       map[string]int `json:"kept"` // reason → blobs
	Failed     int            `json:"failed"`
	UsedBytes  int64          `json:"used_bytes"` // afterwards
	Reason     string         `json:"reason"`
}

// Status is the state of an agent.
type Status struct {
	Node      string        `json:"node"`
	Version   string        `json:"version"`
	StartedAt time.Time     `json:"started_at"`
	Registry  string        `json:"registry"`
	Listen    string        `json:"listen"`
	Upstreams []string      `json:"upstreams"`
	Mirrors   []Mirrored    `json:"mirrors"` // the same with where they are
	Cache     Cache         `json:"cache"`
	Runtimes  []Runtime     `json:"runtimes"`
	Report    ReportStatus  `json:"report"`
	Peers     []PeerStatus  `json:"peers,omitempty"`
	LastEvent *Event        `json:"last_event,omitempty"`
	Uptime    time.Duration `json:"uptime_ns"`
}

// Mirrored is a registry that is pulled from through the agent.
type Mirrored struct {
	Name string `json:"name"` // as in names of images
	URL  string `json:"url"`  // where the agent asks it
}

// ReportStatus tells how the agent gets on with telling the registry what runs.
type ReportStatus struct {
	Digests    int        `json:"digests"`               // in the last report
	Pending    bool       `json:"pending"`               // there is something that the registry has not heard
	AcceptedAt *time.Time `json:"accepted_at,omitempty"` // by the node's clock
	KeptUntil  *time.Time `json:"kept_until,omitempty"`  // by the registry's clock
	Error      string     `json:"error,omitempty"`       // of the last attempt
}

// PeerStatus is another node of the swarm. Swarm tells more.
type PeerStatus struct {
	Name    string `json:"name"`
	Address string `json:"address"`
	State   string `json:"state"` // PeerAlive, PeerBanned
}

// Event is something that the agent's owner should know of.
type Event struct {
	At    time.Time `json:"at"`
	Level string    `json:"level"` // info, warn, error
	Kind  string    `json:"kind"`  // evicted, full, corrupt, runtime, …
	Text  string    `json:"text"`
}

// EventList is the latest events, newest first.
type EventList struct {
	Events []Event `json:"events"`
}

// PinRequest asks for a pin.
type PinRequest struct {
	Ref string `json:"ref"` // a name with a tag or a digest, or a digest
}

// Pin keeps an image in the cache.
type Pin struct {
	Ref     string          `json:"ref"`
	Digests []digest.Digest `json:"digests"`
	At      time.Time       `json:"at"`
}

// PinList is all pins.
type PinList struct {
	Pins []Pin `json:"pins"`
}
