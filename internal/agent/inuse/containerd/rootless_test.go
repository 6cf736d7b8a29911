package containerd_test

import (
	"testing"

	"github.com/fairway-registry/fairway/internal/agent/inuse/containerd"
)

// TestN13_OnlyAContainerWithoutARootIsOfNoImage: where it has one, or may have, the content
// of it is not known, which ends no protection.
func TestN13_OnlyAContainerWithoutARootIsOfNoImage(t *testing.T) {
	const bundle = `{"ociVersion":"1.0.2","root":{"path":"rootfs","readonly":true}}`
	for name, tc := range map[string]struct {
		image, snapshot, spec string
		want                  bool
	}{
		"the root of its bundle":  {"", "", bundle, true},
		"an image":                {"app:1", "", bundle, false},
		"a snapshot":              {"", "key", bundle, false},
		"a directory of Docker's": {"", "", `{"root":{"path":"/var/lib/docker/overlay2/x/merged"}}`, false},
		"a directory beside":      {"", "", `{"root":{"path":"../mounted"}}`, false},
		"no root is stated":       {"", "", `{"process":{}}`, false},
		"an empty path":           {"", "", `{"root":{"path":""}}`, false},
		"no spec":                 {"", "", "", false},
		"a spec that is not JSON": {"", "", "\x0a\x03", false},
		"a path of another type":  {"", "", `{"root":{"path":["rootfs"]}}`, false},
		"a root of another type":  {"", "", `{"root":"rootfs"}`, false},
	} {
		if got := containerd.Rootless(tc.image, tc.snapshot, tc.spec); got != tc.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
