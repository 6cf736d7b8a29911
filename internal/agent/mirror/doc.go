// Package mirror owns the HTTP that container runtimes pull through.
//
// It is a registry that can only be read, in front of several upstreams: which
// one is meant is said by containerd's ns parameter, by the first part of the
// repository's name, or else is the default of the listener. Upstreams that are
// not configured are refused at once, so that a runtime goes on to the next of
// its hosts (N8).
//
// Content is cached by digest and shared by all repositories and upstreams; the
// right to it is not. A client gets a digest under (upstream, repository) if
// that upstream let anybody have it there, or let this client have it there a
// short time ago, or does so now; and so for what a manifest names that it got
// there. Knowing a digest gives no access (R12). Rights that took an
// Authorization are kept in memory only, under a hash of it.
//
// Tags are the upstream's: asked for each time but for a short cache, and while
// it is down the last known digest is given, marked as stale.
//
// It refuses to write, to answer with bytes that do not have their digest (N7;
// the connection breaks instead), and to keep a runtime waiting for an upstream
// that does not answer.
package mirror
