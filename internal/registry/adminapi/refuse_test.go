package adminapi_test

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/fairway-registry/fairway/internal/httpserve"
	"github.com/fairway-registry/fairway/internal/registry/adminapi"
)

func TestBadInput_NamesTheFieldAndWhatIsWanted(t *testing.T) {
	s := serve(t)
	digest := "sha256:" + strings.Repeat("a", 64)
	for name, c := range map[string]struct {
		method, path string
		body         any
		want         []string
	}{
		"unknown field":              {"POST", "/gc/runs", `{"windw":"1h"}`, []string{"windw", "window"}},
		"bad duration":               {"POST", "/gc/runs", `{"window":"soon"}`, []string{"window", "soon", "2h"}},
		"negative number":            {"POST", "/gc/runs", `{"trash":-1}`, []string{"trash", "negative"}},
		"negative duration":          {"POST", "/gc/runs", `{"untagged":"-1h"}`, []string{"untagged", "negative"}},
		"duration of a wrong type":   {"POST", "/gc/runs", `{"window":true}`, []string{"window", "number of seconds"}},
		"text of a wrong type":       {"POST", "/gc/runs", `{"repository":7}`, []string{"repository", "a text", "7"}},
		"bool of a wrong type":       {"POST", "/gc/runs", `{"dry_run":"yes"}`, []string{"dry_run", "true or false"}},
		"null":                       {"POST", "/gc/runs", `{"window":null}`, []string{"window", "null"}},
		"no JSON":                    {"POST", "/gc/runs", `{"window":`, []string{"no JSON", "byte"}},
		"no object":                  {"POST", "/gc/runs", `[1]`, []string{"object"}},
		"just null":                  {"POST", "/gc/runs", `null`, []string{"object"}},
		"two values":                 {"POST", "/gc/runs", `{} {}`, []string{"no JSON"}},
		"bad pattern":                {"POST", "/gc/runs", `{"repository":"["}`, []string{"pattern"}},
		"bad repository":             {"POST", "/trash/restore", `{"repository":"A","digest":"` + digest + `"}`, []string{"repository", "A"}},
		"bad digest":                 {"POST", "/trash/restore", `{"repository":"a","digest":"sha256:1"}`, []string{"digest"}},
		"no digests":                 {"PUT", "/leases", `{"holder":"h","ttl":1}`, []string{"digests"}},
		"digests of a wrong type":    {"PUT", "/leases", `{"holder":"h","ttl":1,"digests":"x"}`, []string{"digests", "a list of texts"}},
		"no ttl":                     {"PUT", "/leases", `{"holder":"h","digests":["` + digest + `"]}`, []string{"ttl"}},
		"a ttl of nothing":           {"PUT", "/leases", `{"holder":"h","digests":["` + digest + `"],"ttl":0}`, []string{"ttl"}},
		"a ttl for ever":             {"PUT", "/leases", `{"holder":"h","digests":["` + digest + `"],"ttl":"200w"}`, []string{"ttl", "366d"}},
		"a holder of too many bytes": {"PUT", "/leases", `{"holder":"` + strings.Repeat("h", 256) + `","digests":["` + digest + `"],"ttl":1}`, []string{"holder", "255"}},
		"too many digests":           {"PUT", "/leases", `{"holder":"h","digests":["` + digest + strings.Repeat(`","`+digest, 5000) + `"],"ttl":1}`, []string{"digests", "5001"}},
		"a holder with an escape":    {"PUT", "/leases", `{"holder":"h\u001b[2J","digests":["` + digest + `"],"ttl":1}`, []string{"holder", "printable"}},
		"a holder of two lines":      {"PUT", "/leases/a%0Ab", `{"digests":["` + digest + `"],"ttl":1}`, []string{"holder", "printable"}},
		"a holder that hides text":   {"PUT", "/leases", `{"holder":"a\u202eb","digests":["` + digest + `"],"ttl":1}`, []string{"holder", "printable"}},
		"a field twice":              {"POST", "/gc/runs", `{"dry_run":true,"dry_run":false}`, []string{"dry_run", "more than once"}},
		"a field twice, escaped":     {"POST", "/gc/runs", `{"dry_run":true,"dry\u005frun":false}`, []string{"dry_run", "more than once"}},
		"a schedule's pattern":       {"POST", "/gc/schedules", `{"cron":"@daily","repository":"["}`, []string{"pattern"}},
		"a schedule's repository":    {"POST", "/gc/schedules", `{"cron":"@daily","repository":"A"}`, []string{"repository"}},
		"a schedule that never runs": {"POST", "/gc/schedules", `{"cron":"0 0 30 2 *"}`, []string{"cron", "never"}},
		"no holder":                  {"PUT", "/leases", `{"digests":["` + digest + `"],"ttl":1}`, []string{"holder"}},
		"two holders":                {"PUT", "/leases/a", `{"holder":"b","digests":["` + digest + `"],"ttl":1}`, []string{"holder"}},
		"a rate below zero":          {"POST", "/checks", `{"bytes_per_second":-5}`, []string{"bytes_per_second", "0 or more"}},
		"a body for stop":            {"POST", "/gc/runs/1/stop", `{"now":true}`, []string{"now"}},
		"an id that is none":         {"GET", "/gc/runs/x", nil, []string{"id", "x"}},
		"an id of zero":              {"GET", "/gc/runs/0", nil, []string{"id"}},
		"n below one":                {"GET", "/gc/runs?n=0", nil, []string{"n:", "1 to 1000"}},
		"n too large":                {"GET", "/deletions?n=1001", nil, []string{"n:", "1 to 1000"}},
		"before below one":           {"GET", "/checks?before=-1", nil, []string{"before"}},
		"an unknown parameter":       {"GET", "/trash?repo=x", nil, []string{"repo", "repository"}},
		"a parameter twice":          {"GET", "/gc/runs?n=1&n=2", nil, []string{"n:", "more than once"}},
		"a malformed query":          {"GET", "/gc/runs?n=%zz", nil, []string{"malformed"}},
		"a wait that is none":        {"GET", "/gc/runs/1?wait=long", nil, []string{"wait"}},
	} {
		t.Run(name, func(t *testing.T) {
			a := s.do(c.method, c.path, c.body)
			a.t = t
			a.refused(http.StatusBadRequest, c.want...)
		})
	}
}

