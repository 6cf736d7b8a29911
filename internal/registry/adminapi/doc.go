// Package adminapi owns the JSON face of the registry under /api/v1/: the
// collector, the trash, leases, checks, explanations. The nouns are those of
// the packages below, with their JSON tags; openapi.yaml describes them, and
// tests hold the handler to it.
//
// It refuses what a web page could have sent: a request from another origin, a
// body that is not declared as JSON, and, while the server listens on loopback,
// a Host that somebody's name server may have pointed here. A body with a field
// it does not know, or a value of the wrong type, is refused with the field's
// name.
package adminapi
