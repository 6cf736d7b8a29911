package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/fairway-registry/fairway/internal/nodeapi"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"fairway": main})
}

// TestScripts runs testdata/*.txtar against this program. Besides what
// testscript brings they have
//
//	exits CODE PROGRAM ARGS…   runs it and demands this exit status
//	ready [URL]                waits until the server at $FAIRWAY_SERVER, or URL, serves
//	get PATH STATUS [REGEXP]   asks it
//	awaits PATH REGEXP         asks it until the answer matches
//	hangup                     sends SIGHUP to the program started last
//	push REPO TAG              pushes an image whose layer is REPO:TAG; its
//	                           digests are in $MANIFEST and $LAYER afterwards
//	delete REPO REFERENCE      deletes a manifest
//	report NODE DIGEST         reports, as an agent does, that the node runs it
//	running KIND               waits until a run ("gc/runs") or check ("checks")
//	                           is under way
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			addr, err := freeAddress()
			if err != nil {
				return err
			}
			env.Setenv("FAIRWAY_LISTEN", addr)
			_, port, err := net.SplitHostPort(addr)
			if err != nil {
				return err
			}
			env.Setenv("PORT", port)
			env.Setenv("FAIRWAY_SERVER", "http://"+addr)
			env.Setenv("FAIRWAY_DATA", env.WorkDir+"/data")
			node, err := freeAddress()
			if err != nil {
				return err
			}
			env.Setenv("FAIRWAY_NODE_LISTEN", node)
			env.Setenv("FAIRWAY_NODE", "http://"+node)
			env.Setenv("FAIRWAY_NODE_DATA", env.WorkDir+"/node")
			env.Setenv("FAIRWAY_NODE_NAME", "n1")
			env.Setenv("FAIRWAY_NODE_RUNTIME", "none")
			env.Setenv("FAIRWAY_NODE_REGISTRY", "http://"+addr)
			env.Setenv("REGISTRY", addr)
			second, err := freeAddress()
			if err != nil {
				return err
			}
			env.Setenv("SECOND", second)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": exits, "ready": ready, "get": get, "push": push, "delete": remove, "running": running, "awaits": awaits, "hangup": hangup, "report": report,
		},
	})
}

func freeAddress() (string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return ln.Addr().String(), ln.Close()
}

func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE PROGRAM ARGS...")
	}
	code := 0
	var exit *exec.ExitError
	if err := ts.Exec(args[1], args[2:]...); errors.As(err, &exit) {
		code = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if strconv.Itoa(code) != args[0] {
		ts.Fatalf("exit status %d, want %s", code, args[0])
	}
}

func ready(ts *testscript.TestScript, neg bool, args []string) {
	url := ts.Getenv("FAIRWAY_SERVER")
	if len(args) > 0 {
		url = args[0]
	}
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); <-time.After(5 * time.Millisecond) {
		res, err := http.Get(url + "/readyz")
		if err != nil {
			continue
		}
		ts.Check(res.Body.Close())
		if res.StatusCode == http.StatusOK {
			return
		}
	}
	ts.Fatalf("the server was not ready in time")
}

func running(ts *testscript.TestScript, _ bool, args []string) {
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); <-time.After(5 * time.Millisecond) {
		if _, _, body := request(ts, "GET", "/api/v1/"+args[0], "", nil); bytes.Contains(body, []byte(`"state":"running"`)) {
			return
		}
	}
	ts.Fatalf("nothing ran in time")
}

func get(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: get PATH STATUS [REGEXP]")
	}
	status, _, body := request(ts, "GET", args[0], "", nil)
	if strconv.Itoa(status) != args[1] {
		ts.Fatalf("GET %s: status %d, want %s\n%s", args[0], status, args[1], body)
	}
	if len(args) > 2 && regexp.MustCompile(args[2]).Match(body) == neg {
		ts.Fatalf("GET %s: match of %q is not %t:\n%s", args[0], args[2], !neg, body)
	}
}

