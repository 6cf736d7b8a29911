// Command bench measures Fairway beside Distribution (the registry most others
// are built on) and nginx serving static files (the limit of HTTP on this
// machine), and prints a Markdown report with ratios.
//
// Runs of the contestants are interleaved (A B C, A B C, …) and a figure is the
// median of its runs, because the machine may be shared and noisy: the ratios of
// one report mean something, absolute figures of two reports do not compare.
// Everything listens on loopback; only processes that bench started are ended.
package main
