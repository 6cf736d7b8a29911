// Package distapi is the registry's OCI face: the distribution-spec under /v2/.
//
// It owns how requests are read and answers are written, and nothing else:
// what is in the registry is meta's, how bytes come in is upload's. Answers to
// HEAD and to a manifest's GET come from meta's cache with no more work than
// setting headers; a blob is handed to net/http as a bare file, which the
// kernel sends.
//
// It refuses with the specification's JSON and codes, and shows a client no
// text but that of a *fault.Error. What the specification leaves open:
//
//   - A blob that a manifest of the repository needs is not deleted: 405 with
//     DENIED, since dist-spec §Endpoints knows no other answer to a delete that
//     cannot be done.
//   - A chunk that comes while another request works on the session is answered
//     416 like one out of order: a client asks for the status and goes on.
//   - An error of ours on top of the table: STORAGE_FULL (507).
package distapi
