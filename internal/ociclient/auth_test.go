package ociclient

import (
	"fmt"
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
	f.Fuzz(func(_ *testing.T, b []byte) {
		if creds, err := ParseDockerConfig(b); err == nil {
			creds("docker.io")
		}
	})
}