func TestBody_MustBeDeclaredAsJSON(t *testing.T) {
	s := serve(t)
	for _, declared := range []string{"text/plain", "application/x-www-form-urlencoded", "", "multipart/form-data; boundary=x", ";;"} {
		s.do("POST", "/gc/runs", `{}`, "Content-Type: "+declared).refused(http.StatusUnsupportedMediaType, "application/json")
	}
	s.do("POST", "/gc/runs", nil, "Content-Type: text/plain").refused(http.StatusUnsupportedMediaType)
	s.do("POST", "/gc/runs", `{}`, "Content-Type: application/json; charset=utf-8").ok(http.StatusAccepted, nil)
	s.do("POST", "/gc/runs", nil).ok(http.StatusAccepted, nil)
}

func TestBody_IsBounded(t *testing.T) {
	s := serve(t)
	s.do("POST", "/gc/runs", `{"repository":"`+strings.Repeat("a", 1<<20)+`"}`).refused(http.StatusRequestEntityTooLarge, "1 MiB")
}

func TestOrigin_APageOfAnotherOriginChangesNothing(t *testing.T) {
	s := serve(t)
	for _, header := range []string{"Origin: http://evil.example", "Sec-Fetch-Site: cross-site", "Sec-Fetch-Site: same-site", "Origin: null"} {
		s.do("POST", "/gc/runs", nil, header).refused(http.StatusForbidden, "origin")
		s.do("DELETE", "/leases/h", nil, header).refused(http.StatusForbidden, "origin")
		s.do("PUT", "/leases/h", `{}`, header).refused(http.StatusForbidden, "origin")
	}
	s.do("POST", "/gc/runs", nil, "Sec-Fetch-Site: same-origin").ok(http.StatusAccepted, nil)
	s.do("POST", "/gc/runs", nil, "Origin: "+s.url).ok(http.StatusAccepted, nil)
}

