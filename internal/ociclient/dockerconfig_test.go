package ociclient_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fairway-registry/fairway/internal/ociclient"
)

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

// configFile is a file of credentials with this text.
func configFile(t *testing.T, text string) (*ociclient.ConfigFile, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.json")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := ociclient.OpenConfigFile(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	return f, path
}

// finds demands a login for HOST/REPOSITORY, as "user pass".
func finds(t *testing.T, f *ociclient.ConfigFile, at, want string) {
	t.Helper()
	host, repo, _ := strings.Cut(at, "/")
	l, err := f.Find(t.Context(), host, repo)
	if got := strings.TrimSpace(l.User + " " + l.Pass); err != nil || got != want {
		t.Errorf("%s: %q, %v; want %q", at, got, err, want)
	}
}

func TestDockerConfig_Entries(t *testing.T) {
	f, _ := configFile(t, `{"auths":{
		"https://index.docker.io/v1/":{"auth":"`+b64("hub:p:w")+`"},
		"reg.example:5000":{"username":"u","password":"p"},
		"https://url.example/v2/":{"username":"u","password":"p"},
		"id.example":{"auth":"`+b64("x:")+`","identitytoken":"tok"},
		"empty.example":{}
	}}`)
	for at, want := range map[string]string{
		"docker.io/library/busybox": "hub p:w", "registry-1.docker.io/library/busybox": "hub p:w",
		"url.example/app": "u p", "id.example/app": ociclient.TokenUser + " tok", "empty.example/app": "",
		// Credentials of a host and port are for nobody else there.
		"reg.example:5000/app": "u p", "reg.example/app": "", "reg.example:5001/app": "", "sub.reg.example:5000/app": "",
	} {
		finds(t, f, at, want)
	}
}

func TestDockerConfig_TheLongestPathWins(t *testing.T) {
	f, _ := configFile(t, `{"auths":{
		"quay.io/a":{"username":"a","password":"1"},
		"quay.io/a/deep/":{"username":"deep","password":"2"},
		"quay.io/b":{"username":"b","password":"3"},
		"reg.example:5000":{"username":"all","password":"4"},
		"reg.example:5000/team/app":{"username":"app","password":"5"},
		"docker.io/library":{"username":"lib","password":"6"}
	}}`)
	for at, want := range map[string]string{
		"quay.io/a/app": "a 1", "quay.io/a": "a 1", "quay.io/a/deep/er/app": "deep 2", "quay.io/b/app": "b 3",
		"quay.io/ab/app": "", "quay.io/c": "", "quay.io/": "",
		"reg.example:5000/other": "all 4", "reg.example:5000/team/app": "app 5", "reg.example:5000/team/app2": "all 4",
		"docker.io/library/busybox": "lib 6", "docker.io/other/busybox": "",
	} {
		finds(t, f, at, want)
	}
}

func TestDockerConfig_AChangedFileIsReadAgain(t *testing.T) {
	entry := func(pass string) string {
		return `{"auths":{"reg.example":{"username":"u","password":"` + pass + `"}}}`
	}
	f, path := configFile(t, entry("one"))
	finds(t, f, "reg.example/app", "u one")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	write(entry("two"))
	finds(t, f, "reg.example/app", "u two")
	if err := os.WriteFile(path, []byte(entry("six")), 0o600); err != nil { // in place, as long as before
		t.Fatal(err)
	}
	finds(t, f, "reg.example/app", "u six")
	write(`{"auths":`) // somebody is writing it
	finds(t, f, "reg.example/app", "u six")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	finds(t, f, "reg.example/app", "u six")
	write(`{}`)
	finds(t, f, "reg.example/app", "")
}

// TestToken_IsForgottenWithItsLogin: what a login was given is not used for
// another.
func TestToken_IsForgottenWithItsLogin(t *testing.T) {
	g := newGuarded(t, "me", "secret")
	u, err := url.Parse(g.URL)
	if err != nil {
		t.Fatal(err)
	}
	entry := func(pass string) string {
		return `{"auths":{"` + u.Host + `":{"username":"me","password":"` + pass + `"}}}`
	}
	f, path := configFile(t, entry("secret"))
	c := client(t, g.URL, f.Find)
	if res, _ := get(t, c, ""); res.Status != http.StatusOK {
		t.Fatalf("status %d", res.Status)
	}
	if err := os.WriteFile(path, []byte(entry("former")), 0o600); err != nil {
		t.Fatal(err)
	}
	if res, _ := get(t, c, ""); res.Status != http.StatusUnauthorized {
		t.Errorf("with another password: status %d, want what the upstream says to that", res.Status)
	}
}