func awaits(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: awaits PATH REGEXP")
	}
	want := regexp.MustCompile(args[1])
	var body []byte
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); <-time.After(5 * time.Millisecond) {
		if _, _, body = request(ts, "GET", args[0], "", nil); want.Match(body) {
			return
		}
	}
	ts.Fatalf("GET %s: no match of %q in time:\n%s", args[0], args[1], body)
}

func hangup(ts *testscript.TestScript, _ bool, _ []string) {
	started := ts.BackgroundCmds()
	ts.Check(started[len(started)-1].Process.Signal(syscall.SIGHUP))
}

func request(ts *testscript.TestScript, method, path, contentType string, body []byte) (int, http.Header, []byte) {
	target := path
	if strings.HasPrefix(path, "/") {
		target = ts.Getenv("FAIRWAY_SERVER") + path
	}
	req, err := http.NewRequest(method, target, bytes.NewReader(body))
	ts.Check(err)
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	res, err := http.DefaultClient.Do(req)
	ts.Check(err)
	content, err := io.ReadAll(res.Body)
	ts.Check(err)
	ts.Check(res.Body.Close())
	if socket := res.Header.Get(nodeapi.SocketHeader); socket != "" && strings.Contains(target, "/api/") {
		return onSocket(ts, socket, req)
	}
	return res.StatusCode, res.Header, content
}

// onSocket makes a request again where a node serves its admin API.
func onSocket(ts *testscript.TestScript, socket string, req *http.Request) (int, http.Header, []byte) {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
	body, err := req.GetBody()
	ts.Check(err)
	again := req.Clone(context.Background())
	again.Body = body
	res, err := client.Do(again)
	ts.Check(err)
	content, err := io.ReadAll(res.Body)
	ts.Check(err)
	ts.Check(res.Body.Close())
	return res.StatusCode, res.Header, content
}

func push(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: push REPO TAG")
	}
	repo, layer := args[0], args[0]+":"+args[1]
	blob := func(content string) string {
		digest := fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(content)))
		status, _, body := request(ts, "POST", "/v2/"+repo+"/blobs/uploads/?digest="+digest, "application/octet-stream", []byte(content))
		if status != http.StatusCreated {
			ts.Fatalf("push a blob: status %d\n%s", status, body)
		}
		return digest
	}
	const mediaType = "application/vnd.oci.image.manifest.v1+json"
	config, digest := blob("{}"), blob(layer)
	manifest := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":2},`+
		`"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":%q,"size":%d}]}`, mediaType, config, digest, len(layer))
	status, _, body := request(ts, "PUT", "/v2/"+repo+"/manifests/"+args[1], mediaType, []byte(manifest))
	if status != http.StatusCreated {
		ts.Fatalf("push a manifest: status %d\n%s", status, body)
	}
	ts.Setenv("MANIFEST", fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(manifest))))
	ts.Setenv("LAYER", digest)
}

func remove(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: delete REPO REFERENCE")
	}
	if status, _, body := request(ts, "DELETE", "/v2/"+args[0]+"/manifests/"+args[1], "", nil); status != http.StatusAccepted {
		ts.Fatalf("delete: status %d\n%s", status, body)
	}
}

func report(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: report NODE DIGEST")
	}
	body := fmt.Sprintf(`{"instance":"i","seq":1,"complete":true,"ttl_seconds":300,"cache":{"used_bytes":1,"quota_bytes":2},
		"runtimes":[{"name":"containerd","answers":true},{"name":"docker","error":"no socket"}],
		"in_use":[{"digests":[%q],"image":"team/app:v1","containers":2}]}`, args[1])
	if status, _, answer := request(ts, "PUT", "/api/v1/nodes/"+args[0], "application/json", []byte(body)); status != http.StatusOK {
		ts.Fatalf("report: status %d\n%s", status, answer)
	}
}
