// Package jsonface owns the manner of the JSON APIs of both houses under
// /api/v1/: routing, errors, strict reading of bodies and queries, and the
// OpenAPI document. The faces themselves, registry/adminapi and agent/admin,
// bring the nouns.
//
// It refuses what a web page could have sent: a request from another origin, a
// body that is not declared as JSON, and, on loopback, a Host that somebody's
// name server may have pointed here. A body with a field it does not know, or a
// value of the wrong type, is refused with the field's name.
package jsonface
