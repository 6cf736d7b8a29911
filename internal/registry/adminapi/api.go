package adminapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/httpserve"
	"github.com/fairway-registry/fairway/internal/registry/admin"
	"github.com/fairway-registry/fairway/internal/registry/check"
	"github.com/fairway-registry/fairway/internal/registry/gc"
	"github.com/fairway-registry/fairway/internal/registry/meta"
)

// Options is what the face speaks for.
type Options struct {
	Store     *meta.Store
	Collector *gc.Collector
	Checker   *check.Checker
	Observer  *httpserve.Observer // nil: requests are not counted by route
	Log       *slog.Logger
	Version   Version

	// Loopback says that the server listens on loopback, where a Host header
	// must be an IP address, localhost, or one of Hosts.
	Loopback bool
	Hosts    []string
}

// Version tells which program answers.
type Version struct {
	Version string `json:"version"`
	Commit  string `json:"commit"`
	Go      string `json:"go_version"`
}

// API is the handler of /api/.
type API struct {
	Options
	admin  *admin.Admin
	mux    *http.ServeMux
	origin *http.CrossOriginProtection
	spec   func() ([]byte, error)
}

// New returns the handler.
func New(o Options) *API {
	a := &API{
		Options: o,
		admin:   admin.New(admin.Options{Store: o.Store, Collector: o.Collector, Checker: o.Checker, Log: o.Log}),
		mux:     http.NewServeMux(),
		origin:  http.NewCrossOriginProtection(),
		spec:    specJSON(),
	}
	byPath := map[string]map[string]handler{}
	for _, r := range a.routes() {
		if byPath[r.path] == nil {
			byPath[r.path] = map[string]handler{}
		}
		byPath[r.path][r.method] = r.handle
	}
	for path, methods := range byPath {
		a.mux.Handle(prefix+path, a.dispatch(path, methods))
	}
	a.mux.Handle("/", a.dispatch("", nil))
	return a
}

const prefix = "/api/v1"

// route is one operation of the API.
type route struct {
	method, path string
	handle       handler
}

// handler answers a call. A nil body is answered with 204.
type handler func(c *call) (body any, err error)

// call is a request being answered.
type call struct {
	*http.Request
	who    admin.Caller
	header http.Header // of the answer
	status int         // of the answer, if all is well
}

func (a *API) routes() []route {
	return []route{
		{"POST", "/gc/runs", a.startRun},
		{"GET", "/gc/runs", a.listRuns},
		{"GET", "/gc/runs/{id}", a.getRun},
		{"GET", "/gc/runs/{id}/events", a.runEvents},
		{"GET", "/gc/runs/{id}/deletions", a.runDeletions},
		{"POST", "/gc/runs/{id}/stop", a.stopRun},
		{"GET", "/gc/status", a.status},
		{"GET", "/gc/schedules", a.listSchedules},
		{"POST", "/gc/schedules", a.addSchedule},
		{"DELETE", "/gc/schedules/{id}", a.deleteSchedule},
		{"GET", "/explain", a.explain},
		{"GET", "/trash", a.listTrash},
		{"POST", "/trash/restore", a.restore},
		{"POST", "/trash/purge", a.purgeTrash},
		{"GET", "/leases", a.listLeases},
		{"PUT", "/leases", a.putLease},
		{"GET", "/leases/{holder}", a.getLease},
		{"PUT", "/leases/{holder}", a.putLease},
		{"DELETE", "/leases/{holder}", a.deleteLease},
		{"GET", "/deletions", a.listDeletions},
		{"POST", "/checks", a.startCheck},
		{"GET", "/checks", a.listChecks},
		{"GET", "/checks/{id}", a.getCheck},
		{"POST", "/checks/{id}/stop", a.stopCheck},
		{"GET", "/version", a.version},
		{"GET", "/openapi.json", a.openapi},
	}
}

// anonymous names the sender of a request while there is no authentication.
func anonymous(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		host = r.RemoteAddr
	}
	return "anonymous@" + host
}

