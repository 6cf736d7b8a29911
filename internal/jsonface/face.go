package jsonface

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"

	"go.yaml.in/yaml/v3"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/httpserve"
)

// Prefix is where a Face's paths begin.
const Prefix = "/api/v1"

// Options is what a face is made of.
type Options struct {
	Routes   []Route
	Spec     []byte // the OpenAPI document, in YAML, which is served as JSON
	Guard    httpserve.Guard
	Observer *httpserve.Observer // nil: requests are not counted by route
}

// Route is one operation of an API.
type Route struct {
	Method, Path string // below Prefix, as http.ServeMux has them
	Handle       Handler
}

// Handler answers a call. A nil body is answered with 204.
type Handler func(c *Call) (body any, err error)

// Call is a request being answered.
type Call struct {
	*http.Request
	RequestID string
	Answer    http.Header
	Status    int // of the answer, if all is well

	writer http.ResponseWriter // told to close the connection after a body that is too large
}

// Face is the handler of /api/.
type Face struct {
	guard    httpserve.Guard
	observer *httpserve.Observer
	origin   *http.CrossOriginProtection
	mux      *http.ServeMux
}

// New returns the handler of o's routes and of the document that describes
// them.
func New(o Options) *Face {
	f := &Face{guard: o.Guard, observer: o.Observer, origin: http.NewCrossOriginProtection(), mux: http.NewServeMux()}
	spec := specJSON(o.Spec)
	document := Route{http.MethodGet, "/openapi.json", func(*Call) (any, error) {
		doc, err := spec()
		return json.RawMessage(doc), err
	}}
	byPath := map[string]map[string]Handler{}
	for _, r := range append(slices.Clip(o.Routes), document) {
		if byPath[r.Path] == nil {
			byPath[r.Path] = map[string]Handler{}
		}
		byPath[r.Path][r.Method] = r.Handle
	}
	for path, methods := range byPath {
		f.mux.Handle(Prefix+path, f.dispatch(path, methods))
	}
	f.mux.Handle("/", f.dispatch("", nil))
	return f
}

// specJSON renders the document as JSON when it is first asked for.
func specJSON(text []byte) func() ([]byte, error) {
	return sync.OnceValues(func() ([]byte, error) {
		var doc map[string]any
		if err := yaml.Unmarshal(text, &doc); err != nil {
			return nil, fmt.Errorf("read the OpenAPI document: %w", err)
		}
		return json.Marshal(doc)
	})
}

// ServeHTTP answers a request under /api/.
func (f *Face) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	httpserve.OnPanic(w, fail)
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if err := f.check(r); err != nil {
		fail(w, err)
		return
	}
	f.mux.ServeHTTP(w, r)
}

// check refuses what a web page that the operator looks at could have sent.
func (f *Face) check(r *http.Request) error {
	if f.guard.Loopback && !f.guard.KnownHost(r.Host) {
		return fault.New(fault.Denied, "the host name %q is not known here; a proxy's name can be allowed with the setting \"hosts\"", r.Host)
	}
	if err := f.origin.Check(r); err != nil {
		return fault.Wrap(fault.Denied, err, "a web page of another origin may not change anything here")
	}
	return nil
}

// dispatch answers the methods of one path. No methods: no such path.
func (f *Face) dispatch(path string, methods map[string]Handler) http.Handler {
	var metric *httpserve.Route
	if f.observer != nil {
		name := Prefix + path
		if methods == nil {
			name = "/api/unknown"
		}
		metric = f.observer.Route(name)
	}
	var allow []string
	for m := range methods {
		if allow = append(allow, m); m == http.MethodGet {
			allow = append(allow, http.MethodHead)
		}
	}
	slices.Sort(allow)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		httpserve.Mark(w, metric)
		method := r.Method
		if method == http.MethodHead {
			method = http.MethodGet
		}
		handle, ok := methods[method]
		switch {
		case methods == nil:
			fail(w, fault.New(fault.NotFound, "there is no %s; %s/openapi.json lists what there is", r.URL.Path, Prefix))
		case !ok:
			w.Header().Set("Allow", strings.Join(allow, ", "))
			fail(w, Refuse(http.StatusMethodNotAllowed, "METHOD_NOT_ALLOWED", "%s does not take %s; it takes %s", r.URL.Path, r.Method, strings.Join(allow, ", ")))
		default:
			answer(w, r, handle)
		}
	})
}

func answer(w http.ResponseWriter, r *http.Request, handle Handler) {
	c := &Call{Request: r, writer: w, RequestID: httpserve.RequestID(w), Answer: w.Header(), Status: http.StatusOK}
	body, err := handle(c)
	if err != nil {
		fail(w, err)
		return
	}
	if body == nil {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	write(w, c.Status, body)
}

// Accepted makes the answer one for work that has begun and can be watched at
// a path below Prefix.
func (c *Call) Accepted(body any, format string, args ...any) any {
	c.Status = http.StatusAccepted
	c.Answer.Set("Location", Prefix+fmt.Sprintf(format, args...))
	return body
}

// write sends a JSON answer. A client that has gone away needs none, so the
// result of the write is only noted for the log.
func write(w http.ResponseWriter, status int, body any) {
	b, err := json.Marshal(body)
	if err != nil {
		fail(w, fmt.Errorf("encode the answer: %w", err))
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(b)+1))
	w.WriteHeader(status)
	if _, err := w.Write(append(b, '\n')); err != nil {
		httpserve.Note(w, err)
	}
}

// refusal is a status that no kind of fault has.
type refusal struct {
	status int
	cause  *fault.Error
}

func (e *refusal) Error() string { return e.cause.Error() }
func (e *refusal) Unwrap() error { return e.cause }

// Refuse returns an error that is answered with a status of its own.
func Refuse(status int, code, format string, args ...any) error {
	return &refusal{status, fault.New(fault.Invalid, format, args...).WithCode(code)}
}

// List makes an empty list one in JSON too.
func List[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

type errorBody struct {
	Error errorText `json:"error"`
}

type errorText struct {
	Code      string `json:"code"`
	Message   string `json:"message"`
	RequestID string `json:"request_id"`
}

// code names the kinds of fault where an error has no code of its own.
func code(e *fault.Error) string {
	if e.Code != "" {
		return e.Code
	}
	switch e.Kind {
	case fault.NotFound:
		return "NOT_FOUND"
	case fault.Conflict:
		return "CONFLICT"
	case fault.Invalid:
		return "INVALID"
	case fault.Denied:
		return "DENIED"
	case fault.Busy:
		return "BUSY"
	case fault.Full:
		return "STORAGE_FULL"
	}
	return "INTERNAL"
}

func fail(w http.ResponseWriter, err error) {
	httpserve.Note(w, err)
	public, status := fault.Public(err), httpserve.Status(err)
	var r *refusal
	if errors.As(err, &r) {
		status = r.status
	}
	if status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "1")
	}
	write(w, status, errorBody{errorText{code(public), public.Public, httpserve.RequestID(w)}})
}
