// Package adminapi owns the JSON face of the registry under /api/v1/: the
// collector, the trash, leases, checks, explanations. The nouns are those of
// the packages below, with their JSON tags; openapi.yaml describes them, and
// tests hold the handler to it.
//
// What it refuses, and how, is jsonface's.
package adminapi
