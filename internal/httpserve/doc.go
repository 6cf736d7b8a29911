// Package httpserve owns what every face of an HTTP server shares: its life
// cycle, request ids, the access log, metrics, recovery from panics, and the
// one table from fault kinds to status codes.
//
// Serve runs a server until its context ends and then lets running requests
// finish. An Observer wraps the handler: it names the request, counts it and
// logs it once, when it is over. A handler tells the Observer what it knows
// through the ResponseWriter (Mark, Note), so that a request costs no copied
// *http.Request and no context value.
//
// It refuses to put itself between a file and its socket: the wrapped
// ResponseWriter keeps io.ReaderFrom, so sendfile survives.
package httpserve
