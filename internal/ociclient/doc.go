// Package ociclient owns the pull side of the distribution-spec, as a client:
// manifests, blobs and ranges of them out of one upstream registry, and what it
// takes to be let in.
//
// What an upstream answers is handed on as it is: a refusal, a limit or "not
// found" is a *Response with that status, since whoever asked may know what to
// do about it. Only an upstream that gives no answer is an error, of the kind
// fault.Busy.
//
// Credentials reach the upstream that they are for, and the token service that
// this upstream names, and nobody else: not the host that a redirect leads to,
// no log and no error text. It verifies nothing that it hands out; whoever reads
// a body checks it against a digest. It pushes nothing.
package ociclient
