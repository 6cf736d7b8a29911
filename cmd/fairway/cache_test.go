package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/fairway-registry/fairway/internal/nodeapi"
	"github.com/fairway-registry/fairway/internal/oci"
)

// forPeople is an app whose output a person reads at the time now.
func forPeople(out *bytes.Buffer, now time.Time) *app {
	return &app{stdout: &terminal{Writer: out, tty: true, now: func() time.Time { return now }}}
}

func TestTerminal_CacheLsIsATableForPeople(t *testing.T) {
	now := time.Now()
	var out bytes.Buffer
	a := forPeople(&out, now)
	if a.printCache(nil); out.String() != "The cache is empty.\n" {
		t.Errorf("got %q", out.String())
	}
	out.Reset()
	a.printCache([]nodeapi.CacheItem{
		{Digest: oci.Digest("sha256:" + strings.Repeat("ab", 32)), SizeBytes: 4 << 20, PresentBytes: 1 << 20, Tier: "active", State: "partial", UsedAt: now.Add(-2 * time.Minute),
			Images: []string{"a", "b", "c", "d", "e"}, PinnedBy: []string{"pin x"}},
		{Digest: oci.Digest("sha256:" + strings.Repeat("cd", 32)), SizeBytes: 2 << 10, PresentBytes: 2 << 10, Tier: "cold", State: "complete", UsedAt: now.Add(-50 * time.Hour)},
	})
	want := `DIGEST               SIZE            TIER    STATE     USED    IMAGES              PINNED BY
sha256:abababababab  1 MiB of 4 MiB  active  partial   2m ago  a, b, c and 2 more  pin x
sha256:cdcdcdcdcdcd  2 KiB           cold    complete  2d ago  -                   -
`
	if out.String() != want {
		t.Errorf("got:\n%s\nwant:\n%s", out.String(), want)
	}
}

func TestTerminal_NodeStatusShowsWhatDoesNotAnswer(t *testing.T) {
	now := time.Now()
	told := now.Add(-30 * time.Second)
	var out bytes.Buffer
	forPeople(&out, now).printNodeStatus(nodeapi.Status{
		Node: "n1", Version: "v1", StartedAt: now.Add(-time.Hour), Listen: "127.0.0.1:5001", Registry: "http://r.test", Upstreams: []string{"r.test", "docker.io"},
		Cache:    nodeapi.Cache{UsedBytes: 60 << 20, QuotaBytes: 50 << 20, Blobs: 1, DiskFreeBytes: 1 << 30, DiskBytes: 2 << 30, ActiveBytes: 60 << 20},
		Runtimes: []nodeapi.Runtime{{Name: "containerd", Answers: true, Containers: 1, Images: 2, AgeSeconds: 3}, {Name: "docker", Error: "connection refused", AgeSeconds: -1}},
		Report:   nodeapi.ReportStatus{Digests: 3, AcceptedAt: &told, Pending: true, Error: "timeout"}, LastEvent: &nodeapi.Event{At: told, Text: "evicted 1 blobs"},
	})
	want := `node           n1
version        v1
running since  1h ago
listens on     127.0.0.1:5001
upstreams      r.test, docker.io
cache          60 MiB of 50 MiB, 1 blob, over its quota
in use         60 MiB
disk           1 GiB free of 2 GiB
registry       http://r.test, told 30s ago of 3 digests in use, there is news for it, timeout
runtime        containerd: 1 container, 2 images, 3s old
runtime        docker: 0 containers, 0 images, never answered, does not answer; what it may use stays: connection refused
last event     30s ago: evicted 1 blobs
`
	if out.String() != want {
		t.Errorf("got:\n%s\nwant:\n%s", out.String(), want)
	}
}

func TestTerminal_AVerdictNamesAllThatPins(t *testing.T) {
	now := time.Now()
	var out bytes.Buffer
	a := forPeople(&out, now)
	v := nodeapi.Verdict{Digest: oci.Digest("sha256:" + strings.Repeat("ab", 32)), SizeBytes: 1 << 20, Tier: "active", Reason: "container web uses it",
		PinnedBy: []string{"container web", "pin x"}, Images: []string{"r.test/app:v1"}, UsedAt: now.Add(-time.Hour)}
	a.printVerdict(v)
	v.Tier, v.Evict, v.Reason, v.PinnedBy = "cold", true, "nothing on this node uses it", nil
	a.printVerdict(v)
	want := `stays: active sha256:abababababab
  container web uses it
  pinned by container web
  pinned by pin x
  belongs to r.test/app:v1
  1 MiB, last used 1h ago
would go: cold sha256:abababababab
  nothing on this node uses it
  belongs to r.test/app:v1
  1 MiB, last used 1h ago
`
	if out.String() != want {
		t.Errorf("got:\n%s\nwant:\n%s", out.String(), want)
	}
}
