// Package facetest owns the questions that tests put to a JSON face over real
// HTTP. Every exchange is held against the OpenAPI document that the face
// itself serves.
package facetest

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/legacy"

	"github.com/fairway-registry/fairway/internal/jsonface"
)

// Server is a face that is served.
type Server struct {
	t         testing.TB
	URL       string
	Doc       *openapi3.T
	router    routers.Router
	succeeded map[string]bool // operations that were answered with 2xx
}

// Serve serves h until the test ends, and reads its document.
func Serve(t testing.TB, h http.Handler) *Server {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	s := &Server{t: t, URL: srv.URL, succeeded: map[string]bool{}}
	res, err := http.Get(s.URL + jsonface.Prefix + "/openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }() // it was read
	content, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	if s.Doc, err = openapi3.NewLoader().LoadFromData(content); err != nil {
		t.Fatal(err)
	}
	if err := s.Doc.Validate(t.Context()); err != nil {
		t.Fatalf("openapi.json is not valid: %v", err)
	}
	s.Doc.Servers = openapi3.Servers{{URL: s.URL + jsonface.Prefix}}
	if s.router, err = legacy.NewRouter(s.Doc); err != nil {
		t.Fatal(err)
	}
	return s
}

// Operations lists those of the document, as "METHOD /path".
func (s *Server) Operations() (all []string) {
	for path, item := range s.Doc.Paths.Map() {
		for method := range item.Operations() {
			all = append(all, method+" "+path)
		}
	}
	return all
}

// Unseen lists the operations that were never seen to succeed.
func (s *Server) Unseen() (all []string) {
	for path, item := range s.Doc.Paths.Map() {
		for method, op := range item.Operations() {
			if !s.succeeded[op.OperationID] {
				all = append(all, method+" "+path)
			}
		}
	}
	return all
}

// Answer is what came back.
type Answer struct {
	t      testing.TB
	what   string
	Status int
	Header http.Header
	Body   []byte
}

// Do sends a request. body is a value to encode, a string to send as it is, or
// nil; headers are of the form "Name: value". The answer must be as the document
// describes it.
func (s *Server) Do(method, path string, body any, headers ...string) Answer {
	s.t.Helper()
	var content []byte
	switch b := body.(type) {
	case nil:
	case string:
		content = []byte(b)
	default:
		var err error
		if content, err = json.Marshal(b); err != nil {
			s.t.Fatal(err)
		}
	}
	res, err := http.DefaultClient.Do(s.request(method, path, content, headers))
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }() // it was read
	got, err := io.ReadAll(res.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	a := Answer{t: s.t, what: method + " " + path, Status: res.StatusCode, Header: res.Header, Body: got}
	s.compare(a, s.request(method, path, content, headers))
	return a
}

func (s *Server) request(method, path string, content []byte, headers []string) *http.Request {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.URL+jsonface.Prefix+path, bytes.NewReader(content))
	if err != nil {
		s.t.Fatal(err)
	}
	if len(content) > 0 {
		req.Header.Set("Content-Type", "application/json")
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		if name == "Host" {
			req.Host = value
		} else if req.Header.Set(name, value); value == "" {
			req.Header.Del(name)
		}
	}
	return req
}

// compare holds an exchange against the document.
func (s *Server) compare(a Answer, req *http.Request) {
	s.t.Helper()
	req.Host = req.URL.Host
	route, params, err := s.router.FindRoute(req)
	if err != nil {
		if a.Status < http.StatusMultipleChoices {
			s.t.Errorf("%s succeeded, and the document has it not: %v", a.what, err)
		}
		return
	}
	in := &openapi3filter.RequestValidationInput{Request: req, PathParams: params, Route: route}
	described := openapi3filter.ValidateRequest(s.t.Context(), in)
	out := &openapi3filter.ResponseValidationInput{RequestValidationInput: in, Status: a.Status, Header: a.Header,
		Options: &openapi3filter.Options{IncludeResponseStatus: true}}
	out.SetBodyBytes(a.Body)
	if err := openapi3filter.ValidateResponse(s.t.Context(), out); err != nil {
		s.t.Errorf("%s: the answer is not as the document says: %v\n%s", a.what, err, a.Body)
	}
	if a.Status < http.StatusMultipleChoices {
		if described != nil {
			s.t.Errorf("%s succeeded although the document does not allow the request: %v", a.what, described)
		}
		s.succeeded[route.Operation.OperationID] = true
	}
}

// OK demands a status and decodes the body.
func (a Answer) OK(status int, into any) Answer {
	a.t.Helper()
	if a.Status != status {
		a.t.Fatalf("%s: status %d, want %d\n%s", a.what, a.Status, status, a.Body)
	}
	if into != nil {
		if err := json.Unmarshal(a.Body, into); err != nil {
			a.t.Fatalf("%s: %v\n%s", a.what, err, a.Body)
		}
	}
	return a
}

// Refused demands an error with a status and a text that says parts.
func (a Answer) Refused(status int, parts ...string) {
	a.t.Helper()
	var e struct {
		Error struct {
			Code, Message string
			RequestID     string `json:"request_id"`
		}
	}
	a.OK(status, &e)
	if e.Error.RequestID != a.Header.Get("X-Request-Id") {
		a.t.Errorf("%s: request id %q in the body, %q in the header", a.what, e.Error.RequestID, a.Header.Get("X-Request-Id"))
	}
	for _, p := range parts {
		if !strings.Contains(e.Error.Message, p) {
			a.t.Errorf("%s: message %q does not say %q", a.what, e.Error.Message, p)
		}
	}
}
