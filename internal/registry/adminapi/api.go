package adminapi

import (
	_ "embed" // the document is a file of its own
	"log/slog"
	"net"
	"net/http"

	"github.com/fairway-registry/fairway/internal/httpserve"
	"github.com/fairway-registry/fairway/internal/jsonface"
	"github.com/fairway-registry/fairway/internal/registry/admin"
	"github.com/fairway-registry/fairway/internal/registry/check"
	"github.com/fairway-registry/fairway/internal/registry/gc"
	"github.com/fairway-registry/fairway/internal/registry/meta"
	"github.com/fairway-registry/fairway/internal/registry/nodes"
	"github.com/fairway-registry/fairway/internal/registry/preheat"
)

// Options is what the face speaks for.
type Options struct {
	Store     *meta.Store
	Collector *gc.Collector
	Checker   *check.Checker
	Nodes     *nodes.Nodes
	Preheats  *preheat.Preheats
	Observer  *httpserve.Observer // nil: requests are not counted by route
	Log       *slog.Logger
	Version   Version
	Guard     httpserve.Guard
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
	*jsonface.Face
	admin *admin.Admin
}

// New returns the handler.
func New(o Options) *API {
	a := &API{
		Options: o,
		admin:   admin.New(admin.Options{Store: o.Store, Collector: o.Collector, Checker: o.Checker, Nodes: o.Nodes, Preheats: o.Preheats, Log: o.Log}),
	}
	var routes []jsonface.Route
	for _, r := range a.routes() {
		routes = append(routes, jsonface.Route{Method: r.method, Path: r.path, Handle: func(c *jsonface.Call) (any, error) {
			return r.handle(&call{c, admin.Caller{Actor: anonymous(c.Request), Remote: c.RemoteAddr, RequestID: c.RequestID}})
		}})
	}
	a.Face = jsonface.New(jsonface.Options{Routes: routes, Spec: specYAML, Guard: o.Guard, Observer: o.Observer})
	return a
}

//go:embed openapi.yaml
var specYAML []byte

// route is one operation of the API.
type route struct {
	method, path string
	handle       handler
}

type handler func(c *call) (body any, err error)

// call is a request being answered, with who sent it.
type call struct {
	*jsonface.Call
	who admin.Caller
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
		{"GET", "/nodes", a.listNodes},
		{"GET", "/nodes/{name}", a.getNode},
		{"PUT", "/nodes/{name}", a.reportNode},
		{"DELETE", "/nodes/{name}", a.forgetNode},
		{"GET", "/nodes/{name}/tasks", a.nodeTasks},
		{"PUT", "/nodes/{name}/tasks/{id}", a.reportTask},
		{"POST", "/preheats", a.startPreheat},
		{"GET", "/preheats", a.listPreheats},
		{"GET", "/preheats/{id}", a.getPreheat},
		{"DELETE", "/preheats/{id}", a.deletePreheat},
		{"GET", "/preheat-rules", a.listPreheatRules},
		{"POST", "/preheat-rules", a.addPreheatRule},
		{"DELETE", "/preheat-rules/{id}", a.deletePreheatRule},
		{"GET", "/deletions", a.listDeletions},
		{"POST", "/checks", a.startCheck},
		{"GET", "/checks", a.listChecks},
		{"GET", "/checks/{id}", a.getCheck},
		{"POST", "/checks/{id}/stop", a.stopCheck},
		{"GET", "/version", a.version},
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

func (a *API) version(*call) (any, error) { return a.Version, nil }