// helper installs docker-credential-NAME, which logs what it is asked.
func helper(t *testing.T, name, script string) (log string) {
	t.Helper()
	dir := t.TempDir()
	log = filepath.Join(dir, "log")
	text := "#!/bin/sh\nread -r server\necho \"$@ $server\" >> " + log + "\n" + script + "\n"
	if err := os.WriteFile(filepath.Join(dir, "docker-credential-"+name), []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return log
}

func read(t *testing.T, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

const answers = `echo "{\"ServerURL\":\"$server\",\"Username\":\"u\",\"Secret\":\"of $server\"}"`

func TestDockerConfig_HelpersRunAsDockerRunsThem(t *testing.T) {
	one := helper(t, "one", answers)
	all := helper(t, "all", `case $server in
known.example) `+answers+` ;;
https://index.docker.io/v1/) echo '{"ServerURL":"x","Username":"<token>","Secret":"identity"}' ;;
*) echo "credentials not found in native keychain"; exit 1 ;;
esac`)
	f, _ := configFile(t, `{"auths":{"own.example":{"username":"own","password":"1"},"helped.example:5000":{}},
		"credHelpers":{"helped.example:5000":"one"},"credsStore":"all"}`)
	for at, want := range map[string]string{
		"helped.example:5000/app": "u of helped.example:5000", "known.example/app": "u of known.example",
		"docker.io/library/busybox": ociclient.TokenUser + " identity", "own.example/app": "own 1", "none.example/app": "",
	} {
		finds(t, f, at, want)
		finds(t, f, at, want)
	}
	if got := read(t, one); got != "get helped.example:5000\n" {
		t.Errorf("it was asked %q, want once, for its registry", got)
	}
	for _, want := range []string{"get known.example\n", "get https://index.docker.io/v1/\n"} {
		if got := read(t, all); strings.Count(got, want) != 1 {
			t.Errorf("the store was asked %q, want once %q", got, want)
		}
	}
}

func TestDockerConfig_AHelperThatFailsIsNoRefusal(t *testing.T) {
	var log bytes.Buffer
	helper(t, "broken", "echo hunter2; echo hunter2 >&2; exit 3")
	helper(t, "odd", "echo hunter2")
	path := filepath.Join(t.TempDir(), "config.json")
	text := `{"auths":{"own.example":{"username":"own","password":"1"}},"credHelpers":{"own.example":"broken","a.example":"broken","b.example":"odd","c.example":"missing"}}`
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := ociclient.OpenConfigFile(path, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	finds(t, f, "own.example/app", "own 1")
	for _, host := range []string{"a.example", "b.example", "c.example"} {
		if l, err := f.Find(t.Context(), host, "app"); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %+v, %v", host, l, err)
		}
	}
	if strings.Contains(log.String(), "hunter2") {
		t.Errorf("the log has a secret: %s", log.String())
	}
	g := newGuarded(t, "me", "secret")
	failing := func(context.Context, string, string) (ociclient.Login, error) {
		return ociclient.Login{}, fmt.Errorf("broken")
	}
	if res, _ := get(t, client(t, g.URL, failing), ""); res.Outcome == ociclient.Denied || res.Outcome == ociclient.NotFound || res.Outcome == ociclient.OK {
		t.Errorf("status %d was taken for a verdict: %v", res.Status, res.Outcome)
	}
}

func TestDockerConfig_WhoeverLeavesDoesNotStopAHelper(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "gate")
	log := helper(t, "slow", "while [ ! -e "+fifo+" ]; do sleep 0.01; done\n"+answers)
	f, _ := configFile(t, `{"credsStore":"slow"}`)
	ctx, cancel := context.WithCancel(t.Context())
	left := make(chan error, 1)
	go func() {
		_, err := f.Find(ctx, "reg.example", "app")
		left <- err
	}()
	for deadline := time.Now().Add(time.Minute); ; <-time.After(time.Millisecond) {
		if _, err := os.Stat(log); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the helper is not asked")
		}
	}
	cancel()
	if err := <-left; err == nil {
		t.Error("whoever left got an answer")
	}
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() { finds(t, f, "reg.example/app", "u of reg.example") })
	}
	if err := os.WriteFile(fifo, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	if got := read(t, log); got != "get reg.example\n" {
		t.Errorf("it was asked %q, want once", got)
	}
}

func TestDockerConfig_AHelperIsTheNameOfAProgram(t *testing.T) {
	for _, name := range []string{"../../bin/sh", "/bin/sh", "a b", "-x", ""} {
		_, err := ociclient.ParseDockerConfig(fmt.Appendf(nil, `{"credHelpers":{"a.example":%q}}`, name))
		if (err == nil) != (name == "") {
			t.Errorf("%q: %v", name, err)
		}
	}
}
