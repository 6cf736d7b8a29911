package ociclient

import (
	"fmt"
	"strings"
	"testing"
)

func TestParseChallenges(t *testing.T) {
	for in, want := range map[string]string{
		`Bearer realm="https://a/t",service="s",scope="repository:x:pull,push"`: `[{Bearer map[realm:https://a/t scope:repository:x:pull,push service:s]}]`,
		`Basic realm=x, Bearer Realm = "q\"q" , service=y`:                      `[{Basic map[realm:x]} {Bearer map[realm:q"q service:y]}]`,
		`Negotiate`:          `[{Negotiate map[]}]`,
		``:                   `[]`,
		`="x"`:               `[]`,
		`realm="x"`:          `[]`,
		`Bearer realm="open`: `[{Bearer map[realm:]}]`,
		`Bearer realm="a\`:   `[{Bearer map[realm:]}]`,
	} {
		if got := fmt.Sprint(parseChallenges([]string{in})); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}

func FuzzParseChallenges(f *testing.F) {
	f.Add(`Bearer realm="https://a/t",service="s"`)
	f.Add(`Basic realm=x, Bearer a="\`)
	f.Fuzz(func(_ *testing.T, s string) { parseChallenges([]string{s}) })
}

func FuzzParseDockerConfig(f *testing.F) {
	f.Add([]byte(`{"auths":{"https://index.docker.io/v1/":{"auth":"dTpw"}}}`))
	f.Add([]byte(`{"auths":{"quay.io/a":{"auth":"dTpw"}},"credHelpers":{"quay.io":"x"},"credsStore":"../y"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if config, err := ParseDockerConfig(b); err == nil {
			config.login("docker.io", "library/busybox")
			if name, _ := config.helper("docker.io"); strings.ContainsAny(name, "/ ") {
				t.Errorf("a helper called %q", name)
			}
		}
	})
}