// ServeHTTP answers a request under /api/.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	httpserve.OnPanic(w, a.fail)
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if err := a.guard(r); err != nil {
		a.fail(w, err)
		return
	}
	a.mux.ServeHTTP(w, r)
}

// guard refuses what a web page that the operator looks at could have sent.
func (a *API) guard(r *http.Request) error {
	if a.Loopback && !a.KnownHost(r.Host) {
		return fault.New(fault.Denied, "the host name %q is not known here; a proxy's name can be allowed with the setting \"hosts\"", r.Host)
	}
	if err := a.origin.Check(r); err != nil {
		return fault.Wrap(fault.Denied, err, "a web page of another origin may not change anything here")
	}
	return nil
}

// KnownHost reports whether nobody but the operator can have chosen the name:
// a page from evil.example whose name was rebound to 127.0.0.1 still says
// evil.example.
func (a *API) KnownHost(hostport string) bool {
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	return net.ParseIP(strings.Trim(host, "[]")) != nil || host == "localhost" || strings.HasSuffix(host, ".localhost") || slices.Contains(a.Hosts, host)
}

// dispatch answers the methods of one path. No methods: no such path.
func (a *API) dispatch(path string, methods map[string]handler) http.Handler {
	var metric *httpserve.Route
	if a.Observer != nil {
		name := prefix + path
		if methods == nil {
			name = "/api/unknown"
		}
		metric = a.Observer.Route(name)
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
			a.fail(w, fault.New(fault.NotFound, "there is no %s; %s/openapi.json lists what there is", r.URL.Path, prefix))
		case !ok:
			w.Header().Set("Allow", strings.Join(allow, ", "))
			a.fail(w, refuse(http.StatusMethodNotAllowed, "METHOD_NOT_ALLOWED", "%s does not take %s; it takes %s", r.URL.Path, r.Method, strings.Join(allow, ", ")))
		default:
			a.answer(w, r, handle)
		}
	})
}

func (a *API) answer(w http.ResponseWriter, r *http.Request, handle handler) {
	r.Body = http.MaxBytesReader(w, r.Body, bodyMax)
	c := &call{
		Request: r, header: w.Header(), status: http.StatusOK,
		who: admin.Caller{Actor: anonymous(r), Remote: r.RemoteAddr, RequestID: httpserve.RequestID(w)},
	}
	body, err := handle(c)
	if err != nil {
		a.fail(w, err)
		return
	}
	if body == nil {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	a.write(w, c.status, body)
}

// write sends a JSON answer. A client that has gone away needs none, so the
// result of the write is only noted for the log.
func (a *API) write(w http.ResponseWriter, status int, body any) {
	b, err := json.Marshal(body)
	if err != nil {
		a.fail(w, fmt.Errorf("encode the answer: %w", err))
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

func refuse(status int, code, format string, args ...any) error {
	return &refusal{status, fault.New(fault.Invalid, format, args...).WithCode(code)}
}

type errorBody struct {
	Error errorText `json:"error"`
}

type errorText struct {
	Code      string `json:"code"`
	Message   string `json:"message"`
	RequestID string `json:"request_id"`
}

// codes name the kinds of fault where an error has no code of its own.
var codes = map[fault.Kind]string{
	fault.NotFound: "NOT_FOUND",
	fault.Conflict: "CONFLICT",
	fault.Invalid:  "INVALID",
	fault.Denied:   "DENIED",
	fault.Busy:     "BUSY",
	fault.Full:     "STORAGE_FULL",
	fault.Internal: "INTERNAL",
}

func (a *API) fail(w http.ResponseWriter, err error) {
	httpserve.Note(w, err)
	public, status := fault.Public(err), httpserve.Status(err)
	var r *refusal
	if errors.As(err, &r) {
		status = r.status
	}
	code := public.Code
	if code == "" {
		code = codes[public.Kind]
	}
	if status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "1")
	}
	a.write(w, status, errorBody{errorText{code, public.Public, httpserve.RequestID(w)}})
}
