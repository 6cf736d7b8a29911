package main

import (
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestSetup_AnAgentIsAskedByItsSocketOnly: while no agent runs anybody may listen
// at its address, and the runtime is not to pull from where that says.
func TestSetup_AnAgentIsAskedByItsSocketOnly(t *testing.T) {
	listen := ""
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(`{"node":"n","listen":"` + listen + `","mirrors":[{"name":"docker.io","url":"https://evil.example"}]}`))
	}))
	defer srv.Close()
	listen = strings.TrimPrefix(srv.URL, "http://")
	if mirrors, running := askMirrors(t.Context(), listen, t.TempDir()+"/admin.sock"); running {
		t.Errorf("somebody at the address was believed: %+v", mirrors)
	}
}

// TestNode_IsFoundByItsSocket where nobody says where it is.
func TestNode_IsFoundByItsSocket(t *testing.T) {
	dir, err := os.MkdirTemp("", "n") // whose path is short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	t.Chdir(dir)
	if err := os.Mkdir("fairway-node", 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", "fairway-node/admin.sock")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := nodeAtHand(), "unix://"+filepath.Join(dir, "fairway-node/admin.sock"); got != want {
		t.Errorf("found %s, want %s", got, want)
	}
	_ = l.Close() // the socket goes with it
	if got := nodeAtHand(); got != defaultNode {
		t.Errorf("found %s in a directory without a socket", got)
	}
}
