// Package report owns what this node tells the registry to be in use here: which
// images, for as long as their containers are there, and what is pinned.
//
// What holds:
//
//   - A report is the whole state, so there is nothing to queue: while the
//     registry is away there is only something that it has not heard, and what
//     is sent when it is back is what is in use then.
//   - A change is sent at once, after a moment in which others may join it; the
//     report is renewed three times in its time to live.
//   - What cannot be asked counts as it was (N3): the images of a runtime that
//     does not answer stay in the report, across a restart of the agent too, for
//     which the last report is kept in the data directory. They are let go when
//     the runtime has answered twice since the start.
//   - The end of the agent is not the end of what it reported: containers go on
//     running, so the last report is never an empty one.
//   - What a digest was found to belong to is remembered for as long as it is in
//     use, since the node's index may be lost and the content stays what it is.
//
// It refuses to go by a clock for anything but pauses: the registry counts the
// time to live by its own.
package report
