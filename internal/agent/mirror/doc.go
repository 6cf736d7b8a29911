// Package mirror owns the HTTP that container runtimes pull through.
//
// It is a registry that can only be read, in front of several upstreams: which
// one is meant is said by containerd's ns parameter, by the first part of the
// repository's name, or else is the default of the listener. Upstreams that are
// not configured are refused at once, so that a runtime goes on to the next of
// its hosts (N8).
//
// Content is cached by digest and shared by all repositories and upstreams; the
// right to it is not. decide is the rule, which docs/rights.md states. Knowing a
// digest gives no access (R12), and an outage is not a verdict (N11). Rights that
// took an Authorization are kept in memory only, under a hash of it.
//
// Tags are the upstream's: asked for each time but for a short cache, and while
// it is down the last known digest is given, marked as stale.
//
// It refuses to write, to answer with bytes that do not have their digest (N7;
// the connection breaks instead), and to keep a runtime waiting for an upstream
// that does not answer.
package mirror
