package main

import (
	"net/http"
	"net/http/httptest"
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
