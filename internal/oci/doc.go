// Package oci owns the grammar of the OCI specifications: repository names,
// tags, digests, references, manifests and error codes. It is pure: no I/O, no
// clock, no state. Every parser here refuses what the specification does not
// allow with a *fault.Error that carries the code a client is to see.
//
// Sources: distribution-spec v1.1, image-spec v1.1, Docker image manifest
// version 2 schema 2.
package oci