func TestHost_ANameThatWasPointedHereIsRefused(t *testing.T) {
	s := serveWith(t, adminapi.Options{Guard: httpserve.Guard{Loopback: true, Hosts: []string{"registry.example"}}})
	for _, host := range []string{"evil.example", "evil.example:5000", "127.0.0.1.evil.example", "localhost.evil.example", "notlocalhost"} {
		s.do("GET", "/version", nil, "Host: "+host).refused(http.StatusForbidden, "hosts")
	}
	for _, host := range []string{"localhost:5000", "LOCALHOST", "127.0.0.1", "127.0.0.1:1", "[::1]:5000", "[::1]", "192.0.2.1:80", "a.localhost", "registry.example", "Registry.Example.:443"} {
		s.do("GET", "/version", nil, "Host: "+host).ok(http.StatusOK, nil)
	}
	open := serveWith(t, adminapi.Options{})
	open.do("GET", "/version", nil, "Host: any.example").ok(http.StatusOK, nil)
}

func TestPaths_UnknownOnesAndMethodsAreToldInJSON(t *testing.T) {
	s := serve(t)
	s.do("GET", "/nothing", nil).refused(http.StatusNotFound, "/api/v1/nothing", "openapi.json")
	a := s.do("PATCH", "/gc/runs", nil)
	a.refused(http.StatusMethodNotAllowed, "PATCH", "GET, HEAD, POST")
	if got := a.header.Get("Allow"); got != "GET, HEAD, POST" {
		t.Errorf("Allow %q", got)
	}
	head := s.do("HEAD", "/gc/runs", nil)
	if head.status != 200 || len(head.body) != 0 || head.header.Get("Content-Length") == "0" {
		t.Errorf("HEAD: status %d, %d bytes, Content-Length %s", head.status, len(head.body), head.header.Get("Content-Length"))
	}
	for _, path := range []string{"/gc/runs/99", "/gc/runs/99/events", "/gc/runs/99/deletions"} {
		s.do("GET", path, nil).refused(http.StatusNotFound)
	}
	s.do("POST", "/gc/runs/99/stop", nil).refused(http.StatusNotFound)
}

func FuzzRequestBody(f *testing.F) {
	for _, seed := range []string{`{"window":"1h","dry_run":true}`, `{"window":1e99}`, `{"digests":["sha256:0"],"ttl":{}}`, `{"cron":"* * *"}`, `{"":0}`, "\x00", `{"a":{"a":{}}}`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, body string) {
		for _, err := range adminapi.DecodeEach([]byte(body)) {
			if err != nil && (len(err.Error()) > 4096 || fmt.Sprint(err) == "") {
				t.Fatalf("%q: error %q", body, err)
			}
		}
	})
}

func TestPanic_IsAnErrorOfThisAPI(t *testing.T) {
	observer := httpserve.NewObserver(httpserve.ObserverOptions{Log: slog.New(slog.DiscardHandler)})
	h := observer.Wrap(adminapi.New(adminapi.Options{Log: slog.New(slog.DiscardHandler)})) // nothing to work with
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", "/api/v1/leases", nil))
	var got struct {
		Error struct {
			Code, Message string
			RequestID     string `json:"request_id"`
		}
	}
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || w.Code != http.StatusInternalServerError || w.Header().Get("Content-Type") != "application/json" {
		t.Errorf("status %d, header %v, body %s", w.Code, w.Header(), w.Body)
	}
	if got.Error.Code != "INTERNAL" || got.Error.RequestID == "" || strings.Contains(got.Error.Message, "nil pointer") {
		t.Errorf("body %s", w.Body)
	}
}
